import Model

// Linearizable reads without the log and without clocks (thesis 6.4). A read is answered from a state that has applied what
// was committed when it came, after a majority confirmed that this node still led then. All reads that wait when a round of
// heartbeats begins share it; one round is under way at a time.

extension Raft {
    mutating func read(_ context: UInt64) {
        guard role == .leader, waitingReads.count < options.maxPendingReads else {
            effects.append(.readFailed(contexts: [context]))
            return
        }
        waitingReads.append(context)
    }

    /// Begins a round for the reads that wait. Before the first commit of its term a leader does not know what is
    /// committed, so reads wait for that.
    mutating func startReadRound() {
        guard activeReads == nil, !waitingReads.isEmpty, isReady else { return }
        readRound = max(readRound, 1) + 1
        activeReads = ReadRound(round: readRound, index: possiblyCommitted, contexts: waitingReads)
        waitingReads = []
        for i in peers.indices where configuration.isVoter(peers[i].id) {
            sendHeartbeat(to: i, round: readRound)
        }
        confirmReads()
    }

    mutating func confirmReads() {
        guard let active = activeReads else { return }
        let confirmed = configuration.hasQuorum { member in
            if member == id { return true }
            return peerIndex(member).map { peers[$0].ackedRound >= active.round } ?? false
        }
        guard confirmed else { return }
        activeReads = nil
        effects.append(.readReady(contexts: active.contexts, index: active.index))
    }
}
