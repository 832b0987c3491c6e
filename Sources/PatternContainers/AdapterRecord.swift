// One record between its form in the input and its form in the output. Pure.
import Model
import Wire

/// Named values in the order of the input, and the text that they were read from.
struct AdapterRecord: Equatable {
    var fields: [JSONValue.Member]
    /// The record as it stood in the input, without the line's end.
    var raw: [UInt8]
    var kind: Kind

    enum Kind {
        /// Values have the types that the input gave them.
        case json
        /// All values are text, whatever they look like (CSV, logfmt).
        case untyped
        /// Lines: one field of text, which is never a number.
        case text
    }

    /// The value of a field; `a.b` also finds `b` in the object `a`.
    subscript(name: String) -> JSONValue? {
        if let exact = fields.first(where: { $0.key == name }) { return exact.value }
        guard let dot = name.firstIndex(of: ".") else { return nil }
        var value = fields.first { $0.key == name[..<dot] }?.value
        for part in name[name.index(after: dot)...].split(separator: ".") { value = value?[String(part)] }
        return value
    }

    /// A value as it is written where there are no types: text as it is, the rest as JSON, null as nothing.
    static func text(_ value: JSONValue) -> String {
        switch value {
        case .string(let text): text
        case .null: ""
        case .bool, .int, .double, .array, .object: value.text()
        }
    }

    /// The number that a field holds, if it holds one; text counts only where the input has no types.
    func number(_ value: JSONValue) -> Double? {
        switch value {
        case .int(let whole): Double(whole)
        case .double(let number): number
        case .string(let text): kind == .untyped && AdapterRecord.isDecimal(text) ? Double(text) : nil
        case .null, .bool, .array, .object: nil
        }
    }

    /// Digits with at most one sign, point and exponent: what `Double` reads beside (`nan`, `0x1p3`) is text to us.
    static func isDecimal(_ text: String) -> Bool {
        guard let first = text.utf8.first, text.utf8.count <= 40 else { return false }
        return (first >= 48 && first <= 57 || first == 45 || first == 43 || first == 46)
            && text.utf8.allSatisfy { $0 >= 48 && $0 <= 57 || $0 == 45 || $0 == 43 || $0 == 46 || $0 | 32 == 0x65 }
    }
}

/// Why bytes are no record; says what, not where.
struct RecordError: Error, Equatable {
    var message: String
}

/// Text with `{field}`, `{}` for the whole record as it was read, `{{` and `}}` for the braces themselves, `\n`, `\t`, `\\`.
public struct RecordTemplate: Hashable, Sendable {
    enum Part: Hashable, Sendable {
        case text(String)
        case field(String)
        case whole
    }

    let parts: [Part]

    public init(text: String) throws(CoterieError) {
        var parts: [Part] = []
        var plain = ""
        var rest = text[...]
        func bad(_ why: String) -> CoterieError {
            CoterieError(
                .badInput, "--to template:\(text): \(why)",
                hint: "use {field}, {} for the whole record, {{ and }} for braces")
        }
        func endText() {
            if !plain.isEmpty { parts.append(.text(plain)) }
            plain = ""
        }
        while let c = rest.popFirst() {
            switch c {
            case "{" where rest.first == "{", "}" where rest.first == "}":
                rest.removeFirst()
                plain.append(c)
            case "{":
                guard let end = rest.firstIndex(of: "}") else { throw bad("a { without its }") }
                let name = rest[..<end]
                guard !name.contains("{") else { throw bad("a { within {…}") }
                rest = rest[rest.index(after: end)...]
                endText()
                parts.append(name.isEmpty ? .whole : .field(String(name)))
            case "}": throw bad("a } without its {")
            case "\\":
                switch rest.popFirst() {
                case "n": plain.append("\n")
                case "t": plain.append("\t")
                case "\\": plain.append("\\")
                case let other?:
                    plain.append("\\")
                    plain.append(other)
                case nil: plain.append("\\")
                }
            default: plain.append(c)
            }
        }
        endText()
        self.parts = parts
    }

    /// The record's line, with its line feed. Fields that it lacks are empty.
    func append(_ record: AdapterRecord, to out: inout [UInt8]) {
        for part in parts {
            switch part {
            case .text(let text): out.append(contentsOf: text.utf8)
            case .field(let name):
                if let value = record[name] { out.append(contentsOf: AdapterRecord.text(value).utf8) }
            case .whole: out.append(contentsOf: record.raw)
            }
        }
        out.append(10)
    }
}
