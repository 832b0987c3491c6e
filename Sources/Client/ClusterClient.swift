// The library that the command line, the console and the containers of patterns use to talk to a cluster.
import EventLoop
import Model
import NodeCore
import Security
import Wire

/// A client of one cluster. Confined to its loop: use it from the loop's call-backs, or from tasks that prefer the loop's
/// executor. It finds a node among its addresses, follows the cluster when that node goes, and sends again what may be sent
/// again: a command applies once, whatever happens to connections.
///
/// Each question comes in two forms: with a call-back, for hot paths, and `async`. Many may be in flight at once.
public final class ClusterClient {
    private let loop: EventLoop
    private let book: EndpointBook
    private let key: ClusterKey?
    private let timeout: TimeSpan
    private let givesUpOnNobody: Bool
    private let engine: RequestEngine
    private var generator: SeededGenerator
    private var dials: [ObjectIdentifier: ServiceDial] = [:]
    private var listeners: [ObjectIdentifier: ServiceListener] = [:]
    private var isClosed = false

    /// - Parameters:
    ///   - endpoints: tried in order; Unix sockets need no key.
    ///   - origin: where the addresses come from, in words, for the error when nobody answers.
    ///   - timeout: for everything that is not given its own.
    ///   - givesUpOnNobody: fail as soon as nobody listens at any address and never has. A container that may be up before
    ///     its node passes false and waits for the time-out.
    public init(
        loop: EventLoop, endpoints: [SocketAddress], key: ClusterKey?, origin: String, timeout: TimeSpan,
        givesUpOnNobody: Bool = true,
        seed: UInt64 = .random(in: 0 ... .max)
    ) {
        self.loop = loop
        self.key = key
        self.timeout = timeout
        self.givesUpOnNobody = givesUpOnNobody
        book = EndpointBook(endpoints, origin: origin)
        var generator = SeededGenerator(seed: seed)
        engine = RequestEngine(
            loop: loop, book: book, key: key, givesUpOnNobody: givesUpOnNobody, generator: &generator)
        self.generator = generator
    }

    /// Ends everything; what is still open fails with `interrupted`.
    public func close() {
        guard !isClosed else { return }
        isClosed = true
        engine.close()
        let (dials, listeners) = (dials.values, listeners.values)
        self.dials = [:]
        self.listeners = [:]
        for dial in dials { dial.fail(RequestEngine.closedError) }
        for listener in listeners { listener.close() }
    }

    // MARK: - With call-backs

    /// A read, answered with a JSON document. The call-back never comes from within this call.
    @discardableResult
    public func query(
        _ path: String, deadline: TimeSpan? = nil, then: @escaping (Result<JSONValue, CoterieError>) -> Void
    ) -> PendingRequest {
        engine.ask(.query(path), patience: deadline ?? timeout) { then(ClusterClient.document($0)) }
    }

    /// A command for the replicated state. `wait` is how long a reserve waits for a job; it is added to the deadline.
    @discardableResult
    public func command(
        _ command: StateCommand, wait: TimeSpan? = nil, deadline: TimeSpan? = nil,
        then: @escaping (Result<StateResult, CoterieError>) -> Void
    ) -> PendingRequest {
        engine.ask(.command(command, wait: wait), patience: deadline ?? timeout) { answer in
            switch answer {
            case .success(.state(let result)): then(.success(result))
            case .success: then(.failure(CoterieError(.failed, "an answer of the wrong kind")))
            case .failure(let error): then(.failure(error))
            }
        }
    }

    /// An order to the node or to the cluster's membership: a document with a `verb`. Never sent twice once a node may have
    /// begun to carry it out.
    @discardableResult
    public func admin(
        _ order: JSONValue, deadline: TimeSpan? = nil, then: @escaping (Result<JSONValue, CoterieError>) -> Void
    ) -> PendingRequest {
        engine.ask(.admin(order), patience: deadline ?? timeout) { then(ClusterClient.document($0)) }
    }

    /// A read that goes on. `onEnd` gets nil when the node has ended it, `unavailable` when the connection broke after the
    /// first item: the caller knows where to resume.
    public func startWatch(
        _ path: String, onItem: @escaping (JSONValue) -> Void, onEnd: @escaping (CoterieError?) -> Void
    ) -> WatchHandle {
        let request = engine.ask(.watch(path, onItem: onItem), patience: timeout) { answer in
            switch answer {
            case .success: onEnd(nil)
            case .failure(let error): onEnd(error)
            }
        }
        return WatchHandle(engine: engine, request: request)
    }

    /// Takes a request back; its call-back is not called any more. What it asked for may have been done.
    public func cancel(_ request: PendingRequest) { engine.cancel(request) }

