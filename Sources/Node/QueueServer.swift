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
    /// Set while it drains.
    private var drain: Drain?

    private struct Drain {
        let timer: LoopTimer
        let cutAt: MonotonicTime
        /// The last connection has closed; what it left to be done (its jobs go back) is waited for until then.
        var lastWordsUntil: MonotonicTime?
        var lastWords: Set<UInt64> = []
        let then: () -> Void
    }

    /// How long a stop waits for clients that are busy.
    static let drainTime = TimeSpan.seconds(2)
    /// A client that has said something within this time will say more: its connection is not ended between two commands, where
    /// the end would cross with the next one, but with the answer to that one.
    static let drainSilence = TimeSpan.milliseconds(500)
    /// How long a client that was told the end is given to read it.
    static let lingerTime = TimeSpan.milliseconds(250)

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
        drain?.lastWords.insert(id)
        onInput?(.local(id, command))
    }

    fileprivate func take(_ counts: BeanstalkCounts) { self.counts += counts }

    fileprivate func closed(_ number: UInt64) {
        connections[number] = nil
        if drain != nil { loop.beforeWaiting { [weak self] in self?.advanceDraining() } }
    }

    func completed(_ id: UInt64, _ result: Result<StateResult, CoterieError>) {
        if drain?.lastWords.remove(id) != nil { advanceDraining() }
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

    /// Ends the service so that no command is lost. A client of this protocol can not tell a command that was not read from one
    /// whose answer was lost, so a connection ends together with an answer (see `QueueConnection.endIfAtRest`), or when its
    /// client has been silent for a while. After ``drainTime`` no further command is begun; what is under way is still answered.
    /// Calls `then` once, when all connections are closed, at most about a second later than that.
    func drain(_ then: @escaping () -> Void) {
        guard drain == nil else { return }
        let timer = LoopTimer(loop: loop)
        drain = Drain(timer: timer, cutAt: loop.now + QueueServer.drainTime, then: then)
        listener?.closeAfterAccepting()
        listener = nil
        for connection in Array(connections.values) { connection.beginDraining() }
        timer.start(every: .milliseconds(25)) { [weak self] in self?.advanceDraining() }
        // With nobody to wait for it is over in this turn, but not inside this call.
        loop.beforeWaiting { [weak self] in self?.advanceDraining() }
    }

    private func advanceDraining() {
        guard let drain else { return }
        let now = loop.now
        for connection in Array(connections.values) {
            if now >= drain.cutAt { connection.cut() } else { connection.endIfAtRest(hasAnswered: false) }
        }
        if connections.isEmpty, drain.lastWordsUntil == nil {
            self.drain?.lastWordsUntil = now + QueueServer.lingerTime
        }
        let isDone = connections.isEmpty && drain.lastWords.isEmpty
        guard isDone || now >= drain.cutAt + .seconds(1) || drain.lastWordsUntil.map({ now >= $0 }) ?? false else {
            return
        }
        self.drain = nil
        drain.timer.close()
        drain.then()
    }

    fileprivate var isDraining: Bool { drain != nil }

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
    /// When the client last sent something.
    private var heardAt: MonotonicTime
    /// Since when the client has been told the end; what it still sends is not read.
    private var endedAt: MonotonicTime?

    init(server: QueueServer, number: UInt64, stream: SecureStream, holder: UInt64, session: SessionID) {
        self.server = server
        self.number = number
        self.stream = stream
        self.session = BeanstalkSession(holder: holder)
        clientSession = session
        deadlineTimer = server.timer()
        heardAt = server.now
    }

    func begin(_ pending: [UInt8]) {
        stream.onBytes = { [weak self] bytes in
            guard let self, let server = self.server else { return }
            self.heardAt = server.now
            self.turn { $0.receive(bytes) }
        }
        stream.onEnd = { [weak self] in self?.turn { $0.peerEnded() } }
        stream.onClose = { [weak self] _ in self?.close() }
        stream.onDrain = { [weak self] in self?.turn { $0.setOutputBlocked(false) } }
        if !pending.isEmpty { turn { $0.receive(pending[...]) } }
    }

    /// One input to the session, and what follows from it.
    private func turn(_ body: (inout BeanstalkSession) -> Void) {
        guard isOpen, endedAt == nil, let server else { return }
        session.tick(now: server.now)
        body(&session)
        guard !isRunning else { return }
        isRunning = true
        defer { isRunning = false }
        var hasAnswered = false
        while isOpen {
            let actions = session.takeActions()
            if actions.isEmpty { break }
            for action in actions {
                if case .send = action { hasAnswered = true }
                perform(action, server)
            }
        }
        guard isOpen, endedAt == nil else { return }
        if server.isDraining { endIfAtRest(hasAnswered: hasAnswered) }
        guard endedAt == nil else { return }
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
        case .close: if server.isDraining { end() } else { close() }
        }
    }

    // MARK: The end of the service

    fileprivate func beginDraining() { turn { $0.endReserves() } }

    /// Ends the connection if nothing would be lost: all that was sent is answered, and no job is held. Best with an answer: a
    /// client that waits for it sends nothing meanwhile, and finds the end together with it, before it sends the next command.
    fileprivate func endIfAtRest(hasAnswered: Bool) {
        guard isOpen, let server else { return }
        if let endedAt {
            if server.now >= endedAt + QueueServer.lingerTime { close() }
            return
        }
        if session.hasStopped {
            if session.outstanding == nil { end() }
            return
        }
        guard session.isAtRest, !session.mayHoldJobs, !stream.stream.hasUnreadInput else { return }
        if hasAnswered || server.now >= heardAt + QueueServer.drainSilence { end() }
    }

    /// Begins no further command: the one under way is answered, then the connection ends.
    fileprivate func cut() {
        if endedAt != nil { return endIfAtRest(hasAnswered: false) }
        turn { $0.stop() }
    }

    /// Says that this side will send nothing more. What the client may still send is thrown away, until it closes as well: it was
    /// not executed, and must not make the kernel reset the connection before the client has read its last answer.
    private func end() {
        guard isOpen, endedAt == nil, let server else { return }
        endedAt = server.now
        deadlineTimer.stop()
        release()
        stream.shutDownWithLastBytes()
        stream.resumeReading()
    }

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
        release()
        server?.closed(number)
    }

    private var isReleased = false

    /// Nothing more will be asked for this client: what it held goes back.
    private func release() {
        guard !isReleased, let server else { return }
        isReleased = true
        if let current = underWay { server.abandon(current.asked) }
        if session.mayHoldJobs { server.submitLast(next(.queue(.releaseHolder(session.holder)), wait: nil)) }
        if sequence > 0 { server.submitLast(next(.endSession, wait: nil)) }
        server.take(session.takeCounts())
    }
}
