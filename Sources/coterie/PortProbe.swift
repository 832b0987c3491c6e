// Whether a port is free, found out by binding it.
import Glibc
import Model

enum PortProbe {
    /// Binds the loopback port as `SOCK_STREAM` or `SOCK_DGRAM` and lets it go again.
    static func isFree(_ port: UInt16, type: Int32) -> Bool {
        let descriptor = socket(AF_INET, type | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { return false }
        defer { close(descriptor) }
        // As the node's own listener: what lingers after a connection does not count.
        if type == stream {
            var yes: Int32 = 1
            setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &yes, socklen_t(MemoryLayout<Int32>.size))
        }
        return bindLoopback(descriptor, port)
    }

    /// False if the host says at once that nobody listens there; a Unix socket is asked by whoever uses it.
    static func answers(_ address: SocketAddress) -> Bool {
        if case .unix = address.host { return true }
        let family = if case .v4 = address.host { AF_INET } else { AF_INET6 }
        let descriptor = socket(family, stream | Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue), 0)
        guard descriptor >= 0 else { return false }
        defer { close(descriptor) }
        let status = withSystemAddress(address) { connect(descriptor, $0, $1) }
        if status == 0 { return true }
        guard errno == EINPROGRESS else { return false }
        var waiting = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
        guard poll(&waiting, 1, 1_000) == 1 else { return false }
        var failure: Int32 = 0
        var length = socklen_t(MemoryLayout<Int32>.size)
        return getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &failure, &length) == 0 && failure == 0
    }

    private static func withSystemAddress<Result>(
        _ address: SocketAddress, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Result
    ) -> Result {
        func use<Address>(_ value: Address) -> Result {
            withUnsafePointer(to: value) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    body($0, socklen_t(MemoryLayout<Address>.size))
                }
            }
        }
        switch address.host {
        case .v4(let value):
            var system = sockaddr_in()
            system.sin_family = sa_family_t(AF_INET)
            system.sin_port = address.port.bigEndian
            system.sin_addr.s_addr = value.bigEndian
            return use(system)
        case .v6(let high, let low):
            var system = sockaddr_in6()
            system.sin6_family = sa_family_t(AF_INET6)
            system.sin6_port = address.port.bigEndian
            withUnsafeMutableBytes(of: &system.sin6_addr) { bytes in
                bytes.storeBytes(of: high.bigEndian, toByteOffset: 0, as: UInt64.self)
                bytes.storeBytes(of: low.bigEndian, toByteOffset: 8, as: UInt64.self)
            }
            return use(system)
        case .unix: return use(sockaddr())
        }
    }

    static var stream: Int32 { Int32(SOCK_STREAM.rawValue) }
    static var datagram: Int32 { Int32(SOCK_DGRAM.rawValue) }

    /// A free TCP port of the loopback address.
    static func freePort(like address: SocketAddress) throws(CoterieError) -> UInt16 {
        let descriptor = socket(AF_INET, stream | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw CoterieError(.failed, "cannot make a socket: \(errnoMessage())") }
        defer { close(descriptor) }
        guard bindLoopback(descriptor, 0) else {
            throw CoterieError(.failed, "there is no free port for \(address): \(errnoMessage())")
        }
        var bound = sockaddr_in()
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let status = withUnsafeMutablePointer(to: &bound) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(descriptor, $0, &length) }
        }
        guard status == 0 else { throw CoterieError(.failed, "cannot read a socket's port: \(errnoMessage())") }
        return UInt16(bigEndian: bound.sin_port)
    }

    private static func bindLoopback(_ descriptor: Int32, _ port: UInt16) -> Bool {
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        let status = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        return status == 0
    }
}

func errnoMessage() -> String { String(cString: strerror(errno)) }
