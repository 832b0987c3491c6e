// Streams between named services: one side listens through a node, the other dials through any node, and the nodes join them.
//
//     dial:    hello ▶ welcome ◀ dial(service, time-out) ▶ connected ◀ bytes ◀▶
//     listen:  hello ▶ welcome ◀ listen(service) ▶ connected ◀ incoming(token) ◀ …
//     and for each incoming, on a new connection to the same node:  hello ▶ welcome ◀ accept(token) ▶ connected ◀ bytes ◀▶
import EventLoop
import Model
import NodeCore
import Security
import Transport
import Wire

/// One call of ``ClusterClient/dial(_:timeout:then:)``. Tries again while nodes have no leader or break off, until the time-out.
final class ServiceDial {
    private let service: String
    private let loop: EventLoop
    private let book: EndpointBook
    private let key: ClusterKey?
    private let deadline: MonotonicTime
    private let timeout: TimeSpan
    private let givesUpOnNobody: Bool
    private var backOff: BackOff
    private let timer: LoopTimer
    private let retryTimer: LoopTimer
    private var finder: ConnectionFinder?
    private var link: FrameLink?
    private var lastError: CoterieError?
    private var done: ((Result<RawStream, CoterieError>) -> Void)?

    init(
        service: String, loop: EventLoop, book: EndpointBook, key: ClusterKey?, timeout: TimeSpan,
        givesUpOnNobody: Bool, backOff: BackOff
    ) {
        self.service = service
        self.loop = loop
        self.book = book
        self.key = key
        self.timeout = timeout
        self.givesUpOnNobody = givesUpOnNobody
        self.backOff = backOff
        deadline = loop.now + timeout
        timer = LoopTimer(loop: loop)
        retryTimer = LoopTimer(loop: loop)
    }

    func start(_ done: @escaping (Result<RawStream, CoterieError>) -> Void) {
        self.done = done
        timer.start(after: timeout) { [weak self] in
            guard let self else { return }
            let nobody = finder.map { book.noCluster($0.failures) }
            fail(lastError ?? nobody ?? CoterieError(.deadline, "no stream to \(service) within \(timeout)"))
        }
        search()
    }

    func fail(_ error: CoterieError) { finish(.failure(error)) }

    private func search() {
        let finder = ConnectionFinder(
            loop: loop, book: book, key: key, patience: .until(deadline), givesUpOnNobody: givesUpOnNobody,
            backOff: backOff
        ) { [weak self] result in
            guard let self else { return }
            self.finder = nil
            switch result {
            case .success(let connection): opened(connection)
            case .failure(let error): fail(error)
            }
        }
        self.finder = finder
        finder.start()
    }

    private func opened(_ connection: OpenConnection) {
        let link = connection.link
        self.link = link
        link.onClose = { [weak self] _ in
            self?.retry(
                CoterieError(.unavailable, "the connection to \(connection.address) was lost"), connection.address)
        }
        link.onFrame = { [weak self, weak link] frame in
            guard let self, let link else { return }
            switch FrameKind(rawValue: frame.kind) {
            case .connected:
                self.link = nil
                let (stream, pending) = link.becomeRaw()
                finish(.success(RawStream(loop: loop, stream, pending: pending)))
            case .refused:
                let error = refusal(frame.payload)
                if error.code == .noLeader || error.code == .unavailable {
                    retry(error, connection.address)
                } else {
                    fail(error)
                }
            default: break
            }
        }
        var writer = ByteWriter()
        writer.string(service)
        writer.i64((deadline - loop.now).nanoseconds)
        link.send(kind: FrameKind.dial.rawValue, payload: writer.bytes)
    }

    private func retry(_ error: CoterieError, _ address: SocketAddress) {
        lastError = error
        link?.close()
        link = nil
        book.avoid(address)
        retryTimer.start(after: backOff.next()) { [weak self] in self?.search() }
    }

    private func finish(_ result: Result<RawStream, CoterieError>) {
        guard let done else { return }
        self.done = nil
        timer.close()
        retryTimer.close()
        finder?.cancel()
        finder = nil
        link?.close()
        link = nil
        done(result)
    }
}

/// An offer of a service. Registered with one node at a time, for ever until it is closed. Confined to its loop.
public final class ServiceListener {
    /// Connections that are being taken at once; more are left to their dialler's time-out.
    static let acceptLimit = 1_024

    public let service: String
    private let loop: EventLoop
    private let book: EndpointBook
    private let key: ClusterKey?
    private let timeout: TimeSpan
    private let givesUpOnNobody: Bool
    private var backOff: BackOff
    private let timer: LoopTimer
    private let retryTimer: LoopTimer
    private var finder: ConnectionFinder?
    private var link: FrameLink?
    private var accepting: [UInt64: Accept] = [:]
    private var onConnection: ((RawStream) -> Void)?
    private var then: ((Result<ServiceListener, CoterieError>) -> Void)?
    private var isFirst = true
    private var isClosed = false
    var onClosed: (() -> Void)?

    /// Whether a node knows of the offer now.
    public private(set) var isRegistered = false

