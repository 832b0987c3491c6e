// `coterie agent`: one node in the foreground.
import ArgumentParser
import EventLoop
import Glibc
import Manifests
import Model
import Node
import Pods
import Wire

struct AgentCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "agent",
        abstract: "Run one node in the foreground.",
        discussion: """
            Prints one line when its listeners are bound: {"ready":true,"id":…,"name":…,"address":…,"http":…,"queue":…}. SIGTERM \
            and \
            Ctrl-C hand leadership over, stop the pods and end it; a second signal ends it at once. Logs go to stderr.

            A first node alone:   coterie agent --data /var/lib/coterie
            One of three:         coterie agent --bind 0.0.0.0:7630 --advertise 10.0.0.1:7630 --expect 3 \\
                                      --join 10.0.0.2:7630 --join 10.0.0.3:7630 --key cluster.key
            Joins a cluster:      coterie agent --join 10.0.0.1:7630 --key cluster.key

            Every option may also stand in the environment (COTERIE_NAME, COTERIE_BIND, COTERIE_JOIN=A,B, …) or, under the same name, \
            in the YAML file given with --config; a flag goes before the environment, that before the file.
            """)

    @Option(help: "A YAML file with the same keys as the flags.") var config: String?
    @Option(help: "What people call this node (default: the host's name).") var name: String?
    @Option(help: "HOST:PORT for gossip and streams (default 127.0.0.1:7630). Port 0 takes a free one.") var bind:
        String?
    @Option(help: "The HOST:PORT that others reach it by.") var advertise: String?
    @Option(help: "HOST:PORT of a member; may be repeated.") var join: [String] = []
    @Option(help: "How many founders there will be: 1, 3 or 5.") var expect: Int?
    @Option(help: "The cluster's name (default coterie).") var cluster: String?
    @Option(help: "The data directory.") var data: String?
    @Option(help: "HOST:PORT of the console and its API, or off (default off).") var http: String?
    @Option(help: "HOST:PORT or unix:PATH of the queue protocol, or off (default off).") var queue: String?
    @Option(help: "Whom a queue port on loopback serves: owner (the agent's user, and root; default) or any.")
    var queueUsers: String?
    @Option(help: "KEY=VALUE that pods can select nodes by; may be repeated.") var tag: [String] = []
    @Option(help: "How pods are held: auto, namespaces, oci or none.") var sandbox: String?
    @Option(help: "debug, info, warning or error (default info).") var logLevel: String?
    @Option(help: "How long a voter is dead before a learner takes its place (default 5m).") var deadVoterGrace: String?

    static let keys: [String: ValueKind] = [
        "name": .string, "bind": .string, "advertise": .string, "join": .strings, "expect": .integer,
        "cluster": .string, "data": .string,
        "http": .string, "queue": .string, "queue-users": .choice(AgentOptions.QueueUsers.allCases.map(\.rawValue)),
        "tag": .strings, "sandbox": .choice(SandboxMode.allCases.map(\.rawValue)),
        "key": .string,
        "log-level": .choice(["debug", "info", "warning", "error"]), "dead-voter-grace": .duration,
    ]

    func run() throws {
        let options = try agentOptions()
        raiseDescriptorLimit()
        try AgentRun.run(options)
    }

    func agentOptions() throws -> AgentOptions {
        let settings = try Settings(config: config, known: AgentCommand.keys)
        func text(_ key: String, _ flag: String?) -> (value: String, origin: String)? {
            let variable = "COTERIE_" + key.uppercased().map { $0 == "-" ? "_" : String($0) }.joined()
            return settings.text(key, flag: flag, variable: variable)
        }
        let bind = try settings.address("bind", flag: self.bind, variable: "COTERIE_BIND") ?? .loopback(port: 7_630)
        if case .unix = bind.host { throw CoterieError(.badInput, "--bind \(bind): a node needs HOST:PORT") }
        var options = AgentOptions(
            name: text("name", name)?.value ?? hostName(), bind: bind,
            dataDirectory: text("data", data)?.value ?? DefaultPaths.dataDirectory, programs: .found)
        try AgentCommand.checkName(options.name, what: text("name", name)?.origin ?? "the host's name")
        options.version = programVersion
        options.advertise = try settings.address("advertise", flag: advertise, variable: "COTERIE_ADVERTISE")
        let joins = settings.texts("join", flags: join, variable: "COTERIE_JOIN")
        for one in joins.values { options.join.append(try resolveAddress(one, for: joins.origin)) }
        if let expect = try settings.number("expect", flag: expect, variable: "COTERIE_EXPECT") {
            guard [1, 3, 5].contains(expect) else {
                throw CoterieError(
                    .badInput, "--expect \(expect): the founders are 1, 3 or 5", hint: "further nodes only --join")
            }
            options.expect = expect
        }
        if let (cluster, origin) = text("cluster", cluster) {
            try AgentCommand.checkName(cluster, what: origin)
            options.cluster = cluster
        }
        if let (http, origin) = text("http", http), http != "off" {
            var address = try resolveAddress(http, for: origin)
            if case .unix = address.host { throw CoterieError(.badInput, "\(origin) \(http): HOST:PORT is needed") }
            if address.port == 0 { address.port = try PortProbe.freePort(like: address) }
            options.http = address
        }
        if let (queue, origin) = text("queue", queue), queue != "off" {
            options.queue = .at(try resolveAddress(queue, for: origin))
        }
        if let (users, origin) = text("queue-users", queueUsers) {
            guard let known = AgentOptions.QueueUsers(rawValue: users) else {
                throw CoterieError(.badInput, "\(origin) \(users): unknown", hint: "owner or any")
            }
            options.queueUsers = known
        }
        let tags = settings.texts("tag", flags: tag, variable: "COTERIE_TAG")
        options.tags = try parsePairs(tags.values, for: tags.origin)
        guard options.tags.count <= Limits.tags,
            options.tags.allSatisfy({ $0.key.utf8.count + $0.value.utf8.count <= Limits.tagBytes })
        else {
            throw CoterieError(
                .badInput, "\(tags.origin): at most \(Limits.tags) tags of \(Limits.tagBytes) bytes each")
        }
        if let (mode, origin) = text("sandbox", sandbox) {
            guard let known = SandboxMode(rawValue: mode) else {
                throw CoterieError(
                    .badInput, "\(origin) \(mode): unknown sandbox", hint: "auto, namespaces, oci or none")
            }
            options.sandbox = known
        }
        if let (level, origin) = text("log-level", logLevel) {
            guard ["debug", "info", "warning", "error"].contains(level) else {
                throw CoterieError(
                    .badInput, "\(origin) \(level): unknown level", hint: "debug, info, warning or error")
            }
            options.logLevel = level
        }
        if let (text, origin) = text("dead-voter-grace", deadVoterGrace) {
            // Gossip forgets its dead after a day.
            guard let span = TimeSpan(text: text), span >= .seconds(1), span <= .seconds(86_400) else {
                throw CoterieError(.badInput, "\(origin) \(text): from 1s to 24h are possible", hint: "use 90s or 5m")
            }
            options.deadVoterGrace = span
        }
        options.keyFile = Invocation.options.keyFile ?? settings.text("key", flag: nil, variable: nil)?.value
        return options
    }

    /// Names of nodes and clusters are printable and without spaces.
    static func checkName(_ name: String, what: String) throws(CoterieError) {
        guard !name.isEmpty, name.utf8.count <= Limits.nameBytes,
            name.unicodeScalars.allSatisfy({ $0.value > 32 && $0.value != 127 && $0 != "/" })
        else {
            throw CoterieError(
                .badInput, "\(what): \"\(name)\" can not be a name",
                hint: "1 to \(Limits.nameBytes) bytes without spaces and slashes")
        }
    }
}

