import Model

// What goes into a `Raft` and what comes out. The order contract is written down at `RaftEffect`.

/// An event for ``Raft/handle(_:now:)``.
public enum RaftInput: Sendable {
    /// The moment ``Raft/nextDeadline`` has come. Harmless if early.
    case timer
    case message(from: NodeID, RaftMessage)
    /// Every persist request up to and including this ticket is on stable storage.
    case persisted(ticket: UInt64)
    /// The disk does not take writes any more (a sync failed). Final: the node leads, votes and acknowledges no more.
    case storageFailed
    /// Proof that the peer's process is gone: its connection ended or is refused. Never a mere silence.
    case peerProcessDied(NodeID)
    /// Hand leadership to this voter, or to the most advanced one.
    case transfer(to: NodeID?)
    /// A linearizable read; answered by `readReady` or `readFailed` with this context. Leaders only: a follower's caller
    /// forwards the request.
    case readIndex(context: UInt64)
    /// The chunk of `storeSnapshotChunk` is written; `nextOffset` bytes are there.
    case snapshotChunkStored(snapshot: LogPosition, nextOffset: UInt64)
    /// The last chunk came, the whole snapshot checked out and is on stable storage under its name.
    case snapshotInstalled(SnapshotMetadata)
    /// The received snapshot did not check out or could not be stored; it will be sent again from the beginning.
    case snapshotRejected(snapshot: LogPosition)
    /// A `sendSnapshot` could not be carried out (the file is gone, or the disk failed).
    case snapshotSendFailed(to: NodeID)
}

/// What the driver has to do. ``Raft/takeEffects()`` returns them in order.
///
/// **Order contract.** No `send` depends on a `persist` that has not been acknowledged by `.persisted`: the core holds such
/// messages back itself. So a driver may send at once and write in parallel. It must
/// 1. carry out `persist` requests in the order of their tickets, each one wholly or not at all, and acknowledge only what
///    is synced (several may be written as one batch with one sync, and acknowledged by the last ticket);
/// 2. hand `committed` and `restoreSnapshot` to the state machine in the order given;
/// 3. keep the order of messages to one peer if it can; loss, delay, duplication and reordering cost time, never safety.
public enum RaftEffect: Sendable {
    case persist(PersistRequest)
    case send(to: NodeID, RaftMessage)
    /// Newly committed entries of all kinds, contiguous, each exactly once per run of the process, starting after the
    /// snapshot that the node started from.
    case committed([LogEntry])
    /// These reads may be answered from a state that has applied `index`.
    case readReady(contexts: [UInt64], index: UInt64)
    /// These reads have to be asked again, of the present leader.
    case readFailed(contexts: [UInt64])
    case leaderChanged(NodeID?, term: UInt64)
    case becameLeader(term: UInt64)
    case steppedDown(term: UInt64, reason: StepDownReason)
    /// A transfer did not come about in time; the node leads on.
    case transferFailed(to: NodeID)
    /// The configuration in force: appended (not yet committed), or rolled back.
    case configurationChanged(RaftConfiguration, index: UInt64)
    /// Read the snapshot's image at `offset` and send it as ``InstallSnapshot`` with this term.
    case sendSnapshot(SnapshotSend)
    /// Write the chunk to the incoming snapshot (offset 0 starts it anew), then say `.snapshotChunkStored`, or after the
    /// last chunk `.snapshotInstalled` or `.snapshotRejected`.
    case storeSnapshotChunk(InstallSnapshot)
    /// Replace the state machine's state by this snapshot, which is stored.
    case restoreSnapshot(SnapshotMetadata)
    /// What the damaged disk had lost is here again, from other nodes: this node votes and may lead from now on. `through` is
    /// the end of its log. Word for people; the journal is told by ``PersistRequest/recovered``.
    case recovered(through: LogPosition)
}

public enum StepDownReason: Hashable, Sendable {
    case higherTerm
    /// No majority answered within an election time-out.
    case lostQuorum
    /// This node's own disk did not finish a sync in time.
    case diskStalled
    case storageFailed
    /// The configuration that removes this node is committed.
    case removed
}

