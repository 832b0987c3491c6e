// Knows everything that happened in a world and compares. Three kinds of rules:
// - of the log: one leader a term, a new leader has all that was ever committed, committed entries never differ, terms and
//   commit indexes never go back, states are equal at equal indexes (a replica of our own follows the log);
// - of answers: nothing is answered before it is committed, every answer is the one that the log's order gives (which makes
//   commands linearizable: the log's order is checked against real time), a command is executed once, a read has applied
//   whatever was committed when it was asked;
// - of what clients rely on, known from the answers alone: ids, tokens and leases, jobs that stay until they are deleted.
import Consensus
import Leases
import Model
import NodeCore
import Queues
import Scheduling
import Wire

struct ClusterOracle {
    struct Command: Hashable {
        var session: SessionID
        var sequence: UInt64
    }

    private struct Committed {
        var term: UInt64
        var checksum: UInt32
        /// The term of the node that was first seen to have it committed: that of its commit, or a later one.
        var seenIn: UInt64
    }

    private struct Vote: Hashable {
        var node: NodeID
        var term: UInt64
    }

    private struct Execution {
        var index: UInt64
        var reply: [UInt8]
    }

    private(set) var replica = StateReplica()
    private var committed: [Committed] = []
    private var leaders: [UInt64: Int] = [:]
    private var votes: [Vote: NodeID] = [:]
    private var checksums: [LogPosition: UInt32] = [:]
    private var digests: [UInt64: UInt32] = [:]
    private var executions: [Command: Execution] = [:]
    private var bindings: [SimulatedPods.Key: NodeID] = [:]
    private var lastStamp: UInt64 = 0
    /// By index.
    var committedConfigurations: [(index: UInt64, payload: [UInt8])] = []
    /// Who said that it would vote.
    var preVotes: [PreVote: Set<NodeID>] = [:]
    var jobs = JobLedger()
    var elections = ElectionLedger()

    var committedIndex: UInt64 { UInt64(committed.count) }

    // MARK: - The log

    mutating func started(_ host: SimulatedHost, _ recovery: NodeRecovery) throws {
        host.log = LogView(base: recovery.log.base.index, entries: recovery.log.entries)
        host.lastTerm = 0
        host.lastCommit = 0
        host.unsyncedVotes = []
        try checkDurableLog(of: host, recovery)
        host.unsyncedLogs = []
        host.servableSince = nil
        host.freeLease = nil
        host.configuration = nil
        host.comparedIndex = 0
        host.checkedLog = nil
        host.guessedTerm = nil
        try checkHardState(of: host, recovery)
        if recovery.log.snapshot.index > committedIndex {
            throw Violation(
                "node \(host.index) starts from a snapshot of \(recovery.log.snapshot.index), which was never committed"
            )
        }
    }

    /// A node starts with the term and the vote that were durable, whatever happened to it; unless its disk says that it lost
    /// them, which it may only after damage.
    private func checkHardState(of host: SimulatedHost, _ recovery: NodeRecovery) throws {
        defer { host.durable = recovery.log.hardState }
        if recovery.log.recovery?.isTermLost ?? false {
            guard host.mayLoseTerm else { throw Violation("node \(host.index) lost its term without damage") }
            return
        }
        let found = recovery.log.hardState
        let known = host.durable
        guard found.term > known.term || found.term == known.term && (known.vote == nil || found.vote == known.vote)
        else {
            throw Violation("node \(host.index) stored \(known) and reads \(found)")
        }
        guard let raft = host.core?.raft else { return }
        guard raft.term > found.term || raft.term == found.term && raft.vote == found.vote else {
            throw Violation("node \(host.index) starts in term \(raft.term) with another vote than \(found)")
        }
    }

