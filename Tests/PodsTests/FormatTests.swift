// Names, times and messages: the formats that others read.
import Model
import Testing
import Wire

@testable import Pods

@Suite struct FormatTests {
    @Test(arguments: [
        (UInt64(0), "1970-01-01T00:00:00.000000000Z"), (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
        (1_767_225_599_999_999_999, "2025-12-31T23:59:59.999999999Z"),
        (4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z"),
    ])
    func logTimesReadBack(nanoseconds: UInt64, text: String) {
        #expect(LogTime.text(nanoseconds: nanoseconds) == text)
        #expect(LogTime.nanoseconds(text) == nanoseconds)
    }

    @Test(arguments: [
        "", "2026-01-02", "2026-02-30T00:00:00.000000000Z", "2026-01-02T03:04:05.00000000xZ",
        "2026-01-02 03:04:05.000000000Z",
    ])
    func whatIsNoLogTimeIsRefused(text: String) { #expect(LogTime.nanoseconds(text) == nil) }

    @Test func imagesHaveADirectoryEach() {
        #expect(ImageName.directoryName(for: "busybox") == "busybox%3Alatest")
        #expect(ImageName.directoryName(for: "localhost/a/b:1") == "localhost%2Fa%2Fb%3A1")
        #expect(ImageName.directoryName(for: "../x") == nil)
        #expect(ImageName.directoryName(for: "a b") == nil)
        #expect(ImageName.isHost("localhost/host"))
        #expect(ImageName.isHost("localhost/host:latest"))
        #expect(!ImageName.isHost("localhost/hostess"))
    }

    @Test func referencesExpandAsInKubernetes() {
        let values = ["A": "1", "B": "two"]
        #expect(expandReferences("$(A)-$(B)", values) == "1-two")
        #expect(expandReferences("$$(A) $(C) $A $", values) == "$(A) $(C) $A $")
    }

    @Test func messagesToInitHaveTheirLayout() {
        let bytes = InitCommand.signal(run: 7, number: 15).encoded(descriptors: 0)
        #expect(bytes == [10, 0, 0, 0, 5, 0, 7, 0, 0, 0, 15, 0, 0, 0])
        let probe = InitCommand.probe(
            ProbeStart(run: 1, hostSide: true, port: 80, timeoutMilliseconds: 1_000, path: "/x"))
        #expect(
            probe.encoded(descriptors: 0).dropFirst(4) == [
                4, 0, 1, 0, 0, 0, 1, 1, 80, 0, 0, 0, 0xE8, 3, 0, 0, 2, 0, 0, 0, 0x2F, 0x78,
            ])
    }

    @Test func reportsAreCutOutOfBytesHoweverTheyCome() throws {
        let bytes: [UInt8] =
            [6, 0, 0, 0, 64, 0, 0, 0, 0, 0] + [10, 0, 0, 0, 68, 0, 3, 0, 0, 0, 137, 0, 0, 0]
            + [12, 0, 0, 0, 67, 0, 4, 0, 0, 0, 2, 0, 0, 0, 0x6E, 0x6F]
        var decoder = InitReportDecoder()
        var reports: [InitReport] = []
        for byte in bytes {
            decoder.feed([byte])
            while let report = try decoder.next() { reports.append(report) }
        }
        #expect(reports == [.ready, .exited(run: 3, code: 137), .error(run: 4, "no")])
        decoder.feed([255, 255, 255, 255])
        #expect(throws: WireError.self) { try decoder.next() }
    }

    @Test func usersOfANodeNeverContainRoot() {
        for name in ["/a", "/b", "/var/lib/coterie/pods"] {
            let range = PodRuntimeOptions.userRange(for: name)
            #expect(range.lowerBound >= 200_000)
            #expect(range.count == 1_000)
        }
    }
}
