// Desired pods, where they run, and scatter-gather jobs, as a deterministic state machine. A pod's record goes this way:
//
//              bind                    report                      report
//   pending ─────────▶ bound, Pending ─────────▶ bound, Running ─────────▶ Succeeded · Failed
//      ▲                    │                       │                             │
//      │   nodeGone (owned), drained and gone       │                             │
//      └────────────────────┴───────────────────────┘        delete ──▶ deleting ──▶ (gone: no record)
//
// Each time a pod is taken from a node its generation rises; the word of a node about an earlier generation is void, and a
// node that finds itself without a binding stops what it has. Hence a pod is bound to one node at a time, and a node that was
// thought dead can not bring an old binding back.
import Model
import Wire

/// The scheduling part of the replicated state.
public struct SchedulingMachine: Sendable {
    struct Stored: Sendable {
        var record: PodRecord
        /// Of the specification.
        var bytes: Int
    }

    var podTable: [String: Stored] = [:]
    var byNode: [NodeID: Set<String>] = [:]
    var gatherTable: [String: GatherRecord] = [:]
    public internal(set) var cordoned: Set<NodeID> = []
    /// Nodes that were removed by order, oldest first.
    public internal(set) var retired: [NodeID] = []
    var lastUID: UInt64 = 0
    var specBytes = 0
    private var changed: Set<String> = []
    private var changedGathers: Set<String> = []
    private var forgotten: [NodeID] = []

    public init() {}

    // MARK: - Reading

    /// All pods by name.
    public var pods: [PodRecord] { podTable.values.map(\.record).sorted { $0.name < $1.name } }
    public var podCount: Int { podTable.count }
    public func pod(named name: String) -> PodRecord? { podTable[name]?.record }

    /// Pods bound to a node, by name.
    public func pods(on node: NodeID) -> [PodRecord] {
        (byNode[node] ?? []).sorted().compactMap { podTable[$0]?.record }
    }

    /// Pods of one owner, by name.
    public func pods(ownedBy owner: PodOwner) -> [PodRecord] { pods.filter { $0.owner == owner } }

    /// Pods that wait for a node, oldest first.
    public var unboundPods: [PodRecord] {
        podTable.values.map(\.record).filter(\.isUnbound).sorted { $0.uid < $1.uid }
    }

    public var counts: PodCounts {
        var counts = PodCounts()
        for stored in podTable.values {
            switch stored.record.status.phase {
            case .pending: counts.pending += 1
            case .running: counts.running += 1
            case .succeeded: counts.succeeded += 1
            case .failed: counts.failed += 1
            }
        }
        return counts
    }

    public func gather(_ id: String) -> GatherRecord? { gatherTable[id] }

    /// All gathers, oldest first.
    public var gathers: [GatherRecord] { gatherTable.values.sorted { $0.uid < $1.uid } }

    /// Names of pods that changed, came or went since the last call, sorted. Not part of the replicated state.
    public mutating func takeChanged() -> [String] {
        defer { changed = [] }
        return changed.sorted()
    }

    /// Ids of gathers, likewise.
    public mutating func takeChangedGathers() -> [String] {
        defer { changedGathers = [] }
        return changedGathers.sorted()
    }

    /// Nodes that were retired since the last call, and shall be forgotten as members too. Not part of the replicated state.
    public mutating func takeForgotten() -> [NodeID] {
        defer { forgotten = [] }
        return forgotten
    }

    public func isCordoned(_ node: NodeID) -> Bool { cordoned.contains(node) }
    public func isRetired(_ node: NodeID) -> Bool { retired.contains(node) }

    // MARK: - Commands

