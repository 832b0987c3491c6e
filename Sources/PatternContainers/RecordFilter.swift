// `--filter`: records go, a line each, through one long-lived command that answers each with a line; an empty line drops the
// record. What a command that died had not answered is asked of its successor.
import EventLoop
import Model

final class RecordFilter: AdapterEngine {
    /// A line that waits for its answer.
    private struct Asked {
        var group: AdapterGroup
        var input: AdapterInput
        var generation: Int
        /// Where the input is dealt with once this line is.
        var offset: UInt64
        var line: UInt64
        /// Of the question, with its line feed.
        var bytes: Int
    }

    private let loop: EventLoop
    private let command: String
    private let inputs: AdapterInputs
    private let report: Report
    private var child: ChildCommand?
    private let timer: LoopTimer
    private let stall: LoopTimer
    private var backOff = BackOff(first: .milliseconds(100), longest: .seconds(10))
    private var generator: SeededGenerator
    private var asked = FIFO<Asked>()
    private var askedBytes = 0
    private var answer: [UInt8] = []
    private var isWaiting = false
    private var stopping: (() -> Void)?
    private var isStopping = false
    private var saidStalled = false
    private var saidUnasked = false
    private(set) var recordsWritten: UInt64 = 0

    private static let askedLimit = 256
    private static let askedBytesLimit = 256 << 10
    private static let answerLimit = 16 << 20

    init(
        loop: EventLoop, options: RecordAdapterOptions, command: String, checkpoints: CheckpointFile,
        report: @escaping Report
    ) {
        self.loop = loop
        self.command = command
        self.report = report
        inputs = AdapterInputs(loop: loop, options: options, source: .lines, checkpoints: checkpoints, report: report)
        timer = LoopTimer(loop: loop)
        stall = LoopTimer(loop: loop)
        var system = SystemRandomNumberGenerator()
        generator = SeededGenerator(seed: system.next())
    }

    func reconcile(_ found: [FoundInput]) {
        inputs.reconcile(found)
        pump()
    }

    // MARK: - Asking

    func pump() {
        guard !isWaiting else { return }
        for group in inputs.groups {
            for input in group.inputs {
                take(input, group, isLast: false)
                while hasRoom, let step = inputs.read(input, in: group, isFinishing: isStopping) {
                    take(input, group, isLast: step.isLast)
                    if !step.didRead { break }
                }
            }
        }
    }

    private var hasRoom: Bool {
        !isWaiting && asked.count < RecordFilter.askedLimit && askedBytes < RecordFilter.askedBytesLimit
    }

    /// Asks the lines that are whole, as long as there is room.
    private func take(_ input: AdapterInput, _ group: AdapterGroup, isLast: Bool) {
        let file = input.file
        guard !file.buffer.isEmpty, hasRoom else { return }
        let buffer = file.buffer
        var out: [UInt8] = []
        var at = 0
        var lines: UInt64 = 0
        taking: while hasRoom {
            switch input.reader.next(buffer, from: at, isLast: isLast) {
            case .record(let record, let end):
                at = end
                lines += 1
                out.append(contentsOf: record.raw)
                out.append(10)
                askedBytes += record.raw.count + 1
                asked.append(
                    Asked(
                        group: group, input: input, generation: file.generation,
                        offset: file.bufferOffset + UInt64(end),
                        line: file.line + lines, bytes: record.raw.count + 1))
            case .skip(let end): at = end
            case .bad(let error, let end):
                inputs.tell(error, input, line: file.line + lines + 1)
                at = end
                lines += 1
            case .more: break taking
            }
        }
        guard at > 0 else { return }
        file.consume(at, lines: Int(lines))
        guard !out.isEmpty, start() else { return }
        child?.input?.write(out)
        if !saidStalled { stall.start(after: .seconds(10)) { [weak self] in self?.stalled() } }
    }

