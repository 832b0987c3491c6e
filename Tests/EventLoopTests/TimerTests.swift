import EventLoop
import Glibc
import Model
import Testing

extension EventLoopTests {
    @Suite struct Timers {
        @Test func aTimerIsNeverEarlyAndSoonAfter() throws {
            try withLoop { loop in
                let spans: [TimeSpan] = (1...40).map { .microseconds(Int64($0) * 700) }
                let done = Countdown(spans.count) { loop.stop() }
                for span in spans {
                    let begun = loop.now
                    LoopTimer(loop: loop).start(after: span) {
                        let took = loop.now - begun
                        #expect(took >= span)
                        #expect(took < span + .seconds(1))
                        done()
                    }
                }
            }
        }

        @Test func aThousandTimersFireInTheOrderOfTheirDeadlines() throws {
            try withLoop { loop in
                let fired = Cell<[Int]>([])
                let done = Countdown(1000) { loop.stop() }
                // After all are started.
                let start = loop.now + .milliseconds(200)
                // Started in an order that is not that of the deadlines; whole milliseconds apart, which is their grain.
                let numbers = (0..<1000).map { $0 * 7919 % 1000 }
                for number in numbers {
                    LoopTimer(loop: loop).start(at: start + .milliseconds(Int64(number / 10))) {
                        fired.value.append(number)
                        done()
                    }
                }
                loop.run()
                let milliseconds = fired.value.map { $0 / 10 }
                #expect(milliseconds == milliseconds.sorted())
                loop.stop()
            }
        }

        @Test func timersOfOneMillisecondFireInTheOrderOfTheirStart() throws {
            try withLoop { loop in
                let deadline = loop.now + .milliseconds(5)
                let fired = Cell<[Int]>([])
                let done = Countdown(50) { loop.stop() }
                for i in 0..<50 {
                    LoopTimer(loop: loop).start(at: deadline) {
                        fired.value.append(i)
                        done()
                    }
                }
                loop.run()
                #expect(fired.value == Array(0..<50))
                loop.stop()
            }
        }

        @Test func restartingInsideItsOwnCallBackWorksAndLetsInputThrough() throws {
            try withLoop { loop in
                let timer = LoopTimer(loop: loop)
                let count = Cell(0)
                // Of no length, for ever: libuv alone would never come back from it.
                func again() {
                    count.value += 1
                    #expect(!timer.isActive)
                    timer.start(after: .zero, again)
                }
                timer.start(after: .zero, again)
                let (a, b) = try socketPair()
                let stream = try ByteStream.adopt(loop: loop, descriptor: a)
                stream.onBytes = { _ in
                    if count.value >= 3 { loop.stop() }
                }
                stream.resumeReading()
                LoopTimer(loop: loop).start(after: .milliseconds(20)) {
                    var byte: UInt8 = 1
                    write(b, &byte, 1)
                    close(b)
                }
            }
        }

        @Test func startingAgainReplacesAndStopForgets() throws {
            try withLoop { loop in
                let (replaced, stopped) = (LoopTimer(loop: loop), LoopTimer(loop: loop))
                replaced.start(after: .milliseconds(1)) { Issue.record("replaced") }
                replaced.start(after: .milliseconds(20)) { loop.stop() }
                stopped.start(after: .milliseconds(1)) { Issue.record("stopped") }
                #expect(stopped.isActive)
                stopped.stop()
                #expect(!stopped.isActive)
                let closed = LoopTimer(loop: loop)
                closed.close()
                closed.close()
                closed.start(after: .zero) { Issue.record("closed") }
            }
        }

        @Test func aRepeatingTimerRepeatsUntilItIsStoppedInItsOwnCallBack() throws {
            try withLoop { loop in
                let timer = LoopTimer(loop: loop)
                let times = Cell<[MonotonicTime]>([loop.now])
                timer.start(every: .milliseconds(3)) {
                    times.value.append(loop.now)
                    if times.value.count == 6 {
                        timer.stop()
                        LoopTimer(loop: loop).start(after: .milliseconds(12)) { loop.stop() }
                    }
                }
                loop.run()
                #expect(times.value.count == 6)
                for (a, b) in zip(times.value, times.value.dropFirst()) { #expect(b - a >= .milliseconds(3)) }
                loop.stop()
            }
        }

        @Test func deadlinesBeyondAllReasonAreBorne() throws {
            try withLoop { loop in
                let (never, farSpan, past) = (LoopTimer(loop: loop), LoopTimer(loop: loop), LoopTimer(loop: loop))
                never.start(at: .distantFuture) { Issue.record("never") }
                farSpan.start(after: TimeSpan(nanoseconds: .max)) { Issue.record("never") }
                past.start(after: TimeSpan(nanoseconds: .min)) { loop.stop() }
                loop.run()
                #expect(never.isActive)
                never.close()
                farSpan.close()
                loop.stop()
            }
        }

        @Test func closingOneTimerInsideAnothersCallBackIsSafe() throws {
            try withLoop { loop in
                let (a, b) = (LoopTimer(loop: loop), LoopTimer(loop: loop))
                let deadline = loop.now + .milliseconds(2)
                a.start(at: deadline) {
                    a.close()
                    b.close()
                    LoopTimer(loop: loop).start(after: .milliseconds(5)) { loop.stop() }
                }
                b.start(at: deadline) { Issue.record("closed") }
            }
        }

        @Test func aRunningTimerKeepsItselfAndAnIdleOneIsFreed() throws {
            try withLoop { loop in
                weak var weakTimer: LoopTimer?
                do {
                    let timer = LoopTimer(loop: loop)
                    weakTimer = timer
                    timer.start(after: .milliseconds(1)) {}
                }
                #expect(weakTimer != nil)
                LoopTimer(loop: loop).start(after: .milliseconds(10)) { loop.stop() }
                loop.run()
                #expect(weakTimer == nil)
                loop.stop()
            }
        }
    }
}
