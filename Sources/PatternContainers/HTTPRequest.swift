// Just enough of HTTP/1.1 (RFC 9112) for a few local GETs and POSTs and for delivering logs: bounded, incremental, strict
// about what attackers use (folded headers, conflicting lengths, transfer codings are refused).
import Model

/// One parsed request; the body has been read and dropped, for no endpoint of ours takes one.
public struct HTTPRequest: Hashable, Sendable {
    public var method: String
    /// Without the query.
    public var path: String
    /// After `?`, undecoded; nil if there is none.
    public var query: String?
    /// Names in lower case, in the order received.
    public var headers: [(name: String, value: String)]
    public var keepAlive: Bool

    public func header(_ name: String) -> String? { headers.first { $0.name == name }?.value }

    public static func == (a: Self, b: Self) -> Bool {
        a.method == b.method && a.path == b.path && a.query == b.query && a.keepAlive == b.keepAlive
            && a.headers.elementsEqual(b.headers, by: ==)
    }

    public func hash(into hasher: inout Hasher) {
        hasher.combine(method)
        hasher.combine(path)
        hasher.combine(query)
    }

    /// The value of a query parameter, undecoded.
    public func parameter(_ name: String) -> String? {
        for part in (query ?? "").split(separator: "&") where part.hasPrefix(name + "=") {
            return String(part.dropFirst(name.count + 1))
        }
        return nil
    }
}

/// Why a request is refused: the status to answer with before the connection is closed.
public struct HTTPError: Error, Hashable, Sendable {
    public var status: Int
    public var message: String
}

/// Cuts a byte stream into requests. Holds at most `headLimit` bytes.
public struct HTTPRequestParser: Sendable {
    private var buffer: [UInt8] = []
    /// Body bytes of the last request still to be dropped.
    private var skip = 0
    private let headLimit: Int
    private let bodyLimit: Int

    public init(headLimit: Int = 16_384, bodyLimit: Int = 65_536) {
        self.headLimit = headLimit
        self.bodyLimit = bodyLimit
    }

    public mutating func feed(_ bytes: some Collection<UInt8>) throws(HTTPError) {
        let drop = min(skip, bytes.count)
        skip -= drop
        buffer.append(contentsOf: bytes.dropFirst(drop))
        // A client may pipeline, but not without end.
        if buffer.count > headLimit + bodyLimit { throw HTTPError(status: 431, message: "too much sent at once") }
    }

    /// The next request, or nil if more bytes are needed. After an error the connection must be closed.
    public mutating func next() throws(HTTPError) -> HTTPRequest? {
        guard skip == 0 else { return nil }
        // Empty lines before a request line are allowed (RFC 9112 2.2).
        while buffer.starts(with: [13, 10]) { buffer.removeFirst(2) }
        guard let (head, length) = try HTTPHead.cut(buffer, limit: headLimit) else { return nil }
        let parts = head.startLine.split(separator: " ", omittingEmptySubsequences: false)
        guard parts.count == 3, !parts[0].isEmpty, parts[0].utf8.allSatisfy({ $0 >= 65 && $0 <= 90 }) else {
            throw HTTPError(status: 400, message: "malformed request line")
        }
        guard parts[2] == "HTTP/1.1" || parts[2] == "HTTP/1.0" else {
            throw HTTPError(status: 505, message: "HTTP/1.1 is spoken here")
        }
        guard parts[1].hasPrefix("/") else { throw HTTPError(status: 400, message: "the target must be a path") }
        guard head.value("transfer-encoding") == nil else {
            throw HTTPError(status: 501, message: "transfer codings are not accepted")
        }
        let body = try head.contentLength() ?? 0
        guard body <= bodyLimit else { throw HTTPError(status: 413, message: "body over \(bodyLimit) bytes") }
        let hosts = head.headers.filter { $0.name == "host" }.count
        guard hosts == 1 || (hosts == 0 && parts[2] == "HTTP/1.0") else {
            throw HTTPError(status: 400, message: "exactly one Host is needed")
        }
        buffer.removeFirst(length)
        let drop = min(body, buffer.count)
        buffer.removeFirst(drop)
        skip = body - drop
        let connection = head.value("connection")?.lowercased() ?? ""
        let target = parts[1].split(separator: "?", maxSplits: 1, omittingEmptySubsequences: false)
        return HTTPRequest(
            method: String(parts[0]), path: String(target[0]), query: target.count > 1 ? String(target[1]) : nil,
            headers: head.headers,
            keepAlive: parts[2] == "HTTP/1.1" ? connection != "close" : connection == "keep-alive")
    }
}

/// A start line and headers, common to requests and responses.
struct HTTPHead {
    var startLine: String
    var headers: [(name: String, value: String)]

    func value(_ name: String) -> String? { headers.first { $0.name == name }?.value }

    /// Nil if there is none; conflicting or malformed lengths are an error.
    func contentLength() throws(HTTPError) -> Int? {
        var found: Int?
        for header in headers where header.name == "content-length" {
            guard !header.value.isEmpty, header.value.utf8.count <= 15,
                header.value.utf8.allSatisfy({ $0 >= 48 && $0 <= 57 }),
                let value = Int(header.value), found == nil || found == value
            else { throw HTTPError(status: 400, message: "malformed Content-Length") }
            found = value
        }
        return found
    }

