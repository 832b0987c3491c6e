// Plain sockets on loopback, for what no client of Coterie would do: sinks, garbage, half-spoken protocols.
import Foundation
import Glibc

private func loopback(_ port: UInt16) -> sockaddr_in {
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    return address
}

private func withSocketAddress<Result>(_ address: sockaddr_in, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Result)
    -> Result
{
    var copy = address
    return withUnsafePointer(to: &copy) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            body($0, socklen_t(MemoryLayout<sockaddr_in>.size))
        }
    }
}

/// Holds a port of loopback, and tells which.
public final class PortHolder: @unchecked Sendable {
    public let port: UInt16
    let descriptor: Int32

    public init(datagrams: Bool = false) throws {
        let type = datagrams ? SOCK_DGRAM : SOCK_STREAM
        descriptor = socket(AF_INET, Int32(type.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        var address = loopback(0)
        var size = socklen_t(MemoryLayout<sockaddr_in>.size)
        let fd = descriptor
        guard fd >= 0, withSocketAddress(address, { bind(fd, $0, $1) }) == 0 else {
            throw TestFailure("cannot bind a socket: errno \(errno)")
        }
        if !datagrams { listen(fd, 64) }
        _ = withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(fd, $0, &size) }
        }
        port = UInt16(bigEndian: address.sin_port)
    }

    deinit { close(descriptor) }

    /// A port that was free a moment ago.
    public static func freePort() throws -> UInt16 { try PortHolder().port }
}

/// Accepts connections and keeps all that arrives, for sinks of logs.
public final class TCPSink: @unchecked Sendable {
    public var port: UInt16 { holder.port }
    private let holder: PortHolder
    private let lock = NSLock()
    private var bytes = Data()
    private var connections: [Int32] = []
    private var isClosed = false

    public init() throws {
        holder = try PortHolder()
        let thread = Thread { [self] in accepting() }
        thread.start()
    }

    public var text: String { lock.withLock { String(decoding: bytes, as: UTF8.self) } }
    public var lines: [String] { text.split(separator: "\n").map(String.init) }

    public func stop() {
        lock.withLock {
            isClosed = true
            for connection in connections { shutdown(connection, Int32(SHUT_RDWR)) }
        }
        shutdown(holder.descriptor, Int32(SHUT_RDWR))
    }

    private func accepting() {
        while true {
            let connection = accept(holder.descriptor, nil, nil)
            if connection < 0 {
                if errno == EINTR { continue }
                return
            }
            _ = fcntl(connection, F_SETFD, FD_CLOEXEC)
            let goes = lock.withLock { () -> Bool in
                connections.append(connection)
                return !isClosed
            }
            guard goes else {
                close(connection)
                return
            }
            Thread { [self] in reading(connection) }.start()
        }
    }

    private func reading(_ connection: Int32) {
        var buffer = [UInt8](repeating: 0, count: 65_536)
        while true {
            let n = recv(connection, &buffer, buffer.count, 0)
            guard n > 0 else { break }
            lock.withLock { bytes.append(contentsOf: buffer[..<n]) }
        }
        lock.withLock { connections.removeAll { $0 == connection } }
        close(connection)
    }
}

/// A connection to a port of loopback that blocks, with a limit on each read.
public final class RawConnection {
    private let descriptor: Int32

    public init(port: UInt16, readLimit seconds: Int = 5) throws {
        descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        let fd = descriptor
        guard descriptor >= 0, withSocketAddress(loopback(port), { connect(fd, $0, $1) }) == 0 else {
            throw TestFailure("cannot connect to port \(port): errno \(errno)")
        }
        var limit = timeval(tv_sec: seconds, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    }

    deinit { close(descriptor) }

    /// False once the other end has closed.
    @discardableResult
    public func send(_ bytes: [UInt8]) -> Bool {
        var rest = bytes[...]
        while !rest.isEmpty {
            let n = rest.withUnsafeBytes { Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
            guard n > 0 else { return false }
            rest = rest.dropFirst(n)
        }
        return true
    }

    public func send(_ text: String) { send(Array(text.utf8)) }

    /// What arrives until the other end closes, the limit passes, or `enough` is true.
    public func receive(until enough: (String) -> Bool = { _ in false }) -> String {
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65_536)
        while !enough(String(decoding: bytes, as: UTF8.self)) {
            let n = recv(descriptor, &buffer, buffer.count, 0)
            guard n > 0 else { break }
            bytes.append(contentsOf: buffer[..<n])
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}

/// Sends one datagram to a port of loopback.
public func sendDatagram(_ bytes: [UInt8], to port: UInt16) {
    let descriptor = socket(AF_INET, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    defer { close(descriptor) }
    withSocketAddress(loopback(port)) { address, size in
        bytes.withUnsafeBytes { _ = sendto(descriptor, $0.baseAddress, $0.count, 0, address, size) }
    }
}
