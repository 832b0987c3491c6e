// What the tests of the loop share: a loop of their own that ends by an event or fails by a time-out, small servers, and the
// count of open descriptors.
import CPlatform
import EventLoop
import Glibc
import Model
import Testing

/// All tests of this target, one at a time: some of them count the descriptors of the process.
@Suite(.serialized) struct EventLoopTests {}

/// Runs `body` and then the loop until something stops it; a failure if nothing does in time. The loop is closed afterwards.
func withLoop(
    timeout: TimeSpan = .seconds(10), location: SourceLocation = #_sourceLocation, _ body: (EventLoop) throws -> Void
) throws {
    let loop = try EventLoop()
    defer { loop.close() }
    let limit = LoopTimer(loop: loop)
    limit.start(after: timeout) {
        Issue.record("nothing stopped the loop within \(timeout)", sourceLocation: location)
        loop.stop()
    }
    try body(loop)
    loop.run()
}

/// Runs an asynchronous body on the loop's thread; its errors are failures.
func withLoopTask(
    timeout: TimeSpan = .seconds(10), location: SourceLocation = #_sourceLocation,
    _ body: @escaping @Sendable (EventLoop) async throws -> Void
) throws {
    try withLoop(timeout: timeout, location: location) { loop in
        let box = Unchecked(loop)
        Task(executorPreference: loop.taskExecutor) {
            do { try await body(box.value) } catch { Issue.record("\(error)", sourceLocation: location) }
            box.value.stop()
        }
    }
}

/// For values of the loop that a test takes through a sendable closure, on whose thread they stay.
struct Unchecked<Value>: @unchecked Sendable {
    let value: Value
    init(_ value: Value) { self.value = value }
}

/// A variable that call-backs share.
final class Cell<Value> {
    var value: Value
    init(_ value: Value) { self.value = value }
}

/// Waits for several things.
final class Countdown {
    private var left: Int
    private let done: () -> Void
    init(_ count: Int, _ done: @escaping () -> Void) {
        left = count
        self.done = done
    }
    func callAsFunction() {
        left -= 1
        if left == 0 { done() }
    }
}

func openDescriptors() -> Int {
    guard let directory = opendir("/proc/self/fd") else { return -1 }
    defer { closedir(directory) }
    var count = 0
    while readdir(directory) != nil { count += 1 }
    // `.`, `..` and the directory's own.
    return count - 3
}

func isOpen(_ descriptor: Int32) -> Bool { fcntl(descriptor, F_GETFD) >= 0 }

/// A fresh directory that is gone afterwards.
func withDirectory<T>(_ body: (String) throws -> T) throws -> T {
    var template = Array("/tmp/coterie-loop-XXXXXX".utf8CString)
    let made = template.withUnsafeMutableBufferPointer { buffer in
        buffer.baseAddress.flatMap { mkdtemp($0) }.map { String(cString: $0) }
    }
    let path = try #require(made)
    defer { removeAll(path) }
    return try body(path)
}

private func removeAll(_ path: String) {
    if let directory = opendir(path) {
        while let entry = readdir(directory) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != "." && name != ".." { unlink(path + "/" + name) }
        }
        closedir(directory)
    }
    rmdir(path)
}

func unix(_ path: String) -> SocketAddress { SocketAddress(host: .unix(path: path), port: 0) }
let anyV4 = SocketAddress.loopback(port: 0)
let anyV6 = SocketAddress(host: .v6(high: 0, low: 1), port: 0)

extension ByteStream {
    /// Collects all that comes, up to the end.
    func collect(_ done: @escaping ([UInt8]) -> Void) {
        let all = Cell<[UInt8]>([])
        onBytes = { all.value.append(contentsOf: $0) }
        onEnd = { done(all.value) }
        resumeReading()
    }
}

/// A connected pair over a listener: (the one that dialled, the one that was accepted).
func connectPair(
    _ loop: EventLoop, at address: SocketAddress, _ body: @escaping (ByteStream, ByteStream) -> Void
) throws {
    let listener = try Listener(loop: loop, bind: address)
    let (near, far) = (Cell<ByteStream?>(nil), Cell<ByteStream?>(nil))
    let both = Countdown(2) {
        listener.close()
        if let a = near.value, let b = far.value { body(a, b) }
    }
    listener.onConnection = {
        far.value = $0
        both()
    }
    ByteStream.connect(loop: loop, to: try #require(listener.localAddress), timeout: .seconds(5)) { result in
        switch result {
        case .success(let stream):
            near.value = stream
            both()
        case .failure(let error): Issue.record("connect: \(error)")
        }
    }
}

/// Two ends of a Unix socket pair.
func socketPair() throws -> (Int32, Int32) {
    var pair: [Int32] = [-1, -1]
    try #require(coterie_socket_pair(&pair) == 0)
    return (pair[0], pair[1])
}

/// A pipe: (reads, writes).
func pipePair() throws -> (Int32, Int32) {
    var pair: [Int32] = [-1, -1]
    try #require(coterie_pipe(&pair) == 0)
    return (pair[0], pair[1])
}

func pattern(_ count: Int) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: ($0 &* 2_654_435_761) >> 11) }
}
