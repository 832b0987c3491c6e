// One pod on this machine: carries out what ``PodLifecycle`` decides, by way of the pod's `coterie-init`.
//
//   coterie-init ──reports──▶ events ──▶ PodLifecycle ──actions──▶ commands ──▶ coterie-init
//   containers' pipes ──▶ logs
import EventLoop
import Glibc
import Model

/// Confined to the loop. The runtime holds it from the start until it is forgotten.
final class PodRun {
    /// How long output of a container that ended is waited for, should something outside the pod hold its pipe.
    static let drainTime = TimeSpan.seconds(2)
    /// How long process 1 may take to end the pod before it is killed.
    static let endTime = TimeSpan.seconds(5)

    let key: String
    /// The users' place; free again when the pod is gone.
    let number: Int
    let directory: String
    let runDirectory: String
    private let loop: EventLoop
    private let options: PodRuntimeOptions
    private let mode: InitMode
    private var lifecycle: PodLifecycle
    private(set) var plan: PodPlan?
    private var cgroup: PodCgroup?
    private var containerCgroups: [Int: ContainerCgroup] = [:]
    private(set) var logs: [String: ContainerLog] = [:]
    private var process: InitProcess?
    private var listener: Listener?
    private var listenerDirectory: Int32 = -1

    private let deadline: LoopTimer
    private let teardown: LoopTimer
    private let usage: LoopTimer
    private var events: [PodLifecycle.Event] = []
    private var isHandling = false
    private var isEnding = false
    private(set) var isGone = false
    private var runs: [UInt32: Run] = [:]
    private var nextRun: UInt32 = 1
    /// The init's number of each container's current run.
    private var current: [Int: UInt32] = [:]
    private(set) var status: PodStatus

    var onStatus: (() -> Void)?
    var onGone: (() -> Void)?
    var onConnection: ((ByteStream) -> Void)?

    private final class Run {
        enum Purpose {
            case container(Int, run: Int)
            case probe(Int, run: Int, ProbeKind)
            case command(ExecSession)
        }

        let purpose: Purpose
        var streams: [ByteStream] = []
        var openStreams = 0
        var code: Int32?
        var killsBefore = 0
        var timer: LoopTimer?
        var timedOut = false

        init(_ purpose: Purpose) { self.purpose = purpose }
    }

    init(
        loop: EventLoop, options: PodRuntimeOptions, mode: InitMode, spec: PodSpec, key: String, number: Int,
        directory: String,
        runDirectory: String
    ) {
        self.loop = loop
        self.options = options
        self.mode = mode
        self.key = key
        self.number = number
        self.directory = directory
        self.runDirectory = runDirectory
        lifecycle = PodLifecycle(spec: spec, backoff: options.backoff)
        deadline = LoopTimer(loop: loop)
        teardown = LoopTimer(loop: loop)
        usage = LoopTimer(loop: loop)
        status = lifecycle.status
        status.sandbox = mode == .none ? "none" : "namespaces"
    }

    // MARK: - Beginning

    func begin(_ planner: PodPlanner, spec: PodSpec, lease: MonotonicTime?) {
        do {
            try prepare(planner, spec)
        } catch {
            return post(.refused(reason: error.reason, message: error.message))
        }
        if let lease { extendLease(lease) }
        guard let plan else { return }
        let supplied = mode == .none ? nil : options.supplied.flatMap(realPath)
        send(.setUp(plan.setup(supplied: supplied)))
    }

    /// Refuses without having begun anything.
    func refuse(_ refusal: PodRefusal) { post(.refused(reason: refusal.reason, message: refusal.message)) }

