import Consensus
import Model
import Simulator
import Testing

@testable import Journal

/// Opening a damaged journal so that the log can go on, without losing sight of what it held.
@Suite struct SalvageTests {
    private func salvage(
        _ disk: SimulatedDisk, options: JournalOptions = smallOptions, snapshot: SnapshotMetadata = .none,
        mayBeFresh: Bool = true
    ) throws -> (Journal, RecoveredJournal) {
        let (journal, recovered) = try Journal.open(
            disk: disk, options: options, snapshot: snapshot, salvage: true, mayBeFresh: mayBeFresh)
        return (journal, recovered)
    }

    /// 24 entries of 200 bytes in term 4, one batch each, in several segments.
    private func filled(term: UInt64 = 4) throws -> SimulatedDisk {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        try journal.write([PersistRequest(ticket: 0, hardState: HardState(term: term, vote: someNode))])
        for i in UInt64(1)...24 { try journal.write([append(i...i, term: term, bytes: 200)]) }
        journal.close()
        return disk
    }

    private func place(_ disk: SimulatedDisk, of index: UInt64) throws -> (name: String, offset: Int) {
        for name in try segmentNames(disk) {
            if let found = records(disk, name).first(where: { $0.header.type == .entry && $0.header.index == index }) {
                return (name, found.offset)
            }
        }
        throw DiskError(.notFound, operation: "find entry", name: "\(index)")
    }

    private func lastMark(_ disk: SimulatedDisk) throws -> (name: String, offset: Int) {
        let name = try #require(try segmentNames(disk).last)
        let mark = try #require(records(disk, name).last)
        #expect(mark.header.type == .mark)
        return (name, mark.offset)
    }

    /// All bytes of the segments, wherever they are called what.
    private func segmentImages(_ disk: SimulatedDisk) throws -> Set<[UInt8]> {
        Set(
            try disk.list().filter { $0.hasPrefix("segment-") || $0.hasPrefix("damaged-") }.compactMap {
                disk.contents($0)
            })
    }

    @Test func whatPrecedesTheDamageStaysAndTheLogGoesOnBehindIt() throws {
        let disk = try filled()
        let (name, offset) = try place(disk, of: 13)
        disk.corrupt(name, at: offset + 4)

        var (journal, recovered) = try salvage(disk)

        #expect(recovered.isSalvaged)
        #expect(recovered.isDamaged, "the damage is still told")
        #expect(recovered.log.entries == (1...12).map { entry($0, term: 4, bytes: 200) })
        #expect(recovered.log.recovery == LogRecovery(floor: LogPosition(index: 24, term: 4)))
        #expect(recovered.log.hardState.vote == someNode)
        try journal.write([append(13...20, term: 5)])
        journal.close()
        let (_, again) = try salvage(disk.copy())
        #expect(again.log.entries.map(\.index) == Array(1...20))
        #expect(again.log.entries.last?.term == 5)
        #expect(again.log.recovery == LogRecovery(floor: LogPosition(index: 24, term: 4)), "the debt survives restarts")
    }

    @Test func damagedSegmentsAreKeptByteForByteUntilTheLossIsMadeGood() throws {
        let disk = try filled()
        let (name, offset) = try place(disk, of: 13)
        disk.corrupt(name, at: offset + 4)
        let before = try segmentImages(disk)

        var (journal, _) = try salvage(disk)
        #expect(try segmentImages(disk).isSuperset(of: before))
        try journal.write([append(13...23, term: 4, bytes: 200)])
        while try journal.maintain() {}
        #expect(journal.isRecovering)
        #expect(try segmentImages(disk).isSuperset(of: before), "nothing goes before the word")
        #expect(try Journal.verify(disk: disk).setAside.count == before.count)

        try journal.write([PersistRequest(ticket: 3, entries: [entry(24, term: 4, bytes: 200)], recovered: true)])
        #expect(!journal.isRecovering)
        #expect(try disk.list().allSatisfy { !$0.hasPrefix("damaged-") && $0 != RecoveryRecord.name })
        let (_, again) = try openJournal(disk.copy())
        #expect(again.outcome == .clean)
        #expect(again.log.recovery == nil)
        #expect(again.log.entries == (1...24).map { entry($0, term: 4, bytes: 200) })
    }

