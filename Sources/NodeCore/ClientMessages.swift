import Leases
import Model
import Queues
import Scheduling
import Wire

/// 128 random bits that a client makes once: commands of one session are applied at most once each (Raft thesis, 6.3).
public struct SessionID: Hashable, Comparable, Sendable {
    public var high: UInt64
    public var low: UInt64

    public init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }

    public init(using generator: inout some RandomNumberGenerator) {
        self.init(high: generator.next(), low: generator.next())
    }

    public static func < (a: Self, b: Self) -> Bool { (a.high, a.low) < (b.high, b.low) }
}

/// What can be written to the replicated log.
public enum StateCommand: Sendable {
    case queue(QueueCommand)
    case lease(LeaseCommand)
    case scheduling(SchedulingCommand)
    /// Lets log time pass: what is due expires. Proposed by the leader only when something is due.
    case tick
    /// A session will send nothing more; its replies are forgotten.
    case endSession
}

/// The answer of the state machine to one ``StateCommand``.
public enum StateResult: Sendable {
    case queue(QueueResult)
    case lease(LeaseResult)
    case scheduling(SchedulingResult)
    case done
    /// Sent again after its reply was acknowledged and forgotten: a client's error, nothing was applied.
    case stale
}

/// One command of a client, identified so that sending it again is harmless.
public struct ClientCommand: Sendable {
    public var session: SessionID
    /// From 1, one higher for each new command of the session.
    public var sequence: UInt64
    /// The lowest sequence whose reply the client still waits for; replies below it may be forgotten.
    public var firstOutstanding: UInt64
    /// For a reserve that finds nothing: how long to wait for a job; nil answers at once.
    public var wait: TimeSpan?
    public var command: StateCommand

    public init(
        session: SessionID, sequence: UInt64, firstOutstanding: UInt64, wait: TimeSpan? = nil, command: StateCommand
    ) {
        self.session = session
        self.sequence = sequence
        self.firstOutstanding = firstOutstanding
        self.wait = wait
        self.command = command
    }
}

/// What a client asks of a node in a `request` frame.
public enum ClientRequest: Sendable {
    /// A read, answered with a JSON document. Paths: `status`, `members`, `leader`, `version`, `queues`, `queues/TUBE`,
    /// `elections/NAME`, `pods`, …; see ``NodeCore`` for all.
    case query(path: String)
    case command(ClientCommand)
    /// An order to this node or to the cluster's membership: a JSON document with a `verb`.
    case admin(JSONValue)
    /// A read that goes on: `item` frames of JSON until it is cancelled.
    case watch(path: String)
}

// MARK: - Codec

extension SessionID {
    func encode(into writer: inout ByteWriter) {
        writer.u64(high)
        writer.u64(low)
    }

    init(decoding reader: inout ByteReader) throws(WireError) {
        self.init(high: try reader.u64(), low: try reader.u64())
    }
}

extension StateCommand {
    public func encode(into writer: inout ByteWriter) {
        switch self {
        case .queue(let command):
            writer.u8(1)
            command.encode(into: &writer)
        case .lease(let command):
            writer.u8(2)
            command.encode(into: &writer)
        case .scheduling(let command):
            writer.u8(3)
            command.encode(into: &writer)
        case .tick: writer.u8(4)
        case .endSession: writer.u8(5)
        }
    }

    public init(decoding reader: inout ByteReader) throws(WireError) {
        let at = reader.position
        switch try reader.u8() {
        case 1: self = .queue(try QueueCommand(decoding: &reader))
        case 2: self = .lease(try LeaseCommand(decoding: &reader))
        case 3: self = .scheduling(try SchedulingCommand(decoding: &reader))
        case 4: self = .tick
        case 5: self = .endSession
        default: throw .invalid(at: at, what: "command kind")
        }
    }
}

extension StateResult {
    public func encode(into writer: inout ByteWriter) {
        switch self {
        case .queue(let result):
            writer.u8(1)
            result.encode(into: &writer)
        case .lease(let result):
            writer.u8(2)
            result.encode(into: &writer)
        case .scheduling(let result):
            writer.u8(3)
            result.encode(into: &writer)
        case .done: writer.u8(4)
        case .stale: writer.u8(5)
        }
    }

    public var encoded: [UInt8] {
        var writer = ByteWriter()
        encode(into: &writer)
        return writer.bytes
    }

    public init(decoding reader: inout ByteReader) throws(WireError) {
        let at = reader.position
        switch try reader.u8() {
        case 1: self = .queue(try QueueResult(decoding: &reader))
        case 2: self = .lease(try LeaseResult(decoding: &reader))
        case 3: self = .scheduling(try SchedulingResult(decoding: &reader))
        case 4: self = .done
        case 5: self = .stale
        default: throw .invalid(at: at, what: "result kind")
        }
    }
}

extension ClientCommand {
    public func encode(into writer: inout ByteWriter) {
        session.encode(into: &writer)
        writer.varint(sequence)
        writer.varint(firstOutstanding)
        writer.optional(wait) { $0.i64($1.nanoseconds) }
        command.encode(into: &writer)
    }

    public init(decoding reader: inout ByteReader) throws(WireError) {
        session = try SessionID(decoding: &reader)
        sequence = try reader.varint()
        firstOutstanding = try reader.varint()
        wait = try reader.optional { (r: inout ByteReader) throws(WireError) in TimeSpan(nanoseconds: try r.i64()) }
        command = try StateCommand(decoding: &reader)
    }
}

extension ClientRequest {
    public var encoded: [UInt8] {
        var writer = ByteWriter()
        switch self {
        case .query(let path):
            writer.u8(1)
            writer.string(path)
        case .command(let command):
            writer.u8(2)
            command.encode(into: &writer)
        case .admin(let order):
            writer.u8(3)
            writer.slice(order.utf8)
        case .watch(let path):
            writer.u8(4)
            writer.string(path)
        }
        return writer.bytes
    }

    public init(decoding bytes: [UInt8]) throws(WireError) {
        var reader = ByteReader(bytes)
        let at = reader.position
        switch try reader.u8() {
        case 1: self = .query(path: try reader.string(max: 4_096))
        case 2: self = .command(try ClientCommand(decoding: &reader))
        case 3:
            let text = try reader.slice(max: Limits.commandBytes)
            do { self = .admin(try JSONValue(parsing: text)) } catch { throw .invalid(at: at, what: "admin document") }
        case 4: self = .watch(path: try reader.string(max: 4_096))
        default: throw .invalid(at: at, what: "request kind")
        }
        try reader.finish()
    }
}

/// The payload of a `response` frame: bytes whose meaning depends on the request (JSON text, or a ``StateResult``), or why not.
public enum ClientResponse: Sendable {
    case success([UInt8])
    case failure(CoterieError)

    public var encoded: [UInt8] {
        var writer = ByteWriter()
        encode(into: &writer)
        return writer.bytes
    }

    func encode(into writer: inout ByteWriter) {
        switch self {
        case .success(let bytes):
            writer.u8(0)
            writer.raw(bytes)
        case .failure(let error):
            writer.u8(1)
            error.encode(into: &writer)
        }
    }

    public init(decoding bytes: [UInt8]) throws(WireError) {
        var reader = ByteReader(bytes)
        let at = reader.position
        switch try reader.u8() {
        case 0: self = .success(Array(reader.rest()))
        case 1: self = .failure(try CoterieError(decoding: &reader))
        default: throw .invalid(at: at, what: "response kind")
        }
    }
}
