import Model
import ScatterGather
import Testing

/// Cuts `input`, fed in pieces of `step` bytes, into texts.
private func shards(_ kind: ScatterGatherSpec.Sharder, _ input: String, step: Int = 3) -> [String] {
    let bytes = Array(input.utf8)
    var sharder = Sharder(kind)
    var ranges: [ShardRange] = []
    var at = 0
    while at < bytes.count {
        sharder.feed(bytes[at..<min(at + step, bytes.count)]) { ranges.append($0) }
        at += step
    }
    sharder.finish { ranges.append($0) }
    sharder.finish { _ in Issue.record("a second end puts out nothing") }
    #expect(sharder.shardCount == ranges.count)
    return ranges.map { String(decoding: bytes[Int($0.start)..<Int($0.end)], as: UTF8.self) }
}

@Suite struct SharderTests {
    @Test(arguments: [1, 2, 7, 1_000]) func linesKeepEveryByte(step: Int) {
        #expect(shards(.lines(2), "a\nb\nc\nd\n", step: step) == ["a\nb\n", "c\nd\n"])
        #expect(shards(.lines(2), "a\nb\nc", step: step) == ["a\nb\n", "c"])
        #expect(shards(.lines(2), "a\r\nb\r\n\nc", step: step) == ["a\r\nb\r\n", "\nc"])
        #expect(shards(.lines(10), "a\nb\n", step: step) == ["a\nb\n"])
        #expect(shards(.lines(1), "\n\n", step: step) == ["\n", "\n"])
    }

    @Test func emptyInputMakesNoShardsButThoseAskedFor() {
        #expect(shards(.lines(2), "") == [])
        #expect(shards(.bytes(10), "") == [])
        #expect(shards(.arguments, "") == [])
        #expect(shards(.shards(3), "") == ["", "", ""])
        #expect(shards(.index(3), "") == ["", "", ""])
    }

    @Test(arguments: [1, 3, 1_000]) func bytesKeepRecordsWhole(step: Int) {
        #expect(shards(.bytes(6), "ab\ncd\nef\n", step: step) == ["ab\ncd\n", "ef\n"])
        #expect(shards(.bytes(7), "ab\ncd\nef\n", step: step) == ["ab\ncd\n", "ef\n"])
        // One record over the limit is a shard of its own, whole.
        #expect(shards(.bytes(4), "a\nlonger\nb\n", step: step) == ["a\n", "longer\n", "b\n"])
        #expect(shards(.bytes(4), "longer", step: step) == ["longer"])
        #expect(shards(.bytes(4), "a\nlonger", step: step) == ["a\n", "longer"])
        #expect(shards(.bytes(1), "a\nb", step: step) == ["a\n", "b"])
    }

    @Test(arguments: [1, 1_000]) func argumentsAreLinesWithoutTheirFeed(step: Int) {
        #expect(shards(.arguments, "a b\n\nc", step: step) == ["a b", "", "c"])
        #expect(shards(.arguments, "a\r\n", step: step) == ["a\r"])
        #expect(shards(.arguments, "\n", step: step) == [""])
    }

    @Test func shardsAreNearEqualWithRecordsWhole() {
        let lines = (0..<1_000).map { "line \($0)\n" }
        let cut = shards(.shards(8), lines.joined(), step: 100)
        #expect(cut.count == 8)
        #expect(cut.joined() == lines.joined())
        #expect(cut.allSatisfy { $0.hasSuffix("\n") })
        let sizes = cut.map(\.utf8.count)
        #expect((sizes.max() ?? 0) - (sizes.min() ?? 0) <= 20)
        // One huge line can not be divided.
        let huge = shards(.shards(4), String(repeating: "x", count: 5_000), step: 512)
        #expect(huge.count == 4)
        #expect(huge.filter { !$0.isEmpty }.count == 1)
        #expect(shards(.shards(4), "a\nb\n").filter { !$0.isEmpty } == ["a\n", "b\n"])
    }

    @Test(arguments: 0..<40) func randomInputComesBackWhole(seed: UInt64) {
        var generator = SeededGenerator(seed: seed)
        let input = String(
            decoding: (0..<Int.random(in: 0...400, using: &generator)).map { _ in
                generator.chance(0.15) ? UInt8(10) : UInt8.random(in: 97...122, using: &generator)
            }, as: UTF8.self)
        let records = input.split(separator: "\n", omittingEmptySubsequences: false)
        let count = Int.random(in: 1...30, using: &generator)
        let step = Int.random(in: 1...50, using: &generator)
        for kind in [ScatterGatherSpec.Sharder.lines(count), .shards(count), .bytes(UInt64(count))] {
            let cut = shards(kind, input, step: step)
            #expect(cut.joined() == input)
            for (i, shard) in cut.enumerated() where i + 1 < cut.count && !shard.isEmpty {
                let rest = cut[(i + 1)...].joined()
                if !rest.isEmpty { #expect(shard.hasSuffix("\n")) }
            }
            if case .shards = kind { #expect(cut.count == count) }
            if case .lines = kind {
                #expect(
                    cut.allSatisfy { $0.split(separator: "\n", omittingEmptySubsequences: false).count <= count + 1 })
            }
        }
        let arguments = shards(.arguments, input, step: step)
        #expect(arguments == records.map(String.init).dropLast(records.last == "" ? 1 : 0).map { $0 })
    }
}
