// Where to connect to: a name or an address, and a port. Names are resolved at each connect on the loop's thread pool, so
// that a name whose address changes is followed.
import EventLoop
import Glibc
import Model

/// Takes one line for people; the supplied containers say on standard error what they do through one of these.
public typealias Report = (String) -> Void

/// Writes `coterie: LINE` to standard error.
public func reportToStandardError(_ line: String) {
    var rest = Array("coterie: \(line)\n".utf8)[...]
    while !rest.isEmpty {
        let n = rest.withUnsafeBytes { write(2, $0.baseAddress, $0.count) }
        if n < 0 && errno == EINTR { continue }
        guard n > 0 else { return }
        rest = rest.dropFirst(n)
    }
}

/// `HOST:PORT`, `[V6]:PORT` or `unix:PATH`; a host may be a name.
public struct Endpoint: Hashable, Sendable, CustomStringConvertible {
    public var host: String
    public var port: UInt16
    /// The address if the text was numeric.
    public let address: SocketAddress?

    public init(_ address: SocketAddress) { self.init(host: address.hostText, port: address.port, address: address) }

    private init(host: String, port: UInt16, address: SocketAddress?) {
        self.host = host
        self.port = port
        self.address = address
    }

    /// Nil if the text is none of the three forms, the name is longer than 253 bytes, or the port is not 1 to 65535.
    public init?(text: some StringProtocol) {
        if let address = SocketAddress(text: text) {
            self.init(address)
            return
        }
        guard let colon = text.lastIndex(of: ":"), let port = UInt16(text[text.index(after: colon)...]), port > 0 else {
            return nil
        }
        let name = text[..<colon]
        let allowed = name.utf8.allSatisfy {
            ($0 | 32 >= 97 && $0 | 32 <= 122) || ($0 >= 48 && $0 <= 57) || $0 == 45 || $0 == 46 || $0 == 95
        }
        // All digits and points that is no address is a mistake, not a name.
        let numeric = name.utf8.allSatisfy { ($0 >= 48 && $0 <= 57) || $0 == 46 }
        guard allowed, !numeric, !name.isEmpty, name.utf8.count <= 253 else { return nil }
        self.init(host: String(name), port: port, address: nil)
    }

    /// From a host and a port told by a server; the host may be a name or an IPv6 address without brackets.
    init?(host: String, port: UInt16) {
        if let direct = Endpoint(text: "\(host):\(port)") {
            self = direct
        } else if let v6 = Endpoint(text: "[\(host)]:\(port)") {
            self = v6
        } else {
            return nil
        }
    }

    public var description: String { address.map { "\($0)" } ?? "\(host):\(port)" }
}

/// One attempt to connect, over all addresses of a name in turn. Calls back once, never after ``cancel()``.
final class ConnectAttempt {
    private let loop: EventLoop
    private let endpoint: Endpoint
    private let timeout: TimeSpan
    private var done: ((Result<ByteStream, CoterieError>) -> Void)?

    init(
        loop: EventLoop, to endpoint: Endpoint, timeout: TimeSpan,
        done: @escaping (Result<ByteStream, CoterieError>) -> Void
    ) {
        self.loop = loop
        self.endpoint = endpoint
        self.timeout = timeout
        self.done = done
        if let address = endpoint.address {
            connect([address])
        } else {
            let host = endpoint.host
            let port = endpoint.port
            loop.blocking {
                resolveName(host, port)
            } then: { [weak self] result in
                switch result {
                case .success(let addresses): self?.connect(addresses)
                case .failure(let error): self?.finish(.failure(error))
                }
            }
        }
    }

    func cancel() { done = nil }

    private func connect(_ addresses: [SocketAddress]) {
        guard done != nil, let address = addresses.first else { return }
        // The attempt is kept alive by this closure; a cancelled one closes what still arrives.
        ByteStream.connect(loop: loop, to: address, timeout: timeout) { [self] result in
            switch result {
            case .success(let stream):
                if done == nil { stream.close() } else { finish(.success(stream)) }
            case .failure(let error):
                if addresses.count > 1 {
                    connect(Array(addresses.dropFirst()))
                } else {
                    finish(.failure(CoterieError(.unavailable, "cannot connect to \(endpoint): \(error)")))
                }
            }
        }
    }

    private func finish(_ result: Result<ByteStream, CoterieError>) {
        let done = self.done
        self.done = nil
        done?(result)
    }
}

