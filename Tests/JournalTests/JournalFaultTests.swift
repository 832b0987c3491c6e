import Consensus
import Model
import Simulator
import Testing

@testable import Journal

@Suite struct JournalFaultTests {
    /// The requests of one history, and what has been acknowledged after each.
    private static let history: [PersistRequest] = {
        var requests: [PersistRequest] = []
        for i in UInt64(1)...30 {
            let state = i % 7 == 0 ? HardState(term: i / 7, vote: someNode, commit: 0) : nil
            requests.append(
                PersistRequest(
                    ticket: i, hardState: state, entries: [entry(i * 2 - 1, bytes: 300), entry(i * 2, bytes: 40)]))
        }
        requests.append(
            PersistRequest(ticket: 31, truncateFrom: 51, entries: (51...58).map { entry($0, term: 2, bytes: 250) }))
        return requests
    }()

    /// Runs the history until the disk stops; returns how many requests were acknowledged.
    private func run(_ disk: SimulatedDisk) -> Int {
        guard var (journal, _) = try? openJournal(disk) else { return 0 }
        var done = 0
        for request in Self.history {
            guard (try? journal.write([request])) != nil else { return done }
            done += 1
            while (try? journal.maintain()) == true {}
        }
        return done
    }

    private func expected(_ count: Int) -> (entries: [LogEntry], hard: HardState) {
        var entries: [LogEntry] = []
        var hard = HardState()
        for request in Self.history[..<count] {
            if let from = request.truncateFrom { entries.removeSubrange(Int(from - 1)...) }
            entries += request.entries
            if let state = request.hardState { hard = state }
        }
        return (entries, hard)
    }

    @Test func aCrashAtAnyStepLosesNothingAcknowledgedAndIsNeverTakenForDamage() throws {
        let probe = SimulatedDisk()
        #expect(run(probe) == Self.history.count)
        let steps = probe.operations
        var torn = 0
        for step in 1...steps {
            for seed in UInt64(0)..<3 {
                let disk = SimulatedDisk()
                disk.stopAfter = step
                let done = run(disk)
                var generator = SeededGenerator(seed: UInt64(step) * 31 + seed)
                disk.crash(using: &generator)

                var (journal, recovered) = try openJournal(disk)

                #expect(!recovered.isDamaged, "step \(step) seed \(seed): \(recovered.outcome)")
                if case .tornTail = recovered.outcome { torn += 1 }
                // All that was acknowledged, and at most the one request that was under way.
                let acknowledged = expected(done)
                let underWay = expected(min(done + 1, Self.history.count))
                let entries = recovered.log.entries
                #expect(entries == acknowledged.entries || entries == underWay.entries, "step \(step) seed \(seed)")
                let hard = recovered.log.hardState
                #expect(hard == acknowledged.hard || hard == underWay.hard, "step \(step) seed \(seed)")
                // And it goes on.
                let next = journal.last.index + 1
                try journal.write([append(next...next, term: 9)])
                let (_, again) = try openJournal(disk.copy())
                #expect(again.outcome == .clean)
                #expect(again.log.entries == entries + [entry(next, term: 9)])
            }
        }
        #expect(torn > 10, "the history must produce torn tails")
    }

    @Test func aCrashDuringTheRepairOfATornTailIsRepairedToo() throws {
        var repaired = 0
        for seed in UInt64(0)..<60 {
            let disk = SimulatedDisk()
            var (journal, _) = try openJournal(disk, options: JournalOptions(segmentBytes: 16_384))
            try journal.write([append(1...3)])
            disk.stopAfter = disk.operations + 2
            _ = try? journal.write([append(4...12, bytes: 900)])
            var generator = SeededGenerator(seed: seed)
            disk.crash(using: &generator)
            disk.stopAfter = disk.operations + 1 + Int(seed % 2)
            if (try? openJournal(disk, options: JournalOptions(segmentBytes: 16_384))) != nil { continue }
            repaired += 1
            disk.crash(using: &generator)
            let (_, recovered) = try openJournal(disk, options: JournalOptions(segmentBytes: 16_384))
            #expect(!recovered.isDamaged)
            #expect(recovered.log.entries == (1...3).map { entry($0) } || recovered.log.entries.count == 12)
        }
        #expect(repaired > 5)
    }

