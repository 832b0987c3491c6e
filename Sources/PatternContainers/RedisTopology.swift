// Who is master, which replicas are fit for reads, what the commands are. Each known server is asked for its replication
// section at every interval over a connection of its own; who does not answer within an interval is not fit. Discovery
// goes either by what the servers say of each other, or by Sentinel.
import EventLoop
import Model

/// One Redis server. Confined to the loop.
final class RedisServer {
    let endpoint: Endpoint
    fileprivate(set) var info: RedisReplicationInfo?
    /// Nil when fit for reads, else the reason why not.
    fileprivate(set) var unfit: String? = "it has not been asked yet"
    /// Every write acknowledged before this moment is on this server.
    fileprivate(set) var freshness: MonotonicTime?
    fileprivate var control: RedisControl?
    fileprivate var asked: MonotonicTime?
    fileprivate var lastSeen: MonotonicTime

    fileprivate init(_ endpoint: Endpoint, now: MonotonicTime) {
        self.endpoint = endpoint
        lastSeen = now
    }

    var isFit: Bool { unfit == nil }
}

final class RedisTopology {
    private let loop: EventLoop
    private let options: RedisAmbassadorOptions
    private let report: Report
    private var generator: SeededGenerator
    private let timer: LoopTimer
    private var stopped = false

    private(set) var table = RedisCommandTable()
    /// Every server known, in the order in which they became known.
    private(set) var servers: [RedisServer] = []
    private(set) var master: RedisServer?
    private var clock = ReplicationClock()
    private var tableFrom: RedisServer?
    private var credentials: [String]

    private var sentinel: RedisControl?
    private var sentinelAsked: MonotonicTime?
    private var subscription: RedisControl?
    private var nextSentinel = 0

    /// The master is another one now (or there is one for the first time).
    var onMasterChange: (() -> Void)?
    /// A server broke or stopped answering: connections to it are of no use any more.
    var onServerFailed: ((RedisServer) -> Void)?

    init(loop: EventLoop, options: RedisAmbassadorOptions, seed: UInt64, report: @escaping Report) {
        self.loop = loop
        self.options = options
        self.report = report
        generator = SeededGenerator(seed: seed)
        timer = LoopTimer(loop: loop)
        credentials = options.password.map { password in options.username.map { [$0, password] } ?? [password] } ?? []
    }

    private var interval: TimeSpan {
        options.readYourWrites ? min(options.healthInterval, .milliseconds(100)) : options.healthInterval
    }

    func start() {
        switch options.servers {
        case .fixed(let endpoint, let replicas):
            setMaster(server(endpoint))
            for replica in replicas { _ = server(replica) }
        case .discover(let endpoint): _ = server(endpoint)
        case .sentinel: break
        }
        tick()
        timer.start(every: interval) { [weak self] in self?.tick() }
    }

    func stop() {
        stopped = true
        timer.close()
        sentinel?.close()
        subscription?.close()
        for server in servers { server.control?.close() }
        onMasterChange = nil
        onServerFailed = nil
    }

    /// A fit replica at random; with `freshAt`, one known to have every write acknowledged before then.
    func pickReplica(freshAt: MonotonicTime? = nil) -> RedisServer? {
        let fit = servers.filter { server in
            guard server.isFit, server !== master else { return false }
            guard let freshAt else { return true }
            return server.freshness.map { $0 >= freshAt } ?? false
        }
        return fit.randomElement(using: &generator)
    }

    /// A session's connection to this server failed; not fit until it answers again.
    func noteFailure(_ server: RedisServer, _ why: String) {
        guard server.isFit else { return }
        markUnfit(server, why)
    }

    /// A write was refused because the server is no master any more: ask at once.
    func noteDemotion() { tick() }

    /// A client authenticated: the ambassador's own connections may use what it used, if they have nothing of their own.
    func offer(credentials: [[UInt8]]) {
        guard options.password == nil else { return }
        let texts = credentials.map { String(decoding: $0, as: UTF8.self) }
        guard texts != self.credentials else { return }
        self.credentials = texts
        for server in servers where server.info == nil {
            server.control?.close()
            server.control = nil
            server.asked = nil
        }
        tick()
    }

