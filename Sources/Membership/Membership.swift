// Who is alive, where, with which tags: SWIM (Das, Gupta, Motivala 2002) with Lifeguard (Dadgar, Phillips, Currey 2017:
// health multiplier, dynamic suspicion, buddy) and with what users of its relatives miss: views compared by digest in every
// datagram, seeds and dead members tried again for ever, and death graded by evidence: a refused datagram or stream proves
// more than silence, and counts sooner.
//
// A pure core: inputs and `now` in, effects out. Nothing here depends on the order of a hash table.
import Model
import Wire

/// One node's view of its cluster and the protocol that keeps it.
public struct Membership: Sendable {
    /// Largest opaque metadata of a member.
    public static let metaBytes = 256
    /// Most seeds that are remembered.
    public static let seedLimit = 64
    /// Largest encoded record of a member, so that every datagram can carry at least one.
    public static let recordBytes = 1_024
    /// An incarnation more than this ahead of the one known is refused: no single datagram can end a member's power to refute.
    public static let incarnationJump: UInt64 = 1 << 40

    public enum Input: Sendable {
        /// ``Membership/nextDeadline`` has come.
        case timer
        /// An opened datagram and where it came from.
        case datagram(ArraySlice<UInt8>, from: SocketAddress)
        /// The operating system reported that nobody listens at an address to which a datagram was sent (ICMP).
        case refused(SocketAddress)
        /// This node saw the process end: its stream broke, and a new connection was refused.
        case processDied(NodeID)
        /// A payload of ``Effect/pushPull(_:to:address:)`` that came on a stream; `from` is the stream's authenticated peer,
        /// if the driver knows it.
        case pushPull([UInt8], from: NodeID?)
        /// Addresses to find the cluster at; added to those known and tried for ever. After a leave: comes back.
        case join([SocketAddress])
        /// Says good-bye; ``Effect/left`` follows.
        case leave
        case update(tags: [String: String], meta: [UInt8])
        /// A member that is dead or has left will not come back under this id: it is forgotten now. Ignored for one that is
        /// present.
        case forget(NodeID)
    }

    public enum Effect: Hashable, Sendable {
        /// To be sealed and sent.
        case datagram([UInt8], to: SocketAddress)
        /// To be carried over a stream to that member as one message and fed there as ``Input/pushPull(_:from:)``. Requests and
        /// replies look alike to the driver.
        case pushPull([UInt8], to: NodeID, address: SocketAddress)
        case event(MemberEvent)
        /// The leave has been told often enough: the process may end.
        case left
    }

    /// What was ignored and why, since the start.
    public struct Counters: Hashable, Sendable {
        public var malformed = 0
        public var otherCluster = 0
        /// Datagrams for another id than this node's.
        public var misdirected = 0
        /// Records with an incarnation too far ahead.
        public var incarnationsRefused = 0
        /// Records that are whole but not acceptable: address, colliding short id, table full.
        public var recordsRefused = 0
        /// Own updates that would not fit into a datagram.
        public var updatesRefused = 0
        public var probesFailed = 0
        public var refutations = 0
        public var syncs = 0
        /// Times that this process was found to have been stopped.
        public var stalls = 0

        public init() {}
    }

    /// What this node knows of another member.
    struct Peer: Sendable {
        var member: Member
        var changed: MonotonicTime
        var suspicion: Suspicion?
        var proof: Proof?
        /// When a datagram of its own last came.
        var heard: MonotonicTime
        /// When this node, asked by another, last got no answer from it.
        var relayFailed: MonotonicTime?

        var short: UInt64 { member.id.short }
    }

    enum Phase: Hashable, Sendable {
        case active
        case leaving(until: MonotonicTime)
        case left
    }

    public let options: MembershipOptions
    let cluster: UInt32
    var me: Member
    var phase = Phase.active
    var generator: SeededGenerator
    /// Sorted by id; the short id is the key.
    var peers: [Peer] = []
    /// Short ids of peers with a suspicion or a proof, sorted.
    var watched: [UInt64] = []
    /// XOR over present members, this node included.
    public internal(set) var digest: UInt64 = 0
    /// Present members, this node included while it is active.
    public internal(set) var presentCount = 0
    /// Lifeguard's local health: 0 is well; intervals and time-outs are multiplied by score + 1.
    public internal(set) var healthScore = 0
    public internal(set) var counters = Counters()

