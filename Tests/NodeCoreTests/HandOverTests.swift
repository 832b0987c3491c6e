// The ways of commands while leadership goes from one node to another, among three nodes with quick disks and a quick network.
import Consensus
import Model
import Queues
import Testing
import Wire

@testable import NodeCore

/// Three nodes that found a cluster. What one sends the others have at once, unless it is withheld; time passes only in `run`.
private struct Trio {
    var cores: [NodeCore] = []
    var now = MonotonicTime(nanoseconds: 1_000_000_000)
    var responses: [RequestID: ClientResponse] = [:]
    /// Frames that are lost: sender, receiver, kind.
    var loses: (Int, Int, FrameKind) -> Bool = { _, _, _ in false }
    var losesMessage: (RaftMessage) -> Bool = { _ in false }
    /// The entries that were written together, by kind.
    var batches: [[LogEntry.Kind]] = []
    /// The kinds of frames between nodes since the beginning.
    var frames: [FrameKind: Int] = [:]

    static func id(_ node: Int) -> NodeID { NodeID(high: UInt64(node + 1), low: 1) }

    init() throws {
        for node in 0..<3 {
            var options = NodeOptions(
                cluster: "c", id: Trio.id(node), name: "n\(node)", address: .loopback(port: UInt16(node + 1)),
                expect: 3,
                startCounter: 1)
            options.clientReturn = .zero
            cores.append(
                try NodeCore(
                    options: options,
                    recovery: NodeRecovery(log: RecoveredLog(), isVirgin: true, promise: nil, state: nil),
                    generator: SeededGenerator(seed: UInt64(node + 1)), now: now))
        }
        for node in 1..<3 { cores[node].handle(.join([.loopback(port: 1)]), now: now) }
        run(.seconds(5))
        try #require(leader != nil)
    }

    var leader: Int? {
        let leading = cores.indices.filter { cores[$0].raft?.isReady ?? false }
        return leading.count == 1 ? leading[0] : nil
    }

    mutating func run(_ span: TimeSpan) {
        let end = now + span
        while now < end {
            now = now + .milliseconds(5)
            for node in cores.indices { cores[node].handle(.timer, now: now) }
            settle()
        }
    }

    /// Turns of all nodes until none has anything to do at this moment.
    mutating func settle() {
        for _ in 0..<1_000 {
            var arrivals: [(node: Int, input: NodeInput)] = []
            for node in cores.indices {
                for effect in cores[node].takeEffects() { carryOut(effect, of: node, &arrivals) }
            }
            if arrivals.isEmpty { return }
            for (node, input) in arrivals { cores[node].handle(input, now: now) }
        }
        Issue.record("the nodes never come to rest")
    }

    private mutating func carryOut(
        _ effect: NodeEffect, of node: Int, _ arrivals: inout [(node: Int, input: NodeInput)]
    ) {
        switch effect {
        case .found: arrivals.append((node, .founded))
        case .persist(let request):
            batches.append(request.entries.map(\.kind))
            arrivals.append((node, .persisted(ticket: request.ticket)))
        case .persistPromise: arrivals.append((node, .promisePersisted))
        case .persistLineage: arrivals.append((node, .lineagePersisted))
        case .respond(let id, let response): responses[id] = response
        case .datagram(let bytes, let to):
            arrivals.append((Int(to.port) - 1, .datagram(bytes[...], from: .loopback(port: UInt16(node + 1)))))
        case .peerFrame(let kind, let payload, let to, _):
            frames[kind, default: 0] += 1
            guard let receiver = (0..<3).first(where: { Trio.id($0) == to }), !loses(node, receiver, kind) else {
                return
            }
            if kind == .raft, let envelope = try? RaftEnvelope(decoding: payload), losesMessage(envelope.message) {
                return
            }
            arrivals.append((receiver, .peerFrame(kind, payload, from: Trio.id(node))))
        default: break
        }
    }

    /// A put at `node`, whose answer has this id.
    mutating func put(_ number: UInt32, at node: Int, tube: String = "t") -> RequestID {
        ask(.put([NewJob(tube: tube, body: [1])]), number, at: node)
    }

    mutating func ask(_ command: QueueCommand, _ number: UInt32, at node: Int, wait: TimeSpan? = nil) -> RequestID {
        let id = RequestID(connection: UInt64(node), channel: number)
        let command = ClientCommand(
            session: SessionID(high: 7, low: UInt64(number)), sequence: 1, firstOutstanding: 1, wait: wait,
            command: .queue(command))
        cores[node].handle(.request(id, .command(command), .operator), now: now)
        return id
    }

    func isDone(_ id: RequestID) -> Bool { if case .success = responses[id] { true } else { false } }

    func failure(_ id: RequestID) -> CoterieError? {
        if case .failure(let error) = responses[id] { error } else { nil }
    }
}