    @Test func aFlippedBitAnywhereInUseIsReportedAndNothingIsDroppedSilently() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        for i in UInt64(1)...24 { try journal.write([append(i...i, bytes: 200)]) }
        let all = (1...24).map { entry(UInt64($0), bytes: 200) }
        for name in try segmentNames(disk) {
            let used = try #require(records(disk, name).last.map { $0.offset + $0.header.recordBytes })
            let last = try #require(records(disk, name).last)
            let isLastSegment = name == (try segmentNames(disk).last)
            for offset in stride(from: 0, to: used, by: 3) {
                let copy = disk.copy()
                copy.corrupt(name, at: offset, mask: UInt8(1 << (offset % 8)))
                let (_, recovered) = try openJournal(copy)
                if recovered.isDamaged {
                    #expect(recovered.log.entries == Array(all.prefix(recovered.log.entries.count)))
                } else {
                    // Padding and the header's spare bytes are the only places where a flip may go unnoticed.
                    #expect(recovered.outcome == .clean, "\(name) byte \(offset)")
                    #expect(recovered.log.entries == all, "\(name) byte \(offset)")
                }
                _ = (last, isLastSegment)
            }
        }
    }

    @Test func aDamagedPayloadStillTellsWhichEntryIsLost() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        for i in UInt64(1)...9 { try journal.write([append(i...i, term: 4, bytes: 200)]) }
        let name = try #require(try segmentNames(disk).first)
        let target = try #require(records(disk, name).first { $0.header.type == .entry && $0.header.index == 3 })
        disk.corrupt(name, at: target.offset + RecordFormat.headerBytes + 50)

        var (damaged, recovered) = try openJournal(disk)

        guard case .damaged(let damages) = recovered.outcome else {
            Issue.record("outcome \(recovered.outcome)")
            return
        }
        #expect(damages.map(\.firstIndex) == [3])
        #expect(damages.map(\.lastIndex) == [3])
        #expect(damages.map(\.term) == [4])
        #expect(recovered.log.entries.map(\.index) == [1, 2])
        #expect(recovered.lastReadable == LogPosition(index: 9, term: 4))
        #expect(throws: JournalError.damaged) { try damaged.write([append(3...3, term: 4)]) }
    }

    @Test func aZeroedPageInTheMiddleIsDamageAndNotATornTail() throws {
        // etcd takes this for a torn tail and drops half of its log.
        let disk = SimulatedDisk()
        let options = JournalOptions(segmentBytes: 65_536)
        var (journal, _) = try openJournal(disk, options: options)
        for i in UInt64(1)...200 { try journal.write([append(i...i, bytes: 60)]) }
        let name = try #require(try segmentNames(disk).first)
        disk.zero(name, 8_192..<12_288)
        let (_, recovered) = try openJournal(disk, options: options)
        #expect(recovered.isDamaged)
        #expect(recovered.lastReadable.index == 200)
    }

    @Test func aMissingSegmentIsDamage() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        for i in UInt64(1)...100 { try journal.write([append(i...i)]) }
        let names = try segmentNames(disk)
        try disk.remove(names[1])
        let (_, recovered) = try openJournal(disk)
        guard case .damaged(let damages) = recovered.outcome else {
            Issue.record("outcome \(recovered.outcome)")
            return
        }
        #expect(damages.first?.place == .missingSegment(serial: 2))
    }

    @Test func damageBelowTheSnapshotIsNoLoss() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        for i in UInt64(1)...100 { try journal.write([append(i...i)]) }
        let names = try segmentNames(disk)
        disk.zero(names[1], 600..<1_200)
        var (reopened, recovered) = try openJournal(disk, snapshot: snapshot(at: 80))
        #expect(recovered.outcome == .clean)
        #expect(recovered.log.base == LogPosition(index: 80, term: 1))
        #expect(recovered.log.entries == (81...100).map { entry($0) })
        try reopened.write([append(101...101)])
        let (_, again) = try openJournal(disk.copy(), snapshot: snapshot(at: 80))
        #expect(again.log.entries.last == entry(101))
    }

    @Test func oneDamagedCopyOfTheHardStateIsSurvived() throws {
        for offset in stride(from: 0, to: 8_192, by: 1) where offset % 2_048 < 96 {
            let disk = SimulatedDisk()
            var (journal, _) = try openJournal(disk)
            for term in UInt64(1)...5 {
                try journal.write([PersistRequest(ticket: term, hardState: HardState(term: term, vote: someNode))])
            }
            disk.corrupt(HardStateFile.name, at: offset)
            let (_, recovered) = try openJournal(disk)
            #expect(recovered.outcome == .clean)
            #expect(recovered.log.hardState == HardState(term: 5, vote: someNode))
        }
    }

    @Test func aHardStateSlotWithoutAValidCopyIsReportedAndNotGuessed() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        for term in UInt64(1)...5 {
            try journal.write([PersistRequest(ticket: term, hardState: HardState(term: term, vote: someNode))])
        }
        for slot in [0, 4_096] {
            let copy = disk.copy()
            copy.zero(HardStateFile.name, slot..<slot + 4_096)
            let (_, recovered) = try openJournal(copy)
            #expect(recovered.isDamaged)
        }
    }

    /// The other slot's sector in the place of the last good copy: its record is whole, and older than what was lost.
    @Test func aSectorOfTheOtherSlotIsNotTakenForThisOnes() throws {
        for terms in [UInt64(5), 6] {
            let disk = SimulatedDisk()
            var (journal, _) = try openJournal(disk)
            for term in 1...terms {
                try journal.write([PersistRequest(ticket: term, hardState: HardState(term: term, vote: someNode))])
            }
            for (newest, other) in [(0, 4_096), (4_096, 0)] {
                let copy = disk.copy()
                copy.corrupt(HardStateFile.name, at: newest + 20)
                copy.copySector(HardStateFile.name, from: other, to: newest + 2_048)
                let (_, recovered) = try openJournal(copy)
                #expect(recovered.isDamaged)
            }
        }
    }

    /// The process is killed between a write and its sync; the next one reads what the system still had in memory, and promises on it.
    @Test func whatWasReadAfterAKillSurvivesALossOfPower() throws {
        for seed in UInt64(0)..<80 {
            let disk = SimulatedDisk()
            var (journal, _) = try openJournal(disk)
            try journal.write([append(1...3)])
            disk.stopAfter = disk.operations + 1 + Int(seed % 5)
            let request = PersistRequest(
                ticket: 2, hardState: HardState(term: 7, vote: someNode), entries: [entry(4)], commit: 3)
            _ = try? journal.write([request])
            disk.stopAfter = nil
            let (_, killed) = try openJournal(disk)
            var generator = SeededGenerator(seed: seed)
            disk.crash(using: &generator)
            let (_, recovered) = try openJournal(disk)
            #expect(recovered.log.hardState == killed.log.hardState)
            #expect(recovered.log.entries == killed.log.entries)
        }
    }

    /// A crash left one copy of the newest term; the next start makes two of it, so that one more damage does not bring an old term back.
    @Test func theOnlyCopyOfTheHardStateIsDoubledAtTheStart() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        for term in UInt64(1)...5 {
            try journal.write([PersistRequest(ticket: term, hardState: HardState(term: term, vote: someNode))])
        }
        // Sequences begin at 2: that of term 5 is 7 and lies in the first slot.
        disk.corrupt(HardStateFile.name, at: 20)
        _ = try openJournal(disk)
        disk.corrupt(HardStateFile.name, at: 2_048 + 20)
        let (_, recovered) = try openJournal(disk)
        #expect(recovered.outcome == .clean && recovered.log.hardState == HardState(term: 5, vote: someNode))
    }

    @Test func aFailedSyncFencesTheJournal() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        try journal.write([append(1...1)])
        disk.failingSyncs = 1
        #expect(throws: JournalError.self) { try journal.write([append(2...2)]) }
        // The disk works again; the journal does not believe it.
        let fenced = #expect(throws: JournalError.self) { try journal.write([append(2...2)]) }
        guard case .fenced = fenced else {
            Issue.record("\(String(describing: fenced))")
            return
        }
        #expect(throws: JournalError.self) { try journal.maintain() }
        let (_, recovered) = try openJournal(disk.copy())
        #expect(!recovered.isDamaged)
        #expect(recovered.log.entries == [entry(1)])
    }

    @Test func aFailedWriteFencesTheJournal() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        try journal.write([append(1...1)])
        disk.failingWrites = 1
        #expect(throws: JournalError.self) { try journal.write([append(2...2)]) }
        #expect(throws: JournalError.self) { try journal.write([append(2...2)]) }
    }

    @Test func aFullDiskIsACleanErrorAndTheJournalGoesOnWhenThereIsSpace() throws {
        let disk = SimulatedDisk()
        var (journal, _) = try openJournal(disk)
        disk.capacity = 8_192 + 3 * 4_096
        var written: UInt64 = 0
        var refused: JournalError?
        while refused == nil {
            do throws(JournalError) { try journal.write([append(written + 1...written + 1)]) } catch {
                refused = error
                break
            }
            written += 1
            while (try? journal.maintain()) == true {}
        }
        guard case .noSpace = refused else {
            Issue.record("\(String(describing: refused))")
            return
        }
        // Term and vote need no space.
        try journal.write([PersistRequest(ticket: 0, hardState: HardState(term: 5, vote: someNode))])
        #expect(throws: JournalError.self) { try journal.write([append(written + 1...written + 1)]) }
        disk.capacity = .max
        try journal.write([append(written + 1...written + 1)])
        let (_, recovered) = try openJournal(disk.copy())
        #expect(recovered.outcome == .clean)
        #expect(recovered.log.entries.map(\.index) == Array(1...written + 1))
        #expect(recovered.log.hardState.term == 5)
    }
}
