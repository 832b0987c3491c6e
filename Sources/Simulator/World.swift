// A deterministic world: whole nodes, the machines and the network that they run on, and clients that use them. Everything
// follows from the seed: the same seed gives the same trace, in every process. Rules that must always hold are checked at every
// step (see ``ClusterOracle``); when the faults end, everything has to come together within bounded time.
import Consensus
import Histories
import Journal
import Model
import NodeCore
import Wire

public final class World {
    enum Event {
        case start(Int)
        case flush(Int, life: Int)
        case timer(Int, generation: Int)
        case datagram(from: Int, to: Int, [UInt8])
        case refused(Int, life: Int, by: Int)
        case frame(from: Int, to: Int, epoch: Int, FrameKind, [UInt8])
        case lateFrame(from: NodeID, to: Int, life: Int, [UInt8])
        case dialled(from: Int, to: Int, epoch: Int, attempt: Int)
        case linkTimeout(from: Int, to: Int, epoch: Int)
        case confirmDeath(seenBy: Int, life: Int, of: Int)
        case disk(Int, life: Int, SimulatedStorage.Thread)
        case diskRetry(Int, life: Int)
        case pod(Int, life: Int, SimulatedPods.Key, SimulatedPods.Step)
        case request(connection: UInt64, channel: UInt32, ClientRequest)
        case cancel(connection: UInt64, channel: UInt32)
        case response(connection: UInt64, channel: UInt32, ClientResponse)
        case connected(client: Int, host: Int, attempt: Int)
        case connectionBroken(connection: UInt64)
        case connectionClosed(connection: UInt64)
        case clientTurn(Int)
        case clientClock(Int)
        case resend(client: Int, number: UInt64)
        case holdsUntil(client: Int, token: UInt64)
        case worksOn(client: Int, job: UInt64, lease: UInt64, step: Int)
        case endWait(UInt64)
        case cancelLocal(UInt64)
        case later(() throws -> Void)
        case restartIfFailed(Int)
        case fault
        case peace
        case poll
    }

    /// What happens after the faults.
    enum Stage: Int, Comparable {
        case chaos, draining, probing, settling, done
        static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
    }

    public let seed: UInt64
    public let settings: WorldSettings
    public internal(set) var now = MonotonicTime(nanoseconds: 1_000_000)
    public internal(set) var steps = 0
    /// One line for each step, without line feed; costs time.
    public var onTrace: ((String) -> Void)?
    /// Over all steps: equal for equal seeds.
    public internal(set) var traceDigest: UInt64 = 0xCBF2_9CE4_8422_2325

    var generator: SeededGenerator
    /// For faults that came later than others: a world without them runs as it did before.
    var laterGenerator: SeededGenerator
    var queue = EventQueue<Event>()
    var hosts: [SimulatedHost] = []
    var clients: [SimulatedClient] = []
    var oracle = ClusterOracle()
    var stage = Stage.chaos
    var peaceSince = MonotonicTime.distantFuture
    var isPeaceful: Bool { stage > .chaos }
    /// From [from * n + to].
    var links: [Link]
    /// Which side of a split each node is on; equal sides talk.
    var sides: [Int]
    /// Pairs that hear nothing in one direction, as from * n + to.
    var deaf: Set<Int> = []
    /// Streams on which the next word to stand for election is held up.
    var transferCuts: Set<Int> = []
    var clientSides: [Int]
    /// Open connections of clients.
    var connections: [UInt64: (client: Int, host: Int, life: Int)] = [:]
    var nextConnection: UInt64 = 1
    var nextOperation: UInt64 = 1
    var nextJob: UInt64 = 1
    /// Through the nodes' own doors, by number.
    var localCalls: [UInt64: LocalCall] = [:]
    /// The node whose turn ends with this event.
    var turnEnds: Int?
    /// All jumps of clocks so far.
    var clockJumps: [(time: MonotonicTime, span: TimeSpan)] = []
    var probe = Probe()
    var recorder = HistoryRecorder()
    /// The number in a job's body, by the id that clients were told.
    var numberOfID: [UInt64: UInt64] = [:]
    /// Ids of nodes whose data are gone, and which hosts they were.
    var retired: [(id: NodeID, host: Int)] = []
    var stableConfiguration: RaftConfiguration?
    public internal(set) var figures = Figures()

