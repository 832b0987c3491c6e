import Consensus
import Model
import Wire

// Makes a damaged journal usable again, without removing a byte of it.
//
// What precedes the damage is written to a new segment; the old ones are set aside whole, because they hold entries that
// were acknowledged and that nobody else may have in time. They go only when the log has passed the floor. A crash at any
// moment leaves either the old journal, damaged as before, or the new one with its recovery record:
//
//     1. the new segment, complete and synced, as `salvage.tmp`; directory synced
//     2. the record `recovery`: temporary name, synced, renamed, directory synced     ← from here on the new journal counts
//     3. `segment-…` with lower serials become `damaged-…`, `salvage.tmp` becomes the first segment; directory synced
//     4. a damaged hard state is replaced by an empty one in the last known term (the record says that it is lost)
//
// The third step is done again at every start until it is complete.

extension Journal {
    static let salvageName = "salvage.tmp"
    static let setAsidePrefix = "damaged-"

    static func setAsideName(_ segment: String) -> String { setAsidePrefix + segment.dropFirst("segment-".count) }

    /// `loaded` is damaged, or was and is not whole again yet.
    static func salvage(
        _ disk: any Disk, _ options: JournalOptions, _ loaded: LoadedJournal, _ recovered: RecoveredJournal
    ) throws(JournalError) {
        guard let recovery = recovered.log.recovery else { return }
        do throws(DiskError) {
            var firstSerial = loaded.recordedFirstSerial
            if recovered.isLogDamaged {
                firstSerial = loaded.highestSerial + 1
                try writeSalvaged(disk, options, serial: firstSerial, recovered.log)
            }
            let record = RecoveryRecord(recovery: recovery, firstSerial: firstSerial, identity: options.identity)
            if loaded.record != .valid(record) { try record.write(to: disk) }
            try setAside(disk, below: firstSerial)
            switch loaded.hardState {
            case .valid: break
            case .absent, .damaged:
                let term = max(recovered.log.last.term, recovery.floor.term)
                disk.close(
                    try HardStateFile.create(disk, identity: options.identity, state: HardState(term: term)).file)
            }
        } catch {
            throw error.kind == .noSpace ? .noSpace(error) : .failed(error)
        }
    }

    /// One batch in a segment of its own: the whole log as it is known.
    private static func writeSalvaged(
        _ disk: any Disk, _ options: JournalOptions, serial: UInt64, _ log: RecoveredLog
    ) throws(DiskError) {
        var bytes = RecordFormat.sector + RecordFormat.recordBytes(payload: RecordFormat.markPayloadBytes)
        for entry in log.entries { bytes += RecordFormat.recordBytes(payload: entry.payload.count) }
        let size = max(
            options.segmentBytes, (bytes + RecordFormat.sector - 1) / RecordFormat.sector * RecordFormat.sector)
        var image: [UInt8] = []
        image.reserveCapacity(bytes)
        SegmentHeader(
            serial: serial, identity: options.identity, base: log.base, previousChain: 0, bytes: UInt32(clamping: size)
        )
        .encode(into: &image)
        var encoder = BatchEncoder(
            seed: RecordFormat.seed(serial: serial), batch: 1, offset: RecordFormat.sector,
            chain: RecordFormat.chainStart(previous: 0, serial: serial), image: image)
        for entry in log.entries {
            encoder.record(
                .entry, kind: entry.kind.rawValue, index: entry.index, term: entry.term, payload: entry.payload)
        }
        encoder.mark(last: log.last, commit: min(log.hardState.commit, log.last.index))
        let file = try disk.open(salvageName, .create)
        do throws(DiskError) {
            try disk.write(file, at: 0, encoder.image)
            var position = encoder.image.count
            while position < size {
                let count = min(options.maintenanceBytes, size - position)
                try disk.write(file, at: UInt64(position), [UInt8](repeating: 0, count: count))
                position += count
            }
            try disk.sync(file)
        } catch {
            disk.close(file)
            throw error
        }
        disk.close(file)
        try disk.syncDirectory()
    }

    private static func setAside(_ disk: any Disk, below firstSerial: UInt64) throws(DiskError) {
        var changed = false
        for name in try disk.list().sorted() {
            if let parsed = RecordFormat.parseSegmentName(name), parsed.serial < firstSerial {
                try disk.rename(name, to: setAsideName(name))
                changed = true
            } else if name == salvageName {
                // Complete, for the record names it; unless the record is of an earlier recovery.
                let file = try disk.open(name, .readOnly)
                let sector = try disk.read(file, at: 0, count: RecordFormat.sector)
                disk.close(file)
                if let header = try? SegmentHeader(decoding: sector), header.serial == firstSerial {
                    try disk.rename(name, to: RecordFormat.segmentName(serial: firstSerial, base: header.base.index))
                } else {
                    try disk.remove(name)
                }
                changed = true
            }
        }
        if changed { try disk.syncDirectory() }
    }

    /// The log is whole again: what was kept goes, and last of all the record, so that a crash in between repeats it.
    static func endRecovery(_ disk: any Disk) throws(DiskError) {
        for name in try disk.list() where name.hasPrefix(setAsidePrefix) { try disk.remove(name) }
        try disk.syncDirectory()
        try disk.remove(RecoveryRecord.name)
        try disk.syncDirectory()
    }
}
