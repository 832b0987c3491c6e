import EventLoop
import Glibc
import Model
import Testing
import Wire

@testable import PatternContainers

@Suite("Log sidecar", .serialized)
struct LogSidecarTests {
    private let logs = TestDirectory()
    private let spool = TestDirectory()

    private func options(_ target: String) throws -> LogSidecarOptions {
        var options = LogSidecarOptions(targets: [try LogTarget(text: target)])
        options.logsDirectory = logs.path
        options.ownContainer = "sidecar"
        options.pod = "pod-0"
        options.spool = spool.path
        options.grace = .seconds(3)
        return options
    }

    private func line(_ text: String, _ tag: String = "F", stream: String = "stdout") -> String {
        "2026-01-02T03:04:05.123456789Z \(stream) \(tag) \(text)\n"
    }

    private func messages(_ lines: [String]) -> [String] {
        lines.map { (try? JSONValue(parsing: $0))?["message"]?.stringValue ?? "unreadable: \($0)" }
    }

    private func stop(_ test: TestLoop, _ sidecar: LogSidecar) {
        var stopped = false
        sidecar.stop { stopped = true }
        #expect(test.run { stopped })
    }

    @Test func recordsCarryTheirOriginAndPartsAreJoined() throws {
        let test = try TestLoop()
        let server = try ByteServer(test.loop)
        logs.append("app.log", line("first") + line("sec", "P") + line("err", stream: "stderr") + line("ond"))
        logs.append("sidecar.log", line("own"))
        let sidecar = LogSidecar(loop: test.loop, options: try options("tcp://\(server.address)"), report: test.report)
        try sidecar.start()
        #expect(test.run { server.lines.count == 3 })
        #expect(
            server.lines[0]
                == #"{"time":"2026-01-02T03:04:05.123456789Z","pod":"pod-0","container":"app","stream":"stdout","message":"first"}"#
        )
        #expect(messages(server.lines) == ["first", "err", "second"])
        stop(test, sidecar)
    }

    @Test func rotationAndRestartsLoseAndRepeatNothingOverTCP() throws {
        let test = try TestLoop()
        let server = try ByteServer(test.loop)
        var written = 0
        for round in 0..<4 {
            let sidecar = LogSidecar(
                loop: test.loop, options: try options("tcp://\(server.address)"), report: test.report)
            try sidecar.start()
            for _ in 0..<3 {
                for _ in 0..<100 {
                    logs.append("app.log", line("m\(written)"))
                    written += 1
                }
                test.run(for: .milliseconds(5))
            }
            for age in stride(from: round, to: 0, by: -1) { logs.rename("app.log.\(age)", "app.log.\(age + 1)") }
            logs.rename("app.log", "app.log.1")
            for _ in 0..<50 {
                logs.append("app.log", line("m\(written)"))
                written += 1
            }
            stop(test, sidecar)
        }
        #expect(test.run { server.lines.count >= written })
        #expect(messages(server.lines) == (0..<written).map { "m\($0)" })
    }

    @Test func aTargetThatWasDownGetsAllOnceOverHTTP() throws {
        let test = try TestLoop()
        let server = try ByteServer(test.loop)
        var bodies: [UInt8] = []
        var buffer: [UInt8] = []
        var refusals = 2
        server.onBytes = { stream, bytes in
            buffer += bytes
            // One request at a time; a body follows its head.
            guard let head = try? HTTPHead.cut(buffer, limit: 65_536), let length = try? head.0.contentLength(),
                buffer.count >= head.1 + length
            else { return }
            let body = Array(buffer[head.1..<head.1 + length])
            buffer = []
            #expect(head.0.startLine == "POST /ingest?x=1 HTTP/1.1")
            if refusals > 0 {
                refusals -= 1
                stream.write(Array("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"))
            } else {
                bodies += body
                stream.write(Array("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"))
            }
        }
        logs.append("app.log", (0..<500).map { line("m\($0)") }.joined())
        server.down()
        let sidecar = LogSidecar(
            loop: test.loop, options: try options("http://\(server.address)/ingest?x=1"), report: test.report)
        try sidecar.start()
        #expect(test.run { test.said.contains { $0.contains("reading waits") } })
        buffer = []
        try server.up()
        #expect(test.run { bodies.split(separator: 10).count >= 500 }, "\(test.said)")
        #expect(
            messages(bodies.split(separator: 10).map { String(decoding: $0, as: UTF8.self) })
                == (0..<500).map { "m\($0)" })
        stop(test, sidecar)
    }

    @Test func syslogIsCountedAndPlainFilesAreFollowed() throws {
        let test = try TestLoop()
        let server = try ByteServer(test.loop)
        let files = TestDirectory()
        files.append("access.txt", "GET /\n")
        var options = try options("syslog+tcp://\(server.address)")
        options.files = ["\(files.path)/*.txt"]
        let sidecar = LogSidecar(loop: test.loop, options: options, report: test.report)
        try sidecar.start()
        #expect(test.run { server.received.count > 20 })
        files.append("access.txt", "unfinished")
        stop(test, sidecar)
        #expect(test.run { String(decoding: server.received, as: UTF8.self).hasSuffix("unfinished") })
        var rest = server.received[...]
        var texts: [String] = []
        while let space = rest.firstIndex(of: 32), let count = Int(String(decoding: rest[..<space], as: UTF8.self)) {
            texts.append(String(decoding: rest[(space + 1)...].prefix(count), as: UTF8.self))
            rest = rest[(space + 1)...].dropFirst(count)
        }
        #expect(rest.isEmpty)
        #expect(texts.count == 2)
        #expect(texts.allSatisfy { $0.hasPrefix("<14>1 20") && $0.contains(" pod-0 access.txt - file - ") })
    }
}