/// The loop of one node, from its start to its end.
enum AgentRun {
    static func run(_ options: AgentOptions) throws {
        try Invocation.runLoop { loop in
            let agent = try Agent(loop: loop, options: options)
            // From here on a signal means an orderly end, also while the node starts.
            var signals = 0
            var onSignal: (() -> Void)?
            var watchers: [SignalWatcher] = []
            for number in [SIGTERM, SIGINT] {
                watchers.append(
                    try SignalWatcher(loop: loop, signal: number) {
                        signals += 1
                        if signals > 1 { _exit(128 + number) }
                        onSignal?()
                    })
            }
            agent.start()
            writeOut(readyDocument(agent.ready).text() + "\n")
            await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
                var waiting: CheckedContinuation<Void, Never>? = continuation
                agent.onStopped = {
                    waiting?.resume()
                    waiting = nil
                }
                onSignal = { agent.stop {} }
                if signals > 0 { agent.stop {} }
            }
            for watcher in watchers { watcher.close() }
            if let failure = agent.failure { throw failure }
        }
    }

    static func readyDocument(_ ready: AgentReady) -> JSONValue {
        [
            "ready": true, "id": .string(ready.id.description), "name": .string(ready.name),
            "address": .string(ready.address.description),
            "http": JSONValue(ready.http?.description), "queue": JSONValue(ready.queue?.description),
        ]
    }
}

func hostName() -> String {
    var buffer = [CChar](repeating: 0, count: 256)
    guard gethostname(&buffer, 255) == 0 else { return "localhost" }
    return String(decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
}

/// Each peer, client and pod takes descriptors; the soft limit of many systems is a mere 1024.
func raiseDescriptorLimit() {
    var limit = rlimit()
    guard getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else { return }
    limit.rlim_cur = limit.rlim_max
    _ = setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
}
