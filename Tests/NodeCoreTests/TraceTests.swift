import Glibc
import Model
import Simulator
import Testing

/// Nothing may depend on hashing, addresses or time: the same seed gives the same steps in every process.
@Suite struct TraceTests {
    /// `coterie-simulate`, built beside the tests.
    static let program: String? = {
        var buffer = [CChar](repeating: 0, count: 4_096)
        let count = readlink("/proc/self/exe", &buffer, buffer.count - 1)
        let own = count > 0 ? String(decoding: buffer[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self) : ""
        let besides = [own, CommandLine.arguments.first ?? ""].compactMap { path in
            path.lastIndex(of: "/").map { String(path[..<$0]) + "/coterie-simulate" }
        }
        return besides.first { access($0, X_OK) == 0 }
    }()

    static func output(of command: String) -> [UInt8]? {
        guard let pipe = popen(command, "r") else { return nil }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65_536)
        while true {
            let count = fread(&buffer, 1, buffer.count, pipe)
            if count == 0 { break }
            bytes += buffer[..<count]
        }
        return pclose(pipe) == 0 ? bytes : nil
    }

    @Test(arguments: [3, 8, 14])
    func twoProcessesGiveTheSameTrace(seed: UInt64) throws {
        let program = try #require(TraceTests.program, "coterie-simulate is not built")
        let command = "'\(program)' --replay \(seed) --trace"
        // Hashing is seeded anew in each process; the third one gets a fixed seed, which no random one equals.
        let first = try #require(TraceTests.output(of: command))
        let second = try #require(TraceTests.output(of: command))
        let third = try #require(TraceTests.output(of: "SWIFT_DETERMINISTIC_HASHING=1 \(command)"))
        #expect(first.count > 20_000)
        #expect(first == second)
        #expect(first == third)
    }

    @Test func differentSeedsGiveDifferentTraces() throws {
        let worlds = [World(seed: 3), World(seed: 8), World(seed: 3)]
        for world in worlds { try world.run() }
        #expect(worlds[0].traceDigest == worlds[2].traceDigest)
        #expect(worlds[0].traceDigest != worlds[1].traceDigest)
    }
}
