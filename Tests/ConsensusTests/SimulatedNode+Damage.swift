import Consensus
import Journal
import Model
import Simulator

// What disks do to bytes at rest: flipped bits, pages that read as zeros, files that end early.

extension SimulatedNode {
    private struct Target {
        var disk: SimulatedDisk
        var name: String
        /// Behind the last byte that is not zero.
        var used: Int
    }

    /// Damages a file of this node, which is down, at a random place. Returns false, and leaves the disk as it was, for what is
    /// outside of the model: a lost write at the very end of the log looks like one that a crash cut off, to any format that
    /// keeps no second record of what was synced; and for a lost term where none may be.
    func damage(mayLoseTerm: Bool, using generator: inout SeededGenerator) throws -> Bool {
        guard let target = pick(using: &generator), let before = target.disk.contents(target.name) else { return false }
        let was = try verify()
        // Not a snapshot that was stored but never said to be: nothing was acknowledged for it.
        let end = try endOfLog()
        let reachesEnd = spoil(target, before, using: &generator)
        let found = try verify()
        let isTermLost = found.recovery?.isTermLost ?? false
        if isTermLost && !mayLoseTerm {
            target.disk.place(target.name, before)
            return false
        }
        let owed = max(was.recovery?.floor ?? .zero, end)
        let isCovered =
            try endOfLog() == end && found.recovery == was.recovery
            || found.recovery.map { $0.floor >= owed || $0.isTermLost && !$0.isFloorKnown } ?? false
        if !isCovered {
            guard reachesEnd else {
                throw OracleFailure("node \(index): damage to \(target.name) hides that \(owed) was there: \(found)")
            }
            target.disk.place(target.name, before)
            return false
        }
        markDamaged(isTermLost: isTermLost)
        return true
    }

    private func pick(using generator: inout SeededGenerator) -> Target? {
        var targets: [Target] = []
        for (disk, weight) in [(logDisk, 3), (snapshotDisk, 1)] {
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

    /// True if the damage may have taken the end of what is in the file.
    private func spoil(_ target: Target, _ bytes: [UInt8], using generator: inout SeededGenerator) -> Bool {
        let at = Int(generator.next() % UInt64(target.used))
        switch generator.next() % 6 {
        case 0, 1:
            target.disk.corrupt(target.name, at: at, mask: 1 << UInt8(generator.next() % 8))
            return false
        case 2:
            target.disk.zero(target.name, at..<at + 30)
            return at + 30 >= target.used
        case 3:
            let page = at / 4_096 * 4_096
            target.disk.zero(target.name, page..<page + 4_096)
            return page + 4_096 >= target.used
        case 4:
            target.disk.zero(target.name, max(0, target.used - 30)..<target.used)
            return true
        default:
            target.disk.place(target.name, Array(bytes[..<max(0, generator.chance(0.5) ? at : target.used - 11)]))
            return true
        }
    }
}
