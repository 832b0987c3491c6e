import EventLoop
import Glibc
import Model
import Testing

@testable import PatternContainers

@Suite("Record adapter", .serialized)
struct RecordAdapterTests {
    private let input = TestDirectory()
    private let output = TestDirectory()

    private func options(_ arguments: String..., glob: String = "*.log") throws -> RecordAdapterOptions {
        var options = try RecordAdapterOptions(
            arguments: ["--watch", "\(input.path)/\(glob)", "--out", output.path] + arguments)
        options.settle = .milliseconds(100)
        return options
    }

    /// Runs an adapter until `condition` holds, then stops it in an orderly way.
    private func adapt(_ test: TestLoop, _ options: RecordAdapterOptions, until condition: @escaping () -> Bool) throws
    {
        let adapter = RecordAdapter(loop: test.loop, options: options, report: test.report)
        try adapter.start()
        #expect(test.run(until: condition), "\(test.said) \(output.names())")
        var stopped = false
        adapter.stop { stopped = true }
        #expect(test.run { stopped })
    }

    @Test func outputsAreNamedAsInputsAndHoldWholeRecordsOnly() throws {
        let test = try TestLoop()
        input.append("a.log", "level=info n=1\nlevel=warn n=2\nlevel=half")
        input.append("b.log", "x=1\n")
        try adapt(test, options("--from", "logfmt", "--to", "json")) { [output] in
            output.lines("a.log").count == 2 && output.lines("b.log").count == 1
        }
        #expect(output.lines("a.log") == [#"{"level":"info","n":"1"}"#, #"{"level":"warn","n":"2"}"#])
        #expect(output.names() == ["a.log", "b.log"])
    }

    @Test func whatIsWrittenAppearsSoonAndNewFilesAreFound() throws {
        let test = try TestLoop()
        let adapter = RecordAdapter(
            loop: test.loop, options: try options("--from", "lines", "--to", "template:<{}>"), report: test.report)
        try adapter.start()
        defer { adapter.stop() }
        input.append("new.log", "one\n")
        test.run { [output] in output.lines("new.log") == ["<one>"] }
        #expect(output.lines("new.log") == ["<one>"])
        for i in 0..<20 {
            input.append("new.log", "line \(i)\n")
            test.run { [output] in output.lines("new.log").last == "<line \(i)>" }
            #expect(output.lines("new.log").last == "<line \(i)>")
        }
    }

    @Test func aRestartNeitherLosesNorRepeats() throws {
        let test = try TestLoop()
        let options = try options("--from", "csv", "--to", "logfmt", glob: "*.csv")
        input.append("t.csv", "id,name\n")
        var written = 0
        for round in 0..<5 {
            for _ in 0..<200 {
                input.append("t.csv", "\(written),\"n \(written)\"\n")
                written += 1
            }
            let adapter = RecordAdapter(loop: test.loop, options: options, report: test.report)
            try adapter.start()
            #expect(test.run { output.lines("t.csv").count == written }, "\(test.said)")
            adapter.stop()
            // What a killed adapter had written beyond its last checkpoint goes.
            if round < 4 { output.append("t.csv", "id=half") }
        }
        #expect(output.lines("t.csv") == (0..<written).map { "id=\($0) name=\"n \($0)\"" })
    }

    @Test func rotationByRenamingLosesNothing() throws {
        let test = try TestLoop()
        let adapter = RecordAdapter(
            loop: test.loop, options: try options("--from", "lines", "--to", "json"), report: test.report)
        try adapter.start()
        defer { adapter.stop() }
        var written = 0
        for round in 0..<4 {
            for i in 0..<50 {
                input.append("app.log", "m\(written)\n")
                written += 1
                // Seen once under its name, it is followed; the last lines come just before the renaming.
                if i == 20 { test.run(for: .milliseconds(20)) }
            }
            if round < 3 {
                for age in stride(from: round, to: 0, by: -1) { input.rename("app.log.\(age)", "app.log.\(age + 1)") }
                input.rename("app.log", "app.log.1")
            }
        }
        #expect(test.run { output.lines("app.log").count == written }, "\(test.said)")
        #expect(output.lines("app.log") == (0..<written).map { #"{"message":"m\#($0)"}"# })
    }

