// Where batches of encoded log records go. A sink says what has arrived for certain, and when a connection broke, so that
// the pipeline reads again from the last place that had arrived: the log files are the only buffer.
import EventLoop
import Glibc
import Model

/// The seam for log sinks. Confined to the loop; calls back never after ``close()``.
protocol LogSink: AnyObject {
    /// True while a further batch may be given.
    var isReady: Bool { get }
    /// `isReady` has become true.
    var onReady: (() -> Void)? { get set }
    /// So many more batches, in the order given, have arrived.
    var onArrived: ((Int) -> Void)? { get set }
    /// What was given and has not arrived must be given again.
    var onLost: (() -> Void)? { get set }
    /// Only when `isReady`.
    func send(_ batch: [UInt8])
    func close()
}

/// Syslog or JSON lines over TCP. These protocols have no answers, so "arrived" is the most that TCP tells: the peer's
/// kernel has the bytes (SIOCOUTQ) and, going by the window that the peer leaves open, its process has read them.
final class StreamLogSink: LogSink {
    private let loop: EventLoop
    private let target: LogTarget
    private let report: Report
    private var attempt: ConnectAttempt?
    private var stream: ByteStream?
    private let timer: LoopTimer
    private var backOff = BackOff(first: .milliseconds(100), longest: .seconds(10))
    private var generator: SeededGenerator
    private var closed = false
    private var saidDown = false
    /// Bytes given to this connection, and where the batches that have not arrived end.
    private var written: UInt64 = 0
    private var arrivedBytes: UInt64 = 0
    private var ends = FIFO<UInt64>()
    private var lastWrite: MonotonicTime
    private var widestWindow = 0

    private static let queueLimit = 1 << 20
    private static let pendingLimit: UInt64 = 16 << 20

    var onReady: (() -> Void)?
    var onArrived: ((Int) -> Void)?
    var onLost: (() -> Void)?

    init(loop: EventLoop, target: LogTarget, seed: UInt64, report: @escaping Report) {
        self.loop = loop
        self.target = target
        self.report = report
        timer = LoopTimer(loop: loop)
        generator = SeededGenerator(seed: seed)
        lastWrite = loop.now
        connect()
    }

    var isReady: Bool {
        guard let stream else { return false }
        return stream.queuedBytes < StreamLogSink.queueLimit && written - arrivedBytes < StreamLogSink.pendingLimit
    }

    func send(_ batch: [UInt8]) {
        guard let stream else { return }
        written += UInt64(batch.count)
        ends.append(written)
        lastWrite = loop.now
        stream.write(batch)
        poll()
    }

    func close() {
        closed = true
        onReady = nil
        onArrived = nil
        onLost = nil
        timer.close()
        attempt?.cancel()
        attempt = nil
        stream?.close()
        stream = nil
    }

    private func connect() {
        attempt = ConnectAttempt(loop: loop, to: target.endpoint, timeout: .seconds(5)) { [weak self] result in
            guard let self else { return }
            attempt = nil
            switch result {
            case .success(let stream): connected(stream)
            case .failure(let error): retry(error.message)
            }
        }
    }

    private func connected(_ stream: ByteStream) {
        if saidDown { report("sidecar: \(target) is there again") }
        saidDown = false
        self.stream = stream
        written = 0
        arrivedBytes = 0
        ends = FIFO()
        widestWindow = 0
        stream.onBytes = { _ in }
        stream.onEnd = { [weak self] in
            self?.poll()
            self?.broke("it closed the connection")
        }
        stream.onClose = { [weak self] error in self?.broke(error.map { "\($0)" } ?? "closed") }
        stream.onDrain = { [weak self] in
            self?.poll()
            if self?.isReady == true { self?.onReady?() }
        }
        stream.resumeReading()
        onReady?()
    }

    private func broke(_ why: String) {
        guard stream != nil else { return }
        stream?.close()
        stream = nil
        ends = FIFO()
        onLost?()
        retry(why)
    }

    private func retry(_ why: String) {
        guard !closed else { return }
        if !saidDown { report("sidecar: \(target) is down: \(why); reading waits for it") }
        saidDown = true
        timer.start(after: backOff.next(using: &generator)) { [weak self] in self?.connect() }
    }

    /// Looks how far the bytes have come.
    private func poll() {
        guard let stream, !ends.isEmpty, let descriptor = stream.descriptor else { return }
        let before = isReady
        var unacknowledged: Int32 = 0
        guard ioctl(descriptor, UInt(0x5411), &unacknowledged) == 0 else { return }  // SIOCOUTQ
        var unread = 0
        if let window = peerWindow(descriptor) {
            widestWindow = max(widestWindow, window)
            unread = widestWindow - window
        }
        // A window may stay narrower for reasons of the peer's own; what has been silent and acknowledged for long is read.
        if loop.now - lastWrite > .seconds(2) { unread = 0 }
        let open = UInt64(stream.queuedBytes + Int(unacknowledged) + unread)
        arrivedBytes = max(arrivedBytes, written > open ? written - open : 0)
        var arrived = 0
        while let end = ends.first, end <= arrivedBytes {
            ends.popFirst()
            arrived += 1
        }
        if arrived > 0 {
            backOff.reset()
            onArrived?(arrived)
        }
        if !ends.isEmpty { timer.start(after: .milliseconds(20)) { [weak self] in self?.poll() } }
        if !before && isReady { onReady?() }
    }

