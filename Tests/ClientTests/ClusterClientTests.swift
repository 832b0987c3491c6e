import EventLoop
import Model
import NodeCore
import Queues
import Security
import Testing
import Transport
import Wire

@testable import Client

private let kick = StateCommand.queue(.kick(tube: "t", count: 1))
private func kicked(_ n: Int) -> [UInt8] { StateResult.queue(.kicked(n)).encoded }
private func count(_ result: StateResult) -> Int? { if case .queue(.kicked(let n)) = result { n } else { nil } }

private func client(_ loop: EventLoop, _ nodes: [FakeNode], key: ClusterKey? = nil, timeout: TimeSpan = .seconds(20))
    -> ClusterClient
{
    ClusterClient(loop: loop, endpoints: nodes.map(\.address), key: key, origin: "a test", timeout: timeout, seed: 1)
}

@Suite struct ClusterClientTests {
    @Test func queriesAndOrdersAreAnsweredWithDocuments() throws {
        try onLoop { loop in
            let node = try FakeNode(loop)
            node.onRequest = { request, channel, connection in
                switch request {
                case .query(let path):
                    connection.succeed(channel, JSONValue.object([.init("path", .string(path))]).utf8)
                case .admin(let order): connection.succeed(channel, order.utf8)
                default: connection.fail(channel, CoterieError(.badInput, "no"))
                }
            }
            let client = client(loop, [node])
            #expect(try await client.query("status") == ["path": "status"])
            #expect(try await client.admin(["verb": "transfer"]) == ["verb": "transfer"])
            #expect(await failure { try await client.command(kick) } == CoterieError(.badInput, "no"))
            #expect(node.connectionCount == 1)
            #expect(loop.isOnLoop, "no hop to another thread")
            client.close()
            #expect(await failure { try await client.query("status") }?.code == .interrupted)
            node.stop()
        }
    }

    @Test func aNodeOnTheStreamPortIsReachedWithTheKey() throws {
        try onLoop { loop in
            let key = try ClusterKey([UInt8](repeating: 1, count: 32))
            let node = try FakeNode(loop, key: key)
            node.onRequest = { _, channel, connection in connection.succeed(channel, kicked(3)) }
            let good = client(loop, [node], key: key)
            #expect(count(try await good.command(kick)) == 3)
            good.close()

            let wrong = client(loop, [node], key: try ClusterKey([UInt8](repeating: 2, count: 32)))
            let refused = await failure { try await wrong.query("status") }
            #expect(refused?.code == .notAllowed)
            #expect(refused?.message == "the two sides have different cluster keys")
            wrong.close()

            let without = client(loop, [node])
            let missing = await failure { try await without.query("status") }
            #expect(missing?.code == .notAllowed)
            #expect(missing?.hint == "pass --key FILE or COTERIE_KEY_FILE")
            without.close()
            node.stop()
        }
    }

    @Test func whenNobodyListensTheErrorNamesTheAddressesAndWhatToDo() throws {
        try onLoop { loop in
            let socket = FakeNode.freshSocket()
            let gone = try FakeNode(loop, key: try .random())
            let port = gone.address
            gone.stop()
            let client = ClusterClient(
                loop: loop, endpoints: [socket, port], key: try .random(), origin: "the default address",
                timeout: .seconds(20))
            let started = loop.now
            let error = await failure { try await client.command(kick) }
            #expect(error?.code == .noCluster)
            #expect(error?.message.contains("\(socket) (") == true)
            #expect(error?.message.contains("\(port) (connection refused)") == true)
            #expect(error?.message.hasSuffix("the address comes from the default address") == true)
            #expect(error?.hint == "start one with: coterie up")
            #expect(loop.now - started < .seconds(10), "nobody is waited for")
            client.close()
        }
    }

    @Test func aPatientClientWaitsForItsNode() throws {
        try onLoop { loop in
            let node = try FakeNode(loop)
            guard case .unix(let path) = node.address.host else { return }
            node.stop()
            let client = ClusterClient(
                loop: loop, endpoints: [node.address], key: nil, origin: "a test", timeout: .milliseconds(300),
                givesUpOnNobody: false)
            let started = loop.now
            let error = await failure { try await client.command(kick) }
            #expect(error?.code == .noCluster)
            #expect(error?.message.contains(path) == true)
            #expect(loop.now - started >= .milliseconds(300))
            client.close()
        }
    }

