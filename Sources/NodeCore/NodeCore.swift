// One node, whole: membership, consensus, the replicated state and the ways of commands through them, as one step function
// without I/O. `Node` drives it on libuv, `Simulator` on virtual time.
import Consensus
import Membership
import Model
import Scheduling
import Wire

/// What a node is told about itself.
public struct NodeOptions: Sendable {
    public var cluster: String
    public var id: NodeID
    public var name: String
    /// What others reach it at.
    public var address: SocketAddress
    public var tags: [String: String]
    /// K of `--expect`; 0 joins only.
    public var expect: Int
    public var startCounter: UInt64
    public var httpPort: UInt16
    public var queuePort: UInt16
    public var version: String
    public var raft = RaftOptions()
    public var membership = MembershipOptions()
    /// A snapshot is made after this many applied entries, or this many bytes of them.
    public var snapshotEntries = 50_000
    public var snapshotBytes = 64 << 20
    /// A leader opens a new entry of commands this long after the one before, if that one is not committed yet.
    public var entryPause = TimeSpan.milliseconds(2)
    /// A leader holds an entry back so long at most for clients that it has just answered and that will ask again at once. The
    /// driver's timers are about this fine; zero: not at all.
    public var clientReturn = TimeSpan.milliseconds(1)
    /// Voters that a cluster of fewer than five members, and of five or more, shall have.
    public var voterTargets = (small: 3, large: 5)
    /// A learner that has kept up this long becomes a voter, if one is wanted.
    public var promotionDelay = TimeSpan.seconds(5)
    /// A voter that has been dead for so long is replaced by a learner that has kept up; at most one in this time.
    public var deadVoterGrace = TimeSpan.seconds(300)

    public init(
        cluster: String, id: NodeID, name: String, address: SocketAddress, tags: [String: String] = [:], expect: Int,
        startCounter: UInt64, httpPort: UInt16 = 0, queuePort: UInt16 = 0, version: String = "0"
    ) {
        self.cluster = cluster
        self.id = id
        self.name = name
        self.address = address
        self.tags = tags
        self.expect = expect
        self.startCounter = startCounter
        self.httpPort = httpPort
        self.queuePort = queuePort
        self.version = version
    }
}

/// What a node finds on its disk.
public struct NodeRecovery: Sendable {
    public var log: RecoveredLog
    /// Nothing was ever written here: the node has not belonged to a cluster.
    public var isVirgin: Bool
    public var promise: BootstrapPromise?
    /// The data of `log.snapshot`, if there is one.
    public var state: [UInt8]?
    /// The history of the cluster that the log is part of.
    public var lineage: Lineage

    public init(
        log: RecoveredLog, isVirgin: Bool, promise: BootstrapPromise?, state: [UInt8]?, lineage: Lineage = .original
    ) {
        self.lineage = lineage
        self.log = log
        self.isVirgin = isVirgin
        self.promise = promise
        self.state = state
    }

    /// Virgin, or a crash cut the founding short between the term and the first entry: nobody has heard of that cluster.
    /// Term 1 without a vote is written by founders alone, for elections begin with term 2.
    var hasNeverBelonged: Bool {
        isVirgin
            || state == nil && log.snapshot.index == 0 && log.base == .zero && log.entries.isEmpty
                && log.hardState.term == 1 && log.hardState.vote == nil
    }
}

/// One node as a step function. After a burst of inputs the driver calls ``takeEffects()`` once: commands that came in the
/// burst share one log entry, one AppendEntries and one sync.
public struct NodeCore: Sendable {
    public let options: NodeOptions
    public private(set) var now: MonotonicTime
    var effects: [NodeEffect] = []
    var generator: SeededGenerator

    // MARK: Parts

    public internal(set) var membership: Membership
    /// Nil until the node has joined or founded a cluster.
    public internal(set) var raft: Raft?
    var bootstrap: Bootstrap?
    var state: ReplicatedState
    var paths: CommandPaths
    var reconciler = Reconciler()

