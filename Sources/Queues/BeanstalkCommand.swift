// The command lines of the beanstalkd protocol, as beanstalkd 1.12 reads them: a command is known by its prefix, numbers may be preceded
// by several spaces, and what may follow the last argument differs from command to command.
import Model

enum BeanstalkCommand: Sendable, Hashable {
    /// Times in seconds; `size` is that of the body, which follows the line.
    case put(priority: UInt32, delay: UInt32, ttr: UInt32, size: Int)
    /// A put whose body must be swallowed: larger than the limit.
    case oversizedPut(size: Int)
    case peek(UInt64)
    case peekNext(JobView.State)
    /// Nil waits for ever.
    case reserve(timeout: UInt32?, isPlain: Bool)
    case reserveJob(UInt64)
    case delete(UInt64)
    case release(UInt64, priority: UInt32, delay: UInt32)
    case bury(UInt64, priority: UInt32)
    case kick(UInt32)
    case kickJob(UInt64)
    case touch(UInt64)
    case stats
    case statsJob(UInt64)
    case statsTube(String)
    case use(String)
    case watch(String)
    case ignore(String)
    case listTubes, listTubeUsed, listTubesWatched
    case pauseTube(String, seconds: UInt32)
    case quit

    enum Refusal: Error { case badFormat, unknown }

    /// Longest line, with its CR LF.
    static let lineBytes = 224

    /// `line` is without CR LF.
    init(line: ArraySlice<UInt8>, jobLimit: Int) throws(Refusal) {
        // A C string would end there.
        guard !line.contains(0) else { throw .badFormat }
        var words = Words(line)
        // The order is beanstalkd's: the first prefix that fits decides.
        if words.take("put ") {
            let (priority, delay, ttr) = (try words.u32(), try words.u32(), try words.u32())
            let size = try words.u32()
            if Int(size) > jobLimit {
                self = .oversizedPut(size: Int(size))
            } else {
                try words.end()
                self = .put(priority: priority, delay: delay, ttr: ttr, size: Int(size))
            }
        } else if words.take("peek ") {
            self = .peek(try words.lastID())
        } else if words.take("peek-ready") {
            try words.end()
            self = .peekNext(.ready)
        } else if words.take("peek-delayed") {
            try words.end()
            self = .peekNext(.delayed)
        } else if words.take("peek-buried") {
            try words.end()
            self = .peekNext(.buried)
        } else if words.take("reserve-with-timeout ") {
            self = .reserve(timeout: try words.timeout(), isPlain: false)
        } else if words.take("reserve-job ") {
            self = .reserveJob(try words.lastID())
        } else if words.take("reserve") {
            try words.end()
            self = .reserve(timeout: nil, isPlain: true)
        } else if words.take("delete ") {
            self = .delete(try words.lastID())
        } else if words.take("release ") {
            self = .release(try words.u64(), priority: try words.u32(), delay: try words.u32())
            try words.end()
        } else if words.take("bury ") {
            self = .bury(try words.u64(), priority: try words.u32())
            try words.end()
        } else if words.take("kick ") {
            // What follows the number is ignored, as beanstalkd does.
            self = .kick(UInt32(clamping: try words.u64()))
        } else if words.take("kick-job ") {
            self = .kickJob(try words.lastID())
        } else if words.take("touch ") {
            self = .touch(try words.lastID())
        } else if words.take("stats-job ") {
            self = .statsJob(try words.lastID())
        } else if words.take("stats-tube ") {
            self = .statsTube(try words.lastTube())
        } else if words.take("stats") {
            try words.end()
            self = .stats
        } else if words.take("use ") {
            self = .use(try words.lastTube())
        } else if words.take("watch ") {
            self = .watch(try words.lastTube())
        } else if words.take("ignore ") {
            self = .ignore(try words.lastTube())
        } else if words.take("list-tubes-watched") {
            try words.end()
            self = .listTubesWatched
        } else if words.take("list-tube-used") {
            try words.end()
            self = .listTubeUsed
        } else if words.take("list-tubes") {
            try words.end()
            self = .listTubes
        } else if words.take("quit") {
            self = .quit
        } else if words.take("pause-tube ") {
            let name = try words.tube()
            let seconds = try words.u32()
            try words.end()
            guard QueueLimits.isValidTube(name) else { throw .badFormat }
            self = .pauseTube(name, seconds: seconds)
        } else {
            throw .unknown
        }
    }

