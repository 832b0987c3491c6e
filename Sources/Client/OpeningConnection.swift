// From an address to a connection on which frames may be exchanged: connect, TLS where it is TCP, hello, welcome.
import EventLoop
import Model
import NodeCore
import Security
import Transport
import Wire

/// A node that has welcomed us. Whoever gets it sets the link's call-backs at once and owns it.
struct OpenConnection {
    let link: FrameLink
    let welcome: Welcome
    let address: SocketAddress
}

/// Why one address did not work.
struct OpenFailure: Error {
    var error: CoterieError
    /// The node is there and will not have us, so that trying again is of no use.
    var isFinal = false
    /// Nobody listens there.
    var isNobody = false
}

/// One attempt. Calls back once, never after ``cancel()``.
final class OpeningConnection {
    static let connectTimeout = TimeSpan.seconds(2)
    static let welcomeTimeout = TimeSpan.seconds(3)

    private let loop: EventLoop
    private let address: SocketAddress
    private let key: ClusterKey?
    private var link: FrameLink?
    private let timer: LoopTimer
    private var done: ((Result<OpenConnection, OpenFailure>) -> Void)?

    init(
        loop: EventLoop, address: SocketAddress, key: ClusterKey?,
        done: @escaping (Result<OpenConnection, OpenFailure>) -> Void
    ) {
        self.loop = loop
        self.address = address
        self.key = key
        self.done = done
        timer = LoopTimer(loop: loop)
    }

    func start() {
        ByteStream.connect(loop: loop, to: address, timeout: OpeningConnection.connectTimeout) { [weak self] result in
            switch result {
            case .success(let stream):
                guard let self, done != nil else { return stream.close() }
                connected(stream)
            case .failure(let error):
                guard let self else { return }
                let denied = error.name == "EACCES" || error.name == "EPERM"
                finish(
                    .failure(
                        OpenFailure(
                            error: CoterieError(denied ? .notAllowed : .unavailable, "\(error)"), isFinal: denied,
                            isNobody: error.name == "ECONNREFUSED" || error.name == "ENOENT")))
            }
        }
    }

    func cancel() {
        done = nil
        timer.close()
        link?.close()
        link = nil
    }

    private func connected(_ stream: ByteStream) {
        // Only now: where nobody listens there is no cluster, and a key would not help.
        if !address.isUnix && key == nil {
            stream.close()
            return finish(.failure(OpenFailure(error: EndpointBook.missingKey(address), isFinal: true)))
        }
        let tls: TLSSession?
        do {
            tls =
                try address.isUnix
                ? nil : key.map { key throws(SecurityError) in try TLSSession(role: .client, key: key) }
        } catch {
            stream.close()
            return finish(.failure(OpenFailure(error: CoterieError(.failed, "\(error)"), isFinal: true)))
        }
        let link = FrameLink(SecureStream(loop: loop, stream: stream, tls: tls))
        self.link = link
        link.onEstablished = { [weak link] in
            link?.send(kind: FrameKind.hello.rawValue, payload: Hello(role: .client).encoded)
        }
        link.onFrame = { [weak self] frame in self?.received(frame) }
        link.onClose = { [weak self] error in
            let error = error ?? CoterieError(.unavailable, "the node closed the connection")
            // Of TLS's failures only a wrong key gets this code; one that is cut short may succeed with the next try.
            self?.finish(.failure(OpenFailure(error: error, isFinal: error.code == .notAllowed)))
        }
        timer.start(after: OpeningConnection.welcomeTimeout) { [weak self] in
            self?.finish(
                .failure(
                    OpenFailure(
                        error: CoterieError(.unavailable, "no welcome within \(OpeningConnection.welcomeTimeout)"))))
        }
        link.start()
    }

    private func received(_ frame: Frame) {
        guard let link else { return }
        switch FrameKind(rawValue: frame.kind) {
        case .welcome:
            guard let welcome = try? Welcome(decoding: frame.payload) else { break }
            self.link = nil
            link.onEstablished = nil
            link.onFrame = nil
            link.onClose = nil
            return finish(.success(OpenConnection(link: link, welcome: welcome, address: address)))
        case .refused: return finish(.failure(OpenFailure(error: refusal(frame.payload), isFinal: true)))
        default: break
        }
        finish(
            .failure(
                OpenFailure(
                    error: CoterieError(.unavailable, "the peer does not speak coterie's protocol"), isFinal: true)))
    }

    private func finish(_ result: Result<OpenConnection, OpenFailure>) {
        guard let done else { return }
        cancel()
        done(result)
    }
}

/// The error in a `refused` or `end` frame.
func refusal(_ payload: [UInt8]) -> CoterieError {
    var reader = ByteReader(payload)
    return (try? CoterieError(decoding: &reader))
        ?? CoterieError(.failed, "the node refused without a reason that could be read")
}

extension SocketAddress {
    var isUnix: Bool { if case .unix = host { true } else { false } }
}
