// What `coterie ambassador redis` can be told.
import Model

public struct RedisAmbassadorOptions: Sendable {
    /// How the master and its replicas are found.
    public enum Servers: Hashable, Sendable {
        /// `--master` and `--replica`.
        case fixed(master: Endpoint, replicas: [Endpoint])
        /// `--discover`: any of the servers, which knows the others through its replication section.
        case discover(Endpoint)
        /// `--sentinel` and `--master-name`.
        case sentinel([Endpoint], masterName: String)
    }

    /// Where reads go: `--reads`.
    public enum Reads: String, Sendable, CaseIterable {
        case replicas, master
    }

    public var listen: SocketAddress = .loopback(port: 6379)
    public var servers: Servers
    public var reads: Reads = .replicas
    /// A read that follows a write of this pod goes to the master until a replica is known to have that write.
    public var readYourWrites = false
    /// For the ambassador's own connections (health, command table): `$COTERIE_REDIS_USERNAME`, `$COTERIE_REDIS_PASSWORD`. Where
    /// there are none, the credentials of the client that authenticated last are used.
    public var username: String?
    public var password: String?
    public var connectTimeout: TimeSpan = .seconds(1)
    /// How long a command waits for a master that can not be reached before it is answered with an error.
    public var masterWait: TimeSpan = .seconds(3)
    public var healthInterval: TimeSpan = .seconds(1)
    /// Most connected clients; more are told so and closed.
    public var maxClients = 10_000
    /// Chooses replicas; 0 takes a seed from the system.
    public var seed: UInt64 = 0
    public var inherited: InheritedListeners = .current

    public init(servers: Servers) {
        self.servers = servers
        username = environmentValue("COTERIE_REDIS_USERNAME")
        password = environmentValue("COTERIE_REDIS_PASSWORD")
    }

    /// From the flags of the command line; says which flags are missing, exclude each other or are not there yet.
    public static func parse(
        listen: String?, master: String?, replicas: [String], sentinels: [String], masterName: String?,
        discover: String?,
        reads: String?, readYourWrites: Bool, deny: [String], rename: [String], keyPrefix: String?, config: String?
    ) throws(CoterieError) -> RedisAmbassadorOptions {
        func endpoint(_ flag: String, _ text: String) throws(CoterieError) -> Endpoint {
            guard let endpoint = Endpoint(text: text) else {
                throw CoterieError(.badInput, "\(flag) \(text): not an address", hint: "HOST:PORT is expected")
            }
            return endpoint
        }
        for (flag, given) in [
            ("--deny", !deny.isEmpty), ("--rename", !rename.isEmpty), ("--key-prefix", keyPrefix != nil),
            ("--config", config != nil),
        ] where given {
            throw CoterieError(
                .badInput, "\(flag) is not supported yet", hint: "use Redis' own ACLs for what a client may do")
        }
        let ways = (master != nil ? 1 : 0) + (sentinels.isEmpty ? 0 : 1) + (discover != nil ? 1 : 0)
        guard ways == 1 else {
            throw CoterieError(
                .badInput,
                ways == 0 ? "no Redis servers are given" : "--master, --sentinel and --discover exclude each other",
                hint: "one of --master H:P [--replica H:P]…, --sentinel H:P… --master-name N, --discover H:P")
        }
        guard replicas.count <= 64, sentinels.count <= 16 else {
            throw CoterieError(.badInput, "at most 64 replicas and 16 sentinels can be given")
        }
        guard replicas.isEmpty || master != nil else { throw CoterieError(.badInput, "--replica needs --master") }
        guard (masterName != nil) == !sentinels.isEmpty else {
            throw CoterieError(.badInput, "--sentinel and --master-name belong together")
        }
        let servers: Servers
        if let master {
            var list: [Endpoint] = []
            for replica in replicas { list.append(try endpoint("--replica", replica)) }
            servers = .fixed(master: try endpoint("--master", master), replicas: list)
        } else if let discover {
            servers = .discover(try endpoint("--discover", discover))
        } else {
            var list: [Endpoint] = []
            for sentinel in sentinels { list.append(try endpoint("--sentinel", sentinel)) }
            servers = .sentinel(list, masterName: masterName ?? "")
        }
        var options = RedisAmbassadorOptions(servers: servers)
        if let listen {
            guard let address = SocketAddress(text: listen) else {
                throw CoterieError(.badInput, "--listen \(listen): not an address", hint: "ADDRESS:PORT is expected")
            }
            options.listen = address
        }
        if let reads {
            guard let choice = Reads(rawValue: reads) else {
                throw CoterieError(.badInput, "--reads \(reads): unknown", hint: "replicas or master")
            }
            options.reads = choice
        }
        options.readYourWrites = readYourWrites
        return options
    }
}
