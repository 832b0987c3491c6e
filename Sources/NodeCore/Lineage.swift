// Which history of a cluster a node belongs to. A cluster that is founded has the original one. `recover` and
// `snapshot restore` begin another: their state goes on from an earlier moment, so that nodes that remember what came after it
// must neither vote nor send entries in it. The number is the group id of every Raft message, is gossiped, and lies in the
// data directory.
import Model

public struct Lineage: Hashable, Sendable {
    /// The upper 16 bits count recoveries, the others are random: two recoveries of one cluster differ.
    public let rawValue: UInt64

    public init(rawValue: UInt64) { self.rawValue = rawValue }

    public static let original = Lineage(rawValue: 1)

    /// How often the cluster was recovered or restored, in this history.
    public var epoch: UInt64 { rawValue >> 48 }

    /// The history that a recovery begins. Nil after 65 535 of them.
    public func successor(using generator: inout some RandomNumberGenerator) -> Lineage? {
        guard epoch < 0xFFFF else { return nil }
        return Lineage(rawValue: (epoch + 1) << 48 | generator.next() >> 16)
    }
}
