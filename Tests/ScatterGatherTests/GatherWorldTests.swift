// Whole jobs in virtual time: leaves that are slow, fail, die and come back, by a seed.
import Model
import ScatterGather
import Testing

/// Leaves around one machine. Every step checks what must always hold.
private struct World {
    struct Running {
        var grant: ShardGrant
        var ends: MonotonicTime
        var outcome: AttemptOutcome
    }

    var generator: SeededGenerator
    var machine: GatherMachine
    var now = MonotonicTime.zero
    var order = ResultOrder(ordered: true, skipsMissing: true)
    var running: [Running] = []
    var leaves: [LeafID] = []
    var nextLeaf: UInt64 = 1
    /// Attempts that may still be accepted.
    var open: Set<AttemptID> = []
    var accepted: [Int: AttemptID] = [:]
    var delivered: [Int] = []
    var settled: Set<Int> = []
    var finished: GatherState?
    var given = 0
    var trace: [UInt64] = []
    let faults: Double

    init(
        seed: UInt64, shards: Int, leaves count: Int, faults: Double, _ change: (inout GatherOptions) -> Void = { _ in }
    ) {
        generator = SeededGenerator(seed: seed)
        var options = GatherOptions()
        change(&options)
        machine = GatherMachine(options: options, now: .zero)
        self.faults = faults
        machine.open(now: now)
        for _ in 0..<count { addLeaf() }
        for _ in 0..<shards {
            machine.addShard(bytes: 10, now: now)
            carryOut()
        }
        machine.endInput(now: now)
        carryOut()
    }

    mutating func addLeaf() {
        let leaf = LeafID(nextLeaf)
        nextLeaf += 1
        leaves.append(leaf)
        machine.ask(leaf, node: "n\(leaf.number % 3)", now: now)
        carryOut()
    }

    mutating func carryOut() {
        // What is carried out may ask for more.
        while carryOutSome() {}
        let progress = machine.progress(now: now)
        #expect(progress.isConsistent)
        #expect(progress.running == Set(running.map(\.grant.shard)).subtracting(settled).count || finished != nil)
    }

    private mutating func carryOutSome() -> Bool {
        let effects = machine.takeEffects()
        for effect in effects {
            #expect(finished == nil, "nothing follows the end")
            switch effect {
            case .give(let grant):
                given += 1
                #expect(leaves.contains(grant.leaf))
                #expect(!running.contains { $0.grant.leaf == grant.leaf }, "a leaf runs what it asked for, no more")
                #expect(open.insert(grant.attempt).inserted)
                let slow = generator.chance(0.02)
                let span = TimeSpan.milliseconds(Int64.random(in: 1...(slow ? 4_000 : 20), using: &generator))
                var outcome = AttemptOutcome.exited(0)
                if generator.chance(faults) {
                    outcome =
                        [.exited(1), .exited(75), .signalled(9), .timedOut, .exited(65)].randomElement(
                            using: &generator) ?? .exited(1)
                }
                running.append(Running(grant: grant, ends: now + span, outcome: outcome))
            case .cancel(let leaf, let attempt, _):
                // The leaf is free at once, unless it is gone.
                running.removeAll { $0.grant.attempt == attempt }
                if leaves.contains(leaf), machine.state == .running {
                    machine.ask(leaf, node: "n\(leaf.number % 3)", now: now)
                }
            case .accept(let shard, let attempt):
                #expect(open.remove(attempt) != nil, "a result is accepted once, and only if it was not discarded")
                #expect(accepted.updateValue(attempt, forKey: shard) == nil, "one result a shard")
            case .discard(let attempt):
                #expect(open.remove(attempt) != nil)
            case .settled(let shard, let state):
                #expect(settled.insert(shard).inserted)
                #expect((state == .done) == (accepted[shard] != nil))
                order.settled(shard, hasResult: state == .done)
                while let next = order.take() { delivered.append(next) }
            case .finished(let state): finished = state
            }
        }
        return !effects.isEmpty
    }

    /// The next thing that happens.
    mutating func step() {
        let next = running.map(\.ends).min()
        let tick = machine.nextDeadline
        let death = generator.chance(faults / 4)
        if death, leaves.count > 0 {
            let leaf = leaves.remove(at: Int.random(in: 0..<leaves.count, using: &generator))
            running.removeAll { $0.grant.leaf == leaf }
            machine.lost(leaf, now: now)
            carryOut()
            addLeaf()
            return
        }
        guard let time = [next, tick].compactMap({ $0 }).min() else {
            Issue.record("the job stands still")
            return
        }
        now = max(now, time)
        trace.append(now.nanoseconds)
        if let at = running.firstIndex(where: { $0.ends <= now }) {
            let ended = running.remove(at: at)
            machine.ended(ended.grant.attempt, ended.outcome, bytes: 3, now: now)
            carryOut()
            if machine.state == .running {
                machine.ask(ended.grant.leaf, node: "n\(ended.grant.leaf.number % 3)", now: now)
            }
        } else {
            machine.tick(now: now)
        }
        carryOut()
    }

    mutating func run() {
        var steps = 0
        while finished == nil && steps < 20_000 {
            steps += 1
            step()
        }
        #expect(finished != nil)
    }
}

@Suite struct GatherWorldTests {
    @Test(arguments: 0..<60) func eachShardIsDeliveredOnceAndInOrder(seed: UInt64) {
        var generator = SeededGenerator(seed: seed)
        let shards = Int.random(in: 0...200, using: &generator)
        let leaves = Int.random(in: 1...12, using: &generator)
        var world = World(seed: seed, shards: shards, leaves: leaves, faults: seed % 3 == 0 ? 0 : 0.1) {
            if seed % 4 == 1 { $0.hedge = .after(.milliseconds(30)) }
            if seed % 4 == 2 { $0.shardTimeout = .milliseconds(500) }
        }
        world.run()
        let progress = world.machine.progress(now: world.now)
        #expect(world.settled.count == shards)
        #expect(world.delivered == world.delivered.sorted())
        #expect(world.delivered.count == progress.successful)
        #expect(Set(world.delivered) == Set(world.accepted.keys))
        #expect(world.open.isEmpty, "no attempt is left without a verdict")
        #expect(progress.running == 0 && progress.pending == 0)
        #expect(progress.bytesOut == UInt64(3 * progress.successful))
        if seed % 3 == 0 && seed % 4 != 2 { #expect(world.finished == .succeeded) }
        #expect(progress.hedged <= max(8, shards / 4))
    }

    @Test func equalSeedsGiveEqualTraces() {
        var first = World(seed: 7, shards: 100, leaves: 8, faults: 0.1)
        var second = World(seed: 7, shards: 100, leaves: 8, faults: 0.1)
        first.run()
        second.run()
        #expect(first.trace == second.trace)
        #expect(first.given == second.given)
    }

    @Test func hedgesTakeTheTailAway() {
        func time(_ hedge: ScatterGatherSpec.Hedge) -> Int64 {
            var total: Int64 = 0
            for seed in 0..<20 as Range<UInt64> {
                var world = World(seed: seed, shards: 64, leaves: 16, faults: 0) { $0.hedge = hedge }
                world.run()
                total += (world.now - .zero).milliseconds
            }
            return total
        }
        #expect(time(.automatic) * 3 < time(.off))
    }
}
