import Model

// Replication from the follower's side (section 5.3). An acknowledgement says "durable here", so it waits for the disk; a
// rejection promises nothing and goes at once.

extension Raft {
    mutating func receiveAppend(_ append: AppendEntries, from: NodeID) throws(RaftViolation) {
        try check(append, from: from)
        defer { learnLeadersCopy(append.durable) }
        let lastNew = append.previous.index + UInt64(append.entries.count)
        let previous = append.previous
        var entries = append.entries[...]
        if previous.index < commitIndex {
            // What is committed here is equal there; only what lies beyond can be new.
            let known = min(Int(commitIndex - previous.index), entries.count)
            if let entry = entries.prefix(known).first(where: { conflicts($0) }) {
                throw .conflictsWithCommitted(index: entry.index, from: from)
            }
            entries = entries.dropFirst(known)
            if entries.isEmpty {
                acknowledge(min(lastNew, commitIndex), to: from)
                return
            }
        } else if !log.contains(previous) {
            let hint = log.lastPosition(atMost: previous)
            let outcome: AppendResponse.Outcome =
                isUnverified ? .shortened(last: hint) : .rejected(rejected: previous.index, hint: hint)
            sendNow(from, .appendResponse(AppendResponse(term: term, outcome: outcome)))
            return
        }
        // Only a true conflict truncates: a delayed, shorter message must not remove what a later one brought.
        let fresh = entries.drop { log.contains($0.position) }
        if let first = fresh.first {
            let configurations = try decodeConfigurations(fresh, from: from)
            if first.index <= log.lastIndex { truncateLog(from: first.index) }
            for entry in fresh {
                appendToLog(entry, configuration: configurations.first { $0.index == entry.index }?.configuration)
            }
        }
        commitIndex = max(commitIndex, min(append.commit, lastNew))
        acknowledge(lastNew, to: from)
        settleRecovery()
    }

    private func conflicts(_ entry: LogEntry) -> Bool {
        guard let known = log.term(at: entry.index) else { return false }
        return known != entry.term
    }

    private mutating func acknowledge(_ index: UInt64, to leader: NodeID) {
        noteAgreement(through: index)
        sendWhenDurable(leader, .appendResponse(AppendResponse(term: term, outcome: .accepted(match: index))))
    }

    /// Entries must be a piece of a log: contiguous, terms ascending and not above the leader's.
    private func check(_ append: AppendEntries, from: NodeID) throws(RaftViolation) {
        var last = append.previous
        for entry in append.entries {
            guard entry.index == last.index + 1 else {
                throw .badEntries(from: from, what: "index \(entry.index) after \(last.index)")
            }
            guard entry.term >= last.term, entry.term <= append.term else {
                throw .badEntries(from: from, what: "term \(entry.term) after \(last.term)")
            }
            last = entry.position
        }
    }

    private func decodeConfigurations(_ entries: ArraySlice<LogEntry>, from: NodeID) throws(RaftViolation)
        -> [ConfigurationPoint]
    {
        var found: [ConfigurationPoint] = []
        for entry in entries where entry.kind == .configuration {
            do {
                found.append(
                    ConfigurationPoint(
                        index: entry.index, configuration: try RaftConfiguration(decoding: entry.payload)))
            } catch {
                throw .badEntries(from: from, what: "configuration at \(entry.index): \(error)")
            }
        }
        return found
    }
}
