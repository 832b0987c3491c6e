import Consensus
import Wire

// Reads one segment and tells three things apart: the end of the log, a batch that a crash cut short, and damage.
//
// A batch is written only after the one before it was synced. So whatever lies before a valid record of a later batch was
// durable, and if it is unreadable it is damaged. Only the last batch of the last segment can be torn, and a torn write
// leaves whole sectors as they were before, which is zero, for segments are zeroed before use. An unreadable place in the last
// batch that no zero sector explains is damage too: acknowledged entries are never taken for a torn tail because of a
// flipped bit. docs/journal.md has the table.
//
// A disk may also write a sector to the wrong place. What is in it then are genuine records of this segment, which would tell
// of an end of the log that is long past. Batches only rise from the segment's beginning to its end, so behind a batch that is
// known to lie where it was written (its mark says where it began) no record of that batch or an earlier one is believed.

struct ScannedRecord {
    var header: RecordHeader
    var payload: [UInt8]
    var offset: Int
}

struct SegmentScan {
    enum End: Hashable {
        case clean
        /// The batch that begins here is incomplete and was never acknowledged.
        case torn(at: Int)
        /// Unreadable from here to the end of the segment.
        case damaged
    }

    var end: End = .clean
    /// After the last complete batch.
    var usedBytes: Int
    var chain: UInt32
    var batches: UInt32
    var commit: UInt64 = 0
}

/// What a scan hands out, in order.
enum ScanEvent {
    case record(ScannedRecord)
    /// Unreadable bytes. `lost` is the header of the one record that is lost, if it is readable and nothing else is.
    case damage(offset: Int, reason: String, lost: RecordHeader?)
}

struct SegmentScanner {
    let bytes: [UInt8]
    let seed: UInt32
    let isLast: Bool
    /// The file was longer when it was made.
    let isCutShort: Bool

    init(bytes: [UInt8], serial: UInt64, isLast: Bool, isCutShort: Bool = false) {
        self.isCutShort = isCutShort
        self.bytes = bytes
        seed = RecordFormat.seed(serial: serial)
        self.isLast = isLast
    }

    /// `chain` is nil if the segment's header is unreadable; then the first record's is believed.
    func scan(chain startChain: UInt32?, _ visit: (ScanEvent) -> Void) -> SegmentScan {
        bytes.withUnsafeBytes { scan($0, startChain, visit) }
    }

    private enum Step {
        case record(RecordHeader)
        case end
        case bad(reason: String, header: RecordHeader?)
    }

    private func scan(_ b: UnsafeRawBufferPointer, _ startChain: UInt32?, _ visit: (ScanEvent) -> Void) -> SegmentScan {
        var result = SegmentScan(usedBytes: RecordFormat.sector, chain: startChain ?? 0, batches: 0)
        var chain = startChain
        var offset = RecordFormat.sector
        var batchStart = offset
        var expectedBatch: UInt32 = 1
        /// The last batch that is known to lie where it was written.
        var placedBatch: UInt32 = 0
        var batch: [ScannedRecord] = []
        while true {
            switch step(b, at: offset, chain: chain, expectedBatch: expectedBatch, inBatch: offset != batchStart) {
            case .end:
                return result
            case .record(let header):
                let start = offset + RecordFormat.headerBytes
                let payload = Array(b[start..<start + header.payloadLength])
                batch.append(ScannedRecord(header: header, payload: payload, offset: offset))
                offset += header.recordBytes
                chain = header.chain
                guard header.type == .mark else { continue }
                for record in batch { visit(.record(record)) }
                batch = []
                if batchBegin(payload) == batchStart { placedBatch = header.batch }
                batchStart = offset
                expectedBatch = header.batch + 1
                result.usedBytes = offset
                result.chain = header.chain
                result.batches = header.batch
                result.commit = max(result.commit, commitHint(payload))
            case .bad(let reason, let header):
                if isTorn(b, at: offset, batchStart: batchStart, batch: expectedBatch, bad: header) {
                    result.end = .torn(at: batchStart)
                    return result
                }
                // Damage. Hand out what is readable before it, skip to what is readable behind it.
                for record in batch { visit(.record(record)) }
                batch = []
                let next: Int?
                if let header, offset + header.recordBytes <= b.count {
                    visit(.damage(offset: offset, reason: reason, lost: header))
                    next = offset + header.recordBytes
                    chain = header.chain
                    if header.type == .mark { expectedBatch = header.batch + 1 }
                } else {
                    visit(.damage(offset: offset, reason: reason, lost: nil))
                    next = nextHeader(b, from: offset + 8, behind: placedBatch)
                    chain = nil
                    if let next, let found = RecordHeader(b, at: next, seed: seed) { expectedBatch = found.batch }
                }
                guard let next else {
                    result.end = .damaged
                    return result
                }
                offset = next
                if let header, header.type == .mark {
                    batchStart = next
                    result.usedBytes = next
                    result.chain = header.chain
                    result.batches = header.batch
                } else {
                    // The batch's beginning is behind us: what follows of it was durable, or is damage.
                    batchStart = -1
                }
            }
        }
    }

