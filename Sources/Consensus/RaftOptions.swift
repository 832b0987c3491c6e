import Model

/// Every tunable of the protocol, with the reason for its default. Defaults suit machines that are busy: wake-ups that are
/// 10 ms late and disk syncs that stall for 200 ms must not depose a leader.
public struct RaftOptions: Hashable, Sendable {
    /// How often a leader says that it lives.
    public var heartbeat: TimeSpan = .milliseconds(50)
    /// Silence of the leader after which a follower asks for votes is drawn from this range: at least five heartbeats, and
    /// wide enough that two followers seldom ask at once.
    public var electionTimeoutMin: TimeSpan = .milliseconds(250)
    public var electionTimeoutMax: TimeSpan = .milliseconds(400)
    /// After proof that the leader's process died, followers ask for votes within this window, spread by rank.
    public var evidenceWindow: TimeSpan = .milliseconds(10)
    /// How long a leader that has nothing else to send waits before it tells the followers what was committed.
    public var commitNotice: TimeSpan = .milliseconds(1)
    /// Most bytes (see ``LogEntry/cost``) and entries of one AppendEntries message; one entry is always allowed.
    public var maxAppendBytes = 256 << 10
    public var maxAppendEntries = 4_096
    /// The window of messages that a leader sends to one follower ahead of its acknowledgements.
    public var maxInflightMessages = 256
    public var maxInflightBytes = 8 << 20
    /// Proposals over this many uncommitted bytes are refused: a leader without a quorum must not grow without bound.
    public var maxUncommittedBytes = 64 << 20
    /// Reads that wait for confirmation of leadership.
    public var maxPendingReads = 65_536
    /// How long a leader waits for a follower's answer to a chunk of a snapshot before it sends that chunk again.
    public var snapshotRetry: TimeSpan = .seconds(2)
    /// Entries kept behind a snapshot, so that a follower that is a little behind needs no snapshot.
    public var trailingEntries = 16_384
    public var trailingBytes = 8 << 20

    public init() {}

    /// A leader whose own sync has been outstanding this long hands over: its disk hangs (etcd-io/etcd#15247,
    /// hashicorp/raft#666).
    public var diskStallLimit: TimeSpan { max(.seconds(1), electionTimeoutMax * 4) }
}
