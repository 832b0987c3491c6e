// The state machine behind the log: queues, leases, pods and gathers, and the sessions that make a command apply once. It is
// a function of the log alone: time is the log's own, stamped by leaders.
import Leases
import Model
import Queues
import Scheduling
import Wire

/// What one entry of kind `command` carries: the log time at which the leader made it, and commands in order.
struct LogPayload: Sendable {
    static let version: UInt8 = 1
    static let commandLimit = 65_536

    /// Log time: milliseconds that pass only while there is a leader.
    var milliseconds: UInt64
    var commands: [ClientCommand]
    /// What it was decoded from: the bodies of its jobs are parts of this.
    private(set) var bytes: [UInt8]?

    var encoded: [UInt8] {
        var writer = ByteWriter(capacity: commands.reduce(32) { $0 + $1.command.weight })
        writer.u8(LogPayload.version)
        writer.varint(milliseconds)
        writer.count(commands.count)
        for command in commands { command.encode(into: &writer) }
        return writer.bytes
    }

    init(milliseconds: UInt64, commands: [ClientCommand]) {
        self.milliseconds = milliseconds
        self.commands = commands
    }

    init(decoding bytes: [UInt8]) throws(WireError) {
        self.bytes = bytes
        var reader = ByteReader(bytes)
        guard try reader.u8() == LogPayload.version else { throw .invalid(at: 0, what: "log payload version") }
        milliseconds = try reader.varint()
        let count = try reader.count(max: LogPayload.commandLimit, itemBytes: 20)
        commands = []
        commands.reserveCapacity(count)
        for _ in 0..<count { commands.append(try ClientCommand(decoding: &reader)) }
        try reader.finish()
    }
}

/// The replicated state of one cluster.
struct ReplicatedState: Sendable {
    static let version: UInt8 = 1

    var queues = QueueMachine()
    var leases = LeaseMachine()
    var scheduling = SchedulingMachine()
    private(set) var sessions = SessionTable()
    /// Log time.
    private(set) var milliseconds: UInt64 = 0
    /// The last entry that was applied, of any kind.
    var appliedIndex: UInt64 = 0

    /// The reply to one command of an entry.
    struct Applied {
        var command: ClientCommand
        var result: StateResult
        /// The command was not executed now: this is the reply of the first time.
        var isReplay: Bool
    }

    init() {}

    /// Applies an entry's commands in order. Total: a payload that can not be read changes nothing, equally on every node.
    /// `withReplies` false: nobody waits for them here, and none are returned.
    mutating func apply(_ payload: LogPayload, index: UInt64, withReplies: Bool = true) -> [Applied] {
        advance(to: payload.milliseconds)
        var applied: [Applied] = []
        if withReplies { applied.reserveCapacity(payload.commands.count) }
        // Tokens and ids derive from the index; the position keeps those of one entry apart.
        for (position, command) in payload.commands.enumerated() {
            let (result, isReplay) = apply(
                command, index: index << 12 | UInt64(min(position, 4_095)), payload: payload.bytes)
            if withReplies { applied.append(Applied(command: command, result: result, isReplay: isReplay)) }
        }
        return applied
    }

    /// Expires what is due.
    private mutating func advance(to milliseconds: UInt64) {
        guard milliseconds > self.milliseconds else { return }
        let isNewSecond = milliseconds / 1_000 != self.milliseconds / 1_000
        self.milliseconds = milliseconds
        queues.expire(now: milliseconds)
        leases.expire(now: milliseconds)
        scheduling.expire(now: milliseconds)
        // Looks through all of them: not for every entry.
        if isNewSecond { sessions.expire(milliseconds: milliseconds) }
    }

