import Consensus
import Model
import Wire

// The bytes of a segment. docs/journal.md draws them; all integers are little-endian.
//
// A record's header has a checksum of its own, so that a damaged payload still tells which entry is lost (Alagappan et al.,
// "Protocol-aware recovery for consensus-based storage", FAST '18), and is seeded with the segment's serial, so that what is
// left of a recycled segment never reads as a record of this one. A second checksum chains each record to the one before,
// so that none can be missing or out of place.

enum RecordFormat {
    static let sector = 512
    static let headerBytes = 40
    static let markPayloadBytes = 24
    /// Ends the mark, so that none of the sectors a mark lies in is all zero.
    static let markEnd: UInt32 = 0x4B52_414D
    static let segmentMagic: UInt64 = 0x314C_4E52_4A54_4F43
    static let version: UInt32 = 1
    /// Largest batch: keeps offsets in 32 bits and one write within reason.
    static let maxBatchBytes = 512 << 20

    static func padded(_ count: Int) -> Int { (count + 7) & ~7 }
    static func recordBytes(payload: Int) -> Int { headerBytes + padded(payload) }

    static func seed(serial: UInt64) -> UInt32 {
        withUnsafeBytes(of: serial.littleEndian) { CRC32C.checksum($0) }
    }

    /// The chain value before the first record of a segment.
    static func chainStart(previous: UInt32, serial: UInt64) -> UInt32 {
        withUnsafeBytes(of: serial.littleEndian) { CRC32C.checksum($0, continuing: previous) }
    }

    static func segmentName(serial: UInt64, base: UInt64) -> String {
        "segment-\(hexadecimal(serial))-\(hexadecimal(base + 1)).log"
    }

    /// Serial and first index from a name, nil for other files.
    static func parseSegmentName(_ name: String) -> (serial: UInt64, first: UInt64)? {
        let parts = name.split(separator: "-", omittingEmptySubsequences: false)
        guard parts.count == 3, parts[0] == "segment", parts[1].utf8.count == 16, parts[2].hasSuffix(".log"),
            parts[2].utf8.count == 20, let serial = UInt64(parts[1], radix: 16),
            let first = UInt64(parts[2].dropLast(4), radix: 16)
        else { return nil }
        return (serial, first)
    }
}

enum RecordType: UInt8 {
    case entry = 1
    /// Entries from `index` on are removed.
    case truncate = 2
    /// The whole log is removed; it goes on after (`index`, `term`).
    case reset = 3
    /// Ends a batch: what one sync makes durable. `index` and `term` are those of the last entry then.
    case mark = 4
}

struct RecordHeader {
    var payloadLength: Int
    var type: RecordType
    var kind: UInt8
    var index: UInt64
    var term: UInt64
    /// Counts from 1 in each segment.
    var batch: UInt32
    var payloadCRC: UInt32
    var chain: UInt32

    var recordBytes: Int { RecordFormat.recordBytes(payload: payloadLength) }

    /// Nil unless the 40 bytes at `offset` are a header of this segment.
    init?(_ bytes: UnsafeRawBufferPointer, at offset: Int, seed: UInt32) {
        guard offset >= 0, offset + RecordFormat.headerBytes <= bytes.count else { return nil }
        guard let type = RecordType(rawValue: bytes[offset + 4]), bytes[offset + 6] == 0, bytes[offset + 7] == 0 else {
            return nil
        }
        let covered = UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + 36])
        guard CRC32C.checksum(covered, continuing: seed) == bytes.u32(offset + 36) else { return nil }
        payloadLength = Int(bytes.u32(offset))
        self.type = type
        kind = bytes[offset + 5]
        index = bytes.u64(offset + 8)
        term = bytes.u64(offset + 16)
        batch = bytes.u32(offset + 24)
        payloadCRC = bytes.u32(offset + 28)
        chain = bytes.u32(offset + 32)
    }
}

struct SegmentHeader: Hashable {
    var serial: UInt64
    var identity: JournalIdentity
    /// The last entry when the segment began.
    var base: LogPosition
    /// The chain value at the end of the segment before.
    var previousChain: UInt32
    /// Size of the file, so that one that was cut short is known by it; 0 in segments of the first version of the program.
    var bytes: UInt32

    /// One sector: magic u64, version u32, CRC u32 of everything else, serial u64, cluster u64, node 16, base index u64, base
    /// term u64, previous chain u32, bytes u32, zeros.
    func encode(into image: inout [UInt8]) {
        var writer = ByteWriter(capacity: RecordFormat.sector)
        writer.u64(RecordFormat.segmentMagic)
        writer.u32(RecordFormat.version)
        writer.u32(0)
        writer.u64(serial)
        writer.u64(identity.cluster)
        writer.nodeID(identity.node)
        writer.u64(base.index)
        writer.u64(base.term)
        writer.u32(previousChain)
        writer.u32(bytes)
        writer.raw(repeatElement(0, count: RecordFormat.sector - writer.count))
        writer.patch(u32: SegmentHeader.crc(writer.bytes[...]), at: 12)
        image.append(contentsOf: writer.bytes)
    }

    private static func crc(_ sector: ArraySlice<UInt8>) -> UInt32 {
        let first = CRC32C.checksum(sector.prefix(12))
        return CRC32C.checksum(sector.dropFirst(16), continuing: first)
    }

    enum Failure: Error { case damaged, version(UInt32) }

    init(serial: UInt64, identity: JournalIdentity, base: LogPosition, previousChain: UInt32, bytes: UInt32) {
        self.bytes = bytes
        self.serial = serial
        self.identity = identity
        self.base = base
        self.previousChain = previousChain
    }