    // MARK: - Asking servers

    private func server(_ endpoint: Endpoint) -> RedisServer {
        if let known = servers.first(where: { $0.endpoint == endpoint }) { return known }
        let server = RedisServer(endpoint, now: loop.now)
        servers.append(server)
        return server
    }

    private func tick() {
        guard !stopped else { return }
        if case .sentinel(let endpoints, let name) = options.servers { askSentinel(endpoints, name) }
        forgetTheLost()
        for server in servers { ask(server) }
        chooseMaster()
    }

    private func ask(_ server: RedisServer) {
        let now = loop.now
        if let asked = server.asked {
            // At least a second of patience, however short the interval is.
            if now - asked >= max(interval, .seconds(1)) { failed(server, "it does not answer") }
            return
        }
        if server.control == nil {
            let control = RedisControl(loop: loop, to: server.endpoint, timeout: options.connectTimeout)
            control.onClose = { [weak self, weak server] error in
                guard let self, let server else { return }
                failed(server, error.message)
            }
            server.control = control
            if !credentials.isEmpty { control.ask(["AUTH"] + credentials) { _ in } }
        }
        server.asked = now
        server.control?.ask(["INFO", "replication"]) { [weak self, weak server] result in
            guard let self, let server, case .success(let value) = result else { return }
            server.asked = nil
            answered(server, value, sent: now)
        }
    }

    private func answered(_ server: RedisServer, _ value: RESPValue, sent: MonotonicTime) {
        guard let info = value.text.flatMap({ RedisReplicationInfo($0) }) else {
            markUnfit(server, value.errorText ?? "it does not tell about its replication")
            return
        }
        server.info = info
        server.lastSeen = loop.now
        if server === master {
            if info.role == .master { clock.masterAt(info.offset, sent: sent) }
            if tableFrom !== server { learnTable(server) }
        }
        chooseMaster()
        if server !== master, let why = info.unfitness(masterReplicationID: master?.info?.replicationID) {
            markUnfit(server, why)
        } else if server !== master {
            if !server.isFit { report("ambassador: reads may go to \(server.endpoint)") }
            server.unfit = nil
            server.freshness = clock.freshness(ofReplicaAt: info.offset)
        }
        if case .discover = options.servers { discoverFrom(info) }
    }

    private func learnTable(_ server: RedisServer) {
        server.control?.ask(["COMMAND"]) { [weak self, weak server] result in
            guard let self, let server, server === master, case .success(let value) = result else { return }
            let table = RedisCommandTable(reply: value)
            guard table.learnt > 0 else {
                report(
                    "ambassador: \(server.endpoint) does not tell its commands (\(value.errorText ?? "empty")); all go to the master"
                )
                return
            }
            self.table = table
            tableFrom = server
        }
    }

    private func failed(_ server: RedisServer, _ why: String) {
        server.control?.close()
        server.control = nil
        server.asked = nil
        server.info = nil
        markUnfit(server, why)
        onServerFailed?(server)
    }

    private func markUnfit(_ server: RedisServer, _ why: String) {
        if server.unfit != why && server !== master { report("ambassador: no reads go to \(server.endpoint): \(why)") }
        server.unfit = why
        server.freshness = nil
    }

    // MARK: - Discovery

    private func discoverFrom(_ info: RedisReplicationInfo) {
        var found = info.replicas
        if case .replica(let master?, _, _) = info.role { found.append(master) }
        for endpoint in found where servers.count < 64 && !servers.contains(where: { $0.endpoint == endpoint }) {
            ask(server(endpoint))
        }
    }

    /// In discovery the master is who says so itself; if several do, who has most replicas online, then who is it already.
    private func chooseMaster() {
        guard case .discover = options.servers else { return }
        let candidates = servers.filter { $0.info?.role == .master }
        func rank(_ server: RedisServer) -> Int { (server.info?.replicas.count ?? 0) * 2 + (server === master ? 1 : 0) }
        guard let best = candidates.max(by: { rank($0) < rank($1) }) else { return }
        // One that is merely more popular does not replace a master that answers and has replicas still.
        setMaster(best)
    }

