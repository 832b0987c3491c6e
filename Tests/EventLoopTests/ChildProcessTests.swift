import CPlatform
import EventLoop
import Glibc
import Model
import Testing

extension EventLoopTests {
    @Suite struct Children {
        typealias Options = ChildProcess.Options

        /// A shell command, run to its end: how it ended, and what it wrote.
        private func run(
            _ command: String, _ set: (inout Options) -> Void = { _ in }, then: ((ChildProcess) -> Void)? = nil
        ) throws -> (ChildProcess.ExitStatus?, String) {
            var options = Options(program: "/bin/sh", arguments: ["-c", command])
            options.output = .pipe
            set(&options)
            let (status, text) = (Cell<ChildProcess.ExitStatus?>(nil), Cell(""))
            try withLoop { loop in
                let done = Countdown(2) { loop.stop() }
                let child = try ChildProcess(loop: loop, options: options) {
                    status.value = $0
                    done()
                }
                child.output?.collect {
                    text.value = String(decoding: $0, as: UTF8.self)
                    done()
                }
                then?(child)
            }
            return (status.value, text.value)
        }

        @Test func exitCodesAndSignalsAreTold() throws {
            for code: Int32 in [0, 1, 75, 255] {
                let (status, _) = try run("exit \(code)")
                #expect(status == .exited(code))
                #expect(status?.shellCode == code)
            }
            let (status, _) = try run("kill -TERM $$")
            #expect(status == .signaled(SIGTERM))
            #expect(status?.shellCode == 128 + SIGTERM)
            #expect(status?.description == "signal 15")
            let (killed, _) = try run("exec sleep 100") { _ in
            } then: {
                $0.kill(signal: SIGKILL)
            }
            #expect(killed == .signaled(SIGKILL))
        }

        @Test func argumentsEnvironmentAndDirectoryArrive() throws {
            let (status, text) = try run("printf '%s|' \"$A\" \"$HOME\" \"$(pwd)\" \"$@\"") {
                $0.arguments += ["sh", "one", "t w o", ""]
                $0.environment = ["A=b=c", "PATH=/usr/bin:/bin"]
                $0.directory = "/usr"
            }
            #expect(status == .exited(0))
            #expect(text == "b=c||/usr|one|t w o||")
        }

        @Test func theProgramIsLookedUpInThePathAndOursIsItsEnvironment() throws {
            let (status, text) = try run("") {
                $0.program = "env"
                $0.arguments = []
            }
            #expect(status == .exited(0))
            #expect(
                Set(text.split(separator: "\n")).isSuperset(
                    of: ChildProcess.currentEnvironment.filter { !$0.contains("\n") }.map { $0[...] }))
        }

        @Test func whatFailsInTheChildIsThrownHereAndLeaksNothing() throws {
            let before = openDescriptors()
            try withLoop { loop in
                func start(_ program: String, directory: String? = nil, extra: [Int32] = []) throws {
                    var options = Options(program: program, directory: directory)
                    (options.input, options.output, options.error) = (.pipe, .pipe, .pipe)
                    options.extraDescriptors = extra
                    _ = try ChildProcess(loop: loop, options: options) { _ in Issue.record("it never ran") }
                }
                #expect(throws: UVError(errno: ENOENT)) { try start("/no/such/program") }
                #expect(throws: UVError(errno: ENOENT)) { try start("no-such-program-in-the-path") }
                #expect(throws: UVError(errno: EACCES)) { try start("/etc/passwd") }
                #expect(throws: UVError(errno: ENOENT)) { try start("/bin/true", directory: "/no/such/directory") }
                #expect(throws: UVError(errno: EBADF)) { try start("/bin/true", extra: [9999]) }
                #expect(throws: UVError.invalid) { try start("/bin/true", extra: [Int32](repeating: 0, count: 80)) }
                loop.stop()
            }
            #expect(openDescriptors() == before)
            var status: Int32 = 0
            #expect(waitpid(-1, &status, WNOHANG) == -1 && errno == ECHILD, "no zombie stays")
        }

