// The subset of the Kubernetes v1 Pod, ConfigMap and Secret, apps/v1 Deployment and batch/v1 Job that Coterie has.
// `foreign` lists name the rest of Kubernetes 1.37's fields, so that they can be told from mistakes.
import Model

enum PodSchema {
    static let metadataForeign = [
        "generateName", "uid", "resourceVersion", "creationTimestamp", "ownerReferences", "finalizers", "generation",
        "managedFields", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds",
    ]

    private static let labelFields = [
        Field("labels", .map(.identifier(.labelValue), keys: .labelKey), "Words to find the object by."),
        Field(
            "annotations", .map(.string, keys: .labelKey),
            "Free text. coterie.internal/listen: \"CONTAINER=PORT,…\" gives a container listeners on the pod's localhost (CONTAINER alone: none) while it dials "
                + "from the host's side."),
    ]

    static let metadata = Schema(
        "Metadata", "What the object is called.",
        [
            Field(
                "name", .identifier(.objectName), required: true, "Unique among the objects of its kind in the cluster."
            ),
            Field("namespace", .choice(["default"]), "Only default: a cluster is one namespace."),
        ] + labelFields, foreign: metadataForeign)

    static let configName = Schema(
        "Metadata", "What the object is called.",
        [
            Field(
                "name", .identifier(.objectName), required: true, "What volumes and environments of this file refer to."
            ),
            Field("namespace", .choice(["default"]), "Only default: a cluster is one namespace."),
        ] + labelFields, foreign: metadataForeign)

    static let templateMetadata = Schema(
        "TemplateMetadata", "Labels and annotations of the pods that are made.", labelFields,
        foreign: metadataForeign + ["name", "namespace"])

    // MARK: - Pod

    static let pod = Schema(
        "Pod", "Containers that run together on one node, with one localhost and shared volumes.",
        [
            Field("apiVersion", .choice(["v1"]), required: true, "v1."),
            Field("kind", .choice(["Pod"]), required: true, "Pod."),
            Field("metadata", .object(metadata), required: true, "Name, labels, annotations."),
            Field("spec", .object(spec), required: true, "What to run."),
        ], foreign: ["status"])

    static let template = Schema(
        "PodTemplate", "The pod that is made again and again.",
        [
            Field("metadata", .object(templateMetadata), "Labels and annotations."),
            Field("spec", .object(spec), required: true, "What to run."),
        ])

    static let spec = Schema(
        "PodSpec", "What to run, and how.",
        [
            Field(
                "containers", .list(.object(container), nonEmpty: true), required: true,
                "Started together, after all init containers."),
            Field(
                "initContainers", .list(.object(initContainer)),
                "Started one after another before the containers. One with restartPolicy: Always is a sidecar: it stays, and ends last."
            ),
            Field("volumes", .list(.object(volume)), "Directories that the containers mount."),
            Field(
                "restartPolicy", .choice(RestartPolicy.allCases.map(\.rawValue)),
                "When a container that ended is started again. Default Always."),
            Field(
                "terminationGracePeriodSeconds", .integer(0...86_400),
                "From SIGTERM to SIGKILL; sidecars end after the others. Default 30."),
            Field("activeDeadlineSeconds", .integer(1...3_153_600_000), "The pod fails when it has run this long."),
            Field(
                "hostNetwork", .boolean, "Share the node's network instead of a localhost of its own. Default false."),
            Field("hostname", .identifier(.label), "The pod's host name. Default: its name."),
            Field("nodeName", .identifier(.free), "The one node, by name, that may run it."),
            Field("nodeSelector", .map(.string), "Tags that a node must have to run it (agent --tag K=V)."),
        ],
        foreign: [
            "affinity", "automountServiceAccountToken", "dnsConfig", "dnsPolicy", "enableServiceLinks",
            "ephemeralContainers", "evictionResponders",
            "hostAliases", "hostIPC", "hostPID", "hostUsers", "hostnameOverride", "imagePullSecrets", "os", "overhead",
            "preemptionPolicy", "priority", "priorityClassName", "readinessGates", "resourceClaims", "resources",
            "runtimeClassName",
            "schedulerName", "schedulingGates", "schedulingGroup", "securityContext", "serviceAccount",
            "serviceAccountName",
            "setHostnameAsFQDN",
            "shareProcessNamespace", "subdomain", "tolerations", "topologySpreadConstraints", "workloadRef",
        ])

    // MARK: - Containers