    private static func document(_ answer: Result<PendingRequest.Answer, CoterieError>) -> Result<
        JSONValue, CoterieError
    > {
        switch answer {
        case .success(.document(let document)): .success(document)
        case .success: .failure(CoterieError(.failed, "an answer of the wrong kind"))
        case .failure(let error): .failure(error)
        }
    }

    // MARK: - Streams

    /// A raw stream to somebody who listens for `service` anywhere in the cluster.
    public func dial(_ service: String, timeout: TimeSpan, then: @escaping (Result<RawStream, CoterieError>) -> Void) {
        guard !isClosed else { return loop.beforeWaiting { then(.failure(RequestEngine.closedError)) } }
        let dial = ServiceDial(
            service: service, loop: loop, book: book, key: key, timeout: timeout, givesUpOnNobody: givesUpOnNobody,
            backOff: newBackOff())
        dials[ObjectIdentifier(dial)] = dial
        dial.start { [weak self, weak dial] result in
            if let dial { self?.dials[ObjectIdentifier(dial)] = nil }
            then(result)
        }
    }

    /// Offers `service` to the cluster. `then` tells of the first registration or why there was none; after that the listener
    /// registers again by itself whenever its connection breaks, until it is closed.
    public func listen(
        _ service: String, onConnection: @escaping (RawStream) -> Void,
        then: @escaping (Result<ServiceListener, CoterieError>) -> Void
    ) {
        guard !isClosed else { return loop.beforeWaiting { then(.failure(RequestEngine.closedError)) } }
        let listener = ServiceListener(
            service: service, loop: loop, book: book, key: key, timeout: timeout, givesUpOnNobody: givesUpOnNobody,
            generator: generator.fork(),
            onConnection: onConnection)
        let id = ObjectIdentifier(listener)
        listeners[id] = listener
        listener.onClosed = { [weak self] in self?.listeners[id] = nil }
        listener.start(then: then)
    }

    private func newBackOff() -> BackOff { BackOff(generator: generator.fork()) }

    // MARK: - Async

    nonisolated(nonsending) public func query(_ path: String, deadline: TimeSpan? = nil) async throws(CoterieError)
        -> JSONValue
    {
        try await answer { query(path, deadline: deadline, then: $0) }
    }

    nonisolated(nonsending) public func command(
        _ command: StateCommand, wait: TimeSpan? = nil, deadline: TimeSpan? = nil
    ) async throws(CoterieError) -> StateResult {
        try await answer { self.command(command, wait: wait, deadline: deadline, then: $0) }
    }

    nonisolated(nonsending) public func admin(_ order: JSONValue, deadline: TimeSpan? = nil) async throws(CoterieError)
        -> JSONValue
    {
        try await answer { admin(order, deadline: deadline, then: $0) }
    }

    /// Returns at the watch's end.
    nonisolated(nonsending) public func watch(_ path: String, onItem: @escaping (JSONValue) -> Void)
        async throws(CoterieError)
    {
        let end: CoterieError? = await waitFor { done in _ = startWatch(path, onItem: onItem, onEnd: done) }
        if let end { throw end }
    }

    nonisolated(nonsending) public func dial(_ service: String, timeout: TimeSpan) async throws(CoterieError)
        -> RawStream
    {
        try await answer { dial(service, timeout: timeout, then: $0) }
    }

    nonisolated(nonsending) public func listen(
        _ service: String, onConnection: @escaping (RawStream) -> Void
    ) async throws(CoterieError) -> ServiceListener {
        try await answer { listen(service, onConnection: onConnection, then: $0) }
    }

    /// Lets the cluster forget this client's sessions, if it can be done at once. Call it when no command is outstanding.
    nonisolated(nonsending) public func endSession() async {
        guard engine.isOpen else { return }
        for lane in engine.endableLanes {
            await waitFor { done in _ = engine.ask(.endSession(lane: lane), patience: .seconds(1)) { _ in done(()) } }
        }
    }

    nonisolated(nonsending) private func answer<Value>(
        _ ask: (@escaping (Result<Value, CoterieError>) -> Void) -> Void
    ) async throws(CoterieError) -> Value {
        try await waitFor(ask).get()
    }
}

/// Suspends until the call-back is called. The value stays on the loop's thread, where both sides run, so it need not be
/// `Sendable`.
nonisolated(nonsending) func waitFor<Value>(_ start: (@escaping (Value) -> Void) -> Void) async -> Value {
    var value: Value?
    await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
        start {
            value = $0
            continuation.resume()
        }
    }
    guard let value else { preconditionFailure("resumed without a value") }
    return value
}

/// A watch that can be ended by the watcher.
public final class WatchHandle {
    private let engine: RequestEngine
    private let request: PendingRequest

    init(engine: RequestEngine, request: PendingRequest) {
        self.engine = engine
        self.request = request
    }

    /// No further item, and no `onEnd`.
    public func cancel() { engine.cancel(request) }
}
