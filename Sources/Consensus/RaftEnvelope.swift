import Model
import Wire

// The bytes of a Raft message. All integers little-endian:
//
//     version u8 (2) | kind u8 | group u64 | from 16 | to 16 | term u64 | body
//
//     body of   1 preVote, 3 vote                     last index u64, last term u64, transfer u8
//               2 preVoteResponse, 4 voteResponse     granted u8
//               5 append                              previous index u64, previous term u64, commit u64, durable u64, count
//                                                     varint,
//                                                     then per entry: term u64, kind u8, length varint, payload
//               6 appendResponse                      0 u8, match u64 | 1 u8, rejected u64, hint index u64, hint term u64 |
//                                                     2 u8, last index u64, last term u64
//               7 heartbeat                           commit u64, durable u64, round u64
//               8 heartbeatResponse                   round u64
//               9 installSnapshot                     index u64, term u64, configuration, total u64, checksum u32,
//                                                     offset u64, length varint, data
//              10 installSnapshotResponse             index u64, term u64, next offset u64
//              11 timeoutNow                          nothing
//              12 inquiry                             nonce u64
//              13 inquiryResponse                     nonce u64, leads u8, last index u64 (0 unless it leads),
//                                                     count varint, voters 16 each, ascending
//
// Indexes of entries follow from `previous`; they are not sent.

/// A message with its address. `group` tells apart the Raft groups that share a connection; `from` and `to` let the
/// receiver refuse what was meant for another identity (hashicorp/nomad#12926).
public struct RaftEnvelope: Hashable, Sendable {
    public var group: UInt64
    public var from: NodeID
    public var to: NodeID
    public var message: RaftMessage

    public init(group: UInt64, from: NodeID, to: NodeID, message: RaftMessage) {
        self.group = group
        self.from = from
        self.to = to
        self.message = message
    }

    public static let version: UInt8 = 2
    /// Limits of the decoder.
    public static let maxEntries = 65_536
    public static let maxChunkBytes = 8 << 20

    public var encoded: [UInt8] {
        var writer = ByteWriter(capacity: capacityHint)
        writer.u8(RaftEnvelope.version)
        writer.u8(message.wireKind)
        writer.u64(group)
        writer.nodeID(from)
        writer.nodeID(to)
        writer.u64(message.term)
        message.encodeBody(into: &writer)
        return writer.bytes
    }

    private var capacityHint: Int {
        switch message {
        case .append(let append): append.entries.reduce(96) { $0 + $1.payload.count + 16 }
        case .installSnapshot(let chunk): chunk.data.count + 4_096
        default: 96
        }
    }

    public init(decoding bytes: ArraySlice<UInt8>) throws(WireError) {
        var reader = ByteReader(bytes)
        guard try reader.u8() == RaftEnvelope.version else { throw .invalid(at: 0, what: "Raft message version") }
        let kind = try reader.u8()
        group = try reader.u64()
        from = try reader.nodeID()
        to = try reader.nodeID()
        let term = try reader.u64()
        message = try RaftMessage(kind: kind, term: term, from: &reader)
        try reader.finish()
    }

    public init(decoding bytes: [UInt8]) throws(WireError) { try self.init(decoding: bytes[...]) }
}

extension RaftMessage {
    fileprivate var wireKind: UInt8 {
        switch self {
        case .preVote: 1
        case .preVoteResponse: 2
        case .vote: 3
        case .voteResponse: 4
        case .append: 5
        case .appendResponse: 6
        case .heartbeat: 7
        case .heartbeatResponse: 8
        case .installSnapshot: 9
        case .installSnapshotResponse: 10
        case .timeoutNow: 11
        case .inquiry: 12
        case .inquiryResponse: 13
        }
    }

    fileprivate func encodeBody(into writer: inout ByteWriter) {
        switch self {
        case .preVote(let m), .vote(let m):
            writer.position(m.last)
            writer.bool(m.isTransfer)
        case .preVoteResponse(let m), .voteResponse(let m):
            writer.bool(m.granted)
        case .append(let m):
            writer.position(m.previous)
            writer.u64(m.commit)
            writer.u64(m.durable)
            writer.count(m.entries.count)
            for entry in m.entries {
                writer.u64(entry.term)
                writer.u8(entry.kind.rawValue)
                writer.slice(entry.payload)
            }
        case .appendResponse(let m):
            switch m.outcome {
            case .accepted(let match):
                writer.u8(0)
                writer.u64(match)
            case .rejected(let rejected, let hint):
                writer.u8(1)
                writer.u64(rejected)
                writer.position(hint)
            case .shortened(let last):
                writer.u8(2)
                writer.position(last)
            }
        case .heartbeat(let m):
            writer.u64(m.commit)
            writer.u64(m.durable)
            writer.u64(m.round)
        case .heartbeatResponse(let m):
            writer.u64(m.round)
        case .installSnapshot(let m):
            writer.position(m.metadata.position)
            m.metadata.configuration.encode(into: &writer)
            writer.u64(m.totalBytes)
            writer.u32(m.checksum)
            writer.u64(m.offset)
            writer.slice(m.data)
        case .installSnapshotResponse(let m):
            writer.position(m.snapshot)
            writer.u64(m.nextOffset)
        case .timeoutNow:
            break
        case .inquiry(let m):
            writer.u64(m.nonce)
        case .inquiryResponse(let m):
            writer.u64(m.nonce)
            writer.bool(m.leaderLast != nil)
            writer.u64(m.leaderLast ?? 0)
            writer.count(m.voters.count)
            for voter in m.voters { writer.nodeID(voter) }
        }
    }

