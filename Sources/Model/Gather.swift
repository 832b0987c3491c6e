/// How far one scatter-gather job is, as a whole.
public enum GatherState: String, Sendable, CaseIterable {
    case running
    /// Every shard succeeded.
    case succeeded
    /// Some shards did not succeed, but as many did as was asked for.
    case partial
    /// Fewer shards succeeded than was asked for, or the merge failed.
    case failed
    case cancelled

    public var isTerminal: Bool { self != .running }
}

/// Why one shard did not succeed.
public struct GatherFailure: Hashable, Sendable {
    /// From 0.
    public var shard: Int
    /// Name of the node that tried last; empty if none did.
    public var node: String
    public var attempts: Int
    public var error: String

    public init(shard: Int, node: String, attempts: Int, error: String) {
        self.shard = shard
        self.node = node
        self.attempts = attempts
        self.error = error
    }
}

/// Counts of one scatter-gather job. The six states of shards are disjoint and sum to `total`, so that a partial result can
/// not be mistaken for a whole one.
public struct GatherProgress: Hashable, Sendable {
    /// More failures are counted, but not listed.
    public static let failureLimit = 100
    /// Most shards of one job.
    public static let shardLimit = 1 << 32

    public var total: Int
    public var successful: Int
    public var failed: Int
    public var timedOut: Int
    public var cancelled: Int
    public var running: Int
    public var pending: Int
    /// Attempts beyond the first of a shard that followed a failure.
    public var retried: Int
    /// Attempts that were started beside a slow one.
    public var hedged: Int
    /// Since the job was created.
    public var milliseconds: UInt64
    public var bytesIn: UInt64
    public var bytesOut: UInt64
    /// At most ``failureLimit``, by shard.
    public var failures: [GatherFailure]

    public init(
        total: Int = 0, successful: Int = 0, failed: Int = 0, timedOut: Int = 0, cancelled: Int = 0, running: Int = 0,
        pending: Int = 0, retried: Int = 0, hedged: Int = 0, milliseconds: UInt64 = 0, bytesIn: UInt64 = 0,
        bytesOut: UInt64 = 0,
        failures: [GatherFailure] = []
    ) {
        self.total = total
        self.successful = successful
        self.failed = failed
        self.timedOut = timedOut
        self.cancelled = cancelled
        self.running = running
        self.pending = pending
        self.retried = retried
        self.hedged = hedged
        self.milliseconds = milliseconds
        self.bytesIn = bytesIn
        self.bytesOut = bytesOut
        self.failures = failures
    }

    /// True if every count is in bounds and the disjoint ones sum to `total`.
    public var isConsistent: Bool {
        let states = [successful, failed, timedOut, cancelled, running, pending]
        guard (states + [total, retried, hedged]).allSatisfy({ (0...GatherProgress.shardLimit).contains($0) }) else {
            return false
        }
        return states.reduce(0, +) == total && failures.count <= GatherProgress.failureLimit
    }

    /// What was not finished will not be: those shards count as cancelled.
    public mutating func cancelRest() {
        cancelled += running + pending
        running = 0
        pending = 0
    }
}
