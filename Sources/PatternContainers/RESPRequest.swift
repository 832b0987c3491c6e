// Requests as clients of Redis send them: arrays of bulks, or inline lines. The parser hands over whole commands while they
// are small; of a large one only the beginning, as soon as it is known which command it is, then its body as it comes, so
// that a value of 64 MiB passes through without being held.
import Model

/// Cuts a client's byte stream into commands.
struct RESPRequestParser {
    /// A command whose first bytes are at hand.
    struct Command: Equatable {
        /// Where in the batch the bytes stand that belong to it (all of them, if `isWhole`).
        var range: Range<Int>
        /// Ranges in the batch of the arguments that are whole; all of them if `isWhole`.
        var arguments: [Range<Int>]
        /// False when it is larger than `wholeLimit`: the rest follows as ``Item/body``.
        var isWhole: Bool
        /// How many arguments it says it has.
        var count: Int
    }

    enum Item: Equatable {
        case command(Command)
        /// Further bytes of the command handed over last; `ends` with the command's last byte.
        case body(Range<Int>, ends: Bool)
        /// An inline command, in the array form; `[]` is an empty line and means nothing.
        case inline([[UInt8]])
        /// Nothing more in this batch.
        case needMore
    }

    static let bulkLimit = 512 << 20
    static let countLimit = 1 << 20
    static let inlineLimit = 65_536
    /// Largest command that is collected before it is handed over.
    let wholeLimit: Int

    /// Unfinished bytes of earlier feeds, then the new ones. Ranges refer to it until the next ``feed(_:)``.
    private(set) var batch: [UInt8] = []
    private var start = 0
    /// The unfinished command: how many arguments, which are whole, where scanning stands (all relative to `start`).
    private var count = -1
    private var arguments: [Range<Int>] = []
    private var scanned = 0
    /// Within a streamed command: arguments still to come (the present one included), bytes of the present bulk still to pass.
    private var streaming = false
    private var streamArguments = 0
    private var streamBulk = 0

    init(wholeLimit: Int = 65_536) { self.wholeLimit = wholeLimit }

    mutating func feed(_ bytes: UnsafeRawBufferPointer) {
        if start == batch.count { batch = Array(bytes) } else { batch = Array(batch[start...]) + bytes }
        start = 0
    }

    /// Bytes of an unfinished command that are held.
    var pendingBytes: Int { batch.count - start }

    /// Where the next item begins, for ``rewind(to:)`` before the next feed.
    var mark: Int { start }

    /// Hands whole items from `mark` on out again.
    mutating func rewind(to mark: Int) {
        start = mark
        count = -1
    }

    /// All that has not been handed over, for a connection that goes on as a raw stream.
    mutating func takePending() -> [UInt8] {
        defer {
            batch = []
            start = 0
            scanned = 0
            count = -1
            arguments = []
        }
        return Array(batch[start...])
    }

    /// The next item. An error's text is what Redis itself answers; the connection must be closed after it.
    mutating func next() throws(RESPError) -> Item {
        if streaming { return try nextBody() }
        guard start < batch.count else { return .needMore }
        if count < 0 {
            guard batch[start] == 0x2A else { return try nextInline() }
            guard
                let (value, after) = try number(
                    at: start + 1, what: "invalid multibulk length", limit: RESPRequestParser.countLimit)
            else {
                return .needMore
            }
            if value <= 0 {
                start = after
                return .inline([])
            }
            count = value
            arguments.removeAll(keepingCapacity: true)
            scanned = after - start
        }
        while arguments.count < count {
            let at = start + scanned
            guard at < batch.count else { return partial() }
            guard batch[at] == 0x24 else {
                throw RESPError(message: "Protocol error: expected '$', got '\(printable(batch[at]))'")
            }
            guard
                let (length, body) = try number(
                    at: at + 1, what: "invalid bulk length", limit: RESPRequestParser.bulkLimit)
            else {
                return partial()
            }
            guard length >= 0 else { throw RESPError(message: "Protocol error: invalid bulk length") }
            let end = body + length + 2
            guard end <= batch.count else { return partial() }
            arguments.append((body - start)..<(body - start + length))
            scanned = end - start
        }
        let command = Command(
            range: start..<start + scanned, arguments: arguments.map { $0.lowerBound + start..<$0.upperBound + start },
            isWhole: true,
            count: count)
        start += scanned
        count = -1
        return .command(command)
    }

    /// A command that is not whole: hand it over as a stream once it is large, else wait.
    private mutating func partial() -> Item {
        guard batch.count - start > wholeLimit else { return .needMore }
        // Up to `scanned` only, so that the body begins at an argument's header.
        let command = Command(
            range: start..<start + scanned, arguments: arguments.map { $0.lowerBound + start..<$0.upperBound + start },
            isWhole: false,
            count: count)
        streaming = true
        streamArguments = count - arguments.count
        streamBulk = 0
        start += scanned
        count = -1
        return .command(command)
    }

