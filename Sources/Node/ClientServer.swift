// The doors of a node: the stream port (TLS with the cluster's key), `agent.sock` (the owner of the node only) and each
// pod's socket (with that pod's authority). Every connection begins with a hello; what it may do depends on the door.
import EventLoop
import Model
import NodeCore
import Security
import Transport
import Wire

/// Accepts connections, keeps them within limits, and hands requests to the core.
final class ClientServer {
    /// Connections that have not finished their handshake and hello within this are closed.
    static let helloTimeout = TimeSpan.seconds(10)
    static let helloBytes = 4_096
    static let connectionLimit = 10_000
    /// Requests of one connection that wait for an answer.
    static let requestLimit = 8_192

    private let loop: EventLoop
    private let key: ClusterKey
    private let welcome: Welcome
    private let clusterName: String
    private let peers: PeerNetwork
    private var connections: [UInt64: Connection] = [:]
    private var nextConnection: UInt64 = 1
    /// Refusals since the last report: an outsider must not fill the log.
    private(set) var refused: UInt64 = 0
    private var listeners: [Listener] = []

    var onRequest: ((RequestID, ClientRequest, Authority) -> Void)?
    var onCancel: ((RequestID) -> Void)?
    var onConnectionClosed: ((UInt64) -> Void)?
    /// A connection asks to become a raw stream to a service, or offers or takes one. The receiver owns the link from then on.
    var onStreamFrame: ((FrameLink, FrameKind, Frame, Authority) -> Void)?

    final class Connection {
        let number: UInt64
        let link: FrameLink
        let authority: Authority?
        var open = false
        var channels: Set<UInt32> = []
        init(number: UInt64, link: FrameLink, authority: Authority?) {
            self.number = number
            self.link = link
            self.authority = authority
        }
    }

    init(loop: EventLoop, key: ClusterKey, welcome: Welcome, clusterName: String, peers: PeerNetwork) {
        self.loop = loop
        self.key = key
        self.welcome = welcome
        self.clusterName = clusterName
        self.peers = peers
    }

    /// Serves the stream port: nodes, and clients that have the key.
    func serve(streams listener: Listener) {
        listeners.append(listener)
        listener.onConnection = { [weak self] stream in
            guard let self else { return stream.close() }
            do {
                let tls = try TLSSession(role: .server, key: self.key)
                self.accept(SecureStream(loop: self.loop, stream: stream, tls: tls), authority: .operator, mayBeNode: true)
            } catch {
                stream.close()
            }
        }
    }

    /// Serves `agent.sock`: the mode of the file keeps others out, and the kernel's word for the peer's uid is checked too.
    func serve(local listener: Listener, owner: UInt32) {
        listeners.append(listener)
        listener.onConnection = { [weak self] stream in
            guard let self else { return stream.close() }
            guard let uid = stream.peerUID, uid == owner || uid == 0 else {
                self.refused += 1
                return stream.close()
            }
            self.accept(SecureStream(loop: self.loop, stream: stream, tls: nil), authority: .operator, mayBeNode: false)
        }
    }

    /// Serves one connection on a pod's socket.
    func serve(pod id: String, stream: ByteStream) {
        accept(SecureStream(loop: loop, stream: stream, tls: nil), authority: .pod(id), mayBeNode: false)
    }

    private func accept(_ stream: SecureStream, authority: Authority, mayBeNode: Bool) {
        guard connections.count < ClientServer.connectionLimit else {
            refused += 1
            return stream.close()
        }
        let number = nextConnection
        nextConnection += 1
        // Before the hello a peer may send little.
        let link = FrameLink(stream, frameLimit: ClientServer.helloBytes)
        let connection = Connection(number: number, link: link, authority: authority)
        connections[number] = connection
        let timer = LoopTimer(loop: loop)
        timer.start(after: ClientServer.helloTimeout) { [weak self, weak connection] in
            timer.close()
            if let connection, !connection.open { self?.drop(connection) }
        }
        link.onFrame = { [weak self, weak connection] frame in
            guard let self, let connection else { return }
            if connection.open {
                self.received(frame, on: connection, authority: authority)
            } else {
                timer.close()
                self.opened(frame, connection, mayBeNode: mayBeNode)
            }
        }
        link.onClose = { [weak self, weak connection] error in
            timer.close()
            guard let self, let connection else { return }
            if !connection.open { self.refused += 1 }
            self.forget(connection)
        }
        link.start()
    }

