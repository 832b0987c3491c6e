// The Redis ambassador: the app believes that there is one Redis on localhost:6379; writes go to the master, reads to a
// replica at random (the ambassador of the patterns paper, with what stock clients of today send: RESP3, pipelines,
// transactions, blocking commands, pub/sub).
import EventLoop
import Model

public final class RedisAmbassador {
    private let loop: EventLoop
    let options: RedisAmbassadorOptions
    private let report: Report
    private let topology: RedisTopology
    private var listener: Listener?
    private var sessions: [UInt64: RedisSession] = [:]
    private var nextSession: UInt64 = 0
    var generator: SeededGenerator
    /// When a write of any client was last acknowledged, for read-your-writes: the app's clients are one pod.
    var lastWrite: MonotonicTime?

    public init(loop: EventLoop, options: RedisAmbassadorOptions, report: @escaping Report = reportToStandardError) {
        self.loop = loop
        self.options = options
        self.report = report
        var system = SystemRandomNumberGenerator()
        let seed = options.seed == 0 ? system.next() : options.seed
        generator = SeededGenerator(seed: seed)
        topology = RedisTopology(loop: loop, options: options, seed: seed &+ 1, report: report)
    }

    public func start() throws(CoterieError) {
        let listener = try openListener(loop: loop, at: options.listen, environment: options.inherited)
        listener.onConnection = { [weak self] stream in self?.accept(stream) }
        self.listener = listener
        topology.onMasterChange = { [weak self] in self?.each { $0.masterChanged() } }
        topology.onServerFailed = { [weak self] server in self?.each { $0.serverFailed(server) } }
        topology.start()
    }

    /// Nil before ``start()``.
    public var localAddress: SocketAddress? { listener?.localAddress }
    public var clientCount: Int { sessions.count }
    /// Where reads may go now.
    public var fitReplicas: [Endpoint] {
        topology.servers.filter { $0.isFit && $0 !== topology.master }.map(\.endpoint)
    }
    /// Commands learnt from the master; 0 until it has told.
    public var knownCommands: Int { topology.table.learnt }
    public var master: Endpoint? { topology.master?.endpoint }

    /// Closes the listener and every connection.
    public func stop() {
        listener?.close()
        listener = nil
        topology.stop()
        each { $0.close() }
    }

    private func each(_ body: (RedisSession) -> Void) {
        for (_, session) in sessions.sorted(by: { $0.key < $1.key }) { body(session) }
    }

    private func accept(_ stream: ByteStream) {
        guard sessions.count < options.maxClients else {
            stream.write(RESP.error("ERR max number of clients reached"))
            stream.close()
            return
        }
        let session = RedisSession(owner: self, topology: topology, loop: loop, id: nextSession, client: stream)
        sessions[nextSession] = session
        nextSession += 1
        session.start()
    }

    func sessionClosed(_ session: RedisSession) { sessions[session.id] = nil }
}
