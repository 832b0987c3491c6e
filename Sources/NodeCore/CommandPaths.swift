// The way of a command: from whoever asks, through this node, to the leader, into the log, and back. A command is owned by
// the node it entered at until it is answered: that node sends it again to every new leader, which is harmless because the
// session table applies it once.
//
//     asked ──this node leads──▶ proposed ──committed and applied──▶ answered
//       │                          ▲  │ found nothing and may wait
//       │                          │  ▼
//       │                        parked (soft state of the leader, woken by what makes its wish come true)
//       └──else──▶ forwarded to the leader, whose answer ends it
import Leases
import Model
import Queues
import Wire

/// Identifies a command wherever it is.
struct CommandKey: Hashable, Sendable {
    var session: SessionID
    var sequence: UInt64

    init(_ command: ClientCommand) {
        session = command.session
        sequence = command.sequence
    }
}

/// Who waits for an answer at this node.
enum CommandOrigin: Hashable, Sendable {
    case request(RequestID)
    /// A connection of the queue protocol, by the driver's number.
    case local(UInt64)
    /// An operator's order that a command carries out: answered as orders are.
    case order(RequestID)
    /// The node's own housekeeping: nobody reads the answer.
    case own
}

/// Who waits for an answer at the leader.
enum LeaderOrigin: Hashable, Sendable {
    case here(UInt64)
    case peer(NodeID, UInt64)
}

/// Soft state of the ways of commands.
struct CommandPaths: Sendable {
    /// A command that entered the cluster at this node and is not answered yet.
    struct Owned: Sendable {
        var command: ClientCommand
        var origin: CommandOrigin
        var askedAt: MonotonicTime
        /// For commands that wait: until when.
        var waitUntil: MonotonicTime?
        /// It was given to a leader, here or elsewhere, and is given again at ``resendAt``.
        var wasSent = false
        /// How often it was given to a leader that has not said since that it did not take it.
        var openSends = 0
        /// It may have reached a log: its outcome is unknown until it is answered.
        var mayBeLogged: Bool { openSends > 0 }
        /// Sent again at this time if it is not answered by then.
        var resendAt = MonotonicTime.zero
    }

    /// A command at the leader that is in the log or about to be.
    struct InFlight: Sendable {
        var origins: [LeaderOrigin]
        var waitUntil: MonotonicTime?
    }

    struct Parked: Sendable {
        var command: ClientCommand
        var origins: [LeaderOrigin]
        var waitUntil: MonotonicTime
    }

    struct Read: Sendable {
        enum Origin: Hashable, Sendable {
            case query(RequestID, path: String)
            /// A query of the queue protocol: the driver asks when it is told.
            case local(UInt64)
            case peer(NodeID, UInt64)
        }
        var origin: Origin
        var askedAt: MonotonicTime
        var resendAt = MonotonicTime.zero
        /// Known once the leader has answered: served when this is applied.
        var index: UInt64?
    }

    static let resendAfter = TimeSpan.seconds(1)
    /// A command that waits at the leader says nothing for long: it is only sent again in case it was lost on its way.
    static let resendWaitingAfter = TimeSpan.seconds(3)
    /// Without a leader for so long, what never left this node is answered so.
    static let leaderPatience = TimeSpan.seconds(2)
    static let ownedLimit = 200_000
    static let parkedLimit = 200_000

    let session: SessionID
    private var ownSequence: UInt64 = 0
    private var ownOutstanding: [UInt64] = []
    private var nextID: UInt64

    var owned: [UInt64: Owned] = [:]
    /// Owned commands that do not wait and were sent to a leader: what this node applies itself answers them as well as the
    /// leader's word does, and often sooner.
    private var forwarded: [CommandKey: UInt64] = [:]
    /// Owned commands that have to be (re)sent as soon as there is a leader, in the order they came.
    var unsent: [UInt64] = []
    var inFlight: [CommandKey: InFlight] = [:]
    /// Forwarded to this node since it leads, and not taken yet: those that may wait are not before it has committed an entry
    /// of its term. By arrival.
    var early: [(command: ClientCommand, from: NodeID, id: UInt64, waitUntil: MonotonicTime?)] = []
    static let earlyLimit = 65_536
    /// Commands for the next entry.
    var proposals: [ClientCommand] = []
    /// About how many bytes they will take.
    var proposedWeight = 0
    var entryOpenedAt = MonotonicTime.zero
    /// So much is proposed however many entries are on their way.
    static let gatheredLimit = 256 << 10
    /// Clients that were just answered and are expected back.
    var returning: ReturningClients
    /// By arrival.
    var parked: [UInt64: Parked] = [:]
    var parkedKeys: [CommandKey: UInt64] = [:]
    var tubeWaiters: [String: [UInt64]] = [:]
    var leaseWaiters: [String: [UInt64]] = [:]
    private var nextPark: UInt64 = 1
    var reads: [UInt64: Read] = [:]
    var leaderlessSince: MonotonicTime?
    /// Owned commands and reads are looked through not before this.
    var nextSweep = MonotonicTime.distantFuture
    var nextParkedDeadline = MonotonicTime.distantFuture
    /// Commands whose wait ended with nothing, newest last. Another copy of one that was on its way may be served all the same.
    private var emptied: [UInt64] = []
    static let emptiedLimit = 1_024

