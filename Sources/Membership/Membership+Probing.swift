// The failure detector: one member per interval, in a shuffled round so that each is probed at least once in 2N−1 intervals;
// then through others; then suspicion.
//
//     ping ──ack──▶ well
//       │ probeTimeout
//     indirect pings through three ──relayed ack──▶ well
//       │ end of the interval               nacks: the helpers are well, so is this node
//     suspect
import Model

/// A ping that waits for an answer.
struct Outstanding: Sendable {
    enum Purpose: Hashable, Sendable {
        /// The regular probe.
        case probe
        /// Of a member with a proof against it.
        case check
        /// For another node, which called it `sequence` and gets a nack at `nackAt`.
        case relay(requester: UInt64, address: SocketAddress, sequence: UInt64, nackAt: MonotonicTime)
        /// To a seed of unknown id.
        case seed
        /// To a dead member, which may be back.
        case retryDead
    }

    var sequence: UInt64
    var purpose: Purpose
    /// 0 while unknown.
    var target: UInt64
    var address: SocketAddress
    var sent: MonotonicTime
    /// When others are asked; a moment that never comes if they are not, or have been.
    var askOthersAt: MonotonicTime
    var deadline: MonotonicTime
    var asked: [UInt64] = []
    var nacks: [UInt64] = []
    /// The times were moved after a stall: no round-trip time can be taken.
    var shifted = false

    var nextAction: MonotonicTime {
        if case .relay(_, _, _, let nackAt) = purpose { return min(nackAt, deadline) }
        return min(askOthersAt, deadline)
    }

    mutating func shift(by lag: TimeSpan) {
        shifted = true
        if askOthersAt != .distantFuture { askOthersAt = askOthersAt + lag }
        deadline = deadline + lag
        if case .relay(let requester, let address, let sequence, let nackAt) = purpose, nackAt != .distantFuture {
            purpose = .relay(requester: requester, address: address, sequence: sequence, nackAt: nackAt + lag)
        }
    }
}

extension Membership {
    /// Most pings on their way at once; those made for others are dropped first.
    static let outstandingLimit = 512

    mutating func insertIntoProbeOrder(_ short: UInt64) {
        guard !probeOrder.contains(short) else { return }
        // At a random place of what is left of the round, so that newcomers are not probed by all at once.
        let place = Int.random(in: min(probeIndex, probeOrder.count)...probeOrder.count, using: &generator)
        probeOrder.insert(short, at: place)
    }

    /// Sends a ping and notes it.
    mutating func ping(
        _ target: UInt64, at address: SocketAddress, purpose: Outstanding.Purpose, timeout: TimeSpan,
        askOthersAfter: TimeSpan? = nil, records: [Record] = [], now: MonotonicTime
    ) {
        guard outstanding.count < Membership.outstandingLimit else { return }
        sequence += 1
        outstanding.append(
            Outstanding(
                sequence: sequence, purpose: purpose, target: target, address: address, sent: now,
                askOthersAt: askOthersAfter.map { now + $0 } ?? .distantFuture, deadline: now + timeout))
        send(.ping(sequence: sequence), to: target, at: address, records: records)
    }

    mutating func probeNext(now: MonotonicTime) {
        let interval = options.probeInterval * healthMultiplier
        nextProbe = now + interval
        var looked = 0
        let most = probeOrder.count + 1
        while looked <= most {
            if probeIndex >= probeOrder.count {
                probeOrder = peers.filter { $0.member.state.isPresent }.map(\.short)
                probeOrder.shuffle(using: &generator)
                probeIndex = 0
                if probeOrder.isEmpty { return }
            }
            preferUnheard()
            let short = probeOrder[probeIndex]
            probeIndex += 1
            looked += 1
            guard let peer = peer(short), peer.member.state.isPresent else { continue }
            let timeout = min(options.probeTimeout * healthMultiplier, interval)
            ping(short, at: peer.member.address, purpose: .probe, timeout: interval, askOthersAfter: timeout, now: now)
            return
        }
    }

    /// Of the next few of the round, the one that was silent for longest comes first. The round still reaches everybody, so
    /// SWIM's bound holds; but in a small cluster, where a shuffle may leave one unprobed for many seconds, the dead one is
    /// soon the only one not heard from.
    private mutating func preferUnheard() {
        var best = probeIndex
        var oldest = MonotonicTime.distantFuture
        for place in probeIndex..<min(probeOrder.count, probeIndex + 8) {
            guard let peer = peer(probeOrder[place]), peer.member.state.isPresent, peer.heard < oldest else { continue }
            best = place
            oldest = peer.heard
        }
        probeOrder.swapAt(probeIndex, best)
    }

    /// A direct ping to a member against which there is a proof, and pings through others.
    mutating func check(_ peer: Peer, askOthers: Bool, now: MonotonicTime) {
        ping(peer.short, at: peer.member.address, purpose: .check, timeout: options.probeInterval, now: now)
        if askOthers, let position = outstanding.indices.last, outstanding[position].target == peer.short {
            self.askOthers(position, now: now)
        }
    }

