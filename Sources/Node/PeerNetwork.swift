// Streams between nodes. Each node dials the peers it has something for and only sends on what it dialled; what it accepts
// it only reads. The end of a stream without `goodbye`, from either side, is evidence that the peer's process died.
import EventLoop
import Model
import NodeCore
import Security
import Transport
import Wire

/// The outgoing and incoming streams of one node to its peers.
final class PeerNetwork {
    /// Bytes queued for one peer beyond which frames for it are dropped: Raft and gossip repeat what matters.
    static let queueLimit = 32 << 20
    static let dialTimeout = TimeSpan.seconds(2)
    /// From the connection to the peer's welcome.
    var welcomeTimeout = TimeSpan.seconds(5)
    /// What the peer's host has not acknowledged by then breaks the stream. TCP's own time-out is a quarter of an hour, and its
    /// repetitions become so rare that a stream would stay silent for long after the network has healed.
    static let silenceLimit = TimeSpan.seconds(3)
    /// How long a peer whose stream broke is watched for signs of its death.
    static let probeTime = TimeSpan.milliseconds(200)

    private let loop: EventLoop
    private let key: ClusterKey
    private let hello: Hello
    private var outgoing: [NodeID: Outgoing] = [:]
    private var incoming: [ObjectIdentifier: Incoming] = [:]
    private var stopping = false

    var onFrame: ((NodeID, Frame) -> Void)?
    /// `crashed` is true when the peer's process is known to be gone: its stream broke and it refuses connections.
    var onPeerLost: ((NodeID, _ crashed: Bool) -> Void)?
    private(set) var dropped: UInt64 = 0

    private final class Outgoing {
        var address: SocketAddress
        var link: FrameLink?
        var ready = false
        /// Frames that wait for the connection.
        var waiting: [Frame] = []
        var waitingBytes = 0
        var saidGoodbye = false
        /// No dialling before this: a dead peer is not hammered.
        var retryAfter = MonotonicTime.zero
        init(address: SocketAddress) { self.address = address }
    }

    private struct Incoming {
        var id: NodeID
        var link: FrameLink
        var saidGoodbye = false
    }

    init(loop: EventLoop, key: ClusterKey, hello: Hello) {
        self.loop = loop
        self.key = key
        self.hello = hello
    }

    func send(_ frame: Frame, to id: NodeID, at address: SocketAddress) {
        guard !stopping else { return }
        let peer: Outgoing
        if let known = outgoing[id] {
            peer = known
            if known.address != address {
                known.link?.close()
                known.link = nil
                known.ready = false
                known.address = address
                known.retryAfter = .zero
            }
        } else {
            peer = Outgoing(address: address)
            outgoing[id] = peer
        }
        if peer.ready, let link = peer.link {
            guard link.stream.queuedBytes < PeerNetwork.queueLimit else {
                dropped += 1
                return
            }
            link.send(kind: frame.kind, channel: frame.channel, payload: frame.payload)
            return
        }
        if peer.link == nil && loop.now < peer.retryAfter {
            dropped += 1
            return
        }
        guard peer.waitingBytes + frame.payload.count < PeerNetwork.queueLimit else {
            dropped += 1
            return
        }
        peer.waiting.append(frame)
        peer.waitingBytes += frame.payload.count
        if peer.link == nil { dial(id, peer) }
    }

    private var dialling: Set<NodeID> = []

    private func dial(_ id: NodeID, _ peer: Outgoing) {
        guard dialling.insert(id).inserted else { return }
        let address = peer.address
        ByteStream.connect(loop: loop, to: address, timeout: PeerNetwork.dialTimeout) { [weak self] result in
            guard let self else { return }
            self.dialling.remove(id)
            guard !self.stopping, let peer = self.outgoing[id] else {
                if case .success(let stream) = result { stream.close() }
                return
            }
            switch result {
            case .failure(let error):
                self.forget(peer, retry: .milliseconds(100))
                if error.name == "ECONNREFUSED" { self.onPeerLost?(id, true) }
            case .success(let stream):
                stream.limitSilence(PeerNetwork.silenceLimit)
                do {
                    let link = FrameLink(
                        SecureStream(loop: self.loop, stream: stream, tls: try TLSSession(role: .client, key: self.key))
                    )
                    peer.link = link
                    self.open(link, id, peer)
                } catch {
                    stream.close()
                    self.forget(peer, retry: .seconds(1))
                }
            }
        }
    }

