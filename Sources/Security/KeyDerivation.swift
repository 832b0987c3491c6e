// HKDF with SHA-256 (RFC 5869) over OpenSSL's HMAC. One cluster key makes many keys, each for one purpose: none of them
// tells anything about another.
import COpenSSL

enum KeyDerivation {
    static let hashBytes = 32

    /// RFC 5869, 2.2: a pseudorandom key of 32 bytes.
    static func extract(salt: [UInt8], secret: [UInt8]) throws(SecurityError) -> [UInt8] {
        try hmac(key: salt.isEmpty ? [UInt8](repeating: 0, count: hashBytes) : salt, secret)
    }

    /// RFC 5869, 2.3; `count` is at most 255 · 32.
    static func expand(_ key: [UInt8], info: [UInt8], count: Int) throws(SecurityError) -> [UInt8] {
        precondition(count <= 255 * hashBytes, "HKDF gives at most 8160 bytes")
        var output: [UInt8] = []
        var block: [UInt8] = []
        var number: UInt8 = 1
        while output.count < count {
            block = try hmac(key: key, block + info + [number])
            output += block
            number &+= 1
        }
        return Array(output[..<count])
    }

    private static func hmac(key: [UInt8], _ message: [UInt8]) throws(SecurityError) -> [UInt8] {
        var code = [UInt8](repeating: 0, count: hashBytes)
        var count: UInt32 = 0
        guard HMAC(EVP_sha256(), key, Int32(key.count), message, message.count, &code, &count) != nil,
            Int(count) == hashBytes
        else {
            throw libraryError()
        }
        return code
    }
}
