import Model

/// One member of a Raft group as a step function: events and the time go in, effects come out. It has no clock, no disk, no
/// network and no thread; a driver feeds it (see ``RaftInput``) and carries out what it asks (see ``RaftEffect``, which states
/// the order contract). After a burst of inputs the driver calls ``takeEffects()`` once: that is where proposals become
/// batches, so a driver that handles a whole turn of its loop first gets group commit without timers.
///
/// Literature: Ongaro and Ousterhout, "In search of an understandable consensus algorithm" (2014); Ongaro, "Consensus:
/// bridging theory and practice" (2014): pre-vote 9.6, check-quorum 6.2, reads 6.4, transfer 3.10, membership 4,
/// the leader's disk in parallel 10.2.1.
///
///     follower ──silence, or proof of the leader's death──▶ preCandidate ──majority would vote──▶ candidate
///        ▲                                                        │                                  │ majority votes
///        └──────────── a leader or a higher term ─────────────────┴──────────────────────────────── leader
public struct Raft: Sendable {
    public enum Role: Hashable, Sendable, CaseIterable {
        case follower, preCandidate, candidate, leader
    }

    // MARK: What the outside may see

    public let id: NodeID
    public let options: RaftOptions
    public internal(set) var role: Role = .follower
    public internal(set) var term: UInt64
    public internal(set) var vote: NodeID?
    public internal(set) var leader: NodeID?
    /// Highest entry known to be committed.
    public internal(set) var commitIndex: UInt64
    /// The newest snapshot that is stored here.
    public internal(set) var snapshot: SnapshotMetadata
    /// Highest entry of this node's own log that is on stable storage.
    public internal(set) var durableIndex: UInt64
    public var lastIndex: UInt64 { log.lastIndex }
    public var lastPosition: LogPosition { log.last }
    /// The entry before the first one in memory.
    public var firstRetained: LogPosition { log.base }
    public var logBytes: Int { log.bytes }
    /// The configuration in force: the latest in the log, committed or not.
    public var configuration: RaftConfiguration { configurations[configurations.count - 1].configuration }
    public var isVoter: Bool { configuration.isVoter(id) }
    public var isLeader: Bool { role == .leader }
    /// True for a leader that has committed an entry of its own term: it knows what is committed, and may serve.
    public var isReady: Bool { role == .leader && log.term(at: commitIndex) == term }
    public var transferTarget: NodeID? { transfer?.to }
    /// Not nil while this node has not made good for what its damaged disk lost: it follows, but neither leads nor votes as
    /// others do (see `Raft+Recovery.swift`).
    public internal(set) var recovery: LogRecovery?

    // MARK: Inside

    struct ConfigurationPoint: Hashable, Sendable {
        var index: UInt64
        var configuration: RaftConfiguration
    }

    struct Outstanding: Sendable {
        var ticket: UInt64
        /// What will be durable of the present log when this ticket is.
        var lastIndex: UInt64
        var since: MonotonicTime
    }

    struct Held: Sendable {
        var ticket: UInt64
        var to: NodeID
        var message: RaftMessage
    }

    struct Transfer: Sendable {
        var to: NodeID
        var deadline: MonotonicTime
        var isSent: Bool
    }

    struct ReadRound: Sendable {
        var round: UInt64
        var index: UInt64
        var contexts: [UInt64]
    }

    struct IncomingSnapshot: Sendable {
        var metadata: SnapshotMetadata
        var totalBytes: UInt64
        var checksum: UInt32
        var nextOffset: UInt64
        var isStoring: Bool
    }

    var generator: SeededGenerator
    var now: MonotonicTime
    var log: RaftLog
    /// Ascending; the first is the snapshot's. Those of uncommitted entries go when their entries do.
    var configurations: [ConfigurationPoint]
    var effects: [RaftEffect] = []

    // Persistence: see Raft+Persistence.
    var hardStateChanged = false
    var pendingReset: LogPosition?
    var pendingTruncate: UInt64?
    var pendingCompaction: UInt64?
    /// Entries up to here were handed to a persist request (or were there at the start).
    var requestedIndex: UInt64
    var lastTicket: UInt64 = 0
    var outstanding: [Outstanding] = []
    var held: [Held] = []
    var storageFailed = false

