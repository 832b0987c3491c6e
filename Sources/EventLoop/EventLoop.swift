// libuv's loop as Swift: one loop, one thread. Call-backs are the first layer; `async` code runs on the same thread through
// the loop's executors.
import CPlatform
import CUV
import Glibc
import Model

/// One libuv loop. Everything made on it belongs to the thread that calls ``run()``; only ``post(_:)`` and the executors may
/// be used from other threads. It must be closed to be freed.
public final class EventLoop {
    let raw: UnsafeMutablePointer<uv_loop_t>
    private let prepare: HandleBox<uv_prepare_t, EventLoop>
    private let check: HandleBox<uv_check_t, EventLoop>
    /// Active while the loop shall look at its sockets without waiting.
    private let idle: HandleBox<uv_idle_t, EventLoop>
    private let wake: HandleBox<uv_async_t, EventLoop>
    private let meter = TurnMeter()
    let inbox: LoopInbox
    /// Streams read into this: libuv hands the bytes on before it reads again.
    let slab: UnsafeMutableRawBufferPointer
    private var beforeWait: [() -> Void] = []
    /// How often this turn has looked for more input, and the call-backs it had seen by then.
    private var looks = 0
    private var seenCalls: UInt64 = 0
    /// A turn looks so often at most: input that never ends must not keep what was gathered from leaving.
    private static let looksLimit = 3
    private var isRunning = false
    private(set) var isShut = false
    private var isFree = false
    /// True while timers are called back; see `LoopTimer.arm`.
    var isInTimer = false

    /// Runs actors on this loop's thread: return it as an actor's `unownedExecutor`.
    public let serialExecutor: LoopSerialExecutor
    /// For `Task(executorPreference:)`: the task's code runs on this loop's thread.
    public let taskExecutor: LoopTaskExecutor

    /// Fails if the process has no descriptors left (`EMFILE`). The process ignores SIGPIPE from here on.
    public init() throws(UVError) {
        // libuv writes without MSG_NOSIGNAL.
        coterie_ignore_broken_pipes()
        let loop = UnsafeMutablePointer<uv_loop_t>.allocate(capacity: 1)
        let status = uv_loop_init(loop)
        guard status >= 0 else {
            loop.deallocate()
            throw UVError(code: status)
        }
        do throws(UVError) {
            wake = try HandleBox(raw: loop) { loop, pointer in
                uv_async_init(loop, pointer) { handle in HandleBox<uv_async_t, EventLoop>.owner(handle)?.drainInbox() }
            }
        } catch {
            uv_loop_close(loop)
            loop.deallocate()
            throw error
        }
        // These three can not fail.
        prepare = try HandleBox(raw: loop) { uv_prepare_init($0, $1) }
        check = try HandleBox(raw: loop) { uv_check_init($0, $1) }
        idle = try HandleBox(raw: loop) { uv_idle_init($0, $1) }
        raw = loop
        slab = .allocate(byteCount: 256 << 10, alignment: 16)
        inbox = LoopInbox(wake: wake.raw)
        serialExecutor = LoopSerialExecutor(inbox)
        taskExecutor = LoopTaskExecutor(inbox)
        loop.pointee.data = Unmanaged.passUnretained(meter).toOpaque()
        prepare.attach(self)
        check.attach(self)
        idle.attach(self)
        wake.attach(self)
        uv_prepare_start(prepare.raw) { HandleBox<uv_prepare_t, EventLoop>.owner($0)?.prepareToWait() }
        // `owner` has begun the turn.
        uv_check_start(check.raw) { HandleBox<uv_check_t, EventLoop>.owner($0)?.meter.uncount() }
        // Without a reference libuv would end when nothing else is open; a node waits for posted work as well: `wake` keeps its.
        for handle in [prepare.handle, check.handle, idle.handle] { uv_unref(handle) }
    }

    deinit {
        // Work on the pool that ``close()`` did not wait for still writes to it.
        if isFree { raw.deallocate() }
        slab.deallocate()
    }

    /// Nanoseconds since boot, counting suspension (CLOCK_BOOTTIME).
    public var now: MonotonicTime { EventLoop.clock() }

