import CPlatform
import Glibc
import Journal

/// The operating system's files as a ``Disk``: one directory, held open, all names relative to it. Short writes and EINTR are
/// repeated, every other error is reported as it is. Blocking: for the storage thread.
///
/// Sendable without a lock: its only state is the descriptor of the directory, which never changes; the kernel serializes.
public final class PosixDisk: Disk {
    private let directory: Int32
    public let path: String

    /// Opens `path`, which must be a directory; with `create`, makes it (0700) if it is absent.
    public init(path: String, create: Bool) throws(DiskError) {
        if create, mkdir(path, 0o700) != 0, errno != EEXIST { throw PosixDisk.error("mkdir", path) }
        let descriptor = Glibc.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw PosixDisk.error("open", path) }
        directory = descriptor
        self.path = path
    }

    deinit { _ = Glibc.close(directory) }

    private static func error(_ operation: String, _ name: String) -> DiskError {
        let code = errno
        let kind: DiskError.Kind =
            switch code {
            case ENOENT: .notFound
            case ENOSPC, EDQUOT: .noSpace
            case EROFS: .readOnly
            case EIO: .io
            default: .other(code)
            }
        return DiskError(kind, operation: operation, name: name)
    }

    private static func label(_ file: DiskFile) -> String { "descriptor \(file.descriptor)" }

    public func list() throws(DiskError) -> [String] {
        // A descriptor of its own: reading a directory moves its offset.
        let descriptor = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw PosixDisk.error("open", path) }
        guard let stream = fdopendir(descriptor) else {
            let failure = PosixDisk.error("fdopendir", path)
            _ = Glibc.close(descriptor)
            throw failure
        }
        defer { closedir(stream) }
        var names: [String] = []
        while true {
            errno = 0
            guard let entry = readdir(stream) else {
                if errno != 0 { throw PosixDisk.error("readdir", path) }
                return names
            }
            guard entry.pointee.d_type == UInt8(DT_REG) || entry.pointee.d_type == UInt8(DT_UNKNOWN) else { continue }
            let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
                pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != "." && name != ".." { names.append(name) }
        }
    }

    public func open(_ name: String, _ mode: DiskOpenMode) throws(DiskError) -> DiskFile {
        let flags: Int32 =
            switch mode {
            case .readOnly: O_RDONLY
            case .readWrite: O_RDWR
            case .create: O_RDWR | O_CREAT | O_TRUNC
            }
        while true {
            let descriptor = openat(directory, name, flags | O_CLOEXEC | O_NOFOLLOW, 0o600)
            if descriptor >= 0 { return DiskFile(descriptor: descriptor) }
            if errno != EINTR { throw PosixDisk.error("open", name) }
        }
    }

    public func close(_ file: DiskFile) { _ = Glibc.close(file.descriptor) }

    public func size(_ file: DiskFile) throws(DiskError) -> UInt64 {
        var status = stat()
        guard fstat(file.descriptor, &status) == 0 else { throw PosixDisk.error("fstat", PosixDisk.label(file)) }
        return UInt64(status.st_size)
    }

    public func read(_ file: DiskFile, at offset: UInt64, count: Int) throws(DiskError) -> [UInt8] {
        var failure: DiskError?
        // Bounded by what is there before memory is taken.
        let size = try size(file)
        let wanted = min(count, Int(clamping: size > offset ? size - offset : 0))
        let bytes = [UInt8](unsafeUninitializedCapacity: wanted) { buffer, filled in
            while filled < wanted {
                let got = pread(
                    file.descriptor, buffer.baseAddress.map { $0 + filled }, wanted - filled,
                    off_t(offset) + off_t(filled))
                if got > 0 {
                    filled += got
                } else if got == 0 {
                    return
                } else if errno != EINTR {
                    failure = PosixDisk.error("read", PosixDisk.label(file))
                    return
                }
            }
        }
        if let failure { throw failure }
        return bytes
    }

    public func write(_ file: DiskFile, at offset: UInt64, _ bytes: UnsafeRawBufferPointer) throws(DiskError) {
        var done = 0
        while done < bytes.count {
            let put = pwrite(
                file.descriptor, bytes.baseAddress.map { $0 + done }, bytes.count - done, off_t(offset) + off_t(done))
            if put > 0 {
                done += put
            } else if put == 0 {
                throw DiskError(.io, operation: "write", name: PosixDisk.label(file))
            } else if errno != EINTR {
                throw PosixDisk.error("write", PosixDisk.label(file))
            }
        }
    }

    public func writeDurably(_ file: DiskFile, at offset: UInt64, _ bytes: UnsafeRawBufferPointer) throws(DiskError) {
        var done = 0
        while done < bytes.count {
            let put = coterie_write_durably(
                file.descriptor, bytes.baseAddress.map { $0 + done }, bytes.count - done, Int64(offset) + Int64(done))
            if put > 0 {
                done += put
            } else if put < 0, [EOPNOTSUPP, ENOSYS, EINVAL].contains(errno) {
                let rest = UnsafeRawBufferPointer(rebasing: bytes[done...])
                try write(file, at: offset + UInt64(done), rest)
                return try sync(file)
            } else if put == 0 {
                throw DiskError(.io, operation: "write", name: PosixDisk.label(file))
            } else {
                // Not repeated on any error: see ``sync(_:)``.
                throw PosixDisk.error("pwritev2", PosixDisk.label(file))
            }
        }
    }

    public func sync(_ file: DiskFile) throws(DiskError) {
        // Not repeated on any error, EINTR included: after a failed sync the pages count as clean.
        guard fdatasync(file.descriptor) == 0 else { throw PosixDisk.error("fdatasync", PosixDisk.label(file)) }
    }

    public func rename(_ old: String, to new: String) throws(DiskError) {
        guard renameat(directory, old, directory, new) == 0 else { throw PosixDisk.error("rename", old) }
    }

    public func remove(_ name: String) throws(DiskError) {
        guard unlinkat(directory, name, 0) == 0 || errno == ENOENT else { throw PosixDisk.error("unlink", name) }
    }

    public func syncDirectory() throws(DiskError) {
        guard fsync(directory) == 0 else { throw PosixDisk.error("fsync", path) }
    }
}
