import Model
import Testing
import Wire

@testable import Security

private func key(_ byte: UInt8) throws -> ClusterKey { try ClusterKey([UInt8](repeating: byte, count: 32)) }

private let alice = NodeID(high: 0x0102_0304_0506_0708, low: 99)
private let bob = NodeID(high: 0xB0B, low: 1)

private func hex(_ bytes: some Sequence<UInt8>) -> String {
    bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
}

/// The opener's refusal, or nil if it took the datagram.
private func refusal(_ opener: inout DatagramOpener, _ sealed: [UInt8]) -> SecurityError? {
    do throws(SecurityError) {
        _ = try opener.open(sealed[...])
        return nil
    } catch { return error }
}

@Suite struct DatagramTests {
    @Test func whatIsSealedIsOpenedWithItsSender() throws {
        var sealer = try DatagramSealer(key: key(1), sender: alice, startCounter: 5)
        var opener = try DatagramOpener(key: key(1))
        for plain in [[], [7], [UInt8](repeating: 3, count: DatagramSealer.maximumPlain)] as [[UInt8]] {
            let sealed = try sealer.seal(plain[...])
            #expect(sealed.count == plain.count + DatagramSealer.overhead)
            #expect(sealed.count <= Limits.datagramBytes)
            let opened = try opener.open(sealed[...])
            #expect(opened.sender == alice.short && opened.startCounter == 5 && opened.plain == plain)
        }
        #expect(DatagramSealer.overhead == 37)
    }

