// What goes wrong, and the peace after it.
import Model
import NodeCore
import Wire

extension World {
    func split() {
        sides = hosts.map { _ in Int(generator.next() % 2) }
        clientSides = clients.map { _ in Int(generator.next() % 2) }
        networkChanged()
    }

    func heal() {
        sides = hosts.map { _ in 0 }
        clientSides = clients.map { _ in 0 }
        deaf = []
        networkChanged()
    }

    private var leader: Int? {
        hosts.indices.filter { hosts[$0].core?.raft?.isLeader ?? false }
            .max { (hosts[$0].core?.raft?.term ?? 0) < (hosts[$1].core?.raft?.term ?? 0) }
    }

    func inject() throws {
        if laterGenerator.chance(0.25), deceive() { return }
        let i = Int(generator.next() % UInt64(hosts.count))
        let kind = settings.onlyPausesLeaders ? 9 : generator.next() % 12
        note(11, kind, UInt64(i), text: "fault \(kind) at \(i)")
        removeRetired()
        if settings.damage != .none, chance(0.35) { return try damageOrWipe(i) }
        switch kind {
        case 0, 1:
            guard settings.crashes else { return }
            // Now and then several at once, as when a rack loses power.
            if crashesInWrite(i) { return }
            let powered = chance(0.6)
            for victim in hosts.indices where victim == i || chance(0.15) {
                crash(victim, powered: powered)
                try maybeDamage(victim)
                schedule(after: random(10_000..<600_000), .start(victim))
            }
        case 2, 3:
            guard settings.crashes, let leader else { return }
            if crashesInWrite(leader) { return }
            crash(leader, powered: chance(0.6))
            try maybeDamage(leader)
            schedule(after: random(10_000..<900_000), .start(leader))
        case 4:
            guard settings.crashes, chance(0.3) else { return }
            for victim in hosts.indices {
                crash(victim, powered: false)
                try maybeDamage(victim)
                schedule(after: random(10_000..<400_000), .start(victim))
            }
        case 5:
            guard settings.partitions else { return }
            split()
        case 6:
            guard settings.partitions, let leader else { return }
            if settings.cutTransfers, laterGenerator.chance(0.4), transferAndCut(leader) { return }
            // The leader alone, with whoever talks to it.
            sides = hosts.indices.map { $0 == leader ? 1 : 0 }
            clientSides = clients.map { _ in Int(generator.next() % 2) }
            networkChanged()
        case 7:
            guard settings.partitions else { return }
            let j = Int(generator.next() % UInt64(hosts.count))
            if i != j { deaf.insert(link(i, j)) }
        case 8: heal()
        case 9:
            guard settings.pauses else { return }
            let victim = settings.onlyPausesLeaders || chance(0.6) ? leader ?? i : i
            hosts[victim].pausedUntil = now + random((settings.onlyPausesLeaders ? 600_000 : 20_000)..<1_500_000)
        case 10:
            guard settings.orders else { return }
            let target = leader ?? i
            if settings.cutTransfers, let leader, laterGenerator.chance(0.8), transferAndCut(leader) { return }
            if chance(0.5) {
                hosts[target].isStopping = true
                feed(target, .shutdown)
            } else {
                let order: JSONValue =
                    chance(0.5) ? ["verb": "transfer"] : ["verb": "transfer", "node": .string(hosts[i].name)]
                feed(target, .request(RequestID(connection: 0, channel: 0), .admin(order), .operator))
            }
        default:
            guard settings.diskFaults else { return }
            switch generator.next() % 3 {
            case 0:
                guard hosts[i].isUp else { return }
                hosts[i].disks.journal.failingSyncs = 1
                // A node whose disk fails is started again, by somebody, some time.
                schedule(after: random(300_000..<900_000), .restartIfFailed(i))
            case 1: hosts[i].disks.journal.capacity = 40_000
            default: hosts[i].disks.journal.capacity = .max
            }
        }
    }

    /// Most of the time no disk is busy: a crash in the middle of a write has to be waited for. True if this one shall be.
    private func crashesInWrite(_ i: Int) -> Bool {
        guard settings.crashesInWrites > 0, laterGenerator.chance(settings.crashesInWrites), hosts[i].isUp else {
            return false
        }
        let doom = (life: hosts[i].life, powered: laterGenerator.chance(0.6))
        hosts[i].doom = doom
        schedule(
            after: .milliseconds(300),
            .later { [weak self] in if self?.hosts[i].doom?.life == doom.life { self?.meetDoom(i, doom) } })
        return true
    }

    func meetDoom(_ i: Int, _ doom: (life: Int, powered: Bool)) {
        guard hosts[i].life == doom.life, hosts[i].isUp, !isPeaceful else { return }
        hosts[i].doom = nil
        crash(i, powered: doom.powered, midWrite: hosts[i].storage?.isWritingLog ?? false)
        schedule(after: .microseconds(Int64(10_000 + laterGenerator.next() % 600_000)), .start(i))
    }

    /// Orders a hand-over and lets the network hold up the word to the heir: see ``holdUp(_:at:)``. False if there is no other voter.
    private func transferAndCut(_ leader: Int) -> Bool {
        let voters = hosts[leader].core?.raft?.configuration.voters ?? []
        let heirs = hosts.indices.filter { $0 != leader && voters.contains(hosts[$0].id) }
        guard !heirs.isEmpty else { return false }
        let heir = heirs[Int(laterGenerator.next() % UInt64(heirs.count))]
        note(23, UInt64(leader), UInt64(heir), text: "transfer from \(leader) to \(heir), to be cut")
        transferCuts.insert(link(leader, heir))
        let order: JSONValue = ["verb": "transfer", "node": .string(hosts[heir].name)]
        feed(leader, .request(RequestID(connection: 0, channel: 0), .admin(order), .operator))
        return true
    }

    /// The heir hears its leader no more from the word on that it is to stand. The leader gives the transfer up and goes on without
    /// it; then the heir hears everything, that word first.
    func holdUp(_ payload: [UInt8], at cut: Int) {
        deaf.insert(cut)
        links[cut].held.append((.raft, payload))
        schedule(
            after: .microseconds(450_000 + Int64(laterGenerator.next() % 700_000)),
            .later { [weak self] in
                guard let self, self.deaf.remove(cut) != nil else { return }
                self.networkChanged()
            })
    }

    func beginPeace() {
        note(12, text: "peace")
        enter(.draining)
        peaceSince = now
        for i in hosts.indices {
            hosts[i].disks.journal.capacity = .max
            hosts[i].disks.journal.failingSyncs = 0
            hosts[i].disks.snapshots.failingSyncs = 0
            hosts[i].pausedUntil = min(hosts[i].pausedUntil, now)
            hosts[i].clock.resume(at: now)
        }
        heal()
        for i in hosts.indices {
            if hosts[i].isUp, hosts[i].storage?.hasFailed ?? false { restart(i) }
            if !hosts[i].isUp { schedule(after: random(1_000..<50_000), .start(i)) }
        }
        schedule(after: .milliseconds(50), .poll)
    }

    func enter(_ next: Stage) {
        stage = next
        note(13, UInt64(next.rawValue), text: "stage \(next)")
    }
}
