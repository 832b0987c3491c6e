import Model

/// What a seed decides about a run before it begins.
public struct WorldSettings: Sendable, CustomStringConvertible {
    /// 1 to 7.
    public var nodes: Int
    /// K of `--expect`: 1, 3 or 5, at most `nodes`.
    public var expect: Int
    /// Nodes that expect K; the others only join.
    public var founders: Int
    public var clients: Int
    /// How long faults are injected.
    public var chaos: TimeSpan
    /// How long after the last fault everything may take to come together.
    public var patience = TimeSpan.seconds(25)
    /// Of datagrams.
    public var loss = 0.0
    public var duplication = 0.0
    /// Time between two faults is drawn up to this.
    public var faultPause: TimeSpan
    public var crashes = true
    public var partitions = true
    public var pauses = true
    public var diskFaults = true
    public enum Damage: String, Sendable {
        case none
        /// To a minority of the voters, so that each committed entry has an intact copy: nothing is lost and all heals.
        case withinBudget
        /// To any number: the cluster may refuse for ever, but never gives a wrong answer.
        case beyondBudget
    }

    /// Bytes at rest that go bad, and nodes whose data are gone.
    public var damage = Damage.none
    /// Hand-overs and stops by SIGTERM.
    public var orders = true
    /// Voters that die for good, each after the one before was replaced.
    public var losses = 0
    /// So many of them are not waited for.
    public var lossesTogether = 1
    public var deadVoterGrace = TimeSpan.seconds(300)
    /// Bytes of a snapshot in one message.
    public var chunkBytes: Int
    public var snapshotEntries: Int
    /// How likely it is that a copy of a command arrives once more, later, somewhere else.
    public var strays = 0.0
    /// How likely it is that a message between voters arrives once more, later, behind newer ones: the socket of a stream that broke
    /// is readable for as long as its bytes last, beside that of the stream which took its place.
    public var lateFrames = 0.0
    /// Orders to hand leadership on, of which the word to the heir is held up by the network until the leader has gone on without it.
    public var cutTransfers = false
    /// How likely it is that somebody who leads an election dies instead of renewing: its lease has to end by itself.
    public var vanishing = 0.0
    /// Of the crashes of single nodes so many come while the log is being written.
    public var crashesInWrites = 0.0
    /// By how much the clocks of nodes are quicker or slower than the world's time at most, in millionths.
    public var clockDrift: Int64 = 0
    /// Clocks that jump ahead.
    public var clockJumps = false
    /// Machines that stand still for up to 3 s while their clocks do, too.
    public var suspensions = false
    /// Gossip that is not true.
    public var gossipLies = false
    /// How likely it is that a datagram is heard once more, up to 4 s later.
    public var lateGossip = 0.0
    /// Disks of outgoing voters are slow now and then.
    public var slowOutgoing = false
    /// So many of the jobs have bodies of up to 3 KB, which take several sectors of the log.
    public var largeBodies = 0.0
    /// Nothing goes wrong but leaders that stand still for a while and then go on, with many readers: the moment at which a
    /// node that was deposed could tell what is out of date.
    public var onlyPausesLeaders = false
    /// Ten times quicker gossip than a real cluster's.
    public var quickGossip = true

