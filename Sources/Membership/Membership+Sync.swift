// Anti-entropy. Each datagram carries a digest of the sender's view. A difference that outlasts the gossip is repaired: by a
// summary and deltas over UDP while they fit, else by a push-pull of the whole view over a stream.
import Model
import Wire

extension Membership {
    /// Most datagrams of one answer to a summary.
    static let deltaDatagrams = 8

    mutating func compareDigest(_ datagram: Datagram, source: SocketAddress, now: MonotonicTime) {
        guard isActive else { return }
        guard let peer = peer(datagram.from) else {
            // A stranger: its record comes with the answer to this, or with its next datagram.
            if nextSync <= now {
                nextSync = now + options.gossipInterval
                send(
                    .delta, to: datagram.from, at: source,
                    records: [.alive(AliveRecord(me)), .want(subject: datagram.from)], news: false)
            }
            return
        }
        guard peer.member.state.isPresent else { return }
        guard datagram.digest != digest else {
            mismatchSince = nil
            return
        }
        let since = mismatchSince ?? now
        mismatchSince = since
        let age = now - since
        let patience = options.mismatchPatience
        let isQuiet = now - viewChanged >= patience
        // Long quiet, a difference is real at once: between two camps each match would start the clock again.
        let isLongQuiet = now - viewChanged >= patience * 4
        guard (age >= patience && isQuiet) || isLongQuiet || age >= patience * 4, nextSync <= now else { return }
        synchronise(with: peer, now: now)
    }

    mutating func synchronise(with peer: Peer, now: MonotonicTime) {
        nextSync = now + options.mismatchPatience + random(below: options.mismatchPatience)
        mismatchSince = nil
        counters.syncs += 1
        let entries = summary()
        // Room for the header, and for records about the receiver.
        let bytes = entries.reduce(80) { $0 + 9 + Membership.varintBytes($1.incarnation) }
        if entries.count <= Codec.summaryEntries && bytes <= options.datagramBytes {
            send(.summary(entries), to: peer.short, at: peer.member.address, news: false)
        } else {
            pushPull(with: peer, isRequest: true)
        }
    }

    static func varintBytes(_ value: UInt64) -> Int {
        max(1, (UInt64.bitWidth - value.leadingZeroBitCount + 6) / 7)
    }

    /// Present members; those that are not have no part in the digest.
    private func summary() -> [SummaryEntry] {
        var entries = [SummaryEntry(subject: me.id.short, incarnation: me.incarnation, state: .alive)]
        for peer in peers where peer.member.state.isPresent {
            entries.append(
                SummaryEntry(subject: peer.short, incarnation: peer.member.incarnation, state: peer.member.state))
        }
        return entries
    }

    /// What this node knows better goes back, and what it knows less is asked for.
    mutating func answer(summary entries: [SummaryEntry], from sender: UInt64, source: SocketAddress) {
        guard isActive else { return }
        var records: [Record] = []
        var wants: [Record] = []
        let theirs = entries.sorted { $0.subject < $1.subject }
        var cursor = 0
        func entry(_ short: UInt64) -> SummaryEntry? {
            while cursor < theirs.count && theirs[cursor].subject < short { cursor += 1 }
            return cursor < theirs.count && theirs[cursor].subject == short ? theirs[cursor] : nil
        }
        for member in members {
            let short = member.id.short
            if let entry = entry(short) {
                if member.incarnation > entry.incarnation
                    || (member.incarnation == entry.incarnation && member.state.rank > entry.state.rank)
                {
                    records += statements(about: member)
                } else if entry.incarnation > member.incarnation && short != me.id.short {
                    wants.append(.want(subject: short))
                }
            } else if member.state.isPresent {
                records += statements(about: member)
            }
        }
        for entry in theirs where entry.subject != me.id.short && index(of: entry.subject) == nil {
            if (tombstones[entry.subject] ?? 0) < entry.incarnation { wants.append(.want(subject: entry.subject)) }
        }
        sendDelta(wants + records, to: sender, at: source)
    }

