// From the bytes of an input file to records, whole ones only. Pure: the buffer comes in, how much of it is dealt with goes
// out; what is not a whole record yet stays with the caller.
import Model
import Wire

/// One step through a buffer.
enum RecordStep {
    /// A record; the next one begins at `end`.
    case record(AdapterRecord, end: Int)
    /// Nothing to hand over (an empty line, a header): go on at `end`.
    case skip(end: Int)
    /// No record: to be told, and passed over.
    case bad(RecordError, end: Int)
    /// The record that begins here is not whole.
    case more
}

/// Reads one file. Only the CSV header outlives a record, and can be read again from the file's start.
struct RecordReader {
    private let source: RecordSource
    private let limit: Int
    private let begins: Regex<AnyRegexOutput>?
    /// The header of a CSV file; nil before it was read.
    private(set) var columns: [String]?
    /// Within what is left of a record that was too long: no place to begin anew after a restart.
    private(set) var isSkipping = false

    /// `head` is the file's beginning, where reading goes on after it: a CSV file's header is taken from there.
    init(source: RecordSource, limit: Int, head: [UInt8] = []) {
        self.source = source
        self.limit = limit
        if case .multiline(let pattern) = source { begins = try? Regex(pattern) } else { begins = nil }
        if case .csv = source, !head.isEmpty, case .record(let fields, _) = CSV.row(head, from: 0, isLast: true) {
            columns = fields
        }
    }

    /// The header must be read before records can be: reading went on after it.
    var needsHead: Bool { if case .csv = source { columns == nil } else { false } }

    /// The next step from `start`. `isLast`: the file will not grow, so that what is there is whole; for records of several
    /// lines also when nothing has come for a while.
    mutating func next(_ bytes: [UInt8], from start: Int, isLast: Bool) -> RecordStep {
        guard start < bytes.count else { return .more }
        if isSkipping {
            guard let feed = indexOfLineFeed(bytes, from: start) else { return .skip(end: bytes.count) }
            isSkipping = false
            return .skip(end: feed + 1)
        }
        switch source {
        case .json, .logfmt, .lines: return line(bytes, from: start, isLast: isLast)
        case .csv: return row(bytes, from: start, isLast: isLast)
        case .multiline: return lines(bytes, from: start, isLast: isLast)
        }
    }

    /// `end` is all that there is, and the line goes on: the rest of it is passed over as it comes.
    private mutating func tooLong(_ end: Int, goesOn: Bool) -> RecordStep {
        isSkipping = goesOn
        return .bad(RecordError(message: "a record of more than \(limit) bytes"), end: end)
    }

    // MARK: - A line a record

    private mutating func line(_ bytes: [UInt8], from start: Int, isLast: Bool) -> RecordStep {
        let feed = indexOfLineFeed(bytes, from: start)
        if feed == nil && !isLast {
            return bytes.count - start > limit ? tooLong(bytes.count, goesOn: true) : .more
        }
        let stop = feed ?? bytes.count
        let end = feed.map { $0 + 1 } ?? bytes.count
        guard stop - start <= limit else { return tooLong(end, goesOn: false) }
        let text = withoutReturn(bytes[start..<stop])
        switch source {
        case .lines:
            let value = JSONValue.string(String(decoding: text, as: UTF8.self))
            return .record(AdapterRecord(fields: [.init("message", value)], raw: Array(text), kind: .text), end: end)
        case .logfmt:
            do throws(RecordError) {
                let fields = try Logfmt.parse(text)
                return fields.isEmpty
                    ? .skip(end: end)
                    : .record(AdapterRecord(fields: fields, raw: Array(text), kind: .untyped), end: end)
            } catch {
                return .bad(error, end: end)
            }
        case .json, .csv, .multiline:
            if text.allSatisfy({ $0 == 32 || $0 == 9 }) { return .skip(end: end) }
            do throws(JSONError) {
                guard case .object(let fields) = try JSONValue(parsing: text) else {
                    return .bad(RecordError(message: "not a JSON object"), end: end)
                }
                return .record(AdapterRecord(fields: fields, raw: Array(text), kind: .json), end: end)
            } catch {
                return .bad(RecordError(message: error.description), end: end)
            }
        }
    }

    // MARK: - CSV

