import Model

// Where the leader and one follower are a majority, as two of three voters are, that follower need not wait for the leader to
// count: the leader says how far its own log is on its disk, and what is on both disks is committed (section 5.4.2: an entry of
// the leader's own term that a majority stores). The follower knows it one message delay after its own sync at the latest, while
// by the leader's count it would be its acknowledgement, the leader's turn and the answer later.
//
// The follower may so know of a commitment before the leader does. Whatever the leader says about "now" (the index of a read)
// therefore reckons with all that it has announced.

extension Raft {
    // MARK: The leader's side

    private func makesMajority(with peer: NodeID) -> Bool {
        configuration.hasQuorum { $0 == id || $0 == peer }
    }

    /// What a message to this peer says about the leader's own disk; 0 says nothing.
    mutating func announcement(to i: Int) -> UInt64 {
        guard makesMajority(with: peers[i].id) else { return 0 }
        peers[i].toldDurable = max(peers[i].toldDurable, durableIndex)
        announcedIndex = max(announcedIndex, durableIndex)
        return durableIndex
    }

    /// This node's disk has caught up with its log, and followers are still writing: they are told. Where more is being
    /// written, the entries that come next tell them soon enough.
    mutating func announceOwnCopy() {
        guard durableIndex == log.lastIndex, durableIndex > commitIndex else { return }
        for i in peers.indices {
            guard case .replicate = peers[i].state, peers[i].next > durableIndex, peers[i].match < durableIndex,
                peers[i].toldDurable < durableIndex, makesMajority(with: peers[i].id)
            else { continue }
            sendHeartbeat(to: i, round: 0)
        }
    }

    /// Every entry that some node may know to be committed lies at or below this index.
    public var possiblyCommitted: UInt64 { max(commitIndex, announcedIndex) }

    /// True if that follower knows by itself that the entry is committed.
    public func knowsOfCommit(_ peer: NodeID, _ index: UInt64) -> Bool {
        guard role == .leader, let i = peerIndex(peer) else { return false }
        return index <= peers[i].knownCommit
    }

    // MARK: The follower's side

    /// Notes what the leader of this term has on its disk.
    mutating func learnLeadersCopy(_ index: UInt64) {
        if leadersCopy.term != term { leadersCopy = LogPosition(index: 0, term: term) }
        leadersCopy.index = max(leadersCopy.index, index)
        commitByTwoCopies()
    }

    /// Commits what is on the leader's disk and on this one, if these two are enough. Not after damage: then this node's copies
    /// have to be compared first (see `Raft+Recovery.swift`).
    mutating func commitByTwoCopies() {
        guard role == .follower, !isSalvaged, let leader, leadersCopy.term == term, agreedTerm == term else { return }
        let reached = min(leadersCopy.index, agreedIndex, durableIndex)
        guard reached > commitIndex, log.term(at: reached) == term,
            configuration.hasQuorum({ $0 == id || $0 == leader })
        else { return }
        commitIndex = reached
    }
}
