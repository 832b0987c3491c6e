import CPlatform
import CUV
import Glibc

/// A Unix stream socket on which descriptors travel with the bytes (SCM_RIGHTS).
public final class DescriptorSocket: LoopHandleOwner {
    private let loop: EventLoop
    private let fd: Int32
    private let box: HandleBox<uv_poll_t, DescriptorSocket>
    private var queue: [(bytes: [UInt8], descriptors: [Int32])] = []
    private var isClosed = false
    /// Sending has failed; what came before is read, then the failure is told.
    private var isBroken = false
    /// What is being waited for.
    private var interest: Int32 = 0

    /// Bytes, and the descriptors that came with them: the receiver closes those.
    public var onMessage: (([UInt8], [Int32]) -> Void)?
    /// The other end is gone; nil after an orderly end. The socket is closed.
    public var onClose: ((UVError?) -> Void)?

    /// Takes a connected socket over; it is closed on failure as well.
    public init(loop: EventLoop, adopting descriptor: Int32) throws(UVError) {
        self.loop = loop
        fd = descriptor
        let flags = fcntl(descriptor, F_GETFL)
        _ = fcntl(descriptor, F_SETFL, flags | O_NONBLOCK)
        do throws(UVError) {
            box = try HandleBox(loop) { uv_poll_init($0, $1, descriptor) }
        } catch {
            Glibc.close(descriptor)
            throw error
        }
        box.attach(self)
        update()
    }

    /// A pair: ours on the loop, and a descriptor for a child, which the caller closes.
    public static func pair(loop: EventLoop) throws(UVError) -> (ours: DescriptorSocket, theirs: Int32) {
        var pair: [Int32] = [-1, -1]
        try UVError.check(coterie_socket_pair(&pair))
        do throws(UVError) {
            return (try DescriptorSocket(loop: loop, adopting: pair[0]), pair[1])
        } catch {
            Glibc.close(pair[1])
            throw error
        }
    }

    private func update() {
        guard !isClosed, !isBroken else { return }
        let events = Int32(UV_READABLE.rawValue) | (queue.isEmpty ? 0 : Int32(UV_WRITABLE.rawValue))
        guard events != interest else { return }
        interest = events
        uv_poll_start(box.raw, events) { handle, status, events in
            HandleBox<uv_poll_t, DescriptorSocket>.owner(handle)?.ready(status, events)
        }
    }

    private func ready(_ status: Int32, _ events: Int32) {
        if status < 0 {
            // The other end is gone (libuv says EBADF for POLLERR, and polls no more); what it said before is still there, and
            // after it the true reason.
            receive(rounds: DescriptorSocket.lastRounds)
            return fail(UVError(code: status))
        }
        // First what came: sending may find the other end gone.
        if events & Int32(UV_READABLE.rawValue) != 0 { receive(rounds: 16) }
        if events & Int32(UV_WRITABLE.rawValue) != 0 { flush() }
    }

    /// More than a socket's buffer holds, if its messages are not tiny.
    private static let lastRounds = 4096

    /// A few messages a turn; level-triggered polling brings us back for more.
    private func receive(rounds: Int) {
        for _ in 0..<rounds {
            guard !isClosed else { return }
            var buffer = [UInt8](repeating: 0, count: 65_536)
            var descriptors = [Int32](repeating: -1, count: 16)
            var count: Int32 = 0
            let got = coterie_receive_descriptors(fd, &buffer, buffer.count, &descriptors, 16, &count)
            if got == -Int(EAGAIN) { return }
            if got < 0 { return fail(UVError(code: Int32(got))) }
            if got == 0 { return fail(nil) }
            let received = Array(descriptors.prefix(Int(count)))
            if let onMessage {
                onMessage(Array(buffer[..<got]), received)
            } else {
                for descriptor in received { Glibc.close(descriptor) }
            }
        }
    }

    /// Queues a message; at most 32 descriptors. They are duplicated: the caller keeps and closes its own. One that can not be
    /// duplicated (`EMFILE`, `EBADF`) breaks the socket, as the receiver would take the others for what they are not.
    public func send(_ bytes: [UInt8], descriptors: [Int32] = []) {
        guard !isClosed, !isBroken, !bytes.isEmpty else { return }
        var copies: [Int32] = []
        for descriptor in descriptors {
            let copy = fcntl(descriptor, F_DUPFD_CLOEXEC, 3)
            guard copy >= 0 else {
                let error = UVError(errno: errno)
                for copy in copies { Glibc.close(copy) }
                return failLater(error)
            }
            copies.append(copy)
        }
        queue.append((bytes, copies))
        flush()
    }

    private func flush() {
        while !isClosed, !isBroken, let first = queue.first {
            let sent = coterie_send_descriptors(
                fd, first.bytes, first.bytes.count, first.descriptors, Int32(first.descriptors.count))
            if sent == -Int(EAGAIN) { break }
            if sent < 0 { return failLater(UVError(code: Int32(sent))) }
            for descriptor in first.descriptors { Glibc.close(descriptor) }
            if sent == first.bytes.count {
                queue.removeFirst()
            } else {
                queue[0] = (Array(first.bytes[sent...]), [])
            }
        }
        update()
    }

    private func dropQueue() {
        for item in queue { for descriptor in item.descriptors { Glibc.close(descriptor) } }
        queue = []
    }

    /// Never from inside the caller's own call, and after what came before.
    private func failLater(_ error: UVError) {
        guard !isBroken else { return }
        isBroken = true
        dropQueue()
        loop.beforeWaiting { [weak self] in
            self?.receive(rounds: DescriptorSocket.lastRounds)
            self?.fail(error)
        }
    }

    private func fail(_ error: UVError?) {
        guard !isClosed else { return }
        let report = onClose
        close()
        report?(error)
    }

    public func close() {
        guard !isClosed else { return }
        isClosed = true
        onMessage = nil
        onClose = nil
        dropQueue()
        box.close()
        Glibc.close(fd)
    }
}
