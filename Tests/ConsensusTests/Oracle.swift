import Consensus
import Journal
import Model

@testable import Consensus

struct OracleFailure: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

/// Knows everything that happened in a world and compares: Raft's five properties (figure 3 of the paper), votes once per
/// term across restarts, equal states at equal indexes, linearizable reads, and convergence when the faults end.
struct Oracle {
    private struct EntryKey: Hashable {
        var index: UInt64
        var term: UInt64
    }

    private struct Seen: Hashable {
        var previousTerm: UInt64
        var hash: UInt64
    }

    private struct Vote: Hashable {
        var node: NodeID
        var term: UInt64
    }

    private var leaders: [UInt64: NodeID] = [:]
    private var votes: [Vote: NodeID] = [:]
    private var entries: [EntryKey: Seen] = [:]
    /// Term of every committed entry, and the state after it.
    private(set) var committed: [UInt64: UInt64] = [:]
    private var digests: [UInt64: UInt64] = [:]
    private(set) var highestCommitted: UInt64 = 0
    /// The term in which each index was first seen committed.
    private var committedIn: [UInt64: UInt64] = [:]
    private var reads: [UInt64: UInt64] = [:]
    private(set) var readsAnswered = 0
    private(set) var snapshotsRestored = 0
    private(set) var configurationsCommitted = 0
    private(set) var recoveries = 0
    private var lastTerm: [Int: UInt64] = [:]
    private var lastCommit: [Int: UInt64] = [:]

    static func hash(_ entry: LogEntry) -> UInt64 {
        var hash: UInt64 = 0xCBF2_9CE4_8422_2325 ^ UInt64(entry.kind.rawValue)
        for byte in entry.payload { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01B3 }
        return hash
    }

    static func digest(_ digest: UInt64, _ entry: LogEntry) -> UInt64 {
        ((digest ^ hash(entry)) &* 0x9E37_79B9_7F4A_7C15) ^ entry.index ^ (entry.term << 32)
    }

    mutating func started(_ node: SimulatedNode) throws {
        guard let raft = node.raft else { return }
        // A term may be forgotten in a crash if nothing was promised in it; promises are checked one by one, as votes.
        lastTerm[node.index] = raft.term
        lastCommit[node.index] = raft.commitIndex
    }

    mutating func readIssued(_ context: UInt64) { reads[context] = highestCommitted }

    mutating func check(_ effect: RaftEffect, of i: Int, in world: RaftWorld) throws {
        let node = world.nodes[i]
        switch effect {
        case .becameLeader(let term):
            if let other = leaders[term], other != node.id { throw OracleFailure("two leaders in term \(term)") }
            leaders[term] = node.id
            try checkCompleteness(node, term: term)
        case .send(let to, .voteResponse(let response)) where response.granted:
            try recordVote(node.id, term: response.term, for: to)
        case .send(_, .vote(let request)):
            try recordVote(node.id, term: request.term, for: node.id)
        case .send(_, .append(let append)):
            try recordEntries(append.entries, after: append.previous.term)
        case .persist(let request):
            guard let first = request.entries.first, let raft = node.raft else { return }
            let previous = raft.log.term(at: first.index - 1) ?? request.reset?.term
            if let previous { try recordEntries(request.entries, after: previous) }
        case .committed(let new):
            for entry in new { try recordCommitted(entry, by: i, in: node.raft?.term ?? 0) }
        case .readReady(let contexts, let index):
            for context in contexts {
                guard let issued = reads.removeValue(forKey: context) else {
                    throw OracleFailure("read \(context) answered twice")
                }
                if index < issued {
                    throw OracleFailure("read \(context) sees \(index), but \(issued) was committed before it")
                }
                readsAnswered += 1
            }
        case .readFailed(let contexts):
            for context in contexts { reads[context] = nil }
        case .restoreSnapshot(let metadata):
            snapshotsRestored += 1
            if let term = committed[metadata.index], term != metadata.term {
                throw OracleFailure("snapshot of an uncommitted entry")
            }
        case .recovered: recoveries += 1
        case .send, .leaderChanged, .steppedDown, .transferFailed, .configurationChanged, .sendSnapshot,
            .storeSnapshotChunk:
            break
        }
    }

    private mutating func recordVote(_ node: NodeID, term: UInt64, for candidate: NodeID) throws {
        let key = Vote(node: node, term: term)
        if let other = votes[key], other != candidate { throw OracleFailure("\(node) voted twice in term \(term)") }
        votes[key] = candidate
    }

