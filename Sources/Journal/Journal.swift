import Consensus
import Model
import Wire

/// The Raft log and hard state of one node on a ``Disk``: synchronous, for one thread of its own. The driver concatenates the
/// persist requests that came while the last write was under way, calls ``write(_:)`` once, and acknowledges the last ticket:
/// group commit, one fdatasync for all (a second one only when term or vote changed). When it has nothing to write and
/// ``needsMaintenance`` it calls ``maintain()``, which prepares the next segment and retires old ones.
///
/// Literature: Mohan et al., "ARIES" (1992), for write-ahead logging; Alagappan et al., "Protocol-aware recovery for
/// consensus-based storage" (FAST '18), for telling a crash from corruption; Rebello et al., "Can applications recover from
/// fsync failures?" (ATC '20), for fencing. The format and the recovery rules are in docs/journal.md.
public struct Journal: Sendable {
    let disk: any Disk
    public let options: JournalOptions
    private var hardStateFile: HardStateFile
    private var segments: [SegmentInfo]
    private var active: ActiveSegment?
    private var nextSerial: UInt64
    /// The chain value and position with which the next segment continues.
    private var chain: UInt32
    private var terms: TermRuns
    private var spares: [SpareSegment]
    private var nextSpare: UInt64
    private var compactThrough: UInt64
    private var fence: DiskError?
    private let isDamaged: Bool
    /// The disk holds a recovery record: see ``RecoveredLog/recovery``.
    public private(set) var isRecovering: Bool

    private struct ActiveSegment: Sendable {
        var file: DiskFile
        var serial: UInt64
        var seed: UInt32
        var bytes: Int
        var offset: Int
        var batches: UInt32
        /// A failed write left something between here and `offset`; it is zeroed before the next batch.
        var dirtyThrough: Int
    }

    /// The last entry of the log.
    public var last: LogPosition { terms.last }
    public var hardState: HardState { hardStateFile.state }
    /// True if a prepared segment is ready for the next roll.
    public var hasSpare: Bool { spares.contains { $0.isReady } }
    public var segmentCount: Int { segments.count }

    // MARK: Opening

    /// Reads everything, repairs a torn tail, and matches the log with the newest stored snapshot
    /// (``SnapshotMetadata/none`` if there is none). Damage is reported in the outcome; then nothing is changed, and writing
    /// is refused, unless `salvage` is asked for: then the log goes on behind what precedes the damage, the damaged segments
    /// are set aside, and `log.recovery` says what the node must not do until its peers have replaced what is lost. Not
    /// if there are none: see ``RecoveredJournal/isBeyondRepair(for:)``. `mayBeFresh` false: there was a journal here before,
    /// so that an empty directory is damage too.
    public static func open(
        disk: any Disk, options: JournalOptions = JournalOptions(), snapshot: SnapshotMetadata = .none,
        salvage: Bool = false, mayBeFresh: Bool = true
    ) throws(JournalError) -> (journal: Journal, recovered: RecoveredJournal) {
        var loaded = try LoadedJournal.load(disk, identity: options.identity)
        var (recovered, needsReset) = loaded.recover(snapshot: snapshot, mayBeFresh: mayBeFresh)
        if salvage && recovered.isDamaged && !recovered.isBeyondRepair(for: options.identity.node) {
            try Journal.salvage(disk, options, loaded, recovered)
            let found = recovered
            loaded = try LoadedJournal.load(disk, identity: options.identity)
            (recovered, needsReset) = loaded.recover(snapshot: snapshot)
            guard !recovered.isLogDamaged else {
                throw .unusable(file: Journal.salvageName, why: "it was damaged while it was made")
            }
            recovered.outcome = found.outcome
            recovered.lastReadable = found.lastReadable
            recovered.configuration = found.configuration
            recovered.isSalvaged = true
        }
        do throws(DiskError) {
            var journal = try Journal(disk, options, loaded, recovered)
            if !journal.isDamaged {
                try journal.syncWhatWasRead()
                if let torn = loaded.torn, let active = journal.active {
                    try Journal.eraseTail(disk, active.file, from: torn.offset)
                }
                if needsReset {
                    // Written at once, so that nothing of the dead log is ever taken for what follows.
                    journal.terms = TermRuns(base: loaded.replay.last, entries: [])
                    let request = PersistRequest(ticket: 0, reset: snapshot.position)
                    do throws(JournalError) { _ = try journal.write([request]) } catch { return try failedReset(error) }
                }
            }
            return (journal, recovered)
        } catch {
            throw error.kind == .noSpace ? .noSpace(error) : .failed(error)
        }
    }

