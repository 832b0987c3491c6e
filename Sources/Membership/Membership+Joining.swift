// Coming and going: seeds known by address only, dead members that may be back, leaving, own changes.
import Model

/// An address to find the cluster at.
struct Seed: Hashable, Sendable {
    var address: SocketAddress
    var nextTry: MonotonicTime
    var wait: TimeSpan
    /// Who answered there last.
    var answeredBy: UInt64?
    /// The address leads to this node itself.
    var isMe = false
}

extension Membership {
    mutating func join(_ addresses: [SocketAddress], now: MonotonicTime) {
        if !isActive {
            phase = .active
            me.state = .alive
            presentCount += 1
            digest ^= Membership.digestPart(me.id.short, me.incarnation)
            raiseIncarnation(above: me.incarnation, now: now)
            nextProbe = now + random(below: options.probeInterval)
            nextPushPull = now + options.pushPullInterval
            // What was doubtful before is doubted anew.
            for short in watched {
                guard let index = index(of: short) else { continue }
                peers[index].proof = nil
                peers[index].suspicion?.start = now
                peers[index].suspicion?.askedAgain = false
                peers[index].suspicion?.updateDeadline()
                watch(short)
            }
        }
        for address in addresses where !address.isUnspecified {
            if let index = seeds.firstIndex(where: { $0.address == address }) {
                seeds[index].nextTry = now
                seeds[index].wait = options.seedRetry
            } else if seeds.count < Membership.seedLimit {
                seeds.append(
                    Seed(address: address, nextTry: now, wait: options.seedRetry, isMe: address == me.address))
            }
        }
        for index in seeds.indices where seeds[index].isMe { seeds[index].nextTry = .distantFuture }
    }

    /// A seed is done while a present member is there; otherwise it is tried for ever, so that a cluster that was split, or
    /// started in the wrong order, comes together.
    mutating func trySeeds(now: MonotonicTime) {
        for index in seeds.indices where seeds[index].nextTry <= now {
            let seed = seeds[index]
            let isHere = peers.contains {
                $0.member.state.isPresent && ($0.member.address == seed.address || $0.short == seed.answeredBy)
            }
            if isHere {
                seeds[index].wait = options.seedRetry
                seeds[index].nextTry = now + options.seedRetryCeiling
                continue
            }
            let wait = min(seed.wait, options.seedRetryCeiling)
            // 75 to 125 per cent, so that nodes that start together do not stay together.
            seeds[index].nextTry = now + wait * 3 / 4 + random(below: wait / 2)
            seeds[index].wait = min(wait * 2, options.seedRetryCeiling)
            ping(0, at: seed.address, purpose: .seed, timeout: options.probeInterval, now: now)
        }
    }

    mutating func seedAnswered(_ address: SocketAddress, by short: UInt64, source: SocketAddress, now: MonotonicTime) {
        if let index = seeds.firstIndex(where: { $0.address == address }) { seeds[index].answeredBy = short }
        guard isActive else { return }
        // First contact: ask for the whole view at once instead of waiting for the digests to differ for long.
        if let peer = peer(short), peer.member.state.isPresent { synchronise(with: peer, now: now) }
    }

    /// This node's own ping came back to it: one of its seeds is itself.
    mutating func noticeMyself(_ body: Datagram.Body) {
        guard case .ping(let sequence) = body, let item = outstanding.first(where: { $0.sequence == sequence }),
            item.purpose == .seed, let index = seeds.firstIndex(where: { $0.address == item.address })
        else { return }
        seeds[index].isMe = true
        seeds[index].nextTry = .distantFuture
    }

    /// True while all that this node knows came from its first contact, whose news are not news to others.
    func isNewcomer(now: MonotonicTime) -> Bool { newcomerSince.map { now - $0 < options.probeInterval * 2 } ?? false }

    /// The dead are asked now and then whether they are: after a partition both sides hold each other dead, and nothing else
    /// would ever reach across.
    mutating func retryDead(now: MonotonicTime) {
        nextDeadRetry = .distantFuture
        let chosen = randomPeers(1) { $0.member.state == .dead }
        guard let peer = chosen.first else { return }
        nextDeadRetry = now + options.deadRetry / 2 + random(below: options.deadRetry)
        ping(peer.short, at: peer.member.address, purpose: .retryDead, timeout: options.probeInterval, now: now)
    }

    mutating func update(tags: [String: String], meta: [UInt8], now: MonotonicTime) {
        guard Membership.fits(name: me.name, tags: tags, meta: meta, version: me.version) else {
            counters.updatesRefused += 1
            return
        }
        guard tags != me.tags || meta != me.meta else { return }
        me.tags = tags
        me.meta = meta
        guard isActive else { return }
        raiseIncarnation(above: me.incarnation, now: now)
        emit(.update, me)
    }

    /// Tells many at once, since this is the last that they hear; then goes on as ordinary gossip until it was told often
    /// enough.
    mutating func leave(now: MonotonicTime) {
        guard isActive else { return }
        digest ^= Membership.digestPart(me.id.short, me.incarnation)
        presentCount -= 1
        me.state = .left
        phase = .leaving(until: now + options.leaveTimeout)
        broadcasts.remove(subject: me.id.short)
        let record = Record.left(subject: me.id.short, incarnation: me.incarnation)
        broadcast(record, now: now)
        outstanding.removeAll {
            if case .relay = $0.purpose { return false }
            return true
        }
        let told = randomPeers(16) { $0.member.state.isPresent }
        for peer in told { send(.gossip, to: peer.short, at: peer.member.address, records: [record], news: false) }
        if told.isEmpty { finishLeave() }
    }

    mutating func finishLeave() {
        phase = .left
        broadcasts = Broadcasts()
        outstanding = []
        effects.append(.left)
    }
}
