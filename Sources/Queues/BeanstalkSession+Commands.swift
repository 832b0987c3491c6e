// What a session does for each command, and what it answers to each outcome.
import Model
import Wire

extension BeanstalkSession {
    // MARK: Beginning

    mutating func begin(_ command: BeanstalkCommand) {
        switch command {
        case .put, .oversizedPut: break  // Parsed as units of their own.
        case .peek(let id):
            counts[.peek] += 1
            ask(.peek(id))
        case .peekNext(let state):
            switch state {
            case .ready: counts[.peekReady] += 1
            case .delayed: counts[.peekDelayed] += 1
            case .buried: counts[.peekBuried] += 1
            case .reserved: break
            }
            ask(.peekNext(tube: usedTube, state: state))
        case .reserve(let timeout, let isPlain):
            counts[isPlain ? .reserve : .reserveWithTimeout] += 1
            isWorker = true
            reserve(timeout: timeout)
        case .reserveJob(let id):
            isWorker = true
            propose(.reserveJob(id: id, holder: holder), .reserveJob)
        case .delete(let id):
            let lease = held[id]
            propose(.delete(id: id, lease: lease), .delete(id, byLease: lease != nil))
        case .release(let id, let priority, let delay):
            guard let lease = held[id] else { return notHeld(.release) }
            propose(
                .release(id: id, lease: lease, priority: priority, delayMilliseconds: UInt64(delay) * 1_000),
                .release(id))
        case .bury(let id, let priority):
            guard let lease = held[id] else { return notHeld(.bury) }
            propose(.bury(id: id, lease: lease, priority: priority), .bury(id))
        case .touch(let id):
            guard let lease = held[id] else { return notHeld(.touch) }
            propose(.touch(id: id, lease: lease), .touch(id))
        case .kick(let count): propose(.kick(tube: usedTube, count: Int(count)), .kick)
        case .kickJob(let id): propose(.kickJob(id: id), .kickJob)
        case .stats:
            counts[.stats] += 1
            ask(.stats)
        case .statsJob(let id):
            counts[.statsJob] += 1
            ask(.statsJob(id))
        case .statsTube(let name):
            counts[.statsTube] += 1
            ask(.statsTube(name))
        case .use(let name):
            counts[.use] += 1
            usedTube = name
            send(BeanstalkReply.line("USING \(name)"))
        case .watch(let name):
            counts[.watch] += 1
            watch(name)
        case .ignore(let name):
            counts[.ignore] += 1
            ignore(name)
        case .listTubes:
            counts[.listTubes] += 1
            ask(.listTubes)
        case .listTubeUsed:
            counts[.listTubeUsed] += 1
            send(BeanstalkReply.line("USING \(usedTube)"))
        case .listTubesWatched:
            counts[.listTubesWatched] += 1
            send(BeanstalkReply.document(.array(watchedTubes.map { .string($0) })))
        case .pauseTube(let name, let seconds):
            // A tube without jobs exists as long as a connection refers to it.
            let isReferenced = name == "default" || name == usedTube || watchedTubes.contains(name)
            propose(.pause(tube: name, milliseconds: UInt64(seconds) * 1_000, create: isReferenced), .pause)
        case .quit: close()
        }
    }

    mutating func reserve(timeout: UInt32?) {
        guard !hasEndedReserves else { return send(BeanstalkReply.line("TIMED_OUT")) }
        held.forget(now: now)
        // Only when no job is ready either (beanstalkd's issue 646): so ask first, without waiting.
        let isSoon = isDeadlineSoon
        let wait: TimeSpan? =
            if isSoon || isEnding || timeout == 0 { nil } else {
                timeout.map { .seconds(Int64($0)) } ?? BeanstalkSession.waitForever
            }
        propose(
            .reserve(tubes: watchedTubes, holder: holder, count: 1),
            .reserve(ifNone: isSoon ? "DEADLINE_SOON" : "TIMED_OUT", isCancelled: wait == nil), wait: wait)
    }

    mutating func watch(_ name: String) {
        if !watchedTubes.contains(name) {
            guard watchedTubes.count < QueueLimits.reserveTubes else {
                return send(BeanstalkReply.line("OUT_OF_MEMORY"))
            }
            watchedTubes.append(name)
        }
        send(BeanstalkReply.line("WATCHING \(watchedTubes.count)"))
    }

    mutating func ignore(_ name: String) {
        if let index = watchedTubes.firstIndex(of: name) {
            guard watchedTubes.count > 1 else { return send(BeanstalkReply.line("NOT_IGNORED")) }
            // beanstalkd's list moves its last into the gap.
            watchedTubes.swapAt(index, watchedTubes.count - 1)
            watchedTubes.removeLast()
        }
        send(BeanstalkReply.line("WATCHING \(watchedTubes.count)"))
    }

    /// Only the connection that reserved a job can do this, so there is nothing to ask the log.
    mutating func notHeld(_ kind: BeanstalkCounts.Kind) {
        counts[kind] += 1
        send(BeanstalkReply.line("NOT_FOUND"))
    }

