// One question of a client, from the call to its answer, however many connections that takes.
import EventLoop
import Model
import NodeCore
import Wire

/// A request that can be taken back. Confined to the client's loop.
public final class PendingRequest {
    enum Kind {
        case query(String)
        case command(StateCommand, SessionLanes.Ticket)
        case admin(JSONValue)
        case watch(String, onItem: (JSONValue) -> Void)
    }

    enum Answer {
        case document(JSONValue)
        case state(StateResult)
        case end
    }

    /// In the order of asking.
    let number: UInt64
    let kind: Kind
    /// A watch that has been accepted has none.
    var deadline: MonotonicTime
    /// The time that the caller was ready to wait for the whole.
    let patience: TimeSpan
    /// Until when a reserve waits for a job; nil if it answers at once.
    let waitUntil: MonotonicTime?
    /// While it is on its way.
    var channel: UInt32?
    var sentAt = MonotonicTime.zero
    /// How many times it was sent without learning that nothing was done.
    var unresolvedSends = 0
    /// The cluster's last answer, if it was to try again.
    var lastRefusal: CoterieError?
    var hasDelivered = false
    private var then: ((Result<Answer, CoterieError>) -> Void)?

    init(
        number: UInt64, kind: Kind, deadline: MonotonicTime, patience: TimeSpan, waitUntil: MonotonicTime?,
        then: @escaping (Result<Answer, CoterieError>) -> Void
    ) {
        self.number = number
        self.kind = kind
        self.deadline = deadline
        self.patience = patience
        self.waitUntil = waitUntil
        self.then = then
    }

    var isOpen: Bool { then != nil }
    func forget() { then = nil }

    /// Once; later answers are ignored.
    func complete(_ result: Result<Answer, CoterieError>) {
        let then = self.then
        self.then = nil
        then?(result)
    }

    var isWatch: Bool { if case .watch = kind { true } else { false } }
    var isAdmin: Bool { if case .admin = kind { true } else { false } }
    var isCommand: Bool { if case .command = kind { true } else { false } }
    /// Doing it twice could do harm, or at least it changes something.
    var changesSomething: Bool { isCommand || isAdmin }

    /// Whether the same request may be sent again after this answer. A command's session makes that harmless even when it
    /// may have been applied.
    func mayRetry(after error: CoterieError) -> Bool {
        switch error.code {
        case .noLeader: !isWatch || !hasDelivered
        case .unavailable, .outcomeUnknown: isCommand
        default: false
        }
    }
}
