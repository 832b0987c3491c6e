// What the tests of containers share: a loop that runs until something holds, a directory of one's own, servers that keep
// what they are sent, and a cluster in memory.
import EventLoop
import Glibc
import Leases
import Model
import Testing

@testable import PatternContainers

/// A loop on the thread of the test.
final class TestLoop {
    let loop: EventLoop
    /// What containers said to people.
    private(set) var said: [String] = []

    init() throws { loop = try EventLoop() }

    var report: Report { { [weak self] line in self?.said.append(line) } }

    /// Runs until `condition` holds; false if that takes longer than `limit`.
    @discardableResult
    func run(within limit: TimeSpan = .seconds(10), until condition: @escaping () -> Bool) -> Bool {
        if condition() { return true }
        let end = loop.now + limit
        var held = false
        let timer = LoopTimer(loop: loop)
        timer.start(every: .milliseconds(2)) { [loop] in
            held = condition()
            if held || loop.now >= end { loop.stop() }
        }
        loop.run()
        timer.close()
        return held
    }

    func run(for span: TimeSpan) {
        let end = loop.now + span
        run(within: span + .seconds(1)) { [loop] in loop.now >= end }
    }
}

final class TestDirectory {
    let path: String

    init() {
        var template = Array("/tmp/coterie-test-XXXXXX".utf8CString)
        _ = template.withUnsafeMutableBufferPointer { $0.baseAddress.flatMap { mkdtemp($0) } }
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    deinit { removeScratch(path) }

    func append(_ name: String, _ text: String) {
        let descriptor = open("\(path)/\(name)", O_WRONLY | O_CREAT | O_APPEND, 0o644)
        defer { close(descriptor) }
        let bytes = Array(text.utf8)
        _ = bytes.withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
    }

    func rename(_ from: String, _ to: String) { _ = Glibc.rename("\(path)/\(from)", "\(path)/\(to)") }
    func text(_ name: String) -> String {
        String(decoding: ReplacedOutput.read("\(path)/\(name)", limit: 64 << 20), as: UTF8.self)
    }
    func lines(_ name: String) -> [String] { text(name).split(separator: "\n").map(String.init) }
    func names() -> [String] { directoryEntries(path).filter { !$0.hasPrefix(".") } }
}

/// Takes bytes over TCP and keeps them; can be taken down and put up again on the same port.
final class ByteServer {
    private let loop: EventLoop
    private var listener: Listener?
    private var streams: [ByteStream] = []
    private(set) var address: SocketAddress
    private(set) var received: [UInt8] = []
    private(set) var connections = 0
    /// Called for what came; may answer on the stream.
    var onBytes: ((ByteStream, [UInt8]) -> Void)?

    /// At a loopback address of its own: a port that is given up must not be somebody else's a moment later.
    init(_ loop: EventLoop) throws {
        self.loop = loop
        address = SocketAddress(host: .v4(0x7F00_0000 | UInt32.random(in: 0x01_0101...0xFE_FEFE) & ~1 | 2), port: 0)
        try up()
    }

    func up() throws {
        let listener = try Listener(loop: loop, bind: address)
        address = listener.localAddress ?? address
        listener.onConnection = { [weak self] stream in
            guard let self else { return stream.close() }
            connections += 1
            streams.append(stream)
            stream.onBytes = { [weak self, weak stream] bytes in
                guard let self, let stream else { return }
                received.append(contentsOf: bytes)
                onBytes?(stream, Array(bytes))
            }
            stream.onEnd = { [weak stream] in stream?.close() }
            stream.onClose = { _ in }
            stream.resumeReading()
        }
        self.listener = listener
    }

    func down() {
        listener?.close()
        listener = nil
        for stream in streams { stream.close() }
        streams = []
    }

    var lines: [String] { received.split(separator: 10).map { String(decoding: $0, as: UTF8.self) } }

    deinit { down() }
}

/// One client's connection, with what came over it.
final class TestClient {
    private(set) var stream: ByteStream?
    private(set) var text = ""
    private(set) var hasEnded = false
    private(set) var failure: UVError?

    init(_ loop: EventLoop, _ address: SocketAddress, say: String) {
        ByteStream.connect(loop: loop, to: address, timeout: .seconds(5)) { [weak self] result in
            switch result {
            case .success(let stream):
                guard let self else { return stream.close() }
                self.stream = stream
                stream.onBytes = { [weak self] in self?.text += String(decoding: $0, as: UTF8.self) }
                stream.onEnd = { [weak self] in self?.hasEnded = true }
                stream.onClose = { [weak self] _ in self?.hasEnded = true }
                stream.resumeReading()
                if !say.isEmpty { stream.write(Array(say.utf8)) }
            case .failure(let error):
                self?.failure = error
                self?.hasEnded = true
            }
        }
    }

    func say(_ text: String) { stream?.write(Array(text.utf8)) }
    func close() { stream?.close() }
    deinit { stream?.close() }
}

/// The lease machine on the clock of the loop, with a network that can be cut.
final class TestLeases: LeaseService {
    let loop: EventLoop
    private var machine = LeaseMachine()
    private var index: UInt64 = 1
    private let start: MonotonicTime
    /// Questions by this service are lost from now on.
    var isCut = false
    private(set) var renewals = 0
    private(set) var asked: [LeaseCommand] = []

    init(_ loop: EventLoop) {
        self.loop = loop
        start = loop.now
    }

    private var now: UInt64 { UInt64((loop.now - start).milliseconds) }

    func view(_ name: String) -> LeaseView? {
        machine.expire(now: now)
        return machine.lease(LeaseMachine.electionPrefix + name, now: now)
    }

    func lease(_ command: LeaseCommand, wait: TimeSpan?, done: @escaping (Result<LeaseResult, CoterieError>) -> Void) {
        asked.append(command)
        if isCut { return }
        index += 1
        let result = machine.apply(command, index: index, now: now)
        if case .renewed = result { renewals += 1 }
        if case .held = result, let wait, wait > .zero {
            // Waits as the leader does: tried again when it may have become free.
            let step = min(wait, .milliseconds(10))
            let timer = LoopTimer(loop: loop)
            return timer.start(after: step) { [weak self] in
                timer.close()
                self?.lease(command, wait: wait - step, done: done)
            }
        }
        loop.beforeWaiting { done(.success(result)) }
    }
}

extension Array where Element == UInt8 {
    init(_ text: String) { self = Array(text.utf8) }
}
