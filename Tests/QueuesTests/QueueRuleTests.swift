// The rules of the queue's state machine, one at a time.
import Model
import Queues
import Testing
import Wire

/// A machine with a log that it counts itself.
struct Log {
    var machine = QueueMachine()
    var index: UInt64 = 0
    var now: UInt64 = 1_000_000

    @discardableResult mutating func apply(_ command: QueueCommand) -> QueueResult {
        index += 1
        return machine.apply(command, index: index, now: now)
    }

    @discardableResult mutating func put(
        _ tube: String = "t", priority: UInt32 = 0, delay: UInt64 = 0, ttr: UInt64 = 10_000, key: String? = nil,
        body: String = "x"
    ) -> UInt64? {
        let job = NewJob(
            tube: tube, priority: priority, delayMilliseconds: delay, ttrMilliseconds: ttr, body: Array(body.utf8),
            key: key)
        guard case .inserted(let jobs) = apply(.put([job])) else { return nil }
        return jobs.first?.id
    }

    mutating func reserve(_ tubes: String..., holder: UInt64 = 7, count: Int = 1) -> [ReservedJob] {
        guard case .reserved(let jobs) = apply(.reserve(tubes: tubes, holder: holder, count: count)) else { return [] }
        return jobs
    }

    func state(_ id: UInt64) -> JobView.State? { machine.job(id)?.state }
}

@Suite struct QueueRuleTests {
    @Test func `ids count from 1, one for each accepted job, and are never used again`() {
        var log = Log()
        #expect(log.put() == 1)
        #expect(log.put() == 2)
        log.apply(.delete(id: 2, lease: nil))
        #expect(log.put(String(repeating: "n", count: 201)) == nil)
        #expect(log.put() == 3)
        let batch = log.apply(.put([NewJob(tube: "a", body: []), NewJob(tube: "b", body: [])]))
        #expect(batch == .inserted([InsertedJob(id: 4), InsertedJob(id: 5)]))
    }

    @Test func `a batch is taken whole or refused whole`() {
        var log = Log()
        let large = NewJob(tube: "t", body: Array(repeating: 0, count: Limits.jobBytes + 1))
        let result = log.apply(.put([NewJob(tube: "t", body: []), large]))
        guard case .refused(.tooLarge, _) = result else {
            Issue.record("\(result)")
            return
        }
        #expect(log.machine.tubeNames.isEmpty)
        #expect(log.machine.nextID == 1)
    }

    @Test func `reserve takes the smallest priority over all tubes, then the oldest`() {
        var log = Log()
        log.put("a", priority: 5)
        log.put("b", priority: 1)
        log.put("a", priority: 1)
        log.put("c", priority: 0)
        #expect(log.reserve("a", "b", "b", "none", count: 9).map(\.id) == [2, 3, 1])
    }

    @Test func `lease tokens increase, within an entry too`() {
        var log = Log()
        for _ in 0..<3 { log.put() }
        let first = log.reserve("t", count: 2)
        let second = log.reserve("t")
        let tokens = (first + second).map(\.lease)
        #expect(tokens == tokens.sorted())
        #expect(Set(tokens).count == 3)
        #expect(tokens[0] == (log.index - 1) << 16)
    }

    @Test func `only the lease's owner can end or lengthen a reservation`() {
        var log = Log()
        log.put()
        let lease = log.reserve("t")[0].lease
        #expect(log.apply(.delete(id: 1, lease: nil)) == .leaseExpired)
        #expect(log.apply(.touch(id: 1, lease: lease + 1)) == .leaseExpired)
        #expect(log.apply(.bury(id: 1, lease: 0, priority: 0)) == .leaseExpired)
        #expect(log.apply(.release(id: 9, lease: lease, priority: 0, delayMilliseconds: 0)) == .notFound)
        #expect(log.apply(.delete(id: 1, lease: lease)) == .done)
        #expect(log.machine.job(1) == nil)
    }

    @Test func `a lease that ends gives the job back and its token is worth nothing`() {
        var log = Log()
        log.put(ttr: 1_000)
        let lease = log.reserve("t")[0].lease
        #expect(log.machine.nextDeadline == log.now + 1_000)
        log.now += 999
        log.machine.expire(now: log.now)
        #expect(log.state(1) == .reserved)
        log.now += 1
        #expect(log.apply(.delete(id: 1, lease: lease)) == .leaseExpired)
        #expect(log.state(1) == .ready)
        #expect(log.machine.job(1)?.timeouts == 1)
        #expect(log.machine.nextDeadline == nil)
    }

