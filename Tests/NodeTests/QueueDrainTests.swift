// What clients of the queue port see when a node stops: a command that was sent is answered, or was never read.
import EventLoop
import Glibc
import Model
import NodeCore
import Queues
import Testing
import Transport

@testable import Node

/// A queue port without a cluster behind it: a machine of its own answers after `delay`.
private final class Port {
    let server: QueueServer
    let address: SocketAddress
    private let loop: EventLoop
    private var machine = QueueMachine()
    private var index: UInt64 = 0
    /// Reserves that wait.
    private var waiting: [UInt64: QueueCommand] = [:]
    var delay = TimeSpan.zero
    /// Commands of clients that were executed.
    private(set) var executed: [QueueCommand] = []
    var onCommand: ((QueueCommand) -> Void)?
    private(set) var drainedAt: MonotonicTime?

    init(_ loop: EventLoop) throws {
        self.loop = loop
        server = QueueServer(loop: loop, nodeID: NodeID(high: 1, low: 2), version: "0")
        let listener = try Listener(loop: loop, bind: .loopback(port: 0))
        address = try #require(listener.localAddress)
        server.serve(listener, onlyFor: nil)
        server.onInput = { [weak self] input in self?.take(input) }
    }

    private func take(_ input: NodeInput) {
        switch input {
        case .local(let id, let command):
            let wait = command.wait
            guard case .queue(let command) = command.command else {
                // The end of a session.
                return after(.zero) { $0.server.completed(id, .success(.queue(.done))) }
            }
            onCommand?(command)
            after(delay) { port in
                let result = port.execute(command)
                if wait != nil, result == .reserved([]) {
                    port.waiting[id] = command
                } else {
                    port.server.completed(id, .success(.queue(result)))
                }
            }
        case .endWait(let id):
            if let command = waiting.removeValue(forKey: id) {
                after(.zero) { $0.server.completed(id, .success(.queue($0.execute(command)))) }
            }
        default: break
        }
    }

    private func execute(_ command: QueueCommand) -> QueueResult {
        index += 1
        executed.append(command)
        return machine.apply(command, index: index, now: 1)
    }

    private var underWay = 0

    private func after(_ span: TimeSpan, _ body: @escaping (Port) -> Void) {
        underWay += 1
        let timer = LoopTimer(loop: loop)
        timer.start(after: span) { [weak self] in
            timer.close()
            self?.underWay -= 1
            if let self { body(self) }
        }
    }

    func drain() { server.drain { [weak self] in self?.drainedAt = self?.loop.now } }

    /// Until it is drained, and all that it took is executed.
    func waitForTheEnd() async {
        // Commands end in call-backs of the port, the drain in one of the server: neither tells of the other.
        while drainedAt == nil || underWay > 0 { await loop.sleep(.milliseconds(5)) }
        server.stop()
    }

    /// Jobs that were put.
    var puts: Int {
        executed.reduce(0) { if case .put(let jobs) = $1 { $0 + jobs.count } else { $0 } }
    }
}

/// A client that blocks, on a thread of its own.
private struct Client: Sendable {
    let descriptor: Int32

    init(_ address: SocketAddress) {
        descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var limit = timeval(tv_sec: 10, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        var to = sockaddr_in()
        to.sin_family = sa_family_t(AF_INET)
        to.sin_port = address.port.bigEndian
        to.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        _ = withUnsafePointer(to: &to) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
    }

    func say(_ text: String) { _ = send(descriptor, text, text.utf8.count, Int32(MSG_NOSIGNAL)) }

    /// What comes next; nil at the end, or if the connection is reset.
    func hear(_ flags: Int32 = 0) -> String? {
        var bytes = [UInt8](repeating: 0, count: 65_536)
        let count = recv(descriptor, &bytes, bytes.count, flags)
        return count > 0 ? String(decoding: bytes[..<count], as: UTF8.self) : nil
    }

    /// True if the end is there already, after all that was said.
    var isAtEnd: Bool {
        var byte: UInt8 = 0
        return recv(descriptor, &byte, 1, Int32(MSG_DONTWAIT)) == 0
    }

    func close() { Glibc.close(descriptor) }
}

/// Runs `body` on another thread while the loop serves.
private func aside<T: Sendable>(_ loop: EventLoop, _ body: @escaping @Sendable () -> T) async -> T {
    await withCheckedContinuation { continuation in loop.blocking(body) { continuation.resume(returning: $0) } }
}

private let put = "put 0 0 60 1\r\nx\r\n"

@Suite struct QueueDrainTests {
    /// Had the end come a little later than the answer, the client's next command would have crossed with it.
    @Test func aClientFindsTheEndTogetherWithItsLastAnswer() throws {
        try onLoop { loop in
            for _ in 0..<100 {
                let port = try Port(loop)
                port.onCommand = { [weak port] _ in port?.drain() }
                let address = port.address
                let (answer, isAtEnd) = await aside(loop) {
                    let client = Client(address)
                    client.say(put)
                    let answer = client.hear()
                    let isAtEnd = client.isAtEnd
                    client.close()
                    return (answer, isAtEnd)
                }
                #expect(answer == "INSERTED 1\r\n")
                try #require(isAtEnd)
                await port.waitForTheEnd()
            }
        }
    }

