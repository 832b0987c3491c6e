// `coterie up` and `coterie down`: a cluster of agents on this machine.
import ArgumentParser
import Glibc
import Manifests
import Model
import Pods
import Security
import Transport
import Wire

struct UpCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "up",
        abstract: "Start a cluster of agents on this machine.",
        discussion: """
            Prints each node's ready line, then {"cluster":"ready","leader":…} once all agree. Ctrl-C stops every node and leaves \
            nothing, unless --data names a directory to keep; --detach returns instead (stop it with `coterie down`).

            coterie up
            coterie up --nodes 5 --data ./cluster --detach
            coterie up --config cluster-configs/local.yaml
            """)

    @Option(help: "How many nodes (default 3).") var nodes: Int?
    @Option(help: "Where the nodes keep their data (default: a directory in /tmp that goes with the cluster).")
    var data: String?
    @Option(help: "A YAML file with the keys nodes, data, cluster, sandbox, tag, http, queue, queue-users, log-level.")
    var config: String?
    @Flag(help: "Return once the cluster is ready.") var detach = false

    static let keys: [String: ValueKind] = [
        "nodes": .integer, "data": .string, "cluster": .string,
        "sandbox": .choice(SandboxMode.allCases.map(\.rawValue)), "tag": .strings,
        "http": .choice(["on", "off"]), "queue": .choice(["on", "off"]), "queue-users": .choice(["owner", "any"]),
        "log-level": .choice(["debug", "info", "warning", "error"]),
    ]

    func run() throws {
        let settings = try Settings(config: config, known: UpCommand.keys)
        let wanted = try settings.number("nodes", flag: nodes, variable: "COTERIE_NODES")
        guard (1...100).contains(wanted ?? 3) else {
            throw CoterieError(.badInput, "--nodes \(wanted ?? 0): from 1 to 100 nodes fit on one machine")
        }
        let given = settings.text("data", flag: data, variable: "COTERIE_DATA")?.value
        let directory = try given.map(absolutePath) ?? makeTemporaryDirectory()
        do {
            let cluster = settings.text("cluster", flag: nil, variable: nil)?.value
            var plan = try UpPlan.make(
                directory: directory, wanted: wanted, cluster: cluster, isTemporary: given == nil, detach: detach)
            for key in ["sandbox", "log-level", "queue-users"] {
                if let (value, _) = settings.text(key, flag: nil, variable: nil) { plan.extra += ["--\(key)", value] }
            }
            for tag in settings.texts("tag", flags: [], variable: nil).values { plan.extra += ["--tag", tag] }
            plan.hasHTTP = settings.text("http", flag: nil, variable: nil)?.value != "off"
            plan.hasQueue = settings.text("queue", flag: nil, variable: nil)?.value != "off"
            let ready = plan
            try Invocation.runLoop { loop in try await ClusterRun(loop: loop, plan: ready).go() }
        } catch {
            if given == nil { removeDirectoryTree(directory) }
            throw error
        }
    }
}

/// Everything that is decided before the first process starts.
struct UpPlan: Sendable {
    var directory: String
    var cluster: String
    var nodes: [LocalNode]
    /// Founders: the first so many nodes; the others only join.
    var expect: Int
    var isTemporary: Bool
    var detach: Bool
    var hasHTTP = true
    var hasQueue = true
    /// Further flags of every agent.
    var extra: [String] = []

    var keyFile: String { directory + "/cluster.key" }

