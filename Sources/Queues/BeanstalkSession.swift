// One connection of the beanstalkd protocol (beanstalkd's protocol.txt; where beanstalkd 1.12 differs from it, as beanstalkd 1.12
// behaves), without I/O: bytes in, actions out.
//
// Commands of a connection are done one at a time and answered in their order. What is pipelined waits in a bounded buffer; puts that
// were pipelined one after another are proposed as one batch, since each alone would cost a round of the log. A job that the connection
// has reserved is held by its lease token, which the session keeps: in this protocol the connection is the lease.
//
// The driver calls ``tick(now:)`` whenever it turns to the session, before it gives it bytes or outcomes, and at ``nextDeadline``; it
// carries out ``takeActions()``; when the connection is gone, it proposes ``QueueCommand/releaseHolder(_:)`` if ``mayHoldJobs``.
import Model
import Wire

public struct BeanstalkSession: Sendable {
    /// What is asked of the replicated state without changing it.
    public enum Query: Sendable, Hashable {
        case stats
        case statsTube(String)
        case statsJob(UInt64)
        case listTubes
        case peek(UInt64)
        case peekNext(tube: String, state: JobView.State)
    }

    public enum Outcome: Sendable, Hashable {
        case result(QueueResult)
        /// An object or array for `OK`; for the peeks an object as ``JobView/document``.
        case document(JSONValue)
        case job(JobView)
        case notFound
        /// No quorum in time, so that nobody knows whether the command was or will be done: the connection closes without a reply.
        case unavailable
    }

    public enum Action: Sendable, Hashable {
        case send([UInt8])
        /// Propose. `wait` is of a reserve that finds nothing: how long until it is completed with an empty `reserved`, nil at once,
        /// ``waitForever`` never.
        case command(id: UInt64, QueueCommand, wait: TimeSpan?)
        case query(id: UInt64, Query)
        /// A reserve need not wait any longer; it is still to be completed, with what it got or with an empty `reserved`.
        case cancel(id: UInt64)
        case close
    }

    public static let waitForever = TimeSpan(nanoseconds: .max)
    /// Pipelined input beyond this is not read while a command is under way.
    static let inputBytes = 65_536
    /// Most jobs and bytes of pipelined puts that go into one entry of the log.
    static let batchJobs = 256
    static let batchBytes = 262_144
    /// beanstalkd's safety margin before the end of a lease.
    static let margin = TimeSpan.seconds(1)
    /// How long after its lease should have ended a job is remembered: with a new leader leases last longer than a session knows.
    static let afterlife = TimeSpan.seconds(120)

    public let holder: UInt64
    public let jobLimit: Int
    /// Puts are answered with DRAINING.
    public var isDraining = false
    /// Reserves are answered with TIMED_OUT at once: see ``endReserves()``.
    public private(set) var hasEndedReserves = false
    /// No further command is begun: see ``stop()``.
    public private(set) var hasStopped = false
    public internal(set) var usedTube = "default"
    /// In the order of beanstalkd's list.
    public internal(set) var watchedTubes = ["default"]
    public internal(set) var isProducer = false
    public internal(set) var isWorker = false
    /// The client has closed its side, or the session has.
    public internal(set) var isEnding = false
    public internal(set) var isClosed = false

    var now = MonotonicTime.zero
    var held = HeldJobs()
    var input: [UInt8] = []
    var position = 0
    var reading = Reading.line
    var lookahead: Unit?
    var pending: (id: UInt64, work: Work)?
    var nextID: UInt64 = 1
    var actions: [Action] = []
    var counts = BeanstalkCounts()
    var isOutputBlocked = false
    /// A reserve ended without an outcome.
    var isReserveUnknown = false

    /// What the next bytes of the input are.
    enum Reading: Sendable {
        case line
        /// The rest of a line that is too long.
        case restOfLine
        case body(priority: UInt32, delay: UInt32, ttr: UInt32, size: Int)
        /// The rest of a body that is not taken.
        case restOfBody(count: Int, reply: String)
    }

    /// A whole unit of input.
    enum Unit: Sendable {
        case put(NewJob)
        case command(BeanstalkCommand)
        case refusal(String)
    }

