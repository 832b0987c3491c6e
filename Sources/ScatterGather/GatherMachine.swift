// The plan of one scatter-gather job (Burns and Oppenheimer, "Design patterns for container-based distributed systems",
// 2016) as a state machine: which leaf runs which shard, when it is run again or beside itself, which result counts.
//
//                    ask                      0
//     pending ─────────────────▶ running ───────────▶ done
//        ▲   retry, leaf lost        │ final failure or no attempts left ──▶ failed
//        └───────────────────────────┤ the same after a time-out ─────────▶ timedOut
//                                    └ cancel ──────────────────────────▶ cancelled
//
// Shards are bound late: only a leaf that asks gets one, so a slow leaf never holds more than it runs (Dask binds early and
// blames a dead worker's whole queue, dask/distributed#5234). Exactly one attempt's result is accepted for each shard; what
// else arrives is dropped and counted (Spark lost files where two attempts could commit, SPARK-4879).
import Model

public struct GatherMachine: Sendable {
    public let options: GatherOptions
    public let began: MonotonicTime

    struct Shard: Sendable {
        var state = ShardState.pending
        /// Live attempts.
        var copies: UInt8 = 0
        var attempts: UInt32 = 0
        var failures: UInt16 = 0
        var losses: UInt16 = 0
        /// Where it failed, latest last; at most four.
        var avoid: [Place] = []
    }

    struct Place: Hashable, Sendable {
        var leaf: LeafID
        var node: String
        var until: MonotonicTime
    }

    struct Attempt: Sendable {
        var id: AttemptID
        var shard: Int
        var leaf: LeafID
        var started: MonotonicTime
        var isHedge: Bool
    }

    struct Leaf: Sendable {
        var id: LeafID
        var node: String
        /// Shards that it has asked for and not got.
        var asks = 0
    }

    struct Retry: Sendable {
        var due: MonotonicTime
        var shard: Int
    }

    var shards: [Shard] = []
    /// The first shard that was never given.
    var nextFresh = 0
    /// By due time, then in the order of failure.
    var retries: [Retry] = []
    /// By id, hence by start.
    var attempts: [Attempt] = []
    /// By id.
    var leaves: [Leaf] = []
    /// Leaves with asks, in the order of asking.
    var waiting: [LeafID] = []
    var nextAttempt: UInt64 = 1
    var durations = DurationHistogram()
    var effects: [GatherEffect] = []
    var isOpen = false
    public internal(set) var inputEnded = false
    public internal(set) var state = GatherState.running
    /// Ended because the job's time was over.
    public internal(set) var deadlinePassed = false
    /// Results that came when the shard had one already.
    public internal(set) var duplicates = 0
    /// Exit code of the failed shard of lowest number.
    public internal(set) var failedExit: (shard: Int, status: Int32)?
    /// The first shard that is not final.
    public internal(set) var firstOpen = 0
    var counts = GatherProgress()

    /// While true, only the first open shard is given out: the results that wait for it fill the store.
    public var isHolding = false

    public init(options: GatherOptions, now: MonotonicTime) {
        self.options = options
        began = now
    }

    // MARK: - What is known

    public var shardCount: Int { shards.count }
    public func shardState(_ shard: Int) -> ShardState { shards[shard].state }
    public var leafCount: Int { leaves.count }
    /// Number of all shards; nil while input is still coming.
    public var total: Int? { inputEnded ? shards.count : nil }
    /// A shard could be given to a leaf that asks.
    public var hasPending: Bool { counts.pending > 0 }

    public func progress(now: MonotonicTime) -> GatherProgress {
        var progress = counts
        progress.total = shards.count
        progress.milliseconds = UInt64(clamping: (now - began).milliseconds)
        return progress
    }

    public mutating func takeEffects() -> [GatherEffect] {
        defer { effects = [] }
        return effects
    }

    // MARK: - Inputs

    /// The next shard is complete. Its number is the count of those before it. Ignored when the job is over.
    public mutating func addShard(bytes: UInt64, now: MonotonicTime) {
        guard state == .running, !inputEnded else { return }
        shards.append(Shard())
        counts.pending += 1
        counts.bytesIn += bytes
        assign(now)
    }

    /// There are no more shards.
    public mutating func endInput(now: MonotonicTime) {
        guard state == .running, !inputEnded else { return }
        inputEnded = true
        finishIfDone()
        assign(now)
    }

    /// Shards may be given out from now on.
    public mutating func open(now: MonotonicTime) {
        isOpen = true
        assign(now)
    }

