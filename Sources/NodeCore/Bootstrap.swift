// How identical nodes form exactly one cluster. A node that has never belonged to one is *virgin*; gossip tells it of the
// others. When K virgins that expect K are stable, the one with the smallest id asks all K for a durable promise and, holding
// all K, writes the first configuration into its log. Two sides of a partition can not both hold all promises, and a node
// promises one attempt at a time.
//
//      virgin ──ask──▶ promised(initiator, attempt) ──replication──▶ member
//         ▲                 │ released: the initiator gave the attempt up
//         └─────────────────┘
//
// Only the initiator of an attempt uses its promises, so that it alone can give it up: it does when a node with a smaller id
// asks it, or a node it asked has promised to one, and the smaller one wins; and when other nodes are there than it asked. A
// node that still holds a promise for an attempt that was given up learns it when it next refuses somebody for it.
import Model
import Wire

/// What is gossiped of a node's standing, in the member's `meta`.
public struct Standing: Hashable, Sendable {
    public enum State: UInt8, Sendable { case virgin = 0, member = 1 }
    public var state: State
    /// K of `--expect`; 0 for a node that only joins.
    public var expect: UInt8
    /// Ports of the services that have one of their own; 0 for none.
    public var httpPort: UInt16
    public var queuePort: UInt16
    /// Runs no new pods.
    public var cordoned: Bool
    /// Of a member.
    public var lineage: Lineage

    public init(
        state: State, expect: UInt8, httpPort: UInt16 = 0, queuePort: UInt16 = 0, cordoned: Bool = false,
        lineage: Lineage = .original
    ) {
        self.lineage = lineage
        self.state = state
        self.expect = expect
        self.httpPort = httpPort
        self.queuePort = queuePort
        self.cordoned = cordoned
    }

    public var encoded: [UInt8] {
        var writer = ByteWriter()
        writer.u8(1)
        writer.u8(state.rawValue)
        writer.u8(expect)
        writer.u16(httpPort)
        writer.u16(queuePort)
        writer.bool(cordoned)
        writer.u64(lineage.rawValue)
        return writer.bytes
    }

    /// Nil if the bytes are not a standing of a version we know; such a member is only a member.
    public init?(decoding bytes: [UInt8]) {
        var reader = ByteReader(bytes)
        guard (try? reader.u8()) == 1, let state = (try? reader.u8()).flatMap(State.init(rawValue:)),
            let expect = try? reader.u8(),
            let http = try? reader.u16(), let queue = try? reader.u16(), let cordoned = try? reader.bool()
        else { return nil }
        // Builds before recovery was possible say nothing of it.
        let lineage = (try? reader.u64()).map { Lineage(rawValue: $0) } ?? .original
        self.init(
            state: state, expect: expect, httpPort: http, queuePort: queue, cordoned: cordoned, lineage: lineage)
    }
}

/// The promise that a virgin node has given, kept durably.
public struct BootstrapPromise: Hashable, Sendable {
    public var initiator: NodeID
    public var attempt: UInt64
    /// Sorted.
    public var voters: [NodeID]

    public init(initiator: NodeID, attempt: UInt64, voters: [NodeID]) {
        self.initiator = initiator
        self.attempt = attempt
        self.voters = voters
    }

    public var encoded: [UInt8] {
        var writer = ByteWriter()
        writer.u8(1)
        writer.nodeID(initiator)
        writer.u64(attempt)
        writer.count(voters.count)
        for voter in voters { writer.nodeID(voter) }
        return writer.bytes
    }

    public init(decoding bytes: [UInt8]) throws(WireError) {
        var reader = ByteReader(bytes)
        guard try reader.u8() == 1 else { throw .invalid(at: 0, what: "promise version") }
        initiator = try reader.nodeID()
        attempt = try reader.u64()
        voters = []
        for _ in 0..<(try reader.count(max: 7, itemBytes: 16)) { voters.append(try reader.nodeID()) }
        try reader.finish()
    }
}

/// The pure part of bootstrapping, for a node that is still virgin.
struct Bootstrap: Sendable {
    /// The set of virgins must have been the same for so long.
    static let stability = TimeSpan.milliseconds(400)
    static let retry = TimeSpan.milliseconds(300)

    enum Message: Hashable, Sendable {
        case ask(BootstrapPromise)
        case granted(attempt: UInt64)
        /// `to` is whom the node has promised itself to, or nil if it is no longer virgin.
        case refused(attempt: UInt64, to: NodeID?)
        case release(attempt: UInt64)
    }

    enum Effect: Hashable, Sendable {
        /// Keep (or with nil forget) the promise durably, then call ``Bootstrap/persisted(now:)``.
        case persist(BootstrapPromise?)
        case send(Message, to: NodeID)
        /// All K promises are held: write the first configuration.
        case form(voters: [NodeID], attempt: UInt64)
    }

    let id: NodeID
    let expect: Int
    private(set) var promise: BootstrapPromise?
    private(set) var nextDeadline = MonotonicTime.distantFuture

    private var attempts: UInt64
    private var granted: Set<NodeID> = []
    private var candidates: [NodeID] = []
    private var candidatesSince = MonotonicTime.zero
    /// Runs when the promise on disk is what memory says.
    private var afterPersist: [Effect] = []
    private var persisting = false
    private var effects: [Effect] = []
    private var formed = false

    /// `startCounter` makes attempts of different runs differ.
    init(id: NodeID, expect: Int, kept: BootstrapPromise?, startCounter: UInt64) {
        self.id = id
        self.expect = expect
        promise = kept
        attempts = startCounter << 20
        // An attempt of an earlier run of ours is over: its grants are not held any more.
        if let kept, kept.initiator == id {
            promise = nil
            effects.append(.persist(nil))
            persisting = true
            for voter in kept.voters where voter != id {
                afterPersist.append(.send(.release(attempt: kept.attempt), to: voter))
            }
        }
    }

