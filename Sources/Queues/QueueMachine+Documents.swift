// What can be seen of the queues: jobs, tubes, and beanstalkd's statistics as ordered documents.
import Model
import Wire

/// One job as it is at a moment.
public struct JobView: Sendable, Hashable {
    public enum State: String, Sendable, Hashable, CaseIterable {
        case ready, reserved, delayed, buried
    }

    public var id: UInt64
    public var tube: String
    public var state: State
    public var priority: UInt32
    public var ageMilliseconds: UInt64
    public var delayMilliseconds: UInt64
    public var ttrMilliseconds: UInt64
    /// Until the lease or the delay ends; 0 in other states.
    public var leftMilliseconds: UInt64
    public var reserves: UInt32
    public var timeouts: UInt32
    public var releases: UInt32
    public var buries: UInt32
    public var kicks: UInt32
    /// Who has it reserved, else nil.
    public var holder: UInt64?
    public var key: String?
    public var body: [UInt8]
}

/// How a node's connections use a tube; the driver counts it.
public struct TubeUse: Sendable, Hashable {
    public var using = 0
    public var watching = 0
    public var waiting = 0
    public init(using: Int = 0, watching: Int = 0, waiting: Int = 0) {
        self.using = using
        self.watching = watching
        self.waiting = waiting
    }
}

/// What `stats` tells of the node that answers, rather than of the replicated queues.
public struct NodeFigures: Sendable, Hashable {
    /// Commands that the node's sessions answered or asked: see ``BeanstalkSession/takeCounts()``.
    public var commands = BeanstalkCounts()
    public var connections = 0
    public var producers = 0
    public var workers = 0
    public var waiting = 0
    public var totalConnections = 0
    public var pid = 0
    public var version = "1.12"
    public var userSeconds = 0.0
    public var systemSeconds = 0.0
    public var uptimeSeconds = 0
    public var maxJobSize = Limits.jobBytes
    public var isDraining = false
    public var id = ""
    public var hostname = ""
    public var os = ""
    public var platform = ""
    /// By tube, of this node's connections.
    public var tubes: [String: TubeUse] = [:]
    public init() {}
}

extension QueueMachine {
    // MARK: Jobs and tubes

    public func job(_ id: UInt64, now: UInt64 = 0) -> JobView? { store.slot(of: id).map { view($0, now: now) } }

    /// The job that comes next in this state: most urgent ready, shortest delay, earliest burial. Nil for `reserved`.
    public func peek(tube: String, state: JobView.State, now: UInt64 = 0) -> JobView? {
        guard let index = tubeIndex[tube] else { return nil }
        let slot: JobStore.Slot? =
            switch state {
            case .ready: tubeTable[index]?.ready.first
            case .delayed: tubeTable[index]?.delayed.first
            case .buried: tubeTable[index]?.buried.first
            case .reserved: nil
            }
        return slot.map { view($0, now: now) }
    }

    /// The tubes that exist, sorted.
    public var tubeNames: [String] { tubeIndex.filter { tubeTable[$0.value]?.vanished == 0 }.keys.sorted() }

    public func settings(tube: String) -> TubeSettings? {
        guard let index = tubeIndex[tube], tubeTable[index]?.vanished == 0 else { return nil }
        return tubeTable[index]?.settings
    }

    private func view(_ slot: JobStore.Slot, now: UInt64) -> JobView {
        let job = store[slot]
        let now = max(now, logTime)
        let state: JobView.State
        var left: UInt64 = 0
        switch job.state {
        case .ready: state = .ready
        case .buried: state = .buried
        case .reserved: (state, left) = (.reserved, job.deadline > now ? job.deadline - now : 0)
        case .delayed: (state, left) = (.delayed, job.deadline > now ? job.deadline - now : 0)
        }
        return JobView(
            id: job.id, tube: tubeTable[Int(job.tube)]?.name ?? "", state: state, priority: job.priority,
            ageMilliseconds: now > job.created ? now - job.created : 0, delayMilliseconds: job.delay,
            ttrMilliseconds: job.ttr,
            leftMilliseconds: left, reserves: job.reserves, timeouts: job.timeouts, releases: job.releases,
            buries: job.buries,
            kicks: job.kicks, holder: leases[slot]?.holder, key: keyOfJob[slot], body: Array(store.body(of: slot)))
    }

    /// What the bodies of all jobs take in memory, with what is kept beside them: see ``BodyStore``.
    public var bodyBytes: Int { store.bodies.heldBytes }

