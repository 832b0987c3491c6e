import CUV
import Glibc
import Model

/// A listening TCP or Unix socket.
public final class Listener: LoopHandleOwner {
    private enum Box {
        case tcp(HandleBox<uv_tcp_t, Listener>)
        case pipe(HandleBox<uv_pipe_t, Listener>)
    }

    private let loop: EventLoop
    private let box: Box
    private var isClosed = false
    /// Where it listens; with the port that the kernel chose.
    public private(set) var localAddress: SocketAddress?

    /// A new connection, not reading yet. Without a receiver it is closed.
    public var onConnection: ((ByteStream) -> Void)?

    /// Binds and listens. `mode` is for a Unix socket's file; one that nobody serves any more is replaced.
    public init(loop: EventLoop, bind address: SocketAddress, mode: UInt32? = nil, backlog: Int32 = 512) throws(UVError)
    {
        self.loop = loop
        if case .unix(let path) = address.host {
            try checkSocketPath(path)
            Listener.removeStale(path)
            let box: HandleBox<uv_pipe_t, Listener> = try HandleBox(loop) { uv_pipe_init($0, $1, 0) }
            self.box = .pipe(box)
            var status = uv_pipe_bind(box.raw, path)
            if status >= 0, let mode, chmod(path, mode) != 0 { status = -errno }
            try begin(status, backlog)
            localAddress = address
        } else {
            let box: HandleBox<uv_tcp_t, Listener> = try HandleBox(loop) { uv_tcp_init($0, $1) }
            self.box = .tcp(box)
            try begin(address.withSystemAddress { uv_tcp_bind(box.raw, $0, 0) } ?? UV_EINVAL.rawValue, backlog)
            localAddress = SocketAddress.reading { uv_tcp_getsockname(box.raw, $0, $1) }
        }
    }

    /// Takes over a stream socket that is bound, or listens already (handed out of a pod's namespace, or by a supervisor). It is
    /// closed with the listener, and on failure.
    public init(loop: EventLoop, adopting descriptor: Int32, backlog: Int32 = 512) throws(UVError) {
        self.loop = loop
        let isTCP: Bool
        do throws(UVError) {
            switch try DescriptorKind(of: descriptor) {
            case .tcp: isTCP = true
            case .unix: isTCP = false
            case .pipe: throw .invalid
            }
        } catch {
            Glibc.close(descriptor)
            throw error
        }
        if isTCP {
            let box: HandleBox<uv_tcp_t, Listener> = try HandleBox(loop) { uv_tcp_init($0, $1) }
            self.box = .tcp(box)
            try begin(Listener.opened(uv_tcp_open(box.raw, descriptor), descriptor), backlog)
            localAddress = SocketAddress.reading { uv_tcp_getsockname(box.raw, $0, $1) }
        } else {
            let box: HandleBox<uv_pipe_t, Listener> = try HandleBox(loop) { uv_pipe_init($0, $1, 0) }
            self.box = .pipe(box)
            try begin(Listener.opened(uv_pipe_open(box.raw, descriptor), descriptor), backlog)
            localAddress = Listener.path(box.raw).map { SocketAddress(host: .unix(path: $0), port: 0) }
        }
    }

    /// A descriptor that libuv did not take is still ours to close.
    private static func opened(_ status: Int32, _ descriptor: Int32) -> Int32 {
        if status < 0 { Glibc.close(descriptor) }
        return status
    }

    /// Nil for a socket without a name in the file system.
    private static func path(_ raw: UnsafeMutablePointer<uv_pipe_t>) -> String? {
        var buffer = [CChar](repeating: 0, count: 108)
        var size = buffer.count
        guard uv_pipe_getsockname(raw, &buffer, &size) == 0, size > 0, buffer[0] != 0 else { return nil }
        return String(
            decoding: buffer[..<min(size, buffer.count)].map(UInt8.init(bitPattern:)).prefix { $0 != 0 }, as: UTF8.self)
    }

    /// After a crash the file of a Unix socket stays; a live server answers a connection, a dead one's file refuses it.
    private static func removeStale(_ path: String) {
        // A connection to what is no socket is refused as well, and that file is somebody's.
        var facts = stat()
        guard lstat(path, &facts) == 0, facts.st_mode & S_IFMT == S_IFSOCK else { return }
        // A server whose queue is full must not hold us up: it lives.
        let probe = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0)
        guard probe >= 0 else { return }
        defer { Glibc.close(probe) }
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { return }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        let status = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(probe, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        if status != 0 && errno == ECONNREFUSED { unlink(path) }
    }

    private var raw: UnsafeMutablePointer<uv_stream_t> {
        switch box {
        case .tcp(let box): box.raw.up()
        case .pipe(let box): box.raw.up()
        }
    }

    private func begin(_ status: Int32, _ backlog: Int32) throws(UVError) {
        switch box {
        case .tcp(let box): box.attach(self)
        case .pipe(let box): box.attach(self)
        }
        var status = status
        if status >= 0 {
            status = uv_listen(raw, backlog) { handle, status in
                guard status >= 0 else { return }
                HandleBox<uv_stream_t, Listener>.owner(handle)?.accept()
            }
        }
        guard status >= 0 else {
            close()
            throw UVError(code: status)
        }
    }

    private func accept() {
        let stream: ByteStream
        do {
            switch box {
            case .tcp: stream = try ByteStream.unconnectedTCP(loop)
            case .pipe: stream = try ByteStream.unconnectedPipe(loop)
            }
        } catch {
            return
        }
        guard uv_accept(raw, stream.raw) >= 0 else { return stream.close() }
        stream.connected()
        if let onConnection { onConnection(stream) } else { stream.close() }
    }

    /// Takes what has connected until now, then closes: the kernel resets what waits to be taken when a listener closes.
    public func closeAfterAccepting() {
        var descriptor: uv_os_fd_t = -1
        // As many as wait at this moment at most; who comes later finds the port closed, a moment earlier or later.
        for _ in 0..<1_024 where !isClosed && uv_fileno(raw.up(), &descriptor) == 0 {
            let taken = Glibc.accept(descriptor, nil, nil)
            if taken < 0 { break }
            _ = fcntl(taken, F_SETFD, FD_CLOEXEC)
            guard let stream = try? ByteStream.adopt(loop: loop, descriptor: taken) else { continue }
            if let onConnection { onConnection(stream) } else { stream.close() }
        }
        close()
    }

    public func close() {
        guard !isClosed else { return }
        isClosed = true
        onConnection = nil
        switch box {
        case .tcp(let box): box.close()
        case .pipe(let box): box.close()
        }
    }
}
