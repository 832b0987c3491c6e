// What clients ask of a node: reads as JSON documents (DESIGN 3.2), commands, orders to the cluster's membership.
import Consensus
import Leases
import Membership
import Model
import Queues
import Scheduling
import Wire

extension NodeCore {
    mutating func receive(_ request: ClientRequest, _ id: RequestID, _ authority: Authority) {
        switch request {
        case .query(let path):
            guard mayRead(path, authority) else { return effects.append(.respond(id, .failure(notAllowed(authority)))) }
            if isLocal(path) { return effects.append(.respond(id, answerQuery(path))) }
            startRead(.query(id, path: path))
        case .command(let command):
            if let refusal = refusal(of: command, authority) { return effects.append(.respond(id, .failure(refusal))) }
            submit(command, origin: .request(id))
        case .admin(let order):
            guard authority == .operator else { return effects.append(.respond(id, .failure(notAllowed(authority)))) }
            admin(order, origin: .request(id))
        case .watch:
            effects.append(.respond(id, .failure(CoterieError(.badInput, "watches are served by the driver"))))
        }
    }

    // MARK: - Authority

    private func notAllowed(_ authority: Authority) -> CoterieError {
        CoterieError(
            .notAllowed, "a pod may use queues, elections and its own gather only",
            hint: "ask from outside with the cluster's key, or on the node's socket")
    }

    /// Nil if the command may be given. A pod works with queues and leases, and reports on its own gather.
    private func refusal(of command: ClientCommand, _ authority: Authority) -> CoterieError? {
        // It would find nothing however many jobs there are, and so wait for ever what is there already.
        if case .queue(.reserve(_, _, let count)) = command.command, count < 1 {
            return CoterieError(.badInput, "a reserve asks for at least one job")
        }
        guard case .pod(let name) = authority else {
            if case .tick = command.command { return CoterieError(.notAllowed, "only a leader lets time pass") }
            return nil
        }
        switch command.command {
        case .queue, .lease, .endSession: return nil
        case .scheduling(.updateGather(let gather, _)), .scheduling(.finishGather(let gather, _, _)):
            return ownsGather(name, gather) ? nil : notAllowed(authority)
        case .scheduling, .tick: return notAllowed(authority)
        }
    }

    private func ownsGather(_ pod: String, _ gather: String) -> Bool {
        if case .gather(let id) = state.scheduling.pod(named: pod)?.owner { id == gather } else { false }
    }

    func mayRead(_ path: String, _ authority: Authority) -> Bool {
        guard case .pod(let name) = authority else { return true }
        let parts = path.split(separator: "/")
        switch parts.first {
        case "version", "leader", "elections", "queues", "jobs", "self": return true
        case "gathers": return parts.count == 2 && ownsGather(name, String(parts[1]))
        default: return false
        }
    }

    // MARK: - Reads

    /// Reads of what this node knows by itself; all others are linearizable.
    private func isLocal(_ path: String) -> Bool {
        switch path.split(separator: "/").first {
        case "status", "members", "leader", "version", "rtt", "raft": true
        default: false
        }
    }