    /// How much a run did: a simulation that tests nothing passes as well.
    public struct Figures: Sendable {
        public var crashes = 0
        public var leaders = 0
        public var snapshotsInstalled = 0
        public var answers = 0
        public var localAnswers = 0
        public var unknownOutcomes = 0
        public var reads = 0
        public var committed: UInt64 = 0
        /// Commitments that a follower knew of before its leader.
        public var earlyCommits = 0
        public var jobs = 0
        public var reservations = 0
        public var grants = 0
        public var podsBound = 0
        public var digestsCompared = 0
        public var replays = 0
        public var losses = 0
        /// Damage done to disks, starts that began with something to make good, nodes whose data were gone.
        public var damages = 0
        public var recoveries = 0
        /// Starts that found the last batch of the log half written.
        public var tornTails = 0
        public var wipes = 0
        public var suspensions = 0
        public var clockJumps = 0
        /// False statements of gossip that were sent.
        public var lies = 0
        /// What clients asked for that was judged by the linearizability checker, and the objects it falls into.
        public var historyOperations = 0
        public var historyObjects = 0
        /// Objects whose check was given up.
        public var undecidedObjects = 0
        public var simulated = TimeSpan.zero
        /// From the last fault to the end of the run.
        public var healing = TimeSpan.zero

        public init() {}

        public static func += (a: inout Self, b: Self) {
            a.crashes += b.crashes
            a.leaders += b.leaders
            a.snapshotsInstalled += b.snapshotsInstalled
            a.answers += b.answers
            a.localAnswers += b.localAnswers
            a.unknownOutcomes += b.unknownOutcomes
            a.reads += b.reads
            a.committed += b.committed
            a.earlyCommits += b.earlyCommits
            a.jobs += b.jobs
            a.reservations += b.reservations
            a.grants += b.grants
            a.podsBound += b.podsBound
            a.digestsCompared += b.digestsCompared
            a.replays += b.replays
            a.losses += b.losses
            a.damages += b.damages
            a.recoveries += b.recoveries
            a.tornTails += b.tornTails
            a.wipes += b.wipes
            a.suspensions += b.suspensions
            a.clockJumps += b.clockJumps
            a.lies += b.lies
            a.simulated = a.simulated + b.simulated
            a.historyOperations += b.historyOperations
            a.historyObjects += b.historyObjects
            a.undecidedObjects += b.undecidedObjects
            a.healing = max(a.healing, b.healing)
        }
    }

    public init(seed: UInt64, settings: WorldSettings? = nil) {
        self.seed = seed
        let settings = settings ?? WorldSettings(seed: seed)
        self.settings = settings
        generator = SeededGenerator(seed: seed)
        laterGenerator = SeededGenerator(seed: seed ^ 0x6C61_7465_7220_6F6E)
        let n = settings.nodes
        sides = Array(repeating: 0, count: n)
        links = Array(repeating: Link(), count: n * n)
        clientSides = Array(repeating: 0, count: settings.clients + 1)
        for i in 0..<n {
            let expect = i < settings.founders ? settings.expect : 0
            let most = settings.clockDrift
            let drift = most == 0 ? 0 : Int64(laterGenerator.next() % UInt64(2 * most + 1)) - most
            hosts.append(SimulatedHost(index: i, expect: expect, seed: seed, drift: drift, generator: &generator))
        }
        // Jobs always; of the rest some. The last client only asks when all is over.
        var roles: [SimulatedClient.Role] = [.porter, .elector, .elector, .observer, .keeper]
        roles.shuffle(using: &generator)
        if settings.onlyPausesLeaders { roles = [.observer, .observer, .observer, .keeper, .porter] }
        roles = [.producer, .worker] + roles
        for i in 0..<settings.clients {
            clients.append(SimulatedClient(index: i, role: roles[i % roles.count], generator: generator.fork()))
        }
        clients.append(SimulatedClient(index: settings.clients, role: .probe, generator: generator.fork()))
        for i in 0..<n { schedule(after: .milliseconds(Int64(generator.next() % 800)), .start(i)) }
        for i in clients.indices {
            schedule(after: .milliseconds(Int64(300 + generator.next() % 700)), .clientTurn(i))
            schedule(after: .milliseconds(100), .clientClock(i))
        }
        // Splits may be there from the beginning.
        if settings.partitions, generator.chance(0.3) { split() }
        schedule(after: .milliseconds(Int64(200 + generator.next() % 800)), .fault)
        schedule(after: settings.chaos, .peace)
        planLosses()
    }