    private func prepare(_ planner: PodPlanner, _ spec: PodSpec) throws(PodRefusal) {
        let plan = try planner.plan(spec, key: key, number: number, directory: directory, runDirectory: runDirectory)
        self.plan = plan
        do throws(CoterieError) {
            try PodDirectory.make(plan, supplied: options.supplied.flatMap(realPath))
            cgroup = try planner.cgroups?.makePod(key, processLimit: options.processLimit)
            for container in plan.containers {
                logs[container.spec.name] = ContainerLog(
                    directory: plan.runDirectory + "/logs", name: container.spec.name, fileBytes: options.logFileBytes,
                    fileCount: options.logFiles, group: plan.owner?.group)
            }
            try listen(plan)
            let process = try InitProcess(loop: loop, path: options.initPath, mode: mode)
            process.onReport = { [weak self] in self?.handle($0) }
            process.onEnd = { [weak self] in self?.sandboxEnded($0) }
            self.process = process
        } catch {
            throw PodRefusal("SandboxFailed", error.message)
        }
        if !plan.limitedDirectories.isEmpty {
            usage.start(every: options.usageInterval) { [weak self] in self?.checkUsage() }
        }
    }

    /// The pod's door to its cluster. A path too long for a socket is bound through its open directory.
    private func listen(_ plan: PodPlan) throws(CoterieError) {
        let path = plan.runDirectory + "/pod.sock"
        var bound = path
        if path.utf8.count >= 108 {
            listenerDirectory = open(plan.runDirectory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
            guard listenerDirectory >= 0 else {
                throw CoterieError(.failed, "cannot open \(plan.runDirectory): \(errnoText())")
            }
            bound = "/proc/self/fd/\(listenerDirectory)/pod.sock"
        }
        let listener: Listener
        do {
            listener = try Listener(loop: loop, bind: SocketAddress(host: .unix(path: bound), port: 0))
        } catch {
            throw CoterieError(.failed, "cannot listen on \(path): \(error)")
        }
        self.listener = listener
        if let owner = plan.owner { chown(path, uid_t.max, owner.group) }
        chmod(path, 0o660)
        let users = [plan.user, plan.hostSideUser]
        listener.onConnection = { [weak self] stream in
            guard let self, let user = stream.peerUID, users.contains(user), let accept = self.onConnection else {
                return stream.close()
            }
            accept(stream)
        }
    }

    // MARK: - From the runtime

    func stop(grace: TimeSpan?) { post(.stop(grace: grace)) }

    func extendLease(_ until: MonotonicTime?) { send(.lease(until: until)) }

    /// Names of the pod's containers, init containers first.
    var containerNames: [String] { (0..<lifecycle.containerCount).map { lifecycle.name(of: $0) } }

    func exec(_ name: String, _ command: [String], hasInput: Bool) throws(CoterieError) -> ExecSession {
        guard let index = containerNames.firstIndex(of: name), let plan else {
            throw CoterieError(.notFound, "there is no container \(name)")
        }
        guard let target = current[index], runs[target]?.code == nil, case .running = status.containers[index].state
        else {
            throw CoterieError(.conflict, "container \(name) does not run")
        }
        let session = ExecSession()
        let run = Run(.command(session))
        let id = takeRun(run)
        var descriptors: [Int32] = []
        do throws(CoterieError) {
            if hasInput {
                let (read, write) = try makePipe()
                descriptors.append(read)
                session.input = try adopt(write)
                session.input?.onDrain = { [weak session] in session?.onDrain?() }
                session.input?.onClose = { [weak session] _ in session?.input = nil }
            }
            for stream in LogStream.allCases {
                descriptors.append(
                    try output(of: run, id) { [weak session] bytes in
                        if let bytes { session?.onOutput?(stream, bytes) }
                    })
            }
            session.outputs = run.streams
            session.sendSignal = { [weak self] in self?.send(.signal(run: id, number: $0)) }
            let start = CommandStart(
                run: id, target: target, hasInput: hasInput, workingDirectory: plan.containers[index].workingDirectory,
                arguments: command,
                environment: plan.containers[index].environment.filter { !$0.hasPrefix("LISTEN_FD") },
                cgroups: containerCgroups[index]?.processFiles ?? [], outOfMemoryScore: 500)
            let given = descriptors
            descriptors = []
            guard send(.command(start), given) else { throw CoterieError(.tooLarge, "the command is too long") }
        } catch {
            runs[id] = nil
            for descriptor in descriptors { Glibc.close(descriptor) }
            session.outputs = run.streams
            session.finish(.failure(error))
            throw error
        }
        return session
    }

    // MARK: - Events and actions

    private func post(_ event: PodLifecycle.Event) {
        events.append(event)
        guard !isHandling else { return }
        isHandling = true
        var i = 0
        while i < events.count {
            let actions = lifecycle.handle(events[i], now: loop.now)
            i += 1
            for action in actions { perform(action) }
        }
        events = []
        isHandling = false
        var status = lifecycle.status
        status.sandbox = self.status.sandbox
        if status != self.status {
            self.status = status
            onStatus?()
        }
        if let next = lifecycle.nextDeadline, !isGone {
            deadline.start(after: max(.zero, next - loop.now)) { [weak self] in self?.post(.tick) }
        } else {
            deadline.stop()
        }
    }

    private func perform(_ action: PodLifecycle.Action) {
        switch action {
        case .start(let container, let run): start(container, run)
        case .signal(let container, let run, let number):
            guard let id = current[container], case .container(_, run)? = runs[id]?.purpose else { break }
            send(.signal(run: id, number: number))
        case .probe(let container, let run, let kind, let probe): self.probe(container, run, kind, probe)
        case .tearDown: tearDown()
        }
    }

    private func start(_ index: Int, _ runNumber: Int) {
        guard let plan, plan.containers.indices.contains(index) else { return }
        let container = plan.containers[index]
        let run = Run(.container(index, run: runNumber))
        let id = takeRun(run)
        var descriptors: [Int32] = []
        do throws(CoterieError) {
            if containerCgroups[index] == nil, let cgroup {
                containerCgroups[index] = try cgroup.makeContainer(container.spec.name, container.spec.resources)
            }
            run.killsBefore = containerCgroups[index]?.outOfMemoryKills ?? 0
            guard let log = logs[container.spec.name] else { return }
            log.beginRun(now: wallClock())
            for stream in LogStream.allCases {
                descriptors.append(
                    try output(of: run, id) { bytes in
                        if let bytes {
                            log.append(stream, bytes, now: wallClock())
                        } else {
                            log.end(stream, now: wallClock())
                        }
                    })
            }
            current[index] = id
            let start = ContainerStart(
                run: id, hostSide: container.hostSide, name: container.spec.name, image: container.image,
                directory: container.directory,
                workingDirectory: container.workingDirectory, arguments: container.arguments,
                environment: container.environment,
                cgroups: containerCgroups[index]?.processFiles ?? [], outOfMemoryScore: 500, mounts: container.mounts)
            let given = descriptors
            descriptors = []
            guard send(.start(start), given) else {
                throw CoterieError(.tooLarge, "command, environment and mounts are too long")
            }
        } catch {
            runs[id] = nil
            for descriptor in descriptors { Glibc.close(descriptor) }
            close(run)
            post(.startFailed(index, run: runNumber, message: error.message))
        }
    }

    private func probe(_ index: Int, _ runNumber: Int, _ kind: ProbeKind, _ probe: Probe) {
        guard let plan, let target = current[index] else { return }
        let container = plan.containers[index]
        let run = Run(.probe(index, run: runNumber, kind))
        let id = takeRun(run)
        let timeout = max(probe.timeout, .milliseconds(1))
        switch probe.action {
        case .exec(let command):
            let null = open("/dev/null", O_WRONLY | O_CLOEXEC)
            let second = open("/dev/null", O_WRONLY | O_CLOEXEC)
            let start = CommandStart(
                run: id, target: target, hasInput: false, workingDirectory: container.workingDirectory,
                arguments: command,
                environment: container.environment.filter { !$0.hasPrefix("LISTEN_FD") },
                cgroups: containerCgroups[index]?.processFiles ?? [], outOfMemoryScore: 500)
            guard null >= 0, second >= 0, send(.command(start), [null, second]) else {
                runs[id] = nil
                return post(
                    .probed(index, run: runNumber, kind: kind, success: false, message: "the probe could not be sent"))
            }
        case .tcp(let port), .http(_, let port):
            var path: String?
            if case .http(let asked, _) = probe.action { path = asked.isEmpty ? "/" : asked }
            send(
                .probe(
                    ProbeStart(
                        run: id, hostSide: container.hostSide && !container.listeners.contains(port), port: port,
                        timeoutMilliseconds: UInt32(clamping: timeout.milliseconds), path: path)))
        }
        let timer = LoopTimer(loop: loop)
        run.timer = timer
        // A connection's own time-out is told by the child; this one is for commands, and for a child that hangs.
        let limit = if case .exec = probe.action { timeout } else { timeout + .seconds(1) }
        timer.start(after: limit) { [weak self, weak run] in
            guard let self, let run else { return }
            run.timedOut = true
            self.send(.signal(run: id, number: SIGKILL))
        }
    }

    // MARK: - Reports

    private func handle(_ report: InitReport) {
        switch report {
        case .ready: post(.begin)
        case .failed(let why): post(.refused(reason: "SandboxFailed", message: why))
        case .started(let id, _):
            guard case .container(let index, let run)? = runs[id]?.purpose else { break }
            post(.started(index, run: run))
        case .error(let id, let why):
            guard let run = runs.removeValue(forKey: id) else { break }
            close(run)
            switch run.purpose {
            case .container(let index, let number): post(.startFailed(index, run: number, message: why))
            case .probe(let index, let number, let kind):
                post(.probed(index, run: number, kind: kind, success: false, message: why))
            case .command(let session): session.finish(.failure(CoterieError(.failed, why)))
            }
        case .exited(let id, let code):
            guard let run = runs[id] else { break }
            run.code = code
            run.timer?.close()
            run.timer = nil
            if run.openStreams == 0 { return finish(id, run) }
            let timer = LoopTimer(loop: loop)
            run.timer = timer
            timer.start(after: PodRun.drainTime) { [weak self, weak run] in
                guard let self, let run else { return }
                self.close(run)
                self.finish(id, run)
            }
        }
    }

    /// It ended and all it wrote was taken.
    private func finish(_ id: UInt32, _ run: Run) {
        guard let code = run.code, runs[id] != nil else { return }
        runs[id] = nil
        close(run)
        switch run.purpose {
        case .container(let index, let number):
            let killed = (containerCgroups[index]?.outOfMemoryKills ?? 0) > run.killsBefore
            post(.exited(index, run: number, code: code, reason: killed && code != 0 ? "OOMKilled" : nil))
        case .probe(let index, let number, let kind):
            let message = run.timedOut ? "timed out" : (code == 0 ? "" : "exit code \(code)")
            post(.probed(index, run: number, kind: kind, success: code == 0 && !run.timedOut, message: message))
        case .command(let session): session.finish(.success(code))
        }
    }

    private func close(_ run: Run) {
        run.timer?.close()
        run.timer = nil
        for stream in run.streams { stream.close() }
        run.streams = []
        run.openStreams = 0
        if case .container(let index, _) = run.purpose, let log = logs[lifecycle.name(of: index)] {
            for stream in LogStream.allCases { log.end(stream, now: wallClock()) }
        }
    }

    // MARK: - Ending

    private func tearDown() {
        guard !isEnding else { return }
        isEnding = true
        usage.close()
        listener?.close()
        listener = nil
        guard let process else { return clearAway(attempts: 0) }
        send(.shutDown)
        teardown.start(after: PodRun.endTime) { [weak process] in process?.kill() }
    }

    private func sandboxEnded(_ how: String) {
        process = nil
        for (id, run) in runs.sorted(by: { $0.key < $1.key }) {
            runs[id] = nil
            close(run)
            if case .command(let session) = run.purpose {
                session.finish(.failure(CoterieError(.unavailable, "the pod has ended")))
            }
        }
        if !isEnding { post(.sandboxLost(message: "the pod's first process \(how)")) }
        clearAway(attempts: 0)
    }

    /// Processes that were killed leave their groups a little later.
    private func clearAway(attempts: Int) {
        guard process == nil, isEnding, !isGone else { return }
        if let cgroup, !cgroup.remove(), attempts < 250 {
            teardown.start(after: .milliseconds(Int64(min(attempts + 1, 20)))) { [weak self] in
                self?.clearAway(attempts: attempts + 1)
            }
            return
        }
        isGone = true
        deadline.close()
        teardown.close()
        for log in logs.values { log.close() }
        if listenerDirectory >= 0 { Glibc.close(listenerDirectory) }
        listenerDirectory = -1
        let (directory, run) = (directory, runDirectory)
        loop.blocking {
            PodDirectory.removeAllButLogs(directory, run)
        } then: { [self] _ in
            onGone?()
        }
    }

    private func checkUsage() {
        guard let plan, !isEnding else { return }
        let limited = plan.limitedDirectories
        loop.blocking {
            limited.map { diskUsage($0.path) }
        } then: { [weak self] used in
            guard let self, !self.isEnding else { return }
            for (volume, bytes) in zip(limited, used) where bytes > volume.limit {
                let name = volume.path.split(separator: "/").last ?? ""
                self.usage.stop()
                return self.post(
                    .evict(
                        reason: "Evicted",
                        message: "emptyDir \(name) holds \(bytes) bytes, its sizeLimit is \(volume.limit)"))
            }
        }
    }

    // MARK: - Descriptors

    private func takeRun(_ run: Run) -> UInt32 {
        let id = nextRun
        nextRun &+= 1
        runs[id] = run
        return id
    }

    /// A pipe from a process in the pod: `take` gets its bytes and, once, nil at its end. The writing end is returned.
    private func output(of run: Run, _ id: UInt32, _ take: @escaping (UnsafeRawBufferPointer?) -> Void)
        throws(CoterieError) -> Int32
    {
        let (read, write) = try makePipe()
        let stream: ByteStream
        do throws(CoterieError) { stream = try adopt(read) } catch {
            Glibc.close(write)
            throw error
        }
        run.streams.append(stream)
        run.openStreams += 1
        var isOpen = true
        let ended = { [weak self, weak run] in
            guard isOpen else { return }
            isOpen = false
            take(nil)
            guard let self, let run else { return }
            run.openStreams -= 1
            if run.openStreams == 0, run.code != nil { self.finish(id, run) }
        }
        stream.onBytes = { take($0) }
        stream.onEnd = ended
        stream.onClose = { _ in ended() }
        stream.resumeReading()
        return write
    }

    private func adopt(_ descriptor: Int32) throws(CoterieError) -> ByteStream {
        do throws(UVError) { return try ByteStream.adopt(loop: loop, descriptor: descriptor) } catch {
            // It is closed on failure as well.
            throw CoterieError(.failed, "cannot use a pipe: \(error)")
        }
    }

    /// False if the message is too long. The descriptors are closed here in any case.
    @discardableResult
    private func send(_ command: InitCommand, _ descriptors: [Int32] = []) -> Bool {
        let bytes = command.encoded(descriptors: descriptors.count)
        guard let process, bytes.count - 4 <= InitCommand.limit else {
            for descriptor in descriptors { Glibc.close(descriptor) }
            return process == nil
        }
        process.send(bytes, descriptors)
        return true
    }
}
