import Model

// Elections: section 5.2 of the paper, pre-vote (thesis 9.6), and one addition. Silence is slow evidence of a leader's death.
// A process that dies closes its connections, which peers see within a millisecond; a driver reports that as
// `.peerProcessDied`. Followers then ask at once, and voters grant if they have such evidence themselves or no longer hear
// the leader. The fast way goes through pre-vote like any other, and safety never depends on time, so false evidence costs
// one unanswered pre-vote. (Reads use ReadIndex, not leases: an early election would break a lease.)

extension Raft {
    /// Learners and strangers never ask for votes (redpanda PR#8495, hashicorp/raft#483), nor does a node whose disk hangs or
    /// has lost what it promised.
    var canCampaign: Bool { !storageFailed && isVoter && !isDiskStalled && recovery == nil }

    mutating func resetElectionTimer() {
        let range = options.electionTimeoutMax.nanoseconds - options.electionTimeoutMin.nanoseconds
        let extra = range > 0 ? Int64(generator.next() % UInt64(range)) : 0
        electionTimeout = TimeSpan(nanoseconds: options.electionTimeoutMin.nanoseconds + extra)
        electionDeadline = now + electionTimeout
    }

    /// True while a leader was heard within the shortest election time-out and nothing tells of its death: then an election
    /// would only disturb (thesis 4.2.3).
    var leaderSeemsAlive: Bool {
        if role == .leader { return true }
        guard let leader, let lastLeaderContact, leader != deadLeader else { return false }
        return now - lastLeaderContact < options.electionTimeoutMin
    }

    mutating func learnDeath(of peer: NodeID) {
        guard role == .follower, let leader, leader == peer, deadLeader != peer else { return }
        deadLeader = peer
        guard canCampaign else { return }
        // Ranks by id, so that survivors ask one after another and the first one usually wins.
        let survivors = configuration.members.filter { configuration.isVoter($0) && $0 != peer }
        let rank = survivors.firstIndex(of: id) ?? 0
        let slot = options.evidenceWindow.nanoseconds / Int64(max(survivors.count, 1))
        let jitter = slot > 1 ? Int64(generator.next() % UInt64(slot / 2)) : 0
        // The first waits a little as well: others need their own evidence before they can grant.
        let delay = slot * Int64(rank) + slot / 8 + jitter / 2
        fastAttempts = 4
        electionDeadline = min(electionDeadline, now + TimeSpan(nanoseconds: delay))
        answerDeferredPreVotes()
    }

    /// Others may learn of a death some milliseconds earlier, and ask: what was only refused because the leader seemed to live
    /// is granted now. Otherwise they would have to ask once more.
    private mutating func answerDeferredPreVotes() {
        let waiting = deferredPreVotes
        deferredPreVotes = []
        for ask in waiting where now - ask.at < options.electionTimeoutMin {
            receivePreVote(ask.request, from: ask.from)
        }
    }

    // MARK: The first question

    // Where all nodes were restarted nobody leads, and to wait for silence would be idle. So a voter that has just started asks at
    // once, and counts the answers only if all voters say that they would elect it: whoever leads is one of them, and would
    // not. What some of them say proves nothing, for those who have just started as well have not heard the leader yet.

    mutating func beginFirstQuestion() {
        guard canCampaign else { return }
        firstQuestionDue = now + options.evidenceWindow * firstQuestionRank
    }

    /// By the order of ids, so that of those who start together the first is elected before the others ask.
    private var firstQuestionRank: Int {
        configuration.members.filter { configuration.isVoter($0) }.firstIndex(of: id) ?? 0
    }

    /// Asked again until all have answered, for they may come later, or a usual election begins.
    mutating func askFirstQuestion() {
        firstQuestionDue = now + options.evidenceWindow * (otherVoters.count + 1)
        guard canCampaign else { return }
        if role != .preCandidate {
            role = .preCandidate
            votesFor = [id]
        }
        if hasAllVotes { return startElection(isTransfer: false) }
        let request = VoteRequest(term: term + 1, last: log.last, isTransfer: false)
        for voter in otherVoters where !votesFor.contains(voter) { sendNow(voter, .preVote(request)) }
    }

