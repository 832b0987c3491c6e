// The replicated job queue: beanstalkd's rules as a deterministic state machine.
//
//      put                     reserve                delete
//     ─────▶ READY ────────────────────▶ RESERVED ──────────▶ gone
//              ▲  ▲   release, lease ends,  │ │ │
//              │  └─── or holder gone ──────┘ │ │ bury, or max-attempts reached
//     delay    │                              │ ▼
//     ends,    ├──────────── kick ─────────── BURIED
//     kick     │                              │
//           DELAYED ◀── release with delay ───┘
//
// Source: beanstalkd 1.12 and its protocol.txt. Differences are additions: a reservation is held by a lease token instead of a
// connection, a tube can limit attempts and sizes, and puts can carry a key. Time is the log's own: milliseconds that the leader
// stamps on entries, so that every replica expires the same jobs at the same entry. Apply is total: every command has an answer.
import Model
import Wire

public struct QueueMachine: Sendable {
    /// Tubes that are gone but whose counters are still remembered: a worker that empties a tube again and again would otherwise see
    /// its totals start from 0 each time. beanstalkd keeps them while a connection uses the tube, which replicas can not know.
    static let rememberedTubes = 1_024

    /// No clock of ours reaches it (in 146 million years), and sums of it and any limit do not overflow.
    static let latestTime: UInt64 = 1 << 62

    var store = JobStore()
    /// The slot and token of what is reserved.
    var leases: [JobStore.Slot: Lease] = [:]
    var keyOfJob: [JobStore.Slot: String] = [:]
    /// Ids reserved by each holder but 0.
    var holders: [UInt64: Set<UInt64>] = [:]
    var tubeTable: [Tube?] = []
    var freeTubes: [Int] = []
    var tubeIndex: [String: Int] = [:]
    /// The tube of the last put, which is often that of the next. It exists.
    var recentTube: (name: String, index: Int)?
    /// Ends of leases and delays.
    var timers = JobHeap<ByTimer>()
    /// Paused tubes by the end of their pause.
    var pauses: [PauseEnd] = []
    /// Ends of dedupe windows of jobs that are gone.
    var windows = MinimumHeap<WindowEnd>()
    /// Vanished tubes, oldest first; an entry counts if the tube still has its number.
    var vanishedTubes: [(number: UInt64, tube: Int)] = []
    var vanishedCount = 0
    var vanishNumber: UInt64 = 0
    var burialNumber: UInt64 = 0
    var readied: [Int] = []
    public internal(set) var nextID: UInt64 = 1
    /// Log time of the last entry; never goes back.
    public internal(set) var logTime: UInt64 = 0
    public internal(set) var totals = Totals()

    struct Lease: Sendable, Hashable {
        var token: UInt64
        var holder: UInt64
    }

    struct PauseEnd: Sendable, Comparable {
        var until: UInt64
        var name: String
        static func < (a: Self, b: Self) -> Bool { (a.until, a.name) < (b.until, b.name) }
    }

    struct WindowEnd: Sendable, Comparable {
        var until: UInt64
        var id: UInt64
        var tube: Int
        var key: String
        static func < (a: Self, b: Self) -> Bool { (a.until, a.id) < (b.until, b.id) }
    }

    /// Counts over all tubes since the cluster began; the commands are those that came through the log.
    public struct Totals: Sendable, Hashable {
        public var urgent: UInt64 = 0
        public var ready: UInt64 = 0
        public var reserved: UInt64 = 0
        public var delayed: UInt64 = 0
        public var buried: UInt64 = 0
        public var jobs: UInt64 = 0
        public var timeouts: UInt64 = 0
        public var puts: UInt64 = 0
        public var deletes: UInt64 = 0
        public var releases: UInt64 = 0
        public var buries: UInt64 = 0
        public var kicks: UInt64 = 0
        public var touches: UInt64 = 0
        public var pauses: UInt64 = 0
        public init() {}
    }

    public init() {}

