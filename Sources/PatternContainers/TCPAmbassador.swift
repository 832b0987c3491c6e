// A plain TCP ambassador: the app talks to localhost, the ambassador knows where the service is. Round robin over the
// targets, the next one tried when a connect fails; nothing is read from the app before its connection has a far end, so a
// retry loses no bytes.
import EventLoop
import Model

/// Where a service is now; the seam for service discovery.
public protocol TargetSource: AnyObject {
    /// In a stable order; may be empty.
    var targets: [Endpoint] { get }
}

public struct TCPAmbassadorOptions: Sendable {
    public var listen: SocketAddress
    /// `--to`, in order of preference for the first connection. Unused when the ambassador is given a ``TargetSource``.
    public var to: [Endpoint]
    public var connectTimeout: TimeSpan = .seconds(3)
    /// Further attempts after the first; each goes to the next target.
    public var retries = 3
    /// Wait before an attempt once every target has been tried.
    public var retryDelay: TimeSpan = .milliseconds(100)
    public var maxConnections = 10_000
    public var inherited: InheritedListeners = .current

    public init(listen: SocketAddress, to: [Endpoint]) {
        self.listen = listen
        self.to = to
    }
}

public final class TCPAmbassador {
    private let loop: EventLoop
    private let options: TCPAmbassadorOptions
    private let source: (any TargetSource)?
    private let report: Report
    private var listener: Listener?
    private var connections: [UInt64: Connection] = [:]
    private var nextConnection: UInt64 = 0
    private var nextTarget = 0

    /// `report` gets a line for each connection that could not be served.
    public init(
        loop: EventLoop, options: TCPAmbassadorOptions, source: (any TargetSource)? = nil,
        report: @escaping Report = reportToStandardError
    ) {
        self.loop = loop
        self.options = options
        self.source = source
        self.report = report
    }

    public func start() throws(CoterieError) {
        if source == nil && options.to.isEmpty { throw CoterieError(.badInput, "--to HOST:PORT is needed") }
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
        let connection = Connection(self, id: id, client: stream)
        connections[id] = connection
        connection.connect()
    }

    fileprivate func takeTarget() -> Endpoint? {
        let targets = source?.targets ?? options.to
        guard !targets.isEmpty else { return nil }
        defer { nextTarget = (nextTarget + 1) % targets.count }
        return targets[nextTarget % targets.count]
    }

    /// One client, from accept to the end of both directions.
    private final class Connection {
        private weak var owner: TCPAmbassador?
        private let id: UInt64
        private let client: ByteStream
        private var attempt: ConnectAttempt?
        private var attempts = 0
        private var timer: LoopTimer?
        private var relay: StreamRelay?

        init(_ owner: TCPAmbassador, id: UInt64, client: ByteStream) {
            self.owner = owner
            self.id = id
            self.client = client
            client.onClose = { [weak self] _ in self?.close() }
        }

        func connect() {
            guard let owner else { return close() }
            guard let target = owner.takeTarget() else {
                owner.report("ambassador: the service has no address now; a connection is closed")
                return close()
            }
            attempts += 1
            attempt = ConnectAttempt(loop: owner.loop, to: target, timeout: owner.options.connectTimeout) {
                [weak self] result in
                self?.connected(result)
            }
        }

        private func connected(_ result: Result<ByteStream, CoterieError>) {
            guard let owner else { return close() }
            attempt = nil
            switch result {
            case .success(let server):
                relay = StreamRelay(client, server) { [weak self] in self?.close() }
                relay?.start()
            case .failure(let error):
                guard attempts <= owner.options.retries else {
                    owner.report("ambassador: \(error.message); given up after \(attempts) attempts")
                    return close()
                }
                let targets = owner.source?.targets.count ?? owner.options.to.count
                if targets > 0 && attempts % targets == 0 {
                    let timer = LoopTimer(loop: owner.loop)
                    self.timer = timer
                    timer.start(after: owner.options.retryDelay) { [weak self] in self?.connect() }
                } else {
                    connect()
                }
            }
        }

        func close() {
            timer?.close()
            timer = nil
            attempt?.cancel()
            attempt = nil
            client.close()
            let relay = self.relay
            self.relay = nil
            relay?.close()
            owner?.connections[id] = nil
            owner = nil
        }
    }
}
