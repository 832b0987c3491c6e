import Consensus
import Model
import Testing

@testable import NodeCore

/// One leader's view, and the step that follows from it.
@Suite struct VoterPlanTests {
    static func node(_ n: UInt64) -> NodeID { NodeID(high: n, low: n) }

    /// Voters and learners by number; all of them in contact.
    static func plan(_ voters: [UInt64], learners: [UInt64] = []) -> VoterPlan {
        var plan = VoterPlan(configuration: RaftConfiguration(voters: voters.map(node), learners: learners.map(node)))
        plan.inContact = Set(plan.configuration.members)
        plan.minimum = 3
        return plan
    }

    private func nodes(_ ids: UInt64...) -> [NodeID] { ids.map(VoterPlanTests.node) }
    private func node(_ n: UInt64) -> NodeID { VoterPlanTests.node(n) }

    @Test func allIsWell() {
        var plan = VoterPlanTests.plan([1, 2, 3], learners: [4])
        plan.caughtUp = nodes(4)
        #expect(plan.next == nil)
    }

    @Test func aNewcomerBecomesALearner() {
        var plan = VoterPlanTests.plan([1, 2, 3], learners: [5])
        plan.newcomers = nodes(4, 6)
        #expect(plan.next?.kind == .admit(node(4)))
        #expect(plan.next?.learners == nodes(4, 5))
    }

    @Test func aDeadVoterIsReplacedInOneStep() throws {
        var plan = VoterPlanTests.plan([1, 2, 3], learners: [4, 5])
        plan.inContact.remove(node(2))
        plan.dead = [node(2)]
        plan.caughtUp = nodes(5)
        let step = try #require(plan.next)
        #expect(step.kind == .replace(node(2), by: node(5), atOnce: false))
        #expect(step.voters == nodes(1, 3, 5))
        #expect(step.learners == nodes(4))
    }

    @Test func gossipAloneReplacesNobody() {
        var plan = VoterPlanTests.plan([1, 2, 3], learners: [4])
        plan.dead = [node(2)]
        plan.caughtUp = nodes(4)
        #expect(plan.next == nil, "it still answers the leader")
    }

    @Test func lostContactAloneReplacesNobody() {
        var plan = VoterPlanTests.plan([1, 2, 3], learners: [4])
        plan.inContact.remove(node(2))
        plan.caughtUp = nodes(4)
        #expect(plan.next == nil, "gossip does not say that it is dead")
    }

    @Test func aDeadVoterStaysWhileNobodyIsReadyToReplaceIt() {
        var plan = VoterPlanTests.plan([1, 2, 3], learners: [4])
        plan.inContact.remove(node(2))
        plan.dead = [node(2)]
        #expect(plan.next == nil)
    }

    @Test func oneDeadVoterIsReplacedInEachGrace() {
        var plan = VoterPlanTests.plan([1, 2, 3], learners: [4])
        plan.inContact.remove(node(2))
        plan.dead = [node(2)]
        plan.caughtUp = nodes(4)
        plan.mayRemoveDead = false
        #expect(plan.next == nil)
    }

    @Test func aNodeWithANewIdAtTheSameAddressReplacesTheOldOneAtOnce() {
        var plan = VoterPlanTests.plan([1, 2, 3], learners: [4])
        plan.inContact.remove(node(3))
        plan.supplanted = [node(3)]
        plan.caughtUp = nodes(4)
        plan.mayRemoveDead = false
        #expect(plan.next?.kind == .replace(node(3), by: node(4), atOnce: true))
        plan.inContact.insert(node(3))
        #expect(plan.next == nil, "it can be reached: two nodes claim one address")
    }

    @Test func learnersThatAreGoneArePruned() {
        var plan = VoterPlanTests.plan([1, 2, 3], learners: [4, 5])
        plan.goneLearners = [node(4), node(5)]
        plan.inContact.remove(node(5))
        #expect(plan.next?.kind == .prune(node(5)))
        #expect(plan.next?.learners == nodes(4))
    }