    mutating func noteEmptied(_ id: UInt64) {
        if emptied.count >= CommandPaths.emptiedLimit { emptied.removeFirst() }
        emptied.append(id)
    }

    /// True, once, if the command was answered with nothing.
    mutating func takeEmptied(_ id: UInt64) -> Bool {
        guard let position = emptied.lastIndex(of: id) else { return false }
        emptied.remove(at: position)
        return true
    }

    init(session: SessionID, firstForward: UInt64, patience: TimeSpan) {
        returning = ReturningClients(patience: patience)
        self.session = session
        nextID = firstForward + 1
        leaderlessSince = .zero
    }

    mutating func takeID() -> UInt64 {
        defer { nextID += 1 }
        return nextID
    }

    /// A command of the node's own session.
    mutating func ownCommand(_ command: StateCommand, wait: TimeSpan?) -> ClientCommand {
        ownSequence += 1
        ownOutstanding.append(ownSequence)
        return ClientCommand(
            session: session, sequence: ownSequence, firstOutstanding: ownOutstanding[0], wait: wait, command: command)
    }

    mutating func ownDone(_ command: ClientCommand) {
        guard command.session == session else { return }
        let position = ownOutstanding.partitioningIndex { $0 >= command.sequence }
        if position < ownOutstanding.count, ownOutstanding[position] == command.sequence {
            ownOutstanding.remove(at: position)
        }
    }

    mutating func noteForwarded(_ id: UInt64, _ command: ClientCommand) {
        if command.wait == nil { forwarded[CommandKey(command)] = id }
    }

    /// The owned command that was sent to a leader as this one.
    func forwardedID(of key: CommandKey) -> UInt64? { forwarded.isEmpty ? nil : forwarded[key] }

    /// Somebody waits for what entries that are applied give back.
    var expectsReplies: Bool { !inFlight.isEmpty || !forwarded.isEmpty }

    /// Nobody waits for it any more, or it is answered.
    mutating func disown(_ id: UInt64) {
        guard let gone = owned.removeValue(forKey: id) else { return }
        if !forwarded.isEmpty, gone.command.wait == nil { forwarded[CommandKey(gone.command)] = nil }
        ownDone(gone.command)
    }

    mutating func park(_ command: ClientCommand, origins: [LeaderOrigin], until: MonotonicTime) {
        let key = CommandKey(command)
        if let id = parkedKeys[key] {
            parked[id]?.origins = origins
            return
        }
        let id = nextPark
        nextPark += 1
        parked[id] = Parked(command: command, origins: origins, waitUntil: until)
        parkedKeys[key] = id
        for tube in command.command.waitedTubes { tubeWaiters[tube, default: []].append(id) }
        if let lease = command.command.waitedLease { leaseWaiters[lease, default: []].append(id) }
        nextParkedDeadline = min(nextParkedDeadline, until)
    }

    @discardableResult
    mutating func unpark(_ id: UInt64) -> Parked? {
        guard let item = parked.removeValue(forKey: id) else { return nil }
        parkedKeys[CommandKey(item.command)] = nil
        for tube in item.command.command.waitedTubes { remove(id, from: tube, in: \.tubeWaiters) }
        if let lease = item.command.command.waitedLease { remove(id, from: lease, in: \.leaseWaiters) }
        return item
    }

    private mutating func remove(
        _ id: UInt64, from name: String, in map: WritableKeyPath<CommandPaths, [String: [UInt64]]>
    ) {
        guard var ids = self[keyPath: map].removeValue(forKey: name) else { return }
        let position = ids.partitioningIndex { $0 >= id }
        if position < ids.count, ids[position] == id { ids.remove(at: position) }
        if !ids.isEmpty { self[keyPath: map][name] = ids }
    }

    /// Waiting workers by tube, for `queue list`.
    var waitingByTube: [String: Int] { tubeWaiters.mapValues(\.count) }

    mutating func leaderAppeared() {
        leaderlessSince = nil
        for id in owned.keys.sorted() where owned[id]?.resendAt != .distantFuture { owned[id]?.resendAt = .zero }
        for id in reads.keys { reads[id]?.resendAt = .zero }
        unsent = owned.keys.sorted()
        nextSweep = .zero
    }

    /// Something may have been lost on its way to or from the leader.
    mutating func leaderStreamBroke() {
        for id in owned.keys { owned[id]?.resendAt = .zero }
        for id in reads.keys { reads[id]?.resendAt = .zero }
        nextSweep = .zero
    }

    mutating func leaderVanished(now: MonotonicTime) {
        if leaderlessSince == nil { leaderlessSince = now }
        // If this node is the next one, all of them are in its first entry.
        unsent = owned.keys.sorted()
        nextSweep = min(nextSweep, now + CommandPaths.leaderPatience)
    }

