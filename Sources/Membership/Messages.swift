// What members say to each other, and its bytes. Layout of a datagram (plain; sealing is the driver's business):
//
//     version u8 | cluster u32 (CRC32C of the name) | from u64 | to u64 (0: whoever is there) | view digest u64 | health u8
//     | kind u8 | body of that kind | records until the end: type u8, length varint, body
//
// A record's body may grow at its end: readers skip what they do not know. A record type with bit 7 set may be skipped whole.
import Model
import Wire

/// The version byte of datagrams and push-pull payloads.
let formatVersion: UInt8 = 1

/// What backs an accusation.
enum Evidence: UInt8, Hashable, Sendable {
    /// No answer in time.
    case silence = 0
    /// The operating system at its address said that nobody listens there, or somebody else answered.
    case refused = 1
}

/// A statement about one member.
enum Record: Hashable, Sendable {
    case alive(AliveRecord)
    case suspect(subject: UInt64, incarnation: UInt64, accuser: UInt64, evidence: Evidence)
    case dead(subject: UInt64, incarnation: UInt64, accuser: UInt64, evidence: Evidence)
    case left(subject: UInt64, incarnation: UInt64)
    /// "Send me that one's record": the answer is a delta.
    case want(subject: UInt64)

    var subject: UInt64 {
        switch self {
        case .alive(let record): record.id.short
        case .suspect(let subject, _, _, _), .dead(let subject, _, _, _): subject
        case .left(let subject, _), .want(let subject): subject
        }
    }
}

/// All that a member says of itself. The only place where names travel.
struct AliveRecord: Hashable, Sendable {
    var id: NodeID
    var incarnation: UInt64
    var name: String
    var address: SocketAddress
    /// Sorted by key, so that equal records are equal bytes.
    var tags: [(key: String, value: String)]
    var meta: [UInt8]
    var version: String

    init(_ member: Member) {
        id = member.id
        incarnation = member.incarnation
        name = member.name
        address = member.address
        tags = member.tags.sorted { $0.key < $1.key }.map { (key: $0.key, value: $0.value) }
        meta = member.meta
        version = member.version
    }

    static func == (a: Self, b: Self) -> Bool {
        a.id == b.id && a.incarnation == b.incarnation && a.name == b.name && a.address == b.address && a.meta == b.meta
            && a.version == b.version && a.tags.elementsEqual(b.tags) { $0.key == $1.key && $0.value == $1.value }
    }

    func hash(into hasher: inout Hasher) {
        hasher.combine(id)
        hasher.combine(incarnation)
    }
}

/// One line of a summary: enough to see who knows better.
struct SummaryEntry: Hashable, Sendable {
    var subject: UInt64
    var incarnation: UInt64
    var state: MemberState
}

struct Datagram: Hashable, Sendable {
    enum Body: Hashable, Sendable {
        case ping(sequence: UInt64)
        case ack(sequence: UInt64)
        /// "Ping `target` for me": answered by relayed ack, nack or refusal, with the same sequence.
        case indirectPing(sequence: UInt64, target: UInt64, address: SocketAddress)
        case relayedAck(sequence: UInt64, target: UInt64)
        /// "I am well, but the target does not answer me either" (Lifeguard).
        case nack(sequence: UInt64, target: UInt64)
        /// "Nobody listens at the target's address."
        case refusal(sequence: UInt64, target: UInt64)
        /// The answer to a ping for `asked` at an address where another process lives now.
        case otherProcess(sequence: UInt64, asked: UInt64)
        case gossip
        case summary([SummaryEntry])
        case delta
    }

    var cluster: UInt32
    var from: UInt64
    var to: UInt64
    var digest: UInt64
    var health: UInt8
    var body: Body
    var records: [Record]
}

/// The whole view, over a stream.
struct PushPull: Hashable, Sendable {
    var cluster: UInt32
    var isRequest: Bool
    var from: UInt64
    var to: UInt64
    var records: [Record]
}

/// CRC32C of the cluster's name: tells clusters apart that share a network, without being a secret.
func clusterHash(_ name: String) -> UInt32 { CRC32C.checksum(Array(name.utf8)) }

enum Codec {
    /// Most records of one datagram; a want is the smallest, at 10 bytes.
    static let recordsPerDatagram = 160
    /// Largest whole datagram that is read, sealed or not.
    static let datagramLimit = 1_472
    static let summaryEntries = 160
    static let versionBytes = 32