    @Test func withoutSalvageAnUnfinishedRecoveryIsDamageAndTakesNoWrites() throws {
        let disk = try filled()
        let (name, offset) = try place(disk, of: 13)
        disk.corrupt(name, at: offset + 4)
        _ = try salvage(disk)
        var (journal, recovered) = try openJournal(disk)
        guard case .damaged(let damages) = recovered.outcome else {
            Issue.record("\(recovered.outcome)")
            return
        }
        #expect(damages.map(\.place) == [.unfinishedRecovery])
        #expect(throws: JournalError.damaged) { try journal.write([append(13...13, term: 4)]) }
        #expect(try Journal.verify(disk: disk).recovery?.floor.index == 24)
    }

    @Test func aCrashAtAnyStepOfSalvageLeavesTheOldJournalOrTheNewAndTheFloor() throws {
        let damaged = try filled()
        let (name, offset) = try place(damaged, of: 13)
        damaged.corrupt(name, at: offset + 4)
        let images = try segmentImages(damaged)
        let floor = LogRecovery(floor: LogPosition(index: 24, term: 4))
        let probe = damaged.copy()
        _ = try salvage(probe)
        #expect(probe.operations > 8)
        for step in 1...probe.operations {
            for seed in UInt64(0)..<4 {
                let disk = damaged.copy()
                disk.stopAfter = step
                _ = try? salvage(disk)
                var generator = SeededGenerator(seed: UInt64(step) * 31 + seed)
                disk.crash(using: &generator)
                #expect(try segmentImages(disk).isSuperset(of: images), "step \(step)")
                #expect(try Journal.verify(disk: disk.copy()).recovery == floor, "step \(step)")
                var (journal, recovered) = try salvage(disk)
                #expect(recovered.log.entries.map(\.index) == Array(1...12), "step \(step)")
                #expect(recovered.log.recovery == floor, "step \(step)")
                #expect(try segmentImages(disk).isSuperset(of: images), "step \(step)")
                try journal.write([append(13...13, term: 4)])
            }
        }
    }

