// Tests of the built programs as a user meets them: real processes, sockets, disks and signals. They compete for the machine,
// so they run one after another.
import Foundation
import TestSupport
import Testing
import Wire

@Suite(.serialized) enum Integration {}

/// Runs the body with a cluster that is stopped and removed afterwards. When the body throws, the nodes' logs are printed.
func withCluster(
    _ count: Int, expect: Int? = nil, http: Bool = false, extra: [String] = [], small: [Int: Int] = [:],
    tracer: (@Sendable (Int) -> [String])? = nil,
    _ body: (TestCluster) async throws -> Void
) async throws {
    let cluster = try await TestCluster.start(
        count, expect: expect, http: http, extra: extra, small: small, tracer: tracer)
    do {
        try await body(cluster)
    } catch {
        cluster.printLogs()
        await cluster.stop()
        throw error
    }
    await cluster.stop()
}

/// Runs the body with a directory of its own and no cluster.
func withBench(_ body: (TestBench) async throws -> Void) async throws {
    let bench = try TestBench()
    defer { bench.remove() }
    try await body(bench)
}
