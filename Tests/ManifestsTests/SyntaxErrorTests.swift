import Model
import Testing

@testable import Manifests

@Suite("Files that are no manifests")
struct SyntaxErrorTests {
    @Test func emptyFilesAreRefused() {
        #expect(errors("") == ["f:1:1: the file holds no objects"])
        #expect(errors("# nothing\n---\n---\n") == ["f:1:1: the file holds no objects"])
    }

    @Test func bytesThatAreNoTextAreRefusedWithTheirPlace() {
        #expect(errors(Array("kind: Pod\nname: ".utf8) + [0xFF]) == ["f:2:7: byte 0xff is not UTF-8"])
        #expect(errors(Array("a: é".utf8) + [0xC3]) == ["f:1:5: byte 0xc3 is not UTF-8"])
        #expect(errors([0xED, 0xA0, 0x80]) == ["f:1:1: byte 0xed is not UTF-8"])
        #expect(errors("a\0b") == ["f:1:2: a NUL byte: this is not a text file"])
        #expect(errors("a: \u{1B}[31m") == ["f:1:4: the control character 27 is not allowed in YAML"])
    }

    @Test func tabsAsIndentationAreNamed() {
        #expect(
            errors("kind: Pod\nspec:\n\tx: 1\n") == [
                "f:3:1: YAML syntax: found character that cannot start any token while scanning for the next token "
                    + "(indent with spaces, not tabs; quote a value that begins with a sign)"
            ])
    }

    @Test func brokenStructureHasAPlace() {
        #expect(errors("a: [1, 2\n").first?.hasPrefix("f:2:1: YAML syntax: ") == true)
        #expect(
            errors("a: b: c\n") == [
                "f:1:5: YAML syntax: mapping values are not allowed in this context "
                    + "(is a line indented too far, or a value with \": \" not quoted?)"
            ])
        #expect(errors("a: \"open\n").first?.contains("YAML syntax: found unexpected end of stream") == true)
    }

    @Test func deepNestingIsRefused() {
        #expect(errors(String(repeating: "[", count: 2_000)) == ["f:1:1: nested deeper than 50 levels"])
        #expect(errors(String(repeating: "- ", count: 100_000)) == ["f:1:103: nested deeper than 50 levels"])
        #expect(errors(String(repeating: "{a: ", count: 2_000)) == ["f:1:202: nested deeper than 50 levels"])
        #expect(errors(String(repeating: "? ", count: 2_000)) == ["f:1:103: nested deeper than 50 levels"])
    }

    @Test func hugeFilesAndHugeListsAreRefused() {
        let big = [UInt8](repeating: UInt8(ascii: "a"), count: Limits.manifestBytes + 1)
        #expect(errors(big) == ["f:1:1: the file has 4194305 bytes, more than the limit of 4194304"])
        let list = "a: [" + String(repeating: "1,", count: 200_000) + "]"
        let keys = (0..<60_000).map { "k\($0): 1\n" }.joined()
        #expect(errors(keys) == ["f:50000:9: more than 100000 values in one file"])
        #expect(errors(list) == ["f:1:4005: a: more than 2000 items in one list"])
    }

    @Test func hugeScalarsAreQuotedInPartOnly() {
        let message = errors("kind: " + String(repeating: "x", count: 1_000_000)).first ?? ""
        #expect(message.hasPrefix("f:1:7: kind: unknown kind \"xxxx"))
        #expect(message.utf8.count < 300)
    }

    @Test func aliasBombsAreRefused() {
        var bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        for i in 1...9 {
            bomb += "a\(i): &a\(i) [" + (0..<10).map { _ in "*a\(i - 1)" }.joined(separator: ", ") + "]\n"
        }
        #expect(errors(bomb).contains { $0.hasSuffix("more than 100000 values in one file, aliases expanded") })
        let keys = "k: &k {a: b}\nm:\n" + (0..<2_000).map { "  - {? *k : \($0)}\n" }.joined()
        #expect(errors(keys).contains { $0.contains("more than 1000 aliases") || $0.contains("errors are not shown") })
        #expect(errors("a: *nothing") == ["f:1:4: the alias *nothing stands for no anchor before it"])
        #expect(errors("a: &a [*a]") == ["f:1:8: the alias *a stands for no anchor before it"])
    }

    @Test func anchorsWorkWithinReason() throws {
        let spec = try pod(container("command: &c [run, fast]\nargs: *c"))
        #expect(spec.containers.first?.arguments == ["run", "fast"])
    }

    @Test func tagsAndMergeKeysAreRefused() {
        #expect(errors("kind: !ruby/object Pod") == ["f:1:7: the tag !ruby/object is not supported"])
        #expect(errors("kind: !!binary UG9k") == ["f:1:7: the tag tag:yaml.org,2002:binary is not supported"])
        #expect(
            errors(container("<<: {command: [a]}")) == [
                "f:9:7: spec.containers[0]: merge keys (<<) are not supported (repeat the fields)"
            ])
    }

    @Test func keysMustBeTexts() {
        #expect(errors(container("? [a]\n: b")) == ["f:9:9: spec.containers[0]: a key must be a text, not a list"])
    }

    @Test func byteOrderMarksAndWindowsLinesAreRead() throws {
        let text = "\u{FEFF}" + spec("hostname: h").split(separator: "\n").joined(separator: "\r\n")
        #expect(try pod(text).hostname == "h")
    }

    @Test func notMoreThanAHundredErrorsAreShown() {
        let lines = (0..<300).map { "x\($0): 1" }.joined(separator: "\n")
        let all = errors(container(lines))
        #expect(all.count == 101)
        #expect(all.last == "f: at least 200 more errors are not shown")
    }

    /// Every prefix of a good file, and the file with every byte changed in turn, ends in objects or in errors.
    @Test func cutAndDamagedFilesNeverCrash() {
        let text = Array(
            container(
                "command: [\"a\\n\", 'b']\nenv:\n  - &e {name: A, value: |-\n      x}\n  - *e\nargs: !!str >\n  t"
            ).utf8)
        var outcomes = 0
        for end in 0..<text.count { outcomes += errors(Array(text[..<end])).isEmpty ? 1 : 2 }
        var generator = SeededGenerator(seed: 7)
        for i in text.indices {
            var changed = text
            changed[i] = UInt8(truncatingIfNeeded: generator.next())
            outcomes += errors(changed).isEmpty ? 1 : 2
        }
        #expect(outcomes > text.count * 2)
    }

    /// What could be quadratic or worse is bounded: thousands of references to nothing, each of which wants a suggestion.
    @Test func manyWrongReferencesAreReportedQuickly() {
        let mounts = (0..<2_000).map { "  - {name: v\($0), mountPath: /m\($0)}" }.joined(separator: "\n")
        let data = (0..<5_000).map { "k\($0): v\n" }.joined()
        let variables =
            "env:\n"
            + (0..<2_000).map { "  - {name: E\($0), valueFrom: {configMapKeyRef: {name: m, key: x\($0)}}}" }.joined(
                separator: "\n")
        let text =
            container("volumeMounts:\n" + mounts) + "\n---\n"
            + container(variables).replacing("name: p", with: "name: o")
        let config = "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata:\n" + indented(data, 2)
        #expect(errors(text + config).count == 101)
    }

    @Test func messagesHoldNoControlCharacters() {
        let all = errors(container("\"\\e[31m\": 1\nvolumeMounts: [{name: \"\\e[0m\", mountPath: /a}]"))
        #expect(all.count == 3)
        #expect(all.allSatisfy { line in line.unicodeScalars.allSatisfy { $0.value >= 32 } })
    }
}
