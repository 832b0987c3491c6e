// Voters on real processes: the dead ones are replaced, the removed ones stay out, a wiped one comes back as another.
import Foundation
import TestSupport
import Testing
import Wire

extension Integration {
    @Suite struct Voters {
        /// Names of the voters, as the node sees them.
        static func voters(_ cluster: TestCluster, via node: TestNode) async throws -> Set<String> {
            Set(try await cluster.status(node)["voters"]?.arrayValue?.compactMap(\.stringValue) ?? [])
        }

        static func learners(_ cluster: TestCluster, via node: TestNode) async throws -> Set<String> {
            Set(try await cluster.status(node)["learners"]?.arrayValue?.compactMap(\.stringValue) ?? [])
        }

        @Test func aDeadVoterIsReplacedAndThenAnotherMayDie() async throws {
            try await withCluster(4, extra: ["--dead-voter-grace", "2s"]) { cluster in
                let first = cluster.nodes[0]
                try await cluster.ok(["queue", "put", "before"], input: "x")
                let voters = try await Voters.voters(cluster, via: first)
                let spare = try #require(cluster.nodes.first { !voters.contains($0.name) })
                let leader = try await cluster.untilLeader()
                let victim = try #require(cluster.nodes.first { voters.contains($0.name) && $0.id != leader.id })
                try await cluster.kill9(victim)
                let spent = try await seconds {
                    try await eventually("\(spare.name) votes in the place of \(victim.name)", within: 40) {
                        let now = try await Voters.voters(cluster, via: leader)
                        return now.contains(spare.name) && !now.contains(victim.name) && now.count == 3
                    }
                }
                print("a dead voter was replaced after \(spent) s, with a grace of 2 s")
                // One of the three that are left may die now, the leader at that.
                try await cluster.kill9(try await cluster.untilLeader())
                try await cluster.untilLeader(within: 20)
                try await cluster.ok(["queue", "put", "after"], input: "y", within: 20)
                let list = try await cluster.json(["queue", "list"])["tubes"]?.arrayValue ?? []
                let tubes = Set(list.compactMap { $0["name"]?.stringValue })
                #expect(tubes.isSuperset(of: ["before", "after"]))
                // Two of four are left, and three voters stay: it never shrinks below K by itself.
                let survivor = try #require(cluster.running.first)
                #expect(try await Voters.voters(cluster, via: survivor).count == 3)
                // The dead one comes back as a learner, and makes up for the second that died.
                try await cluster.restart(victim)
                try await eventually("\(victim.name) votes again", within: 40) {
                    try await Voters.voters(cluster, via: survivor).contains(victim.name)
                }
            }
        }

        @Test func aPlainRestartChangesNoVoters() async throws {
            try await withCluster(4, extra: ["--dead-voter-grace", "1s"]) { cluster in
                let leader = try await cluster.untilLeader()
                let voters = try await Voters.voters(cluster, via: leader)
                let victim = try #require(cluster.nodes.first { voters.contains($0.name) && $0.id != leader.id })
                try await cluster.terminate(victim)
                // Many times the grace; nothing may happen, so there is no event to await.
                let start = ContinuousClock.now
                while ContinuousClock.now - start < .seconds(5) {
                    #expect(try await Voters.voters(cluster, via: leader) == voters)
                }
                try await cluster.restart(victim)
                try await cluster.untilAgreed()
                #expect(try await Voters.voters(cluster, via: leader) == voters)
            }
        }