    fileprivate init(kind: UInt8, term: UInt64, from reader: inout ByteReader) throws(WireError) {
        switch kind {
        case 1, 3:
            let last = try reader.logPosition()
            let request = VoteRequest(term: term, last: last, isTransfer: try reader.bool())
            self = kind == 1 ? .preVote(request) : .vote(request)
        case 2, 4:
            let response = VoteResponse(term: term, granted: try reader.bool())
            self = kind == 2 ? .preVoteResponse(response) : .voteResponse(response)
        case 5:
            self = .append(try AppendEntries(term: term, from: &reader))
        case 6:
            let at = reader.position
            switch try reader.u8() {
            case 0: self = .appendResponse(AppendResponse(term: term, outcome: .accepted(match: try reader.u64())))
            case 1:
                let rejected = try reader.u64()
                let hint = try reader.logPosition()
                self = .appendResponse(AppendResponse(term: term, outcome: .rejected(rejected: rejected, hint: hint)))
            case 2:
                self = .appendResponse(AppendResponse(term: term, outcome: .shortened(last: try reader.logPosition())))
            default: throw .invalid(at: at, what: "append outcome")
            }
        case 7:
            let commit = try reader.u64()
            let durable = try reader.u64()
            self = .heartbeat(Heartbeat(term: term, commit: commit, durable: durable, round: try reader.u64()))
        case 8:
            self = .heartbeatResponse(HeartbeatResponse(term: term, round: try reader.u64()))
        case 9:
            self = .installSnapshot(try InstallSnapshot(term: term, from: &reader))
        case 10:
            let snapshot = try reader.logPosition()
            let next = try reader.u64()
            self = .installSnapshotResponse(InstallSnapshotResponse(term: term, snapshot: snapshot, nextOffset: next))
        case 11:
            self = .timeoutNow(TimeoutNow(term: term))
        case 12:
            self = .inquiry(Inquiry(term: term, nonce: try reader.u64()))
        case 13:
            let nonce = try reader.u64()
            let leads = try reader.bool()
            let last = try reader.u64()
            let voters = try RaftConfiguration.list(&reader, max: 2 * RaftConfiguration.maxVoters)
            self = .inquiryResponse(
                InquiryResponse(term: term, nonce: nonce, leaderLast: leads ? last : nil, voters: voters))
        default:
            throw .invalid(at: 1, what: "Raft message kind \(kind)")
        }
    }
}

extension AppendEntries {
    fileprivate init(term: UInt64, from reader: inout ByteReader) throws(WireError) {
        let at = reader.position
        let previous = try reader.logPosition()
        let commit = try reader.u64()
        let durable = try reader.u64()
        let count = try reader.count(max: RaftEnvelope.maxEntries, itemBytes: 10)
        guard previous.index <= UInt64.max - UInt64(count) else { throw .invalid(at: at, what: "log index") }
        var entries: [LogEntry] = []
        entries.reserveCapacity(count)
        for i in 0..<UInt64(count) {
            let entryTerm = try reader.u64()
            let kindAt = reader.position
            guard let kind = LogEntry.Kind(rawValue: try reader.u8()) else {
                throw .invalid(at: kindAt, what: "entry kind")
            }
            let payload = try reader.array(max: Limits.commandBytes)
            entries.append(LogEntry(index: previous.index + 1 + i, term: entryTerm, kind: kind, payload: payload))
        }
        self.init(term: term, previous: previous, commit: commit, durable: durable, entries: entries)
    }
}

extension InstallSnapshot {
    fileprivate init(term: UInt64, from reader: inout ByteReader) throws(WireError) {
        let position = try reader.logPosition()
        let configuration = try RaftConfiguration(from: &reader)
        let total = try reader.u64()
        let checksum = try reader.u32()
        let at = reader.position
        let offset = try reader.u64()
        let data = try reader.array(max: RaftEnvelope.maxChunkBytes)
        guard offset <= total, UInt64(data.count) <= total - offset else {
            throw .invalid(at: at, what: "snapshot offset")
        }
        self.init(
            term: term,
            metadata: SnapshotMetadata(index: position.index, term: position.term, configuration: configuration),
            totalBytes: total, checksum: checksum, offset: offset, data: data)
    }
}

extension ByteWriter {
    fileprivate mutating func position(_ value: LogPosition) {
        u64(value.index)
        u64(value.term)
    }
}

extension ByteReader {
    fileprivate mutating func logPosition() throws(WireError) -> LogPosition {
        let index = try u64()
        return LogPosition(index: index, term: try u64())
    }
}