    private mutating func nextBody() throws(RESPError) -> Item {
        let from = start
        var at = start
        while streamArguments > 0 {
            if streamBulk > 0 {
                let n = min(streamBulk, batch.count - at)
                streamBulk -= n
                at += n
                if streamBulk > 0 { break }
                streamArguments -= 1
                continue
            }
            guard at < batch.count else { break }
            guard batch[at] == 0x24 else {
                throw RESPError(message: "Protocol error: expected '$', got '\(printable(batch[at]))'")
            }
            guard
                let (length, body) = try number(
                    at: at + 1, what: "invalid bulk length", limit: RESPRequestParser.bulkLimit)
            else { break }
            guard length >= 0 else { throw RESPError(message: "Protocol error: invalid bulk length") }
            streamBulk = length + 2
            at = body
        }
        start = at
        if streamArguments == 0 {
            streaming = false
            return .body(from..<at, ends: true)
        }
        return at == from ? .needMore : .body(from..<at, ends: false)
    }

    /// The number of a header line at `from`, and the index after its CR LF; nil if the line is not complete.
    private func number(at from: Int, what: String, limit: Int) throws(RESPError) -> (Int, Int)? {
        var at = from
        var value = 0
        var negative = false
        while at < batch.count {
            let byte = batch[at]
            if byte == 13 {
                guard at + 1 < batch.count else { return nil }
                guard batch[at + 1] == 10, at > from, !(negative && at == from + 1) else {
                    throw RESPError(message: "Protocol error: \(what)")
                }
                return (negative ? -value : value, at + 2)
            }
            if byte == 0x2D && at == from {
                negative = true
            } else {
                guard byte >= 48, byte <= 57, at - from < 12 else {
                    throw RESPError(message: "Protocol error: \(what)")
                }
                value = value * 10 + Int(byte - 48)
                guard value <= limit else { throw RESPError(message: "Protocol error: \(what)") }
            }
            at += 1
        }
        return nil
    }

    // MARK: - Inline commands

    private mutating func nextInline() throws(RESPError) -> Item {
        guard let end = batch[start...].firstIndex(of: 10) else {
            guard batch.count - start <= RESPRequestParser.inlineLimit else {
                throw RESPError(message: "Protocol error: too big inline request")
            }
            return .needMore
        }
        guard end - start <= RESPRequestParser.inlineLimit else {
            throw RESPError(message: "Protocol error: too big inline request")
        }
        var line = batch[start..<end]
        if line.last == 13 { line = line.dropLast() }
        start = end + 1
        guard let words = RESPRequestParser.split(line) else {
            throw RESPError(message: "Protocol error: unbalanced quotes in request")
        }
        return .inline(words)
    }

    /// Words as Redis' own `sdssplitargs` reads them: double quotes with C escapes, single quotes with `\'` only. Nil if quotes
    /// are not balanced or a closing quote is followed by more of the word.
    static func split(_ line: ArraySlice<UInt8>) -> [[UInt8]]? {
        func isSpace(_ c: UInt8) -> Bool { c == 32 || (c >= 9 && c <= 13) || c == 0 }
        var words: [[UInt8]] = []
        var at = line.startIndex
        let end = line.endIndex
        while true {
            while at < end && isSpace(line[at]) { at += 1 }
            guard at < end else { return words }
            var word: [UInt8] = []
            while at < end && !isSpace(line[at]) {
                let quote = line[at]
                guard quote == 0x22 || quote == 0x27 else {
                    word.append(quote)
                    at += 1
                    continue
                }
                at += 1
                while true {
                    guard at < end else { return nil }
                    let c = line[at]
                    at += 1
                    if c == quote { break }
                    if c == 0x5C && at < end {
                        let next = line[at]
                        if quote == 0x27 {
                            if next == 0x27 {
                                word.append(next)
                                at += 1
                            } else {
                                word.append(c)
                            }
                            continue
                        }
                        if next == 0x78, at + 2 < end, let high = hex(line[at + 1]), let low = hex(line[at + 2]) {
                            word.append(high << 4 | low)
                            at += 3
                            continue
                        }
                        switch next {
                        case 0x6E: word.append(10)
                        case 0x72: word.append(13)
                        case 0x74: word.append(9)
                        case 0x62: word.append(8)
                        case 0x61: word.append(7)
                        default: word.append(next)
                        }
                        at += 1
                    } else {
                        word.append(c)
                    }
                }
                guard at == end || isSpace(line[at]) else { return nil }
            }
            words.append(word)
        }
    }

    private static func hex(_ c: UInt8) -> UInt8? {
        switch c {
        case 48...57: c - 48
        case 97...102: c - 87
        case 65...70: c - 55
        default: nil
        }
    }

    private func printable(_ byte: UInt8) -> String { byte >= 32 && byte < 127 ? String(Unicode.Scalar(byte)) : "?" }
}
