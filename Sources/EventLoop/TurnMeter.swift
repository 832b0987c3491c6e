// How long call-backs hold up the loop. libuv calls back from inside its wait, so that the hooks before and after the wait
// alone would miss all input: a turn begins with the first call-back after the wait, whichever it is.
import CUV
import Model

/// Confined to its loop.
final class TurnMeter {
    private var isWaiting = true
    private var began = MonotonicTime.zero
    /// Call-backs so far.
    private(set) var calls: UInt64 = 0
    /// The longest turn so far.
    var longest = TimeSpan.zero

    /// Where a loop keeps its meter (`uv_loop_t.data`, unretained: the loop owns it).
    static func of(_ loop: UnsafeMutablePointer<uv_loop_t>?) -> TurnMeter? {
        guard let data = loop?.pointee.data else { return nil }
        return Unmanaged<TurnMeter>.fromOpaque(data).takeUnretainedValue()
    }

    /// Something runs. Only the first of a turn counts.
    func begin() {
        calls &+= 1
        guard isWaiting else { return }
        isWaiting = false
        began = EventLoop.clock()
    }

    /// The loop's own hooks are no input.
    func uncount() { calls &-= 1 }

    /// The loop is about to wait.
    func end() {
        guard !isWaiting else { return }
        isWaiting = true
        longest = max(longest, EventLoop.clock() - began)
    }
}