    /// After each turn of a node, before its effects are carried out.
    mutating func observe(_ effects: [NodeEffect], of host: SimulatedHost, in world: World) throws {
        for effect in effects {
            switch effect {
            case .persist(let request), .found(let request):
                noteUnsynced(request, of: host)
                try host.log.take(request)
                // A founding that never gets to the disk was never told to anybody: see founded(_:).
                let isFounding = if case .found = effect { true } else { false }
                for entry in request.entries {
                    if !isFounding { try record(entry, by: host.index) }
                    if entry.kind == .configuration { try checkOverlap(entry, of: host) }
                }
                if let state = request.hardState { host.unsyncedVotes.append((request.ticket, state)) }
            case .peerFrame(.raft, let payload, let to, _): try checkSent(payload, by: host, to: to, world)
            case .peerFrame(.bootstrapAsk, let payload, _, _): try checkPromise(payload, by: host)
            default: break
            }
        }
        guard let now = host.core?.outline(), now.hasRaft else { return }
        if now.term < host.lastTerm {
            throw Violation("node \(host.index): its term goes back from \(host.lastTerm) to \(now.term)")
        }
        if now.commitIndex < host.lastCommit { throw Violation("node \(host.index): its commit index goes back") }
        // After a pause one turn may bring a commitment and a later term.
        let isOneTerm = now.term == host.lastTerm
        if now.isLeader, host.wasLeader, isOneTerm, now.commitIndex > host.lastCommit, let raft = host.core?.raft {
            try checkCommit(of: host, raft, world, inItsTerm: true)
        }
        host.lastTerm = now.term
        if now.isLeader {
            if let other = leaders[now.term], other != host.index {
                throw Violation("nodes \(other) and \(host.index) both lead term \(now.term)")
            }
            if leaders[now.term] == nil { world.figures.leaders += 1 }
            leaders[now.term] = host.index
            if !host.wasLeader { try checkCompleteness(of: host, term: now.term) }
        }
        host.wasLeader = now.isLeader
        if !now.isLeader, now.commitIndex > committedIndex, let raft = host.core?.raft {
            // It knows before its leader does: by the two copies, not by counting.
            try checkCommit(of: host, raft, world, inItsTerm: isOneTerm)
            world.figures.earlyCommits += 1
        }
        host.configuration = host.core?.raft?.configuration
        try advance(host, to: now.commitIndex, term: now.term, world)
        if now.appliedIndex > committedIndex {
            throw Violation("node \(host.index) has applied what is not committed")
        }
        if now.hasBacklog ? now.appliedIndex >= now.commitIndex : now.appliedIndex != now.commitIndex {
            throw Violation("node \(host.index) has applied \(now.appliedIndex) of \(now.commitIndex)")
        }
        try checkConfiguration(of: host, snapshotIndex: now.snapshotIndex)
        if now.isLeader, now.hasParked {
            try checkWaiters(of: host, world)
            try checkWaitersForLeases(of: host, applied: now.appliedIndex, world)
        } else {
            host.servableSince = nil
            host.freeLease = nil
        }
        // Once for each index and life of a node: equal states at equal indexes.
        if now.appliedIndex > 0, now.appliedIndex % 16 == 0, now.appliedIndex != host.comparedIndex {
            host.comparedIndex = now.appliedIndex
            if let state = host.core?.encodedState {
                try compare(state, at: now.appliedIndex, of: host.index, world)
            }
        }
    }

    /// What is durable binds: one vote a term, in all lives of a node.
    mutating func persisted(through ticket: UInt64, of host: SimulatedHost) throws {
        logPersisted(through: ticket, of: host)
        while let (first, state) = host.unsyncedVotes.first, first <= ticket {
            host.unsyncedVotes.removeFirst()
            host.durable = state
            if host.isTermSpoiled, host.guessedTerm == nil { host.guessedTerm = state.term }
            // Entered with the vote taken, in the place of one that may have been given.
            guard host.guessedTerm != state.term else { continue }
            guard let vote = state.vote else { continue }
            let key = Vote(node: host.id, term: state.term)
            if let other = votes[key], other != vote {
                throw Violation("node \(host.index) votes twice in term \(state.term)")
            }
            votes[key] = vote
        }
    }

    /// The first entry of a cluster is on its founder's disk.
    mutating func founded(_ host: SimulatedHost) throws {
        for entry in host.log.entries { try record(entry, by: host.index) }
    }

    /// An index and term name one entry for ever.
    private mutating func record(_ entry: LogEntry, by host: Int) throws {
        let checksum = CRC32C.checksum(entry.payload)
        if let known = checksums[entry.position], known != checksum {
            throw Violation("there are two entries \(entry.position)")
        }
        checksums[entry.position] = checksum
    }

