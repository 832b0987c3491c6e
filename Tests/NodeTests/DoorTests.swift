// Who may do what at a node's doors, and how much of it: strangers, clients with the key, pods.
import EventLoop
import Glibc
import Model
import NodeCore
import Scheduling
import Security
import Testing
import Transport
import Wire

@testable import Node

/// The doors of a node without the node behind them.
private final class Doors {
    let scratch = Scratch()
    let key: ClusterKey
    let server: ClientServer
    let broker: StreamBroker
    let streams: Listener
    private var pods: [Listener] = []
    private let loop: EventLoop

    init(_ loop: EventLoop) throws {
        self.loop = loop
        key = try ClusterKey.random()
        let id = NodeID(high: 1, low: 2)
        let peers = PeerNetwork(loop: loop, key: key, hello: Hello(role: .node(id, incarnation: 1, cluster: "c")))
        server = ClientServer(
            loop: loop, key: key, welcome: Welcome(agreedProtocol: 1, node: id, name: "n"), clusterName: "c",
            peers: peers)
        broker = StreamBroker(loop: loop, key: key, self: id)
        streams = try Listener(loop: loop, bind: .loopback(port: 0))
        server.serve(streams: streams)
        server.onStreamFrame = { [broker] link, kind, frame, authority in broker.handle(link, kind, frame, authority) }
        // Two pods of one pattern, and one that has nothing to do with them.
        broker.ownerOf = { $0 == "stranger" ? nil : .gather("g") }
        broker.locate = { _ in .here }
    }

