// What a leader does by itself: takes members in as learners, makes learners voters, places pods, and clears up after nodes
// that are gone. Gossip proposes, the log decides.
import Consensus
import Membership
import Model
import Scheduling
import Wire

/// Soft state of the leader's housekeeping, and of orders under way.
struct Reconciler: Sendable {
    static let interval = TimeSpan.milliseconds(250)
    /// A member that says nothing for so long after it was declared dead has lost its pods for good.
    static let podGrace = TimeSpan.milliseconds(500)

    /// Members that are down, and since when.
    var downSince: [NodeID: MonotonicTime] = [:]
    /// Pods of these were cleared since they went down.
    var cleared: Set<NodeID> = []
    /// Taken out of the configuration by an operator: not taken in again by this leader while they stay.
    var removed: Set<NodeID> = []
    /// Since when a learner has been close to the end of the log.
    var keptUpSince: [NodeID: MonotonicTime] = [:]
    var forwardedOrders: [UInt64: (RequestID, deadline: MonotonicTime)] = [:]
    var leaving = false
    /// Pods of ended gathers whose deletion is in the log: not proposed twice.
    var clearedRoots: [String] = []
    var nextRun = MonotonicTime.zero
    /// The bindings that are in the log already, by pod: not proposed twice.
    var proposedBindings: [String: UInt64] = [:]

    var nextDeadline: MonotonicTime { nextRun }

    mutating func memberChanged(_ event: MemberEvent, now: MonotonicTime) {
        let id = event.member.id
        switch event.kind {
        case .dead, .leave, .reaped: downSince[id] = downSince[id] ?? now
        case .join, .alive:
            downSince[id] = nil
            cleared.remove(id)
        case .suspect, .update: break
        }
        nextRun = min(nextRun, now)
    }
}

extension NodeCore {
    /// Runs at most every ``Reconciler/interval``, and at once when something changed.
    mutating func reconcile() {
        let hasPending = podsChanged || !changedTopics.isDisjoint(with: [.pods, .members])
        guard now >= reconciler.nextRun || hasPending else { return }
        reconciler.nextRun = now + Reconciler.interval
        for (id, order) in reconciler.forwardedOrders.sorted(by: { $0.key < $1.key }) where order.deadline <= now {
            reconciler.forwardedOrders[id] = nil
            effects.append(
                .respond(
                    order.0,
                    .failure(CoterieError(.outcomeUnknown, "the leader did not answer: the outcome is unknown"))))
        }
        guard let raft, raft.isReady else {
            reconciler.proposedBindings = [:]
            reconciler.keptUpSince = [:]
            return
        }
        reconcileVoters()
        clearLostPods()
        placePods()
        tendGathers()
    }

    // MARK: - Voters and learners

    private mutating func reconcileVoters() {
        guard let raft, !raft.isChangingConfiguration else { return }
        let configuration = raft.configuration
        let alive = membership.members.filter { $0.state == .alive }
        // Newcomers first come to know the log without a vote.
        let newcomers = alive.filter {
            !configuration.members.contains($0.id) && !reconciler.removed.contains($0.id)
                && Standing(decoding: $0.meta) != nil
        }
        if let newcomer = newcomers.map(\.id).min() {
            let learners = configuration.learners + [newcomer]
            if case .success = self.raft?.proposeConfiguration(
                voters: configuration.voters, learners: learners, now: now)
            {
                effects.append(.log(.info, "\(displayName(newcomer)) becomes a learner"))
            }
            return
        }
        let target = alive.count >= 5 ? options.voterTargets.large : options.voterTargets.small
        guard configuration.voters.count < target, !configuration.learners.isEmpty else { return }
        var best: NodeID?
        for learner in configuration.learners {
            guard membership.member(learner)?.state == .alive, let match = raft.matchIndex(of: learner),
                match + 256 >= raft.commitIndex
            else {
                reconciler.keptUpSince[learner] = nil
                continue
            }
            let since = reconciler.keptUpSince[learner] ?? now
            reconciler.keptUpSince[learner] = since
            if now - since >= options.promotionDelay, best.map({ learner < $0 }) ?? true { best = learner }
        }
        // Voters stay odd: with an even number one more failure is not survived, one more node must agree.
        guard let best, configuration.voters.count % 2 == 0 || configuration.learners.count >= 2 else { return }
        var voters = configuration.voters + [best]
        if voters.count % 2 == 0,
            let second = configuration.learners.filter({ reconciler.hasKeptUp($0, options, now) && $0 != best }).min()
        {
            voters.append(second)
        }
        guard voters.count % 2 == 1 else { return }
        let learners = configuration.learners.filter { !voters.contains($0) }
        if case .success = self.raft?.proposeConfiguration(voters: voters, learners: learners, now: now) {
            effects.append(.log(.info, "\(voters.map(displayName).joined(separator: ", ")) shall vote"))
        }
    }

