// A stream of bytes between two services of the cluster, after a node has joined them.
import EventLoop
import Model
import Transport

/// Bytes both ways, with back-pressure and half-closed ends. What arrives before somebody reads is kept, up to a limit at
/// which reading from the network pauses. Use call-backs (``start(onBytes:onEnd:onClose:)``), `async` reads, or hand the
/// stream on (``release()``), but one of them only. Confined to its loop.
public final class RawStream {
    /// Unread bytes at which the network is not read further.
    static let bufferLimit = 256 << 10

    private let loop: EventLoop
    private let stream: SecureStream
    private var wasReleased = false
    private var buffer: [UInt8]
    private var hasEnded = false
    private var isGone = false
    private var failure: CoterieError?
    private var isPaused = false
    private var reader: (() -> Void)?
    private var drainWaiters: [() -> Void] = []
    private var bytesHandler: ((ArraySlice<UInt8>) -> Void)?
    private var endHandler: (() -> Void)?
    private var closeHandler: ((CoterieError?) -> Void)?
    /// What was written has left, after the stream was congested.
    public var onDrain: (() -> Void)?

    /// `pending` are bytes of the stream that came with the last frame before it.
    public init(loop: EventLoop, _ stream: SecureStream, pending: [UInt8]) {
        self.loop = loop
        self.stream = stream
        buffer = pending
        stream.onBytes = { [weak self] bytes in self?.received(bytes) }
        stream.onEnd = { [weak self] in self?.ended() }
        stream.onClose = { [weak self] error in self?.gone(error) }
        stream.onDrain = { [weak self] in self?.drained() }
    }

    deinit { if !wasReleased { stream.close() } }

    // MARK: - Writing

    public var isCongested: Bool { stream.isCongested }
    public var queuedBytes: Int { stream.queuedBytes }

    /// Queues bytes without a limit: mind ``isCongested``.
    public func write(_ bytes: some Collection<UInt8>) { if !isGone { stream.write(bytes) } }

    /// Queues bytes and waits while much is queued.
    nonisolated(nonsending) public func send(_ bytes: some Collection<UInt8>) async throws(CoterieError) {
        write(bytes)
        while !isGone && stream.isCongested { await waitFor { done in drainWaiters.append { done(()) } } }
        if let failure { throw failure }
        if isGone { throw CoterieError(.unavailable, "the stream is closed") }
    }

    /// No more writing: the peer sees an end after what is queued.
    public func shutdown() { if !isGone { stream.shutdown() } }

    /// No call-back afterwards; a suspended reader gets the end.
    public func close() {
        guard !isGone else { return }
        isGone = true
        bytesHandler = nil
        endHandler = nil
        closeHandler = nil
        onDrain = nil
        buffer = []
        stream.close()
        wake()
    }

    // MARK: - Reading

    /// The next bytes, or nil at the end of the peer's half. One reader at a time.
    nonisolated(nonsending) public func read() async throws(CoterieError) -> [UInt8]? {
        while true {
            if !buffer.isEmpty {
                let bytes = buffer
                buffer = []
                resumeIfPaused()
                return bytes
            }
            if let failure { throw failure }
            if hasEnded || isGone { return nil }
            precondition(reader == nil, "two readers of one stream")
            await waitFor { done in reader = { done(()) } }
        }
    }

    /// Delivers by call-backs from now on, beginning with what has come already, in the next turn of the loop at the
    /// earliest. `onClose` comes once, with nil after an orderly end, and never after our own ``close()``.
    public func start(
        onBytes: @escaping (ArraySlice<UInt8>) -> Void, onEnd: @escaping () -> Void,
        onClose: @escaping (CoterieError?) -> Void
    ) {
        bytesHandler = onBytes
        endHandler = onEnd
        closeHandler = onClose
        loop.beforeWaiting { [weak self] in self?.deliver() }
    }

    public func pauseReading() {
        isPaused = true
        if !isGone { stream.pauseReading() }
    }

    public func resumeReading() { resumeIfPaused() }

    /// Gives the stream away, for a ``Transport/Relay``, with the bytes that nobody has read. To be done in the call that got
    /// this stream, before an end can have been seen.
    public func release() -> (stream: SecureStream, pending: [UInt8]) {
        wasReleased = true
        isGone = true
        stream.onBytes = nil
        stream.onEnd = nil
        stream.onClose = nil
        stream.onDrain = nil
        defer { buffer = [] }
        return (stream, buffer)
    }

    // MARK: - From the stream

    private func received(_ bytes: ArraySlice<UInt8>) {
        if let bytesHandler, buffer.isEmpty { return bytesHandler(bytes) }
        buffer.append(contentsOf: bytes)
        if buffer.count >= RawStream.bufferLimit { pauseReading() }
        wakeReader()
    }

    private func deliver() {
        guard !isGone || failure != nil || hasEnded || !buffer.isEmpty else { return }
        if !buffer.isEmpty, let bytesHandler {
            let bytes = buffer
            buffer = []
            bytesHandler(bytes[...])
        }
        resumeIfPaused()
        if hasEnded, let endHandler {
            self.endHandler = nil
            endHandler()
        }
        if isGone, let closeHandler {
            self.closeHandler = nil
            closeHandler(failure)
        }
    }

    private func ended() {
        hasEnded = true
        wakeReader()
        if bytesHandler != nil { deliver() }
    }

    private func gone(_ error: CoterieError?) {
        isGone = true
        failure = error
        wake()
        if bytesHandler != nil { deliver() }
    }

    private func drained() {
        let waiters = drainWaiters
        drainWaiters = []
        for waiter in waiters { waiter() }
        onDrain?()
    }

    private func resumeIfPaused() {
        guard isPaused else { return }
        isPaused = false
        if !isGone { stream.resumeReading() }
    }

    private func wakeReader() {
        let reader = self.reader
        self.reader = nil
        reader?()
    }

    private func wake() {
        wakeReader()
        let waiters = drainWaiters
        drainWaiters = []
        for waiter in waiters { waiter() }
    }
}
