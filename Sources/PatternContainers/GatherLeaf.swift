// The leaf of a scatter-gather job: dials the root, again and again until it is told to stop, asks for a shard, runs the
// user's command for it, sends what that wrote, and asks for the next.
//
//     dial ─▶ hello ─▶ files ─▶ ask ─▶ shard, input ─▶ /bin/sh -c CMD ─▶ output, ended ─┐
//      ▲                         ▲──────────────────────────────────────────────────────┘
//      └── the connection broke: what ran is killed
import EventLoop
import Glibc
import Model
import ScatterGather

public final class GatherLeaf: SuppliedContainer {
    let loop: EventLoop
    let options: GatherLeafOptions
    private let transport: any GatherTransport
    let report: Report
    private var channel: GatherChannel?
    private var isDialling = false
    private var run: LeafRun?
    /// Files that the root has sent and those of ``GatherLeafOptions/files``, to be linked into working directories.
    private var shipped: String?
    private var arriving: (path: String, descriptor: Int32)?
    private let timer: LoopTimer
    private let heart: LoopTimer
    private var backOff = BackOff(first: .milliseconds(50), longest: .seconds(2))
    private var generator: SeededGenerator
    private var saidUnreachable = false
    private var isStopping = false

    public var onExit: ((Int32) -> Void)?
    /// Commands that were run; for tests and documents.
    public private(set) var runs = 0

    public init(
        loop: EventLoop, options: GatherLeafOptions, transport: any GatherTransport,
        report: @escaping Report = reportToStandardError
    ) {
        self.loop = loop
        self.options = options
        self.transport = transport
        self.report = report
        var system = SystemRandomNumberGenerator()
        generator = SeededGenerator(seed: system.next())
        timer = LoopTimer(loop: loop)
        heart = LoopTimer(loop: loop)
    }

    public func start() throws(CoterieError) {
        let shipped = try makeScratch(in: options.scratch)
        self.shipped = shipped
        if let files = options.files { try copyTree(files, to: shipped) }
        heart.start(every: .seconds(1)) { [weak self] in self?.beat() }
        dial()
    }

    // MARK: - The connection

    private func dial() {
        guard !isStopping, channel == nil, !isDialling else { return }
        isDialling = true
        transport.dial("\(options.root)/leaf", timeout: .seconds(30)) { [weak self] result in
            guard let self else { return }
            isDialling = false
            switch result {
            case .success(let stream): connected(stream)
            case .failure(let error):
                if !saidUnreachable && !isStopping {
                    report("leaf: cannot reach \(options.root): \(error.message); tried again")
                }
                saidUnreachable = true
                again()
            }
        }
    }

    private func again() {
        guard !isStopping else { return }
        timer.start(after: backOff.next(using: &generator)) { [weak self] in self?.dial() }
    }

    private func connected(_ stream: any GatherStream) {
        guard !isStopping else { return stream.close() }
        let channel = GatherChannel(
            stream, loop: loop, onMessage: { [weak self] message in self?.received(message) },
            onClosed: { [weak self] why in self?.lost(why) })
        channel.onDrain = { [weak self] in self?.run?.pump() }
        self.channel = channel
        channel.send(.leafHello(name: String(options.name.prefix(100)), node: String(options.node.prefix(100))))
    }

    private func lost(_ why: String) {
        channel = nil
        finishArriving()
        // The root has given up on it, or is gone.
        run?.abandon()
        run = nil
        if !isStopping { report("leaf: the connection to \(options.root) is lost: \(why)") }
        again()
    }

    private func beat() {
        guard let channel else { return }
        if channel.silence > options.rootSilence {
            return channel.fail("it has said nothing for \(options.rootSilence)")
        }
        channel.send(.alive)
    }

    private func received(_ message: GatherMessage) {
        switch message {
        case .leafWelcome:
            saidUnreachable = false
            backOff.reset()
        case .file(let path, let executable, let bytes, let isLast):
            keep(path, executable: executable, bytes, isLast: isLast)
        case .filesEnd: channel?.send(.ask)
        case .shard(let order):
            run?.abandon()
            run = LeafRun(self, order)
        case .shardInput(let attempt, let bytes): if let run, run.attempt == attempt { run.feed(bytes) }
        case .shardInputEnd(let attempt):
            if let run, run.attempt == attempt {
                runs += 1
                run.start()
            }
        case .cancel(let attempt, let grace): if let run, run.attempt == attempt { run.cancel(grace: grace) }
        case .stop: end(0)
        case .alive: break
        case .clientHello, .input, .inputEnd, .consumed, .done, .clientWelcome, .inputTaken, .result, .resultEnd,
            .progress, .final,
            .leafHello, .ask, .output, .ended:
            channel?.fail("it said what only others say")
        }
    }

