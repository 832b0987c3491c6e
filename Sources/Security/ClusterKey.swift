// The one secret of a cluster. Whoever has it is a member or an operator; everything else is derived from it.
import COpenSSL

/// 32 random bytes. Copies share one TLS context, so that a session costs its handshake only.
public struct ClusterKey: Sendable, Equatable, CustomStringConvertible, CustomDebugStringConvertible, CustomReflectable
{
    public static let byteCount = 32

    public let bytes: [UInt8]
    let context: TLSContext
    /// What datagram keys are expanded from.
    let datagramSecret: [UInt8]

    public init(_ bytes: [UInt8]) throws(SecurityError) {
        guard bytes.count == ClusterKey.byteCount else { throw .keyLength(bytes.count) }
        self.bytes = bytes
        let secret = try KeyDerivation.extract(salt: Array("coterie cluster key v1".utf8), secret: bytes)
        context = try TLSContext(psk: KeyDerivation.expand(secret, info: Array("tls psk".utf8), count: 32))
        datagramSecret = try KeyDerivation.expand(secret, info: Array("datagram secret".utf8), count: 32)
    }

    /// A new key from the system's random source.
    public static func random() throws(SecurityError) -> ClusterKey {
        var bytes = [UInt8](repeating: 0, count: byteCount)
        guard RAND_priv_bytes(&bytes, Int32(byteCount)) == 1 else { throw libraryError() }
        return try ClusterKey(bytes)
    }

    /// Takes the same time whatever differs.
    public static func == (a: Self, b: Self) -> Bool { CRYPTO_memcmp(a.bytes, b.bytes, byteCount) == 0 }

    // A key must not get into a log by accident.
    public var description: String { "ClusterKey(secret)" }
    public var debugDescription: String { description }
    public var customMirror: Mirror { Mirror(self, children: []) }
}
