// Bytes that go bad at rest and nodes whose data are gone, within a budget or beyond it.
//
// The budget: of the voters of a configuration that is committed and not about to change, fewer than half may be damaged, or gone
// and still voters, at one time. Then each committed entry has an intact copy on a voter, and everything must heal. Beyond the
// budget any number may be damaged; what is demanded is that no answer is wrong. Data that are gone whole are never beyond the
// budget: a majority of nodes that know nothing is a new cluster, whatever the software.
// A node that lost its term asks all voters that it knows of for theirs, also one that is gone or refuses to start: within the budget it is
// the only one in trouble.
import Consensus
import Journal
import Model
import NodeCore
import Wire

extension World {
    private struct Budget {
        var mayDamage: Bool
        var mayLoseTerm: Bool
        var mayWipe: Bool
    }

    private func budget(for i: Int) -> Budget {
        let none = Budget(mayDamage: false, mayLoseTerm: false, mayWipe: false)
        guard settings.damage != .none, let known = knownConfiguration, known.members.contains(hosts[i].id) else {
            return none
        }
        let spent =
            hosts.filter { $0.isMarkedDamaged && $0.index != i }.count
            + retired.filter { known.members.contains($0.id) }.count
        let isWithin = spent < (known.voters.count - 1) / 2
        let isBeyond = settings.damage == .beyondBudget
        let othersLost = hosts.contains { $0.isTermSpoiled && $0.index != i }
        let areAllMembers = hosts.allSatisfy { known.members.contains($0.id) }
        return Budget(
            mayDamage: isWithin && !othersLost || isBeyond,
            mayLoseTerm: isWithin && spent == 0 && !othersLost && retired.isEmpty || isBeyond,
            mayWipe: isWithin && areAllMembers && !othersLost && retired.count < 3)
    }

    /// The configuration that is in force at the newest leader and was so when it last mattered: taken when a node leads and all
    /// of its log is committed, which also says that no change is under way.
    private var knownConfiguration: RaftConfiguration? {
        let leaders = hosts.compactMap { $0.core?.raft }.filter { $0.isReady }
        guard let raft = leaders.max(by: { $0.term < $1.term }), !raft.configuration.isJoint,
            !raft.isChangingConfiguration
        else { return stableConfiguration }
        stableConfiguration = raft.configuration
        return raft.configuration
    }

    // MARK: - Damage

    /// A node that was just killed.
    func maybeDamage(_ i: Int) throws {
        guard settings.damage != .none, !hosts[i].isUp, chance(0.7) else { return }
        for _ in 0..<1 + generator.next() % 3 { try damage(i) }
    }

    /// The moment that a damaged log is dangerous in: a leader commits while a minority hears nothing; then its disk is damaged, and
    /// only that minority is there to elect somebody with it.
    private func damageBesideLaggards() {
        guard let leader = hosts.firstIndex(where: { $0.core?.raft?.isReady ?? false }),
            let configuration = hosts[leader].core?.raft?.configuration, !configuration.isJoint
        else { return }
        var others = configuration.voters.compactMap { index(of: $0) }.filter { $0 != leader }
        others.shuffle(using: &generator)
        let laggards = Array(others.prefix((configuration.voters.count - 1) / 2))
        note(21, UInt64(leader), text: "laggards \(laggards) of \(leader)")
        clientSides = clients.map { _ in 0 }
        sides = hosts.indices.map { laggards.contains($0) ? 1 : 0 }
        networkChanged()
        schedule(
            after: random(150_000..<500_000),
            .later { [weak self] in
                guard let self, !self.isPeaceful else { return }
                self.crash(leader, powered: self.chance(0.5))
                for _ in 0..<3 { try self.damage(leader) }
                self.sides = self.hosts.indices.map { $0 == leader || laggards.contains($0) ? 0 : 1 }
                self.networkChanged()
                self.schedule(after: self.random(5_000..<50_000), .start(leader))
            })
    }

    /// Kills a node to damage its disk, or to take it away.
    func damageOrWipe(_ i: Int) throws {
        if settings.partitions, chance(0.4) { return damageBesideLaggards() }
        crash(i, powered: chance(0.5))
        schedule(after: random(10_000..<800_000), .start(i))
        if chance(0.3), budget(for: i).mayWipe { return wipe(i) }
        for _ in 0..<1 + generator.next() % 3 { try damage(i) }
    }

