import EventLoop
import Glibc
import Model
import ScatterGather
import Testing

@testable import PatternContainers

@Suite(.serialized) struct GatherTests {
    private func job(
        root: [String], leaves: Int = 3, leaf: String, leafArguments: [String] = [], input: String? = nil,
        _ change: (inout GatherClientOptions) -> Void = { _ in }
    ) throws -> GatherJob {
        let job = try GatherJob()
        try job.startRoot(root + ["--attached"])
        try job.startLeaves(leaves, leaf, arguments: leafArguments)
        try job.startClient(input: input, change)
        job.finish()
        return job
    }

    @Test func linesAreSplitRunAndMergedInOrder() throws {
        let input = (0..<100).map { "\($0)\n" }.joined()
        // The later a shard, the sooner it is done.
        let job = try job(
            root: ["--lines", "10"], leaves: 4, leaf: "sleep 0.0$((9 - COTERIE_SHARD)); sed s/^/x/", input: input)
        defer { job.tearDown() }
        #expect(job.code == 0)
        #expect(job.result == (0..<100).map { "x\($0)\n" }.joined())
        #expect(job.progress.successful == 10 && job.progress.isConsistent)
        #expect(job.progress.bytesIn == UInt64(input.utf8.count))
        #expect(job.cluster.state == .succeeded && job.cluster.finishes == 1)
        #expect(job.test.run { job.leafExits == [0, 0, 0, 0] && job.rootExit == 0 })
        #expect(job.directory.names().filter { $0.hasPrefix("coterie-work") } == [], "no scratch directory is left")
    }

    @Test func theLeafFindsItsShardInItsEnvironment() throws {
        let job = try job(
            root: ["--index", "3", "--deadline", "60s"], leaf: "env | sort; pwd; ls -A; cat", leafArguments: [])
        defer { job.tearDown() }
        #expect(job.code == 0)
        let lines = job.result.split(separator: "\n").map(String.init)
        for line in ["COTERIE_JOB=g", "COTERIE_SHARD=0", "COTERIE_SHARD=1", "COTERIE_SHARD=2", "COTERIE_ATTEMPT=1"] {
            #expect(lines.contains(line))
        }
        #expect(lines.filter { $0 == "COTERIE_SHARDS=3" }.count == 3)
        #expect(lines.filter { $0.hasPrefix("COTERIE_NODE=node-") }.count == 3)
        #expect(lines.filter { $0.hasPrefix("COTERIE_DEADLINE_MILLISECONDS=") }.count == 3)
        #expect(lines.contains { $0.hasPrefix("HOME=") } && lines.contains { $0.hasPrefix("PATH=") })
        let known = ["COTERIE", "HOME", "PATH", "LANG", "PWD", "SHLVL", "_", "OLDPWD"]
        let foreign = lines.filter { line in line.contains("=") && !known.contains { line.hasPrefix($0) } }
        #expect(foreign == [])
    }

    @Test func argumentsAreGivenAsTheFirstWord() throws {
        let job = try job(
            root: ["--args"], leaf: "printf '[%s|%s]' \"$1\" \"$(cat)\"", leafArguments: ["--args"],
            input: "a b\n\n$(echo no)\n\"q\"")
        defer { job.tearDown() }
        #expect(job.result == "[a b|][|][$(echo no)|][\"q\"|]")
        #expect(job.code == 0)
    }

    @Test func theMergeGetsResultsInOrderOnItsInputAndAsFiles() throws {
        let job = try job(
            root: [
                "--index", "12", "--merge-files", "--merge",
                "ls $COTERIE_RESULTS | tr '\\n' ' '; cat; cat $COTERIE_RESULTS/000011",
            ],
            leaf: "sleep 0.0$((COTERIE_SHARD % 3)); echo $COTERIE_SHARD")
        defer { job.tearDown() }
        let names = (0..<12).map { ($0 < 10 ? "00000" : "0000") + "\($0) " }.joined()
        #expect(job.result == names + (0..<12).map { "\($0)\n" }.joined() + "11\n")
        #expect(job.code == 0)
    }