    /// What is under way, and what its outcome needs.
    enum Work: Sendable {
        case put([NewJob])
        /// A batch was refused: the jobs still to be put singly, the first of them is under way.
        case putSingly([NewJob])
        case reserve(ifNone: String, isCancelled: Bool)
        case reserveJob
        case delete(UInt64, byLease: Bool)
        case release(UInt64)
        case bury(UInt64)
        case touch(UInt64)
        case kick
        case kickJob
        case pause
        case query
    }

    public init(jobLimit: Int = Limits.jobBytes, holder: UInt64) {
        self.jobLimit = min(max(jobLimit, 0), QueueLimits.bodyBytes)
        self.holder = holder
    }

    // MARK: Inputs

    /// Bytes that the client sent: any piece of the stream.
    public mutating func receive(_ bytes: ArraySlice<UInt8>) {
        guard !isClosed else { return }
        input.append(contentsOf: bytes)
        run()
    }

    /// The outcome of the command or query `id`; one of an older id is ignored.
    public mutating func complete(_ id: UInt64, with outcome: Outcome) {
        guard !isClosed, let pending, pending.id == id else { return }
        if case .unavailable = outcome { isReserveUnknown = isReserveUnknown || isReserving }
        self.pending = nil
        finish(pending.work, with: outcome)
        run()
    }

    /// The client will send nothing more. What it has sent is still answered; a waiting reserve answers TIMED_OUT.
    public mutating func peerEnded() {
        guard !isClosed else { return }
        isEnding = true
        cancelReserve(reply: "TIMED_OUT")
        run()
    }

    /// The connection will be ended soon: a waiting reserve answers TIMED_OUT, and so does each one from now on, without a job,
    /// for its holder would be gone before it could do it.
    public mutating func endReserves() {
        guard !isClosed else { return }
        hasEndedReserves = true
        cancelReserve(reply: "TIMED_OUT")
        run()
    }

    /// Begins no further command, also none that was received. What is under way is still answered.
    public mutating func stop() { hasStopped = true }

    /// Time passes: a waiting reserve answers DEADLINE_SOON when a job of this connection comes within a second of its lease's end.
    public mutating func tick(now: MonotonicTime) {
        self.now = max(self.now, now)
        held.forget(now: self.now)
        if isDeadlineSoon { cancelReserve(reply: "DEADLINE_SOON") }
    }

    /// When ``tick(now:)`` would change something, if nothing else happens before.
    public var nextDeadline: MonotonicTime? {
        guard let pending, case .reserve(_, isCancelled: false) = pending.work else { return nil }
        return held.nextEnd(now: now).map { $0 - BeanstalkSession.margin }
    }

    /// While the output is blocked (the client does not read its replies) no further command is begun.
    public mutating func setOutputBlocked(_ blocked: Bool) {
        isOutputBlocked = blocked
        if !blocked { run() }
    }

    // MARK: Outputs

    public mutating func takeActions() -> [Action] {
        defer { actions = [] }
        return actions
    }

    /// False: do not read from the connection until it is true again.
    public var isHungry: Bool {
        guard !isClosed, !isEnding else { return false }
        return pending == nil && !isOutputBlocked || input.count - position < BeanstalkSession.inputBytes
    }

    /// All that was received has been answered, to the last byte.
    public var isAtRest: Bool {
        guard pending == nil, lookahead == nil, position == input.count, case .line = reading else { return false }
        return true
    }

    /// A reserve waits for a job.
    public var isWaiting: Bool {
        if let pending, case .reserve = pending.work { true } else { false }
    }

    /// The id of the command or query under way: to be cancelled when the connection is gone.
    public var outstanding: UInt64? { pending?.id }

    /// Whether jobs may be reserved for ``holder``, so that it must be released when the connection is gone.
    public var mayHoldJobs: Bool { !held.isEmpty || isReserveUnknown || isReserving }

    var isReserving: Bool {
        switch pending?.work {
        case .reserve, .reserveJob: true
        case .put, .putSingly, .delete, .release, .bury, .touch, .kick, .kickJob, .pause, .query, nil: false
        }
    }

    /// Commands counted since the last call. Those that went through the log as ``QueueCommand``s are counted by the machine instead.
    public mutating func takeCounts() -> BeanstalkCounts {
        defer { counts = BeanstalkCounts() }
        return counts
    }

