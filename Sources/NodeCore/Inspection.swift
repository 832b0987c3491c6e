// What simulations look at: the soft state that must not grow, the replicated state as bytes, and a replica that follows the
// log by itself. Nothing in here is used by a running node.
import Consensus
import Model
import Queues
import Scheduling
import Wire

/// How much a node remembers of what is under way. All of it must go when nobody asks for anything any more.
package struct SoftState: Hashable, Sendable {
    /// Commands of clients that entered here and are not answered.
    package var ownedByClients: Int
    /// The node's own commands.
    package var owned: Int
    package var parked: Int
    package var waiters: Int
    package var inFlight: Int
    package var proposals: Int
    package var reads: Int
    package var forwardedOrders: Int

    /// True if nothing of a client is left.
    package var isQuiet: Bool {
        ownedByClients == 0 && parked == 0 && waiters == 0 && inFlight == 0 && proposals == 0 && reads == 0
            && forwardedOrders == 0
    }
}

extension NodeCore {
    package var softState: SoftState {
        SoftState(
            ownedByClients: paths.owned.values.count { $0.origin != .own }, owned: paths.owned.count,
            parked: paths.parked.count,
            waiters: paths.tubeWaiters.values.reduce(0) { $0 + $1.count }
                + paths.leaseWaiters.values.reduce(0) { $0 + $1.count },
            inFlight: paths.inFlight.count,
            proposals: paths.proposals.count + paths.early.count, reads: paths.reads.count,
            forwardedOrders: reconciler.forwardedOrders.count)
    }

    /// What a virgin node waits for, for messages.
    package var bootstrapOutline: String {
        guard let bootstrap else { return founding == nil ? "no bootstrap" : "founding" }
        guard let promise = bootstrap.promise else { return "expects \(bootstrap.expect), no promise" }
        let whose = promise.initiator == options.id ? "itself" : displayName(promise.initiator)
        return "expects \(bootstrap.expect), promised to \(whose), attempt \(promise.attempt)"
    }

    /// The last entry that this node has applied.
    package var appliedIndex: UInt64 { state.appliedIndex }

    /// The whole replicated state as it would stand in a snapshot now. Costs as much as making one.
    package var encodedState: [UInt8] { state.encoded }
}

/// The replicated state by itself: applies the entries that it is given, and tells what each command came to.
package struct StateReplica: Sendable {
    package struct Applied: Sendable {
        package var command: ClientCommand
        package var result: StateResult
        /// Not executed now: the answer of the first time.
        package var isReplay: Bool
        /// Position in the order of all commands: entry, then place in it.
        package var index: UInt64
        package var place: Int
    }

    private var state = ReplicatedState()

    package init() {}

    package var appliedIndex: UInt64 { state.appliedIndex }
    /// Log time.
    package var milliseconds: UInt64 { state.milliseconds }
    package var encoded: [UInt8] { state.encoded }
    package var pods: [PodRecord] { state.scheduling.pods }
    /// Jobs of all tubes in any state.
    package var jobCount: Int {
        let totals = state.queues.totals
        return Int(totals.ready + totals.reserved + totals.delayed + totals.buried)
    }

    /// Applies the next entry. Throws if its payload can not be read.
    package mutating func apply(_ entry: LogEntry) throws(WireError) -> [Applied] {
        state.appliedIndex = entry.index
        guard entry.kind == .command else { return [] }
        let payload = try LogPayload(decoding: entry.payload)
        let applied = state.apply(payload, index: entry.index)
        // Drivers take these; left alone they would grow.
        _ = state.queues.takeReadied()
        _ = state.leases.takeFreed()
        _ = state.leases.takeChanged()
        _ = state.scheduling.takeChanged()
        _ = state.scheduling.takeChangedGathers()
        _ = state.scheduling.takeForgotten()
        return applied.enumerated().map { place, item in
            Applied(
                command: item.command, result: item.result, isReplay: item.isReplay, index: entry.index, place: place)
        }
    }

    /// The log time that an entry was stamped with; nil for entries that are no commands.
    package static func stamp(of entry: LogEntry) -> UInt64? {
        guard entry.kind == .command else { return nil }
        return (try? LogPayload(decoding: entry.payload))?.milliseconds
    }
}

extension NodeCore {
    /// A command that waits at this leader although what it waits for is there and nothing is under way that may take it.
    /// Mutating only so that a caller that keeps the core in a class need not copy it.
    package mutating func servableWaiter() -> String? {
        guard !paths.parked.isEmpty, paths.inFlight.isEmpty, paths.proposals.isEmpty, raft?.isReady ?? false,
            raft?.transferTarget == nil
        else { return nil }
        return paths.parked.sorted { $0.key < $1.key }.first { !mustWait($0.value.command.command) }
            .map { "\($0.value.command.command)" }
    }

    /// An acquire that waits at this leader although nobody holds its lease. What is under way up to `logEnd` may take it;
    /// `isMoreProposed` says that there is more which is not in the log yet.
    package mutating func waiterForFreeLease() -> (command: String, logEnd: UInt64, isMoreProposed: Bool)? {
        guard !paths.leaseWaiters.isEmpty, let raft, raft.isReady, raft.transferTarget == nil else { return nil }
        let waiting = paths.parked.sorted { $0.key < $1.key }.map(\.value.command.command)
        return waiting.first { $0.waitedLease != nil && !mustWait($0) }
            .map { ("\($0)", raft.lastIndex, !paths.proposals.isEmpty) }
    }
}

/// What a simulation looks at after every turn of a node.
package struct NodeOutline: Sendable {
    package var term: UInt64 = 0
    package var commitIndex: UInt64 = 0
    package var appliedIndex: UInt64 = 0
    package var snapshotIndex: UInt64 = 0
    package var isLeader = false
    /// False before a node has joined or founded a cluster.
    package var hasRaft = false
    package var hasParked = false
    /// Committed entries wait to be applied.
    package var hasBacklog = false
    package var nextDeadline = MonotonicTime.distantFuture

    package init() {}
}

extension NodeCore {
    /// Mutating only so that a caller that keeps the core in a class need not copy it.
    package mutating func outline() -> NodeOutline {
        var outline = NodeOutline()
        outline.nextDeadline = nextDeadline
        outline.appliedIndex = state.appliedIndex
        outline.hasParked = !paths.parked.isEmpty
        outline.hasBacklog = hasBacklog
        guard raft != nil else { return outline }
        outline.hasRaft = true
        outline.term = raft?.term ?? 0
        outline.commitIndex = raft?.commitIndex ?? 0
        outline.snapshotIndex = raft?.snapshot.index ?? 0
        outline.isLeader = raft?.isLeader ?? false
        return outline
    }
}
