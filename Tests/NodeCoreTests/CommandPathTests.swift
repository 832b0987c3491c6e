// The ways of commands through one node that leads a cluster of its own.
import Consensus
import Model
import Queues
import Scheduling
import Testing
import Wire

@testable import NodeCore

/// One node whose disk is quick and never fails.
private struct Alone {
    var core: NodeCore
    var now = MonotonicTime(nanoseconds: 1_000_000_000)
    var responses: [RequestID: ClientResponse] = [:]

    init() throws {
        let options = NodeOptions(
            cluster: "c", id: NodeID(high: 1, low: 2), name: "n", address: .loopback(port: 1), expect: 1,
            startCounter: 1)
        core = try NodeCore(
            options: options, recovery: NodeRecovery(log: RecoveredLog(), isVirgin: true, promise: nil, state: nil),
            generator: SeededGenerator(seed: 1), now: now)
        run(.seconds(2))
        #expect(core.raft?.isLeader == true)
    }

    mutating func run(_ span: TimeSpan) {
        let end = now + span
        while now < end {
            now = now + .milliseconds(10)
            core.handle(.timer, now: now)
            settle()
        }
    }

    /// Turns until nothing is left to do; the number of entries that became durable meanwhile.
    @discardableResult
    mutating func settle(limit: Int = 200) -> Int {
        var entries = 0
        for _ in 0..<limit {
            var answers: [NodeInput] = []
            for effect in core.takeEffects() {
                switch effect {
                case .found: answers.append(.founded)
                case .persist(let request):
                    entries += request.entries.count
                    answers.append(.persisted(ticket: request.ticket))
                case .persistPromise: answers.append(.promisePersisted)
                case .respond(let id, let response): responses[id] = response
                default: break
                }
            }
            if answers.isEmpty { break }
            for answer in answers { core.handle(answer, now: now) }
        }
        return entries
    }

    mutating func ask(_ id: RequestID, _ request: ClientRequest, _ authority: Authority = .operator) {
        core.handle(.request(id, request, authority), now: now)
    }

    func failure(_ id: RequestID) -> CoterieError? {
        if case .failure(let error) = responses[id] { error } else { nil }
    }

    func result(_ id: RequestID) -> StateResult? {
        guard case .success(let bytes) = responses[id] else { return nil }
        var reader = ByteReader(bytes)
        return try? StateResult(decoding: &reader)
    }
}

@Suite struct CommandPathTests {
    private func command(_ sequence: UInt64, _ command: StateCommand, wait: TimeSpan? = nil) -> ClientRequest {
        .command(
            ClientCommand(
                session: SessionID(high: 7, low: sequence), sequence: 1, firstOutstanding: 1, wait: wait,
                command: command))
    }

    private func id(_ channel: UInt32) -> RequestID { RequestID(connection: 1, channel: channel) }

    /// It found nothing although there was something, was tried again at once, and filled the log as fast as the disk could write.
    @Test func aReserveOfNoJobsIsRefused() throws {
        var node = try Alone()
        node.ask(id(1), command(1, .queue(.put([NewJob(tube: "t", body: [1])]))))
        node.settle()
        node.ask(id(2), command(2, .queue(.reserve(tubes: ["t"], holder: 5, count: 0)), wait: .seconds(60)), .pod("p"))
        #expect(node.settle() < 10)
        #expect(node.failure(id(2))?.code == .badInput)
    }

