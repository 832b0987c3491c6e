/// What a user asks a node to run: a group of containers that share a network (localhost) and volumes. A strict subset of
/// the Kubernetes v1 Pod; names follow Kubernetes. `Manifests` makes it from YAML, `NodeCore` replicates it, `Pods` runs it.
public struct PodSpec: Hashable, Sendable {
    public var name: String
    public var labels: [String: String]
    public var annotations: [String: String]
    /// Started one after another before `containers`; those with ``ContainerSpec/restartAlways`` are native sidecars and stay.
    public var initContainers: [ContainerSpec]
    public var containers: [ContainerSpec]
    public var volumes: [Volume]
    public var restartPolicy: RestartPolicy
    /// Between SIGTERM and SIGKILL.
    public var terminationGracePeriod: TimeSpan
    public var hostNetwork: Bool
    public var hostname: String?
    /// Name or tag `K=V` pairs that the node must have.
    public var nodeName: String?
    public var nodeSelector: [String: String]
    /// Given up when the pod has run this long.
    public var activeDeadline: TimeSpan?

    public init(
        name: String, labels: [String: String] = [:], annotations: [String: String] = [:],
        initContainers: [ContainerSpec] = [], containers: [ContainerSpec], volumes: [Volume] = [],
        restartPolicy: RestartPolicy = .always, terminationGracePeriod: TimeSpan = .seconds(30),
        hostNetwork: Bool = false,
        hostname: String? = nil, nodeName: String? = nil, nodeSelector: [String: String] = [:],
        activeDeadline: TimeSpan? = nil
    ) {
        self.name = name
        self.labels = labels
        self.annotations = annotations
        self.initContainers = initContainers
        self.containers = containers
        self.volumes = volumes
        self.restartPolicy = restartPolicy
        self.terminationGracePeriod = terminationGracePeriod
        self.hostNetwork = hostNetwork
        self.hostname = hostname
        self.nodeName = nodeName
        self.nodeSelector = nodeSelector
        self.activeDeadline = activeDeadline
    }

    /// The annotation by which a container that dials from the host side asks for listeners on the pod's localhost:
    /// `coterie.internal/listen: "CONTAINER=6379[,CONTAINER=PORT…]"`.
    public static let listenAnnotation = "coterie.internal/listen"
}

public enum RestartPolicy: String, Sendable, CaseIterable {
    case always = "Always"
    case onFailure = "OnFailure"
    case never = "Never"
}

public struct ContainerSpec: Hashable, Sendable {
    public var name: String
    /// `localhost/host` is the host's own file system, read-only; else the name of a root file system known to the node.
    public var image: String
    public var command: [String]
    public var arguments: [String]
    public var workingDirectory: String?
    public var environment: [EnvironmentVariable]
    public var mounts: [VolumeMount]
    public var ports: [ContainerPort]
    public var resources: Resources
    /// In an init container: a native sidecar (`restartPolicy: Always`).
    public var restartAlways: Bool
    public var startupProbe: Probe?
    public var livenessProbe: Probe?
    public var readinessProbe: Probe?

    public init(
        name: String, image: String, command: [String] = [], arguments: [String] = [], workingDirectory: String? = nil,
        environment: [EnvironmentVariable] = [], mounts: [VolumeMount] = [], ports: [ContainerPort] = [],
        resources: Resources = Resources(), restartAlways: Bool = false, startupProbe: Probe? = nil,
        livenessProbe: Probe? = nil,
        readinessProbe: Probe? = nil
    ) {
        self.name = name
        self.image = image
        self.command = command
        self.arguments = arguments
        self.workingDirectory = workingDirectory
        self.environment = environment
        self.mounts = mounts
        self.ports = ports
        self.resources = resources
        self.restartAlways = restartAlways
        self.startupProbe = startupProbe
        self.livenessProbe = livenessProbe
        self.readinessProbe = readinessProbe
    }
}

public struct EnvironmentVariable: Hashable, Sendable {
    public enum Source: Hashable, Sendable {
        case literal(String)
        /// `fieldRef`: `metadata.name`, `metadata.namespace`, `spec.nodeName`, `status.podIP`, `status.hostIP`,
        /// `metadata.labels['KEY']`, `metadata.annotations['KEY']`.
        case field(String)
    }

    public var name: String
    public var value: Source

    public init(name: String, value: Source) {
        self.name = name
        self.value = value
    }
}

public struct Volume: Hashable, Sendable {
    public enum Source: Hashable, Sendable {
        /// A directory of the pod's own, gone with the pod; `inMemory` is tmpfs. `sizeLimit` in bytes.
        case emptyDir(inMemory: Bool, sizeLimit: UInt64?)
        case hostPath(String, type: String?)
        /// Files given with the manifest (ConfigMap and Secret): relative path to content.
        case files([String: [UInt8]])
    }

    public var name: String
    public var source: Source

    public init(name: String, source: Source) {
        self.name = name
        self.source = source
    }
}

public struct VolumeMount: Hashable, Sendable {
    public var name: String
    public var mountPath: String
    public var readOnly: Bool
    public var subPath: String?

    public init(name: String, mountPath: String, readOnly: Bool = false, subPath: String? = nil) {
        self.name = name
        self.mountPath = mountPath
        self.readOnly = readOnly
        self.subPath = subPath
    }
}

public struct ContainerPort: Hashable, Sendable {
    public var name: String?
    public var port: UInt16

    public init(name: String? = nil, port: UInt16) {
        self.name = name
        self.port = port
    }
}

/// Limits enforced by cgroup. Nil is unlimited.
public struct Resources: Hashable, Sendable {
    public var memoryBytes: UInt64?
    /// 1000 is one core.
    public var cpuMilli: UInt64?

    public init(memoryBytes: UInt64? = nil, cpuMilli: UInt64? = nil) {
        self.memoryBytes = memoryBytes
        self.cpuMilli = cpuMilli
    }
}

public struct Probe: Hashable, Sendable {
    public enum Action: Hashable, Sendable {
        case exec([String])
        case tcp(port: UInt16)
        case http(path: String, port: UInt16)
    }

    public var action: Action
    public var initialDelay: TimeSpan
    public var period: TimeSpan
    public var timeout: TimeSpan
    public var successThreshold: Int
    public var failureThreshold: Int

    public init(
        action: Action, initialDelay: TimeSpan = .zero, period: TimeSpan = .seconds(10),
        timeout: TimeSpan = .seconds(1),
        successThreshold: Int = 1, failureThreshold: Int = 3
    ) {
        self.action = action
        self.initialDelay = initialDelay
        self.period = period
        self.timeout = timeout
        self.successThreshold = successThreshold
        self.failureThreshold = failureThreshold
    }
}
