import Model

@testable import Consensus

/// Every order in which things can happen to three voters, within bounds: not some orders that chance picks, but all.
///
/// The network is the set of all messages that were ever sent. Each may arrive at any moment, any number of times, or never, which is
/// loss, delay, duplication and reordering at once. When a write becomes durable is a choice, for ``Bounds/lateWrites``
/// of them, and a crash keeps any prefix of what was not durable yet. Time does not exist: any node may stand for election at any moment, with the
/// request that voters grant however lately they heard a leader. Pre-vote is left out for that reason: all that it does is to forbid
/// elections. What is explored is therefore more than what can happen, and a rule that holds here does not rest on clocks.
///
/// States that are equal but for time and the numbers of tickets are explored once. Messages of a term that their receiver has
/// left, and answers that nobody counts any more, are forgotten: they could only be refused.
struct SmallScope {
    struct Bounds {
        var elections: Int
        var proposals: Int
        var crashes: Int
        /// Rounds of heartbeats, which tell followers what is committed.
        var heartbeats = 0
        /// So many writes take their time: when they are durable is a choice. Others are at once.
        var lateWrites = 0
        var maxAppendEntries = 4_096
        /// Terms of the entries behind the first one that earlier leaders left at each node, and the term that all have reached.
        var logs: [[UInt64]] = [[], [], []]
        var term: UInt64 = 1
        /// Who stands in the elections after the first.
        var candidates = [0, 1, 2]
        /// Who crashes, and whose writes take their time.
        var crashing = [0, 1, 2]
        /// More than so many states are not explored; ``Figures/isComplete`` tells.
        var states = 5_000_000
    }

    enum Action: CustomStringConvertible {
        case stand(Int)
        case propose(Int)
        case heartbeats(Int)
        case sync(Int)
        /// So many of the writes that were under way are there.
        case crash(Int, kept: Int)
        case deliver(from: Int, to: Int, RaftMessage)

        var description: String {
            switch self {
            case .stand(let i): "\(i) stands for election"
            case .propose(let i): "\(i) proposes"
            case .heartbeats(let i): "\(i) sends heartbeats"
            case .sync(let i): "\(i) has written"
            case .crash(let i, let kept): "\(i) crashes, \(kept) writes are kept"
            case .deliver(let from, let to, let message): "\(from) > \(to): \(message)"
            }
        }
    }

    struct Found: Error, CustomStringConvertible {
        var what: String
        var path: [Action]
        var description: String {
            what + "\n" + path.map { "    \($0)" }.joined(separator: "\n")
        }
    }

    struct Figures {
        var states = 0
        var transitions = 0
        /// The greatest number of steps from the beginning on the ways that were taken.
        var depth = 0
        var leaders = 0
        var highestCommitted = 0
        /// Followers that were the first to know of a commitment, by the two copies.
        var earlyCommitments = 0
        var isComplete = false
    }

    private struct Envelope {
        var from: Int
        var to: Int
        var message: RaftMessage
        var hash: Int
    }

    fileprivate struct Node {
        var raft: Raft
        var disk: RecoveredLog
        var writes: [PersistRequest] = []
        var hash = 0
    }

    private final class Step {
        let before: Step?
        let action: Action
        let count: Int
        init(_ before: Step?, _ action: Action) {
            self.before = before
            self.action = action
            count = (before?.count ?? 0) + 1
        }
    }

    private struct State {
        var nodes: [Node]
        var network: [Envelope] = []
        /// By term.
        var leaders: [Int?] = []
        var committed: [LogEntry] = []
        var elections = 0
        var proposals = 0
        var crashes = 0
        var heartbeats = 0
        var lateWrites = 0
        var last: Step?
    }

    private static let ids = (1...3).map { NodeID(high: 0, low: UInt64($0)) }
    private static let now = MonotonicTime.zero + .seconds(1)

    let bounds: Bounds
    private(set) var figures = Figures()
    private var options = RaftOptions()