    /// Runs to the end. Throws a ``Violation`` that names the seed.
    public func run() throws {
        do {
            while stage < .done {
                guard let next = queue.pop() else { throw Violation("nothing is going to happen any more") }
                now = max(now, next.time)
                steps += 1
                try handle(next.event)
                if stage == .done { break }
                if let resumed = turnEnds {
                    turnEnds = nil
                    hosts[resumed].isFlushScheduled = false
                    try flush(resumed)
                }
            }
            figures.committed = oracle.committedIndex
            figures.simulated = now - .zero
        } catch {
            throw Violation(
                "SEED=\(seed): \(error) (at \(now), step \(steps), stage \(stage)); \(settings)\n\(outline)")
        }
    }

    // MARK: - Time

    func schedule(after delay: TimeSpan, _ event: Event) { queue.push(event, at: now + delay) }
    func schedule(at time: MonotonicTime, _ event: Event) { queue.push(event, at: max(now, time)) }

    func random(_ range: Range<Int64>) -> TimeSpan {
        .microseconds(range.lowerBound + Int64(generator.next() % UInt64(range.upperBound - range.lowerBound)))
    }

    func chance(_ probability: Double) -> Bool { generator.chance(probability) }

    // MARK: - Trace

    /// Folds numbers into the trace; `text` is asked for only when somebody listens.
    func note(_ values: UInt64..., text: @autoclosure () -> String) {
        for value in values { traceDigest = (traceDigest ^ value) &* 0x100_0000_01B3 }
        traceDigest = (traceDigest ^ now.nanoseconds) &* 0x100_0000_01B3
        if let onTrace { onTrace("\(now.nanoseconds) \(text())") }
    }

    static func checksum(_ bytes: [UInt8]) -> UInt64 { UInt64(CRC32C.checksum(bytes)) }

    // MARK: - Events

    /// When a process that stood still reads again what a peer sent: its sockets become readable in any order, so that it may
    /// well hear a client first, and only then that it was deposed.
    private func readableAgain(from: Int, to: Int) -> MonotonicTime {
        let end = hosts[to].pausedUntil
        return end + .microseconds(Int64((end.nanoseconds / 1_000 &+ UInt64(from) &* 7_919) % 4_000))
    }

    /// True if the event has to wait, or is lost with its process.
    private func postponed(_ i: Int, _ event: Event) -> Bool {
        guard hosts[i].isUp else { return true }
        guard hosts[i].pausedUntil > now else { return false }
        schedule(at: hosts[i].pausedUntil, event)
        return true
    }