    @Test func aMergeThatFailsFailsTheJobAndShowsNothing() throws {
        let job = try job(root: ["--index", "2", "--merge", "cat; exit 3"], leaf: "echo x")
        defer { job.tearDown() }
        #expect(job.code == 1)
        #expect(job.result == "")
        #expect(job.cluster.state == .failed)
    }

    @Test func aMergeMayStopReadingEarly() throws {
        let job = try job(root: ["--index", "20", "--merge", "head -n 1"], leaf: "yes $COTERIE_SHARD | head -n 20000")
        defer { job.tearDown() }
        #expect(job.code == 0)
        #expect(job.result == "0\n")
    }

    @Test func aShardThatFailsForGoodMakesTheResultPartial() throws {
        let leaf = "[ $COTERIE_SHARD = 2 ] && exit 66; echo $COTERIE_SHARD"
        let strict = try job(root: ["--index", "4"], leaf: leaf)
        defer { strict.tearDown() }
        #expect(strict.code == 7)
        #expect(strict.state == .failed)
        #expect(strict.result == "0\n1\n", "nothing behind the hole is passed on")
        #expect(strict.progress.failed == 1 && strict.progress.successful == 3)
        #expect(strict.progress.failures.first?.shard == 2 && strict.progress.failures.first?.attempts == 1)

        let lenient = try job(root: ["--index", "4", "--min-success", "0.5"], leaf: leaf)
        defer { lenient.tearDown() }
        #expect(lenient.code == 0)
        #expect(lenient.state == .partial)
        #expect(lenient.result == "0\n1\n3\n")

        let propagated = try job(root: ["--index", "4"], leaf: leaf) { $0.propagate = true }
        defer { propagated.tearDown() }
        #expect(propagated.code == 66)
    }

    @Test func aShardIsRunAgainElsewhere() throws {
        let job = try job(
            root: ["--index", "5"], leaves: 2,
            leaf: "[ $COTERIE_ATTEMPT = 1 ] && exit 75; echo $COTERIE_SHARD:$COTERIE_ATTEMPT")
        defer { job.tearDown() }
        #expect(job.code == 0)
        #expect(job.result == (0..<5).map { "\($0):2\n" }.joined())
        #expect(job.progress.retried == 5)
    }

    @Test func overTimeAShardIsKilledWithItsChildren() throws {
        let place = TestDirectory()
        let job = try job(
            root: ["--index", "1", "--shard-timeout", "200ms", "--retries", "0"],
            leaf: "trap '' TERM; sleep 4321 & echo $! > \(place.path)/pid; wait; sleep 4321")
        defer { job.tearDown() }
        let child = Int32(place.lines("pid").first ?? "") ?? 0
        #expect(child > 1)
        let isGone = job.test.run {
            // Dead is enough: whoever inherits it may be slow to wait for it.
            let status = String(decoding: ReplacedOutput.read("/proc/\(child)/stat", limit: 4_096), as: UTF8.self)
            return status.isEmpty || status.contains(") Z ")
        }
        #expect(isGone, "nothing of the group is left")
        #expect(job.code == 1)
        #expect(job.progress.timedOut == 1)
        #expect(job.progress.failures.first?.error == "timed out")
    }

    @Test func theDeadlineEndsTheJob() throws {
        let job = try job(
            root: ["--index", "3", "--deadline", "500ms"], leaf: "[ $COTERIE_SHARD = 0 ] || sleep 30; echo x")
        defer { job.tearDown() }
        #expect(job.code == 7)
        #expect(job.progress.timedOut == 2)
        let none = try self.job(root: ["--index", "3", "--deadline", "300ms"], leaf: "sleep 30")
        defer { none.tearDown() }
        #expect(none.code == 6)
    }