    var address: SocketAddress { get throws { try #require(streams.localAddress) } }

    /// The pod's `/run/coterie/pod.sock`.
    func door(of pod: String) throws -> SocketAddress {
        let address = scratch.socket(pod)
        let listener = try Listener(loop: loop, bind: address)
        listener.onConnection = { [server] in server.serve(pod: pod, stream: $0) }
        pods.append(listener)
        return address
    }

    func stop() {
        broker.stop()
        server.stop()
        for listener in pods { listener.close() }
    }
}

@Suite struct DoorTests {
    @Test func aConnectionGoesToThePodThatWasDialledAndToNoOther() throws {
        try onLoop { loop in
            let doors = try Doors(loop)
            defer { doors.stop() }
            let (root, leaf, thief) = (
                try doors.door(of: "root"), try doors.door(of: "leaf"), try doors.door(of: "stranger")
            )
            let listening = try await Speaker(loop, root)
            listening.say(.listen) { $0.string("in") }
            await until(loop, "the listener is not heard") { listening.heard(.connected) }
            let dialling = try await Speaker(loop, leaf)
            dialling.say(.dial) {
                $0.string("root/in")
                $0.i64(TimeSpan.seconds(10).nanoseconds)
            }
            await until(loop, "no offer came") { listening.heard(.incoming) }
            let offer = try #require(listening.frames.first { $0.kind == FrameKind.incoming.rawValue }).payload
            // Tokens are small numbers: the thief need not have seen one.
            let stealing = try await Speaker(loop, thief)
            stealing.say(.accept, offer)
            await until(loop, "the thief is not refused") { stealing.heard(.refused) }
            #expect(!stealing.heard(.connected) && !dialling.heard(.connected))
            // Nor may whoever has the key take it, for only pods listen.
            let client = try await Speaker(loop, try doors.address, key: doors.key)
            client.say(.accept, offer)
            await until(loop, "the client is not refused") { client.heard(.refused) }
            let accepting = try await Speaker(loop, root)
            accepting.say(.accept, offer)
            await until(loop, "the connection did not come about") {
                accepting.heard(.connected) && dialling.heard(.connected)
            }
        }
    }

    @Test func aPodDialsThoseOfItsOwnPatternOnly() throws {
        try onLoop { loop in
            let doors = try Doors(loop)
            defer { doors.stop() }
            let stranger = try await Speaker(loop, try doors.door(of: "stranger"))
            stranger.say(.dial) {
                $0.string("root/in")
                $0.i64(TimeSpan.seconds(10).nanoseconds)
            }
            await until(loop, "the dial is not refused") { stranger.heard(.refused) }
            let client = try await Speaker(loop, try doors.address, key: doors.key)
            client.say(.listen) { $0.string("in") }
            await until(loop, "a client may listen under a pod's name") { client.heard(.refused) }
        }
    }

    @Test func strangersKeepNobodyOutWhoHasTheKey() throws {
        try onLoop { loop in
            let doors = try Doors(loop)
            defer { doors.stop() }
            doors.server.strangerLimit = 8
            var silent: [ByteStream] = []
            for _ in 0..<40 {
                silent.append(try await connect(loop, try doors.address))
            }
            await until(loop, "not all were seen") { doors.server.refused >= 32 }
            #expect(doors.server.connectionCount <= 8)
            let client = try await Speaker(loop, try doors.address, key: doors.key)
            await until(loop, "the client is not let in") { client.heard(.welcome) }
            // A wrong key is a stranger's.
            let other = try await Speaker(loop, try doors.address, key: try ClusterKey.random())
            await until(loop, "a wrong key is not refused") { other.isClosed }
            #expect(other.frames.isEmpty)
            for stream in silent { stream.close() }
        }
    }

    @Test func aPodHasSoManyStreamsAndGetsThemBack() throws {
        try onLoop { loop in
            let doors = try Doors(loop)
            defer { doors.stop() }
            doors.server.podStreamLimit = 6
            let door = try doors.door(of: "greedy")
            var open: [Speaker] = []
            for index in 0..<6 {
                let speaker = try await Speaker(loop, door)
                // Also streams that have left the server for a service count.
                if index % 2 == 0 { speaker.say(.listen) { $0.string("s\(index)") } }
                open.append(speaker)
            }
            await until(loop, "not all are welcome") {
                open.allSatisfy { $0.heard(.welcome) } && open[4].heard(.connected)
            }
            let seventh = try await Speaker(loop, door)
            await until(loop, "the seventh is not refused") { seventh.isClosed }
            // Others are not its business.
            let neighbour = try await Speaker(loop, try doors.door(of: "neighbour"))
            await until(loop, "the neighbour is not let in") { neighbour.heard(.welcome) }
            for speaker in open { speaker.link.close() }
            await until(loop, "the streams are not given back") { doors.server.connectionCount == 1 }
            let again = try await Speaker(loop, door)
            await until(loop, "the pod is not let in again") { again.heard(.welcome) }
        }
    }

    @Test func whoDoesNotReadTheAnswersIsNotHeardForEver() throws {
        try onLoop { loop in
            let doors = try Doors(loop)
            defer { doors.stop() }
            var asked = 0
            doors.server.onRequest = { id, _, _ in
                asked += 1
                doors.server.respond(id, .success([UInt8](repeating: 7, count: 64 << 10)))
            }
            let deaf = try await Speaker(loop, try doors.door(of: "deaf"))
            await until(loop, "no welcome") { deaf.heard(.welcome) }
            deaf.link.stream.pauseReading()
            let question = ClientRequest.query(path: "queues").encoded
            // Far more than fits into what may wait, one batch a turn.
            for round in 0..<200 {
                for i in 0..<50 { deaf.say(.request, question, channel: UInt32(round * 50 + i)) }
                await loop.sleep(.milliseconds(1))
            }
            // 64 MiB would be 1 024 answers; 10 000 were asked for.
            #expect(asked < 1_500, "\(asked) requests were heard")
        }
    }

    @Test func aDialThatWaitsHoldsLittle() throws {
        try onLoop { loop in
            let doors = try Doors(loop)
            defer { doors.stop() }
            let dialling = try await Speaker(loop, try doors.door(of: "leaf"))
            dialling.say(.dial) {
                $0.string("root/nobody")
                $0.i64(TimeSpan.seconds(600).nanoseconds)
            }
            for _ in 0..<64 { dialling.link.stream.write([UInt8](repeating: 0, count: 16 << 10)) }
            await until(loop, "it may say as much as it likes") { dialling.isClosed }
        }
    }

    @Test func aPodHasSoManyServices() throws {
        try onLoop { loop in
            let doors = try Doors(loop)
            defer { doors.stop() }
            let door = try doors.door(of: "root")
            var speakers: [Speaker] = []
            for index in 0...StreamBroker.podListenerLimit {
                let speaker = try await Speaker(loop, door)
                speaker.say(.listen) { $0.string("s\(index)") }
                speakers.append(speaker)
            }
            await until(loop, "the last is not refused") { speakers.last?.heard(.refused) ?? false }
            #expect(speakers.dropLast().allSatisfy { !$0.heard(.refused) })
        }
    }
}
