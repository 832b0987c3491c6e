// Joins two streams: what one says the other hears, with back-pressure both ways and half-closed ends kept.
import EventLoop
import Model

/// Copies bytes between two streams until both directions have ended or one stream fails. Keeps itself alive until then.
public final class Relay {
    private let a: SecureStream
    private let b: SecureStream
    /// Streams on which both directions are through, everything written included.
    private var through = 0
    private var done: (() -> Void)?
    private var keepAlive: Relay?

    /// Streams must be started. `pendingA` are bytes already read from `a` that belong to the stream.
    public init(
        _ a: SecureStream, pendingA: [UInt8] = [], _ b: SecureStream, pendingB: [UInt8] = [], done: (() -> Void)? = nil
    ) {
        self.a = a
        self.b = b
        self.done = done
        keepAlive = self
        join(a, b)
        join(b, a)
        if !pendingA.isEmpty { b.write(pendingA) }
        if !pendingB.isEmpty { a.write(pendingB) }
        a.resumeReading()
        b.resumeReading()
    }

    private func join(_ from: SecureStream, _ to: SecureStream) {
        // A write that fails ends both streams from within: neither may be taken for granted after it.
        from.onBytes = { [weak from, weak to] bytes in
            to?.write(bytes)
            if let to, to.isCongested { from?.pauseReading() }
        }
        to.onDrain = { [weak from] in from?.resumeReading() }
        from.onEnd = { [weak to] in to?.shutdown() }
        from.onClose = { [weak self] error in
            guard let self else { return }
            through += 1
            // One stream may be through while the other still has much to send.
            if error != nil || through == 2 { finish() }
        }
    }

    private func finish() {
        guard keepAlive != nil else { return }
        let done = self.done
        a.close()
        b.close()
        keepAlive = nil
        self.done = nil
        done?()
    }
}
