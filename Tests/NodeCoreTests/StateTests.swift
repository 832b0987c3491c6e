import Consensus
import Leases
import Model
import Queues
import Testing
import Wire

@testable import NodeCore

/// The replicated state and its sessions.
@Suite struct StateTests {
    static let session = SessionID(high: 1, low: 2)

    static func put(_ sequence: UInt64, first: UInt64 = 1, session: SessionID = session) -> ClientCommand {
        ClientCommand(
            session: session, sequence: sequence, firstOutstanding: first,
            command: .queue(.put([NewJob(tube: "t", body: [UInt8(truncatingIfNeeded: sequence)])])))
    }

    static func reserve(_ sequence: UInt64, wait: TimeSpan?) -> ClientCommand {
        ClientCommand(
            session: session, sequence: sequence, firstOutstanding: 1, wait: wait,
            command: .queue(.reserve(tubes: ["t"], holder: 0, count: 1)))
    }

    /// Applies one entry with these commands.
    static func apply(_ state: inout ReplicatedState, _ commands: ClientCommand..., at time: UInt64 = 1, index: UInt64)
        -> [ReplicatedState.Applied]
    {
        state.apply(LogPayload(milliseconds: time, commands: commands), index: index)
    }

    @Test func aCommandThatIsSentTwiceIsExecutedOnce() {
        var state = ReplicatedState()
        let first = StateTests.apply(&state, StateTests.put(1), index: 1)
        let again = StateTests.apply(&state, StateTests.put(1), index: 2)
        #expect(!first[0].isReplay)
        #expect(again[0].isReplay)
        #expect(first[0].result.encoded == again[0].result.encoded)
        #expect(state.queues.readyCount("t") == 1)
        #expect(state.earlierReply(to: StateTests.put(1))?.encoded == first[0].result.encoded)
    }

    @Test func `pieces of a state are the state`() throws {
        var state = ReplicatedState()
        let jobs = (0..<3_000).map { NewJob(tube: "t", body: [UInt8](repeating: UInt8($0 % 251), count: 1_000)) }
        let put = ClientCommand(
            session: StateTests.session, sequence: 1, firstOutstanding: 1, command: .queue(.put(jobs)))
        _ = StateTests.apply(&state, put, index: 1)
        var pieces: [[UInt8]] = []
        StateImage(state).encode { pieces.append($0) }
        #expect(pieces.count == 3)
        #expect(pieces.allSatisfy { $0.count < (1 << 20) + 2_000 })
        #expect(Array(pieces.joined()) == state.encoded)
        #expect(try ReplicatedState(decoding: state.encoded).encoded == state.encoded)
    }

    @Test func `a job of a decoded entry is a part of the entry's payload`() throws {
        let body = [UInt8](repeating: 7, count: 5_000)
        let commands = (1...10 as ClosedRange<UInt64>).map {
            ClientCommand(
                session: StateTests.session, sequence: $0, firstOutstanding: 1,
                command: .queue(.put([NewJob(tube: "t", body: body)])))
        }
        let payload = LogPayload(milliseconds: 1, commands: commands).encoded
        var state = ReplicatedState()
        _ = state.apply(try LogPayload(decoding: payload), index: 1)
        #expect(state.queues.bodyBytes == payload.count)
        #expect(state.queues.job(10)?.body == body)
    }

    @Test func sessionsSurviveASnapshot() throws {
        var state = ReplicatedState()
        _ = StateTests.apply(&state, StateTests.put(1), index: 1)
        var restored = try ReplicatedState(decoding: state.encoded)
        #expect(restored.encoded == state.encoded)
        #expect(StateTests.apply(&restored, StateTests.put(1), index: 2)[0].isReplay)
    }

    @Test func aForgottenReplyIsStaleAndNothingIsExecuted() {
        var state = ReplicatedState()
        _ = StateTests.apply(&state, StateTests.put(1), StateTests.put(2), index: 1)
        _ = StateTests.apply(&state, StateTests.put(3, first: 3), index: 2)
        let late = StateTests.apply(&state, StateTests.put(1), index: 3)
        guard case .stale = late[0].result else {
            Issue.record("\(late[0].result)")
            return
        }
        #expect(state.queues.readyCount("t") == 3)
    }

