/// An IP address and port, or the path of a Unix socket. Names are resolved before one of these is made.
public struct SocketAddress: Hashable, Sendable, Comparable, CustomStringConvertible {
    public enum Host: Hashable, Sendable {
        case v4(UInt32)
        case v6(high: UInt64, low: UInt64)
        case unix(path: String)
    }

    public var host: Host
    /// 0 for a Unix socket, and for "any free port" where a bind is asked for.
    public var port: UInt16

    public init(host: Host, port: UInt16) {
        self.host = host
        self.port = port
    }

    public static func loopback(port: UInt16) -> Self { Self(host: .v4(0x7F00_0001), port: port) }

    /// Reads `1.2.3.4:5`, `[::1]:5` and `unix:/path`. Nil for anything else: names are not resolved here.
    public init?(text: some StringProtocol) {
        if text.hasPrefix("unix:") {
            let path = String(text.dropFirst(5))
            guard !path.isEmpty, path.utf8.count < 108 else { return nil }
            self.init(host: .unix(path: path), port: 0)
            return
        }
        guard let colon = text.lastIndex(of: ":"), let port = decimal(text[text.index(after: colon)...], max: 65535)
        else { return nil }
        let name = text[..<colon]
        if name.hasPrefix("[") && name.hasSuffix("]") {
            guard let host = parseV6(name.dropFirst().dropLast()) else { return nil }
            self.init(host: host, port: UInt16(port))
        } else {
            let parts = name.split(separator: ".", omittingEmptySubsequences: false)
            guard parts.count == 4 else { return nil }
            var value: UInt32 = 0
            for part in parts {
                guard let byte = decimal(part, max: 255) else { return nil }
                value = value << 8 | UInt32(byte)
            }
            self.init(host: .v4(value), port: UInt16(port))
        }
    }

    /// True for 127.0.0.0/8, ::1 and Unix sockets.
    public var isLoopback: Bool {
        switch host {
        case .v4(let value): value >> 24 == 127
        case .v6(let high, let low): high == 0 && low == 1
        case .unix: true
        }
    }

    /// True for 0.0.0.0 and ::, which can be bound but never advertised.
    public var isUnspecified: Bool {
        switch host {
        case .v4(let value): value == 0
        case .v6(let high, let low): high == 0 && low == 0
        case .unix: false
        }
    }

    /// The address without its port.
    public var hostText: String {
        switch host {
        case .v4(let v): "\(v >> 24).\(v >> 16 & 255).\(v >> 8 & 255).\(v & 255)"
        case .v6(let high, let low): formatV6(high, low)
        case .unix(let path): "unix:" + path
        }
    }

    public var description: String {
        switch host {
        case .v4: hostText + ":\(port)"
        case .v6: "[" + hostText + "]:\(port)"
        case .unix: hostText
        }
    }

    public static func < (a: Self, b: Self) -> Bool { a.description < b.description }
}

private func decimal(_ text: some StringProtocol, max: Int) -> Int? {
    guard !text.isEmpty, text.utf8.count <= 5, text.utf8.allSatisfy({ $0 >= 48 && $0 <= 57 }), let n = Int(text),
        n <= max
    else {
        return nil
    }
    return n
}

/// Eight groups of hexadecimal digits, a run of which may be left out once, as `::`. No embedded IPv4, no zone.
private func parseV6(_ text: some StringProtocol) -> SocketAddress.Host? {
    func groups(_ part: Substring) -> [UInt16]? {
        if part.isEmpty { return [] }
        var values: [UInt16] = []
        for digits in part.split(separator: ":", omittingEmptySubsequences: false) {
            guard (1...4).contains(digits.utf8.count),
                digits.utf8.allSatisfy({ $0 != UInt8(ascii: "+") && $0 != UInt8(ascii: "-") }),
                let value = UInt16(digits, radix: 16), values.count < 8
            else { return nil }
            values.append(value)
        }
        return values
    }
    let whole = Substring(text)
    let all: [UInt16]
    if let colon = whole.indices.first(where: { whole[$0...].hasPrefix("::") }) {
        guard let before = groups(whole[..<colon]), let after = groups(whole[whole.index(colon, offsetBy: 2)...]),
            before.count + after.count < 8
        else { return nil }
        all = before + Array(repeating: 0, count: 8 - before.count - after.count) + after
    } else {
        guard let found = groups(whole), found.count == 8 else { return nil }
        all = found
    }
    let high = all[..<4].reduce(UInt64(0)) { $0 << 16 | UInt64($1) }
    let low = all[4...].reduce(UInt64(0)) { $0 << 16 | UInt64($1) }
    return .v6(high: high, low: low)
}

/// RFC 5952: lower case, the longest run of two or more zero groups as `::`.
private func formatV6(_ high: UInt64, _ low: UInt64) -> String {
    let groups = (0..<8).map { UInt16(truncatingIfNeeded: ($0 < 4 ? high : low) >> UInt64((3 - $0 % 4) * 16)) }
    var best: Range<Int> = 0..<0
    var start = 0
    while start < 8 {
        var end = start
        while end < 8 && groups[end] == 0 { end += 1 }
        if end - start >= 2 && end - start > best.count { best = start..<end }
        start = max(end, start + 1)
    }
    func text(_ part: ArraySlice<UInt16>) -> String { part.map { String($0, radix: 16) }.joined(separator: ":") }
    return best.isEmpty ? text(groups[...]) : text(groups[..<best.lowerBound]) + "::" + text(groups[best.upperBound...])
}