    var isDeadlineSoon: Bool {
        guard let end = held.nextEnd(now: now) else { return false }
        return end - now <= BeanstalkSession.margin
    }

    mutating func cancelReserve(reply: String) {
        guard let pending, case .reserve(_, isCancelled: false) = pending.work else { return }
        self.pending = (pending.id, .reserve(ifNone: reply, isCancelled: true))
        actions.append(.cancel(id: pending.id))
    }

    mutating func propose(_ command: QueueCommand, _ work: Work, wait: TimeSpan? = nil) {
        pending = (nextID, work)
        actions.append(.command(id: nextID, command, wait: wait))
        nextID += 1
    }

    mutating func ask(_ query: Query) {
        pending = (nextID, .query)
        actions.append(.query(id: nextID, query))
        nextID += 1
    }

    // MARK: Finishing

    mutating func finish(_ work: Work, with outcome: Outcome) {
        switch outcome {
        case .unavailable: close()
        case .result(let result): finish(work, with: result)
        case .notFound: send(BeanstalkReply.line("NOT_FOUND"))
        case .job(let job): send(BeanstalkReply.job("FOUND", id: job.id, body: job.body))
        case .document(let document):
            if let id = document["id"]?.intValue, let body = BeanstalkSession.body(of: document) {
                send(BeanstalkReply.job("FOUND", id: UInt64(clamping: id), body: body))
            } else {
                send(BeanstalkReply.document(document))
            }
        }
    }

    static func body(of document: JSONValue) -> [UInt8]? {
        if let text = document["body"]?.stringValue { return Array(text.utf8) }
        return document["bodyBase64"]?.stringValue.flatMap { Base64.decode($0) }
    }

    mutating func finish(_ work: Work, with result: QueueResult) {
        switch work {
        case .put(let jobs):
            if case .refused = result, jobs.count > 1 {
                // A batch is refused whole, but each of these puts was one of its own.
                return putSingly(jobs)
            }
            replyToPut(result)
        case .putSingly(let jobs):
            replyToPut(result)
            if jobs.count > 1 { putSingly(Array(jobs.dropFirst())) }
        case .reserve(let ifNone, _):
            if case .reserved(let jobs) = result, jobs.isEmpty { return send(BeanstalkReply.line(ifNone)) }
            replyReserved(result)
        case .reserveJob: replyReserved(result)
        case .delete(let id, let byLease):
            held[id] = nil
            if byLease, case .leaseExpired = result {
                // The lease has ended: the job is as any other now, to be deleted if it is not reserved again.
                return propose(.delete(id: id, lease: nil), .delete(id, byLease: false))
            }
            reply(to: result, done: "DELETED")
        case .release(let id):
            held[id] = nil
            reply(to: result, done: "RELEASED")
        case .bury(let id):
            held[id] = nil
            reply(to: result, done: "BURIED")
        case .touch(let id):
            if case .done = result { held.touch(id, now: now) } else { held[id] = nil }
            reply(to: result, done: "TOUCHED")
        case .kick, .kickJob: reply(to: result, done: "KICKED")
        case .pause: reply(to: result, done: "PAUSED")
        case .query: reply(to: result, done: "INTERNAL_ERROR")
        }
    }

    mutating func putSingly(_ jobs: [NewJob]) {
        guard let first = jobs.first else { return }
        propose(.put([first]), .putSingly(jobs))
    }

    mutating func replyToPut(_ result: QueueResult) {
        guard case .inserted(let jobs) = result else { return reply(to: result, done: "INTERNAL_ERROR") }
        for job in jobs { send(BeanstalkReply.line("INSERTED \(job.id)")) }
    }

    mutating func replyReserved(_ result: QueueResult) {
        guard case .reserved(let jobs) = result, let job = jobs.first else {
            return reply(to: result, done: "NOT_FOUND")
        }
        held.add(job, now: now)
        send(BeanstalkReply.job("RESERVED", id: job.id, body: job.body))
    }

    mutating func reply(to result: QueueResult, done: String) {
        switch result {
        case .done: send(BeanstalkReply.line(done))
        case .buried: send(BeanstalkReply.line("BURIED"))
        case .kicked(let count): send(BeanstalkReply.line("KICKED \(count)"))
        case .notFound, .leaseExpired: send(BeanstalkReply.line("NOT_FOUND"))
        case .refused(.tooLarge, _): send(BeanstalkReply.line("JOB_TOO_BIG"))
        case .refused(.busy, _): send(BeanstalkReply.line("OUT_OF_MEMORY"))
        case .refused, .inserted, .reserved, .purged: send(BeanstalkReply.line("INTERNAL_ERROR"))
        }
    }

    mutating func send(_ bytes: [UInt8]) {
        if case .send(var earlier) = actions.last {
            actions.removeLast()
            earlier.append(contentsOf: bytes)
            actions.append(.send(earlier))
        } else {
            actions.append(.send(bytes))
        }
    }

    mutating func close() {
        isClosed = true
        isEnding = true
        input = []
        position = 0
        lookahead = nil
        pending = nil
        actions.append(.close)
    }
}
