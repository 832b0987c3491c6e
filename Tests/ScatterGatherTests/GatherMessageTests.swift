import Model
import ScatterGather
import Testing
import Wire

@Suite struct GatherMessageTests {
    private static let progress = GatherProgress(
        total: 3, successful: 1, failed: 1, timedOut: 1, retried: 2, hedged: 1, milliseconds: 5, bytesIn: 6,
        bytesOut: 7,
        failures: [GatherFailure(shard: 1, node: "n", attempts: 4, error: "exit code 1")])

    static let messages: [GatherMessage] = [
        .clientHello(fetches: true, detaches: false, resultOffset: 9),
        .file(path: "a/b", executable: true, bytes: [1, 2], isLast: true),
        .filesEnd, .input([1, 2, 3]), .input([]), .inputEnd, .consumed(77), .done,
        .clientWelcome(instance: 5, inputTaken: 6, filesTaken: true, inputEnded: false), .inputTaken, .result([9]),
        .resultEnd(3),
        .progress(progress),
        .final(
            GatherEnd(
                state: .failed, progress: progress, resultBytes: 8, leafExit: -1, deadlinePassed: true, message: "why")),
        .final(GatherEnd(state: .succeeded, progress: GatherProgress(), resultBytes: 0)),
        .leafHello(name: "pod", node: "n"), .ask,
        .output(AttemptID(3), [4]), .ended(AttemptID(4), .exited(3)), .ended(AttemptID(4), .signalled(9)),
        .ended(AttemptID(4), .timedOut), .ended(AttemptID(4), .notStarted("x")), .ended(AttemptID(4), .impossible("y")),
        .ended(AttemptID(4), .cancelled), .alive, .leafWelcome(job: "j"),
        .shard(ShardOrder(attempt: AttemptID(1), shard: 2, total: nil, number: 3, time: .seconds(4), inputBytes: 5)),
        .shard(ShardOrder(attempt: AttemptID(1), shard: 2, total: 9, number: 3, time: nil, inputBytes: 5)),
        .shardInput(AttemptID(6), [7]), .shardInputEnd(AttemptID(8)), .cancel(AttemptID(9), grace: .milliseconds(40)),
        .stop,
    ]

    @Test(arguments: messages) func comesBackAsItWas(message: GatherMessage) throws {
        var decoder = FrameDecoder(limit: GatherLimits.messageBytes)
        decoder.feed(message.encoded)
        let frame = try #require(try decoder.next())
        #expect(try GatherMessage(frame) == message)
        #expect(decoder.pendingBytes == 0)
    }

    @Test(arguments: messages) func aMessageCutShortIsRefused(message: GatherMessage) throws {
        var decoder = FrameDecoder()
        decoder.feed(message.encoded)
        var frame = try #require(try decoder.next())
        switch message {
        // What is left is a shorter piece of bytes.
        case .file, .input, .result, .output, .shardInput: return
        default: break
        }
        guard frame.payload.popLast() != nil else { return }
        #expect(throws: WireError.self) { try GatherMessage(frame) }
    }

    @Test func unknownKindsAreRefused() {
        #expect(throws: WireError.self) { try GatherMessage(Frame(kind: 200, channel: 0, payload: [])) }
    }
}
