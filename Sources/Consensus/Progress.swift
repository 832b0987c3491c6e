import Model

// What a leader knows of one peer. The states, after etcd's tracker:
//
//     probe ── accepted ──▶ replicate          one message at a time until the common prefix is found, then a pipeline
//       ▲  ◀── rejected ──────┘ │
//       │                       │ the entry it needs is compacted (from either state)
//       └── installed, failed ── snapshot ◀┘

struct Progress: Sendable {
    enum State: Hashable, Sendable {
        /// Awaiting is the moment when the outstanding probe was sent.
        case probe(awaitingSince: MonotonicTime?)
        case replicate
        case snapshot(SnapshotTransfer)
    }

    struct SnapshotTransfer: Hashable, Sendable {
        var metadata: SnapshotMetadata
        var offset: UInt64
        var sentAt: MonotonicTime
    }

    let id: NodeID
    var state: State = .probe(awaitingSince: nil)
    /// Highest entry known to be durable there and equal to ours.
    var match: UInt64 = 0
    /// Next entry to send.
    var next: UInt64
    /// Highest commit index that was sent along.
    var sentCommit: UInt64 = 0
    /// How far the leader has told this peer that its own log is durable.
    var toldDurable: UInt64 = 0
    /// Last message of any kind in this term. Starts at the beginning of the leadership, as grace.
    var lastContact: MonotonicTime
    /// Last acknowledgement of entries, or the last time that a lost message was looked for.
    var lastProgress: MonotonicTime
    /// Highest heartbeat round answered.
    var ackedRound: UInt64 = 0
    private var inflight: [(last: UInt64, bytes: Int)] = []
    private var inflightHead = 0
    private(set) var inflightBytes = 0

    init(id: NodeID, next: UInt64, now: MonotonicTime) {
        self.id = id
        self.next = next
        lastContact = now
        lastProgress = now
    }

    /// What this peer knows to be committed: it was told, or its disk and the leader's are a majority.
    var knownCommit: UInt64 { max(sentCommit, min(match, toldDurable)) }

    var inflightCount: Int { inflight.count - inflightHead }

    mutating func sent(last: UInt64, bytes: Int) {
        inflight.append((last, bytes))
        inflightBytes += bytes
    }

    private mutating func freeInflight(through match: UInt64) {
        while inflightHead < inflight.count, inflight[inflightHead].last <= match {
            inflightBytes -= inflight[inflightHead].bytes
            inflightHead += 1
        }
        if inflightHead == inflight.count {
            inflight.removeAll(keepingCapacity: true)
            inflightHead = 0
        } else if inflightHead >= 64 {
            inflight.removeFirst(inflightHead)
            inflightHead = 0
        }
    }

    private mutating func clearInflight() {
        inflight.removeAll()
        inflightHead = 0
        inflightBytes = 0
    }

    /// Returns true if the acknowledgement is new.
    mutating func accepted(_ newMatch: UInt64) -> Bool {
        let isNew = newMatch > match
        match = max(match, newMatch)
        next = max(next, match + 1)
        freeInflight(through: match)
        return isNew
    }

    /// The peer lost entries that it had acknowledged: nothing that it said before counts any more.
    mutating func forget() { match = 0 }

    mutating func becomeProbe(next newNext: UInt64) {
        clearInflight()
        state = .probe(awaitingSince: nil)
        next = max(newNext, match + 1)
    }

    mutating func becomeReplicate() {
        clearInflight()
        state = .replicate
        next = match + 1
    }

    mutating func becomeSnapshot(_ metadata: SnapshotMetadata, now: MonotonicTime) {
        clearInflight()
        state = .snapshot(SnapshotTransfer(metadata: metadata, offset: 0, sentAt: now))
    }
}
