// What the clients of a simulated world do: some put jobs, some work them off, some run for election, some look, some keep pods.
import Leases
import Model
import NodeCore
import Queues
import Scheduling
import Wire

extension World {
    static let tubes = ["t0", "t1", "t2"]
    /// After the faults, so long may pass until what was sent before them has surely arrived or is lost.
    static let stragglers = TimeSpan.milliseconds(2_000)

    private var stragglersAreIn: Bool { isPeaceful && now - peaceSince >= World.stragglers }

    func takeTurn(_ client: SimulatedClient) {
        guard !client.isDone else { return }
        if client.role != .probe, isPeaceful, isOver(client) { return endSessions(of: client) }
        switch client.role {
        case .producer: produce(client)
        case .worker: reserve(client)
        case .elector: run(client)
        case .observer: look(client)
        case .keeper: keepPods(client)
        case .porter: if stage == .chaos { takeLocalTurn(client) }
        case .probe: probeTurn(client)
        }
        schedule(after: client.random(3_000..<60_000), .clientTurn(client.index))
    }

    /// True if the program of this client has nothing more to do.
    private func isOver(_ client: SimulatedClient) -> Bool {
        guard client.operations.isEmpty else { return false }
        switch client.role {
        case .producer, .observer: return true
        case .worker:
            return stragglersAreIn && client.jobsInHand == 0 && oracle.replica.jobCount == 0
                && clients.allSatisfy { ($0.role != .producer && $0.role != .porter) || $0.active == 0 }
        case .elector: return client.held == nil
        case .keeper: return client.podNames.isEmpty
        case .porter: return client.active == 0 && client.jobsInHand == 0
        case .probe: return true
        }
    }

    /// Tells the cluster that the sessions are over, so that nothing of them is kept.
    private func endSessions(of client: SimulatedClient) {
        guard !client.isEnding else { return }
        client.isEnding = true
        guard client.role != .porter else { return client.isDone = true }
        var open = client.lanes.count
        for lane in client.lanes.indices {
            ask(client, .endSession, lane: lane) { [weak self] _ in
                open -= 1
                if open == 0 {
                    client.isDone = true
                    self?.note(16, UInt64(client.index), text: "client \(client.index) is done")
                }
            }
        }
    }

    // MARK: - Jobs

    private func produce(_ client: SimulatedClient) {
        guard stage == .chaos, client.active < 3 else { return }
        put(client, count: 1 + Int(client.generator.next() % 3)) { _ in }
    }

    func put(_ client: SimulatedClient, count: Int, then: @escaping (Bool) throws -> Void) {
        var jobs: [NewJob] = []
        var numbers: [UInt64] = []
        for _ in 0..<count {
            let number = nextJob
            nextJob += 1
            numbers.append(number)
            let body =
                withUnsafeBytes(of: number.littleEndian) { Array($0) }
                + Array(repeating: 7, count: Int(client.generator.next() % (isLarge() ? 3_000 : 60)))
            jobs.append(
                NewJob(
                    tube: World.tubes[Int(client.generator.next() % 3)], priority: UInt32(client.generator.next() % 4),
                    delayMilliseconds: client.generator.chance(0.15) ? client.generator.next() % 500 : 0,
                    ttrMilliseconds: 200 + client.generator.next() % 1_000, body: body))
        }
        figures.jobs += count
        ask(client, .queue(.put(jobs))) { [weak self] ending in
            guard let self else { return }
            guard case .result(.queue(.inserted(let inserted))) = ending else {
                if case .result(let result) = ending { throw Violation("a put was answered with \(result)") }
                return try then(false)
            }
            try self.oracle.putAcknowledged(numbers, inserted)
            try then(true)
        }
    }

    private func isLarge() -> Bool { settings.largeBodies > 0 && laterGenerator.chance(settings.largeBodies) }

    private func reserve(_ client: SimulatedClient) {
        guard client.active < 2, client.jobsInHand < 4, !stragglersAreIn || oracle.replica.jobCount > 0 else { return }
        reserveOnce(client, isDraining: isPeaceful) { _ in }
    }

