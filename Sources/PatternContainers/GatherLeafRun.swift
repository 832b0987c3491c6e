// One attempt at one shard on a leaf: `/bin/sh -c CMD` in an empty scratch directory and a process group of its own. Input and
// result go through files, not pipes: a command that does not read its input holds up nothing, a child that it leaves behind
// with its stdout open can not keep us waiting, and memory is bounded whatever the command writes.
import EventLoop
import Glibc
import Model
import ScatterGather

final class LeafRun {
    private unowned let leaf: GatherLeaf
    private let order: ShardOrder
    private var input: SpoolFile?
    private var output: SpoolFile?
    private var argument: [UInt8] = []
    private var directory: String?
    private var child: ChildProcess?
    private let timer: LoopTimer
    private let began: MonotonicTime
    /// Decided before the command ends, if we end it.
    private var verdict: AttemptOutcome?
    /// Set once the command is over: its result is being sent.
    private var outcome: AttemptOutcome?
    private var sent: UInt64 = 0
    private var isOver = false

    var attempt: AttemptID { order.attempt }

    init(_ leaf: GatherLeaf, _ order: ShardOrder) {
        self.leaf = leaf
        self.order = order
        began = leaf.loop.now
        timer = LoopTimer(loop: leaf.loop)
    }

    // MARK: - Input

    func feed(_ bytes: [UInt8]) {
        guard verdict == nil, !isOver else { return }
        if leaf.options.arguments {
            argument.append(contentsOf: bytes.prefix(max(0, GatherLimits.argumentBytes + 1 - argument.count)))
            return
        }
        do throws(CoterieError) {
            if input == nil { input = try SpoolFile(in: leaf.options.scratch) }
            try input?.append(bytes)
        } catch {
            verdict = .notStarted(error.message)
        }
    }

    // MARK: - The command

    func start() {
        guard !isOver, child == nil, outcome == nil else { return }
        if let verdict { return end(verdict) }
        var words = ["-c", leaf.options.leaf]
        if leaf.options.arguments {
            guard argument.count < GatherLimits.argumentBytes - 1 else {
                return end(
                    .impossible(
                        "the line is longer than the \(GatherLimits.argumentBytes) bytes that one argument may have"))
            }
            guard !argument.contains(0), let text = String(validating: argument, as: UTF8.self) else {
                return end(.impossible("the line is no text (a zero byte, or not UTF-8): it can not be an argument"))
            }
            words += ["sh", text]
        }
        do throws(CoterieError) {
            try spawn(words)
        } catch {
            end(.notStarted(error.message))
        }
    }

    private func spawn(_ words: [String]) throws(CoterieError) {
        let directory = try makeScratch(in: leaf.options.scratch)
        self.directory = directory
        leaf.furnish(directory)
        let output = try SpoolFile(in: leaf.options.scratch)
        self.output = output
        var options = ChildProcess.Options(program: "/bin/sh", arguments: words)
        var added = [
            "COTERIE_JOB": leaf.options.gather, "COTERIE_SHARD": "\(order.shard)", "COTERIE_ATTEMPT": "\(order.number)",
            "COTERIE_NODE": leaf.options.node,
        ]
        if let total = order.total { added["COTERIE_SHARDS"] = "\(total)" }
        let time = (order.time ?? leaf.options.shardTimeout).map { max($0 - (leaf.loop.now - began), .milliseconds(1)) }
        if let time { added["COTERIE_DEADLINE_MILLISECONDS"] = "\(max(time.milliseconds, 1))" }
        options.environment = gatherEnvironment(home: environmentValue("HOME") ?? directory, added)
        options.directory = directory
        input?.rewind()
        options.input = input.map { .descriptor($0.descriptor) } ?? .null
        options.output = .descriptor(output.descriptor)
        options.newSession = true
        options.parentDeathSignal = SIGKILL
        do throws(UVError) {
            child = try ChildProcess(loop: leaf.loop, options: options) { [weak self] status in self?.exited(status) }
        } catch {
            throw CoterieError(.failed, "cannot run /bin/sh: \(error)")
        }
        if let time {
            timer.start(after: time) { [weak self] in
                self?.endEarly(.timedOut, grace: self?.leaf.options.grace ?? .zero)
            }
        }
    }

    private func exited(_ status: ChildProcess.ExitStatus) {
        // Whatever it left in its group goes with it.
        child?.killGroup(SIGKILL)
        child = nil
        timer.stop()
        if let verdict { return end(verdict) }
        switch status {
        case .exited(let code): end(.exited(code))
        case .signaled(let number): end(.signalled(number))
        }
    }

    /// TERM to the group, KILL after the grace.
    private func endEarly(_ verdict: AttemptOutcome, grace: TimeSpan) {
        guard !isOver, self.verdict == nil, outcome == nil else { return }
        self.verdict = verdict
        guard let child else { return end(verdict) }
        child.kill(signal: SIGTERM, group: true)
        timer.start(after: grace) { [weak self] in self?.child?.kill(signal: SIGKILL, group: true) }
    }

    /// The root does not want it any more.
    func cancel(grace: TimeSpan) {
        if outcome != nil { return end(.cancelled) }
        endEarly(.cancelled, grace: grace)
    }

    // MARK: - The result

    private func end(_ outcome: AttemptOutcome) {
        guard !isOver else { return }
        self.outcome = outcome
        if case .exited(0) = outcome { output?.adoptSize() } else { output = nil }
        pump()
    }

    /// Sends what there is room for.
    func pump() {
        guard let outcome, !isOver else { return }
        while let output, sent < output.count {
            if leaf.isCongested { return }
            do throws(CoterieError) {
                let bytes = try output.read(at: sent, limit: GatherLimits.chunkBytes)
                guard !bytes.isEmpty else { break }
                sent += UInt64(bytes.count)
                leaf.send(.output(order.attempt, bytes))
            } catch {
                return tell(.notStarted(error.message))
            }
        }
        tell(outcome)
    }

    private func tell(_ outcome: AttemptOutcome) {
        leaf.send(.ended(order.attempt, outcome))
        tidy()
        leaf.finished(self)
    }

    /// Kills what runs; nobody is told.
    func abandon() {
        guard !isOver else { return }
        child?.kill(signal: SIGKILL, group: true)
        tidy()
    }

    private func tidy() {
        isOver = true
        timer.close()
        input = nil
        output = nil
        if let directory { removeScratch(directory) }
        directory = nil
    }
}
