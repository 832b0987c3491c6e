// Hosts of their own: network namespaces made by scripts/hosts, whose network can be cut as a test likes. Agents are reached
// through their Unix sockets, which no cut concerns.
import Foundation
import Glibc
import Wire

/// Sendable: one test uses it, one step after another; what it inherits is behind a lock.
public final class NamespaceHosts: TestBench, @unchecked Sendable {
    public private(set) var names: [String] = []
    private var hostsDirectory: String { directory + "/hosts" }

    private static let script = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        .appendingPathComponent("scripts/hosts").path

    /// Why there can be no such hosts here; nil if there can.
    public static let obstacle: String? = {
        guard Programs.isRoot else { return "network namespaces need root" }
        for tool in ["ip", "nsenter", "iptables-restore", "python3"] where Programs.find(tool) == nil {
            return "\(tool) is not installed"
        }
        // Whether the kernel gives them is found out by making one.
        let name = "coterie-trial-\(getpid())"
        func ip(_ words: String...) -> Bool {
            let trial = Process()
            trial.executableURL = URL(fileURLWithPath: "/usr/bin/env")
            trial.arguments = ["ip"] + words
            trial.standardError = FileHandle.nullDevice
            guard (try? trial.run()) != nil else { return false }
            trial.waitUntilExit()
            return trial.terminationStatus == 0
        }
        guard ip("netns", "add", name) else { return "the kernel gives no network namespaces" }
        return ip("netns", "del", name) ? nil : "network namespaces can not be removed"
    }()

    /// Runs `scripts/hosts` with the words and this run's directory.
    public func hosts(_ words: [String], within seconds: Double = 90) async throws -> Outcome {
        var all = words
        let end = all.firstIndex(of: "--") ?? all.endIndex
        all.insert(contentsOf: ["--dir", hostsDirectory], at: end)
        return try await run(
            program: NamespaceHosts.script, all, extra: ["COTERIE_BINARIES": Programs.directory], within: seconds)
    }

    /// As ``hosts(_:within:)``, and it must succeed.
    @discardableResult
    public func tell(_ words: String...) async throws -> Outcome {
        let outcome = try await hosts(words)
        guard outcome.code == 0 else { throw TestFailure("\(outcome)") }
        return outcome
    }

    public static func up(_ count: Int) async throws -> NamespaceHosts {
        let made = try NamespaceHosts()
        do {
            try await made.tell("up", "\(count)")
            made.names = (1...count).map { "h\($0)" }
        } catch {
            made.remove()
            throw error
        }
        return made
    }

    public func down() async {
        _ = try? await hosts(["down"])
        remove()
    }

    public func socket(_ name: String) -> String { "unix:\(hostsDirectory)/\(name)/data/agent.sock" }
    public var sockets: [String] { names.map { socket($0) } }

    public func printLogs() {
        for name in names {
            let log = FileManager.default.contents(atPath: "\(hostsDirectory)/\(name)/agent.log") ?? Data()
            print("--- log of \(name):\n\(String(decoding: log, as: UTF8.self).suffix(6_000))---")
        }
    }

    public func status(_ name: String) async throws -> JSONValue {
        let outcome = try await run(["--json", "status", "--timeout", "5s"], extra: ["COTERIE_ADDRESS": socket(name)])
        guard outcome.code == 0 else { throw TestFailure("\(outcome)") }
        return try outcome.json()
    }

    /// The name of the leader that a host knows; nil if it knows none.
    public func leader(of name: String) async throws -> String? {
        try await status(name)["leader"]?["name"]?.stringValue
    }

    /// Waits until all of the hosts name the same leader, one of them, and returns it.
    public func untilLeader(among some: [String], within seconds: Double = 20) async throws -> String {
        try await eventually("\(some) agree on a leader", within: seconds) {
            var leaders: Set<String> = []
            for name in some { leaders.insert(try await self.leader(of: name) ?? "") }
            guard leaders.count == 1, let leader = leaders.first, some.contains(leader) else { return nil }
            return leader
        }
    }
}
