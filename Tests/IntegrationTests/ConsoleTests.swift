// The console: a client process beside the agent that only reads, and only for those who ask for it by its name.
import Foundation
import TestSupport
import Testing
import Wire

extension Integration {
    @Suite(
        .enabled(
            if: Programs.hasConsole && Programs.find("curl") != nil,
            "coterie-console is not built here, or curl is missing"))
    struct Console {
        private func get(_ cluster: TestCluster, _ path: String, _ more: String...) async throws -> (
            code: Int, body: String
        ) {
            let url = "http://127.0.0.1:\(cluster.nodes[0].httpPort)\(path)"
            let curl = try #require(Programs.find("curl"))
            let outcome = try await cluster.run(
                program: curl, ["-s", "-m", "5", "-w", "\n%{http_code}"] + more + [url])
            let end = outcome.stdout.lastIndex(of: "\n") ?? outcome.stdout.startIndex
            return (Int(outcome.stdout[end...].filter(\.isNumber)) ?? 0, String(outcome.stdout[..<end]))
        }

        @Test func consoleAnswersWhatTheContractSays() async throws {
            try await withCluster(1, http: true) { cluster in
                try await eventually("the console is healthy", within: 20) {
                    try await get(cluster, "/healthz").code == 200
                }
                let metrics = try await get(cluster, "/metrics")
                #expect(metrics.code == 200 && metrics.body.contains("# TYPE coterie_"), "\(metrics)")
                let status = try JSONValue(parsing: try await get(cluster, "/v1/status").body)
                #expect(status["node"]?["name"] == "n0" && status["members"]?["alive"] == 1)
                let members = try JSONValue(parsing: try await get(cluster, "/v1/members").body)
                #expect(members["members"]?.arrayValue?.first?["state"] == "alive")
                #expect(try await get(cluster, "/").body.contains("<html"))
                #expect(try await get(cluster, "/v1/nothing").code == 404)
                // A page of another site that a browser was talked into asking us for.
                let foreign = try await get(cluster, "/v1/status", "-H", "Host: evil.example")
                #expect((400...499).contains(foreign.code) && !foreign.body.contains("n0"), "\(foreign)")
                let write = try await get(cluster, "/v1/status", "-X", "POST")
                #expect((400...499).contains(write.code), "\(write)")
            }
        }

        @Test func consoleEndsWithItsAgent() async throws {
            try await withCluster(1, http: true) { cluster in
                try await eventually("the console is healthy", within: 20) {
                    try await get(cluster, "/healthz").code == 200
                }
                try await cluster.kill9(cluster.nodes[0])
                try await eventually("the console is gone", within: 10) {
                    ProcessTable.processes(running: cluster.nodes[0].data + "/agent.sock").isEmpty
                }
            }
        }
    }
}
