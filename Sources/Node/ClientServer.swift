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
    /// The owner of the node gets in even when everybody else has used the limit up.
    static let localReserve = 256
    /// Connections to the stream port that have not said who they are. One more, and the oldest of them goes: strangers, who can
    /// only connect and wait, keep nobody out who has the key.
    var strangerLimit = 512
    /// Requests of one connection that wait for an answer, and of all connections of one pod.
    static let requestLimit = 8_192
    /// Streams of one pod, whatever they are used for: requests, queues, services.
    var podStreamLimit = 2_048
    /// This many connections of one pod may send frames of full size; the others, which are there for services, small ones.
    static let podLargeLimit = 64
    static let smallFrameBytes = 64 << 10
    /// Bytes of answers that wait for a peer that does not read: it is heard no further before they have left, and cut off when
    /// there are more than this.
    static let answerLimit = 64 << 20

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
    private var strangers: Set<UInt64> = []
    private var pods: [String: PodUse] = [:]

    /// What one pod has in use.
    private struct PodUse {
        var streams = 0
        var requests = 0
        var large = 0
    }

    var onRequest: ((RequestID, ClientRequest, Authority) -> Void)?
    var onCancel: ((RequestID) -> Void)?
    var onConnectionClosed: ((UInt64) -> Void)?
    /// A connection asks to become a raw stream to a service, or offers or takes one. The receiver owns the link from then on.
    var onStreamFrame: ((FrameLink, FrameKind, Frame, Authority) -> Void)?

    final class Connection {
        let number: UInt64
        let link: FrameLink
        let authority: Authority
        var open = false
        /// Counted among the pod's connections for frames of full size.
        var isLarge = false
        var channels: Set<UInt32> = []
        init(number: UInt64, link: FrameLink, authority: Authority) {
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
                // The hosts of peers and clients may vanish without a word.
                stream.probeSilence()
                let tls = try TLSSession(role: .server, key: self.key)
                self.accept(
                    SecureStream(loop: self.loop, stream: stream, tls: tls), authority: .operator, mayBeNode: true)
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
            guard let uid = stream.peerUID, uid == 0 || uid == owner && !PodOrigin.isPod(stream) else {
                self.refused += 1
                return stream.close()
            }
            let stream = SecureStream(loop: self.loop, stream: stream, tls: nil)
            self.accept(stream, authority: .operator, mayBeNode: false, reserve: ClientServer.localReserve)
        }
    }

    /// Serves one connection on a pod's socket.
    func serve(pod id: String, stream: ByteStream) {
        guard pods[id]?.streams ?? 0 < podStreamLimit else {
            refused += 1
            return stream.close()
        }
        pods[id, default: PodUse()].streams += 1
        let secure = SecureStream(loop: loop, stream: stream, tls: nil)
        // Wherever the stream goes from here, it counts until it is closed.
        secure.whileOpen = Token { [weak self] in
            self?.pods[id]?.streams -= 1
            self?.forgetIfUnused(id)
        }
        accept(secure, authority: .pod(id), mayBeNode: false)
    }

    /// Does something when nobody holds it any more.
    private final class Token {
        private let end: () -> Void
        init(_ end: @escaping () -> Void) { self.end = end }
        deinit { end() }
    }

    private var isFull: Bool { connections.count - strangers.count >= ClientServer.connectionLimit }

    private func accept(_ stream: SecureStream, authority: Authority, mayBeNode: Bool, reserve: Int = 0) {
        guard mayBeNode || connections.count - strangers.count < ClientServer.connectionLimit + reserve else {
            refused += 1
            return stream.close()
        }
        let number = nextConnection
        nextConnection += 1
        // Before the hello a peer may send little.
        let link = FrameLink(stream, frameLimit: ClientServer.helloBytes)
        let connection = Connection(number: number, link: link, authority: authority)
        connections[number] = connection
        if mayBeNode {
            if strangers.count >= strangerLimit, let oldest = strangers.min(),
                let connection = connections[oldest]
            {
                refused += 1
                drop(connection)
            }
            strangers.insert(number)
        }
        stream.onDrain = { [weak stream] in stream?.resumeReading() }
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
        switch hello.role {
        case .client:
            guard !mayBeNode || !isFull else {
                return refuse(CoterieError(.busy, "this node has too many clients", hint: "ask another node"))
            }
            strangers.remove(connection.number)
            connection.open = true
            raiseFrameLimit(connection)
            connection.link.send(kind: FrameKind.welcome.rawValue, payload: answer.encoded)
        case .node(let id, _, let cluster):
            guard mayBeNode else { return refuse(CoterieError(.notAllowed, "nodes connect to the stream port")) }
            guard cluster == clusterName else {
                return refuse(CoterieError(.notAllowed, "this node belongs to cluster \(clusterName), not \(cluster)"))
            }
            strangers.remove(connection.number)
            connections[connection.number] = nil
            connection.link.raiseFrameLimit(to: Limits.frameBytes)
            connection.link.send(kind: FrameKind.welcome.rawValue, payload: answer.encoded)
            peers.adopt(connection.link, from: id)
        }
    }

    private func raiseFrameLimit(_ connection: Connection) {
        guard case .pod(let pod) = connection.authority else {
            return connection.link.raiseFrameLimit(to: Limits.frameBytes)
        }
        guard pods[pod]?.large ?? 0 < ClientServer.podLargeLimit else {
            return connection.link.raiseFrameLimit(to: ClientServer.smallFrameBytes)
        }
        pods[pod]?.large += 1
        connection.isLarge = true
        connection.link.raiseFrameLimit(to: Limits.frameBytes)
    }

    /// The connection gives back what it counts for with its pod.
    private func settle(_ connection: Connection) {
        guard case .pod(let pod) = connection.authority else { return }
        pods[pod]?.requests -= connection.channels.count
        if connection.isLarge { pods[pod]?.large -= 1 }
        connection.isLarge = false
        forgetIfUnused(pod)
    }

    private func forgetIfUnused(_ pod: String) {
        if let use = pods[pod], use.streams <= 0, use.requests <= 0, use.large <= 0 { pods[pod] = nil }
    }

    /// False if the channel is in use already.
    private func begin(_ channel: UInt32, on connection: Connection) -> Bool {
        guard connection.channels.insert(channel).inserted else { return false }
        if case .pod(let pod) = connection.authority { pods[pod]?.requests += 1 }
        return true
    }

    /// False if nothing was asked on the channel.
    private func end(_ channel: UInt32, on connection: Connection) -> Bool {
        guard connection.channels.remove(channel) != nil else { return false }
        if case .pod(let pod) = connection.authority { pods[pod]?.requests -= 1 }
        return true
    }

    private func mayAsk(_ connection: Connection) -> Bool {
        var count = connection.channels.count
        if case .pod(let pod) = connection.authority { count = max(count, pods[pod]?.requests ?? 0) }
        return count < ClientServer.requestLimit
    }

    private func received(_ frame: Frame, on connection: Connection, authority: Authority) {
        let id = RequestID(connection: connection.number, channel: frame.channel)
        switch FrameKind(rawValue: frame.kind) {
        case .request:
            let request: ClientRequest
            do { request = try ClientRequest(decoding: frame.payload) } catch {
                return respond(id, .failure(CoterieError(.badInput, "malformed request: \(error)")))
            }
            guard mayAsk(connection) else {
                return respond(
                    id,
                    .failure(
                        CoterieError(
                            .busy, "more than \(ClientServer.requestLimit) requests at once",
                            hint: "ask for less at once")))
            }
            guard begin(frame.channel, on: connection) else {
                return drop(connection)
            }
            onRequest?(id, request, authority)
        case .cancel:
            if end(frame.channel, on: connection) { onCancel?(id) }
        case .dial, .listen, .accept:
            guard let kind = FrameKind(rawValue: frame.kind) else { return }
            forget(connection)
            onStreamFrame?(connection.link, kind, frame, authority)
        default: drop(connection)
        }
    }

    func respond(_ id: RequestID, _ response: ClientResponse) {
        guard let connection = connections[id.connection] else { return }
        _ = end(id.channel, on: connection)
        var response = response
        if case .success(let bytes) = response, bytes.count > Limits.frameBytes - 64 {
            response = .failure(
                CoterieError(
                    .tooLarge, "the answer is larger than \(Limits.frameBytes >> 20) MiB", hint: "ask for less at once")
            )
        }
        connection.link.send(kind: FrameKind.response.rawValue, channel: id.channel, payload: response.encoded)
        // Who asks without reading the answers is not listened to until they have left.
        guard connection.link.stream.isCongested else { return }
        if connection.link.stream.queuedBytes > ClientServer.answerLimit {
            drop(connection)
        } else {
            connection.link.stream.pauseReading()
        }
    }

    /// One item of a watch. A watcher that does not read is cut off rather than remembered without bound.
    func item(_ id: RequestID, _ bytes: [UInt8]) {
        guard let connection = connections[id.connection], connection.channels.contains(id.channel) else { return }
        guard connection.link.stream.queuedBytes < 8 << 20 else { return drop(connection) }
        connection.link.send(kind: FrameKind.item.rawValue, channel: id.channel, payload: bytes)
    }

    func end(_ id: RequestID, _ error: CoterieError?) {
        guard let connection = connections[id.connection], end(id.channel, on: connection) else { return }
        connection.link.send(kind: FrameKind.end.rawValue, channel: id.channel, payload: error?.encoded ?? [])
    }

    var connectionCount: Int { connections.count }

    private func drop(_ connection: Connection) {
        connection.link.close()
        forget(connection)
    }

    private func forget(_ connection: Connection) {
        guard connections.removeValue(forKey: connection.number) != nil else { return }
        strangers.remove(connection.number)
        settle(connection)
        onConnectionClosed?(connection.number)
    }

    func stop() {
        for listener in listeners { listener.close() }
        listeners = []
        for connection in connections.values { connection.link.close() }
        connections = [:]
        strangers = []
    }
}
