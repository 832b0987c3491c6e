// The beanstalkd protocol on the node's queue port, and for pods through their socket: each connection is a `BeanstalkSession`
// whose commands go the way of all commands.
import EventLoop
import Glibc
import Model
import NodeCore
import Queues
import Transport

final class QueueServer {
    static let connectionLimit = 20_000
    /// How long a command may be without an outcome before its connection is closed: nobody knows then whether it was done.
    static let outcomeTimeout = TimeSpan.seconds(5)

    private let loop: EventLoop
    private let nodeID: NodeID
    private let startedAt: MonotonicTime
    private let version: String
    private var listener: Listener?
    private var connections: [UInt64: QueueConnection] = [:]
    private var asked: [UInt64: QueueConnection] = [:]
    private var nextConnection: UInt64 = 1
    private var nextID: UInt64 = 1
    private var counts = BeanstalkCounts()
    private var totalConnections = 0
    private var random = SystemRandomNumberGenerator()
    /// Runs while commands are under way: one for all connections, since nearly every command is answered long before.
    private let outcomeTimer: LoopTimer
    private var drained: (() -> Void)?
    static let drainTime = TimeSpan.milliseconds(500)

    var onInput: ((NodeInput) -> Void)?
    /// Another user of this machine was turned away.
    var onRefused: (() -> Void)?
    var answer: ((BeanstalkSession.Query, NodeFigures) -> BeanstalkSession.Outcome)?

    init(loop: EventLoop, nodeID: NodeID, version: String) {
        self.loop = loop
        self.nodeID = nodeID
        self.version = version
        startedAt = loop.now
        outcomeTimer = LoopTimer(loop: loop)
    }

    /// Serves everybody who can reach the listener; with `owner`, on loopback, only that user and root: the protocol is plain
    /// text and asks for no key, and a machine has other users.
    func serve(_ listener: Listener, onlyFor owner: UInt32?) {
        self.listener = listener
        listener.onConnection = { [weak self] stream in
            guard let self else { return stream.close() }
            if let owner, stream.localAddress?.isLoopback ?? false {
                guard let uid = stream.peerUID, uid == owner || uid == 0 else {
                    self.onRefused?()
                    return stream.close()
                }
            }
            let secure = SecureStream(loop: self.loop, stream: stream, tls: nil)
            self.serve(secure, pending: [])
            secure.start()
        }
    }

    /// A stream that speaks the protocol; `pending` was read from it already.
    func serve(_ stream: SecureStream, pending: [UInt8]) {
        guard connections.count < QueueServer.connectionLimit else { return stream.close() }
        let number = nextConnection
        nextConnection += 1
        totalConnections += 1
        let connection = QueueConnection(
            server: self, number: number, stream: stream, holder: random.next() | 1, session: SessionID(using: &random))
        connections[number] = connection
        connection.begin(pending)
    }

    var now: MonotonicTime { loop.now }
    func timer() -> LoopTimer { LoopTimer(loop: loop) }

    // MARK: - For connections

    fileprivate func submit(_ command: ClientCommand, for connection: QueueConnection) -> UInt64 {
        let id = nextID
        nextID += 1
        asked[id] = connection
        onInput?(.local(id, command))
        return id
    }

    fileprivate func read(for connection: QueueConnection) -> UInt64 {
        let id = nextID
        nextID += 1
        asked[id] = connection
        onInput?(.localRead(id))
        return id
    }

    fileprivate func watchOutcomes() {
        guard !outcomeTimer.isActive else { return }
        outcomeTimer.start(after: .seconds(1)) { [weak self] in
            guard let self else { return }
            let now = self.now
            for connection in self.connections.values { connection.checkOutcome(now: now) }
            if !self.asked.isEmpty { self.watchOutcomes() }
        }
    }

    fileprivate func endWait(_ id: UInt64) { onInput?(.endWait(id)) }

    fileprivate func abandon(_ id: UInt64) {
        if asked.removeValue(forKey: id) != nil { onInput?(.cancelLocal(id)) }
    }

    /// Sent although the connection is gone; nobody reads the outcome.
    fileprivate func submitLast(_ command: ClientCommand) {
        let id = nextID
        nextID += 1
        onInput?(.local(id, command))
    }

