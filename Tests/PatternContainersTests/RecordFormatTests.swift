import Model
import Testing
import Wire

@testable import PatternContainers

@Suite("Record formats")
struct RecordFormatTests {
    /// All records of a text, and the bad ones' reasons; what is not whole is left.
    private func read(_ source: RecordSource, _ text: String, isLast: Bool = false, limit: Int = 1 << 20) -> (
        records: [AdapterRecord], bad: [String], rest: String
    ) {
        var reader = RecordReader(source: source, limit: limit)
        let bytes = Array(text.utf8)
        var records: [AdapterRecord] = []
        var bad: [String] = []
        var at = 0
        while true {
            switch reader.next(bytes, from: at, isLast: isLast) {
            case .record(let record, let end):
                records.append(record)
                at = end
            case .skip(let end): at = end
            case .bad(let error, let end):
                bad.append(error.message)
                at = end
            case .more: return (records, bad, String(decoding: bytes[at...], as: UTF8.self))
            }
        }
    }

    private func write(_ form: RecordForm, _ records: [AdapterRecord]) -> String {
        var writer = RecordWriter(form: form, existing: [])
        var out: [UInt8] = []
        for record in records { _ = writer.add(record, to: &out) }
        return String(decoding: RecordWriter.replaces(form) ? writer.whole : out, as: UTF8.self)
    }

    @Test func aLineThatIsNotWholeStays() {
        let result = read(.lines, "one\ntwo\r\nthr")
        #expect(result.records.map(\.raw) == [Array("one"), Array("two")])
        #expect(result.rest == "thr")
        #expect(read(.lines, "one\nthr", isLast: true).records.count == 2)
    }

    @Test func jsonKeepsOrderAndDigits() {
        let text = #"{"b":1,"a":{"c":"x"},"n":12345678901234567890}"#
        let result = read(.json, text + "\n\n[1]\n{\"a\n")
        #expect(result.records.count == 1)
        #expect(result.bad.count == 2)
        #expect(result.records[0]["a.c"] == "x")
        #expect(write(.json, result.records) == text + "\n")
    }

    @Test func linesBecomeMessages() {
        let result = read(.lines, "{\"not\": \"taken as JSON\"}\n")
        #expect(write(.json, result.records) == #"{"message":"{\"not\": \"taken as JSON\"}"}"# + "\n")
    }

    @Test func csvReadsQuotesAndWritesThem() {
        let result = read(.csv, "id,text\r\n1,\"a \"\"b\"\"\nc\"\r\n2,plain\n3\n4,\"half")
        #expect(result.records.map { $0["text"] } == ["a \"b\"\nc", "plain"])
        #expect(result.bad == ["1 fields where the header has 2"])
        #expect(result.rest == "4,\"half")
        #expect(write(.csv, result.records) == "id,text\n1,\"a \"\"b\"\"\nc\"\n2,plain\n")
    }

    @Test func csvFieldsAtTheEndMayBeEmpty() {
        #expect(CSV.row(Array("a,,\n"), from: 0, isLast: false) == .record(["a", "", ""], end: 4))
        #expect(CSV.row(Array("a,"), from: 0, isLast: false) == .more)
        #expect(CSV.row(Array("\"a\""), from: 0, isLast: false) == .more)
        #expect(CSV.row(Array("\"a\""), from: 0, isLast: true) == .record(["a"], end: 3))
    }

    @Test func logfmtGoesBothWays() {
        let result = read(.logfmt, "level=info msg=\"say \\\"hi\\\"\\n\" flag n=3\n \nx\"y\n")
        #expect(result.records.count == 1)
        #expect(result.bad.count == 1)
        let record = result.records[0]
        #expect(record["msg"] == "say \"hi\"\n")
        #expect(record["flag"] == true)
        #expect(write(.logfmt, [record]) == "level=info msg=\"say \\\"hi\\\"\\n\" flag=true n=3\n")
    }

    @Test func recordsOfSeveralLinesBeginWhereTheExpressionMatches() {
        let source = RecordSource.multiline(pattern: #"^\d{4}-"#)
        let text = "2026-01 first\n  at a\n  at b\n2026-02 second\n  at c\n"
        let open = read(source, text)
        #expect(open.records.map { $0["message"] } == ["2026-01 first\n  at a\n  at b"])
        #expect(open.rest == "2026-02 second\n  at c\n")
        #expect(read(source, text, isLast: true).records.count == 2)
    }

    @Test func aRecordOverTheLimitIsPassedOverToItsEnd() {
        var reader = RecordReader(source: .lines, limit: 8)
        guard case .bad(_, let end) = reader.next(Array("0123456789"), from: 0, isLast: false) else {
            Issue.record("taken")
            return
        }
        #expect(end == 10)
        #expect(reader.isSkipping)
        guard case .skip(let after) = reader.next(Array("rest\nnext\n"), from: 0, isLast: false) else {
            Issue.record("the rest of a long line is no record")
            return
        }
        #expect(after == 5)
        #expect(!reader.isSkipping)
    }

    @Test func prometheusKeepsTheLastValueOfEachSeries() {
        let records = read(.logfmt, "path=/a ms=3 ok\npath=/b ms=4.5\npath=/a ms=7\n").records
        #expect(write(.prometheus, records) == "# TYPE ms gauge\nms{path=\"/a\"} 7\nms{path=\"/b\"} 4.5\n")
    }

    @Test func prometheusReadsItsOwnTextBack() {
        let first = write(.prometheus, read(.json, #"{"a b":"q\"\\\n x","1n":2,"s":"5"}"# + "\n").records)
        #expect(first == "# TYPE _1n gauge\n_1n{a_b=\"q\\\"\\\\\\n x\",s=\"5\"} 2\n")
        #expect(String(decoding: PrometheusText(parsing: Array(first)).text, as: UTF8.self) == first)
    }

    @Test func templatesFillFields() throws {
        let template = try RecordTemplate(text: #"{{{a.c}}} {}\t{missing}|"#)
        let record = read(.json, #"{"a":{"c":"x"}}"# + "\n").records
        #expect(write(.template(template), record) == "{x} {\"a\":{\"c\":\"x\"}}\t|\n")
    }

    @Test(arguments: ["{a", "a}", "{a{b}}"])
    func badTemplatesAreRefused(_ text: String) {
        #expect(throws: CoterieError.self) { try RecordTemplate(text: text) }
    }

    @Test func aCSVOutputKeepsItsHeader() {
        var writer = RecordWriter(form: .csv, existing: Array("b,a\n1,2\n"))
        var out: [UInt8] = []
        _ = writer.add(read(.json, #"{"a":"x","c":true,"b":null}"# + "\n").records[0], to: &out)
        #expect(String(decoding: out, as: UTF8.self) == ",x\n")
        #expect(writer.fieldsLeftOut == 1)
    }
}
