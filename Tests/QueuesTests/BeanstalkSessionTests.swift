// The protocol's session: recorded conversations, and what they do not show.
import Model
import Queues
import Testing
import Wire

@Suite struct BeanstalkSessionTests {
    @Test(arguments: ["life", "waiting", "errors"]) func `conversations go as with beanstalkd`(name: String) throws {
        let transcript = try Transcript(named: name)
        var world = SessionWorld()
        for (line, step) in transcript.steps {
            switch step {
            case .send(let who, let bytes): world.send(who, bytes)
            case .endSending(let who): world.endSending(who)
            case .wait(let seconds): world.wait(.milliseconds(Int64(seconds * 1_000)))
            case .expect(let who, let reply):
                let got = Transcript.takeReply(&world.output[who, default: []])
                #expect(Transcript.comparable(got ?? []) == reply, "\(name).txt:\(line)")
            case .expectNothing(let who): #expect(world.output[who, default: []].isEmpty, "\(name).txt:\(line)")
            case .expectClosed(let who):
                #expect(world.closed.contains(who), "\(name).txt:\(line)")
                world.sessions[who] = nil
            }
        }
        for name in world.names { #expect(world.takeText(name).isEmpty) }
    }

    @Test(arguments: 1...7) func `input in pieces of any size has the same replies`(size: Int) {
        let input =
            Array(
                "use t\r\nput 1 0 5 4\r\n\r\n\r\n\r\nput 0 0 5 1\r\nxy\r\nbad\r\npeek-ready\r\nput 0 0 1 99999\r\n".utf8
            )
            + Array(repeating: UInt8(ascii: "z"), count: 100_001) + Array("list-tube-used\r\n".utf8)
        var world = SessionWorld()
        for start in stride(from: 0, to: input.count, by: size) {
            world.send("A", Array(input[start..<min(start + size, input.count)]))
        }
        #expect(
            world.takeText("A") == "USING t\r\nINSERTED 1\r\nEXPECTED_CRLF\r\nUNKNOWN_COMMAND\r\n"
                + "FOUND 1 4\r\n\r\n\r\n\r\nJOB_TOO_BIG\r\nUSING t\r\n")
    }

    @Test func `puts that were pipelined one after another are one proposal`() {
        var world = SessionWorld()
        world.send("A", "put 1 0 5 1\r\na\r\nput 2 0 5 1\r\nb\r\nuse t\r\nput 3 0 5 1\r\nc\r\nput 4 0 5 1\r\n")
        #expect(world.takeText("A") == "INSERTED 1\r\nINSERTED 2\r\nUSING t\r\nINSERTED 3\r\n")
        let sizes = world.proposed.map { if case .put(let jobs) = $0 { jobs.count } else { 0 } }
        #expect(sizes == [2, 1])
        world.send("A", "d\r\n")
        #expect(world.takeText("A") == "INSERTED 4\r\n")
        #expect(world.machine.job(2)?.tube == "default")
        #expect(world.machine.job(3)?.tube == "t")
    }

    @Test func `of pipelined puts over a tube's limit those that fit are taken`() {
        var world = SessionWorld()
        _ = world.machine.apply(.setTube(name: "default", settings: ["max-jobs": "2"]), index: 1, now: 0)
        world.send("A", String(repeating: "put 1 0 5 1\r\na\r\n", count: 3) + "list-tube-used\r\n")
        #expect(world.takeText("A") == "INSERTED 1\r\nINSERTED 2\r\nOUT_OF_MEMORY\r\nUSING default\r\n")
    }