    private func start() -> Bool {
        if child != nil { return true }
        do throws(CoterieError) {
            let child = try ChildCommand(loop: loop, words: ["/bin/sh", "-c", command], input: .pipe, output: .pipe) {
                [weak self] code in
                self?.ended(code)
            }
            self.child = child
            child.output?.onBytes = { [weak self] bytes in self?.received(bytes) }
            child.output?.resumeReading()
            return true
        } catch {
            failed("cannot be started: \(error.message)")
            return false
        }
    }

    private func stalled() {
        guard !asked.isEmpty else { return }
        saidStalled = true
        report(
            "adapter: the filter has not answered for 10 s: it must write a line for each line at once (sed -u, stdbuf -oL)"
        )
    }

    // MARK: - Answers

    private func received(_ bytes: UnsafeRawBufferPointer) {
        answer.append(contentsOf: bytes)
        stall.stop()
        var start = 0
        var touched: [AdapterGroup] = []
        var outputs: [ObjectIdentifier: [UInt8]] = [:]
        var last: [ObjectIdentifier: [Asked]] = [:]
        while let end = indexOfLineFeed(answer, from: start) {
            let line = answer[start..<end]
            start = end + 1
            guard let question = asked.popFirst() else {
                if !saidUnasked { report("adapter: the filter writes more lines than it is given; they are dropped") }
                saidUnasked = true
                continue
            }
            askedBytes -= question.bytes
            let key = ObjectIdentifier(question.group)
            if !touched.contains(where: { $0 === question.group }) { touched.append(question.group) }
            if !line.isEmpty {
                outputs[key, default: []].append(contentsOf: line)
                outputs[key, default: []].append(10)
                recordsWritten += 1
            }
            last[key, default: []].removeAll { $0.input === question.input }
            last[key, default: []].append(question)
        }
        answer.removeFirst(start)
        guard answer.count <= RecordFilter.answerLimit else {
            return failed("wrote a line of more than \(RecordFilter.answerLimit) bytes")
        }
        for group in touched {
            let key = ObjectIdentifier(group)
            do throws(CoterieError) {
                _ = try group.open(inputs.checkpoints)
                if let bytes = outputs[key], let error = group.output?.append(bytes) { throw error }
            } catch {
                return failed("is stopped: \(error.message)")
            }
            for question in last[key] ?? [] where question.generation == question.input.file.generation {
                inputs.acknowledge(question.input, offset: question.offset, line: question.line, output: group.output)
            }
        }
        backOff.reset()
        if !asked.isEmpty { stall.start(after: .seconds(10)) { [weak self] in self?.stalled() } }
        pump()
        finishIfDone()
    }

    // MARK: - Ends

    private func ended(_ code: Int32) {
        child = nil
        if isStopping && asked.isEmpty { return finish() }
        failed("ended with \(code)")
    }

    /// All that was not answered is asked again of a new command, a little later.
    private func failed(_ why: String) {
        child?.kill()
        child?.forget()
        child = nil
        stall.stop()
        answer = []
        asked = FIFO()
        askedBytes = 0
        for group in inputs.groups { for input in group.inputs { input.rewind() } }
        if isStopping { return finish() }
        isWaiting = true
        report("adapter: the filter \(why); started again")
        timer.start(after: backOff.next(using: &generator)) { [weak self] in
            self?.isWaiting = false
            self?.pump()
        }
    }

    func stop(_ done: @escaping () -> Void) {
        isStopping = true
        stopping = done
        pump()
        // A command that keeps its answers back says them when its input ends.
        if hasRoom { child?.input?.shutdown() }
        timer.start(after: .seconds(5)) { [weak self] in self?.finish() }
        finishIfDone()
    }

    private func finishIfDone() {
        guard isStopping, stopping != nil else { return }
        if asked.isEmpty && inputs.groups.allSatisfy({ $0.inputs.allSatisfy { $0.file.readOffset >= $0.file.size } }) {
            finish()
        } else if hasRoom {
            child?.input?.shutdown()
        }
    }

    private func finish() {
        guard let done = stopping else { return }
        stopping = nil
        child?.kill()
        child?.forget()
        child = nil
        timer.close()
        stall.close()
        done()
    }
}
