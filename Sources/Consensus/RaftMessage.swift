import Model

// The messages of Raft (figure 2 of the paper, and pre-vote, section 9.6 of the thesis). Heartbeats are messages of their own
// and carry no entries, so that they never wait behind a disk; AppendEntries is pipelined.

public enum RaftMessage: Hashable, Sendable {
    /// Would you vote for me, if I asked? Changes no state anywhere.
    case preVote(VoteRequest)
    case preVoteResponse(VoteResponse)
    case vote(VoteRequest)
    case voteResponse(VoteResponse)
    case append(AppendEntries)
    case appendResponse(AppendResponse)
    case heartbeat(Heartbeat)
    case heartbeatResponse(HeartbeatResponse)
    case installSnapshot(InstallSnapshot)
    case installSnapshotResponse(InstallSnapshotResponse)
    /// Ask for votes at once: leadership is handed to you.
    case timeoutNow(TimeoutNow)
    /// Asked by a node whose disk was damaged; changes no state at the receiver.
    case inquiry(Inquiry)
    case inquiryResponse(InquiryResponse)
}

public struct VoteRequest: Hashable, Sendable {
    /// The term in which votes are asked for; in a pre-vote, the one in which they would be.
    public var term: UInt64
    /// The candidate's last entry.
    public var last: LogPosition
    /// The leader itself asked for this election, so that hearing from it is no reason to refuse.
    public var isTransfer: Bool

    public init(term: UInt64, last: LogPosition, isTransfer: Bool) {
        self.term = term
        self.last = last
        self.isTransfer = isTransfer
    }
}

public struct VoteResponse: Hashable, Sendable {
    /// Granted: the request's term. Refused: the voter's own.
    public var term: UInt64
    public var granted: Bool

    public init(term: UInt64, granted: Bool) {
        self.term = term
        self.granted = granted
    }
}

public struct AppendEntries: Hashable, Sendable {
    public var term: UInt64
    /// The entry before the first of `entries`.
    public var previous: LogPosition
    public var commit: UInt64
    /// The leader's log is on its own disk through here; 0 if it does not say.
    public var durable: UInt64
    public var entries: [LogEntry]

    public init(term: UInt64, previous: LogPosition, commit: UInt64, durable: UInt64 = 0, entries: [LogEntry]) {
        self.term = term
        self.previous = previous
        self.commit = commit
        self.durable = durable
        self.entries = entries
    }
}

public struct AppendResponse: Hashable, Sendable {
    public enum Outcome: Hashable, Sendable {
        /// The follower's log equals the leader's up to here, on stable storage.
        case accepted(match: UInt64)
        /// `previous` of the request (its index: `rejected`) is not in the follower's log. `hint` is the last entry that
        /// may be common: at most `rejected`, of a term at most that of `previous` (section 5.3's optimization).
        case rejected(rejected: UInt64, hint: LogPosition)
        /// This node's disk was damaged, and it has not yet compared its log with this leader's: whatever it acknowledged
        /// before may be gone. `last` is the last entry that may be common.
        case shortened(last: LogPosition)
    }

    public var term: UInt64
    public var outcome: Outcome

    public init(term: UInt64, outcome: Outcome) {
        self.term = term
        self.outcome = outcome
    }
}

public struct Heartbeat: Hashable, Sendable {
    public var term: UInt64
    /// Committed, and known to be in the receiver's log.
    public var commit: UInt64
    /// The leader's log is on its own disk through here; 0 if it does not say.
    public var durable: UInt64
    /// Echoed by the receiver: confirms leadership for reads (thesis 6.4). 0: no answer is wanted.
    public var round: UInt64

    public init(term: UInt64, commit: UInt64, durable: UInt64 = 0, round: UInt64) {
        self.term = term
        self.commit = commit
        self.durable = durable
        self.round = round
    }
}

public struct HeartbeatResponse: Hashable, Sendable {
    public var term: UInt64
    public var round: UInt64

    public init(term: UInt64, round: UInt64) {
        self.term = term
        self.round = round
    }
}

/// A piece of a snapshot's image: the very bytes of the leader's snapshot file, which carry their own checksums.
public struct InstallSnapshot: Hashable, Sendable {
    public var term: UInt64
    public var metadata: SnapshotMetadata
    /// Length and checksum of the whole image: a transfer resumes only into the same image.
    public var totalBytes: UInt64
    public var checksum: UInt32
    public var offset: UInt64
    public var data: [UInt8]

    public init(
        term: UInt64, metadata: SnapshotMetadata, totalBytes: UInt64, checksum: UInt32, offset: UInt64, data: [UInt8]
    ) {
        self.term = term
        self.metadata = metadata
        self.totalBytes = totalBytes
        self.checksum = checksum
        self.offset = offset
        self.data = data
    }

    public var isLast: Bool { offset + UInt64(data.count) >= totalBytes }
}

public struct InstallSnapshotResponse: Hashable, Sendable {
    public var term: UInt64
    public var snapshot: LogPosition
    /// Send on from here.
    public var nextOffset: UInt64

    public init(term: UInt64, snapshot: LogPosition, nextOffset: UInt64) {
        self.term = term
        self.snapshot = snapshot
        self.nextOffset = nextOffset
    }
}

public struct TimeoutNow: Hashable, Sendable {
    public var term: UInt64

    public init(term: UInt64) { self.term = term }
}

/// What is your term, who votes, and if you lead, where does your log end?
public struct Inquiry: Hashable, Sendable {
    public var term: UInt64
    /// Drawn at the asker's start and echoed, so that no answer to an earlier run of it counts.
    public var nonce: UInt64

    public init(term: UInt64, nonce: UInt64) {
        self.term = term
        self.nonce = nonce
    }
}

public struct InquiryResponse: Hashable, Sendable {
    /// At least every term in which the sender has asked for votes, voted or acknowledged.
    public var term: UInt64
    public var nonce: UInt64
    /// The last index of the leader of `term`; nil from any other node.
    public var leaderLast: UInt64?
    /// All that vote in the configuration in force at the sender, ascending.
    public var voters: [NodeID]

    public init(term: UInt64, nonce: UInt64, leaderLast: UInt64?, voters: [NodeID]) {
        self.term = term
        self.nonce = nonce
        self.leaderLast = leaderLast
        self.voters = voters
    }
}

extension RaftMessage {
    public var term: UInt64 {
        switch self {
        case .preVote(let m), .vote(let m): m.term
        case .preVoteResponse(let m), .voteResponse(let m): m.term
        case .append(let m): m.term
        case .appendResponse(let m): m.term
        case .heartbeat(let m): m.term
        case .heartbeatResponse(let m): m.term
        case .installSnapshot(let m): m.term
        case .installSnapshotResponse(let m): m.term
        case .timeoutNow(let m): m.term
        case .inquiry(let m): m.term
        case .inquiryResponse(let m): m.term
        }
    }
}
