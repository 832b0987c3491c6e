/// What became of a pod, as its node reports it.
public struct PodStatus: Hashable, Sendable {
    public enum Phase: String, Sendable, CaseIterable {
        case pending = "Pending"
        case running = "Running"
        case succeeded = "Succeeded"
        case failed = "Failed"

        public var isTerminal: Bool { self == .succeeded || self == .failed }
    }

    public var phase: Phase
    /// One CamelCase word, as Kubernetes' `reason`; empty while all is well.
    public var reason: String
    public var message: String
    public var containers: [ContainerStatus]
    /// Which sandbox holds it: `namespaces`, `none`, `oci`.
    public var sandbox: String

    public init(
        phase: Phase = .pending, reason: String = "", message: String = "", containers: [ContainerStatus] = [],
        sandbox: String = ""
    ) {
        self.phase = phase
        self.reason = reason
        self.message = message
        self.containers = containers
        self.sandbox = sandbox
    }
}

public struct ContainerStatus: Hashable, Sendable {
    public enum State: Hashable, Sendable {
        case waiting(reason: String)
        case running
        /// `exitCode` is 128 + signal for a container that a signal ended.
        case terminated(exitCode: Int32, reason: String)
    }

    public var name: String
    public var state: State
    public var ready: Bool
    public var restartCount: Int
    /// True for init containers, native sidecars included.
    public var isInit: Bool

    public init(name: String, state: State, ready: Bool = false, restartCount: Int = 0, isInit: Bool = false) {
        self.name = name
        self.state = state
        self.ready = ready
        self.restartCount = restartCount
        self.isInit = isInit
    }
}
