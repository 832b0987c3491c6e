// `coterie run --pod FILE`: one pod on this machine, without a cluster.
import ArgumentParser
import EventLoop
import Glibc
import Manifests
import Model
import Node
import Pods

struct RunCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "run", abstract: "Run one pod on this machine, without a cluster.",
        discussion: """
            The logs of its containers go to the terminal. Exits with the code of the pod's first container; 125 for Coterie's own \
            failures. Ctrl-C stops the pod within its grace period.

            coterie run --pod job.yaml
            coterie run --pod job.yaml --sandbox none
            """)
    @Option(help: "A manifest with one Pod; - is standard input.") var pod: String
    @Option(help: "How it is held: auto, namespaces or none.") var sandbox: String?

    func run() throws {
        let objects = try ManifestFiles.parse([pod])
        let pods = objects.compactMap { object -> PodSpec? in if case .pod(let spec) = object { spec } else { nil } }
        guard pods.count == 1, let spec = pods.first else {
            throw CoterieError(
                .badInput, "\(pod) holds \(pods.count) pods; run takes one",
                hint: "patterns are for a cluster: coterie apply")
        }
        var mode = SandboxMode.auto
        if let sandbox {
            guard let known = SandboxMode(rawValue: sandbox) else {
                throw CoterieError(.badInput, "--sandbox \(sandbox): unknown sandbox", hint: "auto, namespaces or none")
            }
            mode = known
        }
        let settled = mode
        do {
            let directory = try makeTemporaryDirectory()
            defer { removeDirectoryTree(directory) }
            try Invocation.runLoop { loop in
                let code = try await LocalPod(loop: loop, directory: directory, spec: spec, sandbox: settled).untilEnd()
                if code != 0 { throw Invocation.Exit(code: code) }
            }
        } catch let error as CoterieError where error.code != .badInput {
            Invocation.fail(error, code: Model.ExitCode.ownFailure.rawValue)
        }
    }
}

/// One pod in a runtime of its own. Confined to its loop.
private final class LocalPod {
    private static let key = "pod"

    private let loop: EventLoop
    private let spec: PodSpec
    private let runtime: PodRuntime
    private var readers: [String: LogReader] = [:]
    private var openLogs = 0
    private var isGone = false
    private var signals = 0
    private var waiting: CheckedContinuation<Void, Never>?

    init(loop: EventLoop, directory: String, spec: PodSpec, sandbox: SandboxMode) throws(CoterieError) {
        self.loop = loop
        self.spec = spec
        let programs = AgentOptions.Programs.found
        runtime = try PodRuntime(
            loop: loop,
            options: PodRuntimeOptions(
                podsDirectory: directory + "/pods", imageDirectory: DefaultPaths.dataDirectory + "/images",
                initPath: programs.initProcess,
                supplied: programs.coterie, sandbox: sandbox, nodeName: hostName(),
                maskedPaths: [DefaultPaths.dataDirectory]))
    }

    func untilEnd() async throws -> Int32 {
        var watchers: [SignalWatcher] = []
        for number in [SIGINT, SIGTERM] {
            watchers.append(try SignalWatcher(loop: loop, signal: number) { [weak self] in self?.signalled() })
        }
        defer { for watcher in watchers { watcher.close() } }
        runtime.onStatus = { [weak self] _, status in self?.openNewLogs(status) }
        runtime.onGone = { [weak self] _ in
            self?.isGone = true
            self?.wake()
        }
        try runtime.start(spec, key: LocalPod.key)
        while !isGone || openLogs > 0 {
            await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in waiting = continuation }
        }
        let status = runtime.status(key: LocalPod.key)
        await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
            runtime.shutdown { continuation.resume() }
        }
        return try result(status)
    }

    /// The first container's code; what never ran is our failure.
    private func result(_ status: PodStatus?) throws(CoterieError) -> Int32 {
        guard let status else { throw CoterieError(.failed, "the pod has no status") }
        let main = status.containers.first { $0.name == spec.containers.first?.name && !$0.isInit }
        if case .terminated(let code, _)? = main?.state { return code }
        let failed = status.containers.first {
            if case .terminated(let code, _) = $0.state { code != 0 } else { false }
        }
        if case .terminated(let code, _)? = failed?.state { return code }
        let why = [status.reason, status.message].filter { !$0.isEmpty }.joined(separator: ": ")
        if signals > 0 { throw CoterieError(.interrupted, "interrupted before the pod ran") }
        throw CoterieError(.failed, "the pod \(spec.name) did not run" + (why.isEmpty ? "" : ": \(why)"))
    }

    private func openNewLogs(_ status: PodStatus) {
        for container in status.containers where readers[container.name] == nil {
            if case .waiting = container.state { continue }
            let prints = (LinePrinter(prefix: container.name), LinePrinter(prefix: container.name))
            let reader = try? runtime.logs(
                key: LocalPod.key, container: container.name, options: LogOptions(follow: true),
                onLine: { line in
                    (line.stream == .stdout ? prints.0 : prints.1).show(
                        text: line.text, isPartial: line.isPartial, to: line.stream == .stdout ? 1 : 2)
                },
                onEnd: { [weak self] _ in
                    self?.openLogs -= 1
                    self?.wake()
                })
            guard let reader else { continue }
            readers[container.name] = reader
            openLogs += 1
        }
    }

    private func signalled() {
        signals += 1
        runtime.stop(key: LocalPod.key, grace: signals > 1 ? .zero : nil)
    }

    private func wake() {
        waiting?.resume()
        waiting = nil
    }
}
