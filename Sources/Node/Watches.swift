// Reads that go on: events, logs of a pod (here or on the node where it runs), and documents that are sent again whenever
// they have changed.
import Client
import EventLoop
import Model
import NodeCore
import Security
import Wire

/// A wish for a pod's logs, as it comes in a watch's path: `logs/POD?container=C&follow=1&tail=N&since=T&previous=1`.
struct LogRequest {
    var pod: String
    var container: String?
    var follow = false
    var tail: Int?
    var since: String?
    var previous = false
    /// One line: container, stream and text.
    var onLine: (JSONValue) -> Void
    var onEnd: (CoterieError?) -> Void
}

final class Watches {
    /// Of all operators together, and of each pod.
    static let limit = 10_000
    static let podLimit = 256

    private let loop: EventLoop
    private let key: ClusterKey
    private var events: EventLog
    private var active: [RequestID: Watch] = [:]
    /// Whose each of ``active`` is, and how many each has.
    private var owners: [RequestID: Authority] = [:]
    private var counts: [Authority: Int] = [:]
    private var byConnection: [UInt64: Set<RequestID>] = [:]

    var document: ((String) -> Result<JSONValue, CoterieError>)?
    var respondItem: ((RequestID, [UInt8]) -> Void)?
    var respondEnd: ((RequestID, CoterieError?) -> Void)?
    var locate: ((String) -> StreamBroker.Location?)?
    /// Starts to read; the result stops it.
    var localLogs: ((LogRequest) -> (() -> Void)?)?

    private enum Watch {
        case events
        case document(path: String, topics: Set<ChangeTopic>, last: [UInt8])
        case logs(stop: () -> Void)
    }

    var count: Int { active.count }

    init(loop: EventLoop, node: String, key: ClusterKey) {
        self.loop = loop
        self.key = key
        events = EventLog(node: node)
    }

    func publish(_ event: NodeEvent, now: MonotonicTime) {
        let item = events.append(event, now: now)
        let bytes = item.document.utf8
        // A receiver that is cut off takes its other watches with it.
        for (id, watch) in active { if case .events = watch, active[id] != nil { respondItem?(id, bytes) } }
    }

    func changed(_ topics: Set<ChangeTopic>) {
        // Many watch the same: it is made once for all.
        var made: [String: [UInt8]?] = [:]
        for (id, watch) in active {
            guard case .document(let path, let wanted, let last) = watch, !wanted.isDisjoint(with: topics) else {
                continue
            }
            let bytes: [UInt8]?
            if let known = made[path] {
                bytes = known
            } else {
                bytes = current(path)
                made[path] = .some(bytes)
            }
            send(id, path: path, topics: wanted, last: last, bytes)
        }
    }

    private func current(_ path: String) -> [UInt8]? {
        if case .success(let value) = document?(path) { value.utf8 } else { nil }
    }

    private func send(_ id: RequestID, path: String, topics: Set<ChangeTopic>, last: [UInt8], _ bytes: [UInt8]?) {
        // One whose receiver was cut off meanwhile must not come back.
        guard active[id] != nil, let bytes, bytes != last else { return }
        active[id] = .document(path: path, topics: topics, last: bytes)
        respondItem?(id, bytes)
    }

    func start(_ id: RequestID, path: String, authority: Authority) {
        let limit = if case .pod = authority { Watches.podLimit } else { Watches.limit }
        guard counts[authority] ?? 0 < limit else {
            return end(id, CoterieError(.busy, "too many watches on this node"))
        }
        let (name, parameters) = Watches.split(path)
        let parts = name.split(separator: "/").map(String.init)
        switch parts.first {
        case "events":
            let after = parameters["after"].flatMap { UInt64($0) } ?? 0
            // Registered first: a receiver that does not read may be cut off in the middle.
            add(id, .events, authority)
            for item in events.after(after) where active[id] != nil { respondItem?(id, item.document.utf8) }
            if parameters["follow"] != "1" { end(id, nil) }
        case "logs" where parts.count == 2: startLogs(id, pod: parts[1], path: path, parameters, authority)
        case "pods": startDocument(id, name, [.pods], authority)
        case "gathers": startDocument(id, name, [.gathers], authority)
        case "elections": startDocument(id, name, [.elections], authority)
        case "queues": startDocument(id, name, [.queues], authority)
        case "members", "status", "leader": startDocument(id, name, Set(ChangeTopic.allCases), authority)
        default: end(id, CoterieError(.badInput, "nothing can be watched at \(path)"))
        }
    }

