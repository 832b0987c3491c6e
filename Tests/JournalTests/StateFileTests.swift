import Consensus
import Model
import Simulator
import Testing
import Wire

@testable import Journal

/// The file that `snapshot save` writes.
@Suite struct StateFileTests {
    static let header = StateFileHeader(
        cluster: "c", lineage: 7 << 48 | 5,
        metadata: SnapshotMetadata(
            index: 42, term: 3,
            configuration: RaftConfiguration(
                voters: [NodeID(high: 1, low: 1), NodeID(high: 2, low: 2)], learners: [NodeID(high: 9, low: 9)])),
        savedAt: 1_700_000_000_123, node: "n0", version: "1.2.3")

    private func written(_ state: [UInt8]) throws -> SimulatedDisk {
        let disk = SimulatedDisk()
        try StateFile.write(StateFileTests.header, state: state, to: "s", on: disk)
        return disk
    }

    @Test(arguments: [0, 1, 4_096, 1 << 20, (1 << 20) + 1, 3 << 20])
    func whatIsWrittenIsRead(bytes: Int) throws {
        let state = (0..<bytes).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 8) }
        let disk = try written(state)
        #expect(try disk.list() == ["s"])
        let whole = try StateFile.read("s", on: disk)
        #expect(whole.header == StateFileTests.header)
        #expect(whole.state == state)
    }

    /// Every byte is covered by a checksum, or by the structure itself.
    @Test func everyFlippedBitIsNoticed() throws {
        let disk = try written((0..<300).map { UInt8($0 & 0xFF) })
        let bytes = try #require(disk.contents("s"))
        for position in bytes.indices {
            var copy = bytes
            copy[position] ^= 1 << UInt8(position % 8)
            let damaged = SimulatedDisk()
            try write(copy, to: damaged)
            #expect(throws: StateFileError.self, "byte \(position)") { try StateFile.read("s", on: damaged) }
        }
    }

    @Test func everyCutAndEveryAdditionIsNoticed() throws {
        let disk = try written([1, 2, 3])
        let bytes = try #require(disk.contents("s"))
        for length in bytes.indices {
            let cut = SimulatedDisk()
            try write(Array(bytes[..<length]), to: cut)
            #expect(throws: StateFileError.self, "cut to \(length)") { try StateFile.read("s", on: cut) }
        }
        let long = SimulatedDisk()
        try write(bytes + [0], to: long)
        #expect(throws: StateFileError.self) { try StateFile.read("s", on: long) }
    }

    @Test func anotherVersionIsNamed() throws {
        let disk = try written([])
        var bytes = try #require(disk.contents("s"))
        bytes[8] = 2
        let other = SimulatedDisk()
        try write(bytes, to: other)
        #expect(throws: StateFileError.version(2)) { try StateFile.read("s", on: other) }
        let text = SimulatedDisk()
        try write(Array("not a snapshot at all".utf8), to: text)
        #expect(throws: StateFileError.unknownFormat) { try StateFile.read("s", on: text) }
    }

    /// A crash or a full disk leaves the file that was there before.
    @Test func aFailedSaveLeavesTheOldFile() throws {
        let disk = try written([1])
        disk.failingSyncs = 1
        #expect(throws: DiskError.self) {
            try StateFile.write(StateFileTests.header, state: [2], to: "s", on: disk)
        }
        #expect(try StateFile.read("s", on: disk).state == [1])
        #expect(try disk.list() == ["s"])
    }

    private func write(_ bytes: [UInt8], to disk: SimulatedDisk) throws {
        let file = try disk.open("s", .create)
        try disk.write(file, at: 0, bytes)
        disk.close(file)
    }
}
