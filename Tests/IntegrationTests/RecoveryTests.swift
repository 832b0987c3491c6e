// Disasters on real processes: a cluster saved and restored, a majority lost for good, hard states destroyed.
import Foundation
import TestSupport
import Testing
import Wire

extension Integration {
    @Suite struct Recovery {
        /// Ready jobs of a tube, by body, through one agent.
        static func bodies(_ bench: TestBench, _ tube: String, via socket: String) async throws -> Set<String> {
            var bodies: Set<String> = []
            while true {
                let taken = try await bench.run(
                    ["--json", "queue", "reserve", tube], extra: ["COTERIE_ADDRESS": socket])
                guard taken.code == 0, let body = try taken.json()["body"]?.stringValue else { return bodies }
                bodies.insert(body)
            }
        }

        /// Starts one agent by hand, for clusters that `TestCluster` did not make, and waits for its ready line.
        static func agent(_ bench: TestBench, _ data: String, _ words: [String]) async throws -> (
            process: ChildProgram, ready: JSONValue
        ) {
            let name = (data as NSString).lastPathComponent
            let process = try bench.start(
                ["agent", "--name", name, "--data", data, "--bind", "127.0.0.1:0", "--http", "off", "--queue", "off"]
                    + words)
            let ready: JSONValue = try await eventually("\(name) is ready", within: 30) {
                if let status = process.exitStatus {
                    throw TestFailure("\(name) ended with \(status): \(process.errors)")
                }
                return process.output.split(separator: "\n").last.flatMap { try? JSONValue(parsing: String($0)) }
            }
            return (process, ready)
        }

        static func status(_ bench: TestBench, _ data: String) async throws -> JSONValue {
            try await bench.run(
                ["--json", "status", "--timeout", "5s"], extra: ["COTERIE_ADDRESS": "unix:\(data)/agent.sock"]
            ).json()
        }

        @Test func aSavedClusterIsRestoredWithAllItsJobsAndHigherTokens() async throws {
            try await withCluster(3) { cluster in
                let bodies = (0..<40).map { "job \($0)" }
                try await cluster.ok(["queue", "put", "t", "--lines"], input: bodies.joined(separator: "\n") + "\n")
                let lease = try cluster.launch(["elect", "leader", "--ttl", "30s", "--", "sleep", "60"])
                defer { lease.signalGroup(SIGTERM) }
                let token: Int64 = try await eventually("somebody is elected", within: 20) {
                    let election = try await cluster.json(["election", "show", "leader"])
                    return election["holder"]?.isNull == false ? election["token"]?.intValue : nil
                }
                let file = cluster.directory + "/saved.snap"
                // Through a node that does not lead: it has everything that was acknowledged all the same.
                let asked = try await cluster.follower()
                let saved = try await cluster.json(["snapshot", "save", file], via: asked)
                #expect(saved["contents"]?["jobs"]?["ready"]?.intValue == 40, "\(saved.text())")
                #expect(saved["contents"]?["leases"]?.intValue == 1)
                #expect(saved["voters"]?.arrayValue?.count == 3)
                let inspected = try await cluster.json(["snapshot", "inspect", file])
                #expect(inspected == saved)
                let text = try await cluster.ok(["snapshot", "inspect", file])
                #expect(text.stdout.contains("40 ready"), "\(text)")

                // Over existing data: refused; the running node's directory at that.
                let held = try await cluster.coterie(["snapshot", "restore", file, "--data", asked.data])
                #expect(held.code == 1 && held.errorLines.count == 1 && held.stderr.contains("--force"), "\(held)")
                let running = try await cluster.coterie(["snapshot", "restore", file, "--data", asked.data, "--force"])
                #expect(running.code == 1 && running.stderr.contains("in use by process"), "\(running)")

                let data = cluster.directory + "/restored"
                let restored = try await cluster.json(["snapshot", "restore", file, "--data", data])
                #expect(restored["cluster"]?["epoch"]?.intValue == 1)
                #expect(restored["setAside"]?.arrayValue == [])
                // Not the old cluster's key: the two would hear of each other only through a member, which nobody names.
                let (process, ready) = try await Recovery.agent(cluster, data, ["--key", cluster.keyFile])
                defer { process.signalGroup(SIGKILL) }
                let socket = "unix:\(data)/agent.sock"
                let (second, _) = try await Recovery.agent(
                    cluster, cluster.directory + "/second",
                    ["--key", cluster.keyFile, "--join", ready["address"]?.stringValue ?? ""])
                defer { second.signalGroup(SIGKILL) }
                try await eventually("the new node learns", within: 20) {
                    try await Recovery.status(cluster, data)["learners"]?.arrayValue?.count == 1
                }
                let status = try await Recovery.status(cluster, cluster.directory + "/second")
                #expect(status["cluster"]?["epoch"]?.intValue == 1, "\(status.text())")
                #expect(try await Recovery.bodies(cluster, "t", via: socket) == Set(bodies))
                let outcome = try await cluster.run(
                    ["elect", "leader", "--", "sh", "-c", "echo $COTERIE_FENCING_TOKEN"],
                    extra: ["COTERIE_ADDRESS": socket])
                let next = try #require(outcome.lines.last.flatMap { Int64($0) }, "\(outcome)")
                #expect(next > token + 1 << 40, "\(token), then \(next)")
                // The old cluster knows nothing of it.
                #expect(try await cluster.json(["queue", "stats", "t"])["current-jobs-ready"]?.intValue == 40)
            }
        }

