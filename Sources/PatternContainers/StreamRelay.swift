// Joins two plain byte streams: what one says the other hears, with back-pressure both ways, and a half-closed direction
// stays half-closed while the other goes on.
import EventLoop
import Model

/// Copies bytes until both directions have ended or one stream fails. The owner keeps it; `done` is called once, then both
/// streams are closed.
final class StreamRelay {
    private let a: ByteStream
    private let b: ByteStream
    private var open = 2
    private var done: (() -> Void)?

    init(_ a: ByteStream, _ b: ByteStream, done: @escaping () -> Void) {
        self.a = a
        self.b = b
        self.done = done
    }

    func start() {
        join(a, b)
        join(b, a)
        a.resumeReading()
        b.resumeReading()
    }

    private func join(_ from: ByteStream, _ to: ByteStream) {
        from.onBytes = { [weak from, weak to] bytes in
            guard let from, let to else { return }
            to.write(Array(bytes))
            if to.isCongested { from.pauseReading() }
        }
        to.onDrain = { [weak from] in from?.resumeReading() }
        from.onEnd = { [weak self, weak to] in
            to?.shutdown()
            self?.directionEnded()
        }
        from.onClose = { [weak self] _ in self?.close() }
    }

    private func directionEnded() {
        open -= 1
        guard open == 0 else { return }
        // Both peers have said all; what is still queued must leave before the streams are closed.
        closeWhenWritten()
    }

    private func closeWhenWritten() {
        if a.queuedBytes == 0 && b.queuedBytes == 0 { return close() }
        for stream in [a, b] where stream.queuedBytes > 0 {
            stream.lowWater = 0
            stream.onDrain = { [weak self] in self?.closeWhenWritten() }
        }
    }

    func close() {
        guard let done else { return }
        self.done = nil
        a.close()
        b.close()
        done()
    }
}
