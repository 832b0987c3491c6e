// A container's log, written by the node from the container's own pipes, in the text format of the container runtime
// interface: `TIME STREAM P|F TEXT`, P for a part of a line that goes on in the stream's next entry. Rotation is by renaming
// (`NAME.log` is current, `NAME.log.1` the one before), so a reader that keeps its file open loses nothing; a log sidecar reads
// the directory inside the pod.
import Glibc
import Model

public enum LogStream: String, Hashable, Sendable, CaseIterable {
    case stdout, stderr
}

/// The writing side. One file is written over all runs of a container; where a run begins is known by its time.
final class ContainerLog {
    /// A line longer than this is cut into parts, as container runtimes do.
    static let partBytes = 16 << 10

    let directory: String
    let name: String
    private let fileBytes: Int
    private let fileCount: Int
    private let group: UInt32?
    private var descriptor: Int32 = -1
    private var size = 0
    /// Counts rotations: the number of the file that is written now.
    private(set) var current = 0
    private var lastTime: UInt64 = 0
    private var unfinished: [LogStream: [UInt8]] = [:]
    private var output: [UInt8] = []
    /// When the current run began, and the one before; entries between are the previous run's.
    private(set) var runBegan: UInt64?
    private(set) var previousRunBegan: UInt64?
    private(set) var isClosed = false
    /// Bytes of entries that could not be written (a full disk).
    private(set) var lostBytes: UInt64 = 0
    /// Called after something was written, and at the end.
    private var watchers: [ObjectIdentifier: () -> Void] = [:]

    init(directory: String, name: String, fileBytes: Int, fileCount: Int, group: UInt32?) {
        self.directory = directory
        self.name = name
        self.fileBytes = max(fileBytes, 1_024)
        self.fileCount = max(fileCount, 1)
        self.group = group
    }

    deinit { if descriptor >= 0 { Glibc.close(descriptor) } }

    /// The path of file number `number`, wherever rotation has moved it; nil if it is removed already.
    func path(ofFile number: Int) -> String? {
        let age = current - number
        guard age >= 0, age < fileCount else { return nil }
        return age == 0 ? "\(directory)/\(name).log" : "\(directory)/\(name).log.\(age)"
    }

    var oldest: Int { max(0, current - fileCount + 1) }

    /// `now` is nanoseconds since 1970; a clock that goes back is held.
    func beginRun(now: UInt64) {
        lastTime = max(lastTime + 1, now)
        previousRunBegan = runBegan
        runBegan = lastTime
        if descriptor < 0 { open() }
    }

    /// Takes what the container wrote. Whole lines are written at once, the rest waits.
    func append(_ stream: LogStream, _ bytes: UnsafeRawBufferPointer, now: UInt64) {
        guard !isClosed, !bytes.isEmpty else { return }
        lastTime = max(lastTime, now)
        let prefix = prefix(stream)
        var start = 0
        while start < bytes.count {
            let rest = UnsafeRawBufferPointer(rebasing: bytes[start...])
            guard let feed = rest.baseAddress.flatMap({ memchr($0, 10, rest.count) }), let base = rest.baseAddress
            else {
                unfinished[stream, default: []].append(contentsOf: rest)
                break
            }
            let length = UnsafeRawPointer(feed) - base
            let line = UnsafeRawBufferPointer(rebasing: rest[..<length])
            if var whole = unfinished.removeValue(forKey: stream) {
                whole.append(contentsOf: line)
                whole.withUnsafeBytes { entries(prefix, $0, isWhole: true) }
            } else {
                entries(prefix, line, isWhole: true)
            }
            start += length + 1
        }
        if let long = unfinished[stream], long.count >= Self.partBytes {
            let whole = long.count / Self.partBytes * Self.partBytes
            long[..<whole].withUnsafeBytes { entries(prefix, $0, isWhole: false) }
            unfinished[stream] = whole == long.count ? [] : Array(long[whole...])
        }
        flush()
    }

    /// Nothing more comes on the stream in this run: a last line without a line feed is a line.
    func end(_ stream: LogStream, now: UInt64) {
        guard !isClosed, let rest = unfinished.removeValue(forKey: stream) else { return }
        lastTime = max(lastTime, now)
        rest.withUnsafeBytes { entries(prefix(stream), $0, isWhole: true) }
        flush()
    }

    /// The container never runs again. Readers that follow come to their end.
    func close() {
        guard !isClosed else { return }
        isClosed = true
        if descriptor >= 0 { Glibc.close(descriptor) }
        descriptor = -1
        notify()
    }

    func watch(_ owner: AnyObject, _ changed: @escaping () -> Void) { watchers[ObjectIdentifier(owner)] = changed }
    func unwatch(_ owner: AnyObject) { watchers[ObjectIdentifier(owner)] = nil }

    private func notify() { for changed in Array(watchers.values) { changed() } }

    /// Time, stream and `F`, once for all lines of a chunk.
    private func prefix(_ stream: LogStream) -> [UInt8] {
        Array("\(LogTime.text(nanoseconds: lastTime)) \(stream.rawValue) F ".utf8)
    }

    private func entries(_ prefix: [UInt8], _ text: UnsafeRawBufferPointer, isWhole: Bool) {
        var start = 0
        repeat {
            let end = min(start + Self.partBytes, text.count)
            let last = end == text.count
            let bytes = prefix.count + end - start + 1
            if size + output.count > 0, size + output.count + bytes > fileBytes {
                write()
                rotate()
            }
            output.append(contentsOf: prefix)
            if !(last && isWhole) { output[output.count - 2] = UInt8(ascii: "P") }
            output.append(contentsOf: UnsafeRawBufferPointer(rebasing: text[start..<end]))
            output.append(10)
            start = end
        } while start < text.count
    }

    private func flush() {
        guard !output.isEmpty else { return }
        write()
        notify()
    }

    private func write() {
        guard !output.isEmpty else { return }
        defer { output.removeAll(keepingCapacity: output.capacity <= 1 << 17) }
        if descriptor < 0 { open() }
        guard descriptor >= 0, writeAll(descriptor, output) == 0 else {
            // Half an entry must not stand there: the file goes back to its last whole one.
            if descriptor >= 0 { ftruncate(descriptor, off_t(size)) }
            lostBytes += UInt64(output.count)
            return
        }
        size += output.count
    }

    private func rotate() {
        if descriptor >= 0 { Glibc.close(descriptor) }
        descriptor = -1
        let path = "\(directory)/\(name).log"
        if fileCount == 1 {
            unlink(path)
        } else {
            for age in stride(from: fileCount - 2, through: 1, by: -1) {
                rename("\(path).\(age)", "\(path).\(age + 1)")
            }
            rename(path, "\(path).1")
        }
        current += 1
        open()
    }

    private func open() {
        let path = "\(directory)/\(name).log"
        descriptor = Glibc.open(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0o640)
        guard descriptor >= 0 else { return }
        if let group { fchown(descriptor, uid_t.max, group) }
        var info = stat()
        size = fstat(descriptor, &info) == 0 ? Int(info.st_size) : 0
    }
}
