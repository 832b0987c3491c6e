import Model
import Testing

@testable import NodeCore

/// The bootstrap of a few nodes by hand: who asks, promises, gives way and founds.
@Suite struct BootstrapTests {
    static let ids = (1...5).map { NodeID(high: UInt64($0), low: 0) }

    final class Nodes {
        var nodes: [NodeID: Bootstrap] = [:]
        var promises: [NodeID: BootstrapPromise] = [:]
        var waiting: [(from: NodeID, to: NodeID, Bootstrap.Message)] = []
        var founded: [(by: NodeID, voters: [NodeID])] = []
        /// Nodes whose promises are not written yet.
        var slow: Set<NodeID> = []
        var now = MonotonicTime(nanoseconds: 1_000_000_000)

        init(_ ids: [NodeID], expect: Int) {
            for id in ids { nodes[id] = Bootstrap(id: id, expect: expect, kept: nil, startCounter: 1) }
        }

        func restart(_ id: NodeID, expect: Int, startCounter: UInt64) {
            nodes[id] = Bootstrap(id: id, expect: expect, kept: promises[id], startCounter: startCounter)
            waiting.removeAll { $0.from == id || $0.to == id }
            take(id)
        }

        func take(_ id: NodeID) {
            for effect in nodes[id]?.takeEffects() ?? [] {
                switch effect {
                case .persist(let promise):
                    promises[id] = promise
                    guard !slow.contains(id) else { continue }
                    nodes[id]?.persisted(now: now)
                    take(id)
                case .send(let message, let to): waiting.append((id, to, message))
                case .form(let voters, _): founded.append((id, voters))
                }
            }
        }

        func see(_ id: NodeID, _ virgins: [NodeID]) {
            nodes[id]?.update(virgins: virgins, now: now)
            take(id)
        }

        /// Delivers what is on its way, and what that leads to. `lost` swallows.
        func deliver(lost: (NodeID, NodeID, Bootstrap.Message) -> Bool = { _, _, _ in false }) {
            var left = 1_000
            while !waiting.isEmpty, left > 0 {
                left -= 1
                let (from, to, message) = waiting.removeFirst()
                guard !lost(from, to, message) else { continue }
                nodes[to]?.receive(message, from: from, isVirgin: true, now: now)
                take(to)
            }
        }

        func letTimePass(_ span: TimeSpan = .seconds(1)) { now = now + span }
    }

    @Test func aSingleNodeFoundsAtOnce() {
        let nodes = Nodes(Array(BootstrapTests.ids.prefix(1)), expect: 1)
        nodes.see(BootstrapTests.ids[0], [BootstrapTests.ids[0]])
        #expect(nodes.founded.map(\.voters) == [[BootstrapTests.ids[0]]])
    }

    @Test func theSmallestFoundsWithThePromisesOfAll() {
        let ids = Array(BootstrapTests.ids.prefix(3))
        let nodes = Nodes(ids, expect: 3)
        for _ in 0..<2 {
            for id in ids { nodes.see(id, ids) }
            nodes.letTimePass()
        }
        nodes.deliver()
        #expect(nodes.founded.map(\.by) == [ids[0]])
        #expect(nodes.founded.first?.voters == ids)
        #expect(nodes.promises.values.allSatisfy { $0.initiator == ids[0] && $0.voters == ids })
    }

    @Test func aMajorityOfPromisesIsNotEnough() {
        let ids = Array(BootstrapTests.ids.prefix(3))
        let nodes = Nodes(ids, expect: 3)
        for _ in 0..<4 {
            nodes.see(ids[0], ids)
            nodes.letTimePass()
            nodes.deliver { _, to, _ in to == ids[2] }
        }
        #expect(nodes.founded.isEmpty)
        nodes.see(ids[0], ids)
        nodes.deliver()
        #expect(nodes.founded.count == 1)
    }

    @Test func aPromiseIsAnsweredOnlyWhenItIsDurable() {
        let ids = Array(BootstrapTests.ids.prefix(3))
        let nodes = Nodes(ids, expect: 3)
        nodes.slow = [ids[1]]
        for _ in 0..<3 {
            nodes.see(ids[0], ids)
            nodes.letTimePass()
            nodes.deliver()
        }
        #expect(nodes.promises[ids[1]] != nil)
        #expect(nodes.founded.isEmpty)
        nodes.slow = []
        nodes.nodes[ids[1]]?.persisted(now: nodes.now)
        nodes.take(ids[1])
        nodes.deliver()
        #expect(nodes.founded.count == 1)
    }

    @Test func aRestartedInitiatorStartsAfresh() {
        let ids = Array(BootstrapTests.ids.prefix(3))
        let nodes = Nodes(ids, expect: 3)
        for _ in 0..<3 {
            nodes.see(ids[0], ids)
            nodes.letTimePass()
            // The grants of the others never arrive.
            nodes.deliver { _, to, _ in to == ids[0] }
        }
        #expect(nodes.founded.isEmpty)
        nodes.restart(ids[0], expect: 3, startCounter: 2)
        for _ in 0..<3 {
            nodes.see(ids[0], ids)
            nodes.letTimePass()
            nodes.deliver()
        }
        #expect(nodes.founded.map(\.voters) == [ids])
    }

    /// Four expect three; two sides each begin with their own smallest node, and one of them has to give way, also if what it
    /// says about that is lost.
    @Test(arguments: [false, true])
    func theLargerInitiatorGivesWay(releaseIsLost: Bool) {
        let ids = Array(BootstrapTests.ids.prefix(4))
        let nodes = Nodes(ids, expect: 3)
        let late = Array(ids[1...3])
        // The smallest is not there yet; the second begins, and hears of one promise of two.
        for _ in 0..<2 {
            nodes.see(ids[1], late)
            nodes.letTimePass()
            nodes.deliver { _, to, _ in to == ids[3] }
        }
        #expect(nodes.promises[ids[2]]?.initiator == ids[1])
        // Now all see all: the first three are 1, 2 and 3.
        for round in 0..<8 {
            for id in ids { nodes.see(id, ids) }
            nodes.letTimePass()
            nodes.deliver { _, _, message in
                if case .release = message { releaseIsLost && round < 3 } else { false }
            }
        }
        #expect(nodes.founded.map(\.by) == [ids[0]])
        #expect(nodes.founded.first?.voters == Array(ids.prefix(3)))
    }
}