    /// A process may end between a write and its sync while the system lives on: what is read then comes from memory. It is made
    /// durable before anything is promised on it, or a loss of power would take it back.
    private func syncWhatWasRead() throws(DiskError) {
        if hardStateFile.file.descriptor >= 0 { try disk.sync(hardStateFile.file) }
        if let active { try disk.sync(active.file) }
        try disk.syncDirectory()
    }

    private static func failedReset<T>(_ error: JournalError) throws(DiskError) -> T {
        switch error {
        case .noSpace(let cause), .failed(let cause), .fenced(let cause): throw cause
        case .damaged, .notContiguous, .tooLarge, .unusable: preconditionFailure("a reset always fits: \(error)")
        }
    }

    private init(_ disk: any Disk, _ options: JournalOptions, _ loaded: LoadedJournal, _ recovered: RecoveredJournal)
        throws(DiskError)
    {
        self.disk = disk
        self.options = options
        isDamaged = recovered.isDamaged && !recovered.isSalvaged
        isRecovering = recovered.log.recovery != nil
        segments = loaded.segments
        terms = TermRuns(base: recovered.log.base, entries: recovered.log.entries)
        nextSerial = (loaded.segments.last?.serial ?? 0) + 1
        chain = loaded.tail?.chain ?? 0
        spares = []
        for name in loaded.spares {
            // A file of another size is made anew.
            let file = try disk.open(name, .readOnly)
            let size = try disk.size(file)
            disk.close(file)
            spares.append(
                SpareSegment(name: name, bytes: options.segmentBytes, mayBeZero: size <= UInt64(options.segmentBytes)))
        }
        nextSpare = (loaded.spares.compactMap { SpareSegment.number($0) }.max() ?? 0) + 1
        compactThrough = 0
        switch loaded.hardState {
        case .valid(let copy): hardStateFile = try HardStateFile.open(disk, found: copy)
        case .absent where !isDamaged: hardStateFile = try HardStateFile.create(disk, identity: options.identity)
        case .absent, .damaged: hardStateFile = HardStateFile.unusable(options.identity)
        }
        if let last = loaded.segments.last, let tail = loaded.tail, !isDamaged {
            active = ActiveSegment(
                file: try disk.open(last.name, .readWrite), serial: last.serial,
                seed: RecordFormat.seed(serial: last.serial),
                bytes: last.bytes, offset: tail.usedBytes, batches: tail.batches, dirtyThrough: tail.usedBytes)
        }
    }

    /// Zeroes what an incomplete batch left, so that the next one is written over zeros.
    private static func eraseTail(_ disk: any Disk, _ file: DiskFile, from offset: Int) throws(DiskError) {
        let size = Int(try disk.size(file))
        var position = offset
        var wrote = false
        while position < size {
            let count = min(1 << 20, size - position)
            let present = try disk.read(file, at: UInt64(position), count: count)
            if !present.withUnsafeBytes({ isZero($0) }) {
                try disk.write(file, at: UInt64(position), [UInt8](repeating: 0, count: count))
                wrote = true
            }
            position += count
        }
        if wrote { try disk.sync(file) }
    }

    /// Closes the files. The journal must not be used afterwards.
    public func close() {
        if let active { disk.close(active.file) }
        if hardStateFile.file.descriptor >= 0 { disk.close(hardStateFile.file) }
    }

