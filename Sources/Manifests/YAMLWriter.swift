// Block-style YAML. Texts are bare where every reader takes them for the same string, block literals where they are lines of
// plain text, else double-quoted with escapes.
import Model

struct YAMLWriter {
    private(set) var text = ""
    private var depth = 0
    /// The next field is the first of a list item and stands behind its dash.
    private var pendingDash = false

    mutating func document() {
        if !text.isEmpty { text += "---\n" }
    }

    mutating func field(_ key: String, _ value: String) {
        let lead = indentation()
        if let block = YAMLWriter.block(value, indent: depth + 1) {
            text += "\(lead)\(YAMLWriter.scalar(key)): \(block)"
        } else {
            text += "\(lead)\(YAMLWriter.scalar(key)): \(YAMLWriter.scalar(value))\n"
        }
    }

    /// A value that stands as it is: a number, `true`, `{}`.
    mutating func raw(_ key: String, _ value: String) {
        text += "\(indentation())\(YAMLWriter.scalar(key)): \(value)\n"
    }

    /// Whole seconds, rounded up.
    mutating func seconds(_ key: String, _ span: TimeSpan) {
        let whole = span.nanoseconds / 1_000_000_000 + (span.nanoseconds % 1_000_000_000 > 0 ? 1 : 0)
        raw(key, String(whole))
    }

    mutating func nested(_ key: String, _ body: (inout YAMLWriter) -> Void) {
        text += "\(indentation())\(YAMLWriter.scalar(key)):\n"
        depth += 1
        body(&self)
        depth -= 1
    }

    /// Nothing if the map is empty.
    mutating func map(_ key: String, _ values: [String: String]) {
        if values.isEmpty { return }
        nested(key) { writer in
            for key in values.keys.sorted() { writer.field(key, values[key] ?? "") }
        }
    }

    /// Nothing if the list is empty.
    mutating func list<Item>(_ key: String, _ items: [Item], _ body: (Item, inout YAMLWriter) -> Void) {
        if items.isEmpty { return }
        nested(key) { writer in
            for item in items {
                writer.pendingDash = true
                writer.depth += 1
                body(item, &writer)
                writer.depth -= 1
            }
        }
    }

    /// Nothing if the list is empty; on one line while that is short.
    mutating func strings(_ key: String, _ items: [String]) {
        if items.isEmpty { return }
        let line = "[" + items.map { YAMLWriter.scalar($0, inFlow: true) }.joined(separator: ", ") + "]"
        if line.utf8.count <= 100 { return raw(key, line) }
        nested(key) { writer in
            for item in items {
                writer.pendingDash = true
                writer.depth += 1
                let lead = writer.indentation()
                writer.text += lead + (YAMLWriter.block(item, indent: writer.depth) ?? YAMLWriter.scalar(item) + "\n")
                writer.depth -= 1
            }
        }
    }

    private mutating func indentation() -> String {
        guard pendingDash else { return String(repeating: "  ", count: depth) }
        pendingDash = false
        return String(repeating: "  ", count: depth - 1) + "- "
    }

    // MARK: - Scalars

    /// A literal block with its header and final line break; nil unless the text is several lines of visible characters.
    private static func block(_ value: String, indent: Int) -> String? {
        guard value.unicodeScalars.dropLast().contains("\n"), value.first != " ", value.first != "\n",
            value.first != "\t"
        else { return nil }
        let plain = value.unicodeScalars.allSatisfy { scalar in
            scalar == "\n" || scalar == "\t" || (scalar.value >= 0x20 && scalar.value < 0x7F)
                || (scalar.value >= 0xA0 && scalar.value < 0x2028)
        }
        let lines = value.unicodeScalars.split(separator: "\n", omittingEmptySubsequences: false).map { String($0) }
        let ends = lines.last == ""
        // `|-` drops the final line break, `|` keeps exactly one; more are left to the quoted form.
        guard plain, !(ends && lines.dropLast().last == ""),
            lines.allSatisfy({ !$0.hasSuffix(" ") && !$0.hasSuffix("\t") })
        else { return nil }
        let lead = String(repeating: "  ", count: indent)
        let body = (ends ? lines.dropLast() : lines[...]).map { $0.isEmpty ? "\n" : lead + $0 + "\n" }.joined()
        return (ends ? "|\n" : "|-\n") + body
    }

    static func scalar(_ value: String, inFlow: Bool = false) -> String {
        isBare(value, inFlow: inFlow) ? value : quoted(value)
    }

    private static func isBare(_ value: String, inFlow: Bool) -> Bool {
        let bytes = Array(value.utf8)
        guard let first = bytes.first, let last = bytes.last, bytes.count <= 200, Scalar.resolve(value) == .string
        else { return false }
        func word(_ byte: UInt8) -> Bool { (byte | 32 >= 97 && byte | 32 <= 122) || (byte >= 48 && byte <= 57) }
        // A text that begins with a digit may be a date or a time to some readers.
        let flag =
            first == UInt8(ascii: "-")
            && bytes.drop { $0 == UInt8(ascii: "-") }.first.map { $0 | 32 >= 97 && $0 | 32 <= 122 } == true
        guard
            word(first) || first == UInt8(ascii: "/") || first == UInt8(ascii: "_")
                || (flag && !value.hasPrefix("---")),
            word(last) || "/_.)$;".utf8.contains(last)
        else { return false }
        if first >= 48, first <= 57, bytes.contains(where: { $0 == UInt8(ascii: ":") || $0 == UInt8(ascii: "-") }) {
            return false
        }
        for (i, byte) in bytes.enumerated() {
            if word(byte) || "-_./+=$;()@~^".utf8.contains(byte) { continue }
            if byte == UInt8(ascii: " "), !inFlow, bytes[i - 1] != UInt8(ascii: ":"), bytes[i + 1] != UInt8(ascii: "#")
            {
                continue
            }
            if byte == UInt8(ascii: ":"), !inFlow, bytes[i + 1] != UInt8(ascii: " ") { continue }
            if byte == UInt8(ascii: ","), !inFlow { continue }
            return false
        }
        return true
    }

    private static func quoted(_ value: String) -> String {
        var out = "\""
        for scalar in value.unicodeScalars {
            switch scalar {
            case "\"": out += "\\\""
            case "\\": out += "\\\\"
            case "\n": out += "\\n"
            case "\t": out += "\\t"
            case "\r": out += "\\r"
            default:
                let code = scalar.value
                if (code >= 0x20 && code < 0x7F) || (code >= 0xA0 && code < 0x2028) || (code > 0x2029 && code < 0xE000)
                    || (code > 0xF8FF && code < 0xFEFF) || (code > 0xFEFF && code < 0xFFF0)
                {
                    out.unicodeScalars.append(scalar)
                } else {
                    let digits = String(code, radix: 16)
                    let (mark, width) = code <= 0xFF ? ("\\x", 2) : code <= 0xFFFF ? ("\\u", 4) : ("\\U", 8)
                    out += mark + String(repeating: "0", count: width - digits.count) + digits
                }
            }
        }
        return out + "\""
    }
}
