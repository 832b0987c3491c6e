import CPlatform
import Glibc

/// One thread of its own for blocking work that must stay in order: a disk. Work runs first in, first out; answers come back
/// on the loop. The thread lives until ``stop()``.
///
/// Sendable: the queue is behind the lock; the rest never changes after `init`.
public final class WorkerThread: @unchecked Sendable {
    private let lock: UnsafeMutablePointer<pthread_mutex_t>
    private let condition: UnsafeMutablePointer<pthread_cond_t>
    private let inbox: LoopInbox
    private var queue: [@Sendable () -> Void] = []
    private var isStopping = false
    /// The thread waits for `condition`: only then is it worth a system call to wake it.
    private var isIdle = false
    private var thread: pthread_t = 0
    private var isJoined = false

    /// `name` is what the system's tools show; at most 15 bytes.
    public init(loop: EventLoop, name: String) throws(UVError) {
        inbox = loop.inbox
        lock = .allocate(capacity: 1)
        condition = .allocate(capacity: 1)
        pthread_mutex_init(lock, nil)
        pthread_cond_init(condition, nil)
        let context = Unmanaged.passRetained(self).toOpaque()
        let status = pthread_create(
            &thread, nil,
            { context in
                guard let context else { return nil }
                Unmanaged<WorkerThread>.fromOpaque(context).takeRetainedValue().work()
                return nil
            }, context)
        guard status == 0 else {
            Unmanaged<WorkerThread>.fromOpaque(context).release()
            throw UVError(errno: status)
        }
        coterie_name_thread(thread, String(name.prefix(15)))
    }

    deinit {
        pthread_cond_destroy(condition)
        pthread_mutex_destroy(lock)
        condition.deallocate()
        lock.deallocate()
    }

    private func work() {
        while true {
            pthread_mutex_lock(lock)
            while queue.isEmpty && !isStopping {
                isIdle = true
                pthread_cond_wait(condition, lock)
            }
            isIdle = false
            let batch = queue
            queue = []
            pthread_mutex_unlock(lock)
            if batch.isEmpty { return }
            for item in batch { item() }
        }
    }

    /// From the loop's thread. After ``stop()`` nothing happens; an answer that comes when the loop does not run waits until
    /// it does, or is dropped with it.
    public func submit<T: Sendable>(_ work: @escaping @Sendable () -> T, then: @escaping (T) -> Void) {
        let answer = LoopBound(then)
        let inbox = self.inbox
        pthread_mutex_lock(lock)
        if isStopping {
            pthread_mutex_unlock(lock)
            return
        }
        queue.append {
            let value = work()
            inbox.post { answer.take()?(value) }
        }
        let wake = isIdle
        isIdle = false
        pthread_mutex_unlock(lock)
        // After the lock is free, or the thread would wake only to wait for it.
        if wake { pthread_cond_signal(condition) }
    }

    /// Lets the work that was submitted end, and the thread with it. Blocks until then. Not from the work itself.
    public func stop() {
        pthread_mutex_lock(lock)
        isStopping = true
        pthread_cond_signal(condition)
        let join = !isJoined
        isJoined = true
        pthread_mutex_unlock(lock)
        if join { pthread_join(thread, nil) }
    }
}

/// Carries a value of the loop through other threads and back. They only hold the box: its content is put in on the loop's
/// thread and taken out there, so that it is never freed anywhere else (a closed loop may drop it elsewhere; nothing that it
/// holds is open then).
final class LoopBound<Value>: @unchecked Sendable {
    private var value: Value?
    init(_ value: Value) { self.value = value }

    /// On the loop's thread; nil the second time.
    func take() -> Value? {
        defer { value = nil }
        return value
    }
}
