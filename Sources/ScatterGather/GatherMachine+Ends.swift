// How attempts and shards end, and the job with them.
import Model

extension GatherMachine {
    /// The shard has its result; other attempts are cancelled at once, so that their leaves are free.
    mutating func accept(_ attempt: Attempt, bytes: UInt64, now: MonotonicTime) {
        durations.add(now - attempt.started)
        counts.bytesOut += bytes
        effects.append(.accept(shard: attempt.shard, attempt.id))
        if shards[attempt.shard].copies > 0 {
            for other in attempts where other.shard == attempt.shard {
                _ = remove(other.id)
                effects.append(.cancel(other.leaf, other.id, .superseded))
                effects.append(.discard(other.id))
            }
            shards[attempt.shard].copies = 0
        }
        counts.running -= 1
        settle(attempt.shard, as: .done)
    }

    mutating func fail(_ attempt: Attempt, _ outcome: AttemptOutcome, now: MonotonicTime) {
        let shard = attempt.shard
        effects.append(.discard(attempt.id))
        // A leaf that is being stopped cancels by itself what runs there.
        if outcome == .cancelled { return lose(attempt, node: node(of: attempt.leaf), isRemoved: true, now: now) }
        let verdict = outcome.verdict
        let node = node(of: attempt.leaf)
        shards[shard].failures &+= 1
        let span = verdict == .retryElsewhere ? options.strictAvoidance : options.avoidance
        shards[shard].avoid.append(Place(leaf: attempt.leaf, node: node, until: now + span))
        if shards[shard].avoid.count > 4 { shards[shard].avoid.removeFirst() }
        if verdict == .final || Int(shards[shard].failures) > options.retries {
            // A copy that still runs could succeed, but not by the contract: a final code is final, a spent budget is spent.
            if verdict != .final && shards[shard].copies > 0 { return }
            cancelCopies(of: shard)
            counts.running -= 1
            giveUp(shard, node: node, outcome)
            return
        }
        if shards[shard].copies > 0 { return }
        putBack(shard, due: now + backOff(failures: Int(shards[shard].failures)))
    }

    /// The attempt vanished with its leaf.
    mutating func lose(_ attempt: Attempt, node: String, isRemoved: Bool = false, now: MonotonicTime) {
        let shard = attempt.shard
        if !isRemoved {
            guard remove(attempt.id) != nil else { return }
            shards[shard].copies -= 1
            effects.append(.discard(attempt.id))
        }
        shards[shard].losses &+= 1
        if Int(shards[shard].losses) > options.lossLimit + options.retries {
            cancelCopies(of: shard)
            counts.running -= 1
            return giveUp(shard, node: node, .notStarted("its leaf was lost \(shards[shard].losses) times"))
        }
        if shards[shard].copies > 0 { return }
        if Int(shards[shard].failures) > options.retries {
            counts.running -= 1
            return giveUp(shard, node: node, .notStarted("its last leaf was lost"))
        }
        putBack(shard, due: now)
    }

    private mutating func cancelCopies(of shard: Int) {
        guard shards[shard].copies > 0 else { return }
        for other in attempts where other.shard == shard {
            _ = remove(other.id)
            effects.append(.cancel(other.leaf, other.id, .superseded))
            effects.append(.discard(other.id))
        }
        shards[shard].copies = 0
    }

    /// None after the first failure: the next attempt is elsewhere.
    private func backOff(failures: Int) -> TimeSpan {
        guard failures > 1 else { return .zero }
        return min(options.firstBackOff * (1 << min(failures - 2, 16)), options.longestBackOff)
    }

    private mutating func putBack(_ shard: Int, due: MonotonicTime) {
        shards[shard].state = .pending
        counts.running -= 1
        counts.pending += 1
        var at = retries.count
        while at > 0, retries[at - 1].due > due { at -= 1 }
        retries.insert(Retry(due: due, shard: shard), at: at)
    }

    private mutating func giveUp(_ shard: Int, node: String, _ outcome: AttemptOutcome) {
        record(shard, node: node, error: outcome.text)
        if let status = outcome.exitStatus, shard < failedExit?.shard ?? .max { failedExit = (shard, status) }
        settle(shard, as: outcome == .timedOut ? .timedOut : .failed)
        let hopeless = counts.failed + counts.timedOut >= options.hopelessAfter && counts.successful == 0
        if hopeless && state == .running {
            closeRest(as: .cancelled)
            finish(as: .failed)
        }
    }

    private mutating func record(_ shard: Int, node: String, error: String) {
        let failure = GatherFailure(
            shard: shard, node: node, attempts: Int(shards[shard].attempts), error: String(error.prefix(1_000)))
        var at = counts.failures.count
        while at > 0, counts.failures[at - 1].shard > shard { at -= 1 }
        guard at < GatherProgress.failureLimit else { return }
        counts.failures.insert(failure, at: at)
        if counts.failures.count > GatherProgress.failureLimit { counts.failures.removeLast() }
    }

    /// `counts` of the state before are the caller's.
    private mutating func settle(_ shard: Int, as state: ShardState) {
        shards[shard].state = state
        shards[shard].avoid = []
        switch state {
        case .done: counts.successful += 1
        case .failed: counts.failed += 1
        case .timedOut: counts.timedOut += 1
        case .cancelled: counts.cancelled += 1
        case .pending, .running: preconditionFailure("not a final state")
        }
        effects.append(.settled(shard: shard, state))
        while firstOpen < shards.count, shards[firstOpen].state.isFinal { firstOpen += 1 }
    }

    mutating func finishIfDone() {
        guard state == .running, inputEnded, counts.pending == 0, counts.running == 0 else { return }
        finish(as: verdict)
    }

    var verdict: GatherState {
        if counts.successful == shards.count { return .succeeded }
        return counts.successful >= options.required(of: shards.count) ? .partial : .failed
    }

    /// Everything that is not final becomes `final`; all attempts are cancelled.
    mutating func closeRest(as final: ShardState) {
        for attempt in attempts {
            effects.append(.cancel(attempt.leaf, attempt.id, .jobOver))
            effects.append(.discard(attempt.id))
            if final == .timedOut, !shards[attempt.shard].state.isFinal, !attempt.isHedge {
                record(attempt.shard, node: node(of: attempt.leaf), error: "the deadline passed")
            }
        }
        attempts = []
        retries = []
        counts.running = 0
        counts.pending = 0
        for shard in firstOpen..<max(firstOpen, shards.count) where !shards[shard].state.isFinal {
            if final == .timedOut, shards[shard].state == .pending {
                record(shard, node: "", error: "the deadline passed")
            }
            shards[shard].copies = 0
            settle(shard, as: final)
        }
    }

    mutating func finish(as state: GatherState) {
        self.state = state
        waiting = []
        effects.append(.finished(state))
    }
}
