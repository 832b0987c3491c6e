// What `coterie agent` is told, after flags, environment and configuration file were put together.
import Model
import Pods

/// Everything an agent needs to know; see `coterie agent --help` for the meaning of each.
public struct AgentOptions: Sendable {
    public enum QueueListener: Hashable, Sendable {
        case off
        case at(SocketAddress)
    }

    /// Whom a queue port on loopback serves: the user that the agent runs as (and root), or every user of the machine.
    public enum QueueUsers: String, Hashable, Sendable, CaseIterable {
        case owner, any
    }

    public var name: String
    public var cluster: String = "coterie"
    public var bind: SocketAddress
    public var advertise: SocketAddress?
    public var join: [SocketAddress] = []
    /// Nil: 1 without `join`, else 0 (join only).
    public var expect: Int?
    public var dataDirectory: String
    /// Where the console listens; nil for none.
    public var http: SocketAddress?
    public var queue: QueueListener = .off
    public var queueUsers: QueueUsers = .owner
    public var tags: [String: String] = [:]
    public var sandbox: SandboxMode = .auto
    public var keyFile: String?
    public var version: String = "0"
    /// The programs beside this one: `coterie` itself, `coterie-console`, `coterie-init`.
    public var programs: Programs
    public var logLevel: String = "info"
    /// See ``NodeOptions/deadVoterGrace``.
    public var deadVoterGrace = TimeSpan.seconds(300)

    public struct Programs: Sendable {
        public var coterie: String
        public var console: String
        public var initProcess: String

        public init(coterie: String, console: String, initProcess: String) {
            self.coterie = coterie
            self.console = console
            self.initProcess = initProcess
        }
    }

    public init(name: String, bind: SocketAddress, dataDirectory: String, programs: Programs) {
        self.name = name
        self.bind = bind
        self.dataDirectory = dataDirectory
        self.programs = programs
    }
}

/// What an agent says when its listeners are bound.
public struct AgentReady: Sendable {
    public var id: NodeID
    public var name: String
    public var address: SocketAddress
    public var http: SocketAddress?
    public var queue: SocketAddress?
}
