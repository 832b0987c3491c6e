// The driver: one `NodeCore` bound to sockets, the disk and pods, all on one loop. It decides nothing; it turns events into
// inputs and effects into system calls.
import EventLoop
import Glibc
import Membership
import Model
import NodeCore
import Pods
import Security
import Transport
import Wire

/// One running node. Confined to its loop's thread.
public final class Agent {
    private let loop: EventLoop
    private let options: AgentOptions
    private let directory: DataDirectory
    private let key: ClusterKey
    private let storage: Storage
    private var core: NodeCore
    private var sealer: DatagramSealer
    private var opener: DatagramOpener
    private let socket: UDPSocket
    private let peers: PeerNetwork
    private let clients: ClientServer
    private let broker: StreamBroker
    private let pods: PodAgent
    private let watches: Watches
    private let queueServer: QueueServer
    private var exports = StateExports()
    private var console: ConsoleProcess?
    private let timer: LoopTimer
    private let streamTimer: LoopTimer
    private let applyTimer: LoopTimer
    private var flushScheduled = false
    private var armedFor = MonotonicTime.distantFuture
    private var stopping: (() -> Void)?
    private var stopped = false
    private let logLevel: LogLevel

    public let ready: AgentReady

    /// Binds everything and recovers the node's state; nothing is sent before ``start()``. Throws with the place and remedy;
    /// then nothing is left bound.
    public init(loop: EventLoop, options: AgentOptions) throws(CoterieError) {
        self.loop = loop
        self.options = options
        logLevel = LogLevel(rawValue: options.logLevel) ?? .info
        let directory = try DataDirectory(path: options.dataDirectory)
        self.directory = directory
        let joins = !options.join.isEmpty
        let expect = options.expect ?? (joins ? 0 : 1)
        // A bare address on the network without a key anywhere would be open to everybody who comes by.
        if options.keyFile == nil, !directory.hasKey, !options.bind.isLoopback {
            throw CoterieError(
                .notAllowed, "\(options.bind) is not a loopback address and there is no cluster key",
                hint: "make one with: coterie keygen FILE, and start every node with --key FILE")
        }
        // Of several founders on loopback none may make a key of its own.
        key = try directory.clusterKey(importing: options.keyFile, mayCreate: !joins && expect <= 1)

        let bound = try BoundListeners(loop: loop, options: options, directory: directory)
        socket = bound.udp
        let advertise = try Agent.advertised(options, bound.address)
        let opened = try Storage.open(loop: loop, directory: directory, cluster: options.cluster)
        storage = opened.storage

        var settings = NodeOptions(
            cluster: options.cluster, id: directory.id, name: options.name, address: advertise, tags: options.tags,
            expect: expect,
            startCounter: directory.startCounter, httpPort: options.http?.port ?? 0,
            queuePort: bound.queueAddress?.port ?? 0,
            version: options.version)
        settings.snapshotEntries = 50_000
        settings.deadVoterGrace = options.deadVoterGrace
        var system = SystemRandomNumberGenerator()
        core = try NodeCore(
            options: settings, recovery: opened.recovery, generator: SeededGenerator(seed: system.next()), now: loop.now
        )
        do {
            sealer = try DatagramSealer(key: key, sender: directory.id, startCounter: directory.startCounter)
            opener = try DatagramOpener(key: key)
        } catch {
            throw CoterieError(.failed, "datagrams can not be sealed: \(error)")
        }
        let hello = Hello(role: .node(directory.id, incarnation: directory.startCounter, cluster: options.cluster))
        peers = PeerNetwork(loop: loop, key: key, hello: hello)
        let welcome = Welcome(agreedProtocol: Hello.maximumProtocol, node: directory.id, name: options.name)
        clients = ClientServer(loop: loop, key: key, welcome: welcome, clusterName: options.cluster, peers: peers)
        broker = StreamBroker(loop: loop, key: key, self: directory.id)
        pods = try PodAgent(loop: loop, options: options, directory: directory, address: advertise)
        queueServer = QueueServer(loop: loop, nodeID: directory.id, version: options.version)
        watches = Watches(loop: loop, node: options.name, key: key)
        timer = LoopTimer(loop: loop)
        streamTimer = LoopTimer(loop: loop)
        applyTimer = LoopTimer(loop: loop)
        ready = AgentReady(
            id: directory.id, name: options.name, address: advertise, http: options.http, queue: bound.queueAddress)
        wire(bound)
        for note in opened.notes { log(.warning, note) }
    }

