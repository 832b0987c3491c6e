// What becomes of results at the root: each shard's one result waits until its turn, then goes to the output, or to the
// merge's stdin and the merge's stdout to the output. Memory is bounded; the rest is on disk.
//
//     accepted ─▶ kept by shard ── in order ──▶ output ─▶ clients
//                                      └─▶ merge ──▲
import EventLoop
import Glibc
import Model
import ScatterGather

final class GatherResults {
    private let loop: EventLoop
    private let options: GatherRootOptions
    private let scratch: String
    private var order: ResultOrder
    private var kept: [Int: ResultBuffer] = [:]
    private var memory = 0
    /// The shard whose result is being passed on, and how far.
    private var current: (shard: Int, buffer: ResultBuffer, offset: UInt64)?
    private let output: SegmentedSpool
    /// What the merge writes.
    private let merged: SpoolFile?
    /// Bytes of the output that may be told: those of a merge only when it has succeeded.
    private(set) var available: UInt64 = 0
    private var merge: ChildProcess?
    /// It has ended well, perhaps before it had read everything.
    private var mergeSucceeded = false
    private var mergeDirectory: String?
    private var filesDirectory: String?
    /// All shards are final: their number.
    private var total: Int?
    private var isDone = false

    /// More of the result is there.
    var onOutput: (() -> Void)?
    /// The result is whole, or why it never will be. Once.
    var onDone: ((String?) -> Void)?

    init(loop: EventLoop, options: GatherRootOptions, scratch: String) throws(CoterieError) {
        self.loop = loop
        self.options = options
        self.scratch = scratch
        order = ResultOrder(ordered: !options.unordered, skipsMissing: options.unordered || options.plan.minSuccess < 1)
        output = SegmentedSpool(in: scratch)
        merged = options.merge == nil ? nil : try SpoolFile(in: scratch)
        if options.mergeFiles {
            let directory = scratch + "/results"
            mkdir(directory, 0o755)
            filesDirectory = directory
        }
    }

    func newBuffer() -> ResultBuffer { ResultBuffer(directory: scratch) }

    func read(at offset: UInt64, limit: Int) throws(CoterieError) -> [UInt8] {
        let limit = Int(min(UInt64(limit), available > offset ? available - offset : 0))
        if let merged { return try merged.read(at: offset, limit: limit) }
        return try output.read(at: offset, limit: limit)
    }

    /// The client has passed on so much: it need not be kept.
    func forget(before offset: UInt64) { output.forget(before: offset) }

    // MARK: - Results in

    func accept(_ shard: Int, _ buffer: ResultBuffer) throws(CoterieError) {
        if let filesDirectory {
            let digits = String(shard)
            try buffer.write(
                to: filesDirectory + "/" + String(repeating: "0", count: max(0, 6 - digits.count)) + digits)
        }
        if memory + buffer.bytesInMemory > options.resultMemory { try buffer.spill() }
        memory += buffer.bytesInMemory
        kept[shard] = buffer
    }

    /// After ``accept(_:_:)``, if there is a result.
    func settled(_ shard: Int, hasResult: Bool) {
        order.settled(shard, hasResult: hasResult)
        if !options.mergeFiles { pump() }
    }

    /// Nothing more comes. A job that has failed as a whole has no merge.
    func finish(total: Int, state: GatherState) {
        guard self.total == nil else { return }
        self.total = total
        if options.merge != nil && (state == .failed || state == .cancelled) {
            killMerge()
            return done(nil)
        }
        pump()
    }

    // MARK: - Results out

    private func pump() {
        guard !isDone else { return }
        if mergeSucceeded {
            discardRest()
            if total != nil { mergeDone() }
            return
        }
        do throws(CoterieError) {
            if options.merge != nil, merge == nil, total != nil || current != nil || peek() { try startMerge() }
            while peek(), let (_, buffer, offset) = current {
                if let input = merge?.input, input.isCongested { return }
                let bytes = try buffer.read(at: offset, limit: 256 << 10)
                current?.offset += UInt64(bytes.count)
                if options.merge == nil {
                    try output.append(bytes)
                    available = output.count
                } else {
                    merge?.input?.write(bytes)
                }
                if offset + UInt64(bytes.count) >= buffer.count {
                    memory -= buffer.bytesInMemory
                    current = nil
                }
            }
        } catch {
            return done(error.message)
        }
        if options.merge == nil { onOutput?() }
        guard total != nil else { return }
        if options.merge == nil { done(nil) } else { closeMergeInput() }
    }

    /// A pipe has no half that could be shut down: it is closed when everything has left.
    private func closeMergeInput() {
        guard let input = merge?.input, !input.isClosed else { return }
        if input.queuedBytes == 0 { return input.close() }
        input.onDrain = { [weak self] in self?.closeMergeInput() }
        input.lowWater = 0
    }

    /// Sees to it that `current` is what comes next; false if there is nothing now.
    private func peek() -> Bool {
        if current != nil { return true }
        guard let shard = order.take(), let buffer = kept.removeValue(forKey: shard) else { return false }
        current = (shard, buffer, 0)
        return true
    }

    // MARK: - The merge

    private func startMerge() throws(CoterieError) {
        guard let command = options.merge, mergeDirectory == nil else { return }
        let directory = try makeScratch(in: options.scratch)
        mergeDirectory = directory
        var child = ChildProcess.Options(program: "/bin/sh", arguments: ["-c", command])
        var added = ["COTERIE_JOB": options.gather, "COTERIE_NODE": options.node]
        if let total { added["COTERIE_SHARDS"] = "\(total)" }
        added["COTERIE_RESULTS"] = filesDirectory
        child.environment = gatherEnvironment(home: environmentValue("HOME") ?? directory, added)
        child.directory = directory
        child.input = .pipe
        if let merged { child.output = .descriptor(merged.descriptor) }
        child.newSession = true
        child.parentDeathSignal = SIGKILL
        do throws(UVError) {
            let merge = try ChildProcess(loop: loop, options: child) { [weak self] status in self?.mergeEnded(status) }
            self.merge = merge
            // A merge that has read enough closes its stdin; how it ends says whether that is well.
            merge.input?.onClose = { _ in }
            merge.input?.onDrain = { [weak self] in self?.pump() }
        } catch {
            throw CoterieError(.failed, "cannot run the merge: \(error)")
        }
    }

    private func mergeEnded(_ status: ChildProcess.ExitStatus) {
        guard !isDone else { return }
        merge?.killGroup(SIGKILL)
        guard status == .exited(0) else { return done("the merge ended with \(status)") }
        merged?.adoptSize()
        available = merged?.count ?? 0
        mergeSucceeded = true
        pump()
    }

    private func mergeDone() {
        onOutput?()
        done(nil)
    }

    /// The merge was satisfied early: what comes later is of no use.
    private func discardRest() {
        current = nil
        kept = [:]
        memory = 0
    }

    private func killMerge() {
        merge?.input?.close()
        merge?.killGroup(SIGKILL)
        merge = nil
    }

    /// The job's time is over.
    func endMerge(_ why: String) {
        guard !isDone else { return }
        killMerge()
        done(why)
    }

    private func done(_ why: String?) {
        guard !isDone else { return }
        isDone = true
        if why != nil { killMerge() }
        let report = onDone
        onDone = nil
        report?(why)
    }

    func close() {
        isDone = true
        onDone = nil
        onOutput = nil
        killMerge()
        if let mergeDirectory { removeScratch(mergeDirectory) }
        mergeDirectory = nil
    }
}
