// Base64 (RFC 4648, section 4) for bodies that are not text.

public enum Base64 {
    private static let alphabet = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)

    public static func encode(_ bytes: [UInt8]) -> String {
        var out: [UInt8] = []
        out.reserveCapacity((bytes.count + 2) / 3 * 4)
        for start in stride(from: 0, to: bytes.count, by: 3) {
            let group = bytes[start..<min(start + 3, bytes.count)]
            var value: UInt32 = 0
            for byte in group { value = value << 8 | UInt32(byte) }
            value <<= UInt32(8 * (3 - group.count))
            for position in 0..<4 {
                out.append(
                    position <= group.count ? alphabet[Int(value >> UInt32(18 - 6 * position)) & 63] : UInt8(ascii: "=")
                )
            }
        }
        return String(decoding: out, as: UTF8.self)
    }

    /// Nil for anything that ``encode(_:)`` would not have written.
    public static func decode(_ text: some StringProtocol) -> [UInt8]? {
        let bytes = Array(text.utf8)
        guard bytes.count % 4 == 0 else { return nil }
        var out: [UInt8] = []
        for start in stride(from: 0, to: bytes.count, by: 4) {
            var value: UInt32 = 0
            var padding = 0
            for byte in bytes[start..<start + 4] {
                if byte == UInt8(ascii: "=") {
                    padding += 1
                    value <<= 6
                    continue
                }
                guard padding == 0, let digit = digit(byte) else { return nil }
                value = value << 6 | digit
            }
            guard padding == 0 || (padding < 3 && start + 4 == bytes.count) else { return nil }
            let whole = [UInt8(value >> 16 & 255), UInt8(value >> 8 & 255), UInt8(value & 255)]
            guard whole.suffix(padding).allSatisfy({ $0 == 0 }) else { return nil }
            out.append(contentsOf: whole.prefix(3 - padding))
        }
        return out
    }

    private static func digit(_ byte: UInt8) -> UInt32? {
        switch byte {
        case UInt8(ascii: "A")...UInt8(ascii: "Z"): UInt32(byte - UInt8(ascii: "A"))
        case UInt8(ascii: "a")...UInt8(ascii: "z"): UInt32(byte - UInt8(ascii: "a")) + 26
        case UInt8(ascii: "0")...UInt8(ascii: "9"): UInt32(byte - UInt8(ascii: "0")) + 52
        case UInt8(ascii: "+"): 62
        case UInt8(ascii: "/"): 63
        default: nil
        }
    }
}
