import Model
import NodeCore
import Testing

@testable import Client

@Suite struct SessionLanesTests {
    @Test func sequencesCountFromOneAndTheMarkFollowsTheFirstOutstanding() {
        var generator = SeededGenerator(seed: 1)
        var lanes = SessionLanes()
        let tickets = (0..<3).map { _ in lanes.open(waits: false, using: &generator) }
        #expect(tickets.map(\.sequence) == [1, 2, 3])
        #expect(lanes.lanes.count == 1)
        lanes.close(tickets[1])
        #expect(lanes.lanes[0].firstOutstanding == 1)
        lanes.close(tickets[0])
        lanes.close(tickets[0])
        #expect(lanes.lanes[0].firstOutstanding == 3)
        lanes.close(tickets[2])
        #expect(lanes.lanes[0].firstOutstanding == 4)
    }

    @Test func aSlowCommandDoesNotLetASessionRunFurtherAheadThanANodeRemembers() {
        var generator = SeededGenerator(seed: 1)
        var lanes = SessionLanes()
        let slow = lanes.open(waits: false, using: &generator)
        var other: [SessionLanes.Ticket] = []
        for _ in 0..<5_000 {
            let ticket = lanes.open(waits: false, using: &generator)
            other.append(ticket)
            #expect(lanes.lanes[ticket.lane].next - lanes.lanes[ticket.lane].firstOutstanding <= SessionLanes.window)
            lanes.close(ticket)
        }
        #expect(lanes.lanes.count == 2)
        #expect(other.last?.lane == 1)
        lanes.close(slow)
        #expect(lanes.open(waits: false, using: &generator).lane == 0)
    }

    @Test func commandsThatWaitHaveSessionsOfTheirOwnOneAtATime() {
        var generator = SeededGenerator(seed: 1)
        var lanes = SessionLanes()
        let plain = lanes.open(waits: false, using: &generator)
        let first = lanes.open(waits: true, using: &generator)
        let second = lanes.open(waits: true, using: &generator)
        #expect(Set([plain.lane, first.lane, second.lane]).count == 3)
        #expect(Set(lanes.lanes.map(\.id)).count == 3)
        lanes.close(first)
        let third = lanes.open(waits: true, using: &generator)
        #expect(third.lane == first.lane && third.sequence == 2)
    }

    @Test func anEndedSessionTakesNoMore() {
        var generator = SeededGenerator(seed: 1)
        var lanes = SessionLanes()
        let one = lanes.open(waits: false, using: &generator)
        lanes.close(one)
        let last = lanes.open(lane: one.lane)
        #expect(last.sequence == 2)
        lanes.close(last)
        #expect(lanes.open(waits: false, using: &generator).lane != one.lane)
    }
}

@Suite struct EndpointBookTests {
    private let a = SocketAddress.loopback(port: 1)
    private let b = SocketAddress.loopback(port: 2)
    private let c = SocketAddress.loopback(port: 3)

    @Test func theOneThatWorkedComesFirstUntilItDoesNot() {
        let book = EndpointBook([a, b, c], origin: "a test")
        #expect(book.inOrder == [a, b, c])
        book.worked(b)
        #expect(book.inOrder == [b, c, a])
        book.avoid(a)
        #expect(book.inOrder == [b, c, a], "only the preferred one is left")
        book.avoid(b)
        #expect(book.inOrder == [c, a, b])
    }

    @Test func learnedAddressesAreAddedAndTheGivenOnesKept() {
        let book = EndpointBook([a], origin: "a test")
        book.worked(a)
        book.learn([b, a, c])
        #expect(book.inOrder == [a, b, c])
        book.worked(c)
        book.learn([b])
        #expect(book.inOrder == [c, a, b], "the one in use is not forgotten")
    }

    @Test func waitsGrowToASecondAndAreSpread() {
        var backOff = BackOff(generator: SeededGenerator(seed: 4))
        let waits = (0..<12).map { _ in backOff.next() }
        #expect(waits[0] >= .milliseconds(25) && waits[0] <= .milliseconds(50))
        #expect(waits[11] >= .milliseconds(500) && waits[11] <= .seconds(1))
        backOff.reset()
        #expect(backOff.next() <= .milliseconds(50))
    }
}
