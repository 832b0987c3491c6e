// Listening sockets: addresses, Unix socket files, inherited ones, and descriptors that travel to other programs.
import CPlatform
import EventLoop
import Glibc
import Model
import Testing

extension EventLoopTests {
    @Suite struct Listeners {
        @Test func aPortThatIsTakenIsTold() throws {
            try withLoop { loop in
                let listener = try Listener(loop: loop, bind: anyV4)
                let address = try #require(listener.localAddress)
                #expect(address.port != 0)
                let before = openDescriptors()
                #expect(throws: UVError(errno: EADDRINUSE)) { try Listener(loop: loop, bind: address) }
                loop.stop()
                loop.run()
                #expect(openDescriptors() == before)
                loop.stop()
            }
        }

        @Test func aListenerMayBeClosedInsideItsOwnCallBackAndOthersWaitInVain() throws {
            try withLoop { loop in
                let listener = try Listener(loop: loop, bind: anyV4)
                let address = try #require(listener.localAddress)
                let accepted = Cell(0)
                listener.onConnection = { stream in
                    accepted.value += 1
                    listener.close()
                    stream.close()
                }
                let done = Countdown(5) { loop.stop() }
                for _ in 0..<5 {
                    ByteStream.connect(loop: loop, to: address, timeout: .seconds(5)) { result in
                        if case .success(let stream) = result {
                            stream.onClose = { _ in done() }
                            stream.onEnd = {
                                stream.close()
                                done()
                            }
                            stream.resumeReading()
                        } else {
                            done()
                        }
                    }
                }
                loop.run()
                #expect(accepted.value == 1)
                loop.stop()
            }
        }

        @Test func aUnixSocketHasItsModeKnowsItsPeerAndIsRemovedWithTheListener() throws {
            try withDirectory { directory in
                let path = directory + "/s"
                try withLoop { loop in
                    let listener = try Listener(loop: loop, bind: unix(path), mode: 0o640)
                    var facts = stat()
                    #expect(lstat(path, &facts) == 0)
                    #expect(facts.st_mode & 0o777 == 0o640)
                    #expect(listener.localAddress == unix(path))
                    listener.onConnection = { far in
                        #expect(far.peerUID == getuid())
                        far.write([1])
                        far.shutdown()
                    }
                    ByteStream.connect(loop: loop, to: unix(path), timeout: .seconds(5)) { result in
                        guard case .success(let near) = result else {
                            Issue.record("\(result)")
                            return loop.stop()
                        }
                        #expect(near.peerUID == getuid())
                        near.collect { got in
                            #expect(got == [1])
                            listener.close()
                            loop.stop()
                        }
                    }
                }
                #expect(access(path, F_OK) != 0)
            }
        }

        @Test func theFileOfADeadServerIsReplacedThatOfALivingOneIsNotAndNoOtherFileIsTouched() throws {
            try withDirectory { directory in
                let path = directory + "/s"
                // A server that was killed leaves its file.
                let dead = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
                #expect(bindUnix(dead, path) == 0 && listen(dead, 1) == 0)
                close(dead)
                #expect(access(path, F_OK) == 0)
                try withLoop { loop in
                    let listener = try Listener(loop: loop, bind: unix(path))
                    #expect(throws: UVError(errno: EADDRINUSE)) { try Listener(loop: loop, bind: unix(path)) }
                    #expect(access(path, F_OK) == 0, "the living one keeps its file")
                    listener.close()
                    loop.stop()
                }
                // Connecting to a plain file is refused just as by a dead server.
                let file = directory + "/precious"
                close(open(file, O_CREAT | O_WRONLY | O_CLOEXEC, 0o600))
                try withLoop { loop in
                    #expect(throws: UVError(errno: EADDRINUSE)) { try Listener(loop: loop, bind: unix(file)) }
                    #expect(throws: UVError(errno: ENAMETOOLONG)) {
                        try Listener(loop: loop, bind: unix(directory + "/" + String(repeating: "x", count: 120)))
                    }
                    loop.stop()
                }
                #expect(access(file, F_OK) == 0)
            }
        }

        @Test func aServerWhoseQueueIsFullLives() throws {
            try withDirectory { directory in
                let path = directory + "/s"
                let server = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
                #expect(bindUnix(server, path) == 0 && listen(server, 0) == 0)
                var clients: [Int32] = []
                for _ in 0..<3 {
                    let client = socket(
                        AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0)
                    _ = withUnixAddress(path) { connect(client, $0, $1) }
                    clients.append(client)
                }
                try withLoop { loop in
                    #expect(throws: UVError(errno: EADDRINUSE)) { try Listener(loop: loop, bind: unix(path)) }
                    loop.stop()
                }
                for descriptor in clients + [server] { close(descriptor) }
            }
        }