    private func startDocument(_ id: RequestID, _ path: String, _ topics: Set<ChangeTopic>, _ authority: Authority) {
        add(id, .document(path: path, topics: topics, last: []), authority)
        send(id, path: path, topics: topics, last: [], current(path))
    }

    private func add(_ id: RequestID, _ watch: Watch, _ authority: Authority) {
        active[id] = watch
        owners[id] = authority
        counts[authority, default: 0] += 1
        byConnection[id.connection, default: []].insert(id)
    }

    @discardableResult
    private func remove(_ id: RequestID) -> Watch? {
        guard let watch = active.removeValue(forKey: id) else { return nil }
        if let owner = owners.removeValue(forKey: id), let count = counts[owner] {
            counts[owner] = count > 1 ? count - 1 : nil
        }
        byConnection[id.connection]?.remove(id)
        if byConnection[id.connection]?.isEmpty ?? false { byConnection[id.connection] = nil }
        return watch
    }

    private func end(_ id: RequestID, _ error: CoterieError?) {
        remove(id)
        respondEnd?(id, error)
    }

    // MARK: - Logs

    private func startLogs(
        _ id: RequestID, pod: String, path: String, _ parameters: [String: String], _ authority: Authority
    ) {
        switch locate?(pod) {
        case nil: end(id, CoterieError(.notFound, "the pod \(pod) runs nowhere", hint: "see: coterie get pods"))
        case .here:
            let request = LogRequest(
                pod: pod, container: parameters["container"], follow: parameters["follow"] == "1",
                tail: parameters["tail"].flatMap { Int($0) }, since: parameters["since"],
                previous: parameters["previous"] == "1",
                onLine: { [weak self] line in self?.respondItem?(id, line.utf8) },
                onEnd: { [weak self] error in self?.end(id, error) })
            // Registered first: the end may come at once.
            add(id, .logs(stop: {}), authority)
            if let stop = localLogs?(request), active[id] != nil { active[id] = .logs(stop: stop) }
        case .node(let address):
            // Asked once more at the node that has the files; `hop` keeps two nodes that disagree from asking in a circle.
            guard parameters["hop"] == nil else {
                return end(id, CoterieError(.notFound, "the pod \(pod) is being moved", hint: "try again"))
            }
            let client = ClusterClient(
                loop: loop, endpoints: [address], key: key, origin: "the pod's node", timeout: .seconds(10))
            let handle = client.startWatch(
                path + (path.contains("?") ? "&" : "?") + "hop=1",
                onItem: { [weak self] item in self?.respondItem?(id, item.utf8) },
                onEnd: { [weak self] error in
                    self?.end(id, error)
                    client.close()
                })
            add(
                id,
                .logs(stop: {
                    handle.cancel()
                    client.close()
                }), authority)
        }
    }

    func cancel(_ id: RequestID) {
        guard let watch = remove(id) else { return }
        if case .logs(let stop) = watch { stop() }
    }

    func connectionClosed(_ connection: UInt64) {
        for id in byConnection[connection] ?? [] { cancel(id) }
    }

    func stop() {
        for id in active.keys { cancel(id) }
    }

    static func split(_ path: String) -> (String, [String: String]) {
        guard let mark = path.firstIndex(of: "?") else { return (path, [:]) }
        var parameters: [String: String] = [:]
        for pair in path[path.index(after: mark)...].split(separator: "&") {
            let parts = pair.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            parameters[String(parts[0])] = parts.count == 2 ? String(parts[1]) : ""
        }
        return (String(path[..<mark]), parameters)
    }
}
