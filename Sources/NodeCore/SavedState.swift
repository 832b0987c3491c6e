// The replicated state outside a running node: what `snapshot save`, `inspect`, `restore` and `recover` work on.
import Consensus
import Model
import Wire

/// One replicated state, read from a snapshot's data, to which entries of a log can be applied.
public struct SavedState: Sendable {
    /// How much of everything there is.
    public struct Summary: Hashable, Sendable {
        public var tubes = 0
        public var ready: UInt64 = 0
        public var reserved: UInt64 = 0
        public var delayed: UInt64 = 0
        public var buried: UInt64 = 0
        /// Held ones.
        public var leases = 0
        public var pods = 0
        public var gathers = 0
        public var sessions = 0
        /// Log time.
        public var milliseconds: UInt64 = 0

        public var jobs: UInt64 { ready + reserved + delayed + buried }
    }

    /// Tokens and ids of the state derive from the index of the log. What the lost nodes did after the last entry that is
    /// known may have given higher ones: a new history begins so many entries later, which is more than were ever written in
    /// between.
    public static let indexGap: UInt64 = 1 << 32
    /// Indexes are shifted by 12 bits to make tokens.
    public static let maximumIndex: UInt64 = 1 << 51

    private var state: ReplicatedState

    /// The state before the first entry.
    public init() { state = ReplicatedState() }

    public init(decoding bytes: [UInt8]) throws(WireError) { state = try ReplicatedState(decoding: bytes) }

    public var appliedIndex: UInt64 { state.appliedIndex }

    public var summary: Summary {
        let jobs = state.queues.totals
        var summary = Summary(
            tubes: state.queues.tubeNames.count, ready: UInt64(jobs.ready), reserved: UInt64(jobs.reserved),
            delayed: UInt64(jobs.delayed), buried: UInt64(jobs.buried))
        summary.leases = state.leases.heldCount
        summary.pods = state.scheduling.podCount
        summary.gathers = state.scheduling.gathers.count
        summary.sessions = state.sessionCount
        summary.milliseconds = state.milliseconds
        return summary
    }

    /// Applies the next entry, as nodes do: what can not be read changes nothing.
    public mutating func apply(_ entry: LogEntry) {
        state.appliedIndex = entry.index
        guard entry.kind == .command, let payload = try? LogPayload(decoding: entry.payload) else { return }
        _ = state.apply(payload, index: entry.index, withReplies: false)
        // Soft state for drivers, of which there is none.
        _ = state.queues.takeReadied()
        _ = state.leases.takeFreed()
        _ = state.leases.takeChanged()
        _ = state.scheduling.takeChanged()
        _ = state.scheduling.takeChangedGathers()
        _ = state.scheduling.takeForgotten()
    }

    /// The state with which a new history begins, at `index`. All leases are free: whoever held one may have lost it to another
    /// after the last entry that is known here, and has to acquire it anew, with a higher token.
    public func beginning(at index: UInt64) -> [UInt8] {
        var state = state
        state.leases.releaseAll()
        state.appliedIndex = index
        return state.encoded
    }
}

extension NodeCore {
    /// A snapshot of the state as this node has applied it.
    public struct ExportedState: Sendable {
        public var metadata: SnapshotMetadata
        public var lineage: Lineage
        public var image: StateImage
    }

    /// Nil before the node belongs to a cluster. Costs nothing until the image is encoded. Linearizable if the caller has waited
    /// for `localReadReady`.
    public var exportedState: ExportedState? {
        guard let metadata = raft?.snapshotMetadata(at: state.appliedIndex) else { return nil }
        return ExportedState(metadata: metadata, lineage: lineage, image: StateImage(state))
    }
}
