import Consensus
import Model
import Testing

/// How soon voters that have just started elect a leader, and when they must not.
@Suite struct FirstQuestionTests {
    private static let ids = (1...3).map { NodeID(high: UInt64($0), low: 0) }
    private static let start = MonotonicTime(nanoseconds: 1_000_000_000)

    /// Some of three voters, on a network and disks without delay. Messages to others are lost.
    private struct Group {
        var rafts: [NodeID: Raft] = [:]
        var now = FirstQuestionTests.start
        var sentPreVotes: [NodeID: Int] = [:]

        mutating func start(_ id: NodeID, terms: [UInt64] = [1, 1], term: UInt64 = 1, voters: [NodeID] = ids) {
            let entries = terms.enumerated().map { i, term in
                i == 0
                    ? LogEntry(
                        index: 1, term: term, kind: .configuration, payload: RaftConfiguration(voters: voters).encoded)
                    : LogEntry(index: UInt64(i + 1), term: term, kind: .command, payload: [1])
            }
            let log = RecoveredLog(hardState: HardState(term: term, vote: nil, commit: 1), entries: entries)
            rafts[id] = Raft(
                id: id, recovered: log, generator: SeededGenerator(seed: id.high), now: now)
        }

        /// Lets time pass, in steps of a millisecond.
        mutating func run(for time: TimeSpan) throws {
            let end = now + time
            while now < end {
                for id in rafts.keys.sorted() { try rafts[id]?.handle(.timer, now: now) }
                try settle()
                now = now + .milliseconds(1)
            }
        }

        private mutating func settle() throws {
            var isQuiet = false
            while !isQuiet {
                isQuiet = true
                for id in rafts.keys.sorted() {
                    for effect in rafts[id]?.takeEffects() ?? [] {
                        switch effect {
                        case .persist(let request):
                            isQuiet = false
                            try rafts[id]?.handle(.persisted(ticket: request.ticket), now: now)
                        case .send(let to, let message):
                            isQuiet = false
                            if case .preVote = message { sentPreVotes[id, default: 0] += 1 }
                            try rafts[to]?.handle(.message(from: id, message), now: now)
                        default: break
                        }
                    }
                }
            }
        }

        var leaders: [NodeID] { rafts.filter { $0.value.isLeader }.keys.sorted() }
    }

    @Test func `voters that all start again have a leader before any time-out`() throws {
        var group = Group()
        for id in Self.ids { group.start(id) }
        try group.run(for: .milliseconds(50))
        #expect(group.leaders.count == 1)
    }

    @Test func `the last to start completes the answers`() throws {
        var group = Group()
        group.start(Self.ids[0])
        group.start(Self.ids[1])
        try group.run(for: .milliseconds(100))
        #expect(group.leaders.isEmpty, "a third may lead")
        group.start(Self.ids[2])
        try group.run(for: .milliseconds(50))
        #expect(group.leaders.count == 1)
    }

    @Test func `a log that is behind does not lead, and who has the newest does`() throws {
        var group = Group()
        group.start(Self.ids[0], terms: [1])
        group.start(Self.ids[1], terms: [1])
        group.start(Self.ids[2], terms: [1, 1, 2], term: 2)
        try group.run(for: .milliseconds(100))
        #expect(group.leaders == [Self.ids[2]])
    }

    @Test func `two of three wait for the usual time-out, and then elect`() throws {
        var group = Group()
        group.start(Self.ids[0])
        group.start(Self.ids[1])
        try group.run(for: .milliseconds(240))
        #expect(group.leaders.isEmpty)
        try group.run(for: .milliseconds(400))
        #expect(group.leaders.count == 1)
    }

    @Test func `a voter alone leads at once`() throws {
        var group = Group()
        group.start(Self.ids[0], voters: [Self.ids[0]])
        try group.run(for: .milliseconds(2))
        #expect(group.leaders == [Self.ids[0]])
    }

    @Test func `two that start again do not depose the leader that they have not heard yet`() throws {
        var group = Group()
        for id in Self.ids { group.start(id) }
        try group.run(for: .milliseconds(50))
        let leader = try #require(group.leaders.first)
        let term = try #require(group.rafts[leader]?.term)
        try group.run(for: .milliseconds(10))
        // Their logs have what the leader's has; they know nothing of its term's vote.
        for id in Self.ids where id != leader { group.start(id, terms: [1, 1, term], term: term) }
        try group.run(for: .milliseconds(45))
        #expect(group.leaders == [leader])
        #expect(group.rafts[leader]?.term == term)
        try group.run(for: .milliseconds(600))
        #expect(group.leaders == [leader])
        #expect(group.rafts[leader]?.term == term)
    }

    @Test func `who has heard the leader asks no more`() throws {
        var group = Group()
        for id in Self.ids { group.start(id) }
        try group.run(for: .milliseconds(50))
        let leader = try #require(group.leaders.first)
        let follower = try #require(Self.ids.first { $0 != leader })
        group.start(follower, terms: [1, 1, 2], term: 2)
        try group.run(for: .milliseconds(100))
        #expect(group.rafts[follower]?.leader == leader)
        group.sentPreVotes = [:]
        try group.run(for: .milliseconds(1_000))
        #expect(group.sentPreVotes.isEmpty)
    }
}
