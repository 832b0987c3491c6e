import Consensus
import Model
import Wire

// What `coterie journal verify` and `dump` print, as values. Both read only, and work on a journal that is not in use.

/// One line of `journal dump`.
public enum JournalItem: Hashable, Sendable {
    case entry(index: UInt64, term: UInt64, kind: LogEntry.Kind, payload: [UInt8])
    case truncate(from: UInt64)
    case reset(to: LogPosition)
    /// The end of a batch: one sync.
    case mark(batch: UInt32, last: LogPosition)
    case damaged(reason: String, lost: UInt64?)
}

extension Journal {
    /// Checks every byte. `identity` nil accepts any node's journal. Throws only if the files can not be read at all;
    /// damage is in the report's outcome.
    public static func verify(
        disk: any Disk, identity: JournalIdentity? = nil, snapshot: SnapshotMetadata = .none
    ) throws(JournalError) -> JournalReport {
        try LoadedJournal.load(disk, identity: identity).recover(snapshot: snapshot).recovered.report
    }

    /// Whose journal it is, as its files say; nil if none of them can be read.
    public static func identity(disk: any Disk) throws(JournalError) -> JournalIdentity? {
        do throws(DiskError) {
            let names = try disk.list().sorted()
            if case .valid(let copy) = try? HardStateFile.read(disk, names: names) { return copy.identity }
            for name in names where RecordFormat.parseSegmentName(name) != nil {
                let file = try disk.open(name, .readOnly)
                defer { disk.close(file) }
                let sector = try disk.read(file, at: 0, count: RecordFormat.sector)
                if let header = try? SegmentHeader(decoding: sector) { return header.identity }
            }
            return nil
        } catch {
            throw .failed(error)
        }
    }

    /// What a start would find, without changing anything. What damage hides is missing: `outcome` and `report` say so.
    public static func read(
        disk: any Disk, identity: JournalIdentity, snapshot: SnapshotMetadata
    ) throws(JournalError) -> RecoveredJournal {
        try LoadedJournal.load(disk, identity: identity).recover(snapshot: snapshot).recovered
    }

    /// Hands out every record of every segment in order, with the segment's name and the offset in it.
    public static func dump(
        disk: any Disk, identity: JournalIdentity? = nil,
        _ visit: (_ segment: String, _ offset: Int, JournalItem) -> Void
    ) throws(JournalError) {
        _ = try LoadedJournal.load(disk, identity: identity) { segment, event in
            switch event {
            case .record(let record):
                let header = record.header
                let position = LogPosition(index: header.index, term: header.term)
                switch header.type {
                case .entry:
                    guard let kind = LogEntry.Kind(rawValue: header.kind) else { return }
                    visit(
                        segment, record.offset,
                        .entry(index: header.index, term: header.term, kind: kind, payload: record.payload))
                case .truncate: visit(segment, record.offset, .truncate(from: header.index))
                case .reset: visit(segment, record.offset, .reset(to: position))
                case .mark: visit(segment, record.offset, .mark(batch: header.batch, last: position))
                }
            case .damage(let offset, let reason, let lost):
                visit(segment, offset, .damaged(reason: reason, lost: lost?.index))
            }
        }
    }
}
