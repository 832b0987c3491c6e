import Consensus
import Model
import Simulator
import Testing

@testable import Journal

/// The six ways in which etcd's log was damaged (docs/consensus.md), and worse, each on the real journal of one node of a quiet
/// cluster, and on a majority.
@Suite struct DamageCasesTests {
    enum Case: String, CaseIterable, Sendable {
        case bitInTheMiddle, bitInTheLastRecord, zerosAtTheTail, badLength, cutShort, zeroedPage
        case bitInTheLastMark, everySegmentGone, hardStateLost, wiped
    }

    private func segments(_ node: SimulatedNode) throws -> [String] {
        try node.logDisk.list().filter { RecordFormat.parseSegmentName($0) != nil }.sorted()
    }

    private func used(_ disk: SimulatedDisk, _ name: String) -> Int {
        (disk.contents(name)?.lastIndex { $0 != 0 } ?? -1) + 1
    }

    /// Where the record of an entry begins.
    private func find(_ index: UInt64, in node: SimulatedNode) throws -> (name: String, offset: Int) {
        for name in try segments(node) {
            guard let bytes = node.logDisk.contents(name), let parsed = RecordFormat.parseSegmentName(name) else {
                continue
            }
            let seed = RecordFormat.seed(serial: parsed.serial)
            let found: Int? = bytes.withUnsafeBytes { b in
                var offset = RecordFormat.sector
                while let header = RecordHeader(b, at: offset, seed: seed) {
                    if header.type == .entry && header.index == index { return offset }
                    offset += header.recordBytes
                }
                return nil
            }
            if let found { return (name, found) }
        }
        throw OracleFailure("entry \(index) is not on the disk of node \(node.index)")
    }

