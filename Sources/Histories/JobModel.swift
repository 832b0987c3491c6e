// One job of a queue as clients see it, from its put to its deletion (`Queues`). Which of several ready jobs a reserve takes is
// not looked at, nor that a batch is put whole: a job is an object of its own, which is what makes long histories tractable.
// As with leases a reservation ends where it may, never before its time to run has passed since it was asked for.

public struct JobModel: SequentialModel {
    public enum Input: Hashable, Sendable {
        case put(delayMilliseconds: UInt64, ttrMilliseconds: UInt64)
        /// By a reserve that got this job.
        case take(lease: UInt64)
        case delete(lease: UInt64)
        case release(lease: UInt64, delayMilliseconds: UInt64)
        case touch(lease: UInt64)
        /// A linearizable read.
        case look
    }

    public enum Output: Hashable, Sendable {
        case done
        /// No such job.
        case notFound
        /// The job is there, but not under this lease.
        case leaseExpired
        /// A release that used up the attempts.
        case buried
    }

    public struct State: Hashable, Sendable {
        enum Life: Hashable, Sendable { case absent, present, buried, deleted }
        var life = Life.absent
        var ttr: Int64 = 0
        var newestLease: UInt64 = 0
        var isReserved = false
        /// Not before this time does the reservation end by itself, or the delay.
        var noEarlier: Int64 = 0
    }

    public var isTimed: Bool
    /// See ``LeaseModel/slack``.
    public var slack: Int64

    public init(isTimed: Bool = true, slack: Int64 = 2_000_000) {
        self.isTimed = isTimed
        self.slack = slack
    }

    public var initial: State { State() }

    private func isOver(_ state: State, by time: Int64) -> Bool { !isTimed || time >= state.noEarlier - slack }

    private func after(_ milliseconds: UInt64, from time: Int64) -> Int64 {
        isTimed ? time &+ Int64(clamping: milliseconds).multipliedReportingOverflow(by: 1_000_000).partialValue : 0
    }

    public func step(_ state: State, _ operation: TimedOperation<Input, Output>) -> State? {
        var next = state
        switch (operation.input, operation.output) {
        case (.put(let delay, let ttr), nil), (.put(let delay, let ttr), .done?):
            guard state.life == .absent else { return nil }
            next.life = .present
            next.ttr = Int64(clamping: max(ttr, 1))
            next.noEarlier = delay == 0 ? 0 : after(delay, from: operation.invoked)
            return next
        case (.take(let lease), .done?):
            guard state.life == .present, lease > state.newestLease, isOver(state, by: operation.completed) else {
                return nil
            }
            next.newestLease = lease
            next.isReserved = true
            next.noEarlier = after(UInt64(state.ttr), from: operation.invoked)
            return next
        case (.delete(let lease), nil), (.delete(let lease), .done?):
            guard holds(lease, state) else { return nil }
            return State(life: .deleted)
        case (.release(let lease, let delay), nil), (.release(let lease, let delay), .done?):
            guard holds(lease, state) else { return nil }
            next.isReserved = false
            next.noEarlier = delay == 0 ? 0 : after(delay, from: operation.invoked)
            return next
        case (.release(let lease, _), .buried?):
            guard holds(lease, state) else { return nil }
            next.isReserved = false
            next.life = .buried
            return next
        case (.touch(let lease), .done?):
            guard holds(lease, state) else { return nil }
            next.noEarlier = max(state.noEarlier, after(UInt64(state.ttr), from: operation.invoked))
            return next
        case (.delete(let lease), .leaseExpired?), (.release(let lease, _), .leaseExpired?),
            (.touch(let lease), .leaseExpired?):
            guard state.life == .present || state.life == .buried else { return nil }
            guard holds(lease, state) else { return state }
            guard isOver(state, by: operation.completed) else { return nil }
            next.isReserved = false
            next.noEarlier = 0
            return next
        case (.delete, .notFound?), (.release, .notFound?), (.touch, .notFound?), (.look, .notFound?):
            return state.life == .absent || state.life == .deleted ? state : nil
        case (.look, .done?): return state.life == .present || state.life == .buried ? state : nil
        case (.touch, nil), (.look, nil): return state
        default: return nil
        }
    }

    private func holds(_ lease: UInt64, _ state: State) -> Bool {
        state.life == .present && state.isReserved && state.newestLease == lease
    }
}
