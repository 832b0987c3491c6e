import Model
import Testing

@Suite struct TimeSpanTests {
    @Test(
        arguments: [
            ("250ms", 250_000_000), ("3s", 3_000_000_000), ("1.5s", 1_500_000_000), ("5m", 300_000_000_000),
            ("2h", 7_200_000_000_000),
            ("1d", 86_400_000_000_000), ("0", 0), ("0s", 0), ("7us", 7_000), ("7µs", 7_000), ("9ns", 9),
        ] as [(String, Int64)])
    func readsDurations(text: String, nanoseconds: Int64) {
        #expect(TimeSpan(text: text)?.nanoseconds == nanoseconds)
    }

    @Test(arguments: ["", "3", "-3s", "3 s", "s", "3x", "1e3s", "1..5s", "3S", "101000d", "nans", "infs", "3s4"])
    func refusesOtherTexts(text: String) { #expect(TimeSpan(text: text) == nil) }

    @Test func printsTheShortestFormThatReadsBack() {
        var generator = SeededGenerator(seed: 3)
        for unit in [1, 1_000, 1_000_000, 1_000_000_000, 60_000_000_000, 3_600_000_000_000] as [Int64] {
            for _ in 0..<50 {
                let span = TimeSpan(nanoseconds: unit * Int64.random(in: 0...800, using: &generator))
                #expect(TimeSpan(text: span.description) == span)
            }
        }
        #expect(TimeSpan.milliseconds(1_500).description == "1500ms")
        #expect(TimeSpan.seconds(120).description == "2m")
    }

    @Test func arithmeticStaysAtTheEndsInsteadOfTrapping() {
        let long = TimeSpan(nanoseconds: .max)
        let negative = TimeSpan(nanoseconds: .min)
        #expect(long + long == long)
        #expect(negative - long == negative)
        #expect(long * 3 == long)
        #expect(TimeSpan.seconds(.max) == long)
        #expect(TimeSpan.seconds(.min) == negative)
        #expect(MonotonicTime(nanoseconds: .max) + .seconds(1) == .distantFuture)
        #expect(MonotonicTime(nanoseconds: 5) - .seconds(1) == .zero)
        #expect(MonotonicTime.zero - MonotonicTime.distantFuture == TimeSpan(nanoseconds: -.max))
        #expect(MonotonicTime.distantFuture - MonotonicTime.zero == long)
    }

    @Test func subtractingTheLongestNegativeSpanMovesForward() {
        #expect(MonotonicTime(nanoseconds: 5) - TimeSpan(nanoseconds: .min) > MonotonicTime(nanoseconds: 5))
    }
}

@Suite struct ByteSizeTests {
    @Test(
        arguments: [
            ("0", 0), ("100", 100), ("512B", 512), ("64KiB", 65_536), ("64Ki", 65_536), ("1MiB", 1_048_576),
            ("1.5KiB", 1_536),
            ("2kB", 2_000), ("1Gi", 1 << 30),
        ] as [(String, UInt64)])
    func readsSizes(text: String, bytes: UInt64) { #expect(ByteSize.parse(text) == bytes) }

    @Test(arguments: ["", "KiB", "-1", "1.0001KiB", "1 KiB", "1kib", "99999TiB", "1e3"])
    func refusesOtherTexts(text: String) { #expect(ByteSize.parse(text) == nil) }
}

@Suite struct SocketAddressTests {
    @Test(arguments: [
        "127.0.0.1:7630", "0.0.0.0:0", "255.255.255.255:65535", "[::1]:80", "[::]:1", "[fe80::1:2]:9",
        "[1:2:3:4:5:6:7:8]:1",
        "[1::8]:1", "[2001:db8::]:1", "unix:/run/a.sock",
    ])
    func readsWhatItPrints(text: String) { #expect(SocketAddress(text: text)?.description == text) }

    @Test(arguments: [
        "", ":1", "1.2.3.4", "1.2.3.4:", "1.2.3:4", "1.2.3.4.5:1", "256.1.1.1:1", "1.2.3.4:65536", "1.2.3.4:+1",
        "localhost:1",
        "[::1]", "::1:80", "[::1:80", "[1:2:3]:1", "[1:::2]:1", "[::1::]:1", "[1:2:3:4:5:6:7:8:9]:1", "[12345::]:1",
        "[:1:2:3:4:5:6:7]:1",
        "[1:2:3:4:5:6:7:]:1", "[1::2::3]:1", "[:::]:1", "[1:2:3:4::5:6:7:8]:1",
        "[g::]:1", "[+1::]:1", "unix:", " 1.2.3.4:1", "1.2.3.4:1 ", "[]:1",
    ])
    func refusesOtherTexts(text: String) { #expect(SocketAddress(text: text) == nil) }

    @Test func aUnixPathMustFitIntoTheSystemsStructure() {
        #expect(SocketAddress(text: "unix:/" + String(repeating: "a", count: 106)) != nil)
        #expect(SocketAddress(text: "unix:/" + String(repeating: "a", count: 107)) == nil)
    }

    @Test func everyV6AddressReadsBack() {
        var generator = SeededGenerator(seed: 5)
        for _ in 0..<2_000 {
            // Many zero groups, so that the gap is in all places.
            func half() -> UInt64 {
                (0..<4).reduce(UInt64(0)) { value, _ in
                    value << 16 | (generator.chance(0.6) ? 0 : UInt64.random(in: 0...0xFFFF, using: &generator))
                }
            }
            let address = SocketAddress(
                host: .v6(high: half(), low: half()), port: UInt16.random(in: 0...UInt16.max, using: &generator))
            #expect(SocketAddress(text: address.description) == address, "\(address)")
        }
    }

    @Test func knowsLoopbackAndUnspecified() {
        #expect(SocketAddress(text: "127.9.9.9:1")?.isLoopback == true)
        #expect(SocketAddress(text: "[::1]:1")?.isLoopback == true)
        #expect(SocketAddress(text: "unix:/a")?.isLoopback == true)
        #expect(SocketAddress(text: "128.0.0.1:1")?.isLoopback == false)
        #expect(SocketAddress(text: "0.0.0.0:1")?.isUnspecified == true)
        #expect(SocketAddress(text: "[::]:1")?.isUnspecified == true)
        #expect(SocketAddress(text: "[::1]:1")?.isUnspecified == false)
    }
}

@Suite struct IdentityTests {
    @Test func aNodeIdReadsBackAndNothingElseIsOne() {
        let id = NodeID(high: 0xAB, low: 1)
        #expect(id.description == "00000000000000ab0000000000000001")
        #expect(NodeID(text: id.description) == id)
        for text in [
            "", "ab", "+0000000000000ab0000000000000001", "g0000000000000ab0000000000000001", id.description + "0",
        ] {
            #expect(NodeID(text: text) == nil)
        }
    }

    @Test func theSeededGeneratorGivesTheSameNumbersEverywhere() {
        // xoshiro256** over SplitMix64 of seed 0; the state is that of the reference implementation.
        var generator = SeededGenerator(seed: 0)
        #expect(
            (0..<3).map { _ in generator.next() } == [
                0x99EC_5F36_CB75_F2B4, 0xBF6E_1F78_4956_452A, 0x1A5F_849D_4933_E6E0,
            ])
        var fork = generator.fork()
        var same = SeededGenerator(seed: 0)
        for _ in 0..<3 { _ = same.next() }
        var otherFork = same.fork()
        #expect(fork.next() == otherFork.next())
        let (never, always) = (generator.chance(0), generator.chance(1))
        #expect(!never && always)
    }

    @Test func everyErrorCodeHasAnExitCodeAndOneLine() {
        for code in CoterieError.Code.allCases { #expect(CoterieError(code, "x").exitCode != .done) }
        #expect(
            CoterieError(.notFound, "there is no pod x", hint: "look again").description
                == "there is no pod x (look again)")
    }

    @Test func gatherCountsMustAddUp() {
        var progress = GatherProgress(total: 10, successful: 4, failed: 1, timedOut: 1, running: 2, pending: 2)
        #expect(progress.isConsistent)
        progress.cancelRest()
        #expect(progress.isConsistent && progress.cancelled == 4 && progress.running == 0)
        progress.failed += 1
        #expect(!progress.isConsistent)
        #expect(!GatherProgress(total: 0, successful: 1, failed: -1).isConsistent)
        #expect(!GatherProgress(total: .max, successful: .max).isConsistent)
    }
}
