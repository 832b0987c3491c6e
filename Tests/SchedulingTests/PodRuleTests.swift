import Model
import Scheduling
import Testing
import Wire

@Suite struct PodRuleTests {
    typealias Fixture = SchedulingFixture

    @Test func podsGetUidsOfTheirOwnFromTheLogIndex() {
        var world = Fixture()
        world.index = 9
        #expect(world.apply(.createPods([Fixture.spec("a"), Fixture.spec("b")], owner: nil)) == .created([10, 11]))
        #expect(world.create("c") == .created([12]))
        #expect(world.machine.takeChanged() == ["a", "b", "c"])
        #expect(world.machine.takeChanged() == [])
        #expect(world.machine.unboundPods.map(\.name) == ["a", "b", "c"])
    }

    @Test func creatingIsAllOrNothing() {
        var world = Fixture()
        world.create("b")
        let before = Fixture.encoded(world.machine)
        for bad in [
            [Fixture.spec("a"), Fixture.spec("b", image: "other")], [Fixture.spec("a"), Fixture.spec("a")],
            [Fixture.spec("a"), PodSpec(name: "", containers: [])],
            [Fixture.spec("a"), PodSpec(name: "c", containers: [])],
            [
                Fixture.spec("a"),
                PodSpec(
                    name: "d", containers: [ContainerSpec(name: "x", image: "i"), ContainerSpec(name: "x", image: "i")]),
            ],
        ] {
            guard case .refused = world.apply(.createPods(bad, owner: nil)) else {
                Issue.record("\(bad.map(\.name)) was accepted")
                continue
            }
            #expect(Fixture.encoded(world.machine) == before)
        }
    }

    @Test func anEqualPodIsUnchangedAndADifferentOneAConflict() {
        var world = Fixture()
        world.create("a")
        #expect(world.create("a") == .unchanged)
        #expect(world.apply(.applyPods([Fixture.spec("a")], owner: nil)) == .unchanged)
        #expect(world.apply(.applyPods([Fixture.spec("a"), Fixture.spec("b")], owner: nil)) == .created([1, 4]))
        let other = world.apply(.applyPods([Fixture.spec("a", image: "x")], owner: nil))
        #expect(other.error?.code == .conflict)
        #expect(other.error?.hint?.contains("delete pod a") == true)
        #expect(world.create("a", owner: .pattern(kind: "WorkQueue", name: "q")).error?.code == .conflict)
    }

    @Test func aPodIsBoundOnceAndReportedByItsNode() {
        var world = Fixture()
        world.create("a")
        world.bind("a", to: 1)
        world.bind("a", to: 2)
        #expect(world.pod("a")?.node == Fixture.node(1))
        #expect(world.machine.pods(on: Fixture.node(1)).map(\.name) == ["a"])
        #expect(world.machine.unboundPods.isEmpty)
        world.report("a", .running)
        #expect(world.pod("a")?.status.phase == .running)
        #expect(world.pod("a")?.statusNode == Fixture.node(1))
        #expect(world.machine.counts.running == 1)
    }

    @Test func theWordOfAnotherNodeUidOrGenerationIsVoid() throws {
        var world = Fixture()
        world.create("a")
        world.bind("a", to: 1)
        let pod = try #require(world.pod("a"))
        let status = PodStatus(phase: .failed)
        for stale in [
            PodReport(
                name: "a", uid: pod.uid, generation: pod.generation, node: Fixture.node(2), status: status, gone: true),
            PodReport(
                name: "a", uid: pod.uid + 1, generation: pod.generation, node: Fixture.node(1), status: status,
                gone: true),
            PodReport(
                name: "a", uid: pod.uid, generation: pod.generation + 1, node: Fixture.node(1), status: status,
                gone: true),
            PodReport(
                name: "b", uid: pod.uid, generation: pod.generation, node: Fixture.node(1), status: status, gone: true),
        ] { world.apply(.report([stale])) }
        #expect(world.pod("a") == pod)
    }

    @Test func anEndIsTheEnd() {
        var world = Fixture()
        world.create("a", policy: .never)
        world.bind("a", to: 1)
        world.report("a", .succeeded)
        world.report("a", .running)
        #expect(world.pod("a")?.status.phase == .succeeded)
        world.report("a", .failed, gone: true)
        #expect(world.pod("a")?.status.phase == .succeeded)
    }

    @Test func aBoundPodIsDeletedWhenItsNodeSaysThatNothingIsLeft() {
        var world = Fixture()
        world.create("a")
        world.bind("a", to: 1)
        #expect(world.apply(.deletePods(["a"])) == .done)
        #expect(world.pod("a")?.deleting == true)
        #expect(world.create("a").error?.code == .conflict)
        world.report("a", .running)
        #expect(world.pod("a") != nil)
        world.report("a", .failed, gone: true)
        #expect(world.pod("a") == nil)
        #expect(world.machine.pods(on: Fixture.node(1)).isEmpty)
        #expect(world.create("a") == .created([world.index]))
    }

