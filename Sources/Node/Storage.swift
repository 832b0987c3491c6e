// The node's disk: the journal on a thread of its own, snapshots on another, so that a large snapshot never delays a commit.
// While one write syncs, the next batch gathers: group commit without timers.
import Consensus
import EventLoop
import Glibc
import Journal
import Model
import NodeCore
import Security
import Transport

/// The journal and the bootstrap promise, touched by the storage thread alone after opening.
///
/// Sendable without a lock: the loop's thread makes it and reads what was recovered before it submits the first work; from
/// then on only closures that the storage thread runs, one after another, use it.
private final class JournalBox: @unchecked Sendable {
    var journal: Journal
    init(_ journal: Journal) { self.journal = journal }
}

/// The same for snapshots and their thread.
private final class SnapshotBox: @unchecked Sendable {
    var store: SnapshotStore
    init(_ store: SnapshotStore) { self.store = store }
}

/// Carries out the storage effects of one `NodeCore`.
final class Storage {
    /// What one call to write answers.
    private enum WriteOutcome: Sendable {
        /// Says whether the journal has housekeeping to do.
        case done(Bool)
        case full(String)
        case failed(String)
    }

    private let loop: EventLoop
    private let writer: WorkerThread
    private let snapshotter: WorkerThread
    private let box: JournalBox
    private let snapshots: SnapshotBox
    private let promisePath: String
    private let lineagePath: String
    private var waiting: [PersistRequest] = []
    private var isWriting = false
    private var hasFailed = false
    private let retryTimer: LoopTimer
    private(set) var isFull = false
    /// Something is being written, or will be at the end of this turn of the loop.
    var isBusy: Bool { isWriting || !waiting.isEmpty }

    var onInput: ((NodeInput) -> Void)?
    var onLog: ((LogLevel, String) -> Void)?

    /// Opens the journal and finds the newest snapshot. A damaged journal heals from the other voters. Throws where the node
    /// must not start: damage without other voters, another node's files.
    static func open(
        loop: EventLoop, directory: DataDirectory, cluster: String
    ) throws(CoterieError) -> (storage: Storage, recovery: NodeRecovery, notes: [String]) {
        do {
            try NewHistory.refuseUnfinished(in: directory.path)
            let lineage = try LineageFile.read(directory.path) ?? .original
            let disk = try PosixDisk(path: directory.journalPath, create: true)
            let snapshotDisk = try PosixDisk(path: directory.snapshotsPath, create: true)
            let clusterID = stableHash(cluster)
            let store = SnapshotStore(disk: snapshotDisk, cluster: clusterID)
            // A process that was killed between a rename and its sync leaves a name that a loss of power would take back.
            try snapshotDisk.syncDirectory()
            let (newest, state, damaged) = try store.load()
            try store.clean(keep: 2, damaged: damaged)
            var notes = damaged.map { "snapshot \($0) does not check out and is not used" }
            let options = JournalOptions(identity: JournalIdentity(cluster: clusterID, node: directory.id))
            // Says that there was a journal, should its directory be gone: then this node may have voted.
            let markPath = directory.path + "/journal-made"
            let mayBeFresh = access(markPath, F_OK) != 0
            let (journal, recovered) = try Journal.open(
                disk: disk, options: options, snapshot: newest?.metadata ?? .none, salvage: true, mayBeFresh: mayBeFresh
            )
            switch recovered.outcome {
            case .fresh, .clean: break
            case .tornTail(let tail): notes.append("an unfinished write at the end of \(tail.segment) was removed")
            case .damaged(let places) where recovered.isSalvaged:
                let what = places.map(\.description).joined(separator: "; ")
                notes.append(
                    "the journal in \(directory.journalPath) is damaged: \(what); it heals from the other voters, and until then "
                        + "this node does not lead")
            case .damaged(let places):
                let what = places.map(\.description).joined(separator: "; ")
                throw CoterieError(
                    .failed,
                    "the journal in \(directory.journalPath) is damaged, and no other voter has what is lost: \(what)",
                    hint:
                        "look at it with: coterie journal verify --data \(directory.path); to rejoin as a new node, move the directory away"
                )
            }
            if mayBeFresh { try writeFileDurably(markPath, [], mode: 0o600) }
            let promisePath = directory.path + "/promise"
            var promise: BootstrapPromise?
            if let bytes = try? readFile(promisePath, limit: 4_096) {
                do { promise = try BootstrapPromise(decoding: bytes) } catch {
                    throw CoterieError(.failed, "\(promisePath) is damaged", hint: "move the data directory away")
                }
            }
            let isVirgin =
                newest == nil && recovered.log.entries.isEmpty && recovered.log.hardState.term == 0
                && recovered.log.base == .zero && recovered.log.recovery == nil
            let storage = try Storage(loop: loop, journal: journal, store: store, directory: directory.path)
            let recovery = NodeRecovery(
                log: recovered.log, isVirgin: isVirgin, promise: promise, state: newest == nil ? nil : state,
                lineage: lineage)
            return (storage, recovery, notes)
        } catch let error as CoterieError {
            throw error
        } catch {
            throw CoterieError(.failed, "cannot open the node's storage: \(error)")
        }
    }

