// What can be asked of the replicated job queue: the commands that go through the log, and their bytes.
import Model
import Wire

/// A job that is to be put. Times are in milliseconds of log time.
public struct NewJob: Sendable, Hashable {
    public var tube: String
    /// Smaller is sooner; below 1,024 a job counts as urgent.
    public var priority: UInt32
    public var delayMilliseconds: UInt64
    /// Time to run: how long a reservation lasts unless it is touched. 0 means one second.
    public var ttrMilliseconds: UInt64
    /// Of a decoded command it is a part of the bytes that were decoded.
    public var body: ArraySlice<UInt8>
    /// While a job with this key exists in the tube, or was put within the tube's dedupe window, a further put with it
    /// returns the first job's id and adds nothing.
    public var key: String?

    public init(
        tube: String, priority: UInt32 = 1_024, delayMilliseconds: UInt64 = 0, ttrMilliseconds: UInt64 = 60_000,
        body: [UInt8],
        key: String? = nil
    ) {
        self.tube = tube
        self.priority = priority
        self.delayMilliseconds = delayMilliseconds
        self.ttrMilliseconds = ttrMilliseconds
        self.body = body[...]
        self.key = key
    }
}

/// One entry of the replicated log that concerns the queues. Commands are beanstalkd's, with a lease token in the place of the
/// connection that reserved a job.
public enum QueueCommand: Sendable, Hashable {
    /// A batch, taken whole or refused whole; ids are consecutive.
    case put([NewJob])
    /// Takes up to `count` ready jobs, at once, in the order (priority, id) over the tubes; paused tubes are skipped. `holder` names
    /// who holds them, for ``releaseHolder(_:)``; 0 is nobody in particular, whose jobs only the lease's end gives back.
    case reserve(tubes: [String], holder: UInt64, count: Int)
    /// Takes one ready, delayed or buried job.
    case reserveJob(id: UInt64, holder: UInt64)
    /// Without a lease only a job that is not reserved can be deleted.
    case delete(id: UInt64, lease: UInt64?)
    case release(id: UInt64, lease: UInt64, priority: UInt32, delayMilliseconds: UInt64)
    case bury(id: UInt64, lease: UInt64, priority: UInt32)
    /// The lease runs for the job's whole ttr again from now.
    case touch(id: UInt64, lease: UInt64)
    /// Makes up to `count` buried jobs of the tube ready, oldest burial first; if there are none, delayed ones.
    case kick(tube: String, count: Int)
    case kickJob(id: UInt64)
    /// Nothing is reserved from the tube for so long; 0 ends a pause. A tube that does not exist is `notFound`, unless `create`: the
    /// proposer knows that a connection uses or watches it.
    case pause(tube: String, milliseconds: UInt64, create: Bool = false)
    /// Deletes every job of the tube that is not reserved.
    case purge(tube: String)
    /// Changes settings of a tube: see ``TubeSettings``. An empty text restores the default.
    case setTube(name: String, settings: [String: String])
    /// The holder is gone: its reserved jobs become ready again.
    case releaseHolder(UInt64)
}

/// What the queue refuses before it takes memory.
public enum QueueLimits {
    /// Most jobs in one put.
    public static let batch = 16_384
    /// Most jobs that one reserve takes, and most tubes that it names.
    public static let reserveCount = 1_024
    public static let reserveTubes = 4_096
    /// Most bytes of bodies in one reserve's reply; one job is always given.
    public static let reserveBytes = 1 << 20
    /// Largest body that a tube can be set to accept: it must fit a log entry with its frame.
    public static let bodyBytes = Limits.commandBytes - 4_096
    /// Longest time of a job or a pause: 2^32 - 1 seconds, as in beanstalkd's protocol.
    public static let milliseconds: UInt64 = 4_294_967_295_000
    public static let tubes = 100_000
    public static let settings = 16

    /// beanstalkd's rule for names: 1 to 200 of `A-Z a-z 0-9 - + / ; . $ _ ( )`, not beginning with a hyphen.
    public static func isValidTube(_ name: some StringProtocol) -> Bool { isValidTube(name.utf8) }

    static func isValidTube(_ bytes: some Collection<UInt8>) -> Bool {
        guard let first = bytes.first, first != UInt8(ascii: "-"), bytes.count <= Limits.nameBytes else { return false }
        return bytes.allSatisfy(isNameByte)
    }

    static func isNameByte(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
            UInt8(ascii: "0")...UInt8(ascii: "9"):
            true
        case UInt8(ascii: "-"), UInt8(ascii: "+"), UInt8(ascii: "/"), UInt8(ascii: ";"), UInt8(ascii: "."),
            UInt8(ascii: "$"),
            UInt8(ascii: "_"), UInt8(ascii: "("), UInt8(ascii: ")"):
            true
        default: false
        }
    }
}

// MARK: - Codec

extension NewJob {
    func encode(into writer: inout ByteWriter) {
        writer.string(tube)
        writer.u32(priority)
        writer.varint(delayMilliseconds)
        writer.varint(ttrMilliseconds)
        writer.optional(key) { $0.string($1) }
        writer.slice(body)
    }