    private struct Words {
        private var rest: ArraySlice<UInt8>

        init(_ line: ArraySlice<UInt8>) { rest = line }

        mutating func take(_ prefix: StaticString) -> Bool {
            let count = prefix.utf8CodeUnitCount
            guard rest.count >= count else { return false }
            let start = prefix.utf8Start
            for i in 0..<count where rest[rest.startIndex + i] != start[i] { return false }
            rest = rest.dropFirst(count)
            return true
        }

        func end() throws(Refusal) {
            guard rest.isEmpty else { throw .badFormat }
        }

        mutating func u64() throws(Refusal) -> UInt64 {
            rest = rest.drop { $0 == UInt8(ascii: " ") }
            guard let first = rest.first, isDigit(first) else { throw .badFormat }
            var value: UInt64 = 0
            while let byte = rest.first, isDigit(byte) {
                let (product, overflow) = value.multipliedReportingOverflow(by: 10)
                let (sum, carry) = product.addingReportingOverflow(UInt64(byte - UInt8(ascii: "0")))
                guard !overflow, !carry else { throw .badFormat }
                value = sum
                rest = rest.dropFirst()
            }
            return value
        }

        mutating func u32() throws(Refusal) -> UInt32 {
            guard let value = UInt32(exactly: try u64()) else { throw .badFormat }
            return value
        }

        mutating func lastID() throws(Refusal) -> UInt64 {
            let value = try u64()
            try end()
            return value
        }

        /// beanstalkd reads it with `strtol`: no digits are 0, what follows is ignored, and a negative number (also one that only becomes
        /// negative in 32 bits) waits for ever.
        mutating func timeout() throws(Refusal) -> UInt32? {
            rest = rest.drop { $0 == UInt8(ascii: " ") }
            let isNegative = rest.first == UInt8(ascii: "-")
            if isNegative || rest.first == UInt8(ascii: "+") { rest = rest.dropFirst() }
            guard let first = rest.first, isDigit(first) else { return 0 }
            let value = try u64()
            guard value <= UInt64(Int64.max) else { throw .badFormat }
            return isNegative && value > 0 || value > UInt64(Int32.max) ? nil : UInt32(value)
        }

        mutating func tube() throws(Refusal) -> String {
            rest = rest.drop { $0 == UInt8(ascii: " ") }
            let name = rest.prefix(while: QueueLimits.isNameByte)
            guard !name.isEmpty else { throw .badFormat }
            rest = rest.dropFirst(name.count)
            return String(decoding: name, as: UTF8.self)
        }

        func lastTube() throws(Refusal) -> String {
            guard QueueLimits.isValidTube(rest) else { throw .badFormat }
            return String(decoding: rest, as: UTF8.self)
        }

        private func isDigit(_ byte: UInt8) -> Bool { byte >= UInt8(ascii: "0") && byte <= UInt8(ascii: "9") }
    }
}

/// Counts of commands by kind, for `stats`.
public struct BeanstalkCounts: Sendable, Hashable {
    public enum Kind: Int, Sendable, CaseIterable {
        case put, peek, peekReady, peekDelayed, peekBuried, reserve, reserveWithTimeout, delete, release, use, watch,
            ignore, bury, kick
        case touch, stats, statsJob, statsTube, listTubes, listTubeUsed, listTubesWatched, pauseTube
    }

    /// Empty until the first is counted: most connections of a large node are idle.
    private var values: [UInt64] = []

    public init() {}

    public internal(set) subscript(kind: Kind) -> UInt64 {
        get { values.isEmpty ? 0 : values[kind.rawValue] }
        set {
            if values.isEmpty { values = Array(repeating: 0, count: Kind.allCases.count) }
            values[kind.rawValue] = newValue
        }
    }

    public static func += (a: inout Self, b: Self) {
        for kind in Kind.allCases where b[kind] > 0 { a[kind] &+= b[kind] }
    }
}
