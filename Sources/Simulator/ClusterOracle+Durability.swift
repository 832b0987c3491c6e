// Rules about what must be on a disk before something is said, and about configurations. They look at messages, at what the
// disks were told to keep, and at the core's own view, so that a fault shows where it is made and not only where it does harm.
import Consensus
import Model
import NodeCore
import Wire

/// One candidate's question in one term.
struct PreVote: Hashable {
    var candidate: NodeID
    var term: UInt64
}

extension ClusterOracle {
    // MARK: - Disks

    func noteUnsynced(_ request: PersistRequest, of host: SimulatedHost) {
        guard request.reset != nil || request.truncateFrom != nil || !request.entries.isEmpty else { return }
        let from = request.truncateFrom ?? 0
        let before = LogPosition(index: from == 0 ? 0 : from - 1, term: host.log[from == 0 ? 0 : from - 1]?.term ?? 0)
        host.unsyncedLogs.append(
            UnsyncedLog(
                ticket: request.ticket, reset: request.reset, truncateFrom: request.truncateFrom, before: before,
                last: request.entries.last?.position))
    }

    func logPersisted(through ticket: UInt64, of host: SimulatedHost) {
        while let next = host.unsyncedLogs.first, next.ticket <= ticket {
            host.unsyncedLogs.removeFirst()
            if let reset = next.reset { host.durableLast = reset }
            if let from = next.truncateFrom, from <= host.durableLast.index { host.durableLast = next.before }
            if let last = next.last { host.durableLast = last }
        }
    }

    /// What was synced is there at the next start. What was not may be there too, a truncation included.
    func checkDurableLog(of host: SimulatedHost, _ recovery: NodeRecovery) throws {
        let log = recovery.log
        let last = log.entries.last?.position ?? log.base
        defer {
            host.durableLast = last
            host.forgetSpoiling()
        }
        guard log.recovery == nil, !host.wasSpoiled,
            host.unsyncedLogs.allSatisfy({ $0.truncateFrom == nil && $0.reset == nil })
        else { return }
        guard last >= host.durableLast else {
            throw Violation("node \(host.index) had \(host.durableLast) on its disk and starts with \(last)")
        }
    }

    // MARK: - What is said

    /// Promises are durable before anybody hears of them, and nobody stands for election whom no majority wants.
    mutating func checkSent(_ payload: [UInt8], by host: SimulatedHost, to: NodeID, _ world: World) throws {
        // The kind says whether it is worth reading: see RaftEnvelope.
        guard payload.count > 1, [2, 3, 4, 6].contains(payload[1]) else { return }
        let message = try RaftEnvelope(decoding: payload).message
        switch message {
        case .preVoteResponse(let response) where response.granted:
            preVotes[PreVote(candidate: to, term: response.term), default: []].insert(host.id)
        case .vote(let request):
            guard host.durable == HardState(term: request.term, vote: host.id, commit: host.durable.commit) else {
                throw Violation(
                    "node \(host.index) asks for votes in \(request.term), but its disk has \(host.durable)")
            }
            guard !(host.storage?.isRecovering ?? false) else {
                throw Violation("node \(host.index) asks for votes without what its disk lost")
            }
            guard !request.isTransfer, let configuration = host.core?.raft?.configuration else { return }
            let willing = preVotes[PreVote(candidate: host.id, term: request.term)] ?? []
            guard ClusterOracle.isMajority(of: configuration, { $0 == host.id || willing.contains($0) }) else {
                throw Violation("node \(host.index) asks for votes in \(request.term), but no majority would vote")
            }
        case .voteResponse(let response) where response.granted:
            guard host.durable.term == response.term, host.durable.vote == to else {
                throw Violation("node \(host.index) votes in \(response.term), but its disk has \(host.durable)")
            }
            // Damaged, it helps only those who have what it once had.
            guard host.storage?.isRecovering ?? false, let candidate = world.index(of: to),
                let last = world.hosts[candidate].log.entries.last?.position
            else { return }
            guard last >= host.owed else {
                throw Violation(
                    "node \(host.index) had \(host.owed) and votes for node \(candidate), which ends at \(last)")
            }
        case .appendResponse(let response):
            guard case .accepted(let match) = response.outcome else { return }
            guard match <= host.durableLast.index else {
                throw Violation("node \(host.index) acknowledges \(match), but its disk has \(host.durableLast)")
            }
        default: break
        }
    }

    /// By a count of its own, not the product's.
    private static func isMajority(of configuration: RaftConfiguration, _ agrees: (NodeID) -> Bool) -> Bool {
        [configuration.voters, configuration.outgoing].allSatisfy { voters in
            voters.isEmpty || voters.count(where: agrees) >= voters.count / 2 + 1
        }
    }

