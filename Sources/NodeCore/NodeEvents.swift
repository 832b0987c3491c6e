// What goes into a `NodeCore` and what comes out. A driver (Node on libuv, Simulator on virtual time) carries out the
// effects in the order given; the order contract of `RaftEffect` holds for those that concern the log.
import Consensus
import Membership
import Model
import Scheduling
import Wire

/// One request on one connection of a client of this node.
public struct RequestID: Hashable, Sendable {
    public var connection: UInt64
    public var channel: UInt32

    public init(connection: UInt64, channel: UInt32) {
        self.connection = connection
        self.channel = channel
    }
}

/// What a connection may do: decided by the door that it came through.
public enum Authority: Hashable, Sendable {
    /// Holds the cluster's key, or is the owner of the node on its local socket.
    case `operator`
    /// A process in the pod of this name, through the pod's own socket: queues, elections, and its own gather.
    case pod(String)
}

/// An event for ``NodeCore/handle(_:now:)``.
public enum NodeInput: Sendable {
    /// ``NodeCore/nextDeadline`` has come; harmless if early.
    case timer
    /// An opened datagram.
    case datagram(ArraySlice<UInt8>, from: SocketAddress)
    /// The host at this address said that nothing listens there.
    case refusedDatagram(SocketAddress)
    /// A frame of another node; `kind` is one of the node-to-node kinds.
    case peerFrame(FrameKind, [UInt8], from: NodeID)
    /// The stream to a peer broke. `crashed`: its address refuses connections, so its process is gone.
    case peerLost(NodeID, crashed: Bool)
    case join([SocketAddress])

    case persisted(ticket: UInt64)
    /// The founding entry is on stable storage.
    case founded
    case promisePersisted
    case lineagePersisted
    case storageFailed(String)
    /// The disk has no space for what is to be written, or has it again.
    case diskFull(Bool)
    case snapshotStored(SnapshotMetadata)
    /// The snapshot to be made could not be stored (full disk): tried again later.
    case snapshotFailed
    case snapshotChunkStored(snapshot: LogPosition, nextOffset: UInt64)
    /// A received snapshot is stored; `state` is its data.
    case snapshotInstalled(SnapshotMetadata, state: [UInt8])
    case snapshotRejected(snapshot: LogPosition)
    case snapshotSendFailed(to: NodeID)

    case request(RequestID, ClientRequest, Authority)
    /// A command from inside this node (a connection of the queue protocol), in a session of the asker's own.
    case local(UInt64, ClientCommand)
    /// The command need not wait any longer: it is answered with what it got, or with nothing.
    case endWait(UInt64)
    /// A linearizable read from inside this node; answered by `localReadReady`.
    case localRead(UInt64)
    case cancelLocal(UInt64)
    case cancel(RequestID)
    case connectionClosed(UInt64)
    case podReports([PodReport])
    /// SIGTERM: hand leadership over, leave the gossip, keep the place among the voters.
    case shutdown
}

/// What the driver has to do.
public enum NodeEffect: Sendable {
    /// To be sealed and sent.
    case datagram([UInt8], to: SocketAddress)
    case peerFrame(FrameKind, [UInt8], to: NodeID, address: SocketAddress)
    case persist(PersistRequest)
    /// Write the first entry of a new cluster; answered by `.founded`.
    case found(PersistRequest)
    /// Keep the promise durably, or forget it; answered by `.promisePersisted`.
    case persistPromise(BootstrapPromise?)
    /// Keep durably which history of the cluster the log is part of; answered by `.lineagePersisted`.
    case persistLineage(Lineage)
    case makeSnapshot(SnapshotMetadata, StateImage)
    case sendSnapshot(SnapshotSend)
    case storeSnapshotChunk(InstallSnapshot)
    case respond(RequestID, ClientResponse)
    /// The answer to `.local`.
    case localResult(UInt64, Result<StateResult, CoterieError>)
    /// The state has applied all that was committed when `.localRead` came; an error if there is no leader.
    case localReadReady(UInt64, CoterieError?)
    /// Pods that this node shall run, all of them, after a change.
    case assignments([PodRecord])
    case event(NodeEvent)
    /// Something that documents under these paths tell has changed; watchers look again.
    case changed(Set<ChangeTopic>)
    case log(LogLevel, String)
    /// Leadership is handed over and the leave is gossiped: the process may end.
    case stopped
    /// This node's data have no place in the cluster any more: end the process with this failure.
    case fenced(CoterieError)
}

/// What kind of documents changed.
public enum ChangeTopic: String, Hashable, Sendable, CaseIterable {
    case pods, gathers, elections, queues, members, leader
}

public enum LogLevel: String, Sendable, Comparable, CaseIterable {
    case debug, info, warning, error

    public static func < (a: Self, b: Self) -> Bool {
        allCases.firstIndex(of: a).map { x in allCases.firstIndex(of: b).map { x < $0 } ?? false } ?? false
    }
}

/// Something that people and programs may want to hear of (`coterie events`).
public struct NodeEvent: Hashable, Sendable {
    /// `member.join`, `leader.change`, …: the kinds of DESIGN 3.2.
    public var kind: String
    public var subject: JSONValue

    public init(kind: String, subject: JSONValue) {
        self.kind = kind
        self.subject = subject
    }
}
