// A cluster of real agents on this machine, each a process of the built `coterie`, with data in a directory of the test's own.
import Foundation
import Glibc
import Wire

/// What a command left: its exit code (128+signal if a signal ended it) and its output.
public struct Outcome: Sendable, CustomStringConvertible {
    public var command: String
    public var code: Int32
    public var stdout: String
    public var stderr: String

    public var description: String {
        "`\(command)` ended with \(code)\nstdout: \(stdout.suffix(2_000))\nstderr: \(stderr.suffix(2_000))"
    }
    public var lines: [String] { stdout.split(separator: "\n").map(String.init) }
    public var errorLines: [String] { stderr.split(separator: "\n").map(String.init) }

    /// Its output as one JSON document.
    public func json() throws -> JSONValue {
        do { return try JSONValue(parsing: stdout) } catch { throw TestFailure("no JSON: \(error): \(self)") }
    }
}

/// A directory of the test's own, and commands of `coterie` run in it. `HOME` lies inside, so that the record of the user's own
/// cluster is neither read nor written.
public class TestBench: @unchecked Sendable {
    public let directory: String
    private let lock = NSLock()
    private var commands = 0

    public init() throws {
        var template = Array("/tmp/coterie-test-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw TestFailure("cannot make a directory in /tmp: errno \(errno)") }
        directory = String(decoding: template.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        Cleanup.shared.add(directory: directory)
        for name in ["home", "runs", "tmp"] {
            try FileManager.default.createDirectory(atPath: directory + "/" + name, withIntermediateDirectories: true)
        }
    }

    /// Every process of the test carries the directory in its environment, by which strays are found.
    public var environment: [String: String] {
        [
            "PATH": Programs.directory + ":" + (ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"),
            "HOME": directory + "/home",
            "LANG": "C.UTF-8", "TMPDIR": directory + "/tmp", "TEST_BENCH": directory,
        ]
    }

    /// Writes a file into the test's directory and returns its path.
    public func file(_ name: String, _ text: String) throws -> String {
        let path = directory + "/" + name
        try text.write(toFile: path, atomically: false, encoding: .utf8)
        return path
    }

    private func nextRun() -> String {
        let number = lock.withLock { () -> Int in
            commands += 1
            return commands
        }
        return directory + "/runs/\(number)"
    }

    /// Starts a program in the background; its standard input is the text, or nothing.
    public func start(
        program: String = Programs.coterie, _ arguments: [String], input: String? = nil, extra: [String: String] = [:],
        user: Int64? = nil
    ) throws -> ChildProgram {
        let run = nextRun()
        if let input { try input.write(toFile: run + ".in", atomically: false, encoding: .utf8) }
        return try ChildProgram(
            program, arguments, environment: environment.merging(extra) { $1 },
            directory: user == nil ? directory : "/",
            input: input == nil ? nil : run + ".in", output: run, user: user)
    }

    /// Runs a program to its end.
    public func run(
        program: String = Programs.coterie, _ arguments: [String], input: String? = nil, extra: [String: String] = [:],
        user: Int64? = nil, within seconds: Double = 60
    ) async throws -> Outcome {
        let child = try start(program: program, arguments, input: input, extra: extra, user: user)
        return try await finish(child, within: seconds)
    }

    /// Awaits the end of a program and takes its output.
    public func finish(_ child: ChildProgram, within seconds: Double = 60) async throws -> Outcome {
        let status = try await child.ended(within: seconds)
        let code: Int32
        switch status {
        case .exited(let number): code = number
        case .signalled(let number): code = 128 + number
        }
        let command = ([(child.arguments[0] as NSString).lastPathComponent] + child.arguments.dropFirst()).joined(
            separator: " ")
        return Outcome(command: command, code: code, stdout: child.output, stderr: child.errors)
    }

    /// Removes the directory and whatever process still names it.
    public func remove() { Cleanup.shared.remove(directory: directory) }
}

/// One node: how it is started, and the process while it runs.
public final class TestNode: @unchecked Sendable {
    public let index: Int
    public let name: String
    public let data: String
    public internal(set) var process: ChildProgram
    public internal(set) var id = ""
    /// `127.0.0.1:PORT` of gossip and streams; kept over restarts.
    public internal(set) var address = ""
    public internal(set) var http: String?
    public internal(set) var queue = ""
    /// The agent ran to its ready line and was not ended by the test since.
    public internal(set) var isUp = false

    public var socket: String { "unix:" + data + "/agent.sock" }
    public var port: UInt16 { address.split(separator: ":").last.flatMap { UInt16($0) } ?? 0 }
    public var queuePort: UInt16 { queue.split(separator: ":").last.flatMap { UInt16($0) } ?? 0 }
    public var httpPort: UInt16 { http?.split(separator: ":").last.flatMap { UInt16($0) } ?? 0 }

    /// It ended by an order that the test gave.
    public func forget() { isUp = false }

    init(index: Int, name: String, data: String, process: ChildProgram) {
        self.index = index
        self.name = name
        self.data = data
        self.process = process
    }
}

/// Nodes are started and stopped by one test at a time; only background load reads beside it.
public final class TestCluster: TestBench, @unchecked Sendable {
    public private(set) var nodes: [TestNode] = []
    /// Founders.
    public let expect: Int
    private let extra: [String]
    private let hasHTTP: Bool
    private let tracer: (@Sendable (Int) -> [String])?
    public var keyFile: String { directory + "/cluster.key" }

    /// Starts `count` agents and waits until all see all alive, the voters and one leader.
    ///
    /// - Parameters:
    ///   - extra: Further flags of every agent.
    ///   - small: Bytes of the file system of its own in which a node's data is, by the node's index. Needs root.
    ///   - tracer: The words before the agent's own, given its index: a program that runs the agent under the same pid.
    public static func start(
        _ count: Int, expect: Int? = nil, http: Bool = false, extra: [String] = [], small: [Int: Int] = [:],
        tracer: (@Sendable (Int) -> [String])? = nil
    ) async throws -> TestCluster {
        let cluster = try TestCluster(
            expect: expect ?? (count >= 5 ? 5 : count >= 3 ? 3 : 1), http: http, extra: extra, tracer: tracer)
        do {
            for (index, bytes) in small { try cluster.mountSmall("\(cluster.directory)/n\(index)", bytes: bytes) }
            let made = try await cluster.run(["keygen", cluster.keyFile])
            guard made.code == 0 else { throw TestFailure("no key: \(made)") }
            // The first is awaited for its address; the others start together.
            try await cluster.untilReady(cluster.launch())
            for _ in 1..<max(count, 1) { try cluster.launch() }
            for node in cluster.nodes { try await cluster.untilReady(node) }
            try await cluster.untilAgreed()
        } catch {
            cluster.printLogs()
            await cluster.stop()
            throw error
        }
        return cluster
    }

    private init(expect: Int, http: Bool, extra: [String], tracer: (@Sendable (Int) -> [String])?) throws {
        self.expect = expect
        self.extra = extra
        self.tracer = tracer
        hasHTTP = http
        try super.init()
    }

    /// It goes with the test's directory.
    private func mountSmall(_ path: String, bytes: Int) throws {
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        guard mount("tmpfs", path, "tmpfs", 0, "size=\(bytes),mode=0700") == 0 else {
            throw TestFailure("cannot mount a tmpfs at \(path): errno \(errno)")
        }
    }

    // MARK: - Nodes

    /// Starts one node more and waits for its ready line.
    @discardableResult
    public func addNode(key: String? = nil, extra: [String] = []) async throws -> TestNode {
        let node = try launch(key: key, extra: extra)
        try await untilReady(node)
        return node
    }

    @discardableResult
    private func launch(key: String? = nil, extra: [String] = []) throws -> TestNode {
        let index = nodes.count
        let name = "n\(index)"
        let data = directory + "/" + name
        let process = try process(
            name: name, data: data, index: index, bind: "127.0.0.1:0", queue: "127.0.0.1:0", key: key, extra: extra)
        let node = TestNode(index: index, name: name, data: data, process: process)
        nodes.append(node)
        return node
    }

    private func process(
        name: String, data: String, index: Int, bind: String, queue: String, key: String?, extra more: [String]
    ) throws -> ChildProgram {
        var words = [
            "agent", "--name", name, "--data", data, "--bind", bind, "--queue", queue, "--key", key ?? keyFile,
        ]
        words += ["--http", hasHTTP ? "127.0.0.1:0" : "off"]
        if index < expect { words += ["--expect", String(expect)] }
        for other in nodes where other.index != index && !other.address.isEmpty { words += ["--join", other.address] }
        let all = (tracer?(index) ?? []) + [Programs.coterie] + words + extra + more
        return try ChildProgram(
            all[0], Array(all.dropFirst()), environment: environment, directory: directory, output: data + ".log")
    }

    /// Waits for the ready line of a node that was started.
    func untilReady(_ node: TestNode) async throws {
        let line: JSONValue = try await eventually("\(node.name) is ready", within: 30, every: 0.01) {
            if let status = node.process.exitStatus {
                throw TestFailure("\(node.name) ended with \(status): \(node.process.errors.suffix(2_000))")
            }
            guard let line = node.process.output.split(separator: "\n").last,
                let document = try? JSONValue(parsing: String(line))
            else {
                return nil
            }
            guard document["ready"] == .bool(true) else { return nil }
            return document
        }
        node.id = line["id"]?.stringValue ?? ""
        node.address = line["address"]?.stringValue ?? ""
        node.http = line["http"]?.stringValue
        node.queue = line["queue"]?.stringValue ?? ""
        node.isUp = true
    }

    /// kill -9 of the agent alone, and waits for its end.
    public func kill9(_ node: TestNode) async throws {
        node.isUp = false
        node.process.signal(SIGKILL)
        try await node.process.ended(within: 10)
    }

    /// kill -9 of several at the same moment.
    public func kill9(_ some: [TestNode]) async throws {
        for node in some {
            node.isUp = false
            node.process.signal(SIGKILL)
        }
        for node in some { try await node.process.ended(within: 10) }
    }

    /// SIGTERM, and waits for the orderly end.
    @discardableResult
    public func terminate(_ node: TestNode) async throws -> ExitStatus {
        node.isUp = false
        node.process.signal(SIGTERM)
        return try await node.process.ended(within: 30)
    }

    public func freeze(_ node: TestNode) { node.process.signal(SIGSTOP) }
    public func thaw(_ node: TestNode) { node.process.signal(SIGCONT) }

    /// Starts a node again with the data and the address that it had.
    public func restart(_ node: TestNode) async throws {
        try relaunch(node)
        try await untilReady(node)
    }

    /// Starts several again at the same moment.
    public func restart(_ some: [TestNode]) async throws {
        for node in some { try relaunch(node) }
        for node in some { try await untilReady(node) }
    }

    private func relaunch(_ node: TestNode) throws {
        // The old output must not be taken for the new ready line.
        rename(node.data + ".log.out", node.data + ".log.out.before")
        node.process = try process(
            name: node.name, data: node.data, index: node.index, bind: node.address, queue: node.queue, key: nil,
            extra: [])
    }

    public var running: [TestNode] { nodes.filter(\.isUp) }

    /// SIGTERM to all, SIGKILL to those that take too long, and removes everything.
    public func stop() async {
        for node in nodes {
            node.process.signal(SIGCONT)
            node.process.signal(SIGTERM)
        }
        let deadline = ContinuousClock.now + .seconds(8)
        while nodes.contains(where: { $0.process.isRunning }) && ContinuousClock.now < deadline {
            try? await Task.sleep(for: .milliseconds(10))
        }
        for node in nodes { node.process.signalGroup(SIGKILL) }
        for node in nodes { _ = try? await node.process.ended(within: 5) }
        remove()
    }

    /// The end of every node's log, for a test that failed.
    public func printLogs() {
        for node in nodes {
            let state = node.process.exitStatus.map { "\($0)" } ?? "running"
            print(
                "--- log of \(node.name) (\(state), pid \(node.process.pid)):\n\(node.process.errors.suffix(6_000))---")
        }
    }

    // MARK: - Commands

    /// Runs a command against one node, or against all that run: the client tries each.
    public func coterie(
        _ arguments: [String], via node: TestNode? = nil, input: String? = nil, extra: [String: String] = [:],
        within seconds: Double = 60
    ) async throws -> Outcome {
        try await run(arguments, input: input, extra: address(node).merging(extra) { $1 }, within: seconds)
    }

    /// As ``coterie(_:via:input:extra:within:)`` in the background.
    public func launch(
        _ arguments: [String], via node: TestNode? = nil, input: String? = nil, extra: [String: String] = [:]
    ) throws -> ChildProgram {
        try start(arguments, input: input, extra: address(node).merging(extra) { $1 })
    }

    private func address(_ node: TestNode?) -> [String: String] {
        ["COTERIE_ADDRESS": node.map(\.socket) ?? running.map(\.socket).joined(separator: ",")]
    }

    /// Runs a command that must succeed.
    @discardableResult
    public func ok(
        _ arguments: [String], via node: TestNode? = nil, input: String? = nil, within seconds: Double = 60
    ) async throws -> Outcome {
        let outcome = try await coterie(arguments, via: node, input: input, within: seconds)
        guard outcome.code == 0 else { throw TestFailure("\(outcome)") }
        return outcome
    }

    /// The document of a command with `--json`.
    public func json(_ arguments: [String], via node: TestNode? = nil, input: String? = nil) async throws -> JSONValue {
        try await ok(["--json"] + arguments, via: node, input: input).json()
    }

    // MARK: - What nodes say

    public func status(_ node: TestNode) async throws -> JSONValue {
        try await json(["status", "--timeout", "5s"], via: node)
    }

    /// State by member name, as one node sees it.
    public func members(_ node: TestNode) async throws -> [String: String] {
        let list = try await json(["members", "--timeout", "5s"], via: node)["members"]?.arrayValue ?? []
        return Dictionary(
            list.compactMap { member in
                guard let name = member["name"]?.stringValue, let state = member["state"]?.stringValue else {
                    return nil
                }
                return (name, state)
            }, uniquingKeysWith: { first, _ in first })
    }

    /// The leader that the node names, if that node runs.
    public func leader(via node: TestNode? = nil) async throws -> TestNode? {
        guard let asked = node ?? running.first else { return nil }
        let id = try await status(asked)["leader"]?["id"]?.stringValue
        return running.first { $0.id == id }
    }

    /// Waits until all running nodes name the same running leader, and returns it.
    @discardableResult
    public func untilLeader(within seconds: Double = 20, otherThan old: TestNode? = nil) async throws -> TestNode {
        try await eventually("all agree on a leader", within: seconds) {
            var leaders: Set<String> = []
            for node in self.running { leaders.insert(try await self.status(node)["leader"]?["id"]?.stringValue ?? "") }
            guard leaders.count == 1, let id = leaders.first, id != old?.id else { return nil }
            return self.running.first { $0.id == id }
        }
    }

    /// A running node that does not lead.
    public func follower() async throws -> TestNode {
        let leader = try await untilLeader()
        guard let other = running.first(where: { $0.id != leader.id }) else {
            throw TestFailure("there is only one node")
        }
        return other
    }

    /// Waits until every running node sees all running nodes alive, all founders as voters, and the same leader.
    public func untilAgreed(within seconds: Double = 40) async throws {
        let up = running
        try await eventually("\(up.count) nodes agree", within: seconds) {
            var leaders: Set<String> = []
            for node in up {
                let status = try await self.status(node)
                guard status["members"]?["alive"]?.intValue == Int64(up.count),
                    status["voters"]?.arrayValue?.count == self.expect,
                    let leader = status["leader"]?["id"]?.stringValue
                else { return false }
                leaders.insert(leader)
            }
            return leaders.count == 1
        }
    }
}