    @Test func badRecordsAreToldAndPassedOver() throws {
        let test = try TestLoop()
        input.append("j.log", "{\"a\":1}\nnonsense\n{\"a\":2}\n")
        try adapt(test, options("--from", "json", "--to", "csv")) { [output] in output.lines("j.log").count == 3 }
        #expect(output.text("j.log") == "a\n1\n2\n")
        #expect(test.said.contains { $0.contains("j.log:2") })
    }

    @Test func prometheusIsReplacedAsAWholeAndSurvivesRestarts() throws {
        let test = try TestLoop()
        let options = try options("--from", "logfmt", "--to", "prometheus")
        input.append("m.log", "q=a depth=1\nq=b depth=5\n")
        try adapt(test, options) { [output] in output.text("m.log").contains("depth{q=\"b\"} 5") }
        input.append("m.log", "q=a depth=2\n")
        try adapt(test, options) { [output] in output.text("m.log").contains("depth{q=\"a\"} 2") }
        #expect(output.text("m.log") == "# TYPE depth gauge\ndepth{q=\"a\"} 2\ndepth{q=\"b\"} 5\n")
        #expect(output.names() == ["m.log"])
    }

    @Test func theLastRecordOfSeveralLinesComesWhenNothingFollows() throws {
        let test = try TestLoop()
        input.append("s.log", "E one\n  at\nE two\n  at\n")
        try adapt(test, options("--from", "multiline:^E", "--to", "json")) { [output] in
            output.lines("s.log").count == 2
        }
        #expect(output.lines("s.log").last == #"{"message":"E two\n  at"}"#)
    }

    @Test func aFilterGetsALineAndGivesALine() throws {
        let test = try TestLoop()
        let options = try options(
            "--filter", "while read -r l; do case $l in drop*) echo;; *) echo \"[$l]\";; esac; done")
        input.append("f.log", (0..<300).map { "keep \($0)\ndrop \($0)\n" }.joined())
        try adapt(test, options) { [output] in output.lines("f.log").count == 300 }
        #expect(output.lines("f.log") == (0..<300).map { "[keep \($0)]" })
        input.append("f.log", "more\n")
        try adapt(test, options) { [output] in output.lines("f.log").count == 301 }
    }

    @Test func aFilterThatDiesIsFollowedByAnotherWithoutLossOrRepeat() throws {
        let test = try TestLoop()
        let options = try options(
            "--filter", "n=0; while read -r l; do n=$((n+1)); [ $n -gt 40 ] && exit 1; echo \"$l\"; done")
        input.append("f.log", (0..<100).map { "\($0)\n" }.joined())
        try adapt(test, options) { [output] in output.lines("f.log").count >= 100 }
        #expect(output.lines("f.log") == (0..<100).map { "\($0)" })
        #expect(test.said.contains { $0.contains("ended with 1") })
    }

    @Test func wholeFilesAreConvertedOnce() throws {
        let test = try TestLoop()
        let options = try options("--convert", "tr a-z A-Z; echo >> '\(input.path)/runs'", glob: "*.txt")
        input.append("one.txt", "hello\n")
        input.append("two.txt", "world\n")
        try adapt(test, options) { [output] in output.names() == ["one.txt", "two.txt"] }
        #expect(output.text("one.txt") == "HELLO\n")
        // Nothing to do for the next one, but for the file that has changed.
        input.append("two.txt", "again\n")
        try adapt(test, options) { [output] in output.text("two.txt") == "WORLD\nAGAIN\n" }
        #expect(input.text("runs") == "\n\n\n")
    }

    @Test func aFailedConversionLeavesNothing() throws {
        let test = try TestLoop()
        input.append("bad.txt", "x")
        let options = try options("--convert", "echo half; exit 3", glob: "*.txt")
        try adapt(test, options) { test.said.contains { $0.contains("ended with 3") } }
        #expect(output.names() == [])
        #expect(directoryEntries(output.path).allSatisfy { !$0.contains("coterie-new") })
    }

    @Test func theOwnOutputIsNotWatched() throws {
        let test = try TestLoop()
        let options = try RecordAdapterOptions(
            arguments: [
                "--watch", "\(output.path)/../\(lastComponent(output.path))/*", "--out", output.path, "--from", "lines",
                "--to", "json",
            ])
        #expect(throws: CoterieError.self) {
            try RecordAdapter(loop: test.loop, options: options, report: test.report).start()
        }
    }
}
