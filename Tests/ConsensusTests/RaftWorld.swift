import Consensus
import Journal
import Model
import Simulator

// A deterministic world for a handful of Raft nodes: virtual time, a network that loses, delays, duplicates, reorders and
// splits, disks that tear what was not synced, processes that crash and pause. Everything follows from the seed. The journal
// is the real one; only the `Disk` below it is simulated. Invariants are checked at every effect (see `Oracle`).

/// What a seed decides about a run.
struct WorldOptions {
    var nodes: Int
    /// Milliseconds of faults, then of peace in which the cluster has to come together.
    var chaos: Int64 = 1_500
    var peace: Int64 = 2_500
    var loss = 0.0
    var duplication = 0.0
    var crashes = true
    var partitions = true
    var pauses = true
    var configurationChanges = true
    var transfers = true
    var diskFaults = true
    /// Damage to the disks of nodes that are down: so many nodes at once may have lost something, of which so many their term.
    var damagedNodes = 0
    var lostTerms = 0
    var snapshots = true

    init(seed: UInt64) {
        var generator = SeededGenerator(seed: seed &* 0x9E37_79B9_7F4A_7C15)
        nodes = 3 + Int(generator.next() % 5)
        loss = [0, 0.02, 0.1, 0.25][Int(generator.next() % 4)]
        duplication = [0, 0.05, 0.2][Int(generator.next() % 3)]
        crashes = generator.chance(0.85)
        partitions = generator.chance(0.7)
        pauses = generator.chance(0.5)
        configurationChanges = generator.chance(0.5)
        transfers = generator.chance(0.5)
        diskFaults = generator.chance(0.5)
    }

    /// No faults but those that a test makes.
    static func quiet(nodes: Int, snapshots: Bool = false) -> WorldOptions {
        var options = WorldOptions(seed: 0)
        options.nodes = nodes
        options.chaos = 1
        options.configurationChanges = false
        options.loss = 0
        options.duplication = 0
        options.snapshots = snapshots
        return options
    }

    /// With damage to fewer nodes than a majority, so that each committed entry has an intact copy; or to any number of them.
    static func damaging(seed: UInt64, beyondBudget: Bool = false) -> WorldOptions {
        var options = WorldOptions(seed: seed)
        options.configurationChanges = false
        options.damagedNodes = beyondBudget ? options.nodes : (options.nodes - 1) / 2
        options.lostTerms = beyondBudget ? options.nodes : 1
        return options
    }
}

final class RaftWorld {
    enum Event {
        case message(from: Int, to: Int, RaftMessage)
        case timer(Int, generation: Int)
        case diskDone(Int, life: Int)
        case diskRetry(Int, life: Int)
        case chunkStored(Int, life: Int, InstallSnapshot)
        case death(of: Int, seenBy: Int)
        case restart(Int)
        case fault
        case client
        case peace
    }

    struct Scheduled {
        var time: MonotonicTime
        var order: UInt64
        var event: Event
    }

    let options: WorldOptions
    let seed: UInt64
    var generator: SeededGenerator
    var now = MonotonicTime(nanoseconds: 1_000_000)
    var nodes: [SimulatedNode] = []
    var oracle = Oracle()
    var isPeaceful = false
    private var heap: [Scheduled] = []
    private var order: UInt64 = 0
    /// Which side of a split each node is on; equal sides talk.
    private var sides: [Int]
    /// Pairs that hear nothing in one direction.
    private var deaf: Set<[Int]> = []
    private(set) var trace: UInt64 = 0xCBF2_9CE4_8422_2325
    private(set) var steps = 0
    private(set) var leadersSeen = 0
    private var nextCommand: UInt64 = 1
    private var nextRead: UInt64 = 1

    /// Damage done to disks so far, and what was not done because no format could tell it from a write that a crash cut off.
    private(set) var damagesDone = 0
    private(set) var damagesUndone = 0
    /// `false` skips the demand that all nodes come together at the end.
    var mustConverge = true

