// Processes that end or stand still in every way, under load. The clients' own record is the judge: every acknowledged command
// is there exactly once, and no answer was wrong.
import Foundation
import TestSupport
import Testing
import Wire

extension Integration {
    @Suite struct Crashes {
        @Test func leadersKilledOneAfterAnotherLoseNothingAndFailNobody() async throws {
            try await withCluster(3) { cluster in
                let record = try await withFleet(cluster.nodes.map(\.socket)) { fleet in
                    for _ in 0..<rounds(2) {
                        try await fleet.untilMore(60)
                        let leader = try await cluster.untilLeader()
                        try await cluster.kill9(leader)
                        try await fleet.untilMore(60)
                        try await cluster.restart(leader)
                        try await cluster.untilAgreed()
                    }
                }
                #expect(record.refused + record.unknown == 0, "\(record.troubles)")
                try await judge(record, cluster.nodes.map(\.socket))
            }
        }

        @Test func followersKilledOneAfterAnotherLoseNothingAndFailNobody() async throws {
            try await withCluster(3) { cluster in
                let record = try await withFleet(cluster.nodes.map(\.socket)) { fleet in
                    for _ in 0..<rounds(2) {
                        let victim = try await cluster.follower()
                        try await cluster.kill9(victim)
                        try await fleet.untilMore(60)
                        try await cluster.restart(victim)
                        try await cluster.untilAgreed()
                    }
                }
                #expect(record.refused + record.unknown == 0, "\(record.troubles)")
                try await judge(record, cluster.nodes.map(\.socket))
            }
        }

        @Test func allKilledAtOnceUnderLoadComeBackWithEverythingAcknowledged() async throws {
            try await withCluster(3) { cluster in
                let record = try await withFleet(cluster.nodes.map(\.socket)) { fleet in
                    for _ in 0..<rounds(2) {
                        try await fleet.untilMore(60)
                        try await cluster.kill9(cluster.nodes)
                        try await cluster.restart(cluster.nodes)
                        try await cluster.untilAgreed()
                    }
                    try await fleet.untilMore(60)
                }
                #expect(record.refused + record.unknown == 0, "\(record.troubles)")
                try await judge(record, cluster.nodes.map(\.socket))
            }
        }

        /// The old leader wakes up and believes that it leads. Clients that know no other node had asked it meanwhile, some of them
        /// after others had written elsewhere: what it says to them must be true, of writes and of reads.
        @Test func frozenLeaderAcknowledgesAndTellsNothingStaleWhenItWakes() async throws {
            try await withCluster(3) { cluster in
                var record = FleetRecord([])
                for round in 0..<rounds(2) {
                    let old = try await cluster.untilLeader()
                    let others = cluster.nodes.filter { $0 !== old }
                    var pinned = FleetPlan()
                    pinned.isPinned = true
                    pinned.firstClient = 1_000 + 100 * round
                    var free = FleetPlan()
                    free.firstClient = 100 * round
                    var late = FleetPlan()
                    late.writers = 0
                    late.readers = 8
                    late.electors = 0
                    late.isPinned = true
                    late.readsOnDemand = true
                    late.firstClient = 10_000 + 100 * round
                    var inner = FleetRecord([])
                    var latest = FleetRecord([])
                    let outer = try await withFleet([old.socket], plan: pinned) { captives in
                        inner = try await withFleet(others.map(\.socket), plan: free) { fleet in
                            latest = try await withFleet([old.socket], plan: late) { readers in
                                try await captives.untilMore(20)
                                try await eventually("the late readers are connected") { readers.record.reads >= 8 }
                                cluster.freeze(old)
                                try await fleet.untilMore(100)
                                try await readers.readNow()
                                cluster.thaw(old)
                                try await captives.untilMore(20)
                            }
                        }
                    }
                    record = record + outer + inner + latest
                    try await cluster.untilAgreed()
                }
                #expect(record.refused + record.unknown == 0, "\(record.troubles)")
                try await judge(record, cluster.nodes.map(\.socket))
            }
        }

        @Test func rollingRestartFailsNoCommand() async throws {
            try await withCluster(3) { cluster in
                let record = try await withFleet(cluster.nodes.map(\.socket)) { fleet in
                    for node in (0..<rounds(1)).flatMap({ _ in cluster.nodes }) {
                        try await fleet.untilMore(30)
                        #expect(try await cluster.terminate(node) == .exited(0))
                        try await fleet.untilMore(30)
                        try await cluster.restart(node)
                        try await cluster.untilAgreed()
                    }
                }
                #expect(record.refused + record.unknown == 0, "\(record.troubles)")
                try await judge(record, cluster.nodes.map(\.socket))
            }
        }
    }
}