    init(_ bounds: Bounds) {
        self.bounds = bounds
        options.maxAppendEntries = bounds.maxAppendEntries
    }

    /// Throws ``Found`` for the first state that breaks a rule.
    mutating func explore() throws {
        var start = State(
            nodes: zip(SmallScope.ids, bounds.logs).map { id, terms in
                var disk = RecoveredLog.founding(RaftConfiguration(voters: SmallScope.ids))
                for term in terms {
                    disk.entries.append(LogEntry(index: disk.last.index + 1, term: term, kind: .noop, payload: []))
                }
                disk.hardState.term = bounds.term
                return Node(raft: boot(id, disk), disk: disk)
            })
        for i in start.nodes.indices { start.nodes[i].hash = SmallScope.hash(start.nodes[i]) }
        // Whoever stands first is called 0.
        var open = try [false, true].compactMap { try step(start, .stand(0), isLate: $0) }
        var seen = Set(open.map { SmallScope.hash($0) })
        while seen.count <= bounds.states, let state = open.popLast() {
            figures.depth = max(figures.depth, state.last?.count ?? 0)
            for action in actions(in: state) {
                for isLate in [false, true] {
                    guard let next = try step(state, action, isLate: isLate) else { continue }
                    figures.transitions += 1
                    if seen.insert(SmallScope.hash(next)).inserted { open.append(next) }
                }
            }
        }
        figures.states = seen.count
        figures.isComplete = open.isEmpty
    }

    private func boot(_ id: NodeID, _ disk: RecoveredLog) -> Raft {
        Raft(
            id: id, options: options, recovered: disk, generator: SeededGenerator(seed: id.low), now: SmallScope.now)
    }

    // MARK: - What can happen

    private func actions(in state: State) -> [Action] {
        var actions: [Action] = []
        for (i, node) in state.nodes.enumerated() {
            if state.elections < bounds.elections, bounds.candidates.contains(i), node.raft.role != .leader,
                node.raft.canCampaign
            {
                actions.append(.stand(i))
            }
            if node.raft.role == .leader {
                if state.proposals < bounds.proposals { actions.append(.propose(i)) }
                if state.heartbeats < bounds.heartbeats { actions.append(.heartbeats(i)) }
            }
            if !node.writes.isEmpty { actions.append(.sync(i)) }
            if state.crashes < bounds.crashes, bounds.crashing.contains(i) {
                for kept in 0...node.writes.count { actions.append(.crash(i, kept: kept)) }
            }
        }
        for item in state.network { actions.append(.deliver(from: item.from, to: item.to, item.message)) }
        return actions
    }

    /// The state after the action. `isLate`: what it writes is not durable at once; nil if that may not be, or if it writes nothing.
    private mutating func step(_ before: State, _ action: Action, isLate: Bool) throws -> State? {
        if isLate, before.lateWrites >= bounds.lateWrites { return nil }
        var state = before
        state.last = Step(before.last, action)
        let i: Int
        do {
            switch action {
            case .stand(let node):
                i = node
                state.elections += 1
                state.nodes[i].raft.startElection(isTransfer: true)
            case .propose(let node):
                i = node
                state.proposals += 1
                _ = state.nodes[i].raft.propose([[UInt8(state.proposals)]], now: SmallScope.now)
            case .heartbeats(let node):
                i = node
                state.heartbeats += 1
                state.nodes[i].raft.sendHeartbeats()
            case .sync(let node):
                i = node
                try state.nodes[i].sync()
            case .crash(let node, let kept):
                i = node
                state.crashes += 1
                for request in state.nodes[i].writes.prefix(kept) { state.nodes[i].write(request) }
                state.nodes[i].writes = []
                state.nodes[i].raft = boot(SmallScope.ids[i], state.nodes[i].disk)
            case .deliver(let from, let to, let message):
                i = to
                try state.nodes[i].raft.handle(.message(from: SmallScope.ids[from], message), now: SmallScope.now)
            }
            try carryOut(i, &state)
            if isLate {
                // A disk writes in order: what comes behind a late write is late as well.
                guard bounds.crashing.contains(i), state.nodes[i].writes.count > before.nodes[i].writes.count else {
                    return nil
                }
                state.lateWrites += 1
            } else if before.nodes[i].writes.isEmpty {
                while !state.nodes[i].writes.isEmpty {
                    try state.nodes[i].sync()
                    try carryOut(i, &state)
                }
            }
            try checkLogs(of: i, in: state)
        } catch let found as Broken {
            throw Found(what: found.what, path: SmallScope.path(to: state.last))
        } catch let violation as RaftViolation {
            throw Found(what: "a message is refused as impossible: \(violation)", path: SmallScope.path(to: state.last))
        }
        state.nodes[i].hash = SmallScope.hash(state.nodes[i])
        let nodes = state.nodes
        state.network.removeAll { SmallScope.isOver($0, nodes) }
        return state
    }

