import EventLoop
import Model
import NodeCore
import Security
import Testing
import Transport
import Wire

@testable import Client

/// What a node does with the frames of services: keeps listeners and joins diallers to them.
private final class Switchboard {
    private var listeners: [String: FakeNode.Connection] = [:]
    private var dialling: [UInt64: FakeNode.Connection] = [:]
    private var nextToken: UInt64 = 1
    private(set) var registrations = 0
    var refuses: CoterieError?

    init(_ node: FakeNode) {
        node.onFrame = { [weak self] kind, frame, connection in
            var reader = ByteReader(frame.payload)
            do { try self?.handle(kind, &reader, connection) } catch { Issue.record(error) }
        }
    }

    private func handle(_ kind: FrameKind, _ reader: inout ByteReader, _ connection: FakeNode.Connection) throws {
        if let refuses { return connection.link.send(kind: FrameKind.refused.rawValue, payload: refuses.encoded) }
        switch kind {
        case .listen:
            listeners[try reader.string(max: 200)] = connection
            try reader.finish()
            registrations += 1
            connection.link.send(kind: FrameKind.connected.rawValue)
        case .dial:
            let service = try reader.string(max: 200)
            #expect(TimeSpan(nanoseconds: try reader.i64()) > .zero)
            guard let listener = listeners[service] else {
                let error = CoterieError(.notFound, "nobody listens for \(service)")
                return connection.link.send(kind: FrameKind.refused.rawValue, payload: error.encoded)
            }
            dialling[nextToken] = connection
            var writer = ByteWriter()
            writer.u64(nextToken)
            nextToken += 1
            listener.link.send(kind: FrameKind.incoming.rawValue, payload: writer.bytes)
        case .accept:
            guard let dialler = dialling.removeValue(forKey: try reader.u64()) else {
                Issue.record("unknown token")
                return
            }
            dialler.link.send(kind: FrameKind.connected.rawValue)
            connection.link.send(kind: FrameKind.connected.rawValue)
            let (a, pendingA) = dialler.link.becomeRaw()
            let (b, pendingB) = connection.link.becomeRaw()
            _ = Relay(a, pendingA: pendingA, b, pendingB: pendingB)
        default: Issue.record("unexpected frame")
        }
    }
}

@Suite struct ServiceStreamTests {
    private func client(_ loop: EventLoop, _ node: FakeNode, _ key: ClusterKey, timeout: TimeSpan = .seconds(20))
        -> ClusterClient
    {
        ClusterClient(loop: loop, endpoints: [node.address], key: key, origin: "a test", timeout: timeout)
    }

    @Test func twoServicesAreJoinedAndEachHalfEndsByItself() throws {
        try onLoop { loop in
            let key = try ClusterKey.random()
            let node = try FakeNode(loop, key: key)
            let switchboard = Switchboard(node)
            let server = client(loop, node, key)
            let dialler = client(loop, node, key)
            var accepted: [RawStream] = []
            let listener = try await server.listen("echo") { stream in
                accepted.append(stream)
                stream.start {
                    stream.write($0)
                } onEnd: {
                    stream.shutdown()
                } onClose: { _ in
                }
            }
            #expect(listener.isRegistered && switchboard.registrations == 1)

            let stream = try await dialler.dial("echo", timeout: .seconds(10))
            let sent = (0..<700_000).map { UInt8(truncatingIfNeeded: $0 &* 31) }
            var heard: [UInt8] = []
            // Written in parts, so that the limits of buffers are met on the way.
            for part in stride(from: 0, to: sent.count, by: 100_000) { stream.write(sent[part..<part + 100_000]) }
            stream.shutdown()
            while let bytes = try await stream.read() { heard += bytes }
            #expect(heard == sent)
            stream.close()
            listener.close()
            #expect(accepted.count == 1)
            accepted[0].close()
            server.close()
            dialler.close()
            node.stop()
        }
    }

    @Test func aServiceThatNobodyOffersIsNotFound() throws {
        try onLoop { loop in
            let key = try ClusterKey.random()
            let node = try FakeNode(loop, key: key)
            let switchboard = Switchboard(node)
            let dialler = client(loop, node, key)
            #expect(
                await failure { try await dialler.dial("echo", timeout: .seconds(10)) }?.message
                    == "nobody listens for echo")
            switchboard.refuses = CoterieError(.noLeader, "the cluster has no leader")
            #expect(await failure { try await dialler.dial("echo", timeout: .milliseconds(300)) }?.code == .noLeader)
            switchboard.refuses = CoterieError(.notAllowed, "not from a pod")
            #expect(await failure { try await dialler.listen("echo") { _ in } }?.code == .notAllowed)
            dialler.close()
            node.stop()
        }
    }

    @Test func aListenerRegistersAgainWhenItsConnectionBreaks() throws {
        try onLoop { loop in
            let key = try ClusterKey.random()
            let node = try FakeNode(loop, key: key)
            let switchboard = Switchboard(node)
            let server = client(loop, node, key)
            var accepted: [RawStream] = []
            let listener = try await server.listen("echo") { stream in
                accepted.append(stream)
                stream.write("hi".utf8)
                stream.shutdown()
            }
            node.cut()
            while switchboard.registrations < 2 || !listener.isRegistered { await loop.sleep(.milliseconds(5)) }
            let stream = try await server.dial("echo", timeout: .seconds(10))
            #expect(try await stream.read() == Array("hi".utf8))
            #expect(try await stream.read() == nil)
            stream.close()
            listener.close()
            server.close()
            node.stop()
        }
    }

    @Test func aStreamThatIsCutIsAnErrorAndNotAnEnd() throws {
        try onLoop { loop in
            let key = try ClusterKey.random()
            let node = try FakeNode(loop, key: key)
            node.onFrame = { _, _, connection in
                connection.link.send(kind: FrameKind.connected.rawValue)
                connection.link.stream.write("half of it".utf8)
                connection.link.stream.flush()
                // Below TLS, as an attacker or a crash would.
                connection.link.stream.stream.close()
            }
            let dialler = client(loop, node, key)
            let stream = try await dialler.dial("echo", timeout: .seconds(10))
            #expect(try await stream.read() == Array("half of it".utf8))
            #expect(await failure { try await stream.read() }?.code == .unavailable)
            stream.close()
            dialler.close()
            node.stop()
        }
    }
}