    private mutating func askOthers(_ position: Int, now: MonotonicTime) {
        let item = outstanding[position]
        outstanding[position].askOthersAt = .distantFuture
        guard let target = peer(item.target) else { return }
        let helpers = randomPeers(options.indirectProbes) { $0.member.state == .alive && $0.short != item.target }
        outstanding[position].asked = helpers.map(\.short)
        for helper in helpers {
            let body = Datagram.Body.indirectPing(
                sequence: item.sequence, target: item.target, address: target.member.address)
            send(body, to: helper.short, at: helper.member.address)
        }
    }

    mutating func runOutstanding(now: MonotonicTime) {
        var position = 0
        while position < outstanding.count {
            let item = outstanding[position]
            guard item.nextAction <= now else {
                position += 1
                continue
            }
            if case .relay(let requester, let address, let theirs, let nackAt) = item.purpose {
                if nackAt <= now && item.deadline > now {
                    outstanding[position].purpose = .relay(
                        requester: requester, address: address, sequence: theirs, nackAt: .distantFuture)
                    if let index = index(of: item.target) { peers[index].relayFailed = now }
                    send(.nack(sequence: theirs, target: item.target), to: requester, at: address)
                    position += 1
                    continue
                }
            } else if item.askOthersAt <= now && item.deadline > now {
                askOthers(position, now: now)
                position += 1
                continue
            }
            outstanding.remove(at: position)
            if case .probe = item.purpose { probeFailed(item, now: now) }
        }
    }

    private mutating func probeFailed(_ item: Outstanding, now: MonotonicTime) {
        guard isActive, let peer = peer(item.target), peer.member.state.isPresent else { return }
        counters.probesFailed += 1
        suspect(item.target, accuser: me.id.short, evidence: .silence, now: now)
        // Helpers that answered "not me either" show that this node hears well.
        changeHealth(item.asked.isEmpty ? 1 : min(1, item.asked.count - item.nacks.count))
    }

    // MARK: Answers

    mutating func acknowledged(_ answered: UInt64, by sender: UInt64, source: SocketAddress, now: MonotonicTime) {
        guard let position = outstanding.firstIndex(where: { $0.sequence == answered }) else { return }
        let item = outstanding[position]
        guard item.target == sender || item.target == 0 else { return }
        outstanding.remove(at: position)
        switch item.purpose {
        case .probe, .check:
            if let index = index(of: sender), !item.shifted {
                let sample = now - item.sent
                let old = peers[index].member.rtt ?? sample
                peers[index].member.rtt = TimeSpan(
                    nanoseconds: old.nanoseconds + (sample.nanoseconds - old.nanoseconds) / 8)
            }
            answeredProbe(sender)
        case .relay(let requester, let address, let theirs, _):
            send(.relayedAck(sequence: theirs, target: sender), to: requester, at: address)
            clearProof(sender)
        case .seed: seedAnswered(item.address, by: sender, source: source, now: now)
        case .retryDead: break
        }
    }

    private mutating func answeredProbe(_ short: UInt64) {
        changeHealth(-1)
        clearProof(short)
        outstanding.removeAll { $0.target == short && ($0.purpose == .check || $0.purpose == .probe) }
    }

    mutating func relayedAck(_ answered: UInt64, target: UInt64, now: MonotonicTime) {
        guard let position = outstanding.firstIndex(where: { $0.sequence == answered }),
            outstanding[position].target == target
        else { return }
        switch outstanding[position].purpose {
        case .probe, .check: answeredProbe(target)
        case .relay, .seed, .retryDead: break
        }
    }

    mutating func nacked(_ answered: UInt64, target: UInt64, by helper: UInt64) {
        guard let position = outstanding.firstIndex(where: { $0.sequence == answered }),
            outstanding[position].target == target,
            outstanding[position].asked.contains(helper), !outstanding[position].nacks.contains(helper)
        else { return }
        outstanding[position].nacks.append(helper)
    }

    /// Pings for another node. The address is the requester's word, since this node may not know the target yet.
    mutating func relayPing(
        _ theirs: UInt64, target: UInt64, address: SocketAddress, requester: UInt64, requesterAddress: SocketAddress,
        now: MonotonicTime
    ) {
        guard isActive else { return }
        if target == me.id.short {
            send(.relayedAck(sequence: theirs, target: target), to: requester, at: requesterAddress)
            return
        }
        guard outstanding.count < Membership.outstandingLimit / 2 else { return }
        let nackAt = now + options.probeTimeout * 4 / 5
        ping(
            target, at: peer(target)?.member.address ?? address,
            purpose: .relay(requester: requester, address: requesterAddress, sequence: theirs, nackAt: nackAt),
            timeout: options.probeInterval, now: now)
    }
}
