/// A binary heap of moments, earliest first; ties by token, so that order never depends on hashing.
struct DeadlineHeap: Sendable {
    struct Item: Sendable {
        var deadline: UInt64
        var key: String
        var token: UInt64

        func precedes(_ other: Item) -> Bool { (deadline, token) < (other.deadline, other.token) }
    }

    private var items: [Item] = []

    var first: Item? { items.first }
    var count: Int { items.count }

    mutating func push(_ item: Item) {
        items.append(item)
        var child = items.count - 1
        while child > 0 {
            let parent = (child - 1) / 2
            guard items[child].precedes(items[parent]) else { return }
            items.swapAt(child, parent)
            child = parent
        }
    }

    /// Does nothing if empty.
    mutating func removeFirst() {
        guard let last = items.popLast(), !items.isEmpty else { return }
        replaceFirst(last)
    }

    /// Does nothing if empty.
    mutating func replaceFirst(_ item: Item) {
        guard !items.isEmpty else { return }
        items[0] = item
        var parent = 0
        while true {
            var least = parent
            for child in [2 * parent + 1, 2 * parent + 2]
            where child < items.count && items[child].precedes(items[least]) {
                least = child
            }
            if least == parent { return }
            items.swapAt(parent, least)
            parent = least
        }
    }
}
