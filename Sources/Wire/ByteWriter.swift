import Model

/// Appends values to a growing buffer, in the form that ``ByteReader`` reads. Integers are little-endian.
public struct ByteWriter: Sendable {
    public private(set) var bytes: [UInt8]

    public init(capacity: Int = 0) {
        bytes = []
        bytes.reserveCapacity(capacity)
    }

    public var count: Int { bytes.count }

    /// What was written so far, which the writer forgets; it goes on with room for as much.
    public mutating func take() -> [UInt8] {
        let taken = bytes
        bytes = []
        bytes.reserveCapacity(taken.count)
        return taken
    }

    public mutating func u8(_ value: UInt8) { bytes.append(value) }
    public mutating func bool(_ value: Bool) { bytes.append(value ? 1 : 0) }
    public mutating func u16(_ value: UInt16) { fixed(value) }
    public mutating func u32(_ value: UInt32) { fixed(value) }
    public mutating func u64(_ value: UInt64) { fixed(value) }
    public mutating func i64(_ value: Int64) { fixed(UInt64(bitPattern: value)) }
    public mutating func f64(_ value: Double) { fixed(value.bitPattern) }

    @inline(__always)
    private mutating func fixed<T: FixedWidthInteger>(_ value: T) {
        // Byte by byte: the standard library's way of appending raw memory costs ten times as much.
        for i in 0..<MemoryLayout<T>.size { bytes.append(UInt8(truncatingIfNeeded: value >> T(8 * i))) }
    }

    public mutating func varint(_ value: UInt64) {
        var rest = value
        while rest >= 0x80 {
            bytes.append(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        bytes.append(UInt8(rest))
    }

    public mutating func count(_ value: Int) { varint(UInt64(value)) }

    /// Bytes without a length.
    public mutating func raw(_ value: some Sequence<UInt8>) { bytes.append(contentsOf: value) }
    public mutating func raw(_ value: [UInt8]) { bytes.append(contentsOf: value) }

    /// Varint length, then the bytes.
    public mutating func slice(_ value: some Collection<UInt8>) {
        varint(UInt64(value.count))
        bytes.append(contentsOf: value)
    }

    public mutating func slice(_ value: [UInt8]) {
        varint(UInt64(value.count))
        bytes.append(contentsOf: value)
    }

    public mutating func slice(_ value: ArraySlice<UInt8>) {
        varint(UInt64(value.count))
        bytes.append(contentsOf: value)
    }

    public mutating func string(_ value: String) {
        var text = value
        text.withUTF8 {
            varint(UInt64($0.count))
            bytes.append(contentsOf: $0)
        }
    }

    public mutating func nodeID(_ value: NodeID) {
        u64(value.high)
        u64(value.low)
    }

    public mutating func address(_ value: SocketAddress) {
        switch value.host {
        case .v4(let host):
            u8(4)
            u32(host)
            u16(value.port)
        case .v6(let high, let low):
            u8(6)
            u64(high)
            u64(low)
            u16(value.port)
        case .unix(let path):
            u8(1)
            string(path)
        }
    }

    public mutating func optional<T>(_ value: T?, _ write: (inout ByteWriter, T) -> Void) {
        bool(value != nil)
        if let value { write(&self, value) }
    }

    /// Overwrites four bytes that were written earlier: a length or checksum known only afterwards.
    public mutating func patch(u32 value: UInt32, at offset: Int) {
        for i in 0..<4 { bytes[offset + i] = UInt8(truncatingIfNeeded: value >> UInt32(8 * i)) }
    }
}
