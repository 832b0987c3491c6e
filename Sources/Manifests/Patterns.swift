// The kinds that stand for several pods, and how they are read. What pods they become is in ``Expansion``.
import Model

/// `apps/v1` Deployment: pods NAME-0, NAME-1, ….
public struct DeploymentSpec: Hashable, Sendable {
    public var name: String
    /// From 0 to ``Expansion/podLimit``.
    public var replicas: Int
    /// Its name is empty.
    public var template: PodSpec

    public init(name: String, replicas: Int = 1, template: PodSpec) {
        self.name = name
        self.replicas = replicas
        self.template = template
    }
}

/// `batch/v1` Job: pods that end, all at once.
public struct JobSpec: Hashable, Sendable {
    public var name: String
    public var completions: Int
    /// Each container has its pod's number in `JOB_COMPLETION_INDEX`.
    public var indexed: Bool
    /// Its name is empty.
    public var template: PodSpec

    public init(name: String, completions: Int = 1, indexed: Bool = false, template: PodSpec) {
        self.name = name
        self.completions = completions
        self.indexed = indexed
        self.template = template
    }
}

/// Replicas of which one leads.
public struct LeaderElectionSpec: Hashable, Sendable {
    public var name: String
    public var replicas: Int
    public var election: String
    /// Lease of the leader, from 500 ms to 1 h.
    public var ttl: TimeSpan
    /// Its name is empty; it has no container named `elector`.
    public var template: PodSpec

    public static let defaultTTL = TimeSpan.seconds(10)

    public init(
        name: String, replicas: Int = 3, election: String? = nil, ttl: TimeSpan = LeaderElectionSpec.defaultTTL,
        template: PodSpec
    ) {
        self.name = name
        self.replicas = replicas
        self.election = election ?? name
        self.ttl = ttl
        self.template = template
    }
}

/// Worker pods on a tube.
public struct WorkQueueSpec: Hashable, Sendable {
    public var name: String
    public var tube: String
    public var workers: Int
    public var concurrency: Int
    /// Its name is empty; command and arguments of its container `worker` are the program that runs once an item.
    public var template: PodSpec

    public static let container = "worker"

    public init(
        name: String, tube: String? = nil, workers: Int = 1, concurrency: Int = 1,
        template: PodSpec
    ) {
        self.name = name
        self.tube = tube ?? name
        self.workers = workers
        self.concurrency = concurrency
        self.template = template
    }
}

struct PatternDecoder {
    let diagnostics: Diagnostics
    let pods: PodDecoder

    private func integer(_ cursor: Cursor?, _ fallback: Int) -> Int {
        cursor?.integer.flatMap { Int(exactly: $0) } ?? fallback
    }

    private func template(_ cursor: Cursor?) -> PodSpec {
        pods.pod(cursor?["metadata"], cursor?["spec"], name: "")
    }

    private func requireRestart(_ template: Cursor?, _ allowed: [RestartPolicy], kind: String) {
        guard let spec = template?["spec"] else { return }
        let policy = spec["restartPolicy"]?.string.flatMap(RestartPolicy.init) ?? .always
        if allowed.contains(policy) { return }
        let place = spec["restartPolicy"]?.place ?? spec.place
        let names = allowed.map(\.rawValue).joined(separator: " or ")
        diagnostics.report(place, FieldPath.append(spec.path, "restartPolicy"), "must be \(names) in a \(kind)")
    }

    func deployment(_ cursor: Cursor, _ name: String) -> DeploymentSpec {
        let spec = cursor["spec"]
        let template = spec?["template"]
        let pod = self.template(template)
        requireRestart(template, [.always], kind: "Deployment")
        for (key, _, value) in spec?["selector"]?["matchLabels"]?.entries ?? [] {
            guard let text = value.string, pod.labels[key] != text else { continue }
            diagnostics.report(
                value.place, value.path, "the template's pods do not have this label",
                hint: "add it to spec.template.metadata.labels")
        }
        return DeploymentSpec(name: name, replicas: integer(spec?["replicas"], 1), template: pod)
    }