    private static func advertised(_ options: AgentOptions, _ bound: SocketAddress) throws(CoterieError)
        -> SocketAddress
    {
        var address = options.advertise ?? bound
        if address.port == 0 { address.port = bound.port }
        guard !address.isUnspecified else {
            throw CoterieError(
                .badInput, "\(address.hostText) can be bound, but others can not reach it",
                hint: "name the address that they shall use: --advertise HOST:PORT")
        }
        return address
    }

    // MARK: - Wiring

    private func wire(_ bound: BoundListeners) {
        socket.onDatagram = { [weak self] bytes, from in self?.received(bytes, from: from) }
        socket.onRefused = { [weak self] address in self?.input(.refusedDatagram(address)) }
        storage.onInput = { [weak self] input in self?.input(input) }
        storage.onLog = { [weak self] level, text in self?.log(level, text) }
        peers.onFrame = { [weak self] id, frame in
            guard let kind = FrameKind(rawValue: frame.kind) else { return }
            self?.input(.peerFrame(kind, frame.payload, from: id))
        }
        peers.onPeerLost = { [weak self] id, crashed in
            self?.log(.debug, "lost the stream to \(id)\(crashed ? ": its process is gone" : "")")
            self?.input(.peerLost(id, crashed: crashed))
        }
        clients.onRequest = { [weak self] id, request, authority in self?.requested(id, request, authority) }
        clients.onCancel = { [weak self] id in
            self?.watches.cancel(id)
            if let read = self?.exports.cancel(id) { self?.input(.cancelLocal(read)) }
            self?.input(.cancel(id))
        }
        clients.onConnectionClosed = { [weak self] connection in
            self?.watches.connectionClosed(connection)
            for read in self?.exports.connectionClosed(connection) ?? [] { self?.input(.cancelLocal(read)) }
            self?.input(.connectionClosed(connection))
        }
        clients.onStreamFrame = { [weak self] link, kind, frame, authority in
            self?.broker.handle(link, kind, frame, authority)
        }
        broker.locate = { [weak self] pod in self?.locate(pod) }
        broker.ownerOf = { [weak self] pod in self?.core.podOwner(pod) }
        broker.onQueueStream = { [weak self] stream, pending in self?.serveQueue(stream, pending: pending) }
        pods.onReports = { [weak self] reports in self?.input(.podReports(reports)) }
        pods.onConnection = { [weak self] pod, stream in self?.clients.serve(pod: pod, stream: stream) }
        pods.onLog = { [weak self] level, text in self?.log(level, text) }
        watches.document = { [weak self] path in
            self?.core.document(path) ?? .failure(CoterieError(.unavailable, "the node is stopping"))
        }
        watches.respondItem = { [weak self] id, bytes in self?.clients.item(id, bytes) }
        watches.respondEnd = { [weak self] id, error in self?.clients.end(id, error) }
        watches.locate = { [weak self] pod in self?.locate(pod) }
        watches.localLogs = { [weak self] request in self?.pods.logs(request) }
        clients.serve(streams: bound.streams)
        clients.serve(local: bound.local, owner: UInt32(geteuid()))
        queueServer.onInput = { [weak self] input in self?.input(input) }
        queueServer.answer = { [weak self] query, figures in
            self?.core.queueAnswer(query, node: figures) ?? .unavailable
        }
        queueServer.onRefused = { [weak self] in self?.refusedQueueUser() }
        if let listener = bound.queue {
            queueServer.serve(listener, onlyFor: options.queueUsers == .owner ? UInt32(geteuid()) : nil)
        }
    }

    private func locate(_ pod: String) -> StreamBroker.Location? {
        guard let node = core.podNode(pod) else { return nil }
        if node == directory.id { return .here }
        return core.membership.member(node).map { .node($0.address) }
    }

    private func serveQueue(_ stream: SecureStream, pending: [UInt8]) {
        queueServer.serve(stream, pending: pending)
    }

    /// Begins to listen, gossip and serve.
    public func start() {
        socket.start()
        if !options.join.isEmpty { input(.join(options.join)) }
        pods.start()
        // Streams break, and voters come back.
        streamTimer.start(every: .milliseconds(500)) { [weak self] in self?.keepStreams() }
        if let http = options.http {
            let console = ConsoleProcess(
                loop: loop, program: options.programs.console, listen: http, socket: directory.socketPath)
            console.onLog = { [weak self] level, text in self?.log(level, text) }
            console.start()
            self.console = console
        }
        flush()
    }

