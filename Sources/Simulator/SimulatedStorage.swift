// The storage of one simulated process: what `Node/Storage` does on its threads, step by step on virtual time. The journal and
// the snapshots are the real ones, over disks that lose what was not synced.
import Consensus
import Journal
import Model
import NodeCore

/// The disks of one machine: they outlive the process.
final class MachineDisks {
    let journal = SimulatedDisk()
    let snapshots = SimulatedDisk()
    /// Holds the bootstrap promise.
    let promises = SimulatedDisk()

    /// A journal was made here once: an empty directory is damage.
    var hasJournal = false

    /// Everything is gone: the directory of the node's data.
    func wipe() {
        for disk in [journal, snapshots, promises] { disk.wipe() }
        hasJournal = false
    }

    func crash(using generator: inout SeededGenerator) {
        journal.crash(using: &generator)
        snapshots.crash(using: &generator)
        promises.crash(using: &generator)
    }
}

final class SimulatedStorage {
    enum Thread: Int { case writer, snapshotter }

    private enum Work {
        /// Everything that waits when it begins: group commit.
        case persist
        case maintain
        case found(PersistRequest)
        case promise(BootstrapPromise?)
        case lineage(Lineage)
        case makeSnapshot(SnapshotMetadata, [UInt8])
        case readSnapshot(SnapshotSend)
        case storeChunk(InstallSnapshot)
    }

    /// What a finished piece of work leads to.
    enum Outcome {
        case input(NodeInput)
        case chunk(InstallSnapshot, to: NodeID)
        /// The disk is full: the write is tried again later.
        case retry
    }

    static let cluster: UInt64 = 1

    private let disks: MachineDisks
    private let chunkBytes: Int
    private var journal: Journal
    private var store: SnapshotStore
    private var queues: [[Work]] = [[], []]
    private var isRunning = [false, false]
    private var waiting: [PersistRequest] = []
    private var writing: [PersistRequest] = []
    private var isWriting = false
    private(set) var hasFailed = false
    /// The last batch of the log was half written when it was opened.
    private(set) var wasTorn = false
    /// The node does not have again what its disk lost.
    var isRecovering: Bool { journal.isRecovering }
    /// Entries, terms or votes are on their way to the disk.
    var isWritingLog: Bool {
        if isRunning[Thread.writer.rawValue], case .persist = queues[Thread.writer.rawValue].first {
            true
        } else {
            false
        }
    }
    /// Asks the world to call ``finish(_:)`` for this thread after a while.
    var onStart: ((Thread) -> Void)?

    /// What a journal of a simulated node is opened with.
    static func options(_ id: NodeID) -> JournalOptions {
        JournalOptions(
            segmentBytes: 16_384, maintenanceBytes: 8_192, identity: JournalIdentity(cluster: cluster, node: id))
    }

    /// Opens as `Storage.open` does; nil if the journal is damaged and nobody else has what is lost, so that the agent refuses to
    /// start. Throws a ``Violation`` if a crash alone left what can not be opened: `mayBeDamaged` says that something else
    /// happened to the journal, `maySnapshotsBe` to the snapshots.
    static func open(
        _ disks: MachineDisks, id: NodeID, chunkBytes: Int, mayBeDamaged: Bool = false, maySnapshotsBe: Bool = false
    ) throws -> (storage: SimulatedStorage, recovery: NodeRecovery)? {
        let store = SnapshotStore(disk: disks.snapshots, cluster: cluster)
        let (newest, damaged) = try store.newest()
        guard damaged.isEmpty || maySnapshotsBe else { throw Violation("a crash damaged the snapshots \(damaged)") }
        try store.clean(keep: 2, damaged: damaged)
        var state: [UInt8]?
        if let newest {
            var bytes: [UInt8] = []
            guard try store.readData(newest, { bytes += $0 }) else {
                throw Violation("the snapshot \(newest.name) is unreadable")
            }
            state = bytes
        }
        let opened = try Journal.open(
            disk: disks.journal, options: options(id), snapshot: newest?.metadata ?? .none, salvage: true,
            mayBeFresh: !disks.hasJournal)
        if case .damaged(let places) = opened.recovered.outcome {
            guard mayBeDamaged else { throw Violation("a crash was taken for damage: \(places.map(\.description))") }
            guard opened.recovered.isSalvaged else { return nil }
        }
        disks.hasJournal = true
        let log = opened.recovered.log
        let promise = try SimulatedStorage.readPromise(disks.promises)
        let isVirgin =
            newest == nil && log.entries.isEmpty && log.hardState.term == 0 && log.base == .zero && log.recovery == nil
        let storage = SimulatedStorage(disks, journal: opened.journal, store: store, chunkBytes: chunkBytes)
        if case .tornTail = opened.recovered.outcome { storage.wasTorn = true }
        let lineage = try readLineage(disks.promises)
        return (
            storage, NodeRecovery(log: log, isVirgin: isVirgin, promise: promise, state: state, lineage: lineage)
        )
    }

