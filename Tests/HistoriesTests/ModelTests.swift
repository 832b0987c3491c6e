import Histories
import Testing

/// Milliseconds, for times that read well.
private func ms(_ value: Int64) -> Int64 { value * 1_000_000 }

@Suite struct LeaseModelTests {
    private typealias Step = TimedOperation<LeaseModel.Input, LeaseModel.Output>

    private func check(_ operations: [Step], isTimed: Bool = true) -> Bool {
        Linearizability.check(LeaseModel(isTimed: isTimed), operations) == .linearizable
    }

    private func acquire(_ holder: String, _ output: LeaseModel.Output?, at time: Int64, ttl: UInt64 = 100) -> Step {
        Step(
            .acquire(holder: holder, ttlMilliseconds: ttl), output, invoked: ms(time), completed: ms(time + 5))
    }

    @Test func aSecondGrantWaitsForTheEndOfTheFirst() {
        let first = acquire("a", .granted(token: 1), at: 0)
        #expect(check([first, acquire("b", .granted(token: 2), at: 120)]))
        #expect(!check([first, acquire("b", .granted(token: 2), at: 50)]))
        // Without times an end is always possible.
        #expect(check([first, acquire("b", .granted(token: 2), at: 50)], isTimed: false))
    }

    @Test func aRenewalPutsTheEndOff() {
        let held = [
            acquire("a", .granted(token: 1), at: 0),
            Step(.renew(token: 1, ttlMilliseconds: 100), .renewed, invoked: ms(80), completed: ms(85)),
        ]
        #expect(!check(held + [acquire("b", .granted(token: 2), at: 120)]))
        #expect(check(held + [acquire("b", .granted(token: 2), at: 180)]))
    }

    @Test func tokensRiseAndNoneIsGivenTwice() {
        let first = acquire("a", .granted(token: 7), at: 0)
        #expect(!check([first, acquire("b", .granted(token: 7), at: 300)]))
        #expect(!check([first, acquire("b", .granted(token: 6), at: 300)]))
        #expect(check([first, acquire("a", .granted(token: 7), at: 50)]))
    }

    @Test func aLeaseThatIsReleasedIsFreeAtOnceAndDead() {
        let released = [
            acquire("a", .granted(token: 1), at: 0),
            Step(.release(token: 1), .released, invoked: ms(10), completed: ms(15)),
        ]
        #expect(check(released + [acquire("b", .granted(token: 2), at: 20)]))
        #expect(
            !check(
                released + [Step(.renew(token: 1, ttlMilliseconds: 100), .renewed, invoked: ms(20), completed: ms(25))]
            ))
        #expect(!check(released + [acquire("b", .held(token: 1, holder: "a"), at: 20)]))
    }

    @Test func aLostLeaseWasReplacedOrHadTheTimeToEnd() {
        let first = acquire("a", .granted(token: 1), at: 0)
        func renew(_ output: LeaseModel.Output, at time: Int64) -> Step {
            Step(.renew(token: 1, ttlMilliseconds: 100), output, invoked: ms(time), completed: ms(time + 5))
        }
        #expect(!check([first, renew(.lost(newest: 1), at: 50)]))
        #expect(check([first, renew(.lost(newest: 1), at: 120)]))
        #expect(!check([first, renew(.lost(newest: 1), at: 120), renew(.renewed, at: 130)]))
        #expect(check([first, acquire("b", .granted(token: 2), at: 120), renew(.lost(newest: 2), at: 130)]))
        #expect(!check([first, acquire("b", .granted(token: 2), at: 120), renew(.renewed, at: 130)]))
    }

    @Test func aReadSeesWhoHoldsIt() {
        let first = acquire("a", .granted(token: 1), at: 0)
        func inspect(_ token: UInt64, _ holder: String?, at time: Int64) -> Step {
            Step(.inspect, .state(token: token, holder: holder), invoked: ms(time), completed: ms(time + 5))
        }
        #expect(check([inspect(0, nil, at: -20), first, inspect(1, "a", at: 20)]))
        #expect(!check([first, inspect(0, nil, at: 20)]))
        #expect(!check([first, inspect(1, nil, at: 20)]))
        #expect(check([first, inspect(1, nil, at: 120)]))
        #expect(!check([first, inspect(1, nil, at: 120), inspect(1, "a", at: 130)]))
    }

    /// A grant whose answer was lost holds the lease all the same, with a token that only others can tell.
    @Test func aGrantThatNobodyHeardOfExplainsWhatFollows() {
        let lost = acquire("a", nil, at: 0)
        #expect(check([lost, acquire("b", .granted(token: 1), at: 10)]))
        #expect(check([lost, acquire("b", .held(token: 3, holder: "a"), at: 10)]))
        #expect(
            check([lost, acquire("b", .held(token: 3, holder: "a"), at: 10), acquire("b", .granted(token: 4), at: 120)])
        )
        #expect(
            !check([
                lost, acquire("b", .held(token: 3, holder: "a"), at: 10), acquire("b", .granted(token: 3), at: 120),
            ]))
        #expect(!check([lost, acquire("b", .held(token: 3, holder: "c"), at: 10)]))
    }
}

