import Model
import Testing
import Wire

@Suite struct JSONTests {
    @Test(arguments: [
        "null", "true", "[]", "{}", "[1,-2,3]", #"{"b":1,"a":[{"c":null}]}"#, #""a\"\\\n\u0001é😀""#,
        "9223372036854775807",
        "-9223372036854775808", "1.5", "-0.25", "1e+300",
    ])
    func readsAndWritesTheSameText(text: String) throws { #expect(try JSONValue(parsing: text).text() == text) }

    @Test(arguments: [
        "", " ", "nul", "01", "1.", ".5", "+1", "1e", "-", "[1,]", "[,1]", "{\"a\"}", "{\"a\":}", "{a:1}", "{\"a\":1,}",
        "[1 2]", "\"a",
        #""\x""#, #""\u12""#, #""\ud800""#, #""\udc00""#, #""\ud800\u0041""#, "\"\u{1}\"", "1 2", "{}}", "NaN", "1e999",
        "'a'",
    ])
    func refusesWhatIsNotJSON(text: String) { #expect(throws: JSONError.self) { try JSONValue(parsing: text) } }

    @Test func surrogatePairsBecomeOneCharacter() throws {
        #expect(try JSONValue(parsing: #""\ud83d\ude00\/""#) == .string("😀/"))
    }

    @Test func bytesThatAreNotUTF8AreRefused() {
        for bytes in [[0x22, 0xFF, 0x22], [0x22, 0xC0, 0x80, 0x22], [0x22, 0xED, 0xA0, 0x80, 0x22]] as [[UInt8]] {
            #expect(throws: JSONError.self) { try JSONValue(parsing: bytes) }
        }
    }

    @Test func deepNestingIsRefusedAndNotACrash() {
        #expect(throws: JSONError.self) { try JSONValue(parsing: String(repeating: "[", count: 100_000)) }
        #expect(throws: JSONError.self) { try JSONValue(parsing: String(repeating: #"{"a":"#, count: 100_000)) }
        let fine = String(repeating: "[", count: 100) + String(repeating: "]", count: 100)
        #expect((try? JSONValue(parsing: fine)) != nil)
    }

    @Test func anErrorTellsWhere() {
        do {
            _ = try JSONValue(parsing: #"{"a": tru}"#)
            Issue.record("it was accepted")
        } catch { #expect(error.offset == 6) }
    }

    @Test func whatHasNoFormInJSONBecomesNull() {
        #expect(JSONValue.double(.infinity).text() == "null")
        #expect(JSONValue.double(.nan).text() == "null")
        #expect(JSONValue(UInt64.max) == .int(.max))
    }

    @Test func prettyTextReadsBackEqual() throws {
        let value: JSONValue = ["a": [1, ["b": nil], []], "c": ["d": 1.5, "e": [:]]]
        #expect(try JSONValue(parsing: value.text(pretty: true)) == value)
    }

    @Test func randomDocumentsReadBackAndDamagedOnesNeverCrash() throws {
        var generator = SeededGenerator(seed: 21)
        let letters = ["a", "\"", "\\", "\n", "\u{0}", "é", "😀", "/"]
        func random(_ depth: Int) -> JSONValue {
            switch Int.random(in: 0..<(depth > 4 ? 5 : 7), using: &generator) {
            case 0: .null
            case 1: .bool(generator.chance(0.5))
            case 2: .int(Int64(truncatingIfNeeded: generator.next()) >> Int64.random(in: 0..<64, using: &generator))
            case 3: .double(Double(Int64(truncatingIfNeeded: generator.next() >> 30)) + 0.5)
            case 4:
                .string(
                    (0..<Int.random(in: 0..<8, using: &generator)).map { _ in
                        letters[Int.random(in: 0..<8, using: &generator)]
                    }.joined())
            case 5: .array((0..<Int.random(in: 0..<4, using: &generator)).map { _ in random(depth + 1) })
            default: .object((0..<Int.random(in: 0..<4, using: &generator)).map { .init("k\($0)", random(depth + 1)) })
            }
        }
        var accepted = 0
        for _ in 0..<1_000 {
            let value = random(0)
            #expect(try JSONValue(parsing: value.text()) == value)
            var bytes = value.utf8
            for _ in 0..<3 {
                bytes[Int.random(in: 0..<bytes.count, using: &generator)] = UInt8(truncatingIfNeeded: generator.next())
            }
            if let odd = try? JSONValue(parsing: bytes) {
                accepted += 1
                #expect(try JSONValue(parsing: odd.text()) == odd)
            }
        }
        #expect(accepted < 500)
    }
}
