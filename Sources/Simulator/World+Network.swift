// The network between nodes: datagrams that are lost, doubled and overtaken, and streams that keep their order until they
// break, as `Node/PeerNetwork` and a kernel make them.
import Consensus
import Model
import NodeCore
import Wire

/// The stream that one node has dialled to another.
struct Link {
    /// Counts breaks: what was on its way on an earlier connection is lost.
    var epoch = 0
    var isOpen = false
    var isDialling = false
    /// The life of the peer that answered.
    var peerLife = 0
    var waiting: [(FrameKind, [UInt8])] = []
    /// Sent into a split: delivered when it heals, unless the stream breaks before.
    var held: [(FrameKind, [UInt8])] = []
    var lastArrival = MonotonicTime.zero
    var retryAfter = MonotonicTime.zero
}

extension World {
    func link(_ from: Int, _ to: Int) -> Int { from * hosts.count + to }

    func reaches(_ from: Int, _ to: Int) -> Bool { sides[from] == sides[to] && !deaf.contains(link(from, to)) }

    private func latency() -> TimeSpan {
        var delay = 40 + Int64(generator.next() % 300)
        if !isPeaceful, chance(0.02) { delay += Int64(generator.next() % 100_000) }
        return .microseconds(delay)
    }

    // MARK: - Datagrams

    func sendDatagram(_ bytes: [UInt8], from: Int, to address: SocketAddress) throws {
        guard bytes.count <= 1_372 else { throw Violation("node \(from) sends a datagram of \(bytes.count) bytes") }
        guard let to = hosts.firstIndex(where: { $0.address == address }) else { return }
        if !isPeaceful, chance(settings.loss) { return }
        let copies = !isPeaceful && chance(settings.duplication) ? 2 : 1
        for _ in 0..<copies { schedule(after: latency(), .datagram(from: from, to: to, bytes)) }
        repeatLater(bytes, from: from, to: to)
    }

    /// The host answers for a process that is gone.
    func refuseDatagram(from: Int, to: Int) {
        guard hosts[to].isPowered, hosts[from].isUp, reaches(to, from), chance(0.7) else { return }
        schedule(after: latency(), .refused(from, life: hosts[from].life, by: to))
    }

    // MARK: - Streams

    func sendFrame(_ kind: FrameKind, _ payload: [UInt8], from: Int, to id: NodeID, at address: SocketAddress) throws {
        // Who answers there now is another.
        if retired.contains(where: { $0.id == id }) { return }
        guard let to = index(of: id), hosts[to].address == address else {
            throw Violation("node \(from) sends to an unknown peer")
        }
        guard to != from else { throw Violation("node \(from) sends \(kind) to itself") }
        guard payload.count <= Limits.frameBytes else {
            throw Violation("node \(from) sends a frame of \(payload.count) bytes")
        }
        let at = link(from, to)
        if links[at].isOpen { return transmit(kind, payload, from: from, to: to) }
        if !links[at].isDialling {
            guard now >= links[at].retryAfter else { return }
            links[at].isDialling = true
            schedule(after: latency() + latency(), .dialled(from: from, to: to, epoch: links[at].epoch, attempt: 0))
        }
        links[at].waiting.append((kind, payload))
    }

    private func transmit(_ kind: FrameKind, _ payload: [UInt8], from: Int, to: Int) {
        let at = link(from, to)
        // In order: never before what was sent earlier.
        let arrival = max(now + latency(), links[at].lastArrival + .microseconds(1))
        links[at].lastArrival = arrival
        schedule(at: arrival, .frame(from: from, to: to, epoch: links[at].epoch, kind, payload))
        guard kind == .raft, !isPeaceful, settings.lateFrames > 0, laterGenerator.chance(settings.lateFrames) else {
            return
        }
        let delay = TimeSpan.microseconds(
            Int64(500 + laterGenerator.next() % (laterGenerator.chance(0.5) ? 5_000 : 1_500_000)))
        schedule(at: arrival + delay, .lateFrame(from: hosts[from].id, to: to, life: hosts[to].life, payload))
    }

