import Consensus
import Model
import Testing
import Wire

@testable import Node
@testable import NodeCore

/// A state that is being encoded on another thread while the loop goes on.
@Suite struct StateExportTests {
    private let request = RequestID(connection: 3, channel: 4)
    private let options = NodeOptions(
        cluster: "c", id: NodeID(high: 1, low: 1), name: "n",
        address: SocketAddress(host: .v4(0x7F00_0001), port: 1), expect: 1, startCounter: 1)
    private let exported = NodeCore.ExportedState(
        metadata: SnapshotMetadata(
            index: 9, term: 2, configuration: RaftConfiguration(voters: [NodeID(high: 1, low: 1)])),
        lineage: .original, image: StateImage(ReplicatedState()))

    private func isThere(_ exports: inout StateExports, _ path: String) -> Bool {
        if case .success = exports.piece(path) { true } else { false }
    }

    @Test func `who waits gets a description, and then the pieces`() throws {
        var exports = StateExports()
        exports.encodes(for: request)
        let encoded = StateExports.Encoded(exported.image)
        let kept = exports.keep(encoded, of: exported, for: request, options: options)
        let document = try #require(kept)
        #expect(document["bytes"]?.intValue == Int64(ReplicatedState().encoded.count))
        #expect(document["checksum"]?.intValue == Int64(CRC32C.checksum(ReplicatedState().encoded)))
        #expect(document["index"]?.intValue == 9)
        let found = isThere(&exports, "snapshot/1/0")
        #expect(found)
    }

    @Test func `nothing is kept for a connection that has closed meanwhile`() {
        var exports = StateExports()
        exports.encodes(for: request)
        let reads = exports.connectionClosed(3)
        #expect(reads.isEmpty)
        let kept = exports.keep(StateExports.Encoded(exported.image), of: exported, for: request, options: options)
        #expect(kept == nil)
        let found = isThere(&exports, "snapshot/1/0")
        #expect(!found)
    }

    @Test func `nothing is kept for a request that was cancelled meanwhile`() {
        var exports = StateExports()
        exports.encodes(for: request)
        let read = exports.cancel(request)
        #expect(read == nil)
        let kept = exports.keep(StateExports.Encoded(exported.image), of: exported, for: request, options: options)
        #expect(kept == nil)
        let found = isThere(&exports, "snapshot/1/0")
        #expect(!found)
    }
}
