// All requests of a client over one connection at a time. Many are in flight at once; when the connection breaks, those that
// may be sent again go out on the next one, commands with the session and sequence that they had.
//
//     idle ──request──▶ searching ──welcome──▶ open ──broken, silent or without leader──▶ searching …
import EventLoop
import Model
import NodeCore
import Security
import Transport
import Wire

final class RequestEngine {
    /// Requests on their way at once; a node refuses more than 8 192 on one connection.
    static let inFlightLimit = 4_096
    /// A node that leaves a request unanswered for so long, beyond what it was asked to wait, is given up for another.
    static let silenceLimit = TimeSpan.seconds(5)
    /// A client that lives so long asks for the other members' addresses.
    static let learnAfter = TimeSpan.seconds(1)

    private enum State {
        case idle
        case searching(ConnectionFinder)
        case open(FrameLink, SocketAddress)
        case closed
    }

    private let loop: EventLoop
    private let book: EndpointBook
    private let key: ClusterKey?
    private let givesUpOnNobody: Bool
    private var state = State.idle
    private var lanes = SessionLanes()
    private var nextNumber: UInt64 = 1
    private var nextChannel: UInt32 = 1
    /// In the order of asking.
    private var unsent: [PendingRequest] = []
    private var inFlight: [UInt32: PendingRequest] = [:]
    /// Refused for want of a leader; sent again after a while.
    private var refused: [PendingRequest] = []
    private var backOff: BackOff
    private var retryDelay: BackOff
    /// Something went wrong since the last good answer: the next search waits a little.
    private var hasFailed = false
    private let deadlineTimer: LoopTimer
    private var deadlineArmed = MonotonicTime.distantFuture
    private let retryTimer: LoopTimer
    private var retryArmed = false
    private let silenceTimer: LoopTimer
    private var silenceArmed = false
    private let learnTimer: LoopTimer

    init(loop: EventLoop, book: EndpointBook, key: ClusterKey?, givesUpOnNobody: Bool, generator: inout SeededGenerator)
    {
        self.loop = loop
        self.book = book
        self.key = key
        self.givesUpOnNobody = givesUpOnNobody
        backOff = BackOff(generator: generator.fork())
        retryDelay = BackOff(generator: generator.fork())
        deadlineTimer = LoopTimer(loop: loop)
        retryTimer = LoopTimer(loop: loop)
        silenceTimer = LoopTimer(loop: loop)
        learnTimer = LoopTimer(loop: loop)
    }

    /// The lanes whose sessions can be ended: used, and nothing outstanding in them.
    var endableLanes: [Int] {
        lanes.lanes.indices.filter { lanes.lanes[$0].outstanding.isEmpty && !lanes.lanes[$0].hasEnded }
    }
    var isOpen: Bool { if case .open = state { true } else { false } }

    // MARK: - Asking

    enum Question {
        case query(String)
        case command(StateCommand, wait: TimeSpan?)
        case admin(JSONValue)
        case watch(String, onItem: (JSONValue) -> Void)
        /// The last command of the session in this lane.
        case endSession(lane: Int)
    }

    /// `then` is never called from within this call.
    @discardableResult
    func ask(
        _ question: Question, patience: TimeSpan, then: @escaping (Result<PendingRequest.Answer, CoterieError>) -> Void
    ) -> PendingRequest {
        var waitUntil: MonotonicTime?
        let kind: PendingRequest.Kind
        switch question {
        case .query(let path): kind = .query(path)
        case .admin(let order): kind = .admin(order)
        case .watch(let path, let onItem): kind = .watch(path, onItem: onItem)
        case .endSession(let lane): kind = .command(.endSession, lanes.open(lane: lane))
        case .command(let command, let wait):
            var system = SystemRandomNumberGenerator()
            if let wait { waitUntil = loop.now + wait }
            kind = .command(command, lanes.open(waits: (wait ?? .zero) > .zero, using: &system))
        }
        let deadline = (waitUntil ?? loop.now) + patience
        let request = PendingRequest(
            number: nextNumber, kind: kind, deadline: deadline, patience: patience, waitUntil: waitUntil, then: then)
        nextNumber += 1
        unsent.append(request)
        arm(deadline)
        switch state {
        case .idle: search()
        case .open: send()
        case .searching: break
        case .closed:
            unsent.removeLast()
            loop.beforeWaiting { request.complete(.failure(RequestEngine.closedError)) }
        }
        return request
    }

