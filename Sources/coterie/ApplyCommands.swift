// `apply` and `delete`: manifests become pods of the cluster, and go again.
import ArgumentParser
import Client
import Manifests
import Model
import NodeCore
import Scheduling
import Wire

struct ApplyCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "apply", abstract: "Create what manifest files describe.",
        discussion: """
            All files are checked before anything is sent. What is there already, and the same, stays as it is; pods can not be changed.

            coterie apply -f cluster-configs/sidecar-logs.yaml
            coterie apply -f shop.yaml --dry-run
            """)
    @Option(name: [.short, .customLong("file")], help: "A manifest; - is standard input; may be repeated.") var file:
        [String]
    @Flag(help: "Check and say what would be done.") var dryRun = false

    func run() throws {
        let objects = try ManifestFiles.parse(file)
        let pods = try Expansion.pods(of: objects)
        if dryRun {
            return ApplyCommand.report(pods.map { ("pod", $0.spec.name, "would be created") })
        }
        try Invocation.withClient { client in
            var results: [(String, String, String)] = []
            for object in objects { results += try await ApplyCommand.apply(object, client) }
            ApplyCommand.report(results)
        }
    }

    private static func report(_ results: [(kind: String, name: String, what: String)]) {
        let items = results.map { result -> JSONValue in
            ["kind": .string(result.kind), "name": .string(result.name), "result": .string(result.what)]
        }
        Invocation.show(["items": .array(items)]) { _ in results.map { "\($0.kind)/\($0.name) \($0.what)\n" }.joined() }
    }

    private static func apply(_ object: ManifestObject, _ client: ClusterClient) async throws -> [(
        String, String, String
    )] {
        let specs = try Expansion.pods(of: [object]).map(\.spec)
        let result: SchedulingResult
        switch object {
        case .configMap, .secret: return []
        case .scatterGather(let spec):
            let seed = GatherSeeds.seed(of: spec, id: spec.name)
            result = try await schedule(.createGather(seed, pods: specs), client)
        case .pod: result = try await schedule(.applyPods(specs, owner: nil), client)
        case .deployment, .job, .leaderElection, .workQueue:
            result = try await schedule(
                .applyPods(specs, owner: .pattern(kind: object.kind, name: object.name)), client)
        }
        let what =
            switch result {
            case .unchanged: "unchanged"
            case .created, .done, .notFound, .refused: "created"
            }
        return specs.map { ("pod", $0.name, what) }
    }
}

/// What the cluster keeps of a scatter-gather job, for people.
enum GatherSeeds {
    static func seed(of spec: ScatterGatherSpec, id: String) -> GatherSeed {
        let sharder =
            switch spec.sharder {
            case .lines(let count): "lines \(count)"
            case .shards(let count): "shards \(count)"
            case .bytes(let count): "bytes \(count)"
            case .index(let count): "index \(count)"
            case .arguments: "args"
            }
        var options = ["retries": "\(spec.retries)", "hedge": spec.hedge.description]
        if let deadline = spec.deadline { options["deadline"] = deadline.description }
        if let timeout = spec.shardTimeout { options["shard-timeout"] = timeout.description }
        if spec.unordered { options["unordered"] = "true" }
        return GatherSeed(
            id: id, client: hostName(), leaf: clipped(spec.leaf), merge: spec.merge.map(clipped), sharder: sharder,
            parallel: spec.parallel,
            minSuccess: spec.minSuccess, options: options)
    }

    private static func clipped(_ text: String) -> String {
        text.utf8.count <= SchedulingLimits.gatherTextBytes
            ? text : String(decoding: text.utf8.prefix(1_024), as: UTF8.self) + "…"
    }
}

struct DeleteCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "delete", abstract: "Delete what files describe, or one object.",
        discussion: "coterie delete -f shop.yaml\ncoterie delete pod shop\ncoterie delete workqueue images")
    @Option(name: [.short, .customLong("file")], help: "A manifest; - is standard input; may be repeated.") var file:
        [String] = []
    @Argument(help: "KIND and NAME.") var target: [String] = []

    func run() throws {
        var targets: [(kind: String, name: String)] = []
        if file.isEmpty {
            guard target.count == 2 else {
                throw CoterieError(
                    .badInput, "delete: KIND and NAME, or -f FILE, are needed", hint: "coterie delete pod NAME")
            }
            targets = [(try KindName.parse(target[0], among: ["Pod", "Gather"] + KindName.patterns), target[1])]
        } else {
            guard target.isEmpty else { throw CoterieError(.badInput, "delete: either -f FILE or KIND and NAME") }
            targets = try ManifestFiles.parse(file).map { ($0.kind, $0.name) }
        }
        let all = targets
        try Invocation.withClient { client in
            var done: [JSONValue] = []
            for (kind, name) in all {
                switch kind {
                case "Pod": _ = try await schedule(.deletePods([name]), client)
                case "ConfigMap", "Secret": continue
                case "Gather", "ScatterGather":
                    // Ended first, then forgotten, so that the name is free again.
                    _ = try await schedule(.cancelGather(id: name), client)
                    _ = try await schedule(.forgetGather(id: name), client)
                default: _ = try await schedule(.deleteOwned(.pattern(kind: kind, name: name)), client)
                }
                done.append(["kind": .string(kind), "name": .string(name)])
                if !Invocation.options.json { writeOut("\(kind.lowercased())/\(name) deleted\n") }
            }
            if Invocation.options.json { Invocation.print(["deleted": .array(done)]) }
        }
    }
}

struct ValidateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "validate", abstract: "Check manifests, without a cluster.",
        discussion: "coterie validate -f shop.yaml")
    @Option(name: [.short, .customLong("file")], help: "A manifest; - is standard input; may be repeated.") var file:
        [String]

    func run() throws {
        let objects = try ManifestFiles.parse(file)
        let pods = try Expansion.pods(of: objects)
        let items = objects.map { object -> JSONValue in ["kind": .string(object.kind), "name": .string(object.name)] }
        Invocation.show(["valid": true, "objects": .array(items), "pods": JSONValue(pods.count)]) { _ in
            objects.map { "\($0.kind.lowercased())/\($0.name) is valid\n" }.joined()
        }
    }
}

struct ExpandCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "expand", abstract: "Print the pods that patterns become.",
        discussion: "coterie expand -f cluster-configs/work-queue.yaml")
    @Option(name: [.short, .customLong("file")], help: "A manifest; - is standard input; may be repeated.") var file:
        [String]

    func run() throws {
        let pods = try Expansion.pods(of: try ManifestFiles.parse(file)).map(\.spec)
        guard Invocation.options.json else { return writeOut(PodYAML.text(pods)) }
        let items = pods.map { pod -> JSONValue in
            [
                "apiVersion": "v1", "kind": "Pod", "metadata": ["name": .string(pod.name)],
                "spec": SchedulingMachine.specDocument(pod, nodeName: pod.nodeName),
            ]
        }
        Invocation.print(["apiVersion": "v1", "kind": "PodList", "items": .array(items)])
    }
}

struct ExplainCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "explain", abstract: "Describe a kind or a field of it.",
        discussion: "coterie explain pod.spec.containers\ncoterie explain workqueue")
    @Argument(help: "KIND[.path]") var path: String

    func run() throws {
        let text = try Explain.text(path)
        Invocation.show(["path": .string(path), "text": .string(text)]) { _ in text }
    }
}