    @Test func moreThanADatagramHoldsIsRefused() throws {
        var sealer = try DatagramSealer(key: key(1), sender: alice, startCounter: 1)
        do {
            _ = try sealer.seal([UInt8](repeating: 0, count: DatagramSealer.maximumPlain + 1)[...])
            Issue.record("not refused")
        } catch { #expect(error == .limit("a datagram holds 1363 bytes, not 1364")) }
    }

    @Test func everyChangedByteIsRefused() throws {
        var sealer = try DatagramSealer(key: key(1), sender: alice, startCounter: 1)
        var opener = try DatagramOpener(key: key(1))
        let sealed = try sealer.seal([1, 2, 3, 4, 5])
        for i in sealed.indices {
            for bit in [UInt8(1), 0x80] {
                var changed = sealed
                changed[i] ^= bit
                let error = refusal(&opener, changed)
                #expect(error == (i == 0 ? .malformedDatagram : .forgedDatagram), "byte \(i)")
            }
        }
        for count in sealed.indices { #expect(refusal(&opener, Array(sealed[..<count])) != nil, "cut to \(count)") }
        #expect(refusal(&opener, sealed + [0]) == .forgedDatagram)
        // None of these attempts has spoilt it for the real one.
        #expect(opener.senderCount == 0)
        #expect(refusal(&opener, sealed) == nil)
    }

    @Test func anotherKeyOpensNothing() throws {
        var sealer = try DatagramSealer(key: key(1), sender: alice, startCounter: 1)
        var opener = try DatagramOpener(key: key(2))
        #expect(refusal(&opener, try sealer.seal([1])) == .forgedDatagram)
    }

    @Test func aDatagramIsTakenOnceAndReorderingIsHarmless() throws {
        var sealer = try DatagramSealer(key: key(1), sender: alice, startCounter: 1)
        var opener = try DatagramOpener(key: key(1))
        var sealed = try (0..<1_024).map { try sealer.seal([UInt8(truncatingIfNeeded: $0)]) }
        var generator = SeededGenerator(seed: 3)
        sealed.shuffle(using: &generator)
        for datagram in sealed { #expect(refusal(&opener, datagram) == nil) }
        for datagram in sealed { #expect(refusal(&opener, datagram) == .replayedDatagram) }
    }

    @Test func whatIsOlderThanTheWindowIsRefused() throws {
        var sealer = try DatagramSealer(key: key(1), sender: alice, startCounter: 1)
        var opener = try DatagramOpener(key: key(1))
        let sealed = try (0...1_025).map { _ in try sealer.seal([]) }
        #expect(refusal(&opener, sealed[1_025]) == nil)
        #expect(refusal(&opener, sealed[1]) == .replayedDatagram)
        #expect(refusal(&opener, sealed[2]) == nil)
        #expect(refusal(&opener, sealed[2]) == .replayedDatagram)
    }

    @Test func afterARestartOlderStartsAreRefused() throws {
        var first = try DatagramSealer(key: key(1), sender: alice, startCounter: 1)
        var second = try DatagramSealer(key: key(1), sender: alice, startCounter: 2)
        var opener = try DatagramOpener(key: key(1))
        let early = try first.seal([1])
        let late = try first.seal([2])
        let fresh = try second.seal([3])
        #expect(refusal(&opener, early) == nil)
        #expect(refusal(&opener, fresh) == nil, "counter 0 of a new start is new")
        #expect(refusal(&opener, late) == .staleSender)
        #expect(refusal(&opener, fresh) == .replayedDatagram)
        #expect(opener.senderCount == 1)
    }

    @Test func sendersAreToldApart() throws {
        var one = try DatagramSealer(key: key(1), sender: alice, startCounter: 1)
        var other = try DatagramSealer(key: key(1), sender: bob, startCounter: 1)
        var opener = try DatagramOpener(key: key(1))
        #expect(refusal(&opener, try one.seal([1])) == nil)
        #expect(refusal(&opener, try other.seal([1])) == nil)
        #expect(opener.senderCount == 2)
    }

    @Test func theSenderSilentLongestIsForgotten() throws {
        var opener = try DatagramOpener(key: key(1), senderLimit: 3)
        func sealed(_ sender: UInt64, start: UInt64 = 1) throws -> [UInt8] {
            var sealer = try DatagramSealer(key: key(1), sender: NodeID(high: sender, low: 0), startCounter: start)
            return try sealer.seal([])
        }
        for sender in 1...3 { #expect(refusal(&opener, try sealed(UInt64(sender))) == nil) }
        // Sender 1 is heard again, so 2 is the one to go.
        #expect(refusal(&opener, try sealed(1, start: 2)) == nil)
        #expect(refusal(&opener, try sealed(4)) == nil)
        #expect(opener.senderCount == 3)
        #expect(refusal(&opener, try sealed(1, start: 2)) == .replayedDatagram)
        #expect(refusal(&opener, try sealed(3)) == .replayedDatagram)
        #expect(refusal(&opener, try sealed(4)) == .replayedDatagram)
        #expect(refusal(&opener, try sealed(2)) == nil, "forgotten")
    }

    @Test func theFormatIsTheOneCommitted() throws {
        var sealer = try DatagramSealer(key: key(0x42), sender: alice, startCounter: 7)
        _ = try sealer.seal([])
        let sealed = try sealer.seal(Array("gossip".utf8)[...])
        // Key and cipher text were computed a second time with Python and `openssl enc -aes-128-ctr`.
        let golden = "010807060504030201070000000100000000000000"
        #expect(hex(sealed).hasPrefix(golden))
        #expect(hex(sealed.dropFirst(21)) == "c56ff5418b8448ff20dac5c2c729558d93b522c3ad00")
    }

    @Test func randomBytesAreRefusedAndRememberNothing() throws {
        var opener = try DatagramOpener(key: key(1))
        var generator = SeededGenerator(seed: 5)
        for round in 0..<3_000 {
            var noise = (0..<Int(generator.next() % 1_500)).map { _ in UInt8(truncatingIfNeeded: generator.next()) }
            if round % 2 == 0 && !noise.isEmpty { noise[0] = 1 }
            #expect(refusal(&opener, noise) != nil)
        }
        #expect(opener.senderCount == 0)
    }

    @Test func keyDerivationGivesTheVectorsOfRFC5869() throws {
        // Appendix A.1 and A.3.
        let secret = [UInt8](repeating: 0x0B, count: 22)
        let first = try KeyDerivation.extract(salt: Array(0...12), secret: secret)
        #expect(hex(first) == "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5")
        #expect(
            hex(try KeyDerivation.expand(first, info: Array(0xF0...0xF9), count: 42))
                == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")
        let third = try KeyDerivation.extract(salt: [], secret: secret)
        #expect(
            hex(try KeyDerivation.expand(third, info: [], count: 42))
                == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8")
    }

    @Test func theReplayWindowAgreesWithASetOfAllSeen() {
        var window = ReplayWindow()
        var seen: Set<UInt64> = []
        var highest: UInt64 = 0
        var generator = SeededGenerator(seed: 17)
        for _ in 0..<20_000 {
            let counter: UInt64
            switch generator.next() % 10 {
            case 0: counter = highest + generator.next() % 3_000
            case 1...4: counter = highest + generator.next() % 4
            default: counter = highest - min(highest, generator.next() % 1_100)
            }
            let expected = !seen.contains(counter) && (seen.isEmpty || counter > highest || highest - counter < 1_024)
            #expect(window.admits(counter) == expected)
            if expected {
                window.remember(counter)
                seen.insert(counter)
                highest = max(highest, counter)
            }
        }
    }
}
