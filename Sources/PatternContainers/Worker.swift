// The worker of a work queue (the worker container of the patterns paper, and `coterie work`): takes items, runs a command
// for each, keeps the lease alive while it runs, and tells the queue what became of it.
//
//     reserve ─▶ WORK_ITEM_FILE ─▶ command ─ 0 ─────────────────────────▶ delete
//        ▲                           │      ├ 64–74 76–78 126 127 ────────▶ bury
//        └───────── free place ◀─────┘      └ 75, anything else, signal ──▶ release, later and later
import EventLoop
import Glibc
import Model
import Queues

public struct WorkerOptions: Sendable {
    public var tube: String
    /// Items at a time; 1 to 1024.
    public var concurrency = 1
    /// One word is a line for `/bin/sh -c`.
    public var command: [String]
    /// Where scratch directories are made: `$TMPDIR`, else `/tmp`.
    public var scratch: String = environmentValue("TMPDIR") ?? "/tmp"
    public var node: String = ContainerIdentity.current.node ?? ContainerIdentity.current.name
    /// Delay of an item after its first failure; doubled at each further one, up to `longestDelay`.
    public var firstDelay: TimeSpan = .seconds(1)
    public var longestDelay: TimeSpan = .seconds(300)
    /// How long running commands may go on when the worker is to stop; after that they are ended and their items released.
    public var grace: TimeSpan = .seconds(20)
    /// How long one reserve waits.
    public var wait: TimeSpan = .seconds(20)

    public init(tube: String, command: [String]) {
        self.tube = tube
        self.command = command
    }

    /// `--tube T [--concurrency N] [--backoff D] [--grace D] -- COMMAND…`; with `tubeIsOperand` the tube comes without its flag.
    public init(arguments: [String], verb: String = "worker", tubeIsOperand: Bool = false) throws(CoterieError) {
        let usage = "coterie \(verb) \(tubeIsOperand ? "TUBE" : "--tube TUBE") [--concurrency N] -- COMMAND…"
        var flags = try FlagReader(verb, arguments)
        var tube = tubeIsOperand ? nil : try flags.value("--tube")
        let concurrency = try flags.number("--concurrency", in: 1...1_024) ?? 1
        let backOff = try flags.duration("--backoff")
        let grace = try flags.duration("--grace")
        if tubeIsOperand {
            let words = flags.takeOperands()
            guard words.count == 1 else { throw CoterieError(.badInput, "\(verb): one TUBE is needed", hint: usage) }
            tube = words[0]
        }
        try flags.finish()
        guard let tube else { throw CoterieError(.badInput, "\(verb): --tube TUBE is needed", hint: usage) }
        guard QueueLimits.isValidTube(tube) else {
            throw CoterieError(
                .badInput, "\(verb): \(tube) is no tube's name", hint: "1 to 200 of A-Z a-z 0-9 - + / ; . $ _ ( )")
        }
        guard !flags.command.isEmpty else {
            throw CoterieError(.badInput, "\(verb): a command is needed after --", hint: usage)
        }
        self.init(tube: tube, command: flags.command)
        self.concurrency = concurrency
        if let backOff { firstDelay = backOff }
        if let grace { self.grace = grace }
    }

    /// What is done with an item whose command ended so.
    enum Verdict: Equatable { case delete, bury, release }

    static func verdict(_ code: Int32) -> Verdict {
        switch code {
        case 0: .delete
        case 64...74, 76...78, 126, 127: .bury
        default: .release
        }
    }

    /// Delay of an item that has been given so many times.
    func delay(reserves: UInt32) -> TimeSpan {
        var delay = firstDelay
        for _ in 1..<max(min(Int(reserves), 32), 1) where delay < longestDelay { delay = delay * 2 }
        return min(delay, longestDelay)
    }
}

public final class Worker: SuppliedContainer {
    private let loop: EventLoop
    private let options: WorkerOptions
    private let service: any QueueService
    private let report: Report
    private var runs: [UInt64: Run] = [:]
    private let holder: UInt64
    private let timer: LoopTimer
    private let graceTimer: LoopTimer
    private var backOff = BackOff(first: .milliseconds(100), longest: .seconds(10))
    private var generator: SeededGenerator
    private var isAsking = false
    private var saidUnreachable = false
    private var isStopping = false
    private var isEnding = false
    private var stopping: [() -> Void] = []

    public var onExit: ((Int32) -> Void)?
    /// Items whose fate the queue knows, by what was done.
    public private(set) var deleted: UInt64 = 0
    public private(set) var released: UInt64 = 0
    public private(set) var buried: UInt64 = 0

    public init(
        loop: EventLoop, options: WorkerOptions, service: any QueueService,
        report: @escaping Report = reportToStandardError
    ) {
        self.loop = loop
        self.options = options
        self.service = service
        self.report = report
        var system = SystemRandomNumberGenerator()
        generator = SeededGenerator(seed: system.next())
        holder = system.next() | 1
        timer = LoopTimer(loop: loop)
        graceTimer = LoopTimer(loop: loop)
    }

