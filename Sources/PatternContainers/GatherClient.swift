// The client's side of `coterie scatter` and `coterie gather result`: makes the job, feeds it, passes its result on, and outlives
// the death of a root: it keeps its input until the job is over, and feeds a new root from the beginning.
//
//     create ─▶ dial ID-root/client ─▶ hello ─▶ files, input ─▶ result ─▶ final
//                 ▲                                │
//                 └── connection lost, job runs ───┘   (ended meanwhile: by what the cluster knows)
import Client
import EventLoop
import Glibc
import Model
import ScatterGather
import Scheduling
import Wire

public struct GatherClientOptions: Sendable {
    public enum Input: Sendable {
        /// The sharder makes shards of nothing (``ScatterGatherSpec/Sharder/index(_:)``), or the input is the root's already.
        case none
        /// Not closed.
        case descriptor(Int32)
        case path(String)
    }

    /// What makes the job: its record and its pods, the root first (`Expansion.gather`).
    public struct Creation: Sendable {
        public var seed: GatherSeed
        public var pods: [PodSpec]

        public init(seed: GatherSeed, pods: [PodSpec]) {
            self.seed = seed
            self.pods = pods
        }
    }

    public var id: String
    /// Nil if the job exists.
    public var creation: Creation?
    public var input = Input.none
    /// `--file PATH`: what is shipped, under the last part of its path.
    public var files: [String] = []
    /// Where the result goes.
    public var output: Int32 = 1
    public var unordered = false
    /// Leave when the root has the input.
    public var detach = false
    /// Only fetch the result of a job that another client feeds, or nobody.
    public var fetch = false
    /// Exit with the leaf's code if it fails for good.
    public var propagate = false
    /// How long the cluster may be out of reach before the outcome is given up as unknown.
    public var patience = TimeSpan.seconds(120)
    public var scratch = environmentValue("TMPDIR") ?? "/tmp"

    public init(id: String) { self.id = id }
}

public final class GatherClientRun {
    private static let writeLimit = 4 << 20

    private let loop: EventLoop
    private let options: GatherClientOptions
    private let transport: any GatherTransport
    private let report: Report
    private var input: ReplayableInput?
    private var channel: GatherChannel?
    private let timer: LoopTimer
    private let heart: LoopTimer
    private let cancelTimer: LoopTimer
    private var backOff = BackOff(first: .milliseconds(100), longest: .seconds(2))
    private var generator: SeededGenerator
    private let started: MonotonicTime
    /// When the cluster or the root was heard last.
    private var reachable: MonotonicTime
    private var saidWaiting = false

    // The root that is fed now.
    private var instance: UInt64?
    /// Input it has got from us, and whether it knows the end.
    private var fed: UInt64 = 0
    private var isFeeding = false
    private var isReading = false
    private var saidInputEnd = false
    private var pendingFiles: [String] = []
    private var openFile: Int32?
    private var hasSentFiles = false
    /// Result bytes that it has sent.
    private var received: UInt64 = 0

    // The result, whichever root sent it.
    private var queue = FIFO<[UInt8]>()
    private var queuedBytes = 0
    private var isWriting = false
    /// Bytes taken for output, and their checksum: a new root's result must begin with the same.
    private var taken: UInt64 = 0
    private var takenSum: UInt32 = 0
    private var skippedSum: UInt32 = 0
    private var written: UInt64 = 0
    private var resultBytes: UInt64?
    private var final: GatherEnd?

    private var isCancelling = false
    private var isFinished = false
    /// Kept open for its last words.
    private var lingering: GatherChannel?
    /// As the root told it last.
    public private(set) var progress = GatherProgress()

    /// At most some times a second; on the loop.
    public var onProgress: ((GatherProgress) -> Void)?
    /// Once: the exit code, and how the job stands (`running` for one that goes on without us).
    public var onFinished: ((Int32, GatherProgress, GatherState) -> Void)?

