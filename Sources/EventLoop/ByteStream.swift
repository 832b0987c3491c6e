// A connected stream socket or pipe end: bytes both ways, with back-pressure.
import CPlatform
import CUV
import Glibc
import Model

/// One stream on the loop: TCP, Unix socket or pipe. Closed once, by ``close()``, by an error, or when both directions have
/// ended; after that nothing is called back. It does not read before ``resumeReading()``. The loop keeps it until it is closed.
///
/// An end of a pipe has one direction; the other counts as ended. So a reading end closes itself after ``onEnd``, and a
/// writing end after ``shutdown()``, when all has left: that is how its reader learns of the end.
///
/// Back-pressure: ``write(_:)`` takes everything; a writer looks at ``isCongested`` and goes on at ``onDrain``.
public final class ByteStream: LoopHandleOwner {
    private enum Box {
        case tcp(HandleBox<uv_tcp_t, ByteStream>)
        case pipe(HandleBox<uv_pipe_t, ByteStream>)
    }

    let loop: EventLoop
    private let box: Box
    /// shutdown(2) is for sockets.
    private let isSocket: Bool
    private var isReading = false
    private var hasEnded = false
    private var hasShutDown = false
    private var isShuttingDown = false
    private var needsDrain = false
    public private(set) var isClosed = false
    /// Bytes written by the user that the kernel has not taken yet.
    public private(set) var queuedBytes = 0

    /// Over this many queued bytes a writer should pause.
    public var highWater = 1 << 20
    /// ``onDrain`` is called when the queue has shrunk to this after it was longer.
    public var lowWater = 256 << 10 {
        didSet { if queuedBytes > lowWater { needsDrain = true } }
    }

    /// Bytes came; they are borrowed for the call.
    public var onBytes: ((UnsafeRawBufferPointer) -> Void)?
    /// The peer will send nothing more.
    public var onEnd: (() -> Void)?
    /// The stream is gone: by an error, or (nil) because both directions have ended. Not after ``close()``.
    public var onClose: ((UVError?) -> Void)?
    public var onDrain: (() -> Void)?

    private init(loop: EventLoop, box: Box, reads: Bool = true, writes: Bool = true, isSocket: Bool = true) {
        self.loop = loop
        self.box = box
        self.isSocket = isSocket
        hasEnded = !reads
        hasShutDown = !writes
        switch box {
        case .tcp(let box): box.attach(self)
        case .pipe(let box): box.attach(self)
        }
    }

    static func unconnectedTCP(_ loop: EventLoop) throws(UVError) -> ByteStream {
        ByteStream(loop: loop, box: .tcp(try HandleBox(loop) { uv_tcp_init($0, $1) }))
    }

    static func unconnectedPipe(_ loop: EventLoop) throws(UVError) -> ByteStream {
        ByteStream(loop: loop, box: .pipe(try HandleBox(loop) { uv_pipe_init($0, $1, 0) }))
    }

    /// Takes a connected descriptor over: a stream socket, one end of a pipe, or a terminal; `EINVAL` for anything else. It is
    /// closed with the stream, and on failure.
    public static func adopt(loop: EventLoop, descriptor: Int32) throws(UVError) -> ByteStream {
        let stream: ByteStream
        let status: Int32
        do throws(UVError) {
            switch try DescriptorKind(of: descriptor) {
            case .tcp: stream = try unconnectedTCP(loop)
            case .unix: stream = try unconnectedPipe(loop)
            case .pipe(let reads, let writes):
                let box: HandleBox<uv_pipe_t, ByteStream> = try HandleBox(loop) { uv_pipe_init($0, $1, 0) }
                stream = ByteStream(loop: loop, box: .pipe(box), reads: reads, writes: writes, isSocket: false)
            }
        } catch {
            Glibc.close(descriptor)
            throw error
        }
        switch stream.box {
        case .tcp(let box): status = uv_tcp_open(box.raw, descriptor)
        case .pipe(let box): status = uv_pipe_open(box.raw, descriptor)
        }
        guard status >= 0 else {
            Glibc.close(descriptor)
            stream.close()
            throw UVError(code: status)
        }
        stream.connected()
        return stream
    }

    var raw: UnsafeMutablePointer<uv_stream_t> {
        switch box {
        case .tcp(let box): box.raw.up()
        case .pipe(let box): box.raw.up()
        }
    }