    private mutating func advance(_ host: SimulatedHost, to commit: UInt64, term: UInt64, _ world: World) throws {
        var index = host.lastCommit
        while index < commit {
            index += 1
            guard let entry = host.log[index] else {
                // It came with a snapshot.
                guard index <= committedIndex else {
                    throw Violation("node \(host.index) has committed \(index), which nobody has seen")
                }
                continue
            }
            let identity = Committed(
                term: entry.term, checksum: CRC32C.checksum(entry.payload), seenIn: term)
            if index <= committedIndex {
                let known = committed[Int(index - 1)]
                guard known.term == identity.term, known.checksum == identity.checksum else {
                    throw Violation(
                        "node \(host.index) commits \(entry.position), but \(index)@\(known.term) was committed")
                }
            } else {
                guard index == committedIndex + 1 else { throw Violation("entry \(committedIndex + 1) was left out") }
                committed.append(identity)
                if entry.kind == .configuration { committedConfigurations.append((entry.index, entry.payload)) }
                try apply(entry, world)
            }
        }
        host.lastCommit = commit
    }

    private func checkCompleteness(of host: SimulatedHost, term: UInt64) throws {
        // Only what was committed in earlier terms: a deposed leader may be seen late.
        for index in stride(from: committedIndex, to: host.log.base, by: -1) {
            let known = committed[Int(index - 1)]
            guard known.seenIn < term else { continue }
            guard let entry = host.log[index], entry.term == known.term else {
                throw Violation(
                    "node \(host.index) leads term \(term) without committed entry \(index)@\(known.term)")
            }
        }
    }

    mutating func snapshotMade(_ metadata: SnapshotMetadata, _ state: [UInt8], by host: Int) throws {
        guard metadata.index <= committedIndex, committed[Int(metadata.index - 1)].term == metadata.term else {
            throw Violation("node \(host) makes a snapshot of \(metadata.position), which is not committed")
        }
        try record(digest: CRC32C.checksum(state), at: metadata.index, of: host)
    }

    private mutating func compare(_ state: [UInt8], at index: UInt64, of host: Int, _ world: World) throws {
        world.figures.digestsCompared += 1
        try record(digest: CRC32C.checksum(state), at: index, of: host)
    }

    private mutating func record(digest: UInt32, at index: UInt64, of host: Int) throws {
        if index == replica.appliedIndex, digests[index] == nil { digests[index] = CRC32C.checksum(replica.encoded) }
        if let known = digests[index], known != digest { throw Violation("node \(host) has another state at \(index)") }
        digests[index] = digest
    }

    // MARK: - What the log's order means

    private mutating func apply(_ entry: LogEntry, _ world: World) throws {
        let applied: [StateReplica.Applied]
        do { applied = try replica.apply(entry) } catch {
            throw Violation("committed entry \(entry.position) can not be read: \(error)")
        }
        if entry.index % 16 == 0 { digests[entry.index] = CRC32C.checksum(replica.encoded) }
        if let stamp = StateReplica.stamp(of: entry) {
            // Log time stands still without a leader and is never quicker than a clock.
            if stamp > world.latestLogTime { throw Violation("log time \(stamp) ms is ahead of all clocks") }
            lastStamp = max(lastStamp, stamp)
        }
        var hasScheduling = false
        for item in applied {
            let command = Command(session: item.command.session, sequence: item.command.sequence)
            switch item.command.command {
            case .tick, .endSession: continue
            case .scheduling: hasScheduling = true
            case .queue, .lease: break
            }
            if item.isReplay {
                world.figures.replays += 1
                // Late, and its session has ended or moved on.
                if case .stale = item.result { continue }
                guard executions[command]?.reply == item.result.encoded else {
                    throw Violation(
                        "command \(command.sequence) of \(command.session) gets \(item.result) at \(item.index) as an earlier answer"
                    )
                }
                continue
            }
            if let earlier = executions[command] {
                throw Violation(
                    "command \(command.sequence) of \(command.session) is executed at \(earlier.index) and again at \(item.index)"
                )
            }
            // A wait that found nothing goes on.
            if item.command.wait != nil, ClusterOracle.isEmptyHanded(item.result) { continue }
            executions[command] = Execution(index: item.index, reply: item.result.encoded)
            switch (item.command.command, item.result) {
            case (.queue(let queue), .queue(let result)): try jobs.executed(queue, result, at: lastStamp)
            case (.lease(let lease), .lease(let result)): try elections.executed(lease, result, at: lastStamp)
            default: break
            }
        }
        if hasScheduling {
            for pod in replica.pods {
                guard let node = pod.node else { continue }
                let key = SimulatedPods.Key(uid: pod.uid, generation: pod.generation)
                if let other = bindings[key], other != node {
                    throw Violation("pod \(pod.name) generation \(pod.generation) is bound to two nodes")
                }
                if bindings[key] == nil { world.figures.podsBound += 1 }
                bindings[key] = node
            }
        }
    }

