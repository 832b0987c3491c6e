import Client
import EventLoop
import Glibc
import Model
import Testing

@testable import PatternContainers

@Suite("Supplied containers")
struct PatternContainersTests {
    private struct NoCluster: Error {}

    @Test func namesAreTakenFromTheWords() throws {
        let (name, arguments) = try #require(PatternContainers.split(["ambassador", "redis", "--master", "a:1"]))
        #expect(name == "ambassador redis" && arguments == ["--master", "a:1"])
        #expect(PatternContainers.split(["ambassador"]) == nil)
        #expect(PatternContainers.split(["work", "t"])?.name == "work")
        #expect(PatternContainers.split(["worker", "--tube", "t"])?.name == "worker")
    }

    @Test(arguments: PatternContainers.names)
    func badWordsAreRefusedBeforeAClusterIsAsked(_ name: String) throws {
        let loop = try EventLoop()
        #expect {
            _ = try PatternContainers.make(name: name, arguments: ["--nonsense", "1"], loop: loop) { throw NoCluster() }
        } throws: { error in
            (error as? CoterieError)?.code == .badInput
        }
    }

    @Test(arguments: [
        ("elector", ["--election", "e"]), ("worker", ["--tube", "t", "--", "true"]), ("ambassador queue", []),
        ("elect", ["e", "--", "true"]),
        ("ambassador tcp", ["--listen", "127.0.0.1:0", "--service", "s"]),
    ])
    func thoseThatNeedAClusterSayWhyThereIsNone(_ name: String, _ arguments: [String]) throws {
        let loop = try EventLoop()
        #expect(throws: CoterieError(.noCluster, "no address")) {
            _ = try PatternContainers.make(name: name, arguments: arguments, loop: loop) {
                throw CoterieError(.noCluster, "no address")
            }
        }
    }

    @Test func aContainerStartsAndStopsWithCodeZero() throws {
        let test = try TestLoop()
        let container = try PatternContainers.make(
            name: "ambassador tcp", arguments: ["--listen", "127.0.0.1:0", "--to", "127.0.0.1:1"], loop: test.loop
        ) { throw NoCluster() }
        var events: [String] = []
        container.onExit = { events.append("exit \($0)") }
        try container.start()
        container.stop { events.append("stopped") }
        #expect(test.run { events.count == 2 })
        #expect(events == ["exit 0", "stopped"])
    }

    @Test func aListenerHandedOverIsUsed() throws {
        let environment = InheritedListeners(listenFDs: "2", names: "6379:4040")
        #expect(environment.descriptor(forPort: 4_040) == 4)
        #expect(environment.descriptor(forPort: 80) == nil)
        #expect(InheritedListeners(listenFDs: "x", names: "1").entries.isEmpty)
    }
}