    private static func path(to last: Step?) -> [Action] {
        var path: [Action] = []
        var at = last
        while let step = at {
            path.append(step.action)
            at = step.before
        }
        return path.reversed()
    }

    private struct Broken: Error { var what: String }

    // MARK: - Effects and rules

    private mutating func carryOut(_ i: Int, _ state: inout State) throws {
        for effect in state.nodes[i].raft.takeEffects() {
            switch effect {
            case .persist(let request): state.nodes[i].writes.append(request)
            case .send(let to, let message):
                guard let to = SmallScope.ids.firstIndex(of: to) else { continue }
                send(message, from: i, to: to, &state)
            case .committed(let entries): try check(entries, of: i, &state)
            case .becameLeader(let term): try checkLeader(i, term, &state)
            case .readReady, .readFailed, .leaderChanged, .steppedDown, .transferFailed, .configurationChanged,
                .sendSnapshot, .storeSnapshotChunk, .restoreSnapshot, .recovered:
                break
            }
        }
    }

    private func send(_ message: RaftMessage, from: Int, to: Int, _ state: inout State) {
        var hasher = Hasher()
        hasher.combine(from)
        hasher.combine(to)
        hasher.combine(message)
        let hash = hasher.finalize()
        guard !state.network.contains(where: { $0.hash == hash }) else { return }
        state.network.append(Envelope(from: from, to: to, message: message, hash: hash))
    }

    /// State-machine safety: no two nodes ever apply different entries at an index.
    private mutating func check(_ entries: [LogEntry], of i: Int, _ state: inout State) throws {
        for entry in entries {
            let at = Int(entry.index) - 1
            guard at <= state.committed.count else { throw Broken(what: "\(i) leaves out an entry") }
            if at == state.committed.count {
                state.committed.append(entry)
                figures.highestCommitted = max(figures.highestCommitted, state.committed.count)
                if state.nodes[i].raft.role == .follower { figures.earlyCommitments += 1 }
            } else if state.committed[at] != entry {
                throw Broken(
                    what:
                        "state-machine safety: \(i) applies \(entry.position), but \(state.committed[at].position) was")
            }
        }
    }

    /// Election safety and leader completeness.
    private mutating func checkLeader(_ i: Int, _ term: UInt64, _ state: inout State) throws {
        let at = Int(term)
        while state.leaders.count <= at { state.leaders.append(nil) }
        if let other = state.leaders[at], other != i {
            throw Broken(what: "election safety: \(other) and \(i) lead term \(term)")
        }
        figures.leaders += state.leaders[at] == nil ? 1 : 0
        state.leaders[at] = i
        for entry in state.committed where !state.nodes[i].raft.log.contains(entry.position) {
            // What a later leader committed an old one need not have; terms of candidates only rise, so that this is one.
            guard state.leaders.indices.last == at else { continue }
            throw Broken(what: "leader completeness: \(i) leads term \(term) without committed \(entry.position)")
        }
    }

