// One client of the Redis ambassador. Every request takes a slot; replies, from whichever server, leave in the order of the
// slots. A reply that is not yet due is held, and a read whose server fails before its reply has left is asked elsewhere.
//
//     client ── requests ──▶ slots ──▶ master connection (writes, transactions, blocking, state)
//        ▲                     │  └──▶ replica connections (reads)
//        └── replies in order ─┘  or, after SUBSCRIBE, MONITOR …: a pipe to the master
import EventLoop
import Model

final class RedisSession: RedisUpstreamOwner {
    private struct Slot {
        enum Kind {
            case plain
            case state(RedisStateChange)
            case exec
            case reset
        }

        var kind = Kind.plain
        /// Where the answer comes from; nil once the reply is whole, or is our own.
        var upstream: RedisUpstream?
        /// The whole command, unless it was streamed: to ask again elsewhere, or to send when there is a master.
        var request: ArraySlice<UInt8> = []
        var isRead = false
        var isOnReplica = false
        var attempts = 0
        /// Nothing of this client may run elsewhere until the reply is here.
        var isBarrier = false
        var mayWrite = false
        var held: [UInt8] = []
        /// The first two bytes of the reply; 0 before they came.
        var firstByte: UInt8 = 0
        var secondByte: UInt8 = 0
        /// Part of the reply has left to the client.
        var hasLeft = false
        var isComplete = false
        /// The outcome is unknown: the client's connection ends here, as a connection to Redis itself would have.
        var isFatal = false
    }

    private enum Mode {
        case commands
        /// The rest of the connection will be a pipe; these bytes go first, once all slots are answered.
        case draining([UInt8])
        case tunnel(StreamRelay)
        /// No more requests are read; closes when the slots are answered.
        case ending
        case closed
    }

    private unowned let owner: RedisAmbassador
    private let loop: EventLoop
    private let topology: RedisTopology
    let id: UInt64
    private let client: ByteStream
    private var mode = Mode.commands
    private var parser = RESPRequestParser()
    private var router = RedisRouter()
    private var state = RedisConnectionState()
    private var slots = FIFO<Slot>()
    private var firstSlot: UInt64 = 0
    private var master: RedisUpstream?
    private var masterRetry: LoopTimer?
    private var masterBackOff = BackOff(first: .milliseconds(20), longest: .milliseconds(500))
    /// Since when the master can not be reached while something waits for it.
    private var masterMissing: MonotonicTime?
    private var lastFailure = CoterieError(.unavailable, "no Redis master is known")
    private var replicas: [RedisUpstream] = []
    private var outgoing: [UInt8] = []
    private var barriers = 0
    private var writes = 0
    private var heldBytes = 0
    /// The connection that gets the body of the streamed command; nil discards the body.
    private var bodyTarget: RedisUpstream?
    /// The replica for this batch of requests: one for all of them, so that a pipeline stays one packet.
    private var batchReplica: RedisServer?
    private var inTurn = false
    /// Reads that replicas have not answered yet.
    private var replicaReads = 0
    /// The next command changes the connection's state, and waits for those reads: asked again later, they would run in the
    /// wrong database or inside a transaction.
    private var isStalled = false

    private static let slotLimit = 1 << 18
    private static let heldLimit = 8 << 20
    /// Up to here a read's reply is held until it is whole, so that it can still be asked elsewhere.
    private static let retryLimit = 1 << 20
    private static let attemptLimit = 6

    init(owner: RedisAmbassador, topology: RedisTopology, loop: EventLoop, id: UInt64, client: ByteStream) {
        self.owner = owner
        self.topology = topology
        self.loop = loop
        self.id = id
        self.client = client
    }

    func start() {
        client.onBytes = { [weak self] bytes in self?.received(bytes) }
        client.onEnd = { [weak self] in self?.clientEnded() }
        client.onClose = { [weak self] _ in self?.close() }
        client.onDrain = { [weak self] in
            self?.updateUpstreamReading()
            self?.finishIfDone()
        }
        client.resumeReading()
    }

    func close() {
        if case .closed = mode { return }
        let old = mode
        mode = .closed
        if case .tunnel(let relay) = old { relay.close() }
        masterRetry?.close()
        masterRetry = nil
        master?.close()
        master = nil
        for upstream in replicas { upstream.close() }
        replicas = []
        slots = FIFO()
        client.close()
        owner.sessionClosed(self)
    }

    // MARK: - Requests

