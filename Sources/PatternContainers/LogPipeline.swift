// From files to one target: every target reads the files on its own and keeps its own checkpoints, so that one that is down
// does not hold up the others.
import EventLoop
import Glibc
import Model

/// What the sidecar found in the file system: one log, under one of its names.
struct FoundLog: Equatable {
    /// The container, or the file's name for plain files.
    var container: String
    var path: String
    var identity: FileIdentity
    /// In the CRI format; else plain lines.
    var isCRI: Bool
    /// Rotations since: 0 is the one being written, older ones have more.
    var age: Int
}

final class LogPipeline {
    /// The files of one container, oldest first.
    private final class Source {
        let container: String
        let isCRI: Bool
        var files: [TailedFile] = []
        var joiner = CRIJoiner()

        init(container: String, isCRI: Bool) {
            self.container = container
            self.isCRI = isCRI
        }
    }

    private struct Position {
        var file: TailedFile
        var generation: Int
        var offset: UInt64
    }

    private struct Batch {
        var positions: [Position]
    }

    let target: LogTarget
    private let loop: EventLoop
    private let sink: any LogSink
    private let checkpoints: CheckpointFile
    private let pod: String
    private let spoolLimit: UInt64
    private let report: Report
    private var sources: [Source] = []
    private var inFlight = FIFO<Batch>()
    private var isFinishing = false
    private var isPumping = false
    private(set) var recordsSent: UInt64 = 0

    private static let batchBytes = 128 << 10
    private static let readBytes = 64 << 10
    /// A line longer than this is sent in pieces.
    private static let lineLimit = 1 << 20

    /// All that is in the files has arrived; after ``finish()`` only.
    var onFinished: (() -> Void)?

    init(
        loop: EventLoop, target: LogTarget, sink: any LogSink, checkpoints: CheckpointFile, pod: String,
        spoolLimit: UInt64, report: @escaping Report
    ) {
        self.loop = loop
        self.target = target
        self.sink = sink
        self.checkpoints = checkpoints
        self.pod = pod
        self.spoolLimit = spoolLimit
        self.report = report
        sink.onReady = { [weak self] in self?.pump() }
        sink.onArrived = { [weak self] count in self?.arrived(count) }
        sink.onLost = { [weak self] in self?.lost() }
    }

    func close() {
        onFinished = nil
        sink.close()
        sources = []
    }

    /// Takes note of what is there now, sorted by container and age, oldest first.
    func reconcile(_ found: [FoundLog]) {
        for source in sources {
            for file in source.files {
                file.isGone = true
                file.isCurrent = false
            }
        }
        for log in found {
            let source: Source
            if let known = sources.first(where: { $0.container == log.container && $0.isCRI == log.isCRI }) {
                source = known
            } else {
                source = Source(container: log.container, isCRI: log.isCRI)
                sources.append(source)
            }
            if let file = source.files.first(where: { $0.identity == log.identity }) {
                file.isGone = false
                file.isCurrent = log.age == 0
                file.path = log.path
                if !file.headIsUnchanged() { begunAnew(file, source) }
            } else if let file = TailedFile(
                path: log.path, name: log.container, identity: log.identity,
                checkpoint: checkpoints.checkpoints[log.identity])
            {
                file.isCurrent = log.age == 0
                source.files.append(file)
            }
        }
        for source in sources { giveUp(source) }
        sources.removeAll { $0.files.isEmpty && $0.joiner.open.isEmpty }
        let present = Set(found.map(\.identity))
        let held = Set(sources.flatMap { $0.files.map(\.identity) })
        checkpoints.remove { !present.contains($0) && !held.contains($0) }
        pump()
    }

    /// Files that are gone: closed when they have arrived whole; given up, oldest first, when too many bytes are held.
    private func giveUp(_ source: Source) {
        var held: UInt64 = 0
        for file in source.files.reversed() where file.isGone {
            let size = file.size
            if file.acknowledged >= size { continue }
            held += size - file.acknowledged
            if held > spoolLimit {
                report(
                    "sidecar: \(size - file.acknowledged) bytes of \(file.path) are given up for \(target): over the spool limit"
                )
                file.acknowledged = size
                file.rewind(to: size, line: 0)
            }
        }
        source.files.removeAll { $0.isGone && $0.acknowledged >= $0.size }
    }

    // MARK: - Reading

    /// Sends what there is while the sink takes it.
    func pump() {
        guard !isPumping else { return }
        isPumping = true
        defer { isPumping = false }
        while sink.isReady {
            var bytes: [UInt8] = []
            bytes.reserveCapacity(LogPipeline.batchBytes + LogPipeline.readBytes)
            for source in sources where bytes.count < LogPipeline.batchBytes { read(source, into: &bytes) }
            let positions = takePositions()
            if bytes.isEmpty {
                // Only empty text was passed over: nothing to wait for.
                if inFlight.isEmpty {
                    for position in positions { acknowledge(position) }
                } else {
                    inFlight[inFlight.count - 1].positions += positions
                }
                break
            }
            inFlight.append(Batch(positions: positions))
            sink.send(bytes)
        }
        checkFinished()
    }