    /// The history of the cluster that this node takes part in; the group id in Raft's envelopes.
    public private(set) var lineage: Lineage
    /// The one that a node without a cluster is about to join, until it is on disk.
    private var adopting: Lineage?
    /// The founding entry that is being written.
    var founding: RecoveredLog?
    var standing: Standing
    private var leaderKnown: NodeID?
    private var leaderSince: MonotonicTime?
    /// Log time at the moment this node began to lead, and that moment.
    var leaderClock: (milliseconds: UInt64, since: MonotonicTime)?
    private var appliedBytes = 0
    /// Committed entries that are not applied yet, in order.
    private var backlog: [LogEntry] = []
    private var isPostponing = false
    private var isMakingSnapshot = false
    private var snapshotRetryAt = MonotonicTime.zero
    private(set) var shutdown: Shutdown?
    private var lastAssignments: [PodRecord] = []
    var storageFailure: String?
    private var diskFullSince: MonotonicTime?
    private(set) var isFenced = false

    struct Shutdown: Sendable {
        var deadline: MonotonicTime
        var isTransferring: Bool
        var hasLeft = false
    }

    /// Throws if the snapshot's data can not be read by this version.
    public init(options: NodeOptions, recovery: NodeRecovery, generator seed: SeededGenerator, now: MonotonicTime)
        throws(CoterieError)
    {
        self.options = options
        self.now = now
        lineage = recovery.lineage
        var generator = seed
        standing = Standing(
            state: recovery.hasNeverBelonged ? .virgin : .member, expect: UInt8(clamping: options.expect),
            httpPort: options.httpPort,
            queuePort: options.queuePort, lineage: recovery.lineage)
        membership = Membership(
            options: options.membership, id: options.id, name: options.name, address: options.address,
            tags: options.tags,
            meta: standing.encoded, version: options.version, cluster: options.cluster,
            incarnation: options.startCounter << 20, generator: generator.fork(), now: now)
        if let bytes = recovery.state {
            do { state = try ReplicatedState(decoding: bytes) } catch {
                throw CoterieError(
                    .failed, "the snapshot's state can not be read: \(error)", hint: "was it made by a newer version?")
            }
        } else {
            state = ReplicatedState()
        }
        state.appliedIndex = max(state.appliedIndex, recovery.log.snapshot.index)
        if recovery.hasNeverBelonged {
            bootstrap = Bootstrap(
                id: options.id, expect: options.expect, kept: recovery.promise, startCounter: options.startCounter)
        } else {
            raft = Raft(
                id: options.id, options: options.raft, recovered: recovery.log, generator: generator.fork(), now: now)
        }
        paths = CommandPaths(
            session: SessionID(using: &generator), firstForward: options.startCounter << 32,
            patience: options.clientReturn)
        self.generator = generator
    }

    // MARK: - Inputs

    public mutating func handle(_ input: NodeInput, now time: MonotonicTime) {
        now = max(now, time)
        nextDeadline = now
        switch input {
        case .timer:
            membership.handle(.timer, now: now)
            raftInput(.timer)
        case .datagram(let bytes, let from): membership.handle(.datagram(bytes, from: from), now: now)
        case .refusedDatagram(let address): membership.handle(.refused(address), now: now)
        case .join(let seeds): membership.handle(.join(seeds), now: now)
        case .peerFrame(let kind, let payload, let from): receive(kind, payload, from: from)
        case .peerLost(let peer, let crashed):
            if crashed {
                membership.handle(.processDied(peer), now: now)
                raftInput(.peerProcessDied(peer))
            }
            if peer == raft?.leader { paths.leaderStreamBroke() }
        case .persisted(let ticket): raftInput(.persisted(ticket: ticket))
        case .founded: foundingIsDurable()
        case .promisePersisted: bootstrap?.persisted(now: now)
        case .lineagePersisted:
            if raft == nil, let adopted = adopting { lineage = adopted }
            adopting = nil
        case .diskFull(let isFull): diskFullSince = isFull ? diskFullSince ?? now : nil
        case .storageFailed(let why):
            storageFailure = why
            effects.append(.log(.error, "the disk failed: \(why); this node writes nothing more"))
            raftInput(.storageFailed)
        case .snapshotStored(let metadata):
            isMakingSnapshot = false
            raft?.snapshotStored(metadata)
        case .snapshotFailed:
            isMakingSnapshot = false
            snapshotRetryAt = now + .seconds(10)
        case .snapshotChunkStored(let snapshot, let next):
            raftInput(.snapshotChunkStored(snapshot: snapshot, nextOffset: next))
        case .snapshotInstalled(let metadata, let bytes): installed(metadata, bytes)
        case .snapshotRejected(let snapshot): raftInput(.snapshotRejected(snapshot: snapshot))
        case .snapshotSendFailed(let to): raftInput(.snapshotSendFailed(to: to))
        case .request(let id, let request, let authority): receive(request, id, authority)
        case .local(let id, let command): submit(command, origin: .local(id))
        case .endWait(let id): endWait(of: .local(id))
        case .localRead(let id): startRead(.local(id))
        case .cancelLocal(let id): cancel { $0 == .local(id) }
        case .cancel(let id): cancel { $0 == .request(id) }
        case .connectionClosed(let connection):
            cancel { if case .request(let id) = $0 { id.connection == connection } else { false } }
        case .podReports(let reports):
            if !reports.isEmpty { submit(.scheduling(.report(reports)), wait: nil, origin: .own) }
        case .shutdown: beginShutdown()
        }
    }

