// `--from` and `--to`: records are read in one form and written in another, one batch, one write, one checkpoint.
import EventLoop
import Model

final class RecordConverter: AdapterEngine {
    private let loop: EventLoop
    private let to: RecordForm
    private let inputs: AdapterInputs
    private let report: Report
    private var writers: [String: RecordWriter] = [:]
    private let again: LoopTimer
    private var isStopping = false
    private(set) var recordsWritten: UInt64 = 0
    private var saidLeftOut = false
    private var saidFull = false

    /// Bytes read in one turn of the loop, before others get theirs.
    private static let turnBytes = 2 << 20

    init(
        loop: EventLoop, options: RecordAdapterOptions, from: RecordSource, to: RecordForm, checkpoints: CheckpointFile,
        report: @escaping Report
    ) {
        self.loop = loop
        self.to = to
        self.report = report
        inputs = AdapterInputs(loop: loop, options: options, source: from, checkpoints: checkpoints, report: report)
        again = LoopTimer(loop: loop)
    }

    func reconcile(_ found: [FoundInput]) {
        inputs.reconcile(found)
        let names = Set(inputs.groups.map(\.name))
        for name in writers.keys.filter({ !names.contains($0) }) { writers[name] = nil }
        pump()
    }

    func stop(_ done: @escaping () -> Void) {
        isStopping = true
        while work() {}
        again.close()
        done()
    }

    func pump() { work() }

    /// True if there is more to do at once.
    @discardableResult
    private func work() -> Bool {
        var left = RecordConverter.turnBytes
        for group in inputs.groups where loop.now >= group.retryAt {
            inputs: for input in group.inputs {
                while left > 0, let step = inputs.read(input, in: group, isFinishing: isStopping) {
                    left -= max(input.file.buffer.count, 1)
                    do throws(CoterieError) {
                        try convert(input, group, isLast: step.isLast)
                    } catch {
                        report("adapter: \(error.message); tried again")
                        group.retryAt = loop.now + .seconds(1)
                        group.close()
                        writers[group.name] = nil
                        input.rewind()
                        // Nor the next one before it: records keep their order.
                        break inputs
                    }
                    if !step.didRead { break }
                }
            }
        }
        guard left <= 0 else { return false }
        if !isStopping { again.start(after: .zero) { [weak self] in self?.pump() } }
        return true
    }

    private func convert(_ input: AdapterInput, _ group: AdapterGroup, isLast: Bool) throws(CoterieError) {
        let replaces = RecordWriter.replaces(to)
        if replaces {
            if writers[group.name] == nil {
                writers[group.name] = RecordWriter(form: to, existing: ReplacedOutput.read(group.path, limit: 16 << 20))
            }
        } else if try group.open(inputs.checkpoints) || writers[group.name] == nil {
            writers[group.name] = RecordWriter(form: to, existing: group.output?.head ?? [])
        }
        guard var writer = writers.removeValue(forKey: group.name) else { return }
        let file = input.file
        let buffer = file.buffer
        var out: [UInt8] = []
        var at = 0
        var records: UInt64 = 0
        stepping: while true {
            switch input.reader.next(buffer, from: at, isLast: isLast) {
            case .record(let record, let end):
                if !writer.add(record, to: &out), !saidFull {
                    saidFull = true
                    report("adapter: \(group.path) has \(PrometheusText.limit) series; new ones are left out")
                }
                records += 1
                at = end
            case .skip(let end): at = end
            case .bad(let error, let end):
                inputs.tell(error, input, line: file.line + UInt64(lineFeeds(buffer, before: at)) + 1)
                at = end
            case .more: break stepping
            }
        }
        if writer.fieldsLeftOut > 0 && !saidLeftOut {
            saidLeftOut = true
            report("adapter: \(group.path): fields that the header lacks are left out")
        }
        if replaces {
            if records > 0 { try ReplacedOutput.write(group.path, writer.whole) }
        } else if !out.isEmpty, let error = group.output?.append(out) {
            throw error
        }
        writers[group.name] = writer
        recordsWritten += records
        guard at > 0 else { return }
        file.consume(at, lines: lineFeeds(buffer, before: at))
        if !input.reader.isSkipping {
            inputs.acknowledge(input, offset: file.bufferOffset, line: file.line, output: replaces ? nil : group.output)
        }
    }
}