    func arrive(from: Int, to: Int, epoch: Int, _ kind: FrameKind, _ payload: [UInt8]) {
        let at = link(from, to)
        if !transferCuts.isEmpty, kind == .raft, payload.count > 1, payload[1] == 11, reaches(from, to),
            links[at].held.isEmpty, !isPeaceful, transferCuts.remove(at) != nil
        {
            // TimeoutNow: see RaftEnvelope.
            return holdUp(payload, at: at)
        }
        guard reaches(from, to), links[at].held.isEmpty else {
            if links[at].held.isEmpty {
                schedule(after: random(100_000..<1_500_000), .linkTimeout(from: from, to: to, epoch: epoch))
            }
            links[at].held.append((kind, payload))
            return
        }
        guard hosts[to].isUp, hosts[to].life == links[at].peerLife else {
            // A machine that is off says nothing; one that is on resets the stream.
            if hosts[to].isPowered, reaches(to, from) { breakLink(from: from, to: to, confirm: true) }
            return
        }
        note(
            9, UInt64(from), UInt64(to), UInt64(kind.rawValue), UInt64(payload.count),
            text: "frame \(from)>\(to) \(kind) \(World.checksum(payload))")
        feed(to, .peerFrame(kind, payload, from: hosts[from].id))
    }

    func dialled(from: Int, to: Int, epoch: Int, attempt: Int) {
        let at = link(from, to)
        guard reaches(from, to), reaches(to, from), hosts[to].isPowered else {
            // The kernel tries again, then gives up.
            if attempt == 0 {
                return schedule(after: .seconds(1), .dialled(from: from, to: to, epoch: epoch, attempt: 1))
            }
            return reset(at, retry: .milliseconds(100))
        }
        guard hosts[to].isUp else {
            reset(at, retry: .milliseconds(100))
            return feed(from, .peerLost(hosts[to].id, crashed: true))
        }
        // A process that is stopped takes the connection, but does not answer.
        guard hosts[to].pausedUntil <= now else {
            return schedule(at: hosts[to].pausedUntil, .dialled(from: from, to: to, epoch: epoch, attempt: attempt))
        }
        links[at].isDialling = false
        links[at].isOpen = true
        links[at].peerLife = hosts[to].life
        links[at].lastArrival = now
        let waiting = links[at].waiting
        links[at].waiting = []
        for (kind, payload) in waiting { transmit(kind, payload, from: from, to: to) }
    }

    private func reset(_ at: Int, retry: TimeSpan) {
        let epoch = links[at].epoch + 1
        links[at] = Link()
        links[at].epoch = epoch
        links[at].retryAfter = now + retry
    }

    func breakLink(from: Int, to: Int, confirm: Bool) {
        reset(link(from, to), retry: .milliseconds(50))
        guard confirm, hosts[from].isUp else { return }
        schedule(after: latency() + latency(), .confirmDeath(seenBy: from, life: hosts[from].life, of: to))
    }

    /// A broken stream may be the network's doing. A refused connection is not.
    func confirmDeath(of dead: Int, seenBy witness: Int) {
        let isRefused = reaches(dead, witness) && reaches(witness, dead) && hosts[dead].isPowered && !hosts[dead].isUp
        note(
            10, UInt64(dead), UInt64(witness), isRefused ? 1 : 0,
            text: "lost \(dead) seen by \(witness) crashed \(isRefused)")
        feed(witness, .peerLost(hosts[dead].id, crashed: isRefused))
    }

    /// All streams of a process end with it.
    func processGone(_ i: Int, orderly: Bool) {
        localCallsGone(with: i)
        for other in hosts.indices where other != i {
            let incoming = links[link(other, i)]
            reset(link(i, other), retry: .zero)
            // Without power, or behind a split, nobody hears of it.
            guard hosts[i].isPowered, reaches(i, other), hosts[other].isUp else { continue }
            if incoming.isOpen { breakLink(from: other, to: i, confirm: !orderly) }
        }
        for id in connections.keys.sorted() where connections[id]?.host == i {
            if hosts[i].isPowered, let client = connections[id]?.client, clientReaches(client, i) {
                schedule(after: latency(), .connectionBroken(connection: id))
            }
        }
    }

    /// After a change of the splits: what was held goes on its way.
    func networkChanged() {
        for from in hosts.indices {
            for to in hosts.indices where from != to && reaches(from, to) {
                let at = link(from, to)
                let held = links[at].held
                links[at].held = []
                for (kind, payload) in held { transmit(kind, payload, from: from, to: to) }
            }
        }
    }

    func clientReaches(_ client: Int, _ host: Int) -> Bool { clientSides[client] == sides[host] }
}
