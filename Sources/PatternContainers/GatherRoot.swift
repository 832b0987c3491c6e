// The root of a scatter-gather job: splits the input, hands shards to the leaves that ask, keeps the one result of each, merges,
// and serves the result. What it decides is in ``GatherMachine``; this is the driver: connections, files, timers. Its parts: the
// leaves in GatherRootLeaves, the clients in GatherRootClients, results and merge in ``GatherResults``.
import EventLoop
import Glibc
import Model
import ScatterGather
import Scheduling

public final class GatherRoot: SuppliedContainer {
    /// How far the job is.
    enum Phase { case running, merging, delivering, ended }

    let loop: EventLoop
    let options: GatherRootOptions
    let transport: any GatherTransport
    let report: Report
    var machine: GatherMachine
    private var sharder: Sharder
    var phase = Phase.running
    private(set) var end: GatherEnd?

    private var scratch = ""
    var spool: SegmentedSpool?
    var results: GatherResults?
    /// Input of each shard.
    var ranges: [ShardRange] = []
    /// Bytes of input whose shards are not final, and of what is no whole shard yet.
    private var liveInput: UInt64 = 0
    /// Results of attempts that run.
    var buffers: [AttemptID: ResultBuffer] = [:]

    var leaves: [LeafID: GatherLeafLink] = [:]
    var nextLeaf: UInt64 = 1
    var clients: [GatherClientLink] = []
    /// The one that feeds; it may be gone for a while.
    weak var feeder: GatherClientLink?
    var hadFeeder = false
    var isDetached = false
    var files: [GatherShippedFile] = []
    var filesComplete = false
    let instance: UInt64

    private let tickTimer: LoopTimer
    private let openTimer: LoopTimer
    private let beat: LoopTimer
    let patience: LoopTimer
    private let endTimer: LoopTimer
    private var isOpen = false
    private var isCarryingOut = false
    /// Why the job could not go on.
    private var failure: String?
    /// Why the merge ended before the shards did.
    private var mergeFailure: String?
    private var mergeTimedOut = false
    private var clientGaveUp = false
    private var isListening = 0
    private var told: GatherProgress?
    private var isTelling = false
    private var isFinishTold = false
    private var inputFile: ReplayableInput?
    private var stopping: [() -> Void] = []
    private var isStopping = false

    public var onExit: ((Int32) -> Void)?
    /// Counts as they are; for tests and documents.
    public var progress: GatherProgress { machine.progress(now: loop.now) }
    public var duplicates: Int { machine.duplicates }

    public init(
        loop: EventLoop, options: GatherRootOptions, transport: any GatherTransport,
        report: @escaping Report = reportToStandardError
    ) {
        self.loop = loop
        self.options = options
        self.transport = transport
        self.report = report
        machine = GatherMachine(options: options.plan, now: loop.now)
        sharder = Sharder(options.sharder)
        instance = .random(in: 1 ... .max)
        tickTimer = LoopTimer(loop: loop)
        openTimer = LoopTimer(loop: loop)
        beat = LoopTimer(loop: loop)
        patience = LoopTimer(loop: loop)
        endTimer = LoopTimer(loop: loop)
    }

    public func start() throws(CoterieError) {
        scratch = try makeScratch(in: options.scratch)
        spool = SegmentedSpool(in: scratch)
        let results = try GatherResults(loop: loop, options: options, scratch: scratch)
        results.onOutput = { [weak self] in self?.outputGrew() }
        results.onDone = { [weak self] why in self?.resultDone(why) }
        self.results = results
        var descriptor: Int32 = -1
        if let path = options.input {
            descriptor = open(path, O_RDONLY | O_CLOEXEC)
            guard descriptor >= 0 else {
                throw CoterieError(.badInput, "root: cannot read \(path): \(String(cString: strerror(errno)))")
            }
            inputFile = try ReplayableInput(loop: loop, descriptor: descriptor, owns: true, scratch: scratch)
        }
        for service in ["client", "leaf"] { listen(service) }
        beat.start(every: .milliseconds(500)) { [weak self] in self?.everyHalfSecond() }
        if options.attached {
            waitForClient()
        } else {
            filesComplete = true
            beginInput()
        }
    }

    private func listen(_ service: String) {
        transport.listen(
            service,
            onConnection: { [weak self] stream in
                guard let self, !isStopping else { return stream.close() }
                if service == "client" { clientConnected(stream) } else { leafConnected(stream) }
            },
            then: { [weak self] error in
                guard let self, let error, !isStopping else { return }
                report("root: cannot listen as \(service): \(error.message); tried again")
                let timer = LoopTimer(loop: loop)
                timer.start(after: .seconds(1)) { [weak self] in
                    timer.close()
                    self?.listen(service)
                }
            })
    }

    // MARK: - Input

    /// The job may begin: shards that need no input are made, a file of the pod is read.
    func beginInput() {
        if !Sharder.readsInput(options.sharder) { return endInput() }
        if inputFile != nil { readFile(at: 0) }
        considerOpening()
    }