    /// The document at `path`, from this node's state as it is. Public for drivers that serve watches.
    public func document(_ path: String) -> Result<JSONValue, CoterieError> {
        let parts = path.split(separator: "/", omittingEmptySubsequences: true).map { percentDecoded(String($0)) }
        func missing(_ kind: String, _ name: String) -> Result<JSONValue, CoterieError> {
            .failure(CoterieError(.notFound, "there is no \(kind) \(name)"))
        }
        switch (parts.first, parts.count) {
        case ("status", 1): return .success(statusDocument)
        case ("members", 1): return .success(membersDocument)
        case ("leader", 1): return .success(leaderDocument)
        case ("version", 1): return .success(versionDocument)
        case ("raft", 1): return .success(raftDocument)
        case ("rtt", 3): return rtt(parts[1], parts[2])
        case ("queues", 1): return .success(state.queues.listDocument(waiting: paths.waitingByTube))
        case ("queues", 2):
            return state.queues.statsDocument(tube: parts[1], now: state.milliseconds).map { .success($0) }
                ?? missing("tube", parts[1])
        case ("queues", 4) where parts[2] == "peek":
            guard let kind = JobView.State(rawValue: parts[3]) else {
                return .failure(CoterieError(.badInput, "no job can be \(parts[3])"))
            }
            return state.queues.peek(tube: parts[1], state: kind, now: state.milliseconds).map { .success($0.document) }
                ?? .failure(CoterieError(.notFound, "no job is \(parts[3]) in \(parts[1])"))
        case ("queues", 3) where parts[2] == "peek":
            return state.queues.peekDocument(tube: parts[1]).map { .success($0) }
                ?? .failure(CoterieError(.notFound, "no job is ready, delayed or buried in \(parts[1])"))
        case ("queue-stats", 1): return .success(state.queues.statsDocument())
        case ("jobs", 2):
            guard let id = UInt64(parts[1]), let job = state.queues.peekDocument(job: id) else {
                return missing("job", parts[1])
            }
            return .success(job)
        case ("jobs", 3) where parts[2] == "stats":
            guard let id = UInt64(parts[1]), let job = state.queues.statsDocument(job: id, now: state.milliseconds)
            else {
                return missing("job", parts[1])
            }
            return .success(job)
        case ("elections", 1): return .success(state.leases.listDocument(now: state.milliseconds))
        case ("elections", 2):
            return .success(state.leases.document(LeaseMachine.electionPrefix + parts[1], now: state.milliseconds))
        case ("pods", 1): return .success(state.scheduling.podListDocument(node: nodeForPod))
        case ("pods", 2):
            guard let pod = state.scheduling.pod(named: parts[1]) else { return missing("pod", parts[1]) }
            return .success(state.scheduling.podDocument(pod, node: nodeForPod))
        case ("gathers", 1): return .success(state.scheduling.gatherListDocument)
        case ("gathers", 2):
            guard let gather = state.scheduling.gather(parts[1]) else { return missing("gather", parts[1]) }
            return .success(state.scheduling.gatherDocument(gather))
        default: return .failure(CoterieError(.badInput, "unknown path \(path)"))
        }
    }

    func answerQuery(_ path: String) -> ClientResponse {
        switch document(path) {
        case .success(let value): .success(value.utf8)
        case .failure(let error): .failure(error)
        }
    }

    private var nodeForPod: (NodeID) -> (name: String, hostIP: String)? {
        let members = membership
        return { id in members.member(id).map { ($0.name, $0.address.hostText) } }
    }

    private func role(of id: NodeID) -> String {
        guard let raft else { return "none" }
        if raft.leader == id { return "leader" }
        if raft.configuration.isVoter(id) { return "voter" }
        return raft.configuration.learners.contains(id) ? "learner" : "none"
    }

    private var leaderJSON: JSONValue {
        guard let leader = raft?.leader else { return .null }
        return [
            "id": .string(leader.description), "name": .string(displayName(leader)),
            "address": JSONValue(membership.member(leader)?.address.description),
        ]
    }

    private var leaderDocument: JSONValue {
        guard case .object(var members) = leaderJSON else { return .null }
        members.append(.init("term", JSONValue(raft?.term ?? 0)))
        return .object(members)
    }

    /// Of the name, for a cluster that was never recovered.
    private var clusterID: String {
        hexadecimal(lineage == .original ? stableHash(options.cluster) : lineage.rawValue)
    }

