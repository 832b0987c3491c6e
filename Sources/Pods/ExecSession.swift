// One command in a running container, with its three streams.
import EventLoop
import Model

/// A command that ``PodRuntime/exec(key:container:command:hasInput:)`` started. Confined to the loop. Set the call-backs in the
/// same turn.
public final class ExecSession {
    /// Output as it comes; the bytes are gone after the call.
    public var onOutput: ((LogStream, UnsafeRawBufferPointer) -> Void)?
    /// The command's exit code (128 + signal), or why it could not be run. Once, after all output; never after ``cancel()``.
    public var onExit: ((Result<Int32, CoterieError>) -> Void)?
    /// What was written to the input has left.
    public var onDrain: (() -> Void)?

    var input: ByteStream?
    var outputs: [ByteStream] = []
    var sendSignal: ((Int32) -> Void)?
    private var isOver = false

    init() {}

    /// Bytes for the command's standard input; without one they are dropped.
    public func write(_ bytes: [UInt8]) { input?.write(bytes) }

    /// More was written than the command takes: wait for ``onDrain``.
    public var isCongested: Bool { input?.isCongested ?? false }

    /// The command's input ends after what was written.
    public func closeInput() {
        guard let input else { return }
        self.input = nil
        // A pipe has no half to shut down: it is closed when all has left.
        if input.queuedBytes == 0 { return input.close() }
        closing = input
        input.onDrain = { [weak self, weak input] in
            input?.close()
            self?.closing = nil
        }
        input.lowWater = 0
    }

    /// Kept until what was written has left.
    private var closing: ByteStream?

    public func pauseReading() { for stream in outputs { stream.pauseReading() } }
    public func resumeReading() { for stream in outputs { stream.resumeReading() } }

    /// 1 to 64, to the command's main process; SIGKILL to all of its session.
    public func signal(_ number: Int32) { sendSignal?(number) }

    /// Kills the command; no call-back comes after this.
    public func cancel() {
        onOutput = nil
        onExit = nil
        onDrain = nil
        sendSignal?(9)
    }

    func finish(_ result: Result<Int32, CoterieError>) {
        guard !isOver else { return }
        isOver = true
        sendSignal = nil
        let exit = onExit
        onExit = nil
        onOutput = nil
        onDrain = nil
        input?.close()
        closing?.close()
        input = nil
        closing = nil
        for stream in outputs { stream.close() }
        outputs = []
        exit?(result)
    }
}
