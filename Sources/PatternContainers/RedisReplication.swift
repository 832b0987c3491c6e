// What a Redis server says of its replication, and what follows from it. Pure.
import Model

/// The fields of `INFO replication` that matter here.
struct RedisReplicationInfo: Equatable {
    enum Role: Equatable {
        case master
        case replica(of: Endpoint?, linkUp: Bool, syncing: Bool)
    }

    var role: Role
    var replicationID: String
    /// Bytes of the replication stream written (master) or applied (replica).
    var offset: Int64
    /// Online replicas that a master lists; at most 64.
    var replicas: [Endpoint]

    /// Nil if there is no role in it.
    init?(_ text: String) {
        var fields: [Substring: Substring] = [:]
        for line in text.split(whereSeparator: \.isNewline).prefix(1_000) {
            guard let colon = line.firstIndex(of: ":") else { continue }
            fields[line[..<colon]] = line[line.index(after: colon)...]
        }
        replicationID = String(fields["master_replid"] ?? "")
        replicas = []
        switch fields["role"] {
        case "master":
            role = .master
            offset = fields["master_repl_offset"].flatMap { Int64($0) } ?? 0
            for i in 0..<64 {
                guard let line = fields["slave\(i)"] else { break }
                var parts: [Substring: Substring] = [:]
                for part in line.split(separator: ",") {
                    let pair = part.split(separator: "=", maxSplits: 1)
                    if pair.count == 2 { parts[pair[0]] = pair[1] }
                }
                guard parts["state"] == "online", let host = parts["ip"],
                    let port = parts["port"].flatMap({ UInt16($0) }), port > 0,
                    let endpoint = Endpoint(host: String(host), port: port)
                else { continue }
                replicas.append(endpoint)
            }
        case "slave":
            var master: Endpoint?
            if let host = fields["master_host"], let port = fields["master_port"].flatMap({ UInt16($0) }) {
                master = Endpoint(host: String(host), port: port)
            }
            role = .replica(
                of: master, linkUp: fields["master_link_status"] == "up",
                syncing: fields["master_sync_in_progress"] != "0")
            offset = fields["slave_repl_offset"].flatMap { Int64($0) } ?? 0
        default: return nil
        }
    }

    /// Why reads must not go there, given the master's replication id if known; nil if they may.
    func unfitness(masterReplicationID: String?) -> String? {
        guard case .replica(_, let linkUp, let syncing) = role else { return "it is no replica" }
        if syncing { return "it is still copying the master's data" }
        if !linkUp { return "its link to the master is down" }
        if let masterReplicationID, replicationID != masterReplicationID { return "it follows another master" }
        return nil
    }
}

/// Tells how fresh a replica is, in terms of our own clock: samples of the master's offset, each taken after a known moment,
/// are matched with the offset that the replica has applied.
struct ReplicationClock {
    private var samples: [(sent: MonotonicTime, offset: Int64)] = []

    /// The master answered `offset` to a question sent at `sent`: every write it had acknowledged before is within.
    mutating func masterAt(_ offset: Int64, sent: MonotonicTime) {
        if let last = samples.last, offset < last.offset { samples = [] }
        if samples.count == 64 { samples.removeFirst() }
        samples.append((sent, offset))
    }

    mutating func reset() { samples = [] }

    /// Writes acknowledged before this moment are on a replica that has applied `offset`; nil if nothing is known.
    func freshness(ofReplicaAt offset: Int64) -> MonotonicTime? { samples.last { $0.offset <= offset }?.sent }
}