    private mutating func apply(_ command: ClientCommand, index: UInt64, payload: [UInt8]?) -> (
        StateResult, isReplay: Bool
    ) {
        if case .endSession = command.command {
            sessions.end(command.session, milliseconds: milliseconds)
            return (.done, false)
        }
        let session = sessions.find(command.session)
        switch sessions.verdict(session, sequence: command.sequence) {
        case .stale: return (.stale, true)
        case .replay(let reply):
            var reader = ByteReader(reply)
            return ((try? StateResult(decoding: &reader)) ?? .stale, true)
        case .new: break
        }
        let result: StateResult
        switch command.command {
        case .queue(let queue):
            result = .queue(queues.apply(queue, index: index, now: milliseconds, payload: payload))
        case .lease(let lease): result = .lease(leases.apply(lease, index: index, now: milliseconds))
        case .scheduling(let scheduling):
            result = .scheduling(self.scheduling.apply(scheduling, index: index, now: milliseconds))
        case .tick, .endSession: return (.done, false)
        }
        // A wait that found nothing goes on: it is not the command's reply yet.
        if !(command.wait != nil && result.isEmptyHanded) {
            sessions.record(
                command.session, at: session, sequence: command.sequence, firstOutstanding: command.firstOutstanding,
                reply: result.encoded, milliseconds: milliseconds)
        }
        return (result, false)
    }

    /// The reply that a command got earlier, if its session remembers: it need not go through the log again.
    func earlierReply(to command: ClientCommand) -> StateResult? {
        if case .endSession = command.command { return nil }
        switch sessions.verdict(command.session, sequence: command.sequence) {
        case .new: return nil
        case .stale: return .stale
        case .replay(let reply):
            var reader = ByteReader(reply)
            return try? StateResult(decoding: &reader)
        }
    }

    var sessionCount: Int { sessions.count }

    /// When log time next makes something due.
    var nextDeadline: UInt64? {
        [queues.nextDeadline, leases.nextDeadline].compactMap { $0 }.min()
    }

    // MARK: - Snapshot

    var encoded: [UInt8] {
        var all: [UInt8] = []
        encode { if all.isEmpty { all = $0 } else { all += $0 } }
        return all
    }

    /// Jobs, of which there are millions, are handed on in pieces of about so much.
    private static let pieceBytes = 1 << 20

    /// Hands out ``encoded`` piece by piece.
    func encode<E>(_ visit: ([UInt8]) throws(E) -> Void) throws(E) {
        var writer = ByteWriter(capacity: 65_536)
        writer.u8(ReplicatedState.version)
        writer.u64(appliedIndex)
        writer.u64(milliseconds)
        sessions.encode(into: &writer)
        try queues.encode(into: &writer) { (writer: inout ByteWriter) throws(E) in
            if writer.count >= ReplicatedState.pieceBytes { try visit(writer.take()) }
        }
        leases.encode(into: &writer)
        scheduling.encode(into: &writer)
        try visit(writer.take())
    }

    init(decoding bytes: [UInt8]) throws(WireError) {
        var reader = ByteReader(bytes)
        guard try reader.u8() == ReplicatedState.version else { throw .invalid(at: 0, what: "state version") }
        appliedIndex = try reader.u64()
        milliseconds = try reader.u64()
        sessions = try SessionTable(decoding: &reader)
        queues = try QueueMachine(decoding: &reader)
        leases = try LeaseMachine(decoding: &reader)
        scheduling = try SchedulingMachine(decoding: &reader)
        try reader.finish()
    }
}

/// The replicated state as it was at one moment. To take it costs nothing, for the state's collections are shared until one of
/// them changes; ``encoded`` costs time in proportion to the state, and any thread may pay it: a loop that did would be silent
/// for as long (700 000 jobs: 0.3 s, and the leader is deposed).
public struct StateImage: Sendable {
    private let state: ReplicatedState
    init(_ state: ReplicatedState) { self.state = state }

    /// The bytes of a snapshot's state.
    public var encoded: [UInt8] { state.encoded }

    /// The same in pieces, in order, so that a large state is not in memory twice.
    public func encode<E>(_ visit: ([UInt8]) throws(E) -> Void) throws(E) { try state.encode(visit) }
}

extension StateResult {
    /// True for the answer to a reserve or an acquire that got nothing, which a waiting client does not want to hear yet.
    var isEmptyHanded: Bool {
        switch self {
        case .queue(.reserved(let jobs)): jobs.isEmpty
        case .lease(.held): true
        default: false
        }
    }
}
