import Consensus
import Model
import Wire

// Reads all files of a journal without changing any: the common part of opening, verifying and dumping.

/// A segment as found or written.
struct SegmentInfo: Sendable {
    var serial: UInt64
    var name: String
    var bytes: Int
    /// The greatest index recorded in it; it may be recycled when a snapshot covers that.
    var maxIndex: UInt64
}

struct LoadedJournal {
    var replay = LogReplay()
    var segments: [SegmentInfo] = []
    var spares: [String] = []
    /// The last segment's state; nil without segments.
    var tail: SegmentScan?
    var hardState: HardStateFile.Contents
    var torn: TornTail?
    var record = RecoveryRecord.Contents.absent
    /// Greatest serial of any segment, also of those set aside.
    var highestSerial: UInt64 = 0
    var report = JournalReport()

    /// Segments below are set aside.
    var recordedFirstSerial: UInt64 { if case .valid(let record) = record { record.firstSerial } else { 0 } }

    /// Calls `visit` with every event of every segment, oldest first.
    static func load(
        _ disk: any Disk, identity: JournalIdentity?, visit: (String, ScanEvent) -> Void = { _, _ in }
    ) throws(JournalError) -> LoadedJournal {
        let names: [String]
        do throws(DiskError) { names = try disk.list().sorted() } catch { throw .failed(error) }
        var loaded = LoadedJournal(hardState: try HardStateFile.read(disk, names: names))
        if case .valid(let copy) = loaded.hardState {
            if let identity, copy.identity != identity {
                throw .unusable(file: HardStateFile.name, why: "belongs to another node or cluster")
            }
            loaded.report.hardState = copy.state
        }
        loaded.record = try RecoveryRecord.read(disk, names: names)
        if case .valid(let record) = loaded.record, let identity, record.identity != identity {
            throw .unusable(file: RecoveryRecord.name, why: "belongs to another node or cluster")
        }
        loaded.spares = names.filter { SpareSegment.isSpare($0) }
        loaded.report.spares = loaded.spares
        var found: [(serial: UInt64, name: String)] = []
        let first = loaded.recordedFirstSerial
        loaded.highestSerial = first
        for name in names {
            let isSetAside = name.hasPrefix(Journal.setAsidePrefix)
            let original = isSetAside ? "segment-" + name.dropFirst(Journal.setAsidePrefix.count) : name
            guard let parsed = RecordFormat.parseSegmentName(original) else { continue }
            loaded.highestSerial = max(loaded.highestSerial, parsed.serial)
            if isSetAside || parsed.serial < first {
                loaded.report.setAside.append(name)
            } else {
                found.append((parsed.serial, name))
            }
        }
        if first > 0, names.contains(Journal.salvageName), !found.contains(where: { $0.serial == first }) {
            // A crash came between the record and the renaming.
            found.append((first, Journal.salvageName))
        }
        found.sort { ($0.serial, $0.name) < ($1.serial, $1.name) }
        for (i, item) in found.enumerated() {
            if i > 0, item.serial != found[i - 1].serial + 1 {
                if item.serial == found[i - 1].serial {
                    throw .unusable(file: item.name, why: "two segments have serial \(item.serial)")
                }
                loaded.replay.missingSegments(found[i - 1].serial + 1)
                loaded.tail = nil
            }
            try loaded.loadSegment(
                disk, item.name, serial: item.serial, isLast: i == found.count - 1, identity: identity, visit)
        }
        return loaded
    }

