// Disks that are full and journals that were damaged while their node was down, on real files.
import Foundation
import Glibc
import TestSupport
import Testing
import Wire

extension Integration {
    @Suite struct Disks {
        /// Takes all the room that is left; returns the file's path.
        private func fill(_ node: TestNode) throws -> String {
            let path = node.data + "/filler"
            let file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0o600)
            guard file >= 0 else { throw TestFailure("cannot fill \(node.data): errno \(errno)") }
            defer { close(file) }
            for size in [1 << 20, 4_096, 1] {
                let block = [UInt8](repeating: 1, count: size)
                while write(file, block, size) > 0 {}
            }
            return path
        }

        /// Enough for four segments; `fill` leaves what the node had: the segment in use and a spare, which the heavy clients
        /// soon have filled.
        private let smallBytes = 160 << 20
        private var heavy: FleetPlan {
            var plan = FleetPlan()
            plan.bodyBytes = 60_000
            plan.electors = 0
            return plan
        }
        private var light: FleetPlan {
            var plan = FleetPlan()
            plan.firstClient = 100
            return plan
        }

        private func isFull(_ node: TestNode) -> Bool { node.process.errors.contains("nothing is acknowledged") }

        @Test(.enabled(if: Programs.isRoot, "a small file system needs root"))
        func nodeWithAFullDiskStaysAndTheOthersGoOnUntilItHasSpaceAgain() async throws {
            try await withCluster(3, small: [0: smallBytes]) { cluster in
                let node = cluster.nodes[0]
                let addresses = cluster.nodes.map(\.socket)
                let filler = try fill(node)
                var record = try await withFleet(addresses, plan: heavy) { _ in
                    try await eventually("the disk is full", within: 30, every: 0.005) { isFull(node) }
                }
                var resumed = 0.0
                record =
                    record
                    + (try await withFleet(addresses, plan: light) { fleet in
                        // Two of three go on. Who can not write does not lead for long.
                        let leader = try await cluster.untilLeader(within: 5, otherThan: node)
                        try await fleet.untilMore(200)
                        #expect(node.process.isRunning)
                        let index = try await cluster.status(leader)["commitIndex"]?.intValue ?? .max
                        try FileManager.default.removeItem(atPath: filler)
                        resumed = try await seconds {
                            try await eventually("it writes again", within: 10, every: 0.005) {
                                node.process.errors.contains("the disk has space again")
                            }
                            try await eventually("it has caught up", within: 10, every: 0.01) {
                                try await cluster.status(node)["appliedIndex"]?.intValue ?? 0 >= index
                            }
                        }
                        // Its disk counts again.
                        let other = try #require(cluster.nodes.first { $0 !== node })
                        try await cluster.kill9(other)
                        try await fleet.untilMore(50)
                        try await cluster.restart(other)
                    })
                print("a full disk had space again: written and caught up after \(resumed) s")
                #expect(resumed < 2.5)
                try await cluster.untilAgreed()
                #expect(record.refused + record.unknown == 0, "\(record.troubles)")
                try await judge(record, addresses)
            }
        }

