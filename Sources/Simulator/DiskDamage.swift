// What disks do to bytes at rest: flipped bits, pages that read as zeros, files that end early, sectors that were written to the
// wrong place or never.
import Journal
import Model

public enum DiskDamage {
    /// A file that can be damaged.
    public struct Target {
        public var disk: SimulatedDisk
        public var name: String
        /// Behind the last byte that is not zero.
        public var used: Int
    }

    /// The files of a node's log and snapshots that have contents; segments are the likeliest.
    public static func pick(
        log: SimulatedDisk, snapshots: SimulatedDisk, using generator: inout SeededGenerator
    ) -> Target? {
        var targets: [Target] = []
        for (disk, weight) in [(log, 3), (snapshots, 1)] {
            for name in (try? disk.list().sorted()) ?? [] {
                guard
                    name.hasPrefix("segment-") || name == "hardstate" || name == "recovery" || name.hasSuffix(".snap"),
                    let bytes = disk.contents(name), let last = bytes.lastIndex(where: { $0 != 0 })
                else { continue }
                let count = name.hasPrefix("segment-") ? weight : 1
                for _ in 0..<count { targets.append(Target(disk: disk, name: name, used: last + 1)) }
            }
        }
        return targets.isEmpty ? nil : targets[Int(generator.next() % UInt64(targets.count))]
    }

    /// Damages one place of the file. Returns what may read now as if it had never been written, empty for contents that are
    /// merely wrong: where that is part of the last write, no format can tell it from one that a crash cut off.
    public static func spoil(_ target: Target, using generator: inout SeededGenerator) -> Range<Int> {
        let at = Int(generator.next() % UInt64(target.used))
        let sector = at / SimulatedDisk.sector * SimulatedDisk.sector
        switch generator.next() % 8 {
        case 0, 1:
            target.disk.corrupt(target.name, at: at, mask: 1 << UInt8(generator.next() % 8))
            return 0..<0
        case 2:
            target.disk.zero(target.name, at..<at + 30)
            return at..<at + 30
        case 3:
            let page = at / 4_096 * 4_096
            target.disk.zero(target.name, page..<page + 4_096)
            return page..<page + 4_096
        case 4:
            target.disk.zero(target.name, max(0, target.used - 30)..<target.used)
            return max(0, target.used - 30)..<target.used
        case 5:
            let bytes = target.disk.contents(target.name) ?? []
            let end = max(0, generator.chance(0.5) ? at : target.used - 11)
            target.disk.place(target.name, Array(bytes[..<end]))
            return end..<target.used
        case 6:
            // Another sector of the file was written here.
            let other = Int(generator.next() % UInt64(target.used)) / SimulatedDisk.sector * SimulatedDisk.sector
            target.disk.copySector(target.name, from: other, to: sector)
            // Records in the wrong place are told from the end of the log; only zeros are not.
            let copied = target.disk.contents(target.name)?.dropFirst(sector).prefix(SimulatedDisk.sector) ?? []
            return copied.allSatisfy { $0 == 0 } ? sector..<sector + SimulatedDisk.sector : 0..<0
        default:
            // The last write of this sector went nowhere.
            target.disk.revertSector(target.name, sector)
            return sector..<sector + SimulatedDisk.sector
        }
    }

    /// True if what reads as unwritten reaches into the last write of the log that `report` describes, after the damage.
    public static func isLastWriteLost(_ unwritten: Range<Int>, of target: Target, _ report: JournalReport) -> Bool {
        if unwritten.isEmpty { return false }
        if unwritten.upperBound >= target.used { return true }
        guard let last = report.segments.last, last.name == target.name else { return false }
        return unwritten.upperBound > last.usedBytes
    }
}
