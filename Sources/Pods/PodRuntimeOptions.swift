// What a node decides about the pods it runs: where their files are, how closed their sandbox is, and the limits on
// each of them. Everything has a default except the places.
import Model

/// How a node holds its pods.
public enum SandboxMode: String, Hashable, Sendable, CaseIterable {
    /// Namespaces, and a clear refusal where the kernel does not give them: never silently less.
    case auto
    /// Own network, mount, process, IPC and host name spaces; with root also limits and a user of the pod's own.
    case namespaces
    /// An OCI runtime. Not built yet: refused with that reason.
    case oci
    /// Plain processes of this host. No isolation: the host's network and files, no mounts, the pod's own process groups.
    case none
}

/// When a container that ended may start again. Kubernetes' figures: at once, then 10 s doubling to 300 s, forgotten after
/// ten minutes of running.
public struct RestartBackoff: Hashable, Sendable {
    public var minimum: TimeSpan
    public var maximum: TimeSpan
    /// A container that ran this long starts afresh: at once, then `minimum`.
    public var resetAfter: TimeSpan

    public init(
        minimum: TimeSpan = .seconds(10), maximum: TimeSpan = .seconds(300), resetAfter: TimeSpan = .seconds(600)
    ) {
        self.minimum = minimum
        self.maximum = maximum
        self.resetAfter = resetAfter
    }

    /// The wait before restart number `count + 1` of a row of quick failures: zero, minimum, twice that, … maximum.
    public func delay(afterQuickFailures count: Int) -> TimeSpan {
        if count <= 0 { return .zero }
        var delay = minimum
        for _ in 1..<min(count, 64) where delay < maximum { delay = delay * 2 }
        return min(delay, maximum)
    }
}

/// Everything that ``PodRuntime`` must be told.
public struct PodRuntimeOptions: Sendable {
    /// A directory of the runtime's own (DESIGN 2.4: `DATA/pods`): one directory a pod, removed with it.
    public var podsDirectory: String
    /// Root file systems known to the node, one directory each, named by ``ImageName/directoryName(for:)``.
    public var imageDirectory: String
    /// The `coterie-init` program.
    public var initPath: String
    /// The program that pods find as `/run/coterie/bin/coterie` (first in their PATH), usually the agent's own.
    public var supplied: String?
    public var sandbox: SandboxMode
    /// `spec.nodeName` and `status.hostIP` of `fieldRef`.
    public var nodeName: String
    public var nodeAddress: String
    public var backoff: RestartBackoff
    /// Users of pods: two for each pod, the second for its host-side containers. Only as root. Never contains 0.
    public var users: ClosedRange<UInt32>
    /// Directories that no pod may see, through the host's root file system or a hostPath: the data directory, keys.
    /// Each is covered by an empty one.
    public var maskedPaths: [String]
    /// Most processes and threads of a pod; only as root (cgroup).
    public var processLimit: Int
    /// A log file is renamed away at this size; `logFiles` of them are kept for a container, the current one included.
    public var logFileBytes: Int
    public var logFiles: Int
    /// Runs pods whose limits can not be enforced here instead of refusing them.
    public var allowUnenforced: Bool
    /// Most pods of the node.
    public var podLimit: Int
    /// How often emptyDir volumes with a size limit are measured.
    public var usageInterval = TimeSpan.seconds(5)

    public init(
        podsDirectory: String, imageDirectory: String, initPath: String, supplied: String? = nil,
        sandbox: SandboxMode = .auto,
        nodeName: String, nodeAddress: String = "127.0.0.1", backoff: RestartBackoff = RestartBackoff(),
        users: ClosedRange<UInt32>? = nil, maskedPaths: [String] = [], processLimit: Int = 1_024,
        logFileBytes: Int = 10 << 20, logFiles: Int = 5, allowUnenforced: Bool = false, podLimit: Int = 250
    ) {
        self.podsDirectory = podsDirectory
        self.imageDirectory = imageDirectory
        self.initPath = initPath
        self.supplied = supplied
        self.sandbox = sandbox
        self.nodeName = nodeName
        self.nodeAddress = nodeAddress
        self.backoff = backoff
        self.users = users ?? PodRuntimeOptions.userRange(for: podsDirectory)
        self.maskedPaths = maskedPaths
        self.processLimit = processLimit
        self.logFileBytes = logFileBytes
        self.logFiles = max(1, logFiles)
        self.allowUnenforced = allowUnenforced
        self.podLimit = podLimit
    }

    /// A thousand users that depend on the directory, so that two nodes on one host rarely share any.
    static func userRange(for directory: String) -> ClosedRange<UInt32> {
        let first = 200_000 + UInt32(stableHash(directory) % 50_000) * 1_000
        return first...first + 999
    }
}

/// FNV-1a, 64 bits: names of directories and ranges of users must be the same in every run.
func stableHash(_ text: String) -> UInt64 {
    text.utf8.reduce(0xCBF2_9CE4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01B3 }
}

/// What the sandbox can do on this machine, found out by trying (``PodRuntime/probeSandbox(loop:options:then:)``).
public struct SandboxReport: Hashable, Sendable {
    /// What pods will run in: `namespaces` or `none`; nil if pods are refused.
    public var sandbox: SandboxMode?
    /// Why `sandbox` is nil, and what to do.
    public var refusal: CoterieError?
    /// Whether pods get a user of their own (the agent has the rights of root).
    public var ownUsers: Bool
    /// Limits that hold here, of `memory`, `cpu` and `pids`, and why the others do not.
    public var enforced: [String]
    public var notEnforced: [String]
    /// From the start of a trial pod to the end of its one process.
    public var trial: TimeSpan
}

/// Which lines of a container's log.
public struct LogOptions: Hashable, Sendable {
    /// The last so many lines; nil is all that are kept.
    public var tail: Int?
    /// Lines at least this new, as an RFC 3339 time in UTC with nine digits of fraction (``LogTime``).
    public var since: String?
    /// The run before the current one.
    public var previous: Bool
    /// Go on with new lines until the container's pod is gone.
    public var follow: Bool

    public init(tail: Int? = nil, since: String? = nil, previous: Bool = false, follow: Bool = false) {
        self.tail = tail
        self.since = since
        self.previous = previous
        self.follow = follow
    }
}
