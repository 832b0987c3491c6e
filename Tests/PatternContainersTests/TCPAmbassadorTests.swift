import EventLoop
import Model
import Testing

@testable import PatternContainers

@Suite("TCP ambassador", .serialized)
struct TCPAmbassadorTests {
    private func echo(_ test: TestLoop) throws -> ByteServer {
        let server = try ByteServer(test.loop)
        server.onBytes = { stream, bytes in stream.write(bytes) }
        return server
    }

    @Test func aTargetThatRefusesIsPassedOver() throws {
        let test = try TestLoop()
        let (down, up) = (try ByteServer(test.loop), try echo(test))
        down.down()
        var options = TCPAmbassadorOptions(
            listen: .loopback(port: 0), to: [Endpoint(down.address), Endpoint(up.address)])
        options.retryDelay = .milliseconds(10)
        let ambassador = TCPAmbassador(loop: test.loop, options: options, report: test.report)
        try ambassador.start()
        defer { ambassador.stop() }
        let address = try #require(ambassador.localAddress)
        let clients = (0..<6).map { TestClient(test.loop, address, say: "hello \($0)") }
        #expect(test.run { clients.enumerated().allSatisfy { $1.text == "hello \($0)" } })
        #expect(ambassador.connectionCount == 6)
        for client in clients { client.close() }
        #expect(test.run { ambassador.connectionCount == 0 })
    }

    @Test func connectionsGoRoundTheTargets() throws {
        let test = try TestLoop()
        let servers = [try echo(test), try echo(test)]
        let options = TCPAmbassadorOptions(listen: .loopback(port: 0), to: servers.map { Endpoint($0.address) })
        let ambassador = TCPAmbassador(loop: test.loop, options: options, report: test.report)
        try ambassador.start()
        defer { ambassador.stop() }
        let address = try #require(ambassador.localAddress)
        let clients = (0..<4).map { _ in TestClient(test.loop, address, say: "x") }
        #expect(test.run { clients.allSatisfy { $0.text == "x" } })
        #expect(servers.map(\.connections) == [2, 2])
    }

    @Test func whatComesUpMeanwhileIsReachedAndNothingSaidIsLost() throws {
        let test = try TestLoop()
        let server = try echo(test)
        server.down()
        var options = TCPAmbassadorOptions(listen: .loopback(port: 0), to: [Endpoint(server.address)])
        options.retryDelay = .milliseconds(30)
        options.retries = 100
        let ambassador = TCPAmbassador(loop: test.loop, options: options, report: test.report)
        try ambassador.start()
        defer { ambassador.stop() }
        let client = TestClient(test.loop, try #require(ambassador.localAddress), say: "early words")
        test.run(for: .milliseconds(80))
        #expect(client.text.isEmpty)
        try server.up()
        #expect(test.run { client.text == "early words" })
    }

    @Test func afterItsRetriesTheConnectionIsClosedAndSaid() throws {
        let test = try TestLoop()
        let server = try echo(test)
        server.down()
        var options = TCPAmbassadorOptions(listen: .loopback(port: 0), to: [Endpoint(server.address)])
        options.retries = 2
        options.retryDelay = .milliseconds(5)
        let ambassador = TCPAmbassador(loop: test.loop, options: options, report: test.report)
        try ambassador.start()
        defer { ambassador.stop() }
        let client = TestClient(test.loop, try #require(ambassador.localAddress), say: "")
        #expect(test.run { client.hasEnded })
        #expect(test.said.contains { $0.contains("after 3 attempts") })
    }

    @Test func aHalfClosedDirectionLeavesTheOtherOpen() throws {
        let test = try TestLoop()
        let server = try ByteServer(test.loop)
        let options = TCPAmbassadorOptions(listen: .loopback(port: 0), to: [Endpoint(server.address)])
        let ambassador = TCPAmbassador(loop: test.loop, options: options, report: test.report)
        try ambassador.start()
        defer { ambassador.stop() }
        let big = String(repeating: "0123456789abcdef", count: 1 << 16)
        let client = TestClient(test.loop, try #require(ambassador.localAddress), say: big)
        #expect(test.run { client.stream != nil })
        client.stream?.shutdown()
        #expect(test.run { server.received.count == big.utf8.count })
    }
}
