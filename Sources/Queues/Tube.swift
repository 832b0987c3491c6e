// One tube of the machine: its heaps of jobs, its counters, its keys.
import Model

struct Tube: Sendable {
    let name: String
    var settings = TubeSettings()
    var ready = JobHeap<ByPriority>()
    var delayed = JobHeap<ByDeadline>()
    var buried = JobHeap<ByDeadline>()
    var reserved = 0
    /// Ready jobs with a priority below 1,024.
    var urgent = 0
    /// Bytes of all bodies.
    var bytes: UInt64 = 0
    /// Log time; 0: not paused.
    var pausedUntil: UInt64 = 0
    var pauseMilliseconds: UInt64 = 0
    var totalJobs: UInt64 = 0
    var deletes: UInt64 = 0
    var pauses: UInt64 = 0
    /// Keys that a put would find taken.
    var keys: [String: TakenKey] = [:]
    /// 0 while the tube exists; else it is only remembered for its counters, and this orders the forgetting.
    var vanished: UInt64 = 0
    /// In the machine's list of tubes in which something became reservable.
    var isReadied = false

    /// The largest job that is taken whatever else the tube holds; nil if the tube has limits of jobs or bytes.
    var plainJobSize: UInt64? { settings.maxJobs > 0 || settings.maxBytes > 0 ? nil : settings.jobSize }

    struct TakenKey: Sendable, Hashable {
        var id: UInt64
        /// End of the dedupe window, in log time, once the job is gone; nil while it exists.
        var until: UInt64?
    }

    static let urgentBelow: UInt32 = 1_024

    init(name: String) { self.name = name }

    var jobs: Int { ready.count + delayed.count + buried.count + reserved }

    /// Whether anything but counters would be lost with it.
    var isInUse: Bool { jobs > 0 || pausedUntil != 0 || !keys.isEmpty || !settings.isDefault }
}

/// A binary heap of values that are only ever taken from the top.
struct MinimumHeap<Element: Comparable & Sendable>: Sendable {
    private(set) var items: [Element] = []

    var first: Element? { items.first }

    mutating func insert(_ item: Element) {
        items.append(item)
        var child = items.count - 1
        while child > 0 {
            let parent = (child - 1) / 2
            guard items[child] < items[parent] else { break }
            items.swapAt(child, parent)
            child = parent
        }
    }

    mutating func removeFirst() -> Element? {
        guard let top = items.first, let last = items.popLast() else { return nil }
        guard !items.isEmpty else { return top }
        items[0] = last
        var parent = 0
        while true {
            var child = 2 * parent + 1
            guard child < items.count else { break }
            if child + 1 < items.count, items[child + 1] < items[child] { child += 1 }
            guard items[child] < items[parent] else { break }
            items.swapAt(child, parent)
            parent = child
        }
        return top
    }
}
