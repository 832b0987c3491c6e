// Runs pods on this machine: one `coterie-init` each, a directory each, limits where the machine gives them. It decides nothing
// about which pods run; a node, or `coterie run`, tells it.
import EventLoop
import Glibc
import Model

/// All pods of one node. Confined to its loop. Call-backs come from the loop, never from inside a call.
public final class PodRuntime {
    private let loop: EventLoop
    private let options: PodRuntimeOptions
    private let mode: InitMode
    private let planner: PodPlanner
    private let cgroups: Cgroups?
    private let podsDirectory: String
    /// Where `run` directories of plain processes lie, which must be reachable by their users.
    private let openDirectory: String?
    private var pods: [String: PodRun] = [:]
    /// Keys in the order of their starts.
    private var order: [String] = []
    private var changed: [String] = []
    private var isReporting = false
    private var forgetWhenGone: Set<String> = []
    private var lease: MonotonicTime?
    private var afterShutdown: [() -> Void] = []
    private var isShuttingDown = false
    private let cleaner: LoopTimer

    /// What ``probeSandbox(loop:options:then:)`` found, for those who ask the runtime; its owner sets it.
    public var sandboxReport: SandboxReport?
    /// A pod's status changed; at most once for each pod and turn of the loop, the newest one.
    public var onStatus: ((String, PodStatus) -> Void)?
    /// All processes of the pod are gone, and its directory but for the logs. Its last status came before.
    public var onGone: ((String) -> Void)?
    /// A process of the pod connected to `/run/coterie/pod.sock`. The receiver owns the stream; without one it is closed.
    public var onPodConnection: ((String, ByteStream) -> Void)?

    /// Removes what an earlier run left in the directory and in cgroups. Refused where the sandbox asked for is not built, or
    /// the directory can not be used.
    public init(loop: EventLoop, options: PodRuntimeOptions) throws(CoterieError) {
        self.loop = loop
        switch options.sandbox {
        case .auto, .namespaces: mode = geteuid() == 0 ? .namespaces : .userNamespaces
        case .none: mode = .none
        case .oci:
            throw CoterieError(.badInput, "the sandbox oci is not built yet", hint: "use --sandbox namespaces")
        }
        guard access(options.initPath, X_OK) == 0 else {
            throw CoterieError(
                .failed, "cannot run \(options.initPath): \(errnoText())",
                hint: "coterie-init is installed beside coterie")
        }
        if mkdir(options.podsDirectory, 0o700) != 0 && errno != EEXIST {
            throw CoterieError(.failed, "cannot make the directory \(options.podsDirectory): \(errnoText())")
        }
        guard let directory = realPath(options.podsDirectory) else {
            throw CoterieError(.failed, "cannot use the directory \(options.podsDirectory): \(errnoText())")
        }
        podsDirectory = directory
        let name = "coterie-" + hexadecimal(stableHash(directory))
        var masks = options.maskedPaths.compactMap(realPath)
        if !masks.contains(where: { isBelow(directory, $0) }) { masks.append(directory) }
        let hasLimits = geteuid() == 0
        cgroups = hasLimits ? Cgroups(name: name) : nil
        var opened: String?
        if mode == .none && geteuid() == 0 {
            chmod(directory, 0o711)
            if !PodDirectory.isReachableByAll(directory) { opened = try PodRuntime.makeOpenDirectory("/tmp/" + name) }
        }
        openDirectory = opened
        self.options = options
        planner = PodPlanner(options: options, mode: mode, cgroups: cgroups, masks: masks)
        cleaner = LoopTimer(loop: loop)
        cleanUp()
    }

    /// What pods run in.
    public var sandbox: SandboxMode { mode == .none ? .none : .namespaces }

    // MARK: - Pods

