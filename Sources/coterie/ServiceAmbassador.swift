// A plain listener whose connections go to a service of the cluster: the queue protocol, or what a pod offers.
import Client
import EventLoop
import Model
import PatternContainers

/// One connection there for each connection here, with back-pressure both ways. Confined to its loop.
final class ServiceAmbassador {
    private static let connectionLimit = 1_024

    private let loop: EventLoop
    private let client: ClusterClient
    private let address: SocketAddress
    private let service: String
    private let timeout: TimeSpan
    private var listener: Listener?
    private var joints: [ObjectIdentifier: Joint] = [:]

    init(loop: EventLoop, client: ClusterClient, listen: SocketAddress, service: String, timeout: TimeSpan) {
        self.loop = loop
        self.client = client
        address = listen
        self.service = service
        self.timeout = timeout
    }

    func start() throws(CoterieError) {
        let listener = try openListener(loop: loop, at: address, environment: .current)
        listener.onConnection = { [weak self] stream in self?.accept(stream) }
        self.listener = listener
    }

    func stop(_ done: () -> Void) {
        listener?.close()
        listener = nil
        let all = joints.values
        joints = [:]
        for joint in all { joint.close() }
        done()
    }

    private func accept(_ stream: ByteStream) {
        guard joints.count < ServiceAmbassador.connectionLimit else { return stream.close() }
        let joint = Joint(stream)
        let id = ObjectIdentifier(joint)
        joints[id] = joint
        joint.onClosed = { [weak self] in self?.joints[id] = nil }
        client.dial(service, timeout: timeout) { [weak joint] result in
            switch (result, joint) {
            case (.success(let far), let joint?): joint.join(far)
            case (.success(let far), nil): far.close()
            case (.failure(let error), let joint):
                reportToStandardError("ambassador: \(error)")
                joint?.close()
            }
        }
    }

    /// A connection here and the one that belongs to it there.
    private final class Joint {
        private let near: ByteStream
        private var far: RawStream?
        private var openHalves = 2
        private var isClosed = false
        var onClosed: (() -> Void)?

        init(_ near: ByteStream) {
            self.near = near
            // Until the far end is there nothing is read: nothing has to be kept.
            near.onClose = { [weak self] _ in self?.close() }
        }

        func join(_ far: RawStream) {
            guard !isClosed else { return far.close() }
            self.far = far
            near.onBytes = { [weak self] bytes in
                guard let self, let far = self.far else { return }
                far.write(Array(bytes))
                if far.isCongested { near.pauseReading() }
            }
            near.onEnd = { [weak self] in
                self?.far?.shutdown()
                self?.halfEnded()
            }
            near.onDrain = { [weak far] in far?.resumeReading() }
            far.onDrain = { [weak self] in self?.near.resumeReading() }
            far.start(
                onBytes: { [weak self] bytes in
                    guard let self else { return }
                    near.write(Array(bytes))
                    if near.isCongested { self.far?.pauseReading() }
                },
                onEnd: { [weak self] in
                    self?.near.shutdown()
                    self?.halfEnded()
                }, onClose: { [weak self] _ in self?.close() })
            near.resumeReading()
        }

        private func halfEnded() {
            openHalves -= 1
            guard openHalves == 0 else { return }
            if near.queuedBytes == 0 { return close() }
            near.lowWater = 0
            near.onDrain = { [weak self] in self?.close() }
        }

        func close() {
            guard !isClosed else { return }
            isClosed = true
            near.close()
            far?.close()
            far = nil
            onClosed?()
        }
    }
}
