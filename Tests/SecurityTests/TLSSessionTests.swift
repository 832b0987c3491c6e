import Model
import Testing

@testable import Security

/// Two sessions and the wire between them.
private struct Pair {
    let client: TLSSession
    let server: TLSSession
    var heardByClient: [UInt8] = []
    var heardByServer: [UInt8] = []

    init(_ clientKey: ClusterKey, _ serverKey: ClusterKey, recordsPerKey: Int = 1_000) throws {
        client = try TLSSession(role: .client, key: clientKey, recordsPerKey: recordsPerKey)
        server = try TLSSession(role: .server, key: serverKey, recordsPerKey: recordsPerKey)
    }

    /// Steps both until nothing moves; cipher text passes in pieces of `piece` bytes.
    mutating func run(piece: Int = 100_000) throws {
        while true {
            heardByClient += try client.step()
            let toServer = client.pump()
            for part in pieces(toServer, piece) {
                server.take(part)
                heardByServer += try server.step()
            }
            let toClient = server.pump()
            for part in pieces(toClient, piece) {
                client.take(part)
                heardByClient += try client.step()
            }
            if toServer.isEmpty && toClient.isEmpty { return }
        }
    }
}

private func pieces(_ bytes: [UInt8], _ size: Int) -> [ArraySlice<UInt8>] {
    stride(from: 0, to: bytes.count, by: size).map { bytes[$0..<min($0 + size, bytes.count)] }
}

extension TLSSession {
    fileprivate func take(_ bytes: some Collection<UInt8>) { Array(bytes).withUnsafeBytes { feed($0) } }
}

private func key(_ byte: UInt8) throws -> ClusterKey { try ClusterKey([UInt8](repeating: byte, count: 32)) }

private func failure(_ body: () throws -> Void) -> SecurityError? {
    do {
        try body()
        return nil
    } catch { return error as? SecurityError }
}

@Suite struct TLSSessionTests {
    @Test func twoSidesWithTheSameKeyShakeHandsAndTalk() throws {
        var pair = try Pair(key(1), key(1))
        #expect(failure { try pair.client.write([1]) } == .notWritable)
        try pair.run()
        #expect(pair.client.isEstablished && pair.server.isEstablished)
        #expect(!pair.client.isClosed && !pair.server.isClosed)
        try pair.client.write(Array("ping".utf8))
        try pair.server.write(Array("pong".utf8))
        try pair.run()
        #expect(pair.heardByServer == Array("ping".utf8))
        #expect(pair.heardByClient == Array("pong".utf8))
    }

    @Test func aHandshakeInSingleBytesSucceeds() throws {
        var pair = try Pair(key(1), key(1))
        try pair.run(piece: 1)
        #expect(pair.client.isEstablished && pair.server.isEstablished)
    }

    @Test func aDifferentKeyIsRefusedAndBothSidesSayWhy() throws {
        let pair = try Pair(key(1), key(2))
        _ = try pair.client.step()
        pair.server.take(pair.client.pump())
        #expect(failure { _ = try pair.server.step() } == .wrongKey)
        // The alert tells the client.
        pair.client.take(pair.server.pump())
        #expect(failure { _ = try pair.client.step() } == .wrongKey)
        #expect(failure { _ = try pair.client.step() } == .wrongKey, "the error stays")
        #expect(!pair.client.isEstablished && !pair.server.isEstablished)
        #expect("\(SecurityError.wrongKey)" == "the two sides have different cluster keys")
    }

    @Test func bytesThatAreNoTLSAreRefused() throws {
        let server = try TLSSession(role: .server, key: key(1))
        server.take(Array("GET / HTTP/1.1\r\n\r\n".utf8))
        guard case .handshake(let why) = failure({ _ = try server.step() }) else {
            Issue.record("not refused")
            return
        }
        #expect(why.contains("http request"))
    }

    @Test func aPeerThatNeverFinishesItsHandshakeIsBounded() throws {
        let server = try TLSSession(role: .server, key: key(1))
        // A handshake record that announces a client hello of 100 KiB.
        let record: [UInt8] = [22, 3, 1, 0x3F, 0xFF] + [1, 1, 0x90, 0] + [UInt8](repeating: 0, count: 0x3FFF - 4)
        var error: SecurityError?
        for _ in 0..<3 where error == nil {
            server.take(record)
            error = failure { _ = try server.step() }
        }
        #expect(error == .handshake("more than 16384 bytes before it was complete"))
    }