    private mutating func loadSegment(
        _ disk: any Disk, _ name: String, serial: UInt64, isLast: Bool, identity: JournalIdentity?,
        _ visit: (String, ScanEvent) -> Void
    ) throws(JournalError) {
        let bytes: [UInt8]
        do throws(DiskError) {
            let file = try disk.open(name, .readOnly)
            defer { disk.close(file) }
            bytes = try disk.readWhole(file, limit: RecordFormat.maxBatchBytes + 2 * RecordFormat.sector)
        } catch {
            throw .failed(error)
        }
        var header: SegmentHeader?
        do throws(SegmentHeader.Failure) {
            let found = try SegmentHeader(decoding: bytes)
            if found.serial == serial { header = found }
        } catch {
            switch error {
            case .version(let version):
                throw .unusable(file: name, why: "format version \(version) is not \(RecordFormat.version)")
            case .damaged: break
            }
        }
        if let header, let identity, header.identity != identity {
            throw .unusable(file: name, why: "belongs to another node or cluster")
        }

        if let header {
            replay.beginSegment(header, name: name, expectedChain: tail?.chain)
        } else {
            replay.unreadableHeader(name)
        }
        var maxIndex = header?.base.index ?? 0
        // Of a file whose header is unreadable nobody knows how long it was.
        let isCutShort = header.map { Int($0.bytes) > bytes.count } ?? true
        var entry = JournalReport.Segment(
            name: name, serial: serial, bytes: bytes.count, usedBytes: 0, entries: 0, batches: 0)
        let scanner = SegmentScanner(bytes: bytes, serial: serial, isLast: isLast, isCutShort: isCutShort)
        let chain = header.map { RecordFormat.chainStart(previous: $0.previousChain, serial: serial) }
        var replay = self.replay
        var wasReset = false
        let scan = scanner.scan(chain: chain) { event in
            visit(name, event)
            switch event {
            case .record(let record):
                replay.apply(record, segment: name)
                switch record.header.type {
                case .entry:
                    maxIndex = max(maxIndex, record.header.index)
                    entry.entries += 1
                    entry.firstIndex = min(entry.firstIndex ?? .max, record.header.index)
                    entry.lastIndex = max(entry.lastIndex ?? 0, record.header.index)
                case .reset:
                    // What the segments before hold is dead.
                    wasReset = true
                    maxIndex = record.header.index
                case .truncate, .mark: break
                }
            case .damage(let offset, let reason, let lost):
                replay.addDamage(.segment(name, offset: offset), reason: reason, lost: lost)
            }
        }
        self.replay = replay
        if wasReset { for i in segments.indices { segments[i].maxIndex = 0 } }
        if case .torn(let at) = scan.end { torn = TornTail(segment: name, offset: at) }
        entry.usedBytes = scan.usedBytes
        entry.batches = Int(scan.batches)
        report.segments.append(entry)
        segments.append(SegmentInfo(serial: serial, name: name, bytes: bytes.count, maxIndex: maxIndex))
        tail = scan
    }

    /// Matches the log with the newest stored snapshot and decides the outcome. `needsReset`: the log does not reach or
    /// contradicts the snapshot, which takes its place (a crash between storing an installed snapshot and saying so here).
    func recover(snapshot: SnapshotMetadata, mayBeFresh: Bool = true) -> (recovered: RecoveredJournal, needsReset: Bool)
    {
        var damages = replay.damages
        var hard = HardState()
        var isFresh = false
        switch hardState {
        case .valid(let copy): hard = copy.state
        case .absent:
            isFresh = segments.isEmpty
            if !isFresh || !mayBeFresh || snapshot.index > 0 {
                damages.append(Damage(place: .hardState, reason: "missing", firstIndex: 0, lastIndex: 0, term: nil))
            }
        case .damaged(let reason):
            damages.append(Damage(place: .hardState, reason: reason, firstIndex: 0, lastIndex: 0, term: nil))
        }
        // Damage below the snapshot is no loss, if it is certain where the log ends.
        if !replay.isEndDoubtful {
            damages.removeAll { damage in
                guard damage.place != .hardState, let last = damage.lastIndex else { return false }
                return last <= snapshot.index
            }
        }
        var base = replay.base
        var entries = replay.entries
        var needsReset = false
        if damages.contains(where: { $0.place != .hardState }) {
            (base, entries) = replay.undamagedPrefix
            let prefix = RaftLogPrefix(base: base, entries: entries)
            if prefix.term(at: snapshot.index) != snapshot.term { (base, entries) = (snapshot.position, []) }
        } else if replay.last.index < snapshot.index {
            needsReset = snapshot.index > 0
        } else if base.index > snapshot.index {
            damages.append(
                Damage(
                    place: .gapBehindSnapshot, reason: "gap", firstIndex: snapshot.index + 1, lastIndex: base.index,
                    term: nil))
            (base, entries) = (snapshot.position, [])
        } else if snapshot.index > 0 {
            let atSnapshot =
                snapshot.index == base.index ? base.term : entries[Int(snapshot.index - base.index - 1)].term
            // A run that began behind damage below the snapshot does not know the term of its base.
            if snapshot.index == base.index && base.term == 0 {
                base = snapshot.position
            } else if atSnapshot != snapshot.term {
                needsReset = true
            } else if !replay.damages.isEmpty {
                entries.removeFirst(Int(snapshot.index - base.index))
                base = snapshot.position
            }
        }
        if needsReset { (base, entries) = (snapshot.position, []) }
        let last = entries.last?.position ?? base
        let recovery = owed(damages, hardTerm: hard.term, snapshot: snapshot, last: last)
        // After damage only what was known to be committed before it, or since, is trusted: see LogReplay.
        hard.commit = recovery == nil ? max(hard.commit, replay.commit) : replay.undamagedCommit
        if hardStateIsLost { hard.term = max(hard.term, last.term) }
        if record != .absent, let recovery {
            let what =
                recovery.isSettled(by: last)
                ? "this is done at the next start" : "until the log has passed \(recovery.floorText)"
            damages.append(
                Damage(place: .unfinishedRecovery, reason: what, firstIndex: last.index + 1, lastIndex: nil, term: nil))
        }
        let outcome: RecoveredJournal.Outcome
        if !damages.isEmpty {
            outcome = .damaged(damages)
        } else if let torn {
            outcome = .tornTail(torn)
        } else {
            outcome = isFresh ? .fresh : .clean
        }
        var report = report
        report.outcome = outcome
        report.base = base
        report.last = last
        report.recovery = recovery
        let log = RecoveredLog(hardState: hard, snapshot: snapshot, base: base, entries: entries, recovery: recovery)
        let readable = max(replay.last, snapshot.position)
        var recovered = RecoveredJournal(outcome: outcome, log: log, lastReadable: readable, report: report)
        recovered.configuration =
            replay.configuration.flatMap { try? RaftConfiguration(decoding: $0) } ?? snapshot.configuration
        return (recovered, needsReset)
    }