    init(decoding bytes: [UInt8]) throws(Failure) {
        guard bytes.count >= RecordFormat.sector else { throw .damaged }
        let sector = bytes[0..<RecordFormat.sector]
        let (magic, version, crc, serial, cluster, high, low, index, term, chain, size) = sector.withUnsafeBytes { b in
            (
                b.u64(0), b.u32(8), b.u32(12), b.u64(16), b.u64(24), b.u64(32), b.u64(40), b.u64(48), b.u64(56),
                b.u32(64), b.u32(68)
            )
        }
        guard magic == RecordFormat.segmentMagic, crc == SegmentHeader.crc(sector) else { throw .damaged }
        guard version == RecordFormat.version else { throw .version(version) }
        self.init(
            serial: serial, identity: JournalIdentity(cluster: cluster, node: NodeID(high: high, low: low)),
            base: LogPosition(index: index, term: term), previousChain: chain, bytes: size)
    }
}

/// Builds the image of one batch that will lie at `offset` of a segment.
struct BatchEncoder {
    let seed: UInt32
    let batch: UInt32
    /// Where in the segment the batch begins; `image` may hold the segment's header before it.
    let offset: Int
    private(set) var chain: UInt32
    private(set) var image: [UInt8]
    private let start: Int
    private var records: UInt32 = 0

    init(seed: UInt32, batch: UInt32, offset: Int, chain: UInt32, image: consuming [UInt8]) {
        self.seed = seed
        self.batch = batch
        self.offset = offset
        self.chain = chain
        start = image.count
        self.image = image
    }

    mutating func record(_ type: RecordType, kind: UInt8 = 0, index: UInt64, term: UInt64, payload: [UInt8] = []) {
        withUnsafeTemporaryAllocation(byteCount: RecordFormat.headerBytes, alignment: 8) { header in
            header.storeBytes(of: UInt32(payload.count).littleEndian, toByteOffset: 0, as: UInt32.self)
            header.storeBytes(of: UInt32(type.rawValue) | UInt32(kind) << 8, toByteOffset: 4, as: UInt32.self)
            header.storeBytes(of: index.littleEndian, toByteOffset: 8, as: UInt64.self)
            header.storeBytes(of: term.littleEndian, toByteOffset: 16, as: UInt64.self)
            header.storeBytes(of: batch.littleEndian, toByteOffset: 24, as: UInt32.self)
            header.storeBytes(of: CRC32C.checksum(payload).littleEndian, toByteOffset: 28, as: UInt32.self)
            chain = CRC32C.checksum(UnsafeRawBufferPointer(rebasing: header[0..<32]), continuing: chain)
            header.storeBytes(of: chain.littleEndian, toByteOffset: 32, as: UInt32.self)
            let own = CRC32C.checksum(UnsafeRawBufferPointer(rebasing: header[0..<36]), continuing: seed)
            header.storeBytes(of: own.littleEndian, toByteOffset: 36, as: UInt32.self)
            image.append(contentsOf: UnsafeRawBufferPointer(header))
        }
        image.append(contentsOf: payload)
        let padding = RecordFormat.padded(payload.count) - payload.count
        if padding > 0 { image.append(contentsOf: repeatElement(0, count: padding)) }
        records += 1
    }

    /// Ends the batch. The mark counts the sectors of the batch that are all zero by their contents: at recovery, more of
    /// them mean that sectors never reached the disk.
    mutating func mark(last: LogPosition, commit: UInt64) {
        let zeros = image.withUnsafeBytes { bytes in
            zeroSectors(UnsafeRawBufferPointer(rebasing: bytes[start...]), at: offset, ignoringLast: true)
        }
        var payload = ByteWriter(capacity: RecordFormat.markPayloadBytes)
        payload.u32(UInt32(offset))
        payload.u32(UInt32(zeros))
        payload.u64(commit)
        payload.u32(records)
        payload.u32(RecordFormat.markEnd)
        record(.mark, index: last.index, term: last.term, payload: payload.bytes)
    }
}

/// How many sectors are all zero where `bytes`, which begin at `offset` of the file, cover them. `ignoringLast` leaves out the
/// sector in which the bytes end, because a mark follows there and makes it nonzero.
func zeroSectors(_ bytes: UnsafeRawBufferPointer, at offset: Int, ignoringLast: Bool) -> Int {
    var count = 0
    var position = 0
    while position < bytes.count {
        let sectorEnd = ((offset + position) / RecordFormat.sector + 1) * RecordFormat.sector - offset
        if sectorEnd > bytes.count && ignoringLast { break }
        let end = min(sectorEnd, bytes.count)
        if isZero(UnsafeRawBufferPointer(rebasing: bytes[position..<end])) { count += 1 }
        position = end
    }
    return count
}

func isZero(_ bytes: UnsafeRawBufferPointer) -> Bool { firstNonzero(bytes, from: 0) == nil }

/// Index of the first byte that is not zero, looking at words where it can.
func firstNonzero(_ bytes: UnsafeRawBufferPointer, from start: Int) -> Int? {
    var i = start
    while i + 8 <= bytes.count {
        if bytes.loadUnaligned(fromByteOffset: i, as: UInt64.self) != 0 { break }
        i += 8
    }
    while i < bytes.count {
        if bytes[i] != 0 { return i }
        i += 1
    }
    return nil
}

extension UnsafeRawBufferPointer {
    func u32(_ offset: Int) -> UInt32 { UInt32(littleEndian: loadUnaligned(fromByteOffset: offset, as: UInt32.self)) }
    func u64(_ offset: Int) -> UInt64 { UInt64(littleEndian: loadUnaligned(fromByteOffset: offset, as: UInt64.self)) }
}