    // MARK: Reading

    /// Begins what can be begun: until a command is under way, or the input holds no whole unit.
    private mutating func run() {
        while pending == nil, !isOutputBlocked, !isClosed, !hasStopped {
            guard let unit = lookahead ?? parse() else {
                if isEnding { close() }
                break
            }
            lookahead = nil
            switch unit {
            case .refusal(let text): send(BeanstalkReply.line(text))
            case .put(let job): gather(from: job)
            case .command(let command): begin(command)
            }
        }
        compact()
    }

    /// The put, and those that follow it in the input.
    private mutating func gather(from first: NewJob) {
        var jobs = [first]
        var bytes = first.body.count
        while jobs.count < BeanstalkSession.batchJobs, bytes < BeanstalkSession.batchBytes, let unit = parse() {
            guard case .put(let job) = unit else {
                lookahead = unit
                break
            }
            jobs.append(job)
            bytes += job.body.count
        }
        propose(.put(jobs), .put(jobs))
    }

    /// Takes the next whole unit out of the input, or nil.
    private mutating func parse() -> Unit? {
        while true {
            let available = input.count - position
            switch reading {
            case .line:
                guard let end = lineEnd(limit: BeanstalkCommand.lineBytes) else {
                    guard available >= BeanstalkCommand.lineBytes else { return nil }
                    reading = .restOfLine
                    continue
                }
                let line = input[position..<end]
                position = end + 2
                let command: BeanstalkCommand
                do {
                    command = try BeanstalkCommand(line: line, jobLimit: jobLimit)
                } catch {
                    switch error {
                    case .badFormat: return .refusal("BAD_FORMAT")
                    case .unknown: return .refusal("UNKNOWN_COMMAND")
                    }
                }
                switch command {
                case .put(let priority, let delay, let ttr, let size):
                    isProducer = true
                    reading = .body(priority: priority, delay: delay, ttr: ttr, size: size)
                case .oversizedPut(let size): reading = .restOfBody(count: size + 2, reply: "JOB_TOO_BIG")
                case .peek, .peekNext, .reserve, .reserveJob, .delete, .release, .bury, .kick, .kickJob, .touch, .stats,
                    .statsJob,
                    .statsTube, .use, .watch, .ignore, .listTubes, .listTubeUsed, .listTubesWatched, .pauseTube, .quit:
                    return .command(command)
                }
            case .restOfLine:
                guard let end = lineEnd(limit: .max) else {
                    // A CR at the end may be the first half of the line's end.
                    position = input.last == 13 ? input.count - 1 : input.count
                    return nil
                }
                position = end + 2
                reading = .line
                return .refusal("BAD_FORMAT")
            case .body(let priority, let delay, let ttr, let size):
                guard available >= size + 2 else { return nil }
                let end = position + size
                let isTerminated = input[end] == 13 && input[end + 1] == 10
                let body = Array(input[position..<end])
                position = end + 2
                reading = .line
                guard isTerminated else { return .refusal("EXPECTED_CRLF") }
                guard !isDraining else { return .refusal("DRAINING") }
                return .put(
                    NewJob(
                        tube: usedTube, priority: priority, delayMilliseconds: UInt64(delay) * 1_000,
                        ttrMilliseconds: UInt64(max(ttr, 1)) * 1_000, body: body))
            case .restOfBody(let count, let reply):
                let taken = min(count, available)
                position += taken
                if taken == count {
                    reading = .line
                    return .refusal(reply)
                }
                reading = .restOfBody(count: count - taken, reply: reply)
                return nil
            }
        }
    }

    /// Where the CR LF of the line at `position` begins, if the line with it is at most `limit` bytes.
    private func lineEnd(limit: Int) -> Int? {
        let end = limit < input.count - position ? position + limit : input.count
        var at = position
        while at + 1 < end {
            if input[at] == 13, input[at + 1] == 10 { return at }
            at += 1
        }
        return nil
    }

    /// Forgets what was consumed; an idle connection keeps no buffer.
    private mutating func compact() {
        if position == input.count {
            input = []
            position = 0
        } else if position > 16_384 {
            input.removeFirst(position)
            position = 0
        }
    }
}