    mutating func raftInput(_ input: RaftInput) {
        guard raft != nil else { return }
        do throws(RaftViolation) {
            try raft?.handle(input, now: now)
        } catch {
            effects.append(.log(.error, "raft: \(error)"))
        }
    }

    private mutating func receive(_ kind: FrameKind, _ payload: [UInt8], from: NodeID) {
        do throws(WireError) {
            switch kind {
            case .raft:
                let envelope = try RaftEnvelope(decoding: payload)
                guard envelope.to == options.id, envelope.from == from, founding == nil,
                    belongs(to: Lineage(rawValue: envelope.group))
                else { return }
                if state.scheduling.isRetired(from), !(raft?.configuration.members.contains(from) ?? false) {
                    return refuse(removed: from)
                }
                if raft == nil { joinThroughRaft() }
                raftInput(.message(from: envelope.from, envelope.message))
            case .pushPull: membership.handle(.pushPull(payload, from: from), now: now)
            case .bootstrapAsk:
                let message = try Bootstrap.Message(decoding: payload)
                if bootstrap != nil {
                    bootstrap?.receive(message, from: from, isVirgin: raft == nil && founding == nil, now: now)
                } else if case .ask(let promise) = message {
                    sendBootstrap(.refused(attempt: promise.attempt, to: nil), to: from)
                }
            case .forward, .forwarded, .forwardCancel, .readIndex, .readIndexReply, .forwardAdmin:
                try receivePath(kind, payload, from: from)
            case .removed: wasRemoved(by: from)
            case .hello, .welcome, .refused, .request, .response, .item, .end, .cancel, .dial, .listen, .incoming,
                .accept,
                .connected, .bootstrapPromise, .goodbye:
                break
            }
        } catch {
            effects.append(.log(.warning, "a malformed \(kind) frame from \(from): \(error)"))
        }
    }

    /// Another member says that this node was removed by order, and has applied the log that far.
    private mutating func wasRemoved(by member: NodeID) {
        guard raft != nil, now >= reconciler.leavingUntil else { return }
        fence(
            CoterieError(
                .notAllowed, "this node was removed from the cluster, as \(displayName(member)) says",
                hint: "to join again as a new node, start it with an empty data directory"))
    }

    /// This node's data have no place in the cluster any more: the driver ends the process.
    mutating func fence(_ why: CoterieError) {
        guard !isFenced else { return }
        isFenced = true
        effects.append(.fenced(why))
    }

    // MARK: - Founding and joining

    /// True if messages of that history are for this node. One that belongs to none yet joins it, as soon as that is on disk:
    /// what it will have stored afterwards must never be taken for part of another history.
    private mutating func belongs(to other: Lineage) -> Bool {
        guard other != lineage else { return adopting == nil }
        if raft == nil, adopting == nil {
            adopting = other
            effects.append(.persistLineage(other))
        }
        return false
    }