    @Test func manyCommandsFlyAtOnceInOneSession() throws {
        try onLoop { loop in
            let node = try FakeNode(loop)
            var held: [(UInt32, ClientCommand, FakeNode.Connection)] = []
            node.onRequest = { request, channel, connection in
                guard let command = request.command else { return }
                held.append((channel, command, connection))
                guard held.count == 100 else { return }
                // Answered in the opposite order.
                for (channel, command, connection) in held.reversed() {
                    connection.succeed(channel, kicked(Int(command.sequence)))
                }
            }
            let client = client(loop, [node])
            var answers: [Int] = []
            _ = await waitFor { (done: @escaping (Bool) -> Void) in
                for i in 1...100 {
                    client.command(kick) { result in
                        #expect((try? result.get()).flatMap(count) == i)
                        answers.append(i)
                        if answers.count == 100 { done(true) }
                    }
                }
            }
            #expect(answers == (1...100).reversed())
            #expect(Set(held.map(\.1.session)).count == 1)
            #expect(held.map(\.1.sequence) == (1...100).map { UInt64($0) })
            #expect(held.allSatisfy { $0.1.firstOutstanding == 1 })
            node.onRequest = { request, channel, connection in
                connection.succeed(channel, kicked(Int(request.command?.firstOutstanding ?? 0)))
            }
            #expect(count(try await client.command(kick)) == 101)
            client.close()
            node.stop()
        }
    }

    @Test func afterALostConnectionACommandGoesToTheNextNodeWithItsSessionAndSequence() throws {
        try onLoop { loop in
            let first = try FakeNode(loop)
            let second = try FakeNode(loop)
            var seen: [ClientCommand] = []
            first.onRequest = { request, _, connection in
                if let command = request.command { seen.append(command) }
                connection.link.close()
            }
            second.onRequest = { request, channel, connection in
                if let command = request.command { seen.append(command) }
                connection.succeed(channel, kicked(9))
            }
            let client = client(loop, [first, second])
            #expect(count(try await client.command(kick)) == 9)
            #expect(seen.count == 2)
            #expect(seen[0].session == seen[1].session)
            #expect(seen[0].sequence == 1 && seen[1].sequence == 1)
            // The node that works is remembered.
            #expect(count(try await client.command(kick)) == 9)
            #expect(seen[2].sequence == 2 && seen[2].session == seen[0].session)
            #expect(first.connectionCount == 1)
            client.close()
            first.stop()
            second.stop()
        }
    }

    @Test func withoutALeaderTheNextNodeIsAsked() throws {
        try onLoop { loop in
            let first = try FakeNode(loop)
            let second = try FakeNode(loop)
            var refused: [ClientCommand] = []
            first.onRequest = { request, channel, connection in
                if let command = request.command { refused.append(command) }
                connection.fail(channel, CoterieError(.noLeader, "the cluster has no leader"))
            }
            var taken: [ClientCommand] = []
            second.onRequest = { request, channel, connection in
                if let command = request.command { taken.append(command) }
                connection.succeed(channel, kicked(1))
            }
            let client = client(loop, [first, second])
            #expect(count(try await client.command(kick)) == 1)
            #expect(refused.count == 1 && taken.count == 1)
            #expect(refused.first?.session == taken.first?.session && refused.first?.sequence == taken.first?.sequence)
            client.close()
            first.stop()
            second.stop()
        }
    }

