import Consensus
import Model
import Wire

// What `coterie snapshot save` writes: the replicated state in a file that says of itself whose it is. Its chunks and trailer
// are those of a stored snapshot; the header has more, for it must be understood without a node.
//
//     0 magic u64 | 8 version u32 | 12 CRC u32 of all that follows of the header | 16 length u32 of the rest of the header |
//     20 cluster string | lineage u64 | index u64 | term u64 | saved u64 (milliseconds since 1970) | node string |
//        program version string | configuration, counted
//     chunks   length u32 (not 0) | CRC u32 of the data | data           as many as there are
//     trailer  0 u32 | chunks u32 | data bytes u64 | CRC u32 of all data | CRC u32 of the trailer before it

/// What the file says about itself.
public struct StateFileHeader: Hashable, Sendable {
    public var cluster: String
    public var lineage: UInt64
    public var metadata: SnapshotMetadata
    /// Milliseconds since 1970.
    public var savedAt: UInt64
    /// The node that was asked, and its version.
    public var node: String
    public var version: String

    public init(
        cluster: String, lineage: UInt64, metadata: SnapshotMetadata, savedAt: UInt64, node: String, version: String
    ) {
        self.cluster = cluster
        self.lineage = lineage
        self.metadata = metadata
        self.savedAt = savedAt
        self.node = node
        self.version = version
    }
}

/// Why a file can not be used.
public enum StateFileError: Error, Hashable, Sendable, CustomStringConvertible {
    case disk(DiskError)
    /// Not such a file at all.
    case unknownFormat
    case version(UInt32)
    case damaged(offset: UInt64, what: String)

    public var description: String {
        switch self {
        case .disk(let error): "\(error)"
        case .unknownFormat: "it is not a snapshot that coterie snapshot save wrote"
        case .version(let version): "its format version is \(version), and \(StateFile.version) is known here"
        case .damaged(let offset, let what): "it is damaged at byte \(offset): \(what)"
        }
    }
}

public enum StateFile {
    static let magic: UInt64 = 0x3145_5641_5354_4F43
    public static let version: UInt32 = 1
    static let fixedBytes = 20
    static let trailerBytes = 24
    static let maxHeaderBytes = 1 << 20
    static let chunkBytes = 1 << 20
    static let maxChunkBytes = 4 << 20

    /// Writes beside `name`, syncs, renames, syncs the directory: under its name the file is whole.
    public static func write(_ header: StateFileHeader, state: [UInt8], to name: String, on disk: any Disk)
        throws(DiskError)
    {
        let temporary = name + ".new"
        let file = try disk.open(temporary, .create)
        do throws(DiskError) {
            try write(header, state, to: file, on: disk)
            try disk.sync(file)
        } catch {
            disk.close(file)
            // What failed is what is told; the rest of it is in nobody's way.
            try? disk.remove(temporary)
            throw error
        }
        disk.close(file)
        try disk.rename(temporary, to: name)
        try disk.syncDirectory()
    }

    private static func write(_ header: StateFileHeader, _ state: [UInt8], to file: DiskFile, on disk: any Disk)
        throws(DiskError)
    {
        let head = encode(header)
        try disk.write(file, at: 0, head)
        var offset = UInt64(head.count)
        var start = 0
        var chunks: UInt32 = 0
        while start < state.count {
            let piece = state[start..<min(start + chunkBytes, state.count)]
            var chunk = ByteWriter(capacity: piece.count + 8)
            chunk.u32(UInt32(piece.count))
            chunk.u32(CRC32C.checksum(piece))
            chunk.raw(piece)
            try disk.write(file, at: offset, chunk.bytes)
            offset += UInt64(piece.count + 8)
            start += piece.count
            chunks += 1
        }
        var trailer = ByteWriter(capacity: trailerBytes)
        trailer.u32(0)
        trailer.u32(chunks)
        trailer.u64(UInt64(state.count))
        trailer.u32(CRC32C.checksum(state))
        trailer.u32(CRC32C.checksum(trailer.bytes))
        try disk.write(file, at: offset, trailer.bytes)
    }

    static func encode(_ header: StateFileHeader) -> [UInt8] {
        var rest = ByteWriter()
        rest.string(header.cluster)
        rest.u64(header.lineage)
        rest.u64(header.metadata.index)
        rest.u64(header.metadata.term)
        rest.u64(header.savedAt)
        rest.string(header.node)
        rest.string(header.version)
        rest.slice(header.metadata.configuration.encoded)
        var length = ByteWriter()
        length.u32(UInt32(rest.count))
        var head = ByteWriter()
        head.u64(magic)
        head.u32(version)
        head.u32(CRC32C.checksum(rest.bytes, continuing: CRC32C.checksum(length.bytes)))
        head.raw(length.bytes)
        head.raw(rest.bytes)
        return head.bytes
    }

