import Model
import Scheduling
import Testing

@Suite struct PlacementTests {
    typealias Fixture = SchedulingFixture

    private func node(
        _ n: UInt64, tags: [String: String] = [:], cordoned: Bool = false, pods: Int = 0, alive: Bool = true
    ) -> NodeView {
        NodeView(id: Fixture.node(n), name: "n\(n)", tags: tags, isCordoned: cordoned, podCount: pods, isAlive: alive)
    }

    private func pending(
        _ name: String, _ uid: UInt64 = 1, owner: PodOwner? = nil, edit: (inout PodSpec) -> Void = { _ in }
    ) -> PodRecord {
        var spec = Fixture.spec(name)
        edit(&spec)
        return PodRecord(spec: spec, uid: uid, owner: owner)
    }

    private func place(_ pods: [PodRecord], _ nodes: [NodeView], existing: [PodRecord] = [], seed: UInt64 = 1)
        -> Placement.Outcome
    {
        var generator = SeededGenerator(seed: seed)
        return Placement.place(pending: pods, nodes: nodes, existing: existing, generator: &generator)
    }

    @Test func podsGoWhereFewestAre() {
        let pods = (0..<6).map { pending("p\($0)", UInt64($0 + 1)) }
        let placed = place(pods, [node(1, pods: 3), node(2), node(3)])
        let counts = Dictionary(grouping: placed.bindings, by: \.node).mapValues(\.count)
        #expect(counts == [Fixture.node(2): 3, Fixture.node(3): 3])
        #expect(placed.bindings.map(\.name) == pods.map(\.name))
    }

    @Test func podsOfOneOwnerGoToDifferentNodesFirst() {
        let owner = PodOwner.gather("g")
        var bound = pending("old", 9, owner: owner)
        bound.node = Fixture.node(2)
        let placed = place(
            [pending("a", 1, owner: owner), pending("b", 2, owner: owner)],
            [node(1, pods: 50), node(2, pods: 1), node(3, pods: 20)],
            existing: [bound])
        #expect(Set(placed.bindings.map(\.node)) == [Fixture.node(1), Fixture.node(3)])
    }

    @Test func nameSelectorAndHostnameAreHonoured() {
        let nodes = [node(1), node(2, tags: ["zone": "eu"]), node(3, tags: ["zone": "us"])]
        #expect(place([pending("a") { $0.nodeName = "n3" }], nodes).bindings.map(\.node) == [Fixture.node(3)])
        #expect(
            place([pending("a") { $0.nodeSelector = ["zone": "eu"] }], nodes).bindings.map(\.node) == [Fixture.node(2)])
        #expect(
            place([pending("a") { $0.nodeSelector = [Placement.hostnameLabel: "n1"] }], nodes).bindings.map(\.node) == [
                Fixture.node(1)
            ])
    }

    @Test func deadAndCordonedAndFullNodesAreSkipped() {
        var full = node(4, pods: 10)
        full.podLimit = 10
        let nodes = [node(1, alive: false), node(2, cordoned: true), node(3, pods: 99), full]
        #expect(place([pending("a")], nodes).bindings.map(\.node) == [Fixture.node(3)])
        #expect(place([pending("a") { $0.nodeName = "n2" }], nodes).bindings.isEmpty)
    }

    @Test func allReasonsAreGivenWhenNothingFits() {
        var full = node(3, tags: ["zone": "eu"])
        full.podLimit = 0
        let nodes = [node(1, tags: ["zone": "us"], cordoned: true), node(2, tags: ["zone": "eu"], alive: false), full]
        let pod = pending("a") { $0.nodeSelector = ["zone": "eu"] }
        let placed = place([pod], nodes)
        #expect(
            placed.reasons["a"] == [
                "0 of 3 nodes can take it", "node n1 has no tag zone=eu", "node n2 is not alive", "node n1 is cordoned",
                "node n3 has as many pods as it takes",
            ])
        #expect(placed.explanations(for: [pod]).map(\.name) == ["a"])
        var told = pod
        told.pendingReasons = placed.reasons["a"] ?? []
        #expect(placed.explanations(for: [told]).isEmpty)
        #expect(
            place([pending("a") { $0.nodeName = "x" }], [node(1)]).reasons["a"] == [
                "0 of 1 nodes can take it", "no node is named x",
            ])
        #expect(place([pending("a")], []).reasons["a"] == ["the cluster has no nodes"])
    }

    @Test func chanceDecidesAmongEqualsAndASeedReplays() {
        let nodes = (1...5).map { node(UInt64($0)) }
        let chosen = (0..<60).map { place([pending("a")], nodes, seed: $0).bindings[0].node }
        #expect(Set(chosen).count == 5)
        #expect(chosen == (0..<60).map { place([pending("a")], nodes.reversed(), seed: $0).bindings[0].node })
    }

    @Test func podsThatDoNotWaitForANodeAreLeftAlone() {
        var bound = pending("a")
        bound.node = Fixture.node(1)
        var ended = pending("b", 2)
        ended.status.phase = .failed
        var deleting = pending("c", 3)
        deleting.deleting = true
        let placed = place([bound, ended, deleting], [node(1)])
        #expect(placed.bindings.isEmpty && placed.reasons.isEmpty)
    }
}
