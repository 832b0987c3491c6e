import Model
import Testing
import Wire

@Suite struct ByteTests {
    @Test func valuesReadBackInOrder() throws {
        var writer = ByteWriter()
        writer.u8(1)
        writer.bool(true)
        writer.u16(0x0203)
        writer.u32(0x0405_0607)
        writer.u64(.max)
        writer.i64(-5)
        writer.f64(1.5)
        writer.varint(300)
        writer.string("é")
        writer.slice([9, 8])
        writer.optional(nil as UInt64?) { $0.varint($1) }
        writer.stringMap(["b": "2", "a": "1"])
        writer.nodeID(NodeID(high: 1, low: 2))
        #expect(writer.bytes.prefix(8) == [1, 1, 3, 2, 7, 6, 5, 4])
        var reader = ByteReader(writer.bytes)
        #expect(try reader.u8() == 1)
        #expect(try reader.bool())
        #expect(try reader.u16() == 0x0203)
        #expect(try reader.u32() == 0x0405_0607)
        #expect(try reader.u64() == .max)
        #expect(try reader.i64() == -5)
        #expect(try reader.f64() == 1.5)
        #expect(try reader.varint() == 300)
        #expect(try reader.string(max: 2) == "é")
        #expect(try reader.array(max: 2) == [9, 8])
        #expect(try reader.optional { (r: inout ByteReader) throws(WireError) in try r.varint() } == nil)
        #expect(try reader.stringMap(maxCount: 2, keyBytes: 1, valueBytes: 1) == ["a": "1", "b": "2"])
        #expect(try reader.nodeID() == NodeID(high: 1, low: 2))
        try reader.finish()
    }

    @Test(arguments: [0, 1, 127, 128, 16_383, 16_384, 1 << 62, 1 << 63, .max] as [UInt64])
    func varintsReadBack(value: UInt64) throws {
        var writer = ByteWriter()
        writer.varint(value)
        var reader = ByteReader(writer.bytes)
        #expect(try reader.varint() == value)
        #expect(reader.isAtEnd)
    }

    @Test(
        arguments: [
            [0x80], [0x80, 0], [0xFF, 0x80, 0], [UInt8](repeating: 0xFF, count: 10),
            [UInt8](repeating: 0x80, count: 11),
            [UInt8](repeating: 0xFF, count: 9) + [2],
        ] as [[UInt8]])
    func longFormsAndOverflowsOfVarintsAreRefused(bytes: [UInt8]) {
        #expect(throws: WireError.self) {
            var reader = ByteReader(bytes)
            _ = try reader.varint()
        }
    }

    @Test func lengthsAreCheckedBeforeMemoryIsTaken() {
        var writer = ByteWriter()
        writer.varint(1 << 40)
        let bytes = writer.bytes
        #expect(throws: WireError.tooLong(at: 0, length: 1 << 40, limit: 100)) {
            var reader = ByteReader(bytes)
            _ = try reader.array(max: 100)
        }
        // Within the limit, but there is not so much.
        #expect(throws: WireError.truncated(at: 0)) {
            var reader = ByteReader([0x90, 0x4E])
            _ = try reader.count(max: 100_000, itemBytes: 4)
        }
    }

    @Test func mapsMustBeSortedAndWithoutDuplicates() {
        for pairs in [["b", "a"], ["a", "a"]] {
            var writer = ByteWriter()
            writer.count(2)
            for key in pairs {
                writer.string(key)
                writer.string("")
            }
            let bytes = writer.bytes
            #expect(throws: WireError.self) {
                var reader = ByteReader(bytes)
                _ = try reader.stringMap(maxCount: 9, keyBytes: 9, valueBytes: 9)
            }
        }
    }

    @Test func textIsCutBetweenScalars() {
        #expect("aéb".clipped(2) == "a")
        #expect("aéb".clipped(3) == "aé")
        #expect("aéb".clipped(4) == "aéb")
    }

    @Test(arguments: ["1.2.3.4:5", "[2001:db8::1]:6", "unix:/run/x"])
    func addressesReadBack(text: String) throws {
        let address = try #require(SocketAddress(text: text))
        var writer = ByteWriter()
        writer.address(address)
        var reader = ByteReader(writer.bytes)
        #expect(try reader.address() == address)
    }

    @Test func checksumsAreThoseOfRFC3720AndChain() {
        #expect(CRC32C.checksum([UInt8](repeating: 0, count: 32)) == 0x8A91_36AA)
        #expect(CRC32C.checksum([UInt8](repeating: 0xFF, count: 32)) == 0x62A8_AB43)
        #expect(CRC32C.checksum(Array("123456789".utf8)) == 0xE306_9283)
        let first = CRC32C.checksum(Array("1234".utf8))
        #expect(CRC32C.checksum(Array("56789".utf8), continuing: first) == 0xE306_9283)
    }
}

@Suite struct FrameTests {
    private let frames = [
        Frame(kind: 1, channel: 0, payload: []), Frame(kind: 255, channel: .max, payload: [1, 2, 3]),
        Frame(kind: 7, channel: 9, payload: [UInt8](repeating: 5, count: 70_000)),
    ]

    @Test func theBytesOfAFrameStayWhatTheyAre() {
        #expect(frames[1].encoded == [8, 0, 0, 0, 255, 255, 255, 255, 255, 1, 2, 3])
    }

    @Test func aStreamCutAnywhereGivesTheSameFrames() throws {
        var generator = SeededGenerator(seed: 2)
        let stream = (0..<5).flatMap { _ in frames.flatMap(\.encoded) }
        for _ in 0..<20 {
            var decoder = FrameDecoder()
            var found: [Frame] = []
            var rest = stream[...]
            while !rest.isEmpty {
                let part = rest.prefix(Int.random(in: 1...(generator.chance(0.5) ? 7 : 90_000), using: &generator))
                rest = rest.dropFirst(part.count)
                decoder.feed(part)
                while let frame = try decoder.next() { found.append(frame) }
            }
            #expect(found == (0..<5).flatMap { _ in frames })
            #expect(decoder.pendingBytes == 0)
        }
    }

    @Test func anOverlongOrImpossibleLengthIsRefusedAtOnce() {
        var long = FrameDecoder(limit: 100)
        long.feed([101, 0, 0, 0])
        #expect(throws: WireError.tooLong(at: 0, length: 101, limit: 100)) { try long.next() }
        var short = FrameDecoder()
        short.feed([4, 0, 0, 0])
        #expect(throws: WireError.self) { try short.next() }
    }

    @Test func whatFollowsTheLastFrameCanBeTakenAsRawBytes() throws {
        var decoder = FrameDecoder()
        decoder.feed(frames[1].encoded + [9, 9])
        #expect(try decoder.next() == frames[1])
        #expect(decoder.takePending() == [9, 9])
        #expect(decoder.pendingBytes == 0)
    }
}
