// Workers and elections on the command line: the user's own processes, driven by leases.
import Foundation
import TestSupport
import Testing
import Wire

extension Integration {
    @Suite struct Work {
        @Test func workersOnSeveralNodesDrainATubeOnce() async throws {
            try await withCluster(3) { cluster in
                let lines = (1...60).map { "job-\($0)" }
                try await cluster.ok(["queue", "put", "jobs", "--lines"], input: lines.joined(separator: "\n") + "\n")
                let done = cluster.directory + "/done"
                let workers = try cluster.nodes.map { node in
                    try cluster.launch(
                        [
                            "work", "jobs", "--concurrency", "2", "--", "sh", "-c",
                            "echo \"$(cat \"$WORK_ITEM_FILE\") $(cat) $COTERIE_TUBE $COTERIE_ITEM\" >> \(done)",
                        ],
                        via: node)
                }
                try await eventually("the tube is empty", within: 40) {
                    let tubes = try await cluster.json(["queue", "list"])["tubes"]?.arrayValue ?? []
                    guard let tube = tubes.first(where: { $0["name"] == "jobs" }) else { return true }
                    return tube["ready"] == 0 && tube["reserved"] == 0 && tube["delayed"] == 0
                }
                for worker in workers { worker.signal(SIGTERM) }
                for worker in workers { #expect(try await worker.ended(within: 10) == .exited(0), "\(worker.errors)") }
                let results = try String(contentsOfFile: done, encoding: .utf8).split(separator: "\n").map {
                    $0.split(separator: " ").map(String.init)
                }
                #expect(results.map { $0[0] }.sorted() == lines.sorted())
                #expect(results.allSatisfy { $0.count == 4 && $0[0] == $0[1] && $0[2] == "jobs" && Int($0[3]) != nil })
            }
        }

        @Test func exitCodesDecideWhatBecomesOfAJob() async throws {
            try await withCluster(1) { cluster in
                try await cluster.ok(["queue", "put", "jobs", "--lines"], input: "fine\nbad\nbusy\n")
                let script = #"case "$(cat)" in fine) exit 0;; bad) exit 64;; busy) exit 75;; esac"#
                let worker = try cluster.launch(["work", "jobs", "--", script])
                try await eventually("each has its state", within: 20) {
                    guard
                        let tube = try await cluster.json(["queue", "list"])["tubes"]?.arrayValue?.first(where: {
                            $0["name"] == "jobs"
                        })
                    else {
                        return false
                    }
                    return tube["buried"] == 1
                        && (tube["ready"]?.intValue ?? 0) + (tube["delayed"]?.intValue ?? 0)
                            + (tube["reserved"]?.intValue ?? 0) == 1
                }
                #expect(try await cluster.json(["queue", "peek", "jobs", "--state", "buried"])["body"] == "bad")
                try await eventually("the busy job was tried again", within: 20) {
                    try await cluster.json(["queue", "stats", "--job", "3"])["reserves"]?.intValue ?? 0 >= 2
                }
                worker.signal(SIGTERM)
                try await worker.ended(within: 10)
            }
        }

        @Test func jobOfAKilledWorkerIsDoneByAnother() async throws {
            try await withCluster(3) { cluster in
                try await cluster.ok(["queue", "put", "jobs", "--ttr", "2s"], input: "precious")
                let started = cluster.directory + "/started"
                let first = try cluster.launch(
                    ["work", "jobs", "--", "echo x >> \(started); sleep 1000"], via: cluster.nodes[0])
                try await eventually("the first has begun") { FileManager.default.fileExists(atPath: started) }
                first.signal(SIGKILL)
                let done = cluster.directory + "/done"
                let second = try cluster.launch(["work", "jobs", "--", "cat >> \(done)"], via: cluster.nodes[1])
                try await eventually("the second has done it", within: 20) {
                    FileManager.default.contents(atPath: done) == Data("precious".utf8)
                }
                second.signal(SIGTERM)
                try await second.ended(within: 10)
            }
        }
    }

    @Suite struct Elect {
        @Test func successorOfAKilledHolderHasALargerToken() async throws {
            try await withCluster(3) { cluster in
                let log = cluster.directory + "/log"
                // The command has a child of its own; both must be gone before the next one runs.
                let command = "echo \"$COTERIE_FENCING_TOKEN\" >> \(log); sleep 4321 & wait"
                let electors = try [0, 1].map {
                    try cluster.launch(["elect", "boss", "--ttl", "2s", "--", command], via: cluster.nodes[$0])
                }
                func tokens() -> [Int] {
                    String(decoding: FileManager.default.contents(atPath: log) ?? Data(), as: UTF8.self).split(
                        separator: "\n"
                    ).compactMap { Int($0) }
                }
                try await eventually("one holds it") { tokens().count == 1 }
                let show = try await cluster.json(["election", "show", "boss"])
                #expect(
                    show["token"]?.intValue == Int64(tokens()[0]) && show["name"] == "boss"
                        && show["ttlMilliseconds"] == 2_000)
                #expect((show["expiresInMilliseconds"]?.intValue ?? -1) > 0)
                func runs(_ elector: ChildProgram) -> Bool {
                    !ProcessTable.processes(exactly: "sleep 4321").filter {
                        getsid($0) == elector.pid || parentChain($0).contains(elector.pid)
                    }.isEmpty
                }
                let holder = try #require(electors.first { runs($0) })
                let sleepers = ProcessTable.processes(exactly: "sleep 4321")
                #expect(!sleepers.isEmpty)
                holder.signal(SIGKILL)
                try await eventually("the successor runs", within: 20) { tokens().count == 2 }
                #expect(tokens()[1] > tokens()[0], "\(tokens())")
                for pid in sleepers { #expect(kill(pid, 0) != 0, "a process of the former holder still runs") }
                // Told to end, the second stops its tree and gives the election up at once.
                let other = try #require(electors.first { $0.pid != holder.pid })
                other.signal(SIGTERM)
                try await other.ended(within: 10)
                try await eventually("nobody holds it", within: 5) {
                    try await cluster.json(["election", "show", "boss"])["holder"]?.isNull == true
                }
                #expect(ProcessTable.processes(exactly: "sleep 4321").isEmpty)
            }
        }

