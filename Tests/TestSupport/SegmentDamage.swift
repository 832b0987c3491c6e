// Damage to the journal of a stopped node, on its real files. The format is read from docs/journal.md and not by the product's
// code: a mistake there must not hide itself here.
import Foundation

/// The kinds of damage of docs/hosts.md. etcd 3.4 survives none of them.
public enum SegmentDamage: String, CaseIterable, Sendable {
    case bitInTheMiddle, bitInTheLastRecord, zerosAtTheTail, badLength, cutShort, zeroedPage
}

/// One segment of a stopped node.
public struct SegmentFile {
    public struct Record {
        public var offset: Int
        public var payload: Int
        public var type: UInt8
        public var index: UInt64
        public var end: Int { offset + (40 + payload + 7) / 8 * 8 }
    }

    public let path: String
    public private(set) var bytes: [UInt8]

    public init(path: String) throws {
        self.path = path
        bytes = [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
    }

    /// The segments of a node, oldest first.
    public static func all(data: String) throws -> [SegmentFile] {
        let directory = data + "/journal"
        return try FileManager.default.contentsOfDirectory(atPath: directory)
            .filter { $0.hasPrefix("segment-") }.sorted().map { try SegmentFile(path: directory + "/" + $0) }
    }

    private func integer(_ offset: Int, _ count: Int) -> UInt64 {
        bytes[offset..<offset + count].reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }

    /// Behind the last byte that is not zero.
    public var used: Int { (bytes.lastIndex { $0 != 0 } ?? -1) + 1 }

    /// All records from the beginning on, as far as their lengths lead.
    public var records: [Record] {
        var found: [Record] = []
        var offset = 512
        while offset + 40 <= bytes.count {
            let type = bytes[offset + 4]
            guard (1...4).contains(type) else { break }
            let record = Record(
                offset: offset, payload: Int(integer(offset, 4)), type: type, index: integer(offset + 8, 8))
            guard record.end <= bytes.count else { break }
            found.append(record)
            offset = record.end
        }
        return found
    }

    /// The record of an entry of the log.
    public func entry(_ index: UInt64) -> Record? { records.first { $0.type == 1 && $0.index == index } }

    public mutating func flip(at offset: Int, mask: UInt8 = 0x10) throws {
        bytes[offset] ^= mask
        try write()
    }

    public mutating func zero(_ range: Range<Int>) throws {
        bytes.replaceSubrange(range, with: [UInt8](repeating: 0, count: range.count))
        try write()
    }

    /// In place: a copy under the old name would be another file.
    private func write() throws {
        guard let file = FileHandle(forWritingAtPath: path) else { throw TestFailure("cannot write \(path)") }
        defer { try? file.close() }
        try file.write(contentsOf: Data(bytes))
        try file.truncate(atOffset: UInt64(bytes.count))
        try file.synchronize()
    }

    public mutating func apply(_ damage: SegmentDamage) throws {
        let used = used
        let records = records
        guard let last = records.last(where: { $0.type == 1 }), records.count > 100, used > 16_384 else {
            throw TestFailure("\(path) is too short to be damaged: \(records.count) records, \(used) bytes")
        }
        let middle = records[records.count / 2]
        switch damage {
        case .bitInTheMiddle: try flip(at: middle.offset + 44)
        case .bitInTheLastRecord: try flip(at: last.offset + 44)
        case .zerosAtTheTail: try zero(used - 30..<used)
        case .badLength: try flip(at: middle.offset, mask: 0x7F)
        case .cutShort:
            bytes.removeSubrange((used - 11)...)
            try write()
        case .zeroedPage:
            let page = used / 2 / 4_096 * 4_096
            try zero(page..<page + 4_096)
        }
    }
}
