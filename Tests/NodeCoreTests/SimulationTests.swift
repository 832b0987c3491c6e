import Glibc
import Model
import Simulator
import Testing

/// Whole nodes with clients on virtual time, network and disks (see `Simulator.World` for the rules that are checked). A
/// failure names its seed: `scripts/simulate --replay SEED [--trace]`, or SIMULATE_SEED=n in the environment of this suite.
@Suite struct SimulationTests {
    /// Two hundred short seeds on an ordinary day (replay them with `--short`); SIMULATE_SEEDS and SIMULATE_FROM choose others, of the
    /// usual length.
    static let seeds = number("SIMULATE_SEEDS") ?? 200
    static let from = number("SIMULATE_FROM") ?? 0

    static func number(_ name: String) -> UInt64? { getenv(name).flatMap { UInt64(String(cString: $0)) } }

    @Test(arguments: 0..<10)
    func noFaultBreaksARuleAndPeaceHeals(block: UInt64) throws {
        for seed in SimulationTests.from..<SimulationTests.from + SimulationTests.seeds where seed % 10 == block {
            do {
                let isShort = SimulationTests.number("SIMULATE_SEEDS") == nil
                try World(seed: seed, settings: isShort ? .short(seed: seed) : nil).run()
            } catch {
                Issue.record("\(error)")
            }
        }
    }

    @Test(.enabled(if: number("SIMULATE_SEED") != nil))
    func replay() throws {
        guard let seed = SimulationTests.number("SIMULATE_SEED") else { return }
        let world = World(seed: seed)
        try world.run()
        print("seed \(seed): \(world.settings)\n\(world.figures)")
    }

    /// A simulation that tests nothing passes as well: the seeds must really elect, commit, reserve, install, read and crash.
    @Test func theSeedsReachWhatTheyAreMeantToTest() throws {
        var total = World.Figures()
        for seed: UInt64 in 500..<515 {
            let world = World(seed: seed)
            try world.run()
            total += world.figures
        }
        #expect(total.committed > 1_500)
        #expect(total.answers > 1_000)
        #expect(total.reads > 100)
        #expect(total.leaders > 20)
        #expect(total.crashes > 20)
        #expect(total.snapshotsInstalled > 0)
        #expect(total.reservations > 300)
        #expect(total.grants > 10)
        #expect(total.podsBound > 20)
        #expect(total.digestsCompared > 300)
        #expect(total.suspensions + total.clockJumps + total.lies > 0)
        #expect(total.historyOperations > 1_500)
        #expect(total.historyObjects > 500)
        #expect(total.undecidedObjects == 0)
    }

    /// Whole-node worlds that found: a floor that was too low for a node whose journal was gone beside a snapshot (86), the only whole
    /// snapshot removed because of two damaged ones (219), and faults of the worlds themselves.
    @Test(arguments: [55, 86, 106, 219, 1_860, 1_884, 21_328, 101_860, 103_531, 105_723])
    func seedsThatOnceFailedPass(seed: UInt64) throws {
        try World(seed: seed, settings: WorldSettings(seed: seed).withoutLaterFaults()).run()
    }

    /// Its founder's disk failed before it held the first entry, so that another founds.
    @Test func aFoundingThatNeverReachedTheDiskIsNone() throws {
        try World(seed: 201_364, settings: .short(seed: 201_364)).run()
    }

    /// Clocks that differ, stop and jump, gossip that lies and comes late: the worlds have them, and bear them.
    @Test func clocksAndGossipMayLie() throws {
        var total = World.Figures()
        for seed: UInt64 in 4_000..<4_015 {
            var settings = WorldSettings(seed: seed)
            settings.nodes = max(settings.nodes, 3)
            settings.clockDrift = 50_000
            (settings.suspensions, settings.clockJumps, settings.gossipLies) = (true, true, true)
            settings.lateGossip = 0.1
            settings.deadVoterGrace = .seconds(1)
            settings.faultPause = .milliseconds(400)
            let world = World(seed: seed, settings: settings)
            try world.run()
            total += world.figures
        }
        #expect(total.suspensions > 5)
        #expect(total.clockJumps > 5)
        #expect(total.lies > 20)
    }