    private init(loop: EventLoop, journal: Journal, store: SnapshotStore, directory: String) throws {
        self.loop = loop
        box = JournalBox(journal)
        snapshots = SnapshotBox(store)
        promisePath = directory + "/promise"
        lineagePath = LineageFile.path(in: directory)
        writer = try WorkerThread(loop: loop, name: "storage")
        snapshotter = try WorkerThread(loop: loop, name: "snapshots")
        retryTimer = LoopTimer(loop: loop)
    }

    // MARK: - Journal

    /// Writes soon: first leaves what this turn of the loop has gathered for others, among it the entries that followers
    /// shall write at the same time.
    func persist(_ request: PersistRequest) {
        waiting.append(request)
        guard !isWriting else { return }
        loop.beforeWaiting { [weak self] in self?.writeNext() }
    }

    private func writeNext() {
        guard !isWriting, !hasFailed, !waiting.isEmpty else { return }
        isWriting = true
        // A batch is bounded: what is more goes with the next sync.
        var count = 0
        var bytes = 0
        while count < waiting.count, count == 0 || bytes < 4 << 20 {
            bytes += waiting[count].entries.reduce(0) { $0 + $1.cost }
            count += 1
        }
        let batch = Array(waiting[..<count])
        let box = self.box
        writer.submit {
            do throws(JournalError) {
                try box.journal.write(batch)
                return WriteOutcome.done(box.journal.needsMaintenance)
            } catch {
                if case .noSpace = error { return .full("\(error)") }
                return .failed("\(error)")
            }
        } then: { [weak self] outcome in
            self?.wrote(count, lastTicket: batch[count - 1].ticket, outcome)
        }
    }

    private func wrote(_ count: Int, lastTicket: UInt64, _ outcome: WriteOutcome) {
        isWriting = false
        switch outcome {
        case .done(let needsMaintenance):
            waiting.removeFirst(count)
            if isFull {
                isFull = false
                onLog?(.info, "the disk has space again; writing goes on")
                onInput?(.diskFull(false))
            }
            onInput?(.persisted(ticket: lastTicket))
            if !waiting.isEmpty { writeNext() } else if needsMaintenance { maintain() }
        case .full(let why):
            if !isFull {
                onLog?(.error, "\(why): nothing is acknowledged until there is space")
                onInput?(.diskFull(true))
            }
            isFull = true
            retryTimer.start(after: .seconds(1)) { [weak self] in self?.writeNext() }
        case .failed(let why):
            hasFailed = true
            onInput?(.storageFailed(why))
        }
    }

    /// Prepares the next segment while there is nothing to write; one bounded step, then whatever came meanwhile.
    private func maintain() {
        guard !isWriting, !hasFailed, waiting.isEmpty else { return }
        isWriting = true
        let box = self.box
        writer.submit { () -> Bool? in
            // A full disk is no failure of the journal: it is found out again by the next write.
            do throws(JournalError) { return try box.journal.maintain() } catch { return nil }
        } then: { [weak self] more in
            guard let self else { return }
            self.isWriting = false
            if !self.waiting.isEmpty { self.writeNext() } else if more ?? false { self.maintain() }
        }
    }

