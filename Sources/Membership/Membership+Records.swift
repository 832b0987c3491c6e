// What a statement about a member does to the view. Each rule is one function; (incarnation, rank of state) only ever grows,
// so that all nodes reach the same view in whatever order they hear things.
import Model

extension Membership {
    /// How a statement came: news are passed on; what comes by repair is passed on only where it is new to more than this node.
    enum Learned: Hashable, Sendable {
        case gossip, sync
    }

    mutating func apply(
        _ record: Record, from sender: UInt64, at source: SocketAddress, how: Learned, now: MonotonicTime
    ) {
        switch record {
        case .alive(let alive): applyAlive(alive, from: sender, at: source, how: how, now: now)
        case .suspect(let subject, let incarnation, let accuser, let evidence):
            applySuspect(
                subject, incarnation: incarnation, accuser: accuser, evidence: evidence, from: sender, at: source,
                now: now)
        case .dead(let subject, let incarnation, let accuser, let evidence):
            applyDead(
                subject, incarnation: incarnation, accuser: accuser, evidence: evidence, from: sender, at: source,
                now: now)
        case .left(let subject, let incarnation):
            applyLeft(subject, incarnation: incarnation, from: sender, at: source, now: now)
        case .want(let subject): answer(want: subject, to: sender, at: source)
        }
    }

    /// False, and counted, for an incarnation that no honest member could have reached.
    private mutating func isPlausible(_ incarnation: UInt64, after known: UInt64) -> Bool {
        let (limit, overflow) = known.addingReportingOverflow(Membership.incarnationJump)
        guard !overflow, incarnation <= limit else {
            counters.incarnationsRefused += 1
            return false
        }
        return true
    }

    mutating func applyAlive(
        _ record: AliveRecord, from sender: UInt64, at source: SocketAddress, how: Learned,
        now: MonotonicTime
    ) {
        let short = record.id.short
        if short == me.id.short {
            // An earlier life of this node, or another node with a copy of its identity: only a higher number settles it.
            guard record.id == me.id, isActive, record.incarnation >= me.incarnation, record != AliveRecord(me),
                isPlausible(record.incarnation, after: me.incarnation)
            else { return }
            raiseIncarnation(above: record.incarnation, now: now)
            return
        }
        let tags = Dictionary(record.tags.map { ($0.key, $0.value) }) { first, _ in first }
        guard !record.address.isUnspecified, record.address.port != 0, short != 0,
            Membership.fits(name: record.name, tags: tags, meta: record.meta, version: record.version)
        else {
            counters.recordsRefused += 1
            return
        }
        if let index = index(of: short) {
            let old = peers[index].member
            guard old.id == record.id else {
                counters.recordsRefused += 1
                return
            }
            guard record.incarnation > old.incarnation else {
                // Whoever still counts on one that is gone is told so.
                if how == .sync && !old.state.isPresent && sender != short {
                    answer(want: short, to: sender, at: source)
                }
                return
            }
            guard isPlausible(record.incarnation, after: old.incarnation) else { return }
            var member = old
            member.name = record.name
            member.address = record.address
            member.tags = tags
            member.meta = record.meta
            member.version = record.version
            member.incarnation = record.incarnation
            member.state = .alive
            var same = old
            same.incarnation = member.incarnation
            same.state = .alive
            replace(index, with: member, now: now)
            switch old.state {
            case .alive: if member != same { emit(.update, member) }
            case .suspect:
                emit(.alive, member)
                if member != same { emit(.update, member) }
            case .dead, .left: emit(.join, member)
            }
        } else {
            guard peers.count + 1 < options.maximumMembers else {
                counters.recordsRefused += 1
                return
            }
            if let buried = tombstones[short] {
                guard record.incarnation > buried, isPlausible(record.incarnation, after: buried) else { return }
            } else if record.incarnation > UInt64.max / 4 {
                counters.incarnationsRefused += 1
                return
            }
            insert(record, now: now)
        }
        // A node that is just coming in gets the whole view at once: telling it on would only repeat it.
        if how == .gossip || sender == short || !isNewcomer(now: now) { broadcast(.alive(record), now: now) }
    }

    private mutating func insert(_ record: AliveRecord, now: MonotonicTime) {
        let member = Member(
            id: record.id, name: record.name, address: record.address, incarnation: record.incarnation,
            tags: Dictionary(record.tags.map { ($0.key, $0.value) }) { first, _ in first }, meta: record.meta,
            version: record.version)
        if peers.isEmpty { newcomerSince = now }
        peers.insert(Peer(member: member, changed: now, heard: now), at: slot(of: member.id.short))
        digest ^= Membership.digestPart(member.id.short, member.incarnation)
        presentCount += 1
        viewChanged = now
        insertIntoProbeOrder(member.id.short)
        emit(.join, member)
    }

    /// Sets a peer's new description; ends suspicion and proof, and keeps digest and count true.
    mutating func replace(_ index: Int, with member: Member, now: MonotonicTime) {
        let old = peers[index].member
        if old.state.isPresent {
            digest ^= Membership.digestPart(old.id.short, old.incarnation)
            presentCount -= 1
        }
        if member.state.isPresent {
            digest ^= Membership.digestPart(member.id.short, member.incarnation)
            presentCount += 1
            if !old.state.isPresent { insertIntoProbeOrder(member.id.short) }
        } else {
            nextReap = min(nextReap, now + options.reapAfter)
            if member.state == .dead && nextDeadRetry == .distantFuture {
                nextDeadRetry = now + options.deadRetry + random(below: options.deadRetry)
            }
        }
        if member.state.isPresent != old.state.isPresent || member.incarnation != old.incarnation { viewChanged = now }
        peers[index].member = member
        if member.state != .suspect { peers[index].suspicion = nil }
        peers[index].proof = nil
        if member.state != old.state { peers[index].changed = now }
        watch(member.id.short)
        // News about the past of this member is no news any more.
        broadcasts.remove(subject: member.id.short)
    }

