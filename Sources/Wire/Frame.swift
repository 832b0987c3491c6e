import Model

/// One frame on a stream between nodes, clients and pods:
///
///     length u32 (of what follows) | kind u8 | channel u32 | payload
///
/// `kind` is the message type, `channel` tells apart the exchanges that share a connection (0 where there is one only).
/// The format's version is agreed in the first frame of a connection (`Hello`), not repeated in each.
public struct Frame: Hashable, Sendable {
    public static let headerBytes = 9

    public var kind: UInt8
    public var channel: UInt32
    public var payload: [UInt8]

    public init(kind: UInt8, channel: UInt32, payload: [UInt8]) {
        self.kind = kind
        self.channel = channel
        self.payload = payload
    }

    /// `payload` may be at most ``Limits/frameBytes`` − 5; a larger one is a bug of the caller.
    public func encode(into writer: inout ByteWriter) {
        precondition(payload.count <= Limits.frameBytes - 5, "frame over the limit")
        writer.u32(UInt32(payload.count + 5))
        writer.u8(kind)
        writer.u32(channel)
        writer.raw(payload)
    }

    public var encoded: [UInt8] {
        var writer = ByteWriter(capacity: payload.count + Frame.headerBytes)
        encode(into: &writer)
        return writer.bytes
    }
}

/// Cuts a byte stream into frames. Memory is bounded by one frame: a length over the limit is refused as soon as its four
/// bytes are there.
public struct FrameDecoder: Sendable {
    private var buffer: [UInt8] = []
    private var start = 0
    /// Largest frame that is taken, header excluded; may be raised.
    public var limit: Int

    public init(limit: Int = Limits.frameBytes) { self.limit = limit }

    /// Bytes held that do not make a whole frame yet.
    public var pendingBytes: Int { buffer.count - start }

    public mutating func feed(_ bytes: some Sequence<UInt8>) {
        forgetConsumed()
        buffer.append(contentsOf: bytes)
    }

    /// The same for what streams hand on: appended as memory.
    public mutating func feed(_ bytes: ArraySlice<UInt8>) {
        forgetConsumed()
        buffer.append(contentsOf: bytes)
    }

    private mutating func forgetConsumed() {
        guard start > 0, start == buffer.count || start >= 65_536 else { return }
        buffer.removeFirst(start)
        start = 0
    }

    /// Gives up framing: the bytes that follow the last frame, when the connection goes on as a raw stream.
    public mutating func takePending() -> [UInt8] {
        defer {
            buffer = []
            start = 0
        }
        return Array(buffer[start...])
    }

    /// The next whole frame, or nil if more bytes are needed. After an error the stream can not be read further.
    public mutating func next() throws(WireError) -> Frame? {
        guard pendingBytes >= 4 else { return nil }
        var reader = ByteReader(buffer[start...])
        let length = Int(try reader.u32())
        guard length <= limit else { throw .tooLong(at: 0, length: length, limit: limit) }
        guard length >= 5 else { throw .invalid(at: 0, what: "frame length") }
        guard pendingBytes >= 4 + length else { return nil }
        let kind = try reader.u8()
        let channel = try reader.u32()
        let payload = Array(try reader.raw(length - 5))
        start += 4 + length
        if start == buffer.count {
            buffer.removeAll(keepingCapacity: buffer.capacity <= 1 << 20)
            start = 0
        }
        return Frame(kind: kind, channel: channel, payload: payload)
    }
}
