// Values of flags: durations, sizes, addresses with names, and what is said about those that are wrong.
import ArgumentParser
import Glibc
import Model

@Sendable func parseDuration(_ text: String) throws -> TimeSpan {
    guard let span = TimeSpan(text: text) else {
        throw ValidationError("'\(text)' is not a duration such as 250ms, 3s or 5m")
    }
    return span
}

@Sendable func parsePositiveDuration(_ text: String) throws -> TimeSpan {
    let span = try parseDuration(text)
    guard span > .zero else { throw ValidationError("'\(text)' must be longer than nothing") }
    return span
}

/// An address whose host may be a name; `what` begins the error. IPv4 is preferred, as a node binds one address.
func resolveAddress(_ text: String, for what: String) throws(CoterieError) -> SocketAddress {
    if let address = SocketAddress(text: text) { return address }
    func wrong(_ why: String) -> CoterieError {
        CoterieError(.badInput, "\(what): \(why)", hint: "use HOST:PORT or unix:PATH")
    }
    if text.hasPrefix("unix:") { throw wrong("\(text) has no path, or one longer than 107 bytes") }
    guard let colon = text.lastIndex(of: ":") else { throw wrong("\(text) is not an address") }
    let host = String(text[..<colon])
    guard let port = UInt16(text[text.index(after: colon)...]), !host.isEmpty,
        !host.contains(where: { ":[]/ ".contains($0) })
    else {
        throw wrong("\(text) is not an address")
    }
    var hints = addrinfo()
    hints.ai_family = AF_UNSPEC
    hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
    var found: UnsafeMutablePointer<addrinfo>?
    let status = getaddrinfo(host, nil, &hints, &found)
    guard status == 0 else {
        throw wrong("the name \(host) can not be resolved: \(String(cString: gai_strerror(status)))")
    }
    defer { freeaddrinfo(found) }
    var first: SocketAddress?
    var next = found
    while let info = next?.pointee {
        next = info.ai_next
        var buffer = [CChar](repeating: 0, count: 256)
        guard getnameinfo(info.ai_addr, info.ai_addrlen, &buffer, 256, nil, 0, NI_NUMERICHOST) == 0 else { continue }
        let numeric = String(decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        let form = info.ai_family == AF_INET6 ? "[\(numeric)]:\(port)" : "\(numeric):\(port)"
        guard let address = SocketAddress(text: form) else { continue }
        if info.ai_family == AF_INET { return address }
        first = first ?? address
    }
    guard let first else { throw wrong("the name \(host) has no address") }
    return first
}

/// `K=V` pairs; of two with one key the later holds.
func parsePairs(_ texts: [String], for what: String) throws(CoterieError) -> [String: String] {
    var pairs: [String: String] = [:]
    for text in texts {
        guard let equals = text.firstIndex(of: "="), equals != text.startIndex else {
            throw CoterieError(.badInput, "\(what) \(text): not of the form KEY=VALUE")
        }
        pairs[String(text[..<equals])] = String(text[text.index(after: equals)...])
    }
    return pairs
}

/// One segment of a query's path.
func percentEncoded(_ text: String) -> String {
    let digits = Array("0123456789ABCDEF".utf8)
    var out: [UInt8] = []
    for byte in text.utf8 {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
            UInt8(ascii: "0")...UInt8(ascii: "9"),
            UInt8(ascii: "-"), UInt8(ascii: "."), UInt8(ascii: "_"):
            out.append(byte)
        default: out += [UInt8(ascii: "%"), digits[Int(byte >> 4)], digits[Int(byte & 15)]]
        }
    }
    return String(decoding: out, as: UTF8.self)
}
