// The part of EDN (extensible data notation) in which Jepsen keeps histories: nil, booleans, integers, strings, keywords,
// vectors and maps. Commas are white space. https://github.com/edn-format/edn

public indirect enum EDNValue: Hashable, Sendable, CustomStringConvertible {
    case null
    case bool(Bool)
    case int(Int64)
    case string(String)
    /// Without its colon.
    case keyword(String)
    case vector([EDNValue])
    /// In the order of the text; keys are keywords nearly always.
    case map([(EDNValue, EDNValue)])

    public static func == (a: EDNValue, b: EDNValue) -> Bool { a.description == b.description }
    public func hash(into hasher: inout Hasher) { hasher.combine(description) }

    /// The value of a keyword in a map.
    public subscript(key: String) -> EDNValue? {
        guard case .map(let pairs) = self else { return nil }
        return pairs.first {
            if case .keyword(key) = $0.0 { true } else { false }
        }?.1
    }

    public var int: Int64? { if case .int(let value) = self { value } else { nil } }
    public var string: String? { if case .string(let value) = self { value } else { nil } }
    public var keyword: String? { if case .keyword(let value) = self { value } else { nil } }
    public var vector: [EDNValue]? { if case .vector(let value) = self { value } else { nil } }
    /// Not negative.
    public var unsigned: UInt64? { int.flatMap { UInt64(exactly: $0) } }

    static func fields(_ pairs: KeyValuePairs<String, EDNValue>) -> EDNValue {
        .map(pairs.map { (.keyword($0.key), $0.value) })
    }
    static func number(_ value: UInt64) -> EDNValue { .int(Int64(clamping: value)) }

    public var description: String {
        switch self {
        case .null: "nil"
        case .bool(let value): value ? "true" : "false"
        case .int(let value): String(value)
        case .string(let value): EDNValue.quoted(value)
        case .keyword(let name): ":" + name
        case .vector(let items): "[" + items.map(\.description).joined(separator: " ") + "]"
        case .map(let pairs): "{" + pairs.map { "\($0.0) \($0.1)" }.joined(separator: ", ") + "}"
        }
    }

    static func quoted(_ text: String) -> String {
        var result = "\""
        for character in text.unicodeScalars {
            switch character {
            case "\"": result += "\\\""
            case "\\": result += "\\\\"
            case "\n": result += "\\n"
            case "\t": result += "\\t"
            case "\r": result += "\\r"
            default: result.unicodeScalars.append(character)
            }
        }
        return result + "\""
    }
}

/// Text that is not what it should be.
public struct HistoryFormatError: Error, Hashable, CustomStringConvertible {
    /// From 1; 0 if it is not known.
    public var line: Int
    public var what: String
    public var description: String { line == 0 ? what : "line \(line): \(what)" }
}

/// Reads EDN forms out of bytes, one after another.
struct EDNParser {
    /// Deeper nesting is refused.
    static let depth = 32

    private let bytes: [UInt8]
    private var position = 0
    private(set) var line = 1

    init(_ bytes: [UInt8], line: Int = 1) {
        self.bytes = bytes
        self.line = line
    }

    private func error(_ what: String) -> HistoryFormatError { HistoryFormatError(line: line, what: what) }

    private mutating func skip() {
        while position < bytes.count {
            switch bytes[position] {
            case 10:
                line += 1
                position += 1
            case 32, 9, 13, UInt8(ascii: ","): position += 1
            case UInt8(ascii: ";"): while position < bytes.count, bytes[position] != 10 { position += 1 }
            default: return
            }
        }
    }

    var isAtEnd: Bool {
        mutating get {
            skip()
            return position >= bytes.count
        }
    }

    mutating func next(depth: Int = EDNParser.depth) throws(HistoryFormatError) -> EDNValue {
        skip()
        guard depth > 0 else { throw error("nested too deeply") }
        guard position < bytes.count else { throw error("the text ends in the middle") }
        switch bytes[position] {
        case UInt8(ascii: "{"):
            let items = try list(until: UInt8(ascii: "}"), depth: depth)
            guard items.count % 2 == 0 else { throw error("a map with a key without value") }
            return .map(stride(from: 0, to: items.count, by: 2).map { (items[$0], items[$0 + 1]) })
        case UInt8(ascii: "["): return .vector(try list(until: UInt8(ascii: "]"), depth: depth))
        case UInt8(ascii: "\""): return .string(try text())
        case UInt8(ascii: ":"):
            position += 1
            let name = word()
            guard !name.isEmpty else { throw error("a keyword without name") }
            return .keyword(name)
        default:
            let name = word()
            switch name {
            case "nil": return .null
            case "true": return .bool(true)
            case "false": return .bool(false)
            default:
                guard let number = Int64(name) else {
                    throw error(name.isEmpty ? "an unexpected character" : "\"\(name)\" is not understood")
                }
                return .int(number)
            }
        }
    }

    private mutating func list(until close: UInt8, depth: Int) throws(HistoryFormatError) -> [EDNValue] {
        position += 1
        var items: [EDNValue] = []
        while true {
            skip()
            guard position < bytes.count else { throw error("the text ends in the middle") }
            if bytes[position] == close {
                position += 1
                return items
            }
            items.append(try next(depth: depth - 1))
        }
    }

    private mutating func word() -> String {
        let start = position
        while position < bytes.count {
            switch bytes[position] {
            case 32, 9, 10, 13, UInt8(ascii: ","), UInt8(ascii: "{"), UInt8(ascii: "}"), UInt8(ascii: "["),
                UInt8(ascii: "]"), UInt8(ascii: "\""), UInt8(ascii: "("), UInt8(ascii: ")"):
                return String(decoding: bytes[start..<position], as: UTF8.self)
            default: position += 1
            }
        }
        return String(decoding: bytes[start..<position], as: UTF8.self)
    }

    private mutating func text() throws(HistoryFormatError) -> String {
        position += 1
        var result: [UInt8] = []
        while position < bytes.count {
            let byte = bytes[position]
            position += 1
            switch byte {
            case UInt8(ascii: "\""): return String(decoding: result, as: UTF8.self)
            case UInt8(ascii: "\\"):
                guard position < bytes.count else { throw error("the text ends in the middle") }
                switch bytes[position] {
                case UInt8(ascii: "n"): result.append(10)
                case UInt8(ascii: "t"): result.append(9)
                case UInt8(ascii: "r"): result.append(13)
                case UInt8(ascii: "\""), UInt8(ascii: "\\"): result.append(bytes[position])
                default: throw error("an unknown escape")
                }
                position += 1
            case 10: throw error("a text without end")
            default: result.append(byte)
            }
        }
        throw error("a text without end")
    }
}
