// The node's recent events, for `coterie events` and the console: a bounded ring, each with an index to resume from.
import Glibc
import Model
import NodeCore
import Wire

/// The last ``limit`` events of this node.
struct EventLog {
    static let limit = 4_096

    private(set) var events: [(index: UInt64, document: JSONValue)] = []
    private var nextIndex: UInt64 = 1
    private let node: String

    init(node: String) { self.node = node }

    mutating func append(_ event: NodeEvent, now: MonotonicTime) -> (index: UInt64, document: JSONValue) {
        let document: JSONValue = [
            "index": JSONValue(nextIndex), "time": .string(wallTime()), "node": .string(node),
            "monotonicNanoseconds": JSONValue(now.nanoseconds), "kind": .string(event.kind), "subject": event.subject,
        ]
        let item = (nextIndex, document)
        nextIndex += 1
        events.append(item)
        // Trimmed in blocks: removing the first of an array moves all others.
        if events.count >= EventLog.limit + 512 { events.removeFirst(512) }
        return item
    }

    func after(_ index: UInt64) -> [(index: UInt64, document: JSONValue)] {
        events.filter { $0.index > index }
    }
}

/// The wall clock as RFC 3339 in UTC with milliseconds.
func wallTime() -> String {
    var clock = timespec()
    clock_gettime(CLOCK_REALTIME, &clock)
    var parts = tm()
    gmtime_r(&clock.tv_sec, &parts)
    func two(_ value: Int32) -> String { value < 10 ? "0\(value)" : "\(value)" }
    let milliseconds = clock.tv_nsec / 1_000_000
    let fraction = String(String(1_000 + milliseconds).dropFirst())
    return
        "\(1900 + parts.tm_year)-\(two(parts.tm_mon + 1))-\(two(parts.tm_mday))T\(two(parts.tm_hour)):\(two(parts.tm_min)):\(two(parts.tm_sec)).\(fraction)Z"
}
