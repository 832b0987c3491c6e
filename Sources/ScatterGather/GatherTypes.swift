// What goes into the machine of one scatter-gather job, and what comes out.
import Model

/// How a job is run: what of a ``ScatterGatherSpec`` decides about attempts.
public struct GatherOptions: Hashable, Sendable {
    /// Attempts of a shard that may follow a failure.
    public var retries = ScatterGatherSpec.defaultRetries
    public var hedge = ScatterGatherSpec.Hedge.automatic
    /// Per attempt.
    public var shardTimeout: TimeSpan?
    /// Since the job began.
    public var deadline: TimeSpan?
    /// Share of shards, 0…1.
    public var minSuccess = 1.0

    // What follows is not in the contract; tests make it small.

    /// Copies beside the first attempt. Two, since with one copy the 99th percentile at a fan-out of 64 still waits for
    /// stragglers (Dean and Barroso, "The Tail at Scale": some shard and its copy are both slow in 1.5 % of jobs).
    public var maxCopies = 2
    /// A hedge by times starts no sooner than this after the attempt that it copies.
    public var hedgeFloor = TimeSpan.milliseconds(100)
    /// Lost leaves that one shard may survive beyond its retries, before it is taken for what kills them.
    public var lossLimit = 5
    /// How long a shard that failed is kept from the leaf and node where it did, while there are others.
    public var avoidance = TimeSpan.seconds(2)
    /// The same after exit code 75.
    public var strictAvoidance = TimeSpan.seconds(30)
    /// How much later than the leaf itself the root gives up an attempt that is over its time.
    public var timeoutGrace = TimeSpan.seconds(5)
    /// So many shards failed for good and none succeeded: the rest is not tried.
    public var hopelessAfter = 100
    public var firstBackOff = TimeSpan.milliseconds(100)
    public var longestBackOff = TimeSpan.seconds(5)

    public init() {}

    /// Shards that must succeed out of `total`.
    public func required(of total: Int) -> Int {
        let share = minSuccess * Double(total)
        return min(total, max(0, Int((share - 1e-9).rounded(.up))))
    }
}

/// A leaf's connection, numbered by the driver in ascending order: a leaf that comes back is a new one.
public struct LeafID: Hashable, Comparable, Sendable {
    public var number: UInt64
    public init(_ number: UInt64) { self.number = number }
    public static func < (a: Self, b: Self) -> Bool { a.number < b.number }
}

/// One run of one shard. Never used twice within one machine.
public struct AttemptID: Hashable, Comparable, Sendable {
    public var number: UInt64
    public init(_ number: UInt64) { self.number = number }
    public static func < (a: Self, b: Self) -> Bool { a.number < b.number }
}

/// How an attempt ended on its leaf.
public enum AttemptOutcome: Hashable, Sendable {
    case exited(Int32)
    case signalled(Int32)
    /// Over the shard's time: the leaf has killed it.
    case timedOut
    /// The leaf's machine could not run it: no room, no process.
    case notStarted(String)
    /// It can not be run anywhere.
    case impossible(String)
    /// Killed because the root said so.
    case cancelled

    /// What is to be done with the shard.
    public enum Verdict: Hashable, Sendable {
        case done, retry, retryElsewhere, final
    }

    public var verdict: Verdict {
        switch self {
        case .exited(let code): AttemptOutcome.verdict(ofExit: code)
        case .signalled, .timedOut, .notStarted: .retry
        case .cancelled: .retry
        case .impossible: .final
        }
    }

    /// The contract's exit codes (DESIGN 3.1): 0 done, 75 retry elsewhere, 64–74, 76–78, 126, 127 final, else retry.
    public static func verdict(ofExit code: Int32) -> Verdict {
        switch code {
        case 0: .done
        case 75: .retryElsewhere
        case 64...74, 76...78, 126, 127: .final
        default: .retry
        }
    }

    /// As a shell would put it, for `--propagate`; nil if no program ended.
    public var exitStatus: Int32? {
        switch self {
        case .exited(let code): code
        case .signalled(let number): 128 &+ number
        case .timedOut: 128 + 15
        case .notStarted, .impossible, .cancelled: nil
        }
    }

    public var text: String {
        switch self {
        case .exited(126): "exit code 126: the command can not be executed"
        case .exited(127): "exit code 127: the command was not found"
        case .exited(let code): "exit code \(code)"
        case .signalled(let number): "killed by signal \(number)"
        case .timedOut: "timed out"
        case .notStarted(let why): "could not be started: \(why)"
        case .impossible(let why): why
        case .cancelled: "cancelled"
        }
    }
}

/// States of one shard; all but the first two are final.
public enum ShardState: UInt8, Hashable, Sendable {
    case pending, running, done, failed, timedOut, cancelled

    public var isFinal: Bool {
        switch self {
        case .pending, .running: false
        case .done, .failed, .timedOut, .cancelled: true
        }
    }
}

/// An order to a leaf to run a shard.
public struct ShardGrant: Hashable, Sendable {
    public var leaf: LeafID
    public var attempt: AttemptID
    /// From 0.
    public var shard: Int
    /// From 1, copies included.
    public var number: Int
    public var isHedge: Bool
    /// When it must be over; nil for no limit.
    public var deadline: MonotonicTime?
}

/// Why attempts are cancelled.
public enum CancelReason: Hashable, Sendable {
    /// Another attempt of the shard was faster.
    case superseded
    case timedOut
    case jobOver
}

/// What the driver shall do, in this order.
public enum GatherEffect: Hashable, Sendable {
    case give(ShardGrant)
    case cancel(LeafID, AttemptID, CancelReason)
    /// The attempt's bytes are the shard's one result.
    case accept(shard: Int, AttemptID)
    /// The attempt's bytes are worthless.
    case discard(AttemptID)
    /// The shard is final: its input is not needed any more. After ``accept(shard:_:)``, if there is a result.
    case settled(shard: Int, ShardState)
    /// All shards are final. Nothing follows.
    case finished(GatherState)
}

/// Durations in buckets an eighth of a power of two wide, so that a median costs no memory per shard.
struct DurationHistogram: Sendable {
    private var buckets = [UInt32](repeating: 0, count: 64 * 8)
    private(set) var count = 0

    private static func bucket(_ nanoseconds: UInt64) -> Int {
        guard nanoseconds >= 8 else { return Int(nanoseconds) }
        let exponent = 63 - nanoseconds.leadingZeroBitCount
        return exponent * 8 + Int((nanoseconds >> UInt64(exponent - 3)) & 7)
    }

    /// The middle of a bucket, in nanoseconds.
    private static func value(_ bucket: Int) -> UInt64 {
        guard bucket >= 24 else { return UInt64(min(bucket, 7)) }
        let exponent = UInt64(bucket / 8)
        let width = (1 as UInt64) << (exponent - 3)
        return (8 + UInt64(bucket % 8)) * width + width / 2
    }

    mutating func add(_ span: TimeSpan) {
        buckets[DurationHistogram.bucket(UInt64(max(span.nanoseconds, 0)))] &+= 1
        count += 1
    }

    /// Within 7 % of the median; nil if empty.
    var median: TimeSpan? {
        guard count > 0 else { return nil }
        var seen = 0
        for (i, n) in buckets.enumerated() {
            seen += Int(n)
            if seen * 2 >= count { return TimeSpan(nanoseconds: Int64(clamping: DurationHistogram.value(i))) }
        }
        return nil
    }
}