    @Test func `touch restarts the whole time to run`() {
        var log = Log()
        log.put(ttr: 1_000)
        let lease = log.reserve("t")[0].lease
        log.now += 900
        #expect(log.apply(.touch(id: 1, lease: lease)) == .done)
        log.now += 900
        log.machine.expire(now: log.now)
        #expect(log.state(1) == .reserved)
        #expect(log.machine.nextDeadline == log.now + 100)
    }

    @Test func `log time never goes back`() {
        var log = Log()
        log.put(delay: 1_000)
        log.machine.expire(now: log.now - 500)
        #expect(log.machine.logTime == log.now)
        #expect(log.machine.nextDeadline == log.now + 1_000)
    }

    @Test func `a new leader can postpone all leases, not delays`() {
        var log = Log()
        log.put(ttr: 1_000)
        log.put(delay: 1_500)
        _ = log.reserve("t")
        log.machine.postponeReservations(milliseconds: 1_000)
        log.now += 1_500
        log.machine.expire(now: log.now)
        #expect(log.state(1) == .reserved)
        #expect(log.state(2) == .ready)
    }

    @Test func `when a holder is gone its jobs are ready, and nobody else's`() {
        var log = Log()
        for _ in 0..<3 { log.put() }
        _ = log.reserve("t", holder: 1)
        _ = log.reserve("t", holder: 2)
        _ = log.reserve("t", holder: 0)
        log.apply(.releaseHolder(1))
        log.apply(.releaseHolder(0))
        #expect([1, 2, 3].map { log.state($0) } == [.ready, .reserved, .reserved])
        #expect(log.machine.job(1)?.releases == 0)
        #expect(log.machine.job(1)?.timeouts == 0)
    }

    @Test func `kick takes buried jobs in the order of their burial, delayed ones only if none is buried`() {
        var log = Log()
        log.put()
        log.put()
        log.put(delay: 5_000)
        let jobs = log.reserve("t", count: 2)
        log.apply(.bury(id: 2, lease: jobs[1].lease, priority: 9))
        log.apply(.bury(id: 1, lease: jobs[0].lease, priority: 9))
        #expect(log.machine.peek(tube: "t", state: .buried)?.id == 2)
        #expect(log.apply(.kick(tube: "t", count: 1)) == .kicked(1))
        #expect([1, 2, 3].map { log.state($0) } == [.buried, .ready, .delayed])
        #expect(log.apply(.kick(tube: "t", count: 5)) == .kicked(1))
        #expect(log.apply(.kick(tube: "t", count: 5)) == .kicked(1))
        #expect(log.apply(.kick(tube: "t", count: 5)) == .kicked(0))
        #expect(log.apply(.kick(tube: "none", count: 5)) == .kicked(0))
        #expect(log.machine.job(2)?.priority == 9)
    }

    @Test func `a paused tube gives nothing until its pause ends`() {
        var log = Log()
        log.put()
        #expect(log.apply(.pause(tube: "t", milliseconds: 500)) == .done)
        #expect(log.apply(.pause(tube: "none", milliseconds: 500)) == .notFound)
        _ = log.machine.takeReadied()
        #expect(!log.machine.hasReady(["t"]))
        #expect(log.reserve("t").isEmpty)
        #expect(log.machine.nextDeadline == log.now + 500)
        log.now += 500
        log.machine.expire(now: log.now)
        #expect(log.machine.takeReadied() == ["t"])
        #expect(log.reserve("t").map(\.id) == [1])
    }

    @Test func `pausing again replaces the pause, and 0 ends it`() {
        var log = Log()
        log.apply(.pause(tube: "t", milliseconds: 500, create: true))
        log.apply(.pause(tube: "t", milliseconds: 9_000))
        #expect(log.machine.nextDeadline == log.now + 9_000)
        #expect(log.machine.tubeNames == ["t"])
        log.apply(.pause(tube: "t", milliseconds: 0))
        #expect(log.machine.nextDeadline == nil)
        #expect(log.machine.tubeNames.isEmpty)
    }

