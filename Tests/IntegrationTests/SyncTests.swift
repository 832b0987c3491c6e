// Synced means synced: by the system calls of three nodes, no answer left before a majority had the entry on its disk.
import Foundation
import Glibc
import TestSupport
import Testing

private let strace = Programs.find("strace")

/// Why nothing can be traced here; nil if it can.
private let obstacle: String? = {
    guard let strace else { return "strace is not installed" }
    let trial = Process()
    trial.executableURL = URL(fileURLWithPath: strace)
    trial.arguments = ["-f", "-o", "/dev/null", "true"]
    trial.standardError = FileHandle.nullDevice
    guard (try? trial.run()) != nil else { return "strace can not be started" }
    trial.waitUntilExit()
    return trial.terminationStatus == 0 ? nil : "the kernel lets nobody trace"
}()

extension Integration {
    @Suite(.enabled(if: obstacle == nil, "\(obstacle ?? "")")) struct Synced {
        /// Where the trace of a node is.
        private static func path(_ directory: String, _ index: Int) -> String { "\(directory)/n\(index).trace" }

        /// The traces of nodes that have ended, once their tracers have written everything.
        private func traces(_ directory: String, _ nodes: [TestNode]) async throws -> [SyncTrace] {
            var traces: [SyncTrace] = []
            for node in nodes {
                let text: String = try await eventually("the trace of \(node.name) is whole", within: 20) {
                    let data = try Data(contentsOf: URL(fileURLWithPath: Self.path(directory, node.index)))
                    let text = String(decoding: data, as: UTF8.self)
                    return text.suffix(100).contains("\(node.process.pid) ")
                        && text.hasSuffix("+++ exited with 0 +++\n")
                        ? text : nil
                }
                traces.append(SyncTrace(parsing: text))
            }
            return traces
        }

        /// Puts one job after another by the queue protocol, whose answers a trace shows in plain text.
        private func put(_ count: Int, _ name: String, via node: TestNode) throws -> [PromisedWrite] {
            let connection = try RawConnection(port: node.queuePort, readLimit: 20)
            return try (0..<count).map { number in
                let body = "marker-\(name)-\(number)-end"
                connection.send("put 0 0 60 \(body.utf8.count)\r\n\(body)\r\n")
                let answer = connection.receive { $0.hasSuffix("\r\n") }
                guard answer.hasPrefix("INSERTED ") else { throw TestFailure("\(body): \(answer)") }
                let line = answer.split(whereSeparator: \.isNewline).first ?? ""
                return PromisedWrite(marker: body, answer: line + "\\r\\n")
            }
        }

        @Test func noAcknowledgementPrecedesTheSyncOfAMajority() async throws {
            let strace = try #require(strace)
            // Known before the cluster is: it names its own.
            let traceDirectory = try TestBench()
            defer { traceDirectory.remove() }
            let place = traceDirectory.directory
            let tracer: @Sendable (Int) -> [String] = { index in
                [strace, "-D", "-o", Self.path(place, index)] + SyncTrace.options + ["--"]
            }
            try await withCluster(3, tracer: tracer) { cluster in
                let leader = try await cluster.untilLeader()
                let follower = try await cluster.follower()
                let throughLeader = try put(40, "leader", via: leader)
                let throughFollower = try put(40, "follower", via: follower)
                for node in cluster.nodes { #expect(try await cluster.terminate(node) == .exited(0)) }
                let traces = try await traces(place, cluster.nodes)
                for (writes, node) in [(throughLeader, leader), (throughFollower, follower)] {
                    let wrong = unsyncedPromises(writes, answeredBy: traces[node.index], nodes: traces)
                    #expect(wrong.isEmpty, "\(wrong.prefix(5).joined(separator: "\n"))")
                }
                let syncs = traces.map { trace in trace.calls.count { $0.name == "fdatasync" || $0.isDurableWrite } }
                print("80 puts, \(syncs) syncs; every answer after the sync of a majority")

                // The same traces without what makes them good: the analysis must notice each.
                let leaderTrace = traces[leader.index]
                func doctored(_ nodes: [Int], _ change: (TracedCall) -> TracedCall?) -> [SyncTrace] {
                    traces.enumerated().map { index, trace in
                        nodes.contains(index) ? SyncTrace(calls: trace.calls.compactMap(change)) : trace
                    }
                }
                func blamed(_ doctored: [SyncTrace]) -> Int {
                    unsyncedPromises(throughLeader, answeredBy: leaderTrace, nodes: doctored).count
                }
                let isSync = { (call: TracedCall) in
                    call.name == "fdatasync" || call.name == "fsync" || call.isDurableWrite
                }
                #expect(blamed(doctored([0, 1]) { isSync($0) ? nil : $0 }) == throughLeader.count, "no syncs on two")
                #expect(
                    blamed(
                        doctored([1, 2]) { call in
                            var call = call
                            if isSync(call) { call.result = -1 }
                            return call
                        }) == throughLeader.count, "failed syncs on two")
                #expect(
                    blamed(
                        doctored([0, 2]) { call in
                            var call = call
                            if isSync(call) { call.ended += 1 }
                            return call
                        }) == throughLeader.count, "late syncs on two")
                #expect(
                    blamed(
                        doctored([0, 1]) { call in
                            var call = call
                            if call.name == "pwrite64" { call.ended += 0.2 }
                            // The same bytes, written without the promise.
                            if call.isDurableWrite { call.name = "pwrite64" }
                            return call
                        }) == throughLeader.count, "writes that the sync did not cover on two")
            }
        }
    }
}
