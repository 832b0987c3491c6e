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
        let i = Int(generator.next() % UInt64(hosts.count))
        let kind = settings.onlyPausesLeaders ? 9 : generator.next() % 12
        note(11, kind, UInt64(i), text: "fault \(kind) at \(i)")
        removeRetired()
        if settings.damage != .none, chance(0.35) { return try damageOrWipe(i) }
        switch kind {
        case 0, 1:
            guard settings.crashes else { return }
            // Now and then several at once, as when a rack loses power.
            let powered = chance(0.6)
            for victim in hosts.indices where victim == i || chance(0.15) {
                crash(victim, powered: powered)
                try maybeDamage(victim)
                schedule(after: random(10_000..<600_000), .start(victim))
            }
        case 2, 3:
            guard settings.crashes, let leader else { return }
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

    func beginPeace() {
        note(12, text: "peace")
        enter(.draining)
        peaceSince = now
        for i in hosts.indices {
            hosts[i].disks.journal.capacity = .max
            hosts[i].disks.journal.failingSyncs = 0
            hosts[i].disks.snapshots.failingSyncs = 0
            hosts[i].pausedUntil = min(hosts[i].pausedUntil, now)
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
