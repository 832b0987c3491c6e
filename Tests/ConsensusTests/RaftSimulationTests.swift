import Model
import Testing

@Suite struct RaftSimulationTests {
    /// `SEED=n` in the failure message replays: `try RaftWorld(seed: n).run()`.
    @Test(arguments: 0..<10)
    func noFaultBreaksAnInvariantAndPeaceHeals(block: UInt64) throws {
        for seed in block * 12..<(block + 1) * 12 {
            var world: RaftWorld?
            do {
                let made = try RaftWorld(seed: seed)
                world = made
                try made.run()
            } catch {
                Issue.record(
                    "SEED=\(seed): \(error) (at \(world?.now.description ?? "the start"), step \(world?.steps ?? 0))")
            }
        }
    }

    @Test func theSameSeedGivesTheSameTrace() throws {
        for seed: UInt64 in [3, 14, 15] {
            let first = try RaftWorld(seed: seed)
            try first.run()
            let second = try RaftWorld(seed: seed)
            try second.run()
            #expect(first.trace == second.trace)
            #expect(first.steps == second.steps)
        }
    }

    /// A simulation that tests nothing passes as well: the seeds must really commit, read, elect, and install snapshots.
    @Test func theSeedsReachWhatTheyAreMeantToTest() throws {
        var committed: UInt64 = 0
        var reads = 0
        var leaders = 0
        var snapshots = 0
        var configurations = 0
        for seed: UInt64 in 200..<220 {
            let world = try RaftWorld(seed: seed)
            try world.run()
            committed += world.oracle.highestCommitted
            reads += world.oracle.readsAnswered
            leaders += world.leadersSeen
            snapshots += world.oracle.snapshotsRestored
            configurations += world.oracle.configurationsCommitted
        }
        #expect(committed > 3_000)
        #expect(reads > 100)
        #expect(leaders > 30)
        #expect(snapshots > 5)
        #expect(configurations > 20)
    }
}