    @Test(arguments: [1_000, 16_384, 100_000]) func largeDataArrivesWholeBothWays(piece: Int) throws {
        var pair = try Pair(key(1), key(1))
        try pair.run()
        var generator = SeededGenerator(seed: 7)
        let up = (0..<1_000_000).map { _ in UInt8(truncatingIfNeeded: generator.next()) }
        let down = Array(up.reversed())
        try pair.client.write(up)
        try pair.server.write(down)
        try pair.run(piece: piece)
        #expect(pair.heardByServer == up)
        #expect(pair.heardByClient == down)
    }

    @Test func keysAreRenewedAfterManyRecords() throws {
        var pair = try Pair(key(1), key(1), recordsPerKey: 3)
        try pair.run()
        for i in 0..<20 {
            try pair.client.write([UInt8(i)])
            try pair.server.write([UInt8(100 + i)])
            try pair.run()
        }
        #expect(pair.heardByServer == (0..<20).map { UInt8($0) })
        #expect(pair.heardByClient == (100..<120).map { UInt8($0) })
    }

    @Test func aChangedByteInARecordEndsTheSession() throws {
        var pair = try Pair(key(1), key(1))
        try pair.run()
        try pair.client.write(Array("transfer 10".utf8))
        var record = pair.client.pump()
        record[record.count / 2] ^= 1
        pair.server.take(record)
        guard case .record = failure({ _ = try pair.server.step() }) else {
            Issue.record("not refused")
            return
        }
        guard case .record = failure({ try pair.server.write([1]) }) else {
            Issue.record("a failed session can be written to")
            return
        }
    }

    @Test func aRecordSentTwiceIsRefused() throws {
        var pair = try Pair(key(1), key(1))
        try pair.run()
        try pair.client.write([1, 2, 3])
        let record = pair.client.pump()
        pair.server.take(record)
        #expect(try pair.server.step() == [1, 2, 3])
        pair.server.take(record)
        guard case .record = failure({ _ = try pair.server.step() }) else {
            Issue.record("not refused")
            return
        }
    }

    @Test func aTruncatedRecordDeliversNothingAndIsNoEnd() throws {
        var pair = try Pair(key(1), key(1))
        try pair.run()
        try pair.client.write([UInt8](repeating: 9, count: 1_000))
        let record = pair.client.pump()
        pair.server.take(record.dropLast())
        #expect(try pair.server.step().isEmpty)
        #expect(!pair.server.isClosed)
        pair.server.take(record.suffix(1))
        #expect(try pair.server.step().count == 1_000)
    }

    @Test func afterAHalfCloseTheOtherDirectionGoesOn() throws {
        var pair = try Pair(key(1), key(1))
        try pair.run()
        try pair.client.write([1])
        pair.client.shutdown()
        pair.client.shutdown()
        #expect(failure { try pair.client.write([2]) } == .notWritable)
        try pair.run()
        #expect(pair.heardByServer == [1])
        #expect(pair.server.isClosed && !pair.client.isClosed)
        try pair.server.write([7, 8])
        pair.server.shutdown()
        try pair.run()
        #expect(pair.heardByClient == [7, 8])
        #expect(pair.client.isClosed)
    }

    @Test func randomBytesNeverCrashASession() throws {
        var generator = SeededGenerator(seed: 11)
        for round in 0..<300 {
            var pair = try Pair(key(1), key(1))
            if round % 2 == 0 { try pair.run() }
            let session = round % 3 == 0 ? pair.client : pair.server
            // Half of the rounds look like a record at first.
            var noise = (0..<Int(generator.next() % 400)).map { _ in UInt8(truncatingIfNeeded: generator.next()) }
            if round % 4 < 2 && noise.count > 5 {
                noise.replaceSubrange(0..<5, with: [22 + UInt8(round % 2), 3, 3, 0, UInt8(noise.count % 200)])
            }
            session.take(noise)
            let plain = (try? session.step()) ?? []
            #expect(plain.isEmpty)
            _ = session.pump()
        }
    }

    @Test func aKeyHas32BytesAndDoesNotPrintItself() throws {
        #expect(failure { _ = try ClusterKey([1, 2, 3]) } == .keyLength(3))
        let secret = try ClusterKey([UInt8](repeating: 0xAB, count: 32))
        #expect("\(secret)" == "ClusterKey(secret)")
        #expect(String(reflecting: secret) == "ClusterKey(secret)")
        var dumped = ""
        dump(secret, to: &dumped)
        #expect(!dumped.contains("171"))
        #expect(try ClusterKey.random() != ClusterKey.random())
        #expect(try key(1) == key(1))
    }
}
