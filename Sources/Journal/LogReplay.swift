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
    private(set) var commit: UInt64 = 0
    private var began = false

    var last: LogPosition { entries.last?.position ?? base }
    /// What may be used although there is damage.
    var undamagedPrefix: (base: LogPosition, entries: [LogEntry]) { prefix ?? (base, entries) }

    mutating func noteCommit(_ value: UInt64) { commit = max(commit, value) }

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
        if prefix == nil { prefix = (base, entries) }
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
        for i in open..<damages.count where damages[i].lastIndex == nil {
            damages[i].firstIndex = min(damages[i].firstIndex, next)
            damages[i].lastIndex = next == 0 ? 0 : next - 1
        }
        openDamage = nil
        restart(at: position)
    }

    mutating func apply(_ record: ScannedRecord, segment: String) {
        let header = record.header
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
        case .reset:
            // A stored snapshot took the place of everything before, damaged or not.
            damages = []
            openDamage = nil
            prefix = nil
            restart(at: LogPosition(index: header.index, term: header.term))
        case .mark:
            break
        }
    }
}
