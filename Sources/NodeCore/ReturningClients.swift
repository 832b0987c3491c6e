// Group commit among clients that each wait for their answer before they ask again. Without this they fall into two crowds that
// take turns: while one crowd's entry is on its way the other gathers, and every entry carries half of what it could.
import Model
import Wire

/// Decides how long the leader holds an entry back for clients of the one before, who were answered a moment ago and will
/// probably ask again at once. It learns from whether they did: where they do not, nobody is waited for but for a try now and
/// then.
struct ReturningClients: Sendable {
    /// The longest wait, in time since the first answer.
    let patience: TimeSpan
    /// After an entry of more commands nobody is waited for: it gains little.
    static let crowdLimit = 32
    /// After waits in vain so many entries leave at once, at most.
    static let longestPause = 255

    /// Whose commands the last entry carried and who has not come back yet.
    private var awaited: Set<SessionID> = []
    private var answeredAt: MonotonicTime?
    /// Entries that leave without waiting, and how many will after the next wait in vain.
    private var pause = 0
    private var nextPause = 1

    init(patience: TimeSpan) { self.patience = patience }

    /// A command for the next entry has come from `session`.
    mutating func came(_ session: SessionID) {
        if !awaited.isEmpty { awaited.remove(session) }
    }

    /// A client of the last entry gets its answer, here or elsewhere.
    mutating func answered(now: MonotonicTime) {
        if answeredAt == nil { answeredAt = now }
    }

    /// A client of the last entry goes on waiting: it will not come back soon.
    mutating func stays(_ session: SessionID) { awaited.remove(session) }

    /// Until when the next entry shall be held back; a time that has passed if it shall not.
    var awaitedUntil: MonotonicTime {
        guard pause == 0, patience > .zero, !awaited.isEmpty, let answeredAt else { return .zero }
        return answeredAt + patience
    }

    /// An entry of these commands leaves.
    mutating func entryLeaves(_ commands: [ClientCommand], now: MonotonicTime) {
        if pause > 0 {
            pause -= 1
        } else if awaited.isEmpty {
            nextPause = 1
        } else if let answeredAt, now >= answeredAt + patience {
            pause = nextPause
            nextPause = min(nextPause * 2 + 1, ReturningClients.longestPause)
        }
        answeredAt = nil
        awaited.removeAll(keepingCapacity: true)
        if pause == 0, commands.count <= ReturningClients.crowdLimit {
            for command in commands { awaited.insert(command.session) }
        }
    }
}