    /// Executes one command. `index` is its place in the log and `now` the log time in milliseconds; both never go back.
    public mutating func apply(_ command: SchedulingCommand, index: UInt64, now: UInt64) -> SchedulingResult {
        switch command {
        case .createPods(let specs, let owner): return create(specs, owner, isApply: false, index: index, now: now)
        case .applyPods(let specs, let owner): return create(specs, owner, isApply: true, index: index, now: now)
        case .deletePods(let names): return delete(names)
        case .deleteOwned(let owner):
            let names = pods(ownedBy: owner).map(\.name)
            guard !names.isEmpty else { return .notFound("pod of \(owner.text)") }
            return delete(names)
        case .bind(let bindings):
            for binding in bindings { bind(binding) }
            return .done
        case .explain(let explanations):
            for explanation in explanations {
                let reasons = explanation.reasons.prefix(SchedulingLimits.reasons).map {
                    $0.clipped(SchedulingLimits.reasonBytes)
                }
                change(explanation.name) { record in
                    if record.uid == explanation.uid && record.isUnbound { record.pendingReasons = reasons }
                }
            }
            return .done
        case .report(let reports):
            for report in reports { take(report) }
            return .done
        case .nodeGone(let node):
            for record in pods(on: node) { lose(record) }
            return .done
        case .createGather(let seed, let pods): return createGather(seed, pods, index: index, now: now)
        case .updateGather(let id, let progress): return updateGather(id, .running, progress, now: now)
        case .finishGather(let id, let state, let progress):
            guard state.isTerminal else {
                return .refused(.badInput, "gather \(id): a finished gather is not running", hint: nil)
            }
            return updateGather(id, state, progress, now: now)
        case .cancelGather(let id):
            guard let progress = gatherTable[id]?.progress else { return .notFound("gather \(id)") }
            return updateGather(id, .cancelled, progress, now: now)
        case .forgetGather(let id):
            guard let gather = gatherTable[id] else { return .notFound("gather \(id)") }
            guard gather.state.isTerminal else {
                return .refused(.conflict, "gather \(id) is running", hint: "cancel it first")
            }
            forget(gather)
            return .done
        case .cordon(let node, let isCordoned): return cordon(node, isCordoned)
        case .drain(let node):
            if case .refused(let code, let message, let hint) = cordon(node, true) {
                return .refused(code, message, hint: hint)
            }
            for record in pods(on: node) where !record.status.phase.isTerminal && !record.deleting {
                change(record.name) { $0.moving = true }
            }
            return .done
        case .retire(let node, let forget): return retire(node, forget: forget)
        }
    }

    /// Nothing ends by time alone today; part of the pattern that all machines follow.
    public mutating func expire(now: UInt64) {}

    // MARK: - Pods

    private mutating func create(
        _ specs: [PodSpec], _ owner: PodOwner?, isApply: Bool, index: UInt64, now: UInt64
    ) -> SchedulingResult {
        let new: [(spec: PodSpec, bytes: Int)]
        switch plan(specs, owner, isApply: isApply) {
        case .failure(let refusal): return refusal.result
        case .success(let plan): new = plan
        }
        if new.isEmpty { return .unchanged }
        insert(new, owner, index: index, now: now)
        return .created(specs.map { podTable[$0.name]?.record.uid ?? 0 })
    }

    struct Refusal: Error { var result: SchedulingResult }

