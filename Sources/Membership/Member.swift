import Model

/// What a node believes of a member. At equal incarnation the later state of this list wins over the earlier.
///
///     alive ──silence──▶ suspect ──time-out──▶ dead
///       ▲ ╲                │  refutation          │ higher incarnation
///       │  ╲───evidence────┼──────────────────▶ dead
///       └──────────────────┴──────────────────────┘        left: said good-bye; returns with a higher incarnation
public enum MemberState: String, Hashable, Sendable, CaseIterable {
    case alive, suspect, dead, left

    /// The precedence at equal incarnation, and the state's byte on the wire.
    var rank: UInt8 {
        switch self {
        case .alive: 0
        case .suspect: 1
        case .dead: 2
        case .left: 3
        }
    }

    init?(rank: UInt8) {
        switch rank {
        case 0: self = .alive
        case 1: self = .suspect
        case 2: self = .dead
        case 3: self = .left
        default: return nil
        }
    }

    /// Alive or suspect: probed, gossiped to, part of the digest.
    public var isPresent: Bool { self == .alive || self == .suspect }
}

/// One member as this node sees it.
public struct Member: Hashable, Sendable {
    public var id: NodeID
    public var name: String
    /// Where it takes gossip (UDP) and streams (TCP).
    public var address: SocketAddress
    public var state: MemberState
    /// Its own version number: only the member itself raises it, to refute an accusation or to publish a change.
    public var incarnation: UInt64
    public var tags: [String: String]
    /// Opaque to gossip, at most ``Membership/metaBytes`` bytes.
    public var meta: [UInt8]
    public var version: String
    /// Smoothed time of a direct ping by this node; nil until one was answered, and for the node itself.
    public var rtt: TimeSpan?

    public init(
        id: NodeID, name: String, address: SocketAddress, state: MemberState = .alive, incarnation: UInt64 = 0,
        tags: [String: String] = [:], meta: [UInt8] = [], version: String = "", rtt: TimeSpan? = nil
    ) {
        self.id = id
        self.name = name
        self.address = address
        self.state = state
        self.incarnation = incarnation
        self.tags = tags
        self.meta = meta
        self.version = version
        self.rtt = rtt
    }
}

/// A change in this node's view. The events of one member come in the order in which its state changed here.
public struct MemberEvent: Hashable, Sendable {
    public enum Kind: String, Hashable, Sendable, CaseIterable {
        /// New, or back after it was dead or had left.
        case join
        case suspect
        /// No longer suspect.
        case alive
        case dead
        case leave
        /// Name, address, tags, meta or version changed.
        case update
        /// Dead or left for so long that it is forgotten; it is no longer among the members.
        case reaped
    }

    public var kind: Kind
    public var member: Member

    public init(kind: Kind, member: Member) {
        self.kind = kind
        self.member = member
    }
}