    // MARK: Documents

    /// `{"tubes":[{"name","ready","reserved","delayed","buried","waiting"}]}`, sorted by name; tubes in which only waiters are count too.
    public func listDocument(waiting: [String: Int] = [:]) -> JSONValue {
        let names = Set(tubeNames).union(waiting.filter { $0.value > 0 }.keys).sorted()
        let tubes = names.map { name -> JSONValue in
            let tube = tubeIndex[name].flatMap { tubeTable[$0] }
            return [
                "name": .string(name), "ready": JSONValue(tube?.ready.count ?? 0),
                "reserved": JSONValue(tube?.reserved ?? 0),
                "delayed": JSONValue(tube?.delayed.count ?? 0), "buried": JSONValue(tube?.buried.count ?? 0),
                "waiting": JSONValue(waiting[name] ?? 0),
            ]
        }
        return ["tubes": .array(tubes)]
    }

    /// DESIGN 3.2: as `reserve`'s, without a lease, with the state.
    public func peekDocument(job id: UInt64) -> JSONValue? { job(id).map(\.document) }

    /// The next job of the tube: ready, else delayed, else buried.
    public func peekDocument(tube: String) -> JSONValue? {
        (peek(tube: tube, state: .ready) ?? peek(tube: tube, state: .delayed) ?? peek(tube: tube, state: .buried)).map(
            \.document)
    }

    public func statsDocument(job id: UInt64, now: UInt64 = 0) -> JSONValue? { job(id, now: now).map(\.statsDocument) }

    /// Nil if there is no such tube, here or in `use`.
    public func statsDocument(tube name: String, use: TubeUse? = nil, now: UInt64 = 0) -> JSONValue? {
        let found = tubeIndex[name].flatMap { tubeTable[$0] }
        guard (found.map { $0.vanished == 0 } ?? false) || use != nil || name == "default" else { return nil }
        let tube = found ?? Tube(name: name)
        let now = max(now, logTime)
        return [
            "name": .string(name),
            "current-jobs-urgent": JSONValue(tube.urgent),
            "current-jobs-ready": JSONValue(tube.ready.count),
            "current-jobs-reserved": JSONValue(tube.reserved),
            "current-jobs-delayed": JSONValue(tube.delayed.count),
            "current-jobs-buried": JSONValue(tube.buried.count),
            "total-jobs": JSONValue(tube.totalJobs),
            "current-using": JSONValue(use?.using ?? 0),
            "current-watching": JSONValue(use?.watching ?? 0),
            "current-waiting": JSONValue(use?.waiting ?? 0),
            "cmd-delete": JSONValue(tube.deletes),
            "cmd-pause-tube": JSONValue(tube.pauses),
            "pause": JSONValue(tube.pauseMilliseconds / 1_000),
            "pause-time-left": JSONValue(tube.pausedUntil > now ? (tube.pausedUntil - now) / 1_000 : 0),
        ]
    }