    /// Checks everything before anything changes. The specifications that are not there yet.
    private func plan(
        _ specs: [PodSpec], _ owner: PodOwner?, isApply: Bool
    ) -> Result<[(spec: PodSpec, bytes: Int)], Refusal> {
        func refuse(_ code: CoterieError.Code, _ message: String, _ hint: String? = nil) -> Result<
            [(spec: PodSpec, bytes: Int)], Refusal
        > {
            .failure(Refusal(result: .refused(code, message, hint: hint)))
        }
        var new: [(spec: PodSpec, bytes: Int)] = []
        var names: Set<String> = []
        var bytes = specBytes
        for spec in specs {
            if let why = SchedulingMachine.violation(spec) { return refuse(.badInput, why) }
            guard names.insert(spec.name).inserted else { return refuse(.badInput, "pod \(spec.name) is there twice") }
            if let present = podTable[spec.name]?.record {
                if present.deleting {
                    return refuse(.conflict, "pod \(spec.name) is being deleted", "try again when it is gone")
                }
                if present.owner != owner {
                    let whose = present.owner.map { "belongs to \($0.text)" } ?? "exists and belongs to nobody"
                    return refuse(.conflict, "pod \(spec.name) \(whose)", "choose another name, or delete it first")
                }
                guard present.spec == spec else {
                    return isApply
                        ? refuse(
                            .conflict,
                            "pod \(spec.name) exists with another specification, and pods can not be changed",
                            "delete it first: coterie delete pod \(spec.name)")
                        : refuse(
                            .conflict, "pod \(spec.name) exists with another specification",
                            "choose another name, or delete it first")
                }
                continue
            }
            let size = spec.encoded.count
            guard size <= PodLimits.specBytes else {
                return refuse(.tooLarge, "pod \(spec.name) has \(size) bytes, and \(PodLimits.specBytes) is the most")
            }
            bytes += size
            new.append((spec, size))
        }
        guard podTable.count + new.count <= SchedulingLimits.pods else {
            return refuse(
                .busy, "\(SchedulingLimits.pods) pods are the most there may be", "delete some that have ended")
        }
        guard bytes <= SchedulingLimits.specBytes else {
            return refuse(
                .busy, "all pods together may have \(SchedulingLimits.specBytes) bytes", "delete some that have ended")
        }
        return .success(new)
    }

    static func violation(_ spec: PodSpec) -> String? {
        if spec.name.isEmpty || spec.name.utf8.count > Limits.nameBytes {
            return "a pod's name has 1 to \(Limits.nameBytes) bytes"
        }
        if spec.containers.isEmpty { return "pod \(spec.name) has no containers" }
        if max(spec.containers.count, spec.initContainers.count) > PodLimits.containers {
            return "pod \(spec.name) has more than \(PodLimits.containers) containers"
        }
        let names = (spec.initContainers + spec.containers).map(\.name)
        if names.contains("") { return "pod \(spec.name) has a container without a name" }
        if Set(names).count != names.count { return "pod \(spec.name) has two containers of one name" }
        return nil
    }

    private mutating func insert(_ new: [(spec: PodSpec, bytes: Int)], _ owner: PodOwner?, index: UInt64, now: UInt64) {
        for (spec, bytes) in new {
            let uid = nextUID(index)
            podTable[spec.name] = Stored(
                record: PodRecord(spec: spec, uid: uid, owner: owner, createdMilliseconds: now), bytes: bytes)
            specBytes += bytes
            changed.insert(spec.name)
        }
    }

    /// The index itself, unless others of the same log entry went before.
    private mutating func nextUID(_ index: UInt64) -> UInt64 {
        lastUID = max(index, lastUID == .max ? .max : lastUID + 1)
        return lastUID
    }

    private mutating func delete(_ names: [String]) -> SchedulingResult {
        if let missing = names.first(where: { podTable[$0] == nil }) { return .notFound("pod \(missing)") }
        for name in names {
            if podTable[name]?.record.node == nil { remove(name) } else { change(name) { $0.deleting = true } }
        }
        return .done
    }

    private mutating func bind(_ binding: PodBinding) {
        guard let record = podTable[binding.name]?.record, record.uid == binding.uid,
            record.generation == binding.generation,
            record.isUnbound
        else { return }
        // Cordoned after the scheduler decided. The generation tells it that this binding came to nothing.
        guard !cordoned.contains(binding.node), !isRetired(binding.node) else {
            return change(binding.name) { $0.generation += 1 }
        }
        change(binding.name) {
            $0.node = binding.node
            $0.pendingReasons = []
        }
    }

