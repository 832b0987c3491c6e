// Replies of Redis (RESP2 and RESP3). A proxy needs to know only where a reply ends, not what it says: the scanner counts
// items and skips bulk bodies without copying or nesting. The ambassador's own questions need the value: a small bounded tree.
import Model

/// Bytes that are not RESP, or are more than we take.
struct RESPError: Error, Hashable, CustomStringConvertible {
    var message: String
    var description: String { message }
}

/// Finds the ends of replies in a byte stream, fed in pieces of any size. State is a few integers whatever the reply's size
/// and depth.
struct RESPReplyScanner {
    /// Items (of aggregates, at any depth) still to come before the reply is complete; 0 between replies.
    private var remaining = 0
    /// Bytes of a bulk body, its CR LF included, still to be skipped.
    private var bulk = 0
    /// The line being read: its type, its number so far, how many bytes after the type.
    private var type: UInt8 = 0
    private var number = 0
    private var negative = false
    private var lineBytes = 0
    private var sawCR = false

    /// Largest bulk, and most items of one reply that are believed.
    static let bulkLimit = 4 << 30
    static let itemLimit = 1 << 32
    static let lineLimit = 1 << 20

    enum Progress: Equatable {
        /// All bytes are consumed and the reply goes on.
        case more
        /// The reply ends before this index.
        case complete(end: Int)
    }

    var isBetweenReplies: Bool { remaining == 0 && type == 0 && bulk == 0 }

    /// Reads on from `start`. After `.complete` the next call begins a new reply.
    mutating func scan(_ bytes: UnsafeRawBufferPointer, from start: Int) throws(RESPError) -> Progress {
        var at = start
        let end = bytes.count
        if isBetweenReplies { remaining = 1 }
        while at < end {
            if bulk > 0 {
                let n = min(bulk, end - at)
                bulk -= n
                at += n
                if bulk > 0 { return .more }
                if remaining == 0 { return .complete(end: at) }
                continue
            }
            let byte = bytes[at]
            at += 1
            if type == 0 {
                switch byte {
                case 0x2B, 0x2D, 0x3A, 0x5F, 0x23, 0x2C, 0x28,  // + - : _ # , (
                    0x24, 0x3D, 0x21,  // $ = !
                    0x2A, 0x25, 0x7E, 0x3E, 0x7C:  // * % ~ > |
                    type = byte
                    number = 0
                    negative = false
                    lineBytes = 0
                    sawCR = false
                default: throw RESPError(message: "a reply begins with byte \(byte)")
                }
                continue
            }
            if sawCR {
                guard byte == 10 else { throw RESPError(message: "CR without LF in a reply") }
                try endOfLine()
                if remaining == 0 && bulk == 0 { return .complete(end: at) }
                continue
            }
            if byte == 13 {
                sawCR = true
                continue
            }
            lineBytes += 1
            guard lineBytes <= RESPReplyScanner.lineLimit else {
                throw RESPError(message: "a line of a reply is too long")
            }
            switch type {
            case 0x24, 0x3D, 0x21, 0x2A, 0x25, 0x7E, 0x3E, 0x7C:
                if byte == 0x2D && lineBytes == 1 {
                    negative = true
                } else {
                    guard byte >= 48, byte <= 57, lineBytes <= 15 else {
                        throw RESPError(message: "malformed length in a reply")
                    }
                    number = number * 10 + Int(byte - 48)
                }
            default:
                // The text of a simple line; skip to its end at once.
                while at < end && bytes[at] != 13 {
                    at += 1
                    lineBytes += 1
                }
            }
        }
        return .more
    }

    private mutating func endOfLine() throws(RESPError) {
        defer { type = 0 }
        switch type {
        case 0x24, 0x3D, 0x21:
            try checkNumber()
            remaining -= 1
            if negative { return }
            guard number <= RESPReplyScanner.bulkLimit else {
                throw RESPError(message: "a bulk of \(number) bytes in a reply")
            }
            bulk = number + 2
        case 0x2A, 0x7E, 0x3E:
            try checkNumber()
            remaining -= 1
            if !negative { try add(number) }
        case 0x25:
            try checkNumber()
            remaining -= 1
            if !negative { try add(number * 2) }
        case 0x7C:
            // Attributes precede the item that they describe and are none themselves.
            try checkNumber()
            if !negative { try add(number * 2) }
        default: remaining -= 1
        }
    }