    /// Takes a request back: its call-back is not called any more. What it asked for may have been done.
    func cancel(_ request: PendingRequest) {
        guard request.isOpen else { return }
        request.forget()
        if let channel = request.channel, case .open(let link, _) = state {
            link.send(kind: FrameKind.cancel.rawValue, channel: channel)
        }
        remove(request)
    }

    static let closedError = CoterieError(.interrupted, "the client was closed")

    func close() {
        let link: FrameLink? = if case .open(let link, _) = state { link } else { nil }
        if case .searching(let finder) = state { finder.cancel() }
        state = .closed
        link?.close()
        for timer in [deadlineTimer, retryTimer, silenceTimer, learnTimer] { timer.close() }
        let all = everyone
        unsent = []
        refused = []
        inFlight = [:]
        for request in all { request.complete(.failure(RequestEngine.closedError)) }
    }

    private var everyone: [PendingRequest] { (unsent + refused + inFlight.values).sorted { $0.number < $1.number } }

    private func remove(_ request: PendingRequest) {
        if let channel = request.channel {
            inFlight[channel] = nil
            request.channel = nil
        } else {
            unsent.removeAll { $0 === request }
            refused.removeAll { $0 === request }
        }
        if case .command(_, let ticket) = request.kind { lanes.close(ticket) }
    }

    private func finish(_ request: PendingRequest, _ result: Result<PendingRequest.Answer, CoterieError>) {
        remove(request)
        request.complete(result)
    }

    // MARK: - Connection

    private func search() {
        var attempts = backOff
        // Its own deadline is far away: each request has one.
        let finder = ConnectionFinder(
            loop: loop, book: book, key: key, patience: .until(.distantFuture), givesUpOnNobody: givesUpOnNobody,
            backOff: backOff
        ) { [weak self] result in self?.found(result) }
        let delay: TimeSpan = hasFailed ? attempts.next() : .zero
        backOff = attempts
        state = .searching(finder)
        finder.start(after: delay)
    }

    private func found(_ result: Result<OpenConnection, CoterieError>) {
        switch result {
        case .failure(let error):
            state = .idle
            for request in everyone {
                finish(request, .failure(outcome(of: request, "and then: \(error.message)") ?? error))
            }
            // Call-backs may have asked again.
            if case .idle = state, !unsent.isEmpty { search() }
        case .success(let connection):
            let link = connection.link
            let address = connection.address
            state = .open(link, address)
            link.onFrame = { [weak self] frame in self?.received(frame) }
            link.onClose = { [weak self, weak link] _ in
                guard let self, let link else { return }
                lost(link)
            }
            if key != nil { learnTimer.start(after: RequestEngine.learnAfter) { [weak self] in self?.learn() } }
            send()
        }
    }

    /// The connection is gone, or no longer wanted. Everything on it goes to the next one, where it may.
    private func lost(_ link: FrameLink) {
        guard case .open(let current, let address) = state, current === link else { return }
        link.close()
        learnTimer.stop()
        book.avoid(address)
        state = .idle
        hasFailed = true
        let flying = inFlight.values.sorted { $0.number < $1.number }
        inFlight = [:]
        for request in flying { request.channel = nil }
        unsent = (flying.filter { mayMove($0) } + unsent).sorted { $0.number < $1.number }
        for request in flying where !mayMove(request) {
            let why = "the connection to \(address) was lost"
            finish(request, .failure(outcome(of: request, "and then \(why)") ?? CoterieError(.unavailable, why)))
        }
        if case .idle = state, !unsent.isEmpty { search() }
    }

    private func mayMove(_ request: PendingRequest) -> Bool {
        switch request.kind {
        case .query, .command: true
        case .admin: request.unresolvedSends == 0
        case .watch: !request.hasDelivered
        }
    }

