// What is asked of the lease machine and what it answers, and both as bytes.
import Model
import Wire

/// Bounds of one lease and of all together.
public enum LeaseLimits {
    public static let keys = 65_536
    public static let keyBytes = 512
    public static let holderBytes = 512
    /// Pairs of `info`, and the longest key or value of one.
    public static let infoPairs = 16
    public static let infoBytes = 1_024
    public static let minimumTTLMilliseconds: UInt64 = 100
    public static let maximumTTLMilliseconds: UInt64 = 3_600_000
}

public enum LeaseCommand: Hashable, Sendable {
    /// `holder` is unique to one campaign of one process. By the present holder it is a renewal: same token.
    case acquire(key: String, holder: String, info: [String: String], ttlMilliseconds: UInt64)
    /// Puts the end off to now + TTL.
    case renew(key: String, token: UInt64)
    case release(key: String, token: UInt64)
    /// Whether `token` is held now; changes nothing.
    case check(key: String, token: UInt64)

    public var key: String {
        switch self {
        case .acquire(let key, _, _, _), .renew(let key, _), .release(let key, _), .check(let key, _): key
        }
    }
}

/// One lease as seen at some moment.
public struct LeaseView: Hashable, Sendable {
    public var key: String
    /// Nil while nobody holds it.
    public var holder: LeaseHolder?
    /// The newest token ever granted for the key that is still known; 0 if none.
    public var token: UInt64
    /// Of the present or last grant.
    public var ttlMilliseconds: UInt64
    /// 0 while nobody holds it.
    public var expiresInMilliseconds: UInt64

    public init(
        key: String, holder: LeaseHolder?, token: UInt64, ttlMilliseconds: UInt64, expiresInMilliseconds: UInt64
    ) {
        self.key = key
        self.holder = holder
        self.token = token
        self.ttlMilliseconds = ttlMilliseconds
        self.expiresInMilliseconds = expiresInMilliseconds
    }
}

public struct LeaseHolder: Hashable, Sendable {
    /// Unique to one campaign.
    public var id: String
    /// For people and documents: `pod`, `node`, `name`, …
    public var info: [String: String]

    public init(id: String, info: [String: String] = [:]) {
        self.id = id
        self.info = info
    }
}

public enum LeaseResult: Hashable, Sendable {
    case granted(token: UInt64, expiresInMilliseconds: UInt64)
    /// Somebody else has it.
    case held(LeaseView)
    case renewed(expiresInMilliseconds: UInt64)
    case released
    /// The answer to a check: the token is the newest one and held.
    case valid(expiresInMilliseconds: UInt64)
    /// The token is not (any more) that of the holder. `newest` is the last one granted for the key, 0 if unknown; if it
    /// equals the token asked about, the lease has ended and nobody has followed yet.
    case lost(newest: UInt64)
    case refused(CoterieError.Code, String)
}

// MARK: - Codec

extension LeaseHolder {
    func encode(into writer: inout ByteWriter) {
        writer.string(id)
        writer.stringMap(info)
    }

    init(decoding reader: inout ByteReader) throws(WireError) {
        self.init(
            id: try reader.string(max: LeaseLimits.holderBytes),
            info: try reader.stringMap(
                maxCount: LeaseLimits.infoPairs, keyBytes: LeaseLimits.infoBytes, valueBytes: LeaseLimits.infoBytes))
    }
}

extension LeaseView {
    public func encode(into writer: inout ByteWriter) {
        writer.string(key)
        writer.optional(holder) { $1.encode(into: &$0) }
        writer.varint(token)
        writer.varint(ttlMilliseconds)
        writer.varint(expiresInMilliseconds)
    }

    public init(decoding reader: inout ByteReader) throws(WireError) {
        self.init(
            key: try reader.string(max: LeaseLimits.keyBytes),
            holder: try reader.optional { (r: inout ByteReader) throws(WireError) in try LeaseHolder(decoding: &r) },
            token: try reader.varint(), ttlMilliseconds: try reader.varint(), expiresInMilliseconds: try reader.varint()
        )
    }
}

extension LeaseCommand {
    public func encode(into writer: inout ByteWriter) {
        switch self {
        case .acquire(let key, let holder, let info, let ttl):
            writer.u8(1)
            writer.string(key)
            LeaseHolder(id: holder, info: info).encode(into: &writer)
            writer.varint(ttl)
        case .renew(let key, let token): LeaseCommand.encode(2, key, token, into: &writer)
        case .release(let key, let token): LeaseCommand.encode(3, key, token, into: &writer)
        case .check(let key, let token): LeaseCommand.encode(4, key, token, into: &writer)
        }
    }

    private static func encode(_ kind: UInt8, _ key: String, _ token: UInt64, into writer: inout ByteWriter) {
        writer.u8(kind)
        writer.string(key)
        writer.varint(token)
    }

    public init(decoding reader: inout ByteReader) throws(WireError) {
        let at = reader.position
        let kind = try reader.u8()
        guard (1...4).contains(kind) else { throw .invalid(at: at, what: "lease command") }
        let key = try reader.string(max: LeaseLimits.keyBytes)
        switch kind {
        case 1:
            let holder = try LeaseHolder(decoding: &reader)
            self = .acquire(key: key, holder: holder.id, info: holder.info, ttlMilliseconds: try reader.varint())
        case 2: self = .renew(key: key, token: try reader.varint())
        case 3: self = .release(key: key, token: try reader.varint())
        default: self = .check(key: key, token: try reader.varint())
        }
    }
}

extension LeaseResult {
    public func encode(into writer: inout ByteWriter) {
        switch self {
        case .granted(let token, let expires):
            writer.u8(1)
            writer.varint(token)
            writer.varint(expires)
        case .held(let view):
            writer.u8(2)
            view.encode(into: &writer)
        case .renewed(let expires):
            writer.u8(3)
            writer.varint(expires)
        case .released: writer.u8(4)
        case .valid(let expires):
            writer.u8(5)
            writer.varint(expires)
        case .lost(let newest):
            writer.u8(6)
            writer.varint(newest)
        case .refused(let code, let message):
            writer.u8(7)
            writer.errorCode(code)
            writer.string(message)
        }
    }

    public init(decoding reader: inout ByteReader) throws(WireError) {
        let at = reader.position
        switch try reader.u8() {
        case 1: self = .granted(token: try reader.varint(), expiresInMilliseconds: try reader.varint())
        case 2: self = .held(try LeaseView(decoding: &reader))
        case 3: self = .renewed(expiresInMilliseconds: try reader.varint())
        case 4: self = .released
        case 5: self = .valid(expiresInMilliseconds: try reader.varint())
        case 6: self = .lost(newest: try reader.varint())
        case 7: self = .refused(try reader.errorCode(), try reader.string(max: 4_096))
        default: throw .invalid(at: at, what: "lease result")
        }
    }
}