    // MARK: Writing

    /// Makes all of `requests`, in order, durable; when it returns they are. One fdatasync of the log, one more of the hard
    /// state if that changed; nothing at all for a mere compaction.
    ///
    /// After `noSpace`, `notContiguous` or `tooLarge` no request counts and the journal is usable (term and vote may be
    /// stored already, which is harmless: they were decided). After `failed` the journal is fenced.
    @discardableResult
    public mutating func write(_ requests: [PersistRequest]) throws(JournalError) -> JournalPosition {
        if let fence { throw .fenced(fence) }
        if isDamaged { throw .damaged }
        let after = try check(requests)
        if let state = requests.last(where: { $0.hardState != nil })?.hardState {
            // Term and vote first: a log that is behind its term is always sound.
            try guarded { journal throws(DiskError) in try journal.hardStateFile.write(state, to: journal.disk) }
        }
        if requests.contains(where: { $0.reset != nil || $0.truncateFrom != nil || !$0.entries.isEmpty }) {
            try writeLog(requests, after)
        }
        for request in requests {
            if let through = request.compactThrough { compactThrough = max(compactThrough, through) }
        }
        if isRecovering, requests.contains(where: { $0.recovered }) {
            // Only now: everything that it asks for is durable.
            try guarded { journal throws(DiskError) in try Journal.endRecovery(journal.disk) }
            isRecovering = false
        }
        return JournalPosition(segment: active?.serial ?? 0, offset: active?.offset ?? 0, last: terms.last)
    }

    /// Only a full disk leaves the journal usable.
    private mutating func guarded(_ body: (inout Journal) throws(DiskError) -> Void) throws(JournalError) {
        do throws(DiskError) {
            try body(&self)
        } catch {
            if error.kind == .noSpace { throw .noSpace(error) }
            fence = error
            throw .failed(error)
        }
    }

    /// The terms as they will be after the requests.
    private func check(_ requests: [PersistRequest]) throws(JournalError) -> TermRuns {
        var after = terms
        for request in requests {
            if let reset = request.reset { after = TermRuns(base: reset, entries: []) }
            if let from = request.truncateFrom { after.truncate(from: from) }
            for entry in request.entries {
                guard entry.index == after.last.index + 1 else {
                    throw .notContiguous(expected: after.last.index + 1, found: entry.index)
                }
                after.append(entry.position)
            }
        }
        return after
    }

    private mutating func writeLog(_ requests: [PersistRequest], _ after: TermRuns) throws(JournalError) {
        let bytes = batchBytes(requests)
        guard bytes <= RecordFormat.maxBatchBytes else {
            throw .tooLarge(bytes: bytes, limit: RecordFormat.maxBatchBytes)
        }
        if let current = active, current.offset + bytes <= current.bytes {
            try guarded { journal throws(DiskError) in try journal.appendBatch(requests, after, to: current) }
        } else {
            try roll(requests, after, bytes: bytes)
        }
        terms = after
        noteIndexes(requests)
    }

    private func batchBytes(_ requests: [PersistRequest]) -> Int {
        var bytes = RecordFormat.recordBytes(payload: RecordFormat.markPayloadBytes)
        for request in requests {
            if request.reset != nil { bytes += RecordFormat.headerBytes }
            if request.truncateFrom != nil { bytes += RecordFormat.headerBytes }
            for entry in request.entries { bytes += RecordFormat.recordBytes(payload: entry.payload.count) }
        }
        return bytes
    }

    private func encode(_ requests: [PersistRequest], last: LogPosition, with encoder: inout BatchEncoder) {
        for request in requests {
            if let reset = request.reset { encoder.record(.reset, index: reset.index, term: reset.term) }
            if let from = request.truncateFrom { encoder.record(.truncate, index: from, term: 0) }
            for entry in request.entries {
                encoder.record(
                    .entry, kind: entry.kind.rawValue, index: entry.index, term: entry.term, payload: entry.payload)
            }
        }
        encoder.mark(last: last, commit: requests.last?.commit ?? 0)
    }

