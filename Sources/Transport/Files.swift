// Small whole files, read with a limit and written so that a crash leaves the old or the new one.
import Glibc
import Model
import Security

/// The text of the current `errno`.
public func errnoText() -> String { String(cString: strerror(errno)) }

/// Makes a directory and its parents; one that exists is left as it is.
public func makeDirectory(_ path: String, mode: mode_t) throws(CoterieError) {
    if mkdir(path, mode) == 0 || errno == EEXIST {
        var info = stat()
        guard stat(path, &info) == 0, info.st_mode & S_IFMT == S_IFDIR else {
            throw CoterieError(.badInput, "\(path) is not a directory")
        }
        return
    }
    if errno == ENOENT, let slash = path.lastIndex(of: "/"), slash != path.startIndex {
        try makeDirectory(String(path[..<slash]), mode: mode)
        if mkdir(path, mode) == 0 || errno == EEXIST { return }
    }
    throw CoterieError(.failed, "cannot make the directory \(path): \(errnoText())")
}

/// The whole file; refused if it is larger than `limit` bytes.
public func readFile(_ path: String, limit: Int) throws(CoterieError) -> [UInt8] {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else {
        throw CoterieError(errno == ENOENT ? .notFound : .failed, "cannot read \(path): \(errnoText())")
    }
    defer { close(descriptor) }
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65_536)
    while true {
        let n = chunk.withUnsafeMutableBytes { read(descriptor, $0.baseAddress, $0.count) }
        if n < 0 && errno == EINTR { continue }
        guard n >= 0 else { throw CoterieError(.failed, "cannot read \(path): \(errnoText())") }
        if n == 0 { return bytes }
        guard bytes.count + n <= limit else { throw CoterieError(.tooLarge, "\(path) is larger than \(limit) bytes") }
        bytes.append(contentsOf: chunk[..<n])
    }
}

/// Writes beside the file, syncs, renames over it and syncs the directory.
public func writeFileDurably(_ path: String, _ bytes: [UInt8], mode: mode_t) throws(CoterieError) {
    let temporary = path + ".new"
    let descriptor = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode)
    guard descriptor >= 0 else { throw CoterieError(.failed, "cannot write \(temporary): \(errnoText())") }
    var offset = 0
    while offset < bytes.count {
        let n = bytes[offset...].withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
        if n < 0 && errno == EINTR { continue }
        guard n > 0 else {
            let why = errnoText()
            close(descriptor)
            unlink(temporary)
            throw CoterieError(.failed, "cannot write \(temporary): \(why)")
        }
        offset += n
    }
    let synced = fsync(descriptor) == 0
    close(descriptor)
    guard synced, rename(temporary, path) == 0 else {
        let why = errnoText()
        unlink(temporary)
        throw CoterieError(.failed, "cannot write \(path): \(why)")
    }
    try syncParent(of: path)
}

/// Removes a file, if it is there, for good.
public func removeFileDurably(_ path: String) throws(CoterieError) {
    guard unlink(path) == 0 || errno == ENOENT else {
        throw CoterieError(.failed, "cannot remove \(path): \(errnoText())")
    }
    try syncParent(of: path)
}

private func syncParent(of path: String) throws(CoterieError) {
    let slash = path.lastIndex(of: "/")
    let parent = slash.map { $0 == path.startIndex ? "/" : String(path[..<$0]) } ?? "."
    let directory = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard directory >= 0 else { return }
    defer { close(directory) }
    guard fsync(directory) == 0 else { throw CoterieError(.failed, "cannot sync \(parent): \(errnoText())") }
}

/// The cluster key as a file of 64 hexadecimal digits, readable by its owner only.
public enum KeyFile {
    public static func read(_ path: String) throws(CoterieError) -> ClusterKey {
        var info = stat()
        guard stat(path, &info) == 0 else {
            throw CoterieError(
                .badInput, "cannot read the key file \(path): \(errnoText())",
                hint: "make one with: coterie keygen FILE")
        }
        guard info.st_mode & 0o077 == 0 else {
            throw CoterieError(.notAllowed, "the key file \(path) can be read by others", hint: "chmod 600 \(path)")
        }
        let text = try readFile(path, limit: 256)
        var digits = text
        while let last = digits.last, last == 10 || last == 13 || last == 32 { digits.removeLast() }
        var bytes: [UInt8] = []
        if digits.count == 64 {
            for i in stride(from: 0, to: 64, by: 2) {
                let pair = digits[i..<i + 2]
                guard pair.allSatisfy({ ($0 >= 48 && $0 <= 57) || ($0 | 32 >= 97 && $0 | 32 <= 102) }),
                    let byte = UInt8(String(decoding: pair, as: UTF8.self), radix: 16)
                else { break }
                bytes.append(byte)
            }
        }
        guard bytes.count == 32, let key = try? ClusterKey(bytes) else {
            throw CoterieError(
                .badInput, "\(path) is not a key file: 64 hexadecimal digits are expected",
                hint: "make one with: coterie keygen FILE")
        }
        return key
    }

    public static func write(_ key: ClusterKey, to path: String) throws(CoterieError) {
        var text: [UInt8] = []
        for byte in key.bytes {
            let digits = Array("0123456789abcdef".utf8)
            text.append(digits[Int(byte >> 4)])
            text.append(digits[Int(byte & 15)])
        }
        text.append(10)
        try writeFileDurably(path, text, mode: 0o600)
    }
}