    /// Applies one committed entry. `index` is the entry's, from which lease tokens are made; `now` is its log time in milliseconds.
    /// What is due by `now` expires first, so that an answer never depends on whether a tick came in time.
    ///
    /// `payload`: the bytes that the command was decoded from, if the caller keeps them anyway. Bodies of jobs then stay parts of
    /// them instead of copies.
    public mutating func apply(_ command: QueueCommand, index: UInt64, now: UInt64, payload: [UInt8]? = nil)
        -> QueueResult
    {
        expire(now: now)
        switch command {
        case .put(let jobs): return put(jobs, payload)
        case .reserve(let tubes, let holder, let count):
            return reserve(tubes: tubes, holder: holder, count: count, index: index)
        case .reserveJob(let id, let holder): return reserveJob(id, holder: holder, index: index)
        case .delete(let id, let lease): return delete(id, lease: lease)
        case .release(let id, let lease, let priority, let delay):
            return release(id, lease: lease, priority: priority, delay: min(delay, QueueLimits.milliseconds))
        case .bury(let id, let lease, let priority): return bury(id, lease: lease, priority: priority)
        case .touch(let id, let lease): return touch(id, lease: lease)
        case .kick(let tube, let count): return kick(tube, count: count)
        case .kickJob(let id): return kickJob(id)
        case .pause(let tube, let milliseconds, let create):
            return pause(tube, milliseconds: milliseconds, create: create)
        case .purge(let tube): return purge(tube)
        case .setTube(let name, let settings): return setTube(name, settings)
        case .releaseHolder(let holder): return releaseHolder(holder)
        }
    }

    // MARK: Commands

    private mutating func put(_ jobs: [NewJob], _ payload: [UInt8]?) -> QueueResult {
        totals.puts += UInt64(jobs.count)
        if let refusal = refusal(of: jobs) { return refusal }
        var inserted: [InsertedJob] = []
        inserted.reserveCapacity(jobs.count)
        for job in jobs {
            let tube: Int
            if let recentTube, recentTube.name == job.tube {
                tube = recentTube.index
            } else {
                tube = makeTube(job.tube)
                recentTube = (job.tube, tube)
            }
            if let key = job.key, let taken = tubeTable[tube]?.keys[key] {
                inserted.append(InsertedJob(id: taken.id, isDuplicate: true))
                continue
            }
            let id = nextID
            nextID += 1
            var record = Job()
            record.id = id
            record.created = logTime
            record.priority = job.priority
            record.delay = min(job.delayMilliseconds, QueueLimits.milliseconds)
            record.ttr = job.ttrMilliseconds == 0 ? 1_000 : min(job.ttrMilliseconds, QueueLimits.milliseconds)
            record.tube = UInt32(tube)
            record.hasKey = job.key != nil
            let slot = store.insert(record, body: job.body, of: payload)
            if let key = job.key {
                keyOfJob[slot] = key
                tubeTable[tube]?.keys[key] = Tube.TakenKey(id: id, until: nil)
            }
            tubeTable[tube]?.bytes += UInt64(job.body.count)
            tubeTable[tube]?.totalJobs += 1
            totals.jobs += 1
            if record.delay > 0 { enterDelayed(slot, for: record.delay) } else { enterReady(slot) }
            inserted.append(InsertedJob(id: id))
        }
        return .inserted(inserted)
    }

