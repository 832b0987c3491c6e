import Model

// Stable storage without waiting for it. Changes to term, vote and log are collected; `takeEffects` turns them into one
// persist request with a ticket. A message that promises something (a vote, an acknowledgement, a candidacy) is held until
// the ticket that covers everything known at that moment is acknowledged. Requests for the log go to followers at once: the
// leader's own disk works in parallel, and the leader counts itself like any other voter, when it is durable.

extension Raft {
    private var isDirty: Bool {
        hardStateChanged || pendingReset != nil || pendingTruncate != nil || log.lastIndex > requestedIndex
            || pendingRecovered
    }

    mutating func sendNow(_ to: NodeID, _ message: RaftMessage) { effects.append(.send(to: to, message)) }

    /// Sends when everything that this node has decided so far is on stable storage. To itself: handles it then.
    mutating func sendWhenDurable(_ to: NodeID, _ message: RaftMessage) {
        let barrier = isDirty ? lastTicket + 1 : lastTicket
        guard isDirty || !outstanding.isEmpty else {
            release(Held(ticket: barrier, to: to, message: message))
            return
        }
        // Acknowledgements are cumulative: of those that wait for the same sync the last is enough.
        if case .appendResponse(let new) = message, case .accepted(let newMatch) = new.outcome,
            let last = held.indices.last, held[last].ticket == barrier, held[last].to == to,
            case .appendResponse(let old) = held[last].message, old.term == new.term,
            case .accepted(let oldMatch) = old.outcome
        {
            held[last].message = .appendResponse(
                AppendResponse(term: new.term, outcome: .accepted(match: max(oldMatch, newMatch))))
            return
        }
        held.append(Held(ticket: barrier, to: to, message: message))
    }

    private mutating func release(_ item: Held) {
        // A promise made in an older term is of no use to anyone now.
        guard item.message.term == term else { return }
        if item.to == id {
            if case .voteResponse(let response) = item.message { receiveVoteResponse(response, from: id) }
        } else {
            sendNow(item.to, item.message)
        }
    }

    /// Turns the collected changes into one request.
    mutating func requestPersistence() {
        guard isDirty || pendingCompaction != nil else { return }
        lastTicket += 1
        var request = PersistRequest(ticket: lastTicket, commit: commitIndex)
        if hardStateChanged { request.hardState = HardState(term: term, vote: vote, commit: commitIndex) }
        request.reset = pendingReset
        request.truncateFrom = pendingTruncate
        if log.lastIndex > requestedIndex { request.entries = log.slice(requestedIndex + 1, through: log.lastIndex) }
        request.compactThrough = pendingCompaction
        request.recovered = pendingRecovered
        pendingRecovered = false
        hardStateChanged = false
        pendingReset = nil
        pendingTruncate = nil
        pendingCompaction = nil
        requestedIndex = log.lastIndex
        outstanding.append(Outstanding(ticket: lastTicket, lastIndex: log.lastIndex, since: now))
        effects.append(.persist(request))
    }

    mutating func persisted(through ticket: UInt64) throws(RaftViolation) {
        guard ticket <= lastTicket else { throw .unknownTicket(ticket) }
        guard !storageFailed else { return }
        var done = 0
        while done < outstanding.count, outstanding[done].ticket <= ticket {
            durableIndex = max(durableIndex, outstanding[done].lastIndex)
            done += 1
        }
        outstanding.removeFirst(done)
        var released = 0
        while released < held.count, held[released].ticket <= ticket { released += 1 }
        let ready = Array(held[..<released])
        held.removeFirst(released)
        for item in ready { release(item) }
        if role == .leader { advanceCommit() } else { commitByTwoCopies() }
    }

    /// True if this node's own disk is so late that it should not lead.
    var isDiskStalled: Bool {
        guard let oldest = outstanding.first else { return false }
        return now - oldest.since > options.diskStallLimit
    }

    // MARK: Changes to the log that the disk has to follow

    /// Appends an entry that the disk has not seen; a configuration is in force at once (thesis 4.1).
    mutating func appendToLog(_ entry: LogEntry, configuration: RaftConfiguration?) {
        log.append(entry)
        if let configuration {
            configurations.append(ConfigurationPoint(index: entry.index, configuration: configuration))
            configurationDidChange()
        }
    }

    /// Removes entries from `index` on, and with them the configurations that they brought.
    mutating func truncateLog(from index: UInt64) {
        precondition(index > commitIndex, "committed entries stay")
        log.truncate(from: index)
        if index <= requestedIndex {
            pendingTruncate = min(pendingTruncate ?? index, index)
            requestedIndex = index - 1
        }
        durableIndex = min(durableIndex, index - 1)
        for i in outstanding.indices { outstanding[i].lastIndex = min(outstanding[i].lastIndex, index - 1) }
        let before = configurations.count
        while let last = configurations.last, last.index >= index, configurations.count > 1 {
            configurations.removeLast()
        }
        if configurations.count != before { configurationDidChange() }
    }

    /// A stored snapshot takes the place of the whole log.
    mutating func resetLog(to metadata: SnapshotMetadata) {
        log.reset(to: metadata.position)
        pendingReset = metadata.position
        pendingTruncate = nil
        requestedIndex = metadata.index
        // The snapshot itself is durable: a log that does not reach it is discarded at the next start.
        durableIndex = metadata.index
        for i in outstanding.indices { outstanding[i].lastIndex = 0 }
        configurations = [ConfigurationPoint(index: metadata.index, configuration: metadata.configuration)]
        configurationDidChange()
    }
}
