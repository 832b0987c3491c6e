// The log sidecar: reads what the pod's other containers say and sends it to where logs are kept. Directory events are
// hints that save time; a scan each second makes sure. Positions are kept by device, inode and the file's first bytes, so
// that rotation by renaming loses and repeats nothing.
import EventLoop
import Glibc
import Model

public final class LogSidecar {
    private let loop: EventLoop
    private let options: LogSidecarOptions
    private let report: Report
    private var pipelines: [LogPipeline] = []
    private var watchers: [String: DirectoryWatcher] = [:]
    private let rescanTimer: LoopTimer
    private let eventTimer: LoopTimer
    private let graceTimer: LoopTimer
    private var eventPending = false
    private var scanNeeded = false
    /// Names of the files that are being written: an event on one of them needs no scan.
    private var currentNames = Set<String>()
    private var stopping: (() -> Void)?
    private var stopped = false
    /// Identities for which some target has a checkpoint: older rotations of plain files are read only if they are known.
    private var knownFiles: () -> Set<FileIdentity> = { [] }

    public init(loop: EventLoop, options: LogSidecarOptions, report: @escaping Report = reportToStandardError) {
        self.loop = loop
        self.options = options
        self.report = report
        rescanTimer = LoopTimer(loop: loop)
        eventTimer = LoopTimer(loop: loop)
        graceTimer = LoopTimer(loop: loop)
    }

    /// Records handed to all targets, repeats included.
    public var recordsSent: UInt64 { pipelines.reduce(0) { $0 + $1.recordsSent } }

    public func start() throws(CoterieError) {
        guard !options.targets.isEmpty, options.targets.count <= 8 else {
            throw CoterieError(.badInput, "between one and eight --to are needed")
        }
        guard Set(options.targets).count == options.targets.count else {
            throw CoterieError(.badInput, "a --to is given twice")
        }
        if let spool = options.spool, mkdir(spool, 0o700) != 0 && errno != EEXIST {
            throw CoterieError(.failed, "cannot make the spool directory \(spool): \(String(cString: strerror(errno)))")
        }
        var files: [CheckpointFile] = []
        var system = SystemRandomNumberGenerator()
        for target in options.targets {
            let name = String(decoding: target.description.utf8.map { isPlain($0) ? $0 : 95 }, as: UTF8.self)
            let checkpoints = try CheckpointFile(path: options.spool.map { "\($0)/\(name).checkpoints" })
            files.append(checkpoints)
            let sink: any LogSink
            switch target.kind {
            case .syslog, .lines: sink = StreamLogSink(loop: loop, target: target, seed: system.next(), report: report)
            case .http(let path):
                sink = HTTPLogSink(loop: loop, target: target, path: path, seed: system.next(), report: report)
            }
            pipelines.append(
                LogPipeline(
                    loop: loop, target: target, sink: sink, checkpoints: checkpoints, pod: options.pod,
                    spoolLimit: options.spoolLimit, report: report))
        }
        knownFiles = { files.reduce(into: []) { $0.formUnion($1.checkpoints.keys) } }
        scan()
        rescanTimer.start(every: .seconds(1)) { [weak self] in self?.scan() }
    }

    /// Sends what is left, unfinished last lines included, for at most the grace period; then `then` is called.
    public func stop(then: @escaping () -> Void = {}) {
        guard stopping == nil, !stopped else { return }
        stopping = then
        scan()
        var left = pipelines.count
        if left == 0 { return end() }
        graceTimer.start(after: options.grace) { [weak self] in
            guard let self else { return }
            report("sidecar: not everything could be sent within \(options.grace)")
            end()
        }
        for pipeline in pipelines {
            pipeline.onFinished = { [weak self] in
                left -= 1
                if left == 0 { self?.end() }
            }
        }
        for pipeline in pipelines { pipeline.finish() }
    }

    private func end() {
        guard !stopped else { return }
        stopped = true
        for pipeline in pipelines { pipeline.close() }
        for (_, watcher) in watchers { watcher.close() }
        watchers = [:]
        rescanTimer.close()
        eventTimer.close()
        graceTimer.close()
        let then = stopping
        stopping = nil
        then?()
    }