    private static let containerFields = [
        Field("name", .identifier(.label), required: true, "Unique in the pod."),
        Field(
            "image", .identifier(.free), required: true,
            "A root file system known to the node (coterie image list); localhost/host is the host's own, read-only."),
        Field(
            "command", .list(.string),
            "The program and its first arguments. Needed with localhost/host, which has none of its own."),
        Field("args", .list(.string), "Further arguments."),
        Field("workingDir", .string, "Absolute path. Default /."),
        Field("env", .list(.object(environment)), "Environment variables."),
        Field(
            "envFrom", .list(.object(environmentFrom)),
            "All keys of ConfigMaps and Secrets of this file as variables; env wins."),
        Field("volumeMounts", .list(.object(mount)), "Where volumes appear."),
        Field("ports", .list(.object(port)), "Ports it listens on: names for probes, and information."),
        Field("resources", .object(resources), "Limits, enforced by cgroup."),
        Field(
            "startupProbe", .object(probe), "Until it succeeds the other probes wait, and the next init container too."),
        Field("livenessProbe", .object(probe), "When it fails, the container is restarted."),
        Field("readinessProbe", .object(probe), "While it fails, the container is not ready."),
    ]
    private static let containerForeign = [
        "imagePullPolicy", "lifecycle", "resizePolicy", "restartPolicyRules", "securityContext", "stdin", "stdinOnce",
        "terminationMessagePath", "terminationMessagePolicy", "tty", "volumeDevices",
    ]

    static let container = Schema(
        "Container", "One program of the pod.", containerFields, foreign: containerForeign + ["restartPolicy"])

    static let initContainer = Schema(
        "InitContainer", "A program that runs before the containers, or beside them as a sidecar.",
        containerFields + [
            Field(
                "restartPolicy", .choice(["Always"], foreign: ["OnFailure", "Never"]),
                "Always makes it a sidecar, which does not have to end. Without it, it must end with exit code 0 first."
            )
        ], foreign: containerForeign)

    static let environment = Schema(
        "EnvVar", "One environment variable.",
        [
            Field("name", .identifier(.environment), required: true, "The variable."),
            Field("value", .string, "Its value, as it stands: $(OTHER) is not replaced. Default: empty."),
            Field("valueFrom", .object(valueFrom), "Where its value comes from, instead."),
        ])

    static let valueFrom = Schema(
        "EnvVarSource", "Where a value comes from; exactly one.",
        [
            Field("fieldRef", .object(fieldReference), "A field of the pod."),
            Field("configMapKeyRef", .object(keyReference), "A key of a ConfigMap in this file."),
            Field("secretKeyRef", .object(keyReference), "A key of a Secret in this file."),
        ], foreign: ["resourceFieldRef", "fileKeyRef"])

    static let fieldReference = Schema(
        "FieldRef", "A field of the pod.",
        [
            Field(
                "fieldPath", .string, required: true,
                "metadata.name, metadata.namespace, metadata.labels['KEY'], metadata.annotations['KEY'], spec.nodeName, status.podIP or "
                    + "status.hostIP."),
            Field("apiVersion", .choice(["v1"]), "v1."),
        ])

    static let keyReference = Schema(
        "KeyRef", "One key of a ConfigMap or Secret.",
        [
            Field("name", .identifier(.objectName), required: true, "Of the ConfigMap or Secret."),
            Field("key", .identifier(.configKey), required: true, "The key."),
            Field(
                "optional", .boolean, "If true, the variable is left out when object or key is missing. Default false."),
        ])

    static let environmentFrom = Schema(
        "EnvFromSource", "All keys of one object; exactly one of configMapRef and secretRef.",
        [
            Field("prefix", .identifier(.environmentPrefix), "Put before each key."),
            Field("configMapRef", .object(objectReference), "A ConfigMap in this file."),
            Field("secretRef", .object(objectReference), "A Secret in this file."),
        ])

    static let objectReference = Schema(
        "ObjectRef", "A ConfigMap or Secret.",
        [
            Field("name", .identifier(.objectName), required: true, "Its name."),
            Field("optional", .boolean, "If true, it may be missing. Default false."),
        ])

    static let mount = Schema(
        "VolumeMount", "Where a volume appears in the container.",
        [
            Field("name", .identifier(.label), required: true, "Of the volume."),
            Field("mountPath", .string, required: true, "Absolute path."),
            Field("readOnly", .boolean, "Default false."),
            Field("subPath", .string, "Only this part of the volume: a relative path."),
        ], foreign: ["bindMountOptions", "mountPropagation", "recursiveReadOnly", "subPathExpr"])

