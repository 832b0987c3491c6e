import Consensus
import Model
import Simulator
import Testing

@testable import Journal

@Suite struct SnapshotStoreTests {
    private func make(_ store: SnapshotStore, at index: UInt64, bytes: Int = 10_000) throws -> StoredSnapshot {
        var writer = try store.begin(snapshot(at: index, term: 2))
        for start in stride(from: 0, to: bytes, by: 3_000) {
            try writer.append((start..<min(start + 3_000, bytes)).map { UInt8(truncatingIfNeeded: $0 &* 13) })
        }
        return try writer.finish()
    }

    @Test func aStoredSnapshotReadsBackWhole() throws {
        let store = SnapshotStore(disk: SimulatedDisk(), cluster: 5)
        let made = try make(store, at: 7)
        let found = try store.newest()
        #expect(found.snapshot == made)
        var data: [UInt8] = []
        #expect(try store.readData(made) { data += $0 })
        #expect(data == (0..<10_000).map { UInt8(truncatingIfNeeded: $0 &* 13) })
    }

    @Test func theNewestWholeSnapshotIsFoundAndDamagedOnesAreNamed() throws {
        let disk = SimulatedDisk()
        let store = SnapshotStore(disk: disk, cluster: 5)
        let old = try make(store, at: 7)
        let new = try make(store, at: 9)
        for offset in stride(from: 0, to: Int(new.imageBytes), by: 97) {
            let copy = disk.copy()
            copy.corrupt(new.name, at: offset)
            let found = try SnapshotStore(disk: copy, cluster: 5).newest()
            #expect(found.snapshot == old)
            #expect(found.damaged == [new.name])
        }
    }

    @Test func `the newest whole snapshot comes with its data alone`() throws {
        let disk = SimulatedDisk()
        let store = SnapshotStore(disk: disk, cluster: 5)
        #expect(try store.load().snapshot == nil)
        let old = try make(store, at: 7, bytes: 5_000)
        let new = try make(store, at: 9)
        func data(_ bytes: Int) -> [UInt8] { (0..<bytes).map { UInt8(truncatingIfNeeded: $0 &* 13) } }
        #expect(try store.load().snapshot == new)
        #expect(try store.load().data == data(10_000))
        // Behind its first chunks.
        disk.corrupt(new.name, at: 9_000)
        let found = try store.load()
        #expect(found.snapshot == old)
        #expect(found.data == data(5_000))
        #expect(found.damaged == [new.name])
        disk.corrupt(old.name, at: 4_000)
        #expect(try store.load().snapshot == nil)
        #expect(try store.load().data.isEmpty)
    }

    @Test func damagedSnapshotsDoNotTakeThePlaceOfTheWholeOne() throws {
        let disk = SimulatedDisk()
        let store = SnapshotStore(disk: disk, cluster: 5)
        let whole = try make(store, at: 7)
        for index: UInt64 in [9, 11] { disk.corrupt(try make(store, at: index).name, at: 5_000) }
        let found = try store.newest()
        #expect(found.snapshot == whole)
        try store.clean(keep: 2, damaged: found.damaged)
        #expect(try store.newest().snapshot == whole)
        // They go when two newer ones are there.
        for index: UInt64 in [13, 15] { _ = try make(store, at: index) }
        try store.clean(keep: 2)
        #expect(try disk.list().count == 2)
    }

    @Test func aCrashAtAnyStepLeavesTheOldSnapshotOrTheNew() throws {
        for step in 1...12 {
            for seed in UInt64(0)..<6 {
                let disk = SimulatedDisk()
                let store = SnapshotStore(disk: disk, cluster: 5)
                let old = try make(store, at: 7)
                disk.stopAfter = disk.operations + step
                let new = try? make(store, at: 9)
                var generator = SeededGenerator(seed: seed)
                disk.crash(using: &generator)
                let found = try SnapshotStore(disk: disk, cluster: 5).newest()
                #expect(found.damaged.isEmpty)
                if new != nil {
                    #expect(found.snapshot == new)
                } else {
                    #expect(found.snapshot == old || found.snapshot?.metadata.index == 9)
                }
            }
        }
    }

    @Test func aTransferArrivesByteForByteAndResumesOnlyWhereItStopped() throws {
        let source = SnapshotStore(disk: SimulatedDisk(), cluster: 5)
        let made = try make(source, at: 7)
        var target = SnapshotStore(disk: SimulatedDisk(), cluster: 5)
        func chunk(_ offset: UInt64) throws -> InstallSnapshot {
            InstallSnapshot(
                term: 3, metadata: made.metadata, totalBytes: made.imageBytes, checksum: made.checksum, offset: offset,
                data: try source.readImage(made, at: offset, count: 1_000))
        }
        var offset: UInt64 = 0
        while offset < made.imageBytes {
            let piece = try chunk(offset)
            if offset == 3_000 { #expect(try target.receive(try chunk(5_000)) == nil) }
            offset = try #require(try target.receive(piece))
        }
        let arrived = try target.finishReceiving()
        #expect(arrived == made)
        #expect(try target.newest().snapshot == made)
    }

    @Test func aDamagedTransferIsRefused() throws {
        let source = SnapshotStore(disk: SimulatedDisk(), cluster: 5)
        let made = try make(source, at: 7)
        var target = SnapshotStore(disk: SimulatedDisk(), cluster: 5)
        var data = try source.readImage(made, at: 0, count: Int(made.imageBytes))
        data[5_000] ^= 1
        let chunk = InstallSnapshot(
            term: 3, metadata: made.metadata, totalBytes: made.imageBytes, checksum: made.checksum, offset: 0,
            data: data)
        _ = try target.receive(chunk)
        #expect(try target.finishReceiving() == nil)
        #expect(try target.newest().snapshot == nil)
    }

    @Test func cleaningKeepsTheNewest() throws {
        let disk = SimulatedDisk()
        let store = SnapshotStore(disk: disk, cluster: 5)
        for index in UInt64(1)...4 { _ = try make(store, at: index, bytes: 100) }
        try store.clean(keep: 2)
        #expect(try disk.list().count == 2)
        #expect(try store.newest().snapshot?.metadata.index == 4)
    }
}
