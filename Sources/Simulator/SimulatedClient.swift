// A simulated client program: what `Client/RequestEngine` does (one connection at a time, sessions and sequences, the same
// command again after a break), and a small program of its own that asks.
import Model
import NodeCore
import Wire

/// One request from its asking to its end.
final class Operation {
    enum Kind {
        case command(StateCommand, lane: Int, sequence: UInt64)
        case query(String)
    }

    let number: UInt64
    let kind: Kind
    let askedAt: MonotonicTime
    let waitUntil: MonotonicTime?
    let deadline: MonotonicTime
    /// Everything answered before this was asked is at or below this index; so is what its answer must have seen.
    let seenIndex: UInt64
    var channel: UInt32?
    var sentAt = MonotonicTime.zero
    var unresolvedSends = 0
    /// Its place in the history.
    var recorded: Int?
    /// Called once, at the end.
    let then: (Ending) throws -> Void

    init(
        number: UInt64, kind: Kind, askedAt: MonotonicTime, waitUntil: MonotonicTime?, deadline: MonotonicTime,
        seenIndex: UInt64,
        then: @escaping (Ending) throws -> Void
    ) {
        self.number = number
        self.kind = kind
        self.askedAt = askedAt
        self.waitUntil = waitUntil
        self.deadline = deadline
        self.seenIndex = seenIndex
        self.then = then
    }
}

/// How an operation ended.
enum Ending {
    case result(StateResult)
    case document(JSONValue)
    case refused(CoterieError)
    /// No answer in time; if it was sent, it may have been carried out.
    case unknown(wasSent: Bool)
}

final class SimulatedClient {
    enum Role: String, CaseIterable { case producer, worker, elector, observer, keeper, porter, probe }

    struct Lane {
        let id: SessionID
        let waits: Bool
        var next: UInt64 = 1
        var outstanding: Set<UInt64> = []
        var firstOutstanding: UInt64 { outstanding.min() ?? next }
    }

    struct Connection {
        let id: UInt64
        let host: Int
        let life: Int
    }

    static let silenceLimit = TimeSpan.milliseconds(1_500)

    let index: Int
    let role: Role
    var generator: SeededGenerator
    var lanes: [Lane] = []
    var connection: Connection?
    var nextChannel: UInt32 = 1
    /// Asked and not ended, by number.
    var operations: [UInt64: Operation] = [:]
    var isSearching = false
    var isDone = false
    var isEnding = false

    // MARK: Program

    /// Operations of the program that are under way.
    var active = 0
    /// The elector's lease.
    var held: (key: String, token: UInt64)?
    /// Jobs that this worker has in hand.
    var jobsInHand = 0
    /// Names of pods that this keeper has made.
    var podNames: [String] = []
    var nextPod = 0

    init(index: Int, role: Role, generator: SeededGenerator) {
        self.index = index
        self.role = role
        self.generator = generator
        lanes = [Lane(id: SessionID(using: &self.generator), waits: false)]
    }

    func random(_ range: Range<Int64>) -> TimeSpan {
        .microseconds(range.lowerBound + Int64(generator.next() % UInt64(range.upperBound - range.lowerBound)))
    }

    /// A lane and sequence for a command: one that waits has a session in which nothing else is outstanding.
    func openLane(waits: Bool) -> (lane: Int, sequence: UInt64) {
        let lane: Int
        if let free = lanes.firstIndex(where: { $0.waits == waits && (!waits || $0.outstanding.isEmpty) }) {
            lane = free
        } else {
            lane = lanes.count
            lanes.append(Lane(id: SessionID(using: &generator), waits: waits))
        }
        let sequence = lanes[lane].next
        lanes[lane].next += 1
        lanes[lane].outstanding.insert(sequence)
        return (lane, sequence)
    }

    func request(_ operation: Operation, now: MonotonicTime) -> ClientRequest {
        switch operation.kind {
        case .query(let path): return .query(path: path)
        case .command(let command, let lane, let sequence):
            let wait = operation.waitUntil.map { max(.zero, $0 - now) }
            return .command(
                ClientCommand(
                    session: lanes[lane].id, sequence: sequence, firstOutstanding: lanes[lane].firstOutstanding,
                    wait: wait,
                    command: command))
        }
    }

    func close(_ operation: Operation) {
        operations[operation.number] = nil
        if case .command(_, let lane, let sequence) = operation.kind { lanes[lane].outstanding.remove(sequence) }
    }
}