    private mutating func take(_ report: PodReport) {
        guard let record = podTable[report.name]?.record, record.uid == report.uid,
            record.generation == report.generation,
            record.node == report.node
        else { return }
        if report.gone && record.deleting { return remove(report.name) }
        // An end is the end; and one that was brought about by moving is none, unless the pod is done.
        let ends = report.status.phase.isTerminal
        let isDone = report.status.phase == .succeeded && record.spec.restartPolicy != .always
        if !record.status.phase.isTerminal && (!ends || !record.moving || isDone) {
            change(report.name) {
                $0.status = report.status
                $0.statusNode = report.node
                if ends { $0.moving = false }
            }
        }
        guard report.gone, let current = podTable[report.name]?.record, !current.status.phase.isTerminal else { return }
        // Nothing is left of it although it has not ended: moved, or the node lost it.
        if current.moving || current.owner != nil || current.spec.restartPolicy != .never {
            unbind(report.name)
        } else {
            fail(report.name, reason: "Lost", message: "its node no longer has it")
        }
    }

    /// What becomes of a pod whose node is dead.
    private mutating func lose(_ record: PodRecord) {
        if record.deleting { return remove(record.name) }
        if record.status.phase.isTerminal {
            // Its end is known; only the place is gone.
            change(record.name) {
                $0.node = nil
                $0.moving = false
                $0.generation += 1
            }
        } else if record.owner != nil || record.moving {
            unbind(record.name)
        } else {
            fail(record.name, reason: "NodeLost", message: "its node died or was removed")
        }
    }

    /// Back to pending.
    private mutating func unbind(_ name: String) {
        change(name) {
            $0.node = nil
            $0.moving = false
            $0.generation += 1
            $0.status = PodStatus()
            $0.statusNode = nil
        }
    }

    private mutating func fail(_ name: String, reason: String, message: String) {
        change(name) {
            $0.statusNode = $0.node
            $0.node = nil
            $0.moving = false
            $0.generation += 1
            $0.status.phase = .failed
            $0.status.reason = reason
            $0.status.message = message
            for i in $0.status.containers.indices { $0.status.containers[i].ready = false }
        }
    }

    /// Every change of a record goes through here, so that the index by node and the list of changes are right.
    private mutating func change(_ name: String, _ edit: (inout PodRecord) -> Void) {
        guard var stored = podTable[name] else { return }
        let before = stored.record
        edit(&stored.record)
        guard stored.record != before else { return }
        if before.node != stored.record.node {
            if let node = before.node { unlink(name, node) }
            if let node = stored.record.node { byNode[node, default: []].insert(name) }
        }
        podTable[name] = stored
        changed.insert(name)
    }

    private mutating func remove(_ name: String) {
        guard let stored = podTable.removeValue(forKey: name) else { return }
        if let node = stored.record.node { unlink(name, node) }
        specBytes -= stored.bytes
        changed.insert(name)
    }

    private mutating func unlink(_ name: String, _ node: NodeID) {
        byNode[node]?.remove(name)
        if byNode[node]?.isEmpty == true { byNode[node] = nil }
    }

    private mutating func cordon(_ node: NodeID, _ isCordoned: Bool) -> SchedulingResult {
        guard cordoned.contains(node) != isCordoned else { return .unchanged }
        if !isCordoned {
            cordoned.remove(node)
        } else if cordoned.count < SchedulingLimits.cordons {
            cordoned.insert(node)
        } else {
            return .refused(
                .busy, "\(SchedulingLimits.cordons) nodes are cordoned, which is the most there may be", hint: nil)
        }
        return .done
    }

    private mutating func retire(_ node: NodeID, forget: Bool) -> SchedulingResult {
        if forget { forgotten.append(node) }
        guard !isRetired(node) else { return .unchanged }
        for record in pods(on: node) { lose(record) }
        // The oldest are the least likely to come back.
        if retired.count >= SchedulingLimits.retired { retired.removeFirst() }
        retired.append(node)
        return .done
    }

    // MARK: - Gathers