    static func isEmptyHanded(_ result: StateResult) -> Bool {
        switch result {
        case .queue(.reserved(let jobs)): jobs.isEmpty
        case .lease(.held): true
        default: false
        }
    }

    // MARK: - Answers

    /// What a node says to a client, at the moment it says it.
    func check(
        _ response: ClientResponse, to operation: Operation, of client: SimulatedClient, by host: SimulatedHost,
        in world: World
    ) throws {
        guard case .success(let bytes) = response else { return }
        switch operation.kind {
        case .query(let path):
            guard let core = host.core, path != "status" else { return }
            guard core.appliedIndex >= operation.seenIndex else {
                throw Violation(
                    "node \(host.index) answers \(path) from index \(core.appliedIndex), but \(operation.seenIndex) was committed before"
                )
            }
        case .command(let command, let lane, let sequence):
            if case .endSession = command { return }
            var reader = ByteReader(bytes)
            let result = try StateResult(decoding: &reader)
            try check(
                result, session: client.lanes[lane].id, sequence: sequence, waits: operation.waitUntil != nil,
                seenIndex: operation.seenIndex, by: host)
        }
    }

    /// The answer to one command.
    func check(
        _ result: StateResult, session: SessionID, sequence: UInt64, waits: Bool, seenIndex: UInt64,
        by host: SimulatedHost
    ) throws {
        // Written only when it is wanted: most answers are right.
        var answer: String { "node \(host.index) answers command \(sequence) of \(session) with \(result)" }
        // A wait that ends with nothing is no matter of the log. Another copy of the command, late on its way, may yet be
        // served: its node gives back what it gets.
        if waits, ClusterOracle.isEmptyHanded(result) { return }
        guard let execution = executions[Command(session: session, sequence: sequence)] else {
            throw Violation("\(answer) before it is committed")
        }
        guard execution.index > seenIndex else {
            throw Violation("\(answer), executed at \(execution.index), before it was asked")
        }
        guard execution.reply == result.encoded else { throw Violation("\(answer), which is not what the log gives") }
    }

    // MARK: - What clients know

    mutating func putAcknowledged(_ numbers: [UInt64], _ inserted: [InsertedJob]) throws {
        try jobs.putAcknowledged(numbers, inserted)
    }
    mutating func reserved(_ job: ReservedJob, askedAt: MonotonicTime) throws {
        try jobs.reserved(job, askedAt: askedAt)
    }
    mutating func deleteAsked(_ job: UInt64) { jobs.deleteAsked.insert(job) }
    mutating func deleteAcknowledged(_ job: UInt64, at time: MonotonicTime) throws {
        try jobs.deleteAcknowledged(job, at: time)
    }
    func isDeleted(_ job: UInt64) -> Bool { jobs.deleted[job] != nil }
    func isDeleteAsked(_ job: UInt64) -> Bool { jobs.deleteAsked.contains(job) }
    func anyAcknowledgedJob(using generator: inout SeededGenerator) -> UInt64? {
        jobs.anyAcknowledged(using: &generator)
    }

    /// A command with a job's lease was answered.
    func leaseUsed(job: UInt64, lease: UInt64, _ ending: Ending) throws {
        guard case .result(let result) = ending else { return }
        switch result {
        case .queue(.done), .queue(.buried), .queue(.notFound), .queue(.leaseExpired): break
        default: throw Violation("a command on job \(job) was answered with \(result)")
        }
    }

    func newestToken(of key: String) -> UInt64 { elections.newest[key] ?? 0 }

    mutating func granted(
        _ key: String, token: UInt64, to client: Int, until: MonotonicTime, now: MonotonicTime
    ) throws { try elections.granted(key, token: token, to: client, until: until, now: now) }

    mutating func renewed(_ key: String, client: Int, until: MonotonicTime) throws {
        elections.renewed(key, client: client, until: until)
    }
    mutating func clockJumped(by span: TimeSpan) { elections.clockJumped(by: span) }
    mutating func gaveUp(_ key: String, client: Int) { elections.gaveUp(key, client: client) }

    // MARK: - The end

    mutating func checkEnd(_ world: World) throws {
        for host in world.hosts {
            guard let core = host.core else { continue }
            guard core.appliedIndex == replica.appliedIndex else {
                throw Violation("node \(host.index) is not at the end")
            }
            try compare(core.encodedState, at: core.appliedIndex, of: host.index, world)
        }
        try jobs.checkEnd()
    }
}
