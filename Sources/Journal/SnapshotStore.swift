import Consensus
import Model
import Wire

// Snapshot files in a directory of their own. A snapshot is written under a temporary name, synced, renamed, and the
// directory is synced: under its final name it is always whole. The same bytes travel to a follower, so that the
// checksums made where the snapshot was made are checked where it arrives.
//
//     header   magic u64 | version u32 | CRC u32 of the rest of the header | index u64 | term u64 | cluster u64 |
//              configuration length u32 | configuration
//     chunks   length u32 (not 0) | CRC u32 of the data | data           as many as there are
//     trailer  0 u32 | chunks u32 | data bytes u64 | CRC u32 of all data | CRC u32 of the trailer before it

/// One stored snapshot.
public struct StoredSnapshot: Hashable, Sendable {
    public var metadata: SnapshotMetadata
    /// Of the image: the file as it is.
    public var imageBytes: UInt64
    /// From the trailer: tells images apart when a transfer resumes.
    public var checksum: UInt32
    public var name: String
}

/// Reads and writes the snapshots of one node. For one thread, like ``Journal``.
public struct SnapshotStore: Sendable {
    static let magic: UInt64 = 0x3150_414E_5354_4F43
    static let version: UInt32 = 1
    static let trailerBytes = 24
    static let fixedHeaderBytes = 44
    static let maxConfigurationBytes = 1 << 20
    static let incomingName = "incoming.tmp"
    static let outgoingName = "making.tmp"
    /// Largest chunk of data that one checksum covers.
    public static let maxChunkBytes = 4 << 20

    let disk: any Disk
    public let cluster: UInt64
    private var incoming: Incoming?

    private struct Incoming: Sendable {
        var file: DiskFile
        var metadata: SnapshotMetadata
        var totalBytes: UInt64
        var nextOffset: UInt64
    }

    public init(disk: any Disk, cluster: UInt64) {
        self.disk = disk
        self.cluster = cluster
    }

    static func name(_ position: LogPosition) -> String {
        "snapshot-\(hexadecimal(position.index))-\(hexadecimal(position.term)).snap"
    }

    static func parse(_ name: String) -> LogPosition? {
        let parts = name.split(separator: "-", omittingEmptySubsequences: false)
        guard parts.count == 3, parts[0] == "snapshot", parts[1].utf8.count == 16, parts[2].hasSuffix(".snap"),
            parts[2].utf8.count == 21, let index = UInt64(parts[1], radix: 16),
            let term = UInt64(parts[2].dropLast(5), radix: 16)
        else { return nil }
        return LogPosition(index: index, term: term)
    }

    // MARK: Finding and reading

    /// The newest snapshot that checks out from the first byte to the last, and the names of newer ones that do not.
    public func newest() throws(JournalError) -> (snapshot: StoredSnapshot?, damaged: [String]) {
        try newest { _, _ in }
    }

    /// The same, with its data: the file is read once.
    public func load() throws(JournalError) -> (snapshot: StoredSnapshot?, data: [UInt8], damaged: [String]) {
        var data: [UInt8] = []
        let (snapshot, damaged) = try newest { chunk, fileBytes in
            guard let chunk else { return data = [] }
            if data.isEmpty { data.reserveCapacity(fileBytes) }
            data += chunk
        }
        return (snapshot, data, damaged)
    }

    /// `visit` gets the chunks of each file that is looked at, and the file's size; before each file, nil.
    private func newest(_ visit: ([UInt8]?, Int) -> Void) throws(JournalError) -> (
        snapshot: StoredSnapshot?, damaged: [String]
    ) {
        var damaged: [String] = []
        do throws(DiskError) {
            var found: [(LogPosition, String)] = []
            for name in try disk.list() {
                if let position = SnapshotStore.parse(name) { found.append((position, name)) }
            }
            for (position, name) in found.sorted(by: { $0.0.index > $1.0.index }) {
                visit(nil, 0)
                if let snapshot = try check(name, visit: visit), snapshot.metadata.position == position {
                    return (snapshot, damaged)
                }
                damaged.append(name)
            }
        } catch {
            throw .failed(error)
        }
        visit(nil, 0)
        return (nil, damaged)
    }