    /// Stops holding, or starts.
    public mutating func setHolding(_ holding: Bool, now: MonotonicTime) {
        guard isHolding != holding else { return }
        isHolding = holding
        assign(now)
    }

    /// A leaf is ready for a shard more. The first ask makes it known.
    public mutating func ask(_ leaf: LeafID, node: String, now: MonotonicTime) {
        guard state == .running else { return }
        let at = index(of: leaf)
        if at == leaves.count || leaves[at].id != leaf { leaves.insert(Leaf(id: leaf, node: node), at: at) }
        leaves[at].asks += 1
        if leaves[at].asks == 1 { waiting.append(leaf) }
        assign(now)
    }

    /// The connection to a leaf is gone. What ran there is run again; that costs nothing of the shards' budgets, up to
    /// ``GatherOptions/lossLimit``.
    public mutating func lost(_ leaf: LeafID, now: MonotonicTime) {
        let at = index(of: leaf)
        guard at < leaves.count, leaves[at].id == leaf else { return }
        let node = leaves[at].node
        leaves.remove(at: at)
        waiting.removeAll { $0 == leaf }
        guard state == .running else { return }
        for attempt in attempts where attempt.leaf == leaf { lose(attempt, node: node, now: now) }
        finishIfDone()
        assign(now)
    }

    /// An attempt is over. `bytes` is the length of its result.
    public mutating func ended(_ id: AttemptID, _ outcome: AttemptOutcome, bytes: UInt64, now: MonotonicTime) {
        guard state == .running else { return }
        guard let attempt = remove(id) else {
            // Cancelled or given up before; a loser that had finished already is the harmless case of two results.
            if outcome.verdict == .done { duplicates += 1 }
            return
        }
        shards[attempt.shard].copies -= 1
        switch outcome.verdict {
        case .done: accept(attempt, bytes: bytes, now: now)
        case .retry, .retryElsewhere, .final: fail(attempt, outcome, now: now)
        }
        finishIfDone()
        assign(now)
    }

    /// Time has passed; call at ``nextDeadline``.
    public mutating func tick(now: MonotonicTime) {
        guard state == .running else { return }
        if let deadline = jobDeadline, now >= deadline {
            deadlinePassed = true
            closeRest(as: .timedOut)
            return finish(as: inputEnded ? verdict : .failed)
        }
        if let limit = options.shardTimeout {
            let late = attempts.prefix { $0.started + limit + options.timeoutGrace <= now }
            for attempt in late where remove(attempt.id) != nil {
                shards[attempt.shard].copies -= 1
                effects.append(.cancel(attempt.leaf, attempt.id, .timedOut))
                fail(attempt, .timedOut, now: now)
            }
            finishIfDone()
        }
        assign(now)
    }

    /// What is not done will not be.
    public mutating func cancel() {
        guard state == .running else { return }
        closeRest(as: .cancelled)
        finish(as: .cancelled)
    }

    /// The job can not go on, for a reason that no shard has to answer for.
    public mutating func abort() {
        guard state == .running else { return }
        closeRest(as: .cancelled)
        finish(as: .failed)
    }

    var jobDeadline: MonotonicTime? { options.deadline.map { began + $0 } }

    /// When ``tick(now:)`` is needed next; nil if nothing waits for time.
    public var nextDeadline: MonotonicTime? {
        guard state == .running else { return nil }
        var next = jobDeadline
        func consider(_ time: MonotonicTime?) {
            if let time, time < next ?? .distantFuture { next = time }
        }
        if let limit = options.shardTimeout {
            consider(attempts.first.map { $0.started + limit + options.timeoutGrace })
        }
        if !waiting.isEmpty && isOpen {
            consider(nextRetry)
            consider(nextHedge)
        }
        return next
    }

    // MARK: - Tables

    /// Where `leaf` is or would be.
    func index(of leaf: LeafID) -> Int {
        var low = 0
        var high = leaves.count
        while low < high {
            let middle = (low + high) / 2
            if leaves[middle].id < leaf { low = middle + 1 } else { high = middle }
        }
        return low
    }

    func node(of leaf: LeafID) -> String {
        let at = index(of: leaf)
        return at < leaves.count && leaves[at].id == leaf ? leaves[at].node : ""
    }

    mutating func remove(_ id: AttemptID) -> Attempt? {
        var low = 0
        var high = attempts.count
        while low < high {
            let middle = (low + high) / 2
            if attempts[middle].id < id { low = middle + 1 } else { high = middle }
        }
        guard low < attempts.count, attempts[low].id == id else { return nil }
        return attempts.remove(at: low)
    }
}