    init(seed: UInt64, options: WorldOptions? = nil) throws {
        self.seed = seed
        self.options = options ?? WorldOptions(seed: seed)
        generator = SeededGenerator(seed: seed)
        sides = Array(repeating: 0, count: self.options.nodes)
        let ids = (0..<self.options.nodes).map { NodeID(high: UInt64($0) + 1, low: seed) }
        let spectators = self.options.configurationChanges ? min(2, self.options.nodes - 3) : 0
        let founders = RaftConfiguration(voters: Array(ids.dropLast(spectators)))
        for i in 0..<self.options.nodes {
            let isFounder = founders.isVoter(ids[i])
            nodes.append(
                SimulatedNode(index: i, id: ids[i], founding: isFounder ? founders : nil, generator: generator.fork()))
        }
        for i in nodes.indices { try start(i) }
        schedule(after: .milliseconds(300), .client)
        schedule(after: .milliseconds(350), .fault)
        schedule(after: .milliseconds(self.options.chaos), .peace)
    }

    func index(of id: NodeID) -> Int? { nodes.firstIndex { $0.id == id } }

    // MARK: Time

    func schedule(after delay: TimeSpan, _ event: Event) { schedule(at: now + delay, event) }

    private func schedule(at time: MonotonicTime, _ event: Event) {
        order += 1
        heap.append(Scheduled(time: time, order: order, event: event))
        var child = heap.count - 1
        while child > 0 {
            let parent = (child - 1) / 2
            guard isBefore(heap[child], heap[parent]) else { break }
            heap.swapAt(child, parent)
            child = parent
        }
    }

    private func isBefore(_ a: Scheduled, _ b: Scheduled) -> Bool { (a.time, a.order) < (b.time, b.order) }

    private func popNext() -> Scheduled? {
        guard let first = heap.first else { return nil }
        let last = heap.removeLast()
        guard !heap.isEmpty else { return first }
        heap[0] = last
        var parent = 0
        while true {
            var smallest = parent
            for child in [2 * parent + 1, 2 * parent + 2]
            where child < heap.count && isBefore(heap[child], heap[smallest]) {
                smallest = child
            }
            if smallest == parent { return first }
            heap.swapAt(parent, smallest)
            parent = smallest
        }
    }

    /// Runs to the end of the peace, and checks that the cluster came together.
    func run() throws {
        let end = now + .milliseconds(options.chaos + options.peace)
        while let next = popNext(), next.time <= end {
            now = max(now, next.time)
            steps += 1
            try handle(next)
        }
        if mustConverge { try oracle.checkConvergence(self) }
    }

    /// Runs for a while, without an end.
    func run(for time: TimeSpan) throws {
        let end = now + time
        while let next = popNext() {
            guard next.time <= end else {
                schedule(at: next.time, next.event)
                break
            }
            now = max(now, next.time)
            steps += 1
            try handle(next)
        }
        now = max(now, end)
    }

    func note(_ values: UInt64...) {
        for value in values { trace = (trace ^ value) &* 0x100_0000_01B3 }
    }