    private func received(_ bytes: UnsafeRawBufferPointer) {
        switch mode {
        case .commands: break
        case .draining(let earlier):
            mode = .draining(earlier + bytes)
            client.pauseReading()
            return
        case .tunnel, .ending, .closed: return
        }
        parser.feed(bytes)
        if isStalled { return }
        parse()
        flushAll()
    }

    private func parse() {
        inTurn = true
        batchReplica = nil
        do throws(RESPError) {
            parsing: while case .commands = mode {
                let mark = parser.mark
                switch try parser.next() {
                case .command(let command):
                    let arguments = RedisArguments(
                        bytes: parser.batch, ranges: command.arguments, isWhole: command.isWhole, count: command.count)
                    isStalled = !handle(arguments, bytes: parser.batch[command.range])
                case .inline(let words):
                    guard !words.isEmpty else { continue }
                    let bytes = RESP.command(words)
                    isStalled = !handle(arguments(of: words, in: bytes), bytes: bytes[...])
                case .body(let range, let ends):
                    bodyTarget?.sendBody(parser.batch[range])
                    if ends { bodyTarget = nil }
                case .needMore: break parsing
                }
                if isStalled {
                    parser.rewind(to: mark)
                    break
                }
            }
        } catch {
            answer(RESP.error("ERR \(error.message)"))
            end()
        }
        inTurn = false
    }

    /// Where the words of an inline command stand in its array form.
    private func arguments(of words: [[UInt8]], in bytes: [UInt8]) -> RedisArguments {
        var at = "*\(words.count)\r\n".utf8.count
        var ranges: [Range<Int>] = []
        for word in words {
            at += "$\(word.count)\r\n".utf8.count
            ranges.append(at..<at + word.count)
            at += word.count + 2
        }
        return RedisArguments(bytes: bytes, ranges: ranges, isWhole: true, count: words.count)
    }

    /// False if the command has to wait: nothing has happened then.
    private func handle(_ arguments: RedisArguments, bytes: ArraySlice<UInt8>) -> Bool {
        var next = router
        let route = next.route(arguments, table: topology.table)
        if replicaReads > 0 && arguments.isWhole && (route.changesContext || next.inMulti != router.inMulti) {
            return false
        }
        router = next
        switch route {
        case .read:
            var slot = Slot()
            slot.isRead = true
            append(slot, bytes, to: readTarget())
        case .master(let mayWrite):
            var slot = Slot()
            slot.mayWrite = mayWrite
            append(slot, bytes, to: nil, isWhole: arguments.isWhole)
        case .blocking(let mayWrite):
            var slot = Slot()
            slot.mayWrite = mayWrite
            slot.isBarrier = true
            append(slot, bytes, to: nil, isWhole: arguments.isWhole)
        case .state(let change):
            var slot = Slot()
            slot.kind = .state(change)
            slot.isBarrier = true
            append(slot, bytes, to: nil)
        case .exec:
            var slot = Slot()
            slot.kind = .exec
            slot.isBarrier = true
            slot.mayWrite = true
            append(slot, bytes, to: nil)
        case .reset:
            var slot = Slot()
            slot.kind = .reset
            slot.isBarrier = true
            append(slot, bytes, to: nil)
        case .quit:
            answer(RESP.ok)
            end()
        case .tunnel:
            mode = .draining(Array(bytes) + parser.takePending())
            client.pauseReading()
        }
        return true
    }

    /// A reply of our own, in its turn.
    private func answer(_ bytes: [UInt8]) {
        var slot = Slot()
        slot.held = bytes
        slot.isComplete = true
        heldBytes += bytes.count
        slots.append(slot)
    }

    /// The server for the next read; nil is the master.
    private func readTarget() -> RedisServer? {
        guard owner.options.reads == .replicas, barriers == 0, !router.isPinned else { return nil }
        var freshAt: MonotonicTime?
        if owner.options.readYourWrites {
            if writes > 0 { return nil }
            freshAt = owner.lastWrite
        }
        if let chosen = batchReplica, chosen.isFit { return chosen }
        batchReplica = topology.pickReplica(freshAt: freshAt)
        return batchReplica
    }

