// A loop for each test, and the client's side of the stream protocol by hand: what no client of ours would say.
import EventLoop
import Glibc
import Model
import NodeCore
import Security
import Testing
import Transport
import Wire

/// Runs a test's body on a loop of its own, whose thread the caller's becomes until the body returns.
func onLoop(_ body: @escaping @Sendable (EventLoop) async throws -> Void) throws {
    let outcome = Outcome()
    let loop = try EventLoop()
    let box = Transfer(loop)
    Task(executorPreference: loop.taskExecutor) {
        let loop = box.value
        do { try await body(loop) } catch { outcome.error = error }
        loop.stop()
    }
    loop.run()
    loop.close()
    if let error = outcome.error { throw error }
}

/// Used on the loop's thread only, which is the one that made it.
struct Transfer<Value>: @unchecked Sendable {
    let value: Value
    init(_ value: Value) { self.value = value }
}

private final class Outcome: @unchecked Sendable {
    var error: (any Error)?
}

/// A directory that goes with the test.
final class Scratch {
    let path: String

    init() {
        var system = SystemRandomNumberGenerator()
        path = "/tmp/coterie-node-\(getpid())-\(hexadecimal(system.next()))"
        mkdir(path, 0o700)
    }

    deinit {
        guard let directory = opendir(path) else { return }
        while let entry = readdir(directory) {
            let name = withUnsafeBytes(of: &entry.pointee.d_name) {
                String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name != "." && name != ".." { remove(path + "/" + name) }
        }
        closedir(directory)
        rmdir(path)
    }

    func socket(_ name: String) -> SocketAddress { SocketAddress(host: .unix(path: path + "/" + name), port: 0) }
}

/// A bare connection.
func connect(_ loop: EventLoop, _ address: SocketAddress) async throws -> ByteStream {
    let box: Transfer<ByteStream> = try await withCheckedThrowingContinuation { continuation in
        ByteStream.connect(loop: loop, to: address, timeout: .seconds(5)) { result in
            switch result {
            case .success(let stream): continuation.resume(returning: Transfer(stream))
            case .failure(let error): continuation.resume(throwing: error)
            }
        }
    }
    return box.value
}

/// One connection of somebody who says what he likes.
final class Speaker {
    let link: FrameLink
    private(set) var frames: [Frame] = []
    private(set) var isClosed = false

    init(_ loop: EventLoop, _ address: SocketAddress, key: ClusterKey? = nil) async throws {
        let stream = try await connect(loop, address)
        link = FrameLink(
            SecureStream(loop: loop, stream: stream, tls: try key.map { try TLSSession(role: .client, key: $0) }))
        link.onFrame = { [weak self] in self?.frames.append($0) }
        link.onClose = { [weak self] _ in self?.isClosed = true }
        link.start()
        say(.hello, Hello(role: .client).encoded)
    }

    deinit { link.close() }

    func say(_ kind: FrameKind, _ payload: [UInt8] = [], channel: UInt32 = 0) {
        link.send(kind: kind.rawValue, channel: channel, payload: payload)
    }

    func heard(_ kind: FrameKind) -> Bool { frames.contains { $0.kind == kind.rawValue } }

    func say(_ kind: FrameKind, _ fill: (inout ByteWriter) -> Void) {
        var writer = ByteWriter()
        fill(&writer)
        say(kind, writer.bytes)
    }
}

/// Lets the loop turn until something is so; a failure of the test if it never is.
func until(_ loop: EventLoop, _ what: Comment, _ condition: () -> Bool) async {
    let limit = loop.now + .seconds(20)
    while !condition() {
        guard loop.now < limit else {
            Issue.record(what)
            return
        }
        await loop.sleep(.milliseconds(2))
    }
}
