// Which leaf gets which shard: what failed before first, then fresh shards in order, then copies of what runs for too long.
import Model

extension GatherMachine {
    /// Entries of the retry list that one ask looks at.
    private static let scanLimit = 64

    /// Serves the leaves that wait, as far as there is something for them.
    mutating func assign(_ now: MonotonicTime) {
        guard isOpen, state == .running, !waiting.isEmpty else { return }
        var at = 0
        while at < waiting.count {
            guard let shard = takePending(for: waiting[at], now) else {
                at += 1
                continue
            }
            give(shard, toWaiting: at, isHedge: false, now)
            // A leaf with more asks has moved to the end; the same place holds the next leaf.
        }
        if !waiting.isEmpty { hedge(now) }
    }

    private mutating func takePending(for leaf: LeafID, _ now: MonotonicTime) -> Int? {
        guard counts.pending > 0 else { return nil }
        for (i, retry) in retries.prefix(GatherMachine.scanLimit).enumerated() {
            if retry.due > now { break }
            if isHolding && retry.shard != firstOpen { continue }
            if isKept(retry.shard, from: leaf, now) { continue }
            retries.remove(at: i)
            return retry.shard
        }
        guard nextFresh < shards.count, !isHolding || nextFresh == firstOpen else { return nil }
        defer { nextFresh += 1 }
        return nextFresh
    }

    /// The shard failed at this leaf or node lately, and there is another place.
    private func isKept(_ shard: Int, from leaf: LeafID, _ now: MonotonicTime) -> Bool {
        let avoid = shards[shard].avoid.filter { $0.until > now }
        guard !avoid.isEmpty else { return false }
        let own = node(of: leaf)
        if avoid.contains(where: { $0.node == own }),
            leaves.contains(where: { other in avoid.allSatisfy { $0.node != other.node } })
        {
            return true
        }
        return avoid.contains { $0.leaf == leaf }
            && leaves.contains { other in avoid.allSatisfy { $0.leaf != other.id } }
    }

    private mutating func give(_ shard: Int, toWaiting at: Int, isHedge: Bool, _ now: MonotonicTime) {
        let leaf = waiting.remove(at: at)
        let index = index(of: leaf)
        leaves[index].asks -= 1
        if leaves[index].asks > 0 { waiting.append(leaf) }
        let id = AttemptID(nextAttempt)
        nextAttempt += 1
        attempts.append(Attempt(id: id, shard: shard, leaf: leaf, started: now, isHedge: isHedge))
        if isHedge {
            counts.hedged += 1
        } else {
            if shards[shard].attempts > 0 { counts.retried += 1 }
            shards[shard].state = .running
            counts.pending -= 1
            counts.running += 1
        }
        shards[shard].copies += 1
        shards[shard].attempts &+= 1
        var deadline = jobDeadline
        if let limit = options.shardTimeout { deadline = min(deadline ?? .distantFuture, now + limit) }
        effects.append(
            .give(
                ShardGrant(
                    leaf: leaf, attempt: id, shard: shard, number: Int(shards[shard].attempts), isHedge: isHedge,
                    deadline: deadline)))
    }

    // MARK: - Hedges

    /// How long the latest attempt of a shard runs before a copy is due; nil for never.
    var hedgeDelay: TimeSpan? {
        switch options.hedge {
        case .off: return nil
        case .after(let span): return span
        case .automatic:
            // Near the end only (MapReduce's backup tasks): before, a leaf that is free has fresh shards to run.
            guard inputEnded, counts.successful * 4 >= shards.count * 3, let median = durations.median else {
                return nil
            }
            return max(median * 2, options.hedgeFloor)
        }
    }

    /// A bound on all copies of the job, so that a cluster that is slow as a whole is not loaded twice.
    private var hedgeBudget: Int { max(8, shards.count / 4) }

    private mutating func hedge(_ now: MonotonicTime) {
        guard let delay = hedgeDelay else { return }
        while !waiting.isEmpty, counts.hedged < hedgeBudget, let candidate = hedgeCandidate(delay, now) {
            give(candidate.shard, toWaiting: candidate.waiting, isHedge: true, now)
        }
    }

    /// The shard whose latest attempt has run longest, if that is long enough, and a waiting leaf that does not run it:
    /// one on another node, if there is one.
    private func hedgeCandidate(_ delay: TimeSpan, _ now: MonotonicTime) -> (shard: Int, waiting: Int)? {
        for attempt in attempts {
            if attempt.started + delay > now { return nil }
            guard isLatest(attempt), Int(shards[attempt.shard].copies) <= options.maxCopies else { continue }
            let running = attempts.filter { $0.shard == attempt.shard }
            let nodes = running.map { node(of: $0.leaf) }
            let free = waiting.indices.filter { at in !running.contains { $0.leaf == waiting[at] } }
            if let at = free.first(where: { !nodes.contains(node(of: waiting[$0])) }) ?? free.first {
                return (attempt.shard, at)
            }
        }
        return nil
    }

    private func isLatest(_ attempt: Attempt) -> Bool {
        shards[attempt.shard].copies <= 1 || !attempts.contains { $0.shard == attempt.shard && $0.id > attempt.id }
    }

    /// When the next copy may be due, for a leaf that waits.
    var nextHedge: MonotonicTime? {
        guard let delay = hedgeDelay, counts.hedged < hedgeBudget else { return nil }
        // What could be copied now and was not, for want of a leaf, waits for an ask instead of for time.
        return attempts.first {
            isLatest($0) && Int(shards[$0.shard].copies) <= options.maxCopies && !isHedgedByAllWaiting($0)
        }
        .map { $0.started + delay }
    }

    private func isHedgedByAllWaiting(_ attempt: Attempt) -> Bool {
        let running = attempts.filter { $0.shard == attempt.shard }
        return waiting.allSatisfy { leaf in running.contains { $0.leaf == leaf } }
    }

    /// When the next shard that waits becomes due, or ceases to avoid the leaves that ask.
    var nextRetry: MonotonicTime? {
        var next: MonotonicTime?
        for retry in retries.prefix(GatherMachine.scanLimit) {
            if isHolding && retry.shard != firstOpen { continue }
            var time = retry.due
            for place in shards[retry.shard].avoid
            where waiting.contains(where: { $0 == place.leaf || node(of: $0) == place.node }) {
                // Never in the past: ``tick(now:)`` would come at once, again and again.
                time = max(time, place.until)
            }
            next = min(next ?? time, time)
        }
        return next
    }
}
