// A byte stream that is either TLS with the cluster's key or plain (Unix sockets, whose peer the kernel names). What is
// written in one turn of the loop leaves in one record and one system call.
import EventLoop
import Model
import Security

/// Bytes both ways over one ``ByteStream``. Confined to its loop; closed once; no call-back after `close()`.
public final class SecureStream {
    private let loop: EventLoop
    public let stream: ByteStream
    private let tls: TLSSession?
    private var outgoing: [UInt8] = []
    private var flushScheduled = false
    private var established: Bool
    private var closed = false
    private var ended = false
    /// ``shutdown()`` was called; carried out when the handshake is complete.
    private var saidAll = false

    /// The handshake is complete (at once on a plain stream); nothing is delivered before.
    public var onEstablished: (() -> Void)?
    public var onBytes: ((ArraySlice<UInt8>) -> Void)?
    /// The peer will send nothing more.
    public var onEnd: (() -> Void)?
    /// The stream is gone; nil after an orderly end of both sides. Never called after our own ``close()``.
    public var onClose: ((CoterieError?) -> Void)?
    public var onDrain: (() -> Void)?
    /// Held as long as the stream is open.
    public var whileOpen: AnyObject?

    public init(loop: EventLoop, stream: ByteStream, tls: TLSSession?) {
        self.loop = loop
        self.stream = stream
        self.tls = tls
        established = tls == nil
    }

    /// Starts the handshake and reading. Set the call-backs first.
    public func start() {
        stream.onBytes = { [weak self] bytes in self?.received(bytes) }
        stream.onEnd = { [weak self] in self?.receivedEnd() }
        stream.onClose = { [weak self] error in
            self?.fail(error.map { CoterieError(.unavailable, "connection lost: \($0)") })
        }
        stream.onDrain = { [weak self] in self?.onDrain?() }
        stream.resumeReading()
        if tls != nil { advance() } else { onEstablished?() }
    }

    public var isEstablished: Bool { established }
    public var isCongested: Bool { stream.isCongested || outgoing.count > stream.highWater }
    public var queuedBytes: Int { stream.queuedBytes + outgoing.count }

    public func pauseReading() { if !closed { stream.pauseReading() } }
    public func resumeReading() { if !closed { stream.resumeReading() } }

    /// Queues bytes; they leave when this turn of the loop ends, or at once when much has gathered. Ignored after
    /// ``shutdown()``.
    public func write(_ bytes: [UInt8]) {
        guard !closed, !saidAll else { return }
        outgoing.append(contentsOf: bytes)
        scheduleFlush()
    }

    /// The same for other collections, which cost a little more.
    public func write(_ bytes: some Collection<UInt8>) {
        guard !closed, !saidAll else { return }
        outgoing.append(contentsOf: bytes)
        scheduleFlush()
    }

    /// The same for one ``Wire/Frame``.
    func write(frame kind: UInt8, _ channel: UInt32, _ payload: [UInt8]) {
        guard !closed, !saidAll else { return }
        let length = UInt32(payload.count + 5)
        for shift in [UInt32(0), 8, 16, 24] { outgoing.append(UInt8(truncatingIfNeeded: length >> shift)) }
        outgoing.append(kind)
        for shift in [UInt32(0), 8, 16, 24] { outgoing.append(UInt8(truncatingIfNeeded: channel >> shift)) }
        outgoing.append(contentsOf: payload)
        scheduleFlush()
    }

    private func scheduleFlush() {
        if outgoing.count >= 256 << 10 {
            flush()
        } else if !flushScheduled {
            flushScheduled = true
            loop.beforeWaiting { [weak self] in self?.flush() }
        }
    }

    /// Sends what is queued now.
    public func flush() {
        flushScheduled = false
        guard !closed, established, !outgoing.isEmpty else { return }
        let plain = outgoing
        outgoing = []
        guard let tls else {
            stream.write(plain)
            return
        }
        do {
            try tls.write(plain)
            stream.write(tls.pump())
        } catch {
            fail(SecureStream.refusal(error))
        }
    }

    /// No more writing; the peer sees an end after what is queued.
    public func shutdown() {
        guard !closed, !saidAll else { return }
        saidAll = true
        if established { finishWriting() }
    }

    /// ``shutdown()``, with what is queued and the end in one segment where the transport has segments.
    public func shutDownWithLastBytes() {
        guard !closed, !saidAll else { return }
        guard established else { return shutdown() }
        saidAll = true
        stream.shutDownWithNextBytes {
            flush()
            if !closed { announceEnd() }
        }
    }

    private func finishWriting() {
        flush()
        guard !closed else { return }
        announceEnd()
        stream.shutdown()
    }

    /// An end that is not announced looks to the peer as if somebody had cut the connection.
    private func announceEnd() {
        guard let tls, established else { return }
        tls.shutdown()
        let bytes = tls.pump()
        if !bytes.isEmpty { stream.write(bytes) }
    }

    public func close() {
        guard !closed else { return }
        flush()
        guard !closed else { return }
        announceEnd()
        closed = true
        clear()
        stream.close()
    }

    private func received(_ bytes: UnsafeRawBufferPointer) {
        guard let tls else {
            onBytes?(Array(bytes)[...])
            return
        }
        tls.feed(bytes)
        advance()
    }

    private func advance() {
        guard let tls, !closed else { return }
        do {
            let plain = try tls.step()
            let out = tls.pump()
            if !out.isEmpty { stream.write(out) }
            if !established && tls.isEstablished {
                established = true
                onEstablished?()
                if saidAll && !closed { finishWriting() } else if !closed { flush() }
            }
            if !plain.isEmpty && !closed { onBytes?(plain[...]) }
            if tls.isClosed && !closed { receivedEnd() }
        } catch {
            // An alert for the peer may be waiting; it says why it is refused.
            let out = tls.pump()
            if !out.isEmpty { stream.write(out) }
            fail(SecureStream.refusal(error))
        }
    }

    private static func refusal(_ error: any Error) -> CoterieError {
        switch error as? SecurityError {
        case .wrongKey:
            CoterieError(
                .notAllowed, "\(SecurityError.wrongKey)",
                hint: "use the key of this cluster: keys/cluster.key of a node")
        case .handshake:
            CoterieError(.notAllowed, "TLS handshake refused: \(error)", hint: "does the peer have the cluster's key?")
        default: CoterieError(.unavailable, "TLS: \(error)")
        }
    }

    private func receivedEnd() {
        guard !closed, !ended else { return }
        ended = true
        if !established {
            // A wrong key is told by an alert; this may as well be a process that has just died.
            fail(CoterieError(.unavailable, "the peer closed the connection during the handshake"))
        } else if let tls, !tls.isClosed {
            // Whoever can cut a connection must not be able to pass off half a stream as the whole.
            fail(CoterieError(.unavailable, "the connection was cut: the peer has not said that it was at its end"))
        } else {
            onEnd?()
        }
    }

    private func fail(_ error: CoterieError?) {
        guard !closed else { return }
        closed = true
        let report = onClose
        clear()
        stream.close()
        report?(error)
    }

    private func clear() {
        onEstablished = nil
        onBytes = nil
        onEnd = nil
        onClose = nil
        onDrain = nil
        whileOpen = nil
    }
}
