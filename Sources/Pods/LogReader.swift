// Reads a container's log back: a range of time, the last lines, or on and on. It keeps its place as (file number, offset),
// so rotation while it reads neither loses nor repeats a line, as long as the file it stands in is kept.
import EventLoop
import Glibc
import Model

/// One entry of a container's log.
public struct LogLine: Hashable, Sendable {
    /// As in ``LogTime``.
    public var time: String
    public var stream: LogStream
    /// The line goes on in the stream's next entry.
    public var isPartial: Bool
    /// Without the line feed.
    public var text: [UInt8]
}

/// Delivers lines in turns of the loop until the end, ``cancel()``, or, when following, until the container's pod is gone.
/// Confined to the loop.
public final class LogReader {
    static let turnBytes = 256 << 10
    static let tailLimit = 100_000

    private struct Place: Comparable {
        var file: Int
        var offset: Int
        static func < (a: Self, b: Self) -> Bool { (a.file, a.offset) < (b.file, b.offset) }
    }

    private let log: ContainerLog
    private let timer: LoopTimer
    private let from: String
    private let until: String?
    private let follow: Bool
    private var onLine: ((LogLine) -> Void)?
    private var onEnd: ((CoterieError?) -> Void)?
    private var place: Place
    private var descriptor: Int32 = -1
    private var openFile = -1
    private var isPaused = false
    private var isWaiting = false
    private var isScheduled = false
    /// The beginnings of the last so many whole lines, while they are looked for.
    private var tail: Int?
    private var starts: [Place] = []
    private var nextStart = 0
    /// Where a line that is still in parts began, by stream.
    private var begun: [LogStream: Place] = [:]

    /// A range of times, first included, last not. A reader keeps itself alive until its end.
    init(
        loop: EventLoop, log: ContainerLog, options: LogOptions, onLine: @escaping (LogLine) -> Void,
        onEnd: @escaping (CoterieError?) -> Void
    ) throws(CoterieError) {
        if let since = options.since, LogTime.nanoseconds(since) == nil {
            throw CoterieError(.badInput, "\(since) is not a time of the form 2026-01-02T03:04:05.000000000Z")
        }
        var from = log.runBegan.map { LogTime.text(nanoseconds: $0) } ?? ""
        until = options.previous ? from : nil
        if options.previous {
            guard let began = log.previousRunBegan else {
                throw CoterieError(.notFound, "container \(log.name) has not run before")
            }
            from = LogTime.text(nanoseconds: began)
        }
        self.from = max(from, options.since ?? "")
        self.log = log
        follow = options.follow && !options.previous
        tail = options.tail.map { min(max($0, 0), LogReader.tailLimit) }
        self.onLine = onLine
        self.onEnd = onEnd
        place = Place(file: log.oldest, offset: 0)
        timer = LoopTimer(loop: loop)
        log.watch(self) { [self] in
            if isWaiting { schedule() }
        }
        schedule()
    }

    /// Delivers nothing until ``resume()``.
    public func pause() { isPaused = true }

    public func resume() {
        guard isPaused else { return }
        isPaused = false
        if !isWaiting { schedule() }
    }

    /// No call-back comes after this.
    public func cancel() {
        onLine = nil
        onEnd = nil
        stop()
    }

    private func stop() {
        log.unwatch(self)
        timer.close()
        if descriptor >= 0 { close(descriptor) }
        descriptor = -1
    }

    private func finish(_ error: CoterieError? = nil) {
        guard let end = onEnd else { return }
        onLine = nil
        onEnd = nil
        stop()
        end(error)
    }

    private func schedule() {
        guard onEnd != nil, !isScheduled, !isPaused else { return }
        isScheduled = true
        timer.start(after: .zero) { [weak self] in
            self?.isScheduled = false
            self?.turn()
        }
    }

    private func turn() {
        var left = LogReader.turnBytes
        isWaiting = false
        while left > 0, onEnd != nil, !isPaused {
            guard openIfNeeded() else {
                if log.current > place.file {
                    place = Place(file: max(place.file + 1, log.oldest), offset: 0)
                    continue
                }
                return ended()
            }
            let isLast = place.file == log.current
            let n = readLines(limit: left)
            if n < 0 { return finish(CoterieError(.failed, "cannot read the log of \(log.name): \(errnoText())")) }
            left -= max(n, 1)
            if n > 0 { continue }
            // A file that was renamed away got its last bytes before the next one was begun.
            guard !isLast else { return ended() }
            place = Place(file: place.file + 1, offset: 0)
        }
        schedule()
    }

    private func openIfNeeded() -> Bool {
        if openFile == place.file, descriptor >= 0 { return true }
        if descriptor >= 0 { close(descriptor) }
        descriptor = -1
        guard let path = log.path(ofFile: place.file) else { return false }
        descriptor = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC)
        openFile = place.file
        return descriptor >= 0
    }

    /// All that is there has been read.
    private func ended() {
        if let count = tail {
            // Now deliver, from the first of the last lines.
            tail = nil
            let first = starts.count < count ? starts.first : (count == 0 ? nil : starts[nextStart % count])
            starts = []
            if let first {
                place = first
            } else if !follow {
                return finish()
            }
            schedule()
        } else if follow && !log.isClosed {
            isWaiting = true
        } else {
            finish()
        }
    }

    /// Reads once and takes the whole lines. The bytes taken, 0 if there is no whole line, -1 on failure.
    private func readLines(limit: Int) -> Int {
        // Entries are at most a part long; a whole one always fits.
        let room = max(limit, 2 * ContainerLog.partBytes)
        return withUnsafeTemporaryAllocation(byteCount: room, alignment: 16) { buffer -> Int in
            var n: Int
            repeat {
                n = pread(descriptor, buffer.baseAddress, room, off_t(place.offset))
            } while n < 0 && errno == EINTR
            guard n > 0, let base = buffer.baseAddress else { return n }
            var start = 0
            while onEnd != nil, !(isPaused && tail == nil), start < n, let feed = memchr(base + start, 10, n - start) {
                let end = UnsafeMutableRawPointer(feed) - base
                take(
                    UnsafeRawBufferPointer(rebasing: buffer[start..<end]),
                    at: Place(file: place.file, offset: place.offset + start))
                start = end + 1
            }
            place.offset += start
            return start
        }
    }

    private func take(_ line: UnsafeRawBufferPointer, at here: Place) {
        // "TIME STREAM TAG TEXT", the first three of fixed width.
        guard line.count >= 40 else { return }
        let time = String(decoding: UnsafeRawBufferPointer(rebasing: line[..<30]), as: UTF8.self)
        if time < from { return }
        if let until, time >= until { return }
        let isPartial = line[38] == UInt8(ascii: "P")
        let stream: LogStream = line[36] == UInt8(ascii: "t") ? .stdout : .stderr
        if let count = tail {
            guard count > 0 else { return }
            let first = begun.removeValue(forKey: stream) ?? here
            if isPartial {
                begun[stream] = first
                return
            }
            if starts.count < count { starts.append(first) } else { starts[nextStart % count] = first }
            nextStart += 1
            return
        }
        onLine?(LogLine(time: time, stream: stream, isPartial: isPartial, text: Array(line[40...])))
    }
}