    private var statusDocument: JSONValue {
        var counts: [MemberState: Int] = [:]
        for member in membership.members { counts[member.state, default: 0] += 1 }
        let queues = state.queues.totals
        let pods = state.scheduling.counts
        let configuration = raft?.configuration
        func names(_ ids: [NodeID]?) -> JSONValue { .array((ids ?? []).map { .string(displayName($0)) }) }
        return [
            "cluster": [
                "name": .string(options.cluster), "id": .string(clusterID), "epoch": JSONValue(lineage.epoch),
            ],
            "node": [
                "id": .string(options.id.description), "name": .string(options.name),
                "address": .string(options.address.description),
                "role": .string(role(of: options.id)),
            ],
            "leader": leaderJSON, "term": JSONValue(raft?.term ?? 0), "commitIndex": JSONValue(raft?.commitIndex ?? 0),
            "appliedIndex": JSONValue(state.appliedIndex), "voters": names(configuration?.voters),
            "learners": names(configuration?.learners),
            "members": [
                "alive": JSONValue(counts[.alive] ?? 0), "suspect": JSONValue(counts[.suspect] ?? 0),
                "dead": JSONValue(counts[.dead] ?? 0), "left": JSONValue(counts[.left] ?? 0),
            ],
            "queues": [
                "tubes": JSONValue(state.queues.tubeNames.count), "ready": JSONValue(queues.ready),
                "reserved": JSONValue(queues.reserved),
                "delayed": JSONValue(queues.delayed), "buried": JSONValue(queues.buried),
            ],
            "pods": [
                "running": JSONValue(pods.running), "pending": JSONValue(pods.pending),
                "failed": JSONValue(pods.failed),
            ],
            "storage": storageFailure.map { .string($0) } ?? .string("ok"), "version": .string(options.version),
        ]
    }

    private var membersDocument: JSONValue {
        let members = membership.members.sorted { ($0.name, $0.id) < ($1.name, $1.id) }
        return [
            "members": .array(
                members.map { member in
                    [
                        "id": .string(member.id.description), "name": .string(member.name),
                        "address": .string(member.address.description), "state": .string(member.state.rawValue),
                        "incarnation": JSONValue(member.incarnation),
                        "role": .string(role(of: member.id)),
                        "tags": .object(
                            member.tags.sorted { $0.key < $1.key }.map { .init($0.key, .string($0.value)) }),
                        "version": .string(member.version),
                        "rttMilliseconds": member.rtt.map { .double(Double($0.nanoseconds / 1_000) / 1_000) } ?? .null,
                    ]
                })
        ]
    }

    private var versionDocument: JSONValue {
        [
            "version": .string(options.version), "commit": .null,
            "protocol": ["min": JSONValue(Hello.minimumProtocol), "max": JSONValue(Hello.maximumProtocol)],
        ]
    }

    private var raftDocument: JSONValue {
        [
            "term": JSONValue(raft?.term ?? 0), "commitIndex": JSONValue(raft?.commitIndex ?? 0),
            "appliedIndex": JSONValue(state.appliedIndex), "lastIndex": JSONValue(raft?.lastIndex ?? 0),
            "firstIndex": JSONValue((raft?.firstRetained.index ?? 0) + 1),
            "durableIndex": JSONValue(raft?.durableIndex ?? 0),
            "snapshotIndex": JSONValue(raft?.snapshot.index ?? 0), "sessions": JSONValue(state.sessionCount),
            "logMilliseconds": JSONValue(state.milliseconds), "healthScore": JSONValue(membership.healthScore),
        ]
    }

    private func rtt(_ a: String, _ b: String) -> Result<JSONValue, CoterieError> {
        let members = membership.members
        func find(_ name: String) -> Member? { members.first { $0.name == name || $0.id.description == name } }
        guard let first = find(a) else { return .failure(CoterieError(.notFound, "there is no member \(a)")) }
        guard let second = find(b) else { return .failure(CoterieError(.notFound, "there is no member \(b)")) }
        // Only round trips of this node's own pings are known.
        let other = first.id == options.id ? second : second.id == options.id ? first : nil
        guard let other else {
            return .failure(
                CoterieError(.badInput, "\(options.name) measures only its own round trips", hint: "ask \(a) or \(b)"))
        }
        let milliseconds: JSONValue = other.rtt.map { .double(Double($0.nanoseconds / 1_000) / 1_000) } ?? .null
        return .success(["a": .string(first.name), "b": .string(second.name), "rttMilliseconds": milliseconds])
    }