    private var hasAllVotes: Bool { otherVoters.allSatisfy { votesFor.contains($0) } }

    // MARK: Silence

    mutating func electionTimedOut() {
        if isTermLost { return askForTerms() }
        guard canCampaign else {
            setLeader(nil)
            resetElectionTimer()
            // Nothing to do until a leader speaks, unless only the disk is in the way.
            if !isVoter { electionDeadline = .distantFuture }
            return
        }
        startPreVote()
    }

    mutating func startPreVote() {
        role = .preCandidate
        firstQuestionDue = .distantFuture
        setLeader(nil)
        resetCampaignTimer()
        votesFor = [id]
        if configuration.hasQuorum({ $0 == id }) { return startElection(isTransfer: false) }
        let request = VoteRequest(term: term + 1, last: log.last, isTransfer: false)
        for voter in otherVoters { sendNow(voter, .preVote(request)) }
    }

    /// After proof of death a lost round is repeated soon; else the usual time-out keeps candidates apart.
    private mutating func resetCampaignTimer() {
        resetElectionTimer()
        if fastAttempts > 0 {
            fastAttempts -= 1
            let window = max(options.evidenceWindow.nanoseconds, 1)
            electionDeadline = now + TimeSpan(nanoseconds: window + Int64(generator.next() % UInt64(window)))
        }
    }

    mutating func startElection(isTransfer: Bool) {
        role = .candidate
        firstQuestionDue = .distantFuture
        term += 1
        vote = id
        hardStateChanged = true
        setLeader(nil)
        votesFor = []
        if isTransfer { resetElectionTimer() } else { resetCampaignTimer() }
        // Neither our own vote nor the requests may be known to anyone before the vote is stored: a node that restarted
        // with a shorter log could otherwise collect votes given to the longer one in the same term.
        sendWhenDurable(id, .voteResponse(VoteResponse(term: term, granted: true)))
        let request = VoteRequest(term: term, last: log.last, isTransfer: isTransfer)
        for voter in otherVoters { sendWhenDurable(voter, .vote(request)) }
    }

    var otherVoters: [NodeID] { configuration.members.filter { configuration.isVoter($0) && $0 != id } }

    mutating func receivePreVote(_ request: VoteRequest, from: NodeID) {
        let couldBe = request.term > term && mayElect(request.last)
        let granted = couldBe && !leaderSeemsAlive
        if couldBe && !granted && role == .follower {
            deferredPreVotes.removeAll { $0.from == from }
            deferredPreVotes.append((from, request, now))
        }
        sendNow(from, .preVoteResponse(VoteResponse(term: granted ? request.term : term, granted: granted)))
    }

    mutating func receivePreVoteResponse(_ response: VoteResponse, from: NodeID) {
        if !response.granted {
            guard response.term > term else { return }
            // A first question waits for its turn: who refused may lead.
            let wasAsking = role == .preCandidate && firstQuestionDue == .distantFuture
            becomeFollower(term: response.term, leader: nil)
            // Only the number was too low. Each repetition needs a higher term, so this ends.
            if wasAsking && canCampaign { startPreVote() }
            return
        }
        guard role == .preCandidate, response.term == term + 1 else { return }
        record(from)
        let isEnough =
            firstQuestionDue == .distantFuture ? configuration.hasQuorum({ votesFor.contains($0) }) : hasAllVotes
        if isEnough { startElection(isTransfer: false) }
    }

