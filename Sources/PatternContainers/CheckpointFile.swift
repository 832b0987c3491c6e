// How far each input file has been dealt with, kept across restarts. Slots of fixed size are overwritten in place by one
// system call, so that saving after every batch is cheap and a killed process leaves each slot old or new; a slot torn by a
// machine's crash fails its checksum and counts as absent (the file is then read again).
//
//     header 16 bytes: "CTCP" version u32 reserved u64
//     slot 512 bytes:  CRC32C u32 of the rest | length u32 | payload
import Glibc
import Model
import Wire

/// A file as the kernel knows it. Inode numbers are used again, so a checkpoint also keeps a print of the file's first
/// bytes (a stale checkpoint that matches a new file by its number loses that file's beginning in silence).
struct FileIdentity: Hashable {
    var device: UInt64
    var inode: UInt64
}

struct Checkpoint: Equatable {
    var file: FileIdentity
    /// Bytes from the start that need not be read again.
    var offset: UInt64
    /// CRC32C of the first `headLength` bytes.
    var headLength: UInt32
    var headChecksum: UInt32
    /// Lines before `offset`.
    var line: UInt64 = 0
    /// The output that belongs to it, and how long it was when `offset` was reached.
    var output = FileIdentity(device: 0, inode: 0)
    var outputOffset: UInt64 = 0
    /// Modification time in nanoseconds, where whole files are dealt with.
    var modified: UInt64 = 0
    /// The output's name, or the log's.
    var name: String

    fileprivate func encode() -> [UInt8] {
        var writer = ByteWriter(capacity: 512)
        writer.u64(file.device)
        writer.u64(file.inode)
        writer.u64(offset)
        writer.u32(headLength)
        writer.u32(headChecksum)
        writer.u64(line)
        writer.u64(output.device)
        writer.u64(output.inode)
        writer.u64(outputOffset)
        writer.u64(modified)
        writer.string(name)
        return writer.bytes
    }

    fileprivate init?(decoding bytes: ArraySlice<UInt8>) {
        var reader = ByteReader(bytes)
        do throws(WireError) {
            file = FileIdentity(device: try reader.u64(), inode: try reader.u64())
            offset = try reader.u64()
            headLength = try reader.u32()
            headChecksum = try reader.u32()
            line = try reader.u64()
            output = FileIdentity(device: try reader.u64(), inode: try reader.u64())
            outputOffset = try reader.u64()
            modified = try reader.u64()
            name = try reader.string(max: 400)
            try reader.finish()
        } catch {
            return nil
        }
    }

    init(file: FileIdentity, offset: UInt64, headLength: UInt32, headChecksum: UInt32, name: String) {
        self.file = file
        self.offset = offset
        self.headLength = headLength
        self.headChecksum = headChecksum
        self.name = name
    }

    /// Bytes of a file's head that identify it.
    static let headBytes = 256

    /// The print of an open file's first `length` bytes; nil if it has fewer.
    static func headChecksum(_ descriptor: Int32, length: Int) -> UInt32? {
        var bytes = [UInt8](repeating: 0, count: length)
        let n = bytes.withUnsafeMutableBytes { pread(descriptor, $0.baseAddress, length, 0) }
        return n == length ? CRC32C.checksum(bytes) : nil
    }
}

/// The checkpoints of one target or adapter, in memory and, if it has a path, on disk.
final class CheckpointFile {
    private static let magic: [UInt8] = Array("CTCP".utf8) + [1, 0, 0, 0] + Array(repeating: 0, count: 8)
    private static let slotBytes = 512
    static let slotLimit = 65_536

    private(set) var checkpoints: [FileIdentity: Checkpoint] = [:]
    private var slots: [FileIdentity: Int] = [:]
    private var free: [Int] = []
    private var slotCount = 0
    private let descriptor: Int32
    private let path: String

