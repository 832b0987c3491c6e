import Model

// Changes of the configuration (thesis, chapter 4). A configuration is in force from the moment it is appended, committed or
// not, and goes when its entry is truncated or a snapshot replaces the log (databendlabs/openraft#1808). One voter more or
// less is a single entry; anything else goes through a joint configuration, which the leader leaves by itself once the joint
// one is committed, not earlier (camunda#60086).

extension Raft {
    /// Asks for a new set of voters and learners. Refused while an earlier change, or the first entry of this leader's term,
    /// is not committed: two leaders' single changes could otherwise have disjoint majorities.
    public mutating func proposeConfiguration(
        voters: [NodeID], learners: [NodeID], now: MonotonicTime
    ) -> Result<UInt64, ProposeError> {
        self.now = max(self.now, now)
        if let refusal = proposalRefusal { return .failure(refusal) }
        guard isReady, !configuration.isJoint, configurations[configurations.count - 1].index <= commitIndex else {
            return .failure(.configurationInFlight)
        }
        guard !voters.isEmpty else { return .failure(.invalidConfiguration("no voters")) }
        var wanted = RaftConfiguration(voters: voters, learners: learners)
        guard wanted.voters.count <= RaftConfiguration.maxVoters else {
            return .failure(
                .invalidConfiguration("\(wanted.voters.count) voters, the limit is \(RaftConfiguration.maxVoters)"))
        }
        guard wanted.learners.count <= RaftConfiguration.maxLearners else {
            return .failure(
                .invalidConfiguration(
                    "\(wanted.learners.count) learners, the limit is \(RaftConfiguration.maxLearners)"))
        }
        guard wanted != configuration else { return .failure(.invalidConfiguration("nothing changes")) }
        let current = configuration.voters
        let changes =
            wanted.voters.filter { !current.contains($0) }.count + current.filter { !wanted.voters.contains($0) }.count
        if changes > 1 { wanted = RaftConfiguration(voters: voters, outgoing: current, learners: learners) }
        appendOwn(.configuration, wanted.encoded, configuration: wanted)
        return .success(log.lastIndex)
    }

    /// True while a change waits to be committed or a joint configuration to be left.
    public var isChangingConfiguration: Bool {
        configuration.isJoint || configurations[configurations.count - 1].index > commitIndex
    }

    /// How far a member's log is known to agree with this leader's; nil unless this node leads and knows the member.
    public func matchIndex(of member: NodeID) -> UInt64? {
        guard role == .leader else { return nil }
        return member == id ? log.lastIndex : peers.first { $0.id == member }?.match
    }

    /// Members of the configuration that have answered this leader since `time`, or that it began to lead or know since then.
    /// Empty unless this node leads.
    public func peersHeard(since time: MonotonicTime) -> [NodeID] {
        role == .leader ? peers.filter { $0.lastContact >= time }.map(\.id) : []
    }

    mutating func configurationDidChange() {
        let point = configurations[configurations.count - 1]
        if role == .leader { rebuildPeers() }
        if !isVoter {
            if role == .preCandidate || role == .candidate { role = .follower }
        } else if electionDeadline == .distantFuture {
            resetElectionTimer()
        }
        effects.append(.configurationChanged(point.configuration, index: point.index))
    }

    mutating func configurationMayBeCommitted() {
        guard role == .leader, configurations[configurations.count - 1].index <= commitIndex else { return }
        if configuration.isJoint {
            let final = configuration.withoutOutgoing
            appendOwn(.configuration, final.encoded, configuration: final)
        } else if !configuration.isVoter(id) {
            handOver()
            becomeFollower(term: term, leader: nil, reason: .removed)
        }
    }
}
