// The records that scheduling keeps, the commands that change them, and the answers.
import Model
import Wire

/// Bounds of what scheduling holds.
public enum SchedulingLimits {
    public static let pods = 10_000
    /// All specifications together, as bytes.
    public static let specBytes = 64 << 20
    public static let runningGathers = 1_000
    /// Ended gathers that are kept for people to look at; the oldest are forgotten.
    public static let endedGathers = 1_000
    public static let cordons = 10_000
    /// Nodes removed by order that are remembered.
    public static let retired = 1_024
    /// Pods, bindings or reports in one command.
    public static let batch = 10_000
    /// Reasons why one pod waits.
    public static let reasons = 16
    public static let reasonBytes = 1_024
    /// Longest text of a gather's seed.
    public static let gatherTextBytes = 16 << 10
    public static let gatherOptions = 64
}

/// On whose behalf a pod exists. An owned pod that its node loses is placed anew; one without owner has failed.
public enum PodOwner: Hashable, Comparable, Sendable {
    case gather(String)
    /// A pattern or controller object: `LeaderElection`, `WorkQueue`, `Deployment`, …
    case pattern(kind: String, name: String)
}

/// What the cluster knows of one pod.
public struct PodRecord: Hashable, Sendable {
    public var spec: PodSpec
    /// Never used twice: derived from the log index of the creation.
    public var uid: UInt64
    /// From 1, one higher each time the pod is taken from a node: reports of earlier generations are void.
    public var generation: UInt64
    /// Where it is bound; nil while pending, and after its node was lost.
    public var node: NodeID?
    public var status: PodStatus
    /// Whose word `status` is; nil if no node has reported yet.
    public var statusNode: NodeID?
    public var owner: PodOwner?
    /// Asked to stop. The record goes when the node says that nothing is left (which it says too if it never had the pod), or
    /// when the node is dead.
    public var deleting: Bool
    /// Asked to stop here, to be placed again when nothing is left.
    public var moving: Bool
    /// Log time.
    public var createdMilliseconds: UInt64
    /// Why it could not be placed, when last tried.
    public var pendingReasons: [String]

    public init(
        spec: PodSpec, uid: UInt64, generation: UInt64 = 1, node: NodeID? = nil, status: PodStatus = PodStatus(),
        statusNode: NodeID? = nil, owner: PodOwner? = nil, deleting: Bool = false, moving: Bool = false,
        createdMilliseconds: UInt64 = 0, pendingReasons: [String] = []
    ) {
        self.spec = spec
        self.uid = uid
        self.generation = generation
        self.node = node
        self.status = status
        self.statusNode = statusNode
        self.owner = owner
        self.deleting = deleting
        self.moving = moving
        self.createdMilliseconds = createdMilliseconds
        self.pendingReasons = pendingReasons
    }

    public var name: String { spec.name }
    /// The node shall stop it.
    public var shouldStop: Bool { deleting || moving }
    /// Waits for a node.
    public var isUnbound: Bool { node == nil && !deleting && !status.phase.isTerminal }
}

/// What a client says of a scatter-gather job when it creates it.
public struct GatherSeed: Hashable, Sendable {
    public var id: String
    /// Who asked: for people.
    public var client: String
    /// The leaf's command as text.
    public var leaf: String
    public var merge: String?
    /// How the input is cut: `lines 1000`, `args`, …
    public var sharder: String
    public var parallel: Int
    /// Of all shards, 0 to 1.
    public var minSuccess: Double
    /// Everything else that is worth showing: deadline, hedge, …
    public var options: [String: String]

    public init(
        id: String, client: String = "", leaf: String = "", merge: String? = nil, sharder: String = "",
        parallel: Int = 0,
        minSuccess: Double = 1, options: [String: String] = [:]
    ) {
        self.id = id
        self.client = client
        self.leaf = leaf
        self.merge = merge
        self.sharder = sharder
        self.parallel = parallel
        self.minSuccess = minSuccess
        self.options = options
    }
}