    public func start() throws(CoterieError) {
        guard access(options.scratch, W_OK) == 0 else {
            throw CoterieError(
                .failed, "cannot write to \(options.scratch): \(String(cString: strerror(errno)))", hint: "set TMPDIR")
        }
        reserve()
    }

    // MARK: - Taking items

    private func reserve() {
        let free = options.concurrency - runs.count
        guard !isAsking, !isStopping, free > 0 else { return }
        isAsking = true
        let asked = loop.now
        service.queue(.reserve(tubes: [options.tube], holder: holder, count: free), wait: options.wait) {
            [weak self] result in
            guard let self else { return }
            isAsking = false
            reserved(result, asked: asked)
        }
    }

    private func reserved(_ result: Result<QueueResult, CoterieError>, asked: MonotonicTime) {
        switch result {
        case .success(.reserved(let jobs)):
            if saidUnreachable { report("worker: the cluster answers again") }
            saidUnreachable = false
            backOff.reset()
            for job in jobs {
                let run = Run(self, job)
                runs[job.id] = run
                if isStopping { run.giveBack() } else { run.start() }
            }
            // A cluster that does not wait is not asked without pause.
            if jobs.isEmpty && loop.now - asked < .milliseconds(100) {
                timer.start(after: .milliseconds(200)) { [weak self] in self?.reserve() }
            } else {
                reserve()
            }
        case .success(let other): failed("\(other)")
        case .failure(let error): failed(error.description)
        }
        endIfDone()
    }

    private func failed(_ why: String) {
        guard !isStopping else { return }
        if !saidUnreachable { report("worker: cannot reserve from \(options.tube): \(why); tried again") }
        saidUnreachable = true
        timer.start(after: backOff.next(using: &generator)) { [weak self] in self?.reserve() }
    }

    private func ended(_ run: Run) {
        runs[run.job.id] = nil
        reserve()
        endIfDone()
    }

    // MARK: - Stopping

    /// Lets running commands finish within the grace period, then ends them and gives their items back. Called again: at once.
    public func stop(_ done: @escaping () -> Void) {
        stopping.append(done)
        timer.stop()
        let hasten = { [weak self] in
            guard let self else { return }
            for (_, run) in runs.sorted(by: { $0.key < $1.key }) { run.hasten() }
        }
        if isStopping { return hasten() }
        isStopping = true
        if runs.isEmpty { return end() }
        graceTimer.start(after: options.grace) { hasten() }
    }

    private func endIfDone() { if isStopping && runs.isEmpty { end() } }

    private func end() {
        guard !isEnding else { return }
        isEnding = true
        // A reserve that is still waiting may be granted an item: whatever is held in our name goes back.
        graceTimer.start(after: .seconds(2)) { [weak self] in self?.finish() }
        service.queue(.releaseHolder(holder), wait: nil) { [weak self] _ in self?.finish() }
    }

    private func finish() {
        guard !stopping.isEmpty || onExit != nil else { return }
        timer.close()
        graceTimer.close()
        let done = stopping
        stopping = []
        let exit = onExit
        onExit = nil
        exit?(0)
        for each in done { each() }
    }

    // MARK: - One item

    private final class Run {
        private unowned let worker: Worker
        let job: ReservedJob
        private var child: ChildCommand?
        private var directory: String?
        private let touchTimer: LoopTimer
        private let tellTimer: LoopTimer
        private var isLost = false
        /// Ended by us: the item goes back without delay.
        private var isEnded = false
        private var backOff = BackOff(first: .milliseconds(100), longest: .seconds(5))

        init(_ worker: Worker, _ job: ReservedJob) {
            self.worker = worker
            self.job = job
            touchTimer = LoopTimer(loop: worker.loop)
            tellTimer = LoopTimer(loop: worker.loop)
        }

