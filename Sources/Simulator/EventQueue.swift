// What will happen in a simulated world, by time; of equal times what was scheduled first. Events stay where they are put; only
// small keys move in the heap.
import Model

struct EventQueue<Event> {
    private struct Key {
        var time: MonotonicTime
        var order: UInt64
        var slot: Int
    }

    private var heap: [Key] = []
    private var slots: [Event?] = []
    private var free: [Int] = []
    private var order: UInt64 = 0

    var isEmpty: Bool { heap.isEmpty }

    mutating func push(_ event: Event, at time: MonotonicTime) {
        let slot: Int
        if let unused = free.popLast() {
            slot = unused
            slots[slot] = event
        } else {
            slot = slots.count
            slots.append(event)
        }
        order += 1
        let key = Key(time: time, order: order, slot: slot)
        heap.append(key)
        var child = heap.count - 1
        while child > 0 {
            let parent = (child - 1) / 2
            guard isBefore(key, heap[parent]) else { break }
            heap[child] = heap[parent]
            child = parent
        }
        heap[child] = key
    }

    mutating func pop() -> (time: MonotonicTime, event: Event)? {
        guard let first = heap.first, let last = heap.popLast() else { return nil }
        if !heap.isEmpty {
            var parent = 0
            while true {
                var child = 2 * parent + 1
                guard child < heap.count else { break }
                if child + 1 < heap.count, isBefore(heap[child + 1], heap[child]) { child += 1 }
                guard isBefore(heap[child], last) else { break }
                heap[parent] = heap[child]
                parent = child
            }
            heap[parent] = last
        }
        guard let event = slots[first.slot].take() else { preconditionFailure("a key without its event") }
        free.append(first.slot)
        return (first.time, event)
    }

    private func isBefore(_ a: Key, _ b: Key) -> Bool {
        a.time == b.time ? a.order < b.order : a.time < b.time
    }
}
