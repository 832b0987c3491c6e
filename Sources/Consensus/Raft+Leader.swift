import Model

// Replication from the leader's side (sections 5.3 and 5.4; thesis 10.2). AppendEntries is built only when effects are
// taken, so that everything proposed in one turn of the driver's loop shares messages and one disk write. A follower in
// state `replicate` gets a pipeline bounded in messages and bytes; see `Progress` for the states.

extension Raft {
    mutating func appendOwn(_ kind: LogEntry.Kind, _ payload: [UInt8], configuration: RaftConfiguration? = nil) {
        let entry = LogEntry(index: log.lastIndex + 1, term: term, kind: kind, payload: payload)
        uncommittedBytes += entry.cost
        appendToLog(entry, configuration: configuration)
    }

    func peerIndex(_ peer: NodeID) -> Int? {
        var low = 0
        var high = peers.count
        while low < high {
            let middle = (low + high) / 2
            if peers[middle].id < peer { low = middle + 1 } else { high = middle }
        }
        return low < peers.count && peers[low].id == peer ? low : nil
    }

    /// One `Progress` for every other member of the configuration in force; those of members that stay are kept.
    mutating func rebuildPeers() {
        var rebuilt: [Progress] = []
        for member in configuration.members.sorted() where member != id {
            if let i = peerIndex(member) {
                rebuilt.append(peers[i])
            } else {
                rebuilt.append(Progress(id: member, next: log.lastIndex + 1, now: now))
            }
        }
        peers = rebuilt
    }

    // MARK: Sending

    mutating func sendAppends() {
        for i in peers.indices { sendAppends(to: i) }
    }

    private mutating func sendAppends(to i: Int) {
        while true {
            switch peers[i].state {
            case .snapshot: return
            case .probe(let awaiting):
                guard awaiting == nil else { return }
                guard sendOneAppend(to: i, allowEmpty: true) else { return }
                if case .probe = peers[i].state { peers[i].state = .probe(awaitingSince: now) }
                return
            case .replicate:
                if peers[i].next > log.lastIndex {
                    if min(commitIndex, peers[i].match) > peers[i].knownCommit, commitNoticeDue == .distantFuture {
                        commitNoticeDue = now + options.commitNotice
                    }
                    return
                }
                guard peers[i].inflightCount < options.maxInflightMessages,
                    peers[i].inflightBytes < options.maxInflightBytes
                else {
                    return
                }
                guard sendOneAppend(to: i, allowEmpty: false) else { return }
            }
        }
    }

    /// False if nothing was sent; the peer may have gone over to the snapshot state.
    private mutating func sendOneAppend(to i: Int, allowEmpty: Bool) -> Bool {
        let previousIndex = peers[i].next - 1
        guard let previousTerm = log.term(at: previousIndex) else {
            startSnapshot(to: i)
            return false
        }
        let batch = log.batch(
            from: peers[i].next, maxEntries: options.maxAppendEntries, maxBytes: options.maxAppendBytes)
        guard allowEmpty || !batch.entries.isEmpty else { return false }
        let message = AppendEntries(
            term: term, previous: LogPosition(index: previousIndex, term: previousTerm), commit: commitIndex,
            durable: announcement(to: i), entries: batch.entries)
        sendNow(peers[i].id, .append(message))
        let last = previousIndex + UInt64(batch.entries.count)
        peers[i].sentCommit = max(peers[i].sentCommit, min(commitIndex, last))
        if case .replicate = peers[i].state {
            if peers[i].inflightCount == 0 { peers[i].lastProgress = now }
            peers[i].next = last + 1
            peers[i].sent(last: last, bytes: batch.bytes)
        }
        return true
    }

    /// Lets idle followers apply what was committed before the next heartbeat; wants no answer. Under load the next entries
    /// have carried the news before it is due, and nothing is sent: that is a third of all messages.
    private mutating func notifyCommit() {
        commitNoticeDue = .distantFuture
        for i in peers.indices {
            let commit = min(commitIndex, peers[i].match)
            guard case .replicate = peers[i].state, commit > peers[i].knownCommit else { continue }
            sendHeartbeat(to: i, round: 0)
        }
    }

    /// With round 0 no answer is wanted.
    mutating func sendHeartbeat(to i: Int, round: UInt64) {
        let commit = min(commitIndex, peers[i].match)
        peers[i].sentCommit = max(peers[i].sentCommit, commit)
        let heartbeat = Heartbeat(term: term, commit: commit, durable: announcement(to: i), round: round)
        sendNow(peers[i].id, .heartbeat(heartbeat))
    }

    mutating func sendHeartbeats() {
        // Rounds begin at 1: 0 asks for no answer.
        readRound = max(readRound, 1)
        for i in peers.indices { sendHeartbeat(to: i, round: readRound) }
    }

    // MARK: Answers

