// Byte streams: adopting, connecting, both directions, back-pressure, ends and errors.
import CPlatform
import EventLoop
import Glibc
import Model
import Testing

extension EventLoopTests {
    @Suite struct Streams {
        @Test(arguments: [anyV4, anyV6]) func tcpCarriesBytesBothWaysAndBothEndsCloseAfterBothShutDown(
            _ address: SocketAddress
        ) throws {
            let before = openDescriptors()
            try withLoop { loop in
                try connectPair(loop, at: address) { near, far in
                    #expect(near.peerAddress == far.localAddress)
                    #expect(near.localAddress == far.peerAddress)
                    #expect(near.peerUID == getuid() && far.peerUID == getuid())
                    let done = Countdown(4) {
                        #expect(near.isClosed && far.isClosed)
                        loop.stop()
                    }
                    let (up, down) = (pattern(3_000_000), pattern(1_000_001))
                    near.collect { got in
                        #expect(got == down)
                        done()
                    }
                    far.collect { got in
                        #expect(got == up)
                        far.write(down)
                        far.shutdown()
                        done()
                    }
                    for stream in [near, far] {
                        stream.onClose = { error in
                            #expect(error == nil)
                            done()
                        }
                    }
                    near.write(up)
                    near.shutdown()
                    near.write([1])
                }
            }
            #expect(openDescriptors() == before)
        }

        @Test func aPipesWritingEndClosesAfterShutdownWhenTheQueueHasLeft() throws {
            let before = openDescriptors()
            try withLoop { loop in
                let (reads, writes) = try pipePair()
                let reader = try ByteStream.adopt(loop: loop, descriptor: reads)
                let writer = try ByteStream.adopt(loop: loop, descriptor: writes)
                let bytes = pattern(1_000_000)
                let done = Countdown(3) { loop.stop() }
                writer.write(bytes)
                #expect(writer.queuedBytes > 0)
                writer.shutdown()
                writer.shutdown()
                writer.write([1, 2, 3])
                writer.onClose = { error in
                    #expect(error == nil)
                    done()
                }
                reader.onClose = { error in
                    #expect(error == nil)
                    done()
                }
                reader.collect { got in
                    #expect(got == bytes)
                    done()
                }
            }
            #expect(openDescriptors() == before)
        }

        @Test func aPipeWithNothingQueuedEndsAtOnceButNeverInsideTheCall() throws {
            try withLoop { loop in
                let (reads, writes) = try pipePair()
                let writer = try ByteStream.adopt(loop: loop, descriptor: writes)
                let reader = try ByteStream.adopt(loop: loop, descriptor: reads)
                let inside = Cell(true)
                writer.onClose = { _ in #expect(!inside.value) }
                reader.collect { got in
                    #expect(got == [9])
                    loop.stop()
                }
                writer.write([9])
                writer.shutdown()
                inside.value = false
            }
        }

        @Test func adoptTellsSocketsPipesAndTherestApart() throws {
            try withLoop { loop in
                let (reads, writes) = try pipePair()
                let reader = try ByteStream.adopt(loop: loop, descriptor: reads)
                let writer = try ByteStream.adopt(loop: loop, descriptor: writes)
                #expect(reader.localAddress == nil && reader.peerUID == nil)
                // The wrong direction does nothing to a writer, and breaks a reader later, not inside the call.
                writer.resumeReading()
                reader.write([1])
                #expect(!reader.isClosed)
                let (a, b) = try socketPair()
                let unixStream = try ByteStream.adopt(loop: loop, descriptor: a)
                #expect(unixStream.peerUID == getuid())
                #expect(unixStream.peerAddress == nil)
                close(b)
                let file = open("/etc/passwd", O_RDONLY | O_CLOEXEC)
                let null = open("/dev/null", O_RDWR | O_CLOEXEC)
                let datagrams = socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0)
                for descriptor in [file, null, datagrams] {
                    #expect(throws: UVError.invalid) { try ByteStream.adopt(loop: loop, descriptor: descriptor) }
                    #expect(!isOpen(descriptor), "closed on failure as well")
                }
                #expect(throws: UVError(errno: EBADF)) { try ByteStream.adopt(loop: loop, descriptor: 9999) }
                reader.onClose = { error in
                    #expect(error?.name == "EPIPE")
                    loop.stop()
                }
            }
        }

