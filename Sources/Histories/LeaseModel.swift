// A lease with fencing tokens as its clients see it (`Leases`). Clients can not see when a lease ends, so an end is assumed
// wherever one is possible: never before the time to live has passed since the last grant or renewal was asked for. (Log time
// passes at most as quickly as a clock, and an order can not be carried out before it was asked for.) That makes the check
// sound: what it calls a violation is one.

/// One key. Times of operations must be nanoseconds of a clock; ``isTimed`` false if they only tell the order, as in files
/// without times: then a lease may end at any time.
public struct LeaseModel: SequentialModel {
    public enum Input: Hashable, Sendable {
        /// By the present holder it is a renewal and gets the same token.
        case acquire(holder: String, ttlMilliseconds: UInt64)
        /// `ttlMilliseconds`: that of the grant; 0 if it is not known.
        case renew(token: UInt64, ttlMilliseconds: UInt64)
        case release(token: UInt64)
        /// A linearizable read.
        case inspect
    }

    public enum Output: Hashable, Sendable {
        case granted(token: UInt64)
        /// Somebody else has it.
        case held(token: UInt64, holder: String)
        case renewed
        case released
        /// The token is not, or not any more, that of the holder. `newest`: the last one granted, 0 if it was not told.
        case lost(newest: UInt64)
        /// What `inspect` saw: the newest token, 0 if there never was one, and who holds it now.
        case state(token: UInt64, holder: String?)
    }

    public struct Holding: Hashable, Sendable {
        /// Nil: a grant whose answer nobody got.
        var token: UInt64?
        var holder: String
        var ttlNanoseconds: Int64
        /// Not before this time does it end by itself.
        var endsNoEarlier: Int64
    }

    public struct State: Hashable, Sendable {
        /// The newest token that anybody heard of.
        var newest: UInt64 = 0
        /// After a grant whose answer nobody got, the newest token is larger than ``newest``.
        var isNewestHidden = false
        var holding: Holding?
    }

    public var isTimed: Bool
    /// Rounding to milliseconds, and how far two clocks' speeds may differ, in nanoseconds.
    public var slack: Int64

    public init(isTimed: Bool = true, slack: Int64 = 2_000_000) {
        self.isTimed = isTimed
        self.slack = slack
    }

    public var initial: State { State() }

    private func mayHaveEnded(_ holding: Holding, by time: Int64) -> Bool {
        !isTimed || time >= holding.endsNoEarlier - slack
    }

    private static func nanoseconds(_ milliseconds: UInt64) -> Int64 {
        Int64(clamping: milliseconds).multipliedReportingOverflow(by: 1_000_000).partialValue
    }

    /// True if `token` is the newest one; what is not known is learnt.
    private func learn(_ token: UInt64, _ state: inout State) -> Bool {
        if state.isNewestHidden {
            guard token > state.newest else { return false }
            state.newest = token
            state.isNewestHidden = false
            if state.holding != nil { state.holding?.token = token }
            return true
        }
        return token == state.newest
    }

    public func step(_ state: State, _ operation: TimedOperation<Input, Output>) -> State? {
        var after = state
        switch (operation.input, operation.output) {
        case (.acquire(let holder, let ttl), nil):
            if let holding = state.holding, holding.holder == holder { return state }
            after.isNewestHidden = true
            after.holding = grant(nil, holder, ttl, operation.invoked)
            return after
        case (.acquire(let holder, let ttl), .granted(let token)?):
            if let holding = state.holding {
                if holding.holder == holder, learn(token, &after) {
                    after.holding?.endsNoEarlier = max(
                        holding.endsNoEarlier, operation.invoked &+ LeaseModel.nanoseconds(ttl))
                    return after
                }
                guard mayHaveEnded(holding, by: operation.completed) else { return nil }
                after = state
            }
            guard token > state.newest else { return nil }
            after.newest = token
            after.isNewestHidden = false
            after.holding = grant(token, holder, ttl, operation.invoked)
            return after
        case (.acquire(let own, _), .held(let token, let holder)?):
            guard let holding = state.holding, holding.holder == holder, holder != own, learn(token, &after) else {
                return nil
            }
            return after
        case (.renew(let token, let ttl), nil), (.renew(let token, let ttl), .renewed?):
            guard let holding = state.holding, learn(token, &after), after.holding?.token == token else { return nil }
            let time = ttl == 0 ? holding.ttlNanoseconds : LeaseModel.nanoseconds(ttl)
            after.holding?.endsNoEarlier = max(holding.endsNoEarlier, operation.invoked &+ time)
            // A renewal of which nobody knows only makes the rest harder to explain.
            return operation.output == nil ? state : after
        case (.release(let token), nil), (.release(let token), .released?):
            guard state.holding != nil, learn(token, &after), after.holding?.token == token else { return nil }
            after.holding = nil
            return after
        case (.renew(let token, _), .lost(let newest)?), (.release(let token), .lost(let newest)?):
            if newest > 0, !learn(newest, &after) { return nil }
            guard let holding = after.holding else { return after }
            if let held = holding.token, held != token { return after }
            if holding.token == nil, token <= after.newest { return after }
            guard mayHaveEnded(holding, by: operation.completed) else { return nil }
            after.holding = nil
            return after
        case (.inspect, nil): return state
        case (.inspect, .state(let token, let holder)?):
            guard learn(token, &after) else { return nil }
            guard let holding = after.holding else { return holder == nil ? after : nil }
            if let holder { return holding.holder == holder ? after : nil }
            guard mayHaveEnded(holding, by: operation.completed) else { return nil }
            after.holding = nil
            return after
        default: return nil
        }
    }

    private func grant(_ token: UInt64?, _ holder: String, _ ttl: UInt64, _ asked: Int64) -> Holding {
        let nanoseconds = LeaseModel.nanoseconds(ttl)
        return Holding(
            token: token, holder: holder, ttlNanoseconds: nanoseconds,
            endsNoEarlier: isTimed ? asked &+ nanoseconds : 0)
    }
}
