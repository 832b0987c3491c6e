// What the root of a job says to its client and to its leaves, and they to it: frames on raw streams, one message each.
//
//     client ─ clientHello file… filesEnd input… inputEnd consumed… done ─▶ root ─ leafWelcome file… filesEnd ┐
//     client ◀─ clientWelcome result… resultEnd progress… final ────────── root ◀─ leafHello ask output… ended ┤
//                                                                          root ─ shard input… inputEnd cancel stop ─▶ leaf
//
// A shard's frames carry its attempt, so that what is late is told from what is current.
import Model
import Wire

/// Bounds of this protocol.
public enum GatherLimits {
    public static let version: UInt8 = 1
    /// Most bytes of input, result or file in one message.
    public static let chunkBytes = 128 << 10
    /// Largest message; more is refused by the receiver's decoder.
    public static let messageBytes = 512 << 10
    public static let fileCount = 1_000
    public static let pathBytes = 1_024
    public static let errorBytes = 4_096
    /// Longest shard of the sharder `args`: what Linux takes as one argument.
    public static let argumentBytes = 128 << 10
}

/// How a job ended, as the root tells its client.
public struct GatherEnd: Hashable, Sendable {
    public var state: GatherState
    public var progress: GatherProgress
    /// Bytes of the whole result.
    public var resultBytes: UInt64
    /// Exit code of the failed shard of lowest number.
    public var leafExit: Int32?
    public var deadlinePassed: Bool
    /// What ended the job, if it was not its shards: the merge, the root itself.
    public var message: String?

    public init(
        state: GatherState, progress: GatherProgress, resultBytes: UInt64, leafExit: Int32? = nil,
        deadlinePassed: Bool = false,
        message: String? = nil
    ) {
        self.state = state
        self.progress = progress
        self.resultBytes = resultBytes
        self.leafExit = leafExit
        self.deadlinePassed = deadlinePassed
        self.message = message
    }

    /// The exit code of `scatter`, `gather wait` and `gather result` (DESIGN 3.1). A partial result that is as much as
    /// `--min-success` asked for is what was asked.
    public func exitCode(propagate: Bool = false) -> Int32 {
        switch state {
        case .succeeded, .partial: return ExitCode.done.rawValue
        case .cancelled: return propagate ? ExitCode.ownFailure.rawValue : ExitCode.failed.rawValue
        case .running: return propagate ? ExitCode.ownFailure.rawValue : ExitCode.deadline.rawValue
        case .failed:
            if propagate {
                return message == nil ? leafExit ?? ExitCode.ownFailure.rawValue : ExitCode.ownFailure.rawValue
            }
            if message != nil { return (deadlinePassed ? ExitCode.deadline : .failed).rawValue }
            if progress.successful > 0 { return ExitCode.partial.rawValue }
            return deadlinePassed ? ExitCode.deadline.rawValue : ExitCode.failed.rawValue
        }
    }
}

/// An order to run a shard.
public struct ShardOrder: Hashable, Sendable {
    public var attempt: AttemptID
    public var shard: Int
    /// Of all shards; nil while it is not known.
    public var total: Int?
    /// From 1.
    public var number: Int
    /// What is left of the shard's time.
    public var time: TimeSpan?
    public var inputBytes: UInt64

    public init(attempt: AttemptID, shard: Int, total: Int?, number: Int, time: TimeSpan?, inputBytes: UInt64) {
        self.attempt = attempt
        self.shard = shard
        self.total = total
        self.number = number
        self.time = time
        self.inputBytes = inputBytes
    }
}

public enum GatherMessage: Hashable, Sendable {
    // Client to root.
    /// `fetches`: only the result is wanted; nothing will be fed. `detaches`: the client goes when its input is taken.
    case clientHello(fetches: Bool, detaches: Bool, resultOffset: UInt64)
    /// A part of a file for the leaves' working directory; its parts come in order, the last one says so.
    case file(path: String, executable: Bool, bytes: [UInt8], isLast: Bool)
    case filesEnd
    case input([UInt8])
    case inputEnd
    /// So many bytes of the result have been passed on.
    case consumed(UInt64)
    /// The end was heard.
    case done