    /// Starts a pod; `key` names this run of it on this node. A pod that can not run here is Failed with the reason, and then
    /// gone, like one that ran: only a bad or used key and a runtime that shuts down are errors.
    public func start(_ spec: PodSpec, key: String) throws(CoterieError) {
        guard isPlainFileName(key) else { throw CoterieError(.badInput, "\(key) can not be the key of a pod") }
        guard pods[key] == nil else { throw CoterieError(.conflict, "the pod \(key) is here already") }
        guard !isShuttingDown else { throw CoterieError(.unavailable, "the node is shutting down") }
        let used = Set(pods.values.lazy.filter { !$0.isGone }.map(\.number))
        var number = 0
        while used.contains(number) { number += 1 }
        let pod = PodRun(
            loop: loop, options: options, mode: mode, spec: spec, key: key, number: number,
            directory: podsDirectory + "/" + key,
            runDirectory: (openDirectory ?? podsDirectory) + "/" + key + "/run")
        pod.onStatus = { [weak self] in self?.statusChanged(key) }
        pod.onGone = { [weak self] in self?.gone(key) }
        pod.onConnection = { [weak self] stream in
            if let accept = self?.onPodConnection { accept(key, stream) } else { stream.close() }
        }
        pods[key] = pod
        order.append(key)
        statusChanged(key)
        guard used.count < options.podLimit else {
            return pod.refuse(PodRefusal("OutOfPods", "this node runs \(used.count) pods already, its limit"))
        }
        pod.begin(planner, spec: spec, lease: lease)
    }

    /// Ends a pod, as Kubernetes does: SIGTERM, SIGKILL after the grace period (nil: the specification's), sidecars last. A
    /// second call can only shorten the time.
    public func stop(key: String, grace: TimeSpan? = nil) { pods[key]?.stop(grace: grace) }

    /// The pod's newest status; nil for an unknown key.
    public func status(key: String) -> PodStatus? { pods[key]?.status }

    /// Keys of all pods that are not forgotten, in the order of their starts.
    public var keys: [String] { order }

    /// Whether all processes of the pod are gone; nil for an unknown key.
    public func isGone(key: String) -> Bool? { pods[key]?.isGone }

    /// Removes the logs and the memory of a pod that is gone. One that is not is killed first.
    public func forget(key: String) {
        guard let pod = pods[key] else { return }
        guard pod.isGone else {
            forgetWhenGone.insert(key)
            return pod.stop(grace: .zero)
        }
        drop(pod)
    }

    // MARK: - Logs and commands

    /// Reads a container's log: its current run's, or with ``LogOptions/previous`` the one before. Without a container the pod
    /// must have only one.
    @discardableResult
    public func logs(
        key: String, container: String?, options: LogOptions = LogOptions(), onLine: @escaping (LogLine) -> Void,
        onEnd: @escaping (CoterieError?) -> Void
    ) throws(CoterieError) -> LogReader {
        let pod = try find(key)
        let name = try choose(container, pod)
        guard let log = pod.logs[name] else { throw CoterieError(.notFound, "container \(name) of \(key) has no log") }
        return try LogReader(loop: loop, log: log, options: options, onLine: onLine, onEnd: onEnd)
    }

    /// Runs a command in a running container, with its user, mounts, network and limits. Set the session's call-backs at once.
    public func exec(key: String, container: String?, command: [String], hasInput: Bool = false) throws(CoterieError)
        -> ExecSession
    {
        guard !command.isEmpty else { throw CoterieError(.badInput, "a command is needed") }
        guard !command.contains(where: { $0.utf8.contains(0) }) else {
            throw CoterieError(.badInput, "the command holds a NUL")
        }
        let pod = try find(key)
        return try pod.exec(try choose(container, pod), command, hasInput: hasInput)
    }

    private func find(_ key: String) throws(CoterieError) -> PodRun {
        guard let pod = pods[key] else { throw CoterieError(.notFound, "there is no pod \(key) on this node") }
        return pod
    }

    private func choose(_ container: String?, _ pod: PodRun) throws(CoterieError) -> String {
        let names = pod.containerNames
        if let container {
            guard names.contains(container) else {
                throw CoterieError(
                    .notFound, "there is no container \(container)",
                    hint: "the pod has: \(names.joined(separator: ", "))")
            }
            return container
        }
        guard names.count == 1, let only = names.first else {
            throw CoterieError(
                .badInput, "the pod has several containers", hint: "choose one of: \(names.joined(separator: ", "))")
        }
        return only
    }