    static let port = Schema(
        "ContainerPort", "A port that the container listens on.",
        [
            Field("containerPort", .integer(1...65_535), required: true, "The port."),
            Field("name", .identifier(.portName), "For probes; unique in the pod."),
            Field("protocol", .choice(["TCP"], foreign: ["UDP", "SCTP"]), "TCP."),
        ], foreign: ["hostPort", "hostIP"])

    static let quantities = Schema(
        "Quantities", "Amounts.",
        [
            Field("memory", .size, "Bytes; beyond them the container is killed."),
            Field("cpu", .cpu, "Cores."),
        ], foreign: ["ephemeral-storage", "hugepages-2Mi", "hugepages-1Gi"])

    static let resources = Schema(
        "Resources", "What a container may use.",
        [
            Field("limits", .object(quantities), "The most it gets."),
            Field(
                "requests", .object(quantities),
                "For the sake of files made for Kubernetes: each at most its limit, which must be given."),
        ], foreign: ["claims"])

    // MARK: - Probes

    static let probe = Schema(
        "Probe", "A test that is repeated; exactly one of exec, tcpSocket and httpGet.",
        [
            Field("exec", .object(execAction), "Succeeds when a command in the container ends with 0."),
            Field("tcpSocket", .object(tcpAction), "Succeeds when a connection to the pod's localhost is accepted."),
            Field("httpGet", .object(httpAction), "Succeeds when the pod's localhost answers with 200 to 399."),
            Field("initialDelaySeconds", .integer(0...86_400), "After the start of the container. Default 0."),
            Field("periodSeconds", .integer(1...86_400), "Between tests. Default 10."),
            Field("timeoutSeconds", .integer(1...3_600), "For one test. Default 1."),
            Field(
                "successThreshold", .integer(1...1_000),
                "Successes in a row that count as one; only readiness may have more than 1."),
            Field("failureThreshold", .integer(1...1_000), "Failures in a row that count as one. Default 3."),
        ], foreign: ["grpc", "terminationGracePeriodSeconds"])

    static let execAction = Schema(
        "ExecAction", "A command in the container.",
        [Field("command", .list(.string, nonEmpty: true), required: true, "Program and arguments; no shell.")])

    static let tcpAction = Schema(
        "TCPSocketAction", "A connection to the pod's localhost.",
        [Field("port", .port, required: true, "Number, or a name in ports.")],
        foreign: ["host"])

    static let httpAction = Schema(
        "HTTPGetAction", "A request to the pod's localhost.",
        [
            Field("path", .string, "Default /."),
            Field("port", .port, required: true, "Number, or a name in ports."),
            Field("scheme", .choice(["HTTP"], foreign: ["HTTPS"]), "HTTP."),
        ], foreign: ["host", "httpHeaders", "protocol"])

    // MARK: - Volumes

    static let volume = Schema(
        "Volume", "A directory that containers share; exactly one source.",
        [
            Field("name", .identifier(.label), required: true, "What mounts refer to; unique in the pod."),
            Field("emptyDir", .object(emptyDir), "A directory of the pod's own, gone with the pod."),
            Field("hostPath", .object(hostPath), "A directory or file of the node."),
            Field("configMap", .object(configMapVolume), "Files from a ConfigMap in this file."),
            Field("secret", .object(secretVolume), "Files from a Secret in this file."),
        ],
        foreign: [
            "awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "csi", "downwardAPI", "ephemeral",
            "fc", "flexVolume",
            "flocker", "gcePersistentDisk", "gitRepo", "glusterfs", "image", "iscsi", "nfs", "persistentVolumeClaim",
            "photonPersistentDisk", "portworxVolume", "projected", "quobyte", "rbd", "scaleIO", "storageos",
            "vsphereVolume",
        ])

    static let emptyDir = Schema(
        "EmptyDir", "A directory of the pod's own.",
        [
            Field(
                "medium", .choice(["Memory"], foreign: ["", "HugePages"]),
                "Memory holds it in memory. Default: on disk."),
            Field("sizeLimit", .size, "The most it may hold."),
        ])

    static let hostPath = Schema(
        "HostPath", "A part of the node's file system.",
        [
            Field("path", .string, required: true, "Absolute path."),
            Field(
                "type",
                .choice(
                    ["Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"],
                    foreign: ["", "CharDevice", "BlockDevice"]),
                "What must be there."),
        ])

    static let items = Field(
        "items", .list(.object(item), nonEmpty: true),
        "Only these keys, under these paths. Default: every key under its name.")

    static let item = Schema(
        "KeyToPath", "One key as a file.",
        [
            Field("key", .identifier(.configKey), required: true, "The key."),
            Field("path", .string, required: true, "Relative path of the file."),
        ], foreign: ["mode", "user"])

