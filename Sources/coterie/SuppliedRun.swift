// Runs what Coterie supplies to pods, and the engines that are like them (`elect`, `work`): until it ends of itself or a signal
// asks it to.
import ArgumentParser
import Client
import EventLoop
import Glibc
import Leases
import Model
import NodeCore
import PatternContainers
import Queues

/// One running container or engine as closures, whatever its type.
struct SuppliedRun {
    let start: () throws -> Void
    let stop: (@escaping () -> Void) -> Void
    /// Takes the call-back for an end of itself; nil for what runs until it is stopped.
    let onExit: ((@escaping (Int32) -> Void) -> Void)?

    init(start: @escaping () throws -> Void, stop: @escaping (@escaping () -> Void) -> Void) {
        self.start = start
        self.stop = stop
        onExit = nil
    }

    init(_ container: some SuppliedContainer) {
        start = { try container.start() }
        stop = { container.stop($0) }
        onExit = { container.onExit = $0 }
    }

    /// Runs what `make` returns and ends the process with its code. `ownFailure`: our failures are 125, since other codes are
    /// the command's.
    static func run(
        ownFailure: Bool = false, givesUpOnNobody: Bool = false,
        _ make: @escaping @Sendable (ClusterClient, EventLoop) async throws -> SuppliedRun
    ) throws {
        do {
            try Invocation.withClientAndLoop(givesUpOnNobody: givesUpOnNobody) { client, loop in
                let run = try await make(client, loop)
                let code = try await run.untilEnd(loop)
                if code != 0 { throw Invocation.Exit(code: code) }
            }
        } catch let error as CoterieError where ownFailure && error.code != .badInput {
            Invocation.fail(error, code: Model.ExitCode.ownFailure.rawValue)
        }
    }

    /// The first SIGTERM or SIGINT asks it to end, each further one to hurry; a third ends the process.
    private func untilEnd(_ loop: EventLoop) async throws -> Int32 {
        var signals = 0
        var onSignal: (() -> Void)?
        var watchers: [SignalWatcher] = []
        for number in [SIGTERM, SIGINT] {
            watchers.append(
                try SignalWatcher(loop: loop, signal: number) {
                    signals += 1
                    if signals > 2 { _exit(128 + number) }
                    onSignal?()
                })
        }
        defer { for watcher in watchers { watcher.close() } }
        var code: Int32?
        var waiting: CheckedContinuation<Void, Never>?
        func ended(_ value: Int32) {
            code = code ?? value
            waiting?.resume()
            waiting = nil
        }
        onExit? { ended($0) }
        onSignal = { stop { ended(0) } }
        try start()
        if code == nil {
            await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in waiting = continuation }
        }
        return code ?? 0
    }
}

/// The cluster's leases and queues through the client library.
final class ClusterServices: LeaseService, QueueService {
    private let client: ClusterClient
    init(_ client: ClusterClient) { self.client = client }

    private static let wrongKind = CoterieError(.failed, "an answer of the wrong kind")

    func lease(_ command: LeaseCommand, wait: TimeSpan?, done: @escaping (Result<LeaseResult, CoterieError>) -> Void) {
        client.command(.lease(command), wait: wait) { result in
            done(
                result.flatMap { result in
                    if case .lease(let answer) = result {
                        .success(answer)
                    } else {
                        .failure(ClusterServices.wrongKind)
                    }
                })
        }
    }

    func queue(_ command: QueueCommand, wait: TimeSpan?, done: @escaping (Result<QueueResult, CoterieError>) -> Void) {
        client.command(.queue(command), wait: wait) { result in
            done(
                result.flatMap { result in
                    if case .queue(let answer) = result {
                        .success(answer)
                    } else {
                        .failure(ClusterServices.wrongKind)
                    }
                })
        }
    }
}

extension ClusterClient {
    /// Fails at once if there is no cluster, where waiting for one would be no help to a person. A container waits.
    func checkReachable() async throws {
        if environment("COTERIE_POD") == nil { _ = try await query("version", deadline: .seconds(2)) }
    }
}

/// `--help` among words that are passed through: before `--` it is ours.
func helpIfAsked(_ words: [String], for command: any ParsableCommand.Type) throws {
    for word in words {
        if word == "--" { return }
        if word == "--help" || word == "-h" { throw CleanExit.helpRequest(command) }
    }
}