@Suite struct HandOverTests {
    /// Nobody is told to come again later: what is asked while leadership passes is answered as soon as the next leader can.
    @Test(arguments: [true, false])
    func commandsAskedDuringAHandOverAreAnsweredWithoutAPause(bySIGTERM: Bool) throws {
        var trio = try Trio()
        let old = try #require(trio.leader)
        let before = trio.now
        // The one that takes over needs an entry that it has not got yet, so that the transfer takes a round.
        var asked = [trio.put(1, at: old)]
        if bySIGTERM {
            trio.cores[old].handle(.shutdown, now: trio.now)
        } else {
            trio.cores[old].handle(
                .request(RequestID(connection: 9, channel: 9), .admin(["verb": "transfer"]), .operator), now: trio.now)
        }
        for node in 0..<3 { asked.append(trio.put(UInt32(10 + node), at: node)) }
        trio.settle()
        #expect(trio.leader != nil && trio.leader != old)
        #expect(trio.now == before)
        for id in asked { #expect(trio.isDone(id)) }
        #expect(trio.batches.contains([.noop, .command]), "the first entry of the term has commands with it")
        for node in 0..<3 { #expect(trio.cores[node].softState.isQuiet) }
    }

    /// Followers hear of a leader before it has committed anything. It takes what they send meanwhile; what may have to wait it
    /// keeps until it knows whether it has to.
    @Test func aLeaderThatCanNotServeYetKeepsCommands() throws {
        var trio = try Trio()
        let old = try #require(trio.leader)
        // The answers to its first entry are lost, those to votes are not.
        trio.losesMessage = { if case .appendResponse = $0 { true } else { false } }
        trio.cores[old].handle(
            .request(RequestID(connection: 9, channel: 9), .admin(["verb": "transfer"]), .operator), now: trio.now)
        trio.settle()
        let new = try #require(trio.cores.indices.first { trio.cores[$0].raft?.isLeader ?? false })
        try #require(new != old && trio.leader == nil)
        let other = 3 - old - new
        let asked = trio.put(1, at: other)
        let reserve = trio.ask(.reserve(tubes: ["u"], holder: 5, count: 1), 2, at: other, wait: .seconds(60))
        trio.settle()
        let replies = trio.frames[.forwarded] ?? 0
        let soft = trio.cores[new].softState
        #expect(soft.inFlight == 1 && soft.proposals == 1 && soft.parked == 0 && trio.responses[asked] == nil)
        trio.losesMessage = { _ in false }
        trio.run(.milliseconds(300))
        #expect(trio.isDone(asked))
        #expect(
            trio.frames[.forwarded] ?? 0 <= replies + 1,
            "nothing was refused, and it was answered once, or found the answer in what it applied")
        #expect(trio.cores[new].softState.parked == 1 && trio.responses[reserve] == nil)
        let late = trio.put(3, at: old, tube: "u")
        trio.settle()
        #expect(trio.isDone(late) && trio.isDone(reserve))
    }

    /// A leader that has lost its place tells whoever it holds commands for, that they are in no log.
    @Test func whatADeposedLeaderHadNotProposedIsInNoLog() throws {
        var trio = try Trio()
        let old = try #require(trio.leader)
        let other = (old + 1) % 3
        // Nobody takes over: the one that shall never hears of it.
        trio.loses = { from, _, kind in from == old && kind == .raft }
        trio.cores[old].handle(
            .request(RequestID(connection: 9, channel: 9), .admin(["verb": "transfer"]), .operator), now: trio.now)
        let asked = [trio.put(1, at: other), trio.put(2, at: old)]
        trio.settle()
        #expect(trio.cores[old].softState.proposals == 2)
        let last = try #require(trio.cores[old].raft?.lastIndex)
        // It hears of a higher term before the transfer is given up.
        trio.cores[old].raftInput(
            .message(from: Trio.id(other), .voteResponse(VoteResponse(term: 100, granted: false))))
        trio.loses = { _, _, kind in kind == .raft }
        trio.settle()
        #expect(trio.cores[old].raft?.lastIndex == last)
        for (node, id) in zip([other, old], asked) {
            #expect(trio.responses[id] == nil)
            #expect(trio.cores[node].paths.owned.values.allSatisfy { !$0.mayBeLogged })
        }
        trio.run(.seconds(3))
        for id in asked { #expect(trio.failure(id)?.code == .noLeader) }
    }

    /// What one leader refuses may have come to another one's log before.
    @Test func aRefusalDecidesNothingAboutAnEarlierAttempt() throws {
        var trio = try Trio()
        let old = try #require(trio.leader)
        let asker = (old + 1) % 3
        // The first attempt is lost on its way, which the asker can not know.
        trio.loses = { from, _, kind in from == asker && kind == .forward }
        let asked = trio.put(1, at: asker)
        trio.run(.milliseconds(1_200))
        let owned = try #require(trio.cores[asker].paths.owned.first { $0.value.origin == .request(asked) })
        trio.loses = { from, to, _ in from == asker || to == asker }
        trio.run(.milliseconds(700))
        try #require(trio.cores[asker].raft?.leader == nil)
        #expect(trio.cores[asker].paths.owned[owned.key]?.openSends == 2)
        var refusal = ByteWriter()
        refusal.u64(owned.key)
        refusal.raw(ClientResponse.failure(CoterieError(.noLeader, "no leader")).encoded)
        trio.cores[asker].handle(.peerFrame(.forwarded, refusal.bytes, from: Trio.id(old)), now: trio.now)
        trio.run(.seconds(4))
        #expect(trio.responses[asked] == nil)
        // The other attempt is refused as well.
        trio.cores[asker].handle(.peerFrame(.forwarded, refusal.bytes, from: Trio.id(old)), now: trio.now)
        trio.run(.seconds(2))
        #expect(trio.failure(asked)?.code == .noLeader)
    }
}