    /// Takes a slot and sends the command to a replica or, with nil, to the master.
    private func append(_ slot: Slot, _ bytes: ArraySlice<UInt8>, to server: RedisServer?, isWhole: Bool = true) {
        var slot = slot
        let number = firstSlot + UInt64(slots.count)
        if slot.isBarrier { barriers += 1 }
        if slot.mayWrite { writes += 1 }
        let upstream = server.map { replicaConnection($0) } ?? masterConnection()
        if isWhole { slot.request = bytes }
        slot.upstream = upstream
        slot.attempts = 1
        slot.isOnReplica = server != nil
        if server != nil { replicaReads += 1 }
        slots.append(slot)
        guard let upstream else {
            // There is no connection to a master now: whole commands wait for one, for a streamed one there is no room.
            if isWhole {
                waitForMaster()
            } else {
                bodyTarget = nil
                complete(slots.count - 1, with: RESP.error("ERR coterie: there is no connection to the Redis master"))
            }
            return
        }
        upstream.send(bytes, slot: number)
        if !isWhole { bodyTarget = upstream }
    }

    private func replicaConnection(_ server: RedisServer) -> RedisUpstream {
        let upstream: RedisUpstream
        if let known = replicas.first(where: { $0.server === server }) {
            upstream = known
        } else {
            upstream = RedisUpstream(loop: loop, server: server, timeout: owner.options.connectTimeout, owner: self)
            replicas.append(upstream)
        }
        if upstream.stateVersion != state.version { upstream.replay(state) }
        return upstream
    }

    private func masterConnection() -> RedisUpstream? {
        if let master { return master }
        guard masterRetry == nil, let server = topology.master else { return nil }
        let upstream = RedisUpstream(loop: loop, server: server, timeout: owner.options.connectTimeout, owner: self)
        master = upstream
        if upstream.stateVersion != state.version { upstream.replay(state) }
        return upstream
    }

    // MARK: - Replies

    func reply(to number: UInt64, from upstream: RedisUpstream, bytes: UnsafeRawBufferPointer, isLast: Bool) {
        let index = Int(number - firstSlot)
        precondition(index < slots.count, "a reply without a slot")
        if slots[index].firstByte == 0 {
            slots[index].firstByte = bytes[0]
            if bytes.count > 1 { slots[index].secondByte = bytes[1] }
        } else if slots[index].secondByte == 0 {
            slots[index].secondByte = bytes[0]
        }
        let isError = slots[index].firstByte == 0x2D
        // A replica's error may mean that the master could have answered; it is looked at when whole.
        let mayRetry = slots[index].isRead && !slots[index].hasLeft
        let hold: Bool
        if index > 0 {
            hold = true
        } else if mayRetry {
            hold = isError || (!isLast && slots[index].held.count + bytes.count <= RedisSession.retryLimit)
        } else {
            // State changes and errors are short; the rest leaves as it comes.
            hold = isError
        }
        if hold {
            slots[index].held.append(contentsOf: bytes)
            heldBytes += bytes.count
        } else {
            if !slots[index].held.isEmpty {
                outgoing.append(contentsOf: slots[index].held)
                heldBytes -= slots[index].held.count
                slots[index].held = []
            }
            outgoing.append(contentsOf: bytes)
            slots[index].hasLeft = true
        }
        if isLast { completed(index, upstream, isError: isError) }
    }

    private func completed(_ index: Int, _ upstream: RedisUpstream, isError: Bool) {
        leaveReplica(index)
        let slot = slots[index]
        if isError && slot.isRead && upstream !== master && shouldAskMaster(slot.held) {
            forgetReply(index)
            sendAgain(index, toMaster: true)
            return
        }
        slots[index].isComplete = true
        slots[index].upstream = nil
        slots[index].request = []
        if slot.isBarrier { barriers -= 1 }
        if slot.mayWrite {
            writes -= 1
            owner.lastWrite = loop.now
        }
        switch slot.kind {
        case .plain:
            if isError && slot.mayWrite && slot.held.starts(with: "-READONLY".utf8) { topology.noteDemotion() }
        case .state(let change): if !isError { apply(change, from: upstream) }
        case .exec:
            let queued = router.takeQueued()
            // `*-1` or `_`: a watched key had changed and nothing was done.
            if slot.firstByte == 0x2A && slot.secondByte != 0x2D {
                for change in queued { apply(change, from: upstream) }
            }
        case .reset:
            state.clear()
            upstream.stateVersion = state.version
            for replica in replicas { replica.close() }
            replicas = []
        }
        release()
    }

    private func apply(_ change: RedisStateChange, from upstream: RedisUpstream) {
        state.apply(change)
        upstream.stateVersion = state.version
        if let credentials = state.auth { topology.offer(credentials: credentials) }
    }

    private func leaveReplica(_ index: Int) {
        guard slots[index].isOnReplica else { return }
        slots[index].isOnReplica = false
        replicaReads -= 1
    }