    /// Why a batch is not taken, or nil. Nothing has changed.
    private func refusal(of jobs: [NewJob]) -> QueueResult? {
        guard jobs.count <= QueueLimits.batch else {
            return .refused(.tooLarge, "a put has at most \(QueueLimits.batch) jobs")
        }
        // The usual put, of one job without limits, without the tables that a batch needs.
        if jobs.count == 1, let index = recentTube?.name == jobs[0].tube ? recentTube?.index : tubeIndex[jobs[0].tube],
            let limit = tubeTable[index]?.plainJobSize,
            UInt64(jobs[0].body.count) <= limit, jobs[0].key == nil
        {
            return nil
        }
        var added: [String: (jobs: UInt64, bytes: UInt64, keys: Set<String>)] = [:]
        for job in jobs {
            let tube = tubeIndex[job.tube].flatMap { tubeTable[$0] }
            if tube == nil, added[job.tube] == nil {
                guard QueueLimits.isValidTube(job.tube) else {
                    return .refused(.badInput, "\(job.tube) is not a tube's name")
                }
                guard tubeIndex.count + added.count < QueueLimits.tubes else {
                    return .refused(.busy, "too many tubes")
                }
            }
            let settings = tube?.settings ?? TubeSettings()
            guard job.body.count <= settings.jobSize else {
                return .refused(
                    .tooLarge,
                    "a job of \(job.body.count) bytes is over the limit of \(settings.jobSize) of tube \(job.tube)")
            }
            guard (job.key?.utf8.count ?? 0) <= Limits.nameBytes else {
                return .refused(.tooLarge, "a key has at most \(Limits.nameBytes) bytes")
            }
            guard settings.maxJobs > 0 || settings.maxBytes > 0 || tube == nil else { continue }
            if let key = job.key {
                if tube?.keys[key] != nil || added[job.tube]?.keys.contains(key) == true { continue }
                added[job.tube, default: (0, 0, [])].keys.insert(key)
            }
            added[job.tube, default: (0, 0, [])].jobs += 1
            added[job.tube, default: (0, 0, [])].bytes += UInt64(job.body.count)
            guard let tube, let sum = added[job.tube] else { continue }
            if settings.maxJobs > 0, UInt64(tube.jobs) + sum.jobs > settings.maxJobs {
                return .refused(.busy, "tube \(job.tube) holds its limit of \(settings.maxJobs) jobs")
            }
            if settings.maxBytes > 0, tube.bytes + sum.bytes > settings.maxBytes {
                return .refused(.busy, "tube \(job.tube) holds its limit of \(settings.maxBytes) bytes")
            }
        }
        return nil
    }

    private mutating func reserve(tubes names: [String], holder: UInt64, count: Int, index: UInt64) -> QueueResult {
        // Naming a tube twice is harmless, and since no two jobs compare equal the order of the tubes does not matter.
        var seen: Set<Int> = []
        var tubes: [Int] = []
        for name in names {
            guard let tube = tubeIndex[name], isReservable(tube), seen.insert(tube).inserted else { continue }
            tubes.append(tube)
        }
        var jobs: [ReservedJob] = []
        var bytes = 0
        while jobs.count < min(count, QueueLimits.reserveCount) {
            var best: JobStore.Slot?
            for tube in tubes {
                guard let slot = tubeTable[tube]?.ready.first else { continue }
                if let current = best, !ByPriority.precedes(slot, current, in: store) { continue }
                best = slot
            }
            guard let slot = best else { break }
            bytes += Int(store[slot].body.count)
            if !jobs.isEmpty, bytes > QueueLimits.reserveBytes { break }
            leave(slot)
            jobs.append(enterReserved(slot, holder: holder, token: index << 16 | UInt64(jobs.count)))
        }
        return .reserved(jobs)
    }

    private mutating func reserveJob(_ id: UInt64, holder: UInt64, index: UInt64) -> QueueResult {
        guard let slot = store.slot(of: id), store[slot].state != .reserved else { return .notFound }
        leave(slot)
        return .reserved([enterReserved(slot, holder: holder, token: index << 16)])
    }

    private mutating func delete(_ id: UInt64, lease: UInt64?) -> QueueResult {
        totals.deletes += 1
        guard let slot = store.slot(of: id) else { return .notFound }
        guard leases[slot]?.token == lease else { return .leaseExpired }
        let tube = Int(store[slot].tube)
        tubeTable[tube]?.deletes += 1
        remove(slot)
        vanishIfUnused(tube)
        return .done
    }

    private mutating func release(_ id: UInt64, lease: UInt64, priority: UInt32, delay: UInt64) -> QueueResult {
        totals.releases += 1
        switch reserved(id, under: lease) {
        case .failure(let result): return result
        case .slot(let slot):
            leave(slot)
            store[slot].releases &+= 1
            store[slot].priority = priority
            store[slot].delay = delay
            return giveBack(slot, delay: delay, isFailure: true) ? .done : .buried
        }
    }

