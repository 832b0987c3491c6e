// Patterns become pods: what `coterie expand` prints. A supplied container runs a subcommand of Coterie, which is first in the
// PATH of every pod as `coterie`; a pattern holds nothing that a user's own manifest could not say.
import Model

/// A pod, and the object that it belongs to.
public struct ExpandedPod: Hashable, Sendable {
    public var spec: PodSpec
    /// `LeaderElection`; nil for a Pod that stands for itself.
    public var ownerKind: String?
    public var ownerName: String?

    public init(spec: PodSpec, ownerKind: String? = nil, ownerName: String? = nil) {
        self.spec = spec
        self.ownerKind = ownerKind
        self.ownerName = ownerName
    }
}

public enum Expansion {
    /// Most pods of one object, and of one file.
    public static let podLimit = 1_000
    public static let fileLimit = 10_000
    /// The sidecar that LeaderElection adds, and its port on the pod's localhost (DESIGN 2.4).
    public static let elector = "elector"
    public static let electorPort: UInt16 = 4_040

    /// The pods of all objects, in order; ConfigMaps and Secrets are none. Throws if two pods would have one name, which
    /// ``ManifestParser`` has excluded for the objects of one file.
    public static func pods(of objects: [ManifestObject]) throws(ManifestFailure) -> [ExpandedPod] {
        var pods: [ExpandedPod] = []
        var names: Set<String> = []
        var errors: [ManifestError] = []
        for object in objects {
            for pod in unchecked(object) {
                if names.insert(pod.spec.name).inserted {
                    pods.append(pod)
                } else {
                    let message = "\(object.kind) \(object.name) would make the pod \(pod.spec.name) a second time"
                    errors.append(ManifestError(file: "", line: 0, column: 0, message: message))
                }
            }
        }
        if pods.count > fileLimit {
            errors.append(ManifestError(file: "", line: 0, column: 0, message: "more than \(fileLimit) pods"))
        }
        if !errors.isEmpty { throw ManifestFailure(errors: errors) }
        return pods
    }

    static func unchecked(_ object: ManifestObject) -> [ExpandedPod] {
        func owned(_ specs: [PodSpec]) -> [ExpandedPod] {
            specs.map { ExpandedPod(spec: $0, ownerKind: object.kind, ownerName: object.name) }
        }
        switch object {
        case .pod(let spec): return [ExpandedPod(spec: spec)]
        case .configMap, .secret: return []
        case .deployment(let spec): return owned(numbered(spec.name, spec.replicas, spec.template))
        case .job(let spec): return owned(pods(of: spec))
        case .leaderElection(let spec): return owned(pods(of: spec))
        case .workQueue(let spec): return owned(pods(of: spec))
        case .scatterGather(let spec):
            let (root, leaves) = gather(spec, id: spec.name)
            return owned([root] + leaves)
        }
    }

    private static func numbered(_ name: String, _ count: Int, _ template: PodSpec) -> [PodSpec] {
        (0..<min(max(0, count), podLimit)).map { index in
            var pod = template
            pod.name = "\(name)-\(index)"
            return pod
        }
    }

    private static func pods(of job: JobSpec) -> [PodSpec] {
        numbered(job.name, job.completions, job.template).enumerated().map { index, pod in
            guard job.indexed else { return pod }
            var pod = pod
            let variable = EnvironmentVariable(name: "JOB_COMPLETION_INDEX", value: .literal(String(index)))
            func add(_ container: inout ContainerSpec) {
                container.environment.removeAll { $0.name == variable.name }
                container.environment.append(variable)
            }
            for i in pod.containers.indices { add(&pod.containers[i]) }
            for i in pod.initContainers.indices { add(&pod.initContainers[i]) }
            return pod
        }
    }

    private static func pods(of election: LeaderElectionSpec) -> [PodSpec] {
        var template = election.template
        // First, so that the endpoint answers before anything else of the pod starts.
        template.initContainers.insert(
            ContainerSpec(
                name: elector, image: ContainerDecoder.hostImage,
                command: [
                    "coterie", "elector", "--election", election.election, "--listen", "127.0.0.1:\(electorPort)",
                    "--ttl",
                    election.ttl.description,
                ],
                restartAlways: true,
                startupProbe: Probe(action: .tcp(port: electorPort), period: .seconds(1), failureThreshold: 60)),
            at: 0)
        return numbered(election.name, election.replicas, template)
    }

