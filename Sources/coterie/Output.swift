// How documents are shown to people: tables, a little colour, YAML.
import Glibc
import Model
import Wire

/// Columns that are as wide as their widest cell.
struct Table {
    private var rows: [[String]]

    init(_ headers: String...) { rows = [headers] }

    mutating func add(_ cells: String...) { rows.append(cells) }
    mutating func add(_ cells: [String]) { rows.append(cells) }

    var isEmpty: Bool { rows.count == 1 }

    /// Lines without trailing spaces. `headers` false leaves the first line out, with the widths kept.
    func text(headers: Bool = true) -> String {
        let columns = rows.map(\.count).max() ?? 0
        let widths = (0..<columns).map { column in rows.map { column < $0.count ? $0[column].count : 0 }.max() ?? 0 }
        var out = ""
        for (number, row) in rows.enumerated() where headers || number > 0 {
            var line = ""
            for (column, cell) in row.enumerated() {
                line += cell
                if column < row.count - 1 { line += String(repeating: " ", count: widths[column] - cell.count + 2) }
            }
            while line.hasSuffix(" ") { line.removeLast() }
            out += line + "\n"
        }
        return out
    }
}

extension JSONValue {
    /// The member as text for a table; `-` if there is none.
    func cell(_ key: String) -> String {
        switch self[key] {
        case nil, .null: "-"
        case .string(let text): text
        case .int(let value): String(value)
        case .double(let value): String(value)
        case .bool(let value): value ? "yes" : "no"
        case .array(let items): items.compactMap(\.stringValue).joined(separator: ",")
        case .object(let members):
            members.map { $0.key + "=" + ($0.value.stringValue ?? $0.value.text()) }.joined(separator: ",")
        }
    }

    func int(_ key: String) -> Int64 { self[key]?.intValue ?? 0 }
    func string(_ key: String) -> String { self[key]?.stringValue ?? "" }
    func list(_ key: String) -> [JSONValue] { self[key]?.arrayValue ?? [] }
}

extension Invocation {
    /// The document with `--json`, else what `human` makes of it.
    static func show(_ document: JSONValue, human: (JSONValue) -> String) {
        if options.json { print(document) } else { writeOut(human(document)) }
    }

    /// One item of a stream: a line of JSON, or what `human` makes of it.
    static func showItem(_ document: JSONValue, human: (JSONValue) -> String) {
        writeOut(options.json ? document.text() + "\n" : human(document))
    }

    static var usesColor: Bool { isTerminal(1) && !options.noColor && environment("TERM") != "dumb" }

    enum Color: String { case red = "31", green = "32", yellow = "33", dim = "2" }

    static func colored(_ text: String, _ color: Color) -> String {
        usesColor ? "\u{1B}[\(color.rawValue)m\(text)\u{1B}[0m" : text
    }
}

/// A JSON document as block YAML.
func yamlText(_ value: JSONValue) -> String {
    var out = ""
    writeYAML(value, indent: 0, into: &out)
    return out
}

private func writeYAML(_ value: JSONValue, indent: Int, into out: inout String) {
    let margin = String(repeating: " ", count: indent)
    switch value {
    case .object(let members) where !members.isEmpty:
        for member in members {
            out += margin + yamlScalar(member.key) + ":"
            writeYAMLValue(member.value, indent: indent, into: &out)
        }
    case .array(let items) where !items.isEmpty:
        for item in items {
            var inner = ""
            writeYAML(item, indent: indent + 2, into: &inner)
            // The first line of the item stands behind the dash.
            out += margin + "- " + inner.dropFirst(isBlock(item) ? indent + 2 : 0)
        }
    default: out += yamlLeaf(value) + "\n"
    }
}

private func isBlock(_ value: JSONValue) -> Bool {
    switch value {
    case .object(let members): !members.isEmpty
    case .array(let items): !items.isEmpty
    case .null, .bool, .int, .double, .string: false
    }
}

private func writeYAMLValue(_ value: JSONValue, indent: Int, into out: inout String) {
    if isBlock(value) {
        out += "\n"
        if case .array = value {
            writeYAML(value, indent: indent, into: &out)
        } else {
            writeYAML(value, indent: indent + 2, into: &out)
        }
    } else {
        out += " " + yamlLeaf(value) + "\n"
    }
}

private func yamlLeaf(_ value: JSONValue) -> String {
    if case .string(let text) = value { return yamlScalar(text) }
    return value.text()
}

/// Plain where that can not be read as anything else, else in double quotes as JSON has them.
private func yamlScalar(_ text: String) -> String {
    let plain =
        !text.isEmpty
        && text.utf8.allSatisfy { byte in
            (byte >= 48 && byte <= 57) || (byte | 32 >= 97 && byte | 32 <= 122) || "-._/".utf8.contains(byte)
        }
    let words: Set<String> = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
    let first = text.utf8.first ?? 0
    let beginsWell = (first | 32 >= 97 && first | 32 <= 122) || first == UInt8(ascii: "/")
    if plain && beginsWell && !words.contains(text.lowercased()) { return text }
    return JSONValue.string(text).text()
}

/// `12s`, `3m`, `2h`, `4d`: how long ago, for tables.
func age(milliseconds: Int64) -> String {
    let seconds = milliseconds / 1_000
    if seconds < 120 { return "\(seconds)s" }
    if seconds < 7_200 { return "\(seconds / 60)m" }
    if seconds < 172_800 { return "\(seconds / 3_600)h" }
    return "\(seconds / 86_400)d"
}

/// Wall-clock time in UTC, RFC 3339 with nine digits of fraction: the form that logs are searched by.
func wallClockText(ago span: TimeSpan) -> String {
    var clock = timespec()
    clock_gettime(CLOCK_REALTIME, &clock)
    let total = Int64(clock.tv_sec) * 1_000_000_000 + Int64(clock.tv_nsec)
    let then = max(0, total - span.nanoseconds)
    var seconds = time_t(then / 1_000_000_000)
    var parts = tm()
    gmtime_r(&seconds, &parts)
    func two(_ value: Int32) -> String { value < 10 ? "0\(value)" : "\(value)" }
    let fraction = String(String(1_000_000_000 + then % 1_000_000_000).dropFirst())
    let day = "\(1900 + parts.tm_year)-\(two(parts.tm_mon + 1))-\(two(parts.tm_mday))"
    return "\(day)T\(two(parts.tm_hour)):\(two(parts.tm_min)):\(two(parts.tm_sec)).\(fraction)Z"
}
