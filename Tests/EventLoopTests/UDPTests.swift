import EventLoop
import Glibc
import Model
import Testing

extension EventLoopTests {
    @Suite struct Datagrams {
        @Test(arguments: [anyV4, anyV6]) func datagramsArriveWholeWithTheirSender(_ host: SocketAddress) throws {
            try withLoop { loop in
                let (a, b) = (try UDPSocket(loop: loop, bind: host), try UDPSocket(loop: loop, bind: host))
                let (from, to) = (try #require(a.localAddress), try #require(b.localAddress))
                let sizes = [1, 2, 1400, 9000, 40_000, 65_000]
                let seen = Cell<[Int]>([])
                b.onDatagram = { bytes, sender in
                    #expect(sender == from)
                    #expect(bytes.elementsEqual(pattern(bytes.count)))
                    seen.value.append(bytes.count)
                    if seen.value.count == sizes.count { loop.stop() }
                }
                b.start()
                for size in sizes { a.send(pattern(size), to: to) }
                loop.run()
                #expect(seen.value == sizes)
                #expect(a.dropped == 0)
                a.close()
                b.close()
                loop.stop()
            }
        }

        @Test func aBatchArrivesInOrderAndNoneIsMixedUp() throws {
            try withLoop { loop in
                let (a, b) = (try UDPSocket(loop: loop, bind: anyV4), try UDPSocket(loop: loop, bind: anyV4))
                let to = try #require(b.localAddress)
                let next = Cell(0)
                b.onDatagram = { bytes, _ in
                    #expect(bytes.count == 100 + next.value % 7)
                    #expect(bytes[0] == UInt8(next.value & 255))
                    next.value += 1
                    if next.value == 150 { loop.stop() }
                }
                b.start()
                for i in 0..<150 { a.send([UInt8(i & 255)] + pattern(99 + i % 7), to: to) }
            }
        }

        @Test func emptyDatagramsAreIgnored() throws {
            try withLoop { loop in
                let (a, b) = (try UDPSocket(loop: loop, bind: anyV4), try UDPSocket(loop: loop, bind: anyV4))
                let to = try #require(b.localAddress)
                b.onDatagram = { bytes, _ in
                    #expect(bytes.count == 1)
                    loop.stop()
                }
                b.start()
                a.send([], to: to)
                a.send([1], to: to)
            }
        }

        @Test func whatIsTooLongIsDroppedAndCountedOnce() throws {
            try withLoop { loop in
                let socket = try UDPSocket(loop: loop, bind: anyV4)
                let to = try #require(socket.localAddress)
                socket.send([UInt8](repeating: 0, count: 65_508), to: to)
                #expect(socket.dropped == 1)
                socket.send([1], to: unix("/nowhere"))
                #expect(socket.dropped == 2)
                socket.onDatagram = { bytes, _ in
                    #expect(bytes.count == 65_507)
                    loop.stop()
                }
                socket.start()
                socket.send([UInt8](repeating: 0, count: 65_507), to: to)
                loop.run()
                #expect(socket.dropped == 2)
                loop.stop()
            }
        }

        @Test(arguments: [anyV4, anyV6]) func everyDeadPortIsToldWithItsAddressAndLiveOnesStillHear(
            _ host: SocketAddress
        ) throws {
            try withLoop { loop in
                let dead = Set(try deadAddresses(60, host))
                let (socket, live) = (try UDPSocket(loop: loop, bind: host), try UDPSocket(loop: loop, bind: host))
                let to = try #require(live.localAddress)
                let (refused, heard, inside) = (Cell<Set<SocketAddress>>([]), Cell(0), Cell(false))
                func check() { if refused.value == dead && heard.value == dead.count { loop.stop() } }
                socket.onRefused = { address in
                    #expect(!inside.value, "never from within send")
                    #expect(dead.contains(address))
                    refused.value.insert(address)
                    check()
                }
                live.onDatagram = { _, _ in
                    heard.value += 1
                    check()
                }
                socket.start()
                live.start()
                inside.value = true
                for address in dead {
                    socket.send([1, 2, 3], to: address)
                    // The refusal of the one before must not cost this one.
                    socket.send([4], to: to)
                }
                inside.value = false
                loop.run()
                #expect(socket.dropped == 0)
                loop.stop()
            }
        }

        @Test func aSocketMayBeClosedInsideItsCallBacks() throws {
            try withLoop { loop in
                let (a, b) = (try UDPSocket(loop: loop, bind: anyV4), try UDPSocket(loop: loop, bind: anyV4))
                let to = try #require(b.localAddress)
                let count = Cell(0)
                b.onDatagram = { _, _ in
                    count.value += 1
                    b.close()
                    b.close()
                    b.send([1], to: to)
                }
                b.start()
                for _ in 0..<20 { a.send([1], to: to) }
                a.onRefused = { _ in
                    a.close()
                    LoopTimer(loop: loop).start(after: .milliseconds(2)) { loop.stop() }
                }
                a.start()
                // Now nobody listens there.
                LoopTimer(loop: loop).start(after: .milliseconds(5)) { a.send([1], to: to) }
                loop.run()
                #expect(count.value == 1)
                loop.stop()
            }
        }

        @Test func aBindThatFailsFreesEverythingOnce() throws {
            let before = openDescriptors()
            try withLoop { loop in
                let socket = try UDPSocket(loop: loop, bind: anyV4)
                let taken = try #require(socket.localAddress)
                for _ in 0..<20 {
                    #expect(throws: UVError(errno: EADDRINUSE)) { try UDPSocket(loop: loop, bind: taken) }
                }
                #expect(throws: UVError.invalid) { try UDPSocket(loop: loop, bind: unix("/nowhere")) }
                loop.stop()
            }
            #expect(openDescriptors() == before)
        }

        @Test func oneThatWasNeverStartedGoesWithItsLastReference() throws {
            try withLoop { loop in
                let before = openDescriptors()
                do {
                    let socket = try UDPSocket(loop: loop, bind: anyV4)
                    #expect(openDescriptors() == before + 1)
                    withExtendedLifetime(socket) {}
                }
                loop.stop()
                loop.run()
                #expect(openDescriptors() == before)
                loop.stop()
            }
        }
    }
}