    /// A promise to let another found the cluster is on the disk when it is given.
    func checkPromise(_ payload: [UInt8], by host: SimulatedHost) throws {
        var reader = ByteReader(payload)
        guard try reader.u8() == 2 else { return }
        let attempt = try reader.u64()
        guard let kept = try SimulatedStorage.durablePromise(host.disks.promises), kept.attempt == attempt else {
            throw Violation("node \(host.index) grants attempt \(attempt) and has no promise on its disk")
        }
    }

    // MARK: - Commitment

    /// A leader commits what is on the disks of a majority, and by counting only entries of its own term.
    func checkCommit(of host: SimulatedHost, _ raft: Raft, _ world: World, inItsTerm: Bool) throws {
        guard let entry = host.log[raft.commitIndex] else { return }
        guard entry.term == raft.term || !inItsTerm else {
            throw Violation("node \(host.index) commits \(entry.position) in term \(raft.term)")
        }
        func isDurable(in configuration: RaftConfiguration) -> Bool {
            ClusterOracle.isMajority(of: configuration) { member in
                // What was acknowledged and then damaged counts, but can not be seen.
                guard let i = world.index(of: member) else { return world.retired.contains { $0.id == member } }
                return world.hosts[i].hasEverBeenSpoiled || world.hosts[i].durableLast.index >= raft.commitIndex
            }
        }
        // A configuration that is entered with this commitment, as the one that ends a joint one, needs its majority only from here on:
        // then that of the one before decided.
        guard isDurable(in: raft.configuration) || host.configuration.map({ isDurable(in: $0) }) ?? false else {
            throw Violation("node \(host.index) commits \(entry.position), which no majority has on its disks")
        }
    }

    /// Nobody waits at a leader for what is there. Somebody who was to be served and whose command was refused asks again within
    /// a short time.
    func checkWaiters(of host: SimulatedHost, _ world: World) throws {
        guard let waiter = host.core?.servableWaiter() else { return host.servableSince = nil }
        // While it stood still it could do nothing about it.
        let since = max(host.servableSince ?? world.now, host.pausedUntil)
        host.servableSince = since
        guard world.now - since < .milliseconds(200) else {
            throw Violation("node \(host.index) lets \(waiter) wait for what is there since \(since)")
        }
    }

    /// Nobody waits at a leader for a lease that nobody holds, however much else is under way: once all that was in the log a moment
    /// after it became free is applied, and the lease is free still, nothing is going to take it.
    func checkWaitersForLeases(of host: SimulatedHost, applied: UInt64, _ world: World) throws {
        guard let waiter = host.core?.waiterForFreeLease() else { return host.freeLease = nil }
        guard var known = host.freeLease, known.waiter == waiter.command else {
            return host.freeLease = (waiter.command, world.now, nil)
        }
        if known.mark == nil, world.now - known.since >= .milliseconds(50), !waiter.isMoreProposed {
            known.mark = (world.now, waiter.logEnd)
            host.freeLease = known
        }
        guard let mark = known.mark, applied >= mark.index,
            world.now - max(mark.time, host.pausedUntil) >= .milliseconds(150)
        else { return }
        throw Violation("node \(host.index) lets \(waiter.command) wait for a lease that is free since \(known.since)")
    }

    // MARK: - Configurations

    /// The configuration in force is the newest one in the log, or that of the snapshot.
    func checkConfiguration(of host: SimulatedHost, snapshotIndex: UInt64) throws {
        let newest = host.log.configurations.last.flatMap { host.log[$0]?.position } ?? .zero
        let place = SimulatedHost.ConfigurationPlace(newest: newest, base: host.log.base, snapshot: snapshotIndex)
        guard place != host.checkedLog, let raft = host.core?.raft else { return }
        host.checkedLog = place
        let expected: [UInt8]?
        if let own = host.log.configuration, newest.index > snapshotIndex {
            expected = own
        } else {
            expected = committedConfigurations.last { $0.index <= snapshotIndex }?.payload
        }
        guard let expected else { return }
        guard raft.configuration.encoded == expected else {
            throw Violation("node \(host.index) has another configuration than its log: \(raft.configuration)")
        }
    }

    /// Two configurations that follow each other share a majority.
    func checkOverlap(_ entry: LogEntry, of host: SimulatedHost) throws {
        let new = try RaftConfiguration(decoding: entry.payload)
        guard !new.isJoint else { return }
        var before = committedConfigurations.last { $0.index < entry.index }?.payload
        if let index = host.log.configurations.last(where: { $0 < entry.index }), let own = host.log[index] {
            before = own.payload
        }
        guard let before else { return }
        let old = try RaftConfiguration(decoding: before)
        guard !old.isJoint else { return }
        let changes =
            new.voters.count { !old.voters.contains($0) } + old.voters.count { !new.voters.contains($0) }
        guard changes <= 1 else {
            throw Violation(
                "node \(host.index) goes from \(old.voters.count) to other \(new.voters.count) voters at once")
        }
    }
}
