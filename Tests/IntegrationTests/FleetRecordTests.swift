// The judge must see what it is there for: each history here is a good one with one thing changed.
import TestSupport
import Testing

@Suite struct FleetRecordTests {
    private static func operation(
        _ client: Int, _ kind: FleetOperation.Kind, _ begun: UInt64, _ ended: UInt64, _ answer: FleetOperation.Answer
    ) -> FleetOperation {
        FleetOperation(client: client, kind: kind, begun: begun, ended: ended, answer: answer)
    }

    /// Two writers, a reader, two that contend for the lease; one put of unknown outcome that took place, one that was refused.
    private static let good: [FleetOperation] = [
        operation(0, .put(body: "a"), 0, 10, .inserted(1)),
        operation(1, .put(body: "b"), 5, 15, .inserted(2)),
        operation(2, .total, 16, 20, .total(2)),
        operation(2, .look(id: 1), 21, 25, .job(body: "a")),
        operation(0, .put(body: "c"), 30, 40, .unknown("time")),
        operation(1, .put(body: "d"), 30, 40, .refused("no leader")),
        operation(2, .total, 50, 55, .total(3)),
        operation(1, .put(body: "e"), 60, 70, .inserted(4)),
        operation(3, .acquire(holder: "x"), 0, 5, .granted(token: 1)),
        operation(4, .acquire(holder: "y"), 6, 9, .held(token: 1, holder: "x")),
        operation(3, .release(token: 1), 10, 20, .released),
        operation(4, .acquire(holder: "y"), 12, 25, .granted(token: 2)),
        operation(4, .release(token: 2), 30, 35, .released),
    ]
    private static let jobs = [(1, "a"), (2, "b"), (3, "c"), (4, "e")].map { FoundJob(id: $0.0, body: $0.1) }

    @Test func soundHistoryIsNotBlamed() {
        #expect(FleetRecord(Self.good).violations(found: Self.jobs).isEmpty)
        // The one of unknown outcome may as well be missing.
        var fewer = Self.good
        fewer[6].answer = .total(2)
        #expect(FleetRecord(fewer).violations(found: Self.jobs.filter { $0.body != "c" }).isEmpty)
    }

    private func blames(_ operations: [FleetOperation], _ jobs: [FoundJob], _ text: String) {
        let wrong = FleetRecord(operations).violations(found: jobs)
        #expect(wrong.contains { $0.contains(text) }, "\(wrong)")
    }

    @Test func lostDoubledAndInventedJobsAreSeen() {
        blames(Self.good, Self.jobs.filter { $0.id != 2 }, "acknowledged job 2 (b) is lost")
        blames(Self.good, Self.jobs + [FoundJob(id: 5, body: "a")], "a was put 2 times")
        blames(Self.good, Self.jobs + [FoundJob(id: 5, body: "c")], "c was put 2 times")
        blames(Self.good, Self.jobs + [FoundJob(id: 4, body: "e")], "job 4 was found 2 times")
        blames(Self.good, Self.jobs + [FoundJob(id: 5, body: "d")], "d was refused")
        blames(Self.good, Self.jobs + [FoundJob(id: 5, body: "z")], "nobody put z")
        var other = Self.good
        other[0].answer = .inserted(7)
        blames(other, Self.jobs, "is job [1]")
    }

    @Test func jobsOutOfOrderAreSeen() {
        var turned = Self.good
        turned[0].answer = .inserted(4)
        turned[7].answer = .inserted(1)
        let jobs = [(4, "a"), (2, "b"), (3, "c"), (1, "e")].map { FoundJob(id: $0.0, body: $0.1) }
        blames(turned, jobs, "was put after job 4 was acknowledged")
    }

    @Test func staleAndEarlyReadsAreSeen() {
        var read = Self.good
        read[2].answer = .total(1)
        blames(read, Self.jobs, "read 1 jobs when 2 were acknowledged")
        read[2].answer = .total(3)
        blames(read, Self.jobs, "read 3 jobs when 2 had been asked for")
        read = Self.good
        read[3].answer = .noJob
        blames(read, Self.jobs, "did not find job 1")
        read[3].answer = .job(body: "b")
        blames(read, Self.jobs, "job 1 read as b")
        // Back in time, although each by itself could be true.
        read = Self.good
        read[6].answer = .total(3)
        read.append(Self.operation(2, .total, 56, 58, .total(2)))
        blames(read, Self.jobs, "2 jobs were read after 3")
    }

    @Test func linearizabilityCheckerSeesWhatOneOrderDoesNotExplain() {
        #expect(FleetRecord(Self.good).history.check().isLinearizable)
        func fails(_ change: (inout [FleetOperation]) -> Void) {
            var operations = Self.good
            change(&operations)
            let verdict = FleetRecord(operations).history.check()
            #expect(!verdict.violations.isEmpty, "\(verdict)")
        }
        fails { $0[3].answer = .noJob }
        // Held by one who was never granted it, and while nobody can have held it.
        fails { $0[9].answer = .held(token: 7, holder: "z") }
        fails { $0.append(Self.operation(3, .acquire(holder: "x"), 40, 45, .held(token: 2, holder: "y"))) }
        fails { $0[11].answer = .granted(token: 1) }
        fails { $0[10].answer = .notHeld(newest: 1) }
    }

    @Test func leaseHeldTwiceIsSeen() {
        var lease = Self.good
        lease[9].answer = .granted(token: 2)
        blames(lease, Self.jobs, "given while 1 was held")
        lease = Self.good
        lease[11].answer = .granted(token: 1)
        blames(lease, Self.jobs, "token 1 was given twice")
        lease = Self.good
        lease[11] = Self.operation(4, .acquire(holder: "y"), 21, 25, .granted(token: 0))
        blames(lease, Self.jobs, "token 0 was given after token 1")
        lease = Self.good
        lease[10].answer = .notHeld(newest: 1)
        blames(lease, Self.jobs, "client 3 lost the lease")
    }
}