        @Test func anAdoptedTCPSocketIsOne() throws {
            try withLoop { loop in
                let listener = try Listener(loop: loop, bind: anyV4)
                let address = try #require(listener.localAddress)
                listener.onConnection = { far in
                    far.write([5])
                    far.shutdown()
                }
                let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
                var system = sockaddr_in()
                system.sin_family = sa_family_t(AF_INET)
                system.sin_port = address.port.bigEndian
                system.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
                let status = withUnsafePointer(to: &system) { pointer in
                    pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                        connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
                    }
                }
                #expect(status == 0)
                let stream = try ByteStream.adopt(loop: loop, descriptor: descriptor)
                #expect(stream.peerAddress == address)
                stream.collect { got in
                    #expect(got == [5])
                    loop.stop()
                }
            }
        }

        @Test func backPressureIsToldAndDrainCalledOnceTheQueueIsShort() throws {
            try withLoop { loop in
                let (a, b) = try socketPair()
                let writer = try ByteStream.adopt(loop: loop, descriptor: a)
                let reader = try ByteStream.adopt(loop: loop, descriptor: b)
                let bytes = pattern(4 << 20)
                writer.write(bytes)
                #expect(writer.isCongested)
                let (drained, got) = (Cell(0), Cell(0))
                writer.onDrain = {
                    drained.value += 1
                    #expect(writer.queuedBytes <= writer.lowWater)
                    #expect(!writer.isCongested)
                    writer.shutdown()
                }
                reader.onBytes = { chunk in
                    #expect(chunk.elementsEqual(bytes[got.value..<got.value + chunk.count]))
                    got.value += chunk.count
                    // Now and then it rests.
                    reader.pauseReading()
                    loop.beforeWaiting { reader.resumeReading() }
                }
                reader.onEnd = { loop.stop() }
                reader.resumeReading()
                loop.run()
                #expect(drained.value == 1)
                #expect(got.value == bytes.count)
                loop.stop()
            }
        }

        @Test func writesAfterAQueuedOneKeepTheirOrder() throws {
            try withLoop { loop in
                let (a, b) = try socketPair()
                let writer = try ByteStream.adopt(loop: loop, descriptor: a)
                let reader = try ByteStream.adopt(loop: loop, descriptor: b)
                let bytes = pattern(2_000_000)
                for start in stride(from: 0, to: bytes.count, by: 31_337) {
                    writer.write(bytes[start..<min(start + 31_337, bytes.count)])
                }
                writer.shutdown()
                reader.collect { got in
                    #expect(got == bytes)
                    loop.stop()
                }
            }
        }

        @Test func aWriteErrorIsReportedOnceAndNotInsideTheCall() throws {
            try withLoop { loop in
                let (a, b) = try socketPair()
                let stream = try ByteStream.adopt(loop: loop, descriptor: a)
                close(b)
                let reports = Cell<[UVError?]>([])
                stream.onClose = { reports.value.append($0) }
                for _ in 0..<5 { stream.write([1, 2, 3]) }
                #expect(reports.value.isEmpty)
                LoopTimer(loop: loop).start(after: .milliseconds(5)) { loop.stop() }
                loop.run()
                #expect(reports.value.map { $0?.name } == ["EPIPE"])
                #expect(stream.isClosed)
                loop.stop()
            }
        }

        @Test func whatAPeerSaidBeforeItLeftIsReadBeforeTheWriteErrorIsTold() throws {
            try withLoop { loop in
                let (a, b) = try socketPair()
                let stream = try ByteStream.adopt(loop: loop, descriptor: a)
                var farewell = Array("-ERR too many".utf8)
                #expect(write(b, &farewell, farewell.count) == farewell.count)
                close(b)
                let got = Cell<[UInt8]>([])
                stream.onBytes = { got.value.append(contentsOf: $0) }
                stream.onClose = { error in
                    #expect(error?.name == "EPIPE")
                    #expect(got.value == farewell)
                    loop.stop()
                }
                stream.resumeReading()
                stream.write([1])
            }
        }

        @Test func closingWithAQueuedWriteCallsNothingBackAndLeaksNothing() throws {
            let before = openDescriptors()
            try withLoop { loop in
                let (a, b) = try socketPair()
                let stream = try ByteStream.adopt(loop: loop, descriptor: a)
                stream.onClose = { _ in Issue.record("closed by ourselves") }
                stream.onDrain = { Issue.record("nothing drains") }
                stream.write(pattern(2 << 20))
                stream.shutdown()
                stream.close()
                stream.close()
                #expect(stream.isClosed)
                LoopTimer(loop: loop).start(after: .milliseconds(2)) {
                    close(b)
                    loop.stop()
                }
            }
            #expect(openDescriptors() == before)
        }

