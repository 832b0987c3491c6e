import Model
import Wire

// The values that make up a replicated log (Ongaro and Ousterhout, "In search of an understandable consensus algorithm",
// figure 2): entries, positions in the log, what a node must remember across restarts, and what describes a snapshot.

/// One entry of the replicated log. Index and term identify it for ever: two logs that have an entry with the same index
/// and term have the same entries up to there.
public struct LogEntry: Hashable, Sendable {
    public enum Kind: UInt8, Hashable, Sendable, CaseIterable {
        /// The first entry of a leader's term: commits what earlier terms left behind (thesis 6.4).
        case noop = 0
        /// A command for the state machine.
        case command = 1
        /// A ``RaftConfiguration``; in force from the moment it is appended.
        case configuration = 2
    }

    /// Position in the log, from 1.
    public var index: UInt64
    public var term: UInt64
    public var kind: Kind
    public var payload: [UInt8]

    public init(index: UInt64, term: UInt64, kind: Kind, payload: [UInt8]) {
        self.index = index
        self.term = term
        self.kind = kind
        self.payload = payload
    }

    public var position: LogPosition { LogPosition(index: index, term: term) }

    /// What an entry is counted with against byte limits: its payload and a fixed share for its header.
    public var cost: Int { payload.count + LogEntry.overhead }
    public static let overhead = 32
}

/// The identity of an entry. Ordered by term, then index: Raft's "at least as up to date" (section 5.4.1).
public struct LogPosition: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var index: UInt64
    public var term: UInt64

    public init(index: UInt64, term: UInt64) {
        self.index = index
        self.term = term
    }

    /// Before the first entry.
    public static let zero = LogPosition(index: 0, term: 0)

    public static func < (a: Self, b: Self) -> Bool { (a.term, a.index) < (b.term, b.index) }

    public var description: String { "\(index)@\(term)" }
}

/// What must be on stable storage before any message that follows from it leaves the node.
public struct HardState: Hashable, Sendable {
    public var term: UInt64
    /// Whom this node voted for in `term`.
    public var vote: NodeID?
    /// A hint, at most the true commit index: lets a restarted node apply before it hears from a leader. It may lag.
    public var commit: UInt64

    public init(term: UInt64 = 0, vote: NodeID? = nil, commit: UInt64 = 0) {
        self.term = term
        self.vote = vote
        self.commit = commit
    }
}

/// What a snapshot stands for: the state after applying the entry at `index`, and the configuration in force there.
public struct SnapshotMetadata: Hashable, Sendable {
    public var index: UInt64
    public var term: UInt64
    public var configuration: RaftConfiguration

    public init(index: UInt64, term: UInt64, configuration: RaftConfiguration) {
        self.index = index
        self.term = term
        self.configuration = configuration
    }

    /// No snapshot: the empty state before the first entry.
    public static let none = SnapshotMetadata(index: 0, term: 0, configuration: RaftConfiguration())

    public var position: LogPosition { LogPosition(index: index, term: term) }
}

/// What a node finds on its disk when it starts; `Journal` makes it.
public struct RecoveredLog: Sendable {
    public var hardState: HardState
    /// ``SnapshotMetadata/none`` if there is none.
    public var snapshot: SnapshotMetadata
    /// The entry before the first of `entries`; at most `snapshot.index`, for a window of entries is kept behind a snapshot.
    public var base: LogPosition
    /// Contiguous from `base.index + 1`, and reaching at least to `snapshot.index`.
    public var entries: [LogEntry]
    /// Not nil if the disk lost something that this node may have promised.
    public var recovery: LogRecovery?

    public init(
        hardState: HardState = HardState(), snapshot: SnapshotMetadata = .none, base: LogPosition = .zero,
        entries: [LogEntry] = [],
        recovery: LogRecovery? = nil
    ) {
        self.hardState = hardState
        self.snapshot = snapshot
        self.base = base
        self.entries = entries
        self.recovery = recovery
    }

    public var last: LogPosition { entries.last?.position ?? base }

    /// The first state of a founding member: every founder writes the same first entry, the configuration, at index 1 of
    /// term 1, so that later members receive it by ordinary replication. The driver persists it (see ``PersistRequest``)
    /// before it makes the `Raft`; a node that joins starts from an empty `RecoveredLog` instead.
    public static func founding(_ configuration: RaftConfiguration) -> RecoveredLog {
        let first = LogEntry(index: 1, term: 1, kind: .configuration, payload: configuration.encoded)
        return RecoveredLog(hardState: HardState(term: 1, vote: nil, commit: 0), entries: [first])
    }
}

/// What a node knows of promises that it may have given and that its damaged disk does not hold any more. It is kept on disk
/// until the node has made good for it; `Raft+Recovery.swift` says what the node may do meanwhile, and why that is safe.
public struct LogRecovery: Hashable, Sendable {
    /// The *vote floor*: at least the last entry that this node ever acknowledged, in the order of ``LogPosition``.
    ///
    /// Behind damage in the middle of the log, and wherever a mark or a record's header tells it, this is that very entry. If
    /// nothing readable follows the damage, or what does can not be the log's end, the index is ``unknownIndex``: some entry of this
    /// or an earlier term.
    public var floor: LogPosition
    /// Term and vote are lost: this node may have voted in any term.
    public var isTermLost: Bool

    public static let unknownIndex = UInt64.max

    public init(floor: LogPosition, isTermLost: Bool = false) {
        self.floor = floor
        self.isTermLost = isTermLost
    }

    public var isFloorKnown: Bool { floor.index != LogRecovery.unknownIndex }

    /// True if a log that ends with `last` has whatever was acknowledged.
    public func isSettled(by last: LogPosition) -> Bool { !isTermLost && last >= floor }
}
