import Consensus
import EventLoop
import Glibc
import Journal
import Model
import NodeCore
import Testing
import Transport

@testable import Node

/// A new history in a data directory, and what a crash leaves of it.
@Suite struct NewHistoryTests {
    static let lineage = Lineage(rawValue: 1 << 48 | 3)
    static let position = LogPosition(index: 1 << 32, term: 5)

    static func contents() -> NewHistory.Contents {
        NewHistory.Contents(
            cluster: stableHash("c"), lineage: lineage, position: position,
            state: SavedState().beginning(at: position.index))
    }

    /// A directory with a log in it, as a node leaves it.
    static func used(_ path: String) throws -> DataDirectory {
        let directory = try DataDirectory(path: path)
        let identity = JournalIdentity(cluster: stableHash("c"), node: directory.id)
        var journal = try Journal.open(
            disk: try PosixDisk(path: directory.journalPath, create: true), options: JournalOptions(identity: identity)
        ).journal
        let entry = LogEntry(
            index: 1, term: 2, kind: .configuration, payload: RaftConfiguration(voters: [directory.id]).encoded)
        try journal.write([
            PersistRequest(ticket: 1, hardState: HardState(term: 2, vote: nil, commit: 1), entries: [entry])
        ])
        journal.close()
        try writeFileDurably(path + "/journal-made", [], mode: 0o600)
        return directory
    }

    /// What a node that starts there finds.
    static func recovery(_ directory: DataDirectory) throws -> NodeRecovery {
        let box = Box()
        let transfer = Transfer(directory)
        try onLoop { loop in
            let opened = try Storage.open(loop: loop, directory: transfer.value, cluster: "c")
            box.recovery = opened.recovery
            opened.storage.close()
        }
        return try #require(box.recovery)
    }

    /// Sendable: the loop's work runs on the caller's own thread, which reads it only afterwards.
    private final class Box: @unchecked Sendable { var recovery: NodeRecovery? }

    static func check(_ directory: DataDirectory) throws {
        let recovery = try recovery(directory)
        #expect(recovery.lineage == lineage && !recovery.isVirgin)
        #expect(recovery.log.snapshot.position == position && recovery.log.last == position)
        #expect(recovery.log.snapshot.configuration.voters == [directory.id])
        #expect(recovery.log.hardState.term == 5 && recovery.log.hardState.vote == nil)
        #expect(recovery.log.recovery == nil)
        let state = try #require(recovery.state)
        #expect(try SavedState(decoding: state).appliedIndex == position.index)
    }

    @Test func itReplacesWhatWasThereAndKeepsItAside() throws {
        let scratch = Scratch()
        let directory = try NewHistoryTests.used(scratch.path)
        let setAside = try NewHistory.begin(NewHistoryTests.contents(), in: directory)
        #expect(setAside == [scratch.path + "/journal.before-1"])
        let old = try PosixDisk(path: #require(setAside.first), create: false)
        #expect(try Journal.verify(disk: old).last.index == 1)
        #expect(access(scratch.path + "/refounding", F_OK) != 0)
        try NewHistoryTests.check(directory)
    }

    @Test func itFillsAnEmptyDirectory() throws {
        let scratch = Scratch()
        let directory = try DataDirectory(path: scratch.path)
        // The empty directories that the first start made are not worth keeping.
        #expect(try NewHistory.begin(NewHistoryTests.contents(), in: directory) == [])
        try NewHistoryTests.check(directory)
    }

    /// The process may end after any of the renamings; what was begun is finished, and until then no agent starts.
    @Test(arguments: 0...4) func whatACrashCutShortIsFinished(steps: Int) throws {
        let scratch = Scratch()
        do {
            let directory = try NewHistoryTests.used(scratch.path)
            try NewHistory.prepare(NewHistoryTests.contents(), in: directory)
            let path = scratch.path
            let moves = [
                ("journal", "journal.before-1"), ("refounding/journal", "journal"),
                ("refounding/snapshots", "snapshots"),
            ]
            for (old, new) in moves.prefix(steps) { #expect(rename(path + "/" + old, path + "/" + new) == 0) }
            if steps == 4 { #expect(unlink(path + "/journal-made") == 0) }
        }
        #expect(NewHistory.isUnfinished(in: scratch.path))
        // Another start of the program, which makes the directories that are missing.
        let directory = try DataDirectory(path: scratch.path)
        let error = #expect(throws: CoterieError.self) { _ = try NewHistoryTests.recovery(directory) }
        #expect(error?.hint?.contains("recover --force-new-cluster") == true)
        let setAside = try NewHistory.finish(in: directory)
        #expect(setAside == [scratch.path + "/journal.before-1"])
        try NewHistoryTests.check(directory)
        #expect(try Journal.verify(disk: PosixDisk(path: #require(setAside.first), create: false)).last.index == 1)
    }

    /// Before the new history is whole nothing has changed.
    @Test func anAttemptThatWasCutShortEarlierChangesNothing() throws {
        let scratch = Scratch()
        let directory = try NewHistoryTests.used(scratch.path)
        try NewHistory.prepare(NewHistoryTests.contents(), in: directory)
        #expect(unlink(scratch.path + "/refounding/ready") == 0)
        let recovery = try NewHistoryTests.recovery(directory)
        #expect(recovery.lineage == .original && recovery.log.last.index == 1)
        // And the next attempt is not disturbed by it.
        _ = try NewHistory.begin(NewHistoryTests.contents(), in: directory)
        try NewHistoryTests.check(directory)
    }

    @Test func aDamagedLineageIsNotGuessed() throws {
        let scratch = Scratch()
        try writeFileDurably(
            LineageFile.path(in: scratch.path), LineageFile.encode(NewHistoryTests.lineage), mode: 0o600)
        #expect(try LineageFile.read(scratch.path) == NewHistoryTests.lineage)
        var bytes = LineageFile.encode(NewHistoryTests.lineage)
        for position in bytes.indices {
            bytes[position] ^= 1
            #expect(LineageFile.decode(bytes) == nil, "byte \(position)")
            bytes[position] ^= 1
        }
        try writeFileDurably(LineageFile.path(in: scratch.path), [1, 2, 3], mode: 0o600)
        #expect(throws: CoterieError.self) { _ = try LineageFile.read(scratch.path) }
    }
}