        @Test func aClosedStreamIgnoresEverything() throws {
            try withLoop { loop in
                let (a, b) = try socketPair()
                let stream = try ByteStream.adopt(loop: loop, descriptor: a)
                stream.close()
                stream.onBytes = { _ in Issue.record("bytes") }
                stream.onEnd = { Issue.record("end") }
                stream.onClose = { _ in Issue.record("close") }
                stream.write([1])
                stream.resumeReading()
                stream.pauseReading()
                stream.shutdown()
                #expect(stream.peerAddress == nil && stream.localAddress == nil && stream.peerUID == nil)
                close(b)
                LoopTimer(loop: loop).start(after: .milliseconds(2)) { loop.stop() }
            }
        }

        @Test func aStreamMayBeClosedInsideEveryOneOfItsCallBacks() throws {
            try withLoop { loop in
                let done = Countdown(4) { LoopTimer(loop: loop).start(after: .milliseconds(2)) { loop.stop() } }
                func open() throws -> (ByteStream, ByteStream) {
                    let (a, b) = try socketPair()
                    return (
                        try ByteStream.adopt(loop: loop, descriptor: a), try ByteStream.adopt(loop: loop, descriptor: b)
                    )
                }
                let (bytesA, bytesB) = try open()
                bytesA.onBytes = { _ in
                    bytesA.close()
                    bytesB.close()
                    done()
                }
                bytesA.onEnd = { Issue.record("closed") }
                bytesA.resumeReading()
                bytesB.write(pattern(100_000))

                let (endA, endB) = try open()
                endA.onEnd = {
                    endA.close()
                    done()
                }
                endA.onClose = { _ in Issue.record("closed") }
                endA.resumeReading()
                endA.shutdown()
                endB.close()

                let (drainA, drainB) = try open()
                drainA.onDrain = {
                    drainA.close()
                    drainB.close()
                    done()
                }
                drainA.write(pattern(2 << 20))
                drainA.shutdown()
                drainB.onBytes = { _ in }
                drainB.resumeReading()

                let (closeA, closeB) = try open()
                closeA.onClose = { _ in
                    closeA.close()
                    done()
                }
                closeB.close()
                closeA.write([1])
            }
        }

        @Test func aHalfClosedPeerStillGetsOurBytes() throws {
            try withLoop { loop in
                try connectPair(loop, at: anyV4) { near, far in
                    near.shutdown()
                    far.onEnd = {
                        LoopTimer(loop: loop).start(after: .milliseconds(2)) {
                            far.write([1, 2, 3])
                            far.shutdown()
                        }
                    }
                    far.resumeReading()
                    near.collect { got in
                        #expect(got == [1, 2, 3])
                        loop.stop()
                    }
                }
            }
        }