    private mutating func appendBatch(_ requests: [PersistRequest], _ after: TermRuns, to current: ActiveSegment)
        throws(DiskError)
    {
        if current.dirtyThrough > current.offset {
            try Journal.eraseTail(disk, current.file, from: current.offset)
            active?.dirtyThrough = current.offset
        }
        var encoder = BatchEncoder(
            seed: current.seed, batch: current.batches + 1, offset: current.offset, chain: chain,
            image: {
                var image: [UInt8] = []; image.reserveCapacity(batchBytes(requests)); return image
            }())
        encode(requests, last: after.last, with: &encoder)
        active?.dirtyThrough = current.offset + encoder.image.count
        try disk.writeDurably(current.file, at: UInt64(current.offset), encoder.image)
        active?.offset = current.offset + encoder.image.count
        active?.batches = current.batches + 1
        active?.dirtyThrough = current.offset + encoder.image.count
        chain = encoder.chain
    }

    /// Begins a segment with this batch. It gets its name only when the batch is synced, so that a segment without a
    /// readable beginning is always damage, never a crash.
    private mutating func roll(_ requests: [PersistRequest], _ after: TermRuns, bytes: Int) throws(JournalError) {
        let needed = max(
            options.segmentBytes,
            (RecordFormat.sector + bytes + RecordFormat.sector - 1) / RecordFormat.sector * RecordFormat.sector)
        try guarded { journal throws(DiskError) in
            let index = try journal.readySpare(bytes: needed)
            let spare = journal.spares[index]
            let serial = journal.nextSerial
            let seed = RecordFormat.seed(serial: serial)
            let header = SegmentHeader(
                serial: serial, identity: journal.options.identity, base: journal.terms.last,
                previousChain: journal.chain,
                bytes: UInt32(clamping: spare.bytes))
            var image: [UInt8] = []
            image.reserveCapacity(RecordFormat.sector + bytes)
            header.encode(into: &image)
            var encoder = BatchEncoder(
                seed: seed, batch: 1, offset: RecordFormat.sector,
                chain: RecordFormat.chainStart(previous: journal.chain, serial: serial), image: image)
            journal.encode(requests, last: after.last, with: &encoder)
            journal.spares[index].spoil()
            let file = try journal.disk.open(spare.name, .readWrite)
            let name = RecordFormat.segmentName(serial: serial, base: header.base.index)
            do throws(DiskError) {
                try journal.disk.write(file, at: 0, encoder.image)
                try journal.disk.sync(file)
            } catch {
                journal.disk.close(file)
                throw error
            }
            do throws(DiskError) {
                try journal.disk.rename(spare.name, to: name)
                try journal.disk.syncDirectory()
            } catch {
                journal.disk.close(file)
                // The name may be there or not: not to be retried, whatever the error.
                throw DiskError(error.kind == .noSpace ? .io : error.kind, operation: error.operation, name: error.name)
            }
            if let old = journal.active { journal.disk.close(old.file) }
            journal.spares.remove(at: index)
            journal.nextSerial += 1
            journal.chain = encoder.chain
            journal.segments.append(
                SegmentInfo(serial: serial, name: name, bytes: spare.bytes, maxIndex: header.base.index))
            journal.active = ActiveSegment(
                file: file, serial: serial, seed: seed, bytes: spare.bytes, offset: encoder.image.count, batches: 1,
                dirtyThrough: encoder.image.count)
        }
    }