    /// Log matching: an equal position means equal logs up to there.
    private func checkLogs(of i: Int, in state: State) throws {
        let own = state.nodes[i].raft.log.entries
        for (j, node) in state.nodes.enumerated() where j != i {
            let others = node.raft.log.entries
            var areEqual = true
            for (a, b) in zip(own, others) {
                if a != b { areEqual = false }
                if a.term == b.term, !areEqual {
                    throw Broken(what: "log matching: \(i) and \(j) have \(a.position) behind different logs")
                }
            }
        }
    }

    /// True for a message that can change nothing any more.
    private static func isOver(_ item: Envelope, _ nodes: [Node]) -> Bool {
        let to = nodes[item.to].raft
        if item.message.term < to.term { return true }
        guard item.message.term == to.term else { return false }
        switch item.message {
        case .voteResponse(let response): return to.role != .candidate || !response.granted
        case .appendResponse: return to.role != .leader
        case .heartbeatResponse: return true
        default: return false
        }
    }

    // MARK: - Equal states

    private static func hash(_ state: State) -> Int {
        var hasher = Hasher()
        for node in state.nodes { hasher.combine(node.hash) }
        hasher.combine(state.network.reduce(0) { $0 &+ $1.hash &* 31 ^ ($1.hash &>> 7) })
        hasher.combine(state.leaders)
        hasher.combine(state.committed)
        hasher.combine(state.elections)
        hasher.combine(state.proposals)
        hasher.combine(state.crashes)
        hasher.combine(state.heartbeats)
        hasher.combine(state.lateWrites)
        return hasher.finalize()
    }

    private static func hash(_ node: Node) -> Int {
        let raft = node.raft
        var hasher = Hasher()
        hasher.combine(raft.role)
        hasher.combine(raft.term)
        hasher.combine(raft.vote)
        hasher.combine(raft.leader)
        hasher.combine(raft.commitIndex)
        hasher.combine(raft.durableIndex)
        hasher.combine(raft.requestedIndex)
        hasher.combine(raft.deliveredIndex)
        hasher.combine(raft.leadersCopy)
        hasher.combine(raft.agreedTerm)
        hasher.combine(raft.agreedIndex)
        hasher.combine(raft.log.entries)
        for item in raft.outstanding {
            hasher.combine(raft.lastTicket - item.ticket)
            hasher.combine(item.lastIndex)
        }
        // What is said twice when the disk is done says no more than once.
        hasher.combine(
            Set(
                raft.held.map { item in
                    var hasher = Hasher()
                    hasher.combine(raft.lastTicket - item.ticket)
                    hasher.combine(item.to)
                    hasher.combine(item.message)
                    return hasher.finalize()
                }))
        hasher.combine(Set(raft.votesFor))
        for peer in raft.peers {
            if case .replicate = peer.state { hasher.combine(true) } else { hasher.combine(peer.state) }
            hasher.combine(peer.match)
            hasher.combine(peer.next)
            hasher.combine(peer.sentCommit)
            hasher.combine(peer.toldDurable)
            hasher.combine(peer.inflightCount)
        }
        hasher.combine(node.disk.hardState.term)
        hasher.combine(node.disk.hardState.vote)
        hasher.combine(node.disk.entries)
        for request in node.writes {
            hasher.combine(request.hardState?.term)
            hasher.combine(request.hardState?.vote)
            hasher.combine(request.truncateFrom)
            hasher.combine(request.entries)
        }
        return hasher.finalize()
    }
}

extension SmallScope.Node {
    /// As `Journal` does.
    fileprivate mutating func write(_ request: PersistRequest) {
        if let state = request.hardState { disk.hardState = state }
        if let from = request.truncateFrom { disk.entries.removeAll { $0.index >= from } }
        disk.entries += request.entries
    }

    fileprivate mutating func sync() throws {
        guard let last = writes.last else { return }
        for request in writes { write(request) }
        writes = []
        try raft.handle(.persisted(ticket: last.ticket), now: raft.now)
    }
}