        @Test(.enabled(if: Programs.isRoot, "a small file system needs root"))
        func allDisksFullRefuseAndResumeByThemselves() async throws {
            try await withCluster(3, small: [0: smallBytes, 1: smallBytes, 2: smallBytes]) { cluster in
                var resumed = 0.0
                let addresses = cluster.nodes.map(\.socket)
                let fillers = try cluster.nodes.map { try fill($0) }
                let record = try await withFleet(addresses, plan: heavy) { fleet in
                    try await eventually("all disks are full", within: 30, every: 0.005) {
                        cluster.nodes.allSatisfy { isFull($0) }
                    }
                    let atFirst = fleet.acknowledged
                    // Before two seconds have passed the leader still hopes to hand over to somebody who has space.
                    try await eventually("commands are refused for the reason", within: 10, every: 0.1) {
                        let refused = try await cluster.coterie(
                            ["queue", "put", "other", "--timeout", "1s"], input: "x")
                        return refused.code == 1 && refused.errorLines.count == 1
                            && refused.stderr.contains("is full")
                    }
                    // Of each writer at most the answer that was on its way when the last disk became full.
                    let before = fleet.acknowledged
                    #expect(before <= atFirst + heavy.writers, "acknowledged by disks that are full")
                    for node in cluster.nodes { #expect(node.process.isRunning) }
                    for filler in fillers { try FileManager.default.removeItem(atPath: filler) }
                    resumed = try await seconds {
                        try await eventually("commands are acknowledged again", within: 20, every: 0.005) {
                            fleet.acknowledged > before
                        }
                    }
                }
                print("full disks had space again: the first acknowledgement after \(resumed) s")
                #expect(resumed < 3)
                try await cluster.untilAgreed()
                #expect(record.unknown == 0, "\(record.troubles)")
                for case .refused(let why) in record.operations.map(\.answer) {
                    #expect(why.contains("is full"), "\(record.troubles)")
                }
                try await judge(record, addresses)
            }
        }

        private func verify(_ node: TestNode, _ cluster: TestCluster) async throws -> Outcome {
            try await cluster.run(["journal", "verify", "--data", node.data])
        }

        /// The node has healed: nothing was set aside any more, and its log is as far as that of the leader was.
        private func healed(_ node: TestNode, _ cluster: TestCluster, from index: Int64) async throws -> Bool {
            let left = try FileManager.default.contentsOfDirectory(atPath: node.data + "/journal")
            guard !left.contains(where: { $0.hasPrefix("damaged-") || $0 == "recovery" }) else { return false }
            return try await cluster.status(node)["appliedIndex"]?.intValue ?? 0 >= index
        }

        @Test func everyKindOfDamageToOneNodeHealsByItselfAndLosesNothing() async throws {
            try await withCluster(3) { cluster in
                var times: [String] = []
                let record = try await withFleet(cluster.nodes.map(\.socket)) { fleet in
                    try await fleet.untilMore(400)
                    let cases = (0..<rounds(1)).flatMap { _ in SegmentDamage.allCases }
                    for (round, damage) in cases.enumerated() {
                        let victim = cluster.nodes[round % 3]
                        try await cluster.kill9(victim)
                        var segment = try #require(try SegmentFile.all(data: victim.data).last)
                        try segment.apply(damage)
                        let seen = try await verify(victim, cluster)
                        #expect(seen.code == 1 && seen.stdout.contains("damaged"), "\(damage): \(seen)")
                        let leader = try await cluster.untilLeader()
                        let index = try await cluster.status(leader)["commitIndex"]?.intValue ?? .max
                        let spent = try await seconds {
                            try await cluster.restart(victim)
                            try await eventually("\(damage) heals", within: 10, every: 0.01) {
                                try await healed(victim, cluster, from: index)
                            }
                        }
                        times.append("\(damage) \(String(format: "%.2f", spent)) s")
                        #expect(spent < 5, "\(damage)")
                        try await cluster.untilAgreed()
                        // It counts again: with it and without another one the cluster writes. Every third time is enough.
                        guard round % 3 == 2 else { continue }
                        let other = cluster.nodes[(round + 1) % 3]
                        try await cluster.kill9(other)
                        try await fleet.untilMore(30)
                        try await cluster.restart(other)
                        try await cluster.untilAgreed()
                    }
                }
                print("healed, from the start of the process: \(times.joined(separator: ", "))")
                #expect(record.refused + record.unknown == 0, "\(record.troubles)")
                try await judge(record, cluster.nodes.map(\.socket))
            }
        }

        @Test(arguments: rounds(1) > 1 ? [SegmentDamage.bitInTheMiddle, .zeroedPage] : [.zeroedPage])
        func sameRecordDamagedOnAMajorityRefusesAndHealsWhenTheIntactCopyReturns(_ damage: SegmentDamage) async throws {
            try await withCluster(3) { cluster in
                var record = try await withFleet(cluster.nodes.map(\.socket)) { try await $0.untilMore(200) }
                try await cluster.kill9(cluster.nodes)
                // The entry in the middle of the log, on the first two.
                let reference = try #require(try SegmentFile.all(data: cluster.nodes[2].data).last)
                let entries = reference.records.filter { $0.type == 1 }
                let index = entries[entries.count / 2].index
                for node in cluster.nodes[..<2] {
                    var segment = try #require(try SegmentFile.all(data: node.data).last)
                    let place = try #require(segment.entry(index))
                    switch damage {
                    case .zeroedPage:
                        let page = place.offset / 4_096 * 4_096
                        try segment.zero(page..<page + 4_096)
                    default: try segment.flip(at: place.offset + 44)
                    }
                    let seen = try await verify(node, cluster)
                    #expect(seen.code == 1, "\(seen)")
                }
                try await cluster.restart(Array(cluster.nodes[..<2]))
                // For as long as several elections take: no leader, and no answer about what is lost.
                let asked = try [["put"], ["stats"]].map { verb in
                    try cluster.launch(["queue"] + verb + ["fleet", "--timeout", "3s"], input: "late")
                }
                while asked.contains(where: { $0.isRunning }) {
                    for node in cluster.nodes[..<2] {
                        #expect(try await cluster.status(node)["leader"]?.isNull == true)
                    }
                }
                for command in asked {
                    let refused = try await cluster.finish(command)
                    // A put that a node still holds for a leader to come may yet be carried out: that is said as it is.
                    #expect([3, 6].contains(refused.code) && refused.errorLines.count == 1, "\(refused)")
                    #expect(refused.stdout.isEmpty, "\(refused)")
                }
                let spent = try await seconds {
                    try await cluster.restart(cluster.nodes[2])
                    try await cluster.untilAgreed()
                    for node in cluster.nodes[..<2] {
                        try await eventually("\(node.name) heals", within: 10, every: 0.01) {
                            try await healed(node, cluster, from: Int64(entries.last?.index ?? 0))
                        }
                    }
                }
                print("\(damage) on a majority: healed \(spent) s after the intact copy was started")
                var more = FleetPlan()
                more.firstClient = 100
                record =
                    record
                    + (try await withFleet(cluster.nodes.map(\.socket), plan: more) { try await $0.untilMore(50) })
                try await judge(record, cluster.nodes.map(\.socket))
            }
        }
    }
}
