// Act 2 and 3 as a user sees them: who is alive, who leads, and what happens when processes end in every way they can.
import Foundation
import TestSupport
import Testing
import Wire

extension Integration {
    @Suite struct Gossip {
        @Test(arguments: [3, 5]) func everyNodeSeesEveryMemberAlive(count: Int) async throws {
            try await withCluster(count) { cluster in
                let names = Set(cluster.nodes.map(\.name))
                for node in cluster.nodes {
                    let members = try await cluster.members(node)
                    #expect(Set(members.keys) == names)
                    #expect(members.values.allSatisfy { $0 == "alive" })
                }
                let first = cluster.nodes[0]
                let status = try await cluster.status(first)
                #expect(status["node"]?["name"] == "n0")
                #expect(status["node"]?["id"]?.stringValue == first.id)
                #expect(status["voters"]?.arrayValue?.count == count)
                let leader = try await cluster.json(["leader"], via: first)
                #expect(leader["id"] == status["leader"]?["id"])
                let roles = try await cluster.json(["members"], via: first)["members"]?.arrayValue?.compactMap {
                    $0["role"]?.stringValue
                }
                #expect(roles?.filter { $0 == "leader" }.count == 1)
                #expect(roles?.filter { $0 == "voter" }.count == count - 1)
            }
        }

        @Test func killedNodeIsDeadEverywhereAndReturnsWithItsData() async throws {
            try await withCluster(5) { cluster in
                let victim = try await cluster.follower()
                try await cluster.kill9(victim)
                let spent = try await seconds {
                    try await eventually("\(victim.name) is dead everywhere", within: 20) {
                        for node in cluster.running where try await cluster.members(node)[victim.name] != "dead" {
                            return false
                        }
                        return true
                    }
                }
                print("a killed node was dead everywhere after \(spent) s")
                let id = victim.id
                try await cluster.restart(victim)
                #expect(victim.id == id)
                try await cluster.untilAgreed(within: 30)
            }
        }

        @Test func terminatedNodeIsLeftAndStaysVoter() async throws {
            try await withCluster(3) { cluster in
                let leader = try await cluster.untilLeader()
                #expect(try await cluster.terminate(leader) == .exited(0))
                try await eventually("\(leader.name) has left everywhere", within: 10) {
                    for node in cluster.running where try await cluster.members(node)[leader.name] != "left" {
                        return false
                    }
                    return true
                }
                let next = try await cluster.untilLeader(within: 10, otherThan: leader)
                #expect(try await cluster.status(next)["voters"]?.arrayValue?.count == 3)
                try await cluster.restart(leader)
                try await cluster.untilAgreed(within: 30)
            }
        }

        @Test func killedLeaderIsReplacedQuicklyAndEventsTellIt() async throws {
            try await withCluster(3) { cluster in
                let old = try await cluster.untilLeader()
                let watcher = try #require(cluster.running.first { $0.id != old.id })
                let follow = try cluster.launch(["--json", "events", "--follow"], via: watcher)
                defer { follow.signalGroup(SIGKILL) }
                try await eventually("events are followed") {
                    follow.output.contains("member.join") || follow.output.contains("leader.change")
                }
                let start = ContinuousClock.now
                try await cluster.kill9(old)
                let next = try await cluster.untilLeader(within: 10, otherThan: old)
                print("a new leader was known everywhere after \(ContinuousClock.now - start)")
                try await eventually("the event of the change is told", within: 10) {
                    follow.output.split(separator: "\n").contains { line in
                        guard let event = try? JSONValue(parsing: String(line)) else { return false }
                        return event["kind"] == "leader.change" && event["subject"]?.text().contains(next.id) == true
                    }
                }
                for line in follow.output.split(separator: "\n") {
                    let event = try JSONValue(parsing: String(line))
                    for key in ["index", "time", "node", "monotonicNanoseconds", "kind", "subject"] {
                        #expect(event[key] != nil, "\(line)")
                    }
                }
                // What is written goes on without it.
                try await cluster.ok(["queue", "put", "after"], input: "x")
            }
        }

        @Test func frozenLeaderIsReplacedAndFollowsWhenItWakes() async throws {
            try await withCluster(3) { cluster in
                let old = try await cluster.untilLeader()
                cluster.freeze(old)
                let others = cluster.running.filter { $0.id != old.id }
                try await eventually("the others have a new leader", within: 20) {
                    for node in others {
                        guard let id = try await cluster.status(node)["leader"]?["id"]?.stringValue, id != old.id else {
                            return false
                        }
                    }
                    return true
                }
                cluster.thaw(old)
                try await cluster.untilAgreed(within: 40)
            }
        }