    private func forgetReply(_ index: Int) {
        heldBytes -= slots[index].held.count
        slots[index].held = []
        slots[index].firstByte = 0
        slots[index].secondByte = 0
    }

    /// Errors of a replica that the master would not give.
    private func shouldAskMaster(_ error: [UInt8]) -> Bool {
        ["-LOADING", "-MASTERDOWN", "-NOSCRIPT", "-READONLY", "-NOAUTH", "-NOPERM", "-BUSY"].contains {
            error.starts(with: $0.utf8)
        }
    }

    /// Lets whole replies at the head leave.
    private func release() {
        while let head = slots.first {
            if head.isFatal {
                flushOutgoing()
                return end()
            }
            guard head.isComplete else {
                // A reply that has begun to arrive while it was not due; it may leave unless it may be asked again.
                if !head.held.isEmpty && head.firstByte != 0x2D
                    && (!head.isRead || head.held.count > RedisSession.retryLimit)
                {
                    outgoing.append(contentsOf: head.held)
                    heldBytes -= head.held.count
                    slots[0].held = []
                    slots[0].hasLeft = true
                }
                return
            }
            if !head.held.isEmpty {
                outgoing.append(contentsOf: head.held)
                heldBytes -= head.held.count
            }
            slots.popFirst()
            firstSlot += 1
        }
    }

    func repliesEnded(from upstream: RedisUpstream) { flushAll() }

    func upstreamConnected(_ upstream: RedisUpstream) {
        if upstream === master {
            masterMissing = nil
            masterBackOff.reset()
        }
        updateUpstreamReading()
        flushAll()
    }

    func upstreamDrained(_ upstream: RedisUpstream) { updateClientReading() }

    // MARK: - Failures

    func upstreamFailed(_ upstream: RedisUpstream, slots failed: [UInt64], wasConnected: Bool, why: CoterieError) {
        if bodyTarget === upstream { bodyTarget = nil }
        let wasMaster = upstream === master
        if wasMaster {
            master = nil
            if !wasConnected { waitForMaster() }
        } else {
            replicas.removeAll { $0 === upstream }
            topology.noteFailure(upstream.server, why.message)
        }
        // A transaction, or the keys watched, are gone with the connection.
        let isBroken = wasMaster && wasConnected && router.isPinned
        if isBroken && failed.isEmpty { return close() }
        for number in failed {
            let index = Int(number - firstSlot)
            slots[index].upstream = nil
            leaveReplica(index)
            if isBroken || slots[index].hasLeft {
                slots[index].isFatal = true
            } else if slots[index].isRead {
                forgetReply(index)
                if slots[index].attempts >= RedisSession.attemptLimit {
                    complete(index, with: unreachable(why))
                } else if wasMaster && !wasConnected {
                    slots[index].attempts += 1
                } else {
                    sendAgain(index, toMaster: false)
                }
            } else if wasConnected {
                slots[index].isFatal = true
            } else if slots[index].request.isEmpty {
                complete(index, with: unreachable(why))
            }
        }
        lastFailure = why
        flushAll()
    }

    private func unreachable(_ why: CoterieError) -> [UInt8] { RESP.error("ERR coterie: \(why.message)") }

    private func complete(_ index: Int, with reply: [UInt8]) {
        if slots[index].isBarrier { barriers -= 1 }
        if slots[index].mayWrite { writes -= 1 }
        if case .exec = slots[index].kind { _ = router.takeQueued() }
        slots[index].upstream = nil
        slots[index].held = reply
        slots[index].isComplete = true
        heldBytes += reply.count
    }

    /// A read, once more, elsewhere.
    private func sendAgain(_ index: Int, toMaster: Bool) {
        slots[index].attempts += 1
        let number = firstSlot + UInt64(index)
        let replica = toMaster || router.isPinned || owner.options.readYourWrites ? nil : topology.pickReplica()
        guard let upstream = replica.map({ replicaConnection($0) }) ?? masterConnection() else {
            return waitForMaster()
        }
        slots[index].upstream = upstream
        slots[index].isOnReplica = replica != nil
        if replica != nil { replicaReads += 1 }
        upstream.send(slots[index].request, slot: number)
    }

    // MARK: - The master

    /// The master is not there: look again soon, and give up what has waited too long.
    private func waitForMaster() {
        let now = loop.now
        let since = masterMissing ?? now
        masterMissing = since
        guard masterRetry == nil else { return }
        let timer = LoopTimer(loop: loop)
        masterRetry = timer
        timer.start(after: masterBackOff.next(using: &owner.generator)) { [weak self] in self?.retryMaster() }
    }