    /// beanstalkd's `stats`, in its order. Gauges and counts of logged commands are the cluster's; the rest is the node's.
    public func statsDocument(node: NodeFigures = NodeFigures()) -> JSONValue {
        let c = node.commands
        var names = Set(tubeNames)
        names.formUnion(node.tubes.keys)
        names.insert("default")
        return [
            "current-jobs-urgent": JSONValue(totals.urgent),
            "current-jobs-ready": JSONValue(totals.ready),
            "current-jobs-reserved": JSONValue(totals.reserved),
            "current-jobs-delayed": JSONValue(totals.delayed),
            "current-jobs-buried": JSONValue(totals.buried),
            "cmd-put": JSONValue(totals.puts + c[.put]),
            "cmd-peek": JSONValue(c[.peek]),
            "cmd-peek-ready": JSONValue(c[.peekReady]),
            "cmd-peek-delayed": JSONValue(c[.peekDelayed]),
            "cmd-peek-buried": JSONValue(c[.peekBuried]),
            "cmd-reserve": JSONValue(c[.reserve]),
            "cmd-reserve-with-timeout": JSONValue(c[.reserveWithTimeout]),
            "cmd-delete": JSONValue(totals.deletes + c[.delete]),
            "cmd-release": JSONValue(totals.releases + c[.release]),
            "cmd-use": JSONValue(c[.use]),
            "cmd-watch": JSONValue(c[.watch]),
            "cmd-ignore": JSONValue(c[.ignore]),
            "cmd-bury": JSONValue(totals.buries + c[.bury]),
            "cmd-kick": JSONValue(totals.kicks + c[.kick]),
            "cmd-touch": JSONValue(totals.touches + c[.touch]),
            "cmd-stats": JSONValue(c[.stats]),
            "cmd-stats-job": JSONValue(c[.statsJob]),
            "cmd-stats-tube": JSONValue(c[.statsTube]),
            "cmd-list-tubes": JSONValue(c[.listTubes]),
            "cmd-list-tube-used": JSONValue(c[.listTubeUsed]),
            "cmd-list-tubes-watched": JSONValue(c[.listTubesWatched]),
            "cmd-pause-tube": JSONValue(totals.pauses + c[.pauseTube]),
            "job-timeouts": JSONValue(totals.timeouts),
            "total-jobs": JSONValue(totals.jobs),
            "max-job-size": JSONValue(node.maxJobSize),
            "current-tubes": JSONValue(names.count),
            "current-connections": JSONValue(node.connections),
            "current-producers": JSONValue(node.producers),
            "current-workers": JSONValue(node.workers),
            "current-waiting": JSONValue(node.waiting),
            "total-connections": JSONValue(node.totalConnections),
            "pid": JSONValue(node.pid),
            "version": .string(node.version),
            "rusage-utime": .double(node.userSeconds),
            "rusage-stime": .double(node.systemSeconds),
            "uptime": JSONValue(node.uptimeSeconds),
            "binlog-oldest-index": 0,
            "binlog-current-index": 0,
            "binlog-records-migrated": 0,
            "binlog-records-written": 0,
            "binlog-max-size": 10_485_760,
            "draining": .bool(node.isDraining),
            "id": .string(node.id),
            "hostname": .string(node.hostname),
            "os": .string(node.os),
            "platform": .string(node.platform),
        ]
    }

    /// The answer to a session's query, from this replica.
    public func answer(_ query: BeanstalkSession.Query, node: NodeFigures = NodeFigures(), now: UInt64 = 0)
        -> BeanstalkSession.Outcome
    {
        let document: JSONValue?
        switch query {
        case .stats: document = statsDocument(node: node)
        case .statsTube(let name): document = statsDocument(tube: name, use: node.tubes[name], now: now)
        case .statsJob(let id): document = statsDocument(job: id, now: now)
        case .listTubes:
            document = .array(Set(tubeNames).union(node.tubes.keys).union(["default"]).sorted().map { .string($0) })
        case .peek(let id): return job(id).map { .job($0) } ?? .notFound
        case .peekNext(let tube, let state): return peek(tube: tube, state: state).map { .job($0) } ?? .notFound
        }
        return document.map { .document($0) } ?? .notFound
    }
}

extension JobView {
    public var document: JSONValue {
        [
            "id": JSONValue(id), "tube": .string(tube), bodyMember(body).0: bodyMember(body).1,
            "reserves": JSONValue(reserves),
            "priority": JSONValue(priority), "ttrMilliseconds": JSONValue(ttrMilliseconds),
            "state": .string(state.rawValue),
        ]
    }

    public var statsDocument: JSONValue {
        [
            "id": JSONValue(id), "tube": .string(tube), "state": .string(state.rawValue), "pri": JSONValue(priority),
            "age": JSONValue(ageMilliseconds / 1_000), "delay": JSONValue(delayMilliseconds / 1_000),
            "ttr": JSONValue(ttrMilliseconds / 1_000), "time-left": JSONValue(leftMilliseconds / 1_000), "file": 0,
            "reserves": JSONValue(reserves), "timeouts": JSONValue(timeouts), "releases": JSONValue(releases),
            "buries": JSONValue(buries), "kicks": JSONValue(kicks),
        ]
    }
}

extension ReservedJob {
    /// `{"id","tube","lease","body"|"bodyBase64","reserves","priority","ttrMilliseconds"}`
    public var document: JSONValue {
        [
            "id": JSONValue(id), "tube": .string(tube), "lease": JSONValue(lease),
            bodyMember(body).0: bodyMember(body).1,
            "reserves": JSONValue(reserves), "priority": JSONValue(priority),
            "ttrMilliseconds": JSONValue(ttrMilliseconds),
        ]
    }
}

/// A body as text where it is UTF-8, else as base64.
private func bodyMember(_ body: [UInt8]) -> (String, JSONValue) {
    if let text = String(validating: body, as: UTF8.self) { return ("body", .string(text)) }
    return ("bodyBase64", .string(Base64.encode(body)))
}