    /// Reads and checks a whole file; nil if it is not a whole snapshot of this cluster. `visit` gets the data in chunks, and the
    /// size of the file.
    private func check(_ name: String, visit: ([UInt8]?, Int) -> Void = { _, _ in }) throws(DiskError)
        -> StoredSnapshot?
    {
        let file = try disk.open(name, .readOnly)
        defer { disk.close(file) }
        let size = try disk.size(file)
        guard let (metadata, start) = try header(file) else { return nil }
        var offset = start
        var data: UInt64 = 0
        var chunks: UInt32 = 0
        var crc: UInt32 = 0
        while true {
            let head = try disk.read(file, at: offset, count: 8)
            guard head.count == 8 else { return nil }
            let length = Int(head.withUnsafeBytes { $0.u32(0) })
            if length == 0 { break }
            guard length <= SnapshotStore.maxChunkBytes else { return nil }
            let chunk = try disk.read(file, at: offset + 8, count: length)
            guard chunk.count == length, CRC32C.checksum(chunk) == head.withUnsafeBytes({ $0.u32(4) }) else {
                return nil
            }
            crc = CRC32C.checksum(chunk, continuing: crc)
            visit(chunk, Int(clamping: size))
            data += UInt64(length)
            chunks += 1
            offset += 8 + UInt64(length)
        }
        let trailer = try disk.read(file, at: offset, count: SnapshotStore.trailerBytes)
        guard trailer.count == SnapshotStore.trailerBytes, offset + UInt64(SnapshotStore.trailerBytes) == size else {
            return nil
        }
        let matches = trailer.withUnsafeBytes {
            $0.u32(4) == chunks && $0.u64(8) == data && $0.u32(16) == crc
        }
        let own = CRC32C.checksum(trailer[..<20])
        guard matches, own == trailer.withUnsafeBytes({ $0.u32(20) }) else { return nil }
        return StoredSnapshot(metadata: metadata, imageBytes: size, checksum: own, name: name)
    }

    private func header(_ file: DiskFile) throws(DiskError) -> (SnapshotMetadata, UInt64)? {
        let fixed = try disk.read(file, at: 0, count: SnapshotStore.fixedHeaderBytes)
        guard fixed.count == SnapshotStore.fixedHeaderBytes else { return nil }
        let (magic, version, crc, index, term, cluster, length) = fixed.withUnsafeBytes {
            ($0.u64(0), $0.u32(8), $0.u32(12), $0.u64(16), $0.u64(24), $0.u64(32), Int($0.u32(40)))
        }
        guard magic == SnapshotStore.magic, version == SnapshotStore.version, cluster == self.cluster,
            length <= SnapshotStore.maxConfigurationBytes
        else { return nil }
        let bytes = try disk.read(file, at: UInt64(SnapshotStore.fixedHeaderBytes), count: length)
        guard bytes.count == length, crc == CRC32C.checksum(bytes, continuing: CRC32C.checksum(fixed[16...])),
            let configuration = try? RaftConfiguration(decoding: bytes)
        else { return nil }
        let metadata = SnapshotMetadata(index: index, term: term, configuration: configuration)
        return (metadata, UInt64(SnapshotStore.fixedHeaderBytes + length))
    }

    /// Hands out the data of a snapshot in order, and says whether all of it checked out.
    public func readData(_ snapshot: StoredSnapshot, _ visit: ([UInt8]) -> Void) throws(JournalError) -> Bool {
        do throws(DiskError) {
            return try check(snapshot.name, visit: { chunk, _ in if let chunk { visit(chunk) } }) == snapshot
        } catch {
            throw .failed(error)
        }
    }

    /// A piece of the image, for sending. Shorter than `count` only at the end.
    public func readImage(_ snapshot: StoredSnapshot, at offset: UInt64, count: Int) throws(JournalError) -> [UInt8] {
        do throws(DiskError) {
            let file = try disk.open(snapshot.name, .readOnly)
            defer { disk.close(file) }
            return try disk.read(file, at: offset, count: count)
        } catch {
            throw .failed(error)
        }
    }

    // MARK: Making

    /// Begins a snapshot under a temporary name; a second one replaces it.
    public func begin(_ metadata: SnapshotMetadata) throws(JournalError) -> SnapshotWriter {
        try SnapshotWriter(self, metadata)
    }

    // MARK: Receiving

    /// Takes a chunk of a snapshot from a leader; returns how many bytes are there. Offset 0 begins anew. Nil: the chunk does
    /// not continue what is there.
    public mutating func receive(_ chunk: InstallSnapshot) throws(JournalError) -> UInt64? {
        do throws(DiskError) {
            if chunk.offset == 0 {
                abandonIncoming()
                let file = try disk.open(SnapshotStore.incomingName, .create)
                incoming = Incoming(file: file, metadata: chunk.metadata, totalBytes: chunk.totalBytes, nextOffset: 0)
            }
            guard let current = incoming, current.metadata == chunk.metadata, current.totalBytes == chunk.totalBytes,
                current.nextOffset == chunk.offset
            else { return nil }
            try disk.write(current.file, at: chunk.offset, chunk.data)
            let next = chunk.offset + UInt64(chunk.data.count)
            incoming?.nextOffset = next
            return next
        } catch {
            abandonIncoming()
            throw error.kind == .noSpace ? .noSpace(error) : .failed(error)
        }
    }