    private func commitHint(_ payload: [UInt8]) -> UInt64 {
        guard payload.count == RecordFormat.markPayloadBytes else { return 0 }
        return payload.withUnsafeBytes { $0.u64(8) }
    }

    /// Where the batch of this mark was written.
    private func batchBegin(_ payload: [UInt8]) -> Int? {
        guard payload.count == RecordFormat.markPayloadBytes else { return nil }
        return Int(payload.withUnsafeBytes { $0.u32(0) })
    }

    private func step(_ b: UnsafeRawBufferPointer, at offset: Int, chain: UInt32?, expectedBatch: UInt32, inBatch: Bool)
        -> Step
    {
        let room = b.count - offset
        if room < RecordFormat.headerBytes
            || isZero(UnsafeRawBufferPointer(rebasing: b[offset..<offset + RecordFormat.headerBytes]))
        {
            if inBatch { return .bad(reason: "a batch without its end", header: nil) }
            // With room for a header there would be one, if anything had followed.
            if room < RecordFormat.headerBytes && isCutShort {
                return .bad(reason: "the file is cut short", header: nil)
            }
            return firstNonzero(b, from: offset) == nil ? .end : .bad(reason: "a hole", header: nil)
        }
        guard let header = RecordHeader(b, at: offset, seed: seed) else {
            return .bad(reason: "header checksum", header: nil)
        }
        guard header.batch == expectedBatch else { return .bad(reason: "a batch is missing", header: nil) }
        if let chain {
            let covered = UnsafeRawBufferPointer(rebasing: b[offset..<offset + 32])
            guard CRC32C.checksum(covered, continuing: chain) == header.chain else {
                return .bad(reason: "chain", header: nil)
            }
        }
        guard header.recordBytes <= room else { return .bad(reason: "length", header: nil) }
        let start = offset + RecordFormat.headerBytes
        guard
            CRC32C.checksum(UnsafeRawBufferPointer(rebasing: b[start..<start + header.payloadLength]))
                == header.payloadCRC
        else {
            return .bad(reason: "payload checksum", header: header)
        }
        if header.type == .mark && header.payloadLength != RecordFormat.markPayloadBytes {
            return .bad(reason: "mark", header: nil)
        }
        if header.type == .entry && LogEntry.Kind(rawValue: header.kind) == nil {
            return .bad(reason: "entry kind", header: header)
        }
        return .record(header)
    }

    /// The next header of a later batch than `batch`.
    private func nextHeader(_ b: UnsafeRawBufferPointer, from start: Int, behind batch: UInt32 = 0) -> Int? {
        var offset = start
        while offset + RecordFormat.headerBytes <= b.count {
            // Most of what is searched is zero.
            if b.loadUnaligned(fromByteOffset: offset, as: UInt64.self) == 0 {
                guard let nonzero = firstNonzero(b, from: offset) else { return nil }
                offset = nonzero / 8 * 8
                // A header's first word holds its type and is never zero, so it begins here or later.
            }
            if let header = RecordHeader(b, at: offset, seed: seed), header.batch > batch { return offset }
            offset += 8
        }
        return nil
    }

    /// Whether the unreadable place at `offset` in the batch that began at `batchStart` is what a crash during the last
    /// write leaves.
    private func isTorn(_ b: UnsafeRawBufferPointer, at offset: Int, batchStart: Int, batch: UInt32, bad: RecordHeader?)
        -> Bool
    {
        // A segment gets its name after its first batch is synced; and what was resumed behind damage has no beginning.
        guard isLast, batch > 1, batchStart >= 0 else { return false }
        // A crash leaves the length as it is.
        if isCutShort && b.count - offset < RecordFormat.headerBytes { return false }
        var mark: (offset: Int, header: RecordHeader)?
        var search = offset
        while let found = nextHeader(b, from: search), let header = RecordHeader(b, at: found, seed: seed) {
            if header.batch > batch { return false }
            if header.type == .mark && header.batch == batch { mark = (found, header) }
            search = found + 8
        }
        if let mark, mark.offset + mark.header.recordBytes <= b.count {
            let end = mark.offset + mark.header.recordBytes
            let payload = UnsafeRawBufferPointer(rebasing: b[mark.offset + RecordFormat.headerBytes..<end])
            if payload.count == RecordFormat.markPayloadBytes, CRC32C.checksum(payload) == mark.header.payloadCRC {
                let zeros = zeroSectors(
                    UnsafeRawBufferPointer(rebasing: b[batchStart..<end]), at: batchStart, ignoringLast: false)
                return zeros > Int(payload.u32(4))
            }
        }
        // The mark is unreadable too. The unreadable record must lie in a sector that was not written.
        let length =
            bad.map { min($0.recordBytes, b.count - offset) } ?? min(RecordFormat.headerBytes, b.count - offset)
        var position = offset
        while position < offset + length {
            let sectorEnd = min((position / RecordFormat.sector + 1) * RecordFormat.sector, b.count)
            let sectorStart = max(position / RecordFormat.sector * RecordFormat.sector, batchStart)
            if isZero(UnsafeRawBufferPointer(rebasing: b[sectorStart..<sectorEnd])) { return true }
            position = sectorEnd
        }
        return false
    }
}