    private func retryMaster() {
        masterRetry?.close()
        masterRetry = nil
        sendWaiting()
    }

    /// The topology found another master, or the first one.
    func masterChanged() {
        if let old = master, old.server !== topology.master {
            if case .tunnel = mode { return close() }
            old.fail(CoterieError(.unavailable, "the master is another server now"))
        }
        if case .closed = mode { return }
        sendWaiting()
    }

    /// What waits for a master is sent, or answered with an error when it has waited long enough.
    private func sendWaiting() {
        masterRetry?.close()
        masterRetry = nil
        let waiting = (0..<slots.count).filter {
            !slots[$0].isComplete && !slots[$0].isFatal && slots[$0].upstream == nil
        }
        if hasWaitedTooLong {
            for index in waiting { complete(index, with: unreachable(lastFailure)) }
            if case .draining = mode {
                answer(unreachable(lastFailure))
                return end()
            }
        } else if !waiting.isEmpty {
            if let upstream = masterConnection() {
                for index in waiting {
                    slots[index].upstream = upstream
                    upstream.send(slots[index].request, slot: firstSlot + UInt64(index))
                }
            } else {
                waitForMaster()
            }
        }
        flushAll()
    }

    private var hasWaitedTooLong: Bool { masterMissing.map { loop.now - $0 >= owner.options.masterWait } ?? false }

    func serverFailed(_ server: RedisServer) {
        for upstream in replicas where upstream.server === server {
            upstream.fail(CoterieError(.unavailable, "\(server.endpoint) does not answer"))
        }
    }

    // MARK: - Turning into a pipe, ending

    private func enterTunnelIfDrained() {
        guard case .draining(let bytes) = mode, slots.isEmpty else { return }
        guard let upstream = masterConnection() else { return waitForMaster() }
        guard upstream.isConnected else { return }
        if upstream.stateVersion != state.version { upstream.replay(state) }
        upstream.flush()
        guard upstream.isIdle, let server = upstream.detach() else { return }
        master = nil
        for replica in replicas { replica.close() }
        replicas = []
        client.onDrain = nil
        server.write(bytes)
        let relay = StreamRelay(client, server) { [weak self] in self?.close() }
        mode = .tunnel(relay)
        relay.start()
    }

    private func clientEnded() {
        switch mode {
        case .commands, .draining:
            // A client that has gone must not keep taking elements off lists.
            if barriers > 0 { return close() }
            end()
        case .tunnel, .ending, .closed: break
        }
    }

    private func end() {
        switch mode {
        case .closed, .tunnel: return
        case .commands, .draining, .ending: mode = .ending
        }
        client.pauseReading()
        if let head = slots.first, head.isFatal { slots = FIFO() }
        if !inTurn { flushAll() }
    }

    private func finishIfDone() {
        guard case .ending = mode, slots.isEmpty, outgoing.isEmpty else { return }
        if client.queuedBytes == 0 { return close() }
        client.lowWater = 0
        client.shutdown()
    }

    // MARK: - Flow

    private func flushOutgoing() {
        guard !outgoing.isEmpty else { return }
        let bytes = outgoing
        outgoing = []
        client.write(bytes)
    }

    private func flushAll() {
        guard !inTurn else { return }
        if case .closed = mode { return }
        release()
        if isStalled && replicaReads == 0 {
            isStalled = false
            parse()
            release()
        }
        flushOutgoing()
        master?.flush()
        for upstream in replicas { upstream.flush() }
        enterTunnelIfDrained()
        updateUpstreamReading()
        updateClientReading()
        finishIfDone()
    }

    /// Replies stop being read while the client does not take them, or while too many are held for the sake of order; the one
    /// that the head waits for always goes on.
    private func updateUpstreamReading() {
        guard !replicas.isEmpty || master != nil else { return }
        let clientTakes = !client.isCongested
        let mayHold = heldBytes < RedisSession.heldLimit
        let head = slots.first?.upstream
        if let master { master.setReading(clientTakes && (mayHold || master === head)) }
        for upstream in replicas { upstream.setReading(clientTakes && (mayHold || upstream === head)) }
    }

    /// Requests stop being read only for what servers do not take. (Not for replies: a client that sends a long pipeline
    /// before it reads would never come to read.)
    private func updateClientReading() {
        guard case .commands = mode else { return }
        let isFull =
            isStalled || slots.count >= RedisSession.slotLimit || (master?.isCongested ?? false)
            || replicas.contains { $0.isCongested }
        if isFull { client.pauseReading() } else { client.resumeReading() }
    }
}
