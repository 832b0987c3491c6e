// What is known of jobs and elections, once from the order of the log and once from the answers that clients got.
import Leases
import Model
import NodeCore
import Queues

struct JobLedger {
    private struct Held {
        var lease: UInt64
        /// Log time.
        var until: UInt64
    }

    // From the log's order.
    private var idOfNumber: [UInt64: UInt64] = [:]
    private var numberOfID: [UInt64: UInt64] = [:]
    private var timeToRun: [UInt64: UInt64] = [:]
    private var held: [UInt64: Held] = [:]
    private var newestLease: [UInt64: UInt64] = [:]
    private var gone: Set<UInt64> = []

    // From answers.
    private var acknowledged: [UInt64] = []
    var deleteAsked: Set<UInt64> = []
    /// When its deletion was acknowledged.
    private(set) var deleted: [UInt64: MonotonicTime] = [:]

    static func number(of body: some Collection<UInt8>) -> UInt64 {
        body.prefix(8).reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }

    /// A command was executed in the log's order, at this log time.
    mutating func executed(_ command: QueueCommand, _ result: QueueResult, at time: UInt64) throws {
        switch (command, result) {
        case (.put(let new), .inserted(let inserted)):
            guard new.count == inserted.count else {
                throw Violation("a put of \(new.count) jobs made \(inserted.count)")
            }
            for (job, made) in zip(new, inserted) {
                let number = JobLedger.number(of: job.body)
                if let other = idOfNumber[number] {
                    throw Violation("job number \(number) was put twice, as \(other) and \(made.id)")
                }
                if numberOfID[made.id] != nil { throw Violation("the job id \(made.id) was given twice") }
                idOfNumber[number] = made.id
                numberOfID[made.id] = number
                timeToRun[made.id] = max(job.ttrMilliseconds, 1)
            }
        case (.reserve, .reserved(let jobs)):
            for job in jobs {
                if gone.contains(job.id) { throw Violation("job \(job.id) is reserved after it was deleted") }
                if let held = held[job.id], held.until > time {
                    throw Violation(
                        "job \(job.id) is reserved by \(job.lease) at \(time) while \(held.lease) holds it until \(held.until)"
                    )
                }
                if let newest = newestLease[job.id], job.lease <= newest {
                    throw Violation("job \(job.id): lease \(job.lease) after \(newest)")
                }
                guard numberOfID[job.id] == JobLedger.number(of: job.body) else {
                    throw Violation("job \(job.id) has another's body")
                }
                newestLease[job.id] = job.lease
                held[job.id] = Held(lease: job.lease, until: time + (timeToRun[job.id] ?? 0))
            }
        case (.delete(let id, let lease), .done):
            try mustHold(id, lease, time)
            guard gone.insert(id).inserted else { throw Violation("job \(id) was deleted twice") }
            held[id] = nil
        case (.release(let id, let lease, _, _), .done), (.release(let id, let lease, _, _), .buried):
            try mustHold(id, lease, time)
            held[id] = nil
        case (.touch(let id, let lease), .done):
            try mustHold(id, lease, time)
            held[id]?.until = time + (timeToRun[id] ?? 0)
        default: break
        }
    }

    private func mustHold(_ id: UInt64, _ lease: UInt64?, _ time: UInt64) throws {
        guard let held = held[id], held.lease == lease, held.until > time else {
            throw Violation(
                "a command with lease \(lease ?? 0) on job \(id) was carried out, but the lease is not in force")
        }
    }

    mutating func putAcknowledged(_ numbers: [UInt64], _ inserted: [InsertedJob]) throws {
        for (number, job) in zip(numbers, inserted) {
            guard idOfNumber[number] == job.id else {
                throw Violation("job number \(number) was acknowledged as \(job.id), the log has another")
            }
            acknowledged.append(job.id)
        }
    }

    mutating func reserved(_ job: ReservedJob, askedAt: MonotonicTime) throws {
        // An answer that was late on its way may tell of a reservation before the deletion.
        if let end = deleted[job.id], end <= askedAt {
            throw Violation("job \(job.id) was handed out after its deletion was acknowledged")
        }
    }

    mutating func deleteAcknowledged(_ job: UInt64, at time: MonotonicTime) throws {
        guard deleted.updateValue(time, forKey: job) == nil else {
            throw Violation("two deletions of job \(job) were acknowledged")
        }
    }

