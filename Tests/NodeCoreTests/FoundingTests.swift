import Consensus
import Model
import Testing
import Wire

@testable import NodeCore

/// One node by itself, with a disk that is done at once.
@Suite struct FoundingTests {
    static let id = NodeID(high: 7, low: 7)

    final class Node {
        var core: NodeCore
        var now = MonotonicTime(nanoseconds: 5_000_000_000)
        var responses: [UInt32: ClientResponse] = [:]
        var founded = 0
        /// What a disk would hold.
        var promise: BootstrapPromise?

        init(_ recovery: NodeRecovery) throws {
            let options = NodeOptions(
                cluster: "c", id: FoundingTests.id, name: "n", address: .loopback(port: 7630), expect: 1,
                startCounter: 2)
            core = try NodeCore(options: options, recovery: recovery, generator: SeededGenerator(seed: 1), now: now)
        }

        /// Lets so much time pass, one deadline after another.
        func run(for span: TimeSpan) {
            let end = now + span
            while true {
                for effect in core.takeEffects() {
                    switch effect {
                    case .persist(let request): core.handle(.persisted(ticket: request.ticket), now: now)
                    case .persistPromise(let kept):
                        promise = kept
                        core.handle(.promisePersisted, now: now)
                    case .found:
                        founded += 1
                        core.handle(.founded, now: now)
                    case .respond(let id, let response): responses[id.channel] = response
                    default: break
                    }
                }
                let next = max(core.nextDeadline, now + .milliseconds(1))
                guard next < end else { break }
                now = next
                core.handle(.timer, now: now)
            }
            now = end
        }

        func ask(_ request: ClientRequest, channel: UInt32) {
            core.handle(.request(RequestID(connection: 1, channel: channel), request, .operator), now: now)
        }
    }

    @Test func aNodeThatExpectsNobodyElseFoundsAndServes() throws {
        let node = try Node(NodeRecovery(log: RecoveredLog(), isVirgin: true, promise: nil, state: nil))
        node.run(for: .seconds(2))
        #expect(node.founded == 1)
        #expect(node.promise?.voters == [FoundingTests.id])
        #expect(node.core.raft?.isReady == true)
        node.ask(.command(StateTests.put(1)), channel: 1)
        node.run(for: .milliseconds(100))
        guard case .success(let bytes) = node.responses[1] else {
            Issue.record("\(String(describing: node.responses[1]))")
            return
        }
        var reader = ByteReader(bytes)
        guard case .queue(.inserted(let jobs)) = try StateResult(decoding: &reader) else {
            Issue.record("not a put's answer")
            return
        }
        #expect(jobs.map(\.id) == [1])
        node.ask(.query(path: "jobs/1"), channel: 2)
        node.run(for: .milliseconds(100))
        guard case .success = node.responses[2] else {
            Issue.record("\(String(describing: node.responses[2]))")
            return
        }
        #expect(node.core.softState.isQuiet)
    }

    /// The journal writes the term before the first entry; a crash may keep the one and lose the other.
    @Test func aFoundingThatACrashCutShortIsDoneAgain() throws {
        let log = RecoveredLog(hardState: HardState(term: 1, vote: nil, commit: 0))
        let promise = BootstrapPromise(initiator: FoundingTests.id, attempt: 9, voters: [FoundingTests.id])
        let node = try Node(NodeRecovery(log: log, isVirgin: false, promise: promise, state: nil))
        node.run(for: .seconds(2))
        #expect(node.founded == 1)
        #expect(node.core.raft?.isReady == true)
    }

    /// Whoever voted has belonged to a cluster, and must remember that.
    @Test func aNodeThatVotedIsNoVirgin() throws {
        let log = RecoveredLog(hardState: HardState(term: 4, vote: NodeID(high: 1, low: 1), commit: 0))
        let node = try Node(NodeRecovery(log: log, isVirgin: false, promise: nil, state: nil))
        node.run(for: .seconds(2))
        #expect(node.founded == 0)
        #expect(node.core.raft?.term == 4)
        #expect(node.core.raft?.vote == NodeID(high: 1, low: 1))
    }

    /// A promise to another node binds: this one does not found by itself.
    @Test func aKeptPromiseToAnotherIsKept() throws {
        let other = NodeID(high: 1, low: 1)
        let promise = BootstrapPromise(initiator: other, attempt: 1, voters: [other, FoundingTests.id])
        let node = try Node(NodeRecovery(log: RecoveredLog(), isVirgin: true, promise: promise, state: nil))
        node.run(for: .seconds(5))
        #expect(node.founded == 0)
        node.ask(.command(StateTests.put(1)), channel: 1)
        node.run(for: .seconds(5))
        guard case .failure(let error) = node.responses[1] else {
            Issue.record("a node without a cluster answers \(String(describing: node.responses[1]))")
            return
        }
        #expect(error.code == .noLeader)
    }
}