    private static func owner(_ pointer: UnsafeMutableRawPointer?) -> ByteStream? {
        // Both kinds keep their context in the same place.
        HandleBox<uv_stream_t, ByteStream>.owner(pointer)
    }

    func connected() {
        guard case .tcp(let box) = box else { return }
        uv_tcp_nodelay(box.raw, 1)
        // Nothing is ever congested between two processes of one machine. A host whose default paces its packets (BBR) would
        // set a timer for each: 15 % of the commits of a cluster on loopback (measured).
        guard let descriptor, peerAddress?.isLoopback ?? false else { return }
        _ = "reno".withCString { setsockopt(descriptor, Int32(IPPROTO_TCP), TCP_CONGESTION, $0, 4) }
    }

    // MARK: - Connecting

    /// Connects; `then` is called once, on the loop, never from within this call. A time-out is `ETIMEDOUT`; a connection that
    /// comes later is closed.
    public static func connect(
        loop: EventLoop, to address: SocketAddress, timeout: TimeSpan,
        then: @escaping (Result<ByteStream, UVError>) -> Void
    ) {
        let attempt: Connecting
        do {
            if case .unix = address.host {
                attempt = Connecting(try unconnectedPipe(loop), then)
            } else {
                attempt = Connecting(try unconnectedTCP(loop), then)
            }
        } catch {
            loop.beforeWaiting { then(.failure(error)) }
            return
        }
        attempt.start(address, timeout: timeout)
    }

    private final class Connecting {
        private let stream: ByteStream
        private var then: ((Result<ByteStream, UVError>) -> Void)?
        private let timer: LoopTimer

        init(_ stream: ByteStream, _ then: @escaping (Result<ByteStream, UVError>) -> Void) {
            self.stream = stream
            self.then = then
            timer = LoopTimer(loop: stream.loop)
        }

        func start(_ address: SocketAddress, timeout: TimeSpan) {
            timer.start(after: timeout) { self.finish(UV_ETIMEDOUT.rawValue) }
            let request = UnsafeMutablePointer<uv_connect_t>.allocate(capacity: 1)
            request.pointee.data = Unmanaged.passRetained(self).toOpaque()
            let callback: uv_connect_cb = { request, status in
                guard let request, let data = request.pointee.data else { return }
                TurnMeter.of(request.pointee.handle?.pointee.loop)?.begin()
                let attempt = Unmanaged<Connecting>.fromOpaque(data).takeRetainedValue()
                request.deallocate()
                attempt.finish(status)
            }
            var status: Int32 = 0
            switch stream.box {
            case .tcp(let box):
                status =
                    address.withSystemAddress { uv_tcp_connect(request, box.raw, $0, callback) } ?? UV_EINVAL.rawValue
            case .pipe(let box):
                guard case .unix(let path) = address.host else { break }
                do throws(UVError) {
                    try checkSocketPath(path)
                    uv_pipe_connect(request, box.raw, path, callback)
                } catch {
                    status = error.code
                }
            }
            guard status < 0 else { return }
            Unmanaged.passUnretained(self).release()
            request.deallocate()
            // Never from inside the call that asked.
            stream.loop.beforeWaiting { self.finish(status) }
        }

        private func finish(_ status: Int32) {
            guard let then else { return }
            self.then = nil
            timer.close()
            // Dialling a port of this machine that nothing listens on can, by chance, get that very port as its own and be
            // connected to itself (TCP's simultaneous open). Nobody would ever answer, and the port would be taken.
            let isSelf = status >= 0 && stream.peerAddress != nil && stream.peerAddress == stream.localAddress
            let status = isSelf ? UV_ECONNREFUSED.rawValue : status
            if status >= 0 {
                stream.connected()
                then(.success(stream))
            } else {
                stream.close()
                then(.failure(UVError(code: status)))
            }
        }
    }

    // MARK: - Reading

    /// Begins to read, or goes on.
    public func resumeReading() {
        guard !isClosed, !isReading, !hasEnded else { return }
        isReading = true
        let status = uv_read_start(
            raw,
            { handle, _, buffer in
                guard let stream = ByteStream.owner(handle), let buffer else { return }
                buffer.pointee = uv_buf_init(
                    stream.loop.slab.baseAddress?.assumingMemoryBound(to: CChar.self), UInt32(stream.loop.slab.count))
            },
            { handle, count, buffer in
                guard let stream = ByteStream.owner(handle), let buffer else { return }
                stream.received(count, buffer.pointee.base)
            })
        if status < 0 { failLater(UVError(code: status)) }
    }