    /// The head at the start of `bytes` and its length with the empty line; nil if it is not complete yet.
    static func cut(_ bytes: [UInt8], limit: Int) throws(HTTPError) -> (HTTPHead, Int)? {
        var lines: [String] = []
        var start = 0
        while let end = bytes[start...].firstIndex(of: 10) {
            guard end < limit else { break }
            guard end > start, bytes[end - 1] == 13 else {
                throw HTTPError(status: 400, message: "a line must end with CR LF")
            }
            let line = bytes[start..<end - 1]
            start = end + 1
            if line.isEmpty {
                guard let first = lines.first else { throw HTTPError(status: 400, message: "empty head") }
                var headers: [(name: String, value: String)] = []
                for line in lines.dropFirst() {
                    guard let colon = line.utf8.firstIndex(of: 58), colon != line.startIndex else {
                        throw HTTPError(status: 400, message: "malformed header")
                    }
                    let name = line[..<colon]
                    guard name.utf8.allSatisfy({ $0 > 32 && $0 < 127 }) else {
                        throw HTTPError(status: 400, message: "malformed header")
                    }
                    var value = line[line.utf8.index(after: colon)...]
                    while let c = value.utf8.first, c == 32 || c == 9 { value = value.dropFirst() }
                    while let c = value.utf8.last, c == 32 || c == 9 { value = value.dropLast() }
                    headers.append((name.lowercased(), String(value)))
                }
                return (HTTPHead(startLine: first, headers: headers), start)
            }
            guard lines.count <= 100 else { throw HTTPError(status: 431, message: "more than 100 headers") }
            guard line.allSatisfy({ $0 >= 32 && $0 != 127 || $0 == 9 }),
                let text = String(validating: line, as: UTF8.self)
            else {
                throw HTTPError(status: 400, message: "control characters in the head")
            }
            lines.append(text)
        }
        guard bytes.count < limit else { throw HTTPError(status: 431, message: "head over \(limit) bytes") }
        return nil
    }
}

/// The answer to one request of ours: its status once head and body have been read whole.
struct HTTPResponseParser {
    private enum State {
        case head
        case fixed(left: Int)
        case chunkSize
        case chunk(left: Int)
        case chunkEnd
        case trailer
        case untilEnd
    }

    private var state = State.head
    private var buffer: [UInt8] = []
    private var status = 0
    private(set) var keepAlive = true

    /// The status when the response is complete; nil if more is needed. Bytes after it are dropped.
    mutating func feed(_ bytes: some Sequence<UInt8>) throws(HTTPError) -> Int? {
        buffer.append(contentsOf: bytes)
        while true {
            switch state {
            case .head:
                guard let (head, length) = try HTTPHead.cut(buffer, limit: 65_536) else { return nil }
                buffer.removeFirst(length)
                let parts = head.startLine.split(separator: " ", maxSplits: 2)
                guard parts.count >= 2, parts[0].hasPrefix("HTTP/1."), let code = Int(parts[1]), code >= 100, code < 600
                else {
                    throw HTTPError(status: 502, message: "not an HTTP response: \(head.startLine.prefix(80))")
                }
                if code < 200 { continue }
                status = code
                let connection = head.value("connection")?.lowercased() ?? ""
                keepAlive = parts[0] == "HTTP/1.1" ? connection != "close" : connection == "keep-alive"
                if let coding = head.value("transfer-encoding") {
                    guard coding.lowercased() == "chunked" else {
                        throw HTTPError(status: 502, message: "unknown transfer coding")
                    }
                    state = .chunkSize
                } else if code == 204 || code == 304 {
                    return finish()
                } else if let length = try head.contentLength() {
                    state = .fixed(left: length)
                } else {
                    keepAlive = false
                    state = .untilEnd
                }
            case .fixed(let left):
                let n = min(left, buffer.count)
                buffer.removeFirst(n)
                if n == left { return finish() }
                state = .fixed(left: left - n)
                return nil
            case .chunkSize:
                guard let line = try line() else { return nil }
                let digits = line.prefix { $0 != 59 && $0 != 32 }
                guard digits.count <= 8, let size = Int(String(decoding: digits, as: UTF8.self), radix: 16), size >= 0
                else {
                    throw HTTPError(status: 502, message: "malformed chunk")
                }
                state = size == 0 ? .trailer : .chunk(left: size)
            case .chunk(let left):
                let n = min(left, buffer.count)
                buffer.removeFirst(n)
                if n < left {
                    state = .chunk(left: left - n)
                    return nil
                }
                state = .chunkEnd
            case .chunkEnd:
                guard let line = try line() else { return nil }
                guard line.isEmpty else { throw HTTPError(status: 502, message: "malformed chunk") }
                state = .chunkSize
            case .trailer:
                guard let line = try line() else { return nil }
                if line.isEmpty { return finish() }
            case .untilEnd:
                buffer = []
                return nil
            }
        }
    }

    /// The peer has closed: the status if that was this response's end.
    mutating func end() -> Int? {
        if case .untilEnd = state { return finish() }
        return nil
    }

    private mutating func finish() -> Int {
        state = .head
        buffer = []
        return status
    }

    private mutating func line() throws(HTTPError) -> [UInt8]? {
        guard let end = buffer.firstIndex(of: 10) else {
            guard buffer.count < 4_096 else { throw HTTPError(status: 502, message: "line too long") }
            return nil
        }
        var line = Array(buffer[..<end])
        if line.last == 13 { line.removeLast() }
        buffer.removeFirst(end + 1)
        return line
    }
}
