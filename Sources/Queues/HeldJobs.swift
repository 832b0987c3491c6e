// What a connection of the beanstalkd protocol has reserved.
import Model

/// The jobs that a connection has reserved: their leases, and the ends of these by the session's own clock.
struct HeldJobs: Sendable {
    private struct Held: Sendable {
        var lease: UInt64
        var end: MonotonicTime
        var ttr: TimeSpan
    }

    private struct End: Sendable, Comparable {
        var at: MonotonicTime
        var id: UInt64
        static func < (a: Self, b: Self) -> Bool { (a.at, a.id) < (b.at, b.id) }
    }

    private var jobs: [UInt64: Held] = [:]
    /// Ends to come; an entry counts only while its job still has this end.
    private var ends = MinimumHeap<End>()
    /// Ends that have passed, in order: the jobs are forgotten a while later.
    private var lapsed: [End] = []

    var isEmpty: Bool { jobs.isEmpty }

    /// The lease of a job; only nil can be set.
    subscript(id: UInt64) -> UInt64? {
        get { jobs[id]?.lease }
        set { if newValue == nil { jobs[id] = nil } }
    }

    mutating func add(_ job: ReservedJob, now: MonotonicTime) {
        let ttr = TimeSpan.milliseconds(Int64(clamping: job.ttrMilliseconds))
        jobs[job.id] = Held(lease: job.lease, end: now + ttr, ttr: ttr)
        insertEnd(End(at: now + ttr, id: job.id))
    }

    mutating func touch(_ id: UInt64, now: MonotonicTime) {
        guard let job = jobs[id] else { return }
        jobs[id]?.end = now + job.ttr
        insertEnd(End(at: now + job.ttr, id: id))
    }

    private mutating func insertEnd(_ end: End) {
        ends.insert(end)
        if ends.items.count > 2 * jobs.count + 64 {
            var live = MinimumHeap<End>()
            for item in ends.items where jobs[item.id]?.end == item.at { live.insert(item) }
            ends = live
        }
    }

    /// Drops what no longer counts. Called with every tick, so that the top of the heap is what it says.
    mutating func forget(now: MonotonicTime) {
        while let end = ends.first {
            let isCurrent = jobs[end.id]?.end == end.at
            if isCurrent, end.at > now { break }
            _ = ends.removeFirst()
            if isCurrent { lapsed.append(end) }
        }
        var gone = 0
        while gone < lapsed.count, lapsed[gone].at + BeanstalkSession.afterlife <= now {
            let end = lapsed[gone]
            if jobs[end.id]?.end == end.at { jobs[end.id] = nil }
            gone += 1
        }
        if gone > 0 { lapsed.removeFirst(gone) }
    }

    /// The next end of a lease after now.
    func nextEnd(now: MonotonicTime) -> MonotonicTime? {
        guard let top = ends.first else { return nil }
        if jobs[top.id]?.end == top.at { return top.at > now ? top.at : nil }
        // The top was deleted or touched since the last tick.
        return ends.items.filter { jobs[$0.id]?.end == $0.at && $0.at > now }.map(\.at).min()
    }
}