        @Test func aDamagedFileIsRefused() async throws {
            try await withCluster(1) { cluster in
                // Half of the file lies in the middle of the body, where only a checksum can tell.
                try await cluster.ok(["queue", "put", "t"], input: String(repeating: "x", count: 2_000))
                let file = cluster.directory + "/saved.snap"
                try await cluster.ok(["snapshot", "save", file])
                let whole = try Data(contentsOf: URL(fileURLWithPath: file))
                let copy = cluster.directory + "/copy.snap"
                for position in [3, 9, 30, whole.count / 2, whole.count - 30, whole.count - 3] {
                    var bytes = whole
                    bytes[position] ^= 0x20
                    try bytes.write(to: URL(fileURLWithPath: copy))
                    for words in [["inspect", copy], ["restore", copy, "--data", cluster.directory + "/r"]] {
                        let refused = try await cluster.run(["snapshot"] + words)
                        #expect(refused.code == 2 && refused.errorLines.count == 1, "byte \(position): \(refused)")
                    }
                    #expect(!FileManager.default.fileExists(atPath: cluster.directory + "/r"))
                }
                try whole.dropLast(11).write(to: URL(fileURLWithPath: copy))
                let cut = try await cluster.run(["--json", "snapshot", "inspect", copy])
                #expect(cut.code == 2 && cut.stderr.contains("cut short"), "\(cut)")
                #expect(try cut.json()["error"]?["code"] == "badInput")
                #expect(try await cluster.run(["snapshot", "inspect", cluster.directory + "/none"]).code == 4)
                #expect(try await cluster.run(["snapshot", "save", cluster.directory + "/no/such/place"]).code == 2)
            }
        }