    @Test func aCrashAtAnyStepOfTheEndOfARecoveryOnlyRepeatsIt() throws {
        let damaged = try filled()
        let (name, offset) = try place(damaged, of: 13)
        damaged.corrupt(name, at: offset + 4)
        var (first, _) = try salvage(damaged)
        try first.write([append(13...24, term: 4, bytes: 200)])
        let last = PersistRequest(ticket: 2, entries: [entry(25, term: 4)], recovered: true)
        for step in 1...12 {
            for seed in UInt64(0)..<3 {
                let disk = damaged.copy()
                var (journal, _) = try salvage(disk)
                disk.stopAfter = disk.operations + step
                let done = (try? journal.write([last])) != nil
                var generator = SeededGenerator(seed: UInt64(step) * 31 + seed)
                disk.crash(using: &generator)
                let (_, recovered) = try salvage(disk)
                #expect(recovered.log.entries.count == 25 || !done && recovered.log.entries.count == 24)
                if done { #expect(recovered.log.recovery == nil) }
                // The record goes after what it protects.
                if recovered.log.recovery == nil { #expect(try disk.list().allSatisfy { !$0.hasPrefix("damaged-") }) }
            }
        }
    }

    // MARK: The floor

    @Test func theMarkTellsTheFloorWhenTheHeadersOfTheLastEntriesAreGone() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        try journal.write([append(1...3, term: 2)])
        try journal.write([append(4...8, term: 3)])
        let (name, offset) = try place(disk, of: 6)
        let (_, next) = try place(disk, of: 8)
        disk.corrupt(name, at: offset + 8)
        disk.corrupt(name, at: next + 8)
        let (_, recovered) = try salvage(disk)
        #expect(recovered.log.entries.map(\.index) == [1, 2, 3, 4, 5])
        #expect(recovered.log.recovery == LogRecovery(floor: LogPosition(index: 8, term: 3)))
    }

    @Test func aDamagedPayloadOfTheLastEntryIsAKnownFloor() throws {
        let disk = try filled()
        let (name, offset) = try place(disk, of: 24)
        disk.corrupt(name, at: offset + 60)
        let (_, recovered) = try salvage(disk)
        #expect(recovered.log.last.index == 23)
        #expect(recovered.log.recovery == LogRecovery(floor: LogPosition(index: 24, term: 4)))
    }

    @Test func aDamagedLastMarkLosesNothingOrAtWorstAsksForTheTerm() throws {
        let intact = try filled()
        let (name, offset) = try lastMark(intact)
        let payload = intact.copy()
        payload.corrupt(name, at: offset + RecordFormat.headerBytes + 3)
        let (_, recovered) = try salvage(payload)
        #expect(recovered.log.entries == (1...24).map { entry($0, term: 4, bytes: 200) })
        #expect(recovered.log.recovery?.isSettled(by: recovered.log.last) == true)

        let header = intact.copy()
        header.corrupt(name, at: offset + 3)
        let (_, unknown) = try salvage(header)
        #expect(unknown.log.entries.count == 24)
        #expect(unknown.log.recovery == LogRecovery(floor: LogPosition(index: LogRecovery.unknownIndex, term: 4)))
        #expect(unknown.log.recovery?.isSettled(by: unknown.log.last) == false)
    }

    @Test func nothingReadableBehindTheDamageIsAnUnknownFloorOfTheHardStatesTerm() throws {
        let disk = try filled(term: 4)
        var (journal, _) = try openJournal(disk)
        try journal.write([PersistRequest(ticket: 9, hardState: HardState(term: 7, vote: someNode))])
        journal.close()
        let (name, offset) = try place(disk, of: 20)
        for at in stride(from: offset, to: 4_096, by: 8) { disk.corrupt(name, at: at, mask: 0x55) }
        for other in try segmentNames(disk) where other > name { disk.zero(other, 0..<4_096) }
        let (_, recovered) = try salvage(disk)
        #expect(recovered.log.last.index == 19)
        #expect(recovered.log.recovery == LogRecovery(floor: LogPosition(index: LogRecovery.unknownIndex, term: 7)))
    }

    /// A sector that was written to the wrong place: what is read there checks out, and is of a batch that was over long before.
    @Test(arguments: 1...4)
    func anOlderSectorInTheLastBatchsPlaceDoesNotPullTheFloorBack(older: Int) throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        try journal.write([PersistRequest(ticket: 0, hardState: HardState(term: 4, vote: someNode))])
        // A sector for each of four batches, and two for the last one.
        for i in UInt64(1)...4 { try journal.write([append(i...i, term: i < 3 ? 3 : 4, bytes: 408)]) }
        try journal.write([append(5...7, term: 4, bytes: 280)])
        journal.close()
        let name = try #require(try segmentNames(disk).last)
        let marks = records(disk, name).filter { $0.header.type == .mark }
        #expect(marks.map { $0.offset + $0.header.recordBytes } == [2, 3, 4, 5, 7].map { $0 * RecordFormat.sector })
        let whole = try #require(disk.contents(name))
        let copied = whole[(older * RecordFormat.sector)..<((older + 1) * RecordFormat.sector)]
        let unknown = LogPosition(index: LogRecovery.unknownIndex, term: 4)
        // Which sectors are overwritten, how many entries are left, and what may have been acknowledged.
        let cases: [(sectors: [Int], entries: UInt64, floor: LogPosition)] = [
            ([5], 4, LogPosition(index: 7, term: 4)), ([6], 5, unknown), ([5, 6], 4, unknown),
        ]
        for (sectors, entries, floor) in cases {
            var bytes = whole
            for sector in sectors {
                let start = sector * RecordFormat.sector
                bytes.replaceSubrange(start..<start + RecordFormat.sector, with: copied)
            }
            let damaged = disk.copy()
            damaged.place(name, bytes)
            guard case .damaged = try Journal.verify(disk: damaged).outcome else {
                Issue.record("\(sectors): \(try Journal.verify(disk: damaged).outcome)")
                continue
            }
            let (_, recovered) = try salvage(damaged)
            #expect(recovered.isSalvaged)
            #expect(recovered.log.entries.map(\.index) == Array(1...entries), "\(sectors)")
            #expect(recovered.log.recovery == LogRecovery(floor: floor), "\(sectors)")
        }
    }

