import Model

// Prepared segments: files of zeros under a name of their own, so that the log never waits for space or for the file
// system to extend a file (overwriting zeroed blocks costs a third of extending: one sync without metadata). They are
// made, or made from retired segments, a slice at a time while the disk is idle.

struct SpareSegment: Sendable {
    let name: String
    let bytes: Int
    /// Zero and synced up to here.
    private(set) var preparedBytes: Int
    /// What is in the file may already be zero: look before writing.
    private let mayBeZero: Bool

    var isReady: Bool { preparedBytes == bytes }

    static func isSpare(_ name: String) -> Bool { name.hasPrefix("spare-") }
    static func name(_ number: UInt64) -> String { "spare-\(hexadecimal(number))" }
    static func number(_ name: String) -> UInt64? { isSpare(name) ? UInt64(name.dropFirst(6), radix: 16) : nil }

    init(name: String, bytes: Int, mayBeZero: Bool) {
        self.name = name
        self.bytes = bytes
        self.mayBeZero = mayBeZero
        preparedBytes = 0
    }

    /// Zeroes and syncs the next slice. After an error the slice is done again the next time.
    mutating func prepareSlice(_ disk: any Disk, limit: Int) throws(DiskError) {
        let count = min(limit, bytes - preparedBytes)
        guard count > 0 else { return }
        let file = try disk.open(name, preparedBytes == 0 && !mayBeZero ? .create : .readWrite)
        defer { disk.close(file) }
        var needed = true
        if mayBeZero {
            let present = try disk.read(file, at: UInt64(preparedBytes), count: count)
            needed = present.count < count || !present.withUnsafeBytes { isZero($0) }
        }
        if needed {
            try disk.write(file, at: UInt64(preparedBytes), [UInt8](repeating: 0, count: count))
            try disk.sync(file)
        }
        preparedBytes += count
    }

    /// Somebody wrote into it and failed.
    mutating func spoil() { preparedBytes = 0 }
}