    private func handle(_ scheduled: Scheduled) throws {
        switch scheduled.event {
        case .message(let from, let to, let message):
            guard !postponed(to, scheduled.event) else { return }
            note(1, UInt64(from), UInt64(to), message.term)
            try feed(to, .message(from: nodes[from].id, message))
        case .timer(let i, let generation):
            guard nodes[i].isUp, nodes[i].timerGeneration == generation, !postponed(i, scheduled.event) else { return }
            nodes[i].timerAt = nil
            try feed(i, .timer)
        case .diskDone(let i, let life):
            guard nodes[i].life == life, nodes[i].isUp else { return }
            try finishWrite(i)
        case .diskRetry(let i, let life):
            guard nodes[i].life == life, nodes[i].isUp else { return }
            startWrite(i)
        case .chunkStored(let i, let life, let chunk):
            guard nodes[i].life == life, nodes[i].isUp else { return }
            try storeChunk(i, chunk)
        case .death(let dead, let witness):
            guard nodes[witness].isUp, !postponed(witness, scheduled.event) else { return }
            note(2, UInt64(dead), UInt64(witness))
            try feed(witness, .peerProcessDied(nodes[dead].id))
        case .restart(let i):
            if !nodes[i].isUp { try start(i) }
        case .fault:
            guard !isPeaceful else { return }
            try inject()
            schedule(after: .milliseconds(Int64(20 + generator.next() % 120)), .fault)
        case .client:
            try act()
            schedule(after: .microseconds(Int64(2_000 + generator.next() % 12_000)), .client)
        case .peace:
            isPeaceful = true
            sides = Array(repeating: 0, count: nodes.count)
            deaf = []
            for i in nodes.indices {
                nodes[i].logDisk.capacity = .max
                nodes[i].pausedUntil = now
                // A disk that failed a sync needs a new start.
                if nodes[i].isUp, nodes[i].isFenced { crash(i) }
                if !nodes[i].isUp { schedule(after: .milliseconds(5), .restart(i)) }
            }
        }
    }

    private func postponed(_ i: Int, _ event: Event) -> Bool {
        guard nodes[i].isUp else { return true }
        guard nodes[i].pausedUntil > now else { return false }
        schedule(at: nodes[i].pausedUntil, event)
        return true
    }

    // MARK: Processes

    private func start(_ i: Int) throws {
        do {
            try nodes[i].start(now: now)
        } catch let error as JournalError {
            guard nodes[i].isMarkedDamaged else { throw error }
            switch error {
            // No room, or a bad sync, while a damaged journal was made usable: the next start does it again.
            case .noSpace, .failed: return startLater(i)
            case .fenced, .damaged, .notContiguous, .tooLarge, .unusable: throw error
            }
        }
        note(3, UInt64(i), nodes[i].raft?.term ?? 0, nodes[i].raft?.lastIndex ?? 0)
        try oracle.started(nodes[i])
        try carryOut(i)
    }

    private func startLater(_ i: Int) {
        nodes[i].crash(using: &generator)
        schedule(after: .milliseconds(30), .restart(i))
    }

    func crash(_ i: Int) {
        note(4, UInt64(i))
        nodes[i].crash(using: &generator)
        let isSeen = generator.chance(0.6)
        for witness in nodes.indices where witness != i && isSeen && reaches(i, witness) {
            schedule(after: .microseconds(Int64(100 + generator.next() % 500)), .death(of: i, seenBy: witness))
        }
    }

    func feed(_ i: Int, _ input: RaftInput) throws {
        guard nodes[i].isUp else { return }
        do throws(RaftViolation) {
            try nodes[i].raft?.handle(input, now: now)
        } catch {
            throw OracleFailure("node \(i) reports a violation: \(error)")
        }
        try carryOut(i)
    }

    func carryOut(_ i: Int) throws {
        guard let effects = nodes[i].raft?.takeEffects() else { return }
        for effect in effects {
            try oracle.check(effect, of: i, in: self)
            switch effect {
            case .persist(let request):
                nodes[i].queue.append(request)
                if nodes[i].writing.isEmpty { startWrite(i) }
            case .send(let to, let message):
                if let target = index(of: to) { send(message, from: i, to: target) }
            case .committed(let entries):
                nodes[i].apply(entries)
                maybeSnapshot(i)
            case .readReady, .readFailed, .leaderChanged, .steppedDown, .transferFailed, .configurationChanged,
                .recovered:
                break
            case .becameLeader: leadersSeen += 1
            case .sendSnapshot(let request): sendSnapshot(i, request)
            case .storeSnapshotChunk(let chunk):
                schedule(
                    after: .microseconds(Int64(50 + generator.next() % 2_000)),
                    .chunkStored(i, life: nodes[i].life, chunk))
            case .restoreSnapshot(let metadata): try nodes[i].restore(metadata)
            }
        }
        guard let raft = nodes[i].raft else { return }
        note(UInt64(i), raft.term, raft.commitIndex, raft.lastIndex, now.nanoseconds)
        try oracle.checkState(i, in: self)
        let deadline = raft.nextDeadline
        if deadline != nodes[i].timerAt, deadline != .distantFuture {
            nodes[i].timerAt = deadline
            nodes[i].timerGeneration += 1
            schedule(at: max(deadline, now), .timer(i, generation: nodes[i].timerGeneration))
        }
    }

