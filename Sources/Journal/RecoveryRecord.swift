import Consensus
import Model
import Wire

// What a node whose journal was damaged must not forget until it is whole again (`LogRecovery`), and which segments count
// meanwhile. One file, written under a temporary name, synced and renamed; it holds the same record twice, in two sectors, so
// that one flipped bit or lost sector is survived. It is there exactly as long as the recovery lasts.
//
//     0 magic u64 | 8 version u32 | 12 CRC u32 of the rest | 16 floor index u64 (all ones: unknown) | 24 floor term u64 |
//     32 flags u32 (1: term and vote are lost) | 36 zero u32 | 40 first serial u64 | 48 cluster u64 | 56 node 16 |
//     zeros to 512; again at 512

struct RecoveryRecord: Hashable, Sendable {
    static let name = "recovery"
    static let temporaryName = "recovery.new"
    private static let magic: UInt64 = 0x3156_4F43_4552_4F43
    private static let version: UInt32 = 1

    var recovery: LogRecovery
    /// Segments with a lower serial are set aside. The one with this serial is made before the record is written, as
    /// ``Journal/salvageName``, and gets its name after.
    var firstSerial: UInt64
    var identity: JournalIdentity

    enum Contents: Hashable {
        case absent
        case valid(RecoveryRecord)
        case damaged
    }

    static func read(_ disk: any Disk, names: [String]) throws(JournalError) -> Contents {
        guard names.contains(name) else { return .absent }
        let bytes: [UInt8]
        do throws(DiskError) {
            let file = try disk.open(name, .readOnly)
            defer { disk.close(file) }
            bytes = try disk.read(file, at: 0, count: 2 * RecordFormat.sector)
        } catch {
            throw .failed(error)
        }
        for start in [0, RecordFormat.sector] where bytes.count >= start + RecordFormat.sector {
            if let found = try decode(Array(bytes[start..<start + RecordFormat.sector])) { return .valid(found) }
        }
        return .damaged
    }

    func write(to disk: any Disk) throws(DiskError) {
        let copy = encoded
        let file = try disk.open(RecoveryRecord.temporaryName, .create)
        do throws(DiskError) {
            try disk.write(file, at: 0, copy + copy)
            try disk.sync(file)
        } catch {
            disk.close(file)
            throw error
        }
        disk.close(file)
        try disk.rename(RecoveryRecord.temporaryName, to: RecoveryRecord.name)
        try disk.syncDirectory()
    }

    private var encoded: [UInt8] {
        var writer = ByteWriter(capacity: RecordFormat.sector)
        writer.u64(RecoveryRecord.magic)
        writer.u32(RecoveryRecord.version)
        writer.u32(0)
        writer.u64(recovery.floor.index)
        writer.u64(recovery.floor.term)
        writer.u32(recovery.isTermLost ? 1 : 0)
        writer.u32(0)
        writer.u64(firstSerial)
        writer.u64(identity.cluster)
        writer.nodeID(identity.node)
        writer.raw(repeatElement(0, count: RecordFormat.sector - writer.count))
        writer.patch(
            u32: CRC32C.checksum(writer.bytes[16...], continuing: CRC32C.checksum(writer.bytes[..<12])), at: 12)
        return writer.bytes
    }

    private static func decode(_ sector: [UInt8]) throws(JournalError) -> RecoveryRecord? {
        var reader = ByteReader(sector)
        var otherVersion: UInt32 = 0
        do throws(WireError) {
            guard try reader.u64() == magic else { return nil }
            otherVersion = try reader.u32()
            let crc = try reader.u32()
            guard crc == CRC32C.checksum(sector[16...], continuing: CRC32C.checksum(sector[..<12])) else { return nil }
            if otherVersion == version {
                let index = try reader.u64()
                let floor = LogPosition(index: index, term: try reader.u64())
                let flags = try reader.u32()
                _ = try reader.u32()
                let serial = try reader.u64()
                let cluster = try reader.u64()
                return RecoveryRecord(
                    recovery: LogRecovery(floor: floor, isTermLost: flags & 1 != 0), firstSerial: serial,
                    identity: JournalIdentity(cluster: cluster, node: try reader.nodeID()))
            }
        } catch {
            return nil
        }
        throw .unusable(file: name, why: "format version \(otherVersion) is not \(version)")
    }
}
