import Consensus
import Model
import Testing

@testable import Consensus

/// What a follower may conclude from the leader's word about its own disk.
@Suite struct EarlyCommitTests {
    private static let ids = (1...5).map { NodeID(high: UInt64($0), low: 0) }
    private static let start = MonotonicTime(nanoseconds: 1_000_000_000)

    /// Node 1, whose log begins with the configuration; node 2 leads term 2.
    private func follower(voters: Int, learns: Bool = false, tail: [UInt64] = []) -> Raft {
        let others = Array(Self.ids[1...min(voters, 4)])
        let configuration =
            learns
            ? RaftConfiguration(voters: others, learners: [Self.ids[0]])
            : RaftConfiguration(voters: Array(Self.ids[..<voters]))
        var entries = [LogEntry(index: 1, term: 1, kind: .configuration, payload: configuration.encoded)]
        for term in tail {
            entries.append(LogEntry(index: UInt64(entries.count + 1), term: term, kind: .command, payload: [9]))
        }
        let log = RecoveredLog(hardState: HardState(term: 1, vote: nil, commit: 1), entries: entries)
        return Raft(id: Self.ids[0], recovered: log, generator: SeededGenerator(seed: 7), now: Self.start)
    }

    private func append(_ raft: inout Raft, durable: UInt64, term: UInt64 = 2) throws {
        let entry = LogEntry(index: raft.lastIndex + 1, term: term, kind: .command, payload: [1])
        let message = AppendEntries(
            term: 2, previous: raft.lastPosition, commit: 1, durable: durable, entries: [entry])
        try raft.handle(.message(from: Self.ids[1], .append(message)), now: Self.start)
    }

    private func announce(_ raft: inout Raft, _ durable: UInt64) throws {
        try raft.handle(
            .message(from: Self.ids[1], .heartbeat(Heartbeat(term: 2, commit: 1, durable: durable, round: 0))),
            now: Self.start)
    }

    /// The tickets of what is to be written.
    private func tickets(_ raft: inout Raft) -> [UInt64] {
        raft.takeEffects().compactMap { if case .persist(let request) = $0 { request.ticket } else { nil } }
    }