    /// The first entry of a new cluster.
    func found(_ request: PersistRequest) {
        let box = self.box
        writer.submit { () -> String? in
            do throws(JournalError) {
                try box.journal.write([request])
                return nil
            } catch {
                return "\(error)"
            }
        } then: { [weak self] failure in
            self?.onInput?(failure.map { .storageFailed($0) } ?? .founded)
        }
    }

    func persistPromise(_ promise: BootstrapPromise?) {
        let path = promisePath
        let bytes = promise?.encoded
        writer.submit { () -> String? in
            do throws(CoterieError) {
                if let bytes { try writeFileDurably(path, bytes, mode: 0o600) } else { try removeFileDurably(path) }
                return nil
            } catch {
                return error.message
            }
        } then: { [weak self] failure in
            self?.onInput?(failure.map { .storageFailed($0) } ?? .promisePersisted)
        }
    }

    func persistLineage(_ lineage: Lineage) {
        let path = lineagePath
        let bytes = LineageFile.encode(lineage)
        writer.submit { () -> String? in
            do throws(CoterieError) {
                try writeFileDurably(path, bytes, mode: 0o600)
                return nil
            } catch {
                return error.message
            }
        } then: { [weak self] failure in
            self?.onInput?(failure.map { .storageFailed($0) } ?? .lineagePersisted)
        }
    }

    // MARK: - Snapshots

    func makeSnapshot(_ metadata: SnapshotMetadata, _ image: StateImage) {
        let box = snapshots
        snapshotter.submit { () -> String? in
            do throws(JournalError) {
                var writer = try box.store.begin(metadata)
                try image.encode { (piece: [UInt8]) throws(JournalError) in try writer.append(piece) }
                _ = try writer.finish()
                try box.store.clean(keep: 2)
                return nil
            } catch {
                return "\(error)"
            }
        } then: { [weak self] failure in
            if let failure { self?.onLog?(.error, "no snapshot: \(failure)") }
            self?.onInput?(failure == nil ? .snapshotStored(metadata) : .snapshotFailed)
        }
    }

    /// Reads the next piece of the snapshot; nil if it is not there any more.
    func readSnapshot(_ send: SnapshotSend, then: @escaping (InstallSnapshot?) -> Void) {
        let box = snapshots
        snapshotter.submit { () -> InstallSnapshot? in
            guard let stored = try? box.store.newest().snapshot, stored.metadata == send.metadata,
                let data = try? box.store.readImage(stored, at: send.offset, count: 1 << 20), !data.isEmpty
            else { return nil }
            return InstallSnapshot(
                term: send.term, metadata: send.metadata, totalBytes: stored.imageBytes, checksum: stored.checksum,
                offset: send.offset, data: data)
        } then: {
            then($0)
        }
    }

    func storeChunk(_ chunk: InstallSnapshot) {
        let box = snapshots
        let position = chunk.metadata.position
        snapshotter.submit { () -> NodeInput in
            guard let next = try? box.store.receive(chunk) else { return .snapshotRejected(snapshot: position) }
            guard chunk.isLast else { return .snapshotChunkStored(snapshot: position, nextOffset: next) }
            var bytes: [UInt8] = []
            guard let stored = try? box.store.finishReceiving(),
                let whole = try? box.store.readData(stored, { bytes += $0 }), whole
            else {
                return .snapshotRejected(snapshot: position)
            }
            return .snapshotInstalled(stored.metadata, state: bytes)
        } then: { [weak self] input in
            self?.onInput?(input)
        }
    }

    /// Waits for what is being written, and closes.
    func close() {
        onInput = nil
        // What was asked for in this turn of the loop as well.
        writeNext()
        retryTimer.close()
        writer.stop()
        snapshotter.stop()
        box.journal.close()
    }
}