        @Test func aRemovedNodeStaysOutWhoeverLeads() async throws {
            try await withCluster(4) { cluster in
                let leader = try await cluster.untilLeader()
                let voters = try await Voters.voters(cluster, via: leader)
                let spare = try #require(cluster.nodes.first { !voters.contains($0.name) })
                let victim = try #require(cluster.nodes.first { voters.contains($0.name) && $0.id != leader.id })
                try await eventually("\(spare.name) could vote", within: 30) {
                    try await Voters.learners(cluster, via: leader).contains(spare.name)
                }
                // Through a node that does not lead: the order is forwarded, and answered when it is done.
                let other = try #require(cluster.nodes.first { $0.id != leader.id && $0.id != victim.id })
                try await cluster.ok(["remove", victim.name], via: other)
                let left = try await Voters.voters(cluster, via: leader)
                #expect(!left.contains(victim.name))
                // It is told, says so, and ends.
                let status = try await victim.process.ended(within: 20)
                #expect(status == .exited(5), "\(status)")
                let said = victim.process.errors
                #expect(said.contains("was removed from the cluster"), "\(said.suffix(500))")
                victim.forget()
                try await eventually("\(spare.name) votes", within: 30) {
                    try await Voters.voters(cluster, via: leader).contains(spare.name)
                }
                // Another leader takes it in again no more than this one did.
                try await cluster.ok(["transfer"])
                try await cluster.untilLeader(otherThan: leader)
                try await cluster.restart(victim)
                #expect(try await victim.process.ended(within: 20) == .exited(5))
                victim.forget()
                let all = try await Voters.learners(cluster, via: leader).union(Voters.voters(cluster, via: leader))
                #expect(!all.contains(victim.name))
                // And it is forgotten on demand.
                try await eventually("\(victim.name) has gone", within: 20) {
                    ["left", "dead"].contains(try await cluster.members(leader)[victim.name])
                }
                try await cluster.ok(["remove", "--prune", victim.name])
                try await eventually("nobody knows \(victim.name)", within: 10) {
                    for node in cluster.running where try await cluster.members(node)[victim.name] != nil {
                        return false
                    }
                    return true
                }
            }
        }

        @Test func aRemovalThatWouldStopTheClusterIsRefused() async throws {
            try await withCluster(3) { cluster in
                let leader = try await cluster.untilLeader()
                let others = cluster.nodes.filter { $0.id != leader.id }
                let prune = try await cluster.coterie(["remove", "--prune", others[0].name])
                #expect(prune.code == 1 && prune.stderr.contains("is running"), "\(prune)")
                try await cluster.kill9(others[0])
                try await eventually("the leader misses \(others[0].name)", within: 20) {
                    try await cluster.members(leader)[others[0].name] == "dead"
                }
                let refused = try await cluster.coterie(["remove", others[1].name])
                #expect(refused.code == 1 && refused.stderr.contains("could be reached"), "\(refused)")
                try await cluster.ok(["remove", others[0].name])
                #expect(try await Voters.voters(cluster, via: leader).count == 2)
                try await cluster.ok(["queue", "put", "t"], input: "x")
            }
        }

        @Test func aWipedNodeComesBackAsAnotherAndVotesSoon() async throws {
            try await withCluster(3) { cluster in
                let leader = try await cluster.untilLeader()
                for i in 0..<20 { try await cluster.ok(["queue", "put", "t"], input: "\(i)") }
                let victim = try await cluster.follower()
                let before = victim.id
                try await cluster.kill9(victim)
                try FileManager.default.removeItem(atPath: victim.data)
                try await cluster.restart(victim)
                #expect(victim.id != before)
                let spent = try await seconds {
                    try await eventually("\(victim.name) votes as a new node", within: 40) {
                        let members = try await cluster.json(["members"], via: leader)["members"]?.arrayValue ?? []
                        let voters = members.filter { ["leader", "voter"].contains($0["role"]?.stringValue) }
                        let ids = Set(voters.compactMap { $0["id"]?.stringValue })
                        return ids.contains(victim.id) && !ids.contains(before) && ids.count == 3
                    }
                }
                print("a wiped node voted again after \(spent) s")
                #expect(spent < 15)
                // The former id has its name too: what is to be forgotten is the one that is gone.
                try await eventually("the former id is gone", within: 40) {
                    let members = try await cluster.json(["members"], via: leader)["members"]?.arrayValue ?? []
                    return members.contains { $0["id"]?.stringValue == before && $0["state"] == "dead" }
                }
                try await cluster.ok(["remove", "--prune", victim.name])
                let names = try await cluster.json(["members"], via: leader)["members"]?.arrayValue?.compactMap {
                    $0["id"]?.stringValue
                }
                #expect(names?.contains(before) == false && names?.contains(victim.id) == true)
                // With its vote the cluster bears the loss of another.
                try await cluster.kill9(try #require(cluster.nodes.first { $0.id != leader.id && $0.id != victim.id }))
                try await cluster.ok(["queue", "put", "t"], input: "last")
                let stats = try await cluster.json(["queue", "stats", "t"], via: victim)
                #expect(stats["current-jobs-ready"]?.intValue == 21, "\(stats.text())")
            }
        }
    }
}
