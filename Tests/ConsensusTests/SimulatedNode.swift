import Consensus
import Journal
import Model
import Simulator
import Wire

/// One node of a `RaftWorld`: disks that outlive the process, and the process.
final class SimulatedNode {
    enum WriteOutcome { case done, full, fenced }

    let index: Int
    let id: NodeID
    let logDisk = SimulatedDisk()
    let snapshotDisk = SimulatedDisk()
    private let founding: RaftConfiguration?
    private var generator: SeededGenerator
    private var isFounded = false

    var raft: Raft?
    private var journal: Journal?
    private var snapshots: SnapshotStore
    var isUp: Bool { raft != nil }
    private(set) var isFenced = false
    /// Its disk was damaged, and it does not have again what was on it.
    private(set) var isMarkedDamaged = false
    private(set) var isTermLost = false
    private var wasDamaged = false
    /// A journal was made here.
    private var hasStarted = false
    /// Counts starts: what was under way in an earlier life has no effect in this one.
    private(set) var life = 0
    var pausedUntil = MonotonicTime.zero
    var timerAt: MonotonicTime?
    var timerGeneration = 0

    /// Requests that wait, and those of the write that is under way.
    var queue: [PersistRequest] = []
    var writing: [PersistRequest] = []

    // The state machine: a digest over all commands in order.
    private(set) var applied: UInt64 = 0
    private(set) var digest: UInt64 = 0

    init(index: Int, id: NodeID, founding: RaftConfiguration?, generator: SeededGenerator) {
        self.index = index
        self.id = id
        self.founding = founding
        self.generator = generator
        snapshots = SnapshotStore(disk: snapshotDisk, cluster: 1)
    }

    private var journalOptions: JournalOptions {
        JournalOptions(segmentBytes: 8_192, maintenanceBytes: 8_192, identity: JournalIdentity(cluster: 1, node: id))
    }

    func start(now: MonotonicTime) throws {
        life += 1
        isFenced = false
        queue = []
        writing = []
        timerAt = nil
        timerGeneration += 1
        pausedUntil = now
        snapshots = SnapshotStore(disk: snapshotDisk, cluster: 1)
        let newest = try snapshots.newest()
        if !newest.damaged.isEmpty && !wasDamaged {
            throw OracleFailure("node \(index): damaged snapshots \(newest.damaged)")
        }
        let metadata = newest.snapshot?.metadata ?? .none
        // A sync that was to fail is one of a process that runs.
        logDisk.failingSyncs = 0
        let opened = try Journal.open(
            disk: logDisk, options: journalOptions, snapshot: metadata, salvage: true, mayBeFresh: !hasStarted)
        if opened.recovered.isDamaged && !isMarkedDamaged {
            throw OracleFailure("node \(index): a crash was taken for damage: \(opened.recovered.outcome)")
        }
        var recovered = opened.recovered.log
        var journal = opened.journal
        // A founder that crashed before its first write was durable founds again.
        if let founding, recovered.recovery == nil, recovered.hardState.term == 0, recovered.entries.isEmpty,
            recovered.snapshot.index == 0
        {
            recovered = .founding(founding)
            try journal.write([.founding(recovered)])
        }
        self.journal = journal
        hasStarted = true
        if !journal.isRecovering { isMarkedDamaged = false }
        isTermLost = recovered.recovery?.isTermLost ?? false
        var options = RaftOptions()
        options.maxAppendEntries = [1, 3, 64][Int(generator.next() % 3)]
        options.maxInflightMessages = [1, 2, 32][Int(generator.next() % 3)]
        options.trailingEntries = [0, 5, 50][Int(generator.next() % 3)]
        options.snapshotRetry = .milliseconds(60)
        applied = 0
        digest = 0
        if metadata.index > 0 { try restore(metadata) }
        raft = Raft(id: id, options: options, recovered: recovered, generator: generator.fork(), now: now)
    }