    @Test func `one command is under way at a time, and the input behind it is bounded`() {
        var session = BeanstalkSession(holder: 1)
        session.receive(Array("delete 1\r\ndelete 2\r\n".utf8)[...])
        #expect(session.takeActions() == [.command(id: 1, .delete(id: 1, lease: nil), wait: nil)])
        #expect(session.isHungry)
        session.receive(Array(repeating: UInt8(ascii: "x"), count: 70_000)[...])
        #expect(!session.isHungry)
        session.complete(99, with: .result(.done))
        #expect(session.takeActions().isEmpty)
        session.complete(1, with: .result(.done))
        #expect(
            session.takeActions() == [
                .send(Array("DELETED\r\n".utf8)), .command(id: 2, .delete(id: 2, lease: nil), wait: nil),
            ])
        session.complete(2, with: .result(.notFound))
        #expect(session.isHungry)
    }

    @Test func `nothing is begun while the output is blocked`() {
        var session = BeanstalkSession(holder: 1)
        session.setOutputBlocked(true)
        session.receive(Array("stats\r\n".utf8)[...])
        #expect(session.takeActions().isEmpty)
        session.setOutputBlocked(false)
        #expect(session.takeActions() == [.query(id: 1, .stats)])
    }

    @Test func `without a quorum the connection closes without a reply, and its jobs are given back`() {
        var session = BeanstalkSession(holder: 1)
        session.receive(Array("reserve\r\nuse x\r\n".utf8)[...])
        #expect(
            session.takeActions() == [
                .command(id: 1, .reserve(tubes: ["default"], holder: 1, count: 1), wait: BeanstalkSession.waitForever)
            ])
        #expect(session.mayHoldJobs)
        session.complete(1, with: .unavailable)
        #expect(session.takeActions() == [.close])
        #expect(session.isClosed)
        #expect(session.mayHoldJobs)
    }

    @Test func `the first of two waiters is served first`() {
        var world = SessionWorld()
        world.send("A", "reserve\r\n")
        world.send("B", "reserve\r\n")
        world.send("C", "put 0 0 9 1\r\na\r\n")
        #expect(world.takeText("A") == "RESERVED 1 1\r\na\r\n")
        #expect(world.takeText("B").isEmpty)
        world.send("C", "put 0 0 9 1\r\nb\r\n")
        #expect(world.takeText("B") == "RESERVED 2 1\r\nb\r\n")
    }

    @Test func `a worker deletes its job after the lease ended, unless another has it`() {
        var world = SessionWorld()
        world.send("A", "put 0 0 1 1\r\na\r\nreserve\r\n")
        world.wait(.seconds(2))
        world.send("A", "delete 1\r\n")
        #expect(world.takeText("A") == "INSERTED 1\r\nRESERVED 1 1\r\na\r\nDELETED\r\n")
        world.send("A", "put 0 0 1 1\r\na\r\nreserve\r\n")
        world.wait(.seconds(2))
        world.send("B", "reserve\r\n")
        world.send("A", "touch 2\r\ndelete 2\r\n")
        #expect(world.takeText("A") == "INSERTED 2\r\nRESERVED 2 1\r\na\r\nNOT_FOUND\r\nNOT_FOUND\r\n")
    }

    @Test func `draining refuses puts only`() {
        var world = SessionWorld()
        world.connect("A")
        world.sessions["A"]?.isDraining = true
        world.send("A", "put 0 0 1 1\r\na\r\nlist-tube-used\r\n")
        #expect(world.takeText("A") == "DRAINING\r\nUSING default\r\n")
    }

    @Test func `what was sent before the client ended is still answered`() {
        var world = SessionWorld()
        world.send("A", "put 0 0 9 1\r\na\r\nreserve\r\ndelete 1\r\nreserve\r\ndelete")
        world.endSending("A")
        #expect(world.takeText("A") == "INSERTED 1\r\nRESERVED 1 1\r\na\r\nDELETED\r\nTIMED_OUT\r\n")
        #expect(world.closed == ["A"])
    }

    @Test func `a job in a JSON document is found as well`() {
        var session = BeanstalkSession(holder: 1)
        session.receive(Array("peek 7\r\npeek 8\r\n".utf8)[...])
        session.complete(1, with: .document(["id": 7, "body": "text"]))
        session.complete(2, with: .document(["id": 8, "bodyBase64": "/wAB"]))
        let sent = session.takeActions().flatMap { if case .send(let bytes) = $0 { bytes } else { [UInt8]() } }
        #expect(sent == Array("FOUND 7 4\r\ntext\r\nFOUND 8 3\r\n".utf8) + [0xFF, 0, 1, 13, 10])
    }

    @Test(arguments: 0..<20) func `noise is answered or ignored, and never more is kept than is bounded`(seed: UInt64) {
        var generator = SeededGenerator(seed: seed)
        let words = [
            "put ", "0 ", "1 ", "\r\n", "\r", "\n", "reserve", "reserve-with-timeout ", "delete ", "release ", "bury ",
            "touch ", "kick ",
            "stats", "stats-job ", "use ", "watch ", "ignore ", "a", "5", "pause-tube ", "peek-ready", "list-tubes",
            "\0", "-", "é",
        ]
        var world = SessionWorld()
        for _ in 0..<600 {
            let text = (0..<Int.random(in: 1..<9, using: &generator)).map { _ in
                words.randomElement(using: &generator) ?? ""
            }.joined()
            world.send(["A", "B"].randomElement(using: &generator) ?? "A", text)
            if generator.chance(0.05) { world.wait(.milliseconds(300)) }
        }
        for session in world.sessions.values {
            #expect(session.isClosed || session.outstanding == nil || session.isWaiting)
        }
        world.send("C", "stats\r\n")
        #expect(world.takeText("C").hasPrefix("OK "))
    }
}