    // Root to client.
    /// `instance` is another one in each root: what was fed to one its successor does not have.
    case clientWelcome(instance: UInt64, inputTaken: UInt64, filesTaken: Bool, inputEnded: Bool)
    /// All input is here; a client that detaches may go.
    case inputTaken
    case result([UInt8])
    /// The result is whole: so many bytes.
    case resultEnd(UInt64)
    case progress(GatherProgress)
    case final(GatherEnd)

    // Leaf to root.
    case leafHello(name: String, node: String)
    case ask
    case output(AttemptID, [UInt8])
    case ended(AttemptID, AttemptOutcome)
    /// Says that the leaf is there; answered by nothing.
    case alive

    // Root to leaf.
    case leafWelcome(job: String)
    case shard(ShardOrder)
    case shardInput(AttemptID, [UInt8])
    case shardInputEnd(AttemptID)
    /// `grace` between TERM and KILL.
    case cancel(AttemptID, grace: TimeSpan)
    /// The job is over.
    case stop

    private var kind: UInt8 {
        switch self {
        case .clientHello: 1
        case .file: 2
        case .filesEnd: 3
        case .input: 4
        case .inputEnd: 5
        case .consumed: 6
        case .done: 7
        case .clientWelcome: 16
        case .inputTaken: 17
        case .result: 18
        case .resultEnd: 19
        case .progress: 20
        case .final: 21
        case .leafHello: 32
        case .ask: 33
        case .output: 34
        case .ended: 35
        case .alive: 36
        case .leafWelcome: 48
        case .shard: 49
        case .shardInput: 50
        case .shardInputEnd: 51
        case .cancel: 52
        case .stop: 53
        }
    }

    /// A whole frame. Bytes in one message are at most ``GatherLimits/chunkBytes``: the sender's care.
    public var encoded: [UInt8] {
        var w = ByteWriter(capacity: 64 + payloadEstimate)
        w.u32(0)
        w.u8(kind)
        w.u32(0)
        write(&w)
        w.patch(u32: UInt32(w.count - 4), at: 0)
        return w.bytes
    }

    private var payloadEstimate: Int {
        switch self {
        case .file(_, _, let bytes, _), .input(let bytes), .result(let bytes), .output(_, let bytes),
            .shardInput(_, let bytes):
            bytes.count
        default: 0
        }
    }

    private func write(_ w: inout ByteWriter) {
        switch self {
        case .clientHello(let fetches, let detaches, let offset):
            w.u8(GatherLimits.version)
            w.bool(fetches)
            w.bool(detaches)
            w.u64(offset)
        case .file(let path, let executable, let bytes, let isLast):
            w.string(path)
            w.bool(executable)
            w.bool(isLast)
            w.raw(bytes)
        case .input(let bytes), .result(let bytes): w.raw(bytes)
        case .consumed(let count), .resultEnd(let count): w.u64(count)
        case .clientWelcome(let instance, let taken, let files, let ended):
            w.u8(GatherLimits.version)
            w.u64(instance)
            w.u64(taken)
            w.bool(files)
            w.bool(ended)
        case .progress(let progress): progress.encode(into: &w)
        case .final(let end):
            w.string(end.state.rawValue)
            end.progress.encode(into: &w)
            w.u64(end.resultBytes)
            w.optional(end.leafExit) { $0.u32(UInt32(bitPattern: $1)) }
            w.bool(end.deadlinePassed)
            w.optionalString(end.message)
        case .leafHello(let name, let node):
            w.u8(GatherLimits.version)
            w.string(name)
            w.string(node)
        case .output(let attempt, let bytes), .shardInput(let attempt, let bytes):
            w.u64(attempt.number)
            w.raw(bytes)
        case .ended(let attempt, let outcome):
            w.u64(attempt.number)
            outcome.encode(into: &w)
        case .leafWelcome(let job):
            w.u8(GatherLimits.version)
            w.string(job)
        case .shard(let order):
            w.u64(order.attempt.number)
            w.natural(order.shard)
            w.optional(order.total) { $0.natural($1) }
            w.natural(order.number)
            w.optional(order.time) { $0.timeSpan(max($1, .zero)) }
            w.u64(order.inputBytes)
        case .shardInputEnd(let attempt): w.u64(attempt.number)
        case .cancel(let attempt, let grace):
            w.u64(attempt.number)
            w.timeSpan(max(grace, .zero))
        case .filesEnd, .inputEnd, .done, .inputTaken, .ask, .alive, .stop: break
        }
    }

