// The files behind a scatter-gather job: spools without a name, a result that is in memory while it is small, and a reader of
// files and pipes that does not hold up the loop.
import EventLoop
import Glibc
import Model

private func failure(_ what: String) -> CoterieError {
    CoterieError(.failed, "\(what): \(String(cString: strerror(errno)))")
}

/// A file that only this process knows: appended to, read anywhere, gone with its owner.
final class SpoolFile {
    let descriptor: Int32
    private(set) var count: UInt64 = 0

    init(in directory: String) throws(CoterieError) {
        var template = Array("\(directory)/.spool-XXXXXX".utf8CString)
        let file = template.withUnsafeMutableBufferPointer { buffer in buffer.baseAddress.map { mkstemp($0) } ?? -1 }
        guard file >= 0 else { throw failure("cannot make a file in \(directory)") }
        _ = fcntl(file, F_SETFD, FD_CLOEXEC)
        _ = template.withUnsafeBufferPointer { buffer in buffer.baseAddress.map { unlink($0) } }
        descriptor = file
    }

    deinit { close(descriptor) }

    func append(_ bytes: UnsafeRawBufferPointer) throws(CoterieError) {
        var done = 0
        while done < bytes.count {
            let n = pwrite(
                descriptor, bytes.baseAddress?.advanced(by: done), bytes.count - done, off_t(clamping: count))
            if n < 0 && errno == EINTR { continue }
            guard n > 0 else { throw failure("cannot write to the scratch directory") }
            done += n
            count += UInt64(n)
        }
    }

    func append(_ bytes: [UInt8]) throws(CoterieError) {
        var problem: CoterieError?
        bytes.withUnsafeBytes { buffer in
            do throws(CoterieError) { try append(buffer) } catch { problem = error }
        }
        if let problem { throw problem }
    }

    /// At most `limit` bytes; fewer at the end only.
    func read(at offset: UInt64, limit: Int) throws(CoterieError) -> [UInt8] {
        guard offset < count else { return [] }
        let wanted = Int(min(UInt64(max(limit, 0)), count - offset))
        var problem: CoterieError?
        let bytes = [UInt8](unsafeUninitializedCapacity: wanted) { buffer, filled in
            while filled < wanted {
                let n = pread(
                    descriptor, buffer.baseAddress?.advanced(by: filled), wanted - filled,
                    off_t(clamping: offset) + off_t(filled))
                if n < 0 && errno == EINTR { continue }
                guard n > 0 else {
                    problem = failure("cannot read from the scratch directory")
                    return
                }
                filled += n
            }
        }
        if let problem { throw problem }
        return bytes
    }

    /// Takes over what another process has written through the descriptor.
    func adoptSize() {
        var info = stat()
        if fstat(descriptor, &info) == 0 { count = UInt64(max(info.st_size, 0)) }
    }

    /// For a child that reads it from its beginning.
    func rewind() { lseek(descriptor, 0, SEEK_SET) }
}

/// A long spool in several files, each of which is given back when nothing of it is needed any more.
final class SegmentedSpool {
    private let directory: String
    private let segmentBytes: UInt64
    /// Nil once all of it was forgotten.
    private var segments: [SpoolFile?] = []
    /// Bytes of each segment that nobody needs.
    private var forgotten: [UInt64] = []
    private(set) var count: UInt64 = 0
    private var head: UInt64 = 0

    init(in directory: String, segmentBytes: UInt64 = 64 << 20) {
        self.directory = directory
        self.segmentBytes = segmentBytes
    }

    func append(_ bytes: [UInt8]) throws(CoterieError) {
        var rest = bytes[...]
        while !rest.isEmpty {
            if count == UInt64(segments.count) * segmentBytes {
                segments.append(try SpoolFile(in: directory))
                forgotten.append(0)
            }
            let room = UInt64(segments.count) * segmentBytes - count
            let part = rest.prefix(Int(min(room, UInt64(rest.count))))
            try segments[segments.count - 1]?.append(Array(part))
            count += UInt64(part.count)
            rest = rest.dropFirst(part.count)
        }
    }

    /// At most `limit` bytes; fewer at the end and where a segment ends. What was forgotten can not be read.
    func read(at offset: UInt64, limit: Int) throws(CoterieError) -> [UInt8] {
        guard offset < count else { return [] }
        guard let segment = segments[Int(offset / segmentBytes)] else {
            throw CoterieError(.failed, "this part of the data was given up already")
        }
        return try segment.read(at: offset % segmentBytes, limit: limit)
    }

    /// These bytes are not needed any more; each is to be forgotten once.
    func forget(_ start: UInt64, _ end: UInt64) {
        var start = start
        let end = min(end, count)
        while start < end {
            let index = Int(start / segmentBytes)
            let stop = min(end, UInt64(index + 1) * segmentBytes)
            forgotten[index] += stop - start
            if forgotten[index] >= segmentBytes { segments[index] = nil }
            start = stop
        }
    }

    /// The same for all that lies before `offset`; not together with ``forget(_:_:)``.
    func forget(before offset: UInt64) {
        guard offset > head else { return }
        forget(head, offset)
        head = offset
    }
}

