// The entry points of the containers that Coterie supplies to pods. Inside a pod the cluster is at the pod's own socket.
import ArgumentParser
import Client
import EventLoop
import Model
import PatternContainers

struct SidecarGroup: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "sidecar", abstract: "Sidecars.", subcommands: [SidecarLogs.self])
}

struct SidecarLogs: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "logs", abstract: "Send the logs of the pod's other containers somewhere.",
        usage: "coterie sidecar logs --to URL… [--container NAME]… [--file GLOB]… [--spool DIR] [--spool-limit SIZE]",
        discussion: """
            URL: syslog+tcp://HOST:PORT, tcp://HOST:PORT or http://HOST:PORT/PATH.

            coterie sidecar logs --to tcp://10.0.0.9:5170 --spool /spool
            """)
    @Argument(
        parsing: .captureForPassthrough,
        help: "--to URL… [--container NAME]… [--file GLOB]… [--spool DIR] [--spool-limit SIZE]")
    var words: [String] = []

    func run() throws {
        try helpIfAsked(words, for: SidecarLogs.self)
        let options = try LogSidecarOptions(arguments: words)
        try SuppliedRun.run { _, loop in
            let sidecar = LogSidecar(loop: loop, options: options)
            return SuppliedRun(start: { try sidecar.start() }, stop: { done in sidecar.stop(then: done) })
        }
    }
}

struct AmbassadorGroup: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "ambassador", abstract: "Ambassadors.",
        subcommands: [AmbassadorRedis.self, AmbassadorTCP.self, AmbassadorQueue.self])
}

struct AmbassadorRedis: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "redis",
        abstract: "One Redis on the pod's localhost: writes go to the master, reads to the replicas.",
        usage:
            "coterie ambassador redis [--listen H:P] (--master H:P [--replica H:P]…| --sentinel H:P… --master-name N | --discover H:P)",
        discussion: """
            Options: --reads replicas|master, --read-your-writes, --deny CMD…, --rename OLD=NEW…, --key-prefix P, --config FILE.

            coterie ambassador redis --master 10.0.0.1:6379 --replica 10.0.0.2:6379 --replica 10.0.0.3:6379
            """)
    @Argument(parsing: .captureForPassthrough, help: "As in the usage.") var words: [String] = []

    func run() throws {
        try helpIfAsked(words, for: AmbassadorRedis.self)
        let options = try RedisAmbassadorOptions(arguments: words)
        try SuppliedRun.run { _, loop in
            let ambassador = RedisAmbassador(loop: loop, options: options)
            return SuppliedRun(
                start: { try ambassador.start() },
                stop: { done in
                    ambassador.stop()
                    done()
                })
        }
    }
}

struct AmbassadorTCP: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "tcp", abstract: "One address on the pod's localhost for a service elsewhere.",
        discussion: "coterie ambassador tcp --listen 127.0.0.1:5432 --to 10.0.0.1:5432 --to 10.0.0.2:5432")
    @Option(help: "HOST:PORT to listen on.") var listen: String
    @Option(help: "HOST:PORT of the service; may be repeated.") var to: [String] = []
    @Option(help: "A service of the cluster, as POD/SERVICE.") var service: String?
    @Option(help: "How long one attempt may take (default 3s).", transform: parsePositiveDuration) var connectTimeout:
        TimeSpan?
    @Option(help: "Further attempts after the first (default 3).") var retries: Int?

    func run() throws {
        guard to.isEmpty != (service == nil) else {
            throw CoterieError(.badInput, "ambassador tcp: exactly one of --to and --service is needed")
        }
        let address = try resolveAddress(listen, for: "--listen")
        if let service {
            let timeout = connectTimeout ?? .seconds(3)
            try SuppliedRun.run { client, loop in
                let ambassador = ServiceAmbassador(
                    loop: loop, client: client, listen: address, service: service, timeout: timeout)
                return SuppliedRun(start: { try ambassador.start() }, stop: { ambassador.stop($0) })
            }
            return
        }
        var targets: [Endpoint] = []
        for text in to {
            guard let target = Endpoint(text: text) else {
                throw CoterieError(.badInput, "--to \(text): not an address", hint: "use HOST:PORT")
            }
            targets.append(target)
        }
        var options = TCPAmbassadorOptions(listen: address, to: targets)
        if let connectTimeout { options.connectTimeout = connectTimeout }
        if let retries {
            guard (0...100).contains(retries) else {
                throw CoterieError(.badInput, "--retries \(retries): from 0 to 100")
            }
            options.retries = retries
        }
        let settled = options
        try SuppliedRun.run { _, loop in
            let ambassador = TCPAmbassador(loop: loop, options: settled)
            return SuppliedRun(
                start: { try ambassador.start() },
                stop: { done in
                    ambassador.stop()
                    done()
                })
        }
    }
}

struct AmbassadorQueue: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "queue", abstract: "The cluster's queues on the pod's localhost, in beanstalkd's protocol.",
        discussion: "coterie ambassador queue --listen 127.0.0.1:11300")
    @Option(help: "HOST:PORT to listen on (default 127.0.0.1:11300).") var listen: String = "127.0.0.1:11300"

    func run() throws {
        let address = try resolveAddress(listen, for: "--listen")
        try SuppliedRun.run { client, loop in
            let ambassador = ServiceAmbassador(
                loop: loop, client: client, listen: address, service: "queue", timeout: .seconds(10))
            return SuppliedRun(start: { try ambassador.start() }, stop: { ambassador.stop($0) })
        }
    }
}

struct AdapterCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "adapter", abstract: "Turn what the pod's application writes into what others read.",
        usage: "coterie adapter --watch GLOB… --out DIR (--from F --to F | --filter CMD | --convert CMD) [--settle D]",
        discussion: """
            Forms: json, csv, logfmt, lines, multiline:REGEX; to json, csv, logfmt, prometheus, template:TEXT.

            coterie adapter --watch '/data/*.csv' --from csv --to prometheus --out /metrics
            """)
    @Argument(parsing: .captureForPassthrough, help: "As in the usage.") var words: [String] = []

    func run() throws {
        try helpIfAsked(words, for: AdapterCommand.self)
        let options = try RecordAdapterOptions(arguments: words)
        try SuppliedRun.run { _, loop in
            let adapter = RecordAdapter(loop: loop, options: options)
            return SuppliedRun(start: { try adapter.start() }, stop: { done in adapter.stop(then: done) })
        }
    }
}

struct ElectorCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "elector",
        abstract: "Take part in an election and answer the pod's application at localhost:4040.",
        usage: "coterie elector --election NAME [--listen 127.0.0.1:4040] [--ttl D]",
        discussion: "coterie elector --election billing")
    @Argument(parsing: .captureForPassthrough, help: "--election NAME [--listen H:P] [--ttl D]") var words: [String] =
        []

    func run() throws {
        try helpIfAsked(words, for: ElectorCommand.self)
        let options = try ElectorOptions(arguments: words)
        try SuppliedRun.run { client, loop in
            let elector = Elector(loop: loop, options: options, service: ClusterServices(client))
            return SuppliedRun(start: { try elector.start() }, stop: { elector.stop($0) })
        }
    }
}
