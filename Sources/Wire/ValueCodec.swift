// Helpers that several codecs share: text maps in one canonical order, enums by name, error codes, bounded integers.
import Model

extension ByteWriter {
    /// Count, then key and value by ascending key, so that equal maps are equal bytes.
    public mutating func stringMap(_ map: [String: String]) {
        count(map.count)
        for (key, value) in map.sorted(by: { $0.key < $1.key }) {
            string(key)
            string(value)
        }
    }

    public mutating func strings(_ list: [String]) {
        count(list.count)
        for item in list { string(item) }
    }

    /// Text for people, of a length that the reader takes: what is over `limit` bytes is cut off.
    public mutating func text(_ value: String, max limit: Int) { string(value.clipped(limit)) }

    /// A whole number that is not negative; a negative one is written as 0.
    public mutating func natural(_ value: Int) { varint(UInt64(clamping: value)) }

    public mutating func timeSpan(_ value: TimeSpan) { i64(value.nanoseconds) }
    public mutating func errorCode(_ code: CoterieError.Code) { string(code.rawValue) }
    public mutating func optionalString(_ text: String?) { optional(text) { $0.string($1) } }
}

extension ByteReader {
    /// Refuses keys that do not ascend, hence duplicates too.
    public mutating func stringMap(maxCount: Int, keyBytes: Int, valueBytes: Int) throws(WireError) -> [String: String]
    {
        let count = try count(max: maxCount, itemBytes: 2)
        var map: [String: String] = [:]
        map.reserveCapacity(count)
        var last: String?
        for _ in 0..<count {
            let at = position
            let key = try string(max: keyBytes)
            if let last, last >= key { throw .invalid(at: at, what: "order of keys") }
            map[key] = try string(max: valueBytes)
            last = key
        }
        return map
    }

    public mutating func strings(maxCount: Int, bytes: Int) throws(WireError) -> [String] {
        let count = try count(max: maxCount)
        var list: [String] = []
        list.reserveCapacity(count)
        for _ in 0..<count { list.append(try string(max: bytes)) }
        return list
    }

    public mutating func natural(max limit: Int) throws(WireError) -> Int {
        let at = position
        let value = try varint()
        guard value <= UInt64(clamping: limit) else { throw .invalid(at: at, what: "number: it is over \(limit)") }
        return Int(value)
    }

    /// A length of time that is not negative.
    public mutating func timeSpan() throws(WireError) -> TimeSpan {
        let at = position
        let nanoseconds = try i64()
        guard nanoseconds >= 0 else { throw .invalid(at: at, what: "length of time: it is negative") }
        return TimeSpan(nanoseconds: nanoseconds)
    }

    public mutating func errorCode() throws(WireError) -> CoterieError.Code { try named("error code") }

    /// An enum that is written by its raw text.
    public mutating func named<T: RawRepresentable>(_ what: String) throws(WireError) -> T where T.RawValue == String {
        let at = position
        guard let value = T(rawValue: try string(max: 64)) else { throw .invalid(at: at, what: what) }
        return value
    }

    public mutating func optionalString(max limit: Int) throws(WireError) -> String? {
        try bool() ? try string(max: limit) : nil
    }
}

extension String {
    /// At most `bytes` bytes of UTF-8, cut between scalars.
    public func clipped(_ bytes: Int) -> String {
        guard utf8.count > bytes else { return self }
        var out = String.UnicodeScalarView()
        var used = 0
        for scalar in unicodeScalars {
            used += UTF8.width(scalar)
            if used > bytes { break }
            out.append(scalar)
        }
        return String(out)
    }
}