    /// `report` gets a line for people whenever something is to be said.
    public init(
        loop: EventLoop, options: GatherClientOptions, transport: any GatherTransport,
        report: @escaping Report = reportToStandardError
    ) {
        self.loop = loop
        self.options = options
        self.transport = transport
        self.report = report
        timer = LoopTimer(loop: loop)
        heart = LoopTimer(loop: loop)
        cancelTimer = LoopTimer(loop: loop)
        started = loop.now
        reachable = started
        var system = SystemRandomNumberGenerator()
        generator = SeededGenerator(seed: system.next())
    }

    public convenience init(
        loop: EventLoop, options: GatherClientOptions, client: ClusterClient,
        report: @escaping Report = reportToStandardError
    ) {
        self.init(loop: loop, options: options, transport: ClusterGatherTransport(client: client), report: report)
    }

    /// Makes the job, unless it exists, and goes on until ``onFinished``. Throws for input or files that can not be read.
    public func start() throws(CoterieError) {
        signal(SIGPIPE, SIG_IGN)
        switch options.input {
        case .none: break
        case .descriptor(let descriptor):
            input = try ReplayableInput(loop: loop, descriptor: descriptor, owns: false, scratch: options.scratch)
        case .path(let path):
            let descriptor = open(path, O_RDONLY | O_CLOEXEC)
            guard descriptor >= 0 else {
                throw CoterieError(.badInput, "cannot read \(path): \(String(cString: strerror(errno)))")
            }
            input = try ReplayableInput(loop: loop, descriptor: descriptor, owns: true, scratch: options.scratch)
        }
        var names: Set<String> = []
        for path in options.files {
            guard access(path, R_OK) == 0 else {
                throw CoterieError(.badInput, "cannot read the file \(path): \(String(cString: strerror(errno)))")
            }
            guard names.insert(GatherClientRun.name(of: path)).inserted else {
                throw CoterieError(.badInput, "two files of the name \(GatherClientRun.name(of: path))")
            }
        }
        heart.start(every: .seconds(1)) { [weak self] in self?.beat() }
        create()
    }

    private static func name(of path: String) -> String { path.split(separator: "/").last.map(String.init) ?? path }

    private func create() {
        guard let creation = options.creation else { return dial() }
        var pods = creation.pods
        // The root shall wait for us, and not work for nobody.
        if let root = pods.indices.first, let first = pods[root].containers.indices.first {
            pods[root].containers[first].command.append("--attached")
        }
        transport.command(.createGather(creation.seed, pods: pods)) { [weak self] result in
            guard let self, !isFinished else { return }
            switch result {
            case .success: dial()
            case .failure(let error):
                report(error.description)
                finish(options.propagate ? ExitCode.ownFailure.rawValue : error.exitCode.rawValue, .failed)
            }
        }
    }

    // MARK: - The connection

    private func dial() {
        guard !isFinished, channel == nil else { return }
        transport.dial("gather-\(options.id)-root/client", timeout: .seconds(5)) { [weak self] result in
            guard let self else { return }
            switch result {
            case .success(let stream): if isFinished { stream.close() } else { connected(stream) }
            case .failure: askHowItStands()
            }
        }
    }

    private func connected(_ stream: any GatherStream) {
        let channel = GatherChannel(
            stream, loop: loop, onMessage: { [weak self] message in self?.received(message) },
            onClosed: { [weak self] _ in
                self?.channel = nil
                self?.isFeeding = false
                self?.askHowItStands()
            })
        channel.onDrain = { [weak self] in self?.feed() }
        self.channel = channel
        channel.send(.clientHello(fetches: options.fetch, detaches: options.detach, resultOffset: received))
    }

