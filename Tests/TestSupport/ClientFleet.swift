// Clients that work beside a test and write down what they saw: each asks one thing after another through a node of its own
// first, and follows the cluster when that goes. They are the product's own client library, on one loop on one thread.
import Client
import EventLoop
import Foundation
import Leases
import Model
import NodeCore
import Queues
import Wire

/// Who works in a fleet.
public struct FleetPlan: Sendable {
    public var writers = 4
    public var readers = 2
    public var electors = 2
    /// How long one client waits for one answer.
    public var deadline = TimeSpan.seconds(20)
    /// Bytes of a job.
    public var bodyBytes = 200
    /// The number of the first client: fleets that work on one tube at once have clients of different numbers.
    public var firstClient = 0
    /// Readers ask once, and then only when ``ClientFleet/readNow()`` says so.
    public var readsOnDemand = false
    /// Each client knows one node only, and does not follow the cluster.
    public var isPinned = false

    public init() {}
}

/// Clients at work on a loop of their own. Sendable: what changes is behind the lock.
public final class ClientFleet: @unchecked Sendable {
    public let tube: String
    private let plan: FleetPlan
    private let thread: FleetThread
    private let addresses: [SocketAddress]
    private let lock = NSLock()
    private var operations: [FleetOperation] = []
    private var newestJobs: [UInt64] = []
    private var puts = 0
    private var failures = 0
    private var demands = 0
    private var readsBegun = 0
    private var isStopping = false
    private var working = 0

    /// Starts the clients at once.
    ///
    /// - Parameter addresses: of the nodes, as in `COTERIE_ADDRESS`; client *i* begins with number *i*.
    public init(_ addresses: [String], tube: String = "fleet", plan: FleetPlan = FleetPlan()) throws {
        self.tube = tube
        self.plan = plan
        self.addresses = addresses.compactMap { SocketAddress(text: $0) }
        guard self.addresses.count == addresses.count, !addresses.isEmpty else {
            throw TestFailure("no addresses: \(addresses)")
        }
        thread = try FleetThread.start()
        working = plan.writers + plan.readers + plan.electors
        let total = working
        thread.post { [self] in
            for number in 0..<total {
                Task(executorPreference: loop.taskExecutor) { [self] in await work(number, plan.firstClient + number) }
            }
        }
    }

    /// Acknowledged puts so far.
    public var acknowledged: Int { lock.withLock { puts } }
    /// Answers so far that were refusals or unknown outcomes.
    public var failed: Int { lock.withLock { failures } }
    public var record: FleetRecord { lock.withLock { FleetRecord(operations) } }

    /// Waits for `count` acknowledged puts more.
    public func untilMore(_ count: Int, within seconds: Double = 20) async throws {
        let before = acknowledged
        try await eventually("\(count) puts more than \(before)", within: seconds, every: 0.005) {
            self.acknowledged >= before + count
        }
    }

    /// Every reader asks once more, on the connection that it has. Returns when all have asked, answered or not.
    public func readNow() async throws {
        let goal = lock.withLock { () -> Int in
            demands += 1
            return (demands + 1) * plan.readers
        }
        try await eventually("all readers ask", within: 10, every: 0.001) {
            self.lock.withLock { self.readsBegun } >= goal
        }
    }

    /// Lets every client finish what it has asked, and ends the fleet.
    public func stop() async throws -> FleetRecord {
        lock.withLock { isStopping = true }
        try await eventually("the clients have their last answers", within: 60, every: 0.005) {
            self.lock.withLock { self.working == 0 }
        }
        thread.stop()
        return record
    }

    // MARK: - Clients

    private var loop: EventLoop { thread.loop }
    private var goesOn: Bool { lock.withLock { !isStopping } }

    private func now() -> UInt64 { DispatchTime.now().uptimeNanoseconds }

    private func note(_ client: Int, _ kind: FleetOperation.Kind, _ begun: UInt64, _ answer: FleetOperation.Answer) {
        let ended = now()
        lock.withLock {
            operations.append(
                FleetOperation(client: client, kind: kind, begun: begun, ended: ended, answer: answer))
            switch answer {
            case .inserted(let id):
                puts += 1
                newestJobs.append(id)
                if newestJobs.count > 64 { newestJobs.removeFirst(32) }
            case .refused, .unknown: failures += 1
            default: break
            }
        }
    }

    private func work(_ number: Int, _ name: Int) async {
        let first = number % addresses.count
        let client = ClusterClient(
            loop: loop,
            endpoints: plan.isPinned ? [addresses[first]] : Array(addresses[first...] + addresses[..<first]),
            key: nil, origin: "a test", timeout: plan.deadline, givesUpOnNobody: false)
        if number < plan.writers {
            await write(client, name)
        } else if number < plan.writers + plan.readers {
            await read(client, name)
        } else {
            await elect(client, name)
        }
        client.close()
        lock.withLock { working -= 1 }
    }

    private func write(_ client: ClusterClient, _ number: Int) async {
        var count = 0
        let filler = String(repeating: ".", count: max(0, plan.bodyBytes - 16))
        while goesOn {
            let body = "\(number)-\(count)-" + filler
            count += 1
            let begun = now()
            let job = NewJob(tube: tube, ttrMilliseconds: FleetRecord.lifetime, body: Array(body.utf8))
            let answer: FleetOperation.Answer
            do throws(CoterieError) {
                switch try await client.command(.queue(.put([job]))) {
                case .queue(.inserted(let jobs)) where jobs.count == 1: answer = .inserted(jobs[0].id)
                case .queue(.refused(let code, let why)): answer = .refused("\(code): \(why)")
                case let other: answer = .job(body: "nonsense: \(other)")
                }
            } catch { answer = failure(error) }
            note(number, .put(body: body), begun, answer)
        }
    }