    private func readFile(at offset: UInt64) {
        inputFile?.read(at: offset, limit: GatherLimits.chunkBytes) { [weak self] result in
            guard let self, phase == .running, !isStopping else { return }
            switch result {
            case .success(let bytes) where bytes.isEmpty: endInput()
            case .success(let bytes):
                takeInput(bytes)
                readFile(at: offset + UInt64(bytes.count))
            case .failure(let error): fail(error.message)
            }
        }
    }

    func takeInput(_ bytes: [UInt8]) {
        guard phase == .running, !machine.inputEnded else { return }
        do throws(CoterieError) {
            try spool?.append(bytes)
        } catch {
            return fail(error.message)
        }
        liveInput += UInt64(bytes.count)
        let now = loop.now
        sharder.feed(bytes) { range in add(range, now) }
        considerOpening()
        carryOut()
    }

    func endInput() {
        guard phase == .running, !machine.inputEnded else { return }
        let now = loop.now
        sharder.finish { range in add(range, now) }
        machine.endInput(now: now)
        considerOpening()
        carryOut()
    }

    private func add(_ range: ShardRange, _ now: MonotonicTime) {
        if ranges.count >= ScatterGatherSpec.shardLimit {
            return fail("more than \(ScatterGatherSpec.shardLimit) shards: make them larger")
        }
        ranges.append(range)
        machine.addShard(bytes: range.count, now: now)
    }

    /// Shards are given out when their number is known, or when waiting for that would hold up the work.
    func considerOpening() {
        guard !isOpen, filesComplete else { return }
        if machine.inputEnded || liveInput >= 4 << 20 {
            isOpen = true
            openTimer.stop()
            machine.open(now: loop.now)
        } else if liveInput > 0, !openTimer.isActive {
            openTimer.start(after: .milliseconds(200)) { [weak self] in
                guard let self else { return }
                isOpen = true
                machine.open(now: loop.now)
                carryOut()
            }
        }
    }

    /// More input is welcome.
    var wantsInput: Bool { liveInput <= options.inputLimit || !machine.hasPending }

    // MARK: - What the machine says

    /// Carries out what the machine has decided since the last time.
    func carryOut() {
        // What is carried out may lead here again; the outer turn takes that up.
        guard !isStopping, !isCarryingOut else { return }
        isCarryingOut = true
        var effects = machine.takeEffects()
        while !effects.isEmpty {
            for effect in effects { carryOut(effect) }
            effects = machine.takeEffects()
        }
        isCarryingOut = false
        if let next = machine.nextDeadline {
            tickTimer.start(at: next) { [weak self] in
                guard let self else { return }
                machine.tick(now: loop.now)
                carryOut()
            }
        } else {
            tickTimer.stop()
        }
        if wantsInput { feeder?.channel?.resume() } else { feeder?.channel?.pause() }
    }

    private func carryOut(_ effect: GatherEffect) {
        switch effect {
        case .give(let grant):
            buffers[grant.attempt] = results?.newBuffer()
            leaves[grant.leaf]?.give(grant, range: ranges[grant.shard], total: machine.total)
        case .cancel(let leaf, let attempt, let reason):
            leaves[leaf]?.cancel(attempt, grace: reason == .superseded ? .milliseconds(40) : .milliseconds(500))
        case .accept(let shard, let attempt):
            guard let buffer = buffers.removeValue(forKey: attempt) else { return }
            do throws(CoterieError) {
                try results?.accept(shard, buffer)
            } catch {
                fail(error.message)
            }
        case .discard(let attempt): buffers[attempt] = nil
        case .settled(let shard, let state):
            let range = ranges[shard]
            // An argument's line feed belongs to no range.
            var end = range.end
            if case .arguments = options.sharder { end += 1 }
            liveInput -= min(end - range.start, liveInput)
            spool?.forget(range.start, end)
            results?.settled(shard, hasResult: state == .done)
        case .finished(let state): shardsFinished(state)
        }
    }

    private func shardsFinished(_ state: GatherState) {
        guard phase == .running else { return }
        phase = .merging
        for (_, leaf) in leaves.sorted(by: { $0.key < $1.key }) { leaf.stop() }
        if let deadline = options.plan.deadline, options.merge != nil {
            endTimer.start(at: max(machine.began + deadline, loop.now + .milliseconds(100))) { [weak self] in
                self?.mergeTimedOut = true
                self?.results?.endMerge("the deadline passed before the merge was done")
            }
        }
        results?.finish(total: machine.shardCount, state: state)
        if let mergeFailure { resultDone(mergeFailure) }
    }

    /// The job can not go on.
    func fail(_ why: String) {
        guard failure == nil, end == nil else { return }
        failure = why
        report("root: \(why)")
        machine.abort()
        loop.beforeWaiting { [weak self] in self?.carryOut() }
    }

