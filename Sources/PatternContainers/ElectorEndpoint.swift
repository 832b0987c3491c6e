// The HTTP side of the elector (Burns and Oppenheimer's leader-election sidecar): the app asks localhost who leads. The
// rule that makes it safe: an answer rests on a local deadline, reckoned from when the last renewal that succeeded was
// *sent*, and a little before the lease can pass on; beyond it the answer is "in doubt", never the own name.
import EventLoop
import Model
import Wire

/// Who holds an election, and until when this process may say so.
public struct ElectionView: Hashable, Sendable {
    /// The holder's name as the app should see it (a pod's name).
    public var holder: String
    /// Whether that is this pod.
    public var isSelf: Bool
    /// The fencing token of the holder's lease.
    public var token: UInt64
    /// Not to be relied on from this moment: sending time of the last request that renewed or confirmed it + TTL × 7/8.
    public var deadline: MonotonicTime

    public init(holder: String, isSelf: Bool, token: UInt64, deadline: MonotonicTime) {
        self.holder = holder
        self.isSelf = isSelf
        self.token = token
        self.deadline = deadline
    }

    /// The deadline that a request sent at `sent` gives a lease of `ttl`.
    public static func deadline(sent: MonotonicTime, ttl: TimeSpan) -> MonotonicTime {
        sent + TimeSpan(nanoseconds: ttl.nanoseconds / 8 * 7)
    }
}

/// What the endpoint asks of the cluster. Confined to the loop.
public protocol ElectionSource: AnyObject {
    /// The latest knowledge; nil if there is none or no holder. The endpoint itself looks at the deadline.
    var current: ElectionView? { get }
    /// Set by the endpoint; to be called after `current` has changed in any way.
    var onChange: (() -> Void)? { get set }
    /// Gives the lease up. `current` must not name this pod any more before the request is sent.
    func resign(_ done: @escaping (CoterieError?) -> Void)
    /// Whether `token` is still the newest one granted, by the cluster's own word.
    func check(token: UInt64, _ done: @escaping (Result<Bool, CoterieError>) -> Void)
}

public struct ElectorOptions: Sendable {
    /// `--election`; the endpoint itself does not need it.
    public var election = ""
    /// `--ttl`: how long the lease lasts without a renewal.
    public var ttl: TimeSpan = .seconds(10)
    public var listen: SocketAddress = .loopback(port: 4040)
    public var maxConnections = 256
    /// A connection that has asked nothing for this long is closed; watches are exempt.
    public var idleTimeout: TimeSpan = .seconds(60)
    public var inherited: InheritedListeners = .current

    public init() {}
}

/// What to answer, apart from any socket.
enum ElectorAnswer: Equatable {
    case reply(status: Int, body: JSONValue)
    case watch
    case resign
    case check(token: UInt64)

    static func route(_ request: HTTPRequest, view: ElectionView?, now: MonotonicTime) -> ElectorAnswer {
        // A web page in a browser can reach localhost under a name of its own (DNS rebinding), or post blindly.
        if let host = request.header("host"), !isLocal(host) {
            return .error(403, "the host must be localhost or 127.0.0.1")
        }
        if let origin = request.header("origin") {
            let authority = origin.split(separator: "/", omittingEmptySubsequences: true).last.map(String.init) ?? ""
            guard isLocal(authority) else { return .error(403, "cross-origin requests are refused") }
        }
        func only(_ method: String, _ answer: ElectorAnswer) -> ElectorAnswer {
            request.method == method ? answer : .error(405, "only \(method) is allowed here")
        }
        let state = state(view, now)
        switch request.path {
        case "/":
            guard let valid = state.valid else { return only("GET", .error(503, "the leader is in doubt")) }
            return only("GET", .reply(status: 200, body: ["name": .string(valid.holder)]))
        case "/v1": return only("GET", .reply(status: state.valid == nil ? 503 : 200, body: state.body))
        case "/v1/watch": return only("GET", .watch)
        case "/v1/resign": return only("POST", .resign)
        case "/v1/check":
            guard let text = request.parameter("token"), let token = UInt64(text) else {
                return only("GET", .error(400, "?token=N is needed"))
            }
            return only("GET", .check(token: token))
        default: return .error(404, "no such path")
        }
    }

