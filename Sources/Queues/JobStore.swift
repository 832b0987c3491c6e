// Where jobs lie in memory: slots in pages, and heaps of slots. The state of the machine holds millions of jobs, so a job is one
// small record without references (96 bytes), its body lies in a ``BodyStore``, and what only few jobs have (a lease, a key) lies
// beside the store.
import Model

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
    var body = BodyStore.Place.empty
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
    private var index = JobIndex()
    private(set) var bodies = BodyStore()
    private var end: Slot = 0

    var count: Int { index.count }

    subscript(slot: Slot) -> Job {
        _read { yield pages[Int(slot >> JobStore.pageBits)][Int(slot & JobStore.pageMask)] }
        _modify { yield &pages[Int(slot >> JobStore.pageBits)][Int(slot & JobStore.pageMask)] }
    }

    func slot(of id: UInt64) -> Slot? { index[id] }

    /// Of all jobs, by id.
    func forEach<E>(_ visit: (Slot) throws(E) -> Void) throws(E) { try index.forEach(visit) }

    /// A part of memory that others use too: not to be kept.
    func body(of slot: Slot) -> ArraySlice<UInt8> { bodies[self[slot].body] }

    /// `payload`: the bytes that the body is a part of, if they are kept anyway; see ``BodyStore``.
    mutating func insert(_ job: Job, body: ArraySlice<UInt8>, of payload: [UInt8]? = nil) -> Slot {
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
        let (place, packing) = bodies.add(body, of: payload, id: job.id)
        self[slot] = job
        self[slot].body = place
        index.insert(slot, for: job.id)
        if let packing { pack(packing) }
        return slot
    }

    mutating func remove(_ slot: Slot) {
        let job = self[slot]
        index.remove(job.id)
        self[slot].body = .empty
        free.append(slot)
        // An empty queue gives its memory back.
        if index.count == 0 {
            self = JobStore()
        } else if let packing = bodies.remove(job.body) {
            pack(packing)
        }
    }

    private mutating func pack(_ block: UInt32) {
        var slots: [Slot] = []
        var places: [BodyStore.Place] = []
        var start: UInt32 = 0
        for id in bodies.ids(of: block) {
            guard let slot = index[id], self[slot].body.block == block else { continue }
            slots.append(slot)
            places.append(self[slot].body)
            self[slot].body.start = start
            start += self[slot].body.count
        }
        guard let first = slots.first, let last = slots.last else { return }
        bodies.pack(block, keeping: places, ids: self[first].id...self[last].id)
    }
}

/// The slots of jobs by id. Ids are given in order, so that neighbours share a page: most of what a hash table of jobs costs, in
/// bytes and in time, is saved, and the order of ids need not be made.
struct JobIndex: Sendable {
    private static let pageBits: UInt64 = 6
    private static let pageMask: UInt64 = (1 << pageBits) - 1
    private static let none = JobStore.Slot.max

    private struct Page: Sendable {
        var count = 0
        var slots: [JobStore.Slot]
    }

    private var numbers: [UInt64: Int] = [:]
    private var pages: [Page] = []
    private var free: [Int] = []
    /// The page that the last insertion went to.
    private var latest: (key: UInt64, number: Int)?
    private(set) var count = 0

    subscript(id: UInt64) -> JobStore.Slot? {
        guard let number = numbers[id >> JobIndex.pageBits] else { return nil }
        let slot = pages[number].slots[Int(id & JobIndex.pageMask)]
        return slot == JobIndex.none ? nil : slot
    }

    /// The id must be new.
    mutating func insert(_ slot: JobStore.Slot, for id: UInt64) {
        let key = id >> JobIndex.pageBits
        let number: Int
        if let latest, latest.key == key {
            number = latest.number
        } else {
            number = page(for: key)
            latest = (key, number)
        }
        pages[number].slots[Int(id & JobIndex.pageMask)] = slot
        pages[number].count += 1
        count += 1
    }

    private mutating func page(for key: UInt64) -> Int {
        if let number = numbers[key] { return number }
        let page = Page(slots: Array(repeating: JobIndex.none, count: 1 << Int(JobIndex.pageBits)))
        let number: Int
        if let last = free.popLast() {
            number = last
            pages[number] = page
        } else {
            number = pages.count
            pages.append(page)
        }
        numbers[key] = number
        return number
    }

    mutating func remove(_ id: UInt64) {
        let key = id >> JobIndex.pageBits
        let offset = Int(id & JobIndex.pageMask)
        guard let number = numbers[key], pages[number].slots[offset] != JobIndex.none else { return }
        count -= 1
        pages[number].count -= 1
        if pages[number].count > 0 {
            pages[number].slots[offset] = JobIndex.none
            return
        }
        numbers[key] = nil
        pages[number].slots = []
        free.append(number)
        if latest?.key == key { latest = nil }
    }

    /// By id.
    func forEach<E>(_ visit: (JobStore.Slot) throws(E) -> Void) throws(E) {
        for key in numbers.keys.sorted() {
            guard let number = numbers[key] else { continue }
            for slot in pages[number].slots where slot != JobIndex.none { try visit(slot) }
        }
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
