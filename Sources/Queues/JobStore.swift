// Where jobs lie in memory: slots in pages, and heaps of slots. The state of the machine holds millions of jobs, so a job is one
// small record (88 bytes beside its body), and what only few jobs have (a lease, a key) lies beside the store.

enum JobState: UInt8, Sendable {
    case ready, reserved, delayed, buried

    var name: String {
        switch self {
        case .ready: "ready"
        case .reserved: "reserved"
        case .delayed: "delayed"
        case .buried: "buried"
        }
    }
}

struct Job: Sendable {
    var body: [UInt8] = []
    var id: UInt64 = 0
    /// Log time of the put.
    var created: UInt64 = 0
    /// Log time at which the lease (reserved) or the delay ends; when buried, the number of the burial, which orders them.
    var deadline: UInt64 = 0
    var delay: UInt64 = 0
    var ttr: UInt64 = 0
    var priority: UInt32 = 0
    /// Index into the machine's tube table.
    var tube: UInt32 = 0
    var reserves: UInt32 = 0
    var timeouts: UInt32 = 0
    var releases: UInt32 = 0
    var buries: UInt32 = 0
    var kicks: UInt32 = 0
    /// Position in the tube's heap for the job's state.
    var heapIndex: UInt32 = 0
    /// Position in the machine's heap of deadlines.
    var timerIndex: UInt32 = 0
    var state: JobState = .ready
    var hasKey = false
}

/// Jobs by slot and by id. Slots are reused; pages never move, so that growth copies nothing.
struct JobStore: Sendable {
    typealias Slot = UInt32
    private static let pageBits: UInt32 = 8
    private static let pageMask: UInt32 = (1 << pageBits) - 1

    private var pages: [[Job]] = []
    private var free: [Slot] = []
    private(set) var slots: [UInt64: Slot] = [:]
    private var end: Slot = 0

    var count: Int { slots.count }

    subscript(slot: Slot) -> Job {
        _read { yield pages[Int(slot >> JobStore.pageBits)][Int(slot & JobStore.pageMask)] }
        _modify { yield &pages[Int(slot >> JobStore.pageBits)][Int(slot & JobStore.pageMask)] }
    }

    mutating func insert(_ job: Job) -> Slot {
        let slot: Slot
        if let last = free.popLast() {
            slot = last
        } else {
            slot = end
            end += 1
            if slot & JobStore.pageMask == 0 {
                pages.append(Array(repeating: Job(), count: 1 << Int(JobStore.pageBits)))
            }
        }
        self[slot] = job
        slots[job.id] = slot
        return slot
    }

    mutating func remove(_ slot: Slot) {
        slots[self[slot].id] = nil
        self[slot].body = []
        free.append(slot)
        // An empty queue gives its memory back.
        if slots.isEmpty { self = JobStore() }
    }
}

/// How a heap orders jobs, and where it notes a job's position. Orders are total, so that what a heap yields never depends on the
/// history of its array.
protocol JobOrder: Sendable {
    static func precedes(_ a: JobStore.Slot, _ b: JobStore.Slot, in jobs: borrowing JobStore) -> Bool
    static func place(_ slot: JobStore.Slot, at position: UInt32, in jobs: inout JobStore)
    static func position(of slot: JobStore.Slot, in jobs: borrowing JobStore) -> UInt32
}

/// Ready jobs: (priority, id).
enum ByPriority: JobOrder {
    static func precedes(_ a: JobStore.Slot, _ b: JobStore.Slot, in jobs: borrowing JobStore) -> Bool {
        let (x, y) = (jobs[a].priority, jobs[b].priority)
        return x != y ? x < y : jobs[a].id < jobs[b].id
    }
    static func place(_ slot: JobStore.Slot, at position: UInt32, in jobs: inout JobStore) {
        jobs[slot].heapIndex = position
    }
    static func position(of slot: JobStore.Slot, in jobs: borrowing JobStore) -> UInt32 { jobs[slot].heapIndex }
}

/// Delayed and buried jobs of a tube: (end of delay or number of burial, id).
enum ByDeadline: JobOrder {
    static func precedes(_ a: JobStore.Slot, _ b: JobStore.Slot, in jobs: borrowing JobStore) -> Bool {
        let (x, y) = (jobs[a].deadline, jobs[b].deadline)
        return x != y ? x < y : jobs[a].id < jobs[b].id
    }
    static func place(_ slot: JobStore.Slot, at position: UInt32, in jobs: inout JobStore) {
        jobs[slot].heapIndex = position
    }
    static func position(of slot: JobStore.Slot, in jobs: borrowing JobStore) -> UInt32 { jobs[slot].heapIndex }
}

/// All reserved and delayed jobs: (deadline, id).
enum ByTimer: JobOrder {
    static func precedes(_ a: JobStore.Slot, _ b: JobStore.Slot, in jobs: borrowing JobStore) -> Bool {
        ByDeadline.precedes(a, b, in: jobs)
    }
    static func place(_ slot: JobStore.Slot, at position: UInt32, in jobs: inout JobStore) {
        jobs[slot].timerIndex = position
    }
    static func position(of slot: JobStore.Slot, in jobs: borrowing JobStore) -> UInt32 { jobs[slot].timerIndex }
}

/// A binary heap of slots that can remove any job in O(log n), since each job knows its position.
struct JobHeap<Order: JobOrder>: Sendable {
    private(set) var slots: [JobStore.Slot] = []

    var isEmpty: Bool { slots.isEmpty }
    var count: Int { slots.count }
    var first: JobStore.Slot? { slots.first }

    mutating func insert(_ slot: JobStore.Slot, in jobs: inout JobStore) {
        slots.append(slot)
        up(slots.count - 1, in: &jobs)
    }

    mutating func remove(_ slot: JobStore.Slot, in jobs: inout JobStore) {
        let position = Int(Order.position(of: slot, in: jobs))
        let last = slots.removeLast()
        if position < slots.count {
            slots[position] = last
            Order.place(last, at: UInt32(position), in: &jobs)
            up(position, in: &jobs)
            down(Int(Order.position(of: last, in: jobs)), in: &jobs)
        }
        if slots.capacity > 1_024, slots.count < slots.capacity / 8 { slots = Array(slots) }
    }

    /// The key of `slot` has changed.
    mutating func update(_ slot: JobStore.Slot, in jobs: inout JobStore) {
        up(Int(Order.position(of: slot, in: jobs)), in: &jobs)
        down(Int(Order.position(of: slot, in: jobs)), in: &jobs)
    }

    private mutating func up(_ start: Int, in jobs: inout JobStore) {
        var child = start
        let slot = slots[child]
        while child > 0 {
            let parent = (child - 1) / 2
            guard Order.precedes(slot, slots[parent], in: jobs) else { break }
            slots[child] = slots[parent]
            Order.place(slots[child], at: UInt32(child), in: &jobs)
            child = parent
        }
        slots[child] = slot
        Order.place(slot, at: UInt32(child), in: &jobs)
    }

    private mutating func down(_ start: Int, in jobs: inout JobStore) {
        var parent = start
        let slot = slots[parent]
        while true {
            var child = 2 * parent + 1
            guard child < slots.count else { break }
            if child + 1 < slots.count, Order.precedes(slots[child + 1], slots[child], in: jobs) { child += 1 }
            guard Order.precedes(slots[child], slot, in: jobs) else { break }
            slots[parent] = slots[child]
            Order.place(slots[parent], at: UInt32(parent), in: &jobs)
            parent = child
        }
        slots[parent] = slot
        Order.place(slot, at: UInt32(parent), in: &jobs)
    }
}