    // MARK: - The node

    /// All pods end by themselves at this moment (of the loop's clock) unless it is moved on; nil is no end. A node calls it as
    /// long as it belongs to its cluster, so that its pods die with that, even should the agent hang.
    public func setLease(until: MonotonicTime?) {
        lease = until
        for key in order { pods[key]?.extendLease(until) }
    }

    /// Stops all pods, each within its grace period, and calls when all are gone.
    public func shutdown(then: @escaping () -> Void) {
        afterShutdown.append(then)
        isShuttingDown = true
        for key in order where pods[key]?.isGone == false { pods[key]?.stop(grace: nil) }
        finishShutdown()
    }

    private func finishShutdown() {
        guard isShuttingDown, pods.values.allSatisfy(\.isGone), !afterShutdown.isEmpty else { return }
        cgroups?.removeAll()
        cleaner.close()
        let done = afterShutdown
        afterShutdown = []
        // Nothing stays in a directory that all users share.
        let open = openDirectory
        loop.blocking {
            if let open { removeTree(open) }
        } then: { _ in
            for then in done { then() }
        }
    }

    // MARK: - Reporting

    private func statusChanged(_ key: String) {
        if !changed.contains(key) { changed.append(key) }
        guard !isReporting else { return }
        isReporting = true
        loop.beforeWaiting { [weak self] in self?.report() }
    }

    private func report() {
        isReporting = false
        let keys = changed
        changed = []
        for key in keys { if let pod = pods[key] { onStatus?(key, pod.status) } }
    }

    private func gone(_ key: String) {
        report()
        onGone?(key)
        if forgetWhenGone.remove(key) != nil, let pod = pods[key] { drop(pod) }
        finishShutdown()
    }

    private func drop(_ pod: PodRun) {
        pods[pod.key] = nil
        order.removeAll { $0 == pod.key }
        changed.removeAll { $0 == pod.key }
        // Out of the way at once, so that the key may be used again; the files themselves go in the background.
        discard([podsDirectory + "/" + pod.key] + (openDirectory.map { [$0 + "/" + pod.key] } ?? []))
    }

    // MARK: - Cleaning up

    private var discarded = 0

    private func discard(_ paths: [String]) {
        var moved: [String] = []
        for path in paths {
            discarded += 1
            let slash = path.lastIndex(of: "/") ?? path.startIndex
            let place = path[..<slash] + "/.gone-\(getpid())-\(discarded)"
            if rename(path, String(place)) == 0 { moved.append(String(place)) }
        }
        guard !moved.isEmpty else { return }
        let gone = moved
        loop.blocking {
            for path in gone { removeTree(path) }
        } then: { _ in
        }
    }

    /// The directory of this process's trial pod, which may run while a runtime begins.
    static let trialName = ".trial-\(getpid())"

    private func cleanUp() {
        discard(entries(of: podsDirectory).filter { $0 != PodRuntime.trialName }.map { podsDirectory + "/" + $0 })
        if let openDirectory { discard(entries(of: openDirectory).map { openDirectory + "/" + $0 }) }
        cleanGroups(attempts: 0)
    }

    private func cleanGroups(attempts: Int) {
        guard let cgroups, pods.isEmpty, !cgroups.cleanUp(), attempts < 100 else { return }
        cleaner.start(after: .milliseconds(20)) { [weak self] in self?.cleanGroups(attempts: attempts + 1) }
    }

    /// Ours alone to write, open to walk through. What another user has put there is refused.
    private static func makeOpenDirectory(_ path: String) throws(CoterieError) -> String {
        _ = mkdir(path, 0o711)
        var info = stat()
        guard lstat(path, &info) == 0, info.st_mode & S_IFMT == S_IFDIR, info.st_uid == geteuid(),
            info.st_mode & 0o022 == 0
        else {
            throw CoterieError(.failed, "\(path) is not a directory of this user alone", hint: "remove it")
        }
        chmod(path, 0o711)
        return path
    }
}