    private func handle(_ event: Event) throws {
        switch event {
        case .start(let i): if !hosts[i].isUp, !hosts[i].isLost { try start(i) }
        case .flush(let i, let life):
            guard hosts[i].life == life, !postponed(i, event) else { return }
            hosts[i].isFlushScheduled = false
            try flush(i)
        case .timer(let i, let generation):
            guard hosts[i].timerGeneration == generation, !postponed(i, event) else { return }
            hosts[i].timerAt = nil
            feed(i, .timer)
        case .datagram(let from, let to, let bytes):
            guard reaches(from, to) else { return }
            guard hosts[to].isUp else { return refuseDatagram(from: from, to: to) }
            guard !postponed(to, event) else { return }
            note(
                1, UInt64(from), UInt64(to), UInt64(bytes.count),
                text: "datagram \(from)>\(to) \(World.checksum(bytes))")
            feed(to, .datagram(bytes[...], from: hosts[from].address))
        case .refused(let i, let life, let by):
            guard hosts[i].life == life, !postponed(i, event) else { return }
            feed(i, .refusedDatagram(hosts[by].address))
        case .frame(let from, let to, let epoch, let kind, let payload):
            guard links[link(from, to)].epoch == epoch else { return }
            let readable = hosts[to].isUp ? readableAgain(from: from, to: to) : now
            guard readable <= now else { return schedule(at: readable, event) }
            arrive(from: from, to: to, epoch: epoch, kind, payload)
        case .lateFrame(let from, let to, let life, let payload):
            guard hosts[to].life == life, !postponed(to, event) else { return }
            note(22, UInt64(to), UInt64(payload.count), text: "late frame >\(to) \(World.checksum(payload))")
            feed(to, .peerFrame(.raft, payload, from: from))
        case .dialled(let from, let to, let epoch, let attempt):
            guard links[link(from, to)].epoch == epoch, !postponed(from, event) else { return }
            dialled(from: from, to: to, epoch: epoch, attempt: attempt)
        case .linkTimeout(let from, let to, let epoch):
            guard links[link(from, to)].epoch == epoch, !links[link(from, to)].held.isEmpty, !postponed(from, event)
            else { return }
            breakLink(from: from, to: to, confirm: true)
        case .confirmDeath(let witness, let life, let dead):
            guard hosts[witness].life == life, !postponed(witness, event) else { return }
            confirmDeath(of: dead, seenBy: witness)
        case .disk(let i, let life, let thread):
            guard hosts[i].life == life, !postponed(i, event) else { return }
            try finishDisk(i, thread)
        case .diskRetry(let i, let life):
            guard hosts[i].life == life, !postponed(i, event) else { return }
            hosts[i].storage?.retry()
        case .pod(let i, let life, let key, let step):
            guard hosts[i].life == life, !postponed(i, event) else { return }
            hosts[i].pods?.take(key, step)
        case .request(let connection, let channel, let request):
            guard let open = connections[connection], hosts[open.host].life == open.life, !postponed(open.host, event)
            else { return }
            note(2, connection, UInt64(channel), text: "request \(open.client)>\(open.host) \(connection)/\(channel)")
            feed(open.host, .request(RequestID(connection: connection, channel: channel), request, .operator))
        case .cancel(let connection, let channel):
            guard let open = connections[connection], hosts[open.host].life == open.life, !postponed(open.host, event)
            else { return }
            feed(open.host, .cancel(RequestID(connection: connection, channel: channel)))
        case .connectionClosed(let connection):
            guard let open = connections[connection] else { return }
            guard hosts[open.host].life == open.life, hosts[open.host].isUp else {
                connections[connection] = nil
                return
            }
            guard !postponed(open.host, event) else { return }
            connections[connection] = nil
            feed(open.host, .connectionClosed(connection))
        case .response(let connection, let channel, let response): try answered(connection, channel, response)
        case .connected(let client, let host, let attempt): connected(client, host, attempt: attempt)
        case .connectionBroken(let connection): connectionBroken(connection)
        case .clientTurn(let i): takeTurn(clients[i])
        case .clientClock(let i): try clientClock(clients[i])
        case .resend(let client, let number):
            if let operation = clients[client].operations[number], operation.channel == nil {
                send(operation, of: clients[client])
            }
        case .holdsUntil(let client, let token): renewOrRelease(clients[client], token: token)
        case .worksOn(let client, let job, let lease, let step):
            workOn(clients[client], job: job, lease: lease, step: step)
        case .endWait(let id): endWaitEarly(id)
        case .cancelLocal(let id): try cancelLocal(id)
        case .later(let action): try action()
        case .restartIfFailed(let i): if hosts[i].storage?.hasFailed ?? false { restart(i) }
        case .fault:
            guard !isPeaceful else { return }
            try inject()
            schedule(after: random(20_000..<settings.faultPause.nanoseconds / 1_000), .fault)
        case .peace: beginPeace()
        case .poll: try poll()
        }
    }