    private func open(_ link: FrameLink, _ id: NodeID, _ peer: Outgoing) {
        let timer = LoopTimer(loop: loop)
        timer.start(after: welcomeTimeout) { [weak self, weak peer, weak link] in
            timer.close()
            guard let self, let peer, let link, peer.link === link, !peer.ready else { return }
            // It accepts connections and says nothing: its process hangs.
            link.close()
            self.forget(peer, retry: .seconds(1))
        }
        link.onEstablished = { [weak self, weak link] in
            guard let self else { return }
            link?.send(kind: FrameKind.hello.rawValue, payload: self.hello.encoded)
        }
        link.onFrame = { [weak self, weak peer, weak link] frame in
            guard let self, let peer, let link else { return }
            switch FrameKind(rawValue: frame.kind) {
            case .welcome:
                guard let welcome = try? Welcome(decoding: frame.payload), welcome.node == id else {
                    // Another node has taken the address over: what we wanted to reach is not there.
                    link.close()
                    peer.link = nil
                    self.forget(peer, retry: .seconds(1))
                    return
                }
                timer.close()
                peer.ready = true
                let waiting = peer.waiting
                peer.waiting = []
                peer.waitingBytes = 0
                for frame in waiting { link.send(kind: frame.kind, channel: frame.channel, payload: frame.payload) }
            case .goodbye: peer.saidGoodbye = true
            case .refused:
                link.close()
                peer.link = nil
                self.forget(peer, retry: .seconds(1))
            default: break
            }
        }
        link.onClose = { [weak self, weak peer] _ in
            timer.close()
            guard let self, let peer, !self.stopping else { return }
            let wasReady = peer.ready
            let orderly = peer.saidGoodbye
            peer.link = nil
            self.forget(peer, retry: .milliseconds(50))
            if wasReady && !orderly { self.confirmDeath(of: id, at: peer.address) }
        }
        link.start()
    }

    /// A broken stream may be the network's doing. A refused connection is not: the host answers for a process that is gone.
    /// The kernel closes a dead process's sockets one after another, the newest first, so that its listener may take a
    /// connection some milliseconds longer: one that is made and then breaks at once is asked again.
    private func confirmDeath(of id: NodeID, at address: SocketAddress, until end: MonotonicTime? = nil) {
        ByteStream.connect(loop: loop, to: address, timeout: .milliseconds(250)) { [weak self] result in
            guard let self, !self.stopping else {
                if case .success(let stream) = result { stream.close() }
                return
            }
            switch result {
            case .success(let stream):
                if end == nil { self.onPeerLost?(id, false) }
                let end = end ?? self.loop.now + PeerNetwork.probeTime
                self.probe(stream, until: end) { [weak self] in self?.confirmDeath(of: id, at: address, until: end) }
            case .failure(let error):
                let isGone = error.name == "ECONNREFUSED"
                if isGone || end == nil { self.onPeerLost?(id, isGone) }
            }
        }
    }

    /// Holds a connection that says nothing until `end`; if it breaks before, calls `broke` a little later.
    private func probe(_ stream: ByteStream, until end: MonotonicTime, broke: @escaping () -> Void) {
        let timer = LoopTimer(loop: loop)
        let over: () -> Void = { [weak self] in
            stream.close()
            guard let self, !self.stopping, self.loop.now < end else { return timer.close() }
            timer.start(after: .milliseconds(1)) {
                timer.close()
                broke()
            }
        }
        stream.onEnd = over
        stream.onClose = { _ in over() }
        timer.start(at: end) {
            timer.close()
            stream.close()
        }
        stream.resumeReading()
    }

    /// Makes sure that there is a stream to `id`, so that what is urgent need not wait for a handshake.
    func keepStream(to id: NodeID, at address: SocketAddress) {
        guard !stopping, outgoing[id]?.link == nil || outgoing[id]?.address != address else { return }
        let peer = outgoing[id] ?? Outgoing(address: address)
        outgoing[id] = peer
        guard loop.now >= peer.retryAfter, peer.address == address else { return }
        dial(id, peer)
    }

    private func forget(_ peer: Outgoing, retry: TimeSpan) {
        peer.ready = false
        peer.link = nil
        peer.waiting = []
        peer.waitingBytes = 0
        peer.saidGoodbye = false
        peer.retryAfter = loop.now + retry
    }

    /// Takes over a connection whose hello named a node.
    func adopt(_ link: FrameLink, from id: NodeID) {
        let token = ObjectIdentifier(link)
        incoming[token] = Incoming(id: id, link: link)
        link.onFrame = { [weak self] frame in
            if frame.kind == FrameKind.goodbye.rawValue {
                self?.incoming[token]?.saidGoodbye = true
            } else {
                self?.onFrame?(id, frame)
            }
        }
        link.onClose = { [weak self] _ in
            guard let self, let gone = self.incoming.removeValue(forKey: token), !self.stopping else { return }
            guard !gone.saidGoodbye else { return }
            if let address = self.outgoing[id]?.address { self.confirmDeath(of: id, at: address) }
        }
    }

    /// Says goodbye to all and closes.
    func stop() {
        stopping = true
        for peer in outgoing.values {
            peer.link?.send(kind: FrameKind.goodbye.rawValue)
            peer.link?.close()
        }
        for peer in incoming.values {
            peer.link.send(kind: FrameKind.goodbye.rawValue)
            peer.link.close()
        }
        outgoing = [:]
        incoming = [:]
    }
}