    static func encode(_ record: Record) -> [UInt8] {
        var body = ByteWriter(capacity: 64)
        let type: UInt8
        switch record {
        case .alive(let record):
            type = 1
            body.nodeID(record.id)
            body.varint(record.incarnation)
            body.string(record.name)
            body.address(record.address)
            body.count(record.tags.count)
            for tag in record.tags {
                body.string(tag.key)
                body.string(tag.value)
            }
            body.slice(record.meta)
            body.string(record.version)
        case .suspect(let subject, let incarnation, let accuser, let evidence):
            type = 2
            body.u64(subject)
            body.varint(incarnation)
            body.u64(accuser)
            body.u8(evidence.rawValue)
        case .dead(let subject, let incarnation, let accuser, let evidence):
            type = 3
            body.u64(subject)
            body.varint(incarnation)
            body.u64(accuser)
            body.u8(evidence.rawValue)
        case .left(let subject, let incarnation):
            type = 4
            body.u64(subject)
            body.varint(incarnation)
        case .want(let subject):
            type = 5
            body.u64(subject)
        }
        var writer = ByteWriter(capacity: body.count + 3)
        writer.u8(type)
        writer.slice(body.bytes)
        return writer.bytes
    }

    /// Nil for a record of an unknown type that may be skipped.
    static func decodeRecord(_ reader: inout ByteReader, max limit: Int) throws(WireError) -> Record? {
        let at = reader.position
        let type = try reader.u8()
        var body = ByteReader(try reader.slice(max: limit))
        switch type {
        case 1: return .alive(try decodeAlive(&body))
        case 2, 3:
            let subject = try body.u64()
            let incarnation = try body.varint()
            let accuser = try body.u64()
            // An evidence of a later version counts as the weakest.
            let evidence = Evidence(rawValue: try body.u8()) ?? .silence
            return type == 2
                ? .suspect(subject: subject, incarnation: incarnation, accuser: accuser, evidence: evidence)
                : .dead(subject: subject, incarnation: incarnation, accuser: accuser, evidence: evidence)
        case 4: return .left(subject: try body.u64(), incarnation: try body.varint())
        case 5: return .want(subject: try body.u64())
        default:
            guard type & 0x80 != 0 else { throw .invalid(at: at, what: "record type") }
            return nil
        }
    }

    private static func decodeAlive(_ body: inout ByteReader) throws(WireError) -> AliveRecord {
        let id = try body.nodeID()
        let incarnation = try body.varint()
        let name = try body.string(max: Limits.nameBytes)
        let address = try body.address()
        var tags: [String: String] = [:]
        for _ in 0..<(try body.count(max: Limits.tags, itemBytes: 2)) {
            let at = body.position
            let key = try body.string(max: Limits.tagBytes)
            let value = try body.string(max: Limits.tagBytes)
            guard key.utf8.count + value.utf8.count <= Limits.tagBytes, tags.updateValue(value, forKey: key) == nil
            else {
                throw .invalid(at: at, what: "tag")
            }
        }
        let meta = try body.array(max: Membership.metaBytes)
        let version = try body.string(max: versionBytes)
        return AliveRecord(
            Member(
                id: id, name: name, address: address, incarnation: incarnation, tags: tags, meta: meta, version: version
            ))
    }

    /// Header and body; records are appended by the caller as encoded bytes.
    static func encodeHead(_ datagram: Datagram, into writer: inout ByteWriter) {
        writer.u8(formatVersion)
        writer.u32(datagram.cluster)
        writer.u64(datagram.from)
        writer.u64(datagram.to)
        writer.u64(datagram.digest)
        writer.u8(datagram.health)
        switch datagram.body {
        case .ping(let sequence):
            writer.u8(1)
            writer.varint(sequence)
        case .ack(let sequence):
            writer.u8(2)
            writer.varint(sequence)
        case .indirectPing(let sequence, let target, let address):
            writer.u8(3)
            writer.varint(sequence)
            writer.u64(target)
            writer.address(address)
        case .relayedAck(let sequence, let target):
            writer.u8(4)
            writer.varint(sequence)
            writer.u64(target)
        case .nack(let sequence, let target):
            writer.u8(5)
            writer.varint(sequence)
            writer.u64(target)
        case .refusal(let sequence, let target):
            writer.u8(6)
            writer.varint(sequence)
            writer.u64(target)
        case .otherProcess(let sequence, let asked):
            writer.u8(7)
            writer.varint(sequence)
            writer.u64(asked)
        case .gossip:
            writer.u8(8)
        case .summary(let entries):
            writer.u8(9)
            writer.count(entries.count)
            for entry in entries {
                writer.u64(entry.subject)
                writer.varint(entry.incarnation)
                writer.u8(entry.state.rank)
            }
        case .delta:
            writer.u8(10)
        }
    }