        func start() {
            do throws(CoterieError) {
                let directory = try makeScratch(in: worker.options.scratch)
                self.directory = directory
                let path = directory + "/item"
                let item = try writeItem(path, job.body)
                defer { close(item) }
                child = try ChildCommand(
                    loop: worker.loop, words: commandWords(worker.options.command),
                    environment: [
                        "WORK_ITEM_FILE": path, "COTERIE_TUBE": job.tube, "COTERIE_ITEM": "\(job.id)",
                        "COTERIE_NODE": worker.options.node,
                        "COTERIE_ATTEMPT": "\(job.reserves)", "COTERIE_LEASE": "\(job.lease)",
                    ],
                    without: ["COTERIE_KEY_FILE", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID"], directory: directory,
                    input: .descriptor(item), output: .inherit
                ) { [weak self] code in self?.exited(code) }
            } catch {
                worker.report("worker: item \(job.id): \(error.message)")
                return tell(.release, code: nil)
            }
            let third = TimeSpan.milliseconds(Int64(clamping: max(job.ttrMilliseconds / 3, 20)))
            touchTimer.start(every: third) { [weak self] in self?.touch() }
        }

        private func touch() {
            worker.service.queue(.touch(id: job.id, lease: job.lease), wait: nil) { [weak self] result in
                guard let self, child != nil, !isLost else { return }
                switch result {
                case .success(.leaseExpired), .success(.notFound):
                    // Somebody else may have it by now.
                    worker.report("worker: the lease of item \(job.id) is lost; its command is killed")
                    isLost = true
                    child?.kill()
                case .success, .failure: break
                }
            }
        }

        /// Ends the command: politely, then not.
        func hasten() {
            guard let child else { return }
            if isEnded { return child.kill() }
            isEnded = true
            child.signal(SIGTERM)
            tellTimer.start(after: .seconds(2)) { [weak self] in self?.child?.kill() }
        }

        /// An item that came when it was not wanted any more.
        func giveBack() {
            isEnded = true
            tell(.release, code: nil)
        }

        private func exited(_ code: Int32) {
            // What the command left in its group must not go on without a lease.
            child?.kill()
            child = nil
            tellTimer.stop()
            if isLost { return finish() }
            let verdict = WorkerOptions.verdict(code)
            tell(isEnded && verdict != .delete ? .release : verdict, code: code)
        }

        private func tell(_ verdict: WorkerOptions.Verdict, code: Int32?) {
            let command: QueueCommand
            switch verdict {
            case .delete: command = .delete(id: job.id, lease: job.lease)
            case .bury: command = .bury(id: job.id, lease: job.lease, priority: job.priority)
            case .release:
                let delay = isEnded ? .zero : worker.options.delay(reserves: job.reserves)
                command = .release(
                    id: job.id, lease: job.lease, priority: job.priority,
                    delayMilliseconds: UInt64(clamping: delay.milliseconds))
            }
            if let code, code != 0, !isEnded {
                worker.report("worker: item \(job.id): the command ended with \(code): \(verdict)")
            }
            send(command, verdict)
        }

        /// Until the queue has answered; the lease goes on being touched meanwhile.
        private func send(_ command: QueueCommand, _ verdict: WorkerOptions.Verdict) {
            worker.service.queue(command, wait: nil) { [weak self] result in
                guard let self else { return }
                switch result {
                case .success(.done), .success(.buried):
                    switch verdict {
                    case .delete: worker.deleted += 1
                    case .bury: worker.buried += 1
                    case .release: worker.released += 1
                    }
                    finish()
                case .success(.notFound), .success(.leaseExpired):
                    worker.report(
                        "worker: the lease of item \(job.id) had ended before the command did; it may run again")
                    finish()
                case .success(let other):
                    worker.report("worker: item \(job.id): \(other)")
                    finish()
                case .failure(let error):
                    worker.report("worker: item \(job.id): cannot \(verdict): \(error); tried again")
                    tellTimer.start(after: backOff.next(using: &worker.generator)) { [weak self] in
                        self?.send(command, verdict)
                    }
                }
            }
        }

        private func finish() {
            touchTimer.close()
            tellTimer.close()
            if let directory { removeScratch(directory) }
            directory = nil
            worker.ended(self)
        }
    }
}

/// A new directory that only its owner can enter.
func makeScratch(in parent: String) throws(CoterieError) -> String {
    var template = Array("\(parent)/coterie-work-XXXXXX".utf8CString)
    guard template.withUnsafeMutableBufferPointer({ $0.baseAddress.flatMap { mkdtemp($0) } }) != nil else {
        throw CoterieError(.failed, "cannot make a directory in \(parent): \(String(cString: strerror(errno)))")
    }
    return String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
}

/// Removes a directory and all that is in it; links are not followed. What can not be removed stays.
func removeScratch(_ path: String, depth: Int = 0) {
    guard depth < 64 else { return }
    for name in directoryEntries(path) {
        let entry = path + "/" + name
        var info = stat()
        if lstat(entry, &info) == 0, info.st_mode & S_IFMT == S_IFDIR {
            removeScratch(entry, depth: depth + 1)
        } else {
            unlink(entry)
        }
    }
    rmdir(path)
}

/// Writes a new file and opens it for reading.
private func writeItem(_ path: String, _ bytes: [UInt8]) throws(CoterieError) -> Int32 {
    let descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else {
        throw CoterieError(.failed, "cannot write \(path): \(String(cString: strerror(errno)))")
    }
    var done = 0
    while done < bytes.count {
        let n = bytes[done...].withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
        if n < 0 && errno == EINTR { continue }
        guard n > 0 else {
            let why = String(cString: strerror(errno))
            close(descriptor)
            throw CoterieError(.failed, "cannot write \(path): \(why)")
        }
        done += n
    }
    close(descriptor)
    let reader = open(path, O_RDONLY | O_CLOEXEC)
    guard reader >= 0 else { throw CoterieError(.failed, "cannot read \(path): \(String(cString: strerror(errno)))") }
    return reader
}