    // After damage: see Raft+Recovery.
    /// This run began with damage: other nodes may remember acknowledgements that the log does not stand for.
    let isSalvaged: Bool
    /// How far the log is known to equal that of the leader of `agreedTerm`, by this run's own comparison.
    var agreedTerm: UInt64 = 0
    var agreedIndex: UInt64 = 0
    var inquiryNonce: UInt64 = 0
    /// The voters that told their term, the highest told, and the voters they told of.
    var termsToldBy: [NodeID] = []
    var votersTold: [NodeID] = []
    var highestTermTold: UInt64 = 0
    var pendingRecovered = false

    /// Entries up to here were given out as committed.
    var deliveredIndex: UInt64

    // Followers and candidates.
    var electionTimeout: TimeSpan = .zero
    var electionDeadline: MonotonicTime
    var lastLeaderContact: MonotonicTime?
    /// The leader whose process is known to have died.
    var deadLeader: NodeID?
    /// Elections that may still be tried with short time-outs after proof of the leader's death.
    var fastAttempts = 0
    /// When a voter that has just started asks all others whether anybody leads; `.distantFuture` once it knows more.
    var firstQuestionDue: MonotonicTime = .distantFuture
    /// Whether late wake-ups already earned a grace since the last word of a leader.
    var stallGraceUsed = false
    var votesFor: [NodeID] = []
    /// The last question of each peer that the leader's life alone spoke against.
    var deferredPreVotes: [(from: NodeID, request: VoteRequest, at: MonotonicTime)] = []
    var incoming: IncomingSnapshot?
    /// How far the log of the leader of that term is on the leader's own disk, as it says.
    var leadersCopy = LogPosition.zero

    // Leaders.
    var peers: [Progress] = []
    var heartbeatDue: MonotonicTime = .distantFuture
    /// When followers that lag behind the commit index are to be told.
    var commitNoticeDue: MonotonicTime = .distantFuture
    var quorumGraceUntil: MonotonicTime = .zero
    /// How far this leader has told anyone that its own log is durable.
    var announcedIndex: UInt64 = 0
    var readRound: UInt64 = 0
    var activeReads: ReadRound?
    var waitingReads: [UInt64] = []
    var transfer: Transfer?
    var uncommittedBytes = 0

    /// `recovered` comes from the journal. Precondition: its entries are contiguous from its base and reach the snapshot.
    public init(
        id: NodeID, options: RaftOptions = RaftOptions(), recovered: RecoveredLog, generator: SeededGenerator,
        now: MonotonicTime
    ) {
        self.id = id
        self.options = options
        self.generator = generator
        self.now = now
        let log = RaftLog(base: recovered.base, entries: recovered.entries)
        precondition(log.base.index <= recovered.snapshot.index, "no gap between snapshot and log")
        precondition(log.contains(recovered.snapshot.position), "the log reaches the snapshot")
        for (offset, entry) in recovered.entries.enumerated() {
            precondition(entry.index == recovered.base.index + 1 + UInt64(offset), "recovered entries are contiguous")
        }
        self.log = log
        snapshot = recovered.snapshot
        configurations = [
            ConfigurationPoint(index: recovered.snapshot.index, configuration: recovered.snapshot.configuration)
        ]
        for entry in recovered.entries where entry.kind == .configuration && entry.index > recovered.snapshot.index {
            // What is in the journal was checked when it was appended.
            if let configuration = try? RaftConfiguration(decoding: entry.payload) {
                configurations.append(ConfigurationPoint(index: entry.index, configuration: configuration))
            }
        }
        // An entry of a term proves that this node was in that term, and a vote given in it would have been stored.
        let lastTerm = log.last.term
        term = max(recovered.hardState.term, lastTerm)
        vote = recovered.hardState.term >= lastTerm ? recovered.hardState.vote : nil
        hardStateChanged = term != recovered.hardState.term
        commitIndex = max(recovered.snapshot.index, min(recovered.hardState.commit, log.lastIndex))
        deliveredIndex = recovered.snapshot.index
        durableIndex = log.lastIndex
        requestedIndex = log.lastIndex
        electionDeadline = .distantFuture
        recovery = recovered.recovery
        isSalvaged = recovered.recovery != nil
        resetElectionTimer()
        if isSalvaged { beginRecovery() }
        beginFirstQuestion()
    }

