// `coterie gather …`: scatter-gather jobs as the cluster knows them.
import ArgumentParser
import Client
import EventLoop
import Model
import NodeCore
import PatternContainers
import Scheduling
import Wire

struct GatherGroup: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "gather", abstract: "Scatter-gather jobs.",
        discussion: "coterie gather list\ncoterie gather wait 4f2a91c07e",
        subcommands: [
            GatherList.self, GatherShow.self, GatherWatch.self, GatherWait.self, GatherCancel.self, GatherRetry.self,
            GatherResult.self,
            GatherLogs.self,
        ])
}

enum GatherText {
    static func table(_ gathers: [JSONValue]) -> String {
        var table = Table("ID", "STATE", "SHARDS", "FAILED", "RETRIED", "TIME", "LEAF")
        for gather in gathers {
            let shards = gather["shards"] ?? .null
            table.add(
                gather.cell("id"), gather.cell("state"), "\(shards.int("successful"))/\(shards.int("total"))",
                "\(shards.int("failed") + shards.int("timedOut"))", gather.cell("retried"),
                age(milliseconds: gather.int("milliseconds")),
                String(gather.cell("leaf").prefix(48)))
        }
        return table.text()
    }

    static func line(_ gather: JSONValue) -> String {
        let shards = gather["shards"] ?? .null
        return
            "\(gather.cell("id"))  \(gather.cell("state"))  \(shards.int("successful")) of \(shards.int("total")) shards, "
            + "\(shards.int("running")) running, \(shards.int("failed") + shards.int("timedOut")) failed\n"
    }

    static func isOver(_ gather: JSONValue) -> Bool {
        GatherState(rawValue: gather.string("state"))?.isTerminal ?? false
    }
}

struct GatherList: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "list", abstract: "List jobs.", discussion: "coterie gather list --json")

    func run() throws {
        try Invocation.withClient { client in
            Invocation.show(try await client.query("gathers")) { GatherText.table($0.list("gathers")) }
        }
    }
}

struct GatherShow: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "show", abstract: "Show a job.", discussion: "coterie gather show 4f2a91c07e --json")
    @Argument(help: "The job's id.") var id: String

    func run() throws {
        let path = "gathers/" + percentEncoded(id)
        try Invocation.withClient { client in Invocation.show(try await client.query(path), human: yamlText) }
    }
}

/// Follows a job until it is over; what it is then.
private func follow(_ id: String, _ client: ClusterClient, _ loop: EventLoop, onChange: @escaping (JSONValue) -> Void)
    async throws -> JSONValue
{
    let path = "gathers/" + percentEncoded(id)
    var last = try await client.query(path)
    onChange(last)
    while !GatherText.isOver(last) {
        let end: CoterieError? = await withCheckedContinuation {
            (continuation: CheckedContinuation<CoterieError?, Never>) in
            var waiting: CheckedContinuation<CoterieError?, Never>? = continuation
            var handle: WatchHandle?
            handle = client.startWatch(
                path,
                onItem: { item in
                    if item != last { onChange(item) }
                    last = item
                    guard GatherText.isOver(item) else { return }
                    handle?.cancel()
                    waiting?.resume(returning: nil)
                    waiting = nil
                },
                onEnd: { error in
                    waiting?.resume(returning: error)
                    waiting = nil
                })
        }
        if let end, end.code != .unavailable { throw end }
        if !GatherText.isOver(last) {
            await loop.sleep(.milliseconds(100))
            last = try await client.query(path)
        }
    }
    return last
}

/// The job's pods that are bound to a node and have not ended.
private func existingPods(of gather: JSONValue, _ client: ClusterClient) async throws -> [String] {
    let wanted = Set(gather.list("pods").compactMap(\.stringValue))
    return try await client.query("pods").list("items").map(PodRow.init(document:)).filter { pod in
        wanted.contains(pod.name) && pod.status.string("phase") == "Running"
    }.map(\.name)
}

struct GatherWatch: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "watch", abstract: "Show each change of a job until it is over.",
        discussion: "coterie gather watch 4f2a91c07e")
    @Argument(help: "The job's id.") var id: String

    func run() throws {
        let id = id
        try Invocation.withClientAndLoop { client, loop in
            _ = try await follow(id, client, loop) { Invocation.showItem($0, human: GatherText.line) }
        }
    }
}

struct GatherWait: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "wait", abstract: "Wait until a job is over, however it ends.",
        discussion:
            "Exit 0 if enough shards succeeded, 7 if not, 1 if it failed otherwise or was cancelled.\n\ncoterie gather wait 4f2a91c07e"
    )
    @Argument(help: "The job's id.") var id: String

    func run() throws {
        let id = id
        try Invocation.withClientAndLoop { client, loop in
            let end = try await follow(id, client, loop) { _ in }
            Invocation.show(end, human: GatherText.line)
            let shards = end["shards"] ?? .null
            switch GatherState(rawValue: end.string("state")) {
            case .succeeded, .partial: break
            case .failed where shards.int("successful") > 0:
                throw Invocation.Exit(code: Model.ExitCode.partial.rawValue)
            case .failed, .cancelled, .running, nil: throw Invocation.Exit(code: Model.ExitCode.failed.rawValue)
            }
        }
    }
}

struct GatherCancel: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "cancel", abstract: "Cancel a job.", discussion: "coterie gather cancel 4f2a91c07e")
    @Argument(help: "The job's id.") var id: String

    func run() throws {
        let id = id
        try Invocation.withClient { client in
            _ = try await schedule(.cancelGather(id: id), client)
            Invocation.show(["id": .string(id), "state": "cancelled"]) { _ in "\(id) is cancelled\n" }
        }
    }
}

struct GatherRetry: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "retry", abstract: "Run the failed shards of a job again (input is not kept: not possible yet).")
    @Argument(help: "The job's id.") var id: String

    func run() throws {
        let path = "gathers/" + percentEncoded(id)
        let id = id
        try Invocation.withClient { client in
            _ = try await client.query(path)
            throw CoterieError(.failed, "the input of gather \(id) is not kept", hint: "run its scatter command again")
        }
    }
}

struct GatherResult: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "result", abstract: "Fetch the result of a detached job while its root keeps it.",
        discussion: "coterie gather result 4f2a91c07e > result")
    @Argument(help: "The job's id.") var id: String

    func run() throws {
        let id = id
        // A root that is gone has taken the result with it.
        try Invocation.withClient { client in
            let gather = try await client.query("gathers/" + percentEncoded(id))
            guard try await existingPods(of: gather, client).contains("gather-\(id)-root") else {
                throw CoterieError(
                    .notFound, "the result of gather \(id) (\(gather.string("state"))) is not kept",
                    hint: "the root keeps that of a detached job for ten minutes, until it is fetched")
            }
        }
        var options = GatherClientOptions(id: id)
        options.fetch = true
        try GatherRun.run(options, summary: nil)
    }
}

struct GatherLogs: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "logs", abstract: "Show the logs of a running job's pods.",
        discussion: "coterie gather logs 4f2a91c07e")
    @Argument(help: "The job's id.") var id: String

    func run() throws {
        let id = id
        try Invocation.withClient { client in
            let gather = try await client.query("gathers/" + percentEncoded(id))
            let pods = try await existingPods(of: gather, client)
            guard !pods.isEmpty else {
                throw CoterieError(.notFound, "the pods of gather \(id) are gone and their logs with them")
            }
            try await watchAll(client, pods.map { ("logs/" + percentEncoded($0), LinePrinter(prefix: $0)) })
        }
    }
}