@Suite struct JobModelTests {
    private typealias Step = TimedOperation<JobModel.Input, JobModel.Output>

    private func check(_ operations: [Step], isTimed: Bool = true) -> Bool {
        Linearizability.check(JobModel(isTimed: isTimed), operations) == .linearizable
    }

    private func step(_ input: JobModel.Input, _ output: JobModel.Output?, at time: Int64) -> Step {
        Step(input, output, invoked: ms(time), completed: ms(time + 5))
    }

    private var put: Step { step(.put(delayMilliseconds: 0, ttrMilliseconds: 100), .done, at: 0) }

    @Test func aJobIsTakenOnceUntilItsTimeToRunIsOver() {
        let first = step(.take(lease: 1), .done, at: 10)
        #expect(check([put, first, step(.take(lease: 2), .done, at: 115)]))
        #expect(!check([put, first, step(.take(lease: 2), .done, at: 50)]))
        #expect(!check([put, first, step(.take(lease: 1), .done, at: 115)]))
        #expect(check([put, first, step(.take(lease: 2), .done, at: 50)], isTimed: false))
        #expect(
            !check([put, first, step(.touch(lease: 1), .done, at: 80), step(.take(lease: 2), .done, at: 120)]))
    }

    @Test func aDeletedJobIsGone() {
        let deleted = [put, step(.take(lease: 1), .done, at: 10), step(.delete(lease: 1), .done, at: 20)]
        #expect(check(deleted + [step(.look, .notFound, at: 30)]))
        #expect(!check(deleted + [step(.look, .done, at: 30)]))
        #expect(!check(deleted + [step(.take(lease: 2), .done, at: 200)]))
        #expect(!check(deleted + [step(.delete(lease: 1), .done, at: 30)]))
    }

    @Test func anAcknowledgedJobIsNotLost() {
        #expect(!check([put, step(.look, .notFound, at: 30)]))
        #expect(!check([put, step(.take(lease: 1), .done, at: 10), step(.delete(lease: 1), .notFound, at: 20)]))
        #expect(check([step(.look, .notFound, at: -30), put]))
    }

    @Test func aJobOfAnUnansweredPutMayComeOnce() {
        let unknown = step(.put(delayMilliseconds: 0, ttrMilliseconds: 100), nil, at: 0)
        #expect(check([unknown]))
        #expect(check([unknown, step(.take(lease: 1), .done, at: 10)]))
        #expect(!check([step(.take(lease: 1), .done, at: -10), unknown]))
    }

    @Test func anUnansweredDeletionMayHaveHappened() {
        let taken = [put, step(.take(lease: 1), .done, at: 10), step(.delete(lease: 1), nil, at: 20)]
        #expect(check(taken + [step(.look, .done, at: 30), step(.look, .notFound, at: 40)]))
        #expect(!check(taken + [step(.look, .notFound, at: 30), step(.look, .done, at: 40)]))
    }

    @Test func anExpiredLeaseHadTheTimeToEndOrAnotherFollowed() {
        let taken = [put, step(.take(lease: 1), .done, at: 10)]
        #expect(!check(taken + [step(.delete(lease: 1), .leaseExpired, at: 20)]))
        #expect(check(taken + [step(.delete(lease: 1), .leaseExpired, at: 120)]))
        #expect(
            check(taken + [step(.take(lease: 2), .done, at: 120), step(.touch(lease: 1), .leaseExpired, at: 130)]))
        #expect(!check(taken + [step(.take(lease: 2), .done, at: 120), step(.delete(lease: 1), .done, at: 130)]))
    }

    @Test func aDelayIsKept() {
        let delayed = step(.put(delayMilliseconds: 50, ttrMilliseconds: 100), .done, at: 0)
        #expect(!check([delayed, step(.take(lease: 1), .done, at: 10)]))
        #expect(check([delayed, step(.take(lease: 1), .done, at: 50)]))
        let released = [
            put, step(.take(lease: 1), .done, at: 10), step(.release(lease: 1, delayMilliseconds: 50), .done, at: 20),
        ]
        #expect(!check(released + [step(.take(lease: 2), .done, at: 30)]))
        #expect(check(released + [step(.take(lease: 2), .done, at: 70)]))
        #expect(
            check([
                put, step(.take(lease: 1), .done, at: 10),
                step(.release(lease: 1, delayMilliseconds: 0), .done, at: 20), step(.take(lease: 2), .done, at: 30),
            ]))
    }
}
