// The queue's rules once more, as plainly as they can be said: every question is a scan over all jobs. Random operations must give the
// same answers here and in the machine.
import Model
import Queues

struct NaiveQueue {
    struct Job {
        var id: UInt64
        var new: NewJob
        var state: JobView.State
        var deadline: UInt64 = 0
        var burial: UInt64 = 0
        var created: UInt64
        var delay: UInt64
        var lease: UInt64?
        var holder: UInt64?
        var reserves: UInt32 = 0
        var timeouts: UInt32 = 0
        var releases: UInt32 = 0
        var buries: UInt32 = 0
        var kicks: UInt32 = 0
    }

    struct Tube {
        var settings = TubeSettings()
        var pausedUntil: UInt64 = 0
        var total = 0
        var deletes = 0
    }

    struct Window {
        var tube: String
        var key: String
        var id: UInt64
        var until: UInt64
    }

    var jobs: [Job] = []
    var tubes: [String: Tube] = [:]
    var windows: [Window] = []
    var now: UInt64 = 0
    var nextID: UInt64 = 1
    var burials: UInt64 = 0

    private func position(_ id: UInt64) -> Int? { jobs.firstIndex { $0.id == id } }

    func first(_ tube: String, _ state: JobView.State) -> Job? {
        jobs.filter { $0.new.tube == tube && $0.state == state }.min { a, b in
            switch state {
            case .ready, .reserved: (a.new.priority, a.id) < (b.new.priority, b.id)
            case .delayed: (a.deadline, a.id) < (b.deadline, b.id)
            case .buried: a.burial < b.burial
            }
        }
    }

    var nextDeadline: UInt64? {
        (jobs.filter { $0.state == .reserved || $0.state == .delayed }.map(\.deadline)
            + tubes.values.map(\.pausedUntil).filter { $0 > 0 } + windows.map(\.until)).min()
    }

    mutating func expire(_ time: UInt64) {
        now = max(now, time)
        while let due = jobs.filter({ ($0.state == .reserved || $0.state == .delayed) && $0.deadline <= now })
            .min(by: { ($0.deadline, $0.id) < ($1.deadline, $1.id) }), let at = position(due.id)
        {
            if due.state == .reserved {
                jobs[at].timeouts += 1
                _ = giveBack(at, delay: 0, isFailure: true)
            } else {
                jobs[at].state = .ready
            }
        }
        for name in tubes.keys where tubes[name]?.pausedUntil ?? 0 <= now { tubes[name]?.pausedUntil = 0 }
        windows.removeAll { $0.until <= now }
    }

    private mutating func giveBack(_ at: Int, delay: UInt64, isFailure: Bool) -> Bool {
        let settings = tubes[jobs[at].new.tube]?.settings ?? TubeSettings()
        jobs[at].lease = nil
        jobs[at].holder = nil
        if settings.maxAttempts > 0, jobs[at].reserves >= settings.maxAttempts {
            bury(at)
            return false
        }
        var wait = delay
        if wait == 0, isFailure, settings.backoffMilliseconds > 0 {
            wait = settings.backoffMilliseconds
            for _ in 1..<max(Int(jobs[at].timeouts + jobs[at].releases), 1) { wait = min(wait * 2, 3_600_000) }
        }
        jobs[at].state = wait > 0 ? .delayed : .ready
        jobs[at].deadline = now + wait
        return true
    }

    private mutating func bury(_ at: Int) {
        burials += 1
        jobs[at].state = .buried
        jobs[at].burial = burials
        jobs[at].buries += 1
        jobs[at].lease = nil
        jobs[at].holder = nil
    }

    private mutating func reserve(_ at: Int, _ holder: UInt64, _ lease: UInt64) -> ReservedJob {
        jobs[at].state = .reserved
        jobs[at].deadline = now + jobs[at].new.ttrMilliseconds
        jobs[at].reserves += 1
        jobs[at].lease = lease
        jobs[at].holder = holder
        let job = jobs[at]
        return ReservedJob(
            id: job.id, tube: job.new.tube, priority: job.new.priority, ttrMilliseconds: job.new.ttrMilliseconds,
            lease: lease,
            reserves: job.reserves, timeouts: job.timeouts, releases: job.releases, buries: job.buries,
            kicks: job.kicks,
            body: Array(job.new.body))
    }

    private mutating func delete(_ at: Int) {
        let job = jobs.remove(at: at)
        tubes[job.new.tube]?.deletes += 1
        let window = tubes[job.new.tube]?.settings.dedupeMilliseconds ?? 0
        if let key = job.new.key, job.created + window > now {
            windows.append(Window(tube: job.new.tube, key: key, id: job.id, until: job.created + window))
        }
    }

    private func held(_ id: UInt64, _ lease: UInt64?) -> (Int, QueueResult?) {
        guard let at = position(id) else { return (0, .notFound) }
        return jobs[at].lease == lease ? (at, nil) : (at, .leaseExpired)
    }

    private func exists(_ tube: String) -> Bool {
        guard let value = tubes[tube] else { return false }
        return jobs.contains { $0.new.tube == tube } || value.pausedUntil > 0 || !value.settings.isDefault
            || windows.contains { $0.tube == tube }
    }

