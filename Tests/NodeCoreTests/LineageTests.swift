import Consensus
import Leases
import Membership
import Model
import Queues
import Testing
import Wire

@testable import NodeCore

/// Histories of a cluster that must not mix.
@Suite struct LineageTests {
    static let me = NodeID(high: 7, low: 7)
    static let other = NodeID(high: 1, low: 1)
    static let later = Lineage(rawValue: 1 << 48 | 99)

    static func core(member: Bool, lineage: Lineage = .original) throws -> NodeCore {
        let log =
            member
            ? RecoveredLog.founding(RaftConfiguration(voters: [me, other])) : RecoveredLog()
        let options = NodeOptions(
            cluster: "c", id: me, name: "n", address: .loopback(port: 7630), expect: 0, startCounter: 2)
        var recovery = NodeRecovery(log: log, isVirgin: !member, promise: nil, state: nil, lineage: lineage)
        if member { recovery.log.hardState.term = 2 }
        var core = try NodeCore(
            options: options, recovery: recovery, generator: SeededGenerator(seed: 1), now: .zero)
        _ = core.takeEffects()
        return core
    }

    static func append(_ lineage: Lineage, term: UInt64 = 3) -> NodeInput {
        let append = RaftMessage.append(
            AppendEntries(term: term, previous: .zero, commit: 0, entries: []))
        let envelope = RaftEnvelope(group: lineage.rawValue, from: other, to: me, message: append)
        return .peerFrame(.raft, envelope.encoded, from: other)
    }

    /// Another member's alive record, as gossip brings it.
    static func hear(_ standing: Standing, _ core: inout NodeCore) -> [NodeEffect] {
        var peer = Membership(
            options: .quick, id: other, name: "other", address: .loopback(port: 7631), tags: [:],
            meta: standing.encoded,
            version: "1", cluster: "c", incarnation: 1 << 20, generator: SeededGenerator(seed: 2), now: .zero)
        var now = MonotonicTime.zero
        var effects: [NodeEffect] = []
        peer.handle(.join([.loopback(port: 7630)]), now: now)
        // They talk until each knows the other.
        for _ in 0..<200 where core.membership.member(other) == nil {
            now = now + .milliseconds(20)
            peer.handle(.timer, now: now)
            for case .datagram(let bytes, _) in peer.takeEffects() {
                core.handle(.datagram(bytes[...], from: .loopback(port: 7631)), now: now)
            }
            core.handle(.timer, now: now)
            for effect in core.takeEffects() {
                effects.append(effect)
                if case .datagram(let bytes, _) = effect {
                    peer.handle(.datagram(bytes[...], from: .loopback(port: 7630)), now: now)
                }
            }
        }
        return effects
    }

    @Test func aVirginJoinsAHistoryOnlyWhenThatIsOnDisk() throws {
        var core = try LineageTests.core(member: false)
        core.handle(LineageTests.append(LineageTests.later), now: .zero)
        let asked = core.takeEffects().contains {
            if case .persistLineage(LineageTests.later) = $0 { true } else { false }
        }
        #expect(asked)
        core.handle(LineageTests.append(LineageTests.later), now: .zero)
        #expect(core.raft == nil, "it is not on disk yet")
        core.handle(.lineagePersisted, now: .zero)
        core.handle(LineageTests.append(LineageTests.later), now: .zero)
        #expect(core.raft?.term == 3)
        #expect(core.lineage == LineageTests.later)
        core.handle(LineageTests.append(.original, term: 9), now: .zero)
        #expect(core.raft?.term == 3, "a message of the history that was given up")
    }

    @Test func aMemberHearsNothingOfAnotherHistory() throws {
        var core = try LineageTests.core(member: true)
        core.handle(LineageTests.append(LineageTests.later, term: 9), now: .zero)
        #expect(core.raft?.term == 2)
        #expect(core.lineage == .original)
        core.handle(LineageTests.append(.original, term: 9), now: .zero)
        #expect(core.raft?.term == 9)
    }