    @Test func aStragglerIsOutrun() throws {
        let job = try job(
            root: ["--index", "8"], leaves: 4,
            leaf: "[ $COTERIE_SHARD$COTERIE_ATTEMPT = 51 ] && sleep 30; echo $COTERIE_SHARD")
        defer { job.tearDown() }
        #expect(job.result == (0..<8).map { "\($0)\n" }.joined())
        #expect(job.progress.hedged == 1)
        #expect(job.progress.milliseconds < 10_000)
    }

    @Test func theDeathOfALeafCostsNothingButTime() throws {
        let job = try GatherJob()
        defer { job.tearDown() }
        try job.startRoot(["--index", "6", "--retries", "0", "--hedge", "off", "--attached"])
        try job.startLeaves(3, "sleep 0.2; echo $COTERIE_SHARD")
        try job.startClient()
        #expect(job.test.run { job.leaves[1].runs == 1 })
        job.leaves[1].stop {}
        job.finish()
        #expect(job.code == 0)
        #expect(job.result == (0..<6).map { "\($0)\n" }.joined())
        #expect(job.progress.failed == 0 && job.progress.retried == 1)
    }

    @Test func anotherRootIsFedFromTheBeginningAndNothingIsPutOutTwice() throws {
        let job = try GatherJob()
        defer { job.tearDown() }
        let input = (0..<40).map { "line \($0)\n" }.joined()
        try job.startRoot(["--lines", "1", "--attached"])
        try job.startLeaves(2, "sleep 0.02; cat")
        try job.startClient(input: input)
        #expect(job.test.run { job.result.count > 40 })
        try job.replaceRoot()
        job.finish()
        #expect(job.code == 0)
        #expect(job.result == input)
    }

    @Test func anotherRootMustBringTheSameResult() throws {
        let job = try GatherJob()
        defer { job.tearDown() }
        try job.startRoot(["--index", "40", "--attached"])
        try job.startLeaves(2, "sleep 0.02; head -c 8 /dev/urandom | od -An -tx1")
        try job.startClient()
        #expect(job.test.run { job.result.count > 40 })
        try job.replaceRoot()
        job.finish()
        #expect(job.code == 6)
    }

    @Test func aBrokenConnectionOfTheClientLosesNothing() throws {
        let job = try GatherJob()
        defer { job.tearDown() }
        let input = (0..<40).map { "line \($0)\n" }.joined()
        try job.startRoot(["--lines", "1", "--attached"])
        try job.startLeaves(2, "sleep 0.02; cat")
        try job.startClient(input: input)
        for size in [40, 150] {
            #expect(job.test.run { job.result.count > size })
            job.cluster.cut("gather-g-root/client")
        }
        job.finish()
        #expect(job.code == 0)
        #expect(job.result == input)
    }

    @Test func unorderedResultsComeAsTheyAre() throws {
        let job = try job(
            root: ["--index", "3", "--unordered"], leaf: "sleep 0.$((4 - 2 * COTERIE_SHARD)); echo $COTERIE_SHARD"
        ) {
            $0.unordered = true
        }
        defer { job.tearDown() }
        #expect(job.result == "2\n1\n0\n")
    }

    @Test func aLargeResultIsBoundedInMemoryAndWhole() throws {
        let job = try GatherJob()
        defer { job.tearDown() }
        job.changeRoot = {
            $0.inputLimit = 256 << 10
            $0.resultMemory = 64 << 10
            $0.backlogLimit = 512 << 10
        }
        let line = String(repeating: "0123456789abcdef", count: 64) + "\n"
        let input = String(repeating: line, count: 6_000)
        try job.startRoot(["--bytes", "100KiB", "--attached"])
        try job.startLeaves(3, "cat")
        try job.startClient(input: input)
        job.finish()
        #expect(job.code == 0)
        #expect(job.result == input)
    }