    /// After the last chunk: checks everything, makes it durable under its name. Nil: it does not check out and is removed.
    public mutating func finishReceiving() throws(JournalError) -> StoredSnapshot? {
        guard let current = incoming else { return nil }
        incoming = nil
        do throws(DiskError) {
            let synced: Result<Void, DiskError>
            do throws(DiskError) {
                try disk.sync(current.file)
                synced = .success(())
            } catch {
                synced = .failure(error)
            }
            disk.close(current.file)
            try synced.get()
            guard var stored = try check(SnapshotStore.incomingName), stored.metadata == current.metadata else {
                try disk.remove(SnapshotStore.incomingName)
                return nil
            }
            stored.name = SnapshotStore.name(stored.metadata.position)
            try disk.rename(SnapshotStore.incomingName, to: stored.name)
            try disk.syncDirectory()
            return stored
        } catch {
            throw error.kind == .noSpace ? .noSpace(error) : .failed(error)
        }
    }

    private mutating func abandonIncoming() {
        if let incoming { disk.close(incoming.file) }
        incoming = nil
    }

    /// Removes temporary files and all snapshots but the `keep` newest. Those in `damaged` do not count and stay: else they could
    /// take the place of the one that is whole.
    public func clean(keep: Int, damaged: [String] = []) throws(JournalError) {
        do throws(DiskError) {
            var found: [(LogPosition, String)] = []
            for name in try disk.list() {
                if let position = SnapshotStore.parse(name), !damaged.contains(name) { found.append((position, name)) }
                if name == SnapshotStore.outgoingName { try disk.remove(name) }
                if name == SnapshotStore.incomingName && incoming == nil { try disk.remove(name) }
            }
            found.sort { $0.0.index > $1.0.index }
            for (_, name) in found.dropFirst(max(keep, 1)) { try disk.remove(name) }
            try disk.syncDirectory()
        } catch {
            throw .failed(error)
        }
    }
}

/// Writes one snapshot, piece by piece, so that no copy of the state has to be in memory. Call ``append(_:)`` with pieces of
/// any size, then ``finish()``; without it nothing remains but a temporary file.
public struct SnapshotWriter: Sendable {
    private let disk: any Disk
    private let file: DiskFile
    public let metadata: SnapshotMetadata
    private var offset: UInt64 = 0
    private var dataBytes: UInt64 = 0
    private var chunks: UInt32 = 0
    private var crc: UInt32 = 0

    fileprivate init(_ store: SnapshotStore, _ metadata: SnapshotMetadata) throws(JournalError) {
        disk = store.disk
        self.metadata = metadata
        let configuration = metadata.configuration.encoded
        var rest = ByteWriter()
        rest.u64(metadata.index)
        rest.u64(metadata.term)
        rest.u64(store.cluster)
        rest.u32(UInt32(configuration.count))
        rest.raw(configuration)
        var header = ByteWriter()
        header.u64(SnapshotStore.magic)
        header.u32(SnapshotStore.version)
        header.u32(CRC32C.checksum(rest.bytes))
        header.raw(rest.bytes)
        do throws(DiskError) {
            file = try disk.open(SnapshotStore.outgoingName, .create)
        } catch {
            throw SnapshotWriter.mapped(error)
        }
        try put(header.bytes)
    }

    private static func mapped(_ error: DiskError) -> JournalError {
        error.kind == .noSpace ? .noSpace(error) : .failed(error)
    }

    private mutating func put(_ bytes: [UInt8]) throws(JournalError) {
        do throws(DiskError) {
            try disk.write(file, at: offset, bytes)
        } catch {
            disk.close(file)
            throw SnapshotWriter.mapped(error)
        }
        offset += UInt64(bytes.count)
    }

    /// After an error the writer is closed.
    public mutating func append(_ data: [UInt8]) throws(JournalError) {
        var start = 0
        while start < data.count {
            let piece = data[start..<min(start + SnapshotStore.maxChunkBytes, data.count)]
            var chunk = ByteWriter(capacity: piece.count + 8)
            chunk.u32(UInt32(piece.count))
            chunk.u32(CRC32C.checksum(piece))
            chunk.raw(piece)
            try put(chunk.bytes)
            crc = CRC32C.checksum(piece, continuing: crc)
            dataBytes += UInt64(piece.count)
            chunks += 1
            start += piece.count
        }
    }

    /// Durable when it returns.
    public mutating func finish() throws(JournalError) -> StoredSnapshot {
        var trailer = ByteWriter(capacity: SnapshotStore.trailerBytes)
        trailer.u32(0)
        trailer.u32(chunks)
        trailer.u64(dataBytes)
        trailer.u32(crc)
        let own = CRC32C.checksum(trailer.bytes)
        trailer.u32(own)
        try put(trailer.bytes)
        let name = SnapshotStore.name(metadata.position)
        do throws(DiskError) {
            let synced: Result<Void, DiskError>
            do throws(DiskError) {
                try disk.sync(file)
                synced = .success(())
            } catch {
                synced = .failure(error)
            }
            disk.close(file)
            try synced.get()
            try disk.rename(SnapshotStore.outgoingName, to: name)
            try disk.syncDirectory()
        } catch {
            throw SnapshotWriter.mapped(error)
        }
        return StoredSnapshot(metadata: metadata, imageBytes: offset, checksum: own, name: name)
    }
}
