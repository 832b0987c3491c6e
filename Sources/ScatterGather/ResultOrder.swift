// In which order results are passed on.
import Model

/// Says whose result comes next: strictly by shard number, or as they come. Keeps numbers only; each shard comes once.
public struct ResultOrder: Sendable {
    private let ordered: Bool
    /// Whether a shard without result is passed over; otherwise nothing behind it is put out in order.
    private let skipsMissing: Bool
    /// Settled shards ahead of `next`: true with a result. Looked up only, never walked.
    private var ahead: [Int: Bool] = [:]
    private var queue: [Int] = []
    private var taken = 0
    public private(set) var next = 0
    /// A result is missing and nothing can follow.
    public private(set) var isBlocked = false

    public init(ordered: Bool, skipsMissing: Bool) {
        self.ordered = ordered
        self.skipsMissing = skipsMissing
    }

    /// Each shard once.
    public mutating func settled(_ shard: Int, hasResult: Bool) {
        if ordered { ahead[shard] = hasResult } else if hasResult { queue.append(shard) }
    }

    /// The shard whose result is passed on now; nil if it is not there yet, or never will.
    public mutating func take() -> Int? {
        guard ordered else {
            guard taken < queue.count else { return nil }
            defer {
                taken += 1
                if taken == queue.count {
                    queue.removeAll(keepingCapacity: queue.capacity < 4_096)
                    taken = 0
                }
            }
            return queue[taken]
        }
        while !isBlocked, let hasResult = ahead[next] {
            if !hasResult && !skipsMissing {
                isBlocked = true
                return nil
            }
            ahead[next] = nil
            next += 1
            if hasResult { return next - 1 }
        }
        return nil
    }
}
