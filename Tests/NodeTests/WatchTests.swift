import EventLoop
import Model
import NodeCore
import Security
import Testing
import Wire

@testable import Node

@Suite struct WatchTests {
    private func watches(_ loop: EventLoop) throws -> Watches {
        let watches = Watches(loop: loop, node: "n", key: try ClusterKey.random())
        watches.respondEnd = { _, _ in }
        return watches
    }

    /// A receiver that does not read is cut off while a change is told to all; its other watches must not come back with it.
    @Test func watchesOfAConnectionThatIsCutOffAreGone() throws {
        try onLoop { loop in
            let watches = try self.watches(loop)
            var version = 0
            watches.document = { _ in .success(["version": JSONValue(version)]) }
            watches.respondItem = { id, _ in if version > 0, id.connection == 1 { watches.connectionClosed(1) } }
            for channel in 1...20 {
                watches.start(RequestID(connection: 1, channel: UInt32(channel)), path: "pods", authority: .operator)
            }
            watches.start(RequestID(connection: 2, channel: 1), path: "pods", authority: .operator)
            #expect(watches.count == 21)
            version = 1
            watches.changed([.pods])
            #expect(watches.count == 1)
        }
    }

    @Test func aFollowerThatIsCutOffDuringTheReplayIsGone() throws {
        try onLoop { loop in
            let watches = try self.watches(loop)
            for _ in 0..<10 { watches.publish(NodeEvent(kind: "user", subject: .null), now: loop.now) }
            watches.respondItem = { id, _ in watches.connectionClosed(id.connection) }
            watches.start(RequestID(connection: 1, channel: 1), path: "events?follow=1", authority: .operator)
            #expect(watches.count == 0)
        }
    }

    @Test func whatManyWatchIsMadeOnce() throws {
        try onLoop { loop in
            let watches = try self.watches(loop)
            var made = 0
            watches.document = { _ in
                made += 1
                return .success(["made": JSONValue(made)])
            }
            var told = 0
            watches.respondItem = { _, _ in told += 1 }
            for channel in 1...50 {
                watches.start(RequestID(connection: 1, channel: UInt32(channel)), path: "queues", authority: .operator)
            }
            let before = made
            told = 0
            watches.changed([.queues])
            #expect(told == 50 && made == before + 1)
        }
    }

    @Test func aPodHasSoManyWatchesAndNoneOfThoseOfOthers() throws {
        try onLoop { loop in
            let watches = try self.watches(loop)
            watches.document = { _ in .success(.null) }
            watches.respondItem = { _, _ in }
            var refused = 0
            watches.respondEnd = { _, error in if error?.code == .busy { refused += 1 } }
            for channel in 1...(Watches.podLimit + 5) {
                watches.start(RequestID(connection: UInt64(channel), channel: 1), path: "queues", authority: .pod("p"))
            }
            #expect(refused == 5 && watches.count == Watches.podLimit)
            watches.start(RequestID(connection: 9_999, channel: 1), path: "queues", authority: .operator)
            watches.start(RequestID(connection: 9_998, channel: 1), path: "queues", authority: .pod("q"))
            #expect(refused == 5)
            for connection in 1...(Watches.podLimit + 5) { watches.connectionClosed(UInt64(connection)) }
            #expect(watches.count == 2)
            watches.start(RequestID(connection: 9_997, channel: 1), path: "queues", authority: .pod("p"))
            #expect(refused == 5 && watches.count == 3)
        }
    }
}
