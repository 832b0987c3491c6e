// Gossip that is not true, for simulations: what a confused member might say. Nothing but liveness may depend on gossip, so a cluster
// has to bear it.
import Model

/// What is wrongly said of a member.
package enum GossipLie: CaseIterable, Sendable {
    /// It does not answer.
    case suspect
    /// It is dead, and the system at its address said so.
    case dead
    /// It lives again.
    case alive
}

extension Membership {
    /// A datagram to `receiver` in this member's name with a false statement about `subject`, which fits what this member knows of it.
    /// Nil if it knows neither.
    package func forgery(_ lie: GossipLie, about subject: NodeID, to receiver: NodeID) -> [UInt8]? {
        guard var known = member(subject), member(receiver) != nil else { return nil }
        let record: Record
        switch lie {
        case .suspect:
            record = .suspect(
                subject: subject.short, incarnation: known.incarnation, accuser: me.id.short, evidence: .silence)
        case .dead:
            record = .dead(
                subject: subject.short, incarnation: known.incarnation, accuser: me.id.short, evidence: .refused)
        case .alive:
            known.incarnation += 1
            record = .alive(AliveRecord(known))
        }
        return Codec.encode(
            Datagram(
                cluster: cluster, from: me.id.short, to: receiver.short, digest: digest, health: 0, body: .gossip,
                records: [record]))
    }
}
