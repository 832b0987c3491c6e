// The options of the supplied containers from the words of a command line.
import Model

extension LogSidecarOptions {
    /// `--to URL… [--container NAME]… [--file GLOB]… [--spool DIR] [--spool-limit SIZE] [--grace D]`.
    public init(arguments: [String]) throws(CoterieError) {
        var flags = try FlagReader("sidecar logs", arguments)
        var targets: [LogTarget] = []
        for text in flags.values("--to") { targets.append(try LogTarget(text: text)) }
        let containers = flags.values("--container")
        let files = flags.values("--file")
        let spool = try flags.value("--spool")
        let limit = try flags.size("--spool-limit")
        let grace = try flags.duration("--grace")
        try flags.finish(takesCommand: false)
        guard !targets.isEmpty else {
            throw CoterieError(
                .badInput, "sidecar logs: --to is needed",
                hint: "syslog+tcp://HOST:PORT, tcp://HOST:PORT or http://HOST:PORT/PATH")
        }
        self.init(targets: targets)
        self.containers = containers
        self.files = files
        self.spool = spool
        if let limit { spoolLimit = limit }
        if let grace { self.grace = grace }
    }
}

extension RedisAmbassadorOptions {
    /// The flags of ``parse(listen:master:replicas:sentinels:masterName:discover:reads:readYourWrites:deny:rename:keyPrefix:config:)``.
    public init(arguments: [String]) throws(CoterieError) {
        var flags = try FlagReader("ambassador redis", arguments, switches: ["--read-your-writes"])
        let listen = try flags.value("--listen")
        let master = try flags.value("--master")
        let replicas = flags.values("--replica")
        let sentinels = flags.values("--sentinel")
        let masterName = try flags.value("--master-name")
        let discover = try flags.value("--discover")
        let reads = try flags.value("--reads")
        let readYourWrites = try flags.isSet("--read-your-writes")
        let deny = flags.values("--deny")
        let rename = flags.values("--rename")
        let prefix = try flags.value("--key-prefix")
        let config = try flags.value("--config")
        try flags.finish(takesCommand: false)
        self = try RedisAmbassadorOptions.parse(
            listen: listen, master: master, replicas: replicas, sentinels: sentinels, masterName: masterName,
            discover: discover, reads: reads,
            readYourWrites: readYourWrites, deny: deny, rename: rename, keyPrefix: prefix, config: config)
    }
}

extension RecordAdapterOptions {
    /// `--watch GLOB… --out DIR` and `--from F --to F`, `--filter CMD` or `--convert CMD`; `[--settle D]`.
    public init(arguments: [String]) throws(CoterieError) {
        var flags = try FlagReader("adapter", arguments)
        let watch = flags.values("--watch")
        let out = try flags.value("--out")
        let from = try flags.value("--from")
        let to = try flags.value("--to")
        let filter = try flags.value("--filter")
        let convert = try flags.value("--convert")
        let settle = try flags.duration("--settle")
        try flags.finish(takesCommand: false)
        self = try RecordAdapterOptions.parse(
            watch: watch, out: out, from: from, to: to, filter: filter, convert: convert)
        if let settle { self.settle = settle }
    }
}

extension ElectorOptions {
    /// `--election NAME [--listen 127.0.0.1:4040] [--ttl D]`.
    public init(arguments: [String]) throws(CoterieError) {
        var flags = try FlagReader("elector", arguments)
        let election = try flags.value("--election")
        let listen = try flags.address("--listen")
        let ttl = try flags.duration("--ttl")
        try flags.finish(takesCommand: false)
        guard let election else { throw CoterieError(.badInput, "elector: --election NAME is needed") }
        try checkElection(election, ttl: ttl ?? .seconds(10))
        self.init()
        self.election = election
        if let listen { self.listen = listen }
        if let ttl { self.ttl = ttl }
    }
}