    // MARK: - Orders

    /// Who gave an order: a client here, or one of another node.
    enum AdminOrigin: Sendable {
        case request(RequestID)
        case peer(NodeID, UInt64)
    }

    mutating func reply(_ origin: AdminOrigin, _ response: ClientResponse) {
        switch origin {
        case .request(let id): effects.append(.respond(id, response))
        case .peer(let peer, let id):
            guard let member = membership.member(peer) else { return }
            var writer = ByteWriter()
            writer.u64(id)
            writer.raw(response.encoded)
            effects.append(.peerFrame(.forwarded, writer.bytes, to: peer, address: member.address))
        }
    }

    mutating func admin(_ order: JSONValue, origin: AdminOrigin) {
        guard let verb = order["verb"]?.stringValue else {
            return reply(origin, .failure(CoterieError(.badInput, "an order needs a verb")))
        }
        switch verb {
        case "transfer", "remove", "voters":
            guard let raft else { return reply(origin, .failure(noLeader)) }
            if raft.isLeader { return orderAtLeader(verb, order, origin) }
            forwardAdmin(order, origin)
        case "leave":
            // Out of the voters first, by the leader; then the driver is told to stop.
            guard case .request(let id) = origin else { return }
            reconciler.leavingUntil = now + .seconds(30)
            var remove: [JSONValue.Member] = [.init("verb", "remove"), .init("node", .string(options.id.description))]
            remove.append(.init("self", true))
            admin(.object(remove), origin: .request(id))
        case "cordon", "uncordon", "drain":
            guard let name = order["node"]?.stringValue, let node = memberID(name) else {
                return reply(
                    origin, .failure(CoterieError(.notFound, "there is no member \(order["node"]?.stringValue ?? "")")))
            }
            let command: SchedulingCommand = verb == "drain" ? .drain(node) : .cordon(node, verb == "cordon")
            guard case .request(let id) = origin else { return reply(origin, .failure(noLeader)) }
            // Answered when it is in force.
            submit(.scheduling(command), wait: nil, origin: .order(id))
        default: reply(origin, .failure(CoterieError(.badInput, "unknown order \(verb)")))
        }
    }

    /// Which of two members of one name is meant: one whose data directory was emptied leaves its name to the next one.
    private enum Namesake { case present, toRemove, toForget }

    private func memberID(_ name: String, _ namesake: Namesake = .present) -> NodeID? {
        let configured = raft?.configuration.members ?? []
        if let id = configured.first(where: { $0.description == name }) { return id }
        func rank(_ member: Member) -> Int {
            let (isThere, isConfigured) = (member.state.isPresent, configured.contains(member.id))
            return switch namesake {
            case .present: (isThere ? 0 : 2) + (isConfigured ? 0 : 1)
            case .toRemove: (isConfigured ? 0 : 2) + (isThere ? 1 : 0)
            case .toForget: (isThere ? 2 : 0) + (isConfigured ? 0 : 1)
            }
        }
        let named = membership.members.filter { $0.name == name || $0.id.description == name }
        return named.min { (rank($0), $0.id) < (rank($1), $1.id) }?.id
    }

    private mutating func orderAtLeader(_ verb: String, _ order: JSONValue, _ origin: AdminOrigin) {
        let done = ClientResponse.success(JSONValue.object([.init("done", true)]).utf8)
        let name = order["node"]?.stringValue
        let namesake: Namesake =
            verb != "remove" ? .present : order["prune"] == .bool(true) ? .toForget : .toRemove
        let node = name.flatMap { memberID($0, namesake) }
        if let name, node == nil {
            return reply(origin, .failure(CoterieError(.notFound, "there is no member \(name)")))
        }
        switch verb {
        case "transfer":
            if let node, !(raft?.configuration.isVoter(node) ?? false) {
                return reply(origin, .failure(CoterieError(.badInput, "\(displayName(node)) is not a voter")))
            }
            raftInput(.transfer(to: node))
            reply(origin, done)
        case "remove":
            guard let node, let configuration = raft?.configuration else {
                return reply(origin, .failure(CoterieError(.badInput, "remove needs a node")))
            }
            if !configuration.members.contains(node), state.scheduling.isRetired(node), order["prune"] != .bool(true) {
                return reply(origin, done)
            }
            remove(node, prune: order["prune"] == .bool(true), origin)
        default: reply(origin, .failure(CoterieError(.badInput, "unknown order \(verb)")))
        }
    }