    private func checkNumber() throws(RESPError) {
        guard lineBytes > (negative ? 1 : 0), !negative || number == 1 else {
            throw RESPError(message: "malformed length in a reply")
        }
    }

    private mutating func add(_ items: Int) throws(RESPError) {
        guard items <= RESPReplyScanner.itemLimit, remaining + items <= RESPReplyScanner.itemLimit else {
            throw RESPError(message: "a reply of more than \(RESPReplyScanner.itemLimit) items")
        }
        remaining += items
    }
}

/// A decoded RESP2 reply, for the ambassador's own connections.
indirect enum RESPValue: Equatable {
    case simple(String)
    case error(String)
    case integer(Int64)
    case bulk([UInt8]?)
    case array([RESPValue]?)

    var text: String? {
        switch self {
        case .simple(let text): text
        case .bulk(let bytes): bytes.map { String(decoding: $0, as: UTF8.self) }
        case .integer(let value): String(value)
        case .error, .array: nil
        }
    }

    var items: [RESPValue]? { if case .array(let items) = self { items } else { nil } }
    var errorText: String? { if case .error(let text) = self { text } else { nil } }

    /// One whole reply. Depth at most 32; the input's own size bounds the rest.
    init(parsing bytes: [UInt8]) throws(RESPError) {
        var at = 0
        self = try RESPValue.parse(bytes, &at, depth: 0)
        guard at == bytes.count else { throw RESPError(message: "bytes after a reply") }
    }

    private static func parse(_ bytes: [UInt8], _ at: inout Int, depth: Int) throws(RESPError) -> RESPValue {
        guard depth < 32 else { throw RESPError(message: "a reply nested too deeply") }
        guard at < bytes.count, let cr = bytes[at...].firstIndex(of: 13), cr + 1 < bytes.count, bytes[cr + 1] == 10
        else {
            throw RESPError(message: "truncated reply")
        }
        let type = bytes[at]
        let line = String(decoding: bytes[(at + 1)..<cr], as: UTF8.self)
        at = cr + 2
        func length() throws(RESPError) -> Int {
            guard let n = Int(line), n >= -1, n <= bytes.count else {
                throw RESPError(message: "malformed length in a reply")
            }
            return n
        }
        switch type {
        case 0x2B: return .simple(line)
        case 0x2D: return .error(line)
        case 0x3A:
            guard let value = Int64(line) else { throw RESPError(message: "malformed integer in a reply") }
            return .integer(value)
        case 0x24:
            let n = try length()
            if n < 0 { return .bulk(nil) }
            guard bytes.count - at >= n + 2 else { throw RESPError(message: "truncated reply") }
            defer { at += n + 2 }
            return .bulk(Array(bytes[at..<at + n]))
        case 0x2A:
            let n = try length()
            if n < 0 { return .array(nil) }
            var items: [RESPValue] = []
            for _ in 0..<n { items.append(try parse(bytes, &at, depth: depth + 1)) }
            return .array(items)
        default: throw RESPError(message: "a reply begins with byte \(type)")
        }
    }
}

enum RESP {
    /// A command as clients send it.
    static func command(_ arguments: [[UInt8]]) -> [UInt8] {
        var out = Array("*\(arguments.count)\r\n".utf8)
        for argument in arguments {
            out.append(contentsOf: "$\(argument.count)\r\n".utf8)
            out.append(contentsOf: argument)
            out.append(13)
            out.append(10)
        }
        return out
    }

    static func command(_ arguments: String...) -> [UInt8] { command(arguments.map { Array($0.utf8) }) }

    static func error(_ text: String) -> [UInt8] {
        Array("-\(text.filter { $0 != "\r" && $0 != "\n" && $0 != "\r\n" })\r\n".utf8)
    }
    static let ok = Array("+OK\r\n".utf8)
}
