import Model

// A member whose disk lost what it had acknowledged. Alagappan et al., "Protocol-aware recovery for consensus-based storage"
// (FAST '18), show why it may neither go on as if nothing had happened (truncating at the damage loses committed entries: a
// majority need not have them any more) nor has to stop for ever: the others have the entries. What follows is their idea in
// terms of Raft's own order of logs.
//
// **The floor.** Raft is safe because a voter refuses every candidate whose last entry is below the voter's own. A member
// with a damaged log does not have its last entry, but need only know a position that is at least that: the floor. While
// its log ends below the floor it
//  - does not campaign;
//  - votes, and says that it would vote, only for candidates whose log ends at or above the floor;
//  - follows, appends, and acknowledges what it appends, truthfully: it counts for what it holds.
// An intact member in its place would refuse at least the candidates that it refuses now and might grant others, so every
// election it takes part in is one that plain Raft allows. Once its log ends at or above the floor it *is* that intact
// member: if the last terms are equal, Log Matching says that both logs are equal up to the floor; if its last term is
// higher, that entry came from a later leader, whose log the intact member would have taken over up to there as well.
//
// **Nothing readable follows the damage.** Every acknowledged entry has a term at most that of the hard state, which is
// stored before any acknowledgement. So (last possible index, that term) is a floor. It is passed as soon as a leader of a
// later term has replicated its first entry: it was elected without us and therefore has whatever was committed with our
// help. If the leader of that very term still leads, every entry of the term came from it, so where its log ends *now* is a
// floor too. The member asks it (``Inquiry``), with a nonce, for an answer that an earlier run asked for says too little.
// Waiting merely for the commit index that a leader tells is not enough: a leader that has not yet committed an entry of its
// own term may tell too little (it does not know that its older entries are committed), and a leader that led before our
// start may still count what we acknowledged then.
//
// **What others remember.** A leader's `match` for us may be too high. It commits nothing that is lost: our floor stands for
// those acknowledgements in every election. But `match` also bounds the commit index in heartbeats, which says "committed,
// and in your log", and what precedes the damage may even hold entries that a lost truncation replaced. So, in a run that
// began with damage, a heartbeat's commit index counts only as far as this run has itself compared the log with that
// leader's, and until then the leader is told so (``AppendResponse/Outcome/shortened(last:)``), which makes it forget.
//
// **Term and vote are lost.** Then even an acknowledgement is dangerous: a leader of an old term could commit by it although
// we had voted for its successor. All messages but answers are ignored until every other voter has told its term: those of
// our own configuration, and those of the configurations that the answers name. Each candidate that we may have voted for,
// and each leader that we may have followed, stored its term before we heard of it, so the highest term told bounds our
// promises; we enter it with our vote taken, so that we vote in higher terms only. A member in this state answers no
// inquiry: two of them wait for a human. What remains is a vote given to a voter of whose configuration nobody who answered
// knows.
//
// **A majority is damaged at the same place.** None of them reaches the floor by the others, none is elected, none helps to
// elect a log without the entry: there is no leader until an intact copy comes back, which all of them may elect.

extension Raft {
    var isTermLost: Bool { recovery?.isTermLost ?? false }

    mutating func beginRecovery() {
        inquiryNonce = generator.next()
        if isTermLost {
            // Ask at once.
            electionDeadline = now
        } else if let recovery, recovery.isFloorKnown, recovery.floor.term > term {
            // Not from a sound journal, which stores the term first; but a term once seen is never entered again.
            term = recovery.floor.term
            vote = nil
            hardStateChanged = true
        }
        settleRecovery()
    }

    /// Raft's election restriction (section 5.4.1), with the floor in the place of what was lost.
    func mayElect(_ last: LogPosition) -> Bool { last >= log.last && last >= recovery?.floor ?? .zero }

