import Model
import Wire

// Who decides: the voters, during a joint change also the outgoing voters, and the learners, who receive the log without
// a say (Ongaro's thesis, chapter 4). All lists are sorted, so that equal configurations are equal bytes.

/// The members of a Raft group. While ``outgoing`` is not empty the configuration is joint: every decision needs a
/// majority of `voters` and a majority of `outgoing`.
public struct RaftConfiguration: Hashable, Sendable {
    public private(set) var voters: [NodeID]
    public private(set) var outgoing: [NodeID]
    public private(set) var learners: [NodeID]

    /// Most voters of one configuration; more would cost every commit without adding safety in practice.
    public static let maxVoters = 15
    public static let maxLearners = 4_096

    /// Sorts and removes duplicates; a voter that is also named as a learner is a voter.
    public init(voters: [NodeID] = [], outgoing: [NodeID] = [], learners: [NodeID] = []) {
        self.voters = RaftConfiguration.normal(voters)
        self.outgoing = RaftConfiguration.normal(outgoing)
        let deciding = self.voters + self.outgoing
        self.learners = RaftConfiguration.normal(learners).filter { !deciding.contains($0) }
    }

    private static func normal(_ ids: [NodeID]) -> [NodeID] {
        var result: [NodeID] = []
        result.reserveCapacity(ids.count)
        for id in ids.sorted() where result.last != id { result.append(id) }
        return result
    }

    public var isJoint: Bool { !outgoing.isEmpty }
    public var isEmpty: Bool { voters.isEmpty && outgoing.isEmpty }

    /// True for voters of either half of a joint configuration.
    public func isVoter(_ id: NodeID) -> Bool { voters.contains(id) || outgoing.contains(id) }
    public func isLearner(_ id: NodeID) -> Bool { learners.contains(id) }

    /// Voters of both halves, then learners, each once, in order.
    public var members: [NodeID] { RaftConfiguration.normal(voters + outgoing) + learners }

    /// True if `agrees` holds for a majority of the voters (of both halves if joint). False for an empty configuration.
    public func hasQuorum(_ agrees: (NodeID) -> Bool) -> Bool {
        func majority(_ ids: [NodeID]) -> Bool {
            var count = 0
            for id in ids where agrees(id) { count += 1 }
            return count * 2 > ids.count
        }
        return !voters.isEmpty && majority(voters) && (outgoing.isEmpty || majority(outgoing))
    }

    /// The greatest value that a majority of the voters (of both halves if joint) has reached: the commit index from match
    /// indexes, or the moment of last contact with a quorum. Nil for an empty configuration.
    public func quorumValue<T: Comparable>(_ value: (NodeID) -> T) -> T? {
        func reached(_ ids: [NodeID]) -> T? {
            guard !ids.isEmpty else { return nil }
            return ids.map(value).sorted(by: >)[ids.count / 2]
        }
        guard let first = reached(voters) else { return nil }
        guard let second = reached(outgoing) else { return first }
        return min(first, second)
    }

    /// The configuration that ends a joint one.
    public var withoutOutgoing: RaftConfiguration {
        RaftConfiguration(voters: voters, outgoing: [], learners: learners)
    }

    // MARK: Codec: version u8 (1), then three counted lists of 16-byte ids.

    public func encode(into writer: inout ByteWriter) {
        writer.u8(1)
        for list in [voters, outgoing, learners] {
            writer.count(list.count)
            for id in list { writer.nodeID(id) }
        }
    }

    public var encoded: [UInt8] {
        var writer = ByteWriter()
        encode(into: &writer)
        return writer.bytes
    }

    /// Refuses unknown versions, lists over their limits, and lists that are not strictly ascending or not disjoint.
    public init(from reader: inout ByteReader) throws(WireError) {
        let at = reader.position
        guard try reader.u8() == 1 else { throw .invalid(at: at, what: "configuration version") }
        let voters = try RaftConfiguration.list(&reader, max: RaftConfiguration.maxVoters)
        let outgoing = try RaftConfiguration.list(&reader, max: RaftConfiguration.maxVoters)
        let learners = try RaftConfiguration.list(&reader, max: RaftConfiguration.maxLearners)
        self.init(voters: voters, outgoing: outgoing, learners: learners)
        guard self.learners.count == learners.count else {
            throw .invalid(at: at, what: "learner that is also a voter")
        }
        guard outgoing.isEmpty || !voters.isEmpty else {
            throw .invalid(at: at, what: "joint configuration without voters")
        }
    }

    public init(decoding bytes: [UInt8]) throws(WireError) {
        var reader = ByteReader(bytes)
        try self.init(from: &reader)
        try reader.finish()
    }

    static func list(_ reader: inout ByteReader, max limit: Int) throws(WireError) -> [NodeID] {
        let count = try reader.count(max: limit, itemBytes: 16)
        var ids: [NodeID] = []
        ids.reserveCapacity(count)
        for _ in 0..<count {
            let at = reader.position
            let id = try reader.nodeID()
            if let last = ids.last, last >= id { throw .invalid(at: at, what: "member order") }
            ids.append(id)
        }
        return ids
    }
}