        @Test func commandEndsBeforeAFrozenHoldersLeasePassesOn() async throws {
            try await withCluster(3) { cluster in
                let log = cluster.directory + "/log"
                // A beat every 20 ms under the holder's token: two tokens must never beat in turns.
                let command = "while :; do echo $COTERIE_FENCING_TOKEN >> \(log); sleep 0.02; done"
                let first = try cluster.launch(["elect", "e", "--ttl", "2s", "--", command], via: cluster.nodes[0])
                func beats() -> [Int] {
                    String(decoding: FileManager.default.contents(atPath: log) ?? Data(), as: UTF8.self)
                        .split(separator: "\n").compactMap { Int($0) }
                }
                try await eventually("the first beats") { beats().count > 3 }
                let second = try cluster.launch(["elect", "e", "--ttl", "2s", "--", command], via: cluster.nodes[1])
                first.signal(SIGSTOP)
                try await eventually("the second beats", within: 20) { Set(beats()).count == 2 }
                // While the first is still frozen, and after it is awake.
                for wakes in [false, true] {
                    if wakes { first.signal(SIGCONT) }
                    let count = beats().count
                    try await eventually("it goes on") { beats().count > count + 10 }
                }
                let all = beats()
                let change = try #require(all.firstIndex { $0 != all[0] })
                #expect(
                    all[change...].allSatisfy { $0 == all[change] }, "the first was still at work when the second began"
                )
                #expect(all[change] > all[0])
                for elector in [first, second] { elector.signal(SIGTERM) }
                for elector in [first, second] { try await elector.ended(within: 10) }
            }
        }

        @Test func commandEndsWhenTheClusterIsLost() async throws {
            try await withCluster(3) { cluster in
                let elector = try cluster.launch(
                    ["elect", "e", "--ttl", "2s", "--", "exec sleep 4322"], via: cluster.nodes[0])
                try await eventually("it holds") { !ProcessTable.processes(exactly: "sleep 4322").isEmpty }
                try await cluster.kill9([cluster.nodes[1], cluster.nodes[2]])
                try await eventually("the command is stopped", within: 8) {
                    ProcessTable.processes(exactly: "sleep 4322").isEmpty
                }
                elector.signalGroup(SIGKILL)
            }
        }

        @Test func exitCodeIsTheCommands() async throws {
            try await withCluster(1) { cluster in
                let own = try await cluster.coterie(["elect", "e", "--", "exit 42"])
                #expect(own.code == 42, "\(own)")
                let missing = try await cluster.coterie(["elect", "e", "--", "/no/such/program", "x"])
                #expect(missing.code == 125 && missing.stdout.isEmpty, "\(missing)")
            }
        }

        @Test func electionSurvivesTheLeader() async throws {
            try await withCluster(3) { cluster in
                let log = cluster.directory + "/log"
                let old = try await cluster.untilLeader()
                let node = try await cluster.follower()
                let elector = try cluster.launch(
                    ["elect", "e", "--ttl", "3s", "--", "echo $COTERIE_FENCING_TOKEN >> \(log); exec sleep 1000"],
                    via: node)
                try await eventually("it holds") { FileManager.default.fileExists(atPath: log) }
                let token = try await cluster.json(["election", "show", "e"])["token"]
                try await cluster.kill9(old)
                try await cluster.untilLeader(within: 10, otherThan: old)
                // Two times to live later it still holds the same lease: it was renewed with the new leader.
                let start = ContinuousClock.now
                while ContinuousClock.now - start < .seconds(6) {
                    let election = try await cluster.json(["election", "show", "e"])
                    #expect(election["token"] == token && election["holder"]?.isNull == false, "\(election.text())")
                    try await Task.sleep(for: .milliseconds(200))
                }
                #expect(elector.isRunning)
                elector.signal(SIGTERM)
                try await elector.ended(within: 10)
            }
        }
    }
}

/// The process and its ancestors, as `/proc` tells.
func parentChain(_ pid: Int32) -> [Int32] {
    var chain: [Int32] = []
    var next = pid
    while next > 1, chain.count < 64 {
        chain.append(next)
        guard let text = try? String(contentsOfFile: "/proc/\(next)/stat", encoding: .utf8),
            let end = text.lastIndex(of: ")")
        else { break }
        next = text[text.index(after: end)...].split(separator: " ").dropFirst().first.flatMap { Int32($0) } ?? 0
    }
    return chain
}
