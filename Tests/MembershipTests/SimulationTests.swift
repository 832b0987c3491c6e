import Model
import Testing

@testable import Membership

/// Whole clusters on virtual time. A failure names its seed; the run is a function of it.
@Suite struct SimulationTests {
    static let seeds = Array(UInt64(1)...50)

    private func settled(_ count: Int, seed: UInt64, loss: Double = 0, within: TimeSpan = .seconds(5)) -> GossipWorld {
        var world = GossipWorld(count, seed: seed, loss: loss)
        world.startAll()
        let took = world.run(upTo: within) { $0.agrees }
        #expect(took != nil, "seed \(seed): \(count) members did not find each other in \(within)")
        return world
    }

    @Test(arguments: seeds) func fiveMembersFindEachOtherKeepQuietAndSeeAKilledOneDead(seed: UInt64) {
        // Given five that join at once through one seed
        var world = settled(5, seed: seed, within: .seconds(2))
        // When nothing happens for half a minute, then nobody is ever suspected
        world.run(for: .seconds(30))
        #expect(world.agrees && world.count(.suspect) == 0 && world.count(.dead) == 0, "seed \(seed)")
        // When one's process is killed, then all see it dead in short time: its host refuses
        let victim = Int(seed % 5)
        world.kill(victim)
        let took = world.run(upTo: .seconds(4)) { $0.everyone(sees: victim, as: .dead) }
        #expect(took != nil, "seed \(seed)")
        #expect(world.count(.dead) == 4, "seed \(seed)")
        // When it is started again under its id, then it is back
        world.start(victim, seeds: [(victim + 1) % 5])
        #expect(world.run(upTo: .seconds(3)) { $0.agrees } != nil, "seed \(seed)")
        // When it leaves, then it is seen as left, not dead
        world.leave(victim)
        #expect(world.run(upTo: .seconds(1)) { $0.everyone(sees: victim, as: .left) } != nil, "seed \(seed)")
        #expect(world.eventOrderIsLegal, "seed \(seed)")
        #expect(world.largestDatagram <= 1_363)
    }