    func reserveOnce(_ client: SimulatedClient, isDraining: Bool, then: @escaping (Int) throws -> Void) {
        var tubes = World.tubes
        if !isDraining { tubes.removeFirst(Int(client.generator.next() % 3)) }
        // In the end nothing but time, which the leader lets pass, gives back what dead workers hold.
        let wait: TimeSpan? = isDraining || client.generator.chance(0.8) ? client.random(0..<800_000) : nil
        let count = 1 + Int(client.generator.next() % (isDraining ? 12 : 2))
        let asked = now
        ask(client, .queue(.reserve(tubes: tubes, holder: 0, count: count)), wait: wait) { [weak self] ending in
            guard let self else { return }
            guard case .result(.queue(.reserved(let jobs))) = ending else {
                if case .result(let result) = ending { throw Violation("a reserve was answered with \(result)") }
                return try then(0)
            }
            guard jobs.count <= count else { throw Violation("a reserve of \(count) got \(jobs.count)") }
            for job in jobs {
                try self.oracle.reserved(job, askedAt: asked)
                self.figures.reservations += 1
                client.jobsInHand += 1
                self.schedule(
                    after: client.random(0..<(isDraining ? 30_000 : 300_000)),
                    .worksOn(client: client.index, job: job.id, lease: job.lease, step: 0))
            }
            try then(jobs.count)
        }
    }

    func workOn(_ client: SimulatedClient, job: UInt64, lease: UInt64, step: Int) {
        let choice = isPeaceful ? 0 : client.generator.next() % 20
        switch choice {
        case 0..<14, 18: delete(client, job: job, lease: lease)
        case 14, 15:
            let release = QueueCommand.release(
                id: job, lease: lease, priority: 1, delayMilliseconds: client.generator.chance(0.3) ? 100 : 0)
            ask(client, .queue(release)) { [weak self] ending in
                client.jobsInHand -= 1
                try self?.oracle.leaseUsed(job: job, lease: lease, ending)
            }
        case 16, 17:
            ask(client, .queue(.touch(id: job, lease: lease))) { [weak self] ending in
                try self?.oracle.leaseUsed(job: job, lease: lease, ending)
                guard let self else { return }
                self.schedule(
                    after: client.random(0..<200_000),
                    .worksOn(client: client.index, job: job, lease: lease, step: step + 1))
            }
        default:
            // A worker that died: the lease's end gives the job back.
            client.jobsInHand -= 1
        }
    }

    private func delete(_ client: SimulatedClient, job: UInt64, lease: UInt64) {
        oracle.deleteAsked(job)
        ask(client, .queue(.delete(id: job, lease: lease))) { [weak self] ending in
            client.jobsInHand -= 1
            try self?.oracle.leaseUsed(job: job, lease: lease, ending)
            if case .result(.queue(.done)) = ending {
                if let self { try self.oracle.deleteAcknowledged(job, at: self.now) }
            }
        }
    }

    // MARK: - Elections

    private func run(_ client: SimulatedClient) {
        guard stage == .chaos, client.held == nil, client.active == 0 else { return }
        let key = "election/e\(client.generator.next() % 2)"
        let ttl = 400 + client.generator.next() % 1_000
        let wait: TimeSpan? = client.generator.chance(0.7) ? client.random(0..<900_000) : nil
        let asked = now
        let holder = "c\(client.index).\(nextOperation)"
        ask(client, .lease(.acquire(key: key, holder: holder, info: [:], ttlMilliseconds: ttl)), wait: wait) {
            [weak self] ending in
            guard let self, case .result(.lease(let result)) = ending else { return }
            switch result {
            case .granted(let token, _):
                self.figures.grants += 1
                client.held = (key, token)
                try self.oracle.granted(
                    key, token: token, to: client.index, until: self.reliable(ttl, since: asked), now: self.now)
                self.schedule(after: client.random(10_000..<300_000), .holdsUntil(client: client.index, token: token))
            case .held: break
            default: throw Violation("an acquire was answered with \(result)")
            }
        }
    }