        @Test func nodesThatJoinLaterBecomeVotersAndTheCommandsMoveAndRemoveThem() async throws {
            try await withCluster(3) { cluster in
                for _ in 0..<2 { try await cluster.addNode() }
                try await eventually("the joined nodes vote", within: 40) {
                    try await cluster.status(cluster.nodes[0])["voters"]?.arrayValue?.count == 5
                }
                let leader = try await cluster.untilLeader()
                let next = try await cluster.follower()
                try await cluster.ok(["transfer", next.name])
                #expect(try await cluster.untilLeader(within: 10, otherThan: leader).name == next.name)
                // `leave` is for good: no voter, no process.
                let leaver = try #require(cluster.nodes.first { $0.id != next.id })
                try await cluster.ok(["leave"], via: leaver)
                #expect(try await leaver.process.ended(within: 15) == .exited(0))
                leaver.forget()
                try await eventually("it votes no more", within: 20) {
                    let voters = try await cluster.status(next)["voters"]?.arrayValue ?? []
                    return !voters.contains { $0.stringValue == leaver.name }
                }
                try await cluster.ok(["queue", "put", "after"], input: "x")
            }
        }

        @Test func nodeWithAnotherKeyNeverBecomesAMember() async throws {
            try await withCluster(3) { cluster in
                let other = cluster.directory + "/other.key"
                try await cluster.ok(["keygen", other])
                let mode = try FileManager.default.attributesOfItem(atPath: other)[.posixPermissions] as? Int
                #expect(mode == 0o600)
                let stranger = try cluster.start([
                    "agent", "--name", "stranger", "--data", cluster.directory + "/stranger", "--bind", "127.0.0.1:0",
                    "--http", "off", "--queue",
                    "off", "--key", other, "--join", cluster.nodes[0].address,
                ])
                defer { stranger.signalGroup(SIGKILL) }
                try await eventually("the stranger is up or refused") {
                    stranger.output.contains("ready") || !stranger.isRunning
                }
                // It has had time for several rounds of joining when the members have probed each other so often.
                let start = ContinuousClock.now
                while ContinuousClock.now - start < .seconds(3) {
                    for node in cluster.nodes { #expect(try await cluster.members(node)["stranger"] == nil) }
                }
                #expect(try await cluster.status(cluster.nodes[0])["members"]?["alive"] == 3)
            }
        }

        @Test func joinAloneNeverFoundsACluster() async throws {
            try await withBench { bench in
                let key = bench.directory + "/k"
                #expect(try await bench.run(["keygen", key]).code == 0)
                let nobody = try PortHolder.freePort()
                let agent = try bench.start([
                    "agent", "--name", "alone", "--data", bench.directory + "/alone", "--bind", "127.0.0.1:0", "--http",
                    "off", "--queue", "off",
                    "--key", key, "--join", "127.0.0.1:\(nobody)",
                ])
                defer { agent.signalGroup(SIGKILL) }
                try await eventually("it is ready") { agent.output.contains("\"ready\":true") }
                let address = ["COTERIE_ADDRESS": "unix:\(bench.directory)/alone/agent.sock"]
                let start = ContinuousClock.now
                while ContinuousClock.now - start < .seconds(3) {
                    let status = try await bench.run(["--json", "status"], extra: address)
                    #expect(status.code == 0, "\(status)")
                    #expect(try status.json()["leader"]?.isNull == true)
                }
                let leader = try await bench.run(["leader", "--timeout", "2s"], extra: address)
                #expect(leader.code == 3 && leader.errorLines.count == 1, "\(leader)")
            }
        }

        @Test func upAndDownRunAClusterOfThisMachine() async throws {
            try await withBench { bench in
                let data = bench.directory + "/c"
                let up = try await bench.run(["up", "--nodes", "3", "--data", data, "--detach"], within: 60)
                #expect(up.code == 0, "\(up)")
                #expect(up.lines.filter { $0.contains("\"ready\":true") }.count == 3, "\(up)")
                let last = try JSONValue(parsing: try #require(up.lines.last))
                #expect(last["cluster"] == "ready" && last["leader"]?["name"] != nil)
                let status = try await bench.run(["--json", "status"])
                #expect(try status.json()["members"]?["alive"] == 3, "\(status)")
                let again = try await bench.run(["up", "--data", data, "--detach"])
                #expect(again.code == 1 && again.errorLines.count == 1, "\(again)")
                let down = try await bench.run(["down"], within: 60)
                #expect(down.code == 0, "\(down)")
                #expect(ProcessTable.processes(running: data).isEmpty)
                let gone = try await bench.run([
                    "status", "--timeout", "2s", "--address", "unix:\(data)/node0/agent.sock",
                ])
                #expect(gone.code == 3 && gone.errorLines.count == 1, "\(gone)")
            }
        }
    }
}