    mutating func applySuspect(
        _ short: UInt64, incarnation: UInt64, accuser: UInt64, evidence: Evidence, from sender: UInt64,
        at source: SocketAddress,
        now: MonotonicTime
    ) {
        if short == me.id.short {
            refute(incarnation, toldBy: sender, at: source, now: now)
            return
        }
        guard let index = index(of: short), incarnation >= peers[index].member.incarnation else { return }
        if incarnation > peers[index].member.incarnation {
            // Its description at that incarnation must be known before it can be accused.
            if isPlausible(incarnation, after: peers[index].member.incarnation) {
                send(.delta, to: sender, at: source, records: [.want(subject: short)], news: false)
            }
            return
        }
        suspect(short, accuser: accuser, evidence: evidence, now: now)
        // Asked by the accuser, this node has lately got no answer either: that is a confirmation.
        if let failed = self.index(of: short).flatMap({ peers[$0].relayFailed }),
            now - failed < options.probeInterval * 2
        {
            suspect(short, accuser: me.id.short, evidence: .silence, now: now)
        }
    }

    mutating func applyDead(
        _ short: UInt64, incarnation: UInt64, accuser: UInt64, evidence: Evidence, from sender: UInt64,
        at source: SocketAddress,
        now: MonotonicTime
    ) {
        if short == me.id.short {
            refute(incarnation, toldBy: sender, at: source, now: now)
            return
        }
        guard let index = index(of: short) else { return }
        var member = peers[index].member
        guard (incarnation, MemberState.dead.rank) > (member.incarnation, member.state.rank),
            isPlausible(incarnation, after: member.incarnation)
        else { return }
        let wasPresent = member.state.isPresent
        member.incarnation = incarnation
        member.state = .dead
        replace(index, with: member, now: now)
        if wasPresent { emit(.dead, member) }
        broadcast(.dead(subject: short, incarnation: incarnation, accuser: accuser, evidence: evidence), now: now)
    }

    mutating func applyLeft(
        _ short: UInt64, incarnation: UInt64, from sender: UInt64, at source: SocketAddress, now: MonotonicTime
    ) {
        if short == me.id.short {
            // Of an earlier life, unless this node is leaving itself.
            refute(incarnation, toldBy: sender, at: source, now: now)
            return
        }
        guard let index = index(of: short) else { return }
        var member = peers[index].member
        guard (incarnation, MemberState.left.rank) > (member.incarnation, member.state.rank),
            isPlausible(incarnation, after: member.incarnation)
        else { return }
        let wasLeft = member.state == .left
        member.incarnation = incarnation
        member.state = .left
        replace(index, with: member, now: now)
        if !wasLeft { emit(.leave, member) }
        broadcast(.left(subject: short, incarnation: incarnation), now: now)
    }

    /// This node is accused: it answers with a higher incarnation, and takes the accusation as a sign of its own slowness.
    mutating func refute(_ incarnation: UInt64, toldBy sender: UInt64, at source: SocketAddress, now: MonotonicTime) {
        guard isActive else { return }
        guard incarnation >= me.incarnation else {
            // Long refuted: whoever says so has missed it.
            send(.delta, to: sender, at: source, records: [.alive(AliveRecord(me))], news: false)
            return
        }
        guard isPlausible(incarnation, after: me.incarnation) else { return }
        counters.refutations += 1
        changeHealth(1)
        raiseIncarnation(above: incarnation, now: now)
    }

    mutating func raiseIncarnation(above incarnation: UInt64, now: MonotonicTime) {
        digest ^= Membership.digestPart(me.id.short, me.incarnation)
        me.incarnation = max(me.incarnation, incarnation) + 1
        digest ^= Membership.digestPart(me.id.short, me.incarnation)
        viewChanged = now
        announceMyself(now: now)
    }

    /// Forgets those that have been dead or left for long; their incarnations are kept for a while.
    mutating func reap(now: MonotonicTime) {
        nextReap = .distantFuture
        var kept: [Peer] = []
        kept.reserveCapacity(peers.count)
        for peer in peers {
            guard !peer.member.state.isPresent else {
                kept.append(peer)
                continue
            }
            let due = peer.changed + options.reapAfter
            if due > now {
                nextReap = min(nextReap, due)
                kept.append(peer)
                continue
            }
            bury(peer)
        }
        peers = kept
    }

    private mutating func bury(_ peer: Peer) {
        if tombstones.updateValue(peer.member.incarnation, forKey: peer.short) == nil {
            tombstoneOrder.append(peer.short)
        }
        while tombstoneOrder.count > 4_096 { tombstones[tombstoneOrder.removeFirst()] = nil }
        broadcasts.remove(subject: peer.short)
        emit(.reaped, peer.member)
    }

    /// By order, without waiting for the time to be over.
    mutating func forget(_ id: NodeID) {
        guard let index = index(of: id.short), peers[index].member.id == id, !peers[index].member.state.isPresent else {
            return
        }
        bury(peers.remove(at: index))
    }
}
