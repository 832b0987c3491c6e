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
        }
        var kind: Kind
        var voters: [NodeID]
        var learners: [NodeID]
    }

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
        return replacement ?? promotion ?? demotion
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
            if configuration.isVoter(node), voters.count < target, let heir = heir { voters.append(heir) }
            if let step = step(.remove(node), voters, configuration.learners.filter { $0 != node }) { return step }
        }
        return nil
    }

    private var heir: NodeID? { caughtUp.first { !retired.contains($0) } }

    private var pruning: Step? {
        for learner in configuration.learners
        where !inContact.contains(learner) && (goneLearners.contains(learner) || supplanted.contains(learner)) {
            let learners = configuration.learners.filter { $0 != learner }
            if let step = step(.prune(learner), configuration.voters, learners) { return step }
        }
        return nil
    }

    private var replacement: Step? {
        guard let heir else { return nil }
        let lost = configuration.voters.filter { !inContact.contains($0) }
        let supplanted = lost.first(where: self.supplanted.contains)
        guard let gone = supplanted ?? (mayRemoveDead ? lost.first(where: dead.contains) : nil) else { return nil }
        return step(
            .replace(gone, by: heir, atOnce: supplanted != nil),
            configuration.voters.filter { $0 != gone } + [heir], configuration.learners)
    }

    /// Voters stay odd: with an even number one more failure is not survived, one more node must agree.
    private var promotion: Step? {
        let count = configuration.voters.count % 2 == 0 ? 1 : 2
        let ready = caughtUp.filter { !retired.contains($0) }.prefix(count)
        guard configuration.voters.count + count <= target, ready.count == count else { return nil }
        return step(.promote(Array(ready)), configuration.voters + ready, configuration.learners)
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
