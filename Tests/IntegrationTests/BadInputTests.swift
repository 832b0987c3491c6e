// Bad input: one clear line each, the right exit code, nothing half done.
import Foundation
import TestSupport
import Testing
import Wire

extension Integration {
    @Suite struct BadInput {
        /// One line on stderr that begins `coterie: ` and nothing on stdout.
        private func expect(
            _ outcome: Outcome, code: Int32, says: String..., location: SourceLocation = #_sourceLocation
        ) {
            #expect(outcome.code == code, "\(outcome)", sourceLocation: location)
            #expect(outcome.errorLines.count == 1, "\(outcome)", sourceLocation: location)
            #expect(outcome.stderr.hasPrefix("coterie: "), "\(outcome)", sourceLocation: location)
            #expect(outcome.stdout.isEmpty, "\(outcome)", sourceLocation: location)
            for text in says { #expect(outcome.stderr.contains(text), "\(outcome)", sourceLocation: location) }
        }

        @Test func wrongUsageIsTwo() async throws {
            try await withBench { bench in
                expect(try await bench.run(["statsu"]), code: 2, says: "did you mean", "status")
                expect(try await bench.run(["status", "--jsno"]), code: 2, says: "--jsno")
                expect(try await bench.run(["queue", "put"]), code: 2)
                expect(try await bench.run(["queue", "put", "t", "--ttr", "soon"], input: "x"), code: 2, says: "soon")
                expect(try await bench.run(["queue", "put", "-bad", "x"], input: "x"), code: 2)
                expect(
                    try await bench.run(["agent", "--expect", "2", "--data", bench.directory + "/x"]), code: 2,
                    says: "--expect 2")
                expect(
                    try await bench.run(["agent", "--bind", "nowhere", "--data", bench.directory + "/x"]), code: 2,
                    says: "nowhere")
                expect(
                    try await bench.run(["agent", "--dead-voter-grace", "10ms", "--data", bench.directory + "/x"]),
                    code: 2, says: "--dead-voter-grace 10ms")
                expect(try await bench.run(["status", "--timeout", "0"]), code: 2, says: "--timeout")
                expect(try await bench.run(["scatter", "--leaf", "cat"], input: "x"), code: 2)
                expect(
                    try await bench.run(["scatter", "--leaf", "cat", "--lines", "1", "--shards", "2"], input: "x"),
                    code: 2)
                expect(try await bench.run(["elect", "name"]), code: 2)
                #expect(
                    !FileManager.default.fileExists(atPath: bench.directory + "/x"),
                    "a data directory was made although the flags were wrong")
            }
        }

        @Test func jsonErrorsAreDocumentsToo() async throws {
            try await withBench { bench in
                let outcome = try await bench.run([
                    "--json", "status", "--address", "127.0.0.1:\(try PortHolder.freePort())", "--timeout", "2s",
                ])
                #expect(outcome.code == 3 && outcome.errorLines.count == 1, "\(outcome)")
                let error = try #require(try outcome.json()["error"])
                #expect(
                    error["code"]?.stringValue?.isEmpty == false && error["message"]?.stringValue?.isEmpty == false
                        && error["hint"] != nil)
            }
        }

        @Test func noClusterIsThree() async throws {
            try await withBench { bench in
                let port = try PortHolder.freePort()
                for command in [
                    ["status"], ["members"], ["queue", "list"], ["queue", "put", "t"], ["get", "pods"], ["leader"],
                ] {
                    let outcome = try await bench.run(
                        command + ["--address", "127.0.0.1:\(port)", "--timeout", "2s"], input: "x")
                    expect(outcome, code: 3)
                }
                let socket = try await bench.run([
                    "status", "--address", "unix:\(bench.directory)/none.sock", "--timeout", "2s",
                ])
                expect(socket, code: 3, says: "none.sock")
            }
        }

