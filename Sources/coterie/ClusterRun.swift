// The processes of a local cluster, from their start until all agree, and on until they are stopped. Confined to its loop.
import Client
import EventLoop
import Glibc
import Model
import Node
import Wire

final class ClusterRun {
    private let loop: EventLoop
    private let plan: UpPlan
    private var children: [Child] = []
    private var signals = 0
    private var isReady = false
    private var waiting: CheckedContinuation<Void, Never>?
    private let alarm: LoopTimer

    /// How long the nodes may take to find each other and agree.
    private static let patience = TimeSpan.seconds(60)
    private static let stopPatience = TimeSpan.seconds(40)

    private final class Child {
        let node: LocalNode
        var process: ChildProcess?
        var output: [UInt8] = []
        var isReady = false
        var end: ChildProcess.ExitStatus?
        init(_ node: LocalNode) { self.node = node }
    }

    init(loop: EventLoop, plan: UpPlan) {
        self.loop = loop
        self.plan = plan
        alarm = LoopTimer(loop: loop)
    }

    func go() async throws {
        var watchers: [SignalWatcher] = []
        for number in [SIGINT, SIGTERM, SIGHUP] {
            watchers.append(try SignalWatcher(loop: loop, signal: number) { [weak self] in self?.signalled() })
        }
        defer {
            for watcher in watchers { watcher.close() }
            alarm.close()
        }
        do {
            for index in plan.nodes.indices { try start(index) }
            try await untilAllListen()
            let leader = try await untilAllAgree()
            isReady = true
            try record().write()
            writeOut(JSONValue.object([.init("cluster", "ready"), .init("leader", leader)]).text() + "\n")
        } catch {
            await stopAll()
            throw error
        }
        if plan.detach { return }
        writeError("coterie: \(plan.nodes.count) nodes run in \(plan.directory); Ctrl-C stops them")
        while signals == 0 && children.contains(where: { $0.end == nil }) { await somethingHappens() }
        let failed = signals == 0 && children.contains { $0.end != .exited(0) }
        await stopAll()
        ClusterRecord.remove(data: plan.directory)
        if plan.isTemporary { removeDirectoryTree(plan.directory) }
        if failed {
            throw CoterieError(
                .failed, "all nodes have ended", hint: "see their logs: \(plan.directory)/node*/agent.log")
        }
    }

    private func record() -> ClusterRecord {
        ClusterRecord(
            addresses: plan.nodes.map { "unix:" + $0.socket }, data: plan.directory,
            pids: children.compactMap { $0.process?.pid },
            isTemporary: plan.isTemporary)
    }

    // MARK: - Processes

    private func start(_ index: Int) throws {
        let child = Child(plan.nodes[index])
        try makeNodeDirectory(child.node.directory)
        let log = open(child.node.log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o600)
        guard log >= 0 else { throw CoterieError(.failed, "cannot write \(child.node.log): \(errnoMessage())") }
        defer { close(log) }
        var options = ChildProcess.Options(
            program: AgentOptions.Programs.ownProgram, arguments: plan.arguments(index),
            // The nodes go by their flags alone.
            environment: ChildProcess.currentEnvironment.filter { !$0.hasPrefix("COTERIE_") })
        options.output = .pipe
        options.error = .descriptor(log)
        // A session of its own: Ctrl-C in the terminal reaches this process only, which then stops the nodes in order.
        options.newSession = true
        options.parentDeathSignal = plan.detach ? 0 : SIGTERM
        let process: ChildProcess
        do {
            process = try ChildProcess(loop: loop, options: options) { [weak self, weak child] status in
                guard let self, let child else { return }
                child.end = status
                if isReady && signals == 0 { writeError("coterie: \(child.node.name) ended: \(status)") }
                wake()
            }
        } catch { throw CoterieError(.failed, "cannot start \(options.program): \(error)") }
        child.process = process
        process.output?.onBytes = { [weak self, weak child] bytes in
            guard let self, let child else { return }
            child.output.append(contentsOf: bytes)
            guard !child.isReady, let end = child.output.firstIndex(of: 10) else { return }
            child.isReady = true
            writeOut(Array(child.output[...end]))
            wake()
        }
        process.output?.resumeReading()
        children.append(child)
    }