    private func resultDone(_ why: String?) {
        guard phase == .merging else {
            // The merge died while shards were still being worked on: there is no result to wait for.
            if phase == .running, let why {
                mergeFailure = why
                fail(why)
            }
            return
        }
        endTimer.stop()
        phase = .delivering
        let message = failure ?? why
        var progress = machine.progress(now: loop.now)
        let total = results?.available ?? 0
        progress.bytesOut = total
        end = GatherEnd(
            state: message == nil ? machine.state : .failed, progress: progress, resultBytes: total,
            leafExit: machine.failedExit?.status, deadlinePassed: machine.deadlinePassed || mergeTimedOut,
            message: message)
        outputGrew()
        deliverOrEnd()
    }

    // MARK: - Telling

    private func everyHalfSecond() {
        let now = loop.now
        for (_, leaf) in leaves.sorted(by: { $0.key < $1.key }) { leaf.beat(silence: options.leafSilence) }
        let progress = end?.progress ?? machine.progress(now: now)
        for client in clients { client.beat(progress) }
        guard phase == .running || phase == .merging, !isTelling, machine.shardCount > 0 else { return }
        var comparable = progress
        comparable.milliseconds = told?.milliseconds ?? 0
        guard comparable != told else { return }
        told = progress
        isTelling = true
        transport.command(.updateGather(id: options.gather, progress: progress)) { [weak self] _ in
            self?.isTelling = false
        }
    }

    func waitForClient() {
        guard options.attached, !isDetached, phase != .ended else { return }
        // At first it is the client that makes the job: it comes at once or never.
        patience.start(after: options.clientPatience) { [weak self] in
            guard let self, feeder == nil else { return }
            report("root: the client is gone")
            if phase == .running {
                machine.cancel()
                carryOut()
            }
            clientGaveUp = true
            deliverOrEnd()
        }
    }

    /// The result is whole: it is told to the cluster once the client has it, or if there is none to wait for.
    func deliverOrEnd() {
        guard phase == .delivering, let end else { return }
        if options.attached && !isDetached && !clientGaveUp {
            guard let feeder, feeder.hasAll(end.resultBytes) else { return }
        }
        phase = .ended
        patience.stop()
        tellEnd(end)
        // The client must not wait for a cluster that has no leader; the telling goes on.
        endTimer.start(after: .seconds(5)) { [weak self] in self?.endTold() }
    }

    private func tellEnd(_ end: GatherEnd) {
        transport.command(.finishGather(id: options.gather, state: end.state, progress: end.progress)) {
            [weak self] result in
            guard let self, spool != nil else { return }
            switch result {
            case .success: endTold()
            case .failure(let error)
            where error.code == .notFound || error.code == .badInput || error.code == .notAllowed:
                report("root: the end of the job could not be told: \(error.message)")
                endTold()
            case .failure:
                let timer = LoopTimer(loop: loop)
                timer.start(after: .seconds(1)) { [weak self] in
                    timer.close()
                    self?.tellEnd(end)
                }
            }
        }
    }

    private func endTold() {
        guard !isFinishTold else { return }
        isFinishTold = true
        for client in clients { client.pump() }
        if options.attached && !isDetached {
            // Its client has the result; only its good-bye is waited for.
            endTimer.start(after: .seconds(clients.isEmpty ? 0 : 5)) { [weak self] in self?.exit(0) }
        } else {
            endTimer.start(after: options.retention) { [weak self] in self?.exit(0) }
        }
        if isStopping { exitIfServed() }
    }

    /// What clients may be told as the end.
    var finalEnd: GatherEnd? { isFinishTold ? end : nil }

    func outputGrew() {
        for client in clients { client.pump() }
        considerHolding()
    }

    func considerHolding() {
        guard let feeder, !feeder.detaches, options.merge == nil, let results else { return }
        let backlog = results.available - min(feeder.consumed, results.available)
        machine.setHolding(backlog > options.backlogLimit, now: loop.now)
        carryOut()
    }

    // MARK: - The end

    /// Ends at once, unless a client is being told the end.
    public func stop(_ done: @escaping () -> Void) {
        stopping.append(done)
        let again = isStopping
        isStopping = true
        if again || phase != .ended { return exit(143) }
        exitIfServed()
        // A client that does not answer must not hold the pod.
        endTimer.start(after: .seconds(10)) { [weak self] in self?.exit(0) }
    }

    func exitIfServed() {
        guard phase == .ended, isFinishTold, clients.isEmpty, isStopping || (options.attached && !isDetached) else {
            return
        }
        exit(0)
    }

    private func exit(_ code: Int32) {
        guard spool != nil else { return }
        spool = nil
        isStopping = true
        for timer in [tickTimer, openTimer, beat, patience, endTimer] { timer.close() }
        for client in clients { client.close() }
        clients = []
        for leaf in leaves.values { leaf.close() }
        leaves = [:]
        results?.close()
        transport.close()
        removeScratch(scratch)
        let (done, report) = (stopping, onExit)
        stopping = []
        onExit = nil
        report?(code)
        for each in done { each() }
    }
}
