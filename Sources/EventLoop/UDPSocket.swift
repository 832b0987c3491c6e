import CPlatform
import CUV
import Glibc
import Model

/// A UDP socket. Datagrams come in batches (recvmmsg); a refusal by a peer's host is told with the peer's address.
public final class UDPSocket: LoopHandleOwner {
    private static let slots = 8

    private let loop: EventLoop
    private let box: HandleBox<uv_udp_t, UDPSocket>
    private let slab: UnsafeMutableRawBufferPointer
    private var isClosed = false
    /// Refusals found while sending, to be told when the caller's own call is over.
    private var refused: [SocketAddress] = []
    public private(set) var localAddress: SocketAddress?
    /// Datagrams that the kernel did not take at once. They are lost, as any datagram may be.
    public private(set) var dropped: UInt64 = 0

    /// The bytes are borrowed for the call.
    public var onDatagram: ((UnsafeRawBufferPointer, SocketAddress) -> Void)?
    /// The host at the address answered that nothing listens on the port (ICMP port unreachable).
    public var onRefused: ((SocketAddress) -> Void)?

    public init(loop: EventLoop, bind address: SocketAddress) throws(UVError) {
        self.loop = loop
        let box: HandleBox<uv_udp_t, UDPSocket> = try HandleBox(loop) {
            uv_udp_init_ex($0, $1, UInt32(UV_UDP_RECVMMSG.rawValue))
        }
        self.box = box
        slab = .allocate(byteCount: UDPSocket.slots * 65_536, alignment: 16)
        let status = address.withSystemAddress { uv_udp_bind(box.raw, $0, 0) } ?? UV_EINVAL.rawValue
        guard status >= 0 else {
            // `deinit` frees the rest.
            box.close()
            throw UVError(code: status)
        }
        localAddress = SocketAddress.reading { uv_udp_getsockname(box.raw, $0, $1) }
        if let descriptor {
            if case .v6 = address.host {
                coterie_enable_error_queue(descriptor, AF_INET6)
            } else {
                coterie_enable_error_queue(descriptor, AF_INET)
            }
            var size: Int32 = 1 << 20
            uv_recv_buffer_size(box.handle, &size)
        }
    }

    private var descriptor: Int32? {
        guard !box.isClosed else { return nil }
        var value: uv_os_fd_t = -1
        return uv_fileno(box.handle, &value) == 0 ? value : nil
    }

    /// Begins to receive. Now the loop keeps the socket until it is closed.
    public func start() {
        guard !box.isClosed else { return }
        box.attach(self)
        uv_udp_recv_start(
            box.raw,
            { handle, _, buffer in
                guard let socket = HandleBox<uv_udp_t, UDPSocket>.owner(handle), let buffer else { return }
                buffer.pointee = uv_buf_init(
                    socket.slab.baseAddress?.assumingMemoryBound(to: CChar.self), UInt32(socket.slab.count))
            },
            { handle, count, buffer, address, _ in
                guard let socket = HandleBox<uv_udp_t, UDPSocket>.owner(handle) else { return }
                guard count > 0, let base = buffer?.pointee.base, let address, let from = SocketAddress(system: address)
                else {
                    // An error, or a wake-up without a datagram: the error queue may have something.
                    if count < 0 || address == nil {
                        socket.drainErrors()
                        socket.tellRefused()
                    }
                    return
                }
                socket.onDatagram?(UnsafeRawBufferPointer(start: base, count: count), from)
            })
    }

    /// Empties the error queue: while it holds anything the socket looks ready, and sending fails.
    private func drainErrors() {
        guard let descriptor else { return }
        var peer = sockaddr_storage()
        // Bounded: a storm of errors must not hold up the loop.
        for _ in 0..<256 {
            let kind = coterie_take_refused(descriptor, &peer)
            if kind == 0 { return }
            guard kind == 1 else { continue }
            let address = withUnsafePointer(to: &peer) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { SocketAddress(system: $0) }
            }
            if let address { refused.append(address) }
        }
    }

    private func tellRefused() {
        let addresses = refused
        refused = []
        for address in addresses { onRefused?(address) }
    }

    /// Sends one datagram, or drops it: too long, no room in the kernel, no way there.
    public func send(_ bytes: [UInt8], to address: SocketAddress) {
        guard !box.isClosed else { return }
        var status = trySend(bytes, address)
        // The error of an earlier datagram is reported on the next send; that one has not been sent then.
        if status < 0 && status != UV_EAGAIN.rawValue && status != UV_EMSGSIZE.rawValue && status != UV_EINVAL.rawValue
        {
            drainErrors()
            if !refused.isEmpty { loop.beforeWaiting { [weak self] in self?.tellRefused() } }
            status = trySend(bytes, address)
        }
        if status < 0 { dropped += 1 }
    }

    private func trySend(_ bytes: [UInt8], _ address: SocketAddress) -> Int32 {
        bytes.withUnsafeBytes { source in
            var buffer = uv_buf_init(
                UnsafeMutablePointer(mutating: source.baseAddress?.assumingMemoryBound(to: CChar.self)),
                UInt32(clamping: source.count))
            return address.withSystemAddress { uv_udp_try_send(box.raw, &buffer, 1, $0) } ?? UV_EINVAL.rawValue
        }
    }

    public func close() {
        guard !isClosed else { return }
        isClosed = true
        onDatagram = nil
        onRefused = nil
        box.close()
    }

    deinit {
        // Not started, or not bound: nothing but this reference kept it.
        box.close()
        slab.deallocate()
    }
}
