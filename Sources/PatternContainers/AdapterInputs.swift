// The input files of the record adapter, grouped by the output that they go to, and the common way through them.
import EventLoop
import Glibc
import Model

/// One input and how far it has been dealt with.
final class AdapterInput {
    let file: TailedFile
    let source: RecordSource
    let recordLimit: Int
    var reader: RecordReader
    /// Lines before `file.acknowledged`.
    var acknowledgedLine: UInt64

    init(file: TailedFile, source: RecordSource, recordLimit: Int) {
        self.file = file
        self.source = source
        self.recordLimit = recordLimit
        acknowledgedLine = file.line
        reader = RecordReader(source: source, limit: recordLimit, head: file.bufferOffset > 0 ? file.head(65_536) : [])
    }

    /// Reads again from what is acknowledged.
    func rewind() {
        file.rewind(to: file.acknowledged, line: acknowledgedLine)
        reader = RecordReader(source: source, limit: recordLimit, head: file.acknowledged > 0 ? file.head(65_536) : [])
    }

    func restart() {
        file.restart()
        acknowledgedLine = 0
        reader = RecordReader(source: source, limit: recordLimit)
    }
}

/// An output and the inputs that go into it, oldest first.
final class AdapterGroup {
    let name: String
    let path: String
    var inputs: [AdapterInput] = []
    private(set) var output: AppendedOutput?
    /// After a failure nothing is tried before this.
    var retryAt = MonotonicTime.zero

    init(name: String, directory: String) {
        self.name = name
        path = directory + "/" + name
    }

    /// Opens the output, or opens it anew if its name was given to another file or removed. True if it is another one now.
    func open(_ checkpoints: CheckpointFile) throws(CoterieError) -> Bool {
        if let output, output.isInPlace { return false }
        output = nil
        output = try AppendedOutput(path: path) { identity in
            checkpoints.checkpoints.values.lazy.filter { $0.output == identity }.map(\.outputOffset).max()
        }
        return true
    }

    func close() { output = nil }
}

/// All inputs. What a step through them does is the engine's business.
final class AdapterInputs {
    private let options: RecordAdapterOptions
    private let source: RecordSource
    private let loop: EventLoop
    let checkpoints: CheckpointFile
    private let report: Report
    private(set) var groups: [AdapterGroup] = []
    private var lastReport = MonotonicTime.zero
    private var unreported = 0

    init(
        loop: EventLoop, options: RecordAdapterOptions, source: RecordSource, checkpoints: CheckpointFile,
        report: @escaping Report
    ) {
        self.loop = loop
        self.options = options
        self.source = source
        self.checkpoints = checkpoints
        self.report = report
    }

    func reconcile(_ found: [FoundInput]) {
        for group in groups {
            for input in group.inputs {
                input.file.isGone = true
                input.file.isCurrent = false
            }
        }
        for item in found {
            let group: AdapterGroup
            if let known = groups.first(where: { $0.name == item.name }) {
                group = known
            } else {
                group = AdapterGroup(name: item.name, directory: options.out)
                groups.append(group)
            }
            if let input = groups.lazy.flatMap(\.inputs).first(where: { $0.file.identity == item.identity }) {
                input.file.isGone = false
                input.file.path = item.path
                input.file.isCurrent = lastComponent(item.path) == input.file.name
                if !input.file.headIsUnchanged() { begunAnew(input) }
            } else if let file = TailedFile(
                path: item.path, name: item.name, identity: item.identity,
                checkpoint: checkpoints.checkpoints[item.identity])
            {
                file.isCurrent = item.isCurrent
                group.inputs.append(AdapterInput(file: file, source: source, recordLimit: options.recordLimit))
            }
        }
        let present = Set(found.map(\.identity))
        for group in groups { group.inputs.removeAll { $0.file.isGone && $0.file.acknowledged >= $0.file.size } }
        groups.removeAll { $0.inputs.isEmpty }
        let held = Set(groups.lazy.flatMap(\.inputs).map(\.file.identity))
        checkpoints.remove { !present.contains($0) && !held.contains($0) }
    }

    func begunAnew(_ input: AdapterInput) {
        report("adapter: \(input.file.path) was cut; reading from its start")
        input.restart()
    }

    /// Reads up to 64 KiB more of a file. Nil if there is nothing to do now; else whether what is in the buffer is all that
    /// will come.
    func read(_ input: AdapterInput, in group: AdapterGroup, isFinishing: Bool) -> (didRead: Bool, isLast: Bool)? {
        let file = input.file
        switch file.read(limit: 65_536) {
        case .read:
            file.grown = loop.now
            return (true, false)
        case .end:
            guard !file.buffer.isEmpty else { return nil }
            let quiet = loop.now - file.grown
            // A writer may go on for a moment in a file that was renamed.
            let isOld = file.isGone || (!file.isCurrent && group.inputs.last !== input)
            if isOld && (isFinishing || quiet > .seconds(1)) { return (false, true) }
            // Half a line is no record; several whole ones are when nothing more comes.
            if case .multiline = source, file.buffer.last == 10, isFinishing || quiet >= options.settle {
                return (false, true)
            }
            return nil
        case .truncated:
            begunAnew(input)
            return nil
        case .failed(let why):
            report("adapter: cannot read \(file.path): \(why)")
            return nil
        }
    }

    /// Keeps that `input` is dealt with up to `offset`, and how long the output is.
    func acknowledge(_ input: AdapterInput, offset: UInt64, line: UInt64, output: AppendedOutput?) {
        input.file.acknowledged = offset
        input.acknowledgedLine = line
        var checkpoint = input.file.checkpoint(offset: offset, line: line)
        if let output {
            checkpoint.output = output.identity
            checkpoint.outputOffset = output.length
        }
        if let error = checkpoints.save(checkpoint) { report("adapter: \(error)") }
    }

    /// Tells of a bad record, at most once a second.
    func tell(_ error: RecordError, _ input: AdapterInput, line: UInt64) {
        guard loop.now - lastReport >= .seconds(1) else {
            unreported += 1
            return
        }
        let more = unreported > 0 ? "; \(unreported) more before it" : ""
        report("adapter: \(input.file.path):\(line): passed over: \(error.message)\(more)")
        lastReport = loop.now
        unreported = 0
    }
}

/// Line feeds in the first `end` bytes.
func lineFeeds(_ bytes: [UInt8], before end: Int) -> Int {
    var count = 0
    for i in 0..<end where bytes[i] == 10 { count += 1 }
    return count
}
