// The loop itself: running, stopping, closing, posted work, the pool, the worker thread, and the length of turns.
import EventLoop
import Glibc
import Model
import Testing

extension EventLoopTests {
    @Suite struct Loop {
        @Test func runsAgainAfterItWasStopped() throws {
            try withLoop { loop in
                let timer = LoopTimer(loop: loop)
                timer.start(after: .milliseconds(1)) { loop.stop() }
                loop.run()
                #expect(!loop.isOnLoop)
                timer.start(after: .milliseconds(1)) {
                    #expect(loop.isOnLoop)
                    loop.stop()
                }
            }
        }

        @Test func stopBeforeRunReturnsAtOnceAndOnlyOnce() throws {
            try withLoop { loop in
                loop.stop()
                let ran = Cell(false)
                loop.beforeWaiting { ran.value = true }
                loop.run()
                #expect(ran.value, "what was gathered still leaves")
                let timer = LoopTimer(loop: loop)
                let fired = Cell(false)
                timer.start(after: .milliseconds(2)) {
                    fired.value = true
                    loop.stop()
                }
                loop.run()
                #expect(fired.value, "the stop was used up")
                loop.stop()
            }
        }

        @Test func bodiesAddedByBodiesRunInTheSamePassAndABoundKeepsInputComing() throws {
            try withLoop { loop in
                let (order, count) = (Cell<[Int]>([]), Cell(0))
                loop.beforeWaiting {
                    order.value.append(1)
                    loop.beforeWaiting { order.value.append(3) }
                }
                loop.beforeWaiting { order.value.append(2) }
                // Adds itself for ever: only a look at events in between can end it.
                func again() {
                    count.value += 1
                    loop.beforeWaiting(again)
                }
                again()
                let timer = LoopTimer(loop: loop)
                timer.start(after: .milliseconds(5)) {
                    #expect(order.value == [1, 2, 3])
                    #expect(count.value > 16)
                    loop.stop()
                }
            }
        }

        @Test func workPostedFromManyThreadsRunsOnceAndInOrderOfEachThread() throws {
            try withLoop { loop in
                let (threads, each) = (8, 2000)
                let seen = Unchecked(Cell(Array(repeating: [Int](), count: threads)))
                let left = Unchecked(Countdown(threads * each) { loop.stop() })
                let box = Unchecked(loop)
                var ids: [pthread_t] = []
                for number in 0..<threads {
                    ids.append(
                        startThread {
                            for i in 0..<each {
                                box.value.post {
                                    seen.value.value[number].append(i)
                                    left.value()
                                }
                            }
                        })
                }
                loop.run()
                for id in ids { pthread_join(id, nil) }
                for list in seen.value.value { #expect(list == Array(0..<each)) }
                loop.stop()
            }
        }

        @Test func postingFromPostedWorkDoesNotStarveTimers() throws {
            try withLoop { loop in
                let box = Unchecked(loop)
                @Sendable func again() { box.value.post { again() } }
                again()
                LoopTimer(loop: loop).start(after: .milliseconds(5)) { loop.stop() }
            }
        }

        @Test func theRunEndsOnTheThreadThatPosted() throws {
            try withLoop { loop in
                let box = Unchecked(loop)
                let id = startThread { box.value.post { box.value.stop() } }
                loop.run()
                pthread_join(id, nil)
                loop.stop()
            }
        }

        @Test func blockingWorkRunsElsewhereAndAnswersHere() throws {
            try withLoop { loop in
                let own = pthread_self()
                let answers = Cell<[Int]>([])
                let done = Countdown(20) { loop.stop() }
                for i in 0..<20 {
                    loop.blocking {
                        (i * i, pthread_equal(own, pthread_self()) == 0)
                    } then: { answer in
                        #expect(answer.1, "on another thread")
                        #expect(loop.isOnLoop)
                        answers.value.append(answer.0)
                        done()
                    }
                }
                loop.run()
                #expect(answers.value.sorted() == (0..<20).map { $0 * $0 })
                loop.stop()
            }
        }

        @Test func blockingWorkMayAnswerNothing() throws {
            try withLoop { loop in
                loop.blocking {
                    Int?.none
                } then: { answer in
                    #expect(answer == nil)
                    loop.stop()
                }
            }
        }

        @Test func closeClosesWhatWasLeftOpenWithoutCallingBack() throws {
            let before = openDescriptors()
            let loop = try EventLoop()
            let timer = LoopTimer(loop: loop)
            timer.start(every: .milliseconds(1)) { Issue.record("called back") }
            let socket = try UDPSocket(loop: loop, bind: anyV4)
            socket.start()
            let idle = try UDPSocket(loop: loop, bind: anyV4)
            let listener = try Listener(loop: loop, bind: anyV4)
            let stream = try ByteStream.adopt(loop: loop, descriptor: try pipePair().0)
            stream.onClose = { _ in Issue.record("called back") }
            let (a, b) = try socketPair()
            let descriptors = try DescriptorSocket(loop: loop, adopting: a)
            descriptors.onClose = { _ in Issue.record("called back") }
            let watcher = try DirectoryWatcher(loop: loop, path: "/tmp") { _ in }
            let signals = try SignalWatcher(loop: loop, signal: SIGUSR1) {}
            loop.post { Issue.record("dropped") }
            loop.beforeWaiting { Issue.record("dropped") }
            loop.close()
            loop.close()
            close(b)
            #expect(stream.isClosed)

            // All of it is inert now, and so is what is made on the loop afterwards.
            stream.write([1])
            stream.resumeReading()
            stream.shutdown()
            descriptors.send([1])
            socket.send([1], to: anyV4)
            idle.send([1], to: anyV4)
            timer.start(after: .zero) { Issue.record("called back") }
            LoopTimer(loop: loop).start(after: .zero) { Issue.record("called back") }
            #expect(throws: UVError.canceled) { try UDPSocket(loop: loop, bind: anyV4) }
            #expect(throws: UVError.canceled) { try Listener(loop: loop, bind: anyV4) }
            let (reads, writes) = try pipePair()
            #expect(throws: UVError.canceled) { try ByteStream.adopt(loop: loop, descriptor: reads) }
            close(writes)
            loop.post { Issue.record("dropped") }
            loop.blocking({ 1 }, then: { _ in Issue.record("dropped") })
            loop.run()
            socket.close()
            listener.close()
            watcher.close()
            signals.close()
            // The writing end of the first pipe is still open.
            #expect(openDescriptors() <= before + 1)
        }

        @Test func closeFreesTheLoopAndItsOwners() throws {
            weak var weakLoop: EventLoop?
            weak var weakTimer: LoopTimer?
            do {
                let loop = try EventLoop()
                let timer = LoopTimer(loop: loop)
                timer.start(every: .seconds(100)) {}
                (weakLoop, weakTimer) = (loop, timer)
                loop.close()
            }
            #expect(weakLoop == nil)
            #expect(weakTimer == nil)
        }

        @Test func closeWaitsForWorkOnThePool() throws {
            let loop = try EventLoop()
            let answered = Cell(false)
            loop.blocking({ usleep(30_000) }, then: { answered.value = true })
            loop.close()
            #expect(answered.value)
        }

        @Test func theLongestTurnCountsCallBacksOfAnyKindAndNotTheWait() throws {
            try withLoop { loop in
                let (a, b) = try socketPair()
                let stream = try ByteStream.adopt(loop: loop, descriptor: a)
                let idle = LoopTimer(loop: loop)
                stream.onBytes = { _ in
                    // Input is called back from inside libuv's wait.
                    let end = loop.now + .milliseconds(20)
                    while loop.now < end {}
                    stream.close()
                    idle.start(after: .milliseconds(60)) { loop.stop() }
                }
                stream.resumeReading()
                _ = loop.takeLongestTurn()
                LoopTimer(loop: loop).start(after: .milliseconds(1)) {
                    var byte: UInt8 = 1
                    #expect(write(b, &byte, 1) == 1)
                }
                loop.run()
                close(b)
                #expect(loop.longestTurn >= .milliseconds(20))
                #expect(loop.longestTurn < .milliseconds(60), "waiting is no turn")
                #expect(loop.takeLongestTurn() >= .milliseconds(20))
                #expect(loop.longestTurn == .zero)
                loop.stop()
            }
        }
    }