    func renewOrRelease(_ client: SimulatedClient, token: UInt64) {
        guard let held = client.held, held.token == token else { return }
        if !isPeaceful, settings.vanishing > 0, client.generator.chance(settings.vanishing) {
            oracle.gaveUp(held.key, client: client.index)
            client.held = nil
            return
        }
        if isPeaceful || client.generator.chance(0.25) {
            // From here on it acts as leader no more, whatever becomes of the request.
            oracle.gaveUp(held.key, client: client.index)
            client.held = nil
            return ask(client, .lease(.release(key: held.key, token: token))) { _ in }
        }
        let asked = now
        ask(client, .lease(.renew(key: held.key, token: token))) { [weak self] ending in
            guard let self else { return }
            switch ending {
            case .result(.lease(.renewed(let expiresIn))):
                try self.oracle.renewed(
                    held.key, client: client.index, until: self.reliable(expiresIn, since: asked))
                self.schedule(after: client.random(30_000..<300_000), .holdsUntil(client: client.index, token: token))
            case .result(.lease(.lost)):
                self.oracle.gaveUp(held.key, client: client.index)
                client.held = nil
            case .result(let result): throw Violation("a renewal was answered with \(result)")
            default:
                self.oracle.gaveUp(held.key, client: client.index)
                client.held = nil
            }
        }
    }

    // MARK: - Looking

    private func look(_ client: SimulatedClient) {
        guard stage == .chaos, client.active < 100 else { return }
        switch client.generator.next() % 5 {
        case 0, 1:
            guard let job = oracle.anyAcknowledgedJob(using: &client.generator) else { return }
            let mustBeGone = oracle.isDeleted(job)
            query(client, "jobs/\(job)") { [weak self] ending in
                guard let self else { return }
                switch ending {
                case .document where mustBeGone: throw Violation("job \(job) was deleted, and is read again")
                case .refused(let error):
                    guard error.code == .notFound else { throw Violation("reading job \(job): \(error)") }
                    if !self.oracle.isDeleteAsked(job) {
                        throw Violation("job \(job) was put and never deleted, and is not found")
                    }
                default: break
                }
            }
        case 2:
            let name = "e\(client.generator.next() % 2)"
            let known = oracle.newestToken(of: "election/" + name)
            query(client, "elections/\(name)") { ending in
                guard case .document(let document) = ending else { return }
                let token = document["token"]?.intValue.map { UInt64(clamping: $0) } ?? 0
                if token < known {
                    throw Violation("election \(name) is read with token \(token) after \(known) was granted")
                }
            }
        case 3: query(client, "pods") { _ in }
        default: query(client, "status") { _ in }
        }
    }

    // MARK: - Pods

    private func keepPods(_ client: SimulatedClient) {
        guard client.active == 0 else { return }
        if isPeaceful {
            guard stragglersAreIn, let name = client.podNames.first else { return }
            return deletePod(client, name)
        }
        if client.podNames.count > 4 || (!client.podNames.isEmpty && client.generator.chance(0.3)) {
            return deletePod(client, client.podNames[Int(client.generator.next() % UInt64(client.podNames.count))])
        }
        client.nextPod += 1
        let name = "p\(client.index)-\(client.nextPod)"
        let spec = PodSpec(
            name: name, containers: [ContainerSpec(name: "main", image: "localhost/host", command: ["/bin/true"])],
            restartPolicy: client.generator.chance(0.5) ? .never : .always)
        let owner: PodOwner? =
            client.generator.chance(0.5) ? .pattern(kind: "Deployment", name: "d\(client.index)") : nil
        client.podNames.append(name)
        ask(client, .scheduling(.createPods([spec], owner: owner))) { ending in
            guard case .result(.scheduling(let result)) = ending else { return }
            guard case .created = result else { throw Violation("creating pod \(name) was answered with \(result)") }
        }
    }

    private func deletePod(_ client: SimulatedClient, _ name: String) {
        ask(client, .scheduling(.deletePods([name]))) { ending in
            guard case .result(.scheduling(let result)) = ending else { return }
            switch result {
            case .done, .notFound: client.podNames.removeAll { $0 == name }
            default: throw Violation("deleting pod \(name) was answered with \(result)")
            }
        }
    }
}