    private func damage(_ i: Int) throws {
        let host = hosts[i]
        let budget = budget(for: i)
        guard budget.mayDamage, !host.isUp else { return }
        let disks = host.disks
        if budget.mayLoseTerm, chance(0.1) {
            // The directory of the journal is gone, the rest is there.
            let owed = try endOfLog(host)
            note(18, UInt64(i), text: "damage \(i) journal gone")
            disks.journal.wipe()
            figures.damages += 1
            return host.spoil(isTermLost: true, ofSnapshots: false, owed: owed)
        }
        // Without a journal there is nothing left that could be told from a first start, but for a mark that is not damaged here.
        guard try disks.journal.list().contains(where: { $0.hasPrefix("segment-") }),
            let target = DiskDamage.pick(log: disks.journal, snapshots: disks.snapshots, using: &generator),
            let before = target.disk.contents(target.name)
        else { return }
        let was = try verify(host)
        let end = try endOfLog(host)
        let unwritten = DiskDamage.spoil(target, using: &generator)
        let found = try verify(host)
        let isTermLost = found.recovery?.isTermLost ?? false
        let owed = max(was.recovery?.floor ?? .zero, end)
        let isCovered =
            try endOfLog(host) == end && found.recovery == was.recovery
            || found.recovery.map { $0.floor >= owed || $0.isTermLost && !$0.isFloorKnown } ?? false
        if !isTermLost, was.hardState == nil, found.hardState != nil {
            // Damage to damage: an older copy came back in the place of the one that was lost before. Outside of the model.
            return target.disk.place(target.name, before)
        }
        if !isTermLost, found.hardState != was.hardState {
            throw Violation(
                "node \(i): damage to \(target.name) makes \(was.hardState as Any) of \(found.hardState as Any)")
        }
        if !isCovered, !DiskDamage.isLastWriteLost(unwritten, of: target, found) {
            throw Violation("node \(i): damage to \(target.name) hides that \(owed) was there: \(found)")
        }
        // A write that is lost whole at the end looks like one that a crash cut off, to any format that keeps no second record of
        // what was synced: outside of the model.
        guard isCovered, !isTermLost || budget.mayLoseTerm else { return target.disk.place(target.name, before) }
        note(18, UInt64(i), found.recovery?.floor.index ?? 0, text: "damage \(i) \(target.name) \(found.outcome)")
        figures.damages += 1
        host.spoil(isTermLost: isTermLost, ofSnapshots: target.name.hasSuffix(".snap"), owed: end)
    }

    private func verify(_ host: SimulatedHost) throws -> JournalReport {
        let newest = try SnapshotStore(disk: host.disks.snapshots, cluster: SimulatedStorage.cluster).newest()
        return try Journal.verify(
            disk: host.disks.journal, identity: SimulatedStorage.options(host.id).identity,
            snapshot: newest.snapshot?.metadata ?? .none)
    }

    /// The last entry that is readable anywhere.
    private func endOfLog(_ host: SimulatedHost) throws -> LogPosition {
        try Journal.open(disk: host.disks.journal.copy(), options: SimulatedStorage.options(host.id)).recovered
            .lastReadable
    }

    /// The agent says that nobody else has what is lost, and ends: what is readable of its log knows no other voter. If there are
    /// others, an operator moves the data away, and the node comes back as a new one.
    func refused(_ i: Int) throws {
        if settings.damage == .withinBudget {
            guard let known = knownConfiguration, known.voters.count > 1 else {
                throw Violation("node \(i) refuses to start, and nobody else has what it lost")
            }
            wipe(i)
            return schedule(after: .milliseconds(300), .start(i))
        }
        note(19, UInt64(i), text: "refused \(i)")
        hosts[i].isRefused = true
    }

    // MARK: - Nodes that are gone

    private func wipe(_ i: Int) {
        note(20, UInt64(i), text: "wipe \(i)")
        retired.append((hosts[i].id, i))
        hosts[i].wipe(newID: NodeID(high: generator.next(), low: seed))
        figures.wipes += 1
    }

    /// What an operator does about nodes that are gone: asks the leader to take them out.
    func removeRetired() {
        guard !retired.isEmpty else { return }
        guard let i = hosts.indices.first(where: { hosts[$0].core?.raft?.isReady ?? false }),
            let configuration = hosts[i].core?.raft?.configuration, !configuration.isJoint,
            let gone = retired.first(where: { configuration.members.contains($0.id) })
        else { return }
        let order: JSONValue = ["verb": "remove", "node": .string(gone.id.description)]
        feed(i, .request(RequestID(connection: 0, channel: 0), .admin(order), .operator))
    }

    // MARK: - The end of a run beyond the budget

    /// There may be no leader any more. What was answered is judged all the same.
    func pollBeyondBudget() throws {
        guard now - peaceSince < .seconds(6) else {
            try checkHistory()
            figures.healing = now - peaceSince
            return enter(.done)
        }
        schedule(after: .milliseconds(50), .poll)
    }
}