    init(
        service: String, loop: EventLoop, book: EndpointBook, key: ClusterKey?, timeout: TimeSpan,
        givesUpOnNobody: Bool,
        generator: SeededGenerator, onConnection: @escaping (RawStream) -> Void
    ) {
        self.service = service
        self.loop = loop
        self.book = book
        self.key = key
        self.timeout = timeout
        self.givesUpOnNobody = givesUpOnNobody
        self.onConnection = onConnection
        backOff = BackOff(generator: generator)
        timer = LoopTimer(loop: loop)
        retryTimer = LoopTimer(loop: loop)
    }

    func start(then: @escaping (Result<ServiceListener, CoterieError>) -> Void) {
        self.then = then
        timer.start(after: timeout) { [weak self] in
            guard let self else { return }
            let nobody = finder.map { book.noCluster($0.failures) }
            refuse(nobody ?? CoterieError(.deadline, "\(service) could not be registered within \(timeout)"))
        }
        search()
    }

    /// Takes the offer back. Streams that were handed out live on.
    public func close() {
        guard !isClosed else { return }
        isClosed = true
        isRegistered = false
        timer.close()
        retryTimer.close()
        finder?.cancel()
        finder = nil
        link?.close()
        link = nil
        let accepting = self.accepting
        self.accepting = [:]
        for accept in accepting.values { accept.cancel() }
        onConnection = nil
        let (then, onClosed) = (self.then, self.onClosed)
        self.then = nil
        self.onClosed = nil
        onClosed?()
        then?(.failure(RequestEngine.closedError))
    }

    private func refuse(_ error: CoterieError) {
        let then = self.then
        self.then = nil
        close()
        then?(.failure(error))
    }

    private func search() {
        let patience: ConnectionFinder.Patience = isFirst ? .until(loop.now + timeout) : .forever
        let finder = ConnectionFinder(
            loop: loop, book: book, key: key, patience: patience, givesUpOnNobody: givesUpOnNobody, backOff: backOff
        ) { [weak self] result in
            guard let self else { return }
            self.finder = nil
            switch result {
            case .success(let connection): opened(connection)
            case .failure(let error): refuse(error)
            }
        }
        self.finder = finder
        finder.start()
    }

    private func opened(_ connection: OpenConnection) {
        let link = connection.link
        self.link = link
        link.onClose = { [weak self] _ in self?.lost(connection.address) }
        link.onFrame = { [weak self] frame in self?.received(frame, connection.address) }
        var writer = ByteWriter()
        writer.string(service)
        link.send(kind: FrameKind.listen.rawValue, payload: writer.bytes)
    }

    private func received(_ frame: Frame, _ address: SocketAddress) {
        switch FrameKind(rawValue: frame.kind) {
        case .connected:
            isRegistered = true
            isFirst = false
            backOff.reset()
            timer.stop()
            let then = self.then
            self.then = nil
            then?(.success(self))
        case .incoming:
            var reader = ByteReader(frame.payload)
            guard let token = try? reader.u64(), accepting[token] == nil, accepting.count < ServiceListener.acceptLimit
            else { return }
            let accept = Accept(loop: loop, address: address, key: key, token: token) { [weak self] stream in
                guard let self else { return }
                accepting[token] = nil
                if let stream { onConnection?(stream) }
            }
            accepting[token] = accept
            accept.start()
        case .refused:
            let error = refusal(frame.payload)
            if isFirst && error.code != .noLeader && error.code != .unavailable { refuse(error) } else { lost(address) }
        default: break
        }
    }

    private func lost(_ address: SocketAddress) {
        isRegistered = false
        link?.close()
        link = nil
        book.avoid(address)
        retryTimer.start(after: backOff.next()) { [weak self] in self?.search() }
    }

    /// Takes one stream at the node that announced it.
    private final class Accept {
        private let loop: EventLoop
        private let token: UInt64
        private var opening: OpeningConnection?
        private var link: FrameLink?
        private let timer: LoopTimer
        private var done: ((RawStream?) -> Void)?

        init(
            loop: EventLoop, address: SocketAddress, key: ClusterKey?, token: UInt64,
            done: @escaping (RawStream?) -> Void
        ) {
            self.loop = loop
            self.token = token
            self.done = done
            timer = LoopTimer(loop: loop)
            opening = OpeningConnection(loop: loop, address: address, key: key) { [weak self] result in
                guard let self else { return }
                opening = nil
                if case .success(let connection) = result { opened(connection.link) } else { finish(nil) }
            }
        }

        func start() {
            timer.start(after: .seconds(10)) { [weak self] in self?.finish(nil) }
            opening?.start()
        }

        func cancel() {
            done = nil
            close()
        }

        private func opened(_ link: FrameLink) {
            self.link = link
            link.onClose = { [weak self] _ in self?.finish(nil) }
            link.onFrame = { [weak self, weak link] frame in
                guard let self, let link else { return }
                guard frame.kind == FrameKind.connected.rawValue else { return finish(nil) }
                self.link = nil
                let (stream, pending) = link.becomeRaw()
                finish(RawStream(loop: loop, stream, pending: pending))
            }
            var writer = ByteWriter()
            writer.u64(token)
            link.send(kind: FrameKind.accept.rawValue, payload: writer.bytes)
        }

        private func finish(_ stream: RawStream?) {
            guard let done else { return }
            self.done = nil
            close()
            done(stream)
        }

        private func close() {
            timer.close()
            opening?.cancel()
            opening = nil
            link?.close()
            link = nil
        }
    }
}