    @Test func deletingIsAllOrNothingAndAtOnceForPodsWithoutANode() {
        var world = Fixture()
        world.create("a")
        #expect(world.apply(.deletePods(["a", "x"])) == .notFound("pod x"))
        #expect(world.pod("a") != nil)
        #expect(world.apply(.deletePods(["a", "a"])) == .done)
        #expect(world.pod("a") == nil)
    }

    @Test func whatAPatternOwnsIsDeletedTogether() {
        var world = Fixture()
        let owner = PodOwner.pattern(kind: "WorkQueue", name: "q")
        world.create("a", owner: owner)
        world.create("b", owner: owner)
        world.create("c")
        #expect(world.apply(.deleteOwned(owner)) == .done)
        #expect(world.machine.pods.map(\.name) == ["c"])
        #expect(world.apply(.deleteOwned(owner)) == .notFound("pod of WorkQueue q"))
    }

    @Test func aDeadNodesPodsVanishMoveOrFailAndItsOldWordIsVoid() throws {
        var world = Fixture()
        world.create("deleting")
        world.create("owned", owner: .pattern(kind: "WorkQueue", name: "q"))
        world.create("bare")
        world.create("done", policy: .never)
        for name in ["deleting", "owned", "bare", "done"] {
            world.bind(name, to: 1)
            world.report(name, .running)
        }
        world.report("done", .succeeded)
        world.apply(.deletePods(["deleting"]))
        let owned = try #require(world.pod("owned"))
        world.apply(.nodeGone(Fixture.node(1)))
        #expect(world.pod("deleting") == nil)
        #expect(world.pod("owned")?.node == nil)
        #expect(world.pod("owned")?.generation == 2)
        #expect(world.pod("owned")?.status.phase == .pending)
        #expect(world.pod("bare")?.status.phase == .failed)
        #expect(world.pod("bare")?.status.reason == "NodeLost")
        #expect(world.pod("done")?.status.phase == .succeeded)
        #expect(world.machine.pods(on: Fixture.node(1)).isEmpty)
        #expect(world.machine.unboundPods.map(\.name) == ["owned"])
        // The node was only cut off: it comes back and says what it knew.
        world.bind("owned", to: 2)
        world.apply(
            .report([
                PodReport(
                    name: "owned", uid: owned.uid, generation: 1, node: Fixture.node(1),
                    status: PodStatus(phase: .failed))
            ]))
        #expect(world.pod("owned")?.status.phase == .pending)
        // Nobody has to be waited for.
        #expect(world.apply(.deletePods(["bare", "done"])) == .done)
        #expect(world.machine.pods.map(\.name) == ["owned"])
    }

    @Test func aPodThatItsNodeLostIsPlacedAgainUnlessItMayRunOnlyOnce() {
        var world = Fixture()
        world.create("again")
        world.create("once", policy: .never)
        for name in ["again", "once"] {
            world.bind(name, to: 1)
            world.report(name, .running, gone: true)
        }
        #expect(world.machine.unboundPods.map(\.name) == ["again"])
        #expect(world.pod("once")?.status.reason == "Lost")
    }

    @Test func aCordonedNodeGetsNoPodsAndTheSchedulerSeesThatItsBindingIsVoid() {
        var world = Fixture()
        world.create("a")
        #expect(world.apply(.cordon(Fixture.node(1), true)) == .done)
        #expect(world.apply(.cordon(Fixture.node(1), true)) == .unchanged)
        #expect(world.machine.isCordoned(Fixture.node(1)))
        world.bind("a", to: 1)
        #expect(world.pod("a")?.node == nil)
        #expect(world.pod("a")?.generation == 2)
        #expect(world.apply(.cordon(Fixture.node(1), false)) == .done)
        world.bind("a", to: 1)
        #expect(world.pod("a")?.node == Fixture.node(1))
    }

    @Test func aRetiredNodeLosesItsPodsAndGetsNoMore() throws {
        var world = Fixture()
        world.create("owned", owner: .pattern(kind: "WorkQueue", name: "q"))
        world.bind("owned", to: 1)
        #expect(world.apply(.retire(Fixture.node(1), forget: true)) == .done)
        #expect(world.pod("owned")?.node == nil && world.pod("owned")?.generation == 2)
        #expect(world.apply(.retire(Fixture.node(1), forget: false)) == .unchanged)
        #expect(world.machine.takeForgotten() == [Fixture.node(1)])
        #expect(world.machine.takeForgotten().isEmpty)
        world.bind("owned", to: 1)
        #expect(world.pod("owned")?.node == nil)
        var reader = ByteReader(Fixture.encoded(world.machine))
        let copy = try SchedulingMachine(decoding: &reader)
        #expect(copy.isRetired(Fixture.node(1)) && !copy.isRetired(Fixture.node(2)))
    }

