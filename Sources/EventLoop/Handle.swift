// The rule for every libuv handle: one owner, closed once, its memory freed in libuv's close call-back and nowhere else.
import CUV

extension UnsafeMutablePointer {
    /// libuv's structs begin with those they are derived from.
    func up<T>(_ type: T.Type = T.self) -> UnsafeMutablePointer<T> {
        UnsafeMutableRawPointer(self).assumingMemoryBound(to: T.self)
    }
}

/// What a loop that is closed asks of the owners of its handles: to close without calling anybody back.
protocol LoopHandleOwner: AnyObject {
    func close()
}

/// What libuv's `data` pointer leads to.
final class HandleContext {
    var owner: AnyObject?
    private(set) var isClosed = false

    /// Closes the handle once. No call-back reaches the owner afterwards.
    func close(_ handle: UnsafeMutablePointer<uv_handle_t>) {
        guard !isClosed else { return }
        isClosed = true
        owner = nil
        uv_close(handle) { pointer in
            guard let pointer, let data = pointer.pointee.data else { return }
            Unmanaged<HandleContext>.fromOpaque(data).release()
            UnsafeMutableRawPointer(pointer).deallocate()
        }
    }

    /// For `uv_walk`: closes what is still open, by its owner where it has one.
    static func closeLeftOver(_ handle: UnsafeMutablePointer<uv_handle_t>) {
        guard let data = handle.pointee.data else { return }
        let context = Unmanaged<HandleContext>.fromOpaque(data).takeUnretainedValue()
        if let owner = context.owner as? any LoopHandleOwner { owner.close() }
        context.close(handle)
    }
}

/// The memory of one libuv handle of type `Raw`, and the object that its call-backs go to. While the handle is open libuv
/// keeps the owner alive; ``close()`` ends that. Confined to its loop, deliberately not Sendable.
final class HandleBox<Raw, Owner: AnyObject> {
    /// Valid until ``close()``.
    let raw: UnsafeMutablePointer<Raw>
    var isClosed: Bool { context.isClosed }

    private let context = HandleContext()

    /// `initialize` is libuv's init function. A handle whose initialization failed must not be closed; one of which a later
    /// step failed must be.
    init(
        raw loop: UnsafeMutablePointer<uv_loop_t>,
        _ initialize: (UnsafeMutablePointer<uv_loop_t>, UnsafeMutablePointer<Raw>) -> Int32
    ) throws(UVError) {
        raw = .allocate(capacity: 1)
        let status = initialize(loop, raw)
        guard status >= 0 else {
            raw.deallocate()
            throw UVError(code: status)
        }
        raw.up(uv_handle_t.self).pointee.data = Unmanaged.passRetained(context).toOpaque()
    }

    /// Throws `ECANCELED` on a loop that has been closed.
    convenience init(
        _ loop: EventLoop, _ initialize: (UnsafeMutablePointer<uv_loop_t>, UnsafeMutablePointer<Raw>) -> Int32
    ) throws(UVError) {
        guard !loop.isShut else { throw .canceled }
        try self.init(raw: loop.raw, initialize)
    }

    /// From now on call-backs go to `owner`, and libuv keeps it.
    func attach(_ owner: Owner) { if !isClosed { context.owner = owner } }

    /// Lets go of the owner while the handle is open and idle.
    func detach() { context.owner = nil }

    /// The owner behind a handle in a call-back; nil after ``close()``. Every call-back of a handle passes here, so that the
    /// turn begins to count with the first one after the wait.
    static func owner(_ pointer: UnsafeMutableRawPointer?) -> Owner? {
        guard let handle = pointer?.assumingMemoryBound(to: uv_handle_t.self), let data = handle.pointee.data else {
            return nil
        }
        TurnMeter.of(handle.pointee.loop)?.begin()
        // Only `attach` sets it, with an `Owner`; the check is for debug builds.
        return Unmanaged<HandleContext>.fromOpaque(data).takeUnretainedValue().owner.map {
            unsafeDowncast($0, to: Owner.self)
        }
    }

    var handle: UnsafeMutablePointer<uv_handle_t> { raw.up() }

    /// Closes once. No call-back reaches the owner afterwards.
    func close() {
        // The memory is gone once libuv has called back, so nothing may be asked of it twice.
        guard !isClosed else { return }
        context.close(handle)
    }
}