    private mutating func row(_ bytes: [UInt8], from start: Int, isLast: Bool) -> RecordStep {
        switch CSV.row(bytes, from: start, isLast: isLast) {
        case .more:
            guard bytes.count - start > limit else { return .more }
            // A quote without an end swallows the file: only its line is given up.
            let feed = indexOfLineFeed(bytes, from: start)
            return tooLong(feed.map { $0 + 1 } ?? bytes.count, goesOn: feed == nil)
        case .bad(let message, let end): return .bad(RecordError(message: message), end: end)
        case .record(let values, let end):
            guard end - start <= limit else { return tooLong(end, goesOn: false) }
            if values == [""] { return .skip(end: end) }
            guard let columns else {
                self.columns = values
                return .skip(end: end)
            }
            guard values.count == columns.count else {
                return .bad(
                    RecordError(message: "\(values.count) fields where the header has \(columns.count)"), end: end)
            }
            var stop = end
            while stop > start, bytes[stop - 1] == 10 || bytes[stop - 1] == 13 { stop -= 1 }
            let fields = zip(columns, values).map { JSONValue.Member($0, .string($1)) }
            return .record(AdapterRecord(fields: fields, raw: Array(bytes[start..<stop]), kind: .untyped), end: end)
        }
    }

    // MARK: - Several lines a record

    private mutating func lines(_ bytes: [UInt8], from start: Int, isLast: Bool) -> RecordStep {
        var at = start
        var stop: Int?
        while let feed = indexOfLineFeed(bytes, from: at) {
            if at > start && isBeginning(bytes[at..<feed]) {
                stop = at
                break
            }
            at = feed + 1
            if at - start > limit { return tooLong(at, goesOn: false) }
        }
        if stop == nil {
            // The last line may be half, and the lines that belong to the record may still come.
            if bytes.count - start > limit { return tooLong(bytes.count, goesOn: bytes.last != 10) }
            guard isLast else { return .more }
            stop = at > start && at < bytes.count && isBeginning(bytes[at...]) ? at : bytes.count
        }
        let end = stop ?? bytes.count
        var textEnd = end
        if textEnd > start, bytes[textEnd - 1] == 10 { textEnd -= 1 }
        if textEnd > start, bytes[textEnd - 1] == 13 { textEnd -= 1 }
        let raw = Array(bytes[start..<textEnd])
        if raw.isEmpty { return .skip(end: end) }
        let value = JSONValue.string(String(decoding: raw, as: UTF8.self))
        return .record(AdapterRecord(fields: [.init("message", value)], raw: raw, kind: .text), end: end)
    }

    private func isBeginning(_ line: ArraySlice<UInt8>) -> Bool {
        guard let begins else { return true }
        return (try? begins.firstMatch(in: String(decoding: withoutReturn(line), as: UTF8.self))) != nil
    }
}

private func withoutReturn(_ line: ArraySlice<UInt8>) -> ArraySlice<UInt8> { line.last == 13 ? line.dropLast() : line }

/// Comma-separated values after RFC 4180, with bare line feeds accepted.
enum CSV {
    enum Row: Equatable {
        case record([String], end: Int)
        case bad(String, end: Int)
        case more
    }

    /// The row at `start`; `isLast` makes the end of the bytes the end of a row.
    static func row(_ bytes: [UInt8], from start: Int, isLast: Bool) -> Row {
        var values: [String] = []
        var at = start
        while true {
            var value: [UInt8] = []
            if at < bytes.count, bytes[at] == 0x22 {
                at += 1
                while true {
                    guard at < bytes.count else {
                        return isLast ? .bad("a quote without its end", end: bytes.count) : .more
                    }
                    if bytes[at] != 0x22 {
                        value.append(bytes[at])
                        at += 1
                        continue
                    }
                    // Whether a quote at the very end is doubled is not known yet.
                    guard at + 1 < bytes.count || isLast else { return .more }
                    at += 1
                    guard at < bytes.count, bytes[at] == 0x22 else { break }
                    value.append(0x22)
                    at += 1
                }
                if at < bytes.count, bytes[at] != 0x2C, bytes[at] != 10, bytes[at] != 13 {
                    let end = indexOfLineFeed(bytes, from: at).map { $0 + 1 }
                    guard end != nil || isLast else { return .more }
                    return .bad("text after a closing quote", end: end ?? bytes.count)
                }
            } else {
                while at < bytes.count, bytes[at] != 0x2C, bytes[at] != 10 {
                    value.append(bytes[at])
                    at += 1
                }
                if (at == bytes.count || bytes[at] == 10), value.last == 13 { value.removeLast() }
            }
            if at < bytes.count, bytes[at] == 13 { at += 1 }
            values.append(String(decoding: value, as: UTF8.self))
            guard at < bytes.count else { return isLast ? .record(values, end: at) : .more }
            let separator = bytes[at]
            at += 1
            if separator == 10 { return .record(values, end: at) }
            guard separator == 0x2C else { return .bad("a carriage return within a row", end: at) }
            // Hostile input must not make many small strings without end.
            guard values.count < 10_000 else {
                return .bad(
                    "more than 10000 fields", end: indexOfLineFeed(bytes, from: at).map { $0 + 1 } ?? bytes.count)
            }
        }
    }

