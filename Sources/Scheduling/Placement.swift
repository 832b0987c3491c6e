// Where pods go. Kubernetes' two steps, filter and score: what a node must have (name, selector, alive, not cordoned, room),
// then what is best: few pods of the same owner, few pods, and chance.
import Model

/// What placement knows of one node.
public struct NodeView: Hashable, Sendable {
    public var id: NodeID
    public var name: String
    public var tags: [String: String]
    public var isCordoned: Bool
    public var isAlive: Bool
    /// Pods that are bound to it.
    public var podCount: Int
    /// Most pods it takes.
    public var podLimit: Int

    public init(
        id: NodeID, name: String, tags: [String: String] = [:], isCordoned: Bool = false, podCount: Int = 0,
        isAlive: Bool = true,
        podLimit: Int = 1_000
    ) {
        self.id = id
        self.name = name
        self.tags = tags
        self.isCordoned = isCordoned
        self.isAlive = isAlive
        self.podCount = podCount
        self.podLimit = podLimit
    }
}

/// The scheduler: a function, run by the leader.
public enum Placement {
    /// The label that every node has: its name.
    public static let hostnameLabel = "kubernetes.io/hostname"

    public struct Outcome: Hashable, Sendable {
        public var bindings: [PodBinding]
        /// For each pod that fits nowhere: all that stands in the way, node by node grouped by cause.
        public var reasons: [String: [String]]

        /// For ``SchedulingCommand/explain(_:)``: the reasons that differ from those that the records have.
        public func explanations(for pending: [PodRecord]) -> [PodExplanation] {
            pending.compactMap { record in
                guard let reasons = reasons[record.name], reasons != record.pendingReasons else { return nil }
                return PodExplanation(name: record.name, uid: record.uid, reasons: reasons)
            }
        }
    }

    /// Places each pending pod, in the order given. `existing` are all pods, of which only the bound ones count, for
    /// spreading; pods that are not unbound are skipped. Among equally good nodes `generator` chooses.
    public static func place(
        pending: [PodRecord], nodes: [NodeView], existing: [PodRecord], generator: inout SeededGenerator
    ) -> Outcome {
        var outcome = Outcome(bindings: [], reasons: [:])
        let nodes = nodes.sorted { $0.id < $1.id }
        let position = Dictionary(nodes.enumerated().map { ($1.id, $0) }, uniquingKeysWith: { first, _ in first })
        var bound = [Int](repeating: 0, count: nodes.count)
        var ofOwner: [PodOwner: [Int]] = [:]
        func count(_ owner: PodOwner?, at i: Int) {
            if let owner { ofOwner[owner, default: [Int](repeating: 0, count: nodes.count)][i] += 1 }
        }
        for record in existing where !record.status.phase.isTerminal {
            guard let node = record.node, let i = position[node] else { continue }
            bound[i] += 1
            count(record.owner, at: i)
        }
        var load = nodes.indices.map { max(bound[$0], nodes[$0].podCount) }
        for record in pending where record.isUnbound {
            let siblings = record.owner.flatMap { ofOwner[$0] }
            var best: [Int] = []
            var bestScore = (Int.max, Int.max)
            var obstacles: [Obstacle: [String]] = [:]
            for (i, node) in nodes.enumerated() {
                let found = Placement.obstacles(record.spec, node, load: load[i])
                guard found.isEmpty else {
                    for obstacle in found { obstacles[obstacle, default: []].append(node.name) }
                    continue
                }
                let score = (siblings?[i] ?? 0, load[i])
                if score < bestScore {
                    bestScore = score
                    best = [i]
                } else if score == bestScore {
                    best.append(i)
                }
            }
            if let chosen = best.randomElement(using: &generator) {
                outcome.bindings.append(
                    PodBinding(
                        name: record.name, uid: record.uid, node: nodes[chosen].id, generation: record.generation))
                load[chosen] += 1
                count(record.owner, at: chosen)
            } else {
                outcome.reasons[record.name] = reasons(record.spec, nodes, obstacles)
            }
        }
        return outcome
    }

    /// Ordered as they are told.
    private enum Obstacle: Hashable, Comparable {
        case name
        case selector(String, String)
        case dead
        case cordoned
        case full
    }

    private static func obstacles(_ spec: PodSpec, _ node: NodeView, load: Int) -> [Obstacle] {
        var found: [Obstacle] = []
        if let name = spec.nodeName, name != node.name { found.append(.name) }
        for (key, value) in spec.nodeSelector {
            let has = node.tags[key] ?? (key == hostnameLabel ? node.name : nil)
            if has != value { found.append(.selector(key, value)) }
        }
        if !node.isAlive { found.append(.dead) }
        if node.isCordoned { found.append(.cordoned) }
        if load >= node.podLimit { found.append(.full) }
        return found
    }

    private static func reasons(_ spec: PodSpec, _ nodes: [NodeView], _ obstacles: [Obstacle: [String]]) -> [String] {
        guard !nodes.isEmpty else { return ["the cluster has no nodes"] }
        var reasons = ["0 of \(nodes.count) nodes can take it"]
        for (obstacle, names) in obstacles.sorted(by: { $0.key < $1.key }) {
            let shown = names.sorted().prefix(5).joined(separator: ", ") + (names.count > 5 ? ", …" : "")
            let who = names.count == 1 ? "node \(shown)" : "\(names.count) nodes (\(shown))"
            let isOne = names.count == 1
            switch obstacle {
            case .name:
                let name = spec.nodeName ?? ""
                reasons.append(
                    nodes.contains { $0.name == name }
                        ? "\(who) \(isOne ? "is" : "are") not the node \(name) that it asks for"
                        : "no node is named \(name)")
            case .selector(let key, let value):
                reasons.append("\(who) \(isOne ? "has" : "have") no tag \(key)=\(value)")
            case .dead: reasons.append("\(who) \(isOne ? "is" : "are") not alive")
            case .cordoned: reasons.append("\(who) \(isOne ? "is" : "are") cordoned")
            case .full:
                reasons.append("\(who) \(isOne ? "has" : "have") as many pods as \(isOne ? "it takes" : "they take")")
            }
        }
        return Array(reasons.prefix(SchedulingLimits.reasons))
    }
}
