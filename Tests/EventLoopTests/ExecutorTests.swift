// Swift's concurrency on the loop's thread.
import EventLoop
import Glibc
import Model
import Testing

extension EventLoopTests {
    @Suite struct Executors {
        @Test func aTaskAndItsChildrenStayOnTheLoop() throws {
            try withLoopTask { loop in
                #expect(loop.isOnLoop)
                await Task.yield()
                #expect(loop.isOnLoop)
                let box = Unchecked(loop)
                let sum = await withTaskGroup(of: Int.self) { group in
                    for i in 0..<100 {
                        group.addTask {
                            #expect(box.value.isOnLoop)
                            await Task.yield()
                            return box.value.isOnLoop ? i : -1000
                        }
                    }
                    return await group.reduce(0, +)
                }
                #expect(sum == 4950)
                async let a = child(box)
                async let b = child(box)
                let both = await (a, b)
                #expect(both.0 && both.1)
            }
        }

        @Test func aContinuationComesBackToTheLoopFromAnyThread() throws {
            try withLoopTask { loop in
                for _ in 0..<50 {
                    let value = await withCheckedContinuation { continuation in
                        loop.blocking({ 7 }, then: { continuation.resume(returning: $0) })
                    }
                    #expect(value == 7)
                    #expect(loop.isOnLoop)
                }
                let fromElsewhere = await Elsewhere().answer()
                #expect(fromElsewhere == 3)
                #expect(loop.isOnLoop)
                await Task.detached {}.value
                #expect(loop.isOnLoop)
            }
        }

        @Test func anActorOfTheLoopIsEnteredFromCallBacksAndFromElsewhere() throws {
            try withLoop { loop in
                let actor = OnLoop(loop.serialExecutor)
                #expect(loop.serialExecutor.isIsolatingCurrentContext() == false)
                LoopTimer(loop: loop).start(after: .milliseconds(1)) {
                    #expect(loop.serialExecutor.isIsolatingCurrentContext() == true)
                    // No hop: the call-back is on the actor's executor already.
                    actor.assumeIsolated { $0.count += 1 }
                    let box = Unchecked(loop)
                    Task.detached {
                        for _ in 0..<200 { await actor.add(box) }
                        let end = await actor.count
                        box.value.post {
                            #expect(end == 201)
                            box.value.stop()
                        }
                    }
                }
            }
        }

        @Test func anActorOfTheLoopMaySleepOnIt() throws {
            try withLoop { loop in
                let actor = OnLoop(loop.serialExecutor)
                let box = Unchecked(loop)
                let start = loop.now
                Task.detached {
                    await actor.nap(box)
                    box.value.post { box.value.stop() }
                }
                loop.run()
                #expect(loop.now - start >= .milliseconds(5))
                loop.stop()
            }
        }

        @Test func sleepIsNeverEarlyAndSleepersWakeInOrder() throws {
            try withLoopTask { loop in
                let box = Unchecked(loop)
                let order = Unchecked(Cell<[Int]>([]))
                let start = loop.now
                await withTaskGroup(of: Void.self) { group in
                    for i in [3, 1, 2] {
                        group.addTask {
                            await box.value.sleep(.milliseconds(Int64(i) * 10))
                            #expect(box.value.isOnLoop)
                            order.value.value.append(i)
                        }
                    }
                }
                #expect(order.value.value == [1, 2, 3])
                #expect(loop.now - start >= .milliseconds(30))
            }
        }

        @Test func manyTasksEnqueuedFromOtherThreadsAllRun() throws {
            try withLoop { loop in
                let actor = OnLoop(loop.serialExecutor)
                let box = Unchecked(loop)
                Task.detached {
                    await withTaskGroup(of: Void.self) { group in
                        for _ in 0..<1000 { group.addTask { await actor.add(box) } }
                    }
                    let count = await actor.count
                    box.value.post {
                        #expect(count == 1000)
                        box.value.stop()
                    }
                }
            }
        }

        private func child(_ loop: Unchecked<EventLoop>) async -> Bool {
            await Task.yield()
            return loop.value.isOnLoop
        }
    }
}

private actor OnLoop {
    nonisolated let executor: LoopSerialExecutor
    nonisolated var unownedExecutor: UnownedSerialExecutor { executor.asUnownedSerialExecutor() }
    var count = 0
    init(_ executor: LoopSerialExecutor) { self.executor = executor }

    func add(_ loop: Unchecked<EventLoop>) {
        if loop.value.isOnLoop { count += 1 }
    }

    func nap(_ loop: Unchecked<EventLoop>) async {
        await loop.value.sleep(.milliseconds(5))
        #expect(loop.value.isOnLoop)
    }
}

@globalActor private actor OtherActor { static let shared = OtherActor() }

private struct Elsewhere {
    @OtherActor func answer() async -> Int {
        await Task.yield()
        return 3
    }
}
