// Between the HTTP server's threads and the client's loop: a thread of its own runs the loop, questions are posted to it.
import Client
import EventLoop
import Glibc
import Model
import Security
import Transport
import Wire

/// Asks the agent. Sendable: the loop and the client are touched by the loop's thread only, through ``EventLoop/post(_:)``.
final class ClusterBridge: @unchecked Sendable {
    private let loop: EventLoop
    private let client: ClusterClient
    private var watches: [UInt64: WatchHandle] = [:]
    private var nextWatch: UInt64 = 1

    init(_ options: ConsoleOptions) throws(CoterieError) {
        do { loop = try EventLoop() } catch { throw CoterieError(.failed, "cannot start the event loop: \(error)") }
        let key: ClusterKey? = try options.keyFile.map { path throws(CoterieError) in try KeyFile.read(path) }
        client = ClusterClient(
            loop: loop, endpoints: options.addresses, key: key, origin: "--address", timeout: .seconds(5),
            givesUpOnNobody: false)
        var thread: pthread_t = 0
        let status = pthread_create(
            &thread, nil,
            { context in
                guard let context else { return nil }
                Unmanaged<EventLoop>.fromOpaque(context).takeRetainedValue().run()
                return nil
            }, Unmanaged.passRetained(loop).toOpaque())
        guard status == 0 else {
            throw CoterieError(.failed, "cannot start a thread: \(String(cString: strerror(status)))")
        }
    }

    /// The document at `path`; fails after `deadline`.
    func query(_ path: String, deadline: TimeSpan = .seconds(5)) async throws -> JSONValue {
        try await withCheckedThrowingContinuation { continuation in
            loop.post {
                self.client.query(path, deadline: deadline) { result in
                    continuation.resume(with: result)
                }
            }
        }
    }

    /// The items of a watch, until the stream's consumer goes away or the watch ends. A consumer that does not keep up loses
    /// the oldest of what waits for it.
    func watch(_ path: String) -> AsyncThrowingStream<JSONValue, any Error> {
        AsyncThrowingStream(bufferingPolicy: .bufferingNewest(1_024)) { continuation in
            loop.post {
                let number = self.nextWatch
                self.nextWatch += 1
                self.watches[number] = self.client.startWatch(
                    path, onItem: { continuation.yield($0) },
                    onEnd: { error in
                        self.watches[number] = nil
                        continuation.finish(throwing: error)
                    })
                continuation.onTermination = { _ in
                    self.loop.post { self.watches.removeValue(forKey: number)?.cancel() }
                }
            }
        }
    }
}
