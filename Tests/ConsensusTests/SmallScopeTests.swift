import Glibc
import Testing

/// All orders of events, within bounds (see ``SmallScope``). SMALL_SCOPES=deep in the environment explores further: minutes.
@Suite struct SmallScopeTests {
    private static let isDeep = getenv("SMALL_SCOPES").map { String(cString: $0) } == "deep"

    @discardableResult
    private func explore(_ name: String, _ bounds: SmallScope.Bounds, atLeast states: Int) throws -> SmallScope.Figures
    {
        var scope = SmallScope(bounds)
        try scope.explore()
        if SmallScopeTests.isDeep { print("\(name): \(scope.figures)") }
        #expect(scope.figures.isComplete)
        // A scope that has become small has lost what it was meant to explore.
        #expect(scope.figures.states >= states)
        #expect(scope.figures.leaders > 0)
        #expect(scope.figures.highestCommitted > 1)
        return scope.figures
    }

    /// Whoever votes, acknowledges or stands may crash before or after that is durable, and be asked again.
    @Test func twoElectionsAndACrashWithALateWrite() throws {
        try explore(
            "two elections, a crash, a late write",
            .init(elections: 2, proposals: 0, crashes: 1, lateWrites: 1), atLeast: 30_000)
    }

    /// A command, and followers that hear of its commitment, while another leader may come.
    @Test func twoElectionsAndAProposal() throws {
        try explore(
            "two elections and a proposal",
            .init(
                elections: 2, proposals: 1, crashes: 0, heartbeats: SmallScopeTests.isDeep ? 1 : 0,
                lateWrites: SmallScopeTests.isDeep ? 1 : 0), atLeast: 10_000)
    }

    /// A follower that knows of a commitment by its own copy and the leader's, before any leader does, crashes and stands for election:
    /// what it knew of has to be on its disk.
    @Test func aFollowerThatKnewOfACommitmentFirstCrashesAndStands() throws {
        let figures = try explore(
            "an early commitment",
            .init(
                elections: 2, proposals: 0, crashes: 1, heartbeats: 1, lateWrites: 1, candidates: [1], crashing: [1]),
            atLeast: 78_000)
        #expect(figures.earlyCommitments > 0)
    }

    /// Two leaders have left an entry each that nobody else has, as in the paper's figure 8; the first one comes back, then the second.
    @Test(.enabled(if: isDeep)) func twoElectionsAfterTwoThatLeftTheirEntriesBehind() throws {
        try explore(
            "figure 8",
            .init(
                elections: 2, proposals: 0, crashes: 0, maxAppendEntries: 1, logs: [[2], [], [3]], term: 3,
                candidates: [2]), atLeast: 100_000)
    }

    /// A node that hears of a third leader while it is still taking over the second one's log.
    @Test(.enabled(if: isDeep)) func threeElections() throws {
        try explore(
            "three elections", .init(elections: 3, proposals: 0, crashes: 0), atLeast: 21_000)
    }
}
