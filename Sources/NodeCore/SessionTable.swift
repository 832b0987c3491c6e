// Client sessions in the replicated state: what makes a command that is sent twice apply once (Ongaro's thesis, 6.3).
import Model
import Wire

/// For each session the replies that its client may still ask for again. Part of the state machine and of its snapshot;
/// bounded in sessions and replies, expired by log time.
struct SessionTable: Sendable {
    /// More replies than a session may have outstanding; a client that sends further ahead is refused before the log.
    static let outstandingLimit = 4_096
    static let sessionLimit = 65_536
    /// Most bytes of replies of one session, the newest not counted: a client that fetches much says soon what it has got.
    static let replyBytesLimit = 4 << 20
    /// Of log time: a session unused for so long is forgotten.
    static let idleMilliseconds: UInt64 = 600_000
    /// Of log time: longer than anything of an ended session can still be on its way.
    static let endedMilliseconds: UInt64 = 60_000

    enum Verdict: Hashable, Sendable {
        case new
        /// Applied before; this was the reply.
        case replay([UInt8])
        /// Applied before, and the client has said that it has the reply.
        case stale
    }

    fileprivate struct Session: Sendable {
        var firstOutstanding: UInt64
        var lastUsed: UInt64
        /// Sorted by sequence.
        var replies: [(sequence: UInt64, reply: [UInt8])]
        /// Of all replies.
        var bytes = 0

        mutating func record(
            _ sequence: UInt64, _ firstOutstanding: UInt64, _ reply: [UInt8], _ milliseconds: UInt64
        ) {
            lastUsed = milliseconds
            if firstOutstanding > self.firstOutstanding {
                self.firstOutstanding = firstOutstanding
                forgetFirst(replies.partitioningIndex { $0.sequence >= firstOutstanding })
            }
            let position = replies.partitioningIndex { $0.sequence >= sequence }
            replies.insert((sequence, reply), at: position)
            bytes += reply.count
            var excess = max(0, replies.count - SessionTable.outstandingLimit)
            var left = bytes - replies.prefix(excess).reduce(0) { $0 + $1.reply.count }
            while left > SessionTable.replyBytesLimit, excess < replies.count - 1 {
                left -= replies[excess].reply.count
                excess += 1
            }
            if excess > 0 {
                self.firstOutstanding = replies[excess - 1].sequence + 1
                forgetFirst(excess)
            }
        }

        mutating func forgetFirst(_ count: Int) {
            for item in replies.prefix(count) { bytes -= item.reply.count }
            replies.removeFirst(count)
        }
    }

    private var sessions: [SessionID: Session] = [:]

    var count: Int { sessions.count }

    /// Where a session lies in the table, as long as the table does not change.
    struct Place {
        fileprivate var index: Dictionary<SessionID, Session>.Index
    }

    func find(_ id: SessionID) -> Place? { sessions.index(forKey: id).map { Place(index: $0) } }

    func verdict(_ id: SessionID, sequence: UInt64) -> Verdict { verdict(find(id), sequence: sequence) }

    func verdict(_ place: Place?, sequence: UInt64) -> Verdict {
        guard let place else { return .new }
        let session = sessions.values[place.index]
        if sequence < session.firstOutstanding { return .stale }
        // The usual command is the newest.
        guard let last = session.replies.last, sequence <= last.sequence else { return .new }
        let position = session.replies.partitioningIndex { $0.sequence >= sequence }
        if position < session.replies.count, session.replies[position].sequence == sequence {
            return .replay(session.replies[position].reply)
        }
        return .new
    }

    /// Keeps the reply of a command that was just applied, and forgets those the client no longer needs. `place` is what
    /// ``find(_:)`` said, and nothing has changed since.
    mutating func record(
        _ id: SessionID, at place: Place?, sequence: UInt64, firstOutstanding: UInt64, reply: [UInt8],
        milliseconds: UInt64
    ) {
        if place == nil {
            if sessions.count >= SessionTable.sessionLimit { evictOldest() }
            sessions[id] = Session(firstOutstanding: firstOutstanding, lastUsed: milliseconds, replies: [])
        }
        // In place: a session that is taken out and put back costs two more looks at the table.
        guard let index = place?.index ?? sessions.index(forKey: id) else { return }
        sessions.values[index].record(sequence, firstOutstanding, reply, milliseconds)
    }

    /// Forgets the session's replies. That it has ended is remembered for a while: a copy of one of its commands that was
    /// delayed on its way must not be taken for a new command.
    mutating func end(_ id: SessionID, milliseconds: UInt64) {
        guard sessions[id] != nil else { return }
        sessions[id] = Session(firstOutstanding: .max, lastUsed: milliseconds, replies: [])
    }

    /// Forgets what was not used for ``idleMilliseconds`` of log time, and ended sessions after ``endedMilliseconds``.
    mutating func expire(milliseconds: UInt64) {
        sessions = sessions.filter { _, session in
            let limit =
                session.firstOutstanding == .max ? SessionTable.endedMilliseconds : SessionTable.idleMilliseconds
            return milliseconds - min(session.lastUsed, milliseconds) <= limit
        }
    }

    private mutating func evictOldest() {
        // Equal on every replica: the smallest (last use, id), not the first that hashing yields.
        let oldest = sessions.min { ($0.value.lastUsed, $0.key) < ($1.value.lastUsed, $1.key) }
        if let oldest { sessions[oldest.key] = nil }
    }

    func encode(into writer: inout ByteWriter) {
        writer.count(sessions.count)
        for (id, session) in sessions.sorted(by: { $0.key < $1.key }) {
            id.encode(into: &writer)
            writer.varint(session.firstOutstanding)
            writer.varint(session.lastUsed)
            writer.count(session.replies.count)
            for (sequence, reply) in session.replies {
                writer.varint(sequence)
                writer.slice(reply)
            }
        }
    }

    init() {}

    init(decoding reader: inout ByteReader) throws(WireError) {
        for _ in 0..<(try reader.count(max: SessionTable.sessionLimit, itemBytes: 19)) {
            let id = try SessionID(decoding: &reader)
            var session = Session(firstOutstanding: try reader.varint(), lastUsed: try reader.varint(), replies: [])
            for _ in 0..<(try reader.count(max: SessionTable.outstandingLimit, itemBytes: 2)) {
                session.replies.append((try reader.varint(), try reader.array(max: Limits.commandBytes)))
                session.bytes += session.replies.last?.reply.count ?? 0
            }
            sessions[id] = session
        }
    }
}

extension Array {
    /// The first position whose element satisfies a predicate that is false, then true, over the array.
    func partitioningIndex(where belongsInSecond: (Element) -> Bool) -> Int {
        var low = 0
        var high = count
        while low < high {
            let middle = (low + high) / 2
            if belongsInSecond(self[middle]) { high = middle } else { low = middle + 1 }
        }
        return low
    }
}
