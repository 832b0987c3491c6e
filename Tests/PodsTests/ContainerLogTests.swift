// The log's format, its rotation, and reading back while it is written.
import EventLoop
import Glibc
import Model
import Testing

@testable import Pods

@Suite(.serialized) struct ContainerLogTests {
    private func with(
        fileBytes: Int = 1 << 20, fileCount: Int = 3, _ body: (EventLoop, ContainerLog, String) throws -> Void
    ) throws {
        let directory = try #require(makeTemporaryDirectory())
        defer { removeTree(directory) }
        let loop = try EventLoop()
        let log = ContainerLog(directory: directory, name: "c", fileBytes: fileBytes, fileCount: fileCount, group: nil)
        try body(loop, log, directory)
        loop.close()
    }

    private func write(_ log: ContainerLog, _ text: String, _ stream: LogStream = .stdout, at time: UInt64 = 1) {
        Array(text.utf8).withUnsafeBytes { log.append(stream, $0, now: time) }
    }

    private func read(_ loop: EventLoop, _ log: ContainerLog, _ options: LogOptions = LogOptions()) throws -> [LogLine]
    {
        var lines: [LogLine] = []
        _ = try LogReader(loop: loop, log: log, options: options) {
            lines.append($0)
        } onEnd: { _ in
            loop.stop()
        }
        loop.run()
        return lines
    }

    private func text(_ lines: [LogLine]) -> [String] { lines.map { String(decoding: $0.text, as: UTF8.self) } }

    @Test func entriesHaveTheFormatOfTheContainerRuntimeInterface() throws {
        try with { (_, log, directory) throws in
            log.beginRun(now: 1)
            write(log, "one\ntw", at: 2)
            write(log, "err\n", .stderr, at: 3)
            write(log, "o\n\nrest", at: 1)
            log.end(.stdout, now: 4)
            #expect(
                textFile(directory + "/c.log") == """
                    1970-01-01T00:00:00.000000002Z stdout F one
                    1970-01-01T00:00:00.000000003Z stderr F err
                    1970-01-01T00:00:00.000000003Z stdout F two
                    1970-01-01T00:00:00.000000003Z stdout F\u{20}
                    1970-01-01T00:00:00.000000004Z stdout F rest

                    """)
        }
    }

    @Test func longLinesAreCutIntoPartsAndReadBackWhole() throws {
        try with { (loop, log, _) throws in
            log.beginRun(now: 1)
            let long = String(repeating: "x", count: 3 * ContainerLog.partBytes + 5)
            write(log, "a\n" + long)
            write(log, long + "\nb\n")
            let lines = try read(loop, log)
            #expect(lines.map(\.isPartial) == [false] + Array(repeating: true, count: 6) + [false, false])
            #expect(lines.dropFirst().dropLast().flatMap(\.text) == Array((long + long).utf8))
            #expect(try text(read(loop, log, LogOptions(tail: 1))) == ["b"])
            #expect(try read(loop, log, LogOptions(tail: 2)).count == 8, "the last line but one is whole")
        }
    }

    @Test func rotationKeepsSoManyFilesOfSoManyBytes() throws {
        try with(fileBytes: 1_024) { (loop, log, directory) throws in
            log.beginRun(now: 1)
            for i in 0..<100 { write(log, "line \(i)\n", at: UInt64(i)) }
            #expect(entries(of: directory) == ["c.log", "c.log.1", "c.log.2"])
            for name in entries(of: directory) { #expect((textFile(directory + "/" + name) ?? "").utf8.count <= 1_024) }
            let lines = text(try read(loop, log))
            #expect(lines.last == "line 99")
            let first = 100 - lines.count
            #expect(lines == (first..<100).map { "line \($0)" })
            #expect(lines.count > 40)
            #expect(try text(read(loop, log, LogOptions(tail: 30))) == (70..<100).map { "line \($0)" })
            #expect(
                try text(read(loop, log, LogOptions(since: LogTime.text(nanoseconds: 98)))) == ["line 98", "line 99"])
        }
    }

    @Test func aReaderThatFollowsLosesNothingByRotation() throws {
        try with(fileBytes: 2_048, fileCount: 4) { (loop, log, _) throws in
            log.beginRun(now: 1)
            var got: [String] = []
            var written = 0
            let timer = LoopTimer(loop: loop)
            timer.start(every: .milliseconds(1)) { [self] in
                for _ in 0..<20 where written < 1_000 {
                    write(log, "line \(written)\n")
                    written += 1
                }
                if written == 1_000 {
                    timer.close()
                    log.close()
                }
            }
            _ = try LogReader(loop: loop, log: log, options: LogOptions(follow: true)) {
                got += text([$0])
            } onEnd: { _ in
                loop.stop()
            }
            loop.run()
            #expect(got == (0..<1_000).map { "line \($0)" })
            #expect(log.current > 10)
        }
    }

    @Test func thePreviousRunIsToldApartEvenIfTheClockStandsStill() throws {
        try with { (loop, log, _) throws in
            log.beginRun(now: 5)
            write(log, "first\n", at: 5)
            #expect(throws: CoterieError.self) { try read(loop, log, LogOptions(previous: true)) }
            log.beginRun(now: 5)
            write(log, "second\n", at: 5)
            let (current, previous) = (try read(loop, log), try read(loop, log, LogOptions(previous: true)))
            #expect(text(current) == ["second"])
            #expect(text(previous) == ["first"])
        }
    }

    @Test func aPausedReaderWaitsAndACancelledOneIsSilent() throws {
        try with { (loop, log, _) throws in
            log.beginRun(now: 1)
            for i in 0..<10 { write(log, "\(i)\n") }
            var got: [String] = []
            var reader: LogReader?
            reader = try LogReader(loop: loop, log: log, options: LogOptions()) { [self] in
                got += text([$0])
                if got.count == 3 {
                    reader?.pause()
                    loop.stop()
                }
                if got.count == 6 {
                    reader?.cancel()
                    loop.stop()
                }
            } onEnd: { _ in
                Issue.record("a cancelled reader has no end")
            }
            loop.run()
            #expect(got == ["0", "1", "2"])
            reader?.resume()
            loop.run()
            #expect(got == ["0", "1", "2", "3", "4", "5"])
        }
    }
}