    mutating func answer(want short: UInt64, to sender: UInt64, at source: SocketAddress) {
        if short == me.id.short {
            if isActive { send(.delta, to: sender, at: source, records: [.alive(AliveRecord(me))], news: false) }
        } else if let peer = peer(short), short != sender {
            pendingAnswers(statements(about: peer.member), to: sender, at: source)
        }
    }

    /// Answers to the wants of one datagram travel together while they fit.
    private mutating func pendingAnswers(_ records: [Record], to sender: UInt64, at source: SocketAddress) {
        if case .datagram(let bytes, let address)? = effects.last, address == source,
            bytes.count > Membership.kindOffset,
            bytes[Membership.kindOffset] == 10
        {
            let more = records.flatMap { Codec.encode($0) }
            if bytes.count + more.count <= options.datagramBytes {
                effects[effects.count - 1] = .datagram(bytes + more, to: address)
                return
            }
        }
        send(.delta, to: sender, at: source, records: records, news: false)
    }

    /// Where a datagram's kind stands: version, cluster, from, to, digest and health come before it.
    static let kindOffset = 1 + 4 + 8 + 8 + 8 + 1

    private func statements(about member: Member) -> [Record] {
        let short = member.id.short
        switch member.state {
        case .alive: return [.alive(AliveRecord(member))]
        case .suspect:
            let accuser = peer(short)?.suspicion?.accusers.first ?? me.id.short
            return [
                .alive(AliveRecord(member)),
                .suspect(subject: short, incarnation: member.incarnation, accuser: accuser, evidence: .silence),
            ]
        case .dead:
            return [.dead(subject: short, incarnation: member.incarnation, accuser: me.id.short, evidence: .silence)]
        case .left: return [.left(subject: short, incarnation: member.incarnation)]
        }
    }

    /// As many datagrams as needed, up to a limit; beyond it the rest goes by push-pull.
    private mutating func sendDelta(_ records: [Record], to sender: UInt64, at source: SocketAddress) {
        // The header, and what `send` adds about the receiver and about this node.
        var budget = options.datagramBytes - Membership.kindOffset - 64
        if peer(sender)?.member.state.isPresent != true { budget -= Codec.encode(.alive(AliveRecord(me))).count }
        var batch: [Record] = []
        var used = 0
        var sent = 0
        for record in records {
            let size = Codec.encode(record).count
            if !batch.isEmpty && (used + size > budget || batch.count >= Codec.recordsPerDatagram - 2) {
                if sent + 1 >= Membership.deltaDatagrams, let peer = peer(sender), peer.member.state.isPresent {
                    pushPull(with: peer, isRequest: true)
                    return
                }
                send(.delta, to: sender, at: source, records: batch, news: false)
                sent += 1
                if sent >= Membership.deltaDatagrams { return }
                batch = []
                used = 0
            }
            batch.append(record)
            used += size
        }
        if !batch.isEmpty { send(.delta, to: sender, at: source, records: batch, news: false) }
    }

    // MARK: Push-pull

    private mutating func pushPull(with peer: Peer, isRequest: Bool) {
        var records: [Record] = []
        for member in members { records += statements(about: member) }
        let payload = PushPull(
            cluster: cluster, isRequest: isRequest, from: me.id.short, to: peer.short, records: records)
        effects.append(.pushPull(Codec.encode(payload), to: peer.member.id, address: peer.member.address))
    }

    mutating func receivePushPull(_ bytes: [UInt8], from id: NodeID?, now: MonotonicTime) {
        guard isTalking else { return }
        guard let payload = try? Codec.decodePushPull(bytes, recordLimit: 2 * options.maximumMembers) else {
            counters.malformed += 1
            return
        }
        guard payload.cluster == cluster else {
            counters.otherCluster += 1
            return
        }
        guard payload.to == me.id.short, payload.from != me.id.short, id == nil || id?.short == payload.from else {
            counters.misdirected += 1
            return
        }
        for record in payload.records {
            if case .want = record { continue }
            apply(
                record, from: payload.from, at: peer(payload.from)?.member.address ?? me.address, how: .sync, now: now)
        }
        if payload.isRequest, isActive, let peer = peer(payload.from) { pushPull(with: peer, isRequest: false) }
    }
}