    public init(seed: UInt64) {
        var generator = SeededGenerator(seed: seed &* 0x9E37_79B9_7F4A_7C15 ^ 0xC0)
        let count = [1, 2, 3, 3, 3, 3, 4, 5, 5, 6, 7][Int(generator.next() % 11)]
        nodes = count
        let fitting = [1, 3, 5].filter { $0 <= count }
        expect = fitting[Int(generator.next() % UInt64(fitting.count))]
        if nodes >= 3, generator.chance(0.5) { expect = nodes >= 5 && generator.chance(0.5) ? 5 : 3 }
        // With twice as many as they expect, two sides of a split would each be enough for a cluster of their own.
        founders = expect == 1 ? 1 : generator.chance(0.5) ? expect : min(nodes, 2 * expect - 1)
        clients = 3 + Int(generator.next() % 4)
        chaos = .milliseconds(Int64(2_500 + generator.next() % 3_000))
        loss = [0, 0.02, 0.1, 0.25][Int(generator.next() % 4)]
        duplication = [0, 0.05, 0.2][Int(generator.next() % 3)]
        faultPause = .milliseconds([200, 500, 1_000, 2_000][Int(generator.next() % 4)])
        crashes = generator.chance(0.85)
        partitions = generator.chance(0.7)
        pauses = generator.chance(0.5)
        diskFaults = generator.chance(0.4)
        orders = generator.chance(0.5)
        chunkBytes = [400, 3_000, 1 << 20][Int(generator.next() % 3)]
        snapshotEntries = [15, 60, 200, 50_000][Int(generator.next() % 4)]
        quickGossip = generator.chance(0.9)
        if nodes >= 3, generator.chance(0.1) { pauseLeadersOnly() }
        strays = [0, 0.05, 0.2][Int(generator.next() % 3)]
        if !onlyPausesLeaders, crashes, nodes >= 3 {
            damage = [.none, .none, .none, .withinBudget, .withinBudget, .beyondBudget][Int(generator.next() % 6)]
        }
        if !onlyPausesLeaders {
            lateFrames = [0, 0.003, 0.03][Int(generator.next() % 3)]
            cutTransfers = orders && partitions && nodes >= 3
            vanishing = 0.2
            crashesInWrites = crashes ? 0.5 : 0
            slowOutgoing = nodes >= 3
            largeBodies = [0, 0.1, 0.5][Int(generator.next() % 3)]
            clockDrift = [0, 10_000, 50_000][Int(generator.next() % 3)]
            suspensions = pauses && generator.chance(0.5)
            clockJumps = generator.chance(0.2)
            gossipLies = generator.chance(0.3)
            lateGossip = [0, 0, 0.02, 0.1][Int(generator.next() % 4)]
            if gossipLies, generator.chance(0.3) { deadVoterGrace = .seconds(1) }
        }
    }

    /// Without the faults that came later: the worlds in which old seeds failed.
    public func withoutLaterFaults() -> WorldSettings {
        var settings = self
        (settings.lateFrames, settings.cutTransfers, settings.vanishing, settings.crashesInWrites) = (0, false, 0, 0)
        (settings.largeBodies, settings.slowOutgoing) = (0, false)
        (settings.clockDrift, settings.clockJumps, settings.suspensions) = (0, false, false)
        (settings.gossipLies, settings.lateGossip, settings.deadVoterGrace) = (false, 0, .seconds(300))
        return settings
    }

    /// See ``onlyPausesLeaders``.
    public mutating func pauseLeadersOnly() {
        onlyPausesLeaders = true
        (crashes, partitions, pauses, diskFaults, orders) = (false, false, true, false, false)
        (loss, duplication) = (0, 0)
        clients = max(clients, 5)
        faultPause = .milliseconds(1_500)
    }

    /// The same faults for a shorter time: for every day.
    public static func short(seed: UInt64) -> WorldSettings {
        var settings = WorldSettings(seed: seed)
        settings.chaos = .milliseconds(1_200)
        settings.faultPause = min(settings.faultPause, .milliseconds(300))
        return settings
    }

    /// Three nodes that nobody asks for anything and nothing happens to, for ten minutes.
    public static func quiet(seed: UInt64) -> WorldSettings {
        var settings = WorldSettings(seed: seed)
        (settings.nodes, settings.expect, settings.founders, settings.clients) = (3, 3, 3, 0)
        (settings.crashes, settings.partitions, settings.pauses) = (false, false, false)
        (settings.diskFaults, settings.orders, settings.quickGossip) = (false, false, false)
        (settings.loss, settings.duplication, settings.strays, settings.damage) = (0, 0, 0, .none)
        settings = settings.withoutLaterFaults()
        settings.onlyPausesLeaders = false
        settings.chaos = .seconds(600)
        return settings
    }

    public var description: String {
        let faults = [
            crashes ? "crashes" : nil, partitions ? "partitions" : nil, pauses ? "pauses" : nil,
            diskFaults ? "disk" : nil,
            orders ? "orders" : nil, lateFrames > 0 ? "late \(lateFrames)" : nil,
            clockDrift > 0 ? "drift \(clockDrift)" : nil, clockJumps ? "jumps" : nil, suspensions ? "suspensions" : nil,
            gossipLies ? "lies" : nil, damage == .none ? nil : "damage \(damage)",
        ].compactMap { $0 }
        return """
            \(nodes) nodes (\(founders) expect \(expect)), \(clients) clients, loss \(loss), duplication \(duplication), strays \(strays), \
            snapshot every \(snapshotEntries), chaos \(chaos), faults: \(faults.joined(separator: " "))
            """
    }
}

/// A rule that must always hold was broken.
public struct Violation: Error, CustomStringConvertible {
    public var description: String
    public init(_ description: String) { self.description = description }
}