    /// Servers found, not given, that have been silent for a minute.
    private func forgetTheLost() {
        if case .fixed = options.servers { return }
        let now = loop.now
        servers.removeAll { server in
            if case .discover(server.endpoint) = options.servers { return false }
            guard server !== master, server.info == nil, now - server.lastSeen > .seconds(60) else { return false }
            server.control?.close()
            return true
        }
    }

    private func setMaster(_ server: RedisServer) {
        guard server !== master else { return }
        let first = master == nil
        master = server
        tableFrom = nil
        clock.reset()
        for other in servers { other.freshness = nil }
        server.unfit = "it is the master"
        if !first { report("ambassador: the master is \(server.endpoint) now") }
        if server.info != nil { learnTable(server) } else { ask(server) }
        onMasterChange?()
    }

    private func askSentinel(_ endpoints: [Endpoint], _ name: String) {
        guard !endpoints.isEmpty else { return }
        let now = loop.now
        if let asked = sentinelAsked {
            if now - asked < .seconds(1) { return }
            sentinelFailed("it does not answer")
        }
        if sentinel == nil {
            let endpoint = endpoints[nextSentinel % endpoints.count]
            let control = RedisControl(loop: loop, to: endpoint, timeout: options.connectTimeout)
            control.onClose = { [weak self] error in self?.sentinelFailed(error.message) }
            sentinel = control
            subscribe(endpoint, name)
        }
        sentinelAsked = now
        sentinel?.ask(["SENTINEL", "get-master-addr-by-name", name]) { [weak self] result in
            guard let self, case .success(let value) = result else { return }
            guard let items = value.items, items.count == 2, let endpoint = RedisTopology.endpoint(items[0], items[1])
            else {
                sentinelFailed(value.errorText ?? "it does not know a master named \(name)")
                return
            }
            setMaster(server(endpoint))
        }
        sentinel?.ask(["SENTINEL", "replicas", name]) { [weak self] result in
            guard let self, case .success(let value) = result else { return }
            sentinelAsked = nil
            for item in (value.items ?? []).prefix(64) {
                guard let fields = item.items else { continue }
                var host: RESPValue?
                var port: RESPValue?
                for i in stride(from: 0, to: fields.count - 1, by: 2) {
                    if fields[i].text == "ip" { host = fields[i + 1] }
                    if fields[i].text == "port" { port = fields[i + 1] }
                }
                if let host, let port, let endpoint = RedisTopology.endpoint(host, port), servers.count < 64 {
                    ask(server(endpoint))
                }
            }
        }
    }

    private func subscribe(_ endpoint: Endpoint, _ name: String) {
        subscription?.close()
        let control = RedisControl(loop: loop, to: endpoint, timeout: options.connectTimeout)
        subscription = control
        control.onClose = { [weak self] _ in self?.subscription = nil }
        control.ask(["SUBSCRIBE", "+switch-master"]) { _ in }
        control.onMessage = { [weak self] message in
            // ["message", "+switch-master", "NAME OLD-IP OLD-PORT NEW-IP NEW-PORT"]
            guard let self, let items = message.items, items.count == 3, let text = items[2].text else { return }
            let words = text.split(separator: " ")
            guard words.count == 5, words[0] == name, let port = UInt16(words[4]),
                let endpoint = Endpoint(host: String(words[3]), port: port)
            else { return }
            setMaster(server(endpoint))
        }
    }

    private func sentinelFailed(_ why: String) {
        if let sentinel { report("ambassador: Sentinel \(sentinel.endpoint): \(why)") }
        sentinel?.close()
        sentinel = nil
        sentinelAsked = nil
        nextSentinel += 1
    }

    private static func endpoint(_ host: RESPValue, _ port: RESPValue) -> Endpoint? {
        guard let host = host.text, let port = port.text.flatMap({ UInt16($0) }), port > 0 else { return nil }
        return Endpoint(host: host, port: port)
    }
}
