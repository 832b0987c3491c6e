import Model
import ScatterGather
import Testing

/// A machine with a clock, for single steps.
private struct Bench {
    var machine: GatherMachine
    var now = MonotonicTime(nanoseconds: 1_000_000_000)

    init(shards: Int, _ change: (inout GatherOptions) -> Void = { _ in }) {
        var options = GatherOptions()
        change(&options)
        machine = GatherMachine(options: options, now: MonotonicTime(nanoseconds: 1_000_000_000))
        for _ in 0..<shards { machine.addShard(bytes: 1, now: now) }
        machine.endInput(now: now)
        machine.open(now: now)
    }

    mutating func ask(_ leaf: UInt64, node: String? = nil) -> ShardGrant? {
        machine.ask(LeafID(leaf), node: node ?? "node\(leaf)", now: now)
        return grants().last
    }

    mutating func grants() -> [ShardGrant] {
        machine.takeEffects().compactMap { if case .give(let grant) = $0 { grant } else { nil } }
    }

    mutating func pass(_ span: TimeSpan) {
        now = now + span
        machine.tick(now: now)
    }

    mutating func end(_ grant: ShardGrant?, _ outcome: AttemptOutcome) {
        guard let grant else {
            Issue.record("nothing was given")
            return
        }
        machine.ended(grant.attempt, outcome, bytes: 1, now: now)
    }

    var progress: GatherProgress { machine.progress(now: now) }
}

@Suite struct GatherMachineTests {
    @Test func exitCodesDecideAsTheContractSays() {
        for code: Int32 in 0...255 {
            let verdict = AttemptOutcome.exited(code).verdict
            switch code {
            case 0: #expect(verdict == .done)
            case 75: #expect(verdict == .retryElsewhere)
            case 64...74, 76...78, 126, 127: #expect(verdict == .final)
            default: #expect(verdict == .retry)
            }
        }
        #expect(AttemptOutcome.signalled(9).verdict == .retry)
        #expect(AttemptOutcome.impossible("").verdict == .final)
    }

    @Test func aFinalCodeEndsAShardAtOnce() {
        var bench = Bench(shards: 1)
        bench.end(bench.ask(1), .exited(66))
        #expect(bench.machine.state == .failed)
        #expect(bench.progress.failed == 1)
        #expect(bench.progress.failures == [GatherFailure(shard: 0, node: "node1", attempts: 1, error: "exit code 66")])
        #expect(bench.machine.failedExit?.status == 66)
    }

    @Test func aShardIsTriedAgainUntilItsBudgetIsSpent() {
        var bench = Bench(shards: 1) { $0.retries = 2 }
        for attempt in 1...3 {
            let grant = bench.ask(1)
            #expect(grant?.number == attempt)
            bench.end(grant, .exited(1))
            bench.pass(.seconds(10))
        }
        #expect(bench.machine.state == .failed)
        #expect(bench.progress.retried == 2)
    }

    @Test func aFailedShardGoesToAnotherNodeFirst() {
        var bench = Bench(shards: 1)
        let grant = bench.ask(1, node: "a")
        bench.machine.ask(LeafID(2), node: "a", now: bench.now)
        bench.end(grant, .exited(75))
        bench.machine.ask(LeafID(1), node: "a", now: bench.now)
        // There is no other node, but another leaf.
        #expect(bench.grants().map(\.leaf) == [LeafID(2)])
        var two = Bench(shards: 1)
        let first = two.ask(1, node: "a")
        two.machine.ask(LeafID(2), node: "a", now: two.now)
        two.machine.ask(LeafID(3), node: "b", now: two.now)
        _ = two.grants()
        two.end(first, .exited(1))
        #expect(two.grants().map(\.leaf) == [LeafID(3)])
    }

    @Test func aShardIsNotKeptFromTheOnlyLeafThatAsksForEver() {
        var bench = Bench(shards: 2)
        let first = bench.ask(1)
        let second = bench.ask(2)
        #expect(second?.shard == 1)
        bench.end(first, .exited(1))
        bench.machine.ask(LeafID(1), node: "node1", now: bench.now)
        #expect(bench.grants() == [])
        let next = bench.machine.nextDeadline
        #expect(next.map { $0 > bench.now && $0 <= bench.now + .seconds(2) } == true)
        bench.pass(.seconds(2))
        #expect(bench.grants().map(\.shard) == [0])
    }