    func job(_ cursor: Cursor, _ name: String) -> JobSpec {
        let spec = cursor["spec"]
        var pod = template(spec?["template"])
        requireRestart(spec?["template"], [.onFailure, .never], kind: "Job")
        let completions = integer(spec?["completions"], 1)
        if integer(spec?["parallelism"], 1) != completions {
            let field = spec?["parallelism"] ?? spec?["completions"]
            diagnostics.report(
                field?.place ?? cursor.place, "spec.parallelism",
                "must equal completions: Coterie starts all pods of a Job at once",
                hint: "a WorkQueue runs a few at a time")
        }
        if let deadline = spec?["activeDeadlineSeconds"]?.seconds {
            pod.activeDeadline = min(deadline, pod.activeDeadline ?? deadline)
        }
        return JobSpec(
            name: name, completions: completions, indexed: spec?["completionMode"]?.string == "Indexed", template: pod)
    }

    func leaderElection(_ cursor: Cursor, _ name: String) -> LeaderElectionSpec {
        let spec = cursor["spec"]
        let template = spec?["template"]
        let pod = self.template(template)
        requireRestart(template, [.always], kind: "LeaderElection")
        for list in ["initContainers", "containers"] {
            for container in template?["spec"]?[list]?.items ?? [] {
                guard let named = container["name"], named.string == Expansion.elector else { continue }
                diagnostics.report(
                    named.place, named.path, "the name elector is that of the sidecar that the pattern adds")
            }
        }
        return LeaderElectionSpec(
            name: name, replicas: integer(spec?["replicas"], 3), election: spec?["election"]?.string,
            ttl: spec?["ttl"]?.duration ?? LeaderElectionSpec.defaultTTL, template: pod)
    }

    // MARK: - WorkQueue

    private static let containerFields = [
        "image", "command", "args", "workingDir", "env", "envFrom", "volumeMounts", "resources",
    ]

    func workQueue(_ cursor: Cursor, _ name: String) -> WorkQueueSpec {
        guard let spec = cursor["spec"] else {
            return WorkQueueSpec(name: name, template: PodSpec(name: "", containers: []))
        }
        if let tube = spec["tube"], spec["queue"] != nil {
            diagnostics.report(tube.place, tube.path, "queue and tube mean the same: give one")
        }
        let tube = spec["queue"]?.string ?? spec["tube"]?.string
        return WorkQueueSpec(
            name: name, tube: tube, workers: integer(spec["workers"], 1), concurrency: integer(spec["concurrency"], 1),
            template: spec["template"] != nil ? wholeTemplate(spec) : shortTemplate(spec))
    }

    private func wholeTemplate(_ spec: Cursor) -> PodSpec {
        for field in PatternDecoder.containerFields + ["volumes", "nodeSelector"] {
            guard let extra = spec[field] else { continue }
            diagnostics.report(
                extra.place, extra.path, "not together with template", hint: "put it into spec.template.spec")
        }
        let template = spec["template"]
        let pod = self.template(template)
        requireRestart(template, [.always], kind: "WorkQueue")
        let containers = template?["spec"]?["containers"]
        if let worker = containers?.items.first(where: { $0["name"]?.string == WorkQueueSpec.container }) {
            if worker["command"] == nil {
                diagnostics.report(
                    worker.place, FieldPath.append(worker.path, "command"),
                    "required: the program that runs once for each item")
            }
        } else if let containers {
            diagnostics.report(
                containers.place, containers.path, "no container is named worker",
                hint: "its command is the program that runs once for each item")
        }
        return pod
    }

    /// The fields of a container, given in the spec itself, read as a pod with that one container.
    private func shortTemplate(_ spec: Cursor) -> PodSpec {
        for field in ["image", "command"] where spec[field] == nil {
            diagnostics.report(
                spec.place, FieldPath.append(spec.path, field), "required field is missing", hint: "or give template")
        }
        guard case .mapping(let entries) = spec.node.content else { return PodSpec(name: "", containers: []) }
        func node(_ content: YAMLNode.Content) -> YAMLNode { YAMLNode(place: spec.place, content: content, size: 1) }
        func entry(_ key: String, _ value: YAMLNode) -> YAMLNode.Entry {
            YAMLNode.Entry(key: key, place: spec.place, value: value)
        }
        var fields = entries.filter { PatternDecoder.containerFields.contains($0.key) }
        if spec["command"] == nil {
            fields.append(entry("command", node(.sequence([node(.scalar(Scalar(text: "missing", plain: false)))]))))
        }
        fields.append(entry("name", node(.scalar(Scalar(text: WorkQueueSpec.container, plain: false)))))
        var tree = [entry("containers", node(.sequence([node(.mapping(fields))])))]
        tree += entries.filter { $0.key == "volumes" || $0.key == "nodeSelector" }
        // What is wrong in this made-up tree is reported where the field stands in the file.
        let inner = Diagnostics(file: diagnostics.file)
        let pod = PodDecoder(diagnostics: inner, configs: pods.configs)
            .pod(nil, Cursor(node: node(.mapping(tree)), path: spec.path), name: "")
        let made = spec.path + ".containers[0]"
        for error in inner.errors {
            let path = error.path.hasPrefix(made) ? spec.path + error.path.dropFirst(made.count) : error.path
            diagnostics.report(Place(line: error.line, column: error.column), path, error.message, hint: error.hint)
        }
        return pod
    }