    var effects: [Effect] = []
    var broadcasts = Broadcasts()
    var probeOrder: [UInt64] = []
    var probeIndex = 0
    var nextProbe: MonotonicTime
    /// Pings that wait for an answer, by ascending sequence.
    var outstanding: [Outstanding] = []
    var sequence: UInt64
    var nextGossip = MonotonicTime.distantFuture
    var lastGossip: MonotonicTime
    var seeds: [Seed] = []
    var nextDeadRetry = MonotonicTime.distantFuture
    var nextPushPull: MonotonicTime
    var nextReap = MonotonicTime.distantFuture
    var mismatchSince: MonotonicTime?
    var nextSync: MonotonicTime
    var viewChanged: MonotonicTime
    /// When this node first heard of another.
    var newcomerSince: MonotonicTime?
    /// Incarnations of reaped members, oldest first, so that an old view can not bring them back.
    var tombstones: [UInt64: UInt64] = [:]
    var tombstoneOrder: [UInt64] = []

    public private(set) var nextDeadline = MonotonicTime.distantFuture

    /// A node that knows only itself. `incarnation` must grow with each start of the same id (start counter × 2^20).
    /// Times start from `now`; the name is at most ``Limits/nameBytes`` bytes, the version 32.
    /// Tags and meta that do not fit a record (see ``fits(name:tags:meta:version:)``) are left out and counted.
    public init(
        options: MembershipOptions = .init(), id: NodeID, name: String, address: SocketAddress,
        tags: [String: String] = [:],
        meta: [UInt8] = [], version: String = "", cluster: String, incarnation: UInt64, generator: SeededGenerator,
        now: MonotonicTime
    ) {
        self.options = options
        self.cluster = clusterHash(cluster)
        self.generator = generator
        me = Member(
            id: id, name: name, address: address, incarnation: incarnation, tags: tags, meta: meta, version: version)
        lastGossip = now
        viewChanged = now
        nextSync = now
        nextProbe = .distantFuture
        nextPushPull = .distantFuture
        sequence = 0
        if !Membership.fits(name: name, tags: tags, meta: meta, version: version) {
            me.tags = [:]
            me.meta = []
            counters.updatesRefused += 1
        }
        sequence = self.generator.next() & 0xFFF
        nextProbe = now + random(below: options.probeInterval)
        nextPushPull = now + options.pushPullInterval + random(below: options.pushPullInterval)
        digest = Membership.digestPart(id.short, incarnation)
        presentCount = 1
        announceMyself(now: now)
        schedule()
    }

    /// Whether a member so described fits one record; what does not is refused by ``Input/update(tags:meta:)``.
    public static func fits(name: String, tags: [String: String], meta: [UInt8], version: String) -> Bool {
        guard name.utf8.count <= Limits.nameBytes, tags.count <= Limits.tags, meta.count <= metaBytes,
            version.utf8.count <= Codec.versionBytes
        else { return false }
        var total = 64 + name.utf8.count + meta.count + version.utf8.count
        for (key, value) in tags {
            guard key.utf8.count + value.utf8.count <= Limits.tagBytes else { return false }
            total += key.utf8.count + value.utf8.count + 4
        }
        return total <= recordBytes
    }

    /// Takes one input. `now` must never go back. Events tell of others; of this node only its own updates.
    public mutating func handle(_ input: Input, now: MonotonicTime) {
        noticeStall(now: now)
        switch input {
        case .timer: break
        case .datagram(let bytes, let source): receive(bytes, from: source, now: now)
        case .refused(let address): addressRefused(address, now: now)
        case .processDied(let id): if isActive { processDied(id.short, now: now) }
        case .pushPull(let bytes, let from): receivePushPull(bytes, from: from, now: now)
        case .join(let addresses): join(addresses, now: now)
        case .leave: leave(now: now)
        case .update(let tags, let meta): update(tags: tags, meta: meta, now: now)
        case .forget(let id): forget(id)
        }
        runTimers(now: now)
        schedule()
    }

    /// The effects since the last call, in order.
    public mutating func takeEffects() -> [Effect] {
        defer { effects = [] }
        return effects
    }

    /// Everybody known, by ascending id, this node included; dead and left ones until they are reaped.
    public var members: [Member] {
        var all = peers.map(\.member)
        all.insert(me, at: slot(of: me.id.short))
        return all
    }

    /// Where a member is reached.
    public func address(of id: NodeID) -> SocketAddress? {
        if id == me.id { return me.address }
        guard let peer = peer(id.short), peer.member.id == id else { return nil }
        return peer.member.address
    }

    public func member(_ id: NodeID) -> Member? {
        if id == me.id { return me }
        guard let peer = peer(id.short), peer.member.id == id else { return nil }
        return peer.member
    }

    /// The member of that name; of several, one that is present rather than not, and then the lowest id.
    public func memberNamed(_ name: String) -> Member? {
        let all = members.filter { $0.name == name }
        return all.first { $0.state.isPresent } ?? all.first
    }

    /// This node as it describes itself.
    public var local: Member { me }

    var isActive: Bool { phase == .active }
    /// Leaving nodes still answer; those that have left are silent.
    var isTalking: Bool { phase != .left }
    var healthMultiplier: Int { healthScore + 1 }

