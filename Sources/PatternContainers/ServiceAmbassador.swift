// An ambassador whose far end is a service of the cluster: the app connects to localhost, the bytes go over the cluster's
// streams to wherever the service is. The queue ambassador is this with the service `queue`, whose far end is the node's own
// session of beanstalkd's protocol.
import EventLoop
import Model
import Transport

/// Connects to a service by name. Confined to the loop; `done` is called once.
public protocol ServiceDialer: AnyObject {
    /// `pending` are bytes of the stream that came with the answer.
    func dial(service: String, done: @escaping (Result<(stream: SecureStream, pending: [UInt8]), CoterieError>) -> Void)
}

public struct ServiceAmbassadorOptions: Sendable {
    public var listen: SocketAddress
    public var service: String
    /// Further attempts to dial after the first; nothing was read from the app by then.
    public var retries = 3
    public var retryDelay: TimeSpan = .milliseconds(200)
    public var maxConnections = 10_000
    public var inherited: InheritedListeners = .current

    public init(listen: SocketAddress, service: String) {
        self.listen = listen
        self.service = service
    }

    /// `ambassador queue [--listen 127.0.0.1:11300]`.
    public init(queueArguments arguments: [String]) throws(CoterieError) {
        var flags = try FlagReader("ambassador queue", arguments)
        let listen = try flags.address("--listen") ?? .loopback(port: 11_300)
        try flags.finish(takesCommand: false)
        self.init(listen: listen, service: "queue")
    }
}

public final class ServiceAmbassador {
    private let loop: EventLoop
    private let options: ServiceAmbassadorOptions
    private let dialer: any ServiceDialer
    private let report: Report
    private var listener: Listener?
    private var connections: [UInt64: Connection] = [:]
    private var nextConnection: UInt64 = 0

    public init(
        loop: EventLoop, options: ServiceAmbassadorOptions, dialer: any ServiceDialer,
        report: @escaping Report = reportToStandardError
    ) {
        self.loop = loop
        self.options = options
        self.dialer = dialer
        self.report = report
    }

    public func start() throws(CoterieError) {
        let listener = try openListener(loop: loop, at: options.listen, environment: options.inherited)
        listener.onConnection = { [weak self] stream in self?.accept(stream) }
        self.listener = listener
    }

    /// Nil before ``start()``.
    public var localAddress: SocketAddress? { listener?.localAddress }
    public var connectionCount: Int { connections.count }

    /// Stops listening and closes all connections.
    public func stop() {
        listener?.close()
        listener = nil
        let all = connections
        connections = [:]
        for (_, connection) in all.sorted(by: { $0.key < $1.key }) { connection.close() }
    }

    private func accept(_ stream: ByteStream) {
        guard connections.count < options.maxConnections else {
            report("ambassador: \(connections.count) connections are open, one more is refused")
            stream.close()
            return
        }
        let id = nextConnection
        nextConnection += 1
        let connection = Connection(self, id: id, stream: stream)
        connections[id] = connection
        connection.dial()
    }

    private final class Connection {
        private weak var owner: ServiceAmbassador?
        private let id: UInt64
        private let stream: ByteStream
        private var far: SecureStream?
        private var near: SecureStream?
        private let timer: LoopTimer
        private var attempts = 0

        init(_ owner: ServiceAmbassador, id: UInt64, stream: ByteStream) {
            self.owner = owner
            self.id = id
            self.stream = stream
            timer = LoopTimer(loop: owner.loop)
            stream.onClose = { [weak self] _ in self?.close() }
        }

        func dial() {
            guard let owner else { return }
            attempts += 1
            owner.dialer.dial(service: owner.options.service) { [weak self] result in
                guard let self, let owner = self.owner else {
                    if case .success(let (stream, _)) = result { stream.close() }
                    return
                }
                switch result {
                case .success(let (far, pending)): join(far, pending, owner)
                case .failure(let error):
                    guard attempts <= owner.options.retries else {
                        owner.report(
                            "ambassador: \(owner.options.service): \(error); given up after \(attempts) attempts")
                        return close()
                    }
                    timer.start(after: owner.options.retryDelay) { [weak self] in self?.dial() }
                }
            }
        }

        private func join(_ far: SecureStream, _ pending: [UInt8], _ owner: ServiceAmbassador) {
            let near = SecureStream(loop: owner.loop, stream: stream, tls: nil)
            self.far = far
            self.near = near
            // The relay sets the call-backs before any byte can come: reading starts within this turn.
            let relay = Relay(near, far, pendingB: pending) { [weak self] in
                guard let self else { return }
                self.near = nil
                self.far = nil
                close()
            }
            _ = relay
            near.start()
        }

        func close() {
            timer.close()
            near?.close()
            far?.close()
            near = nil
            far = nil
            stream.close()
            owner?.connections[id] = nil
            owner = nil
        }
    }
}