    /// What is to be said of a request whose answer will not come, if it may have been carried out.
    private func outcome(of request: PendingRequest, _ why: String) -> CoterieError? {
        guard request.changesSomething, request.unresolvedSends > 0 else { return nil }
        return CoterieError(
            .outcomeUnknown,
            "the outcome is unknown: the request was sent, \(why); it may have been carried out or not",
            hint: "look before you repeat it")
    }

    // MARK: - Sending

    private func send() {
        guard case .open(let link, _) = state else { return }
        let batch = unsent.prefix(max(0, RequestEngine.inFlightLimit - inFlight.count))
        unsent.removeFirst(batch.count)
        for (i, request) in batch.enumerated() {
            // Writing may find that the connection is gone; what is left waits for the next one.
            guard case .open(let current, _) = state, current === link else {
                unsent = (batch.dropFirst(i) + unsent).sorted { $0.number < $1.number }
                return
            }
            let payload = encoded(request)
            guard payload.count <= Limits.frameBytes - 5 else {
                loop.beforeWaiting { [weak self] in
                    self?.finish(
                        request,
                        .failure(
                            CoterieError(.tooLarge, "a request of \(payload.count) bytes does not fit into a frame")))
                }
                continue
            }
            while inFlight[nextChannel] != nil { nextChannel &+= 1 }
            let channel = nextChannel
            nextChannel &+= 1
            request.channel = channel
            request.sentAt = loop.now
            request.unresolvedSends += 1
            if request.isWatch { request.deadline = .distantFuture }
            inFlight[channel] = request
            link.send(kind: FrameKind.request.rawValue, channel: channel, payload: payload)
        }
        watchSilence()
    }

    private func encoded(_ request: PendingRequest) -> [UInt8] {
        switch request.kind {
        case .query(let path): return ClientRequest.query(path: path).encoded
        case .admin(let order): return ClientRequest.admin(order).encoded
        case .watch(let path, _): return ClientRequest.watch(path: path).encoded
        case .command(let command, let ticket):
            let lane = lanes.lanes[ticket.lane]
            // A wait counts from when it was asked for, however often it is sent.
            let wait = request.waitUntil.map { max(.zero, $0 - loop.now) }
            return ClientRequest.command(
                ClientCommand(
                    session: lane.id, sequence: ticket.sequence, firstOutstanding: lane.firstOutstanding, wait: wait,
                    command: command)
            ).encoded
        }
    }

    // MARK: - Answers

    private func received(_ frame: Frame) {
        guard let request = inFlight[frame.channel] else { return }
        switch FrameKind(rawValue: frame.kind) {
        case .response:
            guard let response = try? ClientResponse(decoding: frame.payload) else { return malformed(request) }
            switch response {
            case .success(let bytes): succeeded(request, bytes)
            case .failure(let error): failed(request, error)
            }
        case .item:
            guard case .watch(_, let onItem) = request.kind else { return malformed(request) }
            guard let item = try? JSONValue(parsing: frame.payload) else { return malformed(request) }
            request.hasDelivered = true
            good()
            onItem(item)
        case .end:
            guard request.isWatch else { return malformed(request) }
            if frame.payload.isEmpty {
                finish(request, .success(.end))
            } else {
                failed(request, refusal(frame.payload))
            }
        default: return
        }
        send()
    }

    private func good() {
        hasFailed = false
        backOff.reset()
        retryDelay.reset()
    }

    private func malformed(_ request: PendingRequest) {
        let error = CoterieError(
            .failed, "the node's answer could not be read", hint: "use the same version of coterie")
        finish(
            request,
            .failure(request.changesSomething ? CoterieError(.outcomeUnknown, error.message, hint: error.hint) : error))
    }

