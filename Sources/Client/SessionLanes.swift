// The client's half of "a command that is sent twice applies once": sessions, sequences and the mark below which replies may
// be forgotten. A node keeps a bounded number of replies from the mark on, so one command that waits for minutes must not
// hold the mark of all others back: commands that wait have sessions of their own, one at a time in each.
import NodeCore

/// Sessions of one client. Pure: new ids come from the generator given.
struct SessionLanes {
    /// Furthest that a sequence may be ahead of the first outstanding one; below the 4 096 replies that a node keeps.
    static let window: UInt64 = 2_048

    struct Lane {
        let id: SessionID
        /// The sequence of the next command, from 1.
        var next: UInt64 = 1
        /// Everything below has its reply, or nobody waits for it any more.
        var firstOutstanding: UInt64 = 1
        var outstanding: Set<UInt64> = []
        let waits: Bool
        /// The cluster was asked to forget the session: nothing more is sent in it.
        var hasEnded = false

        var isFull: Bool {
            hasEnded ? true : waits ? !outstanding.isEmpty : next - firstOutstanding >= SessionLanes.window
        }
    }

    /// Where a command belongs for good, however often it is sent.
    struct Ticket: Hashable {
        let lane: Int
        let sequence: UInt64
    }

    private(set) var lanes: [Lane] = []

    /// A sequence in the first session that has room, or in a new one.
    mutating func open(waits: Bool, using generator: inout some RandomNumberGenerator) -> Ticket {
        let lane: Int
        if let free = lanes.firstIndex(where: { $0.waits == waits && !$0.isFull }) {
            lane = free
        } else {
            lane = lanes.count
            lanes.append(Lane(id: SessionID(using: &generator), waits: waits))
        }
        return take(lane)
    }

    /// The last sequence of a session, in which it is ended.
    mutating func open(lane: Int) -> Ticket {
        lanes[lane].hasEnded = true
        return take(lane)
    }

    private mutating func take(_ lane: Int) -> Ticket {
        let sequence = lanes[lane].next
        lanes[lane].next += 1
        lanes[lane].outstanding.insert(sequence)
        return Ticket(lane: lane, sequence: sequence)
    }

    /// Nobody waits for this reply any more.
    mutating func close(_ ticket: Ticket) {
        guard lanes[ticket.lane].outstanding.remove(ticket.sequence) != nil else { return }
        while lanes[ticket.lane].firstOutstanding < lanes[ticket.lane].next,
            !lanes[ticket.lane].outstanding.contains(lanes[ticket.lane].firstOutstanding)
        {
            lanes[ticket.lane].firstOutstanding += 1
        }
    }
}
