// The log in memory: everything after `base`. Reads by index are array accesses; bytes are counted so that windows and
// limits can be kept in bytes.

struct RaftLog: Sendable {
    /// The entry before the first one held. Its term is known, its contents are not.
    private(set) var base: LogPosition
    private(set) var entries: [LogEntry]
    private(set) var bytes: Int

    init(base: LogPosition, entries: [LogEntry]) {
        self.base = base
        self.entries = entries
        bytes = entries.reduce(0) { $0 + $1.cost }
    }

    var lastIndex: UInt64 { base.index + UInt64(entries.count) }
    var last: LogPosition { entries.last?.position ?? base }

    /// Nil outside the log; known for `base` itself.
    func term(at index: UInt64) -> UInt64? {
        if index == base.index { return base.term }
        guard index > base.index, index <= lastIndex else { return nil }
        return entries[offset(index)].term
    }

    func contains(_ position: LogPosition) -> Bool { term(at: position.index) == position.term }

    private func offset(_ index: UInt64) -> Int { Int(index - base.index - 1) }

    subscript(index: UInt64) -> LogEntry { entries[offset(index)] }

    /// Entries `first ... last`; both must be held.
    func slice(_ first: UInt64, through last: UInt64) -> [LogEntry] {
        guard first <= last else { return [] }
        return Array(entries[offset(first)...offset(last)])
    }

    /// Entries from `first` on, at least one if there is one, until a limit is reached; and their cost.
    func batch(from first: UInt64, maxEntries: Int, maxBytes: Int) -> (entries: [LogEntry], bytes: Int) {
        guard first <= lastIndex else { return ([], 0) }
        let start = offset(first)
        var end = start
        var total = 0
        while end < entries.count, end - start < maxEntries {
            let cost = entries[end].cost
            if end > start, total + cost > maxBytes { break }
            total += cost
            end += 1
        }
        return (Array(entries[start..<end]), total)
    }

    mutating func append(_ entry: LogEntry) {
        precondition(entry.index == lastIndex + 1, "log entries are contiguous")
        bytes += entry.cost
        entries.append(entry)
    }

    /// Removes the entries from `index` on.
    mutating func truncate(from index: UInt64) {
        precondition(index > base.index && index <= lastIndex, "truncation within the log")
        let start = offset(index)
        for entry in entries[start...] { bytes -= entry.cost }
        entries.removeSubrange(start...)
    }

    /// Forgets the entries up to and including `index`.
    mutating func compact(through index: UInt64) {
        guard index > base.index, let term = term(at: index) else { return }
        let count = Int(index - base.index)
        for entry in entries[..<count] { bytes -= entry.cost }
        entries.removeFirst(count)
        base = LogPosition(index: index, term: term)
    }

    /// Forgets everything; the log goes on after `position`.
    mutating func reset(to position: LogPosition) {
        base = position
        entries = []
        bytes = 0
    }

    /// The last index at or below `position.index` whose term is at most `position.term`: where two logs that conflict may
    /// still agree. Skips a whole term at a time in the exchange between leader and follower. `base` if there is none.
    func lastPosition(atMost position: LogPosition) -> LogPosition {
        var index = min(position.index, lastIndex)
        while index > base.index {
            let term = entries[offset(index)].term
            if term <= position.term { return LogPosition(index: index, term: term) }
            index -= 1
        }
        return base
    }
}

extension RaftLog {
    /// Cost of the entries after `index`.
    func bytesAfter(_ index: UInt64) -> Int {
        var total = 0
        var i = entries.count - 1
        while i >= 0, entries[i].index > index {
            total += entries[i].cost
            i -= 1
        }
        return total
    }
}