    /// A member of a later history of this cluster: what this node has was given up when the cluster was recovered.
    private mutating func compareHistory(with member: Member) {
        guard raft != nil, member.state.isPresent, let other = Standing(decoding: member.meta), other.state == .member,
            other.lineage.epoch > lineage.epoch
        else { return }
        fence(
            CoterieError(
                .notAllowed,
                "the cluster \(options.cluster) was recovered or restored without this node: \(member.name) is at epoch "
                    + "\(other.lineage.epoch), and the data here are of epoch \(lineage.epoch)",
                hint: "to join as a new node, start it with an empty data directory"))
    }

    private mutating func joinThroughRaft() {
        raft = Raft(
            id: options.id, options: options.raft, recovered: RecoveredLog(), generator: generator.fork(), now: now)
        bootstrap = nil
    }

    private mutating func updateBootstrap() {
        guard bootstrap != nil, raft == nil, founding == nil else { return }
        // Somebody already belongs to a cluster of this name: wait to be taken in.
        let standings = membership.members.filter { $0.state == .alive || $0.state == .suspect }
            .map { ($0.id, Standing(decoding: $0.meta)) }
        let virgins = standings.filter { $0.1?.state == .virgin && Int($0.1?.expect ?? 0) == options.expect }.map(\.0)
        let exists = standings.contains { $0.1?.state == .member }
        bootstrap?.update(virgins: exists ? [] : virgins, now: now)
        for effect in bootstrap?.takeEffects() ?? [] {
            switch effect {
            case .persist(let promise): effects.append(.persistPromise(promise))
            case .send(let message, let to): sendBootstrap(message, to: to)
            case .form(let voters, _):
                let recovered = RecoveredLog.founding(RaftConfiguration(voters: voters))
                founding = recovered
                effects.append(.found(.founding(recovered)))
            }
        }
    }

    private mutating func sendBootstrap(_ message: Bootstrap.Message, to: NodeID) {
        guard let member = membership.member(to) else { return }
        effects.append(.peerFrame(.bootstrapAsk, message.encoded, to: to, address: member.address))
    }

    private mutating func foundingIsDurable() {
        guard let recovered = founding else { return }
        founding = nil
        bootstrap = nil
        raft = Raft(id: options.id, options: options.raft, recovered: recovered, generator: generator.fork(), now: now)
        effects.append(.log(.info, "founded the cluster \(options.cluster)"))
    }

    private mutating func updateStanding() {
        let isMember = raft.map { $0.lastIndex > 0 || $0.snapshot.index > 0 || $0.recovery != nil } ?? false
        let cordoned = state.scheduling.isCordoned(options.id)
        var current = standing
        current.state = isMember ? .member : .virgin
        current.cordoned = cordoned
        current.lineage = lineage
        guard current != standing else { return }
        standing = current
        membership.handle(.update(tags: options.tags, meta: standing.encoded), now: now)
    }

    // MARK: - Effects

    /// What others wait for: what goes to the disk and to other nodes. A follower that was told of new entries and of what is
    /// committed stores the former first and answers, and applies the latter with ``takeEffects()``, which must be called soon.
    public mutating func takeUrgentEffects() -> [NodeEffect] {
        guard let raft, !raft.isLeader else { return [] }
        proposePending()
        isPostponing = true
        _ = drainRaft()
        isPostponing = false
        defer { effects.removeAll(keepingCapacity: true) }
        return effects
    }

    /// Committed entries wait to be applied by ``takeEffects()``.
    public var hasBacklog: Bool { !backlog.isEmpty }

    private mutating func applyBacklog() {
        guard !backlog.isEmpty else { return }
        let entries = backlog
        backlog = []
        for entry in entries { apply(entry) }
        serveReads()
    }

    /// What is to be done since the last call. Builds the entries and batches first.
    public mutating func takeEffects() -> [NodeEffect] {
        applyBacklog()
        updateBootstrap()
        reconcile()
        // Applying can make new proposals (a waiter that is served), and these new effects; it ends because each round
        // consumes what the one before produced.
        for _ in 0..<8 {
            proposePending()
            guard drainRaft() else { break }
        }
        drainMembership()
        updateStanding()
        drainMembership()
        maybeMakeSnapshot()
        advanceShutdown()
        publishChanges()
        nextDeadline = reckonDeadline()
        defer { effects.removeAll(keepingCapacity: true) }
        return effects
    }

