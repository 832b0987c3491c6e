import Consensus
import Journal
import Model
import Simulator

extension SimulatedNode {
    /// Damages a file of this node, which is down, at a random place. Returns false, and leaves the disk as it was, for what is
    /// outside of the model: a lost write at the very end of the log looks like one that a crash cut off, to any format that
    /// keeps no second record of what was synced; and for a lost term where none may be.
    func damage(mayLoseTerm: Bool, using generator: inout SeededGenerator) throws -> Bool {
        guard let target = DiskDamage.pick(log: logDisk, snapshots: snapshotDisk, using: &generator),
            let before = target.disk.contents(target.name)
        else { return false }
        let was = try verify()
        // Not a snapshot that was stored but never said to be: nothing was acknowledged for it.
        let end = try endOfLog()
        let unwritten = DiskDamage.spoil(target, using: &generator)
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
            guard DiskDamage.isLastWriteLost(unwritten, of: target, found) else {
                throw OracleFailure("node \(index): damage to \(target.name) hides that \(owed) was there: \(found)")
            }
            target.disk.place(target.name, before)
            return false
        }
        markDamaged(isTermLost: isTermLost)
        return true
    }
}