    @Test func retiredNodesAreRememberedUpToALimit() {
        var world = Fixture()
        for n in 1...UInt64(SchedulingLimits.retired + 1) { world.apply(.retire(Fixture.node(n), forget: false)) }
        #expect(world.machine.retired.count == SchedulingLimits.retired)
        #expect(!world.machine.isRetired(Fixture.node(1)) && world.machine.isRetired(Fixture.node(2)))
    }

    /// Snapshots of builds that did not remember removed nodes.
    @Test func aSnapshotOfVersionOneIsRead() throws {
        var world = Fixture()
        world.create("a")
        var bytes = Fixture.encoded(world.machine)
        #expect(bytes[0] == 2 && bytes.last == 0)
        bytes[0] = 1
        bytes.removeLast()
        var reader = ByteReader(bytes)
        let copy = try SchedulingMachine(decoding: &reader)
        try reader.finish()
        #expect(Fixture.encoded(copy) == Fixture.encoded(world.machine))
    }

    @Test func aDrainedNodesPodsStopThereBeforeTheyStartElsewhere() {
        var world = Fixture()
        world.create("a")
        world.create("job", policy: .never)
        for name in ["a", "job"] {
            world.bind(name, to: 1)
            world.report(name, .running)
        }
        #expect(world.apply(.drain(Fixture.node(1))) == .done)
        #expect(world.pod("a")?.shouldStop == true)
        #expect(world.machine.unboundPods.isEmpty)
        world.report("a", .succeeded)
        #expect(world.pod("a")?.status.phase == .running, "that it was stopped is not its end")
        world.report("a", .failed, gone: true)
        #expect(world.pod("a")?.node == nil)
        #expect(world.pod("a")?.moving == false)
        // It finished while it was asked to go.
        world.report("job", .succeeded, gone: true)
        #expect(world.pod("job")?.status.phase == .succeeded)
        #expect(world.machine.unboundPods.map(\.name) == ["a"])
    }

    @Test func reasonsWhyAPodWaitsAreKeptUntilItIsBound() {
        var world = Fixture()
        world.create("a")
        world.apply(.explain([PodExplanation(name: "a", uid: 99, reasons: ["stale"])]))
        #expect(world.pod("a")?.pendingReasons == [])
        world.apply(.explain([PodExplanation(name: "a", uid: 1, reasons: (0..<20).map { "r\($0)" })]))
        #expect(world.pod("a")?.pendingReasons.count == SchedulingLimits.reasons)
        world.bind("a", to: 1)
        #expect(world.pod("a")?.pendingReasons == [])
    }

    @Test func thereIsALimitOnPodsAndOnTheirBytes() {
        var world = Fixture()
        let many = (0..<SchedulingLimits.pods).map { Fixture.spec("p\($0)") }
        #expect(world.apply(.createPods(many, owner: nil)).error == nil)
        #expect(world.create("one more").error?.code == .busy)

        var heavy = Fixture()
        func big(_ name: String) -> PodSpec {
            var spec = Fixture.spec(name)
            spec.volumes = [Volume(name: "v", source: .files(["f": [UInt8](repeating: 0, count: 1_000_000)]))]
            return spec
        }
        var refused: CoterieError?
        for i in 0..<80 where refused == nil { refused = heavy.apply(.createPods([big("p\(i)")], owner: nil)).error }
        #expect(refused?.code == .busy)
        #expect(heavy.machine.podCount == 67)
        heavy.apply(.deletePods(["p0"]))
        #expect(heavy.apply(.createPods([big("p0")], owner: nil)).error == nil)
    }
}

@Suite struct GatherRuleTests {
    typealias Fixture = SchedulingFixture

    private func started(_ world: inout Fixture, _ id: String = "g") -> SchedulingResult {
        world.apply(
            .createGather(
                GatherSeed(id: id, leaf: "wc -l", sharder: "lines 10", parallel: 2),
                pods: [Fixture.spec("\(id)-root", policy: .never), Fixture.spec("\(id)-leaf-0", policy: .never)]))
    }

    private let half = GatherProgress(total: 4, successful: 2, running: 1, pending: 1)
    private let whole = GatherProgress(total: 4, successful: 4)

