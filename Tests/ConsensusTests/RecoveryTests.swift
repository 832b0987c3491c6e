import Consensus
import Model
import Testing

@testable import Consensus

/// What a member with a damaged log may do, step by step.
@Suite struct RecoveryTests {
    private static let ids = (1...5).map { NodeID(high: UInt64($0), low: 0) }
    private static let start = MonotonicTime(nanoseconds: 1_000_000_000)

    private func entries(_ terms: [UInt64], voters: Int = 3) -> [LogEntry] {
        terms.enumerated().map { i, term in
            i == 0
                ? LogEntry(
                    index: 1, term: term, kind: .configuration,
                    payload: RaftConfiguration(voters: Array(Self.ids[..<voters])).encoded)
                : LogEntry(index: UInt64(i + 1), term: term, kind: .command, payload: [UInt8(truncatingIfNeeded: i)])
        }
    }

    private func raft(
        _ terms: [UInt64], term: UInt64, recovery: LogRecovery?, voters: Int = 3, commit: UInt64 = 0
    ) -> Raft {
        let log = RecoveredLog(
            hardState: HardState(term: term, vote: nil, commit: commit), entries: entries(terms, voters: voters),
            recovery: recovery)
        return Raft(id: Self.ids[0], recovered: log, generator: SeededGenerator(seed: 7), now: Self.start)
    }

    /// Carries out persists at once; returns what is sent.
    private func settle(_ raft: inout Raft, at time: MonotonicTime = start) throws -> [(
        to: NodeID, message: RaftMessage
    )] {
        var sent: [(NodeID, RaftMessage)] = []
        while true {
            var ticket: UInt64?
            let effects = raft.takeEffects()
            for effect in effects {
                switch effect {
                case .send(let to, let message): sent.append((to, message))
                case .persist(let request): ticket = request.ticket
                default: break
                }
            }
            guard let ticket else { return sent }
            try raft.handle(.persisted(ticket: ticket), now: time)
        }
    }

    private func isGranted(_ raft: inout Raft, _ request: VoteRequest, from: NodeID) throws -> Bool {
        try raft.handle(.message(from: from, .vote(request)), now: Self.start)
        return try settle(&raft).contains {
            if case .voteResponse(let response) = $0.message { response.granted } else { false }
        }
    }