/// One step towards stable storage. The parts apply in the order: reset, truncate, append; then compaction.
public struct PersistRequest: Hashable, Sendable {
    /// Ascending by one.
    public var ticket: UInt64
    /// Term and vote, if they changed.
    public var hardState: HardState?
    /// Forget the whole log; it goes on after this position (a snapshot took its place).
    public var reset: LogPosition?
    /// Remove the entries from this index on, before appending.
    public var truncateFrom: UInt64?
    public var entries: [LogEntry]
    /// Entries up to here may be discarded when convenient; a stored snapshot covers them.
    public var compactThrough: UInt64?
    /// The commit index now: a hint to store along, never worth a sync of its own.
    public var commit: UInt64
    /// With this request the log has everything that the node may have acknowledged before its disk was damaged: when the
    /// request is durable, ``LogRecovery`` may be forgotten and what was kept of the damaged files removed.
    public var recovered: Bool

    public init(
        ticket: UInt64, hardState: HardState? = nil, reset: LogPosition? = nil, truncateFrom: UInt64? = nil,
        entries: [LogEntry] = [], compactThrough: UInt64? = nil, commit: UInt64 = 0, recovered: Bool = false
    ) {
        self.ticket = ticket
        self.hardState = hardState
        self.reset = reset
        self.truncateFrom = truncateFrom
        self.entries = entries
        self.compactThrough = compactThrough
        self.commit = commit
        self.recovered = recovered
    }

    /// What a founding member writes before its first start.
    public static func founding(_ recovered: RecoveredLog) -> PersistRequest {
        PersistRequest(ticket: 0, hardState: recovered.hardState, entries: recovered.entries)
    }
}

/// The next piece of a snapshot that a follower needs.
public struct SnapshotSend: Hashable, Sendable {
    public var to: NodeID
    public var term: UInt64
    public var metadata: SnapshotMetadata
    /// In bytes of the snapshot's image.
    public var offset: UInt64
}

/// Why a proposal was not taken. Nothing has changed.
public enum ProposeError: Error, Hashable, Sendable, CustomStringConvertible {
    case notLeader(hint: NodeID?)
    /// Leadership is being handed to this node.
    case transferring(to: NodeID)
    /// Too many bytes wait to be committed; try again later.
    case overloaded(uncommittedBytes: Int, limit: Int)
    case tooLarge(bytes: Int, limit: Int)
    case empty
    /// The previous configuration change, or the first entry of this leader's term, is not committed yet.
    case configurationInFlight
    case invalidConfiguration(String)

    public var description: String {
        switch self {
        case .notLeader(let hint): hint.map { "not the leader; it is \($0)" } ?? "not the leader, and none is known"
        case .transferring(let to): "leadership is being handed to \(to)"
        case .overloaded(let bytes, let limit): "\(bytes) bytes wait to be committed, the limit is \(limit)"
        case .tooLarge(let bytes, let limit): "a command of \(bytes) bytes is over the limit of \(limit)"
        case .empty: "nothing to propose"
        case .configurationInFlight: "an earlier configuration change is not committed yet"
        case .invalidConfiguration(let why): "invalid configuration: \(why)"
        }
    }
}

/// A message that can not come from a correct peer. It was ignored; the node's state has not changed by it. Worth an error
/// line in the log: it means a bug, a mixed-up identity, or a peer that lost its disk.
public enum RaftViolation: Error, Hashable, Sendable, CustomStringConvertible {
    case twoLeaders(term: UInt64, other: NodeID)
    case conflictsWithCommitted(index: UInt64, from: NodeID)
    case commitBeyondLog(commit: UInt64, last: UInt64, from: NodeID)
    case matchBeyondLog(match: UInt64, last: UInt64, from: NodeID)
    case badEntries(from: NodeID, what: String)
    case unknownTicket(UInt64)

    public var description: String {
        switch self {
        case .twoLeaders(let term, let other): "\(other) also claims to lead term \(term)"
        case .conflictsWithCommitted(let index, let from):
            "\(from) sent an entry that conflicts with committed entry \(index)"
        case .commitBeyondLog(let commit, let last, let from):
            "\(from) says that entry \(commit) is committed and held here, but the log ends at \(last)"
        case .matchBeyondLog(let match, let last, let from):
            "\(from) claims entry \(match), but the log ends at \(last)"
        case .badEntries(let from, let what): "\(from) sent entries that are not a log: \(what)"
        case .unknownTicket(let ticket): "persist ticket \(ticket) was never given out"
        }
    }
}