    mutating func takeEffects() -> [Effect] {
        defer { effects = [] }
        return effects
    }

    /// The virgins that gossip knows to be alive and that expect the same K, this node included.
    mutating func update(virgins: [NodeID], now: MonotonicTime) {
        guard expect > 0, !formed else { return }
        let sorted = Array(virgins.sorted().prefix(expect))
        if sorted != candidates {
            candidates = sorted
            candidatesSince = now
        }
        let stable = expect == 1 ? now : candidatesSince + Bootstrap.stability
        guard candidates.count == expect, candidates.first == id else {
            nextDeadline = .distantFuture
            return
        }
        guard now >= stable else {
            nextDeadline = stable
            return
        }
        nextDeadline = now + Bootstrap.retry
        guard !persisting else { return }
        if let promise {
            guard promise.initiator == id else { return }
            // Asked again: an answer may have been lost. Others than at first: one of those has gone.
            if promise.voters == candidates { askRest(promise) } else { giveUp(promise) }
            return
        }
        attempts += 1
        let own = BootstrapPromise(initiator: id, attempt: attempts, voters: candidates)
        granted = [id]
        persist(own, then: [])
        // The others are asked once our own promise is durable.
    }

    private mutating func persist(_ value: BootstrapPromise?, then: [Effect]) {
        promise = value
        persisting = true
        effects.append(.persist(value))
        afterPersist.append(contentsOf: then)
    }

    mutating func persisted(now: MonotonicTime) {
        persisting = false
        effects.append(contentsOf: afterPersist)
        afterPersist = []
        if let promise, promise.initiator == id { askRest(promise) }
    }

    private mutating func askRest(_ promise: BootstrapPromise) {
        if granted.count == promise.voters.count && !formed {
            formed = true
            nextDeadline = .distantFuture
            effects.append(.form(voters: promise.voters, attempt: promise.attempt))
            return
        }
        for voter in promise.voters where !granted.contains(voter) { effects.append(.send(.ask(promise), to: voter)) }
    }

    mutating func receive(_ message: Message, from sender: NodeID, isVirgin: Bool, now: MonotonicTime) {
        switch message {
        case .ask(let asked):
            guard asked.initiator == sender, asked.voters.contains(id) else { return }
            guard isVirgin, !formed else {
                effects.append(.send(.refused(attempt: asked.attempt, to: nil), to: sender))
                return
            }
            guard !persisting else { return }
            if let promise, promise != asked {
                if promise.initiator == sender && asked.attempt > promise.attempt {
                    // The initiator has given its earlier attempt up by starting this one.
                    persist(asked, then: [.send(.granted(attempt: asked.attempt), to: sender)])
                } else {
                    effects.append(.send(.refused(attempt: asked.attempt, to: promise.initiator), to: sender))
                    if promise.initiator != id {
                        // It may have given up, and its release was lost: reminded, it says so again.
                        effects.append(.send(.granted(attempt: promise.attempt), to: promise.initiator))
                    } else if sender < id {
                        giveUp(promise)
                    }
                }
            } else if promise == nil {
                persist(asked, then: [.send(.granted(attempt: asked.attempt), to: sender)])
            } else {
                effects.append(.send(.granted(attempt: asked.attempt), to: sender))
            }
        case .granted(let attempt):
            guard let promise, promise.initiator == id, promise.attempt == attempt else {
                effects.append(.send(.release(attempt: attempt), to: sender))
                return
            }
            guard !persisting, promise.voters.contains(sender) else { return }
            granted.insert(sender)
            askRestIfComplete(promise)
        case .refused(let attempt, let other):
            guard let promise, promise.initiator == id, promise.attempt == attempt, !persisting, !formed else { return }
            // Give way to a smaller initiator, or to a cluster that exists already.
            if let other, other >= id { return }
            giveUp(promise)
        case .release(let attempt):
            guard let promise, promise.initiator == sender, promise.attempt == attempt, !persisting else { return }
            persist(nil, then: [])
        }
    }

    /// Only for an attempt of this node's own: nobody else ever uses its promises.
    private mutating func giveUp(_ promise: BootstrapPromise) {
        granted = []
        persist(nil, then: promise.voters.filter { $0 != id }.map { .send(.release(attempt: promise.attempt), to: $0) })
    }

    private mutating func askRestIfComplete(_ promise: BootstrapPromise) {
        if granted.count == promise.voters.count { askRest(promise) }
    }
}

extension Bootstrap.Message {
    var encoded: [UInt8] {
        var writer = ByteWriter()
        switch self {
        case .ask(let promise):
            writer.u8(1)
            writer.slice(promise.encoded)
        case .granted(let attempt):
            writer.u8(2)
            writer.u64(attempt)
        case .refused(let attempt, let to):
            writer.u8(3)
            writer.u64(attempt)
            writer.optional(to) { $0.nodeID($1) }
        case .release(let attempt):
            writer.u8(4)
            writer.u64(attempt)
        }
        return writer.bytes
    }

    init(decoding bytes: [UInt8]) throws(WireError) {
        var reader = ByteReader(bytes)
        switch try reader.u8() {
        case 1: self = .ask(try BootstrapPromise(decoding: try reader.array(max: 1_024)))
        case 2: self = .granted(attempt: try reader.u64())
        case 3:
            self = .refused(
                attempt: try reader.u64(),
                to: try reader.optional { (r: inout ByteReader) throws(WireError) in try r.nodeID() })
        case 4: self = .release(attempt: try reader.u64())
        default: throw .invalid(at: 0, what: "bootstrap message")
        }
    }
}