    /// What the leader alone knows is forgotten: owners send again. Returns who asked for what surely is in no log.
    mutating func stopLeading() -> [LeaderOrigin] {
        let neverLogged =
            early.map { LeaderOrigin.peer($0.from, $0.id) }
            + proposals.flatMap { inFlight[CommandKey($0)]?.origins ?? [] }
            + parked.values.flatMap(\.origins).filter { if case .here = $0 { true } else { false } }
        early = []
        inFlight = [:]
        returning = ReturningClients(patience: returning.patience)
        proposals = []
        proposedWeight = 0
        parked = [:]
        parkedKeys = [:]
        tubeWaiters = [:]
        leaseWaiters = [:]
        nextParkedDeadline = .distantFuture
        // Peers ask their new leader for reads again.
        reads = reads.filter { if case .peer = $0.value.origin { false } else { true } }
        return neverLogged
    }

    var nextDeadline: MonotonicTime {
        var deadline = MonotonicTime.distantFuture
        if !owned.isEmpty || !reads.isEmpty { deadline = nextSweep }
        if !parked.isEmpty { deadline = min(deadline, nextParkedDeadline) }
        return deadline
    }
}

extension StateCommand {
    /// Tubes whose new jobs would serve this command.
    var waitedTubes: [String] { if case .queue(.reserve(let tubes, _, _)) = self { tubes } else { [] } }
    var waitedLease: String? { if case .lease(.acquire(let key, _, _, _)) = self { key } else { nil } }
}

extension NodeCore {
    // MARK: - Asked here

    mutating func submit(_ command: StateCommand, wait: TimeSpan?, origin: CommandOrigin) {
        submit(paths.ownCommand(command, wait: wait), origin: origin)
    }

    mutating func submit(_ command: ClientCommand, origin: CommandOrigin) {
        // The node's own commands are few, and nobody would give them again.
        guard origin == .own || paths.owned.count < CommandPaths.ownedLimit else {
            return finish(
                origin, .failure(CoterieError(.busy, "this node has too many commands under way", hint: "try again")))
        }
        let id = paths.takeID()
        var owned = CommandPaths.Owned(command: command, origin: origin, askedAt: now)
        owned.waitUntil = command.wait.map { now + $0 }
        paths.owned[id] = owned
        paths.unsent.append(id)
        paths.nextSweep = min(paths.nextSweep, now + CommandPaths.resendAfter)
    }

    private mutating func answer(_ id: UInt64, _ result: Result<StateResult, CoterieError>) {
        guard let owned = paths.owned[id] else { return }
        if owned.origin == .own, case .failure(let error) = result, error.code == .busy {
            // A pod's status, say, that nobody would report again.
            paths.owned[id]?.resendAt = now + .milliseconds(200)
            paths.nextSweep = min(paths.nextSweep, now + .milliseconds(200))
            return
        }
        paths.disown(id)
        finish(owned.origin, result)
    }

    private mutating func finish(_ origin: CommandOrigin, _ result: Result<StateResult, CoterieError>) {
        switch origin {
        case .request(let id):
            switch result {
            case .success(let value): effects.append(.respond(id, .success(value.encoded)))
            case .failure(let error): effects.append(.respond(id, .failure(error)))
            }
        case .local(let id): effects.append(.localResult(id, result))
        case .order(let id):
            switch result {
            case .success(.scheduling(.refused(let code, let message, let hint))):
                effects.append(.respond(id, .failure(CoterieError(code, message, hint: hint))))
            case .success: effects.append(.respond(id, .success(JSONValue.object([.init("done", true)]).utf8)))
            case .failure(let error): effects.append(.respond(id, .failure(error)))
            }
        case .own: break
        }
    }

    /// Nobody waits any more for what `matches`. A command that may be in the log runs its course; a parked one is given up.
    mutating func cancel(_ matches: (CommandOrigin) -> Bool) {
        for (id, owned) in paths.owned.filter({ matches($0.value.origin) }).sorted(by: { $0.key < $1.key }) {
            paths.disown(id)
            if let leader = raft?.leader, leader != options.id, owned.mayBeLogged,
                let member = membership.member(leader)
            {
                var writer = ByteWriter()
                writer.u64(id)
                writer.u64(owned.command.session.high)
                writer.u64(owned.command.session.low)
                writer.varint(owned.command.sequence)
                effects.append(.peerFrame(.forwardCancel, writer.bytes, to: leader, address: member.address))
            } else {
                cancelAtLeader(CommandKey(owned.command), .here(id))
            }
        }
        let gone = paths.reads.filter {
            switch $0.value.origin {
            case .query(let id, _): matches(.request(id))
            case .local(let id): matches(.local(id))
            case .peer: false
            }
        }
        for id in gone.keys { paths.reads[id] = nil }
    }

    /// Ends the wait of an owned command: the leader is asked once more, with no time left.
    mutating func endWait(of origin: CommandOrigin) {
        for (id, owned) in paths.owned where owned.origin == origin {
            paths.owned[id]?.waitUntil = now
            if !paths.unsent.contains(id) { paths.unsent.append(id) }
        }
    }