    private func damaging(_ seed: UInt64, _ damage: WorldSettings.Damage) -> WorldSettings {
        var settings = WorldSettings(seed: seed)
        settings.nodes = max(settings.nodes, 3)
        settings.onlyPausesLeaders = false
        settings.crashes = true
        settings.damage = damage
        settings.faultPause = .milliseconds(400)
        settings.chaos = .milliseconds(4_000)
        return settings
    }

    /// Bytes that go bad on fewer than half of the voters, and nodes whose data are gone: nothing is lost and all heals.
    @Test func damageToAMinorityHealsAndLosesNothing() throws {
        var total = World.Figures()
        for seed: UInt64 in 2_000..<2_020 {
            let world = World(seed: seed, settings: damaging(seed, .withinBudget))
            try world.run()
            total += world.figures
        }
        #expect(total.damages > 20)
        #expect(total.recoveries > 10)
        #expect(total.wipes > 0)
    }

    /// On any number of nodes: perhaps no answer, never a wrong one.
    @Test func damageToAnyNumberOfNodesNeverGivesAWrongAnswer() throws {
        var damages = 0
        for seed: UInt64 in 3_000..<3_015 {
            let world = World(seed: seed, settings: damaging(seed, .beyondBudget))
            try world.run()
            damages += world.figures.damages
        }
        #expect(damages > 30)
    }

    /// Reads that wait at a leader which stood still while another was elected.
    @Test func aLeaderThatStoodStillTellsNothingThatIsOutOfDate() throws {
        for seed: UInt64 in 700..<715 {
            var settings = WorldSettings(seed: seed)
            settings.nodes = 3
            settings.expect = 3
            settings.founders = 3
            settings.pauseLeadersOnly()
            try World(seed: seed, settings: settings).run()
        }
    }

    /// A voter dies for good, is replaced, then the next; clients lose nothing by it, and there are never fewer voters than K.
    /// Two of five at once leave three that vote.
    @Test(arguments: [(4, 1, 1), (6, 1, 1), (7, 2, 1), (5, 2, 2)])
    func votersThatDieForGoodAreReplaced(nodes: Int, losses: Int, together: Int) throws {
        for seed in 950..<950 + max(2, SimulationTests.seeds / 50) {
            var settings = WorldSettings(seed: seed)
            settings.nodes = nodes
            settings.expect = 3
            settings.founders = 3
            settings.clients = 4
            settings.losses = losses
            settings.lossesTogether = together
            settings.deadVoterGrace = .seconds(1)
            settings.crashes = seed % 2 == 0
            settings.partitions = seed % 3 == 0
            settings.diskFaults = false
            settings.damage = .none
            settings.orders = false
            settings.quickGossip = true
            settings.chaos = .seconds(5)
            settings.patience = .seconds(60)
            let world = World(seed: seed, settings: settings)
            try world.run()
            #expect(world.figures.losses == losses)
        }
    }

    /// Every size of cluster and every K forms, with and without further nodes, whoever starts first.
    @Test(arguments: [
        (1, 1, 1), (2, 1, 1), (3, 1, 1), (3, 3, 3), (4, 3, 3), (4, 3, 4), (5, 3, 5), (5, 5, 5), (6, 3, 5), (7, 5, 5),
    ])
    func oneClusterFormsUnderPartitions(nodes: Int, expect: Int, founders: Int) throws {
        for seed: UInt64 in 900..<903 {
            var settings = WorldSettings(seed: seed)
            settings.nodes = nodes
            settings.expect = expect
            settings.founders = founders
            settings.clients = 2
            settings.chaos = .milliseconds(2_000)
            settings.faultPause = .milliseconds(150)
            settings.crashes = true
            settings.partitions = true
            settings.quickGossip = true
            try World(seed: seed, settings: settings).run()
        }
    }
}
