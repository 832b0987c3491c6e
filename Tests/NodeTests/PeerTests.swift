import EventLoop
import Model
import NodeCore
import Security
import Testing
import Wire

@testable import Node

@Suite struct PeerTests {
    /// A process that hangs still accepts connections: its kernel does.
    @Test func aPeerThatSaysNothingIsGivenUpAndTriedAgain() throws {
        try onLoop { loop in
            let listener = try Listener(loop: loop, bind: .loopback(port: 0))
            let address = try #require(listener.localAddress)
            var accepted: [ByteStream] = []
            var closed = 0
            listener.onConnection = { stream in
                accepted.append(stream)
                stream.onEnd = { closed += 1 }
                stream.resumeReading()
            }
            let id = NodeID(high: 1, low: 2)
            let peers = PeerNetwork(
                loop: loop, key: try ClusterKey.random(), hello: Hello(role: .node(id, incarnation: 1, cluster: "c")))
            defer {
                peers.stop()
                listener.close()
                for stream in accepted { stream.close() }
            }
            peers.welcomeTimeout = .milliseconds(50)
            let other = NodeID(high: 3, low: 4)
            let frame = Frame(kind: FrameKind.raft.rawValue, channel: 0, payload: [1])
            peers.send(frame, to: other, at: address)
            await until(loop, "the silent stream is kept") { closed == 1 }
            #expect(accepted.count == 1)
            await until(loop, "it is not dialled again") {
                peers.send(frame, to: other, at: address)
                return accepted.count == 2
            }
        }
    }
}
