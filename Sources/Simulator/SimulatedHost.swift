// One machine of a simulated world, and the process that runs on it while it is up.
import Consensus
import Model
import NodeCore

/// What a node's log holds, as its persist requests tell.
struct LogView {
    /// The index before the first entry.
    var base: UInt64 = 0
    var entries: [LogEntry] = []

    var lastIndex: UInt64 { base + UInt64(entries.count) }

    subscript(index: UInt64) -> LogEntry? {
        index > base && index <= lastIndex ? entries[Int(index - base - 1)] : nil
    }

    mutating func take(_ request: PersistRequest) throws {
        if let reset = request.reset {
            base = reset.index
            entries = []
        }
        if let from = request.truncateFrom, from <= lastIndex {
            guard from > base else { throw Violation("a log is truncated from \(from), before its base \(base)") }
            entries.removeLast(Int(lastIndex - from + 1))
        }
        for entry in request.entries {
            guard entry.index == lastIndex + 1 else {
                throw Violation("entry \(entry.index) is appended after \(lastIndex)")
            }
            entries.append(entry)
        }
    }
}

final class SimulatedHost {
    let index: Int
    let id: NodeID
    let name: String
    let address: SocketAddress
    let expect: Int
    let disks = MachineDisks()
    /// This machine's clock shows the world's time plus this.
    let clockOffset: TimeSpan

    // MARK: The process

    var core: NodeCore?
    var storage: SimulatedStorage?
    var pods: SimulatedPods?
    var isUp: Bool { core != nil }
    /// The machine answers for its dead process: connections are refused. False when it is off.
    var isPowered = true
    /// Died for good.
    var isLost = false
    /// Counts starts: what was under way in an earlier life has no effect in this one.
    private(set) var life = 0
    var pausedUntil = MonotonicTime.zero
    var timerAt: MonotonicTime?
    var timerGeneration = 0
    var isFlushScheduled = false
    /// Asked to stop by SIGTERM.
    var isStopping = false

    // MARK: What the oracle knows of this life

    var log = LogView()
    /// Terms and votes that are on their way to the disk.
    var unsyncedVotes: [(ticket: UInt64, state: HardState)] = []
    var lastTerm: UInt64 = 0
    var lastCommit: UInt64 = 0
    var wasLeader = false

    init(index: Int, expect: Int, seed: UInt64, generator: inout SeededGenerator) {
        self.index = index
        self.expect = expect
        // Ids in no order, so that the smallest is anybody.
        id = NodeID(high: generator.next(), low: seed)
        name = "n\(index)"
        address = SocketAddress(host: .v4(0x0A00_0001 + UInt32(index)), port: 7630)
        clockOffset = .milliseconds(Int64(generator.next() % 100_000_000))
    }

    func begin() {
        life += 1
        isPowered = true
        isStopping = false
        timerAt = nil
        timerGeneration += 1
        isFlushScheduled = false
        wasLeader = false
    }

    func end() {
        core = nil
        storage = nil
        pods = nil
    }

    func localTime(_ time: MonotonicTime) -> MonotonicTime { time + clockOffset }
    func worldTime(_ local: MonotonicTime) -> MonotonicTime { local == .distantFuture ? local : local - clockOffset }
}
