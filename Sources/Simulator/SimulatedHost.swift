// One machine of a simulated world, and the process that runs on it while it is up.
import Consensus
import Model
import NodeCore

/// What a node's log holds, as its persist requests tell.
struct LogView {
    /// The index before the first entry.
    var base: UInt64 = 0
    var entries: [LogEntry] = []
    /// Indexes of entries that are configurations.
    private(set) var configurations: [UInt64] = []

    init() {}

    init(base: UInt64, entries: [LogEntry]) {
        self.base = base
        self.entries = entries
        configurations = entries.filter { $0.kind == .configuration }.map(\.index)
    }

    /// The payload of the newest configuration.
    var configuration: [UInt8]? { configurations.last.flatMap { self[$0]?.payload } }

    var lastIndex: UInt64 { base + UInt64(entries.count) }

    subscript(index: UInt64) -> LogEntry? {
        index > base && index <= lastIndex ? entries[Int(index - base - 1)] : nil
    }

    mutating func take(_ request: PersistRequest) throws {
        if let reset = request.reset {
            base = reset.index
            entries = []
            configurations = []
        }
        if let from = request.truncateFrom, from <= lastIndex {
            guard from > base else { throw Violation("a log is truncated from \(from), before its base \(base)") }
            entries.removeLast(Int(lastIndex - from + 1))
            while let last = configurations.last, last >= from { configurations.removeLast() }
        }
        for entry in request.entries {
            guard entry.index == lastIndex + 1 else {
                throw Violation("entry \(entry.index) is appended after \(lastIndex)")
            }
            entries.append(entry)
            if entry.kind == .configuration { configurations.append(entry.index) }
        }
    }
}

/// What a persist request does to the log on the disk.
struct UnsyncedLog {
    var ticket: UInt64
    var reset: LogPosition?
    var truncateFrom: UInt64?
    /// What precedes the truncation.
    var before: LogPosition
    var last: LogPosition?
}

final class SimulatedHost {
    let index: Int
    /// A node whose data are gone comes back as another.
    private(set) var id: NodeID
    let name: String
    let address: SocketAddress
    private(set) var expect: Int
    let disks = MachineDisks()
    var clock: SimulatedClock

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
    /// It is going to crash in the middle of its next write; whether its machine stays on.
    var doom: (life: Int, powered: Bool)?
    /// Asked to stop by SIGTERM.
    var isStopping = false

    // MARK: Damage

    /// Its disk was damaged while it was down.
    private(set) var isSpoiled = false
    private(set) var isTermSpoiled = false
    /// Its term was lost by damage; stays true until a start found it again.
    private(set) var mayLoseTerm = false
    /// The end of its log before it was damaged.
    private(set) var owed = LogPosition.zero
    /// Its snapshots were damaged once.
    private(set) var areSnapshotsSpoiled = false
    /// It does not have again what its disk lost.
    var isMarkedDamaged: Bool { storage?.isRecovering ?? isSpoiled }
    /// Damaged, and nobody else has what is lost: the agent refuses to start.
    var isRefused = false
    /// The term that it entered without knowing what it had promised.
    var guessedTerm: UInt64?

    // MARK: What the oracle knows of this life

    /// Where the configuration in force comes from.
    struct ConfigurationPlace: Equatable {
        var newest: LogPosition
        var base: UInt64
        var snapshot: UInt64
    }

    /// When its configuration was found right.
    var checkedLog: ConfigurationPlace?
    /// The last index at which its state was compared.
    var comparedIndex: UInt64 = 0
    /// Since when somebody waits here for what is there.
    var servableSince: MonotonicTime?
    /// The same of somebody who waits for a lease, whatever else is under way; and where the log ended a little later.
    var freeLease: (waiter: String, since: MonotonicTime, mark: (time: MonotonicTime, index: UInt64)?)?
    /// The configuration that was in force when the last turn ended.
    var configuration: RaftConfiguration?
    /// Its disk was damaged at some time: what was on it counts for nothing until the next start.
    private(set) var wasSpoiled = false
    private(set) var hasEverBeenSpoiled = false

    var log = LogView()
    /// Terms, votes and ends of logs that are on their way to the disk.
    var unsyncedVotes: [(ticket: UInt64, state: HardState)] = []
    var unsyncedLogs: [UnsyncedLog] = []
    /// The last entry that is known to be on the disk.
    var durableLast = LogPosition.zero
    var lastTerm: UInt64 = 0
    var lastCommit: UInt64 = 0
    var wasLeader = false
    /// What is known to be on the disk, in all lives.
    var durable = HardState()

    init(index: Int, expect: Int, seed: UInt64, drift: Int64, generator: inout SeededGenerator) {
        self.index = index
        self.expect = expect
        // Ids in no order, so that the smallest is anybody.
        id = NodeID(high: generator.next(), low: seed)
        name = "n\(index)"
        address = SocketAddress(host: .v4(0x0A00_0001 + UInt32(index)), port: 7630)
        clock = SimulatedClock(offset: .milliseconds(Int64(generator.next() % 100_000_000)), drift: drift)
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

    func spoil(isTermLost: Bool, ofSnapshots: Bool, owed: LogPosition) {
        // A second damage before the first was made good hides no more than the first did.
        self.owed = isMarkedDamaged ? max(self.owed, owed) : owed
        isSpoiled = true
        wasSpoiled = true
        hasEverBeenSpoiled = true
        isTermSpoiled = isTermSpoiled || isTermLost
        mayLoseTerm = mayLoseTerm || isTermLost
        areSnapshotsSpoiled = areSnapshotsSpoiled || ofSnapshots
    }

    func forgetSpoiling() { wasSpoiled = false }

    /// The disk was opened: what it says counts from here on.
    func opened(isTermLost: Bool) {
        isSpoiled = false
        isTermSpoiled = isTermLost
        if !isTermLost { mayLoseTerm = false }
        isRefused = false
    }

    /// The data directory is gone.
    func wipe(newID: NodeID) {
        id = newID
        disks.wipe()
        isSpoiled = false
        isTermSpoiled = false
        areSnapshotsSpoiled = false
        owed = .zero
        isRefused = false
        durable = HardState()
        durableLast = .zero
        // As an operator does who brings in a machine beside a running cluster.
        if expect == 1 { expect = 0 }
    }

    func end() {
        if let storage { isSpoiled = storage.isRecovering }
        core = nil
        storage = nil
        pods = nil
    }

    func localTime(_ time: MonotonicTime) -> MonotonicTime { clock.reading(at: time) }
    func worldTime(_ local: MonotonicTime) -> MonotonicTime { clock.moment(of: local) }
}