    mutating func receiveAppendResponse(_ response: AppendResponse, peer i: Int) throws(RaftViolation) {
        switch response.outcome {
        case .accepted(let match):
            guard match <= log.lastIndex else {
                throw .matchBeyondLog(match: match, last: log.lastIndex, from: peers[i].id)
            }
            let isNew = peers[i].accepted(match)
            peers[i].lastProgress = now
            switch peers[i].state {
            case .probe: peers[i].becomeReplicate()
            case .replicate: break
            case .snapshot(let sending):
                if peers[i].match >= sending.metadata.index || peers[i].match >= log.base.index {
                    peers[i].becomeProbe(next: peers[i].match + 1)
                }
            }
            if isNew {
                advanceCommit()
                continueTransfer()
            }
        case .rejected(let rejected, let hint):
            receiveRejection(rejected, hint: hint, peer: i)
        case .shortened(let last):
            // What is committed stays so (the peer's vote floor stands for its old acknowledgements until it has the
            // entries again), but no further entry is committed by them. A late repetition costs one probe.
            peers[i].forget()
            if case .snapshot = peers[i].state { return }
            peers[i].becomeProbe(next: min(log.lastIndex + 1, firstDifference(from: last)))
        }
    }

    private mutating func receiveRejection(_ rejected: UInt64, hint: LogPosition, peer i: Int) {
        switch peers[i].state {
        case .snapshot: return
        case .replicate:
            // Older than what was acknowledged since: a message that was delayed.
            guard rejected > peers[i].match else { return }
        case .probe:
            guard rejected == peers[i].next - 1 else { return }
        }
        // A log that ends before what it acknowledged: its disk was damaged, or the message is late. To trust it less is
        // always sound; etcd panics here (etcd-io/etcd#3504).
        if hint.index < peers[i].match { peers[i].forget() }
        peers[i].becomeProbe(next: min(rejected, firstDifference(from: hint)))
    }

    /// The first index that a follower may lack whose last possibly common entry is `hint`. Below the log's base the answer
    /// only needs to lie at or below the base: a snapshot is due.
    private func firstDifference(from hint: LogPosition) -> UInt64 {
        guard hint.index >= log.base.index else { return hint.index + 1 }
        let common = log.lastPosition(atMost: hint)
        if common == log.base && log.base.term > hint.term { return log.base.index }
        return common.index + 1
    }

    mutating func receiveHeartbeatResponse(_ response: HeartbeatResponse, peer i: Int) {
        peers[i].ackedRound = max(peers[i].ackedRound, response.round)
        confirmReads()
        switch peers[i].state {
        case .probe(let awaiting):
            if let awaiting, now - awaiting >= options.heartbeat { peers[i].state = .probe(awaitingSince: nil) }
        case .replicate:
            // The peer lives, but nothing of what it was sent is acknowledged: perhaps a message was lost, perhaps its disk
            // is slow. An empty message behind the last one finds out without sending anything twice.
            guard peers[i].match < log.lastIndex, peers[i].inflightCount > 0,
                now - peers[i].lastProgress >= options.heartbeat * 2
            else {
                return
            }
            peers[i].lastProgress = now
            guard let previousTerm = log.term(at: peers[i].next - 1) else {
                // What was sent is compacted here by now; it can not be looked for, only replaced.
                peers[i].becomeProbe(next: peers[i].match + 1)
                return
            }
            let previous = LogPosition(index: peers[i].next - 1, term: previousTerm)
            let probe = AppendEntries(
                term: term, previous: previous, commit: commitIndex, durable: announcement(to: i), entries: [])
            sendNow(peers[i].id, .append(probe))
        case .snapshot(let sending):
            if now - sending.sentAt >= options.snapshotRetry { continueSnapshot(to: i, offset: sending.offset) }
        }
    }

    // MARK: Commitment

    /// The newest entry of this term that is durable on a majority commits itself and everything before it; entries of older
    /// terms are never committed by counting (section 5.4.2, figure 8). Peers' acknowledgements and our own disk are counted
    /// alike; a leader that is not in the configuration does not count itself (thesis 4.2.2).
    mutating func advanceCommit() {
        guard role == .leader else { return }
        let reached = configuration.quorumValue { member in
            if member == id { return durableIndex }
            return peerIndex(member).map { peers[$0].match } ?? 0
        }
        guard let reached, reached > commitIndex, log.term(at: reached) == term else { return }
        let before = commitIndex
        commitIndex = reached
        var committedBytes = 0
        for index in (before + 1)...reached { committedBytes += log[index].cost }
        uncommittedBytes = max(0, uncommittedBytes - committedBytes)
        configurationMayBeCommitted()
    }

    // MARK: The leader's clock

    mutating func leaderTick() {
        if let current = transfer, now >= current.deadline {
            transfer = nil
            effects.append(.transferFailed(to: current.to))
        }
        if now >= commitNoticeDue { notifyCommit() }
        guard now >= heartbeatDue else { return }
        heartbeatDue = now + options.heartbeat
        if isDiskStalled {
            handOver()
            becomeFollower(term: term, leader: nil, reason: .diskStalled)
            return
        }
        let contact = configuration.quorumValue { member in
            if member == id { return now }
            return peerIndex(member).map { peers[$0].lastContact } ?? .zero
        }
        if let contact, now - contact > options.electionTimeoutMax, now >= quorumGraceUntil {
            becomeFollower(term: term, leader: nil, reason: .lostQuorum)
            return
        }
        if now >= quorumGraceUntil { stallGraceUsed = false }
        sendHeartbeats()
    }
}