    /// After every lost connection: the job may be over, or gone.
    private func askHowItStands() {
        guard !isFinished else { return }
        transport.gather(options.id) { [weak self] result in
            guard let self, !isFinished, channel == nil else { return }
            switch result {
            case .success(let document):
                reachable = loop.now
                let state = document["state"]?.stringValue.flatMap { GatherState(rawValue: $0) } ?? .running
                if state.isTerminal { return endedElsewhere(state, GatherProgress(document: document)) }
                if !saidWaiting && instance == nil && loop.now - started > .seconds(10) {
                    saidWaiting = true
                    report(
                        "scatter: waiting for the pod gather-\(options.id)-root to start (coterie describe tells why)"
                    )
                }
                again()
            case .failure(let error) where error.code == .notFound:
                report("scatter: \(error.message)")
                finish(ExitCode.notFound.rawValue, .failed)
            case .failure(let error):
                if loop.now - reachable > options.patience {
                    report("scatter: the outcome of gather \(options.id) is unknown: \(error.description)")
                    return finish(ExitCode.deadline.rawValue, .running)
                }
                again()
            }
        }
    }

    private func again() { timer.start(after: backOff.next(using: &generator)) { [weak self] in self?.dial() } }

    /// The cluster knows the end that the root could not tell us.
    private func endedElsewhere(_ state: GatherState, _ progress: GatherProgress) {
        self.progress = progress
        let end = GatherEnd(state: state, progress: progress, resultBytes: progress.bytesOut)
        let hasAll = resultBytes.map { taken >= $0 } ?? false
        if (state == .succeeded || state == .partial) && !hasAll {
            report(
                "scatter: gather \(options.id) has \(state.rawValue), but its result was not received whole: the root is gone"
            )
            return finish(ExitCode.deadline.rawValue, state)
        }
        final = end
        endIfWritten()
    }

    private func beat() {
        guard let channel else { return }
        if channel.silence > .seconds(15) { return channel.fail("it has said nothing for 15 s") }
        channel.send(.consumed(min(received, written)))
    }

    private func received(_ message: GatherMessage) {
        reachable = loop.now
        switch message {
        case .clientWelcome(let instance, let inputTaken, let filesTaken, let inputEnded):
            welcome(instance, inputTaken, filesTaken: filesTaken, inputEnded: inputEnded)
        case .inputTaken: if options.detach { detached() }
        case .result(let bytes): take(bytes)
        case .resultEnd(let total):
            resultBytes = total
            channel?.send(.consumed(min(received, written)))
        case .progress(let progress):
            self.progress = progress
            onProgress?(progress)
        case .final(let end):
            final = end
            channel?.send(.done)
            endIfWritten()
        case .alive: break
        case .clientHello, .file, .filesEnd, .input, .inputEnd, .consumed, .done, .leafHello, .ask, .output, .ended,
            .leafWelcome, .shard,
            .shardInput, .shardInputEnd, .cancel, .stop:
            channel?.fail("it said what only others say")
        }
    }

    private func welcome(_ instance: UInt64, _ inputTaken: UInt64, filesTaken: Bool, inputEnded: Bool) {
        backOff.reset()
        if let known = self.instance, known != instance {
            // Another root: it knows nothing of what was.
            guard taken == 0 || !options.unordered else {
                report(
                    "scatter: the root is gone and a part of the unordered result was passed on: the outcome is unknown"
                )
                transport.command(.cancelGather(id: options.id)) { _ in }
                return finish(ExitCode.deadline.rawValue, .failed)
            }
            report("scatter: the root is gone; its successor is fed from the beginning")
            self.instance = instance
            let skipped = received
            (received, skippedSum, resultBytes) = (0, 0, nil)
            if skipped > 0 {
                // The greeting asked for what follows the old root's bytes.
                channel?.fail("the result is wanted from its beginning")
                return
            }
        }
        self.instance = instance
        fed = inputTaken
        saidInputEnd = inputEnded
        guard !options.fetch else { return }
        closeFile()
        pendingFiles = filesTaken ? [] : options.files
        hasSentFiles = filesTaken
        isFeeding = true
        feed()
    }

    // MARK: - Files and input