    public func pauseReading() {
        guard !isClosed, isReading else { return }
        isReading = false
        uv_read_stop(raw)
    }

    private func received(_ count: Int, _ base: UnsafeMutablePointer<CChar>?) {
        if count > 0 {
            onBytes?(UnsafeRawBufferPointer(start: base, count: count))
        } else if count == Int(UV_EOF.rawValue) {
            hasEnded = true
            isReading = false
            uv_read_stop(raw)
            onEnd?()
            finishIfBothEnded()
        } else if count < 0 {
            fail(UVError(code: Int32(count)))
        }
    }

    // MARK: - Writing

    public var isCongested: Bool { queuedBytes > highWater }

    public func write(_ bytes: some Collection<UInt8>) {
        let done: Void? = bytes.withContiguousStorageIfAvailable { write(UnsafeRawBufferPointer($0)) }
        if done == nil { write(Array(bytes)) }
    }

    public func write(_ bytes: [UInt8]) { bytes.withUnsafeBytes { write($0) } }

    /// Copies what the kernel does not take at once. After ``shutdown()``, and on a stream that is closed, nothing happens.
    public func write(_ bytes: UnsafeRawBufferPointer) {
        guard !isClosed, !isShuttingDown, !bytes.isEmpty else { return }
        var rest = bytes[...]
        if queuedBytes == 0 {
            var buffer = uv_buf_init(
                UnsafeMutablePointer(mutating: bytes.baseAddress?.assumingMemoryBound(to: CChar.self)),
                UInt32(clamping: bytes.count))
            let written = uv_try_write(raw, &buffer, 1)
            if written >= 0 {
                rest = bytes[Int(written)...]
            } else if written != UV_EAGAIN.rawValue {
                // Reported from the loop, not from inside the caller's own call.
                return failLater(UVError(code: written))
            }
            if rest.isEmpty { return }
        }
        let request = WriteRequest.make(UnsafeRawBufferPointer(rebasing: rest), self)
        queuedBytes += rest.count
        if queuedBytes > lowWater { needsDrain = true }
        let status = request.submit(raw)
        if status < 0 {
            queuedBytes -= rest.count
            failLater(UVError(code: status))
        }
    }

    fileprivate func wrote(_ count: Int, _ status: Int32) {
        queuedBytes -= count
        guard !isClosed else { return }
        if status < 0 { return failWriting(UVError(code: status)) }
        if needsDrain && queuedBytes <= lowWater {
            needsDrain = false
            onDrain?()
        }
        if isShuttingDown && !isSocket && queuedBytes == 0 { didShutDown() }
    }

    /// Ends our direction after what is queued.
    public func shutdown() {
        guard !isClosed, !isShuttingDown, !hasShutDown else { return }
        isShuttingDown = true
        guard isSocket else {
            // A pipe says its end by being closed; see `wrote`.
            if queuedBytes == 0 { loop.beforeWaiting { [weak self] in self?.didShutDown() } }
            return
        }
        let request = UnsafeMutablePointer<uv_shutdown_t>.allocate(capacity: 1)
        request.pointee.data = Unmanaged.passRetained(self).toOpaque()
        let status = uv_shutdown(request, raw) { request, _ in
            guard let request, let data = request.pointee.data else { return }
            TurnMeter.of(request.pointee.handle?.pointee.loop)?.begin()
            let stream = Unmanaged<ByteStream>.fromOpaque(data).takeRetainedValue()
            request.deallocate()
            // An error means that the peer has gone: our direction has ended as well.
            stream.didShutDown()
        }
        if status < 0 {
            request.deallocate()
            Unmanaged.passUnretained(self).release()
            loop.beforeWaiting { [weak self] in self?.didShutDown() }
        }
    }

    /// ``shutdown()``, so that the last bytes and the end leave in one segment where the transport has segments: a peer that
    /// has read the bytes has the end as well. Write them after this call.
    public func shutDownWithNextBytes(_ write: () -> Void) {
        if case .tcp = box, let descriptor {
            var on: Int32 = 1
            setsockopt(descriptor, Int32(IPPROTO_TCP), TCP_CORK, &on, socklen_t(MemoryLayout<Int32>.size))
        }
        write()
        shutdown()
    }

