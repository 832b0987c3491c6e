// Which history of its cluster the data of a directory belong to: `DIR/lineage`, 17 bytes. Without the file it is the original.
import Glibc
import Model
import NodeCore
import Transport
import Wire

public enum LineageFile {
    public static func path(in directory: String) -> String { directory + "/lineage" }

    /// Nil if there is no such file. Throws if it is damaged: the node must not guess to which history it belongs.
    public static func read(_ directory: String) throws(CoterieError) -> Lineage? {
        let path = path(in: directory)
        guard access(path, F_OK) == 0 else { return nil }
        let bytes = try readFile(path, limit: 4_096)
        guard let lineage = decode(bytes) else {
            throw CoterieError(
                .failed, "\(path) is damaged", hint: "move the data directory away: the node then joins as a new one")
        }
        return lineage
    }

    /// Magic "CTLN", version 1, lineage u64, CRC32C of all before it.
    static func encode(_ lineage: Lineage) -> [UInt8] {
        var writer = ByteWriter(capacity: 17)
        writer.raw("CTLN".utf8)
        writer.u8(1)
        writer.u64(lineage.rawValue)
        writer.u32(CRC32C.checksum(writer.bytes))
        return writer.bytes
    }

    static func decode(_ bytes: [UInt8]) -> Lineage? {
        guard bytes.count == 17 else { return nil }
        var reader = ByteReader(bytes)
        guard (try? reader.raw(4)).map({ Array($0) }) == Array("CTLN".utf8), (try? reader.u8()) == 1,
            let value = try? reader.u64(), (try? reader.u32()) == CRC32C.checksum(bytes[..<13])
        else { return nil }
        return Lineage(rawValue: value)
    }
}
