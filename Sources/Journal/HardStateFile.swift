import Consensus
import Model
import Wire

// Term and vote: the promise that a restarted node must remember. Two slots of 4 KiB, written in turn; each holds the same
// record twice, in two sectors. A crash during a write leaves each sector old or new, so every slot always has a valid copy;
// one flipped bit or lost sector is survived; a slot without any valid copy means that a vote may be forgotten, and that is
// reported, never guessed around.
//
//     0 magic u64 | 8 version u32 | 12 CRC u32 of the rest | 16 sequence u64 | 24 term u64 | 32 has vote u64 | 40 vote 16 |
//     56 commit u64 | 64 cluster u64 | 72 node 16 | zeros to 512; again at 2048

struct HardStateFile: Sendable {
    static let name = "hardstate"
    static let temporaryName = "hardstate.new"
    private static let magic: UInt64 = 0x3154_5348_4454_4F43
    private static let version: UInt32 = 1
    private static let slotBytes = 4_096
    private static let copyOffset = 2_048

    let file: DiskFile
    private(set) var state: HardState
    private var sequence: UInt64
    private let identity: JournalIdentity

    struct Copy: Hashable {
        var sequence: UInt64
        var state: HardState
        var identity: JournalIdentity
    }

    enum Contents {
        case absent
        case valid(Copy)
        case damaged(reason: String)
    }

    /// Reads without changing anything.
    static func read(_ disk: any Disk, names: [String]) throws(JournalError) -> Contents {
        guard names.contains(name) else { return .absent }
        let bytes: [UInt8]
        do throws(DiskError) {
            let file = try disk.open(name, .readOnly)
            defer { disk.close(file) }
            bytes = try disk.read(file, at: 0, count: 2 * slotBytes)
        } catch {
            throw .failed(error)
        }
        guard bytes.count == 2 * slotBytes else {
            return .damaged(reason: "\(bytes.count) bytes instead of \(2 * slotBytes)")
        }
        var best: Copy?
        for slot in 0..<2 {
            var newest: Copy?
            for copy in 0..<2 {
                let start = slot * slotBytes + copy * copyOffset
                guard let found = try decode(Array(bytes[start..<start + RecordFormat.sector])) else { continue }
                // One from the other slot is a sector in the wrong place: what it took the place of may have been newer.
                guard found.sequence % 2 == (slot == 0 ? 1 : 0) else { continue }
                if found.sequence > newest?.sequence ?? 0 { newest = found }
            }
            guard let newest else { return .damaged(reason: "slot \(slot) is unreadable") }
            if newest.sequence > best?.sequence ?? 0 { best = newest }
        }
        guard let best else { return .damaged(reason: "no valid slot") }
        return .valid(best)
    }

    private static func encode(_ copy: Copy) -> [UInt8] {
        var writer = ByteWriter(capacity: RecordFormat.sector)
        writer.u64(magic)
        writer.u32(version)
        writer.u32(0)
        writer.u64(copy.sequence)
        writer.u64(copy.state.term)
        writer.u64(copy.state.vote == nil ? 0 : 1)
        writer.nodeID(copy.state.vote ?? NodeID(high: 0, low: 0))
        writer.u64(copy.state.commit)
        writer.u64(copy.identity.cluster)
        writer.nodeID(copy.identity.node)
        writer.raw(repeatElement(0, count: RecordFormat.sector - writer.count))
        writer.patch(
            u32: CRC32C.checksum(writer.bytes[16...], continuing: CRC32C.checksum(writer.bytes[..<12])), at: 12)
        return writer.bytes
    }

    private static func decode(_ sector: [UInt8]) throws(JournalError) -> Copy? {
        var reader = ByteReader(sector)
        var otherVersion: UInt32?
        do throws(WireError) {
            guard try reader.u64() == magic else { return nil }
            let version = try reader.u32()
            let crc = try reader.u32()
            guard crc == CRC32C.checksum(sector[16...], continuing: CRC32C.checksum(sector[..<12])) else { return nil }
            if version != Self.version { otherVersion = version }
            let sequence = try reader.u64()
            let term = try reader.u64()
            let hasVote = try reader.u64() != 0
            let vote = try reader.nodeID()
            let commit = try reader.u64()
            let cluster = try reader.u64()
            let identity = JournalIdentity(cluster: cluster, node: try reader.nodeID())
            if otherVersion == nil {
                let state = HardState(term: term, vote: hasVote ? vote : nil, commit: commit)
                return Copy(sequence: sequence, state: state, identity: identity)
            }
        } catch {
            return nil
        }
        throw .unusable(file: name, why: "format version \(otherVersion ?? 0) is not \(version)")
    }

    /// Makes the file, both slots valid, under its name only when it is synced.
    static func create(
        _ disk: any Disk, identity: JournalIdentity, state: HardState = HardState()
    ) throws(DiskError) -> HardStateFile {
        let file = try disk.open(temporaryName, .create)
        var image: [UInt8] = []
        for sequence in [UInt64(1), 2] {
            var slot = [UInt8](repeating: 0, count: slotBytes)
            let copy = encode(Copy(sequence: sequence, state: state, identity: identity))
            slot.replaceSubrange(0..<copy.count, with: copy)
            slot.replaceSubrange(copyOffset..<copyOffset + copy.count, with: copy)
            image += slot
        }
        do throws(DiskError) {
            try disk.write(file, at: 0, image)
            try disk.sync(file)
            try disk.rename(temporaryName, to: name)
            try disk.syncDirectory()
        } catch {
            disk.close(file)
            throw error
        }
        return HardStateFile(file: file, state: state, sequence: 2, identity: identity)
    }

    /// Writes both copies of what was found again: a crash may have left one of them, and the next damage would find no other. The
    /// caller syncs before anything is promised.
    static func open(_ disk: any Disk, found: Copy) throws(DiskError) -> HardStateFile {
        let hardState = HardStateFile(
            file: try disk.open(name, .readWrite), state: found.state, sequence: found.sequence,
            identity: found.identity)
        try hardState.writeCopies(of: found, to: disk)
        return hardState
    }

    private func writeCopies(of copy: Copy, to disk: any Disk) throws(DiskError) {
        let bytes = HardStateFile.encode(copy)
        let start = UInt64(copy.sequence % 2 == 1 ? 0 : HardStateFile.slotBytes)
        try disk.write(file, at: start, bytes)
        try disk.write(file, at: start + UInt64(HardStateFile.copyOffset), bytes)
    }

    fileprivate init(file: DiskFile, state: HardState, sequence: UInt64, identity: JournalIdentity) {
        self.file = file
        self.state = state
        self.sequence = sequence
        self.identity = identity
    }

    /// Writes the slot that does not hold the present state, and syncs. After an error the present state is still valid on
    /// disk, and the same slot is written the next time.
    mutating func write(_ new: HardState, to disk: any Disk) throws(DiskError) {
        let next = sequence + 1
        try writeCopies(of: Copy(sequence: next, state: new, identity: identity), to: disk)
        try disk.sync(file)
        sequence = next
        state = new
    }
}

extension HardStateFile {
    /// Stands in for a file that can not be used, in a journal that refuses to write.
    static func unusable(_ identity: JournalIdentity) -> HardStateFile {
        HardStateFile(file: DiskFile(descriptor: -1), state: HardState(), sequence: 0, identity: identity)
    }
}