    public static func clock() -> MonotonicTime {
        var time = timespec()
        clock_gettime(CLOCK_BOOTTIME, &time)
        return MonotonicTime(nanoseconds: UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec))
    }

    /// True on the thread that runs the loop, while it does.
    public var isOnLoop: Bool { inbox.isOnLoop }

    /// Runs until ``stop()``, and may be called again after that. Not from inside itself. Nothing happens on a closed loop.
    public func run() {
        precondition(!isRunning, "the loop runs already")
        guard !isShut else { return }
        isRunning = true
        inbox.enter()
        meter.begin()
        // The inbox may hold jobs from before.
        drainInbox()
        uv_run(raw, UV_RUN_DEFAULT)
        // What the last turn gathered still leaves.
        endTurn()
        uv_run(raw, UV_RUN_NOWAIT)
        meter.end()
        inbox.leave()
        isRunning = false
    }

    /// Makes ``run()`` return after this turn; before it, at once after one turn without waiting. From the loop's thread.
    public func stop() { uv_stop(raw) }

    /// Runs `body` on the loop's thread, soon. From any thread. Dropped once the loop is closed.
    public func post(_ body: @escaping @Sendable () -> Void) { inbox.post(body) }

    /// Runs `body` once, when this turn's call-backs are done and before the loop waits for events: the place to send what a
    /// turn has gathered.
    public func beforeWaiting(_ body: @escaping () -> Void) {
        guard !isShut else { return }
        beforeWait.append(body)
    }

    /// The longest that call-backs held up the loop since the last ``takeLongestTurn()``.
    public var longestTurn: TimeSpan { meter.longest }

    /// ``longestTurn``, which begins again at zero.
    public func takeLongestTurn() -> TimeSpan {
        defer { meter.longest = .zero }
        return meter.longest
    }

    private func drainInbox() { inbox.drain() }

    /// Before what a turn has gathered leaves, the loop looks whether more has come meanwhile, until nothing has: on a busy
    /// machine many small turns become a few that share their messages, syncs and wake-ups. It costs one system call.
    private func prepareToWait() {
        meter.uncount()
        if !beforeWait.isEmpty, meter.calls != seenCalls, looks < EventLoop.looksLimit {
            looks += 1
            seenCalls = meter.calls
            uv_idle_start(idle.raw) { _ in }
            return
        }
        uv_idle_stop(idle.raw)
        looks = 0
        endTurn()
        seenCalls = meter.calls
    }

    private func endTurn() {
        // Bodies may add more; those run in this same pass, up to a bound that keeps input from starving.
        var rounds = 0
        while !beforeWait.isEmpty, rounds < 16 {
            let bodies = beforeWait
            beforeWait = []
            for body in bodies { body() }
            rounds += 1
        }
        // What is left has its turn after the next look at the sockets.
        if !beforeWait.isEmpty { uv_async_send(wake.raw) }
        meter.end()
        // The wait is reckoned from the time that libuv cached when the turn began: a long turn would make timers late.
        uv_update_time(raw)
    }

    /// Runs `work` on libuv's thread pool and `then` on the loop. Nothing happens on a closed loop.
    public func blocking<T: Sendable>(_ work: @escaping @Sendable () -> T, then: @escaping (T) -> Void) {
        guard !isShut else { return }
        let request = WorkRequest(work, then)
        let pointer = UnsafeMutablePointer<uv_work_t>.allocate(capacity: 1)
        pointer.pointee.data = Unmanaged.passRetained(request as PoolRequest).toOpaque()
        let status = uv_queue_work(raw, pointer) { pointer in
            guard let data = pointer?.pointee.data else { return }
            Unmanaged<PoolRequest>.fromOpaque(data).takeUnretainedValue().perform()
        } _: { pointer, _ in
            guard let pointer, let data = pointer.pointee.data else { return }
            TurnMeter.of(pointer.pointee.loop)?.begin()
            let request = Unmanaged<PoolRequest>.fromOpaque(data).takeRetainedValue()
            pointer.deallocate()
            request.finish()
        }
        // Only an invalid argument is refused, and there is none.
        precondition(status == 0, "uv_queue_work")
    }

    /// Suspends the caller for `span`; on the loop's thread. It is not cut short by cancellation, and never ends if the loop is
    /// closed before.
    nonisolated(nonsending) public func sleep(_ span: TimeSpan) async {
        precondition(isOnLoop, "this runs on the loop's thread only")
        await withCheckedContinuation { continuation in
            let timer = LoopTimer(loop: self)
            timer.start(after: span) {
                timer.close()
                continuation.resume()
            }
        }
    }

    /// Closes what the loop itself owns, and everything that was left open, without calling back (but a connection attempt
    /// that was under way fails with `ECANCELED`). Work on the pool is waited for up to a second; its answers still come.
    /// What was posted and has not run is dropped. Only after ``run()`` returned, on its thread.
    public func close() {
        precondition(!isRunning, "the loop runs")
        guard !isShut else { return }
        isShut = true
        inbox.enter()
        inbox.shut()
        beforeWait = []
        prepare.close()
        check.close()
        idle.close()
        wake.close()
        uv_walk(raw, { handle, _ in if let handle { HandleContext.closeLeftOver(handle) } }, nil)
        let deadline = now + .seconds(1)
        while uv_run(raw, UV_RUN_NOWAIT) != 0, now < deadline {
            var descriptor = pollfd(fd: uv_backend_fd(raw), events: Int16(POLLIN), revents: 0)
            poll(&descriptor, 1, 10)
        }
        isFree = uv_loop_close(raw) == 0
        inbox.leave()
    }
}

/// One piece of work for the pool. It is used by one thread at a time: the loop's, then a pool thread, then the loop's again.
private class PoolRequest {
    func perform() {}
    func finish() {}
}

private final class WorkRequest<T: Sendable>: PoolRequest {
    private let work: @Sendable () -> T
    private let then: (T) -> Void
    private var result: T?

    init(_ work: @escaping @Sendable () -> T, _ then: @escaping (T) -> Void) {
        self.work = work
        self.then = then
    }

    override func perform() { result = work() }
    override func finish() { if let result { then(result) } }
}