    // MARK: - Processes

    private func start(_ i: Int) throws {
        let host = hosts[i]
        host.begin()
        host.pausedUntil = now
        let opened: (storage: SimulatedStorage, recovery: NodeRecovery)?
        do {
            opened = try SimulatedStorage.open(
                host.disks, id: host.id, chunkBytes: settings.chunkBytes, mayBeDamaged: host.isMarkedDamaged,
                maySnapshotsBe: host.areSnapshotsSpoiled)
        } catch JournalError.noSpace {
            // The agent says so and ends; whoever started it tries again.
            return schedule(after: .milliseconds(200), .start(i))
        }
        guard let (storage, recovery) = opened else { return try refused(i) }
        host.opened(isTermLost: recovery.log.recovery?.isTermLost ?? false)
        if recovery.log.recovery != nil { figures.recoveries += 1 }
        if storage.wasTorn { figures.tornTails += 1 }
        let life = host.life
        storage.onStart = { [weak self] thread in self?.diskStarted(i, life, thread) }
        var options = NodeOptions(
            cluster: "simulated", id: host.id, name: host.name, address: host.address, expect: host.expect,
            startCounter: UInt64(life), version: "1")
        if settings.quickGossip { options.membership = .quick }
        options.snapshotEntries = settings.snapshotEntries
        options.deadVoterGrace = settings.deadVoterGrace
        options.promotionDelay = .milliseconds(Int64(200 + generator.next() % 1_000))
        options.raft.maxAppendEntries = [1, 3, 64, 4_096][Int(generator.next() % 4)]
        options.raft.maxInflightMessages = [1, 2, 32, 256][Int(generator.next() % 4)]
        options.raft.trailingEntries = [0, 5, 50][Int(generator.next() % 3)]
        options.raft.snapshotRetry = .milliseconds(300)
        host.storage = storage
        let pods = SimulatedPods(id: host.id)
        pods.onStep = { [weak self] key, step in self?.podScheduled(i, life, key, step) }
        pods.onReports = { [weak self] reports in self?.feed(i, .podReports(reports)) }
        host.pods = pods
        let core = try NodeCore(
            options: options, recovery: recovery, generator: generator.fork(), now: host.localTime(now))
        host.core = core
        note(
            3, UInt64(i), recovery.log.hardState.term,
            text: "start \(i) life \(life) \(recovery.log.hardState.term) \(recovery.log.entries.count)")
        try oracle.started(host, recovery)
        // The first node is the seed of all; another one at random makes up for it being down.
        var known = [0, Int(generator.next() % UInt64(hosts.count))]
        // Where nodes die for good, every node is told of every other: those that are left must find each other.
        if settings.losses > 0 { known = Array(hosts.indices) }
        let seeds = known.filter { $0 != i }.map { hosts[$0].address }
        feed(i, .join(seeds))
    }

    /// Kills the process (and with it what was not synced); `powered` false takes the machine down as well, so that nobody
    /// answers for it.
    func crash(_ i: Int, powered: Bool, midWrite: Bool = false) {
        let host = hosts[i]
        guard host.isUp else { return }
        note(4, UInt64(i), text: "crash \(i) powered \(powered)")
        figures.crashes += 1
        host.storage?.crash(using: &generator, midWrite: midWrite)
        host.disks.crash(using: &generator)
        host.isPowered = powered
        host.end()
        processGone(i, orderly: false)
    }

