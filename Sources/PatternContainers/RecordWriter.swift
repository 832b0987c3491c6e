// From records to the bytes of an output: lines that are appended, or, for Prometheus, a small text that is replaced whole.
// Pure.
import Model
import Wire

/// Writes one output. What it must know of the output's past (CSV columns, series) it reads from the output itself.
struct RecordWriter {
    private let form: RecordForm
    /// The columns of a CSV output; nil until its header is written.
    private var columns: [String]?
    private var series = PrometheusText()
    /// Fields left out so far because the output's header lacks them.
    private(set) var fieldsLeftOut = 0

    /// `existing` is what the output holds already: all of it for Prometheus, else its beginning.
    init(form: RecordForm, existing: [UInt8]) {
        self.form = form
        if case .csv = form, case .record(let fields, _) = CSV.row(existing, from: 0, isLast: false) {
            columns = fields
        }
        if case .prometheus = form { series = PrometheusText(parsing: existing) }
    }

    /// The output is replaced as a whole by ``whole``, not appended to.
    static func replaces(_ form: RecordForm) -> Bool { if case .prometheus = form { true } else { false } }

    /// Appends the record's bytes, or keeps its values for ``whole``. False if there was no room for a new series.
    mutating func add(_ record: AdapterRecord, to out: inout [UInt8]) -> Bool {
        switch form {
        case .json:
            // JSON that came as JSON goes as it came: no digit of a long number is lost.
            if record.kind == .json && record.raw.first == 0x7B {
                out.append(contentsOf: record.raw)
            } else {
                out.append(contentsOf: JSONValue.object(record.fields).utf8)
            }
            out.append(10)
        case .csv:
            let columns: [String]
            if let known = self.columns {
                columns = known
            } else {
                columns = record.fields.map(\.key)
                self.columns = columns
                CSV.append(columns, to: &out)
            }
            CSV.append(
                columns.map { name in record.fields.first { $0.key == name }.map { AdapterRecord.text($0.value) } ?? ""
                }, to: &out)
            fieldsLeftOut += record.fields.count { !columns.contains($0.key) }
        case .logfmt: Logfmt.append(record.fields, to: &out)
        case .prometheus: return series.add(record)
        case .template(let template): template.append(record, to: &out)
        }
        return true
    }

    /// The whole output, for Prometheus.
    var whole: [UInt8] { series.text }
}

/// Gauges in the text exposition format. Each number of a record sets one series, named by the field; the record's texts are
/// its labels.
struct PrometheusText {
    private struct Metric {
        var name: String
        /// Labels in braces, or nothing, and the value's text; in order of appearance.
        var series: [(labels: String, value: String)] = []
        var index: [String: Int] = [:]
    }

    private var metrics: [Metric] = []
    private var index: [String: Int] = [:]
    private var count = 0
    /// Series beyond this are not taken: a label that never repeats would fill the memory.
    static let limit = 20_000

    init() {}

    /// From our own output; lines that are not of this form are dropped.
    init(parsing bytes: [UInt8]) {
        for line in bytes.split(separator: 10) where line.first != 0x23 {
            let text = String(decoding: line, as: UTF8.self)
            guard let space = text.lastIndex(of: " ") else { continue }
            let key = text[..<space]
            let brace = key.firstIndex(of: "{") ?? key.endIndex
            _ = set(String(key[..<brace]), String(key[brace...]), String(text[text.index(after: space)...]))
        }
    }

    mutating func add(_ record: AdapterRecord) -> Bool {
        var labels: [UInt8] = []
        var used = Set<String>()
        for field in record.fields {
            guard case .string(let text) = field.value, record.number(field.value) == nil else { continue }
            let name = PrometheusText.name(field.key, allowColon: false)
            guard used.insert(name).inserted else { continue }
            labels.append(labels.isEmpty ? 0x7B : 0x2C)
            labels.append(contentsOf: name.utf8)
            labels.append(contentsOf: [0x3D, 0x22])
            for byte in text.utf8 {
                switch byte {
                case 0x5C, 0x22: labels.append(contentsOf: [0x5C, byte])
                case 10: labels.append(contentsOf: [0x5C, 0x6E])
                default: labels.append(byte)
                }
            }
            labels.append(0x22)
        }
        if !labels.isEmpty { labels.append(0x7D) }
        let key = String(decoding: labels, as: UTF8.self)
        var all = true
        for field in record.fields {
            guard let number = record.number(field.value) else { continue }
            let text = if let whole = Int64(exactly: number) { "\(whole)" } else { "\(number)" }
            all = set(PrometheusText.name(field.key, allowColon: true), key, text) && all
        }
        return all
    }

    private mutating func set(_ name: String, _ labels: String, _ value: String) -> Bool {
        let at: Int
        if let known = index[name] {
            at = known
        } else {
            guard count < PrometheusText.limit else { return false }
            at = metrics.count
            metrics.append(Metric(name: name))
            index[name] = at
        }
        if let known = metrics[at].index[labels] {
            metrics[at].series[known].value = value
            return true
        }
        guard count < PrometheusText.limit else { return false }
        count += 1
        metrics[at].index[labels] = metrics[at].series.count
        metrics[at].series.append((labels, value))
        return true
    }

    var text: [UInt8] {
        var out: [UInt8] = []
        for metric in metrics where !metric.series.isEmpty {
            out.append(contentsOf: "# TYPE \(metric.name) gauge\n".utf8)
            for series in metric.series {
                out.append(contentsOf: "\(metric.name)\(series.labels) \(series.value)\n".utf8)
            }
        }
        return out
    }

    /// What the format allows in a name; the rest becomes an underscore.
    private static func name(_ text: String, allowColon: Bool) -> String {
        var bytes = text.utf8.map { byte in
            (byte | 32 >= 97 && byte | 32 <= 122) || (byte >= 48 && byte <= 57) || byte == 95
                || (allowColon && byte == 58) ? byte : 95
        }
        if bytes.isEmpty || (bytes[0] >= 48 && bytes[0] <= 57) { bytes.insert(95, at: 0) }
        return String(decoding: bytes, as: UTF8.self)
    }
}
