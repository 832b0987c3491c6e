// The rate of the consensus core alone: three `Raft` values in one thread, a network that is an array, disks that are done at
// once. What is left is the protocol: entries of 256 bytes, each in memory of its own, replicated to both followers, acknowledged,
// committed and given out on all three, with the log compacted behind a snapshot every 65 536 entries. No wire format, no state
// machine. Prints one JSON object of entries per second; the first argument is the seconds for each figure (default 3).
import Consensus
import Glibc
import Model

struct Group {
    /// Entries between two snapshots.
    static let snapshotEvery: UInt64 = 65_536
    static let payloadBytes = 256

    private var members: [Raft] = []
    private var delivered: [UInt64] = [0, 0, 0]
    /// Messages under way; the first `taken` are done.
    private var network: [(from: Int, to: Int, message: RaftMessage)] = []
    private var taken = 0
    private var now = MonotonicTime(nanoseconds: 1_000_000_000)
    private let leader = 0

    init() throws {
        let ids = (1...3).map { NodeID(high: 0, low: $0) }
        let founding = RecoveredLog.founding(RaftConfiguration(voters: ids))
        for (index, id) in ids.enumerated() {
            members.append(
                Raft(id: id, recovered: founding, generator: SeededGenerator(seed: UInt64(index)), now: now))
        }
        // The first one's time-out comes; nobody else's timer is ever told.
        now = now + .seconds(1)
        try members[leader].handle(.timer, now: now)
        // A timer that is much too late blames its own process first.
        now = now + .seconds(1)
        try members[leader].handle(.timer, now: now)
        try flush(leader)
        try drain()
        guard members[leader].isReady else { throw Failure.noLeader }
    }

    enum Failure: Error {
        case noLeader
        case refused(ProposeError)
        case behind(delivered: UInt64, wanted: UInt64)
    }

    /// Proposes `batch` entries in one step of the leader, `window` times, and lets all of it come to its end.
    mutating func round(batch: Int, window: Int) throws {
        for _ in 0..<window {
            var payloads: [[UInt8]] = []
            payloads.reserveCapacity(batch)
            for _ in 0..<batch { payloads.append([UInt8](repeating: 7, count: Group.payloadBytes)) }
            if case .failure(let error) = members[leader].propose(payloads, now: now) { throw Failure.refused(error) }
            try flush(leader)
        }
        try drain()
        let last = members[leader].lastIndex
        guard delivered[leader] == last else { throw Failure.behind(delivered: delivered[leader], wanted: last) }
    }

    /// What followers learn of the last commit comes with the next message, as it would on a network.
    var deliveredByAll: UInt64 { delivered.min() ?? 0 }

    private mutating func drain() throws {
        while taken < network.count {
            let (from, to, message) = network[taken]
            taken += 1
            try members[to].handle(.message(from: members[from].id, message), now: now)
            // A driver feeds all that came in one turn before it takes the effects: messages to the same member in a row.
            if taken < network.count, network[taken].to == to { continue }
            try flush(to)
        }
        network.removeAll(keepingCapacity: true)
        taken = 0
    }

    private mutating func flush(_ member: Int) throws {
        var durable: UInt64?
        repeat {
            if let durable { try members[member].handle(.persisted(ticket: durable), now: now) }
            durable = nil
            for effect in members[member].takeEffects() {
                switch effect {
                case .persist(let request): durable = request.ticket
                case .send(let id, let message): network.append((member, Int(id.low) - 1, message))
                case .committed(let entries): deliver(entries, to: member)
                case .readReady, .readFailed, .leaderChanged, .becameLeader, .steppedDown, .transferFailed,
                    .configurationChanged, .sendSnapshot, .storeSnapshotChunk, .restoreSnapshot, .recovered:
                    break
                }
            }
        } while durable != nil
    }

    private mutating func deliver(_ entries: [LogEntry], to member: Int) {
        guard let last = entries.last?.index else { return }
        delivered[member] = last
        guard last >= members[member].snapshot.index + Group.snapshotEvery else { return }
        if let metadata = members[member].snapshotMetadata(at: last) { members[member].snapshotStored(metadata) }
    }
}

func seconds() -> Double {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
}

func measure(batch: Int, window: Int, for duration: Double) throws -> String {
    var group = try Group()
    let begun = seconds()
    let before = group.deliveredByAll
    var elapsed = 0.0
    repeat {
        for _ in 0..<64 { try group.round(batch: batch, window: window) }
        elapsed = seconds() - begun
    } while elapsed < duration
    let rate = Double(group.deliveredByAll - before) / elapsed
    return "{\"batch\":\(batch),\"in_flight\":\(batch * window),\"rate\":\(Int(rate))}"
}

do {
    let duration = CommandLine.arguments.dropFirst().first.flatMap(Double.init) ?? 3
    let batched = try measure(batch: 64, window: 1, for: duration)
    let pipelined = try measure(batch: 64, window: 16, for: duration)
    let single = try measure(batch: 1, window: 1, for: duration)
    let singles = try measure(batch: 1, window: 64, for: duration)
    print(
        "{\"batch64\":\(batched),\"batch64_pipelined\":\(pipelined),\"unbatched\":\(single),\"unbatched_pipelined\":\(singles)}"
    )
} catch {
    let line = Array("consensus-rate: \(error)\n".utf8)
    _ = write(2, line, line.count)
    exit(1)
}
