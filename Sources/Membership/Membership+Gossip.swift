// Sending: every datagram has one budget, shared by its own body, by what the receiver must hear (accusations of itself:
// Lifeguard's buddy), and by news. Receiving: checks, records, then the message itself.
import Model
import Wire

extension Membership {
    /// How often one statement is told: missing one of n members has then probability of about e^-5.
    var retransmitLimit: Int { Membership.naturalLogarithmCeiling(max(1, presentCount)) + 5 }

    /// ⌈ln n⌉ for n ≥ 1.
    static func naturalLogarithmCeiling(_ n: Int) -> Int {
        var power = 1.0
        var exponent = 0
        while power < Double(n) {
            power *= 2.718281828459045
            exponent += 1
        }
        return exponent
    }

    /// Sends one datagram. `records` go first and must fit; the rest of the budget is news unless `news` is false.
    mutating func send(
        _ body: Datagram.Body, to short: UInt64, at address: SocketAddress, records: [Record] = [], news: Bool = true
    ) {
        var writer = ByteWriter(capacity: 256)
        Codec.encodeHead(
            Datagram(
                cluster: cluster, from: me.id.short, to: short, digest: digest, health: UInt8(clamping: healthScore),
                body: body,
                records: []), into: &writer)
        var count = 0
        var introduced = false
        if let peer = peer(short) {
            switch peer.member.state {
            case .suspect:
                append(
                    .suspect(
                        subject: short, incarnation: peer.member.incarnation, accuser: me.id.short, evidence: .silence))
            case .dead:
                append(
                    .dead(
                        subject: short, incarnation: peer.member.incarnation, accuser: me.id.short, evidence: .silence))
                introduced = true
            case .left: introduced = true
            case .alive: break
            }
        } else {
            introduced = true
        }
        // Whoever does not count on this node, or is not known to know it, is told who it is.
        if introduced && isActive && !records.contains(where: { $0.subject == me.id.short }) {
            append(.alive(AliveRecord(me)))
        }
        for record in records { append(record) }
        let bare = writer.count
        if news {
            broadcasts.fill(
                options.datagramBytes - writer.count, limit: retransmitLimit, records: Codec.recordsPerDatagram - count,
                to: short
            ) { writer.raw($0) }
        }
        if case .gossip = body, count == 0, writer.count == bare { return }
        effects.append(.datagram(writer.bytes, to: address))

        func append(_ record: Record) {
            writer.raw(Codec.encode(record))
            count += 1
        }
    }

    /// Queues a statement and sees that it is told soon.
    mutating func broadcast(_ record: Record, now: MonotonicTime) {
        let mine = record.subject == me.id.short
        switch record {
        case .alive(let alive):
            broadcasts.add(
                subject: alive.id.short, incarnation: alive.incarnation, rank: 0, accuser: 0, priority: mine ? 0 : 2,
                record: record)
        case .suspect(let subject, let incarnation, let accuser, _):
            broadcasts.add(
                subject: subject, incarnation: incarnation, rank: 1, accuser: accuser, priority: 1, record: record)
        case .dead(let subject, let incarnation, _, _):
            broadcasts.add(subject: subject, incarnation: incarnation, rank: 2, accuser: 0, priority: 1, record: record)
        case .left(let subject, let incarnation):
            broadcasts.add(
                subject: subject, incarnation: incarnation, rank: 3, accuser: 0, priority: mine ? 0 : 1, record: record)
        case .want: return
        }
        // Fresh news does not wait for the next regular round; the short interval gathers what comes together.
        nextGossip = min(nextGossip, max(now, lastGossip + options.urgentGossipInterval))
    }

    mutating func announceMyself(now: MonotonicTime) { broadcast(.alive(AliveRecord(me)), now: now) }

    /// One round: a few random members are told what is news.
    mutating func gossip(now: MonotonicTime) {
        lastGossip = now
        // Those that died lately are told too: if they live, this is how they hear of it.
        let recently = now - options.suspicionCeiling
        let targets = randomPeers(options.gossipFanout) {
            $0.member.state.isPresent || ($0.member.state == .dead && $0.changed > recently)
        }
        if targets.isEmpty {
            // Nobody to tell: what is queued is learned by whoever comes, through synchronisation.
            nextGossip = .distantFuture
            return
        }
        for target in targets where !broadcasts.isEmpty { send(.gossip, to: target.short, at: target.member.address) }
        if broadcasts.isEmpty {
            nextGossip = .distantFuture
        } else {
            nextGossip = now + (broadcasts.hasFresh ? options.urgentGossipInterval : options.gossipInterval)
        }
    }

    // MARK: Receiving

    mutating func receive(_ bytes: ArraySlice<UInt8>, from source: SocketAddress, now: MonotonicTime) {
        guard isTalking else { return }
        let datagram: Datagram
        do {
            guard try Codec.cluster(of: bytes) == cluster else {
                counters.otherCluster += 1
                return
            }
            datagram = try Codec.decode(bytes)
        } catch {
            counters.malformed += 1
            return
        }
        guard datagram.from != me.id.short, datagram.from != 0 else {
            noticeMyself(datagram.body)
            return
        }
        if datagram.to != me.id.short {
            guard case .ping(let sequence) = datagram.body else {
                counters.misdirected += 1
                return
            }
            if datagram.to != 0 {
                counters.misdirected += 1
                let body = Datagram.Body.otherProcess(sequence: sequence, asked: datagram.to)
                send(body, to: datagram.from, at: source, records: [.alive(AliveRecord(me))], news: false)
                return
            }
        }
        if let index = index(of: datagram.from) { peers[index].heard = now }
        let how: Learned = if case .delta = datagram.body { .sync } else { .gossip }
        for record in datagram.records { apply(record, from: datagram.from, at: source, how: how, now: now) }
        switch datagram.body {
        case .ping(let sequence): send(.ack(sequence: sequence), to: datagram.from, at: source)
        case .ack(let sequence): acknowledged(sequence, by: datagram.from, source: source, now: now)
        case .indirectPing(let sequence, let target, let address):
            relayPing(
                sequence, target: target, address: address, requester: datagram.from, requesterAddress: source, now: now
            )
        case .relayedAck(let sequence, let target): relayedAck(sequence, target: target, now: now)
        case .nack(let sequence, let target): nacked(sequence, target: target, by: datagram.from)
        case .refusal(let sequence, let target): refusalReported(sequence, target: target, by: datagram.from, now: now)
        case .otherProcess(let sequence, let asked): otherProcessAnswered(sequence, asked: asked, now: now)
        case .gossip, .delta: break
        case .summary(let entries): answer(summary: entries, from: datagram.from, source: source)
        }
        compareDigest(datagram, source: source, now: now)
    }
}
