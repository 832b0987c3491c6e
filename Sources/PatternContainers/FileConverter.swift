// `--convert`: each whole file once through a command, stdin to stdout; the result takes its name when the command has
// succeeded, so that nobody sees a half. A file counts as whole when it has not changed for a while.
import EventLoop
import Glibc
import Model

final class FileConverter: AdapterEngine {
    /// What tells one content of a file from another without reading it.
    private struct Stamp: Equatable {
        var size: UInt64
        var modified: UInt64

        init(_ info: stat) {
            size = UInt64(max(info.st_size, 0))
            modified = UInt64(clamping: info.st_mtim.tv_sec) &* 1_000_000_000 &+ UInt64(clamping: info.st_mtim.tv_nsec)
        }
    }

    private struct Candidate {
        var input: FoundInput
        var stamp: Stamp
        /// When it was first seen like this.
        var since: MonotonicTime
        /// Not before this: it changed lately, or failed.
        var due: MonotonicTime
        var failures = 0
    }

    private struct Run {
        var input: FoundInput
        var stamp: Stamp
        var child: ChildCommand?
        var headLength: UInt32
        var headChecksum: UInt32
    }

    private let loop: EventLoop
    private let options: RecordAdapterOptions
    private let command: String
    private let checkpoints: CheckpointFile
    private let report: Report
    private let timer: LoopTimer
    private var candidates: [FileIdentity: Candidate] = [:]
    private var order: [FileIdentity] = []
    private var running: [FileIdentity: Run] = [:]
    private var stopping: (() -> Void)?
    private var isStopping = false
    private(set) var recordsWritten: UInt64 = 0

    private static let runLimit = 2

    init(
        loop: EventLoop, options: RecordAdapterOptions, command: String, checkpoints: CheckpointFile,
        report: @escaping Report
    ) {
        self.loop = loop
        self.options = options
        self.command = command
        self.checkpoints = checkpoints
        self.report = report
        timer = LoopTimer(loop: loop)
    }

    func reconcile(_ found: [FoundInput]) {
        var next: [FileIdentity: Candidate] = [:]
        order = []
        for item in found where !isConverted(item.identity, stamp(item.path)) {
            guard let stamp = stamp(item.path) else { continue }
            if var known = candidates[item.identity], known.stamp == stamp {
                known.input = item
                next[item.identity] = known
            } else {
                next[item.identity] = Candidate(
                    input: item, stamp: stamp, since: loop.now, due: loop.now + options.settle)
            }
            order.append(item.identity)
        }
        candidates = next
        let present = Set(found.map(\.identity))
        checkpoints.remove { !present.contains($0) && running[$0] == nil }
        pump()
    }

    private func stamp(_ path: String) -> Stamp? {
        var info = stat()
        return stat(path, &info) == 0 && info.st_mode & S_IFMT == S_IFREG ? Stamp(info) : nil
    }

    private func isConverted(_ identity: FileIdentity, _ stamp: Stamp?) -> Bool {
        guard let stamp, let checkpoint = checkpoints.checkpoints[identity] else { return false }
        return checkpoint.offset == stamp.size && checkpoint.modified == stamp.modified
    }

    func pump() {
        guard !isStopping else { return }
        let now = loop.now
        var soonest = MonotonicTime.distantFuture
        for identity in order where running[identity] == nil {
            guard var candidate = candidates[identity] else { continue }
            guard let current = stamp(candidate.input.path) else { continue }
            if current != candidate.stamp {
                candidate = Candidate(input: candidate.input, stamp: current, since: now, due: now + options.settle)
                candidates[identity] = candidate
            }
            if candidate.due > now {
                soonest = min(soonest, candidate.due)
            } else if running.count < FileConverter.runLimit,
                !running.values.contains(where: { $0.input.name == candidate.input.name })
            {
                begin(candidate)
            }
        }
        if soonest != .distantFuture { timer.start(after: soonest - now) { [weak self] in self?.pump() } }
    }

    private func outputPath(_ input: FoundInput) -> String { options.out + "/" + input.name }

    private func begin(_ candidate: Candidate) {
        let identity = candidate.input.identity
        let path = outputPath(candidate.input)
        do throws(CoterieError) {
            let source = open(candidate.input.path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
            guard source >= 0 else {
                throw CoterieError(.failed, "cannot read it: \(String(cString: strerror(errno)))")
            }
            defer { close(source) }
            var info = stat()
            guard fstat(source, &info) == 0, FileIdentity(info) == identity, Stamp(info) == candidate.stamp else {
                return
            }
            let length = min(Int(clamping: candidate.stamp.size), Checkpoint.headBytes)
            let checksum = Checkpoint.headChecksum(source, length: length) ?? 0
            let target = try ReplacedOutput.openTemporary(path)
            defer { close(target) }
            var run = Run(
                input: candidate.input, stamp: candidate.stamp, child: nil, headLength: UInt32(length),
                headChecksum: checksum)
            run.child = try ChildCommand(
                loop: loop, words: ["/bin/sh", "-c", command], environment: ["COTERIE_INPUT": candidate.input.path],
                input: .descriptor(source), output: .descriptor(target)
            ) { [weak self] code in self?.ended(identity, code) }
            running[identity] = run
        } catch {
            ReplacedOutput.discard(path)
            failed(identity, error.message)
        }
    }

    private func ended(_ identity: FileIdentity, _ code: Int32) {
        guard let run = running.removeValue(forKey: identity) else { return }
        let path = outputPath(run.input)
        if code != 0 {
            ReplacedOutput.discard(path)
            failed(
                identity,
                code >= 128 ? "the command was ended by signal \(code - 128)" : "the command ended with \(code)")
        } else if let now = stamp(run.input.path), now != run.stamp, fileIdentity(run.input.path) == identity {
            // Written to meanwhile: what the command saw was no whole file.
            ReplacedOutput.discard(path)
        } else {
            do throws(CoterieError) {
                try ReplacedOutput.commit(path)
                recordsWritten += 1
                candidates[identity] = nil
                var checkpoint = Checkpoint(
                    file: identity, offset: run.stamp.size, headLength: run.headLength, headChecksum: run.headChecksum,
                    name: run.input.name)
                checkpoint.modified = run.stamp.modified
                if let error = checkpoints.save(checkpoint) { report("adapter: \(error)") }
            } catch {
                failed(identity, error.message)
            }
        }
        if running.isEmpty, let done = stopping {
            stopping = nil
            timer.close()
            return done()
        }
        pump()
    }

    /// Tried again later and later, up to a minute apart.
    private func failed(_ identity: FileIdentity, _ why: String) {
        guard var candidate = candidates[identity] else { return }
        let delay = min(TimeSpan.seconds(1) * (1 << min(candidate.failures, 6)), .seconds(60))
        candidate.failures += 1
        candidate.due = loop.now + delay
        candidates[identity] = candidate
        report("adapter: \(candidate.input.path) is not converted: \(why); tried again in \(delay)")
    }

    func stop(_ done: @escaping () -> Void) {
        isStopping = true
        guard !running.isEmpty else {
            timer.close()
            return done()
        }
        stopping = done
        timer.start(after: .seconds(5)) { [weak self] in
            guard let self else { return }
            // Each ends with a signal now, and leaves nothing behind.
            for run in running.values { run.child?.kill() }
        }
    }
}