    // MARK: - ScatterGather

    /// Nil if it has no sharder.
    func scatterGather(_ cursor: Cursor, _ name: String) -> ScatterGatherSpec? {
        guard let spec = cursor["spec"] else { return nil }
        let given = ["lines", "shards", "bytes", "index", "args"].filter { spec[$0] != nil }
        guard given.count == 1, let sharder = given.first.flatMap({ self.sharder($0, spec) }) else {
            if given.count != 1 {
                diagnostics.report(
                    spec.place, spec.path,
                    given.isEmpty
                        ? "no sharder is given" : "more than one sharder is given: " + given.joined(separator: ", "),
                    hint: "exactly one of lines, shards, bytes, index, args")
            }
            return nil
        }
        var gather = ScatterGatherSpec(name: name, leaf: spec["leaf"]?.string ?? "", sharder: sharder)
        gather.merge = spec["merge"]?.string
        gather.mergeFiles = spec["mergeFiles"]?.boolean ?? false
        gather.parallel = integer(spec["parallel"], gather.parallel)
        gather.shardTimeout = spec["shardTimeout"]?.duration
        gather.deadline = spec["deadline"]?.duration
        gather.retries = integer(spec["retries"], gather.retries)
        gather.hedge = spec["hedge"]?.scalar.flatMap { ScatterGatherSpec.Hedge(text: $0.text) } ?? .automatic
        gather.minSuccess = spec["minSuccess"]?.scalar.flatMap(ScalarValue.double) ?? 1
        gather.unordered = spec["unordered"]?.boolean ?? false
        gather.streamLeaf = spec["streamLeaf"]?.boolean ?? false
        gather.image = spec["image"]?.string ?? gather.image
        gather.nodeSelector = spec["on"]?.map ?? [:]
        for (key, place, value) in spec["files"]?.entries ?? [] {
            let name = Cursor(
                node: YAMLNode(place: place, content: .scalar(Scalar(text: key, plain: false)), size: 1),
                path: value.path)
            PathCheck.relative(name, diagnostics)
            gather.files[key] = value.string.map { Array($0.utf8) }
        }
        gather.input = spec["input"]?.string.map { Array($0.utf8) }
        check(spec, gather)
        return gather
    }

    private func sharder(_ field: String, _ spec: Cursor) -> ScatterGatherSpec.Sharder? {
        switch field {
        case "lines": return .lines(integer(spec[field], 1))
        case "shards": return .shards(integer(spec[field], 1))
        case "bytes": return .bytes(spec[field]?.size ?? 1)
        case "index": return .index(integer(spec[field], 1))
        default:
            guard let cursor = spec[field], let value = cursor.boolean else { return nil }
            if !value { diagnostics.report(cursor.place, cursor.path, "must be true, or left out for another sharder") }
            return .arguments
        }
    }

    private func check(_ spec: Cursor, _ gather: ScatterGatherSpec) {
        func refuse(_ field: String, _ message: String) {
            if let cursor = spec[field] { diagnostics.report(cursor.place, cursor.path, message) }
        }
        if gather.leaf.allSatisfy(\.isWhitespace) { refuse("leaf", "the command is empty") }
        if gather.merge?.allSatisfy(\.isWhitespace) == true { refuse("merge", "the command is empty") }
        if gather.unordered, gather.merge != nil {
            refuse("unordered", "not together with merge, which gets results in shard order")
        }
        if gather.mergeFiles, gather.merge == nil { refuse("mergeFiles", "needs merge") }
        if case .index = gather.sharder, gather.input != nil { refuse("input", "the sharder index has no input") }
        if let shard = gather.shardTimeout, let deadline = gather.deadline, shard > deadline {
            refuse("shardTimeout", "longer than deadline")
        }
        let bytes = gather.files.reduce(gather.input?.count ?? 0) { $0 + $1.value.count }
        if bytes > ConfigObjects.limit {
            diagnostics.report(
                spec.place, spec.path,
                "files and input hold \(bytes) bytes, more than the limit of \(ConfigObjects.limit)")
        }
    }
}
