// Directories and small files of pods on the host. What a pod may have written to is only ever opened without following
// links.
import CPlatform
import Glibc
import Model

func errnoText() -> String { String(cString: strerror(errno)) }

/// Names in a directory, sorted, without `.` and `..`; empty if it can not be read.
func entries(of path: String) -> [String] {
    guard let directory = opendir(path) else { return [] }
    defer { closedir(directory) }
    return entries(of: directory).sorted()
}

private func entries(of directory: OpaquePointer) -> [String] {
    var names: [String] = []
    while let entry = readdir(directory) {
        // In place: the kernel's record is only as long as the name, so the whole field must not be copied.
        let start = UnsafeRawPointer(entry) + (MemoryLayout<dirent>.offset(of: \dirent.d_name) ?? 19)
        let name = String(cString: start.assumingMemoryBound(to: CChar.self))
        if name != "." && name != ".." { names.append(name) }
    }
    return names
}

/// A small file's text, at most 64 KiB; nil if it can not be read.
func textFile(_ path: String) -> String? {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 4_096)
    while bytes.count < 1 << 16 {
        let n = chunk.withUnsafeMutableBytes { read(descriptor, $0.baseAddress, $0.count) }
        if n < 0 && errno == EINTR { continue }
        guard n >= 0 else { return nil }
        if n == 0 { break }
        bytes.append(contentsOf: chunk[..<n])
    }
    return String(decoding: bytes, as: UTF8.self)
}

/// All bytes or an error number; 0 is success.
func writeAll(_ descriptor: Int32, _ bytes: some Collection<UInt8>) -> Int32 {
    let bytes = Array(bytes)
    var offset = 0
    while offset < bytes.count {
        let n = bytes.withUnsafeBytes { write(descriptor, $0.baseAddress.map { $0 + offset }, $0.count - offset) }
        if n < 0 && errno == EINTR { continue }
        if n < 0 { return errno }
        offset += n
    }
    return 0
}

/// Writes to a control file of the kernel's, which exists. Nil is success, else the reason.
func writeControl(_ path: String, _ text: String) -> String? {
    let descriptor = open(path, O_WRONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return "\(path): \(errnoText())" }
    defer { close(descriptor) }
    let code = writeAll(descriptor, text.utf8)
    return code == 0 ? nil : "\(path): \(String(cString: strerror(code)))"
}

/// The path without symbolic links; nil if it does not exist.
func realPath(_ path: String) -> String? {
    guard let resolved = realpath(path, nil) else { return nil }
    defer { free(resolved) }
    return String(cString: resolved)
}

func isBelow(_ path: String, _ parent: String) -> Bool {
    parent == "/" || path == parent
        || (path.hasPrefix(parent) && path.utf8.dropFirst(parent.utf8.count).first == UInt8(ascii: "/"))
}

/// Makes a directory with exactly this mode and owner. One that exists is refused.
func makeDirectory(_ path: String, mode: mode_t, user: UInt32? = nil, group: UInt32? = nil) throws(CoterieError) {
    guard mkdir(path, 0o700) == 0 else {
        throw CoterieError(.failed, "cannot make the directory \(path): \(errnoText())")
    }
    if user != nil || group != nil {
        guard chown(path, user ?? uid_t.max, group ?? gid_t.max) == 0 else {
            throw CoterieError(.failed, "cannot give \(path) to its pod: \(errnoText())")
        }
    }
    guard chmod(path, mode) == 0 else { throw CoterieError(.failed, "cannot set the mode of \(path): \(errnoText())") }
}

/// Makes a file that did not exist.
func makeFile(_ path: String, _ bytes: some Collection<UInt8>, mode: mode_t, group: UInt32? = nil) throws(CoterieError)
{
    let descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else { throw CoterieError(.failed, "cannot make \(path): \(errnoText())") }
    defer { close(descriptor) }
    let code = writeAll(descriptor, bytes)
    guard code == 0 else { throw CoterieError(.failed, "cannot write \(path): \(String(cString: strerror(code)))") }
    if let group, fchown(descriptor, uid_t.max, group) != 0 {
        throw CoterieError(.failed, "cannot give \(path) to its pod: \(errnoText())")
    }
    guard fchmod(descriptor, mode) == 0 else {
        throw CoterieError(.failed, "cannot set the mode of \(path): \(errnoText())")
    }
}

