import EventLoop
import Glibc
import Model
import Queues
import Testing

@testable import PatternContainers

@Suite("Worker", .serialized)
struct WorkerTests {
    /// As much of a queue as a worker asks for.
    private final class TestQueue: QueueService {
        let loop: EventLoop
        private var ready: [ReservedJob] = []
        private(set) var reserved: [UInt64: ReservedJob] = [:]
        private(set) var told: [String] = []
        private(set) var touches = 0
        private var nextLease: UInt64 = 1
        /// Touches find the lease gone.
        var losesLeases = false
        /// So many answers fail first.
        var failures = 0
        private(set) var mostReserved = 0
        private(set) var hasReleasedHolder = false

        init(_ loop: EventLoop) { self.loop = loop }

        func put(_ id: UInt64, _ body: String, ttr: UInt64 = 10_000) {
            ready.append(
                ReservedJob(
                    id: id, tube: "t", priority: 5, ttrMilliseconds: ttr, lease: 0, reserves: 0, body: Array(body.utf8))
            )
        }

        func queue(
            _ command: QueueCommand, wait: TimeSpan?, done: @escaping (Result<QueueResult, CoterieError>) -> Void
        ) {
            if case .reserve = command {
            } else if failures > 0 {
                failures -= 1
                return loop.beforeWaiting { done(.failure(CoterieError(.unavailable, "no connection"))) }
            }
            func end(_ id: UInt64, _ lease: UInt64, _ what: String) {
                guard reserved[id]?.lease == lease else { return loop.beforeWaiting { done(.success(.leaseExpired)) } }
                reserved[id] = nil
                told.append("\(what) \(id)")
                loop.beforeWaiting { done(.success(.done)) }
            }
            switch command {
            case .reserve(_, _, let count):
                guard !ready.isEmpty || (wait ?? .zero) <= .zero else {
                    let timer = LoopTimer(loop: loop)
                    return timer.start(after: .milliseconds(5)) { [weak self] in
                        timer.close()
                        self?.queue(command, wait: wait.map { $0 - .milliseconds(5) }, done: done)
                    }
                }
                var jobs = Array(ready.prefix(count))
                ready.removeFirst(jobs.count)
                for i in jobs.indices {
                    jobs[i].lease = nextLease
                    jobs[i].reserves += 1
                    nextLease += 1
                    reserved[jobs[i].id] = jobs[i]
                }
                mostReserved = max(mostReserved, reserved.count)
                loop.beforeWaiting { done(.success(.reserved(jobs))) }
            case .delete(let id, let lease): end(id, lease ?? 0, "delete")
            case .bury(let id, let lease, _): end(id, lease, "bury")
            case .release(let id, let lease, let priority, let delay):
                #expect(priority == 5)
                end(id, lease, "release after \(delay)")
            case .touch:
                touches += 1
                let answer = losesLeases ? QueueResult.leaseExpired : .done
                loop.beforeWaiting { done(.success(answer)) }
            case .releaseHolder:
                hasReleasedHolder = true
                loop.beforeWaiting { done(.success(.done)) }
            default: Issue.record("unexpected \(command)")
            }
        }
    }

    private let scratch = TestDirectory()

    private func worker(
        _ test: TestLoop, _ queue: TestQueue, _ command: String, _ adjust: (inout WorkerOptions) -> Void = { _ in }
    ) throws -> Worker {
        var options = WorkerOptions(tube: "t", command: [command])
        options.scratch = scratch.path
        options.node = "node-1"
        options.wait = .seconds(1)
        adjust(&options)
        let worker = Worker(loop: test.loop, options: options, service: queue, report: test.report)
        try worker.start()
        return worker
    }

    private func stop(_ test: TestLoop, _ worker: Worker) {
        var code: Int32?
        worker.onExit = { code = $0 }
        worker.stop {}
        #expect(test.run { code == 0 })
    }

    @Test func theCommandGetsItemAndEnvironmentInAnEmptyDirectory() throws {
        let test = try TestLoop()
        let queue = TestQueue(test.loop)
        queue.put(7, "the body\n")
        let out = TestDirectory()
        let worker = try worker(
            test, queue,
            "{ cat \"$WORK_ITEM_FILE\"; cat; echo $COTERIE_TUBE $COTERIE_ITEM $COTERIE_NODE; ls; "
                + "set -- $(cat /proc/$$/stat); [ $5 = $$ ] && echo leads; } > \(out.path)/out"
        )
        #expect(test.run { queue.told == ["delete 7"] }, "\(queue.told) \(test.said)")
        #expect(out.lines("out") == ["the body", "the body", "t 7 node-1", "item", "leads"])
        stop(test, worker)
        #expect(scratch.names() == [])
        #expect(queue.hasReleasedHolder)
    }

    @Test func exitCodesDecide() throws {
        let test = try TestLoop()
        let queue = TestQueue(test.loop)
        for (id, code) in [
            (1, "exit 0"), (2, "exit 75"), (3, "exit 65"), (4, "exit 1"), (5, "kill -9 $$"), (6, "nonsuch-command"),
        ].enumerated() {
            queue.put(UInt64(id + 1), code.1)
        }
        let worker = try worker(test, queue, ". \"$WORK_ITEM_FILE\"") { $0.concurrency = 3 }
        #expect(test.run { queue.told.count == 6 }, "\(queue.told)")
        #expect(
            queue.told.sorted() == [
                "bury 3", "bury 6", "delete 1", "release after 1000 2", "release after 1000 4", "release after 1000 5",
            ])
        #expect(queue.mostReserved == 3)
        stop(test, worker)
        #expect(worker.deleted == 1 && worker.buried == 2 && worker.released == 3)
    }

    @Test func theLeaseIsKeptWhileTheCommandRunsAndTheAnswerIsRepeated() throws {
        let test = try TestLoop()
        let queue = TestQueue(test.loop)
        queue.put(1, "", ttr: 150)
        let worker = try worker(test, queue, "sleep 0.4")
        #expect(test.run { queue.touches >= 3 })
        queue.failures = 2
        #expect(test.run { queue.told == ["delete 1"] })
        stop(test, worker)
    }

    @Test func aCommandWhoseLeaseIsLostIsKilled() throws {
        let test = try TestLoop()
        let queue = TestQueue(test.loop)
        queue.losesLeases = true
        queue.put(1, "", ttr: 100)
        let worker = try worker(test, queue, "sleep 60 & sleep 60; true")
        #expect(test.run { test.said.contains { $0.contains("is lost") } })
        #expect(test.run { scratch.names() == [] })
        #expect(queue.told == [])
        stop(test, worker)
    }

    @Test func stoppingLetsFinishWhatCanAndGivesTheRestBack() throws {
        let test = try TestLoop()
        let queue = TestQueue(test.loop)
        queue.put(1, "sleep 0.2")
        queue.put(2, "sleep 60")
        let worker = try worker(test, queue, "sh \"$WORK_ITEM_FILE\"") {
            $0.concurrency = 2
            $0.grace = .milliseconds(500)
        }
        #expect(test.run { scratch.names().count == 2 })
        queue.put(3, "true")
        stop(test, worker)
        #expect(queue.told == ["delete 1", "release after 0 2"])
    }
}