    func send(_ message: GatherMessage) { channel?.send(message) }
    var isCongested: Bool { channel?.isCongested ?? false }

    /// The attempt is over and told.
    func finished(_ run: LeafRun) {
        guard self.run === run else { return }
        self.run = nil
        if isStopping { return }
        channel?.send(.ask)
    }

    // MARK: - Shipped files

    private func keep(_ path: String, executable: Bool, _ bytes: [UInt8], isLast: Bool) {
        guard let shipped, isShippable(path) else {
            channel?.fail("it sent a file of the name \(path)")
            return
        }
        let target = shipped + "/" + path
        if arriving?.path != path {
            finishArriving()
            var parent = shipped
            for part in path.split(separator: "/").dropLast() {
                parent += "/" + part
                mkdir(parent, 0o755)
            }
            unlink(target)
            let descriptor = open(target, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, executable ? 0o755 : 0o644)
            guard descriptor >= 0 else { return fileFailed(path) }
            arriving = (path, descriptor)
        }
        if let arriving, writeFully(arriving.descriptor, bytes) != nil { fileFailed(path) }
        if isLast { finishArriving() }
    }

    private func fileFailed(_ path: String) {
        let why = String(cString: strerror(errno))
        report("leaf: cannot write the file \(path): \(why)")
        finishArriving()
        channel?.fail("its file \(path) can not be written")
    }

    private func finishArriving() {
        if let arriving { close(arriving.descriptor) }
        arriving = nil
    }

    /// Puts the shipped files into a working directory: as links where that can be, since they may be large.
    func furnish(_ directory: String) {
        guard let shipped else { return }
        linkTree(shipped, into: directory)
    }

    // MARK: - The end

    public func stop(_ done: @escaping () -> Void) {
        end(143)
        done()
    }

    private func end(_ code: Int32) {
        guard !isStopping else { return }
        isStopping = true
        run?.abandon()
        run = nil
        channel?.close()
        channel = nil
        finishArriving()
        timer.close()
        heart.close()
        transport.close()
        if let shipped { removeScratch(shipped) }
        shipped = nil
        let exit = onExit
        onExit = nil
        exit?(code)
    }
}

/// Copies plain files and directories; nothing else. Links to files are followed: so volumes of files are made.
func copyTree(_ from: String, to: String, depth: Int = 0) throws(CoterieError) {
    guard depth < 16 else { return }
    for name in directoryEntries(from) where name != "." && name != ".." && !name.hasPrefix("..") {
        let (source, target) = (from + "/" + name, to + "/" + name)
        var info = stat()
        guard stat(source, &info) == 0 else { continue }
        if info.st_mode & S_IFMT == S_IFDIR {
            mkdir(target, 0o755)
            try copyTree(source, to: target, depth: depth + 1)
        } else if info.st_mode & S_IFMT == S_IFREG {
            try copyFile(source, to: target, mode: info.st_mode & 0o111 != 0 ? 0o755 : 0o644)
        }
    }
}

private func copyFile(_ from: String, to: String, mode: mode_t) throws(CoterieError) {
    let source = open(from, O_RDONLY | O_CLOEXEC)
    let target = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode)
    defer {
        if source >= 0 { close(source) }
        if target >= 0 { close(target) }
    }
    guard source >= 0, target >= 0 else {
        throw CoterieError(.failed, "cannot copy \(from): \(String(cString: strerror(errno)))")
    }
    while true {
        let bytes = try readSome(source, at: nil, limit: 256 << 10).get()
        if bytes.isEmpty { return }
        if let code = writeFully(target, bytes) {
            throw CoterieError(.failed, "cannot copy \(from): \(String(cString: strerror(code)))")
        }
    }
}

private func linkTree(_ from: String, into: String, depth: Int = 0) {
    guard depth < 16 else { return }
    for name in directoryEntries(from) where name != "." && name != ".." {
        let (source, target) = (from + "/" + name, into + "/" + name)
        var info = stat()
        guard lstat(source, &info) == 0 else { continue }
        if info.st_mode & S_IFMT == S_IFDIR {
            mkdir(target, 0o755)
            linkTree(source, into: target, depth: depth + 1)
        } else if link(source, target) != 0 {
            try? copyFile(source, to: target, mode: info.st_mode & 0o777)
        }
    }
}