    @Test func aFileCutRightBehindABatchIsNotTakenForTheEndOfTheLog() throws {
        let disk = try filled()
        let name = try #require(try segmentNames(disk).last)
        let all = records(disk, name)
        #expect(all.filter { $0.header.type == .mark }.count >= 2)
        let first = try #require(all.first { $0.header.type == .mark })
        disk.place(name, Array((disk.contents(name) ?? []).prefix(first.offset + first.header.recordBytes)))
        let (_, recovered) = try salvage(disk)
        #expect(recovered.isSalvaged)
        #expect(recovered.log.recovery == LogRecovery(floor: LogPosition(index: LogRecovery.unknownIndex, term: 4)))
    }

    /// Found by the simulator (seed 953): the header that tells the length is unreadable as well, and a snapshot covers what is left.
    @Test func aFileCutRightBehindABatchWhoseHeaderIsGoneIsNotTakenForTheEndEither() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        try journal.write([PersistRequest(ticket: 1, hardState: HardState(term: 1))])
        for index: UInt64 in 1...6 { try journal.write([append(index...index)]) }
        journal.close()
        let name = try #require(try segmentNames(disk).last)
        let end = try #require(records(disk, name).first { $0.header.type == .mark && $0.header.index == 4 })
        let bytes = try #require(disk.contents(name))
        disk.place(name, Array(bytes[..<(end.offset + end.header.recordBytes)]))
        disk.corrupt(name, at: 300, mask: 1)
        let report = try Journal.verify(disk: disk, snapshot: snapshot(at: 5))
        #expect(report.recovery?.floor.index == LogRecovery.unknownIndex, "\(report)")
    }

    @Test func aFileCutInItsUnusedPartIsNoDamage() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        try journal.write([append(1...3)])
        let name = try #require(try segmentNames(disk).last)
        disk.place(name, Array((disk.contents(name) ?? []).dropLast(11)))
        let (_, recovered) = try openJournal(disk)
        #expect(recovered.outcome == .clean)
        #expect(recovered.log.entries.count == 3)
    }

    @Test func aSegmentOfTheFirstVersionThatDoesNotTellItsSizeStillOpens() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        try journal.write([append(1...3)])
        let name = try #require(try segmentNames(disk).last)
        var bytes = try #require(disk.contents(name))
        var header = try SegmentHeader(decoding: bytes)
        #expect(header.bytes == 4_096)
        header.bytes = 0
        var sector: [UInt8] = []
        header.encode(into: &sector)
        bytes.replaceSubrange(0..<RecordFormat.sector, with: sector)
        disk.place(name, Array(bytes.dropLast(600)))
        let (_, recovered) = try openJournal(disk)
        #expect(recovered.outcome == .clean)
        #expect(recovered.log.entries.count == 3)
    }

    // MARK: Sectors in the wrong place

    /// 64 entries of 24 bytes in term 4, one batch each: several in every sector of the one segment.
    private func filledBySmallBatches() throws -> (disk: SimulatedDisk, name: String, lastSector: Int) {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk, options: JournalOptions(segmentBytes: 65_536))
        try journal.write([PersistRequest(ticket: 0, hardState: HardState(term: 4, vote: someNode))])
        for i in UInt64(1)...64 { try journal.write([append(i...i, term: 4, bytes: 24)]) }
        journal.close()
        let (name, mark) = try lastMark(disk)
        return (disk, name, mark / SimulatedDisk.sector * SimulatedDisk.sector)
    }

    private let unknown = LogRecovery(floor: LogPosition(index: LogRecovery.unknownIndex, term: 4))

    /// Records are genuine, checksums and all, but of batches that precede what lies before them.
    @Test func anEarlierSectorInThePlaceOfTheLastIsNotTakenForTheEndOfTheLog() throws {
        let (intact, name, lastSector) = try filledBySmallBatches()
        for from in stride(from: RecordFormat.sector, to: lastSector, by: SimulatedDisk.sector) {
            let disk = intact.copy()
            disk.copySector(name, from: from, to: lastSector)
            let (_, recovered) = try salvage(disk, options: JournalOptions(segmentBytes: 65_536))
            #expect(recovered.log.recovery == unknown, "sector at \(from)")
            #expect(recovered.log.last.index >= 58)
        }
    }

    @Test func aSnapshotBehindTheMisplacedEntriesDoesNotHideThatTheEndIsLost() throws {
        let (disk, name, lastSector) = try filledBySmallBatches()
        disk.copySector(name, from: 2 * RecordFormat.sector, to: lastSector)
        let report = try Journal.verify(disk: disk, snapshot: snapshot(at: 40, term: 4))
        #expect(report.recovery == unknown, "\(report)")
    }

    /// A truncation that comes again would remove every trace of what it did not remove when it was written.
    @Test func aMisplacedTruncationAtTheEndIsNotCarriedOut() throws {
        let options = JournalOptions(segmentBytes: 65_536)
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk, options: options)
        try journal.write([PersistRequest(ticket: 0, hardState: HardState(term: 4, vote: someNode))])
        for i in UInt64(1)...21 { try journal.write([append(i...i, term: 3, bytes: 24)]) }
        try journal.write([PersistRequest(ticket: 1, truncateFrom: 15, entries: [entry(15, term: 4, bytes: 112)])])
        for i in UInt64(16)...48 { try journal.write([append(i...i, term: 4, bytes: 24)]) }
        journal.close()
        let (name, mark) = try lastMark(disk)
        let truncate = try #require(records(disk, name).first { $0.header.type == .truncate })
        let from = truncate.offset / SimulatedDisk.sector * SimulatedDisk.sector
        try #require(truncate.offset - from == 128, "one batch lies before it, and the sector ends with a batch")
        disk.copySector(name, from: from, to: mark / SimulatedDisk.sector * SimulatedDisk.sector)
        let (_, recovered) = try salvage(disk, options: options)
        #expect(recovered.log.recovery == unknown)
        #expect(recovered.log.last == LogPosition(index: 44, term: 4))
    }

    /// As the tests before, but behind a damage after which no place is certain any more: the third batch, whose beginning is
    /// unreadable, ends twice.
    @Test func aLogThatEndsBeforeWhatPrecedesItsDamageHasAnUnknownEnd() throws {
        let options = JournalOptions(segmentBytes: 65_536)
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk, options: options)
        try journal.write([PersistRequest(ticket: 0, hardState: HardState(term: 4, vote: someNode))])
        try journal.write([append(1...2, term: 4)])
        try journal.write([append(3...4, term: 4)])
        try journal.write([append(5...20, term: 4)])
        try journal.write([append(21...28, term: 4)])
        journal.close()
        let (name, mark) = try lastMark(disk)
        let third = try #require(records(disk, name).first { $0.header.type == .mark && $0.header.batch == 3 })
        let end = third.offset + third.header.recordBytes
        try #require(end % SimulatedDisk.sector == 0, "the third batch ends with a sector")
        let (_, early) = try place(disk, of: 6)
        for sector in stride(from: end, through: mark, by: SimulatedDisk.sector) {
            disk.copySector(name, from: end - SimulatedDisk.sector, to: sector)
        }
        disk.corrupt(name, at: early + 8)
        for covered: UInt64 in [0, 15, 20, 22] {
            let snapshot = covered == 0 ? SnapshotMetadata.none : snapshot(at: covered, term: 4)
            let report = try Journal.verify(disk: disk, snapshot: snapshot)
            #expect(report.last.index == max(5, covered))
            #expect(report.recovery == unknown, "with a snapshot at \(covered): \(report)")
        }
    }

    // MARK: Truncations and damage

    @Test func aCommitIndexFromBehindTheDamageSaysNothingAboutWhatPrecedesIt() throws {
        // The lost batch replaced entries 4 to 6, which were never committed.
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk, options: JournalOptions(segmentBytes: 65_536))
        try journal.write([
            PersistRequest(ticket: 1, hardState: HardState(term: 1), entries: (1...6).map { entry($0) }, commit: 3)
        ])
        try journal.write([
            PersistRequest(ticket: 2, truncateFrom: 4, entries: (4...6).map { entry($0, term: 2) }, commit: 3)
        ])
        try journal.write(
            [
                PersistRequest(
                    ticket: 3, hardState: HardState(term: 2, vote: nil, commit: 6), entries: [entry(7, term: 2)],
                    commit: 6)
            ])
        let name = try #require(try segmentNames(disk).last)
        let truncate = try #require(records(disk, name).first { $0.header.type == .truncate })
        let mark = try #require(records(disk, name).first { $0.header.type == .mark && $0.header.batch == 2 })
        for at in stride(from: truncate.offset, to: mark.offset + mark.header.recordBytes, by: 8) {
            disk.corrupt(name, at: at, mask: 0x5A)
        }
        let (_, recovered) = try salvage(disk, options: JournalOptions(segmentBytes: 65_536))
        #expect(recovered.log.entries.map(\.term) == [1, 1, 1, 1, 1, 1], "it can not know better")
        #expect(recovered.log.hardState.commit == 3, "but must not believe that all of them are committed")
        let (_, again) = try salvage(disk.copy(), options: JournalOptions(segmentBytes: 65_536))
        #expect(again.log.hardState.commit == 3)
    }

    @Test func aPrefixThatIsNewerThanTheEndOfTheLogIsNotHealedByItself() throws {
        // A leader of term 6 had begun to replace entries of term 5 by its own, of term 3.
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk, options: JournalOptions(segmentBytes: 65_536))
        try journal.write([
            PersistRequest(ticket: 1, hardState: HardState(term: 6), entries: (1...3).map { entry($0, term: 2) })
        ])
        try journal.write([append(4...6, term: 5)])
        try journal.write([PersistRequest(ticket: 2, truncateFrom: 4, entries: [entry(4, term: 3)])])
        let name = try #require(try segmentNames(disk).last)
        let truncate = try #require(records(disk, name).first { $0.header.type == .truncate })
        disk.corrupt(name, at: truncate.offset + 8)
        let (_, recovered) = try salvage(disk, options: JournalOptions(segmentBytes: 65_536))
        let recovery = try #require(recovered.log.recovery)
        #expect(recovery == LogRecovery(floor: LogPosition(index: LogRecovery.unknownIndex, term: 6)))
        #expect(!recovery.isSettled(by: recovered.log.last))
        #expect(recovery.isSettled(by: LogPosition(index: 5, term: 7)))
    }

    @Test func damageToEntriesThatWereTruncatedLaterIsNoDamage() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk, options: JournalOptions(segmentBytes: 65_536))
        try journal.write([append(1...6, term: 1)])
        try journal.write([PersistRequest(ticket: 2, truncateFrom: 4, entries: (4...9).map { entry($0, term: 2) })])
        let (name, offset) = try place(disk, of: 5)
        disk.corrupt(name, at: offset + 60)
        let (_, recovered) = try openJournal(disk, options: JournalOptions(segmentBytes: 65_536))
        #expect(recovered.outcome == .clean)
        #expect(recovered.log.entries.map(\.term) == [1, 1, 1, 2, 2, 2, 2, 2, 2])
    }

    @Test func aTruncationBehindTheDamageAlsoCutsWhatPrecedesIt() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk, options: JournalOptions(segmentBytes: 65_536))
        try journal.write([append(1...6, term: 1)])
        try journal.write([append(7...8, term: 1)])
        try journal.write([PersistRequest(ticket: 2, truncateFrom: 4, entries: [entry(4, term: 2)])])
        let (name, offset) = try place(disk, of: 7)
        disk.corrupt(name, at: offset + 8)
        let (_, recovered) = try salvage(disk, options: JournalOptions(segmentBytes: 65_536))
        #expect(recovered.log.entries.map(\.index) == [1, 2, 3])
        #expect(recovered.log.recovery?.floor == LogPosition(index: 4, term: 2))
    }

    // MARK: More than the log

    @Test func aLostHardStateIsReplacedAndTheLossRemembered() throws {
        let disk = try filled()
        disk.zero(HardStateFile.name, 0..<8_192)
        var (journal, recovered) = try salvage(disk)
        #expect(recovered.log.entries.count == 24)
        #expect(recovered.log.recovery == LogRecovery(floor: LogPosition(index: 24, term: 4), isTermLost: true))
        #expect(recovered.log.hardState == HardState(term: 4))
        try journal.write([PersistRequest(ticket: 1, hardState: HardState(term: 9, vote: someNode))])
        journal.close()
        let (_, again) = try salvage(disk.copy())
        #expect(again.log.recovery?.isTermLost == true, "until it is said to be recovered")
        #expect(again.log.hardState.term == 9)
    }

    @Test func anEmptyDirectoryWhereAJournalWasIsTotalLoss() throws {
        let disk = SimulatedDisk()
        let (_, recovered) = try salvage(disk, mayBeFresh: false)
        #expect(
            recovered.log.recovery
                == LogRecovery(floor: LogPosition(index: LogRecovery.unknownIndex, term: 0), isTermLost: true))
        let (_, again) = try salvage(disk.copy(), mayBeFresh: false)
        #expect(again.log.recovery?.isTermLost == true)
        let (_, fresh) = try salvage(SimulatedDisk())
        #expect(fresh.outcome == .fresh)
        #expect(fresh.log.recovery == nil)
    }

    /// The snapshot alone bounds nothing: more may have been acknowledged behind it, in its term or later.
    @Test func aSnapshotWithoutItsJournalLeavesTheFloorUnknown() throws {
        let (_, recovered) = try salvage(SimulatedDisk(), snapshot: snapshot(at: 20, term: 4), mayBeFresh: false)
        #expect(
            recovered.log.recovery
                == LogRecovery(floor: LogPosition(index: LogRecovery.unknownIndex, term: 4), isTermLost: true))
        #expect(recovered.log.base == LogPosition(index: 20, term: 4))
    }

    @Test func aLogThatBeginsBehindTheOnlySnapshotLeftStartsEmptyWithItsEndAsFloor() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        try journal.write([
            PersistRequest(
                ticket: 1, reset: LogPosition(index: 50, term: 3), entries: [entry(51, term: 3), entry(52, term: 3)])
        ])
        let (_, recovered) = try salvage(disk, snapshot: snapshot(at: 20))
        #expect(recovered.log.base == LogPosition(index: 20, term: 1))
        #expect(recovered.log.entries.isEmpty)
        #expect(recovered.log.recovery == LogRecovery(floor: LogPosition(index: 52, term: 3)))
    }

    @Test func secondDamageKeepsTheHigherFloor() throws {
        let disk = try filled()
        let (name, offset) = try place(disk, of: 13)
        disk.corrupt(name, at: offset + 4)
        var (journal, _) = try salvage(disk)
        try journal.write([append(13...15, term: 4)])
        journal.close()
        let (second, at) = try place(disk, of: 14)
        disk.corrupt(second, at: at + 4)
        let (_, recovered) = try salvage(disk)
        #expect(recovered.log.entries.map(\.index) == Array(1...13))
        #expect(recovered.log.recovery == LogRecovery(floor: LogPosition(index: 24, term: 4)))
    }

    @Test func anUnknownFloorBesideALostTermStaysUnknown() throws {
        let known = LogRecovery(floor: LogPosition(index: 20, term: 5))
        let gone = LogRecovery(floor: LogPosition(index: LogRecovery.unknownIndex, term: 0), isTermLost: true)
        let both = LogRecovery(floor: LogPosition(index: LogRecovery.unknownIndex, term: 5), isTermLost: true)
        #expect(known.joined(with: gone) == both)
        #expect(gone.joined(with: known) == both)
        // With the term known, it bounds what is unknown.
        let unknown = LogRecovery(floor: LogPosition(index: LogRecovery.unknownIndex, term: 3))
        #expect(unknown.joined(with: known) == known)

        // On disk: a record with a known floor, then everything but the record.
        let disk = try filled(term: 5)
        let (name, offset) = try place(disk, of: 13)
        disk.corrupt(name, at: offset + 4)
        let (journal, _) = try salvage(disk)
        journal.close()
        for segment in try segmentNames(disk) { disk.zero(segment, 0..<4_096) }
        disk.zero(HardStateFile.name, 0..<8_192)
        let (_, recovered) = try salvage(disk)
        #expect(recovered.log.recovery == both)
    }

    @Test func oneDamagedCopyOfTheRecordIsSurvivedAndTwoMeanTheWorst() throws {
        let disk = try filled()
        let (name, offset) = try place(disk, of: 13)
        disk.corrupt(name, at: offset + 4)
        let (journal, _) = try salvage(disk)
        journal.close()
        for copy in [0, 512] {
            let one = disk.copy()
            one.corrupt(RecoveryRecord.name, at: copy + 20)
            let (_, recovered) = try salvage(one)
            #expect(recovered.log.recovery == LogRecovery(floor: LogPosition(index: 24, term: 4)))
        }
        disk.zero(RecoveryRecord.name, 0..<1_024)
        let (_, worst) = try salvage(disk)
        #expect(worst.log.entries.count == 12)
        #expect(
            worst.log.recovery
                == LogRecovery(floor: LogPosition(index: LogRecovery.unknownIndex, term: 4), isTermLost: true))
    }

    @Test func aSingleVoterHasNobodyToHealFromAndItsFilesAreLeftAlone() throws {
        let options = JournalOptions(segmentBytes: 4_096, identity: JournalIdentity(cluster: 1, node: someNode))
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk, options: options)
        let founding = RecoveredLog.founding(RaftConfiguration(voters: [someNode]))
        try journal.write([.founding(founding), append(2...9)])
        let intact = disk.copy()
        let (name, offset) = try place(disk, of: 5)
        disk.corrupt(name, at: offset + 4)
        let names = try disk.list()
        var (refused, recovered) = try salvage(disk, options: options)
        #expect(recovered.isDamaged && !recovered.isSalvaged)
        #expect(recovered.isBeyondRepair(for: someNode))
        #expect(try disk.list() == names)
        #expect(throws: JournalError.damaged) { try refused.write([append(5...5)]) }
        // A damaged mark takes nothing: the node needs nobody.
        let (last, mark) = try lastMark(intact)
        intact.corrupt(last, at: mark + RecordFormat.headerBytes + 2)
        let (_, whole) = try salvage(intact, options: options)
        #expect(whole.isSalvaged)
        #expect(whole.log.entries.count == 9)
    }

    @Test func anotherNodesRecoveryRecordIsRefused() throws {
        let disk = try filled()
        let (name, offset) = try place(disk, of: 13)
        disk.corrupt(name, at: offset + 4)
        _ = try salvage(disk)
        var other = smallOptions
        other.identity = JournalIdentity(cluster: 9, node: someNode)
        #expect(throws: JournalError.self) { try salvage(disk, options: other) }
    }
}