/// One attempt's result.
final class ResultBuffer {
    /// More is on disk.
    static let memoryLimit = 64 << 10

    private(set) var memory: [UInt8] = []
    private var file: SpoolFile?
    private let directory: String

    init(directory: String) { self.directory = directory }

    var count: UInt64 { file?.count ?? UInt64(memory.count) }
    var bytesInMemory: Int { memory.count }

    func append(_ bytes: [UInt8]) throws(CoterieError) {
        if file == nil && memory.count + bytes.count <= ResultBuffer.memoryLimit {
            memory.append(contentsOf: bytes)
            return
        }
        try spill()
        try file?.append(bytes)
    }

    /// Puts what is in memory on disk.
    func spill() throws(CoterieError) {
        guard file == nil else { return }
        let file = try SpoolFile(in: directory)
        try file.append(memory)
        memory = []
        self.file = file
    }

    func read(at offset: UInt64, limit: Int) throws(CoterieError) -> [UInt8] {
        if let file { return try file.read(at: offset, limit: limit) }
        guard offset < UInt64(memory.count) else { return [] }
        let start = Int(offset)
        return Array(memory[start..<min(memory.count, start + limit)])
    }

    /// Everything, to a new file of that name.
    func write(to path: String) throws(CoterieError) {
        let target = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o644)
        guard target >= 0 else { throw failure("cannot write \(path)") }
        defer { close(target) }
        var offset: UInt64 = 0
        while offset < count {
            let bytes = try read(at: offset, limit: 256 << 10)
            guard writeFully(target, bytes) == nil else { throw failure("cannot write \(path)") }
            offset += UInt64(bytes.count)
        }
    }
}

/// Blocking; the errno of what went wrong.
func writeFully(_ descriptor: Int32, _ bytes: [UInt8]) -> Int32? {
    var done = 0
    while done < bytes.count {
        let n = bytes[done...].withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
        if n < 0 && errno == EINTR { continue }
        if n < 0 && errno == EAGAIN {
            // Somebody made our standard output non-blocking.
            var entry = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
            poll(&entry, 1, -1)
            continue
        }
        guard n > 0 else { return n < 0 ? errno : EIO }
        done += n
    }
    return nil
}

/// Blocking; empty at the end.
func readSome(_ descriptor: Int32, at offset: off_t?, limit: Int) -> Result<[UInt8], CoterieError> {
    var problem: Int32?
    let bytes = [UInt8](unsafeUninitializedCapacity: limit) { buffer, filled in
        while true {
            let n =
                offset.map { pread(descriptor, buffer.baseAddress, limit, $0) }
                ?? read(descriptor, buffer.baseAddress, limit)
            if n < 0 && errno == EINTR { continue }
            if n < 0 && errno == EAGAIN {
                var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
                poll(&entry, 1, -1)
                continue
            }
            if n < 0 { problem = errno }
            filled = max(n, 0)
            return
        }
    }
    if let problem {
        return .failure(CoterieError(.failed, "cannot read the input: \(String(cString: strerror(problem)))"))
    }
    return .success(bytes)
}

/// Input that can be read again from anywhere: a file as it is, a pipe through a spool.
final class ReplayableInput {
    private let loop: EventLoop
    private let descriptor: Int32
    /// Position of the first byte in a file that can be sought in; nil for pipes and terminals.
    private let base: off_t?
    private var spool: SpoolFile?
    private let owns: Bool
    /// Of the whole, once the end was seen: reading it again ends there as well.
    private(set) var total: UInt64?

    /// - Parameter owns: the descriptor is closed with this.
    init(loop: EventLoop, descriptor: Int32, owns: Bool, scratch: String) throws(CoterieError) {
        self.loop = loop
        self.descriptor = descriptor
        self.owns = owns
        var info = stat()
        if fstat(descriptor, &info) == 0, info.st_mode & S_IFMT == S_IFREG {
            base = lseek(descriptor, 0, SEEK_CUR)
        } else {
            base = nil
            spool = try SpoolFile(in: scratch)
        }
    }

    deinit { if owns { close(descriptor) } }

    /// One call at a time. Empty at the end.
    func read(at offset: UInt64, limit: Int, then: @escaping (Result<[UInt8], CoterieError>) -> Void) {
        if let total, offset >= total { return loop.beforeWaiting { then(.success([])) } }
        if let spool, offset < spool.count {
            let result = Result { () throws(CoterieError) in try spool.read(at: offset, limit: limit) }
            return loop.beforeWaiting { then(result) }
        }
        let limit = Int(min(UInt64(limit), total.map { $0 - offset } ?? UInt64(limit)))
        let descriptor = self.descriptor
        let position = base.map { $0 + off_t(clamping: offset) }
        loop.blocking {
            readSome(descriptor, at: position, limit: limit)
        } then: { [self] result in
            guard case .success(let bytes) = result else { return then(result) }
            if bytes.isEmpty { total = offset }
            if let spool {
                do throws(CoterieError) { try spool.append(bytes) } catch { return then(.failure(error)) }
            }
            then(result)
        }
    }
}
