import Glibc
import Model
import Testing
import Wire

@testable import Membership

@Suite struct CodecTests {
    private static let address = SocketAddress(host: .v4(0x7F00_0001), port: 7630)
    private static let member = Member(
        id: NodeID(high: 0x0102_0304_0506_0708, low: 9), name: "anna", address: address, incarnation: 1 << 20,
        tags: ["zone": "b", "disk": "ssd"], meta: [1, 2, 3], version: "0.1")

    private static func datagram(_ body: Datagram.Body, _ records: [Record] = []) -> Datagram {
        Datagram(cluster: 0xAABB_CCDD, from: 1, to: 2, digest: 3, health: 4, body: body, records: records)
    }

    static let samples: [(String, Datagram)] = [
        ("ping", datagram(.ping(sequence: 300))),
        ("ack", datagram(.ack(sequence: 7), [.alive(AliveRecord(member))])),
        ("indirectPing", datagram(.indirectPing(sequence: 7, target: 5, address: address))),
        ("relayedAck", datagram(.relayedAck(sequence: 7, target: 5))),
        ("nack", datagram(.nack(sequence: 7, target: 5))),
        ("refusal", datagram(.refusal(sequence: 7, target: 5))),
        ("otherProcess", datagram(.otherProcess(sequence: 7, asked: 5))),
        (
            "gossip",
            datagram(
                .gossip,
                [
                    .suspect(subject: 5, incarnation: 6, accuser: 7, evidence: .silence),
                    .dead(subject: 5, incarnation: 6, accuser: 7, evidence: .refused),
                    .left(subject: 5, incarnation: 6),
                ])
        ),
        ("summary", datagram(.summary([SummaryEntry(subject: 5, incarnation: 200, state: .suspect)]))),
        ("delta", datagram(.delta, [.want(subject: 5)])),
    ]

    static let pushPull = PushPull(
        cluster: 0xAABB_CCDD, isRequest: true, from: 1, to: 2,
        records: [.alive(AliveRecord(member)), .left(subject: 5, incarnation: 6)])

    /// The committed bytes of version 1: whoever changes the format changes the version.
    @Test func goldenVectorsOfVersionOneHold() throws {
        let golden = try readGoldenVectors()
        for (name, datagram) in Self.samples {
            let bytes = Codec.encode(datagram)
            #expect(golden[name] == hex(bytes), "\(name) \(hex(bytes))")
            #expect(try Codec.decode(bytes[...]) == datagram, "\(name)")
        }
        let bytes = Codec.encode(Self.pushPull)
        #expect(golden["pushPull"] == hex(bytes), "pushPull \(hex(bytes))")
        #expect(try Codec.decodePushPull(bytes, recordLimit: 10) == Self.pushPull)
    }

    @Test func everyTruncationOfADatagramIsRefusedOrShorter() {
        for (_, datagram) in Self.samples {
            let bytes = Codec.encode(datagram)
            for length in bytes.indices {
                let shorter = try? Codec.decode(bytes[..<length])
                #expect(shorter != datagram)
            }
        }
    }

    @Test func recordsMayGrowAtTheirEndAndSkippableTypesAreSkipped() throws {
        var writer = ByteWriter()
        Codec.encodeHead(Self.datagram(.gossip), into: &writer)
        var body = ByteWriter()
        body.u64(5)
        body.varint(6)
        body.raw([9, 9, 9])
        writer.u8(4)
        writer.slice(body.bytes)
        writer.u8(0x91)
        writer.slice([1, 2, 3])
        #expect(try Codec.decode(writer.bytes[...]).records == [.left(subject: 5, incarnation: 6)])
        writer.u8(0x11)
        writer.slice([1, 2, 3])
        #expect(throws: WireError.self) { try Codec.decode(writer.bytes[...]) }
    }

    @Test func aDatagramOverTheLimitIsRefused() {
        #expect(throws: WireError.self) { try Codec.decode([UInt8](repeating: 1, count: 1_473)[...]) }
    }

    @Test func randomAndDamagedBytesNeverTrap() {
        var generator = SeededGenerator(seed: 42)
        var core = Membership(
            options: .quick, id: NodeID(high: 2, low: 2), name: "x", address: Self.address, cluster: "test",
            incarnation: 1,
            generator: SeededGenerator(seed: 1), now: .zero)
        let cluster = clusterHash("test")
        for round in 0..<20_000 {
            var bytes: [UInt8]
            if round % 2 == 0 {
                bytes = (0..<Int.random(in: 0...200, using: &generator)).map { _ in
                    UInt8.random(in: 0...255, using: &generator)
                }
                if !bytes.isEmpty { bytes[0] = 1 }
            } else {
                var datagram = Self.samples[Int.random(in: 0..<Self.samples.count, using: &generator)].1
                datagram.cluster = cluster
                bytes = Codec.encode(datagram)
                for _ in 0..<Int.random(in: 0...3, using: &generator) {
                    bytes[Int.random(in: 5..<bytes.count, using: &generator)] = UInt8.random(
                        in: 0...255, using: &generator)
                }
            }
            let now = MonotonicTime(nanoseconds: UInt64(round) * 1_000_000)
            core.handle(.datagram(bytes[...], from: Self.address), now: now)
            if round % 3 == 0 { core.handle(.pushPull(bytes, from: nil), now: now) }
            _ = core.takeEffects()
        }
        #expect(core.counters.malformed > 1_000)
        #expect(core.members.count <= 10_000)
    }
}

/// `testdata/membership-v1.txt`: a name and its bytes a line.
private func readGoldenVectors(file: String = #filePath) throws -> [String: String] {
    let root = file.split(separator: "/").dropLast(3).joined(separator: "/")
    let handle = try #require(fopen("/" + root + "/testdata/membership-v1.txt", "r"))
    defer { fclose(handle) }
    var bytes = [UInt8](repeating: 0, count: 65_536)
    let count = fread(&bytes, 1, bytes.count, handle)
    var vectors: [String: String] = [:]
    for line in String(decoding: bytes[..<count], as: UTF8.self).split(separator: "\n") where !line.hasPrefix("#") {
        let parts = line.split(separator: " ").map(String.init)
        if parts.count == 2 { vectors[parts[0]] = parts[1] }
    }
    return vectors
}

func hex(_ bytes: [UInt8]) -> String {
    bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
}