    // MARK: - Inputs

    private func received(_ bytes: UnsafeRawBufferPointer, from: SocketAddress) {
        guard bytes.count <= Limits.datagramBytes else { return }
        do {
            let opened = try opener.open(Array(bytes)[...])
            input(.datagram(opened.plain[...], from: from))
        } catch {
            refusedDatagrams += 1
        }
    }

    private var refusedDatagrams: UInt64 = 0
    private var refusedQueueUsers: UInt64 = 0

    private func refusedQueueUser() {
        refusedQueueUsers += 1
        guard refusedQueueUsers == 1 else { return }
        log(.warning, "another user of this machine was refused at the queue port; --queue-users any lets everybody in")
    }

    private func requested(_ id: RequestID, _ request: ClientRequest, _ authority: Authority) {
        if case .watch(let path) = request {
            guard core.mayWatch(path, authority) else {
                return clients.end(id, CoterieError(.notAllowed, "a pod may not watch \(path)"))
            }
            return watches.start(id, path: path, authority: authority)
        }
        if case .query("metrics") = request, authority == .operator {
            return clients.respond(id, .success(metricsDocument.utf8))
        }
        if case .query(let path) = request, authority == .operator, StateExports.serves(path) {
            if path == "snapshot" { return input(.localRead(exports.begin(id))) }
            return clients.respond(id, exports.piece(path))
        }
        if case .admin(let order) = request, authority == .operator, order["verb"]?.stringValue == "stop" {
            clients.respond(id, .success(JSONValue.object([.init("done", true)]).utf8))
            return stop {}
        }
        input(.request(id, request, authority))
    }

