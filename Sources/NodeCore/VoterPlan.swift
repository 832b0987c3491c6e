// Which members vote: one step at a time, from what a leader knows at this moment. Gossip proposes, the leader's own contact
// confirms, the log decides. The rules are those of Consul's autopilot and of ScyllaDB's group 0, tightened: nothing is
// removed on gossip's word alone, and nothing without a replacement, unless more voters would be left than were asked for.
import Consensus
import Membership
import Model

/// What the leader sees, and the next step that follows from it. Pure: a function of its fields.
struct VoterPlan: Sendable {
    /// The step to take, as the configuration to propose and a line that says why.
    struct Step: Hashable, Sendable {
        enum Kind: Hashable, Sendable {
            /// Ordered by an operator.
            case remove(NodeID)
            /// A learner that is gone.
            case prune(NodeID)
            case admit(NodeID)
            case promote([NodeID])
            /// `atOnce`: another node runs at the dead one's address.
            case replace(NodeID, by: NodeID, atOnce: Bool)
            /// Dead voters beyond what is wanted.
            case demote([NodeID])
            /// A voter of a zone that holds a majority gives its vote to a learner elsewhere.
            case exchange(NodeID, by: NodeID)
        }
        var kind: Kind
        var voters: [NodeID]
        var learners: [NodeID]
    }

    /// The tag that says in which zone a node is: what fails together (a rack, a room, a site).
    static let zoneTag = "zone"

    var configuration: RaftConfiguration
    /// Nodes that an operator removed; sorted.
    var retired: [NodeID] = []
    /// Live members that are not in the configuration and may be; sorted.
    var newcomers: [NodeID] = []
    /// Learners that live, answer, and have kept up long enough; sorted.
    var caughtUp: [NodeID] = []
    /// Voters and learners that have answered the leader lately, the leader included.
    var inContact: Set<NodeID> = []
    /// Dead or gone to gossip at this moment, although they may have answered a moment ago.
    var absent: Set<NodeID> = []
    /// Dead to gossip, or unknown to it, for the whole grace. A voter that said good-bye is not: it comes back.
    var dead: Set<NodeID> = []
    /// Learners that are gone for the whole grace, in whatever way.
    var goneLearners: Set<NodeID> = []
    /// Members whose address another, living node has taken over: their data directory was emptied.
    var supplanted: Set<NodeID> = []
    /// Where members say that they are, by their tag `zone`. One that does not say is in a zone of its own.
    var zones: [NodeID: String] = [:]
    /// Whose plan this is: it does not give its own vote away.
    var leader: NodeID?
    /// How many voters there shall be.
    var target = 3
    /// K of the founders: by itself a cluster never has fewer voters.
    var minimum = 1
    /// The grace since the last removal of a dead voter is over.
    var mayRemoveDead = true

    /// Nil if all is well, or nothing can be done.
    var next: Step? {
        if let step = removal ?? pruning { return step }
        if let newcomer = newcomers.first {
            return step(.admit(newcomer), configuration.voters, configuration.learners + [newcomer])
        }
        return replacement ?? promotion ?? demotion ?? exchange
    }

    /// A configuration that could not decide anything would never be committed.
    func canDecide(_ voters: [NodeID]) -> Bool {
        !voters.isEmpty && voters.count { inContact.contains($0) && !absent.contains($0) } * 2 > voters.count
    }

    private func step(_ kind: Step.Kind, _ voters: [NodeID], _ learners: [NodeID]) -> Step? {
        guard canDecide(voters) else { return nil }
        let wanted = RaftConfiguration(voters: voters, learners: learners)
        return Step(kind: kind, voters: wanted.voters, learners: wanted.learners)
    }

    /// What an operator ordered goes first. A learner takes the place in the same step where one is ready.
    private var removal: Step? {
        let members = configuration.members
        for node in retired where members.contains(node) {
            var voters = configuration.voters.filter { $0 != node }
            if configuration.isVoter(node), voters.count < target { voters += heirs(1, to: voters) }
            if let step = step(.remove(node), voters, configuration.learners.filter { $0 != node }) { return step }
        }
        return nil
    }

    // MARK: Zones