    private init(_ disks: MachineDisks, journal: Journal, store: SnapshotStore, chunkBytes: Int) {
        self.disks = disks
        self.journal = journal
        self.store = store
        self.chunkBytes = chunkBytes
    }

    // MARK: - Effects

    func persist(_ request: PersistRequest) {
        waiting.append(request)
        writeNext()
    }

    private func writeNext() {
        guard !isWriting, !hasFailed, !waiting.isEmpty else { return }
        isWriting = true
        submit(.persist, on: .writer)
    }

    func found(_ request: PersistRequest) { submit(.found(request), on: .writer) }
    func persistPromise(_ promise: BootstrapPromise?) { submit(.promise(promise), on: .writer) }
    func persistLineage(_ lineage: Lineage) { submit(.lineage(lineage), on: .writer) }
    func makeSnapshot(_ metadata: SnapshotMetadata, _ state: [UInt8]) {
        submit(.makeSnapshot(metadata, state), on: .snapshotter)
    }
    func readSnapshot(_ send: SnapshotSend) { submit(.readSnapshot(send), on: .snapshotter) }
    func storeChunk(_ chunk: InstallSnapshot) { submit(.storeChunk(chunk), on: .snapshotter) }

    private func submit(_ work: Work, on thread: Thread) {
        queues[thread.rawValue].append(work)
        start(thread)
    }

    private func start(_ thread: Thread) {
        guard !isRunning[thread.rawValue], let next = queues[thread.rawValue].first else { return }
        isRunning[thread.rawValue] = true
        if case .persist = next { writing = waiting }
        onStart?(thread)
    }

    /// The time that the running work took is over: it is done now.
    func finish(_ thread: Thread) -> [Outcome] {
        guard isRunning[thread.rawValue], !queues[thread.rawValue].isEmpty else { return [] }
        isRunning[thread.rawValue] = false
        let work = queues[thread.rawValue].removeFirst()
        let outcomes = perform(work)
        start(thread)
        return outcomes
    }

    /// After a full disk.
    func retry() {
        isWriting = false
        writeNext()
    }

    private func perform(_ work: Work) -> [Outcome] {
        switch work {
        case .persist:
            let batch = writing
            writing = []
            do throws(JournalError) {
                try journal.write(batch)
            } catch {
                if case .noSpace = error { return [.retry] }
                isWriting = false
                hasFailed = true
                return [.input(.storageFailed("\(error)"))]
            }
            waiting.removeFirst(batch.count)
            isWriting = false
            if waiting.isEmpty {
                isWriting = true
                submit(.maintain, on: .writer)
            } else {
                writeNext()
            }
            return batch.last.map { [.input(.persisted(ticket: $0.ticket))] } ?? []
        case .maintain:
            isWriting = false
            let more = (try? journal.maintain()) ?? false
            if !waiting.isEmpty {
                writeNext()
            } else if more {
                isWriting = true
                submit(.maintain, on: .writer)
            }
            return []
        case .found(let request):
            do throws(JournalError) {
                try journal.write([request])
                return [.input(.founded)]
            } catch {
                hasFailed = true
                return [.input(.storageFailed("\(error)"))]
            }
        case .promise(let promise):
            do throws(DiskError) {
                try SimulatedStorage.writePromise(promise, disks.promises)
                return [.input(.promisePersisted)]
            } catch {
                hasFailed = true
                return [.input(.storageFailed("\(error)"))]
            }
        case .lineage(let lineage):
            do throws(DiskError) {
                try SimulatedStorage.replace(
                    SimulatedStorage.lineageName, String(lineage.rawValue).utf8.map { $0 }, disks.promises)
                return [.input(.lineagePersisted)]
            } catch {
                hasFailed = true
                return [.input(.storageFailed("\(error)"))]
            }
        case .makeSnapshot(let metadata, let state):
            return [.input(save(metadata, state) ? .snapshotStored(metadata) : .snapshotFailed)]
        case .readSnapshot(let send):
            guard let stored = try? store.newest().snapshot, stored.metadata == send.metadata,
                let data = try? store.readImage(stored, at: send.offset, count: chunkBytes), !data.isEmpty
            else { return [.input(.snapshotSendFailed(to: send.to))] }
            let chunk = InstallSnapshot(
                term: send.term, metadata: send.metadata, totalBytes: stored.imageBytes, checksum: stored.checksum,
                offset: send.offset, data: data)
            return [.chunk(chunk, to: send.to)]
        case .storeChunk(let chunk): return [.input(store(chunk))]
        }
    }