    @Test(
        arguments: [
            // Voters, ready learners, target, promoted.
            ([1, 2, 3], [4], 3, []), ([1, 2, 3], [4], 5, []), ([1, 2, 3], [4, 5], 5, [4, 5]), ([1, 2], [4], 3, [4]),
            ([1], [4], 3, []), ([1], [4, 5], 3, [4, 5]), ([1, 2, 3, 4], [5, 6], 5, [5]),
        ] as [([UInt64], [UInt64], Int, [UInt64])])
    func promotionKeepsVotersOdd(voters: [UInt64], ready: [UInt64], target: Int, promoted: [UInt64]) {
        var plan = VoterPlanTests.plan(voters, learners: ready)
        plan.caughtUp = ready.map(VoterPlanTests.node)
        plan.target = target
        let expected: VoterPlan.Step.Kind? =
            promoted.isEmpty ? nil : .promote(promoted.map(VoterPlanTests.node))
        #expect(plan.next?.kind == expected)
    }

    @Test func twoDeadVotersThatNobodyReplacesVoteNoLonger() {
        var plan = VoterPlanTests.plan([1, 2, 3, 4, 5])
        for n in [2, 4] as [UInt64] {
            plan.inContact.remove(node(n))
            plan.dead.insert(node(n))
        }
        #expect(plan.next?.kind == .demote(nodes(2, 4)))
        #expect(plan.next?.voters == nodes(1, 3, 5))
        plan.minimum = 5
        #expect(plan.next == nil, "never below K")
    }

    @Test func threeVotersNeverShrinkByThemselves() {
        var plan = VoterPlanTests.plan([1, 2, 3])
        plan.minimum = 1
        plan.inContact.remove(node(2))
        plan.dead = [node(2)]
        #expect(plan.next == nil)
    }

    @Test func aRemovedNodeLeavesAndALearnerTakesItsPlace() {
        var plan = VoterPlanTests.plan([1, 2, 3], learners: [4, 5])
        plan.retired = nodes(1, 4)
        plan.caughtUp = nodes(4, 5)
        #expect(plan.next?.kind == .remove(node(1)))
        #expect(plan.next?.voters == nodes(2, 3, 5), "the one that was removed too is no heir")
    }

    @Test func aStepThatCouldNeverBeCommittedIsNotTaken() {
        var plan = VoterPlanTests.plan([1, 2, 3])
        plan.retired = nodes(2)
        plan.inContact.remove(node(3))
        #expect(plan.next == nil, "one of the two that would be left is out of reach")
        plan.retired = nodes(3)
        #expect(plan.next?.voters == nodes(1, 2))
        plan.inContact.insert(node(3))
        plan.absent = [node(3)]
        plan.retired = nodes(2)
        #expect(plan.next == nil, "it answered a moment ago, and is gone")
    }

    // MARK: Zones

    /// Numbers of nodes by zone.
    private func zones(_ zones: [String: [UInt64]]) -> [NodeID: String] {
        var result: [NodeID: String] = [:]
        for (zone, numbers) in zones { for n in numbers { result[node(n)] = zone } }
        return result
    }