    /// The process dies, perhaps in the middle of a write; the machine may lose power with it.
    func crash(using generator: inout SeededGenerator) {
        if !writing.isEmpty, !isFenced {
            logDisk.stopAfter = logDisk.operations + 1 + Int(generator.next() % 4)
            _ = try? journal?.write(writing)
        }
        logDisk.crash(using: &generator)
        snapshotDisk.crash(using: &generator)
        raft = nil
        journal = nil
    }

    func write() -> WriteOutcome {
        do throws(JournalError) {
            try journal?.write(writing)
            if writing.contains(where: { $0.recovered }) {
                isMarkedDamaged = false
                isTermLost = false
            }
            if generator.chance(0.5) { _ = try journal?.maintain() }
            return .done
        } catch {
            switch error {
            case .noSpace: return .full
            case .failed, .fenced, .damaged, .notContiguous, .tooLarge, .unusable:
                isFenced = true
                return .fenced
            }
        }
    }

    // MARK: State machine

    func apply(_ entries: [LogEntry]) {
        for entry in entries {
            precondition(entry.index == applied + 1, "applied once and in order")
            applied = entry.index
            digest = Oracle.digest(digest, entry)
        }
    }

    func saveSnapshot(_ metadata: SnapshotMetadata) -> Bool {
        guard metadata.index == applied else { return false }
        var state = ByteWriter()
        state.u64(applied)
        state.u64(digest)
        state.raw(repeatElement(UInt8(truncatingIfNeeded: applied), count: 2_500))
        guard var writer = try? snapshots.begin(metadata), (try? writer.append(state.bytes)) != nil,
            (try? writer.finish()) != nil
        else {
            return false
        }
        try? snapshots.clean(keep: 2)
        return true
    }

    func restore(_ metadata: SnapshotMetadata) throws {
        guard let stored = try snapshots.newest().snapshot, stored.metadata == metadata else {
            throw OracleFailure("node \(index): snapshot \(metadata.position) is not there to restore")
        }
        var bytes: [UInt8] = []
        guard try snapshots.readData(stored, { bytes += $0 }) else {
            throw OracleFailure("node \(index): unreadable snapshot")
        }
        var reader = ByteReader(bytes)
        applied = try reader.u64()
        digest = try reader.u64()
        guard applied == metadata.index else {
            throw OracleFailure("node \(index): snapshot of \(applied) named \(metadata.index)")
        }
    }

    func snapshotChunk(_ request: SnapshotSend) -> InstallSnapshot? {
        guard let stored = try? snapshots.newest().snapshot, stored.metadata == request.metadata,
            let data = try? snapshots.readImage(stored, at: request.offset, count: 1_000), !data.isEmpty
        else { return nil }
        return InstallSnapshot(
            term: request.term, metadata: request.metadata, totalBytes: stored.imageBytes, checksum: stored.checksum,
            offset: request.offset, data: data)
    }

    func store(_ chunk: InstallSnapshot) -> [RaftInput] {
        let position = chunk.metadata.position
        guard let next = try? snapshots.receive(chunk) else { return [.snapshotRejected(snapshot: position)] }
        guard chunk.isLast else { return [.snapshotChunkStored(snapshot: position, nextOffset: next)] }
        guard let stored = try? snapshots.finishReceiving() else { return [.snapshotRejected(snapshot: position)] }
        return [.snapshotInstalled(stored.metadata)]
    }

    // MARK: Damage

    func markDamaged(isTermLost: Bool) {
        isMarkedDamaged = true
        wasDamaged = true
        if isTermLost { self.isTermLost = true }
    }

    /// What the disk holds, for the world.
    func verify() throws -> JournalReport {
        let newest = try SnapshotStore(disk: snapshotDisk, cluster: 1).newest().snapshot?.metadata ?? .none
        return try Journal.verify(disk: logDisk, identity: JournalIdentity(cluster: 1, node: id), snapshot: newest)
    }

    /// The last readable entry on disk.
    func endOfLog() throws -> LogPosition {
        try Journal.open(disk: logDisk.copy(), options: journalOptions).recovered.lastReadable
    }

    func loggedEntries() throws -> [LogEntry] {
        try Journal.open(disk: logDisk.copy(), options: journalOptions).recovered.log.entries
    }
}
