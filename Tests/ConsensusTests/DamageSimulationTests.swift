import Glibc
import Model
import Testing

enum ProcessEnvironment {
    static func number(_ name: String) -> UInt64? { getenv(name).flatMap { UInt64(String(cString: $0)) } }
}

/// Disks that are damaged while their node is down, at random places, under all the other faults.
@Suite struct DamageSimulationTests {
    /// `COTERIE_SEEDS=n` runs n seeds in each of the blocks below instead of a few.
    private static let seedsPerBlock = ProcessEnvironment.number("COTERIE_SEEDS") ?? 5

    private func seeds(block: UInt64, from first: UInt64) -> Range<UInt64> {
        let start = first + block * Self.seedsPerBlock
        return start..<start + Self.seedsPerBlock
    }

    /// Each committed entry has an intact copy: nothing may be lost, and all must be whole again in the end.
    @Test(arguments: 0..<6)
    func damageToAMinorityHealsAndLosesNothing(block: UInt64) throws {
        var damages = 0
        for seed in seeds(block: block, from: 0) {
            var world: RaftWorld?
            do {
                let made = try RaftWorld(seed: seed, options: .damaging(seed: seed))
                world = made
                try made.run()
                damages += made.damagesDone
            } catch {
                Issue.record(
                    "SEED=\(seed): \(error) (at \(world?.now.description ?? "the start"), step \(world?.steps ?? 0))")
            }
        }
        #expect(damages > 3)
    }

    /// Any number of nodes: there may be no leader for ever, but never a wrong answer.
    @Test(arguments: 0..<4)
    func damageToAnyNumberOfNodesNeverGivesAWrongAnswer(block: UInt64) throws {
        for seed in seeds(block: block, from: 100_000) {
            var world: RaftWorld?
            do {
                let made = try RaftWorld(seed: seed, options: .damaging(seed: seed, beyondBudget: true))
                made.mustConverge = false
                world = made
                try made.run()
            } catch {
                Issue.record(
                    "SEED=\(seed): \(error) (at \(world?.now.description ?? "the start"), step \(world?.steps ?? 0))")
            }
        }
    }

    @Test func theSeedsReachRecovery() throws {
        var recoveries = 0
        var damages = 0
        for seed: UInt64 in 304..<320 {
            let world = try RaftWorld(seed: seed, options: .damaging(seed: seed))
            do { try world.run() } catch { Issue.record("SEED=\(seed): \(error)") }
            recoveries += world.oracle.recoveries
            damages += world.damagesDone
        }
        #expect(damages > 15)
        #expect(recoveries > 5)
    }
}
