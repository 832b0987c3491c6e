// A node that says what a test wants: the server's side of the stream protocol over a real socket, without a cluster.
import EventLoop
import Glibc
import Model
import NodeCore
import Security
import Testing
import Transport
import Wire

/// Runs a test's body on a loop of its own, whose thread the caller's becomes until the body returns.
func onLoop(_ body: @escaping @Sendable (EventLoop) async throws -> Void) throws {
    let outcome = Outcome()
    let loop = try EventLoop()
    let box = Transfer(loop)
    Task(executorPreference: loop.taskExecutor) {
        let loop = box.value
        do { try await body(loop) } catch { outcome.error = error }
        loop.stop()
    }
    loop.run()
    loop.close()
    if let error = outcome.error { throw error }
}

/// Used on the loop's thread only, which is the one that made it.
private struct Transfer<Value>: @unchecked Sendable {
    let value: Value
    init(_ value: Value) { self.value = value }
}

private final class Outcome: @unchecked Sendable {
    var error: (any Error)?
}

final class FakeNode {
    /// One accepted connection.
    final class Connection {
        let link: FrameLink
        var isWelcome = false
        init(_ link: FrameLink) { self.link = link }

        func succeed(_ channel: UInt32, _ bytes: [UInt8]) {
            link.send(
                kind: FrameKind.response.rawValue, channel: channel, payload: ClientResponse.success(bytes).encoded)
        }
        func fail(_ channel: UInt32, _ error: CoterieError) {
            link.send(
                kind: FrameKind.response.rawValue, channel: channel, payload: ClientResponse.failure(error).encoded)
        }
    }

    private let loop: EventLoop
    private let key: ClusterKey?
    private let listener: Listener
    private(set) var connections: [Connection] = []
    private(set) var connectionCount = 0
    var onRequest: ((ClientRequest, UInt32, Connection) -> Void)?
    var onFrame: ((FrameKind, Frame, Connection) -> Void)?

    /// On a Unix socket without a key, else on a free port of the loopback interface.
    init(_ loop: EventLoop, key: ClusterKey? = nil) throws {
        self.loop = loop
        self.key = key
        let address = key == nil ? FakeNode.freshSocket() : .loopback(port: 0)
        listener = try Listener(loop: loop, bind: address)
        self.address = listener.localAddress ?? address
        listener.onConnection = { [weak self] stream in self?.accept(stream) }
    }

    let address: SocketAddress

    static func freshSocket() -> SocketAddress {
        var system = SystemRandomNumberGenerator()
        return SocketAddress(
            host: .unix(path: "/tmp/coterie-test-\(getpid())-\(hexadecimal(system.next())).sock"), port: 0)
    }

    /// Stops listening and cuts everything.
    func stop() {
        listener.close()
        cut()
        if case .unix(let path) = address.host { unlink(path) }
    }

    func cut() {
        for connection in connections { connection.link.close() }
        connections = []
    }

    private func accept(_ stream: ByteStream) {
        do {
            let tls = try key.map { try TLSSession(role: .server, key: $0) }
            let connection = Connection(FrameLink(SecureStream(loop: loop, stream: stream, tls: tls)))
            connections.append(connection)
            connectionCount += 1
            connection.link.onFrame = { [weak self, weak connection] frame in
                if let connection { self?.received(frame, connection) }
            }
            connection.link.start()
        } catch { stream.close() }
    }

    private func received(_ frame: Frame, _ connection: Connection) {
        guard let kind = FrameKind(rawValue: frame.kind) else { return }
        switch kind {
        case .hello:
            #expect((try? Hello(decoding: frame.payload))?.role == .client)
            connection.isWelcome = true
            let welcome = Welcome(agreedProtocol: 1, node: NodeID(high: 1, low: 2), name: "fake")
            connection.link.send(kind: FrameKind.welcome.rawValue, payload: welcome.encoded)
        case .request:
            #expect(connection.isWelcome)
            guard let request = try? ClientRequest(decoding: frame.payload) else {
                Issue.record("malformed request")
                return
            }
            onRequest?(request, frame.channel, connection)
        default: onFrame?(kind, frame, connection)
        }
    }
}

extension ClientRequest {
    var command: ClientCommand? { if case .command(let command) = self { command } else { nil } }
}

/// The error that `body` throws; nil also for one that is not ours.
nonisolated(nonsending) func failure<T>(_ body: nonisolated(nonsending) () async throws -> T) async -> CoterieError? {
    do {
        _ = try await body()
        return nil
    } catch { return error as? CoterieError }
}