    /// Log matching by induction: an index and term always have the same contents and the same predecessor.
    private mutating func recordEntries(_ new: [LogEntry], after term: UInt64) throws {
        var previous = term
        for entry in new {
            let key = EntryKey(index: entry.index, term: entry.term)
            let seen = Seen(previousTerm: previous, hash: Oracle.hash(entry))
            if let known = entries[key], known != seen {
                throw OracleFailure("two entries \(entry.index)@\(entry.term)")
            }
            entries[key] = seen
            previous = entry.term
        }
    }

    private mutating func recordCommitted(_ entry: LogEntry, by i: Int, in term: UInt64) throws {
        if let term = committed[entry.index], term != entry.term {
            throw OracleFailure("node \(i) committed \(entry.index)@\(entry.term), another has @\(term)")
        }
        if committed[entry.index] == nil, entry.kind == .configuration { configurationsCommitted += 1 }
        if committed[entry.index] == nil { committedIn[entry.index] = term }
        committed[entry.index] = entry.term
        highestCommitted = max(highestCommitted, entry.index)
    }

    /// Leader completeness: a new leader has every entry that was committed in earlier terms. One whose votes were long on
    /// their way may appear after the leader of a later term, and has not what that one committed.
    private func checkCompleteness(_ node: SimulatedNode, term: UInt64) throws {
        guard let raft = node.raft else { return }
        var index = highestCommitted
        while index > raft.log.base.index {
            if committedIn[index] ?? 0 < term, raft.log.term(at: index) != committed[index] {
                throw OracleFailure("leader of term \(term) differs at committed \(index)")
            }
            index -= 1
        }
    }

    mutating func checkState(_ i: Int, in world: RaftWorld) throws {
        let node = world.nodes[i]
        guard let raft = node.raft else { return }
        if raft.term < lastTerm[i] ?? 0 { throw OracleFailure("node \(i): term went back") }
        if raft.commitIndex < lastCommit[i] ?? 0 { throw OracleFailure("node \(i): commit index went back") }
        lastTerm[i] = raft.term
        lastCommit[i] = raft.commitIndex
        let ordered =
            raft.log.base.index <= raft.snapshot.index && raft.snapshot.index <= node.applied
            && node.applied <= raft.commitIndex && raft.commitIndex <= raft.lastIndex
        if !ordered { throw OracleFailure("node \(i): base, snapshot, applied, commit and last are out of order") }
        if raft.configuration != configurationByLog(raft) {
            throw OracleFailure("node \(i): configuration is not the log's")
        }
        if node.applied > 0 {
            if let digest = digests[node.applied], digest != node.digest {
                throw OracleFailure("node \(i): another state at \(node.applied)")
            }
            digests[node.applied] = node.digest
        }
    }

    private func configurationByLog(_ raft: Raft) -> RaftConfiguration {
        var index = raft.lastIndex
        while index > max(raft.log.base.index, raft.snapshot.index) {
            if raft.log[index].kind == .configuration {
                return (try? RaftConfiguration(decoding: raft.log[index].payload)) ?? RaftConfiguration()
            }
            index -= 1
        }
        return raft.snapshot.configuration
    }

    /// After the peace: one leader that all members follow, and everything committed applied by all of them.
    func checkConvergence(_ world: RaftWorld) throws {
        let leading = world.nodes.filter { $0.raft?.isReady == true }
        guard let newest = leading.max(by: { ($0.raft?.term ?? 0) < ($1.raft?.term ?? 0) }), let leader = newest.raft
        else {
            let states = world.nodes.map { node in
                node.raft.map { "\($0.role) \($0.term) \($0.lastPosition)" } ?? "down"
            }
            throw OracleFailure("no leader at the end: \(states)")
        }
        if leader.commitIndex < highestCommitted { throw OracleFailure("committed entries are gone") }
        for node in world.nodes where leader.configuration.members.contains(node.id) {
            guard let raft = node.raft else { throw OracleFailure("node \(node.index) is down at the end") }
            if let recovery = raft.recovery {
                throw OracleFailure("node \(node.index) is not whole again: it owes \(recovery)")
            }
            if node.isMarkedDamaged { throw OracleFailure("node \(node.index) has not forgotten its damage") }
            if raft.term != leader.term {
                throw OracleFailure("node \(node.index) is in term \(raft.term) of \(leader.term)")
            }
            if node.applied + 40 < leader.commitIndex {
                throw OracleFailure("node \(node.index) applied \(node.applied) of \(leader.commitIndex)")
            }
        }
    }
}