    /// The end of a process that stopped by order: everything written is there, and nobody is surprised.
    func stopped(_ i: Int) {
        note(5, UInt64(i), text: "stopped \(i)")
        let host = hosts[i]
        host.storage?.crash(using: &generator)
        host.disks.crash(using: &generator)
        host.end()
        processGone(i, orderly: true)
        schedule(after: random(10_000..<600_000), .start(i))
    }

    /// Feeds one input. Effects are carried out together a moment later, as at the end of a turn of the loop.
    func feed(_ i: Int, _ input: NodeInput) {
        let host = hosts[i]
        guard host.isUp else { return }
        host.core?.handle(input, now: host.localTime(now))
        // A process that goes on after a pause takes what has piled up in several turns.
        if host.pausedUntil == now, chance(0.3) { turnEnds = i }
        guard !host.isFlushScheduled else { return }
        host.isFlushScheduled = true
        schedule(after: random(1..<40), .flush(i, life: host.life))
    }

    private func flush(_ i: Int) throws {
        let host = hosts[i]
        guard var effects = host.core?.takeUrgentEffects() else { return }
        if host.core?.hasBacklog ?? false, chance(0.3) {
            // Its disk writes meanwhile, and other inputs may come before what is committed is applied.
            host.isFlushScheduled = true
            schedule(after: random(1..<2_000), .flush(i, life: host.life))
        } else {
            effects += host.core?.takeEffects() ?? []
        }
        let outline = host.core?.outline() ?? NodeOutline()
        note(
            6, UInt64(i), UInt64(effects.count), outline.term, outline.commitIndex,
            text: "turn \(i) \(effects.count) \(outline.term) \(outline.commitIndex)")
        try oracle.observe(effects, of: host, in: self)
        for effect in effects {
            guard host.isUp else { return }
            try perform(effect, i)
        }
        guard let deadline = host.core?.outline().nextDeadline else { return }
        let due = host.worldTime(deadline)
        if due != host.timerAt, due != .distantFuture {
            host.timerAt = due
            host.timerGeneration += 1
            schedule(at: due, .timer(i, generation: host.timerGeneration))
        }
    }

    private func perform(_ effect: NodeEffect, _ i: Int) throws {
        let host = hosts[i]
        switch effect {
        case .datagram(let bytes, let to): try sendDatagram(bytes, from: i, to: to)
        case .peerFrame(let kind, let payload, let to, let address):
            try sendFrame(kind, payload, from: i, to: to, at: address)
        case .persist(let request): host.storage?.persist(request)
        case .found(let request):
            note(7, UInt64(i), text: "found \(i)")
            try checkPromises(of: request, by: host)
            host.storage?.found(request)
        case .persistPromise(let promise): host.storage?.persistPromise(promise)
        case .persistLineage(let lineage): host.storage?.persistLineage(lineage)
        case .makeSnapshot(let metadata, let image):
            try oracle.snapshotMade(metadata, image.encoded, by: i)
            host.storage?.makeSnapshot(metadata, image.encoded)
        case .sendSnapshot(let send): host.storage?.readSnapshot(send)
        case .storeSnapshotChunk(let chunk): host.storage?.storeChunk(chunk)
        case .respond(let id, let response): try respond(id, response, from: i)
        case .localResult(let id, let result): try localResult(id, result, from: i)
        case .localReadReady(let id, let error): try localReadReady(id, error, from: i)
        case .assignments(let records):
            host.pods?.assigned(records)
            try checkPods()
        case .event, .changed: break
        case .log(let level, let text):
            note(8, UInt64(i), text: "log \(i) \(level.rawValue) \(text)")
            // A node reports as an error what can not happen between sound nodes; a failed disk is our own doing.
            if level == .error, !text.hasPrefix("the disk failed") { throw Violation("node \(i) logs: \(text)") }
        case .stopped: stopped(i)
        case .fenced(let why): throw Violation("node \(i) has no place in its cluster: \(why)")
        }
    }