/// What the cluster knows of one scatter-gather job.
public struct GatherRecord: Hashable, Sendable {
    public var seed: GatherSeed
    public var state: GatherState
    public var progress: GatherProgress
    /// Names of its pods: the root first.
    public var pods: [String]
    /// Orders gathers by creation; never used twice.
    public var uid: UInt64
    /// Log time.
    public var createdMilliseconds: UInt64
    /// Log time; nil while running.
    public var endedMilliseconds: UInt64?

    public var id: String { seed.id }
}

/// The leader's decision where a pod runs.
public struct PodBinding: Hashable, Sendable {
    public var name: String
    public var uid: UInt64
    public var node: NodeID
    public var generation: UInt64

    public init(name: String, uid: UInt64, node: NodeID, generation: UInt64) {
        self.name = name
        self.uid = uid
        self.node = node
        self.generation = generation
    }
}

/// What a node says of one pod that was bound to it.
public struct PodReport: Hashable, Sendable {
    public var name: String
    public var uid: UInt64
    public var generation: UInt64
    public var node: NodeID
    public var status: PodStatus
    /// Nothing is left of it on that node.
    public var gone: Bool

    public init(name: String, uid: UInt64, generation: UInt64, node: NodeID, status: PodStatus, gone: Bool = false) {
        self.name = name
        self.uid = uid
        self.generation = generation
        self.node = node
        self.status = status
        self.gone = gone
    }
}

/// Why one pod could not be placed.
public struct PodExplanation: Hashable, Sendable {
    public var name: String
    public var uid: UInt64
    public var reasons: [String]

    public init(name: String, uid: UInt64, reasons: [String]) {
        self.name = name
        self.uid = uid
        self.reasons = reasons
    }
}

public enum SchedulingCommand: Hashable, Sendable {
    /// All or nothing. A name that is taken is a conflict, unless specification and owner are equal: then it stays as it is.
    case createPods([PodSpec], owner: PodOwner?)
    /// As `createPods`, but a different specification is answered with what to do: pods can not be changed.
    case applyPods([PodSpec], owner: PodOwner?)
    /// All or nothing: an unknown name changes nothing.
    case deletePods([String])
    case deleteOwned(PodOwner)
    /// By the leader's scheduler. Those that are stale are ignored.
    case bind([PodBinding])
    /// By the leader's scheduler: why pods wait. Stale ones are ignored.
    case explain([PodExplanation])
    /// By nodes. Stale ones are ignored.
    case report([PodReport])
    /// The node is dead or was removed: nothing of it runs any more, or will be believed.
    case nodeGone(NodeID)
    case createGather(GatherSeed, pods: [PodSpec])
    case updateGather(id: String, progress: GatherProgress)
    /// Its pods are deleted. `state` must be terminal; shards that are not done count as cancelled.
    case finishGather(id: String, state: GatherState, progress: GatherProgress)
    case cancelGather(id: String)
    /// Only an ended one.
    case forgetGather(id: String)
    /// A cordoned node gets no new pods.
    case cordon(NodeID, Bool)
    /// Cordons the node, and has its pods stopped there and placed elsewhere.
    case drain(NodeID)
    /// The node was removed from the cluster by order: it gets no pods, loses those it has, and is never taken in again under
    /// this id. `forget`: members that are gone are forgotten by gossip too.
    case retire(NodeID, forget: Bool)
}

public enum SchedulingResult: Hashable, Sendable {
    /// Uids in the order of the specifications; those that were there already included.
    case created([UInt64])
    case unchanged
    case done
    /// What was not found: `pod NAME`, `gather ID`.
    case notFound(String)
    case refused(CoterieError.Code, String, hint: String?)

    /// The failure that a client should see; nil if this is a success.
    public var error: CoterieError? {
        switch self {
        case .created, .unchanged, .done: nil
        case .notFound(let what): CoterieError(.notFound, "there is no \(what)")
        case .refused(let code, let message, let hint): CoterieError(code, message, hint: hint)
        }
    }
}

/// Numbers for `status`.
public struct PodCounts: Hashable, Sendable {
    public var pending = 0
    public var running = 0
    public var succeeded = 0
    public var failed = 0

    public init() {}
}
