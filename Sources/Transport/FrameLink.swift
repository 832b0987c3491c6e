// Frames over a secure stream, and the way from frames to a raw stream when two services have been connected.
import EventLoop
import Model
import Wire

/// One connection that carries ``Wire/Frame``s. Owns its ``SecureStream``.
public final class FrameLink {
    public let stream: SecureStream
    /// Bytes that may come while nobody takes frames.
    static let unheardBytes = 256 << 10
    private var decoder: FrameDecoder
    private var raw = false

    public var onEstablished: (() -> Void)?
    public var onFrame: ((Frame) -> Void)?
    /// Gone, by either side's doing or an error; once, never after our own ``close()``. `orderly` is false when the
    /// connection broke without the peer's ending it.
    public var onClose: ((CoterieError?) -> Void)?

    public init(_ stream: SecureStream, frameLimit: Int = Limits.frameBytes) {
        self.stream = stream
        decoder = FrameDecoder(limit: frameLimit)
    }

    /// Frames up to this size from now on: a stranger may send little before it has said who it is.
    public func raiseFrameLimit(to limit: Int) { decoder.limit = limit }

    public func start() {
        stream.onEstablished = { [weak self] in self?.onEstablished?() }
        stream.onBytes = { [weak self] bytes in self?.received(bytes) }
        stream.onEnd = { [weak self] in self?.finish(nil) }
        stream.onClose = { [weak self] error in self?.finish(error) }
        stream.start()
    }

    public func send(kind: UInt8, channel: UInt32 = 0, payload: [UInt8] = []) {
        stream.write(frame: kind, channel, payload)
    }

    public func close() {
        onFrame = nil
        onClose = nil
        onEstablished = nil
        stream.close()
    }

    /// The connection goes on as a raw stream: no more frames are cut. The bytes that came after the last frame are
    /// returned; the caller sets the stream's call-backs.
    public func becomeRaw() -> (stream: SecureStream, pending: [UInt8]) {
        raw = true
        onFrame = nil
        onClose = nil
        return (stream, decoder.takePending())
    }

    private func received(_ bytes: ArraySlice<UInt8>) {
        decoder.feed(bytes)
        do {
            while !raw, let onFrame, let frame = try decoder.next() { onFrame(frame) }
        } catch {
            finish(CoterieError(.badInput, "malformed frame: \(error)"))
        }
        // While a dialled service is looked for there is nothing to say.
        if !raw, onFrame == nil, decoder.pendingBytes > FrameLink.unheardBytes {
            finish(CoterieError(.badInput, "more than \(FrameLink.unheardBytes) bytes before the service answered"))
        }
    }

    private func finish(_ error: CoterieError?) {
        let report = onClose
        close()
        report?(error)
    }
}