    // MARK: - Pods

    private mutating func clearLostPods() {
        for (id, since) in reconciler.downSince.sorted(by: { $0.key < $1.key })
        where !reconciler.cleared.contains(id) && now - since >= Reconciler.podGrace {
            reconciler.cleared.insert(id)
            guard !state.scheduling.pods(on: id).isEmpty else { continue }
            submit(.scheduling(.nodeGone(id)), wait: nil, origin: .own)
        }
        // A leader that was not there when it happened.
        let assigned = Set(state.scheduling.pods.compactMap(\.node))
        for id in assigned.sorted() where membership.member(id).map({ !$0.state.isPresent }) ?? true {
            if reconciler.downSince[id] == nil { reconciler.downSince[id] = now }
        }
    }

    private mutating func placePods() {
        let pending = state.scheduling.unboundPods
        let names = Set(pending.map(\.spec.name))
        reconciler.proposedBindings = reconciler.proposedBindings.filter { names.contains($0.key) }
        let open = pending.filter { reconciler.proposedBindings[$0.spec.name] != $0.uid &+ $0.generation }
        guard !open.isEmpty else { return }
        let nodes = membership.members.map { member in
            NodeView(
                id: member.id, name: member.name, tags: member.tags, isCordoned: state.scheduling.isCordoned(member.id),
                podCount: state.scheduling.pods(on: member.id).count, isAlive: member.state == .alive)
        }
        let placed = Placement.place(
            pending: open, nodes: nodes, existing: state.scheduling.pods, generator: &generator)
        let explanations = placed.explanations(for: open)
        if !explanations.isEmpty { submit(.scheduling(.explain(explanations)), wait: nil, origin: .own) }
        guard !placed.bindings.isEmpty else { return }
        for binding in placed.bindings { reconciler.proposedBindings[binding.name] = binding.uid &+ binding.generation }
        submit(.scheduling(.bind(placed.bindings)), wait: nil, origin: .own)
    }

    /// A gather whose root has ended without a word, or can not run, has failed. The root of an ended one stays until it has
    /// delivered the result, and is cleared away when it has ended itself.
    private mutating func tendGathers() {
        var done: [String] = []
        for pod in state.scheduling.pods where !pod.deleting {
            guard case .gather(let id) = pod.owner else { continue }
            let isEnded = state.scheduling.gather(id)?.state.isTerminal ?? true
            if isEnded && (pod.status.phase.isTerminal || pod.node == nil) { done.append(pod.name) }
        }
        if !done.isEmpty, reconciler.clearedRoots != done {
            reconciler.clearedRoots = done
            submit(.scheduling(.deletePods(done)), wait: nil, origin: .own)
        }
        for gather in state.scheduling.gathers where !gather.state.isTerminal {
            let pods = gather.pods.compactMap { state.scheduling.pod(named: $0) }
            guard let root = pods.first(where: { $0.spec.name.hasSuffix("-root") }) else { continue }
            guard root.status.phase == .failed, root.status.reason != "NodeLost" else { continue }
            var progress = gather.progress
            progress.failures.append(
                GatherFailure(
                    shard: 0, node: root.node.map(displayName) ?? "", attempts: 1,
                    error: "the root pod failed: \(root.status.reason) \(root.status.message)"))
            submit(
                .scheduling(.finishGather(id: gather.id, state: .failed, progress: progress)), wait: nil, origin: .own)
        }
    }
}

extension Reconciler {
    func hasKeptUp(_ id: NodeID, _ options: NodeOptions, _ now: MonotonicTime) -> Bool {
        keptUpSince[id].map { now - $0 >= options.promotionDelay } ?? false
    }
}