    /// Sends what there is room for of the files; true when that is all.
    private func sendFiles() -> Bool {
        while let path = pendingFiles.first {
            guard let channel, !channel.isCongested else { return false }
            if openFile == nil {
                let descriptor = open(path, O_RDONLY | O_CLOEXEC)
                guard descriptor >= 0 else {
                    inputFailed("cannot read the file \(path): \(String(cString: strerror(errno)))")
                    return false
                }
                openFile = descriptor
            }
            guard let openFile, case .success(let bytes) = readSome(openFile, at: nil, limit: GatherLimits.chunkBytes)
            else {
                inputFailed("cannot read the file \(path)")
                return false
            }
            let executable = access(path, X_OK) == 0
            channel.send(
                .file(path: GatherClientRun.name(of: path), executable: executable, bytes: bytes, isLast: bytes.isEmpty)
            )
            if bytes.isEmpty {
                closeFile()
                pendingFiles.removeFirst()
            }
        }
        return true
    }

    private func closeFile() {
        if let openFile { close(openFile) }
        openFile = nil
    }

    private func feed() {
        guard isFeeding, !isReading, let channel, !channel.isCongested else { return }
        if !hasSentFiles {
            guard sendFiles() else { return }
            hasSentFiles = true
            channel.send(.filesEnd)
        }
        guard !saidInputEnd, !channel.isCongested else { return }
        guard let input else {
            // Nothing to feed; a root that wants input gets an empty one.
            saidInputEnd = true
            channel.send(.inputEnd)
            return
        }
        isReading = true
        let offset = fed
        input.read(at: offset, limit: GatherLimits.chunkBytes) { [weak self] result in
            guard let self else { return }
            isReading = false
            guard !isFinished else { return }
            // Another root may have come meanwhile, and want something else.
            guard fed == offset, isFeeding, let channel = self.channel else { return feed() }
            switch result {
            case .success(let bytes) where bytes.isEmpty:
                saidInputEnd = true
                channel.send(.inputEnd)
            case .success(let bytes):
                fed += UInt64(bytes.count)
                channel.send(.input(bytes))
                feed()
            case .failure(let error): inputFailed(error.message)
            }
        }
    }

    private func inputFailed(_ why: String) {
        report("scatter: \(why)")
        cancelJob(ExitCode.badInput.rawValue)
    }

    private func detached() {
        channel?.close()
        channel = nil
        finish(0, .running)
    }

    // MARK: - The result

    private func take(_ bytes: [UInt8]) {
        var fresh = bytes[...]
        if received < taken {
            // What a new root sends again is compared with what the old one sent.
            let old = fresh.prefix(Int(min(taken - received, UInt64(fresh.count))))
            skippedSum = CRC32C.checksum(old, continuing: skippedSum)
            received += UInt64(old.count)
            fresh = fresh.dropFirst(old.count)
            if received == taken && skippedSum != takenSum {
                report(
                    "scatter: the result of the new root differs from what was passed on already: the leaf is not deterministic"
                )
                transport.command(.cancelGather(id: options.id)) { _ in }
                return finish(ExitCode.deadline.rawValue, .failed)
            }
        }
        guard !fresh.isEmpty else { return }
        received += UInt64(fresh.count)
        taken += UInt64(fresh.count)
        takenSum = CRC32C.checksum(fresh, continuing: takenSum)
        queue.append(Array(fresh))
        queuedBytes += fresh.count
        if queuedBytes > GatherClientRun.writeLimit { channel?.pause() }
        write()
    }

    /// On a thread of the pool, a piece at a time: whoever reads our output may take its time.
    private func write() {
        guard !isWriting, let bytes = queue.popFirst() else { return }
        isWriting = true
        let descriptor = options.output
        loop.blocking {
            writeFully(descriptor, bytes) ?? 0
        } then: { [weak self] code in
            guard let self, !isFinished else { return }
            isWriting = false
            guard code == 0 else {
                report("scatter: cannot write the result: \(String(cString: strerror(code)))")
                return cancelJob(ExitCode.failed.rawValue)
            }
            written += UInt64(bytes.count)
            queuedBytes -= bytes.count
            if queuedBytes < GatherClientRun.writeLimit / 4 { channel?.resume() }
            if queue.isEmpty { channel?.send(.consumed(min(received, written))) }
            write()
            endIfWritten()
        }
    }

