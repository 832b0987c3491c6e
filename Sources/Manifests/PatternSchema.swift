// Our own kinds, `apiVersion: coterie.internal/v1alpha1`.
import Model

enum PatternSchema {
    static let version = "coterie.internal/v1alpha1"
    static let span = TimeSpan.milliseconds(1)...TimeSpan.seconds(100 * 365 * 86_400)

    private static func object(_ kind: String, _ text: String, _ spec: Schema) -> Schema {
        Schema(
            kind, text,
            [
                Field("apiVersion", .choice([version]), required: true, version + "."),
                Field("kind", .choice([kind]), required: true, kind + "."),
                Field("metadata", .object(PodSchema.metadata), required: true, "Name, labels, annotations."),
                Field("spec", .object(spec), required: true, "What it does."),
            ])
    }

    static let leaderElection = object(
        "LeaderElection",
        "Replicas of a pod, of which one at a time leads. Each asks http://127.0.0.1:4040/ whether it is the one.",
        Schema(
            "LeaderElectionSpec", "Who runs for what.",
            [
                Field("replicas", .integer(1...Int64(Expansion.podLimit)), "Pods NAME-0, NAME-1, … Default 3."),
                Field("election", .identifier(.election), "The election's name. Default: the object's name."),
                Field(
                    "ttl", .duration(.milliseconds(500)...(.seconds(3_600))),
                    "How long a silent leader stays one. Default 10s."),
                Field(
                    "template", .object(PodSchema.template), required: true,
                    "The pod; a sidecar named elector is added to it."),
            ]))

    private static func container(_ name: String) -> Field? { PodSchema.container.field(name) }

    static let workQueue = object(
        "WorkQueue", "Workers on a tube of the cluster's queue: the program runs once for each item.",
        Schema(
            "WorkQueueSpec", "Either image, command and the like, or template with a container named worker.",
            [
                Field("queue", .identifier(.tube), "The tube. Default: the object's name."),
                Field("tube", .identifier(.tube), "The same as queue."),
                Field("workers", .integer(0...Int64(Expansion.podLimit)), "Pods NAME-0, NAME-1, … Default 1."),
                Field("concurrency", .integer(1...1_000), "Items at a time in one pod. Default 1."),
                Field("nodeSelector", .map(.string), "Tags that a node must have to run a worker."),
                Field("volumes", .list(.object(PodSchema.volume)), "Directories that the container mounts."),
                Field(
                    "template", .object(PodSchema.template),
                    "A whole pod instead; its container named worker gives the program."),
            ]
                + [
                    container("image"), container("command"), container("args"), container("workingDir"),
                    container("env"),
                    container("envFrom"), container("volumeMounts"), container("resources"),
                ].compactMap { field in field.map { Field($0.name, $0.kind, $0.text) } }))

    static let scatterGather = object(
        "ScatterGather", "A job: input is split into shards, leaves on all nodes work on them, the results are merged.",
        Schema(
            "ScatterGatherSpec", "The job; exactly one of lines, shards, bytes, index and args.",
            [
                Field(
                    "leaf", .string, required: true, "sh -c text, run once a shard: shard on stdin, result on stdout."),
                Field(
                    "merge", .string,
                    "sh -c text, run once: results on stdin in shard order. Default: they are concatenated."),
                Field(
                    "mergeFiles", .boolean,
                    "The merge also finds the results as files in $COTERIE_RESULTS. Default false."),
                Field("lines", .integer(1...1_000_000_000), "At most so many lines a shard."),
                Field("shards", .integer(1...Int64(ScatterGatherSpec.shardLimit)), "So many near-equal shards."),
                Field("bytes", .size, "At most so many bytes a shard; records stay whole."),
                Field(
                    "index", .integer(1...Int64(ScatterGatherSpec.shardLimit)),
                    "So many shards, without input: the leaf goes by $COTERIE_SHARD."),
                Field("args", .boolean, "true: one shard per input line, given to the leaf as $1."),
                Field("parallel", .integer(1...Int64(ScatterGatherSpec.parallelLimit)), "Leaf pods. Default 3."),
                Field("shardTimeout", .duration(span), "For one attempt of a shard."),
                Field("deadline", .duration(span), "For the whole job; then the result is partial."),
                Field(
                    "retries", .integer(0...Int64(ScatterGatherSpec.retryLimit)),
                    "Further attempts of a shard that failed. Default 3."),
                Field("hedge", .hedge, "When a slow shard is tried a second time elsewhere. Default auto."),
                Field("minSuccess", .fraction(0...1), "The share of shards that must succeed. Default 1."),
                Field("unordered", .boolean, "Results as they come instead of in shard order. Default false."),
                Field("streamLeaf", .boolean, "One leaf process for many shards. Default false."),
                Field("image", .identifier(.free), "Of root and leaves. Default localhost/host."),
                Field("on", .map(.string), "Tags that the leaves' nodes must have."),
                Field("files", .map(.string), "Relative paths to texts, put into the leaves' working directory."),
                Field("input", .string, "The input itself. Default: the client streams it."),
            ]))

    /// Every kind, by name.
    static let kinds: [Schema] = [
        PodSchema.pod, PodSchema.configMap, PodSchema.secret, PodSchema.deployment, PodSchema.job, leaderElection,
        workQueue, scatterGather,
    ]

    /// Kinds of Kubernetes that are no part of the subset, or not yet.
    static let foreignKinds = [
        "ReplicaSet", "ReplicationController", "StatefulSet", "DaemonSet", "CronJob", "Ingress", "IngressClass",
        "NetworkPolicy", "Namespace",
        "Node", "PersistentVolume", "PersistentVolumeClaim", "StorageClass", "ServiceAccount", "Role", "RoleBinding",
        "ClusterRole",
        "ClusterRoleBinding", "HorizontalPodAutoscaler", "PodDisruptionBudget", "PriorityClass", "LimitRange",
        "ResourceQuota",
        "CustomResourceDefinition", "Endpoints", "EndpointSlice", "Lease", "List", "PodTemplate", "PodList",
    ]
}