    @Test(arguments: seeds.prefix(20)) func sixteenMembersWithLossLoseNobodyAndFindTheSilent(seed: UInt64) {
        var world = settled(16, seed: seed, loss: 0.05, within: .seconds(6))
        world.run(for: .seconds(20))
        #expect(world.count(.dead) == 0, "seed \(seed)")
        // Power off: no refusal, only silence
        world.powerOff(7)
        let died = world.now
        let took = world.run(upTo: .seconds(20)) { $0.everyone(sees: 7, as: .dead) }
        #expect(took != nil, "seed \(seed)")
        // Silence is never taken for proof: the floor holds
        let first = world.nodes.flatMap(\.events).filter { $0.event.kind == .dead }.map(\.time).min() ?? died
        #expect(first - died >= world.options.suspicionFloor, "seed \(seed)")
        #expect(
            world.nodes.flatMap(\.events).allSatisfy {
                $0.event.kind != .dead || $0.event.member.id == world.nodes[7].id
            })
    }

    @Test(arguments: [UInt64(1), 2, 3]) func sixtyFourJoinAtOnceThroughOneSeed(seed: UInt64) {
        var world = settled(64, seed: seed, within: .seconds(3))
        world.kill(9)
        #expect(world.run(upTo: .seconds(4)) { $0.everyone(sees: 9, as: .dead) } != nil, "seed \(seed)")
        world.leave(11)
        #expect(world.run(upTo: .milliseconds(700)) { $0.everyone(sees: 11, as: .left) } != nil, "seed \(seed)")
        #expect(world.count(.dead) == 63, "seed \(seed)")
        // At rest: two datagrams a second and member, whatever the number
        world.run(for: .seconds(10))
        let before = world.nodes.map(\.sentDatagrams).reduce(0, +)
        world.run(for: .seconds(10))
        let rate = Double(world.nodes.map(\.sentDatagrams).reduce(0, +) - before) / 10 / Double(world.running.count)
        #expect(rate < 2.8, "seed \(seed): \(rate) datagrams a second")
    }

    @Test(arguments: seeds.prefix(10)) func aFifthOfAllDatagramsLostKillsNobody(seed: UInt64) {
        var world = settled(16, seed: seed, loss: 0.2, within: .seconds(10))
        world.run(for: .seconds(60))
        #expect(world.count(.dead) == 0, "seed \(seed)")
    }

    @Test(arguments: seeds.prefix(20)) func aHealedPartitionIsOneClusterAgain(seed: UInt64) {
        var world = settled(16, seed: seed)
        world.partition(Set(0..<8))
        // The halves hold each other dead
        let split = world.run(upTo: .seconds(40)) { world in
            (8..<16).allSatisfy { world.nodes[0].core.member(world.nodes[$0].id)?.state == .dead }
                && (0..<8).allSatisfy { world.nodes[15].core.member(world.nodes[$0].id)?.state == .dead }
        }
        #expect(split != nil, "seed \(seed)")
        world.run(for: .seconds(Int64(seed)))
        world.heal()
        #expect(world.run(upTo: .seconds(5)) { $0.agrees } != nil, "seed \(seed)")
    }

    @Test(arguments: seeds.prefix(20)) func afterAShortFreezeNobodyIsDeadAndAfterALongOneAllComeBack(seed: UInt64) {
        var world = settled(8, seed: seed)
        world.run(for: .seconds(3))
        world.freeze(3)
        world.run(for: .milliseconds(1_500))
        world.thaw(3)
        #expect(world.run(upTo: .seconds(5)) { $0.agrees } != nil, "seed \(seed)")
        #expect(world.count(.dead) == 0, "seed \(seed)")
        // Two of eight frozen for long: they are held dead by the rest, and accuse nobody when they wake
        world.freeze(3)
        world.freeze(5)
        world.run(for: .seconds(25))
        #expect(world.everyone(sees: 3, as: .dead) && world.everyone(sees: 5, as: .dead), "seed \(seed)")
        world.thaw(3)
        world.thaw(5)
        #expect(world.run(upTo: .seconds(3)) { $0.agrees } != nil, "seed \(seed)")
        let healthy = Set(world.nodes.indices.filter { $0 != 3 && $0 != 5 }.map { world.nodes[$0].id })
        #expect(
            !world.nodes.flatMap(\.events).contains { $0.event.kind == .dead && healthy.contains($0.event.member.id) })
    }

    @Test(arguments: seeds.prefix(20)) func membersStartedBeforeTheirSeedFindItWhenItComes(seed: UInt64) {
        var world = GossipWorld(4, seed: seed)
        for index in 1..<4 { world.start(index, seeds: [0]) }
        world.run(for: .seconds(20))
        #expect(world.nodes[1].core.members.count == 1)
        world.start(0, seeds: [])
        #expect(world.run(upTo: .seconds(7)) { $0.agrees } != nil, "seed \(seed)")
    }

    @Test(arguments: seeds.prefix(20)) func aMassRestartUnderTheSameIdsIsOneCluster(seed: UInt64) {
        var world = settled(6, seed: seed)
        for index in world.nodes.indices { world.kill(index) }
        world.run(for: .milliseconds(Int64(seed) * 50))
        world.startAll(seeds: [0, 1])
        #expect(world.run(upTo: .seconds(5)) { $0.agrees } != nil, "seed \(seed)")
    }

    @Test(arguments: seeds.prefix(10)) func aRestartQuickerThanTheProofIsNoDeath(seed: UInt64) {
        var world = settled(5, seed: seed)
        world.run(for: .seconds(2))
        world.kill(2)
        world.tell(0, .processDied(world.nodes[2].id))
        world.run(for: .milliseconds(50))
        world.start(2, seeds: [0])
        #expect(world.run(upTo: .seconds(3)) { $0.agrees } != nil, "seed \(seed)")
        world.run(for: .seconds(5))
        #expect(world.agrees && world.count(.dead) == 0, "seed \(seed)")
    }

    @Test(arguments: seeds.prefix(10)) func whoLeftComesBackWithinItsProcess(seed: UInt64) {
        var world = settled(5, seed: seed)
        world.leave(4)
        #expect(world.run(upTo: .seconds(1)) { $0.everyone(sees: 4, as: .left) } != nil, "seed \(seed)")
        #expect(world.run(upTo: .seconds(2)) { $0.nodes[4].condition == .ended } != nil, "seed \(seed)")
        world.nodes[4].condition = .running
        world.tell(4, .join([world.nodes[0].address]))
        #expect(world.run(upTo: .seconds(3)) { $0.agrees } != nil, "seed \(seed)")
        #expect(world.count(.dead) == 0, "seed \(seed)")
    }

    @Test(arguments: [UInt64(1), 2]) func sixtyFourWithATenthLostAgreeAndKillNobody(seed: UInt64) {
        var world = settled(64, seed: seed, loss: 0.1, within: .seconds(10))
        world.run(for: .seconds(15))
        #expect(world.count(.dead) == 0, "seed \(seed)")
        #expect(world.eventOrderIsLegal, "seed \(seed)")
    }

    /// Random acts, then peace: whatever happened, all that run agree in the end, and events made sense to each observer.
    @Test(arguments: seeds) func afterAnyTroubleAllThatRunAgree(seed: UInt64) {
        var world = settled(7, seed: seed, loss: 0.03, within: .seconds(10))
        var generator = SeededGenerator(seed: seed &* 977)
        for _ in 0..<12 {
            let index = Int.random(in: 0..<7, using: &generator)
            switch (Int.random(in: 0..<7, using: &generator), world.nodes[index].condition) {
            case (0, .running): world.kill(index)
            case (1, .running): world.freeze(index)
            case (2, .running): world.leave(index)
            case (3, .running): world.tell(index, .update(tags: ["round": "\(world.now.nanoseconds)"], meta: []))
            case (4, .running): world.powerOff(index)
            case (5, _): world.partition(Set((0..<7).filter { _ in generator.chance(0.5) }))
            case (_, .frozen): world.thaw(index)
            case (_, .killed), (_, .ended), (_, .hostDown):
                world.start(index, seeds: [(index + 1) % 7, (index + 2) % 7])
            default: break
            }
            world.run(for: .milliseconds(Int64.random(in: 10...6_000, using: &generator)))
        }
        world.heal()
        world.loss = 0
        for index in world.nodes.indices {
            switch world.nodes[index].condition {
            case .frozen: world.thaw(index)
            case .killed, .ended, .hostDown, .absent: world.start(index, seeds: [0, 1])
            case .running: break
            }
        }
        #expect(world.run(upTo: .seconds(20)) { $0.agrees } != nil, "seed \(seed)")
        #expect(world.eventOrderIsLegal, "seed \(seed)")
        for index in world.running {
            let tags = world.nodes[index].core.local.tags
            #expect(
                world.running.allSatisfy { world.nodes[$0].core.member(world.nodes[index].id)?.tags == tags },
                "seed \(seed)")
        }
    }

    @Test(arguments: seeds.prefix(10)) func equalSeedsGiveEqualTraces(seed: UInt64) {
        func run() -> (UInt64, Int) {
            var world = GossipWorld(8, seed: seed, loss: 0.1)
            world.startAll()
            world.run(for: .seconds(5))
            world.kill(1)
            world.freeze(2)
            world.run(for: .seconds(10))
            world.thaw(2)
            world.leave(3)
            world.run(for: .seconds(5))
            return (world.trace, world.nodes.map(\.events.count).reduce(0, +))
        }
        let first = run()
        #expect(first == run())
        #expect(first.1 > 0)
    }
}