    /// Feeds one event. After a thrown ``RaftViolation`` the event is ignored and the state is sound; it should be reported.
    public mutating func handle(_ input: RaftInput, now: MonotonicTime) throws(RaftViolation) {
        self.now = max(self.now, now)
        switch input {
        case .timer: tick()
        case .message(let from, let message): try receive(message, from: from)
        case .persisted(let ticket): try persisted(through: ticket)
        case .storageFailed: failStorage()
        case .peerProcessDied(let peer): learnDeath(of: peer)
        case .transfer(let to): startTransfer(to: to)
        case .readIndex(let context): read(context)
        case .snapshotChunkStored(let snapshot, let nextOffset): snapshotChunkStored(snapshot, nextOffset: nextOffset)
        case .snapshotInstalled(let metadata): snapshotInstalled(metadata)
        case .snapshotRejected(let snapshot): snapshotRejected(snapshot)
        case .snapshotSendFailed(let to): snapshotSendFailed(to: to)
        }
    }

    /// Appends commands to the leader's log; they get consecutive indexes. Their fate is told by `committed` (compare the
    /// terms: an entry with another term at the index means that these were lost).
    public mutating func propose(_ payloads: [[UInt8]], now: MonotonicTime) -> Result<ClosedRange<UInt64>, ProposeError>
    {
        self.now = max(self.now, now)
        if let refusal = proposalRefusal { return .failure(refusal) }
        guard !payloads.isEmpty else { return .failure(.empty) }
        var cost = 0
        for payload in payloads {
            guard payload.count <= Limits.commandBytes else {
                return .failure(.tooLarge(bytes: payload.count, limit: Limits.commandBytes))
            }
            cost += payload.count + LogEntry.overhead
        }
        // One proposal is always taken when nothing waits, however small the limit.
        guard uncommittedBytes == 0 || uncommittedBytes + cost <= options.maxUncommittedBytes else {
            return .failure(.overloaded(uncommittedBytes: uncommittedBytes, limit: options.maxUncommittedBytes))
        }
        let first = log.lastIndex + 1
        for payload in payloads { appendOwn(.command, payload) }
        return .success(first...log.lastIndex)
    }

    var proposalRefusal: ProposeError? {
        guard role == .leader else { return .notLeader(hint: leader) }
        if let transfer { return .transferring(to: transfer.to) }
        return nil
    }

    /// What has to be done since the last call. Builds the batches first: reads' heartbeats, AppendEntries, one persist
    /// request, newly committed entries.
    public mutating func takeEffects() -> [RaftEffect] {
        if role == .leader {
            startReadRound()
            sendAppends()
            announceOwnCopy()
        }
        requestPersistence()
        deliverCommitted()
        defer { effects.removeAll(keepingCapacity: true) }
        return effects
    }

    /// When `.timer` is wanted next; ``MonotonicTime/distantFuture`` if never.
    public var nextDeadline: MonotonicTime {
        if storageFailed { return .distantFuture }
        return min(protocolDeadline, role == .leader ? commitNoticeDue : firstQuestionDue)
    }

    /// The timers of the protocol itself, which a stalled process finds expired.
    private var protocolDeadline: MonotonicTime {
        switch role {
        case .leader: min(heartbeatDue, transfer?.deadline ?? .distantFuture)
        case .follower, .preCandidate, .candidate: electionDeadline
        }
    }

    private mutating func deliverCommitted() {
        guard commitIndex > deliveredIndex else { return }
        effects.append(.committed(log.slice(deliveredIndex + 1, through: commitIndex)))
        deliveredIndex = commitIndex
    }

    // MARK: Timer

    private mutating func tick() {
        guard !storageFailed else { return }
        graceForOwnStall()
        switch role {
        case .leader: leaderTick()
        case .follower, .preCandidate, .candidate:
            if now >= electionDeadline { electionTimedOut() } else if now >= firstQuestionDue { askFirstQuestion() }
        }
    }

    /// A process that was not scheduled for a while finds its timers expired before the messages that waited for it. It
    /// blames itself first and waits two heartbeats more; once, until it hears a leader again.
    private mutating func graceForOwnStall() {
        let due = protocolDeadline
        guard !stallGraceUsed, due != .distantFuture, now > due + options.heartbeat * 2 else { return }
        stallGraceUsed = true
        let grace = now + options.heartbeat * 2
        electionDeadline = max(electionDeadline, grace)
        quorumGraceUntil = grace
    }

    // MARK: Messages

