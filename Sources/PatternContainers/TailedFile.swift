// A growing file, read by position. It stays open when it is renamed or removed, so that nothing written to it is missed;
// what was read but not finished as a line is carried over.
import Glibc
import Model

final class TailedFile {
    let identity: FileIdentity
    private let descriptor: Int32
    /// Where it was found last.
    var path: String
    /// The name under which it is dealt with: the container's, or the output's.
    let name: String
    /// Not found under any name at the last scan.
    var isGone = false
    /// Found under the name that the writer writes to.
    var isCurrent = true

    /// Bytes at the front of `buffer` begin at this offset.
    private(set) var bufferOffset: UInt64
    private(set) var buffer: [UInt8] = []
    /// Lines before `bufferOffset`.
    var line: UInt64
    /// All before is dealt with and acknowledged.
    var acknowledged: UInt64
    /// The place that was asked to be acknowledged last.
    var reported: UInt64
    /// Grows when the file begins anew under the same inode.
    private(set) var generation = 0
    /// When bytes were read last.
    var grown = MonotonicTime.zero
    private var headLength: UInt32
    private var headChecksum: UInt32

    enum Step: Equatable {
        /// Bytes were appended to the buffer.
        case read(Int)
        case end
        /// The file is shorter than what was read: it was cut, and is read from its start again.
        case truncated
        case failed(String)
    }

    /// Opens the file at `path` and goes to where its checkpoint says; a checkpoint that does not fit the file's beginning is
    /// another file's. Nil if it can not be opened, is no regular file, or is not the one identified.
    init?(path: String, name: String, identity: FileIdentity, checkpoint: Checkpoint?) {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else { return nil }
        var info = stat()
        guard fstat(descriptor, &info) == 0, info.st_mode & S_IFMT == S_IFREG, FileIdentity(info) == identity else {
            close(descriptor)
            return nil
        }
        self.descriptor = descriptor
        self.path = path
        self.name = name
        self.identity = identity
        var start: UInt64 = 0
        var startLine: UInt64 = 0
        headLength = 0
        headChecksum = 0
        if let checkpoint, UInt64(info.st_size) >= checkpoint.offset,
            checkpoint.headLength <= UInt32(Checkpoint.headBytes),
            Checkpoint.headChecksum(descriptor, length: Int(checkpoint.headLength)) == checkpoint.headChecksum
        {
            start = checkpoint.offset
            startLine = checkpoint.line
            headLength = checkpoint.headLength
            headChecksum = checkpoint.headChecksum
        }
        bufferOffset = start
        line = startLine
        acknowledged = start
        reported = start
    }

    deinit { close(descriptor) }

    var size: UInt64 {
        var info = stat()
        return fstat(descriptor, &info) == 0 ? UInt64(max(info.st_size, 0)) : 0
    }

    /// The offset after the last byte read.
    var readOffset: UInt64 { bufferOffset + UInt64(buffer.count) }

    /// Reads up to `limit` bytes more.
    func read(limit: Int) -> Step {
        let had = buffer.count
        var failure = ""
        buffer.reserveCapacity(had + limit)
        let n = withUnsafeTemporaryAllocation(byteCount: limit, alignment: 16) { room -> Int in
            while true {
                let n = pread(descriptor, room.baseAddress, limit, off_t(readOffset))
                if n < 0 && errno == EINTR { continue }
                if n < 0 { failure = String(cString: strerror(errno)) }
                if n > 0 { buffer.append(contentsOf: UnsafeRawBufferPointer(rebasing: room[..<n])) }
                return n
            }
        }
        if n > 0 { return .read(n) }
        if n < 0 { return .failed(failure) }
        if size < readOffset {
            restart()
            return .truncated
        }
        return .end
    }

    /// Drops the first `count` bytes of the buffer, which hold `lines` line feeds.
    func consume(_ count: Int, lines: Int) {
        if count == buffer.count { buffer.removeAll(keepingCapacity: true) } else { buffer.removeFirst(count) }
        bufferOffset += UInt64(count)
        line += UInt64(lines)
    }

    /// Reads again from `offset`.
    func rewind(to offset: UInt64, line: UInt64) {
        bufferOffset = offset
        buffer = []
        reported = offset
        self.line = line
    }

    /// Another content under the same inode.
    func restart() {
        rewind(to: 0, line: 0)
        generation += 1
        acknowledged = 0
        headLength = 0
        headChecksum = 0
    }

    /// Up to `length` bytes from the file's start, apart from the tail.
    func head(_ length: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: length)
        let n = bytes.withUnsafeMutableBytes { pread(descriptor, $0.baseAddress, length, 0) }
        return n > 0 ? Array(bytes[..<n]) : []
    }

    /// False if the beginning has changed since it was last looked at: the file was cut and has grown past the old place.
    func headIsUnchanged() -> Bool {
        headLength == 0 || Checkpoint.headChecksum(descriptor, length: Int(headLength)) == headChecksum
    }

    /// The checkpoint for what is acknowledged.
    func checkpoint(offset: UInt64, line: UInt64) -> Checkpoint {
        if headLength < UInt32(Checkpoint.headBytes) && UInt64(headLength) < offset {
            let length = min(Int(clamping: offset), Checkpoint.headBytes)
            if let checksum = Checkpoint.headChecksum(descriptor, length: length) {
                headLength = UInt32(length)
                headChecksum = checksum
            }
        }
        var checkpoint = Checkpoint(
            file: identity, offset: offset, headLength: headLength, headChecksum: headChecksum,
            name: String(name.prefix(200)))
        checkpoint.line = line
        return checkpoint
    }
}

extension FileIdentity {
    init(_ info: stat) { self.init(device: UInt64(info.st_dev), inode: UInt64(info.st_ino)) }
}

/// Names in a directory, sorted; empty if it can not be read. At most 100 000.
func directoryEntries(_ path: String) -> [String] {
    guard let directory = opendir(path) else { return [] }
    defer { closedir(directory) }
    var names: [String] = []
    while let entry = readdir(directory), names.count < 100_000 {
        // In place: the kernel's record is only as long as the name, so the whole field must not be copied.
        let start = UnsafeRawPointer(entry) + (MemoryLayout<dirent>.offset(of: \dirent.d_name) ?? 19)
        let name = String(cString: start.assumingMemoryBound(to: CChar.self))
        if name != "." && name != ".." { names.append(name) }
    }
    return names.sorted()
}

/// Paths that a shell pattern matches, sorted; at most 10 000.
func matches(of pattern: String) -> [String] {
    var result = glob_t()
    defer { globfree(&result) }
    guard glob(pattern, 0, nil, &result) == 0, let paths = result.gl_pathv else { return [] }
    return (0..<min(Int(result.gl_pathc), 10_000)).compactMap { paths[$0].map { String(cString: $0) } }
}

func lastComponent(_ path: some StringProtocol) -> String { String(path.split(separator: "/").last ?? "") }

/// The directory of a path: what stands before the last slash, or `.`.
func parentDirectory(_ path: some StringProtocol) -> String {
    guard let slash = path.lastIndex(of: "/") else { return "." }
    return slash == path.startIndex ? "/" : String(path[..<slash])
}

/// Directories that a pattern's matches lie in now; those with a pattern in their own name are looked up.
func watchedDirectories(of pattern: String) -> [String] {
    let parent = parentDirectory(pattern)
    return parent.utf8.contains { $0 == 42 || $0 == 63 || $0 == 91 } ? matches(of: parent) : [parent]
}