    @Suite struct Worker {
        @Test func workRunsInOrderAndAnswersOnTheLoop() throws {
            try withLoop { loop in
                let worker = try WorkerThread(loop: loop, name: "a name that is longer than fifteen bytes")
                let (answers, done) = (Cell<[Int]>([]), Countdown(100) { loop.stop() })
                for i in 0..<100 {
                    worker.submit({ i }) {
                        #expect(loop.isOnLoop)
                        answers.value.append($0)
                        done()
                    }
                }
                loop.run()
                worker.stop()
                worker.stop()
                #expect(answers.value == Array(0..<100))
                loop.stop()
            }
        }

        @Test func stopLetsQueuedWorkEndAndItsAnswersWaitForTheNextRun() throws {
            let loop = try EventLoop()
            let worker = try WorkerThread(loop: loop, name: "w")
            let answers = Cell<[Int]>([])
            for i in 0..<50 { worker.submit({ i }) { answers.value.append($0) } }
            worker.stop()
            worker.submit({ 99 }) { _ in Issue.record("after stop nothing happens") }
            #expect(answers.value.isEmpty)
            loop.stop()
            loop.run()
            #expect(answers.value == Array(0..<50))
            loop.close()
        }

        @Test func answersThatNoRunAwaitsAreDroppedWithTheLoop() throws {
            weak var weakTimer: LoopTimer?
            let loop = try EventLoop()
            let worker = try WorkerThread(loop: loop, name: "w")
            do {
                let timer = LoopTimer(loop: loop)
                weakTimer = timer
                worker.submit({}) { timer.stop() }
            }
            worker.stop()
            loop.close()
            #expect(weakTimer == nil)
        }

        @Test func whatAnAnswerHoldsIsFreedOnTheLoopOnly() throws {
            final class Witness {
                let own = pthread_self()
                let wrong: Cell<Int>
                init(_ wrong: Cell<Int>) { self.wrong = wrong }
                deinit { if pthread_equal(own, pthread_self()) == 0 { wrong.value += 1 } }
            }
            try withLoop { loop in
                let worker = try WorkerThread(loop: loop, name: "w")
                let (wrong, done) = (Cell(0), Countdown(500) { loop.stop() })
                for _ in 0..<500 {
                    let witness = Witness(wrong)
                    worker.submit({}) {
                        withExtendedLifetime(witness) {}
                        done()
                    }
                }
                loop.run()
                worker.stop()
                #expect(wrong.value == 0)
                loop.stop()
            }
        }
    }
}

/// A plain thread; joined by the caller.
private func startThread(_ body: @escaping @Sendable () -> Void) -> pthread_t {
    final class Start: Sendable {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }
    var id: pthread_t = 0
    let status = pthread_create(
        &id, nil,
        { context in
            if let context { Unmanaged<Start>.fromOpaque(context).takeRetainedValue().body() }
            return nil
        }, Unmanaged.passRetained(Start(body)).toOpaque())
    #expect(status == 0)
    return id
}