    /// The index of a spare of at least `bytes`, finishing one if none is ready: a stall that `maintain` exists to avoid.
    private mutating func readySpare(bytes: Int) throws(DiskError) -> Int {
        if let index = spares.firstIndex(where: { $0.isReady && $0.bytes >= bytes }) { return index }
        var index = spares.firstIndex { $0.bytes >= bytes }
        if index == nil {
            addSpare(bytes: bytes)
            index = spares.count - 1
        }
        guard let index else { preconditionFailure("a spare was just added") }
        while !spares[index].isReady { try spares[index].prepareSlice(disk, limit: options.maintenanceBytes) }
        return index
    }

    private mutating func addSpare(bytes: Int) {
        spares.append(SpareSegment(name: SpareSegment.name(nextSpare), bytes: bytes, mayBeZero: false))
        nextSpare += 1
    }

    private mutating func noteIndexes(_ requests: [PersistRequest]) {
        guard let i = segments.indices.last else { return }
        for request in requests {
            if let reset = request.reset {
                for older in segments.indices.dropLast() { segments[older].maxIndex = 0 }
                segments[i].maxIndex = reset.index
                compactThrough = max(compactThrough, reset.index)
            }
            if let last = request.entries.last { segments[i].maxIndex = max(segments[i].maxIndex, last.index) }
        }
    }

    // MARK: Idle work

    /// One bounded step of housekeeping: retires a segment that a snapshot covers, or zeroes a slice of the next spare.
    /// Returns true if there is more to do. A full disk is no failure of the journal.
    public mutating func maintain() throws(JournalError) -> Bool {
        if let fence { throw .fenced(fence) }
        if isDamaged { return false }
        var more = false
        try guarded { journal throws(DiskError) in more = try journal.step() }
        return more
    }

    /// False if ``maintain()`` would find nothing to do: a driver that asks first saves itself the way to the disk's thread.
    public var needsMaintenance: Bool {
        guard fence == nil, !isDamaged else { return false }
        return segments.count > 1 && segments[0].maxIndex <= compactThrough
            || spares.count < options.spareSegments || spares.contains { !$0.isReady }
    }

    private mutating func step() throws(DiskError) -> Bool {
        if segments.count > 1, segments[0].maxIndex <= compactThrough {
            try retire(segments[0])
            segments.removeFirst()
            return true
        }
        if let i = spares.firstIndex(where: { !$0.isReady }) {
            if spares.count > options.spareSegments || spares[i].bytes != options.segmentBytes {
                try disk.remove(spares[i].name)
                spares.remove(at: i)
                return true
            }
            try spares[i].prepareSlice(disk, limit: options.maintenanceBytes)
            return true
        }
        guard spares.count < options.spareSegments else { return false }
        addSpare(bytes: options.segmentBytes)
        return true
    }

    private mutating func retire(_ segment: SegmentInfo) throws(DiskError) {
        if segment.bytes == options.segmentBytes, spares.count < options.spareSegments {
            let name = SpareSegment.name(nextSpare)
            nextSpare += 1
            try disk.rename(segment.name, to: name)
            // The old name is gone for good before the contents are.
            try disk.syncDirectory()
            spares.append(SpareSegment(name: name, bytes: segment.bytes, mayBeZero: true))
        } else {
            try disk.remove(segment.name)
            try disk.syncDirectory()
        }
    }
}

/// The terms of a log by runs: what is needed to name the last entry after a truncation.
struct TermRuns: Sendable {
    private(set) var base: LogPosition
    private(set) var last: LogPosition
    private var runs: [LogPosition] = []

    init(base: LogPosition, entries: [LogEntry]) {
        self.base = base
        last = base
        for entry in entries { append(entry.position) }
    }

    mutating func append(_ position: LogPosition) {
        if runs.last?.term != position.term { runs.append(position) }
        last = position
    }

    mutating func truncate(from index: UInt64) {
        guard index <= last.index else { return }
        while let run = runs.last, run.index >= index { runs.removeLast() }
        if let run = runs.last {
            last = LogPosition(index: index - 1, term: run.term)
        } else {
            last = LogPosition(index: min(base.index, index == 0 ? 0 : index - 1), term: base.term)
        }
    }
}
