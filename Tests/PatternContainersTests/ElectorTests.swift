import EventLoop
import Leases
import Model
import Testing
import Wire

@testable import PatternContainers

@Suite("Elector", .serialized)
struct ElectorTests {
    /// A source that says what it is told.
    private final class FixedSource: ElectionSource {
        var current: ElectionView? { didSet { onChange?() } }
        var onChange: (() -> Void)?
        var resigned = 0

        func resign(_ done: @escaping (CoterieError?) -> Void) {
            guard current?.isSelf ?? false else { return done(CoterieError(.conflict, "not the leader")) }
            resigned += 1
            current = nil
            done(nil)
        }

        func check(token: UInt64, _ done: @escaping (Result<Bool, CoterieError>) -> Void) { done(.success(token == 7)) }
    }

    private func endpoint(_ test: TestLoop, _ source: any ElectionSource) throws -> ElectorEndpoint {
        var options = ElectorOptions()
        options.listen = .loopback(port: 0)
        let endpoint = ElectorEndpoint(loop: test.loop, options: options, source: source, report: test.report)
        try endpoint.start()
        return endpoint
    }

    private func ask(_ test: TestLoop, _ address: SocketAddress, _ request: String, host: String = "localhost:4040")
        -> String
    {
        let client = TestClient(
            test.loop, address, say: "\(request) HTTP/1.1\r\nHost: \(host)\r\nConnection: close\r\n\r\n")
        #expect(test.run { client.hasEnded })
        return client.text
    }

    @Test func theHolderIsNamedAndDoubtIsSaid() throws {
        let test = try TestLoop()
        let source = FixedSource()
        let endpoint = try endpoint(test, source)
        defer { endpoint.stop() }
        let address = try #require(endpoint.localAddress)
        #expect(ask(test, address, "GET /").hasPrefix("HTTP/1.1 503"))
        source.current = ElectionView(holder: "pod-1", isSelf: true, token: 7, deadline: test.loop.now + .seconds(60))
        #expect(ask(test, address, "GET /").hasSuffix("{\"name\":\"pod-1\"}\n"))
        let state = ask(test, address, "GET /v1")
        #expect(state.contains("\"leader\":true") && state.contains("\"token\":7"))
        #expect(ask(test, address, "GET /v1/check?token=7").hasPrefix("HTTP/1.1 200"))
        #expect(ask(test, address, "GET /v1/check?token=6").hasPrefix("HTTP/1.1 409"))
        #expect(ask(test, address, "GET /nothing").hasPrefix("HTTP/1.1 404"))
        // Its own name past the deadline is what must never be said, told or not.
        source.current = ElectionView(holder: "pod-1", isSelf: true, token: 7, deadline: test.loop.now)
        #expect(ask(test, address, "GET /").hasPrefix("HTTP/1.1 503"))
        #expect(ask(test, address, "GET /v1").contains("\"leader\":false"))
    }

    @Test func browsersOfOtherSitesAreRefused() throws {
        let test = try TestLoop()
        let endpoint = try endpoint(test, FixedSource())
        defer { endpoint.stop() }
        let address = try #require(endpoint.localAddress)
        #expect(ask(test, address, "GET /", host: "evil.example").hasPrefix("HTTP/1.1 403"))
        let client = TestClient(
            test.loop, address,
            say:
                "POST /v1/resign HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\nConnection: close\r\n\r\n"
        )
        #expect(test.run { client.hasEnded })
        #expect(client.text.hasPrefix("HTTP/1.1 403"))
    }

    @Test func watchersHearChangesAndDoubt() throws {
        let test = try TestLoop()
        let source = FixedSource()
        let endpoint = try endpoint(test, source)
        defer { endpoint.stop() }
        let address = try #require(endpoint.localAddress)
        let client = TestClient(test.loop, address, say: "GET /v1/watch HTTP/1.1\r\nHost: localhost\r\n\r\n")
        #expect(test.run { client.text.contains("\"leader\":false") })
        source.current = ElectionView(
            holder: "pod-1", isSelf: false, token: 3, deadline: test.loop.now + .milliseconds(60))
        #expect(test.run { client.text.contains("\"name\":\"pod-1\"") })
        // Nobody says anything, and the view runs out.
        #expect(test.run { client.text.components(of: "\"name\":null") == 2 })
    }

    @Test func aCampaignLeadsRenewsAndPassesOn() throws {
        let test = try TestLoop()
        let leases = TestLeases(test.loop)
        func campaign(_ name: String, _ seed: UInt64) -> ElectionCampaign {
            ElectionCampaign(
                loop: test.loop, service: leases, name: "e", identity: ContainerIdentity(name: name, pod: name),
                ttl: .milliseconds(1_200),
                seed: seed, report: test.report)
        }
        let first = campaign("a", 1)
        let second = campaign("b", 2)
        first.start()
        #expect(test.run { first.leads })
        let token = try #require(first.current?.token)
        second.start()
        #expect(test.run { second.current?.holder == "a" })
        #expect(second.current?.isSelf == false)
        #expect(test.run { leases.renewals >= 3 })
        #expect(first.leads && first.current?.token == token)
        // Given up, it goes to who waits, with a larger token.
        var resigned = false
        first.resign { error in
            #expect(error == nil)
            resigned = true
        }
        #expect(!first.leads)
        #expect(test.run { resigned && second.leads })
        #expect((second.current?.token ?? 0) > token)
        #expect(test.run { first.current?.holder == "b" })
        var stopped = 0
        second.stop { stopped += 1 }
        first.stop { stopped += 1 }
        #expect(test.run { stopped == 2 })
    }

    @Test func whoCannotRenewStopsSayingSoBeforeTheLeasePassesOn() throws {
        let test = try TestLoop()
        let leases = TestLeases(test.loop)
        let campaign = ElectionCampaign(
            loop: test.loop, service: leases, name: "e", identity: ContainerIdentity(name: "a"),
            ttl: .milliseconds(1_600), seed: 1,
            report: test.report)
        var overAt: MonotonicTime?
        campaign.onTermOver = { overAt = test.loop.now }
        campaign.start()
        #expect(test.run { campaign.leads && leases.renewals > 0 })
        leases.isCut = true
        #expect(test.run { overAt != nil })
        #expect(!campaign.leads && campaign.current == nil)
        #expect(leases.view("e")?.holder != nil, "the lease outlasts the holder's own view of it")
        // The net is back before anybody else came: the same token again, or a later one, never both at once.
        leases.isCut = false
        #expect(test.run { campaign.leads })
        campaign.stop {}
    }
}

extension String {
    /// How often a text occurs.
    func components(of text: String) -> Int {
        var count = 0
        var rest = self[...]
        while let range = rest.firstRange(of: text) {
            count += 1
            rest = rest[range.upperBound...]
        }
        return count
    }
}