    /// Nil for memory only. A file that is there and not ours is refused.
    init(path: String?) throws(CoterieError) {
        self.path = path ?? ""
        guard let path else {
            descriptor = -1
            return
        }
        let descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else {
            throw CoterieError(.failed, "cannot open \(path): \(String(cString: strerror(errno)))")
        }
        self.descriptor = descriptor
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
            throw CoterieError(.failed, "\(path) is in use by another process", hint: "give each its own directory")
        }
        var info = stat()
        guard fstat(descriptor, &info) == 0, info.st_mode & S_IFMT == S_IFREG else {
            throw CoterieError(.badInput, "\(path) is not a regular file")
        }
        let size = Int(info.st_size)
        if size == 0 {
            guard CheckpointFile.magic.withUnsafeBytes({ pwrite(descriptor, $0.baseAddress, $0.count, 0) }) == 16 else {
                throw CoterieError(.failed, "cannot write \(path): \(String(cString: strerror(errno)))")
            }
            return
        }
        guard size <= 16 + CheckpointFile.slotLimit * CheckpointFile.slotBytes else {
            throw CoterieError(.tooLarge, "\(path) is too large")
        }
        var bytes = [UInt8](repeating: 0, count: size)
        guard bytes.withUnsafeMutableBytes({ pread(descriptor, $0.baseAddress, size, 0) }) == size,
            bytes.starts(with: CheckpointFile.magic)
        else {
            throw CoterieError(
                .badInput, "\(path) is not a checkpoint file of this version", hint: "remove it to start anew")
        }
        slotCount = (size - 16) / CheckpointFile.slotBytes
        for slot in 0..<slotCount {
            let start = 16 + slot * CheckpointFile.slotBytes
            guard let checkpoint = CheckpointFile.decode(bytes[start..<start + CheckpointFile.slotBytes]),
                checkpoints[checkpoint.file] == nil
            else {
                free.append(slot)
                continue
            }
            checkpoints[checkpoint.file] = checkpoint
            slots[checkpoint.file] = slot
        }
    }

    deinit { if descriptor >= 0 { close(descriptor) } }

    private static func decode(_ slot: ArraySlice<UInt8>) -> Checkpoint? {
        var reader = ByteReader(slot)
        guard let crc = try? reader.u32(), crc == CRC32C.checksum(slot.dropFirst(4)), let length = try? reader.u32(),
            length <= 504,
            let payload = try? reader.raw(Int(length))
        else { return nil }
        return Checkpoint(decoding: payload)
    }

    /// Keeps a checkpoint; the error, if it could not be written, is for telling only: memory has it.
    @discardableResult
    func save(_ checkpoint: Checkpoint) -> CoterieError? {
        guard checkpoints[checkpoint.file] != checkpoint else { return nil }
        checkpoints[checkpoint.file] = checkpoint
        guard descriptor >= 0 else { return nil }
        let slot: Int
        if let known = slots[checkpoint.file] {
            slot = known
        } else if let reused = free.popLast() {
            slot = reused
        } else if slotCount < CheckpointFile.slotLimit {
            slot = slotCount
            slotCount += 1
        } else {
            return CoterieError(.tooLarge, "\(path) has no room for more files")
        }
        slots[checkpoint.file] = slot
        var writer = ByteWriter(capacity: CheckpointFile.slotBytes)
        let payload = checkpoint.encode()
        guard payload.count <= 504 else { return CoterieError(.tooLarge, "the name \(checkpoint.name) is too long") }
        writer.u32(UInt32(payload.count))
        writer.raw(payload)
        writer.raw(repeatElement(0, count: 504 - payload.count))
        return write(slot, writer.bytes)
    }

    /// Forgets the files for which `isGone` holds.
    func remove(where isGone: (FileIdentity) -> Bool) {
        for file in checkpoints.keys.filter(isGone) {
            checkpoints[file] = nil
            guard let slot = slots.removeValue(forKey: file) else { continue }
            free.append(slot)
            _ = write(slot, nil)
        }
    }

    /// Nil erases the slot: zeros, which fail the checksum.
    private func write(_ slot: Int, _ rest: [UInt8]?) -> CoterieError? {
        var writer = ByteWriter(capacity: CheckpointFile.slotBytes)
        writer.u32(rest.map { CRC32C.checksum($0) } ?? 0)
        writer.raw(rest ?? Array(repeating: 0, count: CheckpointFile.slotBytes - 4))
        let n = writer.bytes.withUnsafeBytes {
            pwrite(descriptor, $0.baseAddress, $0.count, off_t(16 + slot * CheckpointFile.slotBytes))
        }
        guard n == CheckpointFile.slotBytes else {
            return CoterieError(.failed, "cannot write \(path): \(String(cString: strerror(errno)))")
        }
        return nil
    }
}
