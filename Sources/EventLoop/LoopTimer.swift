import CUV
import Model

/// A timer of the loop, in milliseconds rounded up: never early. Reusable; starting it again replaces what was set. While it is
/// active the loop keeps it.
public final class LoopTimer: LoopHandleOwner {
    private let loop: EventLoop
    private let box: HandleBox<uv_timer_t, LoopTimer>?
    private var body: (() -> Void)?
    private var deadline = MonotonicTime.distantFuture
    private var interval: TimeSpan?

    public init(loop: EventLoop) {
        self.loop = loop
        // Fails only on a loop that has been closed: nothing happens there.
        box = try? HandleBox(loop) { uv_timer_init($0, $1) }
    }

    deinit { box?.close() }

    public var isActive: Bool { body != nil }

    /// Calls `body` once, after `span`; at the next turn if that is not positive.
    public func start(after span: TimeSpan, _ body: @escaping () -> Void) {
        start(at: loop.now + max(span, .zero), body)
    }

    /// Calls `body` once, at `deadline`; at the next turn if that has passed.
    public func start(at deadline: MonotonicTime, _ body: @escaping () -> Void) {
        interval = nil
        arm(deadline, body)
    }

    /// Every `interval` from now on, until stopped. Late runs are not made up for.
    public func start(every interval: TimeSpan, _ body: @escaping () -> Void) {
        self.interval = interval
        arm(loop.now + interval, body)
    }

    private func arm(_ deadline: MonotonicTime, _ body: @escaping () -> Void) {
        guard let box, !box.isClosed else { return }
        self.body = body
        self.deadline = deadline
        box.attach(self)
        let left = UInt64(max(deadline - loop.now, .zero).nanoseconds)
        // libuv counts whole milliseconds of its clock, from the time it cached. The first of them that is not early:
        let (exact, cached) = (uv_hrtime(), uv_now(loop.raw))
        var milliseconds = left == 0 ? 0 : (exact &+ left &+ 999_999) / 1_000_000 &- cached
        // It calls timers back until none is due: one of no length that is started by another would keep it from all else.
        if loop.isInTimer { milliseconds = max(milliseconds, 1) }
        uv_timer_start(box.raw, { HandleBox<uv_timer_t, LoopTimer>.owner($0)?.fire() }, milliseconds, 0)
    }

    private func fire() {
        guard let body else { return }
        loop.isInTimer = true
        defer { loop.isInTimer = false }
        // The two clocks are corrected apart from each other.
        if loop.now < deadline { return arm(deadline, body) }
        if let interval {
            arm(loop.now + interval, body)
        } else {
            self.body = nil
            box?.detach()
        }
        body()
    }

    /// Forgets what was set; it can be started again.
    public func stop() {
        guard body != nil else { return }
        body = nil
        interval = nil
        guard let box, !box.isClosed else { return }
        uv_timer_stop(box.raw)
        box.detach()
    }

    /// Cancelled for good.
    public func close() {
        body = nil
        interval = nil
        box?.close()
    }
}