    private func read(_ client: ClusterClient, _ number: Int) async {
        var count = 0
        while goesOn {
            if plan.readsOnDemand && count > lock.withLock({ demands }) {
                await loop.sleep(.milliseconds(1))
                continue
            }
            count += 1
            let begun = now()
            lock.withLock { readsBegun += 1 }
            if count % 2 == 0, let id = lock.withLock({ newestJobs.last }) {
                let answer: FleetOperation.Answer
                do throws(CoterieError) {
                    answer = .job(body: try await client.query("jobs/\(id)")["body"]?.stringValue ?? "")
                } catch { answer = error.code == .notFound ? .noJob : failure(error) }
                note(number, .look(id: id), begun, answer)
            } else {
                note(number, .total, begun, await total(client))
            }
            // Writers are what the test is about.
            await loop.sleep(.milliseconds(2))
        }
    }

    private func total(_ client: ClusterClient) async -> FleetOperation.Answer {
        do throws(CoterieError) {
            return .total(Int(try await client.query("queues/\(tube)")["total-jobs"]?.intValue ?? -1))
        } catch { return error.code == .notFound ? .total(0) : failure(error) }
    }

    private func elect(_ client: ClusterClient, _ number: Int) async {
        let key = LeaseMachine.electionPrefix + tube
        let holder = "holder-\(number)"
        while goesOn {
            var begun = now()
            let asked = LeaseCommand.acquire(key: key, holder: holder, info: [:], ttlMilliseconds: FleetRecord.lifetime)
            let taken = await lease(client, asked)
            note(number, .acquire(holder: holder), begun, taken)
            if case .granted(let token) = taken {
                begun = now()
                note(number, .release(token: token), begun, await lease(client, .release(key: key, token: token)))
            }
            await loop.sleep(.milliseconds(5))
        }
    }

    private func lease(_ client: ClusterClient, _ command: LeaseCommand) async -> FleetOperation.Answer {
        do throws(CoterieError) {
            guard case .lease(let result) = try await client.command(.lease(command)) else { return .noJob }
            switch result {
            case .granted(let token, _): return .granted(token: token)
            case .held(let view): return .held(token: view.token, holder: view.holder?.id ?? "")
            case .released: return .released
            case .lost(let newest): return .notHeld(newest: newest)
            case .refused(let code, let why): return .refused("\(code): \(why)")
            case .renewed, .valid: return .noJob
            }
        } catch { return failure(error) }
    }

    private func failure(_ error: CoterieError) -> FleetOperation.Answer {
        error.code == .outcomeUnknown ? .unknown(error.description) : .refused(error.description)
    }
}

// MARK: - At the end

/// What a client finds once all is quiet.
public enum FleetEnd {
    /// All jobs of the tube, by reserving them all, asked at one node.
    public static func drain(_ address: String, tube: String) async throws -> [FoundJob] {
        try await ask(address) { client in
            var found: [FoundJob] = []
            while true {
                let result = try await client.command(.queue(.reserve(tubes: [tube], holder: 0, count: 1_024)))
                guard case .queue(.reserved(let jobs)) = result else { throw TestFailure("no jobs: \(result)") }
                if jobs.isEmpty { return found }
                found += jobs.map { FoundJob(id: $0.id, body: String(decoding: $0.body, as: UTF8.self)) }
            }
        }
    }

    /// The number of jobs ever put, as one node answers from its own state.
    public static func total(_ address: String, tube: String) async throws -> Int {
        try await ask(address) { client in
            Int(try await client.query("queues/\(tube)")["total-jobs"]?.intValue ?? -1)
        }
    }

    private static func ask<Value: Sendable>(
        _ address: String, _ body: @escaping @Sendable (ClusterClient) async throws -> Value
    ) async throws -> Value {
        guard let endpoint = SocketAddress(text: address) else { throw TestFailure("no address: \(address)") }
        let made = try FleetThread.start()
        defer { made.stop() }
        return try await withCheckedThrowingContinuation { continuation in
            made.post {
                Task(executorPreference: made.loop.taskExecutor) {
                    let client = ClusterClient(
                        loop: made.loop, endpoints: [endpoint], key: nil, origin: "a test", timeout: .seconds(20),
                        givesUpOnNobody: false)
                    defer { client.close() }
                    do { continuation.resume(returning: try await body(client)) } catch {
                        continuation.resume(throwing: error)
                    }
                }
            }
        }
    }
}

/// A loop on a thread of its own. Sendable: the loop is used on that thread only, but for `post`, which any thread may use.
private final class FleetThread: @unchecked Sendable {
    let loop: EventLoop

    private init(_ loop: EventLoop) { self.loop = loop }

    static func start() throws -> FleetThread {
        let slot = Slot()
        let thread = Thread {
            do {
                let loop = try EventLoop()
                slot.fill(.success(FleetThread(loop)))
                loop.run()
                loop.close()
            } catch { slot.fill(.failure(error)) }
        }
        thread.stackSize = 1 << 20
        thread.start()
        return try slot.wait()
    }

    func post(_ body: @escaping @Sendable () -> Void) { loop.post(body) }
    func stop() { loop.post { [self] in loop.stop() } }

    /// Sendable: filled once before the semaphore is signalled, read after it was waited for.
    private final class Slot: @unchecked Sendable {
        private let filled = DispatchSemaphore(value: 0)
        private var result: Result<FleetThread, any Error>?

        func fill(_ result: Result<FleetThread, any Error>) {
            self.result = result
            filled.signal()
        }

        func wait() throws -> FleetThread {
            filled.wait()
            guard let result else { throw TestFailure("no loop") }
            return try result.get()
        }
    }
}