    /// What only the driver knows, for the console's metrics.
    private var metricsDocument: JSONValue {
        var usage = rusage()
        getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
        let cpu =
            Double(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) + Double(
                usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6
        // The second number of statm is resident pages.
        let statm = (try? readFile("/proc/self/statm", limit: 4_096)).map { String(decoding: $0, as: UTF8.self) } ?? ""
        let pages = statm.split(separator: " ").dropFirst().first.flatMap { Int64($0) } ?? 0
        return [
            "longestTurnSeconds": .double(loop.takeLongestTurn().seconds),
            "connections": JSONValue(clients.connectionCount),
            "refusedDatagrams": JSONValue(refusedDatagrams), "refusedConnections": JSONValue(clients.refused),
            "droppedFrames": JSONValue(peers.dropped), "droppedDatagrams": JSONValue(socket.dropped),
            "residentBytes": JSONValue(pages * Int64(sysconf(Int32(_SC_PAGESIZE)))), "cpuSeconds": .double(cpu),
        ]
    }

    /// Feeds the core; effects are carried out once at the end of this turn of the loop.
    private func input(_ input: NodeInput) {
        guard !stopped else { return }
        core.handle(input, now: loop.now)
        scheduleFlush()
    }

    private func scheduleFlush() {
        guard !flushScheduled else { return }
        flushScheduled = true
        loop.beforeWaiting { [weak self] in
            self?.flushScheduled = false
            self?.flush()
        }
    }

    // MARK: - Effects

    private func flush() {
        guard !stopped else { return }
        for effect in core.takeUrgentEffects() { perform(effect) }
        guard core.hasBacklog else { return endTurn() }
        // What was committed is applied when the answers have left; while entries are being written, a moment later.
        if storage.isBusy {
            if !applyTimer.isActive {
                applyTimer.start(after: .milliseconds(1)) { [weak self] in self?.endTurn() }
            }
        } else {
            loop.beforeWaiting { [weak self] in self?.endTurn() }
        }
    }

    private func endTurn() {
        guard !stopped else { return }
        applyTimer.stop()
        for effect in core.takeEffects() { perform(effect) }
        let next = core.nextDeadline
        if next != armedFor {
            armedFor = next
            if next == .distantFuture {
                timer.stop()
            } else {
                timer.start(at: next) { [weak self] in
                    self?.armedFor = .distantFuture
                    self?.input(.timer)
                }
            }
        }
    }

    private func perform(_ effect: NodeEffect) {
        switch effect {
        case .datagram(let bytes, let to):
            if let sealed = try? sealer.seal(bytes[...]) { socket.send(sealed, to: to) }
        case .peerFrame(let kind, let payload, let to, let address):
            peers.send(Frame(kind: kind.rawValue, channel: 0, payload: payload), to: to, at: address)
        case .persist(let request): storage.persist(request)
        case .found(let request): storage.found(request)
        case .persistPromise(let promise): storage.persistPromise(promise)
        case .persistLineage(let lineage): storage.persistLineage(lineage)
        case .makeSnapshot(let metadata, let image): storage.makeSnapshot(metadata, image)
        case .sendSnapshot(let send):
            storage.readSnapshot(send) { [weak self] chunk in
                guard let self else { return }
                guard let chunk else { return self.input(.snapshotSendFailed(to: send.to)) }
                if let frame = self.core.snapshotFrame(chunk, to: send.to) { self.perform(frame) }
            }
        case .storeSnapshotChunk(let chunk): storage.storeChunk(chunk)
        case .respond(let id, let response): clients.respond(id, response)
        case .localResult(let id, let result): queueServer.completed(id, result)
        case .localReadReady(let id, let error):
            guard let request = exports.requestWaiting(for: id) else { return queueServer.readReady(id, error) }
            export(for: request, error)
        case .assignments(let records): pods.assigned(records)
        case .event(let event): watches.publish(event, now: loop.now)
        case .changed(let topics):
            watches.changed(topics)
            if topics.contains(.members) || topics.contains(.leader) { keepStreams() }
        case .log(let level, let text): log(level, text)
        case .stopped: finishStopping()
        case .fenced(let why):
            log(.error, "\(why)")
            failure = why
            stop {}
        }
    }

    /// Voters ask each other for votes when a leader has died: that is no time for handshakes.
    private func keepStreams() {
        for (id, address) in core.livingVoters { peers.keepStream(to: id, at: address) }
    }

    /// The state has applied whatever was committed when the request came.
    private func export(for request: RequestID, _ error: CoterieError?) {
        if let error { return clients.respond(request, .failure(error)) }
        guard let exported = core.exportedState else {
            return clients.respond(request, .failure(CoterieError(.noLeader, "this node belongs to no cluster yet")))
        }
        exports.encodes(for: request)
        let image = exported.image
        loop.blocking {
            StateExports.Encoded(image)
        } then: { [weak self] encoded in
            guard let self,
                let document = self.exports.keep(encoded, of: exported, for: request, options: self.core.options)
            else { return }
            self.clients.respond(request, .success(document.utf8))
        }
    }

    private func log(_ level: LogLevel, _ text: String) {
        guard level >= logLevel else { return }
        let line = Array("\(wallTime()) \(level.rawValue) \(options.name): \(text)\n".utf8)
        _ = line.withUnsafeBytes { write(2, $0.baseAddress, $0.count) }
    }

    // MARK: - Stopping

    /// SIGTERM: hands leadership over, is seen as `left`, ends the pods within their grace, then calls `done`.
    public func stop(_ done: @escaping () -> Void) {
        guard stopping == nil else { return }
        stopping = done
        onStopping?()
        pods.shutdown { [weak self] in
            self?.podsAreGone = true
            self?.finishIfDone()
        }
        input(.shutdown)
    }

    /// Set by the command line: told when a stop begins that nobody on this side asked for (an operator's order).
    public var onStopping: (() -> Void)?
    /// Called when the agent has stopped by itself after such an order.
    public var onStopped: (() -> Void)?
    /// Why the agent ended by itself, if that was no order.
    public private(set) var failure: CoterieError?
    private var podsAreGone = false
    private var coreIsDone = false
    private var isDraining = false

    private func finishStopping() {
        coreIsDone = true
        finishIfDone()
    }

    private func finishIfDone() {
        guard coreIsDone, podsAreGone, !stopped, !isDraining else { return }
        isDraining = true
        // Clients of the queue port get the answers to what they have sent.
        queueServer.drain { [weak self] in self?.finish() }
    }

    private func finish() {
        guard !stopped else { return }
        // The last wishes of connections that have just closed.
        flush()
        stopped = true
        console?.stop()
        queueServer.stop()
        watches.stop()
        broker.stop()
        clients.stop()
        peers.stop()
        socket.close()
        timer.close()
        streamTimer.close()
        applyTimer.close()
        storage.close()
        unlink(directory.socketPath)
        let done = stopping
        // What was written last (goodbyes) leaves with this turn of the loop.
        loop.beforeWaiting { [weak self] in
            done?()
            self?.onStopped?()
        }
    }
}