    @Test func `purge leaves what is reserved`() {
        var log = Log()
        log.put()
        log.put()
        log.put(delay: 1_000)
        _ = log.reserve("t")
        #expect(log.apply(.purge(tube: "t")) == .purged(2))
        #expect(log.state(1) == .reserved)
        #expect(log.apply(.purge(tube: "none")) == .notFound)
    }

    @Test func `the same key in a tube gives the first job's id while that job exists`() {
        var log = Log()
        #expect(log.put(key: "k") == 1)
        let again = NewJob(tube: "t", body: [], key: "k")
        #expect(
            log.apply(.put([again, again]))
                == .inserted([InsertedJob(id: 1, isDuplicate: true), InsertedJob(id: 1, isDuplicate: true)]))
        #expect(log.put("other", key: "k") == 2)
        log.apply(.delete(id: 1, lease: nil))
        #expect(log.put(key: "k") == 3)
    }

    @Test func `a dedupe window outlives the job, and counts from its put`() {
        var log = Log()
        #expect(log.apply(.setTube(name: "t", settings: ["dedupe-window": "10s"])) == .done)
        #expect(log.put(key: "k") == 1)
        log.now += 4_000
        log.apply(.delete(id: 1, lease: nil))
        #expect(log.put(key: "k") == 1)
        #expect(log.machine.nextDeadline == log.now + 6_000)
        log.now += 6_000
        #expect(log.put(key: "k") == 2)
    }

    @Test func `a job is buried after the tube's attempts, however they ended`() {
        var log = Log()
        log.apply(.setTube(name: "t", settings: ["max-attempts": "3"]))
        log.put(ttr: 1_000)
        let first = log.reserve("t")[0]
        #expect(log.apply(.release(id: 1, lease: first.lease, priority: 0, delayMilliseconds: 0)) == .done)
        _ = log.reserve("t")
        log.now += 1_000
        log.machine.expire(now: log.now)
        #expect(log.state(1) == .ready)
        _ = log.reserve("t")
        log.apply(.releaseHolder(7))
        #expect(log.state(1) == .buried)
        log.apply(.kick(tube: "t", count: 1))
        let fourth = log.reserve("t")[0]
        #expect(log.apply(.release(id: 1, lease: fourth.lease, priority: 0, delayMilliseconds: 0)) == .buried)
    }

    @Test func `backoff doubles with every failure, up to an hour`() {
        var log = Log()
        log.apply(.setTube(name: "t", settings: ["backoff": "1s"]))
        log.put(ttr: 1_000)
        for failure in 0..<15 {
            let job = log.reserve("t")[0]
            log.apply(.release(id: 1, lease: job.lease, priority: 0, delayMilliseconds: 0))
            let wait = min(UInt64(1_000) << UInt64(failure), 3_600_000)
            #expect(log.machine.nextDeadline == log.now + wait)
            log.now += wait
        }
        let job = log.reserve("t")[0]
        log.apply(.release(id: 1, lease: job.lease, priority: 0, delayMilliseconds: 50))
        #expect(log.machine.nextDeadline == log.now + 50)
    }

    @Test(arguments: [
        (["max-jobs": "2"], 2), (["max-bytes": "20B"], 2), (["job-size": "9"], 0),
    ])
    func `a put over a tube's limit is refused`(settings: [String: String], accepted: Int) {
        var log = Log()
        #expect(log.apply(.setTube(name: "t", settings: settings)) == .done)
        let ids = (0..<4).map { _ in log.put(body: "ten bytes!") }
        #expect(ids.compactMap(\.self).count == accepted)
        // A batch counts its own jobs too.
        let batch = (0..<3).map { _ in NewJob(tube: "t", body: Array("ten bytes!".utf8)) }
        log.apply(.purge(tube: "t"))
        guard case .refused = log.apply(.put(batch)) else {
            Issue.record("accepted")
            return
        }
    }

    @Test(arguments: [
        "max-attempts": "-1", "max-jobs": "many", "max-bytes": "1 mile", "job-size": "1GiB", "backoff": "5",
        "colour": "red",
        "dedupe-window": "10y",
    ])
    func `a bad setting is refused, and none of the others is set`(name: String, value: String) {
        var log = Log()
        log.apply(.setTube(name: "t", settings: ["max-jobs": "5"]))
        guard
            case .refused = log.apply(
                .setTube(name: "t", settings: ["max-jobs": "7", "max-bytes": "9"].merging([name: value]) { $1 }))
        else {
            Issue.record("accepted")
            return
        }
        #expect(log.machine.settings(tube: "t")?.maxJobs == 5)
        #expect(log.machine.settings(tube: "t")?.maxBytes == 0)
        #expect(log.apply(.setTube(name: "t", settings: ["max-jobs": ""])) == .done)
        #expect(log.machine.tubeNames.isEmpty)
    }

    @Test func `a tube vanishes with its last job, and its counters are remembered for a while`() {
        var log = Log()
        log.put()
        log.apply(.delete(id: 1, lease: nil))
        #expect(log.machine.tubeNames.isEmpty)
        #expect(log.machine.statsDocument(tube: "t") == nil)
        log.put()
        #expect(log.machine.statsDocument(tube: "t")?["total-jobs"]?.intValue == 2)
        #expect(log.machine.statsDocument(tube: "t")?["cmd-delete"]?.intValue == 1)
        log.apply(.delete(id: 2, lease: nil))
        for other in 0..<1_100 {
            if let id = log.put("other-\(other)") { log.apply(.delete(id: id, lease: nil)) }
        }
        log.put()
        #expect(log.machine.statsDocument(tube: "t")?["total-jobs"]?.intValue == 1)
    }

    @Test func `what became reservable is told once, sorted`() {
        var log = Log()
        log.put("b")
        log.put("a")
        log.put("late", delay: 100)
        #expect(log.machine.takeReadied() == ["a", "b"])
        #expect(log.machine.takeReadied().isEmpty)
        log.now += 100
        log.machine.expire(now: log.now)
        #expect(log.machine.takeReadied() == ["late"])
        let job = log.reserve("a")[0]
        log.apply(.release(id: job.id, lease: job.lease, priority: 1, delayMilliseconds: 0))
        #expect(log.machine.takeReadied() == ["a"])
    }

    @Test func `a reserve of many stops before its reply grows too large`() {
        var log = Log()
        let body = String(repeating: "b", count: 60_000)
        for _ in 0..<40 { log.put(body: body) }
        let jobs = log.reserve("t", count: 40)
        #expect(jobs.count == QueueLimits.reserveBytes / 60_000)
    }

    @Test func `documents have the shapes of the contract`() {
        var log = Log()
        log.put("a", body: "text")
        let job = log.reserve("a")[0]
        #expect(
            job.document.text()
                == #"{"id":1,"tube":"a","lease":131072,"body":"text","reserves":1,"priority":0,"ttrMilliseconds":10000}"#
        )
        log.apply(.put([NewJob(tube: "a", priority: 3, body: [0xFF, 0, 1])]))
        #expect(
            log.machine.peekDocument(job: 2)?.text()
                == #"{"id":2,"tube":"a","bodyBase64":"/wAB","reserves":0,"priority":3,"ttrMilliseconds":60000,"state":"ready"}"#
        )
        #expect(log.machine.peekDocument(tube: "a")?["id"]?.intValue == 2)
        #expect(log.machine.peekDocument(tube: "none") == nil)
        #expect(
            log.machine.listDocument(waiting: ["w": 2]).text()
                == #"{"tubes":[{"name":"a","ready":1,"reserved":1,"delayed":0,"buried":0,"waiting":0},"#
                + #"{"name":"w","ready":0,"reserved":0,"delayed":0,"buried":0,"waiting":2}]}"#)
    }

    @Test func `base64 is read back as it was written, and nothing else is`() {
        var generator = SeededGenerator(seed: 4)
        for length in 0..<50 {
            let bytes = (0..<length).map { _ in UInt8.random(in: 0...255, using: &generator) }
            #expect(Base64.decode(Base64.encode(bytes)) == bytes)
        }
        #expect(Base64.encode(Array("foobar".utf8)) == "Zm9vYmFy")
        #expect(Base64.encode(Array("fooba".utf8)) == "Zm9vYmE=")
        for text in ["A", "====", "AB==CDEF", "A===", "AB=C", "Zm9vYmF=", "Zm 9"] {
            #expect(Base64.decode(text) == nil, "\(text)")
        }
    }
}