    /// Reads and checks every byte; nothing of a file that does not check out is handed out.
    public static func read(_ name: String, on disk: any Disk) throws(StateFileError) -> (
        header: StateFileHeader, state: [UInt8]
    ) {
        let source = try Source(name, disk)
        defer { source.close() }
        let (header, start) = try readHeader(source)
        var state: [UInt8] = []
        var offset = start
        var chunks: UInt32 = 0
        while true {
            let head = try source.bytes(at: offset, count: 8, "a chunk's head")
            let (length, crc) = head.withUnsafeBytes { (Int($0.u32(0)), $0.u32(4)) }
            if length == 0 { break }
            guard length <= maxChunkBytes else { throw .damaged(offset: offset, what: "a chunk of \(length) bytes") }
            let data = try source.bytes(at: offset + 8, count: length, "a chunk")
            guard CRC32C.checksum(data) == crc else { throw .damaged(offset: offset, what: "checksum of a chunk") }
            state += data
            chunks += 1
            offset += 8 + UInt64(length)
        }
        let trailer = try source.bytes(at: offset, count: trailerBytes, "the trailer")
        guard CRC32C.checksum(trailer[..<20]) == trailer.withUnsafeBytes({ $0.u32(20) }) else {
            throw .damaged(offset: offset, what: "checksum of the trailer")
        }
        let matches = trailer.withUnsafeBytes { $0.u32(4) == chunks && $0.u64(8) == UInt64(state.count) }
        guard matches, trailer.withUnsafeBytes({ $0.u32(16) }) == CRC32C.checksum(state) else {
            throw .damaged(offset: offset, what: "the trailer does not fit what precedes it")
        }
        guard offset + UInt64(trailerBytes) == source.size else {
            throw .damaged(offset: offset + UInt64(trailerBytes), what: "something follows the trailer")
        }
        return (header, state)
    }

    private static func readHeader(_ source: Source) throws(StateFileError) -> (StateFileHeader, UInt64) {
        guard source.size >= 8 else { throw .unknownFormat }
        let start = try source.bytes(at: 0, count: 8, "the header")
        guard start.withUnsafeBytes({ $0.u64(0) }) == magic else { throw .unknownFormat }
        let fixed = try source.bytes(at: 0, count: fixedBytes, "the header")
        let (found, crc, length) = fixed.withUnsafeBytes { ($0.u32(8), $0.u32(12), Int($0.u32(16))) }
        guard found == version else { throw .version(found) }
        guard length <= maxHeaderBytes else { throw .damaged(offset: 16, what: "a header of \(length) bytes") }
        let rest = try source.bytes(at: UInt64(fixedBytes), count: length, "the header")
        guard crc == CRC32C.checksum(rest, continuing: CRC32C.checksum(fixed[16...])) else {
            throw .damaged(offset: 0, what: "checksum of the header")
        }
        do throws(WireError) {
            var reader = ByteReader(rest)
            let cluster = try reader.string(max: 4_096)
            let lineage = try reader.u64()
            let (index, term) = (try reader.u64(), try reader.u64())
            let savedAt = try reader.u64()
            let (node, program) = (try reader.string(max: 4_096), try reader.string(max: 4_096))
            let configuration = try RaftConfiguration(decoding: try reader.array(max: maxHeaderBytes))
            try reader.finish()
            let metadata = SnapshotMetadata(index: index, term: term, configuration: configuration)
            let header = StateFileHeader(
                cluster: cluster, lineage: lineage, metadata: metadata, savedAt: savedAt, node: node, version: program)
            return (header, UInt64(fixedBytes + length))
        } catch {
            throw .damaged(offset: UInt64(fixedBytes), what: "the header: \(error)")
        }
    }

    /// An open file whose size is known, so that no length in it asks for more memory than there are bytes.
    private struct Source {
        let disk: any Disk
        let file: DiskFile
        let size: UInt64

        init(_ name: String, _ disk: any Disk) throws(StateFileError) {
            self.disk = disk
            do throws(DiskError) {
                file = try disk.open(name, .readOnly)
                size = try disk.size(file)
            } catch {
                throw .disk(error)
            }
        }

        func close() { disk.close(file) }

        func bytes(at offset: UInt64, count: Int, _ what: String) throws(StateFileError) -> [UInt8] {
            guard offset + UInt64(count) <= size else { throw .damaged(offset: offset, what: "\(what) is cut short") }
            do throws(DiskError) { return try disk.read(file, at: offset, count: count) } catch { throw .disk(error) }
        }
    }
}