    static func encode(_ datagram: Datagram) -> [UInt8] {
        var writer = ByteWriter(capacity: 256)
        encodeHead(datagram, into: &writer)
        for record in datagram.records { writer.raw(encode(record)) }
        return writer.bytes
    }

    /// Reads only as far as needed to see that a datagram is of another cluster.
    static func cluster(of bytes: ArraySlice<UInt8>) throws(WireError) -> UInt32 {
        var reader = ByteReader(bytes)
        guard try reader.u8() == formatVersion else { throw .invalid(at: 0, what: "version") }
        return try reader.u32()
    }

    static func decode(_ bytes: ArraySlice<UInt8>) throws(WireError) -> Datagram {
        guard bytes.count <= datagramLimit else { throw .tooLong(at: 0, length: bytes.count, limit: datagramLimit) }
        var reader = ByteReader(bytes)
        guard try reader.u8() == formatVersion else { throw .invalid(at: 0, what: "version") }
        let cluster = try reader.u32()
        let from = try reader.u64()
        let to = try reader.u64()
        let digest = try reader.u64()
        let health = try reader.u8()
        let body = try decodeBody(&reader)
        var records: [Record] = []
        while !reader.isAtEnd {
            guard records.count < recordsPerDatagram else {
                throw .invalid(at: reader.position, what: "number of records")
            }
            if let record = try decodeRecord(&reader, max: datagramLimit) { records.append(record) }
        }
        return Datagram(
            cluster: cluster, from: from, to: to, digest: digest, health: health, body: body, records: records)
    }

    private static func decodeBody(_ reader: inout ByteReader) throws(WireError) -> Datagram.Body {
        let at = reader.position
        switch try reader.u8() {
        case 1: return .ping(sequence: try reader.varint())
        case 2: return .ack(sequence: try reader.varint())
        case 3:
            return .indirectPing(sequence: try reader.varint(), target: try reader.u64(), address: try reader.address())
        case 4: return .relayedAck(sequence: try reader.varint(), target: try reader.u64())
        case 5: return .nack(sequence: try reader.varint(), target: try reader.u64())
        case 6: return .refusal(sequence: try reader.varint(), target: try reader.u64())
        case 7: return .otherProcess(sequence: try reader.varint(), asked: try reader.u64())
        case 8: return .gossip
        case 9:
            let count = try reader.count(max: summaryEntries, itemBytes: 10)
            var entries: [SummaryEntry] = []
            entries.reserveCapacity(count)
            for _ in 0..<count {
                let subject = try reader.u64()
                let incarnation = try reader.varint()
                let at = reader.position
                guard let state = MemberState(rank: try reader.u8()) else { throw .invalid(at: at, what: "state") }
                entries.append(SummaryEntry(subject: subject, incarnation: incarnation, state: state))
            }
            return .summary(entries)
        case 10: return .delta
        default: throw .invalid(at: at, what: "kind")
        }
    }

    static func encode(_ payload: PushPull) -> [UInt8] {
        var writer = ByteWriter(capacity: 64 * payload.records.count + 32)
        writer.u8(formatVersion)
        writer.u32(payload.cluster)
        writer.u8(payload.isRequest ? 1 : 2)
        writer.u64(payload.from)
        writer.u64(payload.to)
        writer.count(payload.records.count)
        for record in payload.records { writer.raw(encode(record)) }
        return writer.bytes
    }

    /// `recordLimit` is twice the most members, since a suspect one takes two records.
    static func decodePushPull(_ bytes: [UInt8], recordLimit: Int) throws(WireError) -> PushPull {
        guard bytes.count <= Limits.frameBytes else {
            throw .tooLong(at: 0, length: bytes.count, limit: Limits.frameBytes)
        }
        var reader = ByteReader(bytes)
        guard try reader.u8() == formatVersion else { throw .invalid(at: 0, what: "version") }
        let cluster = try reader.u32()
        let isRequest: Bool
        switch try reader.u8() {
        case 1: isRequest = true
        case 2: isRequest = false
        default: throw .invalid(at: 5, what: "kind")
        }
        let from = try reader.u64()
        let to = try reader.u64()
        let count = try reader.count(max: recordLimit, itemBytes: 10)
        var records: [Record] = []
        for _ in 0..<count {
            if let record = try decodeRecord(&reader, max: datagramLimit) { records.append(record) }
        }
        return PushPull(cluster: cluster, isRequest: isRequest, from: from, to: to, records: records)
    }
}
