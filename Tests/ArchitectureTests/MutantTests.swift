import Foundation
import Testing

/// The mutation gate takes too long for every day, but its bugs must still be possible to plant.
struct MutantTests {
    @Test func everyMutantStillApplies() throws {
        let process = Process()
        process.executableURL = LayerTests.root.appendingPathComponent("scripts/mutants")
        process.arguments = ["--check"]
        let pipe = Pipe()
        process.standardOutput = pipe
        process.standardError = pipe
        try process.run()
        let output = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        #expect(process.terminationStatus == 0, "\(output)")
        let count = try #require(output.split(separator: " ").first.flatMap { Int($0) })
        #expect(count >= 40)
    }
}