    private func save(_ metadata: SnapshotMetadata, _ state: [UInt8]) -> Bool {
        do throws(JournalError) {
            var writer = try store.begin(metadata)
            try writer.append(state)
            _ = try writer.finish()
            try store.clean(keep: 2)
            return true
        } catch {
            return false
        }
    }

    private func store(_ chunk: InstallSnapshot) -> NodeInput {
        let position = chunk.metadata.position
        guard let next = try? store.receive(chunk) else { return .snapshotRejected(snapshot: position) }
        guard chunk.isLast else { return .snapshotChunkStored(snapshot: position, nextOffset: next) }
        var bytes: [UInt8] = []
        guard let stored = try? store.finishReceiving(), let whole = try? store.readData(stored, { bytes += $0 }), whole
        else {
            return .snapshotRejected(snapshot: position)
        }
        return .snapshotInstalled(stored.metadata, state: bytes)
    }

    // MARK: - Crash

    /// The process dies; what its threads were doing is done in part. `midWrite`: the first write is not wholly synced.
    func crash(using generator: inout SeededGenerator, midWrite: Bool = false) {
        onStart = nil
        for (thread, disk) in [(Thread.writer, disks.journal), (.snapshotter, disks.snapshots)]
        where isRunning[thread.rawValue] {
            guard let work = queues[thread.rawValue].first else { continue }
            let stop = 1 + Int(generator.next() % (midWrite ? 2 : 5))
            switch work {
            case .promise, .lineage: disks.promises.stopAfter = disks.promises.operations + stop
            case .persist, .maintain, .found, .makeSnapshot, .readSnapshot, .storeChunk:
                disk.stopAfter = disk.operations + stop
            }
            _ = perform(work)
        }
    }

    // MARK: - Promise

    private static let promiseName = "promise"
    private static let lineageName = "lineage"

    private static func readLineage(_ disk: SimulatedDisk) throws -> Lineage {
        guard let bytes = disk.contents(lineageName) else { return .original }
        guard let value = UInt64(String(decoding: bytes, as: UTF8.self)) else {
            throw Violation("a crash damaged the lineage")
        }
        return Lineage(rawValue: value)
    }

    private static func writePromise(_ promise: BootstrapPromise?, _ disk: SimulatedDisk) throws(DiskError) {
        guard let promise else {
            try disk.remove(promiseName)
            return try disk.syncDirectory()
        }
        try replace(promiseName, promise.encoded, disk)
    }

    /// As `writeFileDurably` does.
    private static func replace(_ name: String, _ bytes: [UInt8], _ disk: SimulatedDisk) throws(DiskError) {
        let temporary = name + ".new"
        let file = try disk.open(temporary, .create)
        do throws(DiskError) {
            try write(bytes, to: file, on: disk)
            try disk.sync(file)
        } catch {
            disk.close(file)
            throw error
        }
        disk.close(file)
        try disk.rename(temporary, to: name)
        try disk.syncDirectory()
    }

    private static func write(_ bytes: [UInt8], to file: DiskFile, on disk: SimulatedDisk) throws(DiskError) {
        let result: Result<Void, DiskError> = bytes.withUnsafeBytes { buffer in
            do throws(DiskError) { return .success(try disk.write(file, at: 0, buffer)) } catch {
                return .failure(error)
            }
        }
        try result.get()
    }

    /// What a crash now would surely leave.
    static func durablePromise(_ disk: SimulatedDisk) throws -> BootstrapPromise? {
        try disk.durableContents(promiseName).map { try BootstrapPromise(decoding: $0) }
    }

    static func readPromise(_ disk: SimulatedDisk) throws -> BootstrapPromise? {
        guard let bytes = disk.contents(promiseName) else { return nil }
        do { return try BootstrapPromise(decoding: bytes) } catch {
            throw Violation("a crash damaged the promise: \(error)")
        }
    }
}
