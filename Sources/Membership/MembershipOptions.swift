import Model

/// Times, counts and limits of the gossip. The defaults suit a local network and cost two datagrams per second and member
/// at rest; all members of a cluster should use equal ones.
public struct MembershipOptions: Hashable, Sendable {
    /// One member is probed per interval, times the health multiplier.
    public var probeInterval = TimeSpan.seconds(1)
    /// How long a direct ping may take before others are asked, times the health multiplier. Under `probeInterval`.
    public var probeTimeout = TimeSpan.milliseconds(500)
    /// How many members are asked to probe a silent one.
    public var indirectProbes = 3
    /// Time between two rounds of gossip while there is something to tell.
    public var gossipInterval = TimeSpan.milliseconds(200)
    /// The shorter time to the first round that tells fresh news.
    public var urgentGossipInterval = TimeSpan.milliseconds(25)
    /// How many members are told in each round.
    public var gossipFanout = 3
    /// How long a silent member stays suspect at least: twice the time in which gossip reaches all and a refutation returns.
    public var suspicionFloor = TimeSpan.milliseconds(2_500)
    /// How long it stays suspect as long as nobody else confirms (Lifeguard's dynamic time-out starts here).
    public var suspicionCeiling = TimeSpan.seconds(15)
    /// How many further accusers shrink the time-out from the ceiling to the floor; 1 to 3.
    public var suspicionConfirmations = 2
    /// From the first evidence that a process is gone (refused datagram, refused stream) to its being declared dead. The
    /// checks in between are spread over it.
    public var evidenceDelay = TimeSpan.milliseconds(400)
    /// Most that the health score can reach; the multiplier is score + 1.
    public var healthMaximum = 7
    /// Views are compared by digest in each datagram; a difference that lasts this long while the view is quiet is repaired.
    public var mismatchPatience = TimeSpan.milliseconds(200)
    /// Every so often a whole summary is exchanged with a random member although digests agree.
    public var pushPullInterval = TimeSpan.seconds(60)
    /// First wait before an unanswered seed is tried again; doubles, with jitter, up to `seedRetryCeiling`, for ever.
    public var seedRetry = TimeSpan.milliseconds(250)
    public var seedRetryCeiling = TimeSpan.seconds(4)
    /// Every so often one random dead member is pinged, so that a partition heals.
    public var deadRetry = TimeSpan.milliseconds(1_500)
    /// When a dead or left member is forgotten.
    public var reapAfter = TimeSpan.seconds(24 * 3_600)
    /// Longest that leaving may take.
    public var leaveTimeout = TimeSpan.seconds(1)
    /// A timer that fires later than this shows that this process was stopped: its own deadlines are moved and its health
    /// score rises, instead of accusing others of silence.
    public var stallTolerance = TimeSpan.milliseconds(400)
    /// Members beyond this are not taken in.
    public var maximumMembers = 10_000
    /// Largest datagram before it is sealed (28 bytes): 1 400 on the wire.
    public var datagramBytes = 1_363

    public init() {}

    /// About ten times quicker than the defaults: for tests on one machine.
    public static var quick: MembershipOptions {
        var options = MembershipOptions()
        options.probeInterval = .milliseconds(150)
        options.probeTimeout = .milliseconds(80)
        options.gossipInterval = .milliseconds(30)
        options.urgentGossipInterval = .milliseconds(5)
        options.suspicionFloor = .milliseconds(500)
        options.suspicionCeiling = .milliseconds(2_000)
        options.evidenceDelay = .milliseconds(90)
        options.mismatchPatience = .milliseconds(50)
        options.pushPullInterval = .seconds(5)
        options.seedRetry = .milliseconds(50)
        options.seedRetryCeiling = .milliseconds(500)
        options.deadRetry = .milliseconds(200)
        options.leaveTimeout = .milliseconds(300)
        options.stallTolerance = .milliseconds(200)
        return options
    }
}