    @Test func filesAreShippedToTheWorkingDirectory() throws {
        let tools = TestDirectory()
        tools.append("tool.sh", "#!/bin/sh\ncat; cat data.txt\n")
        tools.append("data.txt", "data\n")
        chmod(tools.path + "/tool.sh", 0o755)
        let job = try job(root: ["--lines", "1"], leaf: "ls | tr '\\n' ' '; ./tool.sh", input: "a\nb\n") {
            $0.files = [tools.path + "/tool.sh", tools.path + "/data.txt"]
        }
        defer { job.tearDown() }
        #expect(job.result == "data.txt tool.sh a\ndata\ndata.txt tool.sh b\ndata\n")
    }

    @Test func emptyInputIsADoneJob() throws {
        let job = try job(root: ["--lines", "5"], leaf: "echo never", input: "")
        defer { job.tearDown() }
        #expect(job.code == 0)
        #expect(job.result == "")
        #expect(job.progress.total == 0)
    }

    @Test func aPipeIsFedAsItComes() throws {
        var ends: [Int32] = [-1, -1]
        #expect(pipe(&ends) == 0)
        let job = try GatherJob()
        defer {
            job.tearDown()
            close(ends[0])
        }
        try job.startRoot(["--lines", "1", "--attached"])
        try job.startLeaves(2, "cat")
        let (reading, writing) = (ends[0], ends[1])
        try job.startClient { $0.input = .descriptor(reading) }
        #expect(writeFully(writing, Array("one\n".utf8)) == nil)
        #expect(job.test.run { job.result == "one\n" }, "a result does not wait for the end of the input")
        #expect(writeFully(writing, Array("two".utf8)) == nil)
        close(writing)
        job.finish()
        #expect(job.result == "one\ntwo")
    }

    @Test func aCancelledClientExitsAsInterrupted() throws {
        let job = try GatherJob()
        defer { job.tearDown() }
        try job.startRoot(["--index", "4", "--attached"])
        try job.startLeaves(2, "sleep 30")
        try job.startClient()
        #expect(job.test.run { job.leaves.allSatisfy { $0.runs == 1 } })
        job.client?.cancel()
        job.finish()
        #expect(job.code == 130)
        #expect(job.cluster.state == .cancelled)
    }

    @Test func aClientThatIsGoneTakesItsJobWithIt() throws {
        let job = try GatherJob()
        defer { job.tearDown() }
        job.changeRoot = { $0.clientPatience = .milliseconds(100) }
        try job.startRoot(["--index", "2", "--attached"])
        try job.startLeaves(2, "sleep 30")
        #expect(job.test.run { job.cluster.state == .cancelled })
        #expect(job.test.run { job.rootExit == 0 })
    }

    @Test func aDetachedJobGoesOnAndItsResultCanBeFetched() throws {
        let job = try GatherJob()
        defer { job.tearDown() }
        try job.startRoot(["--lines", "1", "--attached"])
        try job.startLeaves(2, "sleep 0.1; cat")
        try job.startClient(input: "a\nb\nc\n") { $0.detach = true }
        job.finish()
        #expect(job.code == 0 && job.state == .running)
        #expect(job.test.run { job.cluster.state == .succeeded })
        try job.startClient { $0.fetch = true }
        job.finish()
        #expect(job.code == 0)
        #expect(job.result == "a\nb\nc\n")
    }

    @Test func theRootOfAManifestReadsItsOwnInput() throws {
        let job = try GatherJob()
        defer { job.tearDown() }
        job.directory.append("given", "x\ny\n")
        try job.startRoot(["--lines", "1", "--input", job.directory.path + "/given"])
        try job.startLeaves(1, "tr a-z A-Z")
        #expect(job.test.run { job.cluster.state == .succeeded })
        try job.startClient { $0.fetch = true }
        job.finish()
        #expect(job.result == "X\nY\n")
    }

    @Test func aJobThatIsNotThereIsNotFound() throws {
        let job = try GatherJob()
        defer { job.tearDown() }
        job.cluster.exists = false
        try job.startClient()
        job.finish()
        #expect(job.code == 4)
    }

    @Test func aJobThatEndedWithoutUsIsTold() throws {
        let job = try GatherJob()
        defer { job.tearDown() }
        job.cluster.state = .cancelled
        try job.startClient()
        job.finish()
        #expect(job.code == 1 && job.state == .cancelled)
    }
}