/// Removes a directory with all that is in it, except what `keep` names directly below it (then the directory stays). Never
/// follows a link, and needs few descriptors however deep a pod has nested: what lies deeper than 32 levels is first moved
/// up. Blocking. True if nothing is left but what is kept.
@discardableResult
func removeTree(_ path: String, keep: Set<String> = []) -> Bool {
    let top = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
    guard top >= 0 else { return errno == ENOENT || unlink(path) == 0 }
    defer { close(top) }
    var moved = 0
    var done = false
    // Each round takes what the one before moved up.
    for _ in 0..<10_000 {
        let before = moved
        done = removeEntries(top, top: top, depth: 0, keep: keep, moved: &moved)
        if done || moved == before { break }
    }
    guard keep.isEmpty else { return done }
    return done && rmdir(path) == 0
}

private func removeEntries(_ directory: Int32, top: Int32, depth: Int, keep: Set<String>, moved: inout Int) -> Bool {
    let list = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard list >= 0 else { return false }
    guard let stream = fdopendir(list) else {
        close(list)
        return false
    }
    let names = entries(of: stream)
    closedir(stream)
    var clean = true
    for name in names where !keep.contains(name) {
        if unlinkat(directory, name, 0) == 0 { continue }
        let below = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        guard below >= 0 else {
            clean = clean && errno == ENOENT
            continue
        }
        if depth >= 32 {
            moved += 1
            _ = renameat(directory, name, top, ".deep-\(moved)")
            clean = false
        } else {
            // A directory of the pod's may deny even its owner, which matters where the agent is not root.
            fchmod(below, 0o700)
            if !removeEntries(below, top: top, depth: depth + 1, keep: [], moved: &moved) { clean = false }
            if unlinkat(directory, name, AT_REMOVEDIR) != 0 && errno != ENOENT { clean = false }
        }
        close(below)
    }
    return clean
}

/// Bytes that files in a directory occupy on its file system. Blocking; follows no link; looks 64 levels deep and at
/// no more than 2 million files.
func diskUsage(_ path: String) -> UInt64 {
    let top = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
    guard top >= 0 else { return 0 }
    defer { close(top) }
    var left = 2_000_000
    return usage(top, depth: 0, &left)
}

private func usage(_ directory: Int32, depth: Int, _ left: inout Int) -> UInt64 {
    let list = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard list >= 0 else { return 0 }
    guard let stream = fdopendir(list) else {
        close(list)
        return 0
    }
    let names = entries(of: stream)
    closedir(stream)
    var total: UInt64 = 0
    for name in names where left > 0 {
        left -= 1
        var info = stat()
        guard fstatat(directory, name, &info, AT_SYMLINK_NOFOLLOW) == 0 else { continue }
        total += UInt64(max(0, info.st_blocks)) * 512
        guard info.st_mode & S_IFMT == S_IFDIR, depth < 64 else { continue }
        let below = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        guard below >= 0 else { continue }
        total += usage(below, depth: depth + 1, &left)
        close(below)
    }
    return total
}

/// Nanoseconds since 1970, for people.
func wallClock() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_REALTIME, &time)
    return UInt64(max(time.tv_sec, 0)) * 1_000_000_000 + UInt64(time.tv_nsec)
}

/// Both ends close-on-exec.
func makePipe() throws(CoterieError) -> (read: Int32, write: Int32) {
    var ends: [Int32] = [-1, -1]
    guard coterie_pipe(&ends) == 0 else { throw CoterieError(.failed, "cannot make a pipe: \(errnoText())") }
    return (ends[0], ends[1])
}