        @Test(arguments: [anyV4, anyV6]) func anInheritedTCPListenerServes(_ host: SocketAddress) throws {
            try withLoop { loop in
                // As a supervisor would hand it over: bound and listening already.
                let descriptor = try inheritable(loop, host)
                let listener = try Listener(loop: loop, adopting: descriptor)
                let address = try #require(listener.localAddress)
                #expect(address.host == host.host && address.port != 0)
                listener.onConnection = { far in
                    #expect(far.localAddress == address)
                    far.close()
                    loop.stop()
                }
                ByteStream.connect(loop: loop, to: address, timeout: .seconds(5)) { _ in }
            }
        }

        @Test func anInheritedUnixListenerServesAndKnowsItsPath() throws {
            try withDirectory { directory in
                let path = directory + "/s"
                try withLoop { loop in
                    let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
                    #expect(bindUnix(descriptor, path) == 0 && listen(descriptor, 8) == 0)
                    let listener = try Listener(loop: loop, adopting: descriptor)
                    #expect(listener.localAddress == unix(path))
                    listener.onConnection = { far in
                        #expect(far.peerUID == getuid())
                        far.close()
                        loop.stop()
                    }
                    ByteStream.connect(loop: loop, to: unix(path), timeout: .seconds(5)) { _ in }
                }
            }
        }

        @Test func whatCanNotListenIsRefusedAndClosed() throws {
            try withLoop { loop in
                let (reads, writes) = try pipePair()
                #expect(throws: UVError.invalid) { try Listener(loop: loop, adopting: reads) }
                #expect(!isOpen(reads))
                close(writes)
                let (a, b) = try socketPair()
                #expect(throws: UVError.self) { try Listener(loop: loop, adopting: a) }
                close(b)
                loop.stop()
                loop.run()
                #expect(!isOpen(a))
                loop.stop()
            }
        }
    }

    @Suite struct Descriptors {
        @Test func bytesAndDescriptorsArriveTogetherAndAreDuplicates() throws {
            let before = openDescriptors()
            try withLoop { loop in
                let (ours, theirs) = try DescriptorSocket.pair(loop: loop)
                let other = try DescriptorSocket(loop: loop, adopting: theirs)
                let (reads, writes) = try pipePair()
                other.onMessage = { bytes, descriptors in
                    #expect(bytes == [1, 2, 3])
                    #expect(descriptors.count == 2)
                    guard descriptors.count == 2 else { return loop.stop() }
                    var byte: UInt8 = 77
                    #expect(write(descriptors[1], &byte, 1) == 1)
                    byte = 0
                    #expect(read(descriptors[0], &byte, 1) == 1 && byte == 77)
                    for descriptor in descriptors { close(descriptor) }
                    ours.close()
                }
                other.onClose = { error in
                    #expect(error == nil)
                    loop.stop()
                }
                ours.send([1, 2, 3], descriptors: [reads, writes])
                close(reads)
                close(writes)
            }
            #expect(openDescriptors() == before)
        }

        @Test func largeMessagesQueueAndArriveWhole() throws {
            let before = openDescriptors()
            try withLoop { loop in
                let (ours, theirs) = try DescriptorSocket.pair(loop: loop)
                let other = try DescriptorSocket(loop: loop, adopting: theirs)
                let bytes = pattern(3_000_000)
                let (got, came) = (Cell<[UInt8]>([]), Cell(0))
                other.onMessage = { chunk, descriptors in
                    got.value += chunk
                    came.value += descriptors.count
                    for descriptor in descriptors { close(descriptor) }
                    if got.value.count == 2 * bytes.count {
                        other.close()
                        loop.stop()
                    }
                }
                ours.send(bytes, descriptors: [0])
                ours.send(bytes, descriptors: [0, 1])
                loop.run()
                #expect(got.value == bytes + bytes)
                #expect(came.value == 3)
                ours.close()
                loop.stop()
            }
            #expect(openDescriptors() == before)
        }

        @Test func whatTheOtherEndSaidBeforeItLeftIsReadThoughItLeftOurWordsUnread() throws {
            try withLoop { loop in
                let (ours, theirs) = try DescriptorSocket.pair(loop: loop)
                let got = Cell<[UInt8]>([])
                // Unread words make the kernel report an error beside what is readable.
                ours.send([9, 9, 9])
                var last = pattern(200_000)
                let wrote = send(theirs, &last, last.count, Int32(MSG_DONTWAIT))
                #expect(wrote > 100_000)
                close(theirs)
                ours.onMessage = { bytes, _ in got.value += bytes }
                ours.onClose = { error in
                    #expect(error?.name == "ECONNRESET")
                    #expect(got.value == Array(last.prefix(wrote)))
                    loop.stop()
                }
            }
        }

        @Test func sendingToOneThatLeftIsToldLaterAndAfterWhatItSaid() throws {
            let before = openDescriptors()
            try withLoop { loop in
                let (ours, theirs) = try DescriptorSocket.pair(loop: loop)
                let (got, told) = (Cell<[UInt8]>([]), Cell(0))
                var word: UInt8 = 5
                #expect(write(theirs, &word, 1) == 1)
                close(theirs)
                ours.onMessage = { bytes, _ in got.value += bytes }
                ours.onClose = { _ in
                    told.value += 1
                    #expect(got.value == [5])
                    loop.stop()
                }
                ours.send([1], descriptors: [0])
                ours.send([2], descriptors: [0])
                #expect(told.value == 0, "not inside the call")
                loop.run()
                #expect(told.value == 1)
                loop.stop()
            }
            #expect(openDescriptors() == before)
        }

        @Test func aDescriptorThatCanNotBeDuplicatedBreaksTheSocketRatherThanBeLeftOut() throws {
            try withLoop { loop in
                let (ours, theirs) = try DescriptorSocket.pair(loop: loop)
                ours.onClose = { error in
                    #expect(error?.name == "EBADF")
                    loop.stop()
                }
                ours.send([1], descriptors: [0, 9999])
                loop.run()
                var byte: UInt8 = 0
                #expect(read(theirs, &byte, 1) == 0, "nothing was sent")
                close(theirs)
                loop.stop()
            }
        }

        @Test func aListenerHandedToAnotherProgramServesThere() throws {
            try withLoop { loop in
                let descriptor = try inheritable(loop, anyV4)
                var options = ChildProcess.Options(
                    program: "python3",
                    arguments: [
                        "-c",
                        """
                        import socket, array
                        s = socket.socket(fileno=3)
                        data, extra, flags, address = s.recvmsg(16, socket.CMSG_SPACE(4))
                        fds = array.array("i"); fds.frombytes(extra[0][2][:4])
                        l = socket.socket(fileno=fds[0])
                        s.sendall(b"ready")
                        c, _ = l.accept()
                        c.sendall(b"served " + data)
                        c.close()
                        """,
                    ])
                let (ours, theirs) = try DescriptorSocket.pair(loop: loop)
                options.extraDescriptors = [theirs]
                let done = Countdown(2) { loop.stop() }
                let child = try ChildProcess(loop: loop, options: options) { status in
                    #expect(status == .exited(0))
                    done()
                }
                close(theirs)
                let address = try #require(localAddress(descriptor))
                ours.send(Array("you".utf8), descriptors: [descriptor])
                close(descriptor)
                ours.onMessage = { bytes, _ in
                    #expect(String(decoding: bytes, as: UTF8.self) == "ready")
                    ByteStream.connect(loop: loop, to: address, timeout: .seconds(5)) { result in
                        guard case .success(let stream) = result else {
                            Issue.record("\(result)")
                            return loop.stop()
                        }
                        stream.collect { got in
                            #expect(String(decoding: got, as: UTF8.self) == "served you")
                            stream.close()
                            done()
                        }
                    }
                }
                loop.run()
                child.kill(signal: SIGKILL)
                ours.close()
                loop.stop()
            }
        }
    }
}

