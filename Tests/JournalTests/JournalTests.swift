import Consensus
import Model
import Simulator
import Testing

@testable import Journal

@Suite struct JournalTests {
    @Test func whatWasWrittenIsThereAfterARestart() throws {
        let disk = SimulatedDisk()
        var (journal, first) = try openJournal(disk)
        #expect(first.outcome == .fresh)
        let vote = HardState(term: 3, vote: someNode, commit: 1)
        try journal.write([
            PersistRequest(ticket: 1, hardState: vote, entries: [entry(1), entry(2, term: 3)], commit: 1)
        ])

        let (reopened, second) = try openJournal(disk.copy())

        #expect(second.outcome == .clean)
        #expect(second.log.entries == [entry(1), entry(2, term: 3)])
        #expect(second.log.hardState == vote)
        #expect(reopened.last == LogPosition(index: 2, term: 3))
    }

    @Test func aGroupOfRequestsCostsOneSync() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk, options: JournalOptions(segmentBytes: 65_536))
        try journal.write([append(1...1)])
        let before = disk.syncs
        try journal.write([append(2...5), append(6...6), append(7...20)])
        #expect(disk.syncs == before + 1)
    }

    @Test func aMereCompactionTouchesNothing() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        try journal.write([append(1...3)])
        let before = disk.operations
        try journal.write([PersistRequest(ticket: 2, compactThrough: 2)])
        #expect(disk.operations == before)
    }

    @Test func truncationAndRewriteSurviveARestart() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        try journal.write([append(1...9)])
        try journal.write([PersistRequest(ticket: 2, truncateFrom: 4, entries: [entry(4, term: 2), entry(5, term: 2)])])
        let (_, recovered) = try openJournal(disk.copy())
        #expect(recovered.log.entries.map(\.position.index) == [1, 2, 3, 4, 5])
        #expect(recovered.log.entries.map(\.term) == [1, 1, 1, 2, 2])
        #expect(journal.last == LogPosition(index: 5, term: 2))
    }

    @Test func aLongLogSpansSegmentsAndIsReadBack() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        for i in UInt64(1)...200 {
            try journal.write([append(i...i)])
            while try journal.maintain() {}
        }
        #expect(try segmentNames(disk).count > 5)
        let (_, recovered) = try openJournal(disk.copy())
        #expect(recovered.outcome == .clean)
        #expect(recovered.log.entries == (1...200).map { entry($0) })
    }

    @Test func aBatchLargerThanASegmentGetsItsOwn() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        try journal.write([append(1...2)])
        try journal.write([append(3...3, bytes: 20_000)])
        try journal.write([append(4...4)])
        let (_, recovered) = try openJournal(disk.copy())
        #expect(recovered.outcome == .clean)
        #expect(recovered.log.entries.map(\.payload.count) == [100, 100, 20_000, 100])
    }

    @Test func theNextSegmentIsReadyBeforeItIsNeeded() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        #expect(!journal.hasSpare)
        while try journal.maintain() {}
        #expect(journal.hasSpare)
        let before = disk.operations
        try journal.write([append(1...1)])
        // One write, one sync, one rename, one sync of the directory; no zeroing.
        #expect(disk.operations == before + 4)
    }

    @Test func coveredSegmentsAreRecycledAndNeverReadAsCurrent() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        var wasRecycled = false
        for i in UInt64(1)...400 {
            try journal.write([append(i...i)])
            if i % 20 == 0 { try journal.write([PersistRequest(ticket: 0, compactThrough: i - 5)]) }
            while try journal.maintain() {}
            if journal.segmentCount > 1 { wasRecycled = true }
        }
        #expect(wasRecycled)
        #expect(try segmentNames(disk).count <= 3)
        let (_, recovered) = try openJournal(disk.copy(), snapshot: snapshot(at: 396))
        #expect(recovered.outcome == .clean)
        #expect(recovered.log.entries.last == entry(400))
        #expect(recovered.log.base.index < 396)
    }

    @Test func recordsOfAnEarlierUseOfTheFileAreNotRecordsOfThisOne() throws {
        // The second layer behind zeroing: were the bytes of an old segment left in a new one, its records would not parse.
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        try journal.write([append(1...5)])
        let name = try #require(try segmentNames(disk).first)
        let bytes = try #require(disk.contents(name))
        let own = bytes.withUnsafeBytes {
            RecordHeader($0, at: RecordFormat.sector, seed: RecordFormat.seed(serial: 1))
        }
        let other = bytes.withUnsafeBytes {
            RecordHeader($0, at: RecordFormat.sector, seed: RecordFormat.seed(serial: 2))
        }
        #expect(own != nil)
        #expect(other == nil)
    }

    @Test func aResetForgetsTheLogAndRetiresItsSegments() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        for i in UInt64(1)...100 { try journal.write([append(i...i)]) }
        try journal.write([
            PersistRequest(ticket: 0, reset: LogPosition(index: 500, term: 7), entries: [entry(501, term: 7)])
        ])
        while try journal.maintain() {}
        #expect(try segmentNames(disk).count == 1)
        let (_, recovered) = try openJournal(disk.copy(), snapshot: snapshot(at: 500, term: 7))
        #expect(recovered.outcome == .clean)
        #expect(recovered.log.base == LogPosition(index: 500, term: 7))
        #expect(recovered.log.entries == [entry(501, term: 7)])
    }

    @Test func aSnapshotBeyondTheLogTakesItsPlace() throws {
        // A crash between storing an installed snapshot and the reset that follows it.
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        try journal.write([append(1...10)])
        let crashed = disk.copy()
        var (reopened, recovered) = try openJournal(crashed, snapshot: snapshot(at: 50, term: 4))
        #expect(recovered.log.base == LogPosition(index: 50, term: 4))
        #expect(recovered.log.entries.isEmpty)
        try reopened.write([append(51...52, term: 4)])
        let (_, again) = try openJournal(crashed.copy(), snapshot: snapshot(at: 50, term: 4))
        #expect(again.outcome == .clean)
        #expect(again.log.entries == [entry(51, term: 4), entry(52, term: 4)])
    }

    @Test func aLogThatContradictsTheSnapshotGivesWay() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        try journal.write([append(1...10)])
        let (_, recovered) = try openJournal(disk.copy(), snapshot: snapshot(at: 5, term: 2))
        #expect(recovered.log.base == LogPosition(index: 5, term: 2))
        #expect(recovered.log.entries.isEmpty)
    }

    @Test func aLogThatBeginsAfterTheSnapshotIsDamage() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        for i in UInt64(1)...100 { try journal.write([append(i...i)]) }
        try journal.write([PersistRequest(ticket: 0, compactThrough: 90)])
        while try journal.maintain() {}
        let (_, recovered) = try openJournal(disk.copy(), snapshot: snapshot(at: 5))
        #expect(recovered.isDamaged)
    }

    @Test func aBatchThatDoesNotContinueTheLogIsRefused() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        try journal.write([append(1...3)])
        #expect(throws: JournalError.notContiguous(expected: 4, found: 6)) { try journal.write([append(6...6)]) }
        try journal.write([append(4...4)])
        #expect(journal.last.index == 4)
    }

    @Test func anotherNodesJournalIsRefused() throws {
        let disk = SimulatedDisk()
        _ = try openJournal(disk)
        var options = smallOptions
        options.identity = JournalIdentity(cluster: 9, node: someNode)
        #expect(throws: JournalError.self) { try openJournal(disk.copy(), options: options) }
    }

    @Test func verifyAndDumpSayWhatIsThereWithoutTouchingIt() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        try journal.write([append(1...3)])
        try journal.write([PersistRequest(ticket: 0, truncateFrom: 3, entries: [entry(3, term: 2)])])
        let copy = disk.copy()
        let report = try Journal.verify(disk: copy)
        #expect(report.outcome == .clean)
        #expect(report.segments.map(\.entries) == [4])
        #expect(report.last == LogPosition(index: 3, term: 2))
        var items: [JournalItem] = []
        try Journal.dump(disk: copy) { _, _, item in items.append(item) }
        #expect(items.count == 7)
        #expect(items.contains(.truncate(from: 3)))
        #expect(copy.operations == 0)
    }
}