    private var hardStateIsLost: Bool {
        switch hardState {
        case .valid: false
        case .absent: !segments.isEmpty
        case .damaged: true
        }
    }

    /// What the node owes by the damage found now and by what the record says of earlier damage.
    private func owed(_ damages: [Damage], hardTerm: UInt64, snapshot: SnapshotMetadata, last: LogPosition)
        -> LogRecovery?
    {
        var owed: LogRecovery?
        if !damages.isEmpty {
            let isTermLost = damages.contains { $0.place == .hardState }
            // The snapshot tells of a term even if everything else is gone.
            let unknown = LogPosition(
                index: LogRecovery.unknownIndex, term: max(hardTerm, replay.highestTerm, last.term))
            // A lost hard state beside a log that is not there at all: anything may have been in it.
            let isLogGone = isTermLost && segments.isEmpty
            // Without its term a position is none (a segment that ends right behind damage).
            let isNameless = replay.last.index > 0 && replay.last.term == 0
            let end = max(replay.last, snapshot.position)
            // What precedes the damage may be newer than the log's end: a truncation was lost, or the end is not the end. Only a
            // leader can tell which.
            let isUnknown = replay.endsInDamage || replay.isEndDoubtful || isLogGone || isNameless || last > end
            let floor = isUnknown ? unknown : end
            owed = LogRecovery(floor: floor, isTermLost: isTermLost)
        }
        switch record {
        case .absent: return owed
        case .valid(let record): return owed.map { record.recovery.joined(with: $0) } ?? record.recovery
        case .damaged:
            // It may have said anything.
            let unknown = LogPosition(
                index: LogRecovery.unknownIndex, term: max(hardTerm, replay.highestTerm, last.term))
            let worst = LogRecovery(floor: unknown, isTermLost: true)
            return owed.map { worst.joined(with: $0) } ?? worst
        }
    }
}

extension LogRecovery {
    /// The debts of two damages.
    func joined(with other: LogRecovery) -> LogRecovery {
        var floor = max(floor, other.floor)
        let isTermLost = isTermLost || other.isTermLost
        // An unknown floor goes as far as the term that is lost, which no known position can be set against.
        if isTermLost && !(isFloorKnown && other.isFloorKnown) { floor.index = LogRecovery.unknownIndex }
        return LogRecovery(floor: floor, isTermLost: isTermLost)
    }

    var floorText: String { isFloorKnown ? "\(floor)" : "any entry of term \(floor.term)" }
}

/// Looks up terms in a contiguous run of entries.
private struct RaftLogPrefix {
    var base: LogPosition
    var entries: [LogEntry]

    func term(at index: UInt64) -> UInt64? {
        if index == base.index { return base.term }
        guard index > base.index, index - base.index <= UInt64(entries.count) else { return nil }
        return entries[Int(index - base.index - 1)].term
    }
}
