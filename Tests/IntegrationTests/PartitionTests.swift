// Networks that are cut, between hosts that are network namespaces (scripts/hosts). Clients reach every node all the time, those
// on the wrong side too: what these say must be true.
import Foundation
import TestSupport
import Testing
import Wire

private func withHosts(_ count: Int, _ body: (NamespaceHosts) async throws -> Void) async throws {
    let hosts = try await NamespaceHosts.up(count)
    do {
        try await body(hosts)
    } catch {
        hosts.printLogs()
        await hosts.down()
        throw error
    }
    await hosts.down()
}

extension Integration {
    @Suite(.enabled(if: NamespaceHosts.obstacle == nil, "\(NamespaceHosts.obstacle ?? "")"))
    struct Partitions {
        /// Clients that know `captive` alone and clients of the others work while the network is cut in some way and healed.
        /// The others must get on; the captives must get on after the healing; and nobody may be told anything wrong.
        private func run(
            _ hosts: NamespaceHosts, captive: String, round: Int, cut: () async throws -> Void,
            meanwhile: ([String]) async throws -> Void = { _ in }
        ) async throws -> FleetRecord {
            let others = hosts.names.filter { $0 != captive }
            var pinned = FleetPlan()
            pinned.isPinned = true
            pinned.firstClient = 1_000 + 100 * round
            var free = FleetPlan()
            free.firstClient = 100 * round
            var inner = FleetRecord([])
            let outer = try await withFleet([hosts.socket(captive)], plan: pinned) { captives in
                inner = try await withFleet(others.map { hosts.socket($0) }, plan: free) { fleet in
                    try await captives.untilMore(20)
                    try await cut()
                    try await fleet.untilMore(150)
                    try await meanwhile(others)
                    try await hosts.tell("heal")
                    try await captives.untilMore(20)
                }
            }
            _ = try await hosts.untilLeader(among: hosts.names)
            return outer + inner
        }

        @Test func leaderCutOffFromAllIsReplacedAndAcknowledgesNothing() async throws {
            try await withHosts(3) { hosts in
                var record = FleetRecord([])
                for round in 0..<rounds(1) {
                    let leader = try await hosts.untilLeader(among: hosts.names)
                    record =
                        record
                        + (try await run(hosts, captive: leader, round: round) {
                            try await hosts.tell("cut", leader)
                        } meanwhile: { others in
                            _ = try await hosts.untilLeader(among: others)
                            // It knows that it leads nobody, and says so.
                            try await eventually("it has given up", within: 5) {
                                try await hosts.leader(of: leader) == nil
                            }
                        })
                }
                #expect(record.refused + record.unknown == 0, "\(record.troubles)")
                try await judge(record, hosts.sockets)
            }
        }

        /// First nobody hears the leader, then the leader hears nobody.
        @Test func leaderCutOffInOneDirectionIsReplaced() async throws {
            try await withHosts(3) { hosts in
                var record = FleetRecord([])
                for (round, isMute) in [true, false].enumerated() {
                    let leader = try await hosts.untilLeader(among: hosts.names)
                    let others = hosts.names.filter { $0 != leader }.joined(separator: ",")
                    record =
                        record
                        + (try await run(hosts, captive: leader, round: round) {
                            if isMute {
                                try await hosts.tell("one-way", leader, others)
                            } else {
                                try await hosts.tell("one-way", others, leader)
                            }
                        } meanwhile: { others in
                            _ = try await hosts.untilLeader(among: others)
                        })
                }
                #expect(record.refused + record.unknown == 0, "\(record.troubles)")
                try await judge(record, hosts.sockets)
            }
        }

        /// A and B can not reach each other and both reach C: first A leads, then C. Someone leads whom a majority reaches, and
        /// the one that does not hear it does not disturb: terms stand still.
        @Test func twoThatCanNotReachEachOtherAndBothReachTheThirdGoOn() async throws {
            try await withHosts(3) { hosts in
                var record = FleetRecord([])
                for round in 0..<2 {
                    let leader = try await hosts.untilLeader(among: hosts.names)
                    let others = hosts.names.filter { $0 != leader }
                    let pair = round == 0 ? [leader, others[0]] : others
                    let middle = try #require(hosts.names.first { !pair.contains($0) })
                    record =
                        record
                        + (try await run(hosts, captive: pair[1], round: round) {
                            try await hosts.tell("cut", pair[0], pair[1])
                        } meanwhile: { _ in
                            let before = try await hosts.status(middle)["term"]?.intValue ?? 0
                            let start = ContinuousClock.now
                            while ContinuousClock.now - start < .seconds(1) { _ = try await hosts.status(middle) }
                            let after = try await hosts.status(middle)["term"]?.intValue ?? 0
                            #expect(after - before <= 1, "the term went from \(before) to \(after)")
                        })
                }
                #expect(record.refused + record.unknown == 0, "\(record.troubles)")
                try await judge(record, hosts.sockets)
            }
        }

        /// Two of five, one of them the leader, on the smaller side.
        @Test func smallerSideOfFiveWaitsAndTheLargerGoesOn() async throws {
            try await withHosts(5) { hosts in
                let leader = try await hosts.untilLeader(among: hosts.names)
                let others = hosts.names.filter { $0 != leader }
                let record = try await run(hosts, captive: leader, round: 0) {
                    try await hosts.tell("cut", "\(leader),\(others[0])", others[1...].joined(separator: ","))
                } meanwhile: { _ in
                    _ = try await hosts.untilLeader(among: Array(others[1...]))
                    try await eventually("the smaller side has no leader", within: 5) {
                        try await hosts.leader(of: others[0]) == nil
                    }
                }
                #expect(record.refused + record.unknown == 0, "\(record.troubles)")
                try await judge(record, hosts.sockets)
            }
        }

        @Test func hostsCommandSaysWhatIsWrongAndLeavesNothing() async throws {
            let hosts = try await NamespaceHosts.up(1)
            func expect(_ words: [String], _ code: Int32, _ text: String) async throws {
                let outcome = try await hosts.hosts(words)
                #expect(outcome.code == code && outcome.stderr.contains(text), "\(outcome)")
                #expect(outcome.errorLines.count == 1 && outcome.stdout.isEmpty, "\(outcome)")
            }
            try await expect(["up", "1"], 1, "already")
            try await expect(["up", "0"], 2, "1 to 64")
            try await expect(["frob"], 2, "frob")
            try await expect(["kill", "h7"], 4, "no host h7")
            try await expect(["cut", "h1", "h1"], 2, "two sides")
            try await expect(["cut", "h1"], 2, "no host")
            try await expect(["exec", "h1"], 2, "no command")
            try await expect(["start", "h1"], 1, "runs already")
            let inside = try await hosts.hosts(["exec", "1", "--", "sh", "-c", "coterie queue list >&2; exit 9"])
            #expect(inside.code == 9, "\(inside)")
            let line = try #require(try await hosts.hosts(["status"]).lines.first)
            let document = try JSONValue(parsing: line)
            #expect(document["agent"] == "running" && document["leader"] == "h1", "\(line)")
            let namespace = try #require(document["namespace"]?.stringValue)
            let pid = Int32(try #require(document["pid"]?.intValue))
            #expect(FileManager.default.fileExists(atPath: "/run/netns/" + namespace))
            _ = try await hosts.hosts(["down"])
            #expect(!FileManager.default.fileExists(atPath: "/run/netns/" + namespace))
            #expect(ProcessTable.processes(naming: hosts.directory + "/hosts").filter { $0 == pid }.isEmpty)
            try await expect(["status"], 4, "no hosts")
            hosts.remove()
        }
    }
}