        @Test func aResetIsAnError() throws {
            try withLoop { loop in
                try connectPair(loop, at: anyV4) { near, far in
                    // Closing with unread input resets the connection.
                    near.write([1, 2, 3])
                    LoopTimer(loop: loop).start(after: .milliseconds(5)) { far.close() }
                    near.onEnd = { Issue.record("no orderly end") }
                    near.onClose = { error in
                        #expect(error?.name == "ECONNRESET")
                        loop.stop()
                    }
                    near.resumeReading()
                }
            }
        }
    }

    @Suite struct Connecting {
        private func failure(to address: SocketAddress, timeout: TimeSpan = .seconds(5)) throws -> String? {
            let name = Cell<String?>(nil)
            try withLoop { loop in
                let inside = Cell(true)
                ByteStream.connect(loop: loop, to: address, timeout: timeout) { result in
                    #expect(!inside.value, "never from within the call")
                    if case .failure(let error) = result { name.value = error.name }
                    loop.stop()
                }
                inside.value = false
            }
            return name.value
        }

        @Test func refusalsAndMissingSocketsAreTold() throws {
            let expected: [(String, String)] = [
                ("/tmp/no-such-socket-of-coterie", "ENOENT"),
                ("/" + String(repeating: "a", count: 200), "ENAMETOOLONG"),
                ("", "EINVAL"),
            ]
            for (path, name) in expected {
                let told = try failure(to: unix(path))
                #expect(told == name)
            }
            // A port that was just given up.
            for host in [anyV4, anyV6] {
                let dead = try deadAddresses(1, host)[0]
                let told = try failure(to: dead)
                #expect(told == "ECONNREFUSED")
            }
        }

        @Test func aTimeOutClosesWhatWouldConnectLater() throws {
            let before = openDescriptors()
            // A listener whose queue is full: the kernel answers no further SYN until something is accepted.
            let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
            var system = sockaddr_in()
            system.sin_family = sa_family_t(AF_INET)
            system.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
            var size = socklen_t(MemoryLayout<sockaddr_in>.size)
            withUnsafeMutablePointer(to: &system) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    #expect(bind(descriptor, $0, size) == 0)
                    #expect(listen(descriptor, 0) == 0)
                    getsockname(descriptor, $0, &size)
                }
            }
            let address = SocketAddress.loopback(port: UInt16(bigEndian: system.sin_port))
            try withLoop { loop in
                let outcomes = Cell<[String]>([])
                let opened = Cell<[ByteStream]>([])
                let done = Countdown(8) {
                    for stream in opened.value { stream.close() }
                    // What would have come late has time to come.
                    LoopTimer(loop: loop).start(after: .milliseconds(10)) { loop.stop() }
                }
                for _ in 0..<8 {
                    ByteStream.connect(loop: loop, to: address, timeout: .milliseconds(100)) { result in
                        switch result {
                        case .success(let stream):
                            opened.value.append(stream)
                            outcomes.value.append("connected")
                        case .failure(let error): outcomes.value.append(error.name)
                        }
                        done()
                    }
                }
                loop.run()
                #expect(outcomes.value.contains("ETIMEDOUT"))
                #expect(outcomes.value.allSatisfy { $0 == "connected" || $0 == "ETIMEDOUT" })
                loop.stop()
            }
            close(descriptor)
            #expect(openDescriptors() == before)
        }

        @Test func aConnectionThatIsUnderWayWhenTheLoopClosesIsTold() throws {
            let loop = try EventLoop()
            let listener = try Listener(loop: loop, bind: anyV4)
            let told = Cell(0)
            ByteStream.connect(loop: loop, to: try #require(listener.localAddress), timeout: .seconds(5)) { result in
                if case .failure(let error) = result, error == .canceled { told.value += 1 }
            }
            loop.close()
            #expect(told.value == 1)
        }

        @Test(.enabled(if: getuid() == 0, "needs root, for a network of its own"))
        func diallingADeadPortThatBecomesOurOwnIsRefused() throws {
            // In a network with one port for outgoing connections TCP connects to itself, every time.
            final class Outcome: @unchecked Sendable { var text = "" }
            let outcome = Outcome()
            var id: pthread_t = 0
            let created = pthread_create(
                &id, nil,
                { context in
                    guard let context else { return nil }
                    let outcome = Unmanaged<Outcome>.fromOpaque(context).takeRetainedValue()
                    outcome.text = (try? dialSelf()) ?? "no network of our own"
                    return nil
                }, Unmanaged.passRetained(outcome).toOpaque())
            #expect(created == 0)
            pthread_join(id, nil)
            #expect(outcome.text == "ECONNREFUSED")
        }
    }
}

/// On a thread of its own, which leaves for another network.
private func dialSelf() throws -> String {
    // The Glibc module lacks it.
    typealias Unshare = @convention(c) (Int32) -> Int32
    let newNetwork: Int32 = 0x4000_0000
    let unshare = try #require(dlsym(nil, "unshare").map { unsafeBitCast($0, to: Unshare.self) })
    try #require(unshare(newNetwork) == 0)
    // struct ifreq: the name, then the flags.
    var request = [UInt8](repeating: 0, count: 40)
    (request[0], request[1], request[16]) = (UInt8(ascii: "l"), UInt8(ascii: "o"), 1)
    let control = socket(AF_INET, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    let setFlags: UInt = 0x8914
    try #require(request.withUnsafeMutableBytes { $0.baseAddress.map { ioctl(control, setFlags, $0) } } == 0)
    close(control)
    let range = open("/proc/sys/net/ipv4/ip_local_port_range", O_WRONLY | O_CLOEXEC)
    try #require(write(range, "40000 40000", 11) == 11)
    close(range)
    let text = Cell("")
    try withLoop { loop in
        ByteStream.connect(loop: loop, to: .loopback(port: 40_000), timeout: .seconds(5)) { result in
            switch result {
            case .success(let stream): text.value = "connected from \(stream.localAddress as Any)"
            case .failure(let error): text.value = error.name
            }
            loop.stop()
        }
    }
    return text.value
}

/// Addresses of TCP and UDP ports that were free a moment ago.
func deadAddresses(_ count: Int, _ host: SocketAddress) throws -> [SocketAddress] {
    let loop = try EventLoop()
    defer { loop.close() }
    return try (0..<count).map { _ in try Listener(loop: loop, bind: host) }.compactMap(\.localAddress)
}
