// One run of the program: its global options, how it speaks to people and programs, and how it reaches a cluster.
import Client
import EventLoop
import Glibc
import Manifests
import Model
import Security
import Transport
import Wire

enum Invocation {
    /// Set once by ``begin(_:)``, before any command runs, and only read after that.
    nonisolated(unsafe) private(set) static var options = GlobalOptions.none

    /// Takes the global options out of the arguments and returns the rest.
    static func begin(_ arguments: [String]) throws(CoterieError) -> [String] {
        options = try GlobalOptions(arguments: arguments)
        return options.rest
    }

    /// The process ends with this code; all that is to be said has been said.
    struct Exit: Error { let code: Int32 }

    /// Prints the failure, and with `--json` its document, and ends the process.
    static func fail(_ error: CoterieError, code: Int32? = nil) -> Never {
        let line = "\(error)".split(separator: "\n").joined(separator: " ")
        writeError("coterie: \(line)")
        if options.json {
            writeOut(JSONValue.object([.init("error", document(of: error))]).text() + "\n")
        }
        exit(code ?? error.exitCode.rawValue)
    }

    /// `{"code","message","hint"}`.
    static func document(of error: CoterieError) -> JSONValue {
        ["code": .string(error.code.rawValue), "message": .string(error.message), "hint": JSONValue(error.hint)]
    }

    /// Everything that is wrong with a file, a line each, and ends the process.
    static func fail(_ failure: ManifestFailure) -> Never {
        for error in failure.errors { writeError("coterie: \(error)") }
        if options.json, let first = failure.errors.first {
            let all = failure.errors.map { error -> JSONValue in
                [
                    "file": .string(error.file), "line": JSONValue(error.line), "column": JSONValue(error.column),
                    "path": .string(error.path), "message": .string(error.message), "hint": JSONValue(error.hint),
                ]
            }
            writeOut(
                JSONValue.object([
                    .init(
                        "error",
                        [
                            "code": .string(CoterieError.Code.badInput.rawValue), "message": .string(first.description),
                            "hint": JSONValue(first.hint), "errors": .array(all),
                        ])
                ]).text() + "\n")
        }
        exit(Model.ExitCode.badInput.rawValue)
    }

    /// ArgumentParser's message as one line: what is wrong, and where to look.
    static func usageError(_ message: String, words: [String]) -> CoterieError {
        let first = message.split(separator: "\n").first.map(String.init) ?? "bad usage"
        let text = first.hasPrefix("Error: ") ? String(first.dropFirst(7)) : first
        return CoterieError(
            .badInput, text.hasSuffix(".") ? String(text.dropLast()) : text,
            hint: "see \(CommandNames.path(words)) --help")
    }

    static func print(_ document: JSONValue) { writeOut(document.text(pretty: isTerminal(1)) + "\n") }

    /// The nodes to try, in order, and why these.
    static func endpoints() -> (addresses: [SocketAddress], origin: String) {
        if !options.addresses.isEmpty { return (options.addresses, options.addressOrigin) }
        if let text = try? readFile(DefaultPaths.lastCluster, limit: 65_536),
            let document = try? JSONValue(parsing: text)
        {
            let addresses = (document["addresses"]?.arrayValue ?? []).compactMap {
                $0.stringValue.flatMap { SocketAddress(text: $0) }
            }
            let alive = addresses.filter { address in
                if case .unix(let path) = address.host { return access(path, F_OK) == 0 }
                return true
            }
            if !alive.isEmpty { return (alive, "the cluster that coterie up started last") }
        }
        let podSocket = "/run/coterie/pod.sock"
        if access(podSocket, F_OK) == 0, let address = SocketAddress(text: "unix:" + podSocket) {
            return ([address], "the pod's socket")
        }
        let socket = DefaultPaths.dataDirectory + "/agent.sock"
        if access(socket, F_OK) == 0, let address = SocketAddress(text: "unix:" + socket) {
            return ([address], "the local agent")
        }
        return ([.loopback(port: 7630)], "the default address")
    }

