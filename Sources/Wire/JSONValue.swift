/// A JSON document (RFC 8259) whose objects keep their order. Cores and the node answer queries with it, without
/// Foundation; numbers are kept as Int64 where they are whole, else Double.
public indirect enum JSONValue: Hashable, Sendable {
    case null
    case bool(Bool)
    case int(Int64)
    case double(Double)
    case string(String)
    case array([JSONValue])
    case object([Member])

    public struct Member: Hashable, Sendable {
        public var key: String
        public var value: JSONValue
        public init(_ key: String, _ value: JSONValue) {
            self.key = key
            self.value = value
        }
    }

    /// The value of the first member named `key`, or nil.
    public subscript(key: String) -> JSONValue? {
        guard case .object(let members) = self else { return nil }
        return members.first { $0.key == key }?.value
    }

    public var stringValue: String? { if case .string(let s) = self { s } else { nil } }
    public var boolValue: Bool? { if case .bool(let b) = self { b } else { nil } }
    public var arrayValue: [JSONValue]? { if case .array(let a) = self { a } else { nil } }
    public var objectValue: [Member]? { if case .object(let o) = self { o } else { nil } }
    public var isNull: Bool { self == .null }
    public var intValue: Int64? {
        switch self {
        case .int(let i): i
        case .double(let d): Int64(exactly: d)
        default: nil
        }
    }
    public var doubleValue: Double? {
        switch self {
        case .int(let i): Double(i)
        case .double(let d): d
        default: nil
        }
    }
}

extension JSONValue: ExpressibleByStringLiteral, ExpressibleByIntegerLiteral, ExpressibleByBooleanLiteral,
    ExpressibleByFloatLiteral,
    ExpressibleByArrayLiteral, ExpressibleByDictionaryLiteral, ExpressibleByNilLiteral
{
    public init(stringLiteral value: String) { self = .string(value) }
    public init(integerLiteral value: Int64) { self = .int(value) }
    public init(booleanLiteral value: Bool) { self = .bool(value) }
    public init(floatLiteral value: Double) { self = .double(value) }
    public init(arrayLiteral elements: JSONValue...) { self = .array(elements) }
    public init(dictionaryLiteral elements: (String, JSONValue)...) {
        self = .object(elements.map { Member($0.0, $0.1) })
    }
    public init(nilLiteral: ()) { self = .null }
    public init(_ value: some BinaryInteger) { self = .int(Int64(clamping: value)) }
    public init(_ value: String?) { self = value.map { .string($0) } ?? .null }
}

// MARK: - Writing

extension JSONValue {
    /// Compact text, without a final newline; `pretty` indents by two spaces.
    public func text(pretty: Bool = false) -> String {
        var out: [UInt8] = []
        write(into: &out, indent: pretty ? 0 : nil)
        return String(decoding: out, as: UTF8.self)
    }

    public var utf8: [UInt8] {
        var out: [UInt8] = []
        write(into: &out, indent: nil)
        return out
    }

    private func write(into out: inout [UInt8], indent: Int?) {
        func newline(_ depth: Int) {
            out.append(10)
            out.append(contentsOf: repeatElement(32, count: depth * 2))
        }
        switch self {
        case .null: out.append(contentsOf: "null".utf8)
        case .bool(let value): out.append(contentsOf: (value ? "true" : "false").utf8)
        case .int(let value): out.append(contentsOf: String(value).utf8)
        case .double(let value):
            // JSON has no infinities and no NaN.
            out.append(contentsOf: (value.isFinite ? "\(value)" : "null").utf8)
        case .string(let value): JSONValue.quote(value, into: &out)
        case .array(let items):
            out.append(UInt8(ascii: "["))
            for (i, item) in items.enumerated() {
                if i > 0 { out.append(UInt8(ascii: ",")) }
                if let indent { newline(indent + 1) }
                item.write(into: &out, indent: indent.map { $0 + 1 })
            }
            if let indent, !items.isEmpty { newline(indent) }
            out.append(UInt8(ascii: "]"))
        case .object(let members):
            out.append(UInt8(ascii: "{"))
            for (i, member) in members.enumerated() {
                if i > 0 { out.append(UInt8(ascii: ",")) }
                if let indent { newline(indent + 1) }
                JSONValue.quote(member.key, into: &out)
                out.append(UInt8(ascii: ":"))
                if indent != nil { out.append(32) }
                member.value.write(into: &out, indent: indent.map { $0 + 1 })
            }
            if let indent, !members.isEmpty { newline(indent) }
            out.append(UInt8(ascii: "}"))
        }
    }

