// Cuts a stream of records (lines) into shards. It keeps no bytes, only positions: the driver spools the input and reads a
// shard from there, so that neither a huge line nor a huge shard needs memory here.
import Model

/// One shard as a range of the input, in bytes from its beginning.
public struct ShardRange: Hashable, Sendable {
    public var start: UInt64
    public var end: UInt64

    public init(_ start: UInt64, _ end: UInt64) {
        self.start = start
        self.end = end
    }

    public var count: UInt64 { end - start }
}

/// An incremental sharder: bytes in, ranges out, in order and without gaps but for the line feeds that
/// ``ScatterGatherSpec/Sharder/arguments`` leaves out. A record ends with its line feed; the last one may lack it. Bytes are
/// never changed (a carriage return belongs to its line).
public struct Sharder: Sendable {
    private let kind: ScatterGatherSpec.Sharder
    /// Bytes seen.
    public private(set) var position: UInt64 = 0
    /// Shards put out.
    public private(set) var shardCount = 0
    private var shardStart: UInt64 = 0
    private var recordStart: UInt64 = 0
    private var lines = 0
    private var boundaries: RecordBoundaries
    private var isFinished = false

    /// - Parameter kind: its number must be at least 1; less is taken as 1.
    public init(_ kind: ScatterGatherSpec.Sharder) {
        self.kind = kind
        if case .shards(let count) = kind {
            boundaries = RecordBoundaries(limit: max(1 << 16, min(count, ScatterGatherSpec.shardLimit) * 8))
        } else {
            boundaries = RecordBoundaries(limit: 0)
        }
    }

    /// True if the sharder reads input at all.
    public static func readsInput(_ kind: ScatterGatherSpec.Sharder) -> Bool {
        if case .index = kind { false } else { true }
    }

    /// Takes the next bytes; `emit` gets each shard that is complete now.
    public mutating func feed(_ bytes: UnsafeRawBufferPointer, emit: (ShardRange) -> Void) {
        let base = position
        position += UInt64(bytes.count)
        switch kind {
        case .index: return
        case .lines(let count):
            forEachLineFeed(bytes) { offset in
                lines += 1
                if lines >= count { cut(at: base + UInt64(offset) + 1, emit) }
            }
        case .arguments:
            forEachLineFeed(bytes) { offset in
                let end = base + UInt64(offset)
                put(ShardRange(shardStart, end), emit)
                shardStart = end + 1
            }
        case .bytes(let limit):
            forEachLineFeed(bytes) { offset in takeRecord(until: base + UInt64(offset) + 1, limit: limit, emit) }
        case .shards:
            forEachLineFeed(bytes) { offset in boundaries.add(base + UInt64(offset) + 1) }
        }
    }

    public mutating func feed(_ bytes: some Collection<UInt8>, emit: (ShardRange) -> Void) {
        Array(bytes).withUnsafeBytes { feed($0, emit: emit) }
    }

    /// The input is over. Called again it does nothing.
    public mutating func finish(emit: (ShardRange) -> Void) {
        guard !isFinished else { return }
        isFinished = true
        switch kind {
        case .index(let count): for _ in 0..<max(1, count) { put(ShardRange(0, 0), emit) }
        case .lines: if position > shardStart { cut(at: position, emit) }
        case .arguments: if position > shardStart { put(ShardRange(shardStart, position), emit) }
        case .bytes(let limit):
            if position > recordStart { takeRecord(until: position, limit: limit, emit) }
            if position > shardStart { cut(at: position, emit) }
        case .shards(let count): divide(into: max(1, count), emit)
        }
    }

    /// A record that does not fit into the shard begins the next one; one larger than the limit is a shard of its own.
    private mutating func takeRecord(until end: UInt64, limit: UInt64, _ emit: (ShardRange) -> Void) {
        if end - shardStart > limit && recordStart > shardStart { cut(at: recordStart, emit) }
        recordStart = end
        if end - shardStart >= limit { cut(at: end, emit) }
    }

    private mutating func divide(into count: Int, _ emit: (ShardRange) -> Void) {
        var start: UInt64 = 0
        for k in 1..<max(count, 1) {
            // k·total/count without overflow.
            let (high, low) = position.multipliedFullWidth(by: UInt64(k))
            let target = UInt64(count).dividingFullWidth((high, low)).quotient
            let end = max(start, boundaries.nearest(to: target, end: position))
            put(ShardRange(start, end), emit)
            start = end
        }
        put(ShardRange(start, position), emit)
    }

    private mutating func cut(at end: UInt64, _ emit: (ShardRange) -> Void) {
        put(ShardRange(shardStart, end), emit)
        shardStart = end
        recordStart = max(recordStart, end)
        lines = 0
    }

    private mutating func put(_ range: ShardRange, _ emit: (ShardRange) -> Void) {
        shardCount += 1
        emit(range)
    }
}

/// Where records end, thinned out so that at most `limit` places are kept: their spacing doubles when there are too many.
struct RecordBoundaries: Sendable {
    private let limit: Int
    private var places: [UInt64] = []
    private var spacing: UInt64 = 1

    init(limit: Int) { self.limit = limit }

    /// Ascending.
    mutating func add(_ place: UInt64) {
        if let last = places.last, place - last < spacing { return }
        places.append(place)
        while places.count > limit {
            spacing *= 2
            var kept: [UInt64] = []
            kept.reserveCapacity(places.count / 2 + 1)
            for place in places where kept.last.map({ place - $0 >= spacing }) ?? true { kept.append(place) }
            places = kept
        }
    }

    /// The kept place, or one of the ends of the input, that is nearest to `target`; the earlier one of two.
    func nearest(to target: UInt64, end: UInt64) -> UInt64 {
        var low = 0
        var high = places.count
        while low < high {
            let middle = (low + high) / 2
            if places[middle] < target { low = middle + 1 } else { high = middle }
        }
        let after = low < places.count ? places[low] : end
        let before = low > 0 ? places[low - 1] : 0
        return target - before <= after - target ? before : after
    }
}

private func forEachLineFeed(_ bytes: UnsafeRawBufferPointer, _ body: (Int) -> Void) {
    for offset in bytes.indices where bytes[offset] == 10 { body(offset) }
}