    fileprivate func take(_ counts: BeanstalkCounts) { self.counts += counts }

    fileprivate func closed(_ number: UInt64) {
        connections[number] = nil
        if connections.isEmpty { endDraining() }
    }

    /// Calls back once, if it drains.
    private func endDraining() {
        let then = drained
        drained = nil
        then?()
    }

    func completed(_ id: UInt64, _ result: Result<StateResult, CoterieError>) {
        asked.removeValue(forKey: id)?.completed(id, result)
    }

    func readReady(_ id: UInt64, _ error: CoterieError?) {
        asked.removeValue(forKey: id)?.readReady(id, error)
    }

    fileprivate func outcome(of query: BeanstalkSession.Query) -> BeanstalkSession.Outcome {
        answer?(query, figures) ?? .unavailable
    }

    private var figures: NodeFigures {
        var figures = NodeFigures()
        figures.commands = counts
        figures.connections = connections.count
        figures.totalConnections = totalConnections
        figures.pid = Int(getpid())
        figures.version = "1.12+coterie.\(version)"
        figures.uptimeSeconds = Int((loop.now - startedAt).seconds)
        var usage = rusage()
        getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
        figures.userSeconds = Double(usage.ru_utime.tv_sec) + Double(usage.ru_utime.tv_usec) / 1e6
        figures.systemSeconds = Double(usage.ru_stime.tv_sec) + Double(usage.ru_stime.tv_usec) / 1e6
        figures.id = nodeID.description
        var names = utsname()
        if uname(&names) == 0 {
            figures.hostname = text(&names.nodename)
            figures.os = text(&names.version)
            figures.platform = text(&names.machine)
        }
        for connection in connections.values {
            let session = connection.session
            if session.isProducer { figures.producers += 1 }
            if session.isWorker { figures.workers += 1 }
            if session.isWaiting { figures.waiting += 1 }
            figures.tubes[session.usedTube, default: TubeUse()].using += 1
            for tube in session.watchedTubes {
                figures.tubes[tube, default: TubeUse()].watching += 1
                if session.isWaiting { figures.tubes[tube, default: TubeUse()].waiting += 1 }
            }
        }
        return figures
    }

    private func text<T>(_ field: inout T) -> String {
        withUnsafeBytes(of: &field) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
    }

    /// Takes no more connections; what clients have sent is answered, then they are closed. Calls `then` when all are, or after
    /// ``drainTime``.
    func drain(_ then: @escaping () -> Void) {
        listener?.close()
        listener = nil
        let timer = LoopTimer(loop: loop)
        drained = {
            timer.close()
            then()
        }
        timer.start(after: QueueServer.drainTime) { [weak self] in self?.endDraining() }
        for connection in Array(connections.values) { connection.finish() }
        // With nobody to wait for it is over in this turn, but not inside this call.
        loop.beforeWaiting { [weak self] in
            if let self, self.connections.isEmpty { self.endDraining() }
        }
    }

    func stop() {
        outcomeTimer.close()
        listener?.close()
        for connection in connections.values { connection.close() }
        connections = [:]
    }
}

/// One connection. Its session is the protocol; this moves bytes and outcomes.
final class QueueConnection {
    private weak var server: QueueServer?
    private let number: UInt64
    private let stream: SecureStream
    fileprivate private(set) var session: BeanstalkSession
    private let clientSession: SessionID
    private var sequence: UInt64 = 0
    /// What is under way: the session's id, ours at the server, and the query if it is one.
    private var underWay: (id: UInt64, asked: UInt64, query: BeanstalkSession.Query?)?
    private let deadlineTimer: LoopTimer
    /// When what is under way is given up; nil for what may take as long as it likes.
    private var outcomeDue: MonotonicTime?
    private var isOpen = true
    private var isRunning = false

    init(server: QueueServer, number: UInt64, stream: SecureStream, holder: UInt64, session: SessionID) {
        self.server = server
        self.number = number
        self.stream = stream
        self.session = BeanstalkSession(holder: holder)
        clientSession = session
        deadlineTimer = server.timer()
    }