    /// How bad it is that these vote together: first whether one zone could stop all others, then how unevenly they are spread
    /// (the sum of the squares, which is least when the zones have equally many).
    struct Crowding: Comparable {
        var hasMajority = false
        var squares = 0

        static func < (a: Crowding, b: Crowding) -> Bool {
            a.hasMajority == b.hasMajority ? a.squares < b.squares : !a.hasMajority
        }
    }

    func crowding(_ voters: [NodeID]) -> Crowding {
        let named = voters.compactMap { zones[$0] }
        var crowding = Crowding(squares: voters.count - named.count)
        for count in Dictionary(named.map { ($0, 1) }, uniquingKeysWith: +).values {
            crowding.squares += count * count
            if count * 2 > voters.count { crowding.hasMajority = true }
        }
        return crowding
    }

    /// Up to `count` learners that are ready, each chosen so that the zones of all voters are spread best; the smallest id where
    /// that is the same. One after another is as good as all together: what one more costs in a zone does not depend on others.
    private func heirs(_ count: Int, to voters: [NodeID]) -> [NodeID] {
        var chosen: [NodeID] = []
        for _ in 0..<count {
            let open = caughtUp.filter { !retired.contains($0) && !chosen.contains($0) }
            let counts = Dictionary((voters + chosen).compactMap { zones[$0] }.map { ($0, 1) }, uniquingKeysWith: +)
            // Thousands may be ready: a zone's crowd says which is best without a count for each.
            func crowd(_ id: NodeID) -> Int { zones[id].map { counts[$0] ?? 0 } ?? 0 }
            guard let best = open.min(by: { (crowd($0), $0) < (crowd($1), $1) }) else { break }
            chosen.append(best)
        }
        return chosen
    }

    /// Only where one zone holds a majority, and all is calm: a vote that moves without need is a risk for nothing.
    private var exchange: Step? {
        let voters = configuration.voters
        let now = crowding(voters)
        guard now.hasMajority, voters.allSatisfy({ inContact.contains($0) && !absent.contains($0) }) else { return nil }
        for voter in voters.reversed() where voter != leader && zones[voter] != nil {
            let others = voters.filter { $0 != voter }
            guard let heir = heirs(1, to: others).first, crowding(others + [heir]) < now else { continue }
            return step(
                .exchange(voter, by: heir), others + [heir], configuration.learners.filter { $0 != heir } + [voter])
        }
        return nil
    }

    private var pruning: Step? {
        for learner in configuration.learners
        where !inContact.contains(learner) && (goneLearners.contains(learner) || supplanted.contains(learner)) {
            let learners = configuration.learners.filter { $0 != learner }
            if let step = step(.prune(learner), configuration.voters, learners) { return step }
        }
        return nil
    }

    private var replacement: Step? {
        let lost = configuration.voters.filter { !inContact.contains($0) }
        let supplanted = lost.first(where: self.supplanted.contains)
        guard let gone = supplanted ?? (mayRemoveDead ? lost.first(where: dead.contains) : nil) else { return nil }
        let others = configuration.voters.filter { $0 != gone }
        guard let heir = heirs(1, to: others).first else { return nil }
        return step(
            .replace(gone, by: heir, atOnce: supplanted != nil), others + [heir], configuration.learners)
    }

    /// Voters stay odd: with an even number one more failure is not survived, one more node must agree.
    private var promotion: Step? {
        let count = configuration.voters.count % 2 == 0 ? 1 : 2
        guard configuration.voters.count + count <= target else { return nil }
        let ready = heirs(count, to: configuration.voters).sorted()
        guard ready.count == count else { return nil }
        return step(.promote(ready), configuration.voters + ready, configuration.learners)
    }

    /// Two dead voters that nobody can replace: without them one failure more is survived than with them.
    private var demotion: Step? {
        guard mayRemoveDead, configuration.voters.count - 2 >= max(target, minimum) else { return nil }
        let gone = configuration.voters.filter { !inContact.contains($0) && dead.contains($0) }.prefix(2)
        guard gone.count == 2 else { return nil }
        return step(
            .demote(Array(gone)), configuration.voters.filter { !gone.contains($0) }, configuration.learners)
    }
}