    private mutating func cancelAtLeader(_ key: CommandKey, _ origin: LeaderOrigin) {
        if let parkID = paths.parkedKeys[key] {
            paths.parked[parkID]?.origins.removeAll { $0 == origin }
            if paths.parked[parkID]?.origins.isEmpty ?? false { paths.unpark(parkID) }
        }
        paths.inFlight[key]?.origins.removeAll { $0 == origin }
        paths.early.removeAll { CommandKey($0.command) == key && .peer($0.from, $0.id) == origin }
    }

    /// Sends what was not sent, and makes the next entries of it if this node leads.
    mutating func proposePending() {
        sweep()
        let unsent = paths.unsent
        paths.unsent = []
        if let raft, raft.isLeader {
            // What has come before this node's first entry of the term shares that entry's message, sync and round. But whether
            // something has to wait is known only when all that others committed is applied here.
            let isReady = raft.isReady
            let early = paths.early
            paths.early = []
            for item in early {
                if isReady || item.waitUntil == nil {
                    take(item.command, from: item.from, item.id, waitUntil: item.waitUntil)
                } else {
                    paths.early.append(item)
                }
            }
            for id in refusingIfFull(unsent) {
                guard let owned = paths.owned[id] else { continue }
                guard isReady || owned.waitUntil == nil else {
                    paths.unsent.append(id)
                    continue
                }
                paths.owned[id]?.wasSent = true
                paths.owned[id]?.openSends += 1
                take(owned.command, origin: .here(id), waitUntil: owned.waitUntil)
            }
            if isReady { tickIfDue() }
            propose()
        } else if let leader = raft?.leader, let address = membership.address(of: leader) {
            for id in unsent {
                guard let owned = paths.owned[id] else { continue }
                paths.owned[id]?.wasSent = true
                paths.owned[id]?.openSends += 1
                let waits = owned.waitUntil.map { $0 > now } ?? false
                paths.owned[id]?.resendAt = now + (waits ? CommandPaths.resendWaitingAfter : CommandPaths.resendAfter)
                paths.noteForwarded(id, owned.command)
                var command = owned.command
                // A time-out counts from when the command was asked, however often it is sent.
                if let until = owned.waitUntil { command.wait = max(.zero, until - now) }
                var writer = ByteWriter(capacity: 64 + command.command.weight)
                writer.u64(id)
                command.encode(into: &writer)
                effects.append(.peerFrame(.forward, writer.bytes, to: leader, address: address))
            }
            sendReads(to: leader, at: address)
        } else {
            paths.unsent = refusingIfFull(unsent)
        }
    }

    /// What is left when those that came new are refused because the disk is full.
    private mutating func refusingIfFull(_ unsent: [UInt64]) -> [UInt64] {
        guard let refusal = fullDisk else { return unsent }
        var left: [UInt64] = []
        for id in unsent {
            if let owned = paths.owned[id], !owned.mayBeLogged, owned.origin != .own {
                answer(id, .failure(refusal))
            } else {
                left.append(id)
            }
        }
        return left
    }

    /// Sends again what was not answered, and answers what has waited long enough for a leader.
    private mutating func sweep() {
        if now >= paths.nextParkedDeadline { endWaits() }
        guard now >= paths.nextSweep else { return }
        var next = now + CommandPaths.resendAfter / 2
        let leads = raft?.isLeader ?? false
        let leaderless = paths.leaderlessSince.map { now - $0 >= CommandPaths.leaderPatience } ?? false
        let waiting = Set(paths.unsent)
        for (id, owned) in paths.owned.sorted(by: { $0.key < $1.key }) {
            if leaderless && !owned.mayBeLogged && now - owned.askedAt >= CommandPaths.leaderPatience
                && owned.origin != .own
            {
                answer(id, .failure(noLeader))
            } else if owned.wasSent && now >= owned.resendAt && !waiting.contains(id) {
                // The leader itself has it already, unless its log refused it (a hand-over that came to nothing).
                let key = CommandKey(owned.command)
                if leads && (paths.inFlight[key] != nil || paths.parkedKeys[key] != nil) { continue }
                paths.unsent.append(id)
            } else if owned.wasSent, owned.resendAt > now {
                next = min(next, owned.resendAt)
            }
        }
        for (id, read) in paths.reads.sorted(by: { $0.key < $1.key }) {
            if read.index == nil, leaderless, now - read.askedAt >= CommandPaths.leaderPatience {
                paths.reads[id] = nil
                switch read.origin {
                case .query(let request, _): effects.append(.respond(request, .failure(noLeader)))
                case .local(let local): effects.append(.localReadReady(local, noLeader))
                case .peer: break
                }
            } else if leads, read.index == nil, now >= read.resendAt {
                paths.reads[id]?.resendAt = now + CommandPaths.resendAfter
                raftInput(.readIndex(context: id))
            } else if read.index == nil, read.resendAt > now {
                next = min(next, read.resendAt)
            }
        }
        paths.nextSweep = next
        paths.unsent.sort()
    }