    @Test func twoCopiesOfThreeCommitWhicheverIsKnownLast() throws {
        for leaderFirst in [true, false] {
            var raft = follower(voters: 3)
            try append(&raft, durable: 1)
            let written = tickets(&raft)
            if leaderFirst { try announce(&raft, 2) }
            #expect(raft.commitIndex == 1, "its own copy is not on its disk yet")
            for ticket in written { try raft.handle(.persisted(ticket: ticket), now: Self.start) }
            #expect(raft.commitIndex == (leaderFirst ? 2 : 1), "the leader's copy counts when the leader says so")
            if !leaderFirst { try announce(&raft, 2) }
            #expect(raft.commitIndex == 2)
            #expect(
                raft.takeEffects().contains {
                    if case .committed(let entries) = $0 { entries.last?.index == 2 } else { false }
                })
        }
    }

    @Test func theNextEntriesCarryTheLeadersWord() throws {
        var raft = follower(voters: 3)
        try append(&raft, durable: 1)
        for ticket in tickets(&raft) { try raft.handle(.persisted(ticket: ticket), now: Self.start) }
        try append(&raft, durable: 2)
        #expect(raft.commitIndex == 2)
    }

    @Test func twoCopiesOfFiveCommitNothing() throws {
        var raft = follower(voters: 5)
        try append(&raft, durable: 2)
        for ticket in tickets(&raft) { try raft.handle(.persisted(ticket: ticket), now: Self.start) }
        try announce(&raft, 2)
        #expect(raft.commitIndex == 1)
    }

    @Test func aLearnersCopyDoesNotCount() throws {
        var raft = follower(voters: 3, learns: true)
        try append(&raft, durable: 2)
        for ticket in tickets(&raft) { try raft.handle(.persisted(ticket: ticket), now: Self.start) }
        #expect(raft.commitIndex == 1)
    }

    /// Section 5.4.2 and figure 8: entries of older terms are committed by one of the leader's own term only.
    @Test func entriesOfOlderTermsWaitForOneOfTheLeaders() throws {
        var raft = follower(voters: 3)
        try append(&raft, durable: 2, term: 1)
        for ticket in tickets(&raft) { try raft.handle(.persisted(ticket: ticket), now: Self.start) }
        try announce(&raft, 2)
        #expect(raft.commitIndex == 1)
        try append(&raft, durable: 3)
        for ticket in tickets(&raft) { try raft.handle(.persisted(ticket: ticket), now: Self.start) }
        #expect(raft.commitIndex == 3)
    }

    /// What is behind the last entry that the leader compared may be another leader's.
    @Test func whatTheLeaderHasNotComparedIsNotItsCopy() throws {
        var raft = follower(voters: 3, tail: [1, 1])
        try announce(&raft, 3)
        #expect(raft.commitIndex == 1)
    }

    @Test func theLeaderSaysWhatIsOnItsDiskAndReadsReckonWithIt() throws {
        let configuration = RaftConfiguration(voters: Array(Self.ids[..<3]))
        let log = RecoveredLog(
            hardState: HardState(term: 1, vote: nil, commit: 1),
            entries: [LogEntry(index: 1, term: 1, kind: .configuration, payload: configuration.encoded)])
        var now = Self.start
        var raft = Raft(id: Self.ids[0], recovered: log, generator: SeededGenerator(seed: 7), now: now)
        var sent: [RaftMessage] = []
        func turn(persists: Bool = true) throws -> [UInt64] {
            var held: [UInt64] = []
            while true {
                var tickets: [UInt64] = []
                for effect in raft.takeEffects() {
                    if case .send(let to, let message) = effect, to == Self.ids[1] { sent.append(message) }
                    if case .persist(let request) = effect { tickets.append(request.ticket) }
                }
                if !persists { held += tickets }
                guard persists, !tickets.isEmpty else { return held }
                for ticket in tickets { try raft.handle(.persisted(ticket: ticket), now: now) }
            }
        }
        now = now + .milliseconds(300)
        try raft.handle(.timer, now: now)
        _ = try turn()
        for grant: (VoteResponse) -> RaftMessage in [{ .preVoteResponse($0) }, { .voteResponse($0) }] {
            try raft.handle(
                .message(from: Self.ids[1], grant(VoteResponse(term: 2, granted: true))), now: now)
            _ = try turn()
        }
        #expect(raft.isLeader)
        try raft.handle(
            .message(from: Self.ids[1], .appendResponse(AppendResponse(term: 2, outcome: .accepted(match: 2)))),
            now: now)
        _ = try turn()
        #expect(raft.isReady && raft.commitIndex == 2)

        _ = raft.propose([[1]], now: now)
        sent = []
        let held = try turn(persists: false)
        func told() -> UInt64 {
            sent.map {
                switch $0 {
                case .append(let message): message.durable
                case .heartbeat(let message): message.durable
                default: 0
                }
            }.max() ?? 0
        }
        #expect(told() == 2, "entry 3 is not on its disk yet")
        for ticket in held { try raft.handle(.persisted(ticket: ticket), now: now) }
        _ = try turn()
        #expect(told() == 3)
        #expect(raft.commitIndex == 2 && raft.possiblyCommitted == 3)
        #expect(!raft.knowsOfCommit(Self.ids[1], 3), "it has not acknowledged")

        // A read that comes now must see entry 3: a follower may have answered its client.
        try raft.handle(.readIndex(context: 7), now: now)
        sent = []
        _ = try turn()
        let round = sent.compactMap { if case .heartbeat(let beat) = $0, beat.round > 0 { beat.round } else { nil } }
            .last
        try raft.handle(
            .message(from: Self.ids[1], .heartbeatResponse(HeartbeatResponse(term: 2, round: try #require(round)))),
            now: now)
        let index = raft.takeEffects().compactMap { if case .readReady(_, let index) = $0 { index } else { nil } }.first
        #expect(index == 3)
        try raft.handle(
            .message(from: Self.ids[1], .appendResponse(AppendResponse(term: 2, outcome: .accepted(match: 3)))),
            now: now)
        #expect(raft.commitIndex == 3 && raft.knowsOfCommit(Self.ids[1], 3))
    }
}