@Suite struct GatherFileTests {
    @Test func aLongSpoolGivesBackWhatIsForgotten() throws {
        let directory = TestDirectory()
        let spool = SegmentedSpool(in: directory.path, segmentBytes: 10)
        try spool.append(Array(0..<25))
        try spool.append(Array(25..<28))
        #expect(spool.count == 28)
        #expect(try spool.read(at: 8, limit: 100) == [8, 9])
        #expect(try spool.read(at: 10, limit: 100) == Array(10..<20))
        #expect(try spool.read(at: 28, limit: 1) == [])
        spool.forget(0, 4)
        spool.forget(6, 12)
        #expect(try spool.read(at: 4, limit: 1) == [4])
        spool.forget(4, 6)
        #expect(throws: CoterieError.self) { try spool.read(at: 4, limit: 1) }
        #expect(try spool.read(at: 12, limit: 1) == [12])
    }

    @Test func aResultMovesToDiskWhenItGrows() throws {
        let directory = TestDirectory()
        let buffer = ResultBuffer(directory: directory.path)
        let piece = [UInt8](repeating: 7, count: 40_000)
        try buffer.append(piece)
        #expect(buffer.bytesInMemory == 40_000)
        try buffer.append(piece + [8])
        #expect(buffer.bytesInMemory == 0)
        #expect(buffer.count == 80_001)
        #expect(try buffer.read(at: 79_999, limit: 10) == [7, 8])
        try buffer.write(to: directory.path + "/result")
        #expect(directory.text("result").utf8.count == 80_001)
    }
}

@Suite struct GatherOptionTests {
    @Test func theFlagsThatExpandPrintsAreUnderstood() throws {
        let root = try GatherRootOptions(
            arguments: [
                "--gather", "g1", "--leaf", "wc -l", "--merge", "sort", "--merge-files", "--bytes", "1MiB",
                "--parallel", "4",
                "--shard-timeout", "10s", "--deadline", "5m", "--retries", "2", "--hedge", "250ms", "--min-success",
                "0.95", "--input",
                "/var/coterie/input/input",
            ])
        #expect(
            root.gather == "g1" && root.merge == "sort" && root.mergeFiles && root.sharder == .bytes(1 << 20)
                && root.parallel == 4)
        #expect(root.plan.shardTimeout == .seconds(10) && root.plan.deadline == .seconds(300) && root.plan.retries == 2)
        #expect(
            root.plan.hedge == .after(.milliseconds(250)) && root.plan.minSuccess == 0.95
                && root.input == "/var/coterie/input/input")
        let leaf = try GatherLeafOptions(
            arguments: [
                "--gather", "g1", "--root", "gather-g1-root", "--leaf", "cat", "--args", "--shard-timeout", "1s",
                "--files", "/f",
            ])
        #expect(leaf.root == "gather-g1-root" && leaf.arguments && leaf.files == "/f")
    }

    @Test func whatDoesNotGoTogetherIsRefused() {
        #expect(throws: CoterieError.self) { try GatherRootOptions(arguments: ["--gather", "g"]) }
        #expect(throws: CoterieError.self) {
            try GatherRootOptions(arguments: ["--gather", "g", "--lines", "1", "--args"])
        }
        #expect(throws: CoterieError.self) {
            try GatherRootOptions(arguments: ["--gather", "g", "--lines", "1", "--merge", "x", "--unordered"])
        }
        #expect(throws: CoterieError.self) {
            try GatherLeafOptions(arguments: ["--gather", "g", "--root", "r", "--leaf", "x", "--stream-leaf"])
        }
    }

    @Test func shippedPathsStayBelowTheWorkingDirectory() {
        for path in ["a", "a/b", "..a"] { #expect(isShippable(path)) }
        for path in ["", "/a", "../a", "a/../b", "a//b", "."] { #expect(!isShippable(path)) }
    }
}