    /// When `.timer` is wanted next; at once while inputs wait for ``takeEffects()``. Stored, for a driver that asked a node
    /// would copy it.
    public private(set) var nextDeadline = MonotonicTime.zero

    private func reckonDeadline() -> MonotonicTime {
        var deadline = min(membership.nextDeadline, raft?.nextDeadline ?? .distantFuture)
        deadline = min(deadline, bootstrap?.nextDeadline ?? .distantFuture)
        deadline = min(deadline, paths.nextDeadline, reconciler.nextDeadline)
        deadline = min(deadline, nextProposal)
        if let due = nextTick { deadline = min(deadline, due) }
        if podsChanged, let since = leaderSince {
            deadline = min(deadline, max(now + .milliseconds(20), since + .milliseconds(200)))
        }
        if let shutdown { deadline = min(deadline, shutdown.deadline) }
        return deadline
    }

    private mutating func drainMembership() {
        for effect in membership.takeEffects() {
            switch effect {
            case .datagram(let bytes, let to): effects.append(.datagram(bytes, to: to))
            case .pushPull(let bytes, let to, let address):
                effects.append(.peerFrame(.pushPull, bytes, to: to, address: address))
            case .event(let event): memberEvent(event)
            case .left: shutdown?.hasLeft = true
            }
        }
    }

    private mutating func memberEvent(_ event: MemberEvent) {
        reconciler.memberChanged(event, now: now)
        compareHistory(with: event.member)
        changedTopics.insert(.members)
        let kind: String? =
            switch event.kind {
            case .join: "member.join"
            case .suspect: "member.suspect"
            case .alive: "member.alive"
            case .dead: "member.dead"
            case .leave: "member.leave"
            case .update: "member.update"
            case .reaped: nil
            }
        guard let kind else { return }
        let subject: JSONValue = [
            "id": .string(event.member.id.description), "name": .string(event.member.name),
            "address": .string(event.member.address.description), "incarnation": JSONValue(event.member.incarnation),
        ]
        effects.append(.event(NodeEvent(kind: kind, subject: subject)))
    }

    /// True if something was applied, or leadership changed: more may have to be proposed.
    private mutating func drainRaft() -> Bool {
        guard let produced = raft?.takeEffects(), !produced.isEmpty else { return false }
        var again = false
        for effect in produced {
            switch effect {
            case .persist(let request): effects.append(.persist(request))
            case .send(let to, let message): sendRaft(message, to: to)
            case .committed(let entries):
                if isPostponing {
                    backlog += entries
                    continue
                }
                applyBacklog()
                for entry in entries { apply(entry) }
                serveReads()
                again = true
            case .readReady(let contexts, let index): readsReady(contexts, index: index)
            case .readFailed(let contexts): readsFailed(contexts)
            case .leaderChanged(let leader, let term): leaderChanged(to: leader, term: term)
            case .becameLeader(let term):
                applyBacklog()
                leaderClock = nil
                effects.append(.log(.info, "leading term \(term)"))
                again = true
            case .steppedDown(let term, let reason):
                leaderClock = nil
                retryLater(paths.stopLeading())
                effects.append(.log(.info, "no longer leading term \(term): \(reason)"))
            case .transferFailed(let to):
                effects.append(.log(.warning, "handing leadership to \(displayName(to)) took too long"))
            case .configurationChanged(let configuration, let index):
                changedTopics.insert(.members)
                let subject: JSONValue = [
                    "voters": .array(configuration.voters.map { .string(displayName($0)) }),
                    "learners": .array(configuration.learners.map { .string(displayName($0)) }),
                    "index": JSONValue(index),
                ]
                effects.append(.event(NodeEvent(kind: "voter.change", subject: subject)))
            case .sendSnapshot(let send): effects.append(.sendSnapshot(send))
            case .storeSnapshotChunk(let chunk): effects.append(.storeSnapshotChunk(chunk))
            case .restoreSnapshot(let metadata):
                applyBacklog()
                restore(metadata)
            case .recovered(let through):
                let why = "the damaged journal is whole again through entry \(through.index): this node votes again"
                effects.append(.log(.info, why))
            }
        }
        return again
    }

