import Journal
import Model

/// A disk in memory that behaves as badly as a real one may. What was written but not synced is lost at a crash sector by
/// sector, each with whichever of its versions chance picks; names that were not synced are lost from some operation on, as a
/// journalling file system loses them. On demand it is full, fails a sync (and forgets what that sync should have written),
/// flips bits, or stops dead after a number of operations.
///
/// `@unchecked Sendable`: all calls come from the one thread of the simulation that owns it; nothing is shared.
public final class SimulatedDisk: Disk, @unchecked Sendable {
    public static let sector = 512

    private final class File {
        /// What a crash leaves.
        var durable: [UInt8] = []
        /// What reads see.
        var current: [UInt8] = []
        /// Per sector written since the last sync, its versions, oldest first; the durable one is not among them.
        var pending: [Int: [[UInt8]]] = [:]
        /// Per sector that a sync changed, what it was before.
        var before: [Int: [UInt8]] = [:]
    }

    private enum NameChange {
        case create(String, File)
        case rename(String, String)
        case remove(String)
    }

    private var names: [String: File] = [:]
    private var durableNames: [String: File] = [:]
    private var nameChanges: [NameChange] = []
    private var open: [Int32: (file: File, name: String)] = [:]
    private var nextDescriptor: Int32 = 3

    /// Writes, syncs, renames, removals and creations so far: the places where a crash can be.
    public private(set) var operations = 0
    /// Syncs of files so far.
    public private(set) var syncs = 0
    /// When `operations` reaches this, this and every further call fails until ``crash(using:)``. The operation itself is
    /// half done: a write is pending, nothing is synced.
    public var stopAfter: Int?
    /// Bytes that all files together may take.
    public var capacity = Int.max
    /// The next so many syncs fail.
    public var failingSyncs = 0
    /// The next so many writes fail with an input/output error.
    public var failingWrites = 0

    public init() {}

    private func step(_ operation: String, _ name: String) throws(DiskError) {
        operations += 1
        if let stopAfter, operations >= stopAfter {
            throw DiskError(.io, operation: operation + " (stopped)", name: name)
        }
    }

    public func list() throws(DiskError) -> [String] { names.keys.sorted() }

    public func open(_ name: String, _ mode: DiskOpenMode) throws(DiskError) -> DiskFile {
        let file: File
        switch mode {
        case .readOnly, .readWrite:
            guard let found = names[name] else { throw DiskError(.notFound, operation: "open", name: name) }
            file = found
        case .create:
            try step("create", name)
            // An existing file is replaced by a new one, which is how a truncation that is not synced may look.
            file = File()
            names[name] = file
            nameChanges.append(.create(name, file))
        }
        defer { nextDescriptor += 1 }
        open[nextDescriptor] = (file, name)
        return DiskFile(descriptor: nextDescriptor)
    }

    public func close(_ file: DiskFile) { open[file.descriptor] = nil }

    private func find(_ file: DiskFile, _ operation: String) throws(DiskError) -> (file: File, name: String) {
        guard let found = open[file.descriptor] else {
            throw DiskError(.other(9), operation: operation, name: "#\(file.descriptor)")
        }
        return found
    }

    public func size(_ file: DiskFile) throws(DiskError) -> UInt64 { UInt64(try find(file, "size").file.current.count) }

    public func read(_ file: DiskFile, at offset: UInt64, count: Int) throws(DiskError) -> [UInt8] {
        let bytes = try find(file, "read").file.current
        let start = min(Int(clamping: offset), bytes.count)
        return Array(bytes[start..<min(start + count, bytes.count)])
    }

    public func write(_ file: DiskFile, at offset: UInt64, _ bytes: UnsafeRawBufferPointer) throws(DiskError) {
        let (target, name) = try find(file, "write")
        guard !bytes.isEmpty else { return }
        let end = Int(offset) + bytes.count
        let used = names.values.reduce(0) { $0 + $1.current.count }
        let growth = max(0, end - target.current.count)
        if growth > 0, used + growth > capacity { throw DiskError(.noSpace, operation: "write", name: name) }
        if failingWrites > 0 {
            failingWrites -= 1
            throw DiskError(.io, operation: "write", name: name)
        }
        if growth > 0 { target.current.append(contentsOf: repeatElement(0, count: growth)) }
        target.current.replaceSubrange(Int(offset)..<end, with: bytes)
        for sector in Int(offset) / Self.sector...(end - 1) / Self.sector {
            let start = sector * Self.sector
            target.pending[sector, default: []].append(
                Array(target.current[start..<min(start + Self.sector, target.current.count)]))
        }
        try step("write", name)
    }