    /// Who founds a cluster holds the promises of all that shall vote in it, on their disks.
    private func checkPromises(of request: PersistRequest, by founder: SimulatedHost) throws {
        guard let payload = request.entries.first?.payload else {
            throw Violation("a cluster is founded without an entry")
        }
        for voter in try RaftConfiguration(decoding: payload).voters {
            guard let i = index(of: voter) else {
                if retired.contains(where: { $0.id == voter }) { continue }
                throw Violation("a stranger is to vote")
            }
            guard let promise = try SimulatedStorage.readPromise(hosts[i].disks.promises),
                promise.initiator == founder.id,
                promise.voters.contains(voter)
            else { throw Violation("node \(founder.index) founds a cluster without the promise of node \(i)") }
        }
    }

    private func checkPods() throws {
        var places: [SimulatedPods.Key: Int] = [:]
        for host in hosts {
            for key in host.pods?.live ?? [] {
                if let other = places[key] {
                    throw Violation("pod \(key.uid) generation \(key.generation) runs on \(other) and \(host.index)")
                }
                places[key] = host.index
            }
        }
    }

    private func podScheduled(_ i: Int, _ life: Int, _ key: SimulatedPods.Key, _ step: SimulatedPods.Step) {
        let delay: TimeSpan =
            switch step {
            case .starts: random(5_000..<60_000)
            case .ends: random(100_000..<1_500_000)
            case .gone: random(5_000..<200_000)
            }
        schedule(after: delay, .pod(i, life: life, key, step))
    }

    // MARK: - Disk

    private func diskStarted(_ i: Int, _ life: Int, _ thread: SimulatedStorage.Thread) {
        let isSlow = !isPeaceful && settings.diskFaults && chance(0.01)
        var delay = isSlow ? random(20_000..<250_000) : random(60..<900)
        if settings.slowOutgoing, !isPeaceful, isSlowAsOutgoing(i) {
            delay = .microseconds(Int64(2_000 + laterGenerator.next() % 60_000))
        }
        schedule(after: delay, .disk(i, life: life, thread))
        if let doom = hosts[i].doom, doom.life == life, hosts[i].storage?.isWritingLog ?? false {
            hosts[i].doom = nil
            let part = TimeSpan(nanoseconds: Int64(laterGenerator.next() % UInt64(delay.nanoseconds)))
            schedule(after: part, .later { [weak self] in self?.meetDoom(i, doom) })
        }
    }

    /// While two sets of voters decide together, those of the old one are late now and then: the new ones alone must not do.
    private func isSlowAsOutgoing(_ i: Int) -> Bool {
        guard let configuration = hosts[i].core?.raft?.configuration, configuration.outgoing.contains(hosts[i].id)
        else {
            return false
        }
        return laterGenerator.chance(0.5)
    }

    private func finishDisk(_ i: Int, _ thread: SimulatedStorage.Thread) throws {
        let host = hosts[i]
        for outcome in host.storage?.finish(thread) ?? [] {
            switch outcome {
            case .input(let input):
                if case .snapshotInstalled = input { figures.snapshotsInstalled += 1 }
                if case .persisted(let ticket) = input { try oracle.persisted(through: ticket, of: host) }
                if case .founded = input {
                    try oracle.persisted(through: .max, of: host)
                    try oracle.founded(host)
                }
                feed(i, input)
            case .chunk(let chunk, let to):
                if let effect = host.core?.snapshotFrame(chunk, to: to) { try perform(effect, i) }
            case .retry: schedule(after: .milliseconds(50), .diskRetry(i, life: host.life))
            }
        }
        if isPeaceful, host.storage?.hasFailed ?? false { restart(i) }
    }

    /// As a supervisor does with a process whose disk failed.
    func restart(_ i: Int) {
        crash(i, powered: true)
        schedule(after: .milliseconds(20), .start(i))
    }

    func index(of id: NodeID) -> Int? { hosts.firstIndex { $0.id == id } }
}