    private func succeeded(_ request: PendingRequest, _ bytes: [UInt8]) {
        switch request.kind {
        case .query, .admin:
            guard let document = try? JSONValue(parsing: bytes) else { return malformed(request) }
            good()
            finish(request, .success(.document(document)))
        case .watch: finish(request, .success(.end))
        case .command:
            var reader = ByteReader(bytes)
            guard let result = try? StateResult(decoding: &reader), reader.isAtEnd else { return malformed(request) }
            good()
            if case .stale = result {
                let error = CoterieError(
                    .outcomeUnknown, "it was applied, but the cluster has forgotten with what result")
                return finish(request, .failure(error))
            }
            finish(request, .success(.state(result)))
        }
    }

    private func failed(_ request: PendingRequest, _ error: CoterieError) {
        guard request.mayRetry(after: error) else { return finish(request, .failure(error)) }
        // Without a leader nothing was done, this time.
        if error.code == .noLeader { request.unresolvedSends -= 1 }
        request.lastRefusal = error
        if let channel = request.channel { inFlight[channel] = nil }
        request.channel = nil
        refused.append(request)
        guard !retryArmed else { return }
        retryArmed = true
        retryTimer.start(after: retryDelay.next()) { [weak self] in self?.retryRefused() }
    }

    private func retryRefused() {
        retryArmed = false
        guard !refused.isEmpty else { return }
        unsent = (refused + unsent).sorted { $0.number < $1.number }
        refused = []
        // Another node may see a leader. One that carries out an order is not left.
        if case .open(let link, _) = state, book.endpoints.count > 1,
            !inFlight.values.contains(where: { $0.isAdmin || $0.isWatch })
        {
            lost(link)
        } else {
            send()
        }
    }

    // MARK: - Time

    private func arm(_ deadline: MonotonicTime) {
        guard deadline < deadlineArmed else { return }
        deadlineArmed = deadline
        deadlineTimer.start(after: max(.zero, deadline - loop.now)) { [weak self] in self?.expire() }
    }

    private func expire() {
        deadlineArmed = .distantFuture
        let now = loop.now
        for request in everyone where request.deadline <= now {
            if let channel = request.channel, case .open(let link, _) = state {
                link.send(kind: FrameKind.cancel.rawValue, channel: channel)
            }
            finish(request, .failure(timeout(request)))
        }
        if case .closed = state { return }
        // After the call-backs, which may have asked for more.
        if let next = everyone.map(\.deadline).min(), next < .distantFuture { arm(next) }
        if case .searching(let finder) = state, everyone.isEmpty {
            finder.cancel()
            state = .idle
        }
        send()
    }

    private func timeout(_ request: PendingRequest) -> CoterieError {
        if let outcome = outcome(of: request, "and no answer came within \(request.patience)") { return outcome }
        if let refusal = request.lastRefusal { return refusal }
        switch state {
        case .open(_, let address):
            return CoterieError(.deadline, "\(address) did not answer within \(request.patience)")
        case .searching(let finder): return book.noCluster(finder.failures)
        case .idle, .closed: return book.noCluster([])
        }
    }

    private func watchSilence() {
        guard !silenceArmed, !inFlight.isEmpty else { return }
        silenceArmed = true
        silenceTimer.start(after: .seconds(1)) { [weak self] in self?.checkSilence() }
    }

    /// A node may hang with its connections open. An order that would not bear repeating is left alone.
    private func checkSilence() {
        silenceArmed = false
        guard case .open(let link, _) = state else { return }
        let limit = loop.now - RequestEngine.silenceLimit
        let isSilent = inFlight.values.contains { !$0.isWatch && max($0.sentAt, $0.waitUntil ?? .zero) < limit }
        if isSilent && !inFlight.values.contains(where: { $0.isAdmin || ($0.isWatch && $0.hasDelivered) }) {
            return lost(link)
        }
        watchSilence()
    }

    private func learn() {
        guard isOpen else { return }
        ask(.query("members"), patience: .seconds(5)) { [weak self] result in
            guard case .success(.document(let document)) = result else { return }
            let addresses = (document["members"]?.arrayValue ?? []).compactMap { member -> SocketAddress? in
                guard member["state"]?.stringValue == "alive" else { return nil }
                return member["address"]?.stringValue.flatMap { SocketAddress(text: $0) }
            }
            self?.book.learn(addresses)
        }
    }
}
