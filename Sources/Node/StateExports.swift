// The state of the cluster in pieces, for `coterie snapshot save`: a linearizable read fixes it, another thread encodes it, and it
// is kept here while a client fetches it piece by piece.
import EventLoop
import Model
import NodeCore
import Queues
import Wire

/// What clients are fetching. For one node; confined to its loop.
struct StateExports {
    static let pieceBytes = 1 << 20
    /// Fetched at the same time; one more replaces the oldest.
    static let limit = 2
    /// Reads of the driver's own, kept apart from those of the queue protocol.
    static let firstRead: UInt64 = 1 << 63

    private struct Export {
        var id: UInt64
        /// Where it was asked for; it goes with that connection.
        var connection: UInt64
        var state: [UInt8]
    }

    private var exports: [Export] = []
    private var nextID: UInt64 = 1
    private var nextRead = StateExports.firstRead
    private var waiting: [UInt64: RequestID] = [:]
    /// Their state is being encoded.
    private var encoding: Set<RequestID> = []

    /// True for the paths that are served here.
    static func serves(_ path: String) -> Bool { path == "snapshot" || path.hasPrefix("snapshot/") }

    /// The number of the read to start for the request.
    mutating func begin(_ request: RequestID) -> UInt64 {
        defer { nextRead += 1 }
        waiting[nextRead] = request
        return nextRead
    }

    /// The request that waits for this read; nil if the read is somebody else's, or nobody waits any more.
    mutating func requestWaiting(for read: UInt64) -> RequestID? { waiting.removeValue(forKey: read) }

    /// The read that a request had started, if it still waits.
    mutating func cancel(_ request: RequestID) -> UInt64? {
        encoding.remove(request)
        guard let read = waiting.first(where: { $0.value == request })?.key else { return nil }
        waiting[read] = nil
        return read
    }

    /// The reads that nobody waits for any more.
    mutating func connectionClosed(_ connection: UInt64) -> [UInt64] {
        exports.removeAll { $0.connection == connection }
        encoding = encoding.filter { $0.connection != connection }
        let reads = waiting.filter { $0.value.connection == connection }.map(\.key).sorted()
        for read in reads { waiting[read] = nil }
        return reads
    }

    /// Made on any thread: it takes as long as the state is large.
    struct Encoded: Sendable {
        var state: [UInt8]
        var checksum: UInt32

        init(_ image: StateImage) {
            state = image.encoded
            checksum = CRC32C.checksum(state)
        }
    }

    /// The request waits for its state to be encoded.
    mutating func encodes(for request: RequestID) { encoding.insert(request) }

    /// Keeps a state, and describes it. Nil if nobody waits for it any more.
    mutating func keep(
        _ encoded: Encoded, of exported: NodeCore.ExportedState, for request: RequestID, options: NodeOptions
    ) -> JSONValue? {
        guard encoding.remove(request) != nil else { return nil }
        if exports.count >= StateExports.limit { exports.removeFirst() }
        let id = nextID
        nextID += 1
        exports.append(Export(id: id, connection: request.connection, state: encoded.state))
        let configuration = exported.metadata.configuration
        func list(_ ids: [NodeID]) -> JSONValue { .array(ids.map { .string($0.description) }) }
        return [
            "id": JSONValue(id), "cluster": .string(options.cluster),
            "lineage": .string(hexadecimal(exported.lineage.rawValue)),
            "index": JSONValue(exported.metadata.index), "term": JSONValue(exported.metadata.term),
            "voters": list(configuration.voters), "outgoing": list(configuration.outgoing),
            "learners": list(configuration.learners), "node": .string(options.name),
            "version": .string(options.version),
            "bytes": JSONValue(encoded.state.count), "checksum": JSONValue(UInt64(encoded.checksum)),
        ]
    }

    /// `snapshot/ID/OFFSET`. The last piece ends it.
    mutating func piece(_ path: String) -> ClientResponse {
        let parts = path.split(separator: "/")
        guard parts.count == 3, let id = UInt64(parts[1]), let offset = Int(parts[2]),
            let index = exports.firstIndex(where: { $0.id == id }), offset >= 0, offset < exports[index].state.count
        else { return .failure(CoterieError(.notFound, "there is no such piece of a snapshot", hint: "begin again")) }
        let state = exports[index].state
        let end = min(offset + StateExports.pieceBytes, state.count)
        let data = Base64.encode(Array(state[offset..<end]))
        if end == state.count { exports.remove(at: index) }
        return .success(JSONValue.object([.init("data", .string(data))]).utf8)
    }
}
