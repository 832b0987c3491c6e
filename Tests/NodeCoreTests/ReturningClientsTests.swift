// For whom the leader holds an entry back, and when it stops to.
import Model
import Queues
import Testing
import Wire

@testable import NodeCore

@Suite struct ReturningClientsTests {
    private let start = MonotonicTime(nanoseconds: 1_000_000_000)

    private func commands(_ sessions: Range<UInt64>) -> [ClientCommand] {
        sessions.map {
            ClientCommand(
                session: SessionID(high: 1, low: $0), sequence: 1, firstOutstanding: 1, command: .queue(.put([])))
        }
    }

    private func session(_ n: UInt64) -> SessionID { SessionID(high: 1, low: n) }

    @Test func anEntryWaitsForThoseWhoWereAnswered() {
        var clients = ReturningClients(patience: .milliseconds(1))
        clients.entryLeaves(commands(0..<3), now: start)
        #expect(clients.awaitedUntil == .zero, "nobody has been answered")
        clients.answered(now: start)
        for n in 0..<3 {
            #expect(clients.awaitedUntil == start + clients.patience)
            clients.came(session(UInt64(n)))
        }
        #expect(clients.awaitedUntil == .zero)
    }

    @Test func whoCameBackBeforeTheLeaderCountedIsNotAwaited() {
        var clients = ReturningClients(patience: .milliseconds(1))
        clients.entryLeaves(commands(0..<2), now: start)
        clients.came(session(0))
        clients.came(session(1))
        clients.answered(now: start)
        #expect(clients.awaitedUntil == .zero)
    }

    @Test func whoGoesOnWaitingIsNotAwaited() {
        var clients = ReturningClients(patience: .milliseconds(1))
        clients.entryLeaves(commands(0..<1), now: start)
        clients.stays(session(0))
        clients.answered(now: start)
        #expect(clients.awaitedUntil == .zero)
    }

    @Test func afterAWaitInVainEntriesLeaveAtOnceAndMoreEachTime() {
        var clients = ReturningClients(patience: .milliseconds(1))
        var now = start
        var waits: [Int] = []
        for entry in 0..<2_000 {
            clients.entryLeaves(commands(0..<2), now: now)
            clients.answered(now: now)
            if clients.awaitedUntil > now {
                waits.append(entry)
                now = clients.awaitedUntil
            }
        }
        #expect(waits.count < 20 && waits.count > 5)
        #expect(
            zip(waits, waits.dropFirst()).allSatisfy { $1 - $0 <= ReturningClients.longestPause + 2 }, "it tries again")
    }

    @Test func afterALargeEntryNobodyIsAwaited() {
        var clients = ReturningClients(patience: .milliseconds(1))
        clients.entryLeaves(commands(0..<UInt64(ReturningClients.crowdLimit + 1)), now: start)
        clients.answered(now: start)
        #expect(clients.awaitedUntil == .zero)
    }
}
