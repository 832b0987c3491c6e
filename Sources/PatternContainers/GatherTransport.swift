// How the root, the leaves and the client of a scatter-gather job reach each other and the cluster, as a seam: tests join
// them over socket pairs in one process.
import Client
import EventLoop
import Model
import NodeCore
import ScatterGather
import Scheduling
import Wire

/// Bytes both ways with back-pressure. Nothing is called back after ``close()``.
public protocol GatherStream: AnyObject {
    var isCongested: Bool { get }
    var onDrain: (() -> Void)? { get set }
    func write(_ bytes: [UInt8])
    func start(
        onBytes: @escaping (ArraySlice<UInt8>) -> Void, onEnd: @escaping () -> Void,
        onClose: @escaping (CoterieError?) -> Void)
    func pauseReading()
    func resumeReading()
    func close()
}

/// What a job's processes ask of the cluster. Confined to the loop; call-backs come once, never from within the call.
public protocol GatherTransport: AnyObject {
    func dial(_ service: String, timeout: TimeSpan, then: @escaping (Result<any GatherStream, CoterieError>) -> Void)
    /// `service` is below this pod's own name. `then` tells of the first registration; it is renewed by itself afterwards.
    func listen(
        _ service: String, onConnection: @escaping (any GatherStream) -> Void, then: @escaping (CoterieError?) -> Void)
    func command(_ command: SchedulingCommand, then: @escaping (Result<SchedulingResult, CoterieError>) -> Void)
    /// The job's document, as `gather show` prints it.
    func gather(_ id: String, then: @escaping (Result<JSONValue, CoterieError>) -> Void)
    /// No more listening.
    func close()
}

extension RawStream: GatherStream {
    public func write(_ bytes: [UInt8]) { write(bytes[...]) }
}

/// The cluster itself.
public final class ClusterGatherTransport: GatherTransport {
    private let client: ClusterClient
    private var listeners: [ServiceListener] = []

    public init(client: ClusterClient) { self.client = client }

    public func dial(
        _ service: String, timeout: TimeSpan, then: @escaping (Result<any GatherStream, CoterieError>) -> Void
    ) {
        client.dial(service, timeout: timeout) { then($0.map { $0 }) }
    }

    public func listen(
        _ service: String, onConnection: @escaping (any GatherStream) -> Void, then: @escaping (CoterieError?) -> Void
    ) {
        client.listen(service, onConnection: { onConnection($0) }) { [weak self] result in
            switch result {
            case .success(let listener):
                self?.listeners.append(listener)
                then(nil)
            case .failure(let error): then(error)
            }
        }
    }

    public func command(_ command: SchedulingCommand, then: @escaping (Result<SchedulingResult, CoterieError>) -> Void)
    {
        client.command(.scheduling(command)) { answer in
            switch answer {
            case .success(.scheduling(let result)): then(result.error.map { .failure($0) } ?? .success(result))
            case .success: then(.failure(CoterieError(.failed, "an answer of the wrong kind")))
            case .failure(let error): then(.failure(error))
            }
        }
    }

    public func gather(_ id: String, then: @escaping (Result<JSONValue, CoterieError>) -> Void) {
        client.query("gathers/\(id)") { then($0) }
    }

    public func close() {
        for listener in listeners { listener.close() }
        listeners = []
    }
}

/// Messages over a stream.
final class GatherChannel {
    private let stream: any GatherStream
    private var decoder = FrameDecoder(limit: GatherLimits.messageBytes)
    private(set) var isClosed = false
    private var isPaused = false
    private var onMessage: ((GatherMessage) -> Void)?
    private var onClosed: ((String) -> Void)?
    /// When the peer said something last.
    private(set) var lastHeard: MonotonicTime
    private let loop: EventLoop

    /// `onClosed` is told why, once, unless we closed it ourselves.
    init(
        _ stream: any GatherStream, loop: EventLoop, onMessage: @escaping (GatherMessage) -> Void,
        onClosed: @escaping (String) -> Void
    ) {
        self.stream = stream
        self.loop = loop
        self.onMessage = onMessage
        self.onClosed = onClosed
        lastHeard = loop.now
        stream.start(
            onBytes: { [weak self] bytes in self?.received(bytes) },
            onEnd: { [weak self] in self?.fail("the other side closed") },
            onClose: { [weak self] error in self?.fail(error?.message ?? "the connection is closed") })
    }

    var isCongested: Bool { stream.isCongested }
    var onDrain: (() -> Void)? {
        get { stream.onDrain }
        set { if !isClosed { stream.onDrain = newValue } }
    }

    func send(_ message: GatherMessage) { if !isClosed { stream.write(message.encoded) } }

    func pause() {
        guard !isPaused, !isClosed else { return }
        isPaused = true
        stream.pauseReading()
    }

    func resume() {
        guard isPaused, !isClosed else { return }
        isPaused = false
        lastHeard = loop.now
        stream.resumeReading()
    }

    /// Since the peer was heard, as far as it was listened to.
    var silence: TimeSpan { isPaused ? .zero : loop.now - lastHeard }

    private func received(_ bytes: ArraySlice<UInt8>) {
        lastHeard = loop.now
        decoder.feed(bytes)
        do throws(WireError) {
            while !isClosed, let frame = try decoder.next() { onMessage?(try GatherMessage(frame)) }
        } catch {
            fail("it said what is no message: \(error)")
        }
    }

    func fail(_ why: String) {
        guard !isClosed else { return }
        let report = onClosed
        close()
        report?(why)
    }

    func close() {
        guard !isClosed else { return }
        isClosed = true
        onMessage = nil
        onClosed = nil
        stream.onDrain = nil
        stream.close()
    }
}