    @Test func aCommandOfAnEndedSessionIsNotExecuted() throws {
        var state = ReplicatedState()
        let end = ClientCommand(session: StateTests.session, sequence: 2, firstOutstanding: 2, command: .endSession)
        _ = StateTests.apply(&state, StateTests.put(1), end, index: 1)
        // Also the end may be sent twice.
        guard case .done = StateTests.apply(&state, end, index: 2)[0].result else {
            Issue.record("ending twice is no error")
            return
        }
        var restored = try ReplicatedState(decoding: state.encoded)
        _ = StateTests.apply(&restored, StateTests.put(1), index: 3)
        #expect(restored.queues.readyCount("t") == 1)
        // Much later nothing of the session is left.
        _ = StateTests.apply(&restored, at: 100_000, index: 4)
        #expect(restored.sessionCount == 0)
    }

    @Test func idleSessionsAreForgottenByLogTime() {
        var state = ReplicatedState()
        _ = StateTests.apply(&state, StateTests.put(1), index: 1)
        _ = StateTests.apply(&state, at: 599_000, index: 2)
        #expect(state.sessionCount == 1)
        _ = StateTests.apply(&state, at: 602_000, index: 3)
        #expect(state.sessionCount == 0)
    }

    @Test func aWaitThatFoundNothingIsNotYetAnswered() {
        var state = ReplicatedState()
        let empty = StateTests.apply(&state, StateTests.reserve(1, wait: .seconds(1)), index: 1)
        #expect(empty[0].result.isEmptyHanded)
        #expect(state.earlierReply(to: StateTests.reserve(1, wait: .seconds(1))) == nil)
        _ = StateTests.apply(&state, StateTests.put(2), index: 2)
        let served = StateTests.apply(&state, StateTests.reserve(1, wait: .seconds(1)), index: 3)
        #expect(!served[0].isReplay)
        #expect(!served[0].result.isEmptyHanded)
        // Without a wait nothing is an answer like any other.
        _ = StateTests.apply(&state, StateTests.reserve(3, wait: nil), index: 4)
        #expect(StateTests.apply(&state, StateTests.reserve(3, wait: nil), index: 5)[0].isReplay)
    }

    @Test func leasesEndByTheLogsTimeAlone() {
        var state = ReplicatedState()
        func acquire(_ sequence: UInt64, _ holder: String) -> ClientCommand {
            ClientCommand(
                session: StateTests.session, sequence: sequence, firstOutstanding: 1,
                command: .lease(.acquire(key: "election/e", holder: holder, info: [:], ttlMilliseconds: 1_000)))
        }
        _ = StateTests.apply(&state, acquire(1, "a"), at: 10, index: 1)
        #expect(state.nextDeadline == 1_010)
        #expect(StateTests.apply(&state, acquire(2, "b"), at: 1_009, index: 2)[0].result.isEmptyHanded)
        // An entry with an older stamp, from a leader that was behind, does not turn time back.
        _ = StateTests.apply(&state, acquire(3, "b"), at: 5, index: 3)
        #expect(state.milliseconds == 1_009)
        #expect(!StateTests.apply(&state, acquire(4, "b"), at: 1_010, index: 4)[0].result.isEmptyHanded)
    }

    @Test func everyPrefixAndFlippedByteOfAPayloadIsRefusedOrRead() throws {
        let payload = LogPayload(
            milliseconds: 77, commands: [StateTests.put(1), StateTests.reserve(2, wait: .seconds(3))])
        let bytes = payload.encoded
        let decoded = try LogPayload(decoding: bytes)
        #expect(decoded.milliseconds == 77)
        #expect(decoded.encoded == bytes)
        for count in 0..<bytes.count {
            #expect(throws: WireError.self) { try LogPayload(decoding: Array(bytes[..<count])) }
        }
        // Whatever can be read can be applied.
        for i in bytes.indices {
            var changed = bytes
            changed[i] ^= 0x41
            guard let read = try? LogPayload(decoding: changed) else { continue }
            var state = ReplicatedState()
            #expect(state.apply(read, index: 1).count == read.commands.count)
        }
    }
}