        @Test func aSurvivorBecomesANewClusterAndTheOldNodesAreRefused() async throws {
            try await withCluster(3) { cluster in
                let bodies = (0..<25).map { "job \($0)" }
                try await cluster.ok(["queue", "put", "t", "--lines"], input: bodies.joined(separator: "\n") + "\n")
                let survivor = try await cluster.follower()
                let others = cluster.nodes.filter { $0.id != survivor.id }
                let held = try await cluster.coterie(["recover", "--force-new-cluster", "--data", survivor.data])
                #expect(held.code == 1 && held.stderr.contains("in use by process"), "\(held)")
                // All that was acknowledged is on the survivor too, once it has applied it.
                try await eventually("the survivor has all", within: 10) {
                    let leader = try await cluster.untilLeader()
                    let index = try await cluster.status(leader)["commitIndex"]
                    return try await cluster.status(survivor)["appliedIndex"] == index
                }
                try await cluster.kill9(cluster.nodes)
                let careful = try await cluster.run(["recover", "--data", survivor.data])
                #expect(careful.code == 2 && careful.stderr.contains("--force-new-cluster"), "\(careful)")
                let recovered = try await cluster.run([
                    "--json", "recover", "--force-new-cluster", "--data", survivor.data,
                ])
                #expect(recovered.code == 0, "\(recovered)")
                let document = try recovered.json()
                #expect(document["epoch"]?.intValue == 1 && document["contents"]?["jobs"]?["ready"]?.intValue == 25)
                #expect(document["setAside"]?.arrayValue?.count == 1, "\(document.text())")
                let before = survivor.id
                try await cluster.restart(survivor)
                #expect(survivor.id == before)
                try await eventually("the survivor leads alone", within: 20) {
                    let status = try await cluster.status(survivor)
                    return status["leader"]?["id"]?.stringValue == survivor.id
                        && status["voters"]?.arrayValue?.count == 1
                }
                try await cluster.ok(["queue", "put", "t"], via: survivor, input: "after")

                // Both old ones at once: they would be a majority of the old cluster.
                for node in others { try? await cluster.restart(node) }
                for node in others {
                    let status = try await node.process.ended(within: 20)
                    let said = node.process.errors
                    #expect(status == .exited(5), "\(node.name): \(status) \(said.suffix(500))")
                    #expect(said.contains("epoch 1") && said.contains("empty data directory"), "\(said.suffix(500))")
                    node.forget()
                }
                #expect(try await cluster.status(survivor)["voters"]?.arrayValue?.count == 1)
                // With empty directories they are welcome, and vote.
                for node in others {
                    try FileManager.default.removeItem(atPath: node.data)
                    try await cluster.restart(node)
                }
                try await eventually("three voters again", within: 40) {
                    try await cluster.status(survivor)["voters"]?.arrayValue?.count == 3
                }
                try await cluster.kill9(survivor)
                let left = try await cluster.untilLeader(within: 20)
                let jobs = try await Recovery.bodies(cluster, "t", via: left.socket)
                #expect(jobs == Set(bodies + ["after"]))
            }
        }

        /// Term and vote are the one thing that a node must not guess: with them gone it elects nobody until every other voter has
        /// told what it knows.
        @Test func aNodeWithoutItsHardStateHelpsToElectNobodyUntilAllOthersAreThere() async throws {
            try await withCluster(3) { cluster in
                try await cluster.ok(["queue", "put", "t"], input: "x")
                let (damaged, second, third) = (cluster.nodes[0], cluster.nodes[1], cluster.nodes[2])
                try await cluster.kill9(cluster.nodes)
                let path = damaged.data + "/journal/hardstate"
                var bytes = try Data(contentsOf: URL(fileURLWithPath: path))
                for slot in [0, 2_048, 4_096, 6_144] { bytes[slot + 40] ^= 0xFF }
                try bytes.write(to: URL(fileURLWithPath: path))
                try await cluster.restart([damaged, second])
                // Two of three would be a majority; nothing may happen, so there is no event to await.
                let start = ContinuousClock.now
                while ContinuousClock.now - start < .seconds(4) {
                    for node in [damaged, second] {
                        #expect(try await cluster.status(node)["leader"]?.isNull == true)
                    }
                }
                try await cluster.restart(third)
                try await cluster.untilAgreed(within: 30)
                // Now it votes as others do: with it and one other there is a majority.
                let leader = try await cluster.untilLeader()
                try await cluster.kill9([second, third].first { $0.id != leader.id } ?? second)
                try await cluster.ok(["queue", "put", "t"], input: "y", within: 20)
                #expect(try await Recovery.bodies(cluster, "t", via: damaged.socket) == ["x", "y"])
            }
        }
    }
}