    // MARK: - Finding files

    private func scan() {
        guard !stopped else { return }
        scanNeeded = false
        watch()
        let found = findContainerLogs() + findPlainFiles()
        currentNames = Set(found.lazy.filter { $0.age == 0 }.map { lastComponent($0.path) })
        for pipeline in pipelines { pipeline.reconcile(found) }
    }

    private func watch() {
        let wanted = Set(options.files.flatMap { watchedDirectories(of: $0) } + [options.logsDirectory])
        for path in watchers.keys.filter({ !wanted.contains($0) }) { watchers.removeValue(forKey: path)?.close() }
        for path in wanted.sorted() where watchers[path] == nil && watchers.count < 256 {
            // A directory that is not there yet is found by a later scan.
            watchers[path] = try? DirectoryWatcher(loop: loop, path: path) { [weak self] name in self?.event(name) }
        }
    }

    /// Writes come in bursts: a moment is waited, so that one read takes many.
    private func event(_ name: String?) {
        if name.map({ !currentNames.contains($0) }) ?? true { scanNeeded = true }
        guard !eventPending, !stopped else { return }
        eventPending = true
        eventTimer.start(after: .milliseconds(3)) { [weak self] in
            guard let self, !stopped else { return }
            eventPending = false
            if scanNeeded { scan() } else { for pipeline in pipelines { pipeline.pump() } }
        }
    }

    private func findContainerLogs() -> [FoundLog] {
        var found: [FoundLog] = []
        for name in directoryEntries(options.logsDirectory) {
            guard let (container, age) = LogSidecar.containerLog(name), wants(container) else { continue }
            let path = options.logsDirectory + "/" + name
            guard let identity = fileIdentity(path) else { continue }
            found.append(FoundLog(container: container, path: path, identity: identity, isCRI: true, age: age))
        }
        return found.sorted { ($0.container, $1.age) < ($1.container, $0.age) }
    }

    private func wants(_ container: String) -> Bool {
        options.containers.isEmpty ? container != options.ownContainer : options.containers.contains(container)
    }

    /// `NAME.log` or `NAME.log.N`; nil for anything else.
    static func containerLog(_ file: String) -> (container: String, age: Int)? {
        if file.hasSuffix(".log") { return file.utf8.count > 4 ? (String(file.dropLast(4)), 0) : nil }
        guard let dot = file.lastIndex(of: "."), let age = Int(file[file.index(after: dot)...]), age > 0,
            age < 1_000_000
        else { return nil }
        let rest = file[..<dot]
        return rest.hasSuffix(".log") && rest.utf8.count > 4 ? (String(rest.dropLast(4)), age) : nil
    }

    private func findPlainFiles() -> [FoundLog] {
        var found: [FoundLog] = []
        var seen = Set<FileIdentity>()
        let known = knownFiles()
        for pattern in options.files {
            for path in matches(of: pattern) {
                guard let identity = fileIdentity(path), seen.insert(identity).inserted else { continue }
                // Rotations from before a restart that are not wholly sent: those from the known one on.
                let name = lastComponent(path)
                var older: [FoundLog] = []
                for age in 1..<100 {
                    guard let rotated = fileIdentity("\(path).\(age)") else { break }
                    older.append(
                        FoundLog(container: name, path: "\(path).\(age)", identity: rotated, isCRI: false, age: age))
                }
                if let oldest = older.lastIndex(where: { known.contains($0.identity) }) {
                    for log in older[...oldest].reversed() where seen.insert(log.identity).inserted {
                        found.append(log)
                    }
                }
                found.append(FoundLog(container: name, path: path, identity: identity, isCRI: false, age: 0))
            }
        }
        return found
    }

    private func isPlain(_ byte: UInt8) -> Bool {
        (byte | 32 >= 97 && byte | 32 <= 122) || (byte >= 48 && byte <= 57) || byte == 45 || byte == 46
    }
}

/// Nil if there is no regular file.
func fileIdentity(_ path: String) -> FileIdentity? {
    var info = stat()
    guard stat(path, &info) == 0, info.st_mode & S_IFMT == S_IFREG else { return nil }
    return FileIdentity(info)
}
