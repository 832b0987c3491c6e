// The adapter's output files. An appended one grows by whole records only, and each input's checkpoint says how long it was
// when the input had been dealt with so far: what a killed adapter wrote beyond that is cut off when it starts again, so
// that nothing appears twice. A replaced one is written beside its place and renamed.
import Glibc
import Model
import Wire

/// An output that grows.
final class AppendedOutput {
    let path: String
    private let descriptor: Int32
    private(set) var identity: FileIdentity
    private(set) var length: UInt64
    private var isBroken = false

    /// Opens the file, or makes it. `recorded` is its length according to the checkpoints that name it; bytes beyond are cut off.
    init(path: String, recorded: (FileIdentity) -> UInt64?) throws(CoterieError) {
        self.path = path
        // Never through a link: the directory may be shared with containers of other people.
        descriptor = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0o644)
        guard descriptor >= 0 else {
            throw CoterieError(.failed, "cannot write \(path): \(String(cString: strerror(errno)))")
        }
        identity = FileIdentity(device: 0, inode: 0)
        length = 0
        var info = stat()
        guard fstat(descriptor, &info) == 0, info.st_mode & S_IFMT == S_IFREG else {
            throw CoterieError(.badInput, "\(path) is not a regular file")
        }
        identity = FileIdentity(info)
        length = UInt64(max(info.st_size, 0))
        if let recorded = recorded(identity), recorded < length {
            guard ftruncate(descriptor, off_t(recorded)) == 0 else {
                throw CoterieError(.failed, "cannot cut \(path): \(String(cString: strerror(errno)))")
            }
            length = recorded
        }
    }

    deinit { if descriptor >= 0 { close(descriptor) } }

    /// False if the name stands for another file by now, or for none: somebody took the output away.
    var isInPlace: Bool { fileIdentity(path) == identity }

    /// Up to 64 KiB from the start.
    var head: [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 65_536)
        let n = bytes.withUnsafeMutableBytes { pread(descriptor, $0.baseAddress, $0.count, 0) }
        return n > 0 ? Array(bytes[..<n]) : []
    }

    /// All or nothing, as far as the next append is concerned: after a failure (a full disk) the half is taken back.
    func append(_ bytes: [UInt8]) -> CoterieError? {
        var done = 0
        while done < bytes.count {
            let n = bytes[done...].withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
            if n < 0 && errno == EINTR { continue }
            guard n > 0 else {
                let why = String(cString: strerror(errno))
                if done > 0 { ftruncate(descriptor, off_t(length)) }
                return CoterieError(.failed, "cannot write \(path): \(why)")
            }
            done += n
        }
        // A reader may have cut what it has read.
        var info = stat()
        length = fstat(descriptor, &info) == 0 ? UInt64(max(info.st_size, 0)) : length + UInt64(bytes.count)
        return nil
    }
}

/// Replaces a file as a whole: readers see the old or the new one.
enum ReplacedOutput {
    /// Where the new file is written before it takes its name: hidden, so that globs pass over it.
    static func temporaryPath(_ path: String) -> String {
        "\(parentDirectory(path))/.\(lastComponent(path)).coterie-new"
    }

    static func openTemporary(_ path: String) throws(CoterieError) -> Int32 {
        let temporary = temporaryPath(path)
        unlink(temporary)
        let descriptor = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o644)
        guard descriptor >= 0 else {
            throw CoterieError(.failed, "cannot write \(temporary): \(String(cString: strerror(errno)))")
        }
        return descriptor
    }

    static func commit(_ path: String) throws(CoterieError) {
        guard rename(temporaryPath(path), path) == 0 else {
            let why = String(cString: strerror(errno))
            discard(path)
            throw CoterieError(.failed, "cannot write \(path): \(why)")
        }
    }

    static func discard(_ path: String) { unlink(temporaryPath(path)) }

    static func write(_ path: String, _ bytes: [UInt8]) throws(CoterieError) {
        let descriptor = try openTemporary(path)
        var done = 0
        while done < bytes.count {
            let n = bytes[done...].withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
            if n < 0 && errno == EINTR { continue }
            guard n > 0 else {
                let why = String(cString: strerror(errno))
                close(descriptor)
                discard(path)
                throw CoterieError(.failed, "cannot write \(path): \(why)")
            }
            done += n
        }
        close(descriptor)
        try commit(path)
    }

    /// At most `limit` bytes of what is there; empty if there is none.
    static func read(_ path: String, limit: Int) -> [UInt8] {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
        guard descriptor >= 0 else { return [] }
        defer { close(descriptor) }
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 65_536)
        while bytes.count < limit {
            let n = chunk.withUnsafeMutableBytes { Glibc.read(descriptor, $0.baseAddress, $0.count) }
            if n < 0 && errno == EINTR { continue }
            guard n > 0 else { break }
            bytes.append(contentsOf: chunk[..<n])
        }
        return bytes
    }
}