    /// Runs `body` on a loop of its own with a client of the cluster, and ends the loop when it returns.
    static func withClient(_ body: @escaping @Sendable (ClusterClient) async throws -> Void) throws {
        try withClientAndLoop { client, _ in try await body(client) }
    }

    /// As ``withClient(_:)``, for bodies that need the loop too. A container that may be up before its node does not give up at once.
    static func withClientAndLoop(
        givesUpOnNobody: Bool = true, _ body: @escaping @Sendable (ClusterClient, EventLoop) async throws -> Void
    ) throws {
        let (addresses, origin) = endpoints()
        let key = try clientKey()
        // Without a key the client does not even try an address of the network; whether anybody is there is the first thing to say.
        if key == nil, givesUpOnNobody, !addresses.contains(where: { PortProbe.answers($0) }) {
            throw CoterieError(
                .noCluster, "no node answers at \(addresses.map(\.description).joined(separator: ", ")) (\(origin))",
                hint: "start a cluster with: coterie up, or name a node with --address")
        }
        try runLoop { loop in
            let client = ClusterClient(
                loop: loop, endpoints: addresses, key: key, origin: origin, timeout: options.timeout,
                givesUpOnNobody: givesUpOnNobody)
            defer { client.close() }
            try await body(client, loop)
            await client.endSession()
        }
    }

    /// The cluster's key, where one was given.
    static func clientKey() throws(CoterieError) -> ClusterKey? {
        guard let path = options.keyFile else { return nil }
        return try KeyFile.read(path)
    }

    /// Runs asynchronous work on the thread that calls, which becomes the loop's.
    static func runLoop(_ body: @escaping @Sendable (EventLoop) async throws -> Void) throws {
        let outcome = Outcome()
        let loop: EventLoop
        do { loop = try EventLoop() } catch { throw CoterieError(.failed, "cannot start the event loop: \(error)") }
        let box = UnsafeTransfer(loop)
        Task(executorPreference: loop.taskExecutor) {
            let loop = box.value
            do { try await body(loop) } catch { outcome.error = error }
            loop.stop()
        }
        loop.run()
        if let error = outcome.error { throw error }
    }
}

extension GlobalOptions {
    static let none: GlobalOptions = (try? GlobalOptions(arguments: [])) ?? GlobalOptions(unparsed: ())
    private init(unparsed: ()) {}
}

/// The loop's thread is the only one that touches the value: it is made there before the loop runs, and used by tasks that
/// prefer the loop's executor.
struct UnsafeTransfer<Value>: @unchecked Sendable {
    let value: Value
    init(_ value: Value) { self.value = value }
}

/// Written by the task on the loop's thread, read by that same thread after the loop has ended.
private final class Outcome: @unchecked Sendable {
    var error: (any Error)?
}

// MARK: - Standard streams

func isTerminal(_ descriptor: Int32) -> Bool { isatty(descriptor) == 1 }

/// Writes all of it; a closed pipe ends the process quietly, as other filters do.
func writeOut(_ text: String) { writeAll(1, Array(text.utf8)) }
func writeOut(_ bytes: [UInt8]) { writeAll(1, bytes) }
func writeError(_ line: String) { writeAll(2, Array((line + "\n").utf8)) }
func writeErrorBytes(_ bytes: [UInt8]) { writeAll(2, bytes) }

private func writeAll(_ descriptor: Int32, _ bytes: [UInt8]) {
    var offset = 0
    while offset < bytes.count {
        let n = bytes[offset...].withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
        if n < 0 && errno == EINTR { continue }
        if n < 0 && errno == EAGAIN {
            var wait = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
            poll(&wait, 1, -1)
            continue
        }
        if n <= 0 {
            if errno == EPIPE && descriptor == 1 { exit(141) }
            return
        }
        offset += n
    }
}