private func withUnixAddress<T>(_ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> T) -> T {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
    return withUnsafePointer(to: &address) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
        }
    }
}

private func bindUnix(_ descriptor: Int32, _ path: String) -> Int32 {
    withUnixAddress(path) { bind(descriptor, $0, $1) }
}

/// A listening socket as a bare descriptor.
private func inheritable(_ loop: EventLoop, _ host: SocketAddress) throws -> Int32 {
    var family = AF_INET
    if case .v6 = host.host { family = AF_INET6 }
    let descriptor = socket(family, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    var storage = sockaddr_storage()
    let size: Int
    if family == AF_INET6 {
        size = MemoryLayout<sockaddr_in6>.size
        withUnsafeMutableBytes(of: &storage) { bytes in
            bytes.storeBytes(of: sa_family_t(AF_INET6), as: sa_family_t.self)
            // ::1 begins after family, port and flow.
            bytes[23] = 1
        }
    } else {
        size = MemoryLayout<sockaddr_in>.size
        withUnsafeMutableBytes(of: &storage) { bytes in
            bytes.storeBytes(of: sa_family_t(AF_INET), as: sa_family_t.self)
            bytes[4] = 127
            bytes[7] = 1
        }
    }
    let status = withUnsafePointer(to: &storage) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(descriptor, $0, socklen_t(size)) }
    }
    try #require(status == 0 && listen(descriptor, 16) == 0)
    return descriptor
}

/// Of an IPv4 socket.
private func localAddress(_ descriptor: Int32) -> SocketAddress? {
    var address = sockaddr_in()
    var size = socklen_t(MemoryLayout<sockaddr_in>.size)
    let status = withUnsafeMutablePointer(to: &address) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(descriptor, $0, &size) }
    }
    return status == 0 ? .loopback(port: UInt16(bigEndian: address.sin_port)) : nil
}
