// The Prometheus text format (version 0.0.4), made from the node's documents.
import Wire

enum Metrics {
    /// One gauge or counter without labels.
    private struct Sample {
        var name: String
        var help: String
        var type: String
        var value: Double?
    }

    static func text(status: JSONValue, raft: JSONValue, node: JSONValue) -> String {
        func number(_ document: JSONValue, _ path: String...) -> Double? {
            var value: JSONValue? = document
            for key in path { value = value?[key] }
            return value?.doubleValue
        }
        var out = ""
        func family(_ name: String, _ type: String, _ help: String, _ samples: [(labels: String, value: Double?)]) {
            let known = samples.compactMap { sample in sample.value.map { (sample.labels, $0) } }
            guard !known.isEmpty else { return }
            out += "# HELP \(name) \(help)\n# TYPE \(name) \(type)\n"
            for (labels, value) in known { out += "\(name)\(labels) \(value)\n" }
        }
        family(
            "coterie_members", "gauge", "Members by state, as this node sees them.",
            ["alive", "suspect", "dead", "left"].map { ("{state=\"\($0)\"}", number(status, "members", $0)) })
        family(
            "coterie_queue_jobs", "gauge", "Jobs in the cluster by state.",
            ["ready", "reserved", "delayed", "buried"].map { ("{state=\"\($0)\"}", number(status, "queues", $0)) })
        family("coterie_queue_tubes", "gauge", "Tubes in the cluster.", [("", number(status, "queues", "tubes"))])
        family(
            "coterie_pods", "gauge", "Pods in the cluster by phase.",
            ["running", "pending", "failed"].map { ("{phase=\"\($0)\"}", number(status, "pods", $0)) })
        let role = status["node"]?["role"]?.stringValue ?? "none"
        family(
            "coterie_raft_role", "gauge", "1 for the role that this node has.",
            ["leader", "voter", "learner", "none"].map { ("{role=\"\($0)\"}", $0 == role ? 1 : 0) })
        family(
            "coterie_raft_has_leader", "gauge", "1 if this node knows a leader.",
            [("", status["leader"]?.isNull == false ? 1 : 0)])
        for (key, name, help) in [
            ("term", "coterie_raft_term", "The current term."),
            ("commitIndex", "coterie_raft_commit_index", "Highest log entry known to be committed."),
            ("appliedIndex", "coterie_raft_applied_index", "Highest log entry applied."),
            ("durableIndex", "coterie_raft_durable_index", "Highest log entry on this node's disk."),
            ("snapshotIndex", "coterie_raft_snapshot_index", "Log entry that the newest snapshot covers."),
            ("sessions", "coterie_sessions", "Client sessions that the cluster remembers."),
            ("healthScore", "coterie_gossip_health_score", "Lifeguard's local health multiplier; 0 is healthy."),
        ] { family(name, "gauge", help, [("", number(raft, key))]) }
        family(
            "coterie_loop_longest_turn_seconds", "gauge", "Longest turn of the event loop since the last scrape.",
            [("", number(node, "longestTurnSeconds"))])
        family(
            "coterie_connections", "gauge", "Open client connections of this node.", [("", number(node, "connections"))]
        )
        family(
            "coterie_refused_datagrams_total", "counter",
            "Datagrams that could not be opened: foreign, forged or repeated.",
            [("", number(node, "refusedDatagrams"))])
        family(
            "coterie_refused_connections_total", "counter", "Connections that were refused.",
            [("", number(node, "refusedConnections"))])
        family(
            "coterie_dropped_frames_total", "counter",
            "Frames to peers that were dropped because they could not be sent.",
            [("", number(node, "droppedFrames"))])
        family(
            "process_resident_memory_bytes", "gauge", "Resident memory of the agent.",
            [("", number(node, "residentBytes"))])
        family("process_cpu_seconds_total", "counter", "CPU time of the agent.", [("", number(node, "cpuSeconds"))])
        return out
    }
}