    /// Refusals are answered by `refused(.failed, "")`: their texts are not compared.
    mutating func apply(_ command: QueueCommand, index: UInt64, now time: UInt64) -> QueueResult {
        expire(time)
        switch command {
        case .put(let new):
            var copy = self
            var inserted: [InsertedJob] = []
            for job in new {
                var job = job
                if job.ttrMilliseconds == 0 { job.ttrMilliseconds = 1_000 }
                let settings = copy.tubes[job.tube, default: Tube()].settings
                if job.body.count > settings.jobSize { return .refused(.failed, "") }
                if let key = job.key {
                    let known =
                        copy.jobs.first { $0.new.tube == job.tube && $0.new.key == key }?.id
                        ?? copy.windows.first { $0.tube == job.tube && $0.key == key }?.id
                    if let known {
                        inserted.append(InsertedJob(id: known, isDuplicate: true))
                        continue
                    }
                }
                let others = copy.jobs.filter { $0.new.tube == job.tube }
                if settings.maxJobs > 0, others.count + 1 > settings.maxJobs { return .refused(.failed, "") }
                if settings.maxBytes > 0, others.reduce(job.body.count, { $0 + $1.new.body.count }) > settings.maxBytes
                {
                    return .refused(.failed, "")
                }
                copy.tubes[job.tube, default: Tube()].total += 1
                copy.jobs.append(
                    Job(
                        id: copy.nextID, new: job, state: job.delayMilliseconds > 0 ? .delayed : .ready,
                        deadline: now + job.delayMilliseconds, created: now, delay: job.delayMilliseconds))
                inserted.append(InsertedJob(id: copy.nextID))
                copy.nextID += 1
            }
            self = copy
            return .inserted(inserted)
        case .reserve(let names, let holder, let count):
            var taken: [ReservedJob] = []
            while taken.count < count {
                let ready = Set(names).filter { tubes[$0]?.pausedUntil ?? 0 == 0 }.compactMap { first($0, .ready) }
                guard let next = ready.min(by: { ($0.new.priority, $0.id) < ($1.new.priority, $1.id) }),
                    let at = position(next.id)
                else { break }
                taken.append(reserve(at, holder, index << 16 | UInt64(taken.count)))
            }
            return .reserved(taken)
        case .reserveJob(let id, let holder):
            guard let at = position(id), jobs[at].state != .reserved else { return .notFound }
            return .reserved([reserve(at, holder, index << 16)])
        case .delete(let id, let lease):
            let (at, failure) = held(id, lease)
            if let failure { return failure }
            delete(at)
            return .done
        case .release(let id, let lease, let priority, let delay):
            let (at, failure) = held(id, lease)
            if let failure { return failure }
            jobs[at].releases += 1
            jobs[at].new.priority = priority
            jobs[at].delay = delay
            return giveBack(at, delay: delay, isFailure: true) ? .done : .buried
        case .bury(let id, let lease, let priority):
            let (at, failure) = held(id, lease)
            if let failure { return failure }
            jobs[at].new.priority = priority
            bury(at)
            return .done
        case .touch(let id, let lease):
            let (at, failure) = held(id, lease)
            if let failure { return failure }
            jobs[at].deadline = now + jobs[at].new.ttrMilliseconds
            return .done
        case .kick(let tube, let count):
            let state: JobView.State = first(tube, .buried) != nil ? .buried : .delayed
            var kicked = 0
            while kicked < count, let job = first(tube, state), let at = position(job.id) {
                jobs[at].state = .ready
                jobs[at].kicks += 1
                kicked += 1
            }
            return .kicked(kicked)
        case .kickJob(let id):
            guard let at = position(id), jobs[at].state == .buried || jobs[at].state == .delayed else {
                return .notFound
            }
            jobs[at].state = .ready
            jobs[at].kicks += 1
            return .done
        case .pause(let tube, let milliseconds, let create):
            guard exists(tube) || create else { return .notFound }
            tubes[tube, default: Tube()].pausedUntil = milliseconds == 0 ? 0 : now + milliseconds
            return .done
        case .purge(let tube):
            guard exists(tube) else { return .notFound }
            let doomed = jobs.filter { $0.new.tube == tube && $0.state != .reserved }
            for job in doomed { if let at = position(job.id) { delete(at) } }
            return .purged(doomed.count)
        case .setTube(let name, let settings):
            for (key, value) in settings {
                switch key {
                case "max-attempts": tubes[name, default: Tube()].settings.maxAttempts = UInt32(value) ?? 0
                case "max-jobs": tubes[name, default: Tube()].settings.maxJobs = UInt64(value) ?? 0
                case "max-bytes": tubes[name, default: Tube()].settings.maxBytes = UInt64(value) ?? 0
                case "backoff":
                    tubes[name, default: Tube()].settings.backoffMilliseconds = UInt64(value.dropLast(2)) ?? 0
                default: tubes[name, default: Tube()].settings.dedupeMilliseconds = UInt64(value.dropLast(2)) ?? 0
                }
            }
            return .done
        case .releaseHolder(let holder):
            for at in jobs.indices where jobs[at].holder == holder && holder != 0 {
                _ = giveBack(at, delay: 0, isFailure: false)
            }
            return .done
        }
    }
}