    @Test func commandsThatAreTooLargeTogetherAreTakenOneByOne() throws {
        var node = try Alone()
        // By its weight a reserve is small; this one names many tubes.
        let tubes = (0..<4_000).map { String(repeating: "x", count: 190) + "\($0)" }
        for n in 1...8 {
            node.ask(id(UInt32(n)), command(UInt64(n), .queue(.reserve(tubes: tubes, holder: 5, count: 1)), wait: nil))
        }
        node.ask(id(9), command(9, .queue(.put([NewJob(tube: "t", body: [1])]))))
        node.settle()
        for n in 1...9 { #expect(node.failure(id(UInt32(n))) == nil && node.responses[id(UInt32(n))] != nil) }
    }

    @Test func anOrderIsAnsweredWhenItIsInForce() throws {
        var node = try Alone()
        node.ask(id(1), .admin(["verb": "cordon", "node": "n"]))
        // Not before its entry is durable.
        var tickets: [UInt64] = []
        for effect in node.core.takeEffects() {
            if case .persist(let request) = effect { tickets.append(request.ticket) }
            if case .respond = effect { Issue.record("it is answered too early") }
        }
        #expect(!tickets.isEmpty && !node.core.state.scheduling.isCordoned(NodeID(high: 1, low: 2)))
        for ticket in tickets { node.core.handle(.persisted(ticket: ticket), now: node.now) }
        node.settle()
        #expect(node.core.state.scheduling.isCordoned(NodeID(high: 1, low: 2)))
        #expect(node.failure(id(1)) == nil && node.responses[id(1)] != nil)
    }

    @Test func ofAParkedWaitThatIsSentAgainOneIsAnswered() throws {
        var node = try Alone()
        for n in 1...3 {
            node.ask(
                id(UInt32(n)),
                command(UInt64(n), .queue(.reserve(tubes: ["t"], holder: UInt64(n), count: 1)), wait: .seconds(60)))
        }
        node.settle()
        #expect(node.responses.isEmpty && node.core.softState.parked == 3)
        // The second has no time left.
        node.core.endWait(of: .request(id(2)))
        node.settle()
        #expect(node.responses.keys.map(\.channel) == [2] && node.core.softState.parked == 2)
        node.run(.seconds(5))
        #expect(node.responses.count == 1)
        node.ask(id(4), command(4, .queue(.put([NewJob(tube: "t", body: [1]), NewJob(tube: "t", body: [2])]))))
        node.settle()
        #expect(node.responses.count == 4 && node.core.softState.isQuiet)
    }

    /// A pod's status that the log had no room for would never be reported again.
    @Test func theNodesOwnCommandsAreGivenAgainWhenTheLogIsFull() throws {
        var node = try Alone()
        node.core.submit(.scheduling(.cordon(NodeID(high: 1, low: 2), true)), wait: nil, origin: .own)
        let own = try #require(node.core.paths.owned.first { $0.value.origin == .own })
        node.core.handle(
            .peerFrame(
                .forwarded, [UInt8](forwarded: own.key, .failure(CoterieError(.busy, "full"))),
                from: NodeID(high: 9, low: 9)),
            now: node.now)
        #expect(node.core.paths.owned[own.key] != nil)
        node.settle()
        node.run(.seconds(1))
        #expect(node.core.state.scheduling.isCordoned(NodeID(high: 1, low: 2)) && node.core.paths.owned.isEmpty)
    }

    @Test func aSessionKeepsSoManyBytesOfReplies() throws {
        var table = SessionTable()
        let session = SessionID(high: 1, low: 1)
        let reply = [UInt8](repeating: 1, count: 1 << 20)
        for sequence in 1...20 as ClosedRange<UInt64> {
            table.record(
                session, at: table.find(session), sequence: sequence, firstOutstanding: 1, reply: reply, milliseconds: 1
            )
        }
        var writer = ByteWriter()
        table.encode(into: &writer)
        #expect(writer.bytes.count < SessionTable.replyBytesLimit + (1 << 20))
        // Those that were forgotten are stale, never new.
        #expect(table.verdict(session, sequence: 1) == .stale && table.verdict(session, sequence: 16) == .stale)
        #expect(table.verdict(session, sequence: 20) == .replay(reply) && table.verdict(session, sequence: 21) == .new)
        // One that is larger by itself is kept.
        let large = [UInt8](repeating: 2, count: SessionTable.replyBytesLimit + 1)
        table.record(
            session, at: table.find(session), sequence: 21, firstOutstanding: 1, reply: large, milliseconds: 1)
        #expect(
            table.verdict(session, sequence: 21) == .replay(large) && table.verdict(session, sequence: 20) == .stale)
    }
}

extension [UInt8] {
    /// The payload of a `forwarded` frame.
    fileprivate init(forwarded id: UInt64, _ response: ClientResponse) {
        var writer = ByteWriter()
        writer.u64(id)
        writer.raw(response.encoded)
        self = writer.bytes
    }
}
