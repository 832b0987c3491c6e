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
    /// A voter or learner that has not answered the leader for so long is out of its reach.
    static let contactPatience = TimeSpan.seconds(1)
    /// How long an order to remove a node may take; less than what the node that forwarded it waits.
    static let removalPatience = TimeSpan.milliseconds(4_500)

    struct Removal: Sendable {
        var origin: NodeCore.AdminOrigin
        var node: NodeID
        var deadline: MonotonicTime
    }

    /// Members that are down, and since when.
    var downSince: [NodeID: MonotonicTime] = [:]
    /// Pods of these were cleared since they went down.
    var cleared: Set<NodeID> = []
    /// Orders to remove a node that wait until it is out of the configuration for good.
    var removals: [Removal] = []
    /// When this leader last removed a voter because it was dead.
    var lastRemoval: MonotonicTime?
    /// Since when a learner has been close to the end of the log.
    var keptUpSince: [NodeID: MonotonicTime] = [:]
    var forwardedOrders: [UInt64: (RequestID, deadline: MonotonicTime)] = [:]
    /// This node was ordered to leave: until then it is no news that it was removed.
    var leavingUntil = MonotonicTime.zero
    var tellRemovedAfter = MonotonicTime.zero
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
        let hasPending =
            podsChanged || !reconciler.removals.isEmpty || !changedTopics.isDisjoint(with: [.pods, .members])
        guard now >= reconciler.nextRun || hasPending else { return }
        reconciler.nextRun = now + Reconciler.interval
        for (id, order) in reconciler.forwardedOrders.sorted(by: { $0.key < $1.key }) where order.deadline <= now {
            reconciler.forwardedOrders[id] = nil
            effects.append(
                .respond(
                    order.0,
                    .failure(CoterieError(.outcomeUnknown, "the leader did not answer: the outcome is unknown"))))
        }
        endRemovals()
        guard let raft, raft.isReady else {
            reconciler.proposedBindings = [:]
            reconciler.keptUpSince = [:]
            reconciler.lastRemoval = nil
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
        let plan = voterPlan(raft)
        guard let step = plan.next else { return }
        guard case .success = self.raft?.proposeConfiguration(voters: step.voters, learners: step.learners, now: now)
        else { return }
        func names(_ ids: [NodeID]) -> String { ids.map(displayName).joined(separator: " and ") }
        let text: String
        switch step.kind {
        case .remove(let node): text = "\(displayName(node)) was removed and leaves the voters and learners"
        case .prune(let node): text = "the learner \(displayName(node)) is gone and no longer kept"
        case .admit(let node): text = "\(displayName(node)) becomes a learner"
        case .promote(let nodes): text = "\(names(nodes)) shall vote"
        case .replace(let gone, let heir, let atOnce):
            let why = atOnce ? "runs with a new data directory" : "is dead"
            text = "the voter \(displayName(gone)) (\(gone)) \(why): \(displayName(heir)) takes its place"
            if !atOnce { reconciler.lastRemoval = now }
        case .demote(let nodes):
            text = "\(names(nodes)) are dead and vote no longer"
            reconciler.lastRemoval = now
        case .exchange(let voter, let heir):
            text = "too many voters are in one zone: \(displayName(heir)) votes instead of \(displayName(voter))"
        }
        effects.append(.log(.info, text))
    }

    /// What this leader knows of voters, learners and newcomers at this moment.
    private mutating func voterPlan(_ raft: Raft) -> VoterPlan {
        let configuration = raft.configuration
        var plan = VoterPlan(configuration: configuration)
        plan.retired = state.scheduling.retired.sorted()
        let members = membership.members
        let alive = members.filter { $0.state == .alive }
        let known = Set(configuration.members)
        plan.newcomers = alive.filter { !known.contains($0.id) && mayJoin($0) }.map(\.id).sorted()
        plan.target = alive.count >= 5 ? options.voterTargets.large : options.voterTargets.small
        plan.minimum = members.compactMap { Standing(decoding: $0.meta).map { Int($0.expect) } }.max() ?? 1
        plan.mayRemoveDead = reconciler.lastRemoval.map { now - $0 >= options.deadVoterGrace } ?? true
        plan.leader = options.id
        for member in members { plan.zones[member.id] = member.tags[VoterPlan.zoneTag] }
        (plan.inContact, plan.absent) = contacts(raft)
        for id in configuration.members where id != options.id {
            let member = membership.member(id)
            let isGone = plan.absent.contains(id)
            if member == nil, reconciler.downSince[id] == nil { reconciler.downSince[id] = now }
            let isOverdue = reconciler.downSince[id].map { now - $0 >= options.deadVoterGrace } ?? false
            if isGone && isOverdue {
                if configuration.isLearner(id) { plan.goneLearners.insert(id) }
                // Who said good-bye comes back: only `leave` and `remove` take its vote (DESIGN 3.1).
                if member?.state != .left { plan.dead.insert(id) }
            }
            if let member, !plan.inContact.contains(id),
                alive.contains(where: { $0.id != id && $0.address == member.address })
            {
                plan.supplanted.insert(id)
            }
        }
        for learner in configuration.learners {
            guard membership.member(learner)?.state == .alive, plan.inContact.contains(learner),
                let match = raft.matchIndex(of: learner), match + 256 >= raft.commitIndex
            else {
                reconciler.keptUpSince[learner] = nil
                continue
            }
            let since = reconciler.keptUpSince[learner] ?? now
            reconciler.keptUpSince[learner] = since
            if now - since >= options.promotionDelay { plan.caughtUp.append(learner) }
        }
        return plan
    }

    /// Those in the configuration that this leader has heard lately, itself included, and those that gossip thinks gone.
    private func contacts(_ raft: Raft) -> (heard: Set<NodeID>, absent: Set<NodeID>) {
        var heard = Set(raft.peersHeard(since: now - Reconciler.contactPatience))
        heard.insert(options.id)
        var absent: Set<NodeID> = []
        for id in raft.configuration.members where !(membership.member(id)?.state.isPresent ?? false) {
            absent.insert(id)
        }
        return (heard, absent)
    }

    private func mayJoin(_ member: Member) -> Bool {
        guard !state.scheduling.isRetired(member.id), let standing = Standing(decoding: member.meta) else {
            return false
        }
        return standing.state == .virgin || standing.lineage == lineage
    }

    // MARK: - Removal by order

    /// At the leader: first the log remembers that the node was removed, whoever leads next; then it leaves the configuration.
    mutating func remove(_ node: NodeID, prune: Bool, _ origin: AdminOrigin) {
        if let refusal = refusal(toRemove: node, prune: prune) { return reply(origin, .failure(refusal)) }
        submit(.scheduling(.retire(node, forget: prune)), wait: nil, origin: .own)
        reconciler.removals.append(
            Reconciler.Removal(origin: origin, node: node, deadline: now + Reconciler.removalPatience))
        reconciler.nextRun = now
    }

    private func refusal(toRemove node: NodeID, prune: Bool) -> CoterieError? {
        guard let raft else { return nil }
        if prune, membership.member(node)?.state.isPresent ?? false {
            return CoterieError(
                .conflict, "\(displayName(node)) is running and can not be forgotten",
                hint: "stop it first, or remove it without --prune")
        }
        let left = raft.configuration.voters.filter { $0 != node }
        if left.isEmpty { return CoterieError(.conflict, "\(displayName(node)) is the only voter") }
        guard raft.configuration.isVoter(node) else { return nil }
        var plan = VoterPlan(configuration: raft.configuration)
        (plan.inContact, plan.absent) = contacts(raft)
        guard plan.canDecide(left) else {
            let there = left.count { plan.inContact.contains($0) && !plan.absent.contains($0) }
            return CoterieError(
                .conflict,
                "without \(displayName(node)) only \(there) of \(left.count) voters could be reached, and nothing decided",
                hint: "bring another voter back, or remove one that is dead")
        }
        return nil
    }

    private mutating func endRemovals() {
        guard !reconciler.removals.isEmpty else { return }
        let waiting = reconciler.removals
        reconciler.removals = []
        for removal in waiting {
            let isOut = raft.map { !$0.configuration.members.contains(removal.node) && !$0.isChangingConfiguration }
            if isOut ?? false, state.scheduling.isRetired(removal.node) {
                reply(removal.origin, .success(JSONValue.object([.init("done", true)]).utf8))
            } else if now >= removal.deadline {
                let why = "the removal of \(displayName(removal.node)) is not done yet: the outcome is unknown"
                reply(removal.origin, .failure(CoterieError(.outcomeUnknown, why, hint: "see: coterie status")))
            } else {
                reconciler.removals.append(removal)
            }
        }
    }

    /// Whoever was removed and does not know it is told, when it next asks for votes.
    mutating func refuse(removed node: NodeID) {
        guard let member = membership.member(node), now >= reconciler.tellRemovedAfter else { return }
        reconciler.tellRemovedAfter = now + .milliseconds(200)
        effects.append(.peerFrame(.removed, [], to: node, address: member.address))
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
                id: member.id, name: member.name, tags: member.tags,
                isCordoned: state.scheduling.isCordoned(member.id) || state.scheduling.isRetired(member.id),
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