    func begin(_ pending: [UInt8]) {
        stream.onBytes = { [weak self] bytes in
            self?.turn { $0.receive(bytes) }
        }
        stream.onEnd = { [weak self] in self?.turn { $0.peerEnded() } }
        stream.onClose = { [weak self] _ in self?.close() }
        stream.onDrain = { [weak self] in self?.turn { $0.setOutputBlocked(false) } }
        if !pending.isEmpty { turn { $0.receive(pending[...]) } }
    }

    /// One input to the session, and what follows from it.
    private func turn(_ body: (inout BeanstalkSession) -> Void) {
        guard isOpen, let server else { return }
        session.tick(now: server.now)
        body(&session)
        guard !isRunning else { return }
        isRunning = true
        defer { isRunning = false }
        while isOpen {
            let actions = session.takeActions()
            if actions.isEmpty { break }
            for action in actions { perform(action, server) }
        }
        guard isOpen else { return }
        server.take(session.takeCounts())
        if stream.isCongested { session.setOutputBlocked(true) }
        if session.isHungry { stream.resumeReading() } else { stream.pauseReading() }
        if let deadline = session.nextDeadline {
            deadlineTimer.start(at: deadline) { [weak self] in self?.turn { _ in } }
        } else {
            deadlineTimer.stop()
        }
    }

    private func perform(_ action: BeanstalkSession.Action, _ server: QueueServer) {
        switch action {
        case .send(let bytes): stream.write(bytes)
        case .command(let id, let command, let wait):
            let asked = server.submit(next(.queue(command), wait: wait), for: self)
            underWay = (id, asked, nil)
            // A reserve may wait as long as its client likes.
            if wait == nil { watchOutcome() }
        case .query(let id, let query):
            underWay = (id, server.read(for: self), query)
            watchOutcome()
        case .cancel(let id):
            if let current = underWay, current.id == id {
                server.endWait(current.asked)
                watchOutcome()
            }
        case .close: close()
        }
    }

    /// As if the client had said that it will send nothing more.
    fileprivate func finish() { turn { $0.peerEnded() } }

    private func next(_ command: StateCommand, wait: TimeSpan?) -> ClientCommand {
        sequence += 1
        return ClientCommand(
            session: clientSession, sequence: sequence, firstOutstanding: sequence, wait: wait, command: command)
    }

    private func watchOutcome() {
        guard let server else { return }
        outcomeDue = server.now + QueueServer.outcomeTimeout
        server.watchOutcomes()
    }

    fileprivate func checkOutcome(now: MonotonicTime) {
        guard let due = outcomeDue, now >= due, let current = underWay else { return }
        outcomeDue = nil
        turn { $0.complete(current.id, with: .unavailable) }
    }

    func completed(_ asked: UInt64, _ result: Result<StateResult, CoterieError>) {
        guard let current = underWay, current.asked == asked else { return }
        underWay = nil
        outcomeDue = nil
        let outcome: BeanstalkSession.Outcome
        switch result {
        case .success(.queue(let value)): outcome = .result(value)
        case .success: outcome = .unavailable
        case .failure(let error) where error.code == .busy || error.code == .tooLarge:
            outcome = .result(.refused(error.code, error.message))
        case .failure: outcome = .unavailable
        }
        turn { $0.complete(current.id, with: outcome) }
    }

    func readReady(_ asked: UInt64, _ error: CoterieError?) {
        guard let current = underWay, current.asked == asked, let query = current.query, let server else { return }
        underWay = nil
        outcomeDue = nil
        let outcome = error == nil ? server.outcome(of: query) : .unavailable
        turn { $0.complete(current.id, with: outcome) }
    }

    func close() {
        guard isOpen else { return }
        isOpen = false
        deadlineTimer.close()
        stream.close()
        guard let server else { return }
        if let current = underWay { server.abandon(current.asked) }
        if session.mayHoldJobs { server.submitLast(next(.queue(.releaseHolder(session.holder)), wait: nil)) }
        if sequence > 0 { server.submitLast(next(.endSession, wait: nil)) }
        server.take(session.takeCounts())
        server.closed(number)
    }
}
