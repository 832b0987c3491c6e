/// A queue in one array: append at the back, take from the front, both in constant time on average. Consumed room is given
/// back when it is the larger half.
struct FIFO<Element> {
    private var items: [Element] = []
    private var start = 0

    var count: Int { items.count - start }
    var isEmpty: Bool { items.count == start }
    var first: Element? { start < items.count ? items[start] : nil }

    /// By distance from the front.
    subscript(offset: Int) -> Element {
        get { items[start + offset] }
        _modify { yield &items[start + offset] }
    }

    mutating func append(_ element: Element) { items.append(element) }

    @discardableResult
    mutating func popFirst() -> Element? {
        guard start < items.count else { return nil }
        let element = items[start]
        start += 1
        if start == items.count {
            items.removeAll(keepingCapacity: items.capacity <= 4_096)
            start = 0
        } else if start >= 64 && start * 2 >= items.count {
            items.removeFirst(start)
            start = 0
        }
        return element
    }

    /// Everything, front first; empty afterwards.
    mutating func takeAll() -> [Element] {
        defer {
            items = []
            start = 0
        }
        return Array(items[start...])
    }
}
