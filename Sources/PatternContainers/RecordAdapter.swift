// The record adapter: watches what the app writes in its own form and puts it out in the form that the rest of the world
// wants (Burns and Oppenheimer's adapter). Directory events are hints; a scan each second finds what they miss: libuv tells
// neither overflow nor the first files of a new directory. Files are known by device, inode and their first bytes.
//
//     --watch globs ─scan─▶ inputs ─whole records─▶ engine ─▶ outputs of the same names in --out
//                                        checkpoints ◀──────────┘ (after each write)
import EventLoop
import Glibc
import Model

/// An input file as a scan found it.
struct FoundInput: Equatable {
    var path: String
    var identity: FileIdentity
    /// The output's name.
    var name: String
    /// Not renamed since: its writer may still write to it.
    var isCurrent: Bool
}

/// One of the three ways in which inputs become outputs. Confined to the loop.
protocol AdapterEngine: AnyObject {
    /// Takes note of what there is, and works on it.
    func reconcile(_ found: [FoundInput])
    /// Something may have been written.
    func pump()
    /// Ends what has begun; `done` is called once nothing runs any more.
    func stop(_ done: @escaping () -> Void)
    /// Bytes of output and whole files written.
    var recordsWritten: UInt64 { get }
}

public final class RecordAdapter {
    private let loop: EventLoop
    private let options: RecordAdapterOptions
    private let report: Report
    private var engine: (any AdapterEngine)?
    private var checkpoints: CheckpointFile?
    private var watchers: [String: DirectoryWatcher] = [:]
    private let rescanTimer: LoopTimer
    private let eventTimer: LoopTimer
    private var eventPending = false
    private var scanNeeded = false
    private var currentNames = Set<String>()
    private var saidTwice = Set<String>()
    private var outIdentity = FileIdentity(device: 0, inode: 0)
    private var stopped = false

    public init(loop: EventLoop, options: RecordAdapterOptions, report: @escaping Report = reportToStandardError) {
        self.loop = loop
        self.options = options
        self.report = report
        rescanTimer = LoopTimer(loop: loop)
        eventTimer = LoopTimer(loop: loop)
    }

    /// Records, or whole files, that are in the outputs by now.
    public var recordsWritten: UInt64 { engine?.recordsWritten ?? 0 }

    public func start() throws(CoterieError) {
        if mkdir(options.out, 0o755) != 0 && errno != EEXIST {
            throw CoterieError(.failed, "cannot make the directory \(options.out): \(String(cString: strerror(errno)))")
        }
        guard let out = directoryIdentity(options.out) else {
            throw CoterieError(.badInput, "--out \(options.out) is not a directory")
        }
        outIdentity = out
        for pattern in options.watch where directoryIdentity(parentDirectory(pattern)) == out {
            throw CoterieError(.badInput, "--watch \(pattern) would watch the adapter's own output in \(options.out)")
        }
        let checkpoints = try CheckpointFile(path: options.out + "/.coterie-adapter.checkpoints")
        self.checkpoints = checkpoints
        switch options.work {
        case .records(let from, let to):
            engine = RecordConverter(
                loop: loop, options: options, from: from, to: to, checkpoints: checkpoints, report: report)
        case .filter(let command):
            engine = RecordFilter(
                loop: loop, options: options, command: command, checkpoints: checkpoints, report: report)
        case .convert(let command):
            engine = FileConverter(
                loop: loop, options: options, command: command, checkpoints: checkpoints, report: report)
        }
        scan()
        rescanTimer.start(every: .milliseconds(900)) { [weak self] in self?.scan() }
    }

    /// Deals with what is whole, then `then` is called.
    public func stop(then: @escaping () -> Void = {}) {
        guard !stopped else { return then() }
        scan()
        stopped = true
        for (_, watcher) in watchers { watcher.close() }
        watchers = [:]
        rescanTimer.close()
        eventTimer.close()
        guard let engine else { return then() }
        engine.stop { [self] in
            self.engine = nil
            checkpoints = nil
            then()
        }
    }

    // MARK: - Finding files

    private func scan() {
        guard !stopped, let engine else { return }
        scanNeeded = false
        watch()
        let found = find()
        currentNames = Set(found.lazy.filter(\.isCurrent).map { lastComponent($0.path) })
        engine.reconcile(found)
    }

    private func watch() {
        let wanted = Set(options.watch.flatMap { watchedDirectories(of: $0) })
        for path in watchers.keys.filter({ !wanted.contains($0) }) { watchers.removeValue(forKey: path)?.close() }
        for path in wanted.sorted()
        where watchers[path] == nil && watchers.count < 256 && directoryIdentity(path) != outIdentity {
            watchers[path] = try? DirectoryWatcher(loop: loop, path: path) { [weak self] name in self?.event(name) }
        }
    }

    /// Writes come in bursts: a moment is waited, so that one read takes many.
    private func event(_ name: String?) {
        if name.map({ !currentNames.contains($0) }) ?? true { scanNeeded = true }
        guard !eventPending, !stopped else { return }
        eventPending = true
        eventTimer.start(after: .milliseconds(1)) { [weak self] in
            guard let self, !stopped else { return }
            eventPending = false
            if scanNeeded { scan() } else { engine?.pump() }
        }
    }

    /// Inputs by output, renamed ones before the one being written.
    private func find() -> [FoundInput] {
        var found: [FoundInput] = []
        var seen = Set<FileIdentity>()
        var owners: [String: String] = [:]
        let known = checkpoints?.checkpoints ?? [:]
        func add(_ path: String, _ identity: FileIdentity, _ name: String) {
            guard seen.insert(identity).inserted else { return }
            let directory = parentDirectory(path)
            if let owner = owners[name], owner != directory {
                if saidTwice.insert(path).inserted {
                    report(
                        "adapter: \(path) is left out: \(owner) has a file of the same name, and outputs are named as inputs"
                    )
                }
                return
            }
            owners[name] = directory
            found.append(FoundInput(path: path, identity: identity, name: name, isCurrent: lastComponent(path) == name))
        }
        for pattern in options.watch {
            for path in matches(of: pattern) where directoryIdentity(parentDirectory(path)) != outIdentity {
                guard let identity = fileIdentity(path) else { continue }
                // Rotations that are not wholly dealt with: they may have other names than the pattern's by now.
                var older: [(path: String, identity: FileIdentity, name: String)] = []
                for age in 1..<100 {
                    guard let other = fileIdentity("\(path).\(age)") else { break }
                    if let name = outputName("\(path).\(age)", known[other]) {
                        older.append(("\(path).\(age)", other, name))
                    }
                }
                for log in older.reversed() { add(log.path, log.identity, log.name) }
                add(path, identity, outputName(path, known[identity]) ?? lastComponent(path))
            }
        }
        // A renamed file that a pattern still matches may come after the new one; it is older all the same.
        return found.filter { !$0.isCurrent } + found.filter(\.isCurrent)
    }
}

/// The name under which a file was dealt with before it was renamed; nil if the checkpoint is of a file that the number
/// belonged to once.
private func outputName(_ path: String, _ checkpoint: Checkpoint?) -> String? {
    guard let checkpoint, lastComponent(path).hasPrefix(checkpoint.name) else { return nil }
    return checkpoint.name
}

/// Nil if there is no directory.
func directoryIdentity(_ path: String) -> FileIdentity? {
    var info = stat()
    guard stat(path, &info) == 0, info.st_mode & S_IFMT == S_IFDIR else { return nil }
    return FileIdentity(info)
}