    /// Bytes have come that were not read yet, or the end.
    public var hasUnreadInput: Bool {
        guard isSocket, let descriptor else { return false }
        var byte: UInt8 = 0
        let count = recv(descriptor, &byte, 1, Int32(MSG_PEEK) | Int32(MSG_DONTWAIT))
        return count >= 0
    }

    private func didShutDown() {
        guard !isClosed else { return }
        hasShutDown = true
        finishIfBothEnded()
    }

    // MARK: - Ending

    private func finishIfBothEnded() {
        guard hasEnded, hasShutDown, !isClosed else { return }
        fail(nil)
    }

    private func failLater(_ error: UVError) { loop.beforeWaiting { [weak self] in self?.failWriting(error) } }

    /// A peer that takes nothing any more may have said why: what has come is handed on before the failure is told.
    private func failWriting(_ error: UVError) {
        // Bounded, as a peer may close one direction only and say no end of things in the other.
        for _ in 0..<64 {
            guard isReading, let descriptor else { break }
            let count = read(descriptor, loop.slab.baseAddress, loop.slab.count)
            guard count > 0 else { break }
            onBytes?(UnsafeRawBufferPointer(start: loop.slab.baseAddress, count: count))
        }
        fail(error)
    }

    private func fail(_ error: UVError?) {
        guard !isClosed else { return }
        let report = onClose
        close()
        report?(error)
    }

    /// Closes at once; what is queued is lost.
    public func close() {
        guard !isClosed else { return }
        isClosed = true
        isReading = false
        onBytes = nil
        onEnd = nil
        onClose = nil
        onDrain = nil
        switch box {
        case .tcp(let box): box.close()
        case .pipe(let box): box.close()
        }
    }

    // MARK: - Facts

    /// The open socket or pipe, for facts that only the system knows; nil once closed. It stays the stream's to close.
    public var descriptor: Int32? {
        guard !isClosed else { return nil }
        var value: uv_os_fd_t = -1
        return uv_fileno(raw.up(), &value) == 0 ? value : nil
    }

    /// The effective user of the process at the other end: of a Unix socket, or of a TCP connection within this machine. Nil if
    /// it is elsewhere or unknown.
    public var peerUID: UInt32? {
        guard let descriptor else { return nil }
        var uid: UInt32 = 0
        let status =
            switch box {
            case .pipe: coterie_peer_uid(descriptor, &uid)
            case .tcp: coterie_tcp_peer_uid(descriptor, &uid)
            }
        return status == 0 ? uid : nil
    }

    public var peerAddress: SocketAddress? {
        guard case .tcp(let box) = box, !isClosed else { return nil }
        return SocketAddress.reading { uv_tcp_getpeername(box.raw, $0, $1) }
    }

    public var localAddress: SocketAddress? {
        guard case .tcp(let box) = box, !isClosed else { return nil }
        return SocketAddress.reading { uv_tcp_getsockname(box.raw, $0, $1) }
    }
}

/// One queued write: libuv's request and a copy of the bytes.
private final class WriteRequest {
    private let request = UnsafeMutablePointer<uv_write_t>.allocate(capacity: 1)
    private let bytes: UnsafeMutableRawBufferPointer
    private let stream: ByteStream

    static func make(_ bytes: UnsafeRawBufferPointer, _ stream: ByteStream) -> WriteRequest {
        WriteRequest(bytes, stream)
    }

    private init(_ source: UnsafeRawBufferPointer, _ stream: ByteStream) {
        bytes = .allocate(byteCount: source.count, alignment: 1)
        bytes.copyMemory(from: source)
        self.stream = stream
    }

    func submit(_ raw: UnsafeMutablePointer<uv_stream_t>) -> Int32 {
        var buffer = uv_buf_init(bytes.baseAddress?.assumingMemoryBound(to: CChar.self), UInt32(clamping: bytes.count))
        request.pointee.data = Unmanaged.passRetained(self).toOpaque()
        let status = uv_write(request, raw, &buffer, 1) { request, status in
            guard let data = request?.pointee.data else { return }
            TurnMeter.of(request?.pointee.handle?.pointee.loop)?.begin()
            let write = Unmanaged<WriteRequest>.fromOpaque(data).takeRetainedValue()
            write.stream.wrote(write.bytes.count, status)
        }
        if status < 0 { Unmanaged.passUnretained(self).release() }
        return status
    }

    deinit {
        request.deallocate()
        bytes.deallocate()
    }
}
