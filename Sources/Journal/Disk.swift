import Wire

// The seam between the journal and storage: one directory of plain files, synchronous calls, meant for a thread of its own.
// `Node` implements it with the operating system, `Simulator` with a disk that loses, tears and damages what was written.

/// One directory. Names are single path components. Calls block; an implementation is used by one thread at a time.
///
/// What durability means: bytes of a file are on stable storage after `sync(file)` returned; names (creation, rename,
/// removal) after `syncDirectory()` returned. Before that a crash may keep any of it or none.
public protocol Disk: AnyObject, Sendable {
    /// Names of all files, in any order.
    func list() throws(DiskError) -> [String]
    func open(_ name: String, _ mode: DiskOpenMode) throws(DiskError) -> DiskFile
    func close(_ file: DiskFile)
    func size(_ file: DiskFile) throws(DiskError) -> UInt64
    /// Up to `count` bytes; fewer only at the end of the file.
    func read(_ file: DiskFile, at offset: UInt64, count: Int) throws(DiskError) -> [UInt8]
    /// Writes all of `bytes`, or throws; then any part may have been written. Extends the file if need be.
    func write(_ file: DiskFile, at offset: UInt64, _ bytes: UnsafeRawBufferPointer) throws(DiskError)
    /// The contents, and whatever of the metadata is needed to read them (fdatasync).
    func sync(_ file: DiskFile) throws(DiskError)
    /// ``write(_:at:_:)`` and ``sync(_:)`` of the file; in one call where that can be.
    func writeDurably(_ file: DiskFile, at offset: UInt64, _ bytes: UnsafeRawBufferPointer) throws(DiskError)
    /// Replaces `new` if it exists.
    func rename(_ old: String, to new: String) throws(DiskError)
    /// No error if there is no such file.
    func remove(_ name: String) throws(DiskError)
    func syncDirectory() throws(DiskError)
}

/// An open file of a ``Disk``.
public struct DiskFile: Hashable, Sendable {
    public var descriptor: Int32
    public init(descriptor: Int32) { self.descriptor = descriptor }
}

public enum DiskOpenMode: Hashable, Sendable {
    case readOnly
    case readWrite
    /// Reading and writing; made if absent, emptied if present.
    case create
}

/// A failed call to the disk.
public struct DiskError: Error, Hashable, Sendable, CustomStringConvertible {
    public enum Kind: Hashable, Sendable {
        case notFound
        /// No space, or over quota.
        case noSpace
        case readOnly
        case io
        /// Anything else: errno.
        case other(Int32)
    }

    public var kind: Kind
    /// `open`, `write`, `fdatasync`, …
    public var operation: String
    public var name: String

    public init(_ kind: Kind, operation: String, name: String) {
        self.kind = kind
        self.operation = operation
        self.name = name
    }

    public var description: String {
        let why =
            switch kind {
            case .notFound: "no such file"
            case .noSpace: "no space left"
            case .readOnly: "read-only file system"
            case .io: "input/output error"
            case .other(let errno): "errno \(errno)"
            }
        return "\(operation) \(name): \(why)"
    }
}

extension Disk {
    public func writeDurably(_ file: DiskFile, at offset: UInt64, _ bytes: UnsafeRawBufferPointer) throws(DiskError) {
        try write(file, at: offset, bytes)
        try sync(file)
    }

    func write(_ file: DiskFile, at offset: UInt64, _ bytes: [UInt8]) throws(DiskError) {
        try carry(bytes) { bytes throws(DiskError) in try write(file, at: offset, bytes) }
    }

    func writeDurably(_ file: DiskFile, at offset: UInt64, _ bytes: [UInt8]) throws(DiskError) {
        try carry(bytes) { bytes throws(DiskError) in try writeDurably(file, at: offset, bytes) }
    }

    private func carry(_ bytes: [UInt8], _ body: (UnsafeRawBufferPointer) throws(DiskError) -> Void) throws(DiskError) {
        // A closure passed to withUnsafeBytes can not throw typed errors through `rethrows`, so the result is carried out.
        let result = bytes.withUnsafeBytes { buffer -> Result<Void, DiskError> in
            do throws(DiskError) {
                try body(buffer)
                return .success(())
            } catch {
                return .failure(error)
            }
        }
        try result.get()
    }

    /// The whole file, which may be at most `limit` bytes.
    func readWhole(_ file: DiskFile, limit: Int) throws(DiskError) -> [UInt8] {
        let size = try size(file)
        guard size <= UInt64(limit) else {
            throw DiskError(.other(27), operation: "read over the limit", name: "#\(file.descriptor)")
        }
        return try read(file, at: 0, count: Int(size))
    }
}