    public func sync(_ file: DiskFile) throws(DiskError) {
        let (target, name) = try find(file, "fdatasync")
        try step("fdatasync", name)
        syncs += 1
        if failingSyncs > 0 {
            failingSyncs -= 1
            // As Linux does: the pages count as clean, and are not written by the next sync either.
            target.current =
                target.durable + repeatElement(0, count: max(0, target.current.count - target.durable.count))
            target.pending = [:]
            throw DiskError(.io, operation: "fdatasync", name: name)
        }
        for sector in target.pending.keys {
            let start = sector * Self.sector
            guard start < target.durable.count else { continue }
            target.before[sector] = Array(target.durable[start..<min(start + Self.sector, target.durable.count)])
        }
        target.durable = target.current
        target.pending = [:]
    }

    public func rename(_ old: String, to new: String) throws(DiskError) {
        guard let file = names[old] else { throw DiskError(.notFound, operation: "rename", name: old) }
        names[old] = nil
        names[new] = file
        nameChanges.append(.rename(old, new))
        try step("rename", old)
    }

    public func remove(_ name: String) throws(DiskError) {
        guard names[name] != nil else { return }
        names[name] = nil
        nameChanges.append(.remove(name))
        try step("remove", name)
    }

    public func syncDirectory() throws(DiskError) {
        try step("fsync", ".")
        durableNames = names
        nameChanges = []
    }

    // MARK: Faults

    /// Power is lost and comes back: all open files are gone, and of what was not synced remains what chance leaves.
    public func crash(using generator: inout SeededGenerator) {
        let kept = nameChanges.isEmpty ? 0 : Int(generator.next() % UInt64(nameChanges.count + 1))
        for change in nameChanges[..<kept] {
            switch change {
            case .create(let name, let file): durableNames[name] = file
            case .rename(let old, let new):
                if let file = durableNames.removeValue(forKey: old) { durableNames[new] = file }
            case .remove(let name): durableNames[name] = nil
            }
        }
        names = durableNames
        nameChanges = []
        open = [:]
        stopAfter = nil
        failingSyncs = 0
        failingWrites = 0
        for name in names.keys.sorted() {
            guard let file = names[name] else { continue }
            // Nothing, everything, or any mixture.
            let mode = generator.next() % 4
            for sector in file.pending.keys.sorted() {
                let versions = file.pending[sector] ?? []
                let survives = mode == 0 ? false : mode == 1 ? true : generator.chance(0.5)
                guard survives else { continue }
                let version = versions[Int(generator.next() % UInt64(versions.count))]
                let start = sector * Self.sector
                if file.durable.count < start + version.count {
                    file.durable.append(contentsOf: repeatElement(0, count: start + version.count - file.durable.count))
                }
                file.durable.replaceSubrange(start..<start + version.count, with: version)
            }
            file.pending = [:]
            file.current = file.durable
        }
    }

    /// Flips bits in what is stored, as a disk or its controller may.
    public func corrupt(_ name: String, at offset: Int, mask: UInt8 = 1) {
        guard let file = names[name], offset < file.current.count else { return }
        file.current[offset] ^= mask
        if offset < file.durable.count { file.durable[offset] ^= mask }
    }

    /// Overwrites a range with zeros, as a lost write does.
    public func zero(_ name: String, _ range: Range<Int>) {
        guard let file = names[name] else { return }
        for offset in range.clamped(to: 0..<file.current.count) { file.current[offset] = 0 }
        for offset in range.clamped(to: 0..<file.durable.count) { file.durable[offset] = 0 }
    }

    /// Puts the contents of one sector into another, as a write to the wrong place does.
    public func copySector(_ name: String, from: Int, to: Int) {
        guard let file = names[name], from < file.durable.count, to < file.durable.count else { return }
        let sector = Array(file.durable[from..<min(from + Self.sector, file.durable.count)])
        overwrite(file, at: to, sector)
    }

    /// Undoes the last synced write of a sector, as a disk does that said it wrote and did not.
    public func revertSector(_ name: String, _ at: Int) {
        guard let file = names[name], let sector = file.before[at / Self.sector] else { return }
        overwrite(file, at: at, sector)
    }

    private func overwrite(_ file: File, at offset: Int, _ bytes: [UInt8]) {
        for (i, byte) in bytes.enumerated() {
            if offset + i < file.current.count { file.current[offset + i] = byte }
            if offset + i < file.durable.count { file.durable[offset + i] = byte }
        }
    }

    /// Everything is gone.
    public func wipe() {
        names = [:]
        durableNames = [:]
        nameChanges = []
        open = [:]
    }

    /// What a file holds that no crash can take; nil if its name is not sure to be there.
    public func durableContents(_ name: String) -> [UInt8]? { durableNames[name]?.durable }

    /// What a file holds now; nil if there is none.
    public func contents(_ name: String) -> [UInt8]? { names[name]?.current }

    /// Puts a file in place, durable.
    public func place(_ name: String, _ bytes: [UInt8]) {
        let file = File()
        file.current = bytes
        file.durable = bytes
        names[name] = file
        durableNames[name] = file
    }

    /// A disk with the same stored contents and no open files.
    public func copy() -> SimulatedDisk {
        let result = SimulatedDisk()
        for name in names.keys { result.place(name, names[name]?.current ?? []) }
        return result
    }
}
