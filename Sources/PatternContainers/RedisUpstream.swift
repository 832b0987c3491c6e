// One client's connection to one Redis server. Each client has its own, so that what a connection holds (database, user,
// transaction, a blocking command) is that client's alone and replies come back in the order in which requests went.
import EventLoop
import Model

/// What a connection tells its client's session. Calls come on the loop, never after ``RedisUpstream/close()``.
protocol RedisUpstreamOwner: AnyObject {
    /// A piece of the reply to `slot`.
    func reply(to slot: UInt64, from upstream: RedisUpstream, bytes: UnsafeRawBufferPointer, isLast: Bool)
    /// All pieces of one read have been told.
    func repliesEnded(from upstream: RedisUpstream)
    func upstreamConnected(_ upstream: RedisUpstream)
    /// `slots` got no whole reply. `wasConnected` tells whether any of them may have reached the server.
    func upstreamFailed(_ upstream: RedisUpstream, slots: [UInt64], wasConnected: Bool, why: CoterieError)
    /// Room to write again.
    func upstreamDrained(_ upstream: RedisUpstream)
}

final class RedisUpstream {
    private enum Expected {
        case slot(UInt64)
        /// The reply to a replayed state command: nobody is waiting for it.
        case hidden
    }

    let server: RedisServer
    private let loop: EventLoop
    private weak var owner: (any RedisUpstreamOwner)?
    private var attempt: ConnectAttempt?
    private(set) var stream: ByteStream?
    private var scanner = RESPReplyScanner()
    private var expected = FIFO<Expected>()
    /// To be sent at the end of this turn, or when the connection stands.
    private var outgoing: [UInt8] = []
    private var closed = false
    private var hiddenReply: [UInt8] = []
    private var wantsReading = true
    /// The version of the client's connection state that this connection has.
    var stateVersion = 0

    init(loop: EventLoop, server: RedisServer, timeout: TimeSpan, owner: any RedisUpstreamOwner) {
        self.loop = loop
        self.server = server
        self.owner = owner
        attempt = ConnectAttempt(loop: loop, to: server.endpoint, timeout: timeout) { [weak self] result in
            guard let self else { return }
            attempt = nil
            switch result {
            case .success(let stream): connected(stream)
            case .failure(let error): fail(error)
            }
        }
    }

    var isConnected: Bool { stream != nil }
    var isClosed: Bool { closed }
    /// No reply is awaited.
    var isIdle: Bool { expected.isEmpty && outgoing.isEmpty }
    /// More should not be sent now.
    var isCongested: Bool { stream.map(\.isCongested) ?? (outgoing.count > 1 << 20) }

    /// Queues the bytes of a command whose reply belongs to `slot`.
    func send(_ bytes: some Collection<UInt8>, slot: UInt64) {
        outgoing.append(contentsOf: bytes)
        expected.append(.slot(slot))
    }

    /// Queues more bytes of the command queued last.
    func sendBody(_ bytes: ArraySlice<UInt8>) {
        guard let stream, bytes.count >= 16_384 else {
            outgoing.append(contentsOf: bytes)
            return
        }
        flush()
        stream.write(Array(bytes))
    }

    /// Queues commands that bring this connection to the client's state.
    func replay(_ state: RedisConnectionState) {
        for command in state.replay {
            outgoing.append(contentsOf: command)
            expected.append(.hidden)
        }
        stateVersion = state.version
    }

    func flush() {
        guard let stream, !outgoing.isEmpty else { return }
        let bytes = outgoing
        outgoing = []
        stream.write(bytes)
    }

    /// Whether replies are to be read; held replies or a slow client stop it.
    func setReading(_ wanted: Bool) {
        guard wanted != wantsReading else { return }
        wantsReading = wanted
        if wanted { stream?.resumeReading() } else { stream?.pauseReading() }
    }

    /// Gives the connection away as a raw stream. Only when idle and connected.
    func detach() -> ByteStream? {
        let stream = self.stream
        self.stream = nil
        closed = true
        owner = nil
        stream?.onBytes = nil
        stream?.onEnd = nil
        stream?.onClose = nil
        stream?.onDrain = nil
        stream?.pauseReading()
        return stream
    }

    func close() {
        guard !closed else { return }
        closed = true
        owner = nil
        attempt?.cancel()
        attempt = nil
        stream?.close()
        stream = nil
    }

    /// Ends the connection as if it had broken.
    func fail(_ why: CoterieError) {
        guard !closed else { return }
        let wasConnected = stream != nil
        let owner = self.owner
        var slots: [UInt64] = []
        for item in expected.takeAll() { if case .slot(let slot) = item { slots.append(slot) } }
        close()
        owner?.upstreamFailed(self, slots: slots, wasConnected: wasConnected, why: why)
    }

    private func connected(_ stream: ByteStream) {
        self.stream = stream
        stream.onBytes = { [weak self] bytes in self?.received(bytes) }
        stream.onEnd = { [weak self] in
            guard let self else { return }
            fail(CoterieError(.unavailable, "\(server.endpoint) closed the connection"))
        }
        stream.onClose = { [weak self] error in
            guard let self else { return }
            fail(
                CoterieError(
                    .unavailable, "connection to \(server.endpoint) lost: \(error.map { "\($0)" } ?? "closed")"))
        }
        stream.onDrain = { [weak self] in
            guard let self else { return }
            owner?.upstreamDrained(self)
        }
        if wantsReading { stream.resumeReading() }
        flush()
        owner?.upstreamConnected(self)
    }

    private func received(_ bytes: UnsafeRawBufferPointer) {
        var at = 0
        do throws(RESPError) {
            while at < bytes.count && !closed {
                let progress = try scanner.scan(bytes, from: at)
                let end = if case .complete(let end) = progress { end } else { bytes.count }
                let piece = UnsafeRawBufferPointer(rebasing: bytes[at..<end])
                at = end
                guard let next = expected.first else {
                    // Before any request: the server refuses us ("max number of clients reached"), then closes.
                    throw RESPError(
                        message:
                            "\(server.endpoint) said without being asked: \(String(decoding: piece.prefix(100), as: UTF8.self))"
                    )
                }
                let isLast = progress != .more
                if isLast { expected.popFirst() }
                switch next {
                case .slot(let slot): owner?.reply(to: slot, from: self, bytes: piece, isLast: isLast)
                case .hidden:
                    if hiddenReply.count < 256 { hiddenReply.append(contentsOf: piece.prefix(256)) }
                    guard isLast else { break }
                    if hiddenReply.first == 0x2D {
                        throw RESPError(
                            message:
                                "\(server.endpoint) refuses the client's state: \(String(decoding: hiddenReply.dropFirst(), as: UTF8.self))"
                        )
                    }
                    hiddenReply = []
                }
            }
        } catch {
            fail(CoterieError(.failed, error.message))
            return
        }
        if !closed { owner?.repliesEnded(from: self) }
    }
}
