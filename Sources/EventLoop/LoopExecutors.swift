// Work that comes to the loop from elsewhere: posted closures and the jobs of Swift's concurrency. Two executor objects on
// purpose: one object in both roles made every hop ten times slower (measured; see the notes on executors in docs/HACKING).
import CUV
import Glibc

/// The mailbox of a loop. Sendable: everything mutable is behind the lock, but `wake`, which libuv allows any thread to use
/// until it is closed (``shut()`` makes that visible under the lock), and the thread id, written by the loop's thread alone.
final class LoopInbox: @unchecked Sendable {
    private enum Item {
        case body(@Sendable () -> Void)
        case serial(UnownedJob, UnownedSerialExecutor)
        case task(UnownedJob, UnownedTaskExecutor)
    }

    private let lock: UnsafeMutablePointer<pthread_mutex_t>
    private let wake: UnsafeMutablePointer<uv_async_t>
    private var items: [Item] = []
    private var signalled = false
    /// Threads that are about to wake the loop, outside the lock: the loop would only wait for it.
    private var senders = 0
    private var isShut = false
    private var thread: pthread_t?

    init(wake: UnsafeMutablePointer<uv_async_t>) {
        self.wake = wake
        lock = .allocate(capacity: 1)
        pthread_mutex_init(lock, nil)
    }

    deinit {
        pthread_mutex_destroy(lock)
        lock.deallocate()
    }

    private func locked<T>(_ body: () -> T) -> T {
        pthread_mutex_lock(lock)
        defer { pthread_mutex_unlock(lock) }
        return body()
    }

    func enter() { locked { thread = pthread_self() } }
    func leave() { locked { thread = nil } }
    var isOnLoop: Bool { locked { thread.map { pthread_equal($0, pthread_self()) != 0 } ?? false } }

    /// Nothing runs any more, and `wake` is not touched again. What waits is dropped here, on the loop's thread.
    func shut() {
        let dropped = locked { () -> [Item] in
            isShut = true
            defer { items = [] }
            return items
        }
        // `wake` is closed next.
        while locked({ senders > 0 }) { sched_yield() }
        // Outside the lock: what the closures hold may be freed with them, and post as it goes.
        withExtendedLifetime(dropped) {}
    }

    private func put(_ item: Item) {
        let mustWake = locked { () -> Bool in
            if isShut { return false }
            items.append(item)
            if signalled { return false }
            signalled = true
            senders += 1
            return true
        }
        guard mustWake else { return }
        uv_async_send(wake)
        locked { senders -= 1 }
    }

    func post(_ body: @escaping @Sendable () -> Void) { put(.body(body)) }
    func put(_ job: UnownedJob, on executor: UnownedSerialExecutor) { put(.serial(job, executor)) }
    func put(_ job: UnownedJob, on executor: UnownedTaskExecutor) { put(.task(job, executor)) }

    /// Runs what has come; bounded, so that jobs which make jobs do not keep the loop from its sockets.
    func drain() {
        for _ in 0..<16 {
            let batch = locked { () -> [Item] in
                defer { items = [] }
                if items.isEmpty { signalled = false }
                return items
            }
            if batch.isEmpty { return }
            for item in batch {
                switch item {
                case .body(let body): body()
                case .serial(let job, let executor): job.runSynchronously(on: executor)
                case .task(let job, let executor): job.runSynchronously(on: executor)
                }
            }
        }
        locked { if !isShut { _ = uv_async_send(wake) } }
    }
}

/// Runs actors on the loop's thread.
public final class LoopSerialExecutor: SerialExecutor {
    private let inbox: LoopInbox
    init(_ inbox: LoopInbox) { self.inbox = inbox }

    public func enqueue(_ job: consuming ExecutorJob) {
        inbox.put(UnownedJob(job), on: asUnownedSerialExecutor())
    }

    public func asUnownedSerialExecutor() -> UnownedSerialExecutor { UnownedSerialExecutor(ordinary: self) }
    public func checkIsolated() { precondition(inbox.isOnLoop, "this runs on the loop's thread only") }
    public func isIsolatingCurrentContext() -> Bool? { inbox.isOnLoop }
}

/// Runs tasks that prefer it on the loop's thread.
public final class LoopTaskExecutor: TaskExecutor {
    private let inbox: LoopInbox
    init(_ inbox: LoopInbox) { self.inbox = inbox }

    public func enqueue(_ job: consuming ExecutorJob) {
        inbox.put(UnownedJob(job), on: asUnownedTaskExecutor())
    }

    public func asUnownedTaskExecutor() -> UnownedTaskExecutor { UnownedTaskExecutor(ordinary: self) }
}