    private static func pods(of queue: WorkQueueSpec) -> [PodSpec] {
        var template = queue.template
        for i in template.containers.indices where template.containers[i].name == WorkQueueSpec.container {
            let program = template.containers[i].command + template.containers[i].arguments
            let command = ["coterie", "worker", "--tube", queue.tube, "--concurrency", String(queue.concurrency)]
            template.containers[i].command = command + ["--"] + program
            template.containers[i].arguments = []
        }
        return numbered(queue.name, queue.workers, template)
    }

    // MARK: - Scatter-gather

    /// Where root and leaves find what the manifest holds itself.
    static let filesPath = "/var/coterie/files"
    static let inputPath = "/var/coterie/input"

    /// The pods of a job: `gather-ID-root` and `gather-ID-leaf-0`, …: as many leaves as asked for, but no more than there can be
    /// shards. `program` is the path of Coterie's binary inside the pods.
    public static func gather(_ spec: ScatterGatherSpec, id: String, program: String = "coterie") -> (
        root: PodSpec, leaves: [PodSpec]
    ) {
        let rootName = "gather-\(id)-root"
        var command = [program, "root", "--gather", id, "--leaf", spec.leaf]
        if let merge = spec.merge { command += ["--merge", merge] }
        if spec.mergeFiles { command.append("--merge-files") }
        switch spec.sharder {
        case .lines(let count): command += ["--lines", String(count)]
        case .shards(let count): command += ["--shards", String(count)]
        case .bytes(let count): command += ["--bytes", String(count)]
        case .index(let count): command += ["--index", String(count)]
        case .arguments: command.append("--args")
        }
        let leafCount = leaves(spec)
        command += ["--parallel", String(leafCount)]
        if let timeout = spec.shardTimeout { command += ["--shard-timeout", timeout.description] }
        if let deadline = spec.deadline { command += ["--deadline", deadline.description] }
        command += [
            "--retries", String(spec.retries), "--hedge", spec.hedge.description, "--min-success",
            String(spec.minSuccess),
        ]
        if spec.unordered { command.append("--unordered") }
        if spec.input != nil { command += ["--input", inputPath + "/input"] }

        let labels = ["coterie.internal/gather": id]
        var root = ContainerSpec(name: "root", image: spec.image, command: command)
        var rootPod = PodSpec(
            name: rootName, labels: labels, containers: [], restartPolicy: .never)
        if let input = spec.input {
            rootPod.volumes = [Volume(name: "input", source: .files(["input": input]))]
            root.mounts = [VolumeMount(name: "input", mountPath: inputPath, readOnly: true)]
        }
        rootPod.containers = [root]

        var leafCommand = [program, "leaf", "--gather", id, "--root", rootName, "--leaf", spec.leaf]
        if case .arguments = spec.sharder { leafCommand.append("--args") }
        if let timeout = spec.shardTimeout { leafCommand += ["--shard-timeout", timeout.description] }
        if spec.streamLeaf { leafCommand.append("--stream-leaf") }
        var leaf = ContainerSpec(name: "leaf", image: spec.image)
        var volumes: [Volume] = []
        if !spec.files.isEmpty {
            leafCommand += ["--files", filesPath]
            leaf.mounts = [VolumeMount(name: "files", mountPath: filesPath, readOnly: true)]
            volumes = [Volume(name: "files", source: .files(spec.files))]
        }
        leaf.command = leafCommand
        let leafPods = (0..<leafCount).map { index in
            PodSpec(
                name: "gather-\(id)-leaf-\(index)", labels: labels, containers: [leaf], volumes: volumes,
                restartPolicy: .onFailure,
                nodeSelector: spec.nodeSelector)
        }
        return (rootPod, leafPods)
    }

    private static func leaves(_ spec: ScatterGatherSpec) -> Int {
        let wanted = min(max(1, spec.parallel), ScatterGatherSpec.parallelLimit)
        switch spec.sharder {
        case .shards(let count), .index(let count): return min(wanted, max(1, count))
        case .lines, .bytes, .arguments: return wanted
        }
    }
}
