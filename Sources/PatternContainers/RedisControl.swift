// The ambassador's own connection to a Redis server or Sentinel: small questions, whole answers, in order.
import EventLoop
import Model

final class RedisControl {
    private let loop: EventLoop
    let endpoint: Endpoint
    private var attempt: ConnectAttempt?
    private var stream: ByteStream?
    private var scanner = RESPReplyScanner()
    private var reply: [UInt8] = []
    private var waiting = FIFO<(Result<RESPValue, CoterieError>) -> Void>()
    private var closed = false
    /// Largest reply taken; COMMAND's is about 200 KB.
    private static let replyLimit = 8 << 20

    /// A reply that no question asked for: a published message.
    var onMessage: ((RESPValue) -> Void)?
    /// The connection failed or ended; questions without an answer have been told. Not called after ``close()``.
    var onClose: ((CoterieError) -> Void)?

    /// Questions may be asked at once; they leave when the connection stands.
    private var unsent: [UInt8] = []

    init(loop: EventLoop, to endpoint: Endpoint, timeout: TimeSpan) {
        self.loop = loop
        self.endpoint = endpoint
        attempt = ConnectAttempt(loop: loop, to: endpoint, timeout: timeout) { [weak self] result in
            guard let self else { return }
            attempt = nil
            switch result {
            case .success(let stream): connected(stream)
            case .failure(let error): fail(error)
            }
        }
    }

    /// `done` is called once, unless ``close()`` comes first.
    func ask(_ arguments: [String], _ done: @escaping (Result<RESPValue, CoterieError>) -> Void) {
        guard !closed else { return }
        waiting.append(done)
        let bytes = RESP.command(arguments.map { Array($0.utf8) })
        if let stream { stream.write(bytes) } else { unsent += bytes }
    }

    func close() {
        closed = true
        attempt?.cancel()
        attempt = nil
        stream?.close()
        stream = nil
        waiting = FIFO()
        onMessage = nil
        onClose = nil
    }

    private func connected(_ stream: ByteStream) {
        self.stream = stream
        stream.onBytes = { [weak self] bytes in self?.received(bytes) }
        stream.onEnd = { [weak self] in
            guard let self else { return }
            fail(CoterieError(.unavailable, "\(endpoint) closed the connection"))
        }
        stream.onClose = { [weak self] error in
            guard let self else { return }
            fail(CoterieError(.unavailable, "connection to \(endpoint) lost: \(error.map { "\($0)" } ?? "closed")"))
        }
        stream.resumeReading()
        if !unsent.isEmpty { stream.write(unsent) }
        unsent = []
    }

    private func received(_ bytes: UnsafeRawBufferPointer) {
        var at = 0
        do throws(RESPError) {
            while at < bytes.count && !closed {
                let progress = try scanner.scan(bytes, from: at)
                let end = if case .complete(let end) = progress { end } else { bytes.count }
                guard reply.count + end - at <= RedisControl.replyLimit else {
                    throw RESPError(message: "a reply is too large")
                }
                reply.append(contentsOf: UnsafeRawBufferPointer(rebasing: bytes[at..<end]))
                at = end
                if progress == .more { break }
                let value = try RESPValue(parsing: reply)
                reply = []
                if let done = waiting.popFirst() { done(.success(value)) } else { onMessage?(value) }
            }
        } catch {
            fail(CoterieError(.failed, "\(endpoint) does not speak Redis' protocol: \(error)"))
        }
    }

    private func fail(_ error: CoterieError) {
        guard !closed else { return }
        let unanswered = waiting.takeAll()
        let report = onClose
        close()
        for done in unanswered { done(.failure(error)) }
        report?(error)
    }
}
