// What is not as it seems: clocks that go at different speeds, stand still or jump ahead, and gossip that is not true, late or heard
// again. All of it may cost time, and nothing else: no order of the log, vote or fencing token rests on a clock or on gossip. What does
// rest on clocks are the ends of leases and times to run; the rules about those allow for the drift and for each jump.
import Membership
import Model
import NodeCore

extension World {
    /// One of the faults that this world has; false if it has none.
    func deceive() -> Bool {
        var kinds: [(Int) -> Void] = []
        if settings.suspensions { kinds.append { [unowned self] in suspend($0) } }
        if settings.clockJumps { kinds.append { [unowned self] in jumpClock($0) } }
        if settings.gossipLies { kinds += [lie, lie, lie] }
        guard !kinds.isEmpty else { return false }
        let leaders = hosts.indices.filter { hosts[$0].core?.raft?.isLeader ?? false }
        let victim =
            laterGenerator.chance(0.5)
            ? leaders.last ?? 0 : Int(laterGenerator.next() % UInt64(hosts.count))
        kinds[Int(laterGenerator.next() % UInt64(kinds.count))](victim)
        return true
    }

    // MARK: - Clocks

    /// The machine stands still and its clock with it, as a virtual machine's does that is moved to another place.
    private func suspend(_ i: Int) {
        let end = now + .microseconds(Int64(200_000 + laterGenerator.next() % 3_000_000))
        note(24, UInt64(i), text: "suspend \(i) until \(end)")
        figures.suspensions += 1
        hosts[i].pausedUntil = max(hosts[i].pausedUntil, end)
        hosts[i].clock.stop(at: now, until: hosts[i].pausedUntil)
    }

    /// The process finds that more time has passed than has.
    private func jumpClock(_ i: Int) {
        let span = TimeSpan.milliseconds(
            Int64(20 + laterGenerator.next() % (laterGenerator.chance(0.5) ? 400 : 10_000)))
        note(25, UInt64(i), UInt64(span.nanoseconds), text: "clock of \(i) jumps \(span)")
        figures.clockJumps += 1
        hosts[i].clock.jump(by: span, at: now)
        clockJumps.append((now, span))
        oracle.clockJumped(by: span)
        if hosts[i].isUp, hosts[i].pausedUntil <= now { feed(i, .timer) }
    }

    /// How far clocks have jumped since `time`, all together.
    func jumped(since time: MonotonicTime) -> TimeSpan {
        clockJumps.reduce(.zero) { $1.time >= time ? $0 + $1.span : $0 }
    }

    /// Until when a client may rely on a lease of so many milliseconds that it asked for at `asked`: an eighth is for clocks that go at
    /// different speeds, as in the client library.
    func reliable(_ milliseconds: UInt64, since asked: MonotonicTime) -> MonotonicTime {
        asked + .milliseconds(Int64(milliseconds) * 7 / 8) - jumped(since: asked)
    }

    /// The latest that log time may be by now, in milliseconds.
    var latestLogTime: UInt64 {
        let passed = Int64(now.nanoseconds)
        let most = passed + passed / 1_000_000 * settings.clockDrift + jumped(since: .zero).nanoseconds
        return UInt64(clamping: most / 1_000_000) + (settings.clockDrift > 0 ? 1 : 0)
    }

    // MARK: - Gossip

    /// Somebody tells some of the others that one that lives does not, or the other way round.
    private func lie(_ subject: Int) {
        let liars = hosts.indices.filter { $0 != subject && hosts[$0].isUp }
        guard !liars.isEmpty else { return }
        let liar = liars[Int(laterGenerator.next() % UInt64(liars.count))]
        let isUp = hosts[subject].isUp
        let choice = laterGenerator.next() % 3
        note(26, UInt64(liar), UInt64(subject), choice, text: "\(liar) lies about \(subject) \(isUp) \(choice)")
        for hearer in hosts.indices where hearer != subject && laterGenerator.chance(0.7) {
            if isUp, choice == 2, hearer != liar {
                // What an operating system may say of a process that lives: its port was refused by something on the way.
                figures.lies += 1
                feed(hearer, .peerLost(hosts[subject].id, crashed: true))
                continue
            }
            let lie: GossipLie = isUp ? (choice == 0 ? .suspect : .dead) : .alive
            guard hearer != liar,
                let bytes = hosts[liar].core?.membership.forgery(
                    lie, about: hosts[subject].id, to: hosts[hearer].id)
            else { continue }
            figures.lies += 1
            for _ in 0..<1 + laterGenerator.next() % 2 {
                schedule(
                    after: .microseconds(Int64(100 + laterGenerator.next() % 400_000)),
                    .datagram(from: liar, to: hearer, bytes))
            }
        }
    }

    /// A datagram is heard again, after a while.
    func repeatLater(_ bytes: [UInt8], from: Int, to: Int) {
        guard !isPeaceful, settings.lateGossip > 0, laterGenerator.chance(settings.lateGossip) else { return }
        schedule(
            after: .microseconds(Int64(50_000 + laterGenerator.next() % 4_000_000)),
            .datagram(from: from, to: to, bytes))
    }
}