    static func append(_ values: some Sequence<String>, to out: inout [UInt8]) {
        var isFirst = true
        for value in values {
            if !isFirst { out.append(0x2C) }
            isFirst = false
            guard value.utf8.contains(where: { $0 == 0x22 || $0 == 0x2C || $0 == 10 || $0 == 13 }) else {
                out.append(contentsOf: value.utf8)
                continue
            }
            out.append(0x22)
            for byte in value.utf8 {
                if byte == 0x22 { out.append(0x22) }
                out.append(byte)
            }
            out.append(0x22)
        }
        out.append(10)
    }
}

/// `key=value key="a value" flag`, as Heroku's and Go's tools write it.
enum Logfmt {
    /// A key without a value is true.
    static func parse(_ line: ArraySlice<UInt8>) throws(RecordError) -> [JSONValue.Member] {
        var fields: [JSONValue.Member] = []
        var at = line.startIndex
        let end = line.endIndex
        while true {
            while at < end, line[at] <= 32 { at += 1 }
            guard at < end else { return fields }
            let keyStart = at
            while at < end, line[at] > 32, line[at] != 0x3D, line[at] != 0x22 { at += 1 }
            guard at > keyStart else { throw RecordError(message: "a value without a key") }
            let key = String(decoding: line[keyStart..<at], as: UTF8.self)
            guard at < end, line[at] == 0x3D else {
                guard at == end || line[at] <= 32 else { throw RecordError(message: "a quote within a key") }
                fields.append(.init(key, .bool(true)))
                continue
            }
            at += 1
            var value: [UInt8] = []
            if at < end, line[at] == 0x22 {
                at += 1
                while true {
                    guard at < end else { throw RecordError(message: "a quote without its end") }
                    let c = line[at]
                    at += 1
                    if c == 0x22 { break }
                    guard c == 0x5C, at < end else {
                        value.append(c)
                        continue
                    }
                    switch line[at] {
                    case 0x6E: value.append(10)
                    case 0x72: value.append(13)
                    case 0x74: value.append(9)
                    default: value.append(line[at])
                    }
                    at += 1
                }
                guard at == end || line[at] <= 32 else { throw RecordError(message: "text after a closing quote") }
            } else {
                while at < end, line[at] > 32 {
                    value.append(line[at])
                    at += 1
                }
            }
            fields.append(.init(key, .string(String(decoding: value, as: UTF8.self))))
            guard fields.count <= 10_000 else { throw RecordError(message: "more than 10000 fields") }
        }
    }

    static func append(_ fields: [JSONValue.Member], to out: inout [UInt8]) {
        for (i, field) in fields.enumerated() {
            if i > 0 { out.append(32) }
            // What would break the form apart is replaced in keys, which can not be quoted.
            out.append(contentsOf: field.key.utf8.map { $0 <= 32 || $0 == 0x3D || $0 == 0x22 || $0 == 127 ? 95 : $0 })
            out.append(0x3D)
            let text = AdapterRecord.text(field.value)
            guard
                text.isEmpty
                    || text.utf8.contains(where: { $0 <= 32 || $0 == 0x3D || $0 == 0x22 || $0 == 0x5C || $0 == 127 })
            else {
                out.append(contentsOf: text.utf8)
                continue
            }
            out.append(0x22)
            for byte in text.utf8 {
                switch byte {
                case 0x22, 0x5C: out.append(contentsOf: [0x5C, byte])
                case 10: out.append(contentsOf: [0x5C, 0x6E])
                case 13: out.append(contentsOf: [0x5C, 0x72])
                case 9: out.append(contentsOf: [0x5C, 0x74])
                default: out.append(byte)
                }
            }
            out.append(0x22)
        }
        out.append(10)
    }
}
