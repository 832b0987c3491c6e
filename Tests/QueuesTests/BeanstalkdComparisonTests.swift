// The same conversations with the real beanstalkd, where it is installed: the recordings are its, not ours.
import Foundation
import Testing
import Wire

@testable import Queues

private let beanstalkd: String? = ["/usr/bin/beanstalkd", "/usr/local/bin/beanstalkd", "/usr/sbin/beanstalkd"].first {
    FileManager.default.isExecutableFile(atPath: $0)
}

/// A beanstalkd of its own on a free loopback port.
private final class RealServer {
    let port: UInt16
    private let process: pid_t

    init(_ path: String) throws {
        let probe = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = loopback(port: 0)
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                _ = bind(probe, $0, length)
                _ = getsockname(probe, $0, &length)
            }
        }
        close(probe)
        port = UInt16(bigEndian: address.sin_port)
        let words = [path, "-l", "127.0.0.1", "-p", String(port)]
        let arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) }
        defer { for argument in arguments { free(argument) } }
        var child: pid_t = 0
        let failure = posix_spawn(&child, path, nil, nil, arguments + [nil], nil)
        guard failure == 0 else { throw POSIXError(POSIXErrorCode(rawValue: failure) ?? .EIO) }
        process = child
    }

    deinit {
        // Threads of the test run block signals, and a child inherits that: SIGTERM would not reach it.
        kill(process, SIGKILL)
        waitpid(process, nil, 0)
    }
}

private func loopback(port: UInt16) -> sockaddr_in {
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
    return address
}

private final class RealConnection {
    private let descriptor: Int32
    private var input: [UInt8] = []

    /// Retries while the server is not listening yet.
    init?(port: UInt16) {
        for _ in 0..<200 {
            let candidate = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
            var address = loopback(port: port)
            let result = withUnsafePointer(to: &address) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    connect(candidate, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
                }
            }
            if result == 0 {
                descriptor = candidate
                return
            }
            close(candidate)
            usleep(10_000)
        }
        return nil
    }

    deinit { close(descriptor) }

    func send(_ bytes: [UInt8]) {
        var rest = bytes[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
            guard count > 0 else { return }
            rest = rest.dropFirst(count)
        }
    }

    func endSending() { shutdown(descriptor, Int32(SHUT_WR)) }

    /// More bytes into the buffer; false at the end or when none come in time.
    private func read(milliseconds: Int32) -> Bool {
        var poller = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        guard poll(&poller, 1, milliseconds) > 0 else { return false }
        var buffer = [UInt8](repeating: 0, count: 65_536)
        let count = recv(descriptor, &buffer, buffer.count, 0)
        guard count > 0 else { return false }
        input += buffer[..<count]
        return true
    }

    func reply() -> [UInt8] {
        while true {
            if let reply = Transcript.takeReply(&input) { return reply }
            guard read(milliseconds: 5_000) else { return input }
        }
    }

    func isSilent() -> Bool { !read(milliseconds: 30) && input.isEmpty }

    func isClosed() -> Bool {
        var poller = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        var byte: UInt8 = 0
        return input.isEmpty && poll(&poller, 1, 5_000) > 0 && recv(descriptor, &byte, 1, 0) <= 0
    }
}

@Suite struct BeanstalkdComparisonTests {
    @Test(.enabled(if: beanstalkd != nil, "beanstalkd is not installed"), arguments: ["life", "waiting", "errors"])
    func `beanstalkd itself answers what is recorded`(name: String) throws {
        let transcript = try Transcript(named: name)
        let server = try RealServer(try #require(beanstalkd))
        var connections: [String: RealConnection] = [:]
        func connection(_ who: String) throws -> RealConnection {
            if let known = connections[who] { return known }
            let new = try #require(RealConnection(port: server.port))
            connections[who] = new
            return new
        }
        for (line, step) in transcript.steps {
            switch step {
            case .send(let who, let bytes): try connection(who).send(bytes)
            case .endSending(let who): try connection(who).endSending()
            case .wait(let seconds): usleep(UInt32(seconds * 1_000_000))
            case .expect(let who, let reply):
                let got = try connection(who).reply()
                #expect(Transcript.comparable(got) == reply, "\(name).txt:\(line)")
            case .expectNothing(let who): #expect(try connection(who).isSilent(), "\(name).txt:\(line)")
            case .expectClosed(let who):
                #expect(try connection(who).isClosed(), "\(name).txt:\(line)")
                connections[who] = nil
            }
        }
    }

    @Test(.enabled(if: beanstalkd != nil, "beanstalkd is not installed"))
    func `stats has beanstalkd's keys in its order, and its values after the same commands`() throws {
        let commands = [
            "use t", "put 1 0 9 1\r\na", "put 5000 0 9 1\r\nb", "put 1 9 9 1\r\nc", "watch t", "reserve",
            "reserve-with-timeout 0",
            "touch 1", "release 1 0 0", "delete 1", "bury 2 0", "kick 1", "peek 2", "peek-ready", "peek-delayed",
            "peek-buried",
            "stats-job 2", "stats-tube t", "list-tubes", "list-tube-used", "list-tubes-watched", "ignore default",
            "pause-tube t 0",
            "delete 99", "touch 99",
        ]
        let server = try RealServer(try #require(beanstalkd))
        let connection = try #require(RealConnection(port: server.port))
        var world = SessionWorld()
        for command in commands + ["stats"] {
            connection.send(Array("\(command)\r\n".utf8))
            world.send("A", "\(command)\r\n")
            if command == "stats" { break }
            let real = Transcript.comparable(connection.reply())
            #expect(
                Transcript.comparable(Transcript.takeReply(&world.output["A", default: []]) ?? []) == real, "\(command)"
            )
        }
        func members(_ reply: [UInt8]) -> [(String, String)] {
            String(decoding: reply, as: UTF8.self).split(separator: "\n").dropFirst(2).compactMap { line in
                let parts = line.split(separator: ":", maxSplits: 1)
                return parts.count == 2 ? (String(parts[0]), String(parts[1])) : nil
            }
        }
        let real = members(connection.reply())
        let ours = members(world.output["A"] ?? [])
        #expect(ours.map(\.0) == real.map(\.0))
        // Of the node, not of the queues.
        let volatile: Set = [
            "pid", "rusage-utime", "rusage-stime", "uptime", "id", "hostname", "os", "platform", "total-connections",
            "version",
        ]
        for (mine, theirs) in zip(ours, real) where !volatile.contains(mine.0) { #expect(mine == theirs) }
    }
}
