import Model

// Snapshots (section 7). The driver makes, stores, reads and writes them; the core decides when one is sent, keeps the
// place in the transfer, and compacts the log behind a stored one. A transfer moves the bytes of the snapshot file, one
// acknowledged chunk at a time, and resumes at the follower's offset.

extension Raft {
    // MARK: Local snapshots

    /// Describes a snapshot of the state after applying `index`, which must have been given out as committed and be still in
    /// the log. Nil otherwise.
    public func snapshotMetadata(at index: UInt64) -> SnapshotMetadata? {
        guard index <= deliveredIndex, index >= snapshot.index, let term = log.term(at: index),
            let point = configurations.last(where: { $0.index <= index })
        else { return nil }
        return SnapshotMetadata(index: index, term: term, configuration: point.configuration)
    }

    /// A snapshot made from ``snapshotMetadata(at:)`` is on stable storage: older entries may go, except for a window that
    /// spares followers that are a little behind a whole snapshot. Ignored unless it is newer than the known one.
    public mutating func snapshotStored(_ metadata: SnapshotMetadata) {
        guard metadata.index > snapshot.index, metadata.index <= deliveredIndex, log.contains(metadata.position) else {
            return
        }
        adopt(metadata)
        compactLog()
    }

    private mutating func adopt(_ metadata: SnapshotMetadata) {
        snapshot = metadata
        configurations.removeAll { $0.index <= metadata.index }
        configurations.insert(ConfigurationPoint(index: metadata.index, configuration: metadata.configuration), at: 0)
    }

    private mutating func compactLog() {
        let limit = min(snapshot.index, deliveredIndex, requestedIndex)
        guard limit > log.base.index else { return }
        var keepFrom = limit + 1
        var bytes = 0
        var count = 0
        while keepFrom > log.base.index + 1, count < options.trailingEntries {
            let cost = log[keepFrom - 1].cost
            if bytes + cost > options.trailingBytes { break }
            bytes += cost
            count += 1
            keepFrom -= 1
        }
        guard keepFrom - 1 > log.base.index else { return }
        log.compact(through: keepFrom - 1)
        pendingCompaction = keepFrom - 1
    }

    // MARK: Sending (leader)

    mutating func startSnapshot(to i: Int) {
        // A leader's log always reaches its snapshot, so that there is one if the log does not begin at the beginning.
        peers[i].becomeSnapshot(snapshot, now: now)
        continueSnapshot(to: i, offset: 0)
    }

    mutating func continueSnapshot(to i: Int, offset: UInt64) {
        guard case .snapshot(var sending) = peers[i].state else { return }
        sending.offset = offset
        sending.sentAt = now
        peers[i].state = .snapshot(sending)
        effects.append(
            .sendSnapshot(SnapshotSend(to: peers[i].id, term: term, metadata: sending.metadata, offset: offset)))
    }

    mutating func receiveSnapshotResponse(_ response: InstallSnapshotResponse, peer i: Int) {
        guard case .snapshot(let sending) = peers[i].state, sending.metadata.position == response.snapshot else {
            return
        }
        // An answer that brings nothing new belongs to a chunk that was sent twice; the retry timer covers a lost one.
        guard response.nextOffset != sending.offset || now - sending.sentAt >= options.heartbeat else { return }
        continueSnapshot(to: i, offset: response.nextOffset)
    }

    mutating func snapshotSendFailed(to peer: NodeID) {
        guard role == .leader, let i = peerIndex(peer), case .snapshot = peers[i].state else { return }
        // Not at once again: the probe waits for the next heartbeat's answer.
        peers[i].becomeProbe(next: peers[i].match + 1)
        peers[i].state = .probe(awaitingSince: now)
    }

    // MARK: Receiving (follower)

    mutating func receiveSnapshotChunk(_ chunk: InstallSnapshot, from: NodeID) {
        let position = chunk.metadata.position
        if position.index <= commitIndex {
            incoming = nil
            noteAgreement(through: commitIndex)
            sendWhenDurable(from, .appendResponse(AppendResponse(term: term, outcome: .accepted(match: commitIndex))))
            return
        }
        let isSame =
            incoming.map {
                $0.metadata == chunk.metadata && $0.totalBytes == chunk.totalBytes && $0.checksum == chunk.checksum
            } ?? false
        if !isSame {
            // While a chunk is being written its answer is awaited; the leader repeats.
            if let incoming, incoming.isStoring { return }
            incoming = IncomingSnapshot(
                metadata: chunk.metadata, totalBytes: chunk.totalBytes, checksum: chunk.checksum, nextOffset: 0,
                isStoring: false)
        }
        guard let current = incoming, !current.isStoring else { return }
        guard chunk.offset == current.nextOffset else {
            sendNow(
                from,
                .installSnapshotResponse(
                    InstallSnapshotResponse(term: term, snapshot: position, nextOffset: current.nextOffset)))
            return
        }
        incoming?.isStoring = true
        effects.append(.storeSnapshotChunk(chunk))
    }

    mutating func snapshotChunkStored(_ position: LogPosition, nextOffset: UInt64) {
        guard let current = incoming, current.metadata.position == position, current.isStoring else { return }
        incoming?.isStoring = false
        incoming?.nextOffset = nextOffset
        answerSnapshot(position, nextOffset: nextOffset)
    }

    mutating func snapshotRejected(_ position: LogPosition) {
        guard let current = incoming, current.metadata.position == position else { return }
        incoming = nil
        answerSnapshot(position, nextOffset: 0)
    }

    private mutating func answerSnapshot(_ position: LogPosition, nextOffset: UInt64) {
        guard role == .follower, let leader else { return }
        sendNow(
            leader,
            .installSnapshotResponse(InstallSnapshotResponse(term: term, snapshot: position, nextOffset: nextOffset)))
    }

    /// The state that a snapshot holds is committed, whoever sent it and whatever term it is now.
    mutating func snapshotInstalled(_ metadata: SnapshotMetadata) {
        if incoming?.metadata.position == metadata.position { incoming = nil }
        guard !storageFailed else { return }
        if metadata.index > commitIndex {
            if log.contains(metadata.position) {
                // Everything is here already; only the word that it is committed was missing.
                commitIndex = metadata.index
                adopt(metadata)
            } else {
                // No leader gets here: its log has whatever is committed. A candidate's log was not good enough.
                role = .follower
                votesFor = []
                snapshot = metadata
                resetLog(to: metadata)
                commitIndex = metadata.index
                deliveredIndex = metadata.index
                effects.append(.restoreSnapshot(metadata))
            }
        }
        settleRecovery()
        if role == .follower, let leader {
            noteAgreement(through: commitIndex)
            sendWhenDurable(leader, .appendResponse(AppendResponse(term: term, outcome: .accepted(match: commitIndex))))
        }
    }
}