    private mutating func sendRaft(_ message: RaftMessage, to: NodeID) {
        // An address comes from gossip; without one the message is lost, which Raft bears.
        guard let address = membership.address(of: to) else { return }
        let envelope = RaftEnvelope(group: lineage.rawValue, from: options.id, to: to, message: message)
        effects.append(.peerFrame(.raft, envelope.encoded, to: to, address: address))
    }

    private mutating func leaderChanged(to leader: NodeID?, term: UInt64) {
        changedTopics.insert(.leader)
        leaderSince = leader == nil ? nil : leaderSince ?? now
        if leader != nil { paths.leaderAppeared() } else { paths.leaderVanished(now: now) }
        guard leader != leaderKnown || leader == nil else { return }
        leaderKnown = leader
        let subject: JSONValue = [
            "leader": leader.map { .string(displayName($0)) } ?? .null,
            "id": leader.map { .string($0.description) } ?? .null,
            "term": JSONValue(term),
        ]
        effects.append(.event(NodeEvent(kind: "leader.change", subject: subject)))
    }

    // MARK: - Applying

    private mutating func apply(_ entry: LogEntry) {
        state.appliedIndex = entry.index
        guard entry.kind == .command else { return }
        appliedBytes += entry.payload.count
        // What can not be read was written by a newer version: ignored equally everywhere.
        guard let payload = try? LogPayload(decoding: entry.payload) else {
            effects.append(.log(.error, "log entry \(entry.index) can not be read by this version"))
            return
        }
        if !paths.expectsReplies {
            _ = state.apply(payload, index: entry.index, withReplies: false)
            for command in payload.commands { noteTopics(command.command) }
        } else {
            for applied in state.apply(payload, index: entry.index) { commandApplied(applied) }
        }
        stateMayHaveReadied()
    }

    /// Snapshots that came from the leader, by position, until Raft asks for their restoration.
    private var installedState: (metadata: SnapshotMetadata, state: ReplicatedState)?

    private mutating func installed(_ metadata: SnapshotMetadata, _ bytes: [UInt8]) {
        do {
            let decoded = try ReplicatedState(decoding: bytes)
            installedState = (metadata, decoded)
            raftInput(.snapshotInstalled(metadata))
        } catch {
            effects.append(.log(.error, "the leader's snapshot can not be read: \(error)"))
            raftInput(.snapshotRejected(snapshot: metadata.position))
        }
    }

    private mutating func restore(_ metadata: SnapshotMetadata) {
        guard let installed = installedState, installed.metadata == metadata else {
            // Only after `.snapshotInstalled`, which carries the state.
            effects.append(.log(.error, "a snapshot at \(metadata.position) is to be restored, but it is not here"))
            return
        }
        installedState = nil
        state = installed.state
        state.appliedIndex = metadata.index
        changedTopics.formUnion(ChangeTopic.allCases)
        podsChanged = true
    }

    private mutating func maybeMakeSnapshot() {
        guard !isMakingSnapshot, now >= snapshotRetryAt, let raft, storageFailure == nil,
            state.appliedIndex > raft.snapshot.index
        else { return }
        let entries = Int(clamping: state.appliedIndex - raft.snapshot.index)
        guard entries >= options.snapshotEntries || appliedBytes >= options.snapshotBytes,
            let metadata = raft.snapshotMetadata(at: state.appliedIndex)
        else { return }
        isMakingSnapshot = true
        appliedBytes = 0
        effects.append(.makeSnapshot(metadata, StateImage(state)))
    }

    // MARK: - Changes that others want to hear of

    var lastTickAt: UInt64 = .max
    var changedTopics: Set<ChangeTopic> = []
    /// ``changedTopics`` will contain `.queues`: noted for each command, so it costs no more than this.
    var queuesChanged = false
    var podsChanged = true