    /// `tcpi_snd_wnd`, in kernels that have it (5.4 and later); its place in `struct tcp_info` is fixed for good.
    private func peerWindow(_ descriptor: Int32) -> Int? {
        var info = [UInt32](repeating: 0, count: 64)
        var length = socklen_t(256)
        guard
            info.withUnsafeMutableBytes({ getsockopt(descriptor, Int32(IPPROTO_TCP), 11, $0.baseAddress, &length) })
                == 0, length >= 232
        else { return nil }
        return Int(info[228 / 4])
    }
}

/// JSON lines by POST: a batch has arrived when the answer is 2xx. One request at a time over one connection.
final class HTTPLogSink: LogSink {
    private let loop: EventLoop
    private let target: LogTarget
    private let path: String
    private let report: Report
    private var attempt: ConnectAttempt?
    private var stream: ByteStream?
    private var parser = HTTPResponseParser()
    private let timer: LoopTimer
    private var backOff = BackOff(first: .milliseconds(100), longest: .seconds(10))
    private var generator: SeededGenerator
    private var closed = false
    private var saidDown = false
    private var batch: [UInt8]?
    /// Between failures nothing is taken.
    private var isWaiting = false

    var onReady: (() -> Void)?
    var onArrived: ((Int) -> Void)?
    var onLost: (() -> Void)?

    init(loop: EventLoop, target: LogTarget, path: String, seed: UInt64, report: @escaping Report) {
        self.loop = loop
        self.target = target
        self.path = path
        self.report = report
        timer = LoopTimer(loop: loop)
        generator = SeededGenerator(seed: seed)
    }

    var isReady: Bool { !closed && batch == nil && !isWaiting }

    func send(_ batch: [UInt8]) {
        self.batch = batch
        if let stream { post(stream) } else { connect() }
    }

    func close() {
        closed = true
        onReady = nil
        onArrived = nil
        onLost = nil
        timer.close()
        attempt?.cancel()
        attempt = nil
        stream?.close()
        stream = nil
    }

    private func connect() {
        attempt = ConnectAttempt(loop: loop, to: target.endpoint, timeout: .seconds(5)) { [weak self] result in
            guard let self else { return }
            attempt = nil
            switch result {
            case .success(let stream):
                self.stream = stream
                parser = HTTPResponseParser()
                stream.onBytes = { [weak self] bytes in self?.received(bytes) }
                stream.onEnd = { [weak self] in
                    guard let self else { return }
                    if let status = parser.end() { answered(status) } else { failed("it closed the connection") }
                }
                stream.onClose = { [weak self] error in self?.failed(error.map { "\($0)" } ?? "closed") }
                stream.resumeReading()
                post(stream)
            case .failure(let error): failed(error.message)
            }
        }
    }

    private func post(_ stream: ByteStream) {
        guard let batch else { return }
        let head =
            "POST \(path) HTTP/1.1\r\nHost: \(target.endpoint)\r\nContent-Type: application/x-ndjson\r\n"
            + "Content-Length: \(batch.count)\r\n\r\n"
        stream.write(Array(head.utf8) + batch)
        timer.start(after: .seconds(30)) { [weak self] in self?.failed("no answer within 30 s") }
    }

    private func received(_ bytes: UnsafeRawBufferPointer) {
        do throws(HTTPError) {
            if let status = try parser.feed(bytes) { answered(status) }
        } catch {
            failed(error.message)
        }
    }

    private func answered(_ status: Int) {
        guard batch != nil else { return failed("an answer without a question") }
        guard (200..<300).contains(status) else { return failed("it answers \(status)") }
        timer.stop()
        batch = nil
        backOff.reset()
        if saidDown { report("sidecar: \(target) is there again") }
        saidDown = false
        if !parser.keepAlive { dropConnection() }
        onArrived?(1)
        if isReady { onReady?() }
    }

    private func dropConnection() {
        stream?.close()
        stream = nil
    }

    private func failed(_ why: String) {
        guard !closed else { return }
        dropConnection()
        timer.stop()
        // An idle connection may end at any time; only a batch without an answer is a failure.
        guard batch != nil else { return }
        batch = nil
        isWaiting = true
        if !saidDown { report("sidecar: \(target) fails: \(why); reading waits for it") }
        saidDown = true
        onLost?()
        timer.start(after: backOff.next(using: &generator)) { [weak self] in
            guard let self else { return }
            isWaiting = false
            onReady?()
        }
    }
}