    // MARK: Disk

    private func startWrite(_ i: Int) {
        if nodes[i].writing.isEmpty {
            nodes[i].writing = nodes[i].queue
            nodes[i].queue = []
        }
        guard !nodes[i].writing.isEmpty else { return }
        let stall = !isPeaceful && options.diskFaults && generator.chance(0.01)
        let delay = stall ? Int64(20_000 + generator.next() % 200_000) : Int64(60 + generator.next() % 900)
        schedule(after: .microseconds(delay), .diskDone(i, life: nodes[i].life))
    }

    private func finishWrite(_ i: Int) throws {
        guard let last = nodes[i].writing.last else { return }
        switch nodes[i].write() {
        case .done:
            nodes[i].writing = []
            try feed(i, .persisted(ticket: last.ticket))
            if nodes[i].writing.isEmpty { startWrite(i) }
        case .full:
            schedule(after: .milliseconds(20), .diskRetry(i, life: nodes[i].life))
        case .fenced:
            note(5, UInt64(i))
            try feed(i, .storageFailed)
            if isPeaceful {
                crash(i)
                schedule(after: .milliseconds(20), .restart(i))
            }
        }
    }

    // MARK: Network

    func reaches(_ from: Int, _ to: Int) -> Bool { sides[from] == sides[to] && !deaf.contains([from, to]) }

    private func send(_ message: RaftMessage, from: Int, to: Int) {
        guard reaches(from, to) else { return }
        if !isPeaceful && generator.chance(options.loss) { return }
        let copies = !isPeaceful && generator.chance(options.duplication) ? 2 : 1
        for _ in 0..<copies {
            var delay = 40 + generator.next() % 300
            if !isPeaceful && generator.chance(0.03) { delay += generator.next() % 150_000 }
            schedule(after: .microseconds(Int64(delay)), .message(from: from, to: to, message))
        }
    }

    // MARK: Snapshots

    private func maybeSnapshot(_ i: Int) {
        guard options.snapshots, let raft = nodes[i].raft, nodes[i].applied >= raft.snapshot.index + 25,
            generator.chance(0.1)
        else { return }
        guard let metadata = raft.snapshotMetadata(at: nodes[i].applied), nodes[i].saveSnapshot(metadata) else {
            return
        }
        nodes[i].raft?.snapshotStored(metadata)
    }

    private func sendSnapshot(_ i: Int, _ request: SnapshotSend) {
        guard let target = index(of: request.to) else { return }
        if let chunk = nodes[i].snapshotChunk(request) {
            send(.installSnapshot(chunk), from: i, to: target)
        } else {
            try? nodes[i].raft?.handle(.snapshotSendFailed(to: request.to), now: now)
        }
    }

    private func storeChunk(_ i: Int, _ chunk: InstallSnapshot) throws {
        for input in nodes[i].store(chunk) { try feed(i, input) }
    }

    // MARK: Clients and faults

    private func act() throws {
        let i = Int(generator.next() % UInt64(nodes.count))
        guard nodes[i].isUp, nodes[i].pausedUntil <= now, let raft = nodes[i].raft else { return }
        if generator.chance(0.2) {
            let context = nextRead
            nextRead += 1
            oracle.readIssued(context)
            try feed(i, .readIndex(context: context))
            return
        }
        // Clients know the leader most of the time.
        let target = raft.leader.flatMap { index(of: $0) } ?? i
        guard nodes[target].isUp, nodes[target].pausedUntil <= now else { return }
        var payloads: [[UInt8]] = []
        for _ in 0..<1 + generator.next() % 4 {
            let command = nextCommand
            nextCommand += 1
            payloads.append(
                withUnsafeBytes(of: command.littleEndian) { Array($0) }
                    + Array(repeating: 7, count: Int(generator.next() % 200)))
        }
        _ = nodes[target].raft?.propose(payloads, now: now)
        try carryOut(target)
    }