    @Test func aLostLeafCostsOnlyWhatRanThereAndNoBudget() {
        var bench = Bench(shards: 3) { $0.retries = 0 }
        for _ in 0..<3 { _ = bench.ask(1) }
        _ = bench.ask(2)
        bench.machine.lost(LeafID(1), now: bench.now)
        #expect(bench.machine.state == .running)
        #expect(bench.progress.failed == 0)
        #expect(bench.grants().map(\.shard) == [0])
    }

    @Test func whatKillsItsLeavesAgainAndAgainFails() {
        var bench = Bench(shards: 1) { $0.retries = 1 }
        var lost = 0
        while bench.machine.state == .running && lost < 100 {
            lost += 1
            _ = bench.ask(UInt64(lost))
            bench.machine.lost(LeafID(UInt64(lost)), now: bench.now)
        }
        #expect(lost == 7)
        #expect(bench.progress.failed == 1)
    }

    @Test func aStragglerIsCopiedAndTheLoserCancelled() {
        var bench = Bench(shards: 8)
        var slow: ShardGrant?
        for i in 0..<8 {
            let grant = bench.ask(UInt64(i))
            bench.now = bench.now + .milliseconds(10)
            if i == 3 { slow = grant } else { bench.end(grant, .exited(0)) }
        }
        _ = bench.machine.takeEffects()
        bench.machine.ask(LeafID(0), node: "node0", now: bench.now)
        #expect(bench.grants() == [])
        let due = bench.machine.nextDeadline
        #expect(due == (slow?.attempt).map { _ in MonotonicTime(nanoseconds: 1_030_000_000) + .milliseconds(100) })
        bench.pass(.milliseconds(100))
        let copy = bench.grants().last
        #expect(copy?.isHedge == true)
        #expect(copy?.shard == slow?.shard)
        #expect(copy?.leaf == LeafID(0))
        bench.end(copy, .exited(0))
        let effects = bench.machine.takeEffects()
        if let slow, let copy {
            #expect(
                effects == [
                    .accept(shard: 3, copy.attempt), .cancel(slow.leaf, slow.attempt, .superseded),
                    .discard(slow.attempt),
                    .settled(shard: 3, .done), .finished(.succeeded),
                ])
        }
        #expect(bench.progress.hedged == 1)
    }

    @Test func aSecondResultIsDroppedAndCounted() {
        var bench = Bench(shards: 2) { $0.hedge = .after(.milliseconds(5)) }
        let first = bench.ask(1)
        let other = bench.ask(2)
        #expect(other?.shard == 1)
        bench.machine.ask(LeafID(3), node: "node3", now: bench.now)
        bench.pass(.milliseconds(5))
        let copy = bench.grants().first
        #expect(copy?.shard == 0)
        bench.end(first, .exited(0))
        bench.end(copy, .exited(0))
        #expect(bench.machine.duplicates == 1)
        #expect(bench.progress.successful == 1)
        let accepted = bench.machine.takeEffects().filter { if case .accept = $0 { true } else { false } }
        #expect(accepted.count == 1)
    }

    @Test func noHedgesWhenTheyAreOff() {
        var bench = Bench(shards: 4) { $0.hedge = .off }
        for i in 0..<4 {
            let grant = bench.ask(UInt64(i))
            if i > 0 { bench.end(grant, .exited(0)) }
        }
        bench.machine.ask(LeafID(9), node: "node9", now: bench.now)
        bench.pass(.seconds(100))
        #expect(bench.grants() == [])
        #expect(bench.machine.nextDeadline == nil)
    }

    @Test func overTimeAShardTimesOutAndCountsAsSuch() {
        var bench = Bench(shards: 1) {
            $0.shardTimeout = .seconds(1)
            $0.retries = 0
        }
        let grant = bench.ask(1)
        #expect(grant?.deadline == bench.now + .seconds(1))
        // The leaf says so itself; if it can not, the root does later.
        bench.pass(.seconds(6))
        #expect(bench.progress.timedOut == 1)
        #expect(bench.machine.state == .failed)
    }

    @Test func theDeadlineEndsTheJobWithWhatThereIs() {
        var bench = Bench(shards: 4) {
            $0.deadline = .seconds(3)
            $0.minSuccess = 0.5
        }
        let first = bench.ask(1)
        let second = bench.ask(2)
        _ = bench.ask(3)
        bench.end(first, .exited(0))
        bench.end(second, .exited(0))
        bench.pass(.seconds(3))
        #expect(bench.machine.state == .partial)
        #expect(bench.progress.timedOut == 2)
        #expect(bench.progress.failures.map(\.shard) == [2, 3])
        #expect(bench.progress.isConsistent)
    }

    @Test func aBrokenLeafIsNotTriedOnEveryShard() {
        var bench = Bench(shards: 1_000)
        while bench.machine.state == .running { bench.end(bench.ask(1), .exited(127)) }
        #expect(bench.progress.failed == 100)
        #expect(bench.progress.cancelled == 900)
        #expect(bench.progress.failures.count == 100)
    }

    @Test func whileHoldingOnlyTheFirstOpenShardIsGiven() {
        var bench = Bench(shards: 3)
        let first = bench.ask(1)
        bench.machine.setHolding(true, now: bench.now)
        #expect(bench.ask(2) == nil)
        bench.end(first, .signalled(9))
        #expect(bench.grants().map(\.shard) == [0])
        bench.machine.ask(LeafID(3), node: "node3", now: bench.now)
        bench.machine.setHolding(false, now: bench.now)
        #expect(bench.grants().map(\.shard) == [1])
    }

    @Test func noShardsIsSuccess() {
        let bench = Bench(shards: 0)
        #expect(bench.machine.state == .succeeded)
    }

    @Test(arguments: [
        (GatherState.succeeded, 4, false, Int32(0)), (.partial, 3, false, 0), (.failed, 3, false, 7),
        (.failed, 0, false, 1),
        (.failed, 0, true, 6), (.failed, 2, true, 7), (.cancelled, 2, false, 1),
    ])
    func theEndDecidesTheExitCode(state: GatherState, successful: Int, deadline: Bool, code: Int32) {
        var progress = GatherProgress(total: 4, successful: successful)
        progress.failed = 4 - successful
        let end = GatherEnd(state: state, progress: progress, resultBytes: 0, leafExit: 66, deadlinePassed: deadline)
        #expect(end.exitCode() == code)
        if state == .failed { #expect(end.exitCode(propagate: true) == 66) }
        var broken = end
        broken.message = "the merge failed"
        if state == .failed {
            #expect(broken.exitCode() == (deadline ? 6 : 1) && broken.exitCode(propagate: true) == 125)
        }
    }

    @Test func theShareThatMustSucceedIsRoundedUp() {
        var options = GatherOptions()
        options.minSuccess = 0.95
        #expect(options.required(of: 64) == 61)
        #expect(options.required(of: 100) == 95)
        #expect(options.required(of: 0) == 0)
        options.minSuccess = 1
        #expect(options.required(of: 3) == 3)
        options.minSuccess = 0
        #expect(options.required(of: 3) == 0)
    }
}

@Suite struct ResultOrderTests {
    @Test func orderedResultsWaitForThoseBefore() {
        var order = ResultOrder(ordered: true, skipsMissing: false)
        order.settled(1, hasResult: true)
        #expect(order.take() == nil)
        order.settled(0, hasResult: true)
        #expect([order.take(), order.take(), order.take()] == [0, 1, nil])
        order.settled(2, hasResult: false)
        order.settled(3, hasResult: true)
        #expect(order.take() == nil)
        #expect(order.isBlocked)
    }

    @Test func missingOnesArePassedOverWhereThatIsAskedFor() {
        var order = ResultOrder(ordered: true, skipsMissing: true)
        order.settled(0, hasResult: false)
        order.settled(1, hasResult: true)
        #expect([order.take(), order.take()] == [1, nil])
    }

    @Test func unorderedResultsComeAsTheyAre() {
        var order = ResultOrder(ordered: false, skipsMissing: false)
        for shard in [4, 2, 9] { order.settled(shard, hasResult: true) }
        order.settled(3, hasResult: false)
        #expect([order.take(), order.take(), order.take(), order.take()] == [4, 2, 9, nil])
    }
}