    static func error(_ status: Int, _ message: String) -> ElectorAnswer {
        .reply(status: status, body: ["error": .string(message)])
    }

    /// The document of `/v1`, and the view if it may still be relied on.
    static func state(_ view: ElectionView?, _ now: MonotonicTime) -> (valid: ElectionView?, body: JSONValue) {
        guard let view, now < view.deadline else {
            return (nil, ["leader": false, "name": nil, "token": 0, "expiresInMilliseconds": 0])
        }
        return (
            view,
            [
                "leader": .bool(view.isSelf), "name": .string(view.holder), "token": JSONValue(view.token),
                "expiresInMilliseconds": .int((view.deadline - now).milliseconds),
            ]
        )
    }

    static func isLocal(_ authority: String) -> Bool {
        var host = authority[...]
        if let colon = host.lastIndex(of: ":"), !host.hasSuffix("]") {
            guard host[host.index(after: colon)...].utf8.allSatisfy({ $0 >= 48 && $0 <= 57 }) else { return false }
            host = host[..<colon]
        }
        return ["localhost", "127.0.0.1", "[::1]"].contains(host.lowercased())
    }

    static func response(status: Int, body: JSONValue, keepAlive: Bool) -> [UInt8] {
        let text = body.utf8 + [10]
        let head =
            "HTTP/1.1 \(status) \(reason(status))\r\nContent-Type: application/json\r\nContent-Length: \(text.count)\r\n"
            + "Cache-Control: no-store\r\nConnection: \(keepAlive ? "keep-alive" : "close")\r\n\r\n"
        return Array(head.utf8) + text
    }

    private static func reason(_ status: Int) -> String {
        switch status {
        case 200: "OK"
        case 400: "Bad Request"
        case 403: "Forbidden"
        case 404: "Not Found"
        case 405: "Method Not Allowed"
        case 409: "Conflict"
        case 503: "Service Unavailable"
        default: "Error"
        }
    }
}

public final class ElectorEndpoint {
    private let loop: EventLoop
    private let options: ElectorOptions
    private let source: any ElectionSource
    private let report: Report
    private var listener: Listener?
    private var connections: [UInt64: Connection] = [:]
    private var nextConnection: UInt64 = 0
    /// Fires when the view that watchers were told last runs out.
    private let expiry: LoopTimer
    private var told: ElectionView?

    public init(
        loop: EventLoop, options: ElectorOptions, source: any ElectionSource,
        report: @escaping Report = reportToStandardError
    ) {
        self.loop = loop
        self.options = options
        self.source = source
        self.report = report
        expiry = LoopTimer(loop: loop)
    }

    public func start() throws(CoterieError) {
        let listener = try openListener(loop: loop, at: options.listen, environment: options.inherited)
        listener.onConnection = { [weak self] stream in self?.accept(stream) }
        self.listener = listener
        source.onChange = { [weak self] in self?.changed() }
        changed()
    }

    /// Nil before ``start()``.
    public var localAddress: SocketAddress? { listener?.localAddress }

    public func stop() {
        source.onChange = nil
        expiry.close()
        listener?.close()
        listener = nil
        let all = connections
        connections = [:]
        for (_, connection) in all { connection.close() }
    }

    private func accept(_ stream: ByteStream) {
        guard connections.count < options.maxConnections else { return stream.close() }
        let id = nextConnection
        nextConnection += 1
        let connection = Connection(self, id: id, stream: stream)
        connections[id] = connection
        connection.start()
    }

    private func changed() {
        let now = loop.now
        let valid = ElectorAnswer.state(source.current, now).valid
        // A mere renewal is not news to a watcher; a new holder, token or doubt is.
        let news = valid?.holder != told?.holder || valid?.isSelf != told?.isSelf || valid?.token != told?.token
        told = valid
        if let valid {
            expiry.start(after: valid.deadline - now) { [weak self] in self?.changed() }
        } else {
            expiry.stop()
        }
        guard news else { return }
        for (_, connection) in connections.sorted(by: { $0.key < $1.key }) { connection.tellWatcher() }
    }

