import Consensus
import Model

// Options, outcomes and errors of the journal.

public struct JournalOptions: Hashable, Sendable {
    /// Size of a log segment. A larger batch gets a segment of its own size.
    public var segmentBytes: Int
    /// Prepared segments kept ready.
    public var spareSegments: Int
    /// How much ``Journal/maintain()`` writes in one call.
    public var maintenanceBytes: Int
    /// Stamped in every file; a file of another cluster or node is refused.
    public var identity: JournalIdentity

    public init(
        segmentBytes: Int = 16 << 20, spareSegments: Int = 1, maintenanceBytes: Int = 128 << 10,
        identity: JournalIdentity = JournalIdentity()
    ) {
        precondition(segmentBytes >= 4_096 && segmentBytes % 512 == 0, "a segment is whole sectors")
        precondition(spareSegments >= 1, "the next segment is prepared ahead")
        self.segmentBytes = segmentBytes
        self.spareSegments = spareSegments
        self.maintenanceBytes = max(4_096, maintenanceBytes / 512 * 512)
        self.identity = identity
    }
}

/// Whose journal it is.
public struct JournalIdentity: Hashable, Sendable {
    public var cluster: UInt64
    public var node: NodeID

    public init(cluster: UInt64 = 0, node: NodeID = NodeID(high: 0, low: 0)) {
        self.cluster = cluster
        self.node = node
    }
}

/// Why a journal call failed, and whether the journal can still be used.
public enum JournalError: Error, Hashable, Sendable, CustomStringConvertible {
    /// The disk is full. Nothing of the batch counts; the journal is as before and may be tried again.
    case noSpace(DiskError)
    /// A write or sync failed: what is on disk is unknown, for a second sync would lie (LWN, "PostgreSQL's fsync surprise").
    /// This journal throws ``fenced`` from now on; the process has to stop and open it anew.
    case failed(DiskError)
    /// An earlier failure fenced the journal.
    case fenced(DiskError)
    /// Opened with damage: it can be read, not written.
    case damaged
    /// The batch does not continue the log: a bug of the caller. Nothing was written.
    case notContiguous(expected: UInt64, found: UInt64)
    case tooLarge(bytes: Int, limit: Int)
    /// The files can not be used at all: another version, another node's, or unreadable.
    case unusable(file: String, why: String)

    public var description: String {
        switch self {
        case .noSpace(let error): "journal: \(error)"
        case .failed(let error): "journal: \(error); no further writes are accepted"
        case .fenced(let error): "journal: fenced after an earlier error: \(error)"
        case .damaged: "journal: opened read-only because it is damaged"
        case .notContiguous(let expected, let found): "journal: entry \(found) does not follow \(expected - 1)"
        case .tooLarge(let bytes, let limit): "journal: a batch of \(bytes) bytes is over the limit of \(limit)"
        case .unusable(let file, let why): "journal: \(file): \(why)"
        }
    }
}

/// What was found when the journal was opened.
public struct RecoveredJournal: Sendable {
    public enum Outcome: Hashable, Sendable {
        /// No files: a first start.
        case fresh
        case clean
        /// The last batch before a crash was incomplete. It had not been acknowledged and was removed.
        case tornTail(TornTail)
        /// Something that may have been acknowledged is unreadable or missing. `log.entries` is what precedes the damage.
        /// Unless it was opened for salvage the journal refuses writes: the node must not vote, lead or acknowledge on
        /// what is left.
        case damaged([Damage])
    }

    public var outcome: Outcome
    /// For `Raft.init`, already matched with the snapshot that was passed to ``Journal/open(disk:options:snapshot:)``.
    public var log: RecoveredLog
    /// The last readable entry anywhere, also behind damage.
    public var lastReadable: LogPosition
    public var report: JournalReport
    /// Damaged, and opened for salvage: it takes writes, and `log.recovery` says what the node owes.
    public internal(set) var isSalvaged = false
    /// The newest configuration that is readable anywhere, also behind damage; empty if there is none.
    public var configuration = RaftConfiguration()

    /// True if damage took something that only other members can bring back, and there is no other voter.
    public func isBeyondRepair(for node: NodeID) -> Bool {
        guard let recovery = log.recovery, configuration.voters == [node], !configuration.isJoint else { return false }
        return log.last < recovery.floor
    }

    /// Not only the hard state.
    var isLogDamaged: Bool {
        guard case .damaged(let damages) = outcome else { return false }
        return damages.contains { $0.place != .hardState && $0.place != .unfinishedRecovery }
    }

    public var isDamaged: Bool { if case .damaged = outcome { true } else { false } }
}

public struct TornTail: Hashable, Sendable {
    public var segment: String
    /// First byte of the incomplete batch.
    public var offset: Int
}

/// One damaged place.
public struct Damage: Hashable, Sendable, CustomStringConvertible {
    public enum Place: Hashable, Sendable {
        case segment(String, offset: Int)
        /// A segment in the sequence is not there.
        case missingSegment(serial: UInt64)
        case hardState
        /// The log begins after what the snapshot covers.
        case gapBehindSnapshot
        /// Earlier damage, which the other members have not made good for yet.
        case unfinishedRecovery
    }

    public var place: Place
    public var reason: String
    /// First index that may be lost or changed.
    public var firstIndex: UInt64
    /// Last index lost; nil if nothing readable follows.
    public var lastIndex: UInt64?
    /// The lost entry's term, if the header of the only lost record is intact.
    public var term: UInt64?

    public var description: String {
        if let lastIndex, lastIndex < firstIndex, case .segment(let name, let offset) = place {
            return "\(name) at byte \(offset): \(reason); no entry is lost"
        }
        let range =
            lastIndex.map { $0 == firstIndex ? "entry \($0)" : "entries \(firstIndex) to \($0)" }
            ?? "entries from \(firstIndex) on"
        switch place {
        case .segment(let name, let offset): return "\(name) at byte \(offset): \(reason); \(range) lost"
        case .missingSegment(let serial): return "segment \(serial) is missing; \(range) lost"
        case .hardState: return "hard state: \(reason)"
        case .gapBehindSnapshot: return "the log begins after the snapshot; \(range) lost"
        case .unfinishedRecovery: return "earlier damage is not healed yet: \(reason)"
        }
    }
}

/// What `journal verify` prints.
public struct JournalReport: Hashable, Sendable {
    public struct Segment: Hashable, Sendable {
        public var name: String
        public var serial: UInt64
        public var bytes: Int
        /// Bytes in use, header included.
        public var usedBytes: Int
        public var entries: Int
        public var batches: Int
        public var firstIndex: UInt64?
        public var lastIndex: UInt64?
    }

    public var segments: [Segment] = []
    public var spares: [String] = []
    /// Damaged segments that are kept until what they held is here again.
    public var setAside: [String] = []
    /// What the node owes since its journal was damaged.
    public var recovery: LogRecovery?
    public var hardState: HardState?
    public var outcome: RecoveredJournal.Outcome = .fresh
    public var base: LogPosition = .zero
    public var last: LogPosition = .zero

    public init() {}
}

/// Where the journal stands after a write.
public struct JournalPosition: Hashable, Sendable {
    public var segment: UInt64
    public var offset: Int
    public var last: LogPosition
}