    // MARK: - The end

    private func endIfWritten() {
        guard let final, queue.isEmpty, !isWriting else { return }
        progress = final.progress
        onProgress?(final.progress)
        if isCancelling { return }
        explain(final)
        finish(final.exitCode(propagate: options.propagate), final.state)
    }

    private func explain(_ end: GatherEnd) {
        let counts = end.progress
        switch end.state {
        case .running, .succeeded: return
        case .cancelled: return report("scatter: gather \(options.id) was cancelled")
        case .partial, .failed:
            if let message = end.message { report("scatter: \(message)") }
            let parts = [
                (counts.failed, "failed"), (counts.timedOut, "timed out"),
                (counts.cancelled, "were not run to their end"),
            ]
            let text = parts.filter { $0.0 > 0 }.map { "\($0.0) \($0.1)" }.joined(separator: ", ")
            if !text.isEmpty { report("scatter: \(counts.successful) of \(counts.total) shards succeeded, \(text)") }
            for failure in counts.failures.prefix(3) {
                let place = failure.node.isEmpty ? "" : " on \(failure.node)"
                report("scatter: shard \(failure.shard)\(place): \(failure.error) (attempts: \(failure.attempts))")
            }
        }
    }

    /// Ctrl-C: the job is cancelled, and the exit code is 130.
    public func cancel() { cancelJob(ExitCode.interrupted.rawValue) }

    private func cancelJob(_ code: Int32) {
        guard !isFinished, !isCancelling else { return }
        isCancelling = true
        isFeeding = false
        func end(_ state: GatherState) {
            progress.cancelRest()
            finish(code, state)
        }
        if options.fetch { return finish(code, .running) }
        cancelTimer.start(after: .seconds(5)) { [weak self] in
            self?.report("scatter: the cluster did not confirm that the job is cancelled")
            self?.finish(code, .running)
        }
        transport.command(.cancelGather(id: options.id)) { [weak self] result in
            guard self?.isFinished == false else { return }
            if case .failure(let error) = result {
                self?.report("scatter: the job could not be cancelled: \(error.message)")
            }
            end(.cancelled)
        }
    }

    private func finish(_ code: Int32, _ state: GatherState) {
        guard !isFinished else { return }
        isFinished = true
        for timer in [timer, heart, cancelTimer] { timer.close() }
        closeFile()
        // A last word may still be on its way; the root closes then.
        if final == nil { channel?.close() } else { lingering = channel }
        channel = nil
        let then = onFinished
        onFinished = nil
        onProgress = nil
        loop.beforeWaiting { [self] in then?(code, progress, state) }
    }
}

extension GatherProgress {
    /// From the document of `gather show`; what is missing is 0.
    init(document: JSONValue) {
        func count(_ value: JSONValue?) -> Int { value?.intValue.map { Int(clamping: $0) } ?? 0 }
        func bytes(_ key: String) -> UInt64 { UInt64(clamping: document[key]?.intValue ?? 0) }
        let shards = document["shards"]
        self.init(
            total: count(shards?["total"]), successful: count(shards?["successful"]), failed: count(shards?["failed"]),
            timedOut: count(shards?["timedOut"]), cancelled: count(shards?["cancelled"]),
            running: count(shards?["running"]),
            pending: count(shards?["pending"]), retried: count(document["retried"]), hedged: count(document["hedged"]),
            milliseconds: bytes("milliseconds"), bytesIn: bytes("bytesIn"), bytesOut: bytes("bytesOut"),
            failures: (document["failures"]?.arrayValue ?? []).map {
                GatherFailure(
                    shard: count($0["shard"]), node: $0["node"]?.stringValue ?? "", attempts: count($0["attempts"]),
                    error: $0["error"]?.stringValue ?? "")
            })
    }
}
