// A node of one replica in virtual time, for tests of sessions: commands are committed at once, waits are served in their order.
import Model
import Queues

struct SessionWorld {
    struct Waiter {
        var name: String
        var id: UInt64
        var tubes: [String]
        var command: QueueCommand
        var until: MonotonicTime
    }

    var machine = QueueMachine()
    var sessions: [String: BeanstalkSession] = [:]
    var names: [String] = []
    var output: [String: [UInt8]] = [:]
    var closed: Set<String> = []
    var waiters: [Waiter] = []
    var counts = BeanstalkCounts()
    var index: UInt64 = 0
    var now = MonotonicTime(nanoseconds: 1_000_000_000_000)
    /// What sessions proposed, in order.
    var proposed: [QueueCommand] = []

    var logTime: UInt64 { now.nanoseconds / 1_000_000 }

    mutating func connect(_ name: String) {
        guard sessions[name] == nil else { return }
        names.append(name)
        sessions[name] = BeanstalkSession(holder: UInt64(names.count))
    }

    mutating func send(_ name: String, _ bytes: [UInt8]) {
        connect(name)
        sessions[name]?.tick(now: now)
        sessions[name]?.receive(bytes[...])
        carryOut(name)
    }

    mutating func send(_ name: String, _ text: String) { send(name, Array(text.utf8)) }

    mutating func endSending(_ name: String) {
        sessions[name]?.tick(now: now)
        sessions[name]?.peerEnded()
        carryOut(name)
    }

    mutating func takeText(_ name: String) -> String {
        defer { output[name] = [] }
        return String(decoding: output[name] ?? [], as: UTF8.self)
    }

    /// Time passes from one deadline to the next.
    mutating func wait(_ span: TimeSpan) {
        let end = now + span
        while now < end {
            var next = end
            for waiter in waiters { next = min(next, waiter.until) }
            for session in sessions.values { if let at = session.nextDeadline { next = min(next, at) } }
            if let due = machine.nextDeadline { next = min(next, MonotonicTime(nanoseconds: due * 1_000_000)) }
            now = max(now, next)
            machine.expire(now: logTime)
            serveWaiters()
            for waiter in waiters where waiter.until <= now { complete(waiter) }
            for name in names {
                sessions[name]?.tick(now: now)
                carryOut(name)
            }
        }
    }

    private mutating func apply(_ command: QueueCommand) -> QueueResult {
        index += 1
        proposed.append(command)
        let result = machine.apply(command, index: index, now: logTime)
        return result
    }

    private mutating func complete(_ waiter: Waiter) {
        waiters.removeAll { $0.name == waiter.name && $0.id == waiter.id }
        complete(waiter.name, waiter.id, .result(.reserved([])))
    }

    private mutating func complete(_ name: String, _ id: UInt64, _ outcome: BeanstalkSession.Outcome) {
        sessions[name]?.tick(now: now)
        sessions[name]?.complete(id, with: outcome)
        carryOut(name)
    }

    private mutating func serveWaiters() {
        let readied = machine.takeReadied()
        guard !readied.isEmpty else { return }
        for waiter in waiters where machine.hasReady(waiter.tubes) {
            let result = apply(waiter.command)
            waiters.removeAll { $0.name == waiter.name && $0.id == waiter.id }
            complete(waiter.name, waiter.id, .result(result))
        }
    }

    private mutating func carryOut(_ name: String) {
        for action in sessions[name]?.takeActions() ?? [] {
            switch action {
            case .send(let bytes): output[name, default: []] += bytes
            case .command(let id, let command, let wait):
                let result = apply(command)
                if let wait, case .reserved(let jobs) = result, jobs.isEmpty, case .reserve(let tubes, _, _) = command {
                    waiters.append(Waiter(name: name, id: id, tubes: tubes, command: command, until: now + wait))
                } else {
                    complete(name, id, .result(result))
                }
                serveWaiters()
            case .query(let id, let query):
                var figures = NodeFigures()
                for (other, session) in sessions where !closed.contains(other) {
                    figures.tubes[session.usedTube, default: TubeUse()].using += 1
                    for tube in session.watchedTubes {
                        figures.tubes[tube, default: TubeUse()].watching += 1
                        if session.isWaiting { figures.tubes[tube, default: TubeUse()].waiting += 1 }
                    }
                    figures.connections += 1
                    figures.producers += session.isProducer ? 1 : 0
                    figures.workers += session.isWorker ? 1 : 0
                }
                if let taken = sessions[name]?.takeCounts() { counts += taken }
                figures.commands = counts
                complete(name, id, machine.answer(query, node: figures, now: logTime))
            case .cancel(let id):
                if let waiter = waiters.first(where: { $0.name == name && $0.id == id }) { complete(waiter) }
            case .close:
                closed.insert(name)
                if let session = sessions[name], session.mayHoldJobs { _ = apply(.releaseHolder(session.holder)) }
                serveWaiters()
            }
        }
    }
}