    /// Every file whose safe place has moved since it was asked last.
    private func takePositions() -> [Position] {
        var positions: [Position] = []
        for source in sources {
            for file in source.files {
                let safe = min(file.bufferOffset, source.joiner.firstOpen(in: file.identity.inode) ?? .max)
                guard safe != file.reported else { continue }
                file.reported = safe
                positions.append(Position(file: file, generation: file.generation, offset: safe))
            }
        }
        return positions
    }

    private func read(_ source: Source, into out: inout [UInt8]) {
        for (i, file) in source.files.enumerated() {
            reading: while out.count < LogPipeline.batchBytes {
                switch file.read(limit: LogPipeline.readBytes) {
                case .read:
                    file.grown = loop.now
                    takeLines(file, source, into: &out)
                case .end:
                    // A file that is no longer written to ends with its last line, line feed or not. A writer may go on for a
                    // moment in a file that was renamed.
                    let isOld = (!file.isCurrent && i + 1 < source.files.count) || file.isGone
                    let isOver = isFinishing || (isOld && loop.now - file.grown > .seconds(1))
                    if isOver && !file.buffer.isEmpty {
                        takeLine(0..<file.buffer.count, file, source, into: &out)
                        file.consume(file.buffer.count, lines: 0)
                    }
                    break reading
                case .truncated:
                    begunAnew(file, source)
                    break reading
                case .failed(let why):
                    report("sidecar: cannot read \(file.path): \(why)")
                    break reading
                }
            }
        }
        if isFinishing && out.count < LogPipeline.batchBytes {
            for record in source.joiner.finish(container: source.container) { encode(record, into: &out) }
        }
    }

    private func begunAnew(_ file: TailedFile, _ source: Source) {
        report("sidecar: \(file.path) was cut; reading from its start")
        file.restart()
        source.joiner.clear()
    }

    private func takeLines(_ file: TailedFile, _ source: Source, into out: inout [UInt8]) {
        var start = 0
        let count = file.buffer.count
        while start < count, let end = indexOfLineFeed(file.buffer, from: start) {
            takeLine(start..<end, file, source, into: &out)
            start = end + 1
        }
        if count - start > LogPipeline.lineLimit {
            takeLine(start..<count, file, source, into: &out)
            start = count
        }
        if start > 0 { file.consume(start, lines: 0) }
    }

    private func takeLine(_ line: Range<Int>, _ file: TailedFile, _ source: Source, into out: inout [UInt8]) {
        let offset = file.bufferOffset + UInt64(line.lowerBound)
        let record: LogRecord? = file.buffer.withUnsafeBytes { bytes in
            if source.isCRI, let entry = CRIEntry(bytes, line) {
                return source.joiner.add(
                    entry, in: bytes, file: file.identity.inode, offset: offset, container: source.container)
            }
            var text = line
            if let last = text.last, bytes[last] == 13 { text = text.lowerBound..<last }
            if source.isCRI && text.isEmpty { return nil }
            return LogRecord(
                time: LogRecord.now(), container: source.container, stream: source.isCRI ? "stdout" : "file",
                message: Array(UnsafeRawBufferPointer(rebasing: bytes[text])))
        }
        if let record { encode(record, into: &out) }
    }

    private func encode(_ record: LogRecord, into out: inout [UInt8]) {
        recordsSent += 1
        switch target.kind {
        case .syslog: record.appendSyslog(pod: pod, to: &out)
        case .lines, .http: record.appendJSON(pod: pod, to: &out)
        }
    }

    // MARK: - Arrival

    private func arrived(_ count: Int) {
        for _ in 0..<count {
            guard let batch = inFlight.popFirst() else { break }
            for position in batch.positions { acknowledge(position) }
        }
        checkFinished()
    }

    private func acknowledge(_ position: Position) {
        guard position.generation == position.file.generation else { return }
        position.file.acknowledged = position.offset
        if let error = checkpoints.save(position.file.checkpoint(offset: position.offset, line: 0)) {
            report("sidecar: \(error)")
        }
    }

    private func lost() {
        inFlight = FIFO()
        for source in sources {
            source.joiner.clear()
            for file in source.files { file.rewind(to: file.acknowledged, line: 0) }
        }
    }

    // MARK: - The end

    /// Sends all there is, unfinished lines too; ``onFinished`` follows when it has arrived.
    func finish() {
        isFinishing = true
        pump()
    }

    private func checkFinished() {
        guard isFinishing, inFlight.isEmpty, let onFinished else { return }
        let isAll = sources.allSatisfy { source in
            source.joiner.open.isEmpty && source.files.allSatisfy { $0.buffer.isEmpty && $0.readOffset >= $0.size }
        }
        guard isAll else { return }
        self.onFinished = nil
        onFinished()
    }
}

/// The next line feed at or after `start`.
func indexOfLineFeed(_ bytes: [UInt8], from start: Int) -> Int? {
    bytes.withUnsafeBytes { buffer in
        guard let base = buffer.baseAddress, start < buffer.count,
            let found = memchr(base + start, 10, buffer.count - start)
        else { return nil }
        return UnsafeRawPointer(found) - base
    }
}
