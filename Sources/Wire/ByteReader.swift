import Model

/// Why bytes could not be decoded; the reader's position tells where. No state has changed.
public enum WireError: Error, Hashable, Sendable, CustomStringConvertible {
    case truncated(at: Int)
    case tooLong(at: Int, length: Int, limit: Int)
    case invalid(at: Int, what: String)
    case trailingBytes(at: Int)

    public var description: String {
        switch self {
        case .truncated(let at): "truncated at byte \(at)"
        case .tooLong(let at, let length, let limit): "length \(length) at byte \(at) is over the limit of \(limit)"
        case .invalid(let at, let what): "invalid \(what) at byte \(at)"
        case .trailingBytes(let at): "unexpected bytes after the end, at byte \(at)"
        }
    }
}

/// A bounded cursor over bytes. Every read checks the length before it allocates or moves; integers are little-endian.
public struct ByteReader: Sendable {
    public let bytes: ArraySlice<UInt8>
    /// Index into `bytes` of the next byte.
    private var cursor: Int

    public init(_ bytes: [UInt8]) { self.init(bytes[...]) }
    public init(_ bytes: ArraySlice<UInt8>) {
        self.bytes = bytes
        cursor = bytes.startIndex
    }

    /// Bytes consumed so far.
    public var position: Int { cursor - bytes.startIndex }
    public var remaining: Int { bytes.endIndex - cursor }
    public var isAtEnd: Bool { remaining == 0 }

    public mutating func u8() throws(WireError) -> UInt8 {
        guard remaining >= 1 else { throw .truncated(at: position) }
        defer { cursor += 1 }
        return bytes[cursor]
    }

    public mutating func bool() throws(WireError) -> Bool {
        let at = position
        switch try u8() {
        case 0: return false
        case 1: return true
        default: throw .invalid(at: at, what: "boolean")
        }
    }

    public mutating func u16() throws(WireError) -> UInt16 { try fixed(UInt16.self) }
    public mutating func u32() throws(WireError) -> UInt32 { try fixed(UInt32.self) }
    public mutating func u64() throws(WireError) -> UInt64 { try fixed(UInt64.self) }
    public mutating func i64() throws(WireError) -> Int64 { Int64(bitPattern: try fixed(UInt64.self)) }
    public mutating func f64() throws(WireError) -> Double { Double(bitPattern: try fixed(UInt64.self)) }

    @inline(__always)
    private mutating func fixed<T: FixedWidthInteger & BitwiseCopyable>(_ type: T.Type) throws(WireError) -> T {
        guard remaining >= MemoryLayout<T>.size else { throw .truncated(at: position) }
        let offset = position
        cursor += MemoryLayout<T>.size
        return T(littleEndian: bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: T.self) })
    }

    /// LEB128, at most ten bytes, shortest form only.
    public mutating func varint() throws(WireError) -> UInt64 {
        let at = position
        if remaining > 0, bytes[cursor] < 0x80 {
            defer { cursor += 1 }
            return UInt64(bytes[cursor])
        }
        var value: UInt64 = 0
        var shift: UInt64 = 0
        while true {
            let byte = try u8()
            if shift == 63 && byte > 1 { throw .invalid(at: at, what: "varint") }
            value |= UInt64(byte & 0x7F) << shift
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 { throw .invalid(at: at, what: "varint") }
                return value
            }
            shift += 7
            if shift > 63 { throw .invalid(at: at, what: "varint") }
        }
    }

    /// A count that precedes that many items, each of at least `itemBytes` bytes, so that the count is bounded by what
    /// is really there.
    public mutating func count(max limit: Int, itemBytes: Int = 1) throws(WireError) -> Int {
        let at = position
        let value = try varint()
        guard value <= UInt64(limit) else { throw .tooLong(at: at, length: Int(clamping: value), limit: limit) }
        guard Int(value) <= remaining / Swift.max(itemBytes, 1) else { throw .truncated(at: at) }
        return Int(value)
    }

    /// Exactly `count` raw bytes, as a view without copying.
    public mutating func raw(_ count: Int) throws(WireError) -> ArraySlice<UInt8> {
        guard count >= 0, remaining >= count else { throw .truncated(at: position) }
        defer { cursor += count }
        return bytes[cursor..<cursor + count]
    }

    /// Varint length, then bytes: a view without copying.
    public mutating func slice(max limit: Int) throws(WireError) -> ArraySlice<UInt8> {
        let at = position
        let length = try varint()
        guard length <= UInt64(limit) else { throw .tooLong(at: at, length: Int(clamping: length), limit: limit) }
        return try raw(Int(length))
    }

    /// Varint length, then bytes, copied.
    public mutating func array(max limit: Int) throws(WireError) -> [UInt8] { Array(try slice(max: limit)) }

    /// Varint length, then UTF-8, validated.
    public mutating func string(max limit: Int) throws(WireError) -> String {
        let at = position
        let slice = try slice(max: limit)
        // Names are short and plain: those need no second look.
        if slice.allSatisfy({ $0 < 0x80 }) {
            return slice.withUnsafeBufferPointer { String(decoding: $0, as: UTF8.self) }
        }
        guard let text = String(validating: slice, as: UTF8.self) else { throw .invalid(at: at, what: "UTF-8") }
        return text
    }

    /// All that is left.
    public mutating func rest() -> ArraySlice<UInt8> {
        defer { cursor = bytes.endIndex }
        return bytes[cursor...]
    }

    public func finish() throws(WireError) {
        guard isAtEnd else { throw .trailingBytes(at: position) }
    }
}

extension ByteReader {
    public mutating func nodeID() throws(WireError) -> NodeID { NodeID(high: try u64(), low: try u64()) }

    public mutating func address() throws(WireError) -> SocketAddress {
        let at = position
        switch try u8() {
        case 4: return SocketAddress(host: .v4(try u32()), port: try u16())
        case 6: return SocketAddress(host: .v6(high: try u64(), low: try u64()), port: try u16())
        case 1: return SocketAddress(host: .unix(path: try string(max: 107)), port: 0)
        default: throw .invalid(at: at, what: "address family")
        }
    }

    public mutating func optional<T>(_ read: (inout ByteReader) throws(WireError) -> T) throws(WireError) -> T? {
        try bool() ? try read(&self) : nil
    }
}