/// Blocking; at most eight addresses, IPv4 and IPv6 in the resolver's order.
private func resolveName(_ host: String, _ port: UInt16) -> Result<[SocketAddress], CoterieError> {
    var hints = addrinfo()
    hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
    var list: UnsafeMutablePointer<addrinfo>?
    let code = getaddrinfo(host, nil, &hints, &list)
    guard code == 0 else {
        return .failure(CoterieError(.unavailable, "cannot resolve \(host): \(String(cString: gai_strerror(code)))"))
    }
    defer { freeaddrinfo(list) }
    var addresses: [SocketAddress] = []
    var next = list
    while let entry = next, addresses.count < 8 {
        if let raw = entry.pointee.ai_addr {
            if entry.pointee.ai_family == AF_INET {
                let value = raw.withMemoryRebound(to: sockaddr_in.self, capacity: 1) {
                    UInt32(bigEndian: $0.pointee.sin_addr.s_addr)
                }
                addresses.append(SocketAddress(host: .v4(value), port: port))
            } else if entry.pointee.ai_family == AF_INET6 {
                let address = raw.withMemoryRebound(to: sockaddr_in6.self, capacity: 1) { $0.pointee.sin6_addr }
                let bytes = withUnsafeBytes(of: address) { Array($0) }
                let high = bytes[..<8].reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
                let low = bytes[8...].reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
                addresses.append(SocketAddress(host: .v6(high: high, low: low), port: port))
            }
        }
        next = entry.pointee.ai_next
    }
    return addresses.isEmpty ? .failure(CoterieError(.unavailable, "\(host) has no address")) : .success(addresses)
}

/// Exponential back-off: `first`, doubled at each failure, at most `longest`, each shortened by up to a half at random so
/// that many clients of one server do not come back together.
struct BackOff {
    let first: TimeSpan
    let longest: TimeSpan
    private var failures = 0

    init(first: TimeSpan, longest: TimeSpan) {
        self.first = first
        self.longest = longest
    }

    mutating func next(using generator: inout SeededGenerator) -> TimeSpan {
        let whole = min(first * (1 << min(failures, 16)), longest)
        failures += 1
        return TimeSpan(
            nanoseconds: whole.nanoseconds - Int64(generator.next() % UInt64(max(whole.nanoseconds / 2, 1))))
    }

    mutating func reset() { failures = 0 }
}

/// A listener: one inherited in the manner of systemd (`LISTEN_FDS`, names are ports) if there is one for the port asked for,
/// else a socket of our own.
public func openListener(loop: EventLoop, at address: SocketAddress, environment: InheritedListeners)
    throws(CoterieError) -> Listener
{
    do throws(UVError) {
        if let descriptor = environment.descriptor(forPort: address.port) {
            return try Listener(loop: loop, adopting: descriptor)
        }
        return try Listener(loop: loop, bind: address)
    } catch {
        throw CoterieError(.failed, "cannot listen on \(address): \(error)")
    }
}

/// The listening descriptors that the node agent handed to this container.
public struct InheritedListeners: Sendable, Equatable {
    /// Port to descriptor, in the order given.
    public private(set) var entries: [(port: UInt16, descriptor: Int32)] = []

    /// `LISTEN_FDS=N` descriptors from 3 on, `LISTEN_FDNAMES` their ports separated by colons. Anything malformed means none;
    /// at most 64.
    public init(listenFDs: String?, names: String?) {
        guard let listenFDs, let count = Int(listenFDs), count > 0, count <= 64 else { return }
        let ports = (names ?? "").split(separator: ":", omittingEmptySubsequences: false)
        for (i, port) in ports.prefix(count).enumerated() {
            if let port = UInt16(port) { entries.append((port, Int32(3 + i))) }
        }
    }

    /// What this process was started with.
    public static var current: InheritedListeners {
        InheritedListeners(listenFDs: environmentValue("LISTEN_FDS"), names: environmentValue("LISTEN_FDNAMES"))
    }

    public func descriptor(forPort port: UInt16) -> Int32? { entries.first { $0.port == port }?.descriptor }

    public static func == (a: Self, b: Self) -> Bool { a.entries.elementsEqual(b.entries, by: ==) }
}

func environmentValue(_ name: String) -> String? { getenv(name).map { String(cString: $0) } }

func hostName() -> String {
    var name = [CChar](repeating: 0, count: 256)
    guard gethostname(&name, 255) == 0 else { return "-" }
    return String(decoding: name.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
}