    @Test func aClusterThatNeverHasALeaderIsSaidToHaveNone() throws {
        try onLoop { loop in
            let node = try FakeNode(loop)
            var asked = 0
            node.onRequest = { _, channel, connection in
                asked += 1
                connection.fail(channel, CoterieError(.noLeader, "the cluster has no leader"))
            }
            let client = client(loop, [node], timeout: .milliseconds(400))
            #expect(
                await failure { try await client.command(kick) } == CoterieError(.noLeader, "the cluster has no leader")
            )
            #expect(asked > 1)
            client.close()
            node.stop()
        }
    }

    @Test func aCommandThatWasSentAndNotAnsweredHasAnUnknownOutcome() throws {
        try onLoop { loop in
            let node = try FakeNode(loop)
            var cancelled = 0
            node.onFrame = { kind, _, _ in if kind == .cancel { cancelled += 1 } }
            let client = client(loop, [node], timeout: .milliseconds(200))
            let error = await failure { try await client.command(kick) }
            #expect(error?.code == .outcomeUnknown)
            #expect(error?.exitCode == .deadline)
            // A read changes nothing, so there is nothing unknown about it.
            #expect(await failure { try await client.query("status") }?.code == .deadline)
            // The second cancel is sent before the client closes.
            await loop.sleep(.milliseconds(1))
            #expect(cancelled >= 1)
            client.close()
            node.stop()
        }
    }

    @Test func anOrderIsNeverRepeatedOnceItWasSent() throws {
        try onLoop { loop in
            let node = try FakeNode(loop)
            var asked = 0
            node.onRequest = { _, _, connection in
                asked += 1
                connection.link.close()
            }
            let client = client(loop, [node])
            let error = await failure { try await client.admin(["verb": "remove"]) }
            #expect(error?.code == .outcomeUnknown)
            #expect(asked == 1)
            client.close()
            node.stop()
        }
    }

    @Test func aWaitIsAddedToTheDeadlineAndHoldsNobodyBack() throws {
        try onLoop { loop in
            let node = try FakeNode(loop)
            var waiting: (UInt32, FakeNode.Connection, ClientCommand)?
            var marks: [UInt64] = []
            node.onRequest = { request, channel, connection in
                guard let command = request.command else { return }
                if command.wait != nil { return waiting = (channel, connection, command) }
                marks.append(command.firstOutstanding)
                connection.succeed(channel, kicked(0))
            }
            let client = client(loop, [node], timeout: .milliseconds(100))
            var result: Result<StateResult, CoterieError>?
            let started = loop.now
            client.command(kick, wait: .milliseconds(400)) { result = $0 }
            for _ in 0..<3 { _ = try await client.command(kick) }
            #expect(marks == [1, 2, 3])
            #expect(waiting?.2.wait.map { $0 <= .milliseconds(400) && $0 > .milliseconds(200) } == true)
            while loop.now - started < .milliseconds(250) { await loop.sleep(.milliseconds(10)) }
            #expect(result == nil, "the time-out alone has passed")
            if let (channel, connection, _) = waiting { connection.succeed(channel, kicked(5)) }
            while result == nil { await loop.sleep(.milliseconds(1)) }
            #expect((try? result?.get()).flatMap(count) == 5)
            client.close()
            node.stop()
        }
    }

    @Test func aWatchDeliversUntilItsEnd() throws {
        try onLoop { loop in
            let node = try FakeNode(loop)
            node.onRequest = { request, channel, connection in
                guard case .watch(let path) = request else { return }
                #expect(path == "events")
                for i in Int64(0)..<3 {
                    connection.link.send(
                        kind: FrameKind.item.rawValue, channel: channel, payload: JSONValue.int(i).utf8)
                }
                connection.link.send(kind: FrameKind.end.rawValue, channel: channel)
            }
            let client = client(loop, [node])
            var items: [JSONValue] = []
            try await client.watch("events") { items.append($0) }
            #expect(items == [0, 1, 2])
            node.onRequest = { _, channel, connection in
                connection.link.send(kind: FrameKind.item.rawValue, channel: channel, payload: JSONValue.int(7).utf8)
                connection.link.send(
                    kind: FrameKind.end.rawValue, channel: channel, payload: CoterieError(.notFound, "gone").encoded)
            }
            #expect(
                await failure { try await client.watch("events") { items.append($0) } }
                    == CoterieError(.notFound, "gone"))
            #expect(items.last == 7)
            client.close()
            node.stop()
        }
    }

    @Test func aWatchWhoseConnectionBreaksEndsAndACancelledOneIsSilent() throws {
        try onLoop { loop in
            let node = try FakeNode(loop)
            var cancelled: UInt32?
            node.onFrame = { kind, frame, _ in if kind == .cancel { cancelled = frame.channel } }
            node.onRequest = { _, channel, connection in
                connection.link.send(kind: FrameKind.item.rawValue, channel: channel, payload: JSONValue.int(1).utf8)
            }
            let client = client(loop, [node])
            let end: CoterieError? = await waitFor { done in
                _ = client.startWatch("events") { _ in
                    node.cut()
                } onEnd: {
                    done($0)
                }
            }
            #expect(end?.code == .unavailable)
            var items = 0
            var handle: WatchHandle?
            handle = client.startWatch("events") { _ in
                items += 1
                handle?.cancel()
            } onEnd: { _ in
                Issue.record("a cancelled watch has no end")
            }
            while cancelled == nil { await loop.sleep(.milliseconds(1)) }
            #expect(items == 1)
            client.close()
            node.stop()
        }
    }

    @Test func theSessionsAreEndedOnce() throws {
        try onLoop { loop in
            let node = try FakeNode(loop)
            var ended: [SessionID] = []
            var used: Set<SessionID> = []
            node.onRequest = { request, channel, connection in
                guard let command = request.command else { return }
                if case .endSession = command.command {
                    ended.append(command.session)
                    return connection.succeed(channel, StateResult.done.encoded)
                }
                used.insert(command.session)
                connection.succeed(channel, kicked(0))
            }
            let client = client(loop, [node])
            _ = try await client.command(kick)
            _ = try await client.command(kick, wait: .milliseconds(10))
            await client.endSession()
            await client.endSession()
            #expect(ended.count == 2 && Set(ended) == used)
            client.close()
            node.stop()
        }
    }
}
