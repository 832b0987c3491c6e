import Model
import Testing

@testable import PatternContainers

@Suite("Arguments of containers")
struct ArgumentTests {
    private func message(_ body: () throws -> Void) -> String {
        do { try body() } catch let error as CoterieError {
            return error.code == .badInput ? error.description : "not bad input: \(error)"
        } catch { return "\(error)" }
        return "accepted"
    }

    @Test func redisTakesFlagsInBothForms() throws {
        let options = try RedisAmbassadorOptions(
            arguments: [
                "--listen=127.0.0.1:7000", "--master", "db:6379", "--replica", "10.0.0.2:6379", "--read-your-writes",
                "--reads=master",
            ])
        #expect(options.listen.port == 7_000)
        #expect(options.readYourWrites)
        #expect(options.reads == .master)
        #expect(message { _ = try RedisAmbassadorOptions(arguments: []) }.contains("--master"))
        #expect(message { _ = try RedisAmbassadorOptions(arguments: ["--master", "x"]) }.contains("not an address"))
    }

    @Test func tcpNeedsOneWayToItsService() throws {
        guard
            case .direct(let options) = try TCPAmbassadorPlan(
                arguments: [
                    "--listen", "127.0.0.1:0", "--to", "a:1", "--to", "b:2", "--connect-timeout", "250ms", "--retries",
                    "5",
                ])
        else {
            Issue.record("not direct")
            return
        }
        #expect(options.to.count == 2 && options.retries == 5 && options.connectTimeout == .milliseconds(250))
        #expect(message { _ = try TCPAmbassadorPlan(arguments: ["--listen", "127.0.0.1:0"]) }.contains("--service"))
        #expect(message { _ = try TCPAmbassadorPlan(arguments: ["--to", "a:1"]) }.contains("--listen"))
    }

    @Test func theAdapterNeedsExactlyOneKindOfWork() throws {
        _ = try RecordAdapterOptions(arguments: [
            "--watch", "/a/*.log", "--out", "/b", "--from", "csv", "--to", "template:{x}",
        ])
        #expect(
            message { _ = try RecordAdapterOptions(arguments: ["--watch", "a", "--out", "b"]) }.contains("exactly one"))
        #expect(
            message {
                _ = try RecordAdapterOptions(arguments: ["--watch", "a", "--out", "b", "--from", "xml", "--to", "json"])
            }.contains("xml"))
        #expect(
            message {
                _ = try RecordAdapterOptions(arguments: [
                    "--watch", "a", "--out", "b", "--filter", "cat", "--convert", "cat",
                ])
            }
            .contains("exactly one"))
    }

    @Test func theWorkerNeedsTubeAndCommand() throws {
        let options = try WorkerOptions(arguments: ["--tube", "mail", "--concurrency", "4", "--", "sh", "-c", "true"])
        #expect(options.concurrency == 4 && options.command == ["sh", "-c", "true"])
        #expect(try WorkerOptions(arguments: ["mail", "--", "true"], verb: "work", tubeIsOperand: true).tube == "mail")
        #expect(message { _ = try WorkerOptions(arguments: ["--tube", "mail"]) }.contains("after --"))
        #expect(message { _ = try WorkerOptions(arguments: ["--tube", "a b", "--", "x"]) }.contains("tube"))
        #expect(
            message { _ = try WorkerOptions(arguments: ["--tube", "a", "--concurrency", "0", "--", "x"]) }.contains(
                "1 to 1024"))
    }

    @Test func unknownAndRepeatedOptionsAreNamed() {
        #expect(message { _ = try ElectorOptions(arguments: ["--election", "a", "--nme", "b"]) }.contains("--nme"))
        #expect(
            message { _ = try ElectorOptions(arguments: ["--election", "a", "--election", "b"]) }.contains("twice"))
        #expect(message { _ = try ElectorOptions(arguments: ["--election", "a", "--ttl", "1ms"]) }.contains("500ms"))
        #expect(message { _ = try LogSidecarOptions(arguments: ["--to", "ftp://x"]) }.contains("ftp"))
        #expect(message { _ = try ElectedCommandOptions(arguments: ["name"]) }.contains("after --"))
    }

    @Test(arguments: [
        (Int32(0), "delete"), (64, "bury"), (75, "release"), (76, "bury"), (79, "release"), (126, "bury"),
        (127, "bury"), (1, "release"), (137, "release"),
    ])
    func exitCodesDecideAnItemsFate(_ code: Int32, _ verdict: String) {
        #expect("\(WorkerOptions.verdict(code))" == verdict)
    }

    @Test func delaysGrowToTheirLimit() {
        let options = WorkerOptions(tube: "t", command: ["true"])
        #expect(options.delay(reserves: 1) == .seconds(1))
        #expect(options.delay(reserves: 3) == .seconds(4))
        #expect(options.delay(reserves: .max) == .seconds(300))
    }
}