    private mutating func forwardAdmin(_ order: JSONValue, _ origin: AdminOrigin) {
        guard let leader = raft?.leader, let member = membership.member(leader), case .request(let request) = origin
        else {
            return reply(origin, .failure(noLeader))
        }
        let id = paths.takeID()
        reconciler.forwardedOrders[id] = (request, now + .seconds(5))
        var writer = ByteWriter()
        writer.u64(id)
        writer.slice(order.utf8)
        effects.append(.peerFrame(.forwardAdmin, writer.bytes, to: leader, address: member.address))
    }

    mutating func receiveAdmin(_ id: UInt64, _ reader: inout ByteReader, from: NodeID) throws(WireError) {
        let text = try reader.slice(max: 65_536)
        guard let order = try? JSONValue(parsing: text), raft?.isLeader ?? false else {
            return reply(.peer(from, id), .failure(noLeader))
        }
        admin(order, origin: .peer(from, id))
    }

    /// True if `id` was an order that this node had forwarded.
    mutating func adminReply(_ id: UInt64, _ response: ClientResponse) -> Bool {
        guard let (request, _) = reconciler.forwardedOrders.removeValue(forKey: id) else { return false }
        effects.append(.respond(request, response))
        return true
    }
}

/// FNV-1a, 64 bits: the cluster's id where only its name is known.
public func stableHash(_ text: String) -> UInt64 {
    text.utf8.reduce(0xCBF2_9CE4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01B3 }
}

/// Decodes `%41` in one segment of a path; anything malformed stays as it is.
func percentDecoded(_ text: String) -> String {
    guard text.utf8.contains(UInt8(ascii: "%")) else { return text }
    var out: [UInt8] = []
    let bytes = Array(text.utf8)
    var i = 0
    while i < bytes.count {
        if bytes[i] == UInt8(ascii: "%"), i + 2 < bytes.count,
            let value = UInt8(String(decoding: bytes[i + 1...i + 2], as: UTF8.self), radix: 16)
        {
            out.append(value)
            i += 3
        } else {
            out.append(bytes[i])
            i += 1
        }
    }
    return String(decoding: out, as: UTF8.self)
}

extension NodeCore {
    // MARK: - What the driver asks

    /// The node to which a pod is bound; nil if it is not bound, or unknown.
    public func podNode(_ name: String) -> NodeID? { state.scheduling.pod(named: name)?.node }

    public func podOwner(_ name: String) -> PodOwner? { state.scheduling.pod(named: name)?.owner }

    public func mayWatch(_ path: String, _ authority: Authority) -> Bool {
        mayRead(String(path.prefix { $0 != "?" }), authority)
    }

    /// A chunk of a snapshot on its way to a follower; nil if that one's address is not known.
    public func snapshotFrame(_ chunk: InstallSnapshot, to: NodeID) -> NodeEffect? {
        guard let member = membership.member(to) else { return nil }
        let envelope = RaftEnvelope(
            group: lineage.rawValue, from: options.id, to: to, message: .installSnapshot(chunk))
        return .peerFrame(.raft, envelope.encoded, to: to, address: member.address)
    }
}

extension NodeCore {
    /// The answer to a query of the queue protocol, after `localReadReady`; `node` has the figures that only the driver knows.
    public func queueAnswer(_ query: BeanstalkSession.Query, node: NodeFigures) -> BeanstalkSession.Outcome {
        state.queues.answer(query, node: node, now: state.milliseconds)
    }
}