    var noLeader: CoterieError {
        CoterieError(
            .noLeader, "the cluster has no leader", hint: "a majority of its voters must be up: see coterie members")
    }

    // MARK: - At the leader

    private mutating func take(_ command: ClientCommand, from: NodeID, _ id: UInt64, waitUntil: MonotonicTime?) {
        if let refusal = fullDisk, paths.inFlight[CommandKey(command)] == nil {
            return sendForwarded(id, .failure(refusal), to: from)
        }
        take(command, origin: .peer(from, id), waitUntil: waitUntil)
    }

    /// A command has come to the leader, for the first time or again.
    private mutating func take(_ command: ClientCommand, origin: LeaderOrigin, waitUntil: MonotonicTime?) {
        let key = CommandKey(command)
        if var flying = paths.inFlight[key] {
            if !flying.origins.contains(origin) { flying.origins.append(origin) }
            flying.waitUntil = waitUntil
            paths.inFlight[key] = flying
            return
        }
        if !paths.parkedKeys.isEmpty, let parkID = paths.parkedKeys[key] {
            if !(paths.parked[parkID]?.origins.contains(origin) ?? true) {
                paths.parked[parkID]?.origins.append(origin)
            }
            // Sent again, perhaps with less time left.
            let until = waitUntil ?? now
            paths.parked[parkID]?.waitUntil = until
            if until <= now, !mayLagBehindAnswers {
                if let item = paths.unpark(parkID) { answer(item.origins, .success(emptyHanded(item.command.command))) }
            } else {
                paths.nextParkedDeadline = min(paths.nextParkedDeadline, until)
            }
            return
        }
        if let reply = state.earlierReply(to: command) { return answer([origin], .success(reply)) }
        // What others were told already has to be seen: then only the log can say that there is nothing.
        if let waitUntil, waitUntil > now || !mayLagBehindAnswers, mustWait(command.command) {
            guard waitUntil > now else { return answer([origin], .success(emptyHanded(command.command))) }
            guard paths.parked.count < CommandPaths.parkedLimit else {
                return answer(
                    [origin], .failure(CoterieError(.busy, "too many waiting clients", hint: "try again later")))
            }
            paths.park(command, origins: [origin], until: waitUntil)
            return
        }
        enqueue(command, origins: [origin], waitUntil: waitUntil)
        // A put carries grants to those who wait for it: delivery costs no second round.
        if case .queue(.put(let jobs)) = command.command { grant(jobs) }
    }

    private mutating func enqueue(_ command: ClientCommand, origins: [LeaderOrigin], waitUntil: MonotonicTime?) {
        let flying = CommandPaths.InFlight(origins: origins, waitUntil: waitUntil)
        guard paths.inFlight.updateValue(flying, forKey: CommandKey(command)) == nil else { return }
        paths.proposals.append(command)
        paths.returning.came(command.session)
        paths.proposedWeight += command.command.weight
    }

    /// Followers may have answered commands whose effects this leader does not have yet.
    private var mayLagBehindAnswers: Bool { raft.map { $0.possiblyCommitted > state.appliedIndex } ?? false }

    /// True if the command would get nothing now, as far as is known here.
    func mustWait(_ command: StateCommand) -> Bool {
        switch command {
        case .queue(.reserve(let tubes, _, _)): !state.queues.hasReady(tubes)
        case .lease(.acquire(let key, let holder, _, _)):
            state.leases.lease(key, now: state.milliseconds)?.holder.map { $0.id != holder } ?? false
        default: false
        }
    }

    /// The answer to a wait that ends with nothing.
    private func emptyHanded(_ command: StateCommand) -> StateResult {
        guard let key = command.waitedLease else { return .queue(.reserved([])) }
        let none = LeaseView(key: key, holder: nil, token: 0, ttlMilliseconds: 0, expiresInMilliseconds: 0)
        return .lease(.held(state.leases.lease(key, now: state.milliseconds) ?? none))
    }

    private mutating func grant(_ jobs: [NewJob]) {
        guard !paths.tubeWaiters.isEmpty else { return }
        var byTube: [String: Int] = [:]
        for job in jobs where job.delayMilliseconds == 0 { byTube[job.tube, default: 0] += 1 }
        for (tube, count) in byTube.sorted(by: { $0.key < $1.key }) { wake(\.tubeWaiters, tube, count) }
    }

    /// Lets the first `count` who wait for `name` try again.
    private mutating func wake(_ map: KeyPath<CommandPaths, [String: [UInt64]]>, _ name: String, _ count: Int) {
        guard count > 0, let waiters = paths[keyPath: map][name] else { return }
        for id in waiters.prefix(count) {
            guard let item = paths.unpark(id) else { continue }
            enqueue(item.command, origins: item.origins, waitUntil: item.waitUntil)
        }
    }

