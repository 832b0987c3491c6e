// Real pods: containers, networks, volumes, probes and ends. Where the machine gives no namespaces these are skipped, and say so.
import EventLoop
import Glibc
import Model
import Testing

@testable import Pods

@Suite(.serialized, .enabled(if: Machine.hasNamespaces, "\(Machine.whyNot)")) struct PodRuntimeTests {
    private func with(
        sandbox: SandboxMode = .auto, _ change: (inout PodRuntimeOptions) -> Void = { _ in },
        _ body: (PodHarness) throws -> Void
    ) throws {
        let harness = try PodHarness(sandbox: sandbox, change)
        defer { harness.close() }
        try body(harness)
    }

    @Test func aPodRunsToItsEnd() throws {
        try with { (h: PodHarness) throws in
            let status = try h.runToEnd(
                pod("p", [shell("a", "echo hello; echo $COTERIE_POD $COTERIE_NODE $COTERIE_CONTAINER; exit 0")]))
            #expect(status.phase == .succeeded)
            #expect(status.sandbox == "namespaces")
            #expect(try h.log("p") == ["hello", "p node-1 a"])
            #expect(entries(of: h.directory + "/pods/p") == ["run"])
            h.runtime.forget(key: "p")
            #expect(h.runtime.status(key: "p") == nil)
            #expect(access(h.directory + "/pods/p", F_OK) != 0)
        }
    }

    @Test(.enabled(if: Machine.hasPerl, "perl is needed"))
    func containersShareLocalhostAndVolumesButNotTheHosts() throws {
        try with { (h: PodHarness) throws in
            // A port of the host's loopback that is surely open.
            let host = try Listener(loop: h.loop, bind: .loopback(port: 0))
            let hostPort = try #require(host.localAddress).port
            let server =
                "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 6379, Listen => 5) or die; "
                + "open(my $f, '>', '/data/up'); close $f; my $c = $s->accept; print $c \"from a\\n\"; close $c; sleep 20"
            let client =
                "while ! test -e /data/up; do sleep 0.02; done; exec 3<>/dev/tcp/127.0.0.1/6379; cat <&3; "
                + "(exec 4<>/dev/tcp/127.0.0.1/\(hostPort)) 2>/dev/null && echo host reached; exit 0"
            let spec = pod(
                "p",
                [
                    ContainerSpec(
                        name: "a", image: ImageName.host, command: ["/usr/bin/perl", "-e", server],
                        mounts: [VolumeMount(name: "data", mountPath: "/data")]),
                    ContainerSpec(
                        name: "b", image: ImageName.host, command: ["/bin/bash", "-c", client],
                        mounts: [VolumeMount(name: "data", mountPath: "/data", readOnly: true)]),
                ]
            ) { $0.volumes = [Volume(name: "data", source: .emptyDir(inMemory: false, sizeLimit: nil))] }
            try h.runtime.start(spec, key: "p")
            #expect(
                h.wait { h.container("p", "b")?.state == .terminated(exitCode: 0, reason: "Completed") },
                "\(h.status("p"))")
            #expect(try h.log("p", "b") == ["from a"])
            host.close()
        }
    }

    @Test(.enabled(if: Machine.hasPerl, "perl is needed"))
    func aListenerIsHandedOutOfThePodsNetwork() throws {
        try with { (h: PodHarness) throws in
            let host = try Listener(loop: h.loop, bind: .loopback(port: 0))
            let hostPort = try #require(host.localAddress).port
            var streams: [ByteStream] = []
            host.onConnection = { stream in
                streams.append(stream)
                stream.write(Array("from the host\n".utf8))
                stream.shutdown()
            }
            let ambassador =
                "use Socket; use IO::Socket::INET; print \"$ENV{LISTEN_FDS} $ENV{LISTEN_FDNAMES}\\n\"; open(my $s, '+<&=', 3) or die; "
                + "while (accept(my $c, $s)) { my $u = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => \(hostPort)) or die; "
                + "print {$c} <$u>; close $c }"
            let spec = pod(
                "p",
                [
                    ContainerSpec(
                        name: "amb", image: ImageName.host, command: ["/usr/bin/perl", "-e", "$| = 1; " + ambassador]),
                    ContainerSpec(
                        name: "app", image: ImageName.host,
                        command: ["/bin/bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/6379; cat <&3"]),
                ]
            ) { $0.annotations[PodSpec.listenAnnotation] = "amb=6379" }
            try h.runtime.start(spec, key: "p")
            #expect(
                h.wait { h.container("p", "app")?.state == .terminated(exitCode: 0, reason: "Completed") },
                "\(h.status("p"))")
            #expect(try h.log("p", "app") == ["from the host"])
            let said = try h.log("p", "amb")
            #expect(said == ["1 6379"])
            for stream in streams { stream.close() }
            host.close()
        }
    }

    @Test func restartPoliciesAndPreviousLogs() throws {
        try with { (h: PodHarness) throws in
            let spec = pod(
                "p",
                [
                    shell(
                        "a",
                        "echo run $(cat /data/n 2>/dev/null | wc -l); echo x >> /data/n; test $(wc -l < /data/n) -ge 3"
                    ) {
                        $0.mounts = [VolumeMount(name: "data", mountPath: "/data")]
                    }
                ]
            ) {
                $0.volumes = [Volume(name: "data", source: .emptyDir(inMemory: true, sizeLimit: 1 << 20))]
                $0.restartPolicy = .onFailure
            }
            let status = try h.runToEnd(spec)
            #expect(status.phase == .succeeded)
            #expect(status.containers.first?.restartCount == 2)
            #expect(try h.log("p") == ["run 2"])
            #expect(try h.log("p", nil, LogOptions(previous: true)) == ["run 1"])
        }
    }

    @Test func sidecarsComeFirstAndGoLast() throws {
        try with { (h: PodHarness) throws in
            let note = { (name: String, script: String, sidecar: Bool) in
                shell(name, script) {
                    $0.restartAlways = sidecar
                    $0.mounts = [VolumeMount(name: "data", mountPath: "/data")]
                }
            }
            let side = { (name: String) in
                var spec = note(
                    name,
                    "trap 'echo -\(name) >> /data/order; exit 0' TERM; echo +\(name) >> /data/order; touch /tmp/up; "
                        + "while :; do sleep 0.02; done",
                    true)
                spec.startupProbe = Probe(
                    action: .exec(["test", "-e", "/tmp/up"]), period: .milliseconds(20), failureThreshold: 200)
                return spec
            }
            let spec = pod("p", [note("a", "echo a >> /data/order", false)]) {
                $0.initContainers = [side("s1"), note("i", "echo i >> /data/order", false), side("s2")]
                $0.volumes = [Volume(name: "data", source: .hostPath(h.shared, type: nil))]
            }
            #expect(try h.runToEnd(spec).phase == .succeeded)
            #expect(textFile(h.shared + "/order") == "+s1\ni\n+s2\na\n-s2\n-s1\n")
        }
    }

    @Test func probesOfEachKindDecideReadinessAndLife() throws {
        try with { (h: PodHarness) throws in
            let spec = pod(
                "p",
                [
                    shell("exec", "sleep 0.1; touch /tmp/ready; sleep 20") {
                        $0.readinessProbe = Probe(
                            action: .exec(["/bin/sh", "-c", "test -e /tmp/ready"]), period: .milliseconds(30))
                    },
                    shell("tcp", "sleep 20") {
                        $0.readinessProbe = Probe(action: .tcp(port: 81), period: .milliseconds(30))
                    },
                    shell("slow", "sleep 20") {
                        $0.livenessProbe = Probe(
                            action: .exec(["sleep", "5"]), period: .milliseconds(30), timeout: .milliseconds(50),
                            failureThreshold: 2)
                    },
                ]
            ) {
                $0.restartPolicy = .always
                $0.terminationGracePeriod = .milliseconds(300)
            }
            try h.runtime.start(spec, key: "p")
            #expect(
                h.wait { h.container("p", "exec")?.ready == true && (h.container("p", "slow")?.restartCount ?? 0) > 0 },
                "\(h.status("p"))")
            #expect(h.container("p", "tcp")?.ready == false)
            #expect(h.status("p").message.contains("liveness probe failed: timed out"))
        }
    }

    @Test func commandsRunInContainersWithInputOutputAndCode() throws {
        try with { (h: PodHarness) throws in
            try h.runtime.start(pod("p", [shell("a", "echo x > /tmp/mark; echo up; exec sleep 60")]), key: "p")
            #expect(try h.waitForLine("p", "a", "up"))
            #expect(try h.exec("p", "a", ["sh", "-c", "cat; cat /tmp/mark; exit 7"], input: "in\n") == (7, "in\nx\n"))
            #expect(try h.exec("p", "a", ["no-such-program"]).code == -1)
            #expect(throws: CoterieError.self) { try h.runtime.exec(key: "p", container: "b", command: ["true"]) }
            h.runtime.stop(key: "p", grace: .zero)
            #expect(h.wait { h.gone.contains("p") })
            #expect(h.status("p").phase == .failed)
        }
    }

    @Test(.enabled(if: Machine.limitsMemory, "no memory cgroup"))
    func aContainerOverItsMemoryIsKilledAndThatIsSaid() throws {
        try with { (h: PodHarness) throws in
            let status = try h.runToEnd(
                pod(
                    "p",
                    [
                        shell("a", "head -c 300M /dev/zero | tail -c 250M > /dev/null") {
                            $0.resources.memoryBytes = 24 << 20
                        }
                    ]))
            #expect(status.phase == .failed)
            #expect(status.containers.first?.state == .terminated(exitCode: 137, reason: "OOMKilled"))
        }
    }

    @Test(.enabled(if: Machine.hasUsers, "not root"))
    func aPodHasItsOwnUserNoRightsAndDoesNotSeeTheData() throws {
        try with { (h: PodHarness) throws in
            let secret = h.directory + "/secret"
            try makeFile(secret, "key".utf8, mode: 0o644)
            chmod(h.directory, 0o755)
            let status = try h.runToEnd(
                pod(
                    "p",
                    [
                        shell(
                            "a",
                            "id -u; grep -E 'CapEff|NoNewPrivs' /proc/self/status; cat \(secret) 2>&1 || ls -A \(h.directory); "
                                + "touch /etc/x 2>/dev/null && echo written; exit 0"
                        )
                    ]))
            #expect(status.phase == .succeeded)
            let lines = try h.log("p")
            #expect((UInt32(lines.first ?? "") ?? 0) >= 200_000)
            #expect(lines.contains("CapEff:\t0000000000000000"))
            #expect(lines.contains("NoNewPrivs:\t1"))
            #expect(!lines.contains("key"))
            #expect(!lines.contains("secret"))
            #expect(!lines.contains("written"))
        }
    }

    @Test func filesOfConfigMapsAreThereReadOnly() throws {
        try with { (h: PodHarness) throws in
            let spec = pod(
                "p",
                [
                    shell("a", "cat /etc/app/x /etc/app/d/y; touch /etc/app/z 2>/dev/null && echo written; exit 0") {
                        $0.mounts = [VolumeMount(name: "c", mountPath: "/etc/app")]
                    }
                ]
            ) { $0.volumes = [Volume(name: "c", source: .files(["x": Array("1\n".utf8), "d/y": Array("2\n".utf8)]))] }
            #expect(try h.runToEnd(spec).phase == .succeeded)
            #expect(try h.log("p") == ["1", "2"])
        }
    }

    @Test func theEnvironmentIsAsSpecified() throws {
        try with { (h: PodHarness) throws in
            let spec = pod(
                "p",
                [
                    shell("a", "echo $A $B $C $D; echo $PATH; hostname; cat /etc/hostname") {
                        $0.environment = [
                            EnvironmentVariable(name: "A", value: .literal("one")),
                            EnvironmentVariable(name: "B", value: .literal("$(A)-$(COTERIE_POD)")),
                            EnvironmentVariable(name: "C", value: .field("metadata.labels['app']")),
                            EnvironmentVariable(name: "D", value: .field("status.podIP")),
                        ]
                    }
                ]
            ) { $0.labels["app"] = "web" }
            try h.runToEnd(spec)
            #expect(
                try h.log("p") == ["one one-p web 127.0.0.1", "/run/coterie/bin:" + PodPlanner.searchPath, "p", "p"])
        }
    }

    @Test(.enabled(if: Machine.hasPerl, "perl is needed"))
    func aPodReachesItsNodeThroughItsSocket() throws {
        try with { (h: PodHarness) throws in
            var from: String?
            var streams: [ByteStream] = []
            h.runtime.onPodConnection = { key, stream in
                from = key
                streams.append(stream)
                stream.write(Array("welcome\n".utf8))
                stream.shutdown()
            }
            try h.runToEnd(
                pod(
                    "p",
                    [
                        ContainerSpec(
                            name: "a", image: ImageName.host,
                            command: [
                                "/usr/bin/perl", "-e",
                                "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Peer => '/run/coterie/pod.sock') or die; print <$s>",
                            ])
                    ]))
            #expect(from == "p")
            #expect(try h.log("p") == ["welcome"])
            for stream in streams { stream.close() }
        }
    }

    @Test func whatCanNotRunHereIsRefusedWithTheReason() throws {
        try with { (h: PodHarness) throws in
            func refusal(_ name: String, _ source: Volume.Source?, mount: String = "/x") throws -> PodStatus {
                try h.runToEnd(
                    pod(name, [shell("a", "true") { $0.mounts = [VolumeMount(name: "v", mountPath: mount)] }]) {
                        if let source { $0.volumes = [Volume(name: "v", source: source)] }
                    })
            }
            let cases: [(PodStatus, reason: String, part: String)] = [
                (try refusal("p1", nil), "InvalidMount", "there is no volume v"),
                (try refusal("p2", .hostPath("/no/such/place", type: nil)), "InvalidVolume", "No such file"),
                (try refusal("p3", .hostPath(h.directory + "/pods", type: nil)), "InvalidVolume", "no pod may see"),
                (try refusal("p4", .hostPath("/dev/null", type: nil)), "InvalidVolume", "devices"),
                (
                    try refusal("p5", .emptyDir(inMemory: false, sizeLimit: nil), mount: "/proc/x"), "InvalidMount",
                    "the runtime's own"
                ),
                (try refusal("p6", .files(["../x": []])), "InvalidVolume", "not a relative path"),
                (
                    try h.runToEnd(pod("p7", [ContainerSpec(name: "a", image: "busybox", command: ["x"])])),
                    "ImageNotAvailable", "not on this node"
                ),
                (
                    try h.runToEnd(pod("p8", [ContainerSpec(name: "a", image: ImageName.host)])), "InvalidContainer",
                    "a command is needed"
                ),
            ]
            for (status, reason, part) in cases {
                #expect(status.phase == .failed)
                #expect(status.reason == reason)
                #expect(status.message.contains(part), "\(status.message)")
            }
            let gone = try h.runToEnd(
                pod("p9", [ContainerSpec(name: "a", image: ImageName.host, command: ["/no/program"])]))
            #expect(gone.containers.first?.state == .terminated(exitCode: 127, reason: "StartError"))
        }
    }

    @Test func whatLiesBelowAMaskIsCoveredInAHostPathAboveIt() throws {
        try with { (h: PodHarness) throws in
            let spec = pod(
                "p",
                [
                    shell("a", "ls -A /host\(h.directory) | wc -l") {
                        $0.mounts = [VolumeMount(name: "v", mountPath: "/host")]
                    }
                ]
            ) {
                $0.volumes = [Volume(name: "v", source: .hostPath("/", type: "Directory"))]
            }
            #expect(try h.runToEnd(spec).phase == .succeeded)
            #expect(try h.log("p") == ["0"])
        }
    }

    @Test func aStoppedPodGetsSIGTERMThenSIGKILL() throws {
        try with { (h: PodHarness) throws in
            try h.runtime.start(
                pod(
                    "p",
                    [
                        shell("polite", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.02; done"),
                        shell("deaf", "trap '' TERM; echo up; while :; do sleep 0.02; done"),
                    ]), key: "p")
            #expect(try h.waitForLine("p", "polite", "up"))
            #expect(try h.waitForLine("p", "deaf", "up"))
            h.runtime.stop(key: "p", grace: .milliseconds(300))
            #expect(h.wait { h.gone.contains("p") })
            #expect(h.container("p", "polite")?.state == .terminated(exitCode: 0, reason: "Completed"))
            #expect(h.container("p", "deaf")?.state == .terminated(exitCode: 137, reason: "Error"))
            #expect(try h.log("p", "polite").last == "bye")
        }
    }

    @Test func aPodEndsByItselfWhenItsLeaseRunsOut() throws {
        try with { (h: PodHarness) throws in
            h.runtime.setLease(until: h.loop.now + .milliseconds(400))
            let status = try h.runToEnd(pod("p", [shell("a", "exec sleep 60")]) { $0.restartPolicy = .always })
            #expect(status.phase == .failed)
            #expect(status.reason == "SandboxLost")
        }
    }

    @Test func anEarlierRunsFilesAreRemoved() throws {
        let directory = try #require(makeTemporaryDirectory())
        defer { removeTree(directory) }
        try makeDirectory(directory + "/stale", mode: 0o755)
        try makeFile(directory + "/stale/x", [], mode: 0o644)
        try with({ $0.podsDirectory = directory }) { (h: PodHarness) throws in
            #expect(access(directory + "/stale", F_OK) != 0)
            #expect(h.wait { entries(of: directory).isEmpty })
        }
    }

    @Test func aRuntimesPodsDieWithItsProcess() throws {
        let mark = "98765.\(getpid())"
        let directory = try #require(makeTemporaryDirectory())
        defer { removeTree(directory) }
        chmod(directory, 0o755)
        let loop = try EventLoop()
        var hostEnd: ChildProcess.ExitStatus?
        var host: ChildProcess.Options = .init(
            program: try #require(realPath("/proc/self/exe")),
            arguments: ["--testing-library", "swift-testing", "--filter", "hostsAPodUntilItIsKilled"],
            environment: ChildProcess.currentEnvironment + [
                "COTERIE_TEST_HOST_MARK=\(mark)", "COTERIE_TEST_HOST_DIRECTORY=\(directory)",
            ])
        host.output = .null
        host.error = .null
        let process = try ChildProcess(loop: loop, options: host) {
            hostEnd = $0
            loop.stop()
        }
        let timer = LoopTimer(loop: loop)
        let end = loop.now + .seconds(20)
        timer.start(every: .milliseconds(10)) {
            if isRunning(mark) || loop.now > end { process.kill(signal: SIGKILL) }
        }
        loop.run()
        #expect(hostEnd == .signaled(SIGKILL))
        #expect(loop.now < end, "the pod did not start")
        timer.start(every: .milliseconds(2)) {
            if !isRunning(mark) || loop.now > end { loop.stop() }
        }
        loop.run()
        timer.close()
        #expect(!isRunning(mark))
        loop.close()
        // The next run finds what was left, cgroups included, and removes it.
        let pods = directory + "/pods"
        #expect(!entries(of: pods).isEmpty)
        let group = "coterie-" + hexadecimal(stableHash(try #require(realPath(pods))))
        try with({ $0.podsDirectory = pods }) { (h: PodHarness) throws in
            #expect(h.wait { entries(of: pods).isEmpty })
        }
        // A cgroup goes once the kernel has taken its last process away.
        func isLeft() -> Bool {
            Cgroups(name: group + "-check").places.values.contains {
                access(String($0.directory.dropLast(6)), F_OK) == 0
            }
        }
        let limit = EventLoop.clock() + .seconds(5)
        while isLeft(), EventLoop.clock() < limit { usleep(5_000) }
        #expect(!isLeft())
        Cgroups(name: group + "-check").removeAll()
    }

    /// Not a test of its own: the process that the one above kills.
    @Test(.enabled(if: getenv("COTERIE_TEST_HOST_MARK") != nil, "run by aRuntimesPodsDieWithItsProcess"))
    func hostsAPodUntilItIsKilled() throws {
        let mark = String(cString: try #require(getenv("COTERIE_TEST_HOST_MARK")))
        let directory = String(cString: try #require(getenv("COTERIE_TEST_HOST_DIRECTORY")))
        try with({ $0.podsDirectory = directory + "/pods" }) { (h: PodHarness) throws in
            try h.runtime.start(
                pod("p", [shell("a", "trap '' TERM; setsid sleep \(mark) & exec sleep \(mark)")]), key: "p")
            h.wait(.seconds(30)) { false }
        }
    }

    @Test func aLogSidecarSeesTheOthersLogsInThePod() throws {
        try with { (h: PodHarness) throws in
            let spec = pod(
                "p",
                [
                    shell("app", "echo said; sleep 20"),
                    shell(
                        "side",
                        "while ! grep -q said $COTERIE_LOGS/app.log 2>/dev/null; do sleep 0.02; done; "
                            + "cut -d' ' -f2- $COTERIE_LOGS/app.log; "
                            + "touch $COTERIE_LOGS/x 2>/dev/null && echo written; exit 0"),
                ])
            try h.runtime.start(spec, key: "p")
            #expect(try h.waitForLine("p", "side", "stdout F said"))
            #expect(throws: CoterieError.self) {
                try h.runtime.logs(key: "p", container: nil) { _ in
                } onEnd: { _ in
                }
            }
            #expect(h.wait { h.container("p", "side")?.state == .terminated(exitCode: 0, reason: "Completed") })
            #expect(try h.log("p", "side") == ["stdout F said"])
        }
    }

    @Test(.enabled(if: Machine.hasPerl, "perl is needed"))
    func aProbeByHTTPAsksInThePodsNetwork() throws {
        try with { (h: PodHarness) throws in
            let server =
                "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 8080, Listen => 5) or die; "
                + "while (my $c = $s->accept) { my $l = <$c>; my $a = $l =~ m{ /ok } ? '200 OK' : '500 No'; "
                + "print {$c} \"HTTP/1.1 $a\\r\\n\\r\\n\"; close $c }"
            let web = { (name: String, path: String) in
                ContainerSpec(
                    name: name, image: ImageName.host,
                    command: ["/usr/bin/perl", "-e", name == "good" ? server : "sleep 60"],
                    readinessProbe: Probe(
                        action: .http(path: path, port: 8080), period: .milliseconds(20), failureThreshold: 1))
            }
            try h.runtime.start(pod("p", [web("good", "/ok"), web("bad", "/no")]), key: "p")
            #expect(h.wait { h.container("p", "good")?.ready == true })
            #expect(h.container("p", "bad")?.ready == false)
        }
    }

    @Test func allOutputOfAContainerThatEndsIsInItsLog() throws {
        try with { (h: PodHarness) throws in
            try h.runToEnd(pod("p", [shell("a", "seq 1 50000; echo last >&2; printf rest")]))
            let lines = try h.log("p")
            #expect(lines.count == 50_002)
            #expect(lines.filter { $0 != "last" && $0 != "rest" } == (1...50_000).map { "\($0)" })
            #expect(lines.contains("rest"))
        }
    }

    @Test func aPodOnTheHostsNetworkReachesTheHostsPorts() throws {
        try with { (h: PodHarness) throws in
            let host = try Listener(loop: h.loop, bind: .loopback(port: 0))
            let port = try #require(host.localAddress).port
            let reach = ContainerSpec(
                name: "a", image: ImageName.host, command: ["/bin/bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/\(port)"])
            #expect(try h.runToEnd(pod("p", [reach]) { $0.hostNetwork = true }).phase == .succeeded)
            #expect(try h.runToEnd(pod("q", [reach])).phase == .failed)
            host.close()
        }
    }

    @Test func aDeepDirectoryIsNoHindranceToThePodsSocket() throws {
        let directory = try #require(makeTemporaryDirectory())
        defer { removeTree(directory) }
        let deep = directory + "/" + String(repeating: "x", count: 150)
        try with({ $0.podsDirectory = deep }) { (h: PodHarness) throws in
            let status = try h.runToEnd(pod("p", [shell("a", "test -S /run/coterie/pod.sock")]))
            #expect(status.phase == .succeeded, "\(status)")
        }
    }

    @Test(.enabled(if: Machine.hasUsers, "not root"))
    func twoPodsHaveDifferentUsersAndTheSamePorts() throws {
        try with { (h: PodHarness) throws in
            for name in ["p", "q"] {
                try h.runtime.start(
                    pod(name, [shell("a", "id -u; exec sleep 60")]) {
                        $0.annotations[PodSpec.listenAnnotation] = "a=6379"
                    }, key: name)
            }
            #expect(h.wait { ["p", "q"].allSatisfy { h.container($0, "a")?.state == .running } })
            // Both have said who they are before they are stopped.
            let limit = EventLoop.clock() + .seconds(10)
            while try h.log("p").isEmpty || h.log("q").isEmpty, EventLoop.clock() < limit { usleep(5_000) }
            h.runtime.stop(key: "p", grace: .zero)
            h.runtime.stop(key: "q", grace: .zero)
            #expect(h.wait { h.gone == ["p", "q"] })
            #expect(try h.log("p") != h.log("q"))
        }
    }

    @Test func anEmptyDirOverItsLimitEvictsThePod() throws {
        try with({ $0.usageInterval = .milliseconds(50) }) { (h: PodHarness) throws in
            let spec = pod(
                "p",
                [
                    shell("a", "head -c 3M /dev/zero > /data/x; exec sleep 60") {
                        $0.mounts = [VolumeMount(name: "d", mountPath: "/data")]
                    }
                ]
            ) {
                $0.volumes = [Volume(name: "d", source: .emptyDir(inMemory: false, sizeLimit: 1 << 20))]
                $0.terminationGracePeriod = .zero
            }
            let status = try h.runToEnd(spec)
            #expect(status.reason == "Evicted")
            #expect(status.message.contains("emptyDir d"))
        }
    }

    @Test func aMountPathThatTheImageLacksIsMadeWithoutWritingToTheImage() throws {
        try with { (h: PodHarness) throws in
            let spec = pod(
                "p",
                [
                    shell(
                        "a",
                        "echo x > /usr/local/deep/er/f && ls /usr/local/bin > /dev/null && cat /usr/local/deep/er/f"
                    ) {
                        $0.mounts = [VolumeMount(name: "d", mountPath: "/usr/local/deep/er")]
                    }
                ]
            ) { $0.volumes = [Volume(name: "d", source: .emptyDir(inMemory: true, sizeLimit: nil))] }
            #expect(try h.runToEnd(spec).phase == .succeeded)
            #expect(try h.log("p") == ["x"])
            #expect(access("/usr/local/deep", F_OK) != 0)
        }
    }

    @Test func aPodOverTheNodesLimitAndAUsedKeyAreRefused() throws {
        try with({ $0.podLimit = 1 }) { (h: PodHarness) throws in
            try h.runtime.start(pod("p", [shell("a", "exec sleep 60")]), key: "p")
            #expect(throws: CoterieError.self) { try h.runtime.start(pod("p", [shell("a", "true")]), key: "p") }
            #expect(throws: CoterieError.self) { try h.runtime.start(pod("p", [shell("a", "true")]), key: "../p") }
            #expect(try h.runToEnd(pod("q", [shell("a", "true")])).reason == "OutOfPods")
        }
    }

    @Test func plainProcessesShareTheHostsNetworkAndHaveNoMounts() throws {
        try with(sandbox: .none) { (h: PodHarness) throws in
            let status = try h.runToEnd(
                pod(
                    "p",
                    [shell("a", "id -u; echo $COTERIE_ADDRESS; pwd; test -S ${COTERIE_ADDRESS#unix:} && echo socket")]))
            #expect(status.phase == .succeeded, "\(status)")
            #expect(status.sandbox == "none")
            let lines = try h.log("p")
            #expect(lines.first != "0")
            #expect(lines.last == "socket")
            let refused = try h.runToEnd(
                pod("q", [shell("a", "true")]) {
                    $0.volumes = [Volume(name: "v", source: .emptyDir(inMemory: false, sizeLimit: nil))]
                })
            #expect(refused.reason == "VolumesNotSupported")
        }
    }
}

/// Whether some process on this host has the word in its command line.
private func isRunning(_ word: String) -> Bool {
    entries(of: "/proc").contains { name in
        guard let pid = Int32(name), pid != getpid(), let text = textFile("/proc/\(name)/cmdline") else { return false }
        return text.hasPrefix("sleep\0") && text.contains(word)
    }
}
