// What the replicated job queue answers, and the bytes of the answers.
import Model
import Wire

/// What became of one job of a put.
public struct InsertedJob: Sendable, Hashable {
    public var id: UInt64
    /// Its key was known: `id` is that of the earlier job, and nothing was added.
    public var isDuplicate: Bool

    public init(id: UInt64, isDuplicate: Bool = false) {
        self.id = id
        self.isDuplicate = isDuplicate
    }
}

/// A job in the hands of a worker.
public struct ReservedJob: Sendable, Hashable {
    public var id: UInt64
    public var tube: String
    public var priority: UInt32
    public var ttrMilliseconds: UInt64
    /// Token of this reservation, larger than that of every earlier one: it deletes, releases, buries and touches the job, and fences
    /// what the worker writes elsewhere.
    public var lease: UInt64
    /// Times reserved, this one included.
    public var reserves: UInt32
    public var timeouts: UInt32
    public var releases: UInt32
    public var buries: UInt32
    public var kicks: UInt32
    public var body: [UInt8]

    public init(
        id: UInt64, tube: String, priority: UInt32, ttrMilliseconds: UInt64, lease: UInt64, reserves: UInt32 = 1,
        timeouts: UInt32 = 0,
        releases: UInt32 = 0, buries: UInt32 = 0, kicks: UInt32 = 0, body: [UInt8]
    ) {
        self.id = id
        self.tube = tube
        self.priority = priority
        self.ttrMilliseconds = ttrMilliseconds
        self.lease = lease
        self.reserves = reserves
        self.timeouts = timeouts
        self.releases = releases
        self.buries = buries
        self.kicks = kicks
        self.body = body
    }
}

public enum QueueResult: Sendable, Hashable {
    /// One for each job of the put, in its order.
    case inserted([InsertedJob])
    /// Empty: nothing was ready.
    case reserved([ReservedJob])
    case done
    /// A release that made the job buried instead: the tube's `max-attempts` is reached.
    case buried
    case kicked(Int)
    case purged(Int)
    /// No such job or tube, or the job is in no state in which this can be done.
    case notFound
    /// The job exists, but not under this lease: it expired, or the job is reserved and no lease was given.
    case leaseExpired
    /// Nothing was done: a limit, a setting or a malformed command.
    case refused(CoterieError.Code, String)
}

// MARK: - Codec

extension ReservedJob {
    func encode(into writer: inout ByteWriter) {
        writer.varint(id)
        writer.string(tube)
        writer.u32(priority)
        writer.varint(ttrMilliseconds)
        writer.varint(lease)
        for count in [reserves, timeouts, releases, buries, kicks] { writer.varint(UInt64(count)) }
        writer.slice(body)
    }

    init(decoding reader: inout ByteReader) throws(WireError) {
        id = try reader.varint()
        tube = try reader.string(max: Limits.nameBytes)
        priority = try reader.u32()
        ttrMilliseconds = try reader.varint()
        lease = try reader.varint()
        reserves = try reader.count32()
        timeouts = try reader.count32()
        releases = try reader.count32()
        buries = try reader.count32()
        kicks = try reader.count32()
        body = try reader.array(max: QueueLimits.bodyBytes)
    }
}

extension QueueResult {
    public func encode(into writer: inout ByteWriter) {
        switch self {
        case .inserted(let jobs):
            writer.u8(1)
            writer.count(jobs.count)
            for job in jobs {
                writer.varint(job.id)
                writer.bool(job.isDuplicate)
            }
        case .reserved(let jobs):
            writer.u8(2)
            writer.count(jobs.count)
            for job in jobs { job.encode(into: &writer) }
        case .done: writer.u8(3)
        case .buried: writer.u8(4)
        case .kicked(let count):
            writer.u8(5)
            writer.count(count)
        case .purged(let count):
            writer.u8(6)
            writer.count(count)
        case .notFound: writer.u8(7)
        case .leaseExpired: writer.u8(8)
        case .refused(let code, let message):
            writer.u8(9)
            writer.string(code.rawValue)
            writer.string(message)
        }
    }

    public init(decoding reader: inout ByteReader) throws(WireError) {
        let at = reader.position
        switch try reader.u8() {
        case 1:
            let count = try reader.count(max: QueueLimits.batch, itemBytes: 2)
            var jobs: [InsertedJob] = []
            jobs.reserveCapacity(count)
            for _ in 0..<count { jobs.append(InsertedJob(id: try reader.varint(), isDuplicate: try reader.bool())) }
            self = .inserted(jobs)
        case 2:
            var jobs: [ReservedJob] = []
            for _ in 0..<(try reader.count(max: QueueLimits.reserveCount, itemBytes: 14)) {
                jobs.append(try ReservedJob(decoding: &reader))
            }
            self = .reserved(jobs)
        case 3: self = .done
        case 4: self = .buried
        case 5: self = .kicked(try reader.quantity())
        case 6: self = .purged(try reader.quantity())
        case 7: self = .notFound
        case 8: self = .leaseExpired
        case 9:
            let name = try reader.string(max: 64)
            guard let code = CoterieError.Code(rawValue: name) else { throw .invalid(at: at, what: "error code") }
            self = .refused(code, try reader.string(max: 4_096))
        default: throw .invalid(at: at, what: "queue result")
        }
    }
}

extension ByteReader {
    /// A varint that fits 32 bits.
    mutating func count32() throws(WireError) -> UInt32 { UInt32(try quantity()) }
}