    private mutating func bury(_ id: UInt64, lease: UInt64, priority: UInt32) -> QueueResult {
        totals.buries += 1
        switch reserved(id, under: lease) {
        case .failure(let result): return result
        case .slot(let slot):
            leave(slot)
            store[slot].priority = priority
            enterBuried(slot)
            return .done
        }
    }

    private mutating func touch(_ id: UInt64, lease: UInt64) -> QueueResult {
        totals.touches += 1
        switch reserved(id, under: lease) {
        case .failure(let result): return result
        case .slot(let slot):
            store[slot].deadline = logTime + store[slot].ttr
            timers.update(slot, in: &store)
            return .done
        }
    }

    private mutating func kick(_ name: String, count: Int) -> QueueResult {
        totals.kicks += 1
        guard let tube = tubeIndex[name] else { return .kicked(0) }
        let isBuried = tubeTable[tube]?.buried.isEmpty == false
        var kicked = 0
        while kicked < count, let slot = isBuried ? tubeTable[tube]?.buried.first : tubeTable[tube]?.delayed.first {
            kick(slot)
            kicked += 1
        }
        return .kicked(kicked)
    }

    private mutating func kickJob(_ id: UInt64) -> QueueResult {
        totals.kicks += 1
        guard let slot = store.slot(of: id) else { return .notFound }
        switch store[slot].state {
        case .buried, .delayed:
            kick(slot)
            return .done
        case .ready, .reserved: return .notFound
        }
    }

    private mutating func kick(_ slot: JobStore.Slot) {
        leave(slot)
        store[slot].kicks &+= 1
        enterReady(slot)
    }

    private mutating func pause(_ name: String, milliseconds: UInt64, create: Bool) -> QueueResult {
        totals.pauses += 1
        let exists = tubeIndex[name].flatMap { tubeTable[$0] }.map { $0.vanished == 0 } ?? false
        guard exists || create else { return .notFound }
        if !exists {
            guard QueueLimits.isValidTube(name) else { return .refused(.badInput, "\(name) is not a tube's name") }
            guard tubeIndex[name] != nil || tubeIndex.count < QueueLimits.tubes else {
                return .refused(.busy, "too many tubes")
            }
        }
        let tube = makeTube(name)
        tubeTable[tube]?.pauses += 1
        let length = min(milliseconds, QueueLimits.milliseconds)
        setPause(of: tube, name: name, until: length == 0 ? 0 : logTime + length, milliseconds: length)
        if length == 0 { noteReadied(tube) }
        vanishIfUnused(tube)
        return .done
    }

    private mutating func purge(_ name: String) -> QueueResult {
        guard let tube = tubeIndex[name], tubeTable[tube]?.vanished == 0 else { return .notFound }
        var purged = 0
        while let slot = tubeTable[tube]?.ready.first ?? tubeTable[tube]?.delayed.first ?? tubeTable[tube]?.buried.first
        {
            remove(slot)
            purged += 1
        }
        tubeTable[tube]?.deletes += UInt64(purged)
        vanishIfUnused(tube)
        return .purged(purged)
    }

    private mutating func setTube(_ name: String, _ changes: [String: String]) -> QueueResult {
        guard QueueLimits.isValidTube(name) else { return .refused(.badInput, "\(name) is not a tube's name") }
        guard tubeIndex[name] != nil || tubeIndex.count < QueueLimits.tubes else {
            return .refused(.busy, "too many tubes")
        }
        var settings = tubeIndex[name].flatMap { tubeTable[$0]?.settings } ?? TubeSettings()
        for (key, value) in changes.sorted(by: { $0.key < $1.key }) {
            do { try settings.set(key, to: value) } catch { return .refused(error.code, error.description) }
        }
        let tube = makeTube(name)
        tubeTable[tube]?.settings = settings
        vanishIfUnused(tube)
        return .done
    }

    private mutating func releaseHolder(_ holder: UInt64) -> QueueResult {
        for id in (holders[holder] ?? []).sorted() {
            guard let slot = store.slot(of: id) else { continue }
            leave(slot)
            _ = giveBack(slot, delay: 0, isFailure: false)
        }
        return .done
    }
}