    private mutating func receive(_ message: RaftMessage, from: NodeID) throws(RaftViolation) {
        guard from != id, !storageFailed else { return }
        if isTermLost {
            receiveWithoutTerm(message, from: from)
            return
        }
        switch message {
        case .preVote(let request): receivePreVote(request, from: from)
        case .vote(let request): receiveVote(request, from: from)
        case .preVoteResponse(let response): receivePreVoteResponse(response, from: from)
        case .voteResponse(let response): receiveVoteResponse(response, from: from)
        case .append(let append):
            guard try hearLeader(from, term: append.term) else {
                sendNow(
                    from,
                    .appendResponse(
                        AppendResponse(term: term, outcome: .rejected(rejected: append.previous.index, hint: log.last)))
                )
                return
            }
            try receiveAppend(append, from: from)
        case .heartbeat(let heartbeat):
            guard try hearLeader(from, term: heartbeat.term) else {
                sendNow(from, .heartbeatResponse(HeartbeatResponse(term: term, round: 0)))
                return
            }
            if heartbeat.round != 0 {
                sendNow(from, .heartbeatResponse(HeartbeatResponse(term: term, round: heartbeat.round)))
            }
            if isSalvaged { return receiveCommitAfterDamage(heartbeat.commit, from: from) }
            guard heartbeat.commit <= log.lastIndex else {
                throw .commitBeyondLog(commit: heartbeat.commit, last: log.lastIndex, from: from)
            }
            commitIndex = max(commitIndex, heartbeat.commit)
            learnLeadersCopy(heartbeat.durable)
        case .installSnapshot(let chunk):
            guard try hearLeader(from, term: chunk.term) else {
                sendNow(
                    from, .installSnapshotResponse(InstallSnapshotResponse(term: term, snapshot: .zero, nextOffset: 0)))
                return
            }
            receiveSnapshotChunk(chunk, from: from)
        case .timeoutNow(let request):
            guard try hearLeader(from, term: request.term) else { return }
            if canCampaign { startElection(isTransfer: true) }
        case .appendResponse(let response):
            guard hearFollower(from, term: response.term), let i = peerIndex(from) else { return }
            try receiveAppendResponse(response, peer: i)
        case .heartbeatResponse(let response):
            guard hearFollower(from, term: response.term), let i = peerIndex(from) else { return }
            receiveHeartbeatResponse(response, peer: i)
        case .installSnapshotResponse(let response):
            guard hearFollower(from, term: response.term), let i = peerIndex(from) else { return }
            receiveSnapshotResponse(response, peer: i)
        case .inquiry(let inquiry): answer(inquiry, from: from)
        case .inquiryResponse(let response): receiveInquiryResponse(response, from: from)
        }
    }

    /// A leader's message of this or a newer term makes this node its follower. False for an older term: the sender is to be
    /// told, else a deposed leader would never know.
    private mutating func hearLeader(_ from: NodeID, term messageTerm: UInt64) throws(RaftViolation) -> Bool {
        if messageTerm < term { return false }
        if messageTerm == term && role == .leader { throw .twoLeaders(term: term, other: from) }
        if messageTerm == term, let leader, leader != from { throw .twoLeaders(term: term, other: from) }
        if messageTerm > term || role != .follower { becomeFollower(term: messageTerm, leader: from) }
        setLeader(from)
        lastLeaderContact = now
        firstQuestionDue = .distantFuture
        deadLeader = nil
        fastAttempts = 0
        stallGraceUsed = false
        electionDeadline = now + electionTimeout
        return true
    }

    /// A response counts for a leader of its very term; one of a newer term deposes.
    private mutating func hearFollower(_ from: NodeID, term messageTerm: UInt64) -> Bool {
        if messageTerm > term {
            becomeFollower(term: messageTerm, leader: nil)
            return false
        }
        guard messageTerm == term, role == .leader else { return false }
        if let i = peerIndex(from) { peers[i].lastContact = now }
        return true
    }

    // MARK: Roles

    mutating func becomeFollower(term newTerm: UInt64, leader newLeader: NodeID?, reason: StepDownReason = .higherTerm)
    {
        if newTerm > term {
            term = newTerm
            vote = nil
            hardStateChanged = true
        }
        if role == .leader {
            role = .follower
            leaveLeadership()
            effects.append(.steppedDown(term: newTerm, reason: reason))
            resetElectionTimer()
        }
        role = .follower
        votesFor = []
        setLeader(newLeader)
    }

    mutating func setLeader(_ newLeader: NodeID?) {
        guard leader != newLeader else { return }
        leader = newLeader
        effects.append(.leaderChanged(newLeader, term: term))
    }

    mutating func failStorage() {
        guard !storageFailed else { return }
        if role == .leader {
            handOver()
            becomeFollower(term: term, leader: nil, reason: .storageFailed)
        }
        storageFailed = true
        role = .follower
        held = []
        setLeader(nil)
    }
}