    private func damage(_ node: SimulatedNode, _ damage: Case) throws {
        let disk = node.logDisk
        let names = try segments(node)
        let last = try #require(names.last)
        let middle = names[names.count / 2]
        switch damage {
        case .bitInTheMiddle: disk.corrupt(middle, at: used(disk, middle) / 2)
        case .bitInTheLastRecord: disk.corrupt(last, at: used(disk, last) - 64 - 9)
        case .bitInTheLastMark: disk.corrupt(last, at: used(disk, last) - 10)
        case .zerosAtTheTail: disk.zero(last, used(disk, last) - 30..<used(disk, last))
        case .badLength:
            let record = try find(
                try #require(node.raft == nil ? try node.loggedEntries().last?.index : nil) / 2, in: node)
            disk.corrupt(record.name, at: record.offset, mask: 0x7F)
        case .cutShort: disk.place(last, Array((disk.contents(last) ?? []).prefix(used(disk, last) - 11)))
        case .zeroedPage: disk.zero(middle, 4_096..<8_192)
        case .everySegmentGone: for name in names { disk.zero(name, 0..<8_192) }
        case .hardStateLost: disk.zero("hardstate", 0..<8_192)
        case .wiped:
            for name in try disk.list() { try disk.remove(name) }
            try disk.syncDirectory()
        }
        if damage != .wiped { #expect(try node.verify().isDamaged, "\(damage) must be seen") }
        node.markDamaged(isTermLost: false)
    }

    private func restart(_ world: RaftWorld, _ nodes: [Int]) {
        for i in nodes { world.schedule(after: .milliseconds(5), .restart(i)) }
    }

    @Test(arguments: Case.allCases)
    func damageToOneNodeHealsUnaided(_ kind: Case) throws {
        for seed in 0..<(ProcessEnvironment.number("COTERIE_SEEDS") ?? 1) { try heal(kind, seed: seed) }
    }

    private func heal(_ kind: Case, seed: UInt64) throws {
        let world = try RaftWorld(seed: seed, options: .quiet(nodes: 3))
        try world.run(for: .seconds(1))
        let victim = Int(seed) % 3
        let committed = world.oracle.highestCommitted
        #expect(committed > 100)

        world.crash(victim)
        try damage(world.nodes[victim], kind)
        restart(world, [victim])
        try world.run(for: .seconds(1))

        #expect(world.nodes[victim].raft?.recovery == nil)
        #expect(!world.nodes[victim].isMarkedDamaged)
        #expect(try world.nodes[victim].logDisk.list().allSatisfy { !$0.hasPrefix("damaged-") && $0 != "recovery" })
        #expect(world.nodes[victim].applied >= committed)
        // And it is a full member: with its vote the cluster survives the loss of another node, and loses nothing.
        world.crash((victim + 1) % 3)
        let before = world.oracle.highestCommitted
        try world.run(for: .seconds(1))
        #expect(world.oracle.highestCommitted > before)
        restart(world, [(victim + 1) % 3])
        try world.run(for: .seconds(1))
        try world.oracle.checkConvergence(world)
    }

    @Test(arguments: UInt64(10)..<14)
    func aMajorityDamagedAtOnePlaceRefusesAndHealsWhenTheIntactCopyReturns(seed: UInt64) throws {
        let world = try RaftWorld(seed: seed, options: .quiet(nodes: 3))
        try world.run(for: .seconds(1))
        for i in 0..<3 { world.crash(i) }
        let committed = world.oracle.highestCommitted
        let entry = seed % 2 == 0 ? committed / 2 : committed
        for i in 0..<2 {
            // A node that had not yet got the last entry has nothing to lose there.
            guard let place = try? find(entry, in: world.nodes[i]) else { continue }
            world.nodes[i].logDisk.corrupt(place.name, at: place.offset + (seed % 3 == 0 ? 44 : 8))
            world.nodes[i].markDamaged(isTermLost: false)
        }
        let leaders = world.leadersSeen
        restart(world, [0, 1])
        try world.run(for: .seconds(2))
        if entry < committed {
            #expect(world.leadersSeen == leaders, "nobody leads without the entry")
            #expect(world.oracle.highestCommitted == committed)
            for i in 0..<2 { #expect(world.nodes[i].raft?.recovery != nil) }
        }

        restart(world, [2])
        try world.run(for: .seconds(2))
        #expect(world.leadersSeen > leaders)
        #expect(world.oracle.highestCommitted > committed)
        try world.oracle.checkConvergence(world)
    }

    @Test(arguments: [UInt64(1), 2, 3])
    func aDamagedNodeDoesNotElectOneThatIsBehind(seed: UInt64) throws {
        let world = try RaftWorld(seed: seed, options: .quiet(nodes: 3))
        try world.run(for: .milliseconds(700))
        let (damaged, behind, intact) = (Int(seed) % 3, (Int(seed) + 1) % 3, (Int(seed) + 2) % 3)
        world.crash(behind)
        let early = world.oracle.highestCommitted / 2
        try world.run(for: .seconds(1))
        world.crash(damaged)
        world.crash(intact)
        let committed = world.oracle.highestCommitted
        #expect(committed > 2 * early)
        // What is left of it is less than what the one behind has: only the floor keeps it from voting.
        let place = try find(early, in: world.nodes[damaged])
        world.nodes[damaged].logDisk.corrupt(place.name, at: place.offset + 8)
        world.nodes[damaged].markDamaged(isTermLost: false)
        let leaders = world.leadersSeen
        restart(world, [damaged, behind])
        try world.run(for: .seconds(2))
        #expect(world.leadersSeen == leaders)

        restart(world, [intact])
        try world.run(for: .seconds(1))
        #expect(world.oracle.highestCommitted > committed)
        try world.oracle.checkConvergence(world)
    }

    @Test(arguments: [UInt64(1), 2])
    func aNodeWithoutAnyReadableSnapshotStartsEmptyAndHeals(seed: UInt64) throws {
        let world = try RaftWorld(seed: seed, options: .quiet(nodes: 3, snapshots: true))
        try world.run(for: .seconds(2))
        let victim = Int(seed) % 3
        world.crash(victim)
        let disk = world.nodes[victim].snapshotDisk
        let names = try disk.list().filter { $0.hasSuffix(".snap") }
        #expect(!names.isEmpty)
        for name in names { disk.corrupt(name, at: 100) }
        world.nodes[victim].markDamaged(isTermLost: false)
        restart(world, [victim])
        try world.run(for: .seconds(1))
        try world.oracle.checkConvergence(world)
    }

    @Test func damageThatComesWhileEarlierDamageHealsIsHealedToo() throws {
        for seed: UInt64 in 1...3 {
            let world = try RaftWorld(seed: seed, options: .quiet(nodes: 3))
            try world.run(for: .seconds(1))
            let victim = Int(seed) % 3
            for kind in [Case.bitInTheMiddle, .zerosAtTheTail, .badLength] {
                if world.nodes[victim].isUp { world.crash(victim) }
                try damage(world.nodes[victim], kind)
                restart(world, [victim])
                try world.run(for: .milliseconds(5 + Int64(seed)))
            }
            try world.run(for: .seconds(1))
            try world.oracle.checkConvergence(world)
        }
    }
}

extension JournalReport {
    var isDamaged: Bool { if case .damaged = outcome { true } else { false } }
}
