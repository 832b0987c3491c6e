// The log format of the container runtime interface, as our node writes it: `TIME STREAM P|F TEXT`. P is a part of a line
// that goes on in the next entry of the same stream, F is a whole line or the last part of one.
import Model

struct CRIEntry: Equatable {
    var time: Range<Int>
    var stream: Range<Int>
    var isPartial: Bool
    var text: Range<Int>

    /// A line without its line feed; nil if it is not in the format. Ranges are indices into `bytes`.
    init?(_ bytes: UnsafeRawBufferPointer, _ line: Range<Int>) {
        func word(from start: Int, longest: Int) -> Range<Int>? {
            var at = start
            while at < line.upperBound && at - start <= longest {
                if bytes[at] == 32 { return at > start ? start..<at : nil }
                at += 1
            }
            return nil
        }
        guard let time = word(from: line.lowerBound, longest: 40), bytes[time.lowerBound] >= 48,
            bytes[time.lowerBound] <= 57,
            let stream = word(from: time.upperBound + 1, longest: 6), stream.count == 6,
            bytes[stream.lowerBound] == 0x73
        else { return nil }
        // The tag may be followed by nothing when the text is empty.
        let tag = stream.upperBound + 1
        guard tag < line.upperBound, bytes[tag] == 0x50 || bytes[tag] == 0x46 else { return nil }
        // Further tags are separated by colons; none are defined yet.
        var end = tag + 1
        while end < line.upperBound && bytes[end] != 32 { end += 1 }
        guard end == tag + 1 || bytes[tag + 1] == 0x3A else { return nil }
        self.time = time
        self.stream = stream
        isPartial = bytes[tag] == 0x50
        text = min(end + 1, line.upperBound)..<line.upperBound
    }
}

/// Joins the parts of a container's lines. Knows where in which file the oldest unfinished line begins, so that a checkpoint
/// never passes over it.
struct CRIJoiner {
    /// An unfinished line of one stream.
    struct Open: Equatable {
        var stream: String
        var time: String
        var text: [UInt8]
        /// The file (by the caller's key) and offset where its first part stands.
        var file: UInt64
        var offset: UInt64
    }

    private(set) var open: [Open] = []
    /// A line longer than this is delivered in pieces.
    let limit: Int

    init(limit: Int = 1 << 20) { self.limit = limit }

    /// The record that this entry completes, if any.
    mutating func add(
        _ entry: CRIEntry, in bytes: UnsafeRawBufferPointer, file: UInt64, offset: UInt64, container: String
    ) -> LogRecord? {
        func text(_ range: Range<Int>) -> String {
            String(decoding: UnsafeRawBufferPointer(rebasing: bytes[range]), as: UTF8.self)
        }
        let payload = UnsafeRawBufferPointer(rebasing: bytes[entry.text])
        let stream = bytes[entry.stream.upperBound - 1] == 0x74 ? "stdout" : "stderr"
        if let i = open.firstIndex(where: { $0.stream == stream }) {
            open[i].text.append(contentsOf: payload)
            guard !entry.isPartial || open[i].text.count >= limit else { return nil }
            let whole = open.remove(at: i)
            return LogRecord(time: whole.time, container: container, stream: stream, message: whole.text)
        }
        if entry.isPartial {
            open.append(Open(stream: stream, time: text(entry.time), text: Array(payload), file: file, offset: offset))
            return nil
        }
        return LogRecord(time: text(entry.time), container: container, stream: stream, message: Array(payload))
    }

    /// Where the oldest unfinished line in `file` begins.
    func firstOpen(in file: UInt64) -> UInt64? { open.lazy.filter { $0.file == file }.map(\.offset).min() }

    /// The unfinished lines as records: nothing more will come.
    mutating func finish(container: String) -> [LogRecord] {
        defer { open = [] }
        return open.map { LogRecord(time: $0.time, container: container, stream: $0.stream, message: $0.text) }
    }

    mutating func clear() { open = [] }
}