    /// Call after the log grew or the floor became known.
    mutating func settleRecovery() {
        guard let recovery, recovery.isSettled(by: log.last) else { return }
        self.recovery = nil
        // Votes that follow wait for the same disk write, like everything that depends on the log.
        pendingRecovered = true
        effects.append(.recovered(through: log.last))
    }

    // MARK: Comparing with the leader

    /// In a run that began with damage, until this term's leader and this node have found where their logs agree.
    var isUnverified: Bool { isSalvaged && agreedTerm != term }

    mutating func noteAgreement(through index: UInt64) {
        if agreedTerm != term {
            agreedTerm = term
            agreedIndex = 0
        }
        agreedIndex = max(agreedIndex, index)
    }

    mutating func receiveCommitAfterDamage(_ commit: UInt64, from leader: NodeID) {
        let agreed = agreedTerm == term ? agreedIndex : 0
        if isUnverified || commit > agreed {
            sendNow(leader, .appendResponse(AppendResponse(term: term, outcome: .shortened(last: log.last))))
        }
        commitIndex = max(commitIndex, min(commit, agreed))
        if let recovery, !recovery.isFloorKnown, recovery.floor.term == term {
            sendNow(leader, .inquiry(Inquiry(term: term, nonce: inquiryNonce)))
        }
    }

    // MARK: Inquiries

    mutating func answer(_ inquiry: Inquiry, from asker: NodeID) {
        let voters = configuration.members.filter { configuration.isVoter($0) }
        let last = role == .leader ? log.lastIndex : nil
        sendNow(
            asker, .inquiryResponse(InquiryResponse(term: term, nonce: inquiry.nonce, leaderLast: last, voters: voters))
        )
    }

    mutating func receiveInquiryResponse(_ response: InquiryResponse, from leader: NodeID) {
        guard var current = recovery, response.nonce == inquiryNonce, !current.isFloorKnown,
            response.term == current.floor.term, let last = response.leaderLast
        else { return }
        current.floor.index = last
        recovery = current
        settleRecovery()
    }

    // MARK: Term and vote are lost

    /// Everyone whose vote may matter, as far as this log or any answer tells.
    private var knownVoters: [NodeID] {
        var all = otherVoters
        for voter in votersTold where voter != id && !all.contains(voter) { all.append(voter) }
        return all
    }

    /// In the place of elections.
    mutating func askForTerms() {
        resetElectionTimer()
        for voter in knownVoters where !termsToldBy.contains(voter) { ask(voter) }
        termMayBeKnown()
    }

    private mutating func ask(_ voter: NodeID) { sendNow(voter, .inquiry(Inquiry(term: term, nonce: inquiryNonce))) }

    mutating func receiveWithoutTerm(_ message: RaftMessage, from peer: NodeID) {
        switch message {
        case .inquiryResponse(let response):
            guard response.nonce == inquiryNonce else { return }
            if !termsToldBy.contains(peer) { termsToldBy.append(peer) }
            highestTermTold = max(highestTermTold, response.term)
            for voter in response.voters where voter != id && !votersTold.contains(voter) {
                votersTold.append(voter)
                if !termsToldBy.contains(voter) { ask(voter) }
            }
            termMayBeKnown()
        case .heartbeat, .append:
            // Even a node that knows nobody any more is known to its leader.
            if !termsToldBy.contains(peer) { ask(peer) }
        default: break
        }
    }

    private mutating func termMayBeKnown() {
        guard var current = recovery, current.isTermLost else { return }
        // A single voter has promised nothing to anyone but itself.
        guard configuration.voters == [id] || !termsToldBy.isEmpty else { return }
        guard knownVoters.allSatisfy({ termsToldBy.contains($0) }) else { return }
        term = max(term, highestTermTold, current.floor.term)
        // Any vote may have been given in this term; so none is.
        vote = id
        hardStateChanged = true
        current.isTermLost = false
        if !current.isFloorKnown { current.floor.term = max(current.floor.term, term) }
        recovery = current
        resetElectionTimer()
        settleRecovery()
    }
}
