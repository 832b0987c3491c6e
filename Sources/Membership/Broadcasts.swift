import Model

/// News still to be told: at most one statement per member and rank (and accuser), each told a limited number of times, what
/// was told least first. Superseded statements are dropped. (SWIM 4.1; memberlist's transmit-limited queue.)
struct Broadcasts: Sendable {
    struct Entry: Sendable {
        var subject: UInt64
        var incarnation: UInt64
        var rank: UInt8
        /// Of a suspicion; 0 otherwise. Each accuser's statement counts on its own.
        var accuser: UInt64
        var bytes: [UInt8]
        var transmissions: Int
        var serial: UInt64
        /// Statements about the node itself and about failures go before mere news.
        var priority: UInt8
    }

    private(set) var entries: [Entry] = []
    private var serial: UInt64 = 0

    var isEmpty: Bool { entries.isEmpty }
    var count: Int { entries.count }

    /// Takes in a statement unless a stronger one about the same member is queued; weaker ones are dropped.
    mutating func add(
        subject: UInt64, incarnation: UInt64, rank: UInt8, accuser: UInt64, priority: UInt8, record: Record
    ) {
        for entry in entries where entry.subject == subject {
            if (entry.incarnation, entry.rank) > (incarnation, rank) { return }
            if entry.incarnation == incarnation && entry.rank == rank && entry.accuser == accuser && rank != 0 {
                return
            }
        }
        entries.removeAll {
            $0.subject == subject && ($0.rank != rank || $0.incarnation != incarnation || $0.accuser == accuser)
        }
        serial += 1
        entries.append(
            Entry(
                subject: subject, incarnation: incarnation, rank: rank, accuser: accuser, bytes: Codec.encode(record),
                transmissions: 0, serial: serial, priority: priority))
    }

    mutating func remove(subject: UInt64) { entries.removeAll { $0.subject == subject } }

    func contains(subject: UInt64) -> Bool { entries.contains { $0.subject == subject } }

    /// Appends as many statements as fit into `budget` bytes and counts them as told once more; a statement told `limit`
    /// times is dropped. Nothing is told to the member it is about, except accusations.
    mutating func fill(_ budget: Int, limit: Int, records most: Int, to receiver: UInt64, append: ([UInt8]) -> Void) {
        guard !entries.isEmpty else { return }
        entries.sort { ($0.transmissions, $0.priority, $0.serial) < ($1.transmissions, $1.priority, $1.serial) }
        var left = budget
        var taken = 0
        var spent = false
        for index in entries.indices {
            guard taken < most, left >= 12 else { break }
            guard entries[index].bytes.count <= left else { continue }
            if entries[index].subject == receiver && entries[index].rank == 0 {
                // Counted as told, or with one peer only it would wait for ever.
                entries[index].transmissions += 1
                if entries[index].transmissions >= limit { spent = true }
                continue
            }
            append(entries[index].bytes)
            left -= entries[index].bytes.count
            taken += 1
            entries[index].transmissions += 1
            if entries[index].transmissions >= limit { spent = true }
        }
        if spent { entries.removeAll { $0.transmissions >= limit } }
    }

    /// True while some statement has not been told even once.
    var hasFresh: Bool { entries.contains { $0.transmissions == 0 } }
}