    @Test func aMemberEndsWhenItHearsOfALaterHistory() throws {
        func fenced(_ own: Lineage, _ standing: Standing, member: Bool = true) throws -> CoterieError? {
            var core = try LineageTests.core(member: member, lineage: own)
            for case .fenced(let why) in LineageTests.hear(standing, &core) { return why }
            #expect(core.membership.member(LineageTests.other) != nil)
            return nil
        }
        let later = Standing(state: .member, expect: 0, lineage: LineageTests.later)
        #expect(try fenced(.original, later)?.code == .notAllowed)
        #expect(try fenced(LineageTests.later, later) == nil, "its own")
        #expect(try fenced(.original, later, member: false) == nil, "a virgin may still join either")
        let earlier = Standing(state: .member, expect: 0)
        #expect(try fenced(LineageTests.later, earlier) == nil, "the other one is to end")
        let virgin = Standing(state: .virgin, expect: 0, lineage: LineageTests.later)
        #expect(try fenced(.original, virgin) == nil, "it has no history yet")
    }

    @Test func epochsCountAndHistoriesOfOneEpochDiffer() throws {
        var generator = SeededGenerator(seed: 3)
        let first = try #require(Lineage.original.successor(using: &generator))
        let twin = try #require(Lineage.original.successor(using: &generator))
        #expect(Lineage.original.epoch == 0 && first.epoch == 1 && twin.epoch == 1 && first != twin)
        #expect(first.successor(using: &generator)?.epoch == 2)
        #expect(Lineage(rawValue: 0xFFFF << 48).successor(using: &generator) == nil)
    }

    /// Builds that know no histories are of the original one.
    @Test func aStandingWithoutAHistoryIsRead() throws {
        let standing = Standing(state: .member, expect: 3, httpPort: 1, queuePort: 2, cordoned: true)
        #expect(Standing(decoding: Array(standing.encoded.dropLast(8))) == standing)
        let later = Standing(state: .member, expect: 3, lineage: LineageTests.later)
        #expect(Standing(decoding: later.encoded) == later)
    }

    // MARK: - The state with which a history begins

    private struct NotGranted: Error {}

    @Test func aNewHistoryKeepsJobsFreesLeasesAndGivesHigherTokens() throws {
        func entry(_ index: UInt64, _ commands: StateCommand...) -> LogEntry {
            let session = SessionID(high: 1, low: index)
            let list = commands.enumerated().map {
                ClientCommand(session: session, sequence: UInt64($0 + 1), firstOutstanding: 1, command: $1)
            }
            return LogEntry(
                index: index, term: 1, kind: .command, payload: LogPayload(milliseconds: index, commands: list).encoded)
        }
        let acquire = StateCommand.lease(
            .acquire(key: "election/e", holder: "a", info: [:], ttlMilliseconds: 60_000))
        var image = SavedState()
        image.apply(entry(2, StateTests.put(1).command))
        image.apply(entry(3, acquire))
        #expect(image.summary.jobs == 1 && image.summary.leases == 1 && image.summary.sessions == 2)
        let index = 3 + SavedState.indexGap
        var next = try SavedState(decoding: image.beginning(at: index))
        #expect(next.appliedIndex == index)
        #expect(next.summary.jobs == 1 && next.summary.leases == 0 && next.summary.sessions == 2)
        func token(in state: inout ReplicatedState, at index: UInt64) throws -> UInt64 {
            let command = ClientCommand(
                session: SessionID(high: 5, low: 5), sequence: 1, firstOutstanding: 1, command: acquire)
            let applied = state.apply(LogPayload(milliseconds: 10, commands: [command]), index: index)
            guard case .lease(.granted(let token, _)) = applied[0].result else { throw NotGranted() }
            return token
        }
        var new = try ReplicatedState(decoding: image.beginning(at: index))
        // The nodes that were lost had gone on for a long time, and what they did last was to give the lease to somebody.
        var lost = try ReplicatedState(decoding: image.beginning(at: 3))
        let last = try token(in: &lost, at: 4_000_000_000)
        #expect(try token(in: &new, at: index + 1) > last)
        next.apply(entry(index + 1, StateTests.put(1).command))
        #expect(next.summary.jobs == 2)
    }
}