    private mutating func endWaits() {
        guard !mayLagBehindAnswers else {
            paths.nextParkedDeadline = now + .milliseconds(2)
            return
        }
        var next = MonotonicTime.distantFuture
        for (id, item) in paths.parked.sorted(by: { $0.key < $1.key }) {
            if item.waitUntil <= now {
                paths.unpark(id)
                answer(item.origins, .success(emptyHanded(item.command.command)))
            } else {
                next = min(next, item.waitUntil)
            }
        }
        paths.nextParkedDeadline = next
    }

    /// After entries were applied: what became free serves who waits for it.
    mutating func stateMayHaveReadied() {
        let tubes = state.queues.takeReadied()
        let leases = state.leases.takeFreed()
        if !tubes.isEmpty { changedTopics.insert(.queues) }
        if !leases.isEmpty { changedTopics.insert(.elections) }
        guard raft?.isReady ?? false else { return }
        for tube in tubes { wake(\.tubeWaiters, tube, state.queues.readyCount(tube)) }
        for lease in leases { wake(\.leaseWaiters, lease, 1) }
    }

    /// Log time now, by the leader's clock: it goes on from what the log has seen, and stands still without a leader.
    private mutating func logTime() -> UInt64 {
        // The log may have seen more than is applied here.
        guard raft?.isReady ?? false else { return state.milliseconds }
        let clock: (milliseconds: UInt64, since: MonotonicTime)
        if let known = leaderClock {
            clock = known
        } else {
            clock = (state.milliseconds, now)
            leaderClock = clock
        }
        return clock.milliseconds + UInt64(clamping: (now - clock.since).milliseconds)
    }

    /// When the leader has to let log time pass although nothing is proposed.
    var nextTick: MonotonicTime? {
        guard let raft, raft.isReady, let due = state.nextDeadline, lastTickAt != state.appliedIndex else { return nil }
        guard let clock = leaderClock else { return now }
        let ahead = due > clock.milliseconds ? due - clock.milliseconds : 0
        return clock.since + .milliseconds(Int64(clamping: ahead))
    }

    private mutating func tickIfDue() {
        guard paths.proposals.isEmpty, let due = state.nextDeadline else { return }
        let time = logTime()
        // One tick at a time: the next when this one was applied.
        guard time >= due, lastTickAt != state.appliedIndex else { return }
        lastTickAt = state.appliedIndex
        paths.proposals.append(
            ClientCommand(session: SessionID(high: 0, low: 0), sequence: 0, firstOutstanding: 0, command: .tick))
    }

    private mutating func propose() {
        guard !paths.proposals.isEmpty, !isHandingOver, nextEntryAt <= now else { return }
        paths.proposedWeight = 0
        paths.entryOpenedAt = now
        let commands = paths.proposals
        paths.returning.entryLeaves(commands, now: now)
        paths.proposals = []
        let time = logTime()
        var start = 0
        while start < commands.count {
            var end = start
            var cost = 0
            // An entry stays well under the limit of one command; a large body is an entry of its own.
            while end < commands.count, end - start < 2_048,
                end == start || cost + commands[end].command.weight < 256 << 10
            {
                cost += commands[end].command.weight
                end += 1
            }
            propose(Array(commands[start..<end]), time)
            start = end
        }
    }

    /// While an entry is on its way, commands gather for the next one. That leaves when the one before is committed or was
    /// opened a while ago, or when much has gathered: where a round takes less than that, there is one entry at a time, and no
    /// more messages, syncs and wake-ups than rounds; where the network is slow, nobody waits for it twice.
    private var nextEntryAt: MonotonicTime {
        guard let raft, paths.proposedWeight < CommandPaths.gatheredLimit else { return .zero }
        guard raft.lastIndex > raft.commitIndex else { return paths.returning.awaitedUntil }
        return paths.entryOpenedAt + options.entryPause
    }

    /// Commands gather here until the next leader speaks, and are sent to it then; or until nothing came of it.
    private var isHandingOver: Bool { raft?.transferTarget != nil }

    /// When the commands that gather are proposed at the latest.
    var nextProposal: MonotonicTime {
        paths.proposals.isEmpty || isHandingOver ? .distantFuture : max(nextEntryAt, now)
    }

    /// One entry.
    private mutating func propose(_ batch: [ClientCommand], _ time: UInt64) {
        let payload = LogPayload(milliseconds: time, commands: batch).encoded
        switch raft?.propose([payload], now: now) {
        case .success, nil: break
        case .failure(.tooLarge) where batch.count > 1:
            // Commands are larger than they were thought to be; one alone may be too large, the others did nothing wrong.
            for command in batch { propose([command], time) }
        case .failure(let refusal):
            for command in batch {
                guard let flying = paths.inFlight.removeValue(forKey: CommandKey(command)) else { continue }
                switch refusal {
                case .notLeader, .transferring, .configurationInFlight: retryLater(flying.origins)
                case .overloaded: refuse(flying.origins, CoterieError(.busy, "\(refusal)", hint: "try again"))
                case .tooLarge, .empty, .invalidConfiguration:
                    answer(flying.origins, .failure(CoterieError(.tooLarge, "\(refusal)")))
                }
            }
        }
    }