    static func make(directory: String, wanted: Int?, cluster: String?, isTemporary: Bool, detach: Bool)
        throws(CoterieError) -> UpPlan
    {
        try makeDirectory(directory, mode: 0o700)
        for node in NodeProcess.directories(of: directory) {
            guard let pid = NodeProcess.running(in: node) else { continue }
            throw CoterieError(
                .failed, "the data directory \(directory) is in use by the process \(pid)",
                hint: "stop that cluster with: coterie down --data \(directory)")
        }
        // What the founders were told must not change, and a cluster's name stays: the first start decides.
        let first = LocalCluster.read(directory)
        let count = wanted ?? first?.nodes ?? 3
        if let first, count < first.nodes {
            throw CoterieError(
                .conflict, "\(directory) holds a cluster of \(first.nodes) nodes",
                hint: "use --nodes \(first.nodes), or another --data")
        }
        if let first, let cluster, cluster != first.cluster {
            throw CoterieError(
                .conflict, "\(directory) holds the cluster \(first.cluster), not \(cluster)", hint: "use another --data"
            )
        }
        let founders = first?.founders ?? count
        let plan = UpPlan(
            directory: directory, cluster: first?.cluster ?? cluster ?? "coterie",
            nodes: try LocalNode.plan(count, in: directory),
            expect: founders >= 5 ? 5 : founders >= 3 ? 3 : 1, isTemporary: isTemporary, detach: detach)
        if let last = plan.nodes.last, last.socket.utf8.count > 100 {
            throw CoterieError(
                .badInput, "--data \(directory): the path is too long for the nodes' sockets",
                hint: "choose a shorter one")
        }
        if access(plan.keyFile, F_OK) != 0 {
            let key: ClusterKey
            do { key = try ClusterKey.random() } catch { throw CoterieError(.failed, "cannot make a key: \(error)") }
            try KeyFile.write(key, to: plan.keyFile)
        }
        try LocalCluster(cluster: plan.cluster, nodes: count, founders: founders).write(directory)
        return plan
    }

    /// The command line of one node.
    func arguments(_ index: Int) -> [String] {
        let node = nodes[index]
        var words = [
            "agent", "--name", node.name, "--data", node.directory, "--bind", node.address, "--key", keyFile,
            "--cluster", cluster,
        ]
        words += [
            "--http", hasHTTP ? "127.0.0.1:\(node.http)" : "off", "--queue",
            hasQueue ? "127.0.0.1:\(node.queue)" : "off",
        ]
        if index < expect { words += ["--expect", String(expect)] }
        for (other, peer) in nodes.enumerated() where other != index { words += ["--join", peer.address] }
        return words + extra
    }
}

struct DownCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "down",
        abstract: "Stop the cluster that `up` started.",
        discussion: """
            Without --data the cluster that was started last. Nodes hand over and stop their pods; after 40 seconds they are killed. A \
            directory that `up` made itself is removed.

            coterie down
            coterie down --data ./cluster
            """)

    @Option(help: "The data directory of the cluster.") var data: String?

    func run() throws {
        let record = ClusterRecord.read()
        let directory: String
        if let data {
            directory = absolutePath(data)
        } else if let record {
            directory = record.data
        } else {
            throw CoterieError(
                .noCluster, "no cluster that coterie up started is known", hint: "name its directory with --data")
        }
        let nodes = NodeProcess.directories(of: directory)
        var running = nodes.compactMap { node in NodeProcess.running(in: node).map { (node: node, pid: $0) } }
        let count = running.count
        if count == 0 && record?.data != directory && nodes.isEmpty {
            throw CoterieError(.notFound, "there is no cluster in \(directory)")
        }
        let stopped = running.map { JSONValue($0.pid) }
        // A process that holds the lock of that directory and is an agent is ours to stop.
        for process in running { kill(process.pid, SIGTERM) }
        running = wait(running, milliseconds: 40_000)
        for process in running {
            writeError("coterie: \(process.node) did not stop in time and is killed")
            kill(process.pid, SIGKILL)
        }
        running = wait(running, milliseconds: 5_000)
        guard running.isEmpty else { throw CoterieError(.failed, "the process \(running[0].pid) can not be stopped") }
        if let record, record.data == directory {
            unlink(DefaultPaths.lastCluster)
            if record.isTemporary { removeDirectoryTree(directory) }
        }
        Invocation.show(["stopped": JSONValue(count), "data": .string(directory), "pids": .array(stopped)]) { _ in
            count == 0
                ? "nothing was running in \(directory)\n"
                : "stopped \(count) node\(count == 1 ? "" : "s") of \(directory)\n"
        }
    }

    private func wait(_ processes: [(node: String, pid: Int32)], milliseconds: Int) -> [(node: String, pid: Int32)] {
        var left = processes
        var waited = 0
        while !left.isEmpty && waited < milliseconds {
            usleep(20_000)
            waited += 20
            left = left.filter { NodeProcess.running(in: $0.node) == $0.pid }
        }
        return left
    }
}
