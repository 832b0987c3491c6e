import Consensus
import Model

// Turns the records of all segments, oldest first, into one log, and keeps account of what is damaged. After damage the
// replay goes on: if everything lost lies below a stored snapshot nothing is lost at all, and else the report says what is.

struct LogReplay {
    /// Contiguous entries after `base`. After damage the run begins anew.
    private(set) var base: LogPosition = .zero
    private(set) var entries: [LogEntry] = []
    /// What precedes the first damage.
    private var prefix: (base: LogPosition, entries: [LogEntry])?
    private(set) var damages: [Damage] = []
    private var openDamage: Int?
    /// Where the runs ended that damage cut off, but for those of which a readable truncation removed the end.
    private var cutOff: [LogPosition] = []
    private(set) var commit: UInt64 = 0
    /// What was known to be committed when the damaged place was written. What precedes the damage may hold entries that a
    /// lost truncation replaced, but none of these; a commit index from behind the damage says nothing about it.
    private var prefixCommit: UInt64?
    private(set) var highestTerm: UInt64 = 0
    /// The payload of the newest configuration seen, even if it was truncated later.
    private(set) var configuration: [UInt8]?
    private var began = false

    var last: LogPosition { entries.last?.position ?? base }
    /// What may be used although there is damage.
    var undamagedPrefix: (base: LogPosition, entries: [LogEntry]) { prefix ?? (base, entries) }
    var undamagedCommit: UInt64 { prefixCommit ?? commit }
    /// Nothing readable follows some damage.
    var endsInDamage: Bool { openDamage != nil }
    /// The log seems to end no later than entries that precede some of its damage. Either a truncation of those is lost, or what
    /// is read last was not written last and is in the wrong place: then nobody knows how far the log went.
    var isEndDoubtful: Bool { cutOff.contains { $0 >= last } }

    private mutating func noteCommit(_ payload: [UInt8]) {
        guard payload.count == RecordFormat.markPayloadBytes else { return }
        commit = max(commit, payload.withUnsafeBytes { $0.u64(8) })
    }

    mutating func beginSegment(_ header: SegmentHeader, name: String, expectedChain: UInt32?) {
        if !began {
            began = true
            base = header.base
            return
        }
        if openDamage != nil {
            closeDamage(before: header.base.index + 1, restartAt: header.base)
        } else if header.base != last || (expectedChain.map { $0 != header.previousChain } ?? false) {
            addDamage(.segment(name, offset: 0), reason: "does not continue the segment before", lost: nil)
            closeDamage(before: header.base.index + 1, restartAt: header.base)
        }
    }

    mutating func missingSegments(_ serial: UInt64) {
        began = true
        addDamage(.missingSegment(serial: serial), reason: "missing", lost: nil)
    }

    mutating func unreadableHeader(_ name: String) {
        began = true
        addDamage(.segment(name, offset: 0), reason: "segment header", lost: nil)
    }

    mutating func addDamage(_ place: Damage.Place, reason: String, lost: RecordHeader?) {
        if let lost, lost.type == .mark, openDamage == nil, lost.index == last.index, lost.term == last.term {
            // The end of a batch whose entries are all here.
            damages.append(
                Damage(place: place, reason: reason, firstIndex: lost.index + 1, lastIndex: lost.index, term: nil))
            return
        }
        if prefix == nil {
            prefix = (base, entries)
            prefixCommit = commit
        }
        if let lost, lost.type == .entry, openDamage == nil, lost.index == last.index + 1 {
            damages.append(
                Damage(place: place, reason: reason, firstIndex: lost.index, lastIndex: lost.index, term: lost.term))
            restart(at: LogPosition(index: lost.index, term: lost.term))
            return
        }
        damages.append(Damage(place: place, reason: reason, firstIndex: last.index + 1, lastIndex: nil, term: nil))
        if openDamage == nil { openDamage = damages.count - 1 }
    }

    private mutating func restart(at position: LogPosition) {
        base = position
        entries = []
    }

    /// The next readable index is `next`: what is lost ends before it. A lost truncation may have changed entries below.
    private mutating func closeDamage(before next: UInt64, restartAt position: LogPosition) {
        guard let open = openDamage else { return }
        cutOff.append(last)
        for i in open..<damages.count where damages[i].lastIndex == nil {
            damages[i].firstIndex = min(damages[i].firstIndex, next)
            damages[i].lastIndex = next == 0 ? 0 : next - 1
        }
        openDamage = nil
        restart(at: position)
    }

    /// A readable truncation replaces whatever the log held from `index` on, also before the damage.
    private mutating func truncatePrefix(from index: UInt64) {
        guard let before = prefix, index > before.base.index,
            index <= before.base.index + UInt64(before.entries.count) + 1
        else { return }
        let kept = Array(before.entries.prefix(Int(index - before.base.index - 1)))
        if damages.allSatisfy({ $0.term != nil }) {
            // All that was lost are entries that this removes, and what follows continues the prefix.
            (base, entries) = (before.base, kept)
            prefix = nil
            prefixCommit = nil
            damages = []
        } else {
            prefix = (before.base, kept)
        }
    }

    mutating func apply(_ record: ScannedRecord, segment: String) {
        let header = record.header
        if header.type != .truncate { highestTerm = max(highestTerm, header.term) }
        switch header.type {
        case .entry:
            if openDamage != nil {
                // The term of the entry before is not known; it can not be above this one's.
                closeDamage(before: header.index, restartAt: LogPosition(index: header.index &- 1, term: 0))
            }
            guard header.index == last.index + 1, header.term >= last.term,
                let kind = LogEntry.Kind(rawValue: header.kind)
            else {
                addDamage(
                    .segment(segment, offset: record.offset), reason: "entry \(header.index) after \(last)", lost: nil)
                return apply(record, segment: segment)
            }
            if kind == .configuration { configuration = record.payload }
            entries.append(LogEntry(index: header.index, term: header.term, kind: kind, payload: record.payload))
        case .truncate:
            if openDamage != nil {
                closeDamage(before: header.index, restartAt: LogPosition(index: header.index &- 1, term: 0))
            }
            if header.index <= base.index {
                // Only behind damage: the run began above.
                restart(at: LogPosition(index: header.index &- 1, term: 0))
            } else if header.index <= last.index {
                entries.removeSubrange(Int(header.index - base.index - 1)...)
            }
            cutOff.removeAll { $0.index >= header.index }
            truncatePrefix(from: header.index)
        case .reset:
            // A stored snapshot took the place of everything before, damaged or not.
            damages = []
            openDamage = nil
            cutOff = []
            prefix = nil
            prefixCommit = nil
            restart(at: LogPosition(index: header.index, term: header.term))
        case .mark:
            // It names the last entry, readable or not.
            let position = LogPosition(index: header.index, term: header.term)
            if openDamage != nil {
                closeDamage(before: position.index + 1, restartAt: position)
            } else if entries.isEmpty && base.index == position.index {
                // A run that began behind damage did not know the term.
                base = position
            }
            noteCommit(record.payload)
        }
    }
}