    private static func quote(_ text: String, into out: inout [UInt8]) {
        out.append(UInt8(ascii: "\""))
        for byte in text.utf8 {
            switch byte {
            case UInt8(ascii: "\""): out.append(contentsOf: #"\""#.utf8)
            case UInt8(ascii: "\\"): out.append(contentsOf: #"\\"#.utf8)
            case 8: out.append(contentsOf: #"\b"#.utf8)
            case 9: out.append(contentsOf: #"\t"#.utf8)
            case 10: out.append(contentsOf: #"\n"#.utf8)
            case 12: out.append(contentsOf: #"\f"#.utf8)
            case 13: out.append(contentsOf: #"\r"#.utf8)
            case 0..<32, 127:
                let hex = Array("0123456789abcdef".utf8)
                out.append(contentsOf: #"\u00"#.utf8)
                out.append(hex[Int(byte >> 4)])
                out.append(hex[Int(byte & 15)])
            default: out.append(byte)
            }
        }
        out.append(UInt8(ascii: "\""))
    }
}

// MARK: - Reading

/// Why a text is not JSON; `offset` is in bytes.
public struct JSONError: Error, Hashable, Sendable, CustomStringConvertible {
    public var offset: Int
    public var message: String
    public var description: String { "invalid JSON at byte \(offset): \(message)" }
}

extension JSONValue {
    /// Parses one whole document. Depth is limited to 128, so that hostile input can not exhaust the stack.
    public init(parsing bytes: some Collection<UInt8>) throws(JSONError) {
        var parser = JSONParser(Array(bytes))
        self = try parser.document()
    }

    public init(parsing text: String) throws(JSONError) { try self.init(parsing: Array(text.utf8)) }
}

private struct JSONParser {
    let bytes: [UInt8]
    var at = 0

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    func fail(_ message: String) -> JSONError { JSONError(offset: at, message: message) }
    var peek: UInt8? { at < bytes.count ? bytes[at] : nil }

    mutating func space() {
        while let c = peek, c == 32 || c == 10 || c == 13 || c == 9 { at += 1 }
    }

    mutating func document() throws(JSONError) -> JSONValue {
        let value = try value(depth: 0)
        space()
        guard at == bytes.count else { throw fail("text after the document") }
        return value
    }

    mutating func value(depth: Int) throws(JSONError) -> JSONValue {
        guard depth < 128 else { throw fail("nested too deeply") }
        space()
        guard let c = peek else { throw fail("unexpected end") }
        switch c {
        case UInt8(ascii: "{"):
            at += 1
            var members: [JSONValue.Member] = []
            space()
            if peek == UInt8(ascii: "}") {
                at += 1
                return .object([])
            }
            while true {
                space()
                guard peek == UInt8(ascii: "\"") else { throw fail("expected a member's name") }
                let key = try string()
                space()
                guard peek == UInt8(ascii: ":") else { throw fail("expected ':'") }
                at += 1
                members.append(.init(key, try value(depth: depth + 1)))
                space()
                if peek == UInt8(ascii: ",") {
                    at += 1
                    continue
                }
                guard peek == UInt8(ascii: "}") else { throw fail("expected ',' or '}'") }
                at += 1
                return .object(members)
            }
        case UInt8(ascii: "["):
            at += 1
            var items: [JSONValue] = []
            space()
            if peek == UInt8(ascii: "]") {
                at += 1
                return .array([])
            }
            while true {
                items.append(try value(depth: depth + 1))
                space()
                if peek == UInt8(ascii: ",") {
                    at += 1
                    continue
                }
                guard peek == UInt8(ascii: "]") else { throw fail("expected ',' or ']'") }
                at += 1
                return .array(items)
            }
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t"): return try word("true", .bool(true))
        case UInt8(ascii: "f"): return try word("false", .bool(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        case UInt8(ascii: "-"), UInt8(ascii: "0")...UInt8(ascii: "9"): return try number()
        default: throw fail("unexpected character")
        }
    }

    mutating func word(_ text: String, _ value: JSONValue) throws(JSONError) -> JSONValue {
        guard bytes[at...].starts(with: text.utf8) else { throw fail("unexpected character") }
        at += text.utf8.count
        return value
    }

    mutating func digits() throws(JSONError) {
        let start = at
        while let c = peek, c >= 48, c <= 57 { at += 1 }
        if at == start { throw fail("expected a digit") }
    }

    mutating func number() throws(JSONError) -> JSONValue {
        let start = at
        var whole = true
        if peek == UInt8(ascii: "-") { at += 1 }
        if peek == UInt8(ascii: "0") { at += 1 } else { try digits() }
        if let c = peek, c >= 48, c <= 57 { throw fail("a number must not begin with 0") }
        if peek == UInt8(ascii: ".") {
            whole = false
            at += 1
            try digits()
        }
        if let c = peek, c | 32 == UInt8(ascii: "e") {
            whole = false
            at += 1
            if let sign = peek, sign == UInt8(ascii: "+") || sign == UInt8(ascii: "-") { at += 1 }
            try digits()
        }
        let text = String(decoding: bytes[start..<at], as: UTF8.self)
        if whole, let int = Int64(text) { return .int(int) }
        guard let double = Double(text), double.isFinite else { throw fail("number out of range") }
        return .double(double)
    }

    mutating func string() throws(JSONError) -> String {
        at += 1
        var out: [UInt8] = []
        while let c = peek {
            at += 1
            switch c {
            case UInt8(ascii: "\""):
                guard let text = String(validating: out, as: UTF8.self) else { throw fail("string is not UTF-8") }
                return text
            case UInt8(ascii: "\\"):
                guard let escape = peek else { throw fail("unexpected end") }
                at += 1
                switch escape {
                case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): out.append(escape)
                case UInt8(ascii: "b"): out.append(8)
                case UInt8(ascii: "f"): out.append(12)
                case UInt8(ascii: "n"): out.append(10)
                case UInt8(ascii: "r"): out.append(13)
                case UInt8(ascii: "t"): out.append(9)
                case UInt8(ascii: "u"):
                    var code = UInt32(try hex4())
                    if code & 0xFC00 == 0xD800 {
                        guard bytes[at...].starts(with: #"\u"#.utf8) else { throw fail("unpaired surrogate") }
                        at += 2
                        let low = UInt32(try hex4())
                        guard low & 0xFC00 == 0xDC00 else { throw fail("unpaired surrogate") }
                        code = 0x10000 + (code & 0x3FF) << 10 + (low & 0x3FF)
                    }
                    guard let scalar = Unicode.Scalar(code) else { throw fail("unpaired surrogate") }
                    out.append(contentsOf: String(Character(scalar)).utf8)
                default: throw fail("unknown escape")
                }
            case 0..<32: throw fail("control character in a string")
            default: out.append(c)
            }
        }
        throw fail("string without an end")
    }

    mutating func hex4() throws(JSONError) -> UInt16 {
        guard bytes.count - at >= 4 else { throw fail("unexpected end") }
        let text = bytes[at..<at + 4]
        guard text.allSatisfy({ ($0 >= 48 && $0 <= 57) || ($0 | 32 >= 97 && $0 | 32 <= 102) }),
            let value = UInt16(String(decoding: text, as: UTF8.self), radix: 16)
        else { throw fail("expected four hexadecimal digits") }
        at += 4
        return value
    }
}
