// After the last fault: clients finish, a fresh round trip works, and all nodes come to agree, each within bounded time.
import Model
import NodeCore
import Wire

/// A fresh put, reserve and delete by a client that has seen none of the trouble.
struct Probe {
    var step = 0
    var isBusy = false
}

extension World {
    /// How many voters a cluster of so many nodes settles on.
    var expectedVoters: Int {
        let count = present.count
        return count >= 5 ? 5 : count >= 3 ? 3 : 1
    }

    func poll() throws {
        if stage > .chaos { removeRetired() }
        if settings.damage == .beyondBudget, stage > .chaos { return try pollBeyondBudget() }
        switch stage {
        case .chaos, .done: return
        case .draining:
            if clients.allSatisfy({ $0.isDone || $0.role == .probe }) { enter(.probing) }
        case .probing:
            if clients.allSatisfy(\.isDone) { enter(.settling) }
        case .settling:
            guard unsettled == nil else { break }
            try oracle.checkEnd(self)
            try checkHistory()
            figures.healing = now - peaceSince
            return enter(.done)
        }
        guard now - peaceSince < settings.patience else {
            let what = stage < .settling ? "clients wait: \(waitingClients)" : unsettled ?? "nothing is missing"
            throw Violation("\(settings.patience) after the last fault: \(what)")
        }
        schedule(after: .milliseconds(50), .poll)
    }

    private var waitingClients: String {
        clients.filter { !$0.isDone }.map { client in
            let pods = client.podNames.joined(separator: " ")
            return
                "\(client.index) \(client.role) operations \(client.operations.keys.sorted()) in hand \(client.jobsInHand) pods \(pods)"
        }.joined(separator: "; ") + "; jobs \(oracle.replica.jobCount)"
    }

    /// What is still missing for everything to be well; nil if nothing is.
    private var unsettled: String? {
        let leaders = hosts.filter { $0.core?.raft?.isReady ?? false }
        guard leaders.count == 1, let leader = leaders[0].core?.raft else { return "\(leaders.count) leaders" }
        guard leader.configuration.voters.count == expectedVoters, !leader.configuration.isJoint else {
            return "\(leader.configuration.voters.count) voters instead of \(expectedVoters)"
        }
        if figures.losses < settings.losses { return "\(figures.losses) of \(settings.losses) voters have died" }
        if let gone = hosts.first(where: { $0.isLost && leader.configuration.members.contains($0.id) }) {
            return "node \(gone.index) is dead and still a member"
        }
        if leader.configuration.members.contains(where: { index(of: $0) == nil }) {
            return "a node that is gone is a member"
        }
        for host in present {
            if host.isMarkedDamaged { return "node \(host.index) does not have again what it lost" }
            guard let core = host.core, let raft = core.raft else { return "node \(host.index) has not joined" }
            if raft.leader != leaders[0].id {
                return "node \(host.index) follows \(raft.leader?.description ?? "nobody")"
            }
            if !leader.configuration.members.contains(host.id) { return "node \(host.index) is no member" }
            if core.appliedIndex != leader.lastIndex {
                return "node \(host.index) applied \(core.appliedIndex) of \(leader.lastIndex)"
            }
            let alive = core.membership.members.filter { $0.state == .alive }.count
            if alive != present.count {
                return "node \(host.index) knows \(alive) of \(present.count) members as alive"
            }
            if !core.softState.isQuiet { return "node \(host.index) still holds \(core.softState)" }
            if core.softState.owned > 0 {
                return "node \(host.index) still has \(core.softState.owned) commands of its own"
            }
        }
        if !oracle.replica.pods.isEmpty { return "pods are left: \(oracle.replica.pods.map(\.name))" }
        if oracle.replica.jobCount != 0 { return "\(oracle.replica.jobCount) jobs are left" }
        return nil
    }

    func probeTurn(_ client: SimulatedClient) {
        guard stage == .probing, !probe.isBusy, client.active == 0, client.jobsInHand == 0 else { return }
        switch probe.step {
        case 0:
            probe.isBusy = true
            put(client, count: 1) { [weak self] isDone in
                guard isDone else { throw Violation("the first put after the faults failed") }
                self?.probe.isBusy = false
                self?.probe.step = 1
            }
        case 1:
            // Perhaps it does not wait, and the job is delayed; or it is slower than the job's time to run.
            guard oracle.replica.jobCount > 0 else { return client.isDone = true }
            probe.isBusy = true
            reserveOnce(client, isDraining: true) { [weak self] _ in self?.probe.isBusy = false }
        default: break
        }
    }

    /// Each node in one line, for messages.
    public var outline: String {
        hosts.map { host in
            guard let core = host.core else { return "  \(host.name): down, life \(host.life)" }
            let members = core.membership.members.filter { $0.state == .alive }.count
            guard let raft = core.raft else {
                return "  \(host.name): virgin, life \(host.life), knows \(members) alive, \(core.bootstrapOutline)"
            }
            let leader = raft.leader.flatMap { index(of: $0) }.map { "n\($0)" } ?? "nobody"
            let voters = raft.configuration.voters.compactMap { index(of: $0) }
            let learners = raft.configuration.learners.compactMap { index(of: $0) }
            return """
                  \(host.name): \(raft.role) of \(leader) in term \(raft.term), \
                commit \(raft.commitIndex), last \(raft.lastIndex), applied \(core.appliedIndex), voters \
                \(voters), learners \(learners), \
                knows \(members) alive, life \(host.life), paused \(host.pausedUntil > now), \(core.softState)
                """
        }.joined(separator: "\n")
    }
}
