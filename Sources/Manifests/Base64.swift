// RFC 4648, section 4, without line breaks; strict on input.

enum Base64 {
    private static let alphabet = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)

    static func encode(_ bytes: [UInt8]) -> String {
        var out: [UInt8] = []
        out.reserveCapacity((bytes.count + 2) / 3 * 4)
        var i = 0
        while i < bytes.count {
            let count = min(3, bytes.count - i)
            var group: UInt32 = 0
            for k in 0..<3 { group = group << 8 | (k < count ? UInt32(bytes[i + k]) : 0) }
            for k in 0..<4 {
                out.append(k <= count ? alphabet[Int(group >> UInt32(18 - 6 * k) & 63)] : UInt8(ascii: "="))
            }
            i += 3
        }
        return String(decoding: out, as: UTF8.self)
    }

    /// Nil unless `text` is whole groups of four with correct padding and no stray bits.
    static func decode(_ text: [UInt8]) -> [UInt8]? {
        guard text.count % 4 == 0 else { return nil }
        var out: [UInt8] = []
        out.reserveCapacity(text.count / 4 * 3)
        var i = 0
        while i < text.count {
            let last = i + 4 == text.count
            let padding = !last ? 0 : text[i + 3] != UInt8(ascii: "=") ? 0 : text[i + 2] != UInt8(ascii: "=") ? 1 : 2
            var group: UInt32 = 0
            for k in 0..<4 {
                guard k >= 4 - padding else {
                    guard let value = value(text[i + k]) else { return nil }
                    group = group << 6 | value
                    continue
                }
                group <<= 6
            }
            let bytes = [UInt8(group >> 16 & 255), UInt8(group >> 8 & 255), UInt8(group & 255)]
            guard bytes[(3 - padding)...].allSatisfy({ $0 == 0 }) else { return nil }
            out += bytes[..<(3 - padding)]
            i += 4
        }
        return out
    }

    private static func value(_ byte: UInt8) -> UInt32? {
        switch byte {
        case 65...90: UInt32(byte - 65)
        case 97...122: UInt32(byte - 71)
        case 48...57: UInt32(byte + 4)
        case UInt8(ascii: "+"): 62
        case UInt8(ascii: "/"): 63
        default: nil
        }
    }
}