    init(decoding reader: inout ByteReader) throws(WireError) {
        tube = try reader.string(max: Limits.nameBytes)
        priority = try reader.u32()
        delayMilliseconds = try reader.varint()
        ttrMilliseconds = try reader.varint()
        key = try reader.optional { (r: inout ByteReader) throws(WireError) in try r.string(max: Limits.nameBytes) }
        body = try reader.slice(max: QueueLimits.bodyBytes)
    }
}

extension QueueCommand {
    public func encode(into writer: inout ByteWriter) {
        switch self {
        case .put(let jobs):
            writer.u8(1)
            writer.count(jobs.count)
            for job in jobs { job.encode(into: &writer) }
        case .reserve(let tubes, let holder, let count):
            writer.u8(2)
            writer.count(tubes.count)
            for tube in tubes { writer.string(tube) }
            writer.varint(holder)
            writer.count(max(count, 0))
        case .reserveJob(let id, let holder):
            writer.u8(3)
            writer.varint(id)
            writer.varint(holder)
        case .delete(let id, let lease):
            writer.u8(4)
            writer.varint(id)
            writer.optional(lease) { $0.varint($1) }
        case .release(let id, let lease, let priority, let delay):
            writer.u8(5)
            writer.varint(id)
            writer.varint(lease)
            writer.u32(priority)
            writer.varint(delay)
        case .bury(let id, let lease, let priority):
            writer.u8(6)
            writer.varint(id)
            writer.varint(lease)
            writer.u32(priority)
        case .touch(let id, let lease):
            writer.u8(7)
            writer.varint(id)
            writer.varint(lease)
        case .kick(let tube, let count):
            writer.u8(8)
            writer.string(tube)
            writer.count(max(count, 0))
        case .kickJob(let id):
            writer.u8(9)
            writer.varint(id)
        case .pause(let tube, let milliseconds, let create):
            writer.u8(10)
            writer.string(tube)
            writer.varint(milliseconds)
            writer.bool(create)
        case .purge(let tube):
            writer.u8(11)
            writer.string(tube)
        case .setTube(let name, let settings):
            writer.u8(12)
            writer.string(name)
            writer.count(settings.count)
            for (key, value) in settings.sorted(by: { $0.key < $1.key }) {
                writer.string(key)
                writer.string(value)
            }
        case .releaseHolder(let holder):
            writer.u8(13)
            writer.varint(holder)
        }
    }

    public init(decoding reader: inout ByteReader) throws(WireError) {
        let at = reader.position
        switch try reader.u8() {
        case 1:
            let count = try reader.count(max: QueueLimits.batch, itemBytes: 9)
            var jobs: [NewJob] = []
            jobs.reserveCapacity(count)
            for _ in 0..<count { jobs.append(try NewJob(decoding: &reader)) }
            self = .put(jobs)
        case 2:
            var tubes: [String] = []
            for _ in 0..<(try reader.count(max: QueueLimits.reserveTubes)) {
                tubes.append(try reader.string(max: Limits.nameBytes))
            }
            self = .reserve(tubes: tubes, holder: try reader.varint(), count: try reader.quantity())
        case 3: self = .reserveJob(id: try reader.varint(), holder: try reader.varint())
        case 4:
            self = .delete(
                id: try reader.varint(),
                lease: try reader.optional { (r: inout ByteReader) throws(WireError) in try r.varint() })
        case 5:
            self = .release(
                id: try reader.varint(), lease: try reader.varint(), priority: try reader.u32(),
                delayMilliseconds: try reader.varint())
        case 6: self = .bury(id: try reader.varint(), lease: try reader.varint(), priority: try reader.u32())
        case 7: self = .touch(id: try reader.varint(), lease: try reader.varint())
        case 8: self = .kick(tube: try reader.string(max: Limits.nameBytes), count: try reader.quantity())
        case 9: self = .kickJob(id: try reader.varint())
        case 10:
            self = .pause(
                tube: try reader.string(max: Limits.nameBytes), milliseconds: try reader.varint(),
                create: try reader.bool())
        case 11: self = .purge(tube: try reader.string(max: Limits.nameBytes))
        case 12:
            let name = try reader.string(max: Limits.nameBytes)
            var settings: [String: String] = [:]
            for _ in 0..<(try reader.count(max: QueueLimits.settings, itemBytes: 2)) {
                let key = try reader.string(max: Limits.nameBytes)
                settings[key] = try reader.string(max: Limits.nameBytes)
            }
            self = .setTube(name: name, settings: settings)
        case 13: self = .releaseHolder(try reader.varint())
        default: throw .invalid(at: at, what: "queue command")
        }
    }
}

extension ByteReader {
    /// A number of things that do not follow in the bytes: any size up to 2^32 - 1.
    mutating func quantity() throws(WireError) -> Int {
        let at = position
        let value = try varint()
        guard value <= UInt64(UInt32.max) else { throw .invalid(at: at, what: "quantity") }
        return Int(value)
    }
}