    /// Not taken, and surely not logged by this attempt: owners try again with the next leader.
    mutating func retryLater(_ origins: [LeaderOrigin]) {
        for origin in origins {
            switch origin {
            case .here(let id): wasRefused(id)
            case .peer(let peer, let id): sendForwarded(id, .failure(noLeader), to: peer)
            }
        }
    }

    /// Not taken, which is the answer unless an earlier attempt may have been.
    private mutating func refuse(_ origins: [LeaderOrigin], _ error: CoterieError) {
        for origin in origins {
            if case .here(let id) = origin, paths.owned[id]?.openSends ?? 0 > 1 {
                wasRefused(id, after: .milliseconds(200))
            } else {
                answer([origin], .failure(error))
            }
        }
    }

    /// A leader did not take an owned command: it is sent again when the next one is known, or a little later.
    private mutating func wasRefused(_ id: UInt64, after pause: TimeSpan = .milliseconds(50)) {
        guard let owned = paths.owned[id] else { return }
        paths.owned[id]?.openSends = max(0, owned.openSends - 1)
        paths.owned[id]?.resendAt = now + pause
        paths.nextSweep = min(paths.nextSweep, now + pause)
    }

    /// A command of a committed entry was applied; somebody may wait for the result here, and if this node leads, anywhere.
    mutating func commandApplied(_ applied: ReplicatedState.Applied) {
        let key = CommandKey(applied.command)
        noteTopics(applied.command.command)
        if let id = paths.forwardedID(of: key) { answer(id, .success(applied.result)) }
        guard !paths.inFlight.isEmpty, let flying = paths.inFlight.removeValue(forKey: key) else { return }
        if let until = flying.waitUntil, applied.command.wait != nil, applied.result.isEmptyHanded,
            !flying.origins.isEmpty
        {
            if until > now {
                paths.returning.stays(key.session)
                paths.park(applied.command, origins: flying.origins, until: until)
                // What became free between its proposal and now would not wake it again.
                if !mustWait(applied.command.command), let id = paths.parkedKeys[key] {
                    paths.unpark(id)
                    enqueue(applied.command, origins: flying.origins, waitUntil: until)
                }
            } else {
                answer(flying.origins, .success(applied.result))
            }
            return
        }
        paths.returning.answered(now: now)
        if flying.origins.isEmpty { giveBack(applied.result) }
        var origins = flying.origins
        if applied.command.wait == nil {
            // Who applies this without being told answers its client itself.
            origins.removeAll { origin in
                guard case .peer(let peer, _) = origin else { return false }
                return raft?.knowsOfCommit(peer, state.appliedIndex) ?? false
            }
        }
        answer(origins, .success(applied.result))
    }

    /// Whoever asked has gone: what was reserved for it goes to the next.
    private mutating func giveBack(_ result: StateResult) {
        guard case .queue(.reserved(let jobs)) = result else { return }
        for job in jobs {
            let release = QueueCommand.release(
                id: job.id, lease: job.lease, priority: job.priority, delayMilliseconds: 0)
            submit(.queue(release), wait: nil, origin: .own)
        }
    }

    mutating func noteTopics(_ command: StateCommand) {
        switch command {
        case .queue: queuesChanged = true
        case .lease: changedTopics.insert(.elections)
        case .scheduling, .tick, .endSession: break
        }
    }

    private mutating func answer(_ origins: [LeaderOrigin], _ result: Result<StateResult, CoterieError>) {
        for origin in origins {
            switch origin {
            case .here(let id): answer(id, result)
            case .peer(let peer, let id):
                switch result {
                case .success(let value): sendForwarded(id, .success(value.encoded), to: peer)
                case .failure(let error): sendForwarded(id, .failure(error), to: peer)
                }
            }
        }
    }

    private mutating func sendForwarded(_ id: UInt64, _ response: ClientResponse, to peer: NodeID) {
        guard let address = membership.address(of: peer) else { return }
        var writer = ByteWriter(capacity: 64)
        writer.u64(id)
        response.encode(into: &writer)
        effects.append(.peerFrame(.forwarded, writer.bytes, to: peer, address: address))
    }

    // MARK: - Between nodes

