import Model
import Wire

/// The first frame on a stream: who speaks, which versions it understands, and what it wants to be.
public struct Hello: Hashable, Sendable {
    public enum Role: Hashable, Sendable {
        /// Another node. `incarnation` is its start counter.
        case node(NodeID, incarnation: UInt64, cluster: String)
        /// A program or the command line, with the cluster's key or on the local socket.
        case client
    }

    /// Versions of the stream protocol that this build speaks.
    public static let minimumProtocol: UInt8 = 1
    public static let maximumProtocol: UInt8 = 1

    public var minimum: UInt8
    public var maximum: UInt8
    public var role: Role

    public init(minimum: UInt8 = Hello.minimumProtocol, maximum: UInt8 = Hello.maximumProtocol, role: Role) {
        self.minimum = minimum
        self.maximum = maximum
        self.role = role
    }

    /// The highest version both sides speak, or nil.
    public var agreedProtocol: UInt8? {
        let high = min(maximum, Hello.maximumProtocol)
        return high >= max(minimum, Hello.minimumProtocol) ? high : nil
    }

    public var encoded: [UInt8] {
        var writer = ByteWriter()
        writer.u8(minimum)
        writer.u8(maximum)
        switch role {
        case .node(let id, let incarnation, let cluster):
            writer.u8(1)
            writer.nodeID(id)
            writer.u64(incarnation)
            writer.string(cluster)
        case .client:
            writer.u8(2)
        }
        return writer.bytes
    }

    public init(decoding bytes: [UInt8]) throws(WireError) {
        var reader = ByteReader(bytes)
        minimum = try reader.u8()
        maximum = try reader.u8()
        let at = reader.position
        switch try reader.u8() {
        case 1:
            role = .node(
                try reader.nodeID(), incarnation: try reader.u64(), cluster: try reader.string(max: Limits.nameBytes))
        case 2: role = .client
        default: throw .invalid(at: at, what: "role")
        }
        // Later versions may append fields; an old reader skips them.
    }
}

/// The answer to an accepted ``Hello``.
public struct Welcome: Hashable, Sendable {
    public var agreedProtocol: UInt8
    public var node: NodeID
    public var name: String

    public init(agreedProtocol: UInt8, node: NodeID, name: String) {
        self.agreedProtocol = agreedProtocol
        self.node = node
        self.name = name
    }

    public var encoded: [UInt8] {
        var writer = ByteWriter()
        writer.u8(agreedProtocol)
        writer.nodeID(node)
        writer.string(name)
        return writer.bytes
    }

    public init(decoding bytes: [UInt8]) throws(WireError) {
        var reader = ByteReader(bytes)
        agreedProtocol = try reader.u8()
        node = try reader.nodeID()
        name = try reader.string(max: Limits.nameBytes)
    }
}

extension CoterieError {
    public var encoded: [UInt8] {
        var writer = ByteWriter()
        encode(into: &writer)
        return writer.bytes
    }

    public func encode(into writer: inout ByteWriter) {
        writer.string(code.rawValue)
        writer.string(message)
        writer.optional(hint) { $0.string($1) }
    }

    public init(decoding reader: inout ByteReader) throws(WireError) {
        let at = reader.position
        guard let code = Code(rawValue: try reader.string(max: 64)) else { throw .invalid(at: at, what: "error code") }
        self.init(
            code, try reader.string(max: 65_536),
            hint: try reader.optional { (r: inout ByteReader) throws(WireError) in try r.string(max: 65_536) })
    }
}
