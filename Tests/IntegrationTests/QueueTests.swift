// Act 4: a job's life through different nodes, and that nothing acknowledged is ever lost, whoever is killed.
import Foundation
import TestSupport
import Testing
import Wire

/// Puts of concurrent clients, each a process that retries by itself; keeps what was acknowledged.
actor PutLoad {
    private(set) var acknowledged: [Int64: String] = [:]
    private(set) var uncertain: Set<String> = []
    private(set) var isOver = false

    func stop() { isOver = true }
    func acknowledge(_ id: Int64, _ body: String) { acknowledged[id] = body }
    func doubt(_ body: String) { uncertain.insert(body) }
    var count: Int { acknowledged.count }

    /// Puts until it is stopped. Any end but "done" and "outcome unknown or no cluster in time" is an error.
    func run(_ cluster: TestCluster, tube: String, client: Int, addresses: String) async throws {
        var number = 0
        while !isOver {
            let bodies = (0..<5).map { "\(client)-\(number)-\($0)" }
            number += 1
            let outcome = try await cluster.run(
                ["--json", "queue", "put", tube, "--lines", "--timeout", "20s"],
                input: bodies.joined(separator: "\n") + "\n",
                extra: ["COTERIE_ADDRESS": addresses])
            guard outcome.code == 0 else {
                guard [1, 3, 6].contains(outcome.code) else { throw TestFailure("\(outcome)") }
                for body in bodies { doubt(body) }
                continue
            }
            let ids = (try outcome.json()["ids"]?.arrayValue ?? []).compactMap(\.intValue)
            guard ids.count == bodies.count else { throw TestFailure("\(bodies.count) ids expected: \(outcome)") }
            for (id, body) in zip(ids, bodies) { acknowledge(id, body) }
        }
    }

    /// Takes everything out of the tube by the queue protocol and compares: each acknowledged job once, under its id and with its
    /// body; of what was never acknowledged each at most once; nothing else.
    func check(_ cluster: TestCluster, tube: String) async throws {
        let node = try #require(cluster.running.first)
        let script = try cluster.file(
            "drain.py",
            """
            import sys, socket
            s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20)
            f = s.makefile("rwb")
            def ask(line):
                f.write(line.encode() + b"\\r\\n"); f.flush()
                return f.readline().decode().split()
            ask("watch " + sys.argv[2]); ask("ignore default")
            while True:
                r = ask("reserve-with-timeout 0")
                if r[0] != "RESERVED": break
                body = f.read(int(r[2]) + 2)[:-2].decode()
                d = ask("delete " + r[1])
                assert d[0] == "DELETED", d
                print(r[1], body)
            print(r[0])
            """)
        let python = try #require(Programs.python())
        let drained = try await cluster.run(program: python, [script, "\(node.queuePort)", tube], within: 60)
        try #require(drained.code == 0 && drained.lines.last == "TIMED_OUT", "\(drained)")
        var found: [Int64: String] = [:]
        var bodies: [String: Int] = [:]
        for line in drained.lines.dropLast() {
            let words = line.split(separator: " ")
            try #require(words.count == 2)
            let id = try #require(Int64(words[0]))
            #expect(found[id] == nil, "job \(id) came twice")
            found[id] = String(words[1])
            bodies[String(words[1]), default: 0] += 1
        }
        for (id, body) in acknowledged {
            #expect(found[id] == body, "acknowledged job \(id) (\(body)) is \(found[id] ?? "lost")")
        }
        for (body, count) in bodies { #expect(count == 1, "\(body) was put \(count) times") }
        let known = Set(acknowledged.values).union(uncertain)
        #expect(Set(bodies.keys).isSubset(of: known))
        print("\(acknowledged.count) jobs acknowledged, \(uncertain.count) uncertain, \(found.count) found")
    }
}

extension Integration {
    @Suite struct Queue {
        @Test func jobLivesThroughDifferentNodes() async throws {
            try await withCluster(3) { cluster in
                let (a, b, c) = (cluster.nodes[0], cluster.nodes[1], cluster.nodes[2])
                let id = try #require(
                    try await cluster.json(["queue", "put", "t"], via: a, input: "hello")["ids"]?.arrayValue?.first?
                        .intValue)

                // Reserve elsewhere, release, reserve again: the old token is void.
                let first = try await cluster.json(["queue", "reserve", "t"], via: b)
                #expect(first["id"]?.intValue == id && first["body"] == "hello" && first["tube"] == "t")
                let token = try #require(first["lease"]?.intValue)
                let none = try await cluster.coterie(["queue", "reserve", "t"], via: c)
                #expect(none.code == 4 && none.errorLines.count == 1, "\(none)")
                try await cluster.ok(["queue", "release", "\(id)", "--lease", "\(token)"], via: c)
                let second = try await cluster.json(["queue", "reserve", "t"], via: a)
                let newer = try #require(second["lease"]?.intValue)
                #expect(newer != token && second["reserves"] == 2)
                let stale = try await cluster.coterie(["queue", "delete", "\(id)", "--lease", "\(token)"], via: b)
                #expect(stale.code == 1 && stale.errorLines.count == 1, "\(stale)")

                // Touch, bury, peek, kick, delete.
                try await cluster.ok(["queue", "touch", "\(id)", "--lease", "\(newer)"], via: b)
                try await cluster.ok(["queue", "bury", "\(id)", "--lease", "\(newer)"], via: c)
                #expect(try await cluster.json(["queue", "peek", "\(id)"], via: a)["state"] == "buried")
                #expect(try await cluster.json(["queue", "kick", "t", "10"], via: b)["kicked"] == 1)
                let third = try await cluster.json(["queue", "reserve", "t"], via: c)
                try await cluster.ok(
                    ["queue", "delete", "\(id)", "--lease", "\(third["lease"]?.intValue ?? 0)"], via: a)
                let gone = try await cluster.coterie(["queue", "peek", "\(id)"], via: b)
                #expect(gone.code == 4, "\(gone)")
            }
        }

        @Test func priorityDelayAndTimeToRunHold() async throws {
            try await withCluster(3) { cluster in
                // Smaller is sooner, whatever the order and node of the puts.
                for (index, priority) in [30, 10, 20].enumerated() {
                    try await cluster.ok(
                        ["queue", "put", "p", "--priority", "\(priority)"], via: cluster.nodes[index],
                        input: "p\(priority)")
                }
                for expected in ["p10", "p20", "p30"] {
                    let job = try await cluster.json(["queue", "reserve", "p"])
                    #expect(job["body"]?.stringValue == expected)
                }
                // A delayed job comes when its time has come, not before.
                let start = ContinuousClock.now
                try await cluster.ok(["queue", "put", "d", "--delay", "1500ms"], input: "later")
                #expect(try await cluster.coterie(["queue", "reserve", "d"]).code == 4)
                let delayed = try await cluster.json(["queue", "reserve", "d", "--wait", "10s"], via: cluster.nodes[1])
                #expect(delayed["body"] == "later")
                let spent = ContinuousClock.now - start
                #expect(spent >= .milliseconds(1_400), "it came after \(spent)")
                // A reservation that is not kept ends by itself.
                try await cluster.ok(["queue", "put", "r", "--ttr", "1s"], input: "again")
                let one = try await cluster.json(["queue", "reserve", "r"])
                let two = try await cluster.json(["queue", "reserve", "r", "--wait", "10s"], via: cluster.nodes[2])
                #expect(one["id"] == two["id"] && one["lease"] != two["lease"] && two["reserves"] == 2)
                // Nothing comes: the deadline has passed.
                let never = try await cluster.coterie(["queue", "reserve", "empty", "--wait", "300ms"])
                #expect(never.code == 6 && never.errorLines.count == 1, "\(never)")
            }
        }

        @Test func waitingReserveGetsWhatIsPutThroughAnotherNode() async throws {
            try await withCluster(3) { cluster in
                let waiter = try cluster.launch(
                    ["--json", "queue", "reserve", "w", "--wait", "30s"], via: cluster.nodes[1])
                // Waits are soft state of the leader: only there are they counted.
                let leader = try await cluster.untilLeader()
                try await eventually("the waiter is counted") {
                    let tubes = try await cluster.json(["queue", "list"], via: leader)["tubes"]?.arrayValue ?? []
                    return tubes.contains { $0["name"] == "w" && $0["waiting"] == 1 }
                }
                try await cluster.ok(["queue", "put", "w"], via: cluster.nodes[2], input: "now")
                let outcome = try await cluster.finish(waiter, within: 5)
                #expect(try outcome.json()["body"] == "now", "\(outcome)")
            }
        }

        @Test func waitingReserveOutlivesTheLeader() async throws {
            try await withCluster(3) { cluster in
                let old = try await cluster.untilLeader()
                let node = try await cluster.follower()
                let waiter = try cluster.launch(["--json", "queue", "reserve", "w", "--wait", "30s"], via: node)
                try await eventually("the waiter is counted") {
                    let tubes = try await cluster.json(["queue", "list"], via: old)["tubes"]?.arrayValue ?? []
                    return tubes.contains { $0["name"] == "w" && $0["waiting"] == 1 }
                }
                try await cluster.kill9(old)
                try await cluster.untilLeader(within: 10, otherThan: old)
                try await cluster.ok(["queue", "put", "w"], input: "later")
                let outcome = try await cluster.finish(waiter, within: 15)
                #expect(try outcome.json()["body"] == "later", "\(outcome)")
            }
        }

        @Test func acknowledgedJobsSurviveKilledLeadersExactlyOnce() async throws {
            try await withCluster(3) { cluster in
                let load = PutLoad()
                let addresses = cluster.nodes.map(\.socket).joined(separator: ",")
                try await withThrowingTaskGroup { group in
                    for client in 0..<3 {
                        group.addTask { try await load.run(cluster, tube: "q", client: client, addresses: addresses) }
                    }
                    for _ in 0..<3 {
                        let before = await load.count
                        try await eventually("puts go on", within: 20) { await load.count > before + 30 }
                        let leader = try await cluster.untilLeader()
                        try await cluster.kill9(leader)
                        try await cluster.untilLeader(within: 15, otherThan: leader)
                        try await cluster.restart(leader)
                        try await cluster.untilAgreed()
                    }
                    await load.stop()
                    try await group.waitForAll()
                }
                try await load.check(cluster, tube: "q")
            }
        }

        @Test func acknowledgedJobsSurviveTheEndOfAllFiveNodes() async throws {
            try await withCluster(5) { cluster in
                let load = PutLoad()
                let addresses = cluster.nodes.map(\.socket).joined(separator: ",")
                try await withThrowingTaskGroup { group in
                    for client in 0..<3 {
                        group.addTask { try await load.run(cluster, tube: "q", client: client, addresses: addresses) }
                    }
                    try await eventually("many jobs are put", within: 30) { await load.count > 150 }
                    try await cluster.kill9(cluster.nodes)
                    await load.stop()
                    try await cluster.restart(cluster.nodes)
                    try await cluster.untilAgreed()
                    try await group.waitForAll()
                }
                #expect(await load.count > 150)
                try await load.check(cluster, tube: "q")
            }
        }

        @Test(.enabled(if: Programs.greenstalk != nil, "greenstalk of PyPI is not installed"))
        func greenstalkWorksAgainstANodeThatDoesNotLead() async throws {
            try await withCluster(3) { cluster in
                let node = try await cluster.follower()
                let script = try cluster.file(
                    "life.py",
                    """
                    import sys, greenstalk
                    address = ("127.0.0.1", int(sys.argv[1]))
                    a = greenstalk.Client(address, use="g", watch="g")
                    b = greenstalk.Client(address, use="g", watch="g")
                    one = a.put("one", priority=5); two = a.put("two", priority=1, ttr=60)
                    j = b.reserve(timeout=5); assert (j.id, j.body) == (two, "two"), j
                    k = a.reserve(timeout=5); assert (k.id, k.body) == (one, "one"), k
                    try:
                        b.reserve(timeout=0); raise SystemExit("a job too many")
                    except greenstalk.TimedOutError: pass
                    try:
                        a.delete(j); raise SystemExit("deleted what another holds")
                    except greenstalk.NotFoundError: pass
                    b.touch(j); b.bury(j)
                    assert a.stats_job(j)["state"] == "buried"
                    assert a.peek_buried().id == two
                    assert a.kick(10) == 1
                    j = b.reserve(timeout=5); assert j.id == two
                    b.delete(j); a.release(k, delay=0)
                    k = b.reserve(timeout=5); assert k.id == one
                    s = a.stats_tube("g"); assert s["total-jobs"] == 2 and s["current-jobs-reserved"] == 1, s
                    assert a.stats()["current-jobs-reserved"] == 1, a.stats()
                    assert "g" in a.tubes() and a.using() == "g" and a.watching() == ["g"]
                    # The holder's connection goes: its job is ready again.
                    b.close()
                    k = a.reserve(timeout=10); assert k.id == one and a.stats_job(k)["reserves"] >= 3
                    a.delete(k)
                    # Two consumers share what a third puts.
                    b = greenstalk.Client(address, use="g", watch="g")
                    ids = {a.put("job %d" % i) for i in range(40)}
                    got = []
                    for i in range(20):
                        for c in (a, b):
                            j = c.reserve(timeout=5); c.delete(j); got.append(j.id)
                    assert sorted(got) == sorted(ids), (got, ids)
                    d = a.put("late", delay=1); assert a.stats_job(d)["state"] == "delayed"
                    assert a.reserve(timeout=10).id == d
                    print("held")
                    """)
                let outcome = try await cluster.run(
                    program: try #require(Programs.greenstalk), [script, "\(node.queuePort)"], within: 60)
                #expect(outcome.code == 0 && outcome.stdout == "held\n", "\(outcome)")
            }
        }

        @Test func queueProtocolAnswersItsErrors() async throws {
            try await withCluster(1) { cluster in
                let connection = try RawConnection(port: cluster.nodes[0].queuePort)
                func ask(_ text: String) -> String {
                    connection.send(text)
                    return connection.receive { $0.hasSuffix("\r\n") }
                }
                #expect(ask("nonsense\r\n") == "UNKNOWN_COMMAND\r\n")
                #expect(ask("put 1 2\r\n") == "BAD_FORMAT\r\n")
                #expect(ask("put 0 0 10 2\r\nabcd\r\n").hasPrefix("EXPECTED_CRLF\r\n"))
            }
        }
    }
}
