// YAML as a tree in which every value knows its place. Scalars keep their text; what type a plain one has is decided when a
// field asks (see ``YAMLNode/Scalar``).

struct YAMLNode {
    enum Content {
        case scalar(Scalar)
        case sequence([YAMLNode])
        case mapping([Entry])
    }

    struct Entry {
        var key: String
        var place: Place
        var value: YAMLNode
    }

    var place: Place
    var content: Content
    /// Nodes in this tree, aliases expanded: what an alias to it costs.
    var size: Int

    /// What it is, for messages.
    var summary: String {
        switch content {
        case .sequence: "a list"
        case .mapping: "a mapping"
        case .scalar(let scalar): scalar.summary
        }
    }
}

/// A scalar's text, and whether it was written without quotes.
struct Scalar {
    /// The types of YAML's core schema, and what YAML 1.1 readers such as Kubernetes' would take a text for.
    enum Meaning: Equatable {
        case null
        case boolean(Bool)
        case integer(Int64)
        case float(Double)
        /// `yes`, `on`, `y` and their like: booleans to some readers, strings to others.
        case ambiguousBoolean
        /// `0x1F`, `0o17`, `017`, `1_000`, `.inf`: numbers to some readers.
        case ambiguousNumber
        case string
    }

    var text: String
    var plain: Bool
    var meaning: Meaning

    init(text: String, plain: Bool) {
        self.text = text
        self.plain = plain
        meaning = plain ? Scalar.resolve(text) : .string
    }

    var summary: String {
        switch meaning {
        case .null: "nothing"
        case .boolean(let value): "the boolean \(value)"
        case .integer, .float, .ambiguousNumber: "the number \(Scalar.excerpt(text))"
        case .ambiguousBoolean: "the bare word \(text)"
        case .string: "\"\(Scalar.excerpt(text))\""
        }
    }

    /// The beginning of a text, on one line and without control characters, which could drive a terminal.
    static func excerpt(_ text: String, limit: Int = 40) -> String {
        var out = ""
        for scalar in text.unicodeScalars.prefix(limit) {
            if scalar.value >= 0x20, scalar.value < 0x7F || scalar.value > 0x9F {
                out.unicodeScalars.append(scalar)
            } else {
                out += scalar == "\n" ? "\\n" : "\\u{\(String(scalar.value, radix: 16))}"
            }
        }
        return text.unicodeScalars.dropFirst(limit).first != nil ? out + "…" : out
    }

    static func resolve(_ text: String) -> Meaning {
        switch text {
        case "", "~", "null", "Null", "NULL": return .null
        case "true", "True", "TRUE": return .boolean(true)
        case "false", "False", "FALSE": return .boolean(false)
        case ".inf", ".Inf", ".INF", "+.inf", "-.inf", ".nan", ".NaN", ".NAN": return .ambiguousNumber
        case "y", "Y", "n", "N", "yes", "Yes", "YES", "no", "No", "NO", "on", "On", "ON", "off", "Off", "OFF":
            return .ambiguousBoolean
        default: break
        }
        let bytes = Array(text.utf8.prefix(65))
        let digits =
            bytes.first == UInt8(ascii: "-") || bytes.first == UInt8(ascii: "+") ? bytes.dropFirst() : bytes[...]
        guard bytes.count <= 64, let first = digits.first, isDigit(first) || first == UInt8(ascii: ".") else {
            return .string
        }
        if digits.allSatisfy(isDigit) {
            if first == UInt8(ascii: "0"), digits.count > 1 { return .ambiguousNumber }
            return Int64(text).map { .integer($0) } ?? .ambiguousNumber
        }
        let rest = digits.dropFirst(2)
        if first == UInt8(ascii: "0"), let mark = digits.dropFirst().first, !rest.isEmpty {
            let radix: UInt8? =
                mark == UInt8(ascii: "x") ? 16 : mark == UInt8(ascii: "o") ? 8 : mark == UInt8(ascii: "b") ? 2 : nil
            if let radix {
                let allowed = rest.allSatisfy { digit in
                    digit == UInt8(ascii: "_")
                        || Character(Unicode.Scalar(digit)).hexDigitValue.map { $0 < radix } == true
                }
                return allowed ? .ambiguousNumber : .string
            }
        }
        guard digits.allSatisfy({ isDigit($0) || "._eE+-".utf8.contains($0) }) else { return .string }
        if bytes.contains(UInt8(ascii: "_")) {
            return Double(text.filter { $0 != "_" }) == nil ? .string : .ambiguousNumber
        }
        return Double(text).map { .float($0) } ?? .string
    }

    private static func isDigit(_ byte: UInt8) -> Bool { byte >= 48 && byte <= 57 }
}