    private func inject() throws {
        let i = Int(generator.next() % UInt64(nodes.count))
        switch generator.next() % 10 {
        case 0, 1:
            guard options.crashes else { return }
            // Now and then several at once.
            for victim in nodes.indices where victim == i || generator.chance(0.15) {
                if nodes[victim].isUp { crash(victim) }
                try maybeDamage(victim)
                schedule(after: .milliseconds(Int64(10 + generator.next() % 400)), .restart(victim))
            }
        case 2:
            guard options.crashes, let leader = nodes.firstIndex(where: { $0.isUp && $0.raft?.isLeader == true }) else {
                return
            }
            crash(leader)
            try maybeDamage(leader)
            schedule(after: .milliseconds(Int64(10 + generator.next() % 600)), .restart(leader))
        case 3, 4:
            guard options.partitions else { return }
            sides = nodes.map { _ in Int(generator.next() % 2) }
        case 5:
            guard options.partitions else { return }
            let j = Int(generator.next() % UInt64(nodes.count))
            if i != j { deaf.insert([i, j]) }
        case 6:
            sides = Array(repeating: 0, count: nodes.count)
            deaf = []
        case 7:
            guard options.pauses else { return }
            nodes[i].pausedUntil = now + .milliseconds(Int64(20 + generator.next() % 700))
        case 8:
            if options.transfers, generator.chance(0.5) {
                let target = generator.chance(0.5) ? nodes[i].id : nil
                if let leader = nodes.firstIndex(where: { $0.isUp && $0.raft?.isLeader == true }) {
                    try feed(leader, .transfer(to: target))
                }
            } else if options.diskFaults {
                if generator.chance(0.3) {
                    nodes[i].logDisk.failingSyncs = 1
                } else {
                    nodes[i].logDisk.capacity = generator.chance(0.5) ? 20_000 : .max
                }
            }
        default:
            guard options.configurationChanges else { return }
            try changeConfiguration()
        }
    }

    private func maybeDamage(_ i: Int) throws {
        guard options.damagedNodes > 0, generator.chance(0.5) else { return }
        let damaged = nodes.filter { $0.isMarkedDamaged && $0.index != i }.count
        let lost = nodes.filter { $0.isTermLost && $0.index != i }.count
        guard damaged < options.damagedNodes else { return }
        for _ in 0..<1 + generator.next() % 2 {
            if try nodes[i].damage(mayLoseTerm: lost < options.lostTerms, using: &generator) {
                damagesDone += 1
            } else {
                damagesUndone += 1
            }
        }
        note(6, UInt64(i))
    }

    private func changeConfiguration() throws {
        guard let leader = nodes.firstIndex(where: { $0.isUp && $0.raft?.isReady == true }) else { return }
        var voters: [NodeID] = []
        var learners: [NodeID] = []
        for node in nodes {
            switch generator.next() % 4 {
            case 0, 1: voters.append(node.id)
            case 2: learners.append(node.id)
            default: break
            }
        }
        if generator.chance(0.5), let raft = nodes[leader].raft {
            // One voter more or less.
            voters = raft.configuration.voters
            let id = nodes[Int(generator.next() % UInt64(nodes.count))].id
            if let at = voters.firstIndex(of: id) { voters.remove(at: at) } else { voters.append(id) }
        }
        if voters.isEmpty { voters = [nodes[leader].id] }
        _ = nodes[leader].raft?.proposeConfiguration(voters: voters, learners: learners, now: now)
        try carryOut(leader)
    }
}