    @Test func aDeadVotersPlaceGoesToAZoneThatHasFewerVoters() throws {
        var plan = VoterPlanTests.plan([1, 2, 3], learners: [4, 5, 6])
        plan.zones = zones(["a": [1, 4], "b": [2, 5], "c": [3, 6]])
        plan.inContact.remove(node(2))
        plan.dead = [node(2)]
        plan.caughtUp = nodes(4, 5, 6)
        #expect(plan.next?.kind == .replace(node(2), by: node(5), atOnce: false), "its own zone is free again")
        plan.caughtUp = nodes(4, 6)
        #expect(
            plan.next?.kind == .replace(node(2), by: node(4), atOnce: false), "better a crowded zone than a dead voter")
        plan.zones[node(6)] = nil
        #expect(plan.next?.kind == .replace(node(2), by: node(6), atOnce: false), "who names no zone shares none")
    }

    @Test func aRemovedVotersPlaceGoesToAZoneThatHasFewerVoters() {
        var plan = VoterPlanTests.plan([1, 2, 3], learners: [4, 5])
        plan.zones = zones(["a": [1, 4], "b": [2], "c": [3, 5]])
        plan.retired = nodes(3)
        plan.caughtUp = nodes(4, 5)
        #expect(plan.next?.voters == nodes(1, 2, 5))
    }

    @Test func thoseThatArePromotedTogetherAreOfDifferentZones() {
        var plan = VoterPlanTests.plan([1, 2, 3], learners: [4, 5, 6, 7])
        plan.zones = zones(["a": [1, 4], "b": [2, 5, 6], "c": [3, 7]])
        plan.caughtUp = nodes(5, 6, 7)
        plan.target = 5
        #expect(plan.next?.kind == .promote(nodes(5, 7)))
    }

    @Test func aZoneThatHoldsAMajorityGivesAVoteAwayButNotTheLeaders() {
        var plan = VoterPlanTests.plan([1, 2, 3], learners: [4])
        plan.zones = zones(["a": [1, 3], "b": [2], "c": [4]])
        plan.leader = node(3)
        #expect(plan.next == nil, "nobody is ready")
        plan.caughtUp = nodes(4)
        #expect(plan.next?.kind == .exchange(node(1), by: node(4)))
        #expect(plan.next?.voters == nodes(2, 3, 4))
        #expect(plan.next?.learners == nodes(1))
        plan.inContact.remove(node(2))
        #expect(plan.next == nil, "not while a voter is out of reach")
    }

    @Test func votesThatAreSpreadWellEnoughStayWhereTheyAre() {
        // Two of five in one zone: a better spread is possible, and nothing is won by it.
        var plan = VoterPlanTests.plan([1, 2, 3, 4, 5], learners: [6, 7])
        plan.zones = zones(["a": [1, 2], "b": [3, 4], "c": [5], "d": [6]])
        plan.caughtUp = nodes(6, 7)
        plan.target = 5
        #expect(plan.next == nil)
        // Two zones: one of them holds a majority whatever is done.
        plan = VoterPlanTests.plan([1, 2, 3], learners: [4])
        plan.zones = zones(["a": [1, 2], "b": [3, 4]])
        plan.caughtUp = nodes(4)
        #expect(plan.next == nil)
    }

    /// All the steps that follow from one another, whatever the zones: they end, and no zone holds a majority if that can be.
    @Test(arguments: 0..<200 as Range<UInt64>)
    func zonesEndUpWithoutAMajorityWhereThatIsPossible(seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        let count = 3 + generator.next() % 7
        let target = count >= 5 ? 5 : 3
        var plan = VoterPlanTests.plan(Array(1...3), learners: count > 3 ? Array(4...count) : [])
        for n in 1...count { plan.zones[node(n)] = ["a", "b", "c", "d"][Int(generator.next() % 4)] }
        plan.leader = node(1 + generator.next() % 3)
        plan.target = target
        var steps = 0
        plan.caughtUp = plan.configuration.learners
        while let step = plan.next {
            steps += 1
            try #require(steps < 10, "it never ends")
            #expect(step.voters.contains(plan.leader ?? node(0)))
            plan.configuration = RaftConfiguration(voters: step.voters, learners: step.learners)
            #expect(plan.configuration.members.count == Int(count))
            plan.caughtUp = plan.configuration.learners
        }
        let voters = plan.configuration.voters
        #expect(voters.count == target)
        // A choice without a majority exists if enough are left when each zone gives no more than the smaller half.
        let possible = Dictionary(plan.zones.values.map { ($0, 1) }, uniquingKeysWith: +).values
            .reduce(0) { $0 + min($1, target / 2) }
        #expect(plan.crowding(voters).hasMajority == (possible < target))
    }

    @Test func theOnlyVoterStays() {
        var plan = VoterPlanTests.plan([1])
        plan.retired = nodes(1)
        #expect(plan.next == nil)
    }
}
