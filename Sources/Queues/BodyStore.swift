// The bodies of jobs. The log has them already: the body of a job that came by a log entry is a part of that entry's payload, not
// a copy of it. Jobs and log are the same bytes as long as both want them, and no memory is taken for each job alone.
import Model

/// Bodies as parts of blocks: payloads of log entries, and blocks in which other bodies are gathered.
///
/// One small job could keep a large payload for ever. So a block is packed, that is, replaced by a copy of what is still in use,
/// when that would take less than half as much; whoever owns the jobs is told to do so by ``remove(_:)`` and ``add(_:of:id:)``.
struct BodyStore: Sendable {
    /// Where a body lies.
    struct Place: Sendable, Hashable {
        var block: UInt32
        var start: UInt32
        var count: UInt32

        static let empty = Place(block: .max, start: 0, count: 0)
    }

    /// What an array costs beside its bytes: what a job's body would cost more if it lay alone.
    private static let arrayBytes = 32
    /// Bodies up to the limit are gathered in blocks of this size.
    private static let gatheredBytes = 64 << 10
    private static let gatheredLimit = 8 << 10

    private struct Block: Sendable {
        var bytes: [UInt8]
        /// In use.
        var jobs = 0
        var usedBytes = 0
        /// No job outside has its body here.
        var ids: ClosedRange<UInt64>

        var isWasteful: Bool { 2 * (usedBytes + jobs * arrayBytes) < bytes.count }
    }

    private var blocks: [Block] = []
    private var free: [UInt32] = []
    /// The payload that bodies are being taken from: it is not packed before the next one comes.
    private var current: UInt32?
    /// The block in which bodies without a payload are gathered.
    private var gathering: UInt32?

    /// Blocks in use, and the bytes that they hold.
    var blockCount: Int { blocks.count - free.count }
    var heldBytes: Int { blocks.reduce(0) { $0 + $1.bytes.count } }

    subscript(place: Place) -> ArraySlice<UInt8> {
        guard place.count > 0 else { return [] }
        let start = Int(place.start)
        return blocks[Int(place.block)].bytes[start..<start + Int(place.count)]
    }

    /// Takes the body of a new job. If it is a part of `payload`, the whole payload is kept instead of a copy. `packing`: a block
    /// that is now to be packed.
    mutating func add(_ body: ArraySlice<UInt8>, of payload: [UInt8]?, id: UInt64) -> (place: Place, packing: UInt32?) {
        guard !body.isEmpty else { return (.empty, nil) }
        if let payload, BodyStore.isPart(body, of: payload) {
            var packing: UInt32?
            let block: UInt32
            if let current, BodyStore.isSame(blocks[Int(current)].bytes, payload) {
                block = current
            } else {
                if let current, blocks[Int(current)].isWasteful { packing = current }
                block = insert(Block(bytes: payload, ids: id...id))
                current = block
            }
            return (note(body.count, at: body.startIndex, in: block, id: id), packing)
        }
        if body.count > BodyStore.gatheredLimit {
            return (note(body.count, at: 0, in: insert(Block(bytes: Array(body), ids: id...id)), id: id), nil)
        }
        let block: UInt32
        if let gathering, blocks[Int(gathering)].bytes.count + body.count <= BodyStore.gatheredBytes {
            block = gathering
        } else {
            var bytes: [UInt8] = []
            bytes.reserveCapacity(BodyStore.gatheredBytes)
            block = insert(Block(bytes: bytes, ids: id...id))
            gathering = block
        }
        let start = blocks[Int(block)].bytes.count
        blocks[Int(block)].bytes.append(contentsOf: body)
        return (note(body.count, at: start, in: block, id: id), nil)
    }

    private mutating func note(_ count: Int, at start: Int, in block: UInt32, id: UInt64) -> Place {
        let i = Int(block)
        blocks[i].jobs += 1
        blocks[i].usedBytes += count
        let ids = blocks[i].ids
        if !ids.contains(id) { blocks[i].ids = min(ids.lowerBound, id)...max(ids.upperBound, id) }
        return Place(block: block, start: UInt32(start), count: UInt32(count))
    }

    private mutating func insert(_ block: Block) -> UInt32 {
        if let index = free.popLast() {
            blocks[Int(index)] = block
            return index
        }
        blocks.append(block)
        return UInt32(blocks.count - 1)
    }

    /// The body is not needed any more. Returns a block that is now to be packed.
    mutating func remove(_ place: Place) -> UInt32? {
        guard place.count > 0 else { return nil }
        let i = Int(place.block)
        blocks[i].jobs -= 1
        blocks[i].usedBytes -= Int(place.count)
        if blocks[i].jobs == 0 {
            blocks[i].bytes = []
            free.append(place.block)
            if current == place.block { current = nil }
            if gathering == place.block { gathering = nil }
            return nil
        }
        return place.block != current && place.block != gathering && blocks[i].isWasteful ? place.block : nil
    }

    /// The jobs among which those of the block are.
    func ids(of block: UInt32) -> ClosedRange<UInt64> { blocks[Int(block)].ids }

    /// Makes the block a copy of these bodies, which must be all that is in use of it, one behind the other.
    mutating func pack(_ block: UInt32, keeping places: [Place], ids: ClosedRange<UInt64>) {
        let i = Int(block)
        var bytes: [UInt8] = []
        bytes.reserveCapacity(blocks[i].usedBytes)
        for place in places { bytes += self[place] }
        blocks[i].bytes = bytes
        blocks[i].ids = ids
        if current == block { current = nil }
        if gathering == block { gathering = nil }
    }

    private static func address(_ bytes: ArraySlice<UInt8>) -> UnsafePointer<UInt8>? {
        bytes.withUnsafeBufferPointer { $0.baseAddress }
    }

    private static func address(_ bytes: [UInt8]) -> UnsafePointer<UInt8>? {
        bytes.withUnsafeBufferPointer { $0.baseAddress }
    }

    /// Whether the slice is memory of the array, and its indexes are the array's.
    private static func isPart(_ body: ArraySlice<UInt8>, of payload: [UInt8]) -> Bool {
        guard body.startIndex >= 0, body.endIndex <= payload.count, let part = address(body),
            let whole = address(payload)
        else { return false }
        return part == whole + body.startIndex
    }

    private static func isSame(_ a: [UInt8], _ b: [UInt8]) -> Bool { a.count == b.count && address(a) == address(b) }
}