    private func opened(_ frame: Frame, _ connection: Connection, mayBeNode: Bool) {
        func refuse(_ error: CoterieError) {
            refused += 1
            connection.link.send(kind: FrameKind.refused.rawValue, payload: error.encoded)
            drop(connection)
        }
        guard frame.kind == FrameKind.hello.rawValue, let hello = try? Hello(decoding: frame.payload) else {
            return refuse(CoterieError(.badInput, "the connection did not begin with a hello"))
        }
        guard let agreed = hello.agreedProtocol else {
            return refuse(
                CoterieError(
                    .badInput,
                    "protocol \(hello.minimum) to \(hello.maximum) is not spoken here (\(Hello.minimumProtocol) to \(Hello.maximumProtocol))",
                    hint: "use the same version of coterie"))
        }
        var answer = welcome
        answer.agreedProtocol = agreed
        connection.link.raiseFrameLimit(to: Limits.frameBytes)
        switch hello.role {
        case .client:
            connection.open = true
            connection.link.send(kind: FrameKind.welcome.rawValue, payload: answer.encoded)
        case .node(let id, _, let cluster):
            guard mayBeNode else { return refuse(CoterieError(.notAllowed, "nodes connect to the stream port")) }
            guard cluster == clusterName else {
                return refuse(CoterieError(.notAllowed, "this node belongs to cluster \(clusterName), not \(cluster)"))
            }
            connections[connection.number] = nil
            connection.link.send(kind: FrameKind.welcome.rawValue, payload: answer.encoded)
            peers.adopt(connection.link, from: id)
        }
    }

    private func received(_ frame: Frame, on connection: Connection, authority: Authority) {
        let id = RequestID(connection: connection.number, channel: frame.channel)
        switch FrameKind(rawValue: frame.kind) {
        case .request:
            let request: ClientRequest
            do { request = try ClientRequest(decoding: frame.payload) } catch {
                return respond(id, .failure(CoterieError(.badInput, "malformed request: \(error)")))
            }
            guard connection.channels.count < ClientServer.requestLimit else {
                return respond(id, .failure(CoterieError(.busy, "more than \(ClientServer.requestLimit) requests on one connection")))
            }
            guard connection.channels.insert(frame.channel).inserted else {
                return drop(connection)
            }
            onRequest?(id, request, authority)
        case .cancel:
            if connection.channels.remove(frame.channel) != nil { onCancel?(id) }
        case .dial, .listen, .accept:
            guard let kind = FrameKind(rawValue: frame.kind) else { return }
            connections[connection.number] = nil
            onConnectionClosed?(connection.number)
            onStreamFrame?(connection.link, kind, frame, authority)
        default: drop(connection)
        }
    }

    func respond(_ id: RequestID, _ response: ClientResponse) {
        guard let connection = connections[id.connection] else { return }
        connection.channels.remove(id.channel)
        var response = response
        if case .success(let bytes) = response, bytes.count > Limits.frameBytes - 64 {
            response = .failure(CoterieError(.tooLarge, "the answer is larger than \(Limits.frameBytes >> 20) MiB", hint: "ask for less at once"))
        }
        connection.link.send(kind: FrameKind.response.rawValue, channel: id.channel, payload: response.encoded)
    }

    /// One item of a watch. A watcher that does not read is cut off rather than remembered without bound.
    func item(_ id: RequestID, _ bytes: [UInt8]) {
        guard let connection = connections[id.connection], connection.channels.contains(id.channel) else { return }
        guard connection.link.stream.queuedBytes < 8 << 20 else { return drop(connection) }
        connection.link.send(kind: FrameKind.item.rawValue, channel: id.channel, payload: bytes)
    }

    func end(_ id: RequestID, _ error: CoterieError?) {
        guard let connection = connections[id.connection], connection.channels.remove(id.channel) != nil else { return }
        connection.link.send(kind: FrameKind.end.rawValue, channel: id.channel, payload: error?.encoded ?? [])
    }

    var connectionCount: Int { connections.count }

    private func drop(_ connection: Connection) {
        connection.link.close()
        forget(connection)
    }

    private func forget(_ connection: Connection) {
        guard connections.removeValue(forKey: connection.number) != nil else { return }
        onConnectionClosed?(connection.number)
    }

    func stop() {
        for listener in listeners { listener.close() }
        listeners = []
        for connection in connections.values { connection.link.close() }
        connections = [:]
    }
}