    // MARK: Peers

    /// Where a short id is or would be.
    func slot(of short: UInt64) -> Int {
        var low = 0
        var high = peers.count
        while low < high {
            let middle = (low + high) / 2
            if peers[middle].short < short { low = middle + 1 } else { high = middle }
        }
        return low
    }

    func index(of short: UInt64) -> Int? {
        let slot = slot(of: short)
        return slot < peers.count && peers[slot].short == short ? slot : nil
    }

    func peer(_ short: UInt64) -> Peer? { index(of: short).map { peers[$0] } }

    /// Up to `count` different peers that satisfy `condition`, at random.
    mutating func randomPeers(_ count: Int, where condition: (Peer) -> Bool) -> [Peer] {
        guard count > 0, !peers.isEmpty else { return [] }
        var chosen: [Int] = []
        // A few random picks find enough where most qualify; else all that qualify are shuffled.
        for _ in 0..<(3 * count) where chosen.count < count {
            let pick = Int.random(in: 0..<peers.count, using: &generator)
            if !chosen.contains(pick) && condition(peers[pick]) { chosen.append(pick) }
        }
        if chosen.count < count {
            var rest = peers.indices.filter { !chosen.contains($0) && condition(peers[$0]) }
            rest.shuffle(using: &generator)
            chosen += rest.prefix(count - chosen.count)
        }
        return chosen.map { peers[$0] }
    }

    mutating func random(below span: TimeSpan) -> TimeSpan {
        TimeSpan(nanoseconds: Int64.random(in: 0..<max(1, span.nanoseconds), using: &generator))
    }

    mutating func emit(_ kind: MemberEvent.Kind, _ member: Member) {
        effects.append(.event(MemberEvent(kind: kind, member: member)))
    }

    mutating func changeHealth(_ delta: Int) {
        healthScore = min(max(0, healthScore + delta), max(0, options.healthMaximum))
    }

    // MARK: Timers

    /// A deadline long past means that this process did not run. Whatever it waited for may have happened meanwhile, so all
    /// that would accuse others moves by as much (Lifeguard's idea, applied to what the node knows of itself).
    mutating func noticeStall(now: MonotonicTime) {
        guard nextDeadline != .distantFuture, now > nextDeadline + options.stallTolerance else { return }
        // Answers that came meanwhile still wait to be read, hence a little more than the time lost.
        let lag = now - nextDeadline + options.probeTimeout
        counters.stalls += 1
        changeHealth(lag > options.probeInterval * 2 ? 2 : 1)
        for index in outstanding.indices { outstanding[index].shift(by: lag) }
        for short in watched {
            guard let index = index(of: short) else { continue }
            peers[index].suspicion?.shift(by: lag)
            peers[index].proof?.shift(by: lag)
        }
        nextProbe = max(nextProbe, now)
    }

    mutating func runTimers(now: MonotonicTime) {
        if case .leaving(let until) = phase, until <= now || !broadcasts.contains(subject: me.id.short) {
            finishLeave()
        }
        guard isTalking else { return }
        runOutstanding(now: now)
        if isActive {
            runWatched(now: now)
            if nextProbe <= now { probeNext(now: now) }
            if nextDeadRetry <= now { retryDead(now: now) }
            if nextPushPull <= now {
                nextPushPull = now + options.pushPullInterval / 2 + random(below: options.pushPullInterval)
                if let peer = randomPeers(1, where: { $0.member.state == .alive }).first {
                    synchronise(with: peer, now: now)
                }
            }
            trySeeds(now: now)
        }
        if nextReap <= now { reap(now: now) }
        if nextGossip <= now { gossip(now: now) }
        if case .leaving = phase, !broadcasts.contains(subject: me.id.short) { finishLeave() }
    }

    private mutating func schedule() {
        guard isTalking else {
            nextDeadline = .distantFuture
            return
        }
        var next = min(nextGossip, nextReap)
        for item in outstanding { next = min(next, item.nextAction) }
        for short in watched where isActive {
            guard let peer = peer(short) else { continue }
            if let suspicion = peer.suspicion { next = min(next, suspicion.nextAction) }
            if let proof = peer.proof { next = min(next, proof.nextAction) }
        }
        if isActive {
            next = min(next, nextProbe, nextDeadRetry, nextPushPull)
            for seed in seeds { next = min(next, seed.nextTry) }
        }
        if case .leaving(let until) = phase { next = min(next, until) }
        nextDeadline = next
    }

    // MARK: View digest

    /// A member's part of the digest. States are left out: a suspicion on its way is no difference worth a repair; the dead
    /// and the left have no part, so that reaping changes nothing.
    static func digestPart(_ short: UInt64, _ incarnation: UInt64) -> UInt64 {
        var z = short ^ (incarnation &* 0x9E37_79B9_7F4A_7C15)
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