        @Test func tenMegabytesGoInAndComeOutOnBothOutputs() throws {
            let before = openDescriptors()
            let bytes = pattern(10 << 20)
            try withLoop(timeout: .seconds(20)) { loop in
                var options = Options(program: "/bin/sh", arguments: ["-c", "tee /dev/stderr"])
                (options.input, options.output, options.error) = (.pipe, .pipe, .pipe)
                let done = Countdown(3) { loop.stop() }
                let child = try ChildProcess(loop: loop, options: options) { status in
                    #expect(status == .exited(0))
                    done()
                }
                for stream in [child.output, child.error] {
                    try #require(stream).collect { got in
                        #expect(got == bytes)
                        done()
                    }
                }
                let input = try #require(child.input)
                input.write(bytes)
                // The command learns of the end only if the pipe is closed.
                input.shutdown()
                loop.run()
                #expect(input.isClosed)
                loop.stop()
            }
            #expect(openDescriptors() == before)
        }

        @Test func aChildThatDoesNotReadBreaksThePipe() throws {
            try withLoop { loop in
                var options = Options(program: "/bin/sh", arguments: ["-c", "exec <&-; exec sleep 100"])
                options.input = .pipe
                let child = try ChildProcess(loop: loop, options: options) { status in
                    #expect(status == .signaled(SIGTERM))
                    loop.stop()
                }
                let input = try #require(child.input)
                input.onClose = { error in
                    #expect(error?.name == "EPIPE")
                    child.kill(signal: SIGTERM)
                }
                input.write(pattern(1 << 20))
            }
        }

        @Test func extraDescriptorsTakeTheirPlacesAndNoOthersAreInherited() throws {
            let (reads, writes) = try pipePair()
            // One that our own children would inherit, were it not for the rule.
            let stray = dup(0)
            defer { close(stray) }
            let (status, text) = try run("echo three >&3; echo five >&5; ls /proc/self/fd | tr '\\n' ' '") {
                $0.extraDescriptors = [writes, 0, writes]
            }
            close(writes)
            #expect(status == .exited(0))
            #expect(text == "0 1 2 3 4 5 6 ", "the last is of ls itself")
            var buffer = [UInt8](repeating: 0, count: 100)
            let count = read(reads, &buffer, 100)
            #expect(String(decoding: buffer.prefix(max(count, 0)), as: UTF8.self) == "three\nfive\n")
            close(reads)
        }

        @Test func outputCanGoToADescriptorOfTheCaller() throws {
            try withLoop { loop in
                let (reads, writes) = try pipePair()
                var options = Options(program: "/bin/sh", arguments: ["-c", "echo out; echo err >&2"])
                (options.output, options.error) = (.descriptor(writes), .pipe)
                let done = Countdown(3) { loop.stop() }
                let child = try ChildProcess(loop: loop, options: options) { status in
                    #expect(status == .exited(0))
                    done()
                }
                #expect(child.output == nil && child.input == nil)
                #expect(isOpen(writes), "it stays ours")
                close(writes)
                for (stream, text) in [
                    (child.error, "err\n"), (try ByteStream.adopt(loop: loop, descriptor: reads), "out\n"),
                ] {
                    stream?.collect {
                        #expect(String(decoding: $0, as: UTF8.self) == text)
                        done()
                    }
                }
            }
        }

        @Test func aGroupIsKilledWholeAndAlsoAfterItsLeader() throws {
            for session in [false, true] {
                try withLoop { loop in
                    // Two more processes hold the pipe open; only their end closes it.
                    var options = Options(
                        program: "/bin/sh", arguments: ["-c", "sleep 100 & sleep 100 & echo $$; exit 3"])
                    options.output = .pipe
                    if session { options.newSession = true } else { options.newProcessGroup = true }
                    let (status, child) = (Cell<ChildProcess.ExitStatus?>(nil), Cell<ChildProcess?>(nil))
                    child.value = try ChildProcess(loop: loop, options: options) {
                        status.value = $0
                        #expect(child.value?.hasEnded == true)
                        child.value?.kill(signal: SIGKILL, group: true)
                        child.value?.killGroup(SIGKILL)
                    }
                    child.value?.output?.collect { _ in loop.stop() }
                    loop.run()
                    #expect(status.value == .exited(3))
                    loop.stop()
                }
                try withLoop { loop in
                    var options = Options(program: "/bin/sh", arguments: ["-c", "sleep 100 & echo up; wait"])
                    options.output = .pipe
                    options.newProcessGroup = !session
                    options.newSession = session
                    let done = Countdown(2) { loop.stop() }
                    let child = try ChildProcess(loop: loop, options: options) { status in
                        #expect(status == .signaled(SIGTERM))
                        done()
                    }
                    #expect(getpgid(child.pid) == child.pid)
                    #expect((getsid(child.pid) == child.pid) == session)
                    let output = try #require(child.output)
                    output.onBytes = { _ in child.kill(signal: SIGTERM, group: true) }
                    output.onEnd = { done() }
                    output.resumeReading()
                }
            }
        }

        @Test func withoutAGroupOfItsOwnOnlyTheProcessIsSignalled() throws {
            // Were the group meant, it would be ours.
            let (status, _) = try run("exec sleep 100") { _ in
            } then: { child in
                child.killGroup(SIGKILL)
                child.kill(signal: SIGTERM, group: true)
            }
            #expect(status == .signaled(SIGTERM))
        }

        @Test func signalsAreAtTheirDefaultsInTheChildAndNoneIsBlocked() throws {
            let before = signal(SIGPIPE, SIG_IGN)
            var set = sigset_t()
            sigemptyset(&set)
            sigaddset(&set, SIGUSR2)
            var original = sigset_t()
            pthread_sigmask(SIG_BLOCK, &set, &original)
            defer {
                pthread_sigmask(SIG_SETMASK, &original, nil)
                signal(SIGPIPE, before)
            }
            // No shell between: it sets some of its own.
            let (_, text) = try run("") {
                $0.program = "grep"
                $0.arguments = ["-E", "^Sig(Blk|Ign)", "/proc/self/status"]
            }
            #expect(text.trimmed == "SigBlk: 0000000000000000 SigIgn: 0000000000000000")
            var now = sigset_t()
            pthread_sigmask(SIG_BLOCK, nil, &now)
            #expect(sigismember(&now, SIGUSR2) == 1, "ours is as before")
            #expect(sigismember(&now, SIGTERM) == sigismember(&original, SIGTERM))
        }

        @Test func theDeathSignalComesWhenTheStarterDies() throws {
            try withLoop { loop in
                // The starter is a thread here: its end counts, too.
                let (reads, writes) = try pipePair()
                var id: pthread_t = 0
                final class Context: Sendable {
                    let writes: Int32
                    init(_ writes: Int32) { self.writes = writes }
                }
                let created = pthread_create(
                    &id, nil,
                    { context in
                        guard let context else { return nil }
                        let writes = Unmanaged<Context>.fromOpaque(context).takeRetainedValue().writes
                        guard let own = try? EventLoop() else { return nil }
                        var options = ChildProcess.Options(program: "/bin/sleep", arguments: ["100"])
                        options.output = .descriptor(writes)
                        options.parentDeathSignal = SIGKILL
                        _ = try? ChildProcess(loop: own, options: options) { _ in }
                        close(writes)
                        own.close()
                        return nil
                    }, Unmanaged.passRetained(Context(writes)).toOpaque())
                #expect(created == 0)
                pthread_join(id, nil)
                try ByteStream.adopt(loop: loop, descriptor: reads).collect { _ in loop.stop() }
                loop.run()
                // That loop was closed: nobody collected the child.
                var status: Int32 = 0
                #expect(waitpid(-1, &status, 0) > 0)
                #expect(status & 0x7F == SIGKILL)
                loop.stop()
            }
        }

        @Test(.enabled(if: getuid() == 0, "needs root")) func userAndGroupAreGivenUpForGood() throws {
            let (status, text) = try run("id -u; id -g; id -G; grep -E '^(Uid|Gid)' /proc/self/status") {
                ($0.user, $0.group) = (12_345, 23_456)
            }
            #expect(status == .exited(0))
            #expect(
                text.split(whereSeparator: \.isWhitespace).joined(separator: " ")
                    == "12345 23456 23456 Uid: 12345 12345 12345 12345 Gid: 23456 23456 23456 23456")
            // A user alone must not keep root's supplementary groups.
            let (_, groups) = try run("grep Groups /proc/self/status") { $0.user = 12_345 }
            #expect(groups.trimmed == "Groups:")
        }

        @Test func thousandsOfQuickChildrenLeaveNoDescriptorAndNoZombie() throws {
            let before = openDescriptors()
            try withLoop(timeout: .seconds(30)) { loop in
                let total = 2000
                let (started, ended) = (Cell(0), Cell(0))
                func next() {
                    guard started.value < total else { return }
                    started.value += 1
                    var options = Options(program: "/bin/true")
                    if started.value % 4 == 0 { options.output = .pipe }
                    do {
                        let child = try ChildProcess(loop: loop, options: options) { status in
                            #expect(status == .exited(0))
                            ended.value += 1
                            if ended.value == total { loop.stop() } else { next() }
                        }
                        child.output?.collect { _ in }
                    } catch {
                        Issue.record("\(error)")
                        loop.stop()
                    }
                }
                for _ in 0..<20 { next() }
                loop.run()
                #expect(ended.value == total)
                loop.stop()
            }
            #expect(openDescriptors() == before)
            var status: Int32 = 0
            #expect(waitpid(-1, &status, WNOHANG) == -1 && errno == ECHILD)
        }

        @Test func childrenThatEndedBeforeTheLoopLooksAreSeen() throws {
            try withLoop { loop in
                let done = Countdown(5) { loop.stop() }
                var pids: [Int32] = []
                for code: Int32 in 0..<5 {
                    let options = Options(program: "/bin/sh", arguments: ["-c", "exit \(code)"])
                    pids.append(
                        try ChildProcess(loop: loop, options: options) { status in
                            #expect(status == .exited(code))
                            done()
                        }.pid)
                }
                // All are zombies before the loop runs for the first time.
                for pid in pids {
                    var info = siginfo_t()
                    #expect(waitid(P_PID, UInt32(pid), &info, WEXITED | Int32(WNOWAIT)) == 0)
                }
            }
        }

        @Test func anEndThatSomebodyElseCollectedIsNotSuccess() throws {
            try withLoop { loop in
                let child = try ChildProcess(loop: loop, options: Options(program: "/bin/true")) { status in
                    #expect(status != .exited(0))
                    loop.stop()
                }
                var status: Int32 = 0
                #expect(waitpid(child.pid, &status, 0) == child.pid)
            }
        }

        @Test func anIgnoredSIGCHLDFromOurParentHidesNoExitCode() throws {
            let before = signal(SIGCHLD, SIG_IGN)
            defer { signal(SIGCHLD, before) }
            let (status, _) = try run("exit 7")
            #expect(status == .exited(7))
        }
    }
}

extension String {
    fileprivate var trimmed: String { split(whereSeparator: \.isWhitespace).joined(separator: " ") }
}