    private mutating func publishChanges() {
        for node in state.scheduling.takeForgotten() { membership.handle(.forget(node), now: now) }
        let pods = state.scheduling.takeChanged()
        if !pods.isEmpty {
            changedTopics.insert(.pods)
            podsChanged = true
            for name in pods { podEvent(name) }
        }
        let gathers = state.scheduling.takeChangedGathers()
        if !gathers.isEmpty {
            changedTopics.insert(.gathers)
            for id in gathers {
                guard let gather = state.scheduling.gather(id) else { continue }
                effects.append(
                    .event(NodeEvent(kind: "gather.change", subject: state.scheduling.gatherDocument(gather))))
            }
        }
        if podsChanged && hasCaughtUp {
            podsChanged = false
            let assigned = state.scheduling.pods(on: options.id)
            if assigned != lastAssignments {
                lastAssignments = assigned
                effects.append(.assignments(assigned))
            }
        }
        if queuesChanged {
            queuesChanged = false
            changedTopics.insert(.queues)
        }
        if !changedTopics.isEmpty {
            effects.append(.changed(changedTopics))
            changedTopics = []
        }
    }

    /// What a restarted node remembers may be long out of date: it runs no pods before it has heard the leader and applied
    /// what that one has committed.
    private var hasCaughtUp: Bool {
        guard let raft, raft.leader != nil, let since = leaderSince else { return false }
        return state.appliedIndex >= raft.commitIndex && now - since >= .milliseconds(200)
    }

    private mutating func podEvent(_ name: String) {
        let pod = state.scheduling.pod(named: name)
        let subject: JSONValue = [
            "name": .string(name), "phase": pod.map { .string($0.status.phase.rawValue) } ?? .string("Gone"),
            "node": pod?.node.map { .string(displayName($0)) } ?? .null,
        ]
        effects.append(.event(NodeEvent(kind: "pod.change", subject: subject)))
    }

    /// Why this node takes no commands although it leads, or nobody does; or nil. Not at once: a leader whose disk is full hands
    /// over to one whose disk is not, and its followers commit meanwhile.
    var fullDisk: CoterieError? {
        guard let since = diskFullSince, now - since >= .seconds(2) else { return nil }
        return CoterieError(
            .busy, "the disk of node \(options.name) is full, and no other node leads",
            hint: "make space: it goes on by itself")
    }

    /// The other voters that gossip knows to be there.
    public var livingVoters: [(id: NodeID, address: SocketAddress)] {
        guard let raft else { return [] }
        return raft.configuration.voters.compactMap { voter in
            guard voter != options.id, let member = membership.member(voter), member.state == .alive else { return nil }
            return (voter, member.address)
        }
    }

    /// A node's name as gossip knows it, else its id.
    func displayName(_ id: NodeID) -> String { membership.member(id)?.name ?? id.description }

    // MARK: - Shutting down

    private mutating func beginShutdown() {
        guard shutdown == nil else { return }
        let leads = raft?.isLeader ?? false
        shutdown = Shutdown(deadline: now + .seconds(2), isTransferring: leads)
        if leads { raftInput(.transfer(to: successor)) }
        if !leads { membership.handle(.leave, now: now) }
    }

    /// The voter that shall lead next: one that gossip knows to be there, for Raft finds out later that a voter has gone.
    private var successor: NodeID? {
        guard let raft else { return nil }
        let present = raft.configuration.voters.filter { $0 != options.id && membership.member($0)?.state == .alive }
        return present.max { (raft.matchIndex(of: $0) ?? 0, $1) < (raft.matchIndex(of: $1) ?? 0, $0) }
    }

    private mutating func advanceShutdown() {
        guard var current = shutdown else { return }
        // It leaves as well if nobody can be handed to, or took over in time.
        let isLate = current.isTransferring && now >= current.deadline
        if isLate { current.deadline = now + .milliseconds(500) }
        let isAlone = raft?.transferTarget == nil && successor == nil
        if current.isTransferring, isLate || isAlone || !(raft?.isLeader ?? false) {
            current.isTransferring = false
            shutdown = current
            membership.handle(.leave, now: now)
            drainMembership()
            current = shutdown ?? current
        }
        if (current.hasLeft && !current.isTransferring) || now >= current.deadline {
            shutdown = nil
            effects.append(.stopped)
        } else if current.isTransferring, raft?.transferTarget == nil {
            // The one that was chosen did not answer.
            raftInput(.transfer(to: successor))
        }
    }
}