    /// One client.
    private final class Connection {
        private weak var owner: ElectorEndpoint?
        private let id: UInt64
        private let stream: ByteStream
        private var parser = HTTPRequestParser()
        private var watching = false
        /// A request is with the cluster; the next one waits, so that answers keep their order.
        private var busy = false
        private var ended = false
        private let idle: LoopTimer

        init(_ owner: ElectorEndpoint, id: UInt64, stream: ByteStream) {
            self.owner = owner
            self.id = id
            self.stream = stream
            idle = LoopTimer(loop: owner.loop)
        }

        func start() {
            stream.onBytes = { [weak self] bytes in self?.received(bytes) }
            stream.onEnd = { [weak self] in
                guard let self else { return }
                ended = true
                if !busy { finish() }
            }
            stream.onClose = { [weak self] _ in self?.close() }
            stream.resumeReading()
            restartIdle()
        }

        private func restartIdle() {
            guard let owner else { return }
            idle.start(after: owner.options.idleTimeout) { [weak self] in
                guard let self, !watching, !busy else { return }
                close()
            }
        }

        private func received(_ bytes: UnsafeRawBufferPointer) {
            do throws(HTTPError) {
                // What a watcher still says is of no interest.
                if watching { return }
                try parser.feed(bytes)
                try advance()
            } catch {
                refuse(error)
            }
        }

        private func refuse(_ error: HTTPError) {
            stream.write(
                ElectorAnswer.response(status: error.status, body: ["error": .string(error.message)], keepAlive: false))
            finish()
        }

        private func advance() throws(HTTPError) {
            while let owner, !busy, !watching, let request = try parser.next() {
                restartIdle()
                switch ElectorAnswer.route(request, view: owner.source.current, now: owner.loop.now) {
                case .reply(let status, let body): answer(status, body, request.keepAlive)
                case .watch:
                    watching = true
                    stream.write(
                        Array(
                            ("HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nCache-Control: no-store\r\n"
                                + "Transfer-Encoding: chunked\r\n\r\n")
                                .utf8))
                    tellWatcher()
                case .resign:
                    busy = true
                    owner.source.resign { [weak self] error in
                        if let error {
                            self?.complete(503, ["error": .string(error.description)], request.keepAlive)
                        } else {
                            self?.complete(200, ["resigned": true], request.keepAlive)
                        }
                    }
                case .check(let token):
                    busy = true
                    owner.source.check(token: token) { [weak self] result in
                        switch result {
                        case .success(let valid):
                            self?.complete(
                                valid ? 200 : 409, ["valid": .bool(valid), "token": JSONValue(token)], request.keepAlive
                            )
                        case .failure(let error):
                            self?.complete(503, ["error": .string(error.description)], request.keepAlive)
                        }
                    }
                }
            }
        }

        private func complete(_ status: Int, _ body: JSONValue, _ keepAlive: Bool) {
            guard owner != nil else { return }
            busy = false
            answer(status, body, keepAlive)
            do throws(HTTPError) { try advance() } catch { refuse(error) }
            if ended && !busy { finish() }
        }

        private func answer(_ status: Int, _ body: JSONValue, _ keepAlive: Bool) {
            stream.write(ElectorAnswer.response(status: status, body: body, keepAlive: keepAlive))
            if !keepAlive { finish() }
        }

        func tellWatcher() {
            guard watching, let owner else { return }
            // A watcher that does not read is behind for good; it may connect again.
            guard stream.queuedBytes < 65_536 else { return close() }
            let line = ElectorAnswer.state(owner.source.current, owner.loop.now).body.utf8 + [10]
            stream.write(Array("\(String(line.count, radix: 16))\r\n".utf8) + line + [13, 10])
        }

        /// Ends after what is queued has left.
        private func finish() {
            stream.onBytes = nil
            stream.pauseReading()
            stream.shutdown()
            if stream.queuedBytes == 0 { return close() }
            stream.lowWater = 0
            stream.onDrain = { [weak self] in self?.close() }
        }

        func close() {
            idle.close()
            stream.close()
            owner?.connections[id] = nil
            owner = nil
        }
    }
}
