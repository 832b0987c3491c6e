// `coterie queue import H:P`: takes all jobs over from a beanstalkd. A job is deleted there only when it is durable here.
import ArgumentParser
import Client
import EventLoop
import Glibc
import Model
import Queues
import Wire

struct QueueImport: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "import", abstract: "Move all jobs from a beanstalkd into this cluster.",
        discussion: """
            Ready, delayed and buried jobs keep their tube, priority, time to run and what is left of their delay; jobs that are reserved \
            there stay. Each job is deleted there once it is kept here, so that one may come twice if this is interrupted, but none is lost.

            coterie queue import 127.0.0.1:11300
            """)
    @Argument(help: "HOST:PORT of the beanstalkd.") var source: String

    func run() throws {
        let address = try resolveAddress(source, for: "import")
        try Invocation.withClientAndLoop { client, loop in
            var connected: Result<ByteStream, CoterieError> = .failure(
                CoterieError(.failed, "cannot connect to \(address)"))
            await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
                ByteStream.connect(loop: loop, to: address, timeout: Invocation.options.timeout) { result in
                    connected = result.mapError { CoterieError(.failed, "cannot connect to \(address): \($0)") }
                    continuation.resume()
                }
            }
            let stream = try connected.get()
            let source = BeanstalkSource(stream)
            defer { stream.close() }
            var moved = 0
            for tube in try await source.list("list-tubes") {
                _ = try await source.ask("use \(tube)")
                for state in ["ready", "delayed", "buried"] {
                    while let job = try await source.peek(state) {
                        let figures = try await source.figures("stats-job \(job.id)")
                        // Held there while it is put here, so that no worker takes it meanwhile.
                        guard try await source.reserve(job.id) else { continue }
                        var new = NewJob(
                            tube: tube, priority: UInt32(figures["pri"] ?? "") ?? 1_024,
                            ttrMilliseconds: (UInt64(figures["ttr"] ?? "") ?? 60) * 1_000,
                            body: job.body)
                        if state == "delayed" {
                            new.delayMilliseconds = (UInt64(figures["time-left"] ?? "") ?? 0) * 1_000
                        }
                        guard case .inserted(let inserted) = try await askQueue(.put([new]), client),
                            let id = inserted.first?.id
                        else {
                            throw CoterieError(.failed, "an answer of the wrong kind")
                        }
                        if state == "buried" { try await bury(id, new.priority, client) }
                        _ = try await source.ask("delete \(job.id)")
                        moved += 1
                    }
                }
            }
            let count = moved
            Invocation.show(["imported": JSONValue(count)]) { _ in "imported \(count) jobs from \(address)\n" }
        }
    }
}

private func bury(_ id: UInt64, _ priority: UInt32, _ client: ClusterClient) async throws {
    guard case .reserved(let jobs) = try await askQueue(.reserveJob(id: id, holder: 0), client), let job = jobs.first
    else { return }
    _ = try await askQueue(.bury(id: id, lease: job.lease, priority: priority), client)
}

/// The client's side of beanstalkd's protocol, one question at a time.
private final class BeanstalkSource {
    private let stream: ByteStream
    private var buffer: [UInt8] = []
    private var waiting: CheckedContinuation<Void, Never>?
    private var isClosed = false

    init(_ stream: ByteStream) {
        self.stream = stream
        stream.onBytes = { [weak self] bytes in
            self?.buffer.append(contentsOf: bytes)
            self?.wake()
        }
        stream.onEnd = { [weak self] in self?.closed() }
        stream.onClose = { [weak self] _ in self?.closed() }
        stream.resumeReading()
    }

    private func closed() {
        isClosed = true
        wake()
    }

    private func wake() {
        waiting?.resume()
        waiting = nil
    }

    private func more() async throws {
        guard !isClosed else { throw CoterieError(.failed, "beanstalkd has closed the connection") }
        await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in waiting = continuation }
    }

    private func line() async throws -> String {
        while true {
            if let end = buffer.firstIndex(of: 10) {
                let text = String(decoding: buffer[..<end], as: UTF8.self).trimmingSpaces
                buffer.removeSubrange(...end)
                return text
            }
            guard buffer.count < 4_096 else { throw CoterieError(.failed, "that is no beanstalkd") }
            try await more()
        }
    }

    private func body(_ count: Int) async throws -> [UInt8] {
        guard (0...QueueLimits.bodyBytes).contains(count) else {
            throw CoterieError(.tooLarge, "a job has \(count) bytes")
        }
        while buffer.count < count + 2 { try await more() }
        let body = Array(buffer[..<count])
        buffer.removeSubrange(..<(count + 2))
        return body
    }

    /// The first line of the answer.
    func ask(_ command: String) async throws -> [String] {
        stream.write(Array((command + "\r\n").utf8))
        return try await line().split(separator: " ").map(String.init)
    }

    func peek(_ state: String) async throws -> (id: UInt64, body: [UInt8])? {
        let words = try await ask("peek-\(state)")
        guard words.count == 3, words[0] == "FOUND", let id = UInt64(words[1]), let count = Int(words[2]) else {
            return nil
        }
        return (id, try await body(count))
    }

    func reserve(_ id: UInt64) async throws -> Bool {
        let words = try await ask("reserve-job \(id)")
        guard words.count == 3, words[0] == "RESERVED", let count = Int(words[2]) else {
            if words.first == "UNKNOWN_COMMAND" {
                throw CoterieError(.failed, "that beanstalkd is older than 1.12 and can not be imported from")
            }
            return false
        }
        _ = try await body(count)
        return true
    }

    private func document(_ command: String) async throws -> [String] {
        let words = try await ask(command)
        guard words.count == 2, words[0] == "OK", let count = Int(words[1]) else { return [] }
        return String(decoding: try await body(count), as: UTF8.self).split(separator: "\n").map(String.init)
    }

    func list(_ command: String) async throws -> [String] {
        try await document(command).compactMap { $0.hasPrefix("- ") ? $0.dropFirst(2).trimmed : nil }
    }

    func figures(_ command: String) async throws -> [String: String] {
        var figures: [String: String] = [:]
        for line in try await document(command) {
            let parts = line.split(separator: ":", maxSplits: 1)
            if parts.count == 2 { figures[String(parts[0])] = parts[1].trimmed }
        }
        return figures
    }
}

extension Substring {
    fileprivate var trimmed: String { String(self).trimmingSpaces.split(separator: "\"").joined() }
}
