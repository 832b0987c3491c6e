// What the cluster wants of this node's pods, carried out by the runtime: assignments in, reports out.
import EventLoop
import Model
import NodeCore
import Pods
import Scheduling
import Wire

final class PodAgent {
    private let loop: EventLoop
    private let id: NodeID
    private let options: PodRuntimeOptions
    private var runtime: PodRuntime?
    /// Why no pod runs here, if so.
    private var refusal: CoterieError?
    private var isProbed = false
    private var assignedRecords: [PodRecord] = []
    private var runs: [String: Run] = [:]
    private var reports: [PodReport] = []
    private var reportScheduled = false
    private var stopping = false

    var onReports: (([PodReport]) -> Void)?
    var onConnection: ((String, ByteStream) -> Void)?
    var onLog: ((LogLevel, String) -> Void)?

    /// One pod run of ours.
    private struct Run {
        var name: String
        var uid: UInt64
        var generation: UInt64
        var status: PodStatus
        var isGone = false
        var wasAskedToStop = false
    }

    init(loop: EventLoop, options: AgentOptions, directory: DataDirectory, address: SocketAddress) throws(CoterieError)
    {
        self.loop = loop
        id = directory.id
        self.options = PodRuntimeOptions(
            podsDirectory: directory.podsPath, imageDirectory: directory.imagesPath,
            initPath: options.programs.initProcess,
            supplied: options.programs.coterie, sandbox: options.sandbox, nodeName: options.name,
            nodeAddress: address.hostText,
            maskedPaths: PodOrigin.secrets(options, directory.path))
        do throws(CoterieError) {
            let runtime = try PodRuntime(loop: loop, options: self.options)
            self.runtime = runtime
        } catch {
            // A node without pods is still a member, a voter and a queue.
            refusal = error
        }
    }

    /// Finds out what the kernel gives; pods wait until that is known.
    func start() {
        if let refusal {
            onLog?(.warning, "no pods on this node: \(refusal)")
            isProbed = true
            return
        }
        runtime?.onStatus = { [weak self] key, status in self?.statusChanged(key, status) }
        runtime?.onGone = { [weak self] key in self?.gone(key) }
        runtime?.onPodConnection = { [weak self] key, stream in
            guard let run = self?.runs[key] else { return stream.close() }
            self?.onConnection?(run.name, stream)
        }
        PodRuntime.probeSandbox(loop: loop, options: options) { [weak self] report in
            guard let self else { return }
            self.isProbed = true
            self.runtime?.sandboxReport = report
            self.refusal = report.refusal
            if let refusal = report.refusal { self.onLog?(.warning, "no pods on this node: \(refusal)") }
            self.reconcile()
        }
    }

    // MARK: - Assignments

    private static func key(_ record: PodRecord) -> String { "\(record.name).\(record.uid).\(record.generation)" }

    /// All pods that this node shall run, after a change.
    func assigned(_ records: [PodRecord]) {
        assignedRecords = records
        reconcile()
    }

    private func reconcile() {
        guard isProbed, !stopping else { return }
        var wanted: Set<String> = []
        for record in assignedRecords {
            let key = PodAgent.key(record)
            wanted.insert(key)
            if record.shouldStop {
                stop(key, record)
            } else if runs[key] == nil, !record.status.phase.isTerminal || record.statusNode != id {
                start(key, record)
            }
        }
        for (key, run) in runs where !wanted.contains(key) {
            if run.isGone {
                runs[key] = nil
                runtime?.forget(key: key)
            } else if !run.wasAskedToStop {
                // It was given to another node, or forgotten: nobody waits for its last words.
                runs[key]?.wasAskedToStop = true
                runtime?.stop(key: key, grace: nil)
            }
        }
    }

    private func start(_ key: String, _ record: PodRecord) {
        var run = Run(name: record.name, uid: record.uid, generation: record.generation, status: PodStatus())
        // A pod that must not run twice did run here, before this agent was started.
        if record.statusNode == id, record.status.phase == .running, record.owner == nil,
            record.spec.restartPolicy == .never
        {
            run.status = PodStatus(
                phase: .failed, reason: "NodeRestarted", message: "the node's agent was started anew")
            run.isGone = true
            runs[key] = run
            return report(key)
        }
        guard refusal == nil, let runtime else {
            run.status = PodStatus(
                phase: .failed, reason: "SandboxRefused",
                message: refusal.map(\.description) ?? "this node runs no pods")
            run.isGone = true
            runs[key] = run
            return report(key)
        }
        runs[key] = run
        do throws(CoterieError) {
            try runtime.start(record.spec, key: key)
        } catch {
            run.status = PodStatus(phase: .failed, reason: "StartRefused", message: error.description)
            run.isGone = true
            runs[key] = run
            report(key)
        }
    }

    private func stop(_ key: String, _ record: PodRecord) {
        guard let run = runs[key] else {
            // Never started here, or long gone.
            runs[key] = Run(
                name: record.name, uid: record.uid, generation: record.generation, status: record.status, isGone: true,
                wasAskedToStop: true)
            return report(key)
        }
        if run.isGone {
            runs[key]?.wasAskedToStop = true
            return report(key)
        }
        guard !run.wasAskedToStop else { return }
        runs[key]?.wasAskedToStop = true
        runtime?.stop(key: key, grace: nil)
    }

    // MARK: - Reports

    private func statusChanged(_ key: String, _ status: PodStatus) {
        guard runs[key] != nil else { return }
        runs[key]?.status = status
        report(key)
    }

    private func gone(_ key: String) {
        guard runs[key] != nil else { return }
        runs[key]?.isGone = true
        if let status = runtime?.status(key: key) { runs[key]?.status = status }
        report(key)
        reconcile()
    }

    /// Coalesced: one command of the log a turn of the loop, the newest status of each pod.
    private func report(_ key: String) {
        guard let run = runs[key] else { return }
        let item = PodReport(
            name: run.name, uid: run.uid, generation: run.generation, node: id, status: run.status,
            gone: run.isGone && run.wasAskedToStop)
        reports.removeAll { $0.name == item.name && $0.uid == item.uid && $0.generation == item.generation }
        reports.append(item)
        guard !reportScheduled else { return }
        reportScheduled = true
        loop.beforeWaiting { [weak self] in
            guard let self else { return }
            self.reportScheduled = false
            let reports = self.reports
            self.reports = []
            self.onReports?(reports)
        }
    }

    // MARK: - Logs

    /// Reads the logs of a pod of this node; the result stops it.
    func logs(_ request: LogRequest) -> (() -> Void)? {
        guard let runtime,
            let key = runs.filter({ $0.value.name == request.pod }).max(by: {
                $0.value.generation < $1.value.generation
            })?.key
        else {
            request.onEnd(CoterieError(.notFound, "the pod \(request.pod) has no logs here"))
            return nil
        }
        let options = LogOptions(
            tail: request.tail, since: request.since, previous: request.previous, follow: request.follow)
        do throws(CoterieError) {
            let reader = try runtime.logs(
                key: key, container: request.container, options: options,
                onLine: { line in
                    request.onLine([
                        "time": .string(line.time), "stream": .string(line.stream.rawValue),
                        "text": .string(String(decoding: line.text, as: UTF8.self)), "partial": .bool(line.isPartial),
                    ])
                }, onEnd: { request.onEnd($0) })
            return { reader.cancel() }
        } catch {
            request.onEnd(error)
            return nil
        }
    }

    func shutdown(then: @escaping () -> Void) {
        stopping = true
        guard let runtime else { return then() }
        runtime.shutdown(then: then)
    }
}