        @Test func brokenYAMLIsToldWithLineAndColumn() async throws {
            try await withBench { bench in
                let broken = try bench.file("broken.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: x\nspec: }\n")
                for command in [["validate", "-f"], ["apply", "-f"], ["expand", "-f"], ["run", "--pod"]] {
                    let outcome = try await bench.run(command + [broken, "--timeout", "2s"])
                    #expect(outcome.code == 2 && outcome.stdout.isEmpty && outcome.errorLines.count == 1, "\(outcome)")
                    #expect(outcome.stderr.contains(#/broken\.yaml:\d+:\d+: /#), "\(outcome)")
                }
                let unknown = try bench.file(
                    "unknown.yaml",
                    """
                    apiVersion: v1
                    kind: Pod
                    metadata: {name: x}
                    spec:
                      containers:
                        - name: app
                          image: localhost/host
                          comand: [true]
                    """)
                let outcome = try await bench.run(["validate", "-f", unknown])
                #expect(
                    outcome.code == 2 && outcome.stderr.contains("unknown.yaml:8:7: ")
                        && outcome.stderr.contains("did you mean command"), "\(outcome)")
                let config = try bench.file("agent.yaml", "name: a\nexpekt: 3\n")
                let agent = try await bench.run(
                    ["agent", "--config", config, "--data", bench.directory + "/x"], within: 20)
                #expect(
                    agent.code == 2 && agent.stderr.contains("agent.yaml:2:1: ") && agent.stderr.contains("expect"),
                    "\(agent)")
                let missing = try await bench.run(["validate", "-f", bench.directory + "/none.yaml"])
                expect(missing, code: 4, says: "none.yaml")
            }
        }

        @Test func portInUseIsTold() async throws {
            try await withBench { bench in
                let holder = try PortHolder()
                let datagrams = try PortHolder(datagrams: true)
                for port in [holder.port, datagrams.port] {
                    let agent = try await bench.run(
                        [
                            "agent", "--name", "x", "--data", bench.directory + "/x", "--bind", "127.0.0.1:\(port)",
                            "--http", "off", "--queue", "off",
                        ],
                        within: 20)
                    #expect(
                        agent.code == 1 && agent.stdout.isEmpty && agent.errorLines.count == 1
                            && agent.stderr.contains("\(port)"), "\(agent)")
                }
                let queue = try await bench.run(
                    [
                        "agent", "--name", "x", "--data", bench.directory + "/x", "--bind", "127.0.0.1:0", "--http",
                        "off", "--queue",
                        "127.0.0.1:\(holder.port)",
                    ], within: 20)
                #expect(
                    queue.code == 1 && queue.errorLines.count == 1 && queue.stderr.contains("\(holder.port)"),
                    "\(queue)")
            }
        }

        @Test func dataDirectoryInUseIsTold() async throws {
            try await withCluster(1) { cluster in
                let node = cluster.nodes[0]
                let agent = try await cluster.run(
                    [
                        "agent", "--name", "x", "--data", node.data, "--bind", "127.0.0.1:0", "--http", "off",
                        "--queue", "off",
                    ], within: 20)
                #expect(agent.code == 1 && agent.stdout.isEmpty && agent.errorLines.count == 1, "\(agent)")
                #expect(agent.stderr.contains(node.data) && agent.stderr.contains("\(node.process.pid)"), "\(agent)")
                #expect(try await cluster.status(node)["members"]?["alive"] == 1)
            }
        }

        @Test func whatDoesNotExistIsFour() async throws {
            try await withCluster(1) { cluster in
                for command in [
                    ["queue", "peek", "999"], ["queue", "delete", "999"], ["get", "pod", "none"], ["logs", "none"],
                    ["delete", "pod", "none"],
                    ["gather", "show", "none"], ["queue", "stats", "none"],
                ] {
                    expect(try await cluster.coterie(command + ["--timeout", "5s"]), code: 4)
                }
            }
        }
    }
}