    mutating func receivePath(_ kind: FrameKind, _ payload: [UInt8], from: NodeID) throws(WireError) {
        var reader = ByteReader(payload)
        let id = try reader.u64()
        switch kind {
        case .forward:
            let command = try ClientCommand(decoding: &reader)
            try reader.finish()
            let waitUntil = command.wait.map { now + $0 }
            guard let raft, raft.isReady else {
                // Who has heard that this node leads need not ask again a round from now.
                if raft?.isLeader ?? false, paths.early.count < CommandPaths.earlyLimit {
                    return paths.early.append((command, from, id, waitUntil))
                }
                return sendForwarded(id, .failure(noLeader), to: from)
            }
            take(command, from: from, id, waitUntil: waitUntil)
        case .forwarded:
            let response = try ClientResponse(decoding: Array(reader.rest()))
            if adminReply(id, response) { return }
            switch response {
            case .success(let bytes):
                var encoded = ByteReader(bytes)
                let result = try StateResult(decoding: &encoded)
                if paths.owned[id] == nil, !result.isEmptyHanded, paths.takeEmptied(id) { return giveBack(result) }
                if result.isEmptyHanded, paths.owned[id]?.waitUntil != nil { paths.noteEmptied(id) }
                answer(id, .success(result))
            case .failure(let error) where error.code == .noLeader: wasRefused(id)
            case .failure(let error) where error.code == .busy && paths.owned[id]?.openSends ?? 0 > 1:
                // By this attempt it is in no log, by another it may be.
                wasRefused(id, after: .milliseconds(200))
            case .failure(let error): answer(id, .failure(error))
            }
        case .forwardCancel:
            let session = SessionID(high: try reader.u64(), low: try reader.u64())
            let sequence = try reader.varint()
            let key = CommandKey(
                ClientCommand(session: session, sequence: sequence, firstOutstanding: 0, command: .tick))
            cancelAtLeader(key, .peer(from, id))
        case .readIndex:
            guard let raft, raft.isLeader else { return sendReadReply(id, index: nil, to: from) }
            let context = paths.takeID()
            paths.reads[context] = CommandPaths.Read(origin: .peer(from, id), askedAt: now)
            raftInput(.readIndex(context: context))
        case .readIndexReply:
            let granted = try reader.bool()
            let index = try reader.u64()
            if granted {
                paths.reads[id]?.index = index
                serveReads()
            } else {
                paths.reads[id]?.resendAt = now + .milliseconds(50)
                paths.nextSweep = min(paths.nextSweep, now + .milliseconds(50))
            }
        case .forwardAdmin: try receiveAdmin(id, &reader, from: from)
        default: break
        }
    }

    // MARK: - Linearizable reads

    mutating func startRead(_ origin: CommandPaths.Read.Origin) {
        let context = paths.takeID()
        paths.reads[context] = CommandPaths.Read(origin: origin, askedAt: now)
        paths.nextSweep = min(paths.nextSweep, now + CommandPaths.resendAfter)
        if raft?.isLeader ?? false {
            paths.reads[context]?.resendAt = now + CommandPaths.resendAfter
            raftInput(.readIndex(context: context))
        }
    }

    /// Asks the leader for the reads that were not asked yet, or not answered.
    private mutating func sendReads(to leader: NodeID, at address: SocketAddress) {
        for (id, read) in paths.reads.sorted(by: { $0.key < $1.key }) where read.index == nil && now >= read.resendAt {
            if case .peer = read.origin { continue }
            paths.reads[id]?.resendAt = now + CommandPaths.resendAfter
            var writer = ByteWriter()
            writer.u64(id)
            effects.append(.peerFrame(.readIndex, writer.bytes, to: leader, address: address))
        }
    }

    private mutating func sendReadReply(_ id: UInt64, index: UInt64?, to peer: NodeID) {
        guard let member = membership.member(peer) else { return }
        var writer = ByteWriter()
        writer.u64(id)
        writer.bool(index != nil)
        writer.u64(index ?? 0)
        effects.append(.peerFrame(.readIndexReply, writer.bytes, to: peer, address: member.address))
    }

    mutating func readsReady(_ contexts: [UInt64], index: UInt64) {
        for context in contexts {
            guard let read = paths.reads[context] else { continue }
            switch read.origin {
            case .query, .local: paths.reads[context]?.index = index
            case .peer(let peer, let id):
                paths.reads[context] = nil
                sendReadReply(id, index: index, to: peer)
            }
        }
        serveReads()
    }

    mutating func readsFailed(_ contexts: [UInt64]) {
        for context in contexts {
            guard let read = paths.reads[context] else { continue }
            if case .peer(let peer, let id) = read.origin {
                paths.reads[context] = nil
                sendReadReply(id, index: nil, to: peer)
            } else {
                paths.reads[context]?.resendAt = now + .milliseconds(50)
                paths.nextSweep = min(paths.nextSweep, now + .milliseconds(50))
            }
        }
    }

    /// Answers the reads whose index has been applied.
    mutating func serveReads() {
        guard !paths.reads.isEmpty else { return }
        for (context, read) in paths.reads.sorted(by: { $0.key < $1.key }) {
            guard let index = read.index, index <= state.appliedIndex else { continue }
            paths.reads[context] = nil
            switch read.origin {
            case .query(let request, let path): effects.append(.respond(request, answerQuery(path)))
            case .local(let id): effects.append(.localReadReady(id, nil))
            case .peer: break
            }
        }
    }
}

extension StateCommand {
    /// About what it takes in a log entry, in bytes.
    var weight: Int {
        switch self {
        case .queue(.put(let jobs)): jobs.reduce(64) { $0 + $1.body.count + $1.tube.utf8.count + 32 }
        case .scheduling: 4_096
        case .queue, .lease, .tick, .endSession: 128
        }
    }

}