    static let configMapVolume = Schema(
        "ConfigMapVolume", "Files from a ConfigMap.",
        [
            Field("name", .identifier(.objectName), required: true, "Of the ConfigMap."), items,
            Field("optional", .boolean, "If true, it may be missing. Default false."),
        ], foreign: ["defaultMode", "defaultUser"])

    static let secretVolume = Schema(
        "SecretVolume", "Files from a Secret.",
        [
            Field("secretName", .identifier(.objectName), required: true, "Of the Secret."), items,
            Field("optional", .boolean, "If true, it may be missing. Default false."),
        ], foreign: ["defaultMode", "defaultUser"])

    // MARK: - ConfigMap and Secret

    static let configMap = Schema(
        "ConfigMap",
        "Texts for the pods of this file: files in volumes, or variables. It is not an object of the cluster.",
        [
            Field("apiVersion", .choice(["v1"]), required: true, "v1."),
            Field("kind", .choice(["ConfigMap"]), required: true, "ConfigMap."),
            Field("metadata", .object(configName), required: true, "Its name."),
            Field("data", .map(.string, keys: .configKey), "Keys to texts."),
            Field("binaryData", .map(.string, keys: .configKey), "Keys to bytes, in base64."),
        ], foreign: ["immutable"])

    static let secret = Schema(
        "Secret",
        "As ConfigMap; data is base64. It is replicated with the pods that use it, as everything in a manifest.",
        [
            Field("apiVersion", .choice(["v1"]), required: true, "v1."),
            Field("kind", .choice(["Secret"]), required: true, "Secret."),
            Field("metadata", .object(configName), required: true, "Its name."),
            Field("type", .choice(["Opaque"]), "Opaque."),
            Field("data", .map(.string, keys: .configKey), "Keys to bytes, in base64."),
            Field("stringData", .map(.string, keys: .configKey), "Keys to texts."),
        ], foreign: ["immutable"])

    // MARK: - Deployment and Job

    static let deployment = Schema(
        "Deployment", "So many pods of one kind: NAME-0, NAME-1, …",
        [
            Field("apiVersion", .choice(["apps/v1"]), required: true, "apps/v1."),
            Field("kind", .choice(["Deployment"]), required: true, "Deployment."),
            Field("metadata", .object(metadata), required: true, "Name, labels, annotations."),
            Field("spec", .object(deploymentSpec), required: true, "How many of what."),
        ], foreign: ["status"])

    static let deploymentSpec = Schema(
        "DeploymentSpec", "How many of what.",
        [
            Field("replicas", .integer(0...Int64(Expansion.podLimit)), "Pods. Default 1."),
            Field("selector", .object(selector), required: true, "Must choose the template's labels."),
            Field("template", .object(template), required: true, "The pod; restartPolicy Always."),
        ], foreign: ["minReadySeconds", "paused", "progressDeadlineSeconds", "revisionHistoryLimit", "strategy"])

    static let selector = Schema(
        "LabelSelector", "Labels that the pods have.",
        [Field("matchLabels", .map(.identifier(.labelValue), keys: .labelKey), required: true, "All of them.")],
        foreign: ["matchExpressions"])

    static let job = Schema(
        "Job", "Pods that end: NAME-0, NAME-1, …, all at once.",
        [
            Field("apiVersion", .choice(["batch/v1"]), required: true, "batch/v1."),
            Field("kind", .choice(["Job"]), required: true, "Job."),
            Field("metadata", .object(metadata), required: true, "Name, labels, annotations."),
            Field("spec", .object(jobSpec), required: true, "How many of what."),
        ], foreign: ["status"])

    static let jobSpec = Schema(
        "JobSpec", "How many of what.",
        [
            Field("completions", .integer(1...Int64(Expansion.podLimit)), "Pods that must succeed. Default 1."),
            Field(
                "parallelism", .integer(1...Int64(Expansion.podLimit)),
                "Must equal completions: all pods run at once. Default 1."),
            Field(
                "completionMode", .choice(["NonIndexed", "Indexed"]),
                "Indexed gives each pod its number in JOB_COMPLETION_INDEX. Default NonIndexed."),
            Field("activeDeadlineSeconds", .integer(1...3_153_600_000), "Each pod fails when it has run this long."),
            Field("template", .object(template), required: true, "The pod; restartPolicy OnFailure or Never."),
        ],
        foreign: [
            "backoffLimit", "backoffLimitPerIndex", "managedBy", "manualSelector", "maxFailedIndexes",
            "podFailurePolicy",
            "podReplacementPolicy", "scheduling", "selector", "successPolicy", "suspend", "ttlSecondsAfterFinished",
        ])
}
