// What the supplied containers ask of the cluster, as seams: the campaign and the worker are tested against a lease machine
// and a queue in memory, and run against the client library.
import Leases
import Model
import Queues

/// Leases by the cluster's own word. Confined to the loop; `done` is called once.
public protocol LeaseService: AnyObject {
    /// `wait`: how long an acquire may wait for the lease to become free.
    func lease(_ command: LeaseCommand, wait: TimeSpan?, done: @escaping (Result<LeaseResult, CoterieError>) -> Void)
}

/// The cluster's queues. Confined to the loop; `done` is called once.
public protocol QueueService: AnyObject {
    /// `wait`: how long a reserve may wait for a job.
    func queue(_ command: QueueCommand, wait: TimeSpan?, done: @escaping (Result<QueueResult, CoterieError>) -> Void)
}

/// Who a container says that it is.
public struct ContainerIdentity: Hashable, Sendable {
    /// The pod, or on a machine without one the host: what others see as the holder.
    public var name: String
    public var pod: String?
    public var node: String?

    public init(name: String, pod: String? = nil, node: String? = nil) {
        self.name = name
        self.pod = pod
        self.node = node
    }

    /// From `COTERIE_POD`, `COTERIE_NODE` and `HOSTNAME`.
    public static var current: ContainerIdentity {
        let pod = environmentValue("COTERIE_POD")
        return ContainerIdentity(
            name: pod ?? environmentValue("HOSTNAME") ?? hostName(), pod: pod, node: environmentValue("COTERIE_NODE"))
    }

    /// What a lease carries for people and documents.
    var info: [String: String] {
        var info = ["name": name]
        info["pod"] = pod
        info["node"] = node
        return info
    }
}