    mutating func receiveVote(_ request: VoteRequest, from: NodeID) {
        if request.term < term {
            sendNow(from, .voteResponse(VoteResponse(term: term, granted: false)))
            return
        }
        // No answer, and above all no step to the higher term: the sender can not hear the leader that we hear.
        if request.term > term && leaderSeemsAlive && !request.isTransfer { return }
        if request.term > term { becomeFollower(term: request.term, leader: nil) }
        let mayVote = vote == from || (vote == nil && leader == nil)
        guard mayVote && mayElect(request.last) else {
            sendNow(from, .voteResponse(VoteResponse(term: term, granted: false)))
            return
        }
        if vote != from {
            vote = from
            hardStateChanged = true
        }
        // Who helps another to lead does not ask for itself meanwhile.
        role = .follower
        firstQuestionDue = .distantFuture
        votesFor = []
        resetElectionTimer()
        sendWhenDurable(from, .voteResponse(VoteResponse(term: term, granted: true)))
    }

    mutating func receiveVoteResponse(_ response: VoteResponse, from: NodeID) {
        if response.term > term { return becomeFollower(term: response.term, leader: nil) }
        guard role == .candidate, response.term == term, response.granted else { return }
        record(from)
        if configuration.hasQuorum({ votesFor.contains($0) }) { becomeLeader() }
    }

    private mutating func record(_ voter: NodeID) {
        if !votesFor.contains(voter) { votesFor.append(voter) }
    }

    // MARK: Leadership begins and ends

    private mutating func becomeLeader() {
        role = .leader
        votesFor = []
        deadLeader = nil
        fastAttempts = 0
        incoming = nil
        readRound = 0
        announcedIndex = 0
        uncommittedBytes = log.bytesAfter(commitIndex)
        peers = []
        rebuildPeers()
        setLeader(id)
        effects.append(.becameLeader(term: term))
        // Every peer hears of the new leader at once by the AppendEntries that carries this entry (section 5.4.2 and 8).
        appendOwn(.noop, [])
        heartbeatDue = now + options.heartbeat
        quorumGraceUntil = now
        stallGraceUsed = false
    }

    mutating func leaveLeadership() {
        peers = []
        heartbeatDue = .distantFuture
        commitNoticeDue = .distantFuture
        let lost = (activeReads?.contexts ?? []) + waitingReads
        if !lost.isEmpty { effects.append(.readFailed(contexts: lost)) }
        activeReads = nil
        waitingReads = []
        if let transfer, !transfer.isSent { effects.append(.transferFailed(to: transfer.to)) }
        transfer = nil
        uncommittedBytes = 0
    }

    // MARK: Handing leadership on (thesis 3.10)

    mutating func startTransfer(to requested: NodeID?) {
        guard role == .leader else {
            if let requested { effects.append(.transferFailed(to: requested)) }
            return
        }
        guard let target = requested ?? mostAdvancedVoter(), target != id, configuration.isVoter(target) else {
            if let requested { effects.append(.transferFailed(to: requested)) }
            return
        }
        if let transfer, transfer.to != target { effects.append(.transferFailed(to: transfer.to)) }
        transfer = Transfer(to: target, deadline: now + options.electionTimeoutMax, isSent: false)
        continueTransfer()
    }

    /// The target is told as soon as it has everything; meanwhile proposals are refused, so that it gets there.
    mutating func continueTransfer() {
        guard let current = transfer, !current.isSent, let i = peerIndex(current.to), peers[i].match == log.lastIndex
        else { return }
        transfer?.isSent = true
        sendNow(current.to, .timeoutNow(TimeoutNow(term: term)))
    }

    func mostAdvancedVoter() -> NodeID? {
        var best: Progress?
        for peer in peers where configuration.isVoter(peer.id) && now - peer.lastContact < options.electionTimeoutMin {
            if let current = best, current.match >= peer.match { continue }
            best = peer
        }
        return best?.id
    }

    /// A leader that has to stop tells the most advanced voter to ask for votes at once, rather than let all wait for
    /// silence. No promise: that voter may miss entries that others have, and lose.
    mutating func handOver() {
        if let heir = mostAdvancedVoter() { sendNow(heir, .timeoutNow(TimeoutNow(term: term))) }
    }
}