    private mutating func createGather(_ seed: GatherSeed, _ specs: [PodSpec], index: UInt64, now: UInt64)
        -> SchedulingResult
    {
        if let why = seed.violation { return .refused(.badInput, why, hint: nil) }
        guard gatherTable[seed.id] == nil else {
            return .refused(.conflict, "gather \(seed.id) exists", hint: "choose another id")
        }
        guard gatherTable.values.count(where: { !$0.state.isTerminal }) < SchedulingLimits.runningGathers else {
            return .refused(
                .busy, "\(SchedulingLimits.runningGathers) gathers are running", hint: "wait, or cancel some")
        }
        let new: [(spec: PodSpec, bytes: Int)]
        switch plan(specs, .gather(seed.id), isApply: false) {
        case .failure(let refusal): return refusal.result
        case .success(let plan): new = plan
        }
        gatherTable[seed.id] = GatherRecord(
            seed: seed, state: .running, progress: GatherProgress(), pods: specs.map(\.name), uid: nextUID(index),
            createdMilliseconds: now)
        insert(new, .gather(seed.id), index: index, now: now)
        changedGathers.insert(seed.id)
        return .created(specs.map { podTable[$0.name]?.record.uid ?? 0 })
    }

    private mutating func updateGather(_ id: String, _ state: GatherState, _ progress: GatherProgress, now: UInt64)
        -> SchedulingResult
    {
        guard var gather = gatherTable[id] else { return .notFound("gather \(id)") }
        var progress = progress
        progress.failures = Array(progress.failures.prefix(GatherProgress.failureLimit))
        guard progress.isConsistent else {
            return .refused(.badInput, "gather \(id): the counts of shards do not add up", hint: nil)
        }
        if state.isTerminal { progress.cancelRest() }
        // The first end stands: a root that finishes what was cancelled meanwhile changes nothing.
        guard !gather.state.isTerminal else { return .unchanged }
        gather.progress = progress
        gather.state = state
        if state.isTerminal { gather.endedMilliseconds = now }
        gatherTable[id] = gather
        changedGathers.insert(id)
        if state.isTerminal {
            // The root holds the result and delivers it; it ends by itself, and the leader clears it away then.
            let root =
                state == .cancelled ? nil : gather.pods.first.flatMap { podTable[$0]?.record.node == nil ? nil : $0 }
            _ = delete(pods(ownedBy: .gather(id)).map(\.name).filter { $0 != root })
            let ended = gatherTable.values.filter(\.state.isTerminal)
            if ended.count > SchedulingLimits.endedGathers,
                let oldest = ended.min(by: { ($0.endedMilliseconds ?? 0, $0.uid) < ($1.endedMilliseconds ?? 0, $1.uid) }
                )
            {
                forget(oldest)
            }
        }
        return .done
    }

    private mutating func forget(_ gather: GatherRecord) {
        gatherTable[gather.id] = nil
        changedGathers.insert(gather.id)
        _ = delete(pods(ownedBy: .gather(gather.id)).map(\.name))
    }
}

extension GatherSeed {
    /// Why it can not be accepted.
    var violation: String? {
        if id.isEmpty || id.utf8.count > Limits.nameBytes { return "a gather's id has 1 to \(Limits.nameBytes) bytes" }
        let texts = [client, leaf, merge ?? "", sharder] + options.flatMap { [$0.key, $0.value] }
        if texts.contains(where: { $0.utf8.count > SchedulingLimits.gatherTextBytes })
            || options.count > SchedulingLimits.gatherOptions
        {
            return
                "gather \(id): a text has more than \(SchedulingLimits.gatherTextBytes) bytes, or there are too many options"
        }
        guard (0...1).contains(minSuccess) else { return "gather \(id): the share that must succeed is from 0 to 1" }
        guard (0...GatherProgress.shardLimit).contains(parallel) else {
            return "gather \(id): parallel is out of range"
        }
        return nil
    }
}

extension PodOwner {
    /// For messages.
    public var text: String {
        switch self {
        case .gather(let id): "gather \(id)"
        case .pattern(let kind, let name): "\(kind) \(name)"
        }
    }
}
