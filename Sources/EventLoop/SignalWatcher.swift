import CUV

/// Calls back on the loop when the process gets a signal, instead of what the signal does by default.
public final class SignalWatcher: LoopHandleOwner {
    private let box: HandleBox<uv_signal_t, SignalWatcher>
    private var onSignal: (() -> Void)?

    public init(loop: EventLoop, signal: Int32, _ onSignal: @escaping () -> Void) throws(UVError) {
        self.onSignal = onSignal
        box = try HandleBox(loop) { uv_signal_init($0, $1) }
        box.attach(self)
        let status = uv_signal_start(
            box.raw, { handle, _ in HandleBox<uv_signal_t, SignalWatcher>.owner(handle)?.onSignal?() }, signal)
        guard status >= 0 else {
            box.close()
            throw UVError(code: status)
        }
    }

    /// No call-back any more.
    public func close() {
        onSignal = nil
        box.close()
    }
}
