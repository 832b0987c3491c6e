// Input that is read while the loop goes on: a slow producer must not stop the connection to the cluster.
import EventLoop
import Glibc
import Model

/// A file or standard input, read in the background. Sendable: its only state is the descriptor, which does not change.
final class InputFile: Sendable {
    private let descriptor: Int32
    let name: String

    /// `-` is standard input.
    init(_ path: String) throws(CoterieError) {
        if path == "-" {
            descriptor = 0
            name = "standard input"
            return
        }
        name = path
        descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw CoterieError(errno == ENOENT ? .notFound : .failed, "cannot read \(path): \(errnoMessage())")
        }
        var info = stat()
        if fstat(descriptor, &info) == 0, info.st_mode & S_IFMT == S_IFDIR {
            throw CoterieError(.badInput, "\(path) is a directory")
        }
    }

    /// The next bytes, at most `limit`; none at the end.
    func read(_ loop: EventLoop, limit: Int) async throws(CoterieError) -> [UInt8] {
        let descriptor = descriptor
        let name = name
        let result = await withCheckedContinuation {
            (continuation: CheckedContinuation<Result<[UInt8], CoterieError>, Never>) in
            loop.blocking({ InputFile.readOnce(descriptor, name, limit) }, then: { continuation.resume(returning: $0) })
        }
        return try result.get()
    }

    /// All of it; refused if it is larger than `limit`.
    func readAll(_ loop: EventLoop, limit: Int) async throws(CoterieError) -> [UInt8] {
        var all: [UInt8] = []
        while true {
            let chunk = try await read(loop, limit: 256 << 10)
            if chunk.isEmpty { return all }
            guard all.count + chunk.count <= limit else {
                throw CoterieError(.tooLarge, "\(name) is larger than \(limit) bytes")
            }
            all += chunk
        }
    }

    private static func readOnce(_ descriptor: Int32, _ name: String, _ limit: Int) -> Result<[UInt8], CoterieError> {
        var failure: CoterieError?
        let bytes = [UInt8](unsafeUninitializedCapacity: limit) { buffer, count in
            var n: Int
            repeat { n = Glibc.read(descriptor, buffer.baseAddress, limit) } while n < 0 && errno == EINTR
            if n < 0 { failure = CoterieError(.failed, "cannot read \(name): \(errnoMessage())") }
            count = max(0, n)
        }
        return failure.map { .failure($0) } ?? .success(bytes)
    }
}