    func anyAcknowledged(using generator: inout SeededGenerator) -> UInt64? {
        acknowledged.isEmpty ? nil : acknowledged[Int(generator.next() % UInt64(acknowledged.count))]
    }

    /// The queue is empty: what was acknowledged was deleted, by somebody who asked for it.
    func checkEnd() throws {
        for job in acknowledged {
            guard deleteAsked.contains(job) else {
                throw Violation("job \(job) was acknowledged and is gone, but nobody deleted it")
            }
            guard gone.contains(job) else {
                throw Violation("job \(job) was acknowledged and is gone without a deletion in the log")
            }
        }
        for job in deleted.keys.sorted() where !gone.contains(job) {
            throw Violation("the deletion of job \(job) was acknowledged and is not in the log")
        }
    }
}

struct ElectionLedger {
    private struct Held {
        var holder: String
        var token: UInt64
        var ttl: UInt64
        /// Log time.
        var until: UInt64
    }

    private struct Belief {
        var client: Int
        var token: UInt64
        var until: MonotonicTime
    }

    // From the log's order.
    private var held: [String: Held] = [:]
    private var newestGranted: [String: UInt64] = [:]

    // From answers.
    private var beliefs: [String: [Belief]] = [:]
    private(set) var newest: [String: UInt64] = [:]

    mutating func executed(_ command: LeaseCommand, _ result: LeaseResult, at time: UInt64) throws {
        switch (command, result) {
        case (.acquire(let key, let holder, _, let ttl), .granted(let token, _)):
            if let present = held[key], present.until > time, present.holder != holder {
                throw Violation(
                    "\(key) is granted to \(holder) at \(time) while \(present.holder) holds it until \(present.until)")
            }
            if let newest = newestGranted[key], token <= newest, held[key]?.holder != holder {
                throw Violation("\(key): token \(token) after \(newest)")
            }
            newestGranted[key] = token
            held[key] = Held(holder: holder, token: token, ttl: ttl, until: time + ttl)
        case (.renew(let key, let token), .renewed):
            guard let present = held[key], present.token == token, present.until > time else {
                throw Violation("\(key): a renewal with \(token) was granted, but it is not held")
            }
            held[key]?.until = time + present.ttl
        case (.release(let key, let token), .released):
            guard let present = held[key], present.token == token else {
                throw Violation("\(key): \(token) was released, but it is not held")
            }
            held[key] = nil
        default: break
        }
    }

    /// A client hears that it leads, and may rely on it until `until` by its own clock.
    mutating func granted(_ key: String, token: UInt64, to client: Int, until: MonotonicTime, now: MonotonicTime) throws
    {
        if let newest = newest[key], token <= newest,
            !(beliefs[key] ?? []).contains(where: { $0.client == client && $0.token == token })
        {
            // An older grant whose answer was late is no lie, as long as nobody relies on it.
            guard until <= now else {
                throw Violation("\(key): token \(token) is granted and in force after \(newest)")
            }
        }
        for other in beliefs[key] ?? [] where other.client != client && other.until > now && until > now {
            throw Violation(
                "\(key): clients \(other.client) (\(other.token)) and \(client) (\(token)) both lead at \(now)")
        }
        beliefs[key, default: []].removeAll { $0.client == client || $0.until <= now }
        beliefs[key, default: []].append(Belief(client: client, token: token, until: until))
        newest[key] = max(newest[key] ?? 0, token)
    }

    mutating func renewed(_ key: String, client: Int, until: MonotonicTime) {
        guard let i = beliefs[key]?.firstIndex(where: { $0.client == client }) else { return }
        let known = beliefs[key]?[i].until ?? until
        beliefs[key]?[i].until = max(known, until)
    }

    /// A leader's clock may have jumped: leases may end so much earlier.
    mutating func clockJumped(by span: TimeSpan) {
        for key in beliefs.keys {
            for i in beliefs[key]?.indices ?? 0..<0 {
                if let until = beliefs[key]?[i].until { beliefs[key]?[i].until = until - span }
            }
        }
    }

    mutating func gaveUp(_ key: String, client: Int) { beliefs[key]?.removeAll { $0.client == client } }
}