    @Test func noVoteBelowTheFloorAndOneAtIt() throws {
        let floor = LogPosition(index: 9, term: 2)
        var damaged = raft([1, 1, 2], term: 4, recovery: LogRecovery(floor: floor))
        #expect(
            try !isGranted(
                &damaged, VoteRequest(term: 5, last: LogPosition(index: 8, term: 2), isTransfer: false),
                from: Self.ids[1]))
        #expect(damaged.vote == nil)
        #expect(try isGranted(&damaged, VoteRequest(term: 6, last: floor, isTransfer: false), from: Self.ids[2]))
        #expect(damaged.recovery != nil, "a vote heals nothing")
    }

    @Test func noPreVoteBelowTheFloor() throws {
        var damaged = raft([1, 1, 2], term: 4, recovery: LogRecovery(floor: LogPosition(index: 9, term: 2)))
        for (last, granted) in [(LogPosition(index: 8, term: 2), false), (LogPosition(index: 9, term: 2), true)] {
            try damaged.handle(
                .message(from: Self.ids[1], .preVote(VoteRequest(term: 5, last: last, isTransfer: false))),
                now: Self.start)
            let answers = try settle(&damaged).compactMap {
                if case .preVoteResponse(let r) = $0.message { r.granted } else { nil }
            }
            #expect(answers == [granted])
        }
    }

    @Test func itNeverCampaignsBelowTheFloor() throws {
        var damaged = raft([1, 1, 2], term: 4, recovery: LogRecovery(floor: LogPosition(index: 9, term: 2)))
        for _ in 0..<20 {
            let due = damaged.nextDeadline
            guard due != .distantFuture else { break }
            try damaged.handle(.timer, now: due)
            #expect(damaged.role == .follower)
            #expect(try settle(&damaged, at: due).isEmpty)
        }
        try damaged.handle(.message(from: Self.ids[1], .timeoutNow(TimeoutNow(term: 4))), now: Self.start)
        #expect(damaged.role == .follower)
    }

    @Test func itHealsWhenItsLogReachesTheFloorAndSaysSoWithTheEntriesItPersists() throws {
        var damaged = raft([1, 1, 2], term: 4, recovery: LogRecovery(floor: LogPosition(index: 5, term: 2)))
        let more = entries([1, 1, 2, 2, 2])
        func send(_ i: Int) -> RaftMessage {
            .append(AppendEntries(term: 4, previous: more[i - 1].position, commit: 0, entries: [more[i]]))
        }
        try damaged.handle(.message(from: Self.ids[1], send(3)), now: Self.start)
        _ = try settle(&damaged)
        #expect(damaged.recovery != nil)
        try damaged.handle(.message(from: Self.ids[1], send(4)), now: Self.start)
        let requests = damaged.takeEffects().compactMap { if case .persist(let request) = $0 { request } else { nil } }
        #expect(requests.map(\.recovered) == [true])
        #expect(requests.flatMap(\.entries).map(\.index) == [5])
        #expect(damaged.recovery == nil)
    }

    @Test func anUnknownFloorIsNotReachedByALeaderWhoseTermBeganBefore() throws {
        // The commit index of a leader of the same term says nothing of what it may still commit by our old acknowledgements.
        var damaged = raft(
            [1, 1, 4], term: 4, recovery: LogRecovery(floor: LogPosition(index: LogRecovery.unknownIndex, term: 4)))
        let more = entries([1, 1, 4, 4])
        try damaged.handle(
            .message(
                from: Self.ids[1],
                .append(AppendEntries(term: 4, previous: more[2].position, commit: 4, entries: [more[3]]))),
            now: Self.start)
        _ = try settle(&damaged)
        #expect(damaged.commitIndex == 4)
        #expect(damaged.recovery != nil)
        // An entry of the next leader, who was elected without this node, does it.
        let next = LogEntry(index: 5, term: 5, kind: .noop, payload: [])
        try damaged.handle(
            .message(
                from: Self.ids[2],
                .append(AppendEntries(term: 5, previous: more[3].position, commit: 4, entries: [next]))),
            now: Self.start)
        #expect(damaged.recovery == nil)
    }

    @Test func aNewLeadersWordBeforeItsFirstOwnEntryIsNotEnough() throws {
        var damaged = raft(
            [1, 1, 4], term: 4, recovery: LogRecovery(floor: LogPosition(index: LogRecovery.unknownIndex, term: 4)))
        // It does not know yet that its entries 4 and 5 are committed.
        let more = entries([1, 1, 4])
        try damaged.handle(
            .message(
                from: Self.ids[2],
                .append(AppendEntries(term: 5, previous: more[1].position, commit: 3, entries: [more[2]]))),
            now: Self.start)
        _ = try settle(&damaged)
        #expect(damaged.commitIndex == 3)
        #expect(damaged.recovery != nil)
    }

    @Test func theLeaderOfTheSameTermTellsTheFloorAndOnlyToThisRun() throws {
        var damaged = raft(
            [1, 1, 4], term: 4, recovery: LogRecovery(floor: LogPosition(index: LogRecovery.unknownIndex, term: 4)))
        try damaged.handle(
            .message(from: Self.ids[1], .heartbeat(Heartbeat(term: 4, commit: 0, round: 1))), now: Self.start)
        let nonce = try #require(
            try settle(&damaged).compactMap {
                if case .inquiry(let inquiry) = $0.message { inquiry.nonce } else { nil }
            }.first)
        func answer(_ nonce: UInt64, term: UInt64, last: UInt64?) throws {
            let response = InquiryResponse(term: term, nonce: nonce, leaderLast: last, voters: [])
            try damaged.handle(.message(from: Self.ids[1], .inquiryResponse(response)), now: Self.start)
        }
        try answer(nonce &+ 1, term: 4, last: 3)
        try answer(nonce, term: 3, last: 3)
        try answer(nonce, term: 4, last: nil)
        #expect(damaged.recovery?.isFloorKnown == false)
        try answer(nonce, term: 4, last: 6)
        #expect(damaged.recovery?.floor == LogPosition(index: 6, term: 4))
    }

    @Test func aHeartbeatCommitsNothingThatThisRunHasNotCompared() throws {
        // What precedes the damage may be entries that a lost truncation replaced: the leader's old knowledge of our log is none.
        var damaged = raft([1, 1, 1, 1], term: 4, recovery: LogRecovery(floor: LogPosition(index: 9, term: 4)))
        try damaged.handle(
            .message(from: Self.ids[1], .heartbeat(Heartbeat(term: 4, commit: 4, round: 1))), now: Self.start)
        #expect(damaged.commitIndex == 0)
        let answers = try settle(&damaged).compactMap {
            if case .appendResponse(let r) = $0.message { r.outcome } else { nil }
        }
        #expect(answers == [.shortened(last: LogPosition(index: 4, term: 1))])
        // And nothing more of what the log does not hold.
        try damaged.handle(
            .message(from: Self.ids[1], .heartbeat(Heartbeat(term: 4, commit: 8, round: 1))), now: Self.start)
        #expect(damaged.commitIndex == 0)
    }

    /// A leader of term 2 of five voters, with its first entry at index 3 durable at home.
    private func leader() throws -> Raft {
        var leader = raft([1, 1], term: 1, recovery: nil, voters: 5)
        let due = leader.electionDeadline
        try leader.handle(.timer, now: due)
        _ = try settle(&leader, at: due)
        for i in 1...2 {
            try leader.handle(
                .message(from: Self.ids[i], .preVoteResponse(VoteResponse(term: 2, granted: true))), now: due)
        }
        _ = try settle(&leader, at: due)
        for i in 1...2 {
            try leader.handle(
                .message(from: Self.ids[i], .voteResponse(VoteResponse(term: 2, granted: true))), now: due)
        }
        _ = try settle(&leader, at: due)
        #expect(leader.isLeader)
        return leader
    }

    private func answer(_ raft: inout Raft, _ outcome: AppendResponse.Outcome, from: NodeID) throws {
        try raft.handle(.message(from: from, .appendResponse(AppendResponse(term: 2, outcome: outcome))), now: raft.now)
    }

    @Test func aLeaderForgetsWhatAPeerLostAndCountsItOnlyForWhatItSendsAgain() throws {
        var leader = try leader()
        try answer(&leader, .accepted(match: 3), from: Self.ids[1])
        #expect(leader.commitIndex == 0)
        try answer(&leader, .shortened(last: LogPosition(index: 1, term: 1)), from: Self.ids[1])
        #expect(leader.matchIndex(of: Self.ids[1]) == 0)
        let probes = try settle(&leader, at: leader.now).compactMap { sent in
            if sent.to == Self.ids[1], case .append(let append) = sent.message { append.previous.index } else { nil }
        }
        #expect(probes == [1], "it goes back to where the logs may agree")
        try answer(&leader, .accepted(match: 3), from: Self.ids[2])
        #expect(leader.commitIndex == 0, "two of five hold the entry")
        try answer(&leader, .accepted(match: 3), from: Self.ids[1])
        #expect(leader.commitIndex == 3)
        // What is committed stays so.
        try answer(&leader, .shortened(last: LogPosition(index: 1, term: 1)), from: Self.ids[1])
        #expect(leader.commitIndex == 3)
    }

    @Test func aRejectionBelowWhatWasAcknowledgedResetsTheProgress() throws {
        // etcd panics: "tocommit is out of range".
        var leader = try leader()
        try answer(&leader, .accepted(match: 3), from: Self.ids[1])
        _ = leader.propose([[1], [2]], now: leader.now)
        _ = try settle(&leader, at: leader.now)
        try answer(&leader, .rejected(rejected: 4, hint: LogPosition(index: 1, term: 1)), from: Self.ids[1])
        let probes = try settle(&leader, at: leader.now).compactMap { sent in
            if sent.to == Self.ids[1], case .append(let append) = sent.message { append.previous.index } else { nil }
        }
        #expect(probes == [1])
        #expect(leader.matchIndex(of: Self.ids[1]) == 0)
    }

    @Test func withoutItsTermItPromisesNothingUntilAllOthersHaveToldTheirs() throws {
        var lost = raft(
            [1, 1, 2], term: 2, recovery: LogRecovery(floor: LogPosition(index: 3, term: 2), isTermLost: true))
        let due = lost.nextDeadline
        try lost.handle(.timer, now: due)
        let asked = try settle(&lost, at: due)
        #expect(asked.map(\.to) == [Self.ids[1], Self.ids[2]])
        let nonce = try #require(
            asked.compactMap { if case .inquiry(let inquiry) = $0.message { inquiry.nonce } else { nil } }.first)
        // No vote, no acknowledgement, no answer meanwhile.
        let next = LogEntry(index: 4, term: 3, kind: .noop, payload: [])
        for message: RaftMessage in [
            .vote(VoteRequest(term: 3, last: LogPosition(index: 3, term: 2), isTransfer: true)),
            .append(AppendEntries(term: 3, previous: LogPosition(index: 3, term: 2), commit: 0, entries: [next])),
            .inquiry(Inquiry(term: 3, nonce: 1)),
        ] {
            try lost.handle(.message(from: Self.ids[1], message), now: due)
        }
        #expect(try settle(&lost, at: due).allSatisfy { if case .inquiry = $0.message { true } else { false } })
        #expect(lost.lastIndex == 3)
        let voters = Array(Self.ids[..<4])
        for (i, term) in [(1, UInt64(6)), (2, 4)] {
            #expect(lost.recovery != nil)
            let response = InquiryResponse(term: term, nonce: nonce, leaderLast: nil, voters: i == 1 ? voters : [])
            try lost.handle(.message(from: Self.ids[i], .inquiryResponse(response)), now: due)
        }
        // An answer told of a fourth voter.
        #expect(lost.recovery != nil)
        let response = InquiryResponse(term: 7, nonce: nonce, leaderLast: nil, voters: voters)
        try lost.handle(.message(from: Self.ids[3], .inquiryResponse(response)), now: due)
        #expect(lost.recovery == nil)
        #expect(lost.term == 7)
        #expect(
            try !isGranted(
                &lost, VoteRequest(term: 7, last: LogPosition(index: 9, term: 6), isTransfer: false), from: Self.ids[1])
        )
        #expect(
            try isGranted(
                &lost, VoteRequest(term: 8, last: LogPosition(index: 9, term: 6), isTransfer: false), from: Self.ids[1])
        )
    }

    @Test func theNewMessagesSurviveTheWire() throws {
        let messages: [RaftMessage] = [
            .inquiry(Inquiry(term: 3, nonce: 99)),
            .inquiryResponse(InquiryResponse(term: 3, nonce: 99, leaderLast: nil, voters: [])),
            .inquiryResponse(InquiryResponse(term: 3, nonce: 99, leaderLast: 12, voters: Self.ids)),
            .appendResponse(AppendResponse(term: 5, outcome: .shortened(last: LogPosition(index: 3, term: 2)))),
        ]
        for message in messages {
            let envelope = RaftEnvelope(group: 1, from: Self.ids[0], to: Self.ids[1], message: message)
            #expect(try RaftEnvelope(decoding: envelope.encoded) == envelope)
            for length in 0..<envelope.encoded.count {
                #expect(throws: (any Error).self) { try RaftEnvelope(decoding: Array(envelope.encoded.prefix(length))) }
            }
        }
    }
}