    public init(_ frame: Frame) throws(WireError) {
        var r = ByteReader(frame.payload)
        self = try GatherMessage.read(frame.kind, &r)
        try r.finish()
    }

    private static func version(_ r: inout ByteReader) throws(WireError) {
        guard try r.u8() == GatherLimits.version else { throw .invalid(at: 0, what: "version of the gather protocol") }
    }

    private static func read(_ kind: UInt8, _ r: inout ByteReader) throws(WireError) -> GatherMessage {
        switch kind {
        case 1:
            try version(&r)
            return .clientHello(fetches: try r.bool(), detaches: try r.bool(), resultOffset: try r.u64())
        case 2:
            let path = try r.string(max: GatherLimits.pathBytes)
            let (executable, isLast) = (try r.bool(), try r.bool())
            return .file(path: path, executable: executable, bytes: Array(r.rest()), isLast: isLast)
        case 3: return .filesEnd
        case 4: return .input(Array(r.rest()))
        case 5: return .inputEnd
        case 6: return .consumed(try r.u64())
        case 7: return .done
        case 16:
            try version(&r)
            return .clientWelcome(
                instance: try r.u64(), inputTaken: try r.u64(), filesTaken: try r.bool(), inputEnded: try r.bool())
        case 17: return .inputTaken
        case 18: return .result(Array(r.rest()))
        case 19: return .resultEnd(try r.u64())
        case 20: return .progress(try GatherProgress(decoding: &r))
        case 21:
            let state: GatherState = try r.named("state")
            return .final(
                GatherEnd(
                    state: state, progress: try GatherProgress(decoding: &r), resultBytes: try r.u64(),
                    leafExit: try r.optional { reader throws(WireError) in Int32(bitPattern: try reader.u32()) },
                    deadlinePassed: try r.bool(), message: try r.optionalString(max: GatherLimits.errorBytes)))
        case 32:
            try version(&r)
            return .leafHello(name: try r.string(max: Limits.nameBytes), node: try r.string(max: Limits.nameBytes))
        case 33: return .ask
        case 34: return .output(AttemptID(try r.u64()), Array(r.rest()))
        case 35: return .ended(AttemptID(try r.u64()), try AttemptOutcome(decoding: &r))
        case 36: return .alive
        case 48:
            try version(&r)
            return .leafWelcome(job: try r.string(max: Limits.nameBytes))
        case 49:
            return .shard(
                ShardOrder(
                    attempt: AttemptID(try r.u64()), shard: try r.natural(max: GatherProgress.shardLimit),
                    total: try r.optional { reader throws(WireError) in
                        try reader.natural(max: GatherProgress.shardLimit)
                    },
                    number: try r.natural(max: 1 << 32),
                    time: try r.optional { reader throws(WireError) in try reader.timeSpan() },
                    inputBytes: try r.u64()))
        case 50: return .shardInput(AttemptID(try r.u64()), Array(r.rest()))
        case 51: return .shardInputEnd(AttemptID(try r.u64()))
        case 52: return .cancel(AttemptID(try r.u64()), grace: try r.timeSpan())
        case 53: return .stop
        default: throw .invalid(at: 0, what: "gather message \(kind)")
        }
    }
}

extension AttemptOutcome {
    fileprivate func encode(into w: inout ByteWriter) {
        switch self {
        case .exited(let code):
            w.u8(0)
            w.u32(UInt32(bitPattern: code))
        case .signalled(let number):
            w.u8(1)
            w.u32(UInt32(bitPattern: number))
        case .timedOut: w.u8(2)
        case .notStarted(let why):
            w.u8(3)
            w.string(why)
        case .impossible(let why):
            w.u8(4)
            w.string(why)
        case .cancelled: w.u8(5)
        }
    }

    fileprivate init(decoding r: inout ByteReader) throws(WireError) {
        let at = r.position
        switch try r.u8() {
        case 0: self = .exited(Int32(bitPattern: try r.u32()))
        case 1: self = .signalled(Int32(bitPattern: try r.u32()))
        case 2: self = .timedOut
        case 3: self = .notStarted(try r.string(max: GatherLimits.errorBytes))
        case 4: self = .impossible(try r.string(max: GatherLimits.errorBytes))
        case 5: self = .cancelled
        default: throw .invalid(at: at, what: "outcome of an attempt")
        }
    }
}