    @Test func aClientBetweenTwoCommandsIsServedOnceMore() throws {
        try onLoop { loop in
            let port = try Port(loop)
            let address = port.address
            port.onCommand = { [weak port] _ in
                port?.onCommand = nil
                // While the client pauses.
                loop.beforeWaiting {
                    let timer = LoopTimer(loop: loop)
                    timer.start(after: .milliseconds(30)) {
                        timer.close()
                        port?.drain()
                    }
                }
            }
            let (first, second, isAtEnd) = await aside(loop) {
                let client = Client(address)
                client.say(put)
                let first = client.hear()
                // A client that is silent for less than the port waits.
                usleep(150_000)
                client.say(put)
                let second = client.hear()
                let isAtEnd = client.isAtEnd
                client.close()
                return (first, second, isAtEnd)
            }
            #expect(first == "INSERTED 1\r\n" && second == "INSERTED 2\r\n" && isAtEnd)
            await port.waitForTheEnd()
        }
    }

    @Test func aSilentClientIsNotWaitedForLongAndNobodyNewIsTaken() throws {
        try onLoop { loop in
            let port = try Port(loop)
            let address = port.address
            let begun = loop.now
            port.onCommand = { [weak port] _ in port?.drain() }
            // One that never says anything, and one whose command begins the stop.
            let silent = await aside(loop) { Client(address) }
            await aside(loop) {
                let client = Client(address)
                client.say("delete 1\r\n")
                _ = client.hear()
                client.close()
            }
            let refused = await aside(loop) {
                let client = Client(address)
                defer { client.close() }
                client.say(put)
                return client.hear() == nil
            }
            #expect(refused)
            let end = await aside(loop) { silent.hear() }
            #expect(end == nil)
            await port.waitForTheEnd()
            silent.close()
            let took = try #require(port.drainedAt) - begun
            #expect(took >= QueueServer.drainSilence && took < QueueServer.drainTime, "\(took)")
            #expect(port.puts == 0)
        }
    }

    @Test func aWaitingReserveIsToldAndAWorkerMayFinishItsJob() throws {
        try onLoop { loop in
            let port = try Port(loop)
            let address = port.address
            let (worker, waiting) = await aside(loop) {
                let worker = Client(address)
                worker.say(put)
                _ = worker.hear()
                worker.say("reserve\r\n")
                _ = worker.hear()
                let waiting = Client(address)
                waiting.say("reserve\r\n")
                // A reserve that waits has no answer to wait for: it is to have arrived.
                usleep(50_000)
                return (worker, waiting)
            }
            port.drain()
            let (told, deleted, isAtEnd) = await aside(loop) {
                let told = waiting.hear()
                waiting.close()
                // Longer than a silent client is waited for.
                usleep(700_000)
                worker.say("delete 1\r\n")
                let deleted = worker.hear()
                let isAtEnd = worker.isAtEnd
                worker.close()
                return (told, deleted, isAtEnd)
            }
            #expect(told == "TIMED_OUT\r\n" && deleted == "DELETED\r\n" && isAtEnd)
            await port.waitForTheEnd()
        }
    }

    /// It never comes to rest, so at some time no further command is begun: what was not answered was not executed.
    @Test func ofAClientThatNeverStopsWhatIsNotAnsweredWasNotExecuted() throws {
        try onLoop { loop in
            let port = try Port(loop)
            port.delay = .milliseconds(10)
            let address = port.address
            port.onCommand = { [weak port] _ in
                port?.onCommand = nil
                port?.drain()
            }
            let answers = await aside(loop) {
                let client = Client(address)
                // For 4 s.
                client.say(String(repeating: "delete 9\r\n", count: 400))
                var answers = ""
                while let text = client.hear() { answers += text }
                client.close()
                return answers
            }
            await port.waitForTheEnd()
            let count = port.executed.count
            #expect(count > 10 && count < 400 && answers == String(repeating: "NOT_FOUND\r\n", count: count))
        }
    }
}
