import EventLoop
import Glibc
import Model
import Testing

@testable import PatternContainers

@Suite("Elected command", .serialized)
struct ElectedCommandTests {
    private let directory = TestDirectory()

    private func elect(
        _ test: TestLoop, _ leases: TestLeases, _ name: String, _ command: String, ttl: TimeSpan = .seconds(2)
    ) -> ElectedCommand {
        var options = ElectedCommandOptions(election: "job", command: [command])
        options.ttl = ttl
        options.identity = ContainerIdentity(name: name)
        options.grace = .milliseconds(300)
        return ElectedCommand(loop: test.loop, options: options, service: leases, report: test.report)
    }

    /// Processes of the tree that a file's process ids name.
    private func alive(_ file: String) -> [Int32] {
        directory.lines(file).compactMap { Int32($0) }.filter { id in
            let stat = String(decoding: ReplacedOutput.read("/proc/\(id)/stat", limit: 4_096), as: UTF8.self)
            return !stat.isEmpty && !stat.contains(") Z ")
        }
    }

    @Test func theCommandRunsWithItsTokenAndItsCodeIsOurs() throws {
        let test = try TestLoop()
        let leases = TestLeases(test.loop)
        let elected = elect(test, leases, "a", "echo $COTERIE_FENCING_TOKEN > \(directory.path)/token; exit 7")
        var code: Int32?
        elected.onExit = { code = $0 }
        try elected.start()
        #expect(test.run { code == 7 })
        #expect(directory.text("token") == "\(leases.view("job")?.token ?? 0)\n")
        #expect(leases.view("job")?.holder == nil, "the lease is given up with the command's end")
    }

    @Test func theWholeTreeIsDeadBeforeTheLeaseCanPassOn() throws {
        let test = try TestLoop()
        let leases = TestLeases(test.loop)
        // One deaf to SIGTERM, one in a session of its own whose parent is gone.
        let elected = elect(
            test, leases, "a",
            "trap '' TERM; echo $$ > \(directory.path)/pids; "
                + "(setsid sh -c 'trap \"\" TERM; echo $$ >> \(directory.path)/pids; sleep 60' &); sleep 60 & echo $! >> \(directory.path)/pids; while :; do sleep 60; done"
        )
        try elected.start()
        #expect(test.run { directory.lines("pids").count == 3 })
        #expect(alive("pids").count == 3)
        leases.isCut = true
        #expect(test.run { elected.processID == nil })
        #expect(alive("pids") == [])
        #expect(leases.view("job")?.holder != nil, "the lease had not ended by then")
        leases.isCut = false
        #expect(test.run { elected.processID != nil }, "it runs again once it leads again")
        var stopped = false
        elected.stop { stopped = true }
        #expect(test.run { stopped })
        #expect(leases.view("job")?.holder == nil)
    }

    @Test func aCommandThatEndsWhenAskedIsRunAgainWhenTheLeaseIsBack() throws {
        let test = try TestLoop()
        let leases = TestLeases(test.loop)
        let elected = elect(test, leases, "a", "echo run >> \(directory.path)/runs; exec sleep 60")
        var code: Int32?
        elected.onExit = { code = $0 }
        try elected.start()
        #expect(test.run { directory.lines("runs").count == 1 })
        leases.isCut = true
        #expect(test.run { elected.processID == nil })
        #expect(test.said.contains { $0.contains("asked to end") })
        leases.isCut = false
        #expect(test.run { directory.lines("runs").count == 2 })
        #expect(code == nil, "the signal was ours, so the code is not the command's")
        elected.stop {}
        #expect(test.run { code == 143 })
    }

    @Test func theOtherOneRunsOnlyAfterTheFirst() throws {
        let test = try TestLoop()
        let leases = TestLeases(test.loop)
        let first = elect(test, leases, "a", "sleep 60")
        let second = elect(test, leases, "b", "sleep 60")
        try first.start()
        #expect(test.run { first.processID != nil })
        try second.start()
        test.run(for: .milliseconds(500))
        #expect(second.processID == nil)
        let token = first.token ?? 0
        var stopped = false
        first.stop { stopped = true }
        #expect(test.run { stopped && second.processID != nil })
        #expect((second.token ?? 0) > token)
        second.stop { stopped = false }
        #expect(test.run { !stopped })
    }

    @Test func theGuardKillsWhatAKilledParentLeaves() throws {
        let test = try TestLoop()
        let mark = "test-\(getpid())"
        let guardian = try ChildCommand(
            loop: test.loop, words: ["/bin/sh", "-c", ProcessTree.guardScript, "guard", mark], input: .pipe,
            output: .null, diesWithParent: false
        ) { _ in }
        let child = try ChildCommand(
            loop: test.loop,
            words: ["/bin/sh", "-c", "(setsid sh -c 'echo $$ > \(directory.path)/pids; sleep 60' &); sleep 60"],
            environment: [ProcessTree.variable: mark]
        ) { _ in }
        guardian.input?.write(Array("\(child.processID)\n".utf8))
        #expect(test.run { directory.lines("pids").count == 1 && alive("pids").count == 1 })
        guardian.input?.close()
        #expect(test.run { ProcessTree(leader: child.processID, mark: mark).members().isEmpty })
        #expect(alive("pids") == [])
    }
}
