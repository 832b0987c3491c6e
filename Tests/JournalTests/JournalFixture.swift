import Consensus
import Model
import Simulator

@testable import Journal

/// Small segments, so that a few batches cross several.
let smallOptions = JournalOptions(segmentBytes: 4_096, spareSegments: 1, maintenanceBytes: 4_096)

func entry(_ index: UInt64, term: UInt64 = 1, bytes: Int = 100) -> LogEntry {
    // No byte of the payload is zero, so that a lost sector can be told from contents.
    LogEntry(
        index: index, term: term, kind: .command, payload: (0..<bytes).map { UInt8(($0 &* 7 &+ Int(index)) % 251 + 1) })
}

func append(_ indexes: ClosedRange<UInt64>, term: UInt64 = 1, bytes: Int = 100) -> PersistRequest {
    PersistRequest(ticket: 0, entries: indexes.map { entry($0, term: term, bytes: bytes) })
}

let someNode = NodeID(high: 1, low: 2)

func openJournal(
    _ disk: SimulatedDisk, options: JournalOptions = smallOptions, snapshot: SnapshotMetadata = .none
) throws -> (Journal, RecoveredJournal) {
    let (journal, recovered) = try Journal.open(disk: disk, options: options, snapshot: snapshot)
    return (journal, recovered)
}

func snapshot(at index: UInt64, term: UInt64 = 1) -> SnapshotMetadata {
    SnapshotMetadata(index: index, term: term, configuration: RaftConfiguration(voters: [someNode]))
}

func segmentNames(_ disk: SimulatedDisk) throws -> [String] {
    try disk.list().filter { RecordFormat.parseSegmentName($0) != nil }.sorted()
}

/// Where each record of a segment begins, with its header.
func records(_ disk: SimulatedDisk, _ name: String) -> [(offset: Int, header: RecordHeader)] {
    guard let bytes = disk.contents(name), let parsed = RecordFormat.parseSegmentName(name) else { return [] }
    let seed = RecordFormat.seed(serial: parsed.serial)
    return bytes.withUnsafeBytes { b in
        var found: [(Int, RecordHeader)] = []
        var offset = RecordFormat.sector
        while let header = RecordHeader(b, at: offset, seed: seed) {
            found.append((offset, header))
            offset += header.recordBytes
        }
        return found
    }
}