    private func makeNodeDirectory(_ path: String) throws(CoterieError) {
        guard mkdir(path, 0o700) == 0 || errno == EEXIST else {
            throw CoterieError(.failed, "cannot make \(path): \(errnoMessage())")
        }
    }

    private func stopAll() async {
        for child in children where child.end == nil { child.process?.kill(signal: SIGTERM) }
        let deadline = loop.now + ClusterRun.stopPatience
        alarm.start(at: deadline) { [weak self] in self?.wake() }
        while children.contains(where: { $0.end == nil }) && loop.now < deadline { await somethingHappens() }
        for child in children where child.end == nil { child.process?.kill(signal: SIGKILL) }
        while children.contains(where: { $0.end == nil }) { await somethingHappens() }
    }

    private func signalled() {
        signals += 1
        // Impatience: what is left is killed.
        if signals > 1 { for child in children where child.end == nil { child.process?.kill(signal: SIGKILL) } }
        wake()
    }

    // MARK: - Waiting

    private func wake() {
        waiting?.resume()
        waiting = nil
    }

    private func somethingHappens() async {
        await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in waiting = continuation }
    }

    private func checkStart(deadline: MonotonicTime, what: String) throws {
        if signals > 0 { throw CoterieError(.interrupted, "interrupted before the cluster was ready") }
        if let ended = children.first(where: { $0.end != nil }) {
            let why = ended.end.map { "\($0)" } ?? ""
            let line = lastLogLine(ended.node.log)
            throw CoterieError(.failed, "\(ended.node.name) ended with \(why)" + (line.isEmpty ? "" : ": \(line)"))
        }
        if loop.now >= deadline {
            throw CoterieError(.deadline, "the nodes did not \(what) within \(ClusterRun.patience)")
        }
    }

    private func untilAllListen() async throws {
        let deadline = loop.now + ClusterRun.patience
        alarm.start(at: deadline) { [weak self] in self?.wake() }
        while true {
            try checkStart(deadline: deadline, what: "start")
            if children.allSatisfy(\.isReady) { return }
            await somethingHappens()
        }
    }

    /// Asks every node until all see all members alive, all voters, and the same leader.
    private func untilAllAgree() async throws -> JSONValue {
        var clients: [ClusterClient] = []
        for node in plan.nodes {
            guard let address = SocketAddress(text: "unix:" + node.socket) else { continue }
            clients.append(
                ClusterClient(
                    loop: loop, endpoints: [address], key: nil, origin: "the new node", timeout: .seconds(2),
                    givesUpOnNobody: false))
        }
        defer { for client in clients { client.close() } }
        let deadline = loop.now + ClusterRun.patience
        while true {
            try checkStart(deadline: deadline, what: "agree")
            var leaders: Set<String> = []
            var agreeing = 0
            for client in clients {
                guard let status = try? await client.query("status") else { break }
                guard status["members"]?.int("alive") == Int64(plan.nodes.count),
                    status.list("voters").count == plan.expect,
                    let leader = status["leader"]?["id"]?.stringValue
                else { break }
                leaders.insert(leader)
                agreeing += 1
            }
            if agreeing == clients.count, leaders.count == 1, let leader = try? await clients.first?.query("leader"),
                !leader.isNull
            {
                return leader
            }
            await loop.sleep(.milliseconds(50))
        }
    }

    private func lastLogLine(_ path: String) -> String {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return "" }
        defer { close(descriptor) }
        let size = lseek(descriptor, 0, SEEK_END)
        let start = max(0, size - 4_096)
        var bytes = [UInt8](repeating: 0, count: 4_096)
        let n = bytes.withUnsafeMutableBytes { pread(descriptor, $0.baseAddress, 4_096, start) }
        guard n > 0 else { return "" }
        let line = String(decoding: bytes[..<n], as: UTF8.self).split(separator: "\n").last.map(String.init) ?? ""
        return line.hasPrefix("coterie: ") ? String(line.dropFirst(9)) : line
    }
}
