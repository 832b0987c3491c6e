import EventLoop
import Model
import Testing
import Transport

@testable import PatternContainers

@Suite("Service ambassador", .serialized)
struct ServiceAmbassadorTests {
    /// Dials a server of the test in the place of the cluster.
    private final class TestDialer: ServiceDialer {
        let loop: EventLoop
        let address: SocketAddress
        var failures = 0
        private(set) var dialled: [String] = []

        init(_ loop: EventLoop, _ address: SocketAddress) {
            self.loop = loop
            self.address = address
        }

        func dial(
            service: String, done: @escaping (Result<(stream: SecureStream, pending: [UInt8]), CoterieError>) -> Void
        ) {
            dialled.append(service)
            if failures > 0 {
                failures -= 1
                return loop.beforeWaiting { done(.failure(CoterieError(.unavailable, "nobody listens"))) }
            }
            ByteStream.connect(loop: loop, to: address, timeout: .seconds(2)) { [loop] result in
                switch result {
                case .success(let stream):
                    let secure = SecureStream(loop: loop, stream: stream, tls: nil)
                    secure.start()
                    done(.success((secure, Array("greeting "))))
                case .failure(let error): done(.failure(CoterieError(.unavailable, "\(error)")))
                }
            }
        }
    }

    private func ambassador(_ test: TestLoop, _ dialer: TestDialer, retries: Int = 3) throws -> ServiceAmbassador {
        var options = try ServiceAmbassadorOptions(queueArguments: ["--listen", "127.0.0.1:0"])
        options.retryDelay = .milliseconds(5)
        options.retries = retries
        let ambassador = ServiceAmbassador(loop: test.loop, options: options, dialer: dialer, report: test.report)
        try ambassador.start()
        return ambassador
    }

    @Test func theQueueIsDialledAndBytesGoBothWays() throws {
        let test = try TestLoop()
        let server = try ByteServer(test.loop)
        server.onBytes = { stream, bytes in stream.write(Array("re: ") + bytes) }
        let dialer = TestDialer(test.loop, server.address)
        dialer.failures = 2
        let ambassador = try ambassador(test, dialer)
        defer { ambassador.stop() }
        let client = TestClient(test.loop, try #require(ambassador.localAddress), say: "stats\r\n")
        #expect(test.run { client.text == "greeting re: stats\r\n" }, "\(client.text) \(test.said)")
        #expect(dialer.dialled == ["queue", "queue", "queue"])
        client.stream?.shutdown()
        #expect(test.run { client.hasEnded && ambassador.connectionCount == 0 })
    }

    @Test func aServiceThatIsNotThereClosesTheConnectionAndSaysSo() throws {
        let test = try TestLoop()
        let server = try ByteServer(test.loop)
        let dialer = TestDialer(test.loop, server.address)
        dialer.failures = 100
        let ambassador = try ambassador(test, dialer, retries: 1)
        defer { ambassador.stop() }
        let client = TestClient(test.loop, try #require(ambassador.localAddress), say: "x")
        #expect(test.run { client.hasEnded })
        #expect(test.said.contains { $0.contains("queue: nobody listens") })
    }
}