    @Test func aGatherBringsItsPodsAndTakesThemWithIt() {
        var world = Fixture()
        #expect(started(&world) == .created([2, 3]))
        #expect(started(&world).error?.code == .conflict)
        #expect(world.machine.pods(ownedBy: .gather("g")).map(\.name) == ["g-leaf-0", "g-root"])
        #expect(world.machine.gather("g")?.pods == ["g-root", "g-leaf-0"])
        world.bind("g-root", to: 1)
        #expect(world.apply(.updateGather(id: "g", progress: half)) == .done)
        world.now = 77
        #expect(world.apply(.finishGather(id: "g", state: .succeeded, progress: whole)) == .done)
        #expect(world.machine.gather("g")?.state == .succeeded)
        #expect(world.machine.gather("g")?.endedMilliseconds == 77)
        #expect(world.pod("g-root")?.deleting == false, "the root still holds the result")
        #expect(world.pod("g-leaf-0") == nil)
        #expect(world.machine.takeChangedGathers() == ["g"])
        #expect(world.machine.takeChangedGathers() == [])
        #expect(world.apply(.forgetGather(id: "g")) == .done)
        #expect(world.pod("g-root")?.deleting == true)
    }

    @Test func theFirstEndStands() {
        var world = Fixture()
        _ = started(&world)
        world.apply(.updateGather(id: "g", progress: half))
        #expect(world.apply(.cancelGather(id: "g")) == .done)
        #expect(world.machine.gather("g")?.progress.cancelled == 2)
        #expect(world.apply(.finishGather(id: "g", state: .succeeded, progress: whole)) == .unchanged)
        #expect(world.apply(.updateGather(id: "g", progress: half)) == .unchanged)
        #expect(world.machine.gather("g")?.state == .cancelled)
    }

    @Test func countsThatDoNotAddUpAreRefused() {
        var world = Fixture()
        _ = started(&world)
        #expect(world.apply(.updateGather(id: "g", progress: GatherProgress(total: 3))).error?.code == .badInput)
        #expect(world.apply(.finishGather(id: "g", state: .running, progress: whole)).error?.code == .badInput)
        #expect(world.machine.gather("g")?.state == .running)
    }

    @Test func whatIsUnfinishedAtTheEndCountsAsCancelledAndFailuresAreBounded() {
        var world = Fixture()
        _ = started(&world)
        var progress = half
        progress.failures = (0..<150).map { GatherFailure(shard: $0, node: "n", attempts: 1, error: "e") }
        #expect(world.apply(.finishGather(id: "g", state: .failed, progress: progress)) == .done)
        #expect(world.machine.gather("g")?.progress.cancelled == 2)
        #expect(world.machine.gather("g")?.progress.failures.count == 100)
    }

    @Test func aRefusedGatherLeavesNothingBehind() {
        var world = Fixture()
        world.create("g-root")
        let before = Fixture.encoded(world.machine)
        #expect(started(&world).error?.code == .conflict)
        #expect(world.apply(.createGather(GatherSeed(id: ""), pods: [])).error?.code == .badInput)
        #expect(world.apply(.createGather(GatherSeed(id: "x", minSuccess: .nan), pods: [])).error?.code == .badInput)
        #expect(Fixture.encoded(world.machine) == before)
        #expect(world.apply(.updateGather(id: "g", progress: whole)) == .notFound("gather g"))
        #expect(world.apply(.cancelGather(id: "g")) == .notFound("gather g"))
    }

    @Test func onlyAnEndedGatherCanBeForgotten() {
        var world = Fixture()
        _ = started(&world)
        #expect(world.apply(.forgetGather(id: "g")).error?.code == .conflict)
        world.apply(.cancelGather(id: "g"))
        #expect(world.apply(.forgetGather(id: "g")) == .done)
        #expect(world.machine.gathers.isEmpty)
    }

    @Test func theOldestEndedGathersAreForgotten() {
        var world = Fixture()
        for i in 0..<SchedulingLimits.endedGathers + 5 {
            _ = started(&world, "g\(i)")
            world.apply(.finishGather(id: "g\(i)", state: .succeeded, progress: whole))
        }
        #expect(world.machine.gathers.count == SchedulingLimits.endedGathers)
        #expect(world.machine.gather("g4") == nil)
        #expect(world.machine.gather("g5") != nil)
        #expect(world.machine.podCount == 0)
    }

    @Test func aGathersPodsAreReplacedWhenTheirNodeDies() {
        var world = Fixture()
        _ = started(&world)
        world.bind("g-root", to: 1)
        world.report("g-root", .running)
        world.apply(.nodeGone(SchedulingFixture.node(1)))
        #expect(world.machine.unboundPods.map(\.name) == ["g-root", "g-leaf-0"])
    }
}
