/// The kinds of ``Wire/Frame`` on a stream, all roles together. The first frame of every connection is `hello`, its answer
/// `welcome` or `refused`; what may follow depends on the role that the hello named.
public enum FrameKind: UInt8, Sendable, CaseIterable {
    // Opening.
    case hello = 1
    case welcome = 2
    case refused = 3

    // Client or pod to node (`request`, `cancel`) and back, told apart by channel.
    case request = 10
    case response = 11
    /// One item of a watch; more follow until `end`.
    case item = 12
    case end = 13
    case cancel = 14

    // Raw streams between named services: after `connected` the connection carries bytes, no frames.
    case dial = 20
    case listen = 21
    case incoming = 22
    case accept = 23
    case connected = 24

    // Node to node.
    case raft = 40
    case forward = 41
    case forwarded = 42
    case readIndex = 43
    case readIndexReply = 44
    case pushPull = 45
    case bootstrapAsk = 46
    case bootstrapPromise = 47
    /// The sender stops on purpose: the end of the stream that follows is no evidence of a crash.
    case goodbye = 48
    case forwardAdmin = 49
    /// The origin of a forwarded command does not wait for it any more.
    case forwardCancel = 50
    /// To a node that asks for votes although it was removed by order.
    case removed = 51
}
