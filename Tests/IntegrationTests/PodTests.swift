// Act 5: pods of several containers on real name spaces, and the three patterns inside one pod.
import Foundation
import TestSupport
import Testing
import Wire

private let needsNamespaces: Comment = "pods need root, coterie-init and a kernel that gives name spaces"
private let systemPython = "/usr/bin/python3"
private let hasSystemPython = access(systemPython, X_OK) == 0

extension TestCluster {
    /// Waits until the pod's phase is one of these.
    @discardableResult
    func untilPod(_ name: String, _ phases: Set<String>, within seconds: Double = 30) async throws -> JSONValue {
        var last = "unknown"
        do {
            return try await eventually("pod \(name) is \(phases.sorted().joined(separator: " or "))", within: seconds)
            {
                let pod = try await self.json(["get", "pod", name])
                last = pod.text()
                // JSON has a nil literal of its own: a conditional expression would be JSON's null.
                guard phases.contains(pod["status"]?["phase"]?.stringValue ?? "") else { return nil }
                return pod
            }
        } catch {
            let logs = try? await coterie(["logs", name, "--all"])
            throw TestFailure("\(error)\nthe pod: \(last)\nits logs: \(logs.map { "\($0)" } ?? "none")")
        }
    }

    /// Waits until a container's log contains the text, and returns the log.
    @discardableResult
    func untilLog(_ pod: String, _ container: String, contains text: String, within seconds: Double = 30) async throws
        -> String
    {
        var last = ""
        do {
            return try await eventually("the log of \(pod)/\(container) contains \(text)", within: seconds, every: 0.2)
            {
                let outcome = try await self.coterie(["logs", pod, "-c", container])
                last = "\(outcome)"
                return outcome.stdout.contains(text) ? outcome.stdout : nil
            }
        } catch {
            let state = try? await coterie(["get", "pod", pod, "-o", "yaml"])
            throw TestFailure("\(error)\n\(last)\n\(state.map { "\($0)" } ?? "")")
        }
    }
}

extension Integration {
    @Suite(.enabled(if: Programs.canRunPods, needsNamespaces)) struct Pods {
        @Test func podOfTwoContainersIsAppliedReadLoggedAndDeleted() async throws {
            try await withCluster(3) { cluster in
                let manifest = try cluster.file(
                    "two.yaml",
                    """
                    apiVersion: v1
                    kind: Pod
                    metadata: {name: two}
                    spec:
                      nodeName: n1
                      terminationGracePeriodSeconds: 2
                      containers:
                        - name: writer
                          image: localhost/host
                          env: [{name: WORD, value: shared}]
                          command: [/bin/sh, -c, 'echo "$WORD" > /both/file; echo written; exec sleep 1000']
                          volumeMounts: [{name: both, mountPath: /both}]
                        - name: reader
                          image: localhost/host
                          command:
                            - /bin/sh
                            - -c
                            - 'until [ -s /both/file ]; do sleep 0.05; done; echo "read $(cat /both/file)"; exec sleep 1000'
                          volumeMounts: [{name: both, mountPath: /both}]
                      volumes: [{name: both, emptyDir: {}}]
                    """)
                try await cluster.ok(["apply", "-f", manifest], via: cluster.nodes[0])
                let pod = try await cluster.untilPod("two", ["Running"])
                #expect(pod["spec"]?["nodeName"] == "n1" && pod["kind"] == "Pod")
                #expect(pod["status"]?["containerStatuses"]?.arrayValue?.count == 2)
                // Its logs come through any node.
                try await cluster.untilLog("two", "reader", contains: "read shared")
                let logs = try await cluster.ok(["logs", "two", "-c", "writer"], via: cluster.nodes[2])
                #expect(logs.stdout == "written\n")
                #expect(try await cluster.ok(["apply", "-f", manifest]).stdout.contains("unchanged"))
                let unclear = try await cluster.coterie(["logs", "two", "-c", "nobody"])
                #expect([2, 4].contains(unclear.code) && unclear.errorLines.count == 1, "\(unclear)")
                try await cluster.ok(["delete", "pod", "two"])
                try await eventually("the pod is gone", within: 20) {
                    try await cluster.coterie(["get", "pod", "two"]).code == 4
                }
                let left = FileManager.default.enumerator(atPath: cluster.nodes[1].data + "/pods")?.allObjects ?? []
                #expect(!left.contains { "\($0)".hasSuffix("/file") }, "the pod's volume is still there")
            }
        }

        @Test func podsThatEndSayHow() async throws {
            try await withCluster(1) { cluster in
                for (name, code) in [("good", 0), ("bad", 3)] {
                    let manifest = try cluster.file(
                        "\(name).yaml",
                        """
                        apiVersion: v1
                        kind: Pod
                        metadata: {name: \(name)}
                        spec:
                          restartPolicy: Never
                          containers: [{name: app, image: localhost/host, command: [/bin/sh, -c, "echo ran; exit \(code)"]}]
                        """)
                    try await cluster.ok(["apply", "-f", manifest])
                }
                try await cluster.untilPod("good", ["Succeeded"])
                let bad = try await cluster.untilPod("bad", ["Failed"])
                let state = bad["status"]?["containerStatuses"]?.arrayValue?.first?["state"]?["terminated"]
                #expect(state?["exitCode"] == 3, "\(bad.text())")
                #expect(try await cluster.ok(["logs", "good"]).stdout == "ran\n")
            }
        }

        @Test(.enabled(if: hasSystemPython, "/usr/bin/python3 is missing"))
        func localhostIsThePodsOwn() async throws {
            try await withCluster(1) { cluster in
                let port = try PortHolder.freePort()
                let secret = try PortHolder()
                let manifest = try cluster.file(
                    "own.yaml",
                    """
                    apiVersion: v1
                    kind: Pod
                    metadata: {name: own}
                    spec:
                      terminationGracePeriodSeconds: 1
                      containers:
                        - name: server
                          image: localhost/host
                          command: [\(systemPython), -m, http.server, "\(port)", --bind, 127.0.0.1, --directory, /etc]
                        - name: client
                          image: localhost/host
                          command:
                            - /bin/sh
                            - -c
                            - |
                              until curl -fs -o /dev/null http://127.0.0.1:\(port)/hostname; do sleep 0.1; done
                              echo "own localhost answers"
                              if \(systemPython) -c 'import socket; socket.create_connection(("127.0.0.1", \(secret.port)), 2)' 2>/dev/null
                              then echo "host localhost answers too"; else echo "host localhost is out of reach"; fi
                              id -u
                              exec sleep 1000
                    """)
                try await cluster.ok(["apply", "-f", manifest])
                try await cluster.untilLog("own", "client", contains: "own localhost answers")
                let log = try await cluster.untilLog("own", "client", contains: "host localhost")
                #expect(log.contains("host localhost is out of reach"), "\(log)")
                #expect(throws: (any Error).self, "the pod's port is reachable from the host") {
                    try RawConnection(port: port)
                }
                let user = try await cluster.untilLog("own", "client", contains: "\n")
                #expect(!user.split(separator: "\n").contains("0"), "the pod runs as root: \(user)")
            }
        }

        @Test func containersOfAPodSeeNoKeyAndNoDataDirectory() async throws {
            try await withCluster(1) { cluster in
                let data = cluster.nodes[0].data
                let manifest = try cluster.file(
                    "peek.yaml",
                    """
                    apiVersion: v1
                    kind: Pod
                    metadata: {name: peek}
                    spec:
                      restartPolicy: Never
                      containers:
                        - name: app
                          image: localhost/host
                          command:
                            - /bin/sh
                            - -c
                            - |
                              for f in \(data)/keys/cluster.key \(cluster.keyFile) \(data)/identity \(data)/agent.sock; do
                                if [ -r "$f" ] && [ -n "$(head -c 1 "$f" 2>/dev/null | od -An -tx1)" ]; then echo "READ $f"; fi
                              done
                              if [ -w / ] && touch /here 2>/dev/null; then echo WROTE; fi
                              if grep -q '^NoNewPrivs:.1' /proc/self/status; then echo "no new privileges"; fi
                              echo looked
                    """)
                try await cluster.ok(["apply", "-f", manifest])
                try await cluster.untilPod("peek", ["Succeeded"])
                let log = try await cluster.ok(["logs", "peek"]).stdout
                #expect(
                    log.contains("looked") && log.contains("no new privileges") && !log.contains("READ")
                        && !log.contains("WROTE"), "\(log)")
            }
        }

        @Test func logSidecarShipsWhatTheAppPrints() async throws {
            let sink = try TCPSink()
            defer { sink.stop() }
            try await withCluster(1) { cluster in
                let manifest = try cluster.file(
                    "logs.yaml",
                    """
                    apiVersion: v1
                    kind: Pod
                    metadata:
                      name: talk
                      annotations: {coterie.internal/listen: logs}
                    spec:
                      terminationGracePeriodSeconds: 3
                      initContainers:
                        - name: logs
                          image: localhost/host
                          restartPolicy: Always
                          command: [coterie, sidecar, logs, --to, "tcp://127.0.0.1:\(sink.port)"]
                      containers:
                        - name: app
                          image: localhost/host
                          command:
                            - /bin/sh
                            - -c
                            - |
                              trap "echo last words; exit 0" TERM
                              for i in $(seq 20); do echo "line $i"; done
                              sleep 1000 & wait
                    """)
                try await cluster.ok(["apply", "-f", manifest])
                func texts() -> [String] {
                    sink.lines.compactMap { line in
                        guard let record = try? JSONValue(parsing: line) else { return nil }
                        return (record["message"] ?? record["text"] ?? record["log"])?.stringValue
                    }
                }
                do {
                    try await eventually("all lines have arrived", within: 30) {
                        texts().filter { $0.hasPrefix("line ") }.count >= 20
                    }
                } catch {
                    throw TestFailure(
                        "\(error)\nthe sink: \(sink.text.suffix(1_000))\n\(try await cluster.coterie(["logs", "talk", "-c", "logs"]))"
                    )
                }
                #expect(texts().filter { $0.hasPrefix("line ") } == (1...20).map { "line \($0)" })
                // The sidecar ends after the app, so the last words arrive too.
                try await cluster.ok(["delete", "pod", "talk"])
                try await eventually("the last words have arrived", within: 20) { texts().contains("last words") }
            }
        }

        @Test(.enabled(if: Programs.find("curl") != nil, "curl is missing"))
        func electorAnswersInsideAPod() async throws {
            try await withCluster(3) { cluster in
                func pod(_ name: String, node: String) -> String {
                    """
                    apiVersion: v1
                    kind: Pod
                    metadata: {name: \(name)}
                    spec:
                      nodeName: \(node)
                      terminationGracePeriodSeconds: 1
                      initContainers:
                        - name: elector
                          image: localhost/host
                          restartPolicy: Always
                          command: [coterie, elector, --election, chief, --ttl, 3s]
                      containers:
                        - name: app
                          image: localhost/host
                          command:
                            - /bin/sh
                            - -c
                            - while :; do curl -s http://127.0.0.1:4040/; echo; curl -s http://127.0.0.1:4040/v1; echo; sleep 0.3; done
                    ---

                    """
                }
                let manifest = try cluster.file("elect.yaml", pod("p0", node: "n0") + pod("p1", node: "n1"))
                try await cluster.ok(["apply", "-f", manifest])
                let holder: JSONValue = try await eventually("somebody holds the election", within: 30) {
                    let election = try await cluster.json(["election", "show", "chief"])
                    guard election["holder"]?.isNull == false else { return nil }
                    return election
                }
                let chief = try #require(holder["holder"]?["pod"]?.stringValue, "\(holder.text())")
                let other = chief == "p0" ? "p1" : "p0"
                try await cluster.untilLog(chief, "app", contains: "\"leader\":true")
                try await cluster.untilLog(other, "app", contains: "\"leader\":false")
                try await cluster.untilLog(chief, "app", contains: "{\"name\":\"")
                // The chief's node is killed: the other pod's elector takes over, with a larger token.
                let victim = try #require(cluster.nodes.first { $0.name == (chief == "p0" ? "n0" : "n1") })
                try await cluster.kill9(victim)
                try await cluster.untilLog(other, "app", contains: "\"leader\":true", within: 40)
                let next = try await cluster.json(["election", "show", "chief"])
                #expect((next["token"]?.intValue ?? 0) > (holder["token"]?.intValue ?? 0))
            }
        }

        @Test(
            .enabled(
                if: Programs.find("redis-server") != nil && Programs.find("redis-cli") != nil,
                "redis-server and redis-cli are not installed"))
        func redisAmbassadorWritesToTheMasterAndReadsFromReplicas() async throws {
            try await withCluster(1) { cluster in
                let server = try #require(Programs.find("redis-server"))
                let cli = try #require(Programs.find("redis-cli"))
                let ports = try (0..<3).map { _ in try PortHolder.freePort() }
                var servers: [ChildProgram] = []
                for (index, port) in ports.enumerated() {
                    let directory = cluster.directory + "/redis\(index)"
                    try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
                    var words = [
                        "--port", "\(port)", "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir",
                        directory,
                    ]
                    words += ["--repl-diskless-sync-delay", "0"]
                    if index > 0 { words += ["--replicaof", "127.0.0.1", "\(ports[0])"] }
                    servers.append(try cluster.start(program: server, words))
                }
                defer { for server in servers { server.signalGroup(SIGKILL) } }
                func redis(_ port: UInt16, _ words: String...) async throws -> String {
                    try await cluster.run(program: cli, ["-p", "\(port)"] + words).stdout
                }
                try await eventually("both replicas follow", within: 30) {
                    for port in ports.dropFirst()
                    where !(try await redis(port, "info", "replication")).contains("master_link_status:up") {
                        return false
                    }
                    return true
                }
                let manifest = try cluster.file(
                    "redis.yaml",
                    """
                    apiVersion: v1
                    kind: Pod
                    metadata:
                      name: shop
                      annotations: {coterie.internal/listen: "redis=6379"}
                    spec:
                      restartPolicy: Never
                      initContainers:
                        - name: redis
                          image: localhost/host
                          restartPolicy: Always
                          command: [coterie, ambassador, redis, --listen, "127.0.0.1:6379", --master, "127.0.0.1:\(ports[0])",
                                    --replica, "127.0.0.1:\(ports[1])", --replica, "127.0.0.1:\(ports[2])"]
                          startupProbe: {tcpSocket: {port: 6379}, periodSeconds: 1, failureThreshold: 30}
                      containers:
                        - name: app
                          image: localhost/host
                          command:
                            - /bin/sh
                            - -c
                            - |
                              c="redis-cli -h 127.0.0.1 -p 6379"
                              for i in $(seq 20); do $c set key$i value$i; done
                              for i in $(seq 20); do until [ "$($c get key$i)" = value$i ]; do sleep 0.05; done; done
                              for i in $(seq 40); do $c get key1 >/dev/null; done
                              echo all read
                    """)
                try await cluster.ok(["apply", "-f", manifest])
                try await cluster.untilPod("shop", ["Succeeded"], within: 60)
                let log = try await cluster.ok(["logs", "shop", "-c", "app"]).stdout
                #expect(
                    log.contains("all read") && log.split(separator: "\n").filter { $0 == "OK" }.count == 20, "\(log)")
                func calls(_ port: UInt16, _ command: String) async throws -> Int {
                    let text = try await redis(port, "info", "commandstats")
                    guard
                        let line = text.split(whereSeparator: \.isNewline).first(where: {
                            $0.hasPrefix("cmdstat_\(command):calls=")
                        })
                    else { return 0 }
                    return Int(line.dropFirst("cmdstat_\(command):calls=".count).prefix { $0.isNumber }) ?? 0
                }
                let master = try await (sets: calls(ports[0], "set"), gets: calls(ports[0], "get"))
                #expect(master.sets == 20 && master.gets == 0, "\(master)")
                for port in ports.dropFirst() {
                    #expect(try await calls(port, "get") > 0, "the replica at \(port) was never read")
                }
            }
        }

        @Test func adapterTurnsFiguresIntoPrometheusText() async throws {
            try await withCluster(1) { cluster in
                let manifest = try cluster.file(
                    "adapter.yaml",
                    """
                    apiVersion: v1
                    kind: Pod
                    metadata: {name: meter}
                    spec:
                      terminationGracePeriodSeconds: 1
                      initContainers:
                        - name: adapter
                          image: localhost/host
                          restartPolicy: Always
                          command: [coterie, adapter, --watch, "/data/*.csv", --from, csv, --to, prometheus, --out, /metrics]
                          volumeMounts: [{name: data, mountPath: /data, readOnly: true}, {name: metrics, mountPath: /metrics}]
                      containers:
                        - name: app
                          image: localhost/host
                          command:
                            - /bin/sh
                            - -c
                            - |
                              echo "sensor,celsius" > /data/figures.csv
                              echo "cellar,17" >> /data/figures.csv
                              until grep -q 17 /metrics/figures.csv 2>/dev/null; do sleep 0.1; done
                              cat /metrics/figures.csv
                              exec sleep 1000
                          volumeMounts: [{name: data, mountPath: /data}, {name: metrics, mountPath: /metrics, readOnly: true}]
                      volumes: [{name: data, emptyDir: {}}, {name: metrics, emptyDir: {}}]
                    """)
                try await cluster.ok(["apply", "-f", manifest])
                let log = try await cluster.untilLog("meter", "app", contains: "17")
                #expect(log.contains("celsius") && log.contains("sensor=\"cellar\""), "\(log)")
            }
        }

        @Test func podsEndWithTheirKilledAgentAndRunAgainWhenItReturns() async throws {
            try await withCluster(3) { cluster in
                let manifest = try cluster.file(
                    "stay.yaml",
                    """
                    apiVersion: v1
                    kind: Pod
                    metadata: {name: stay}
                    spec:
                      nodeName: n1
                      terminationGracePeriodSeconds: 1
                      containers: [{name: app, image: localhost/host, command: [sleep, "4323"]}]
                    """)
                try await cluster.ok(["apply", "-f", manifest])
                try await cluster.untilPod("stay", ["Running"])
                #expect(ProcessTable.processes(exactly: "sleep 4323").count == 1)
                try await cluster.kill9(cluster.nodes[1])
                try await eventually("its processes are gone", within: 20) {
                    ProcessTable.processes(exactly: "sleep 4323").isEmpty
                }
                try await cluster.restart(cluster.nodes[1])
                // A pod is mortal, as in Kubernetes: it may have failed for good, but never runs twice.
                try await eventually("the cluster knows how it is", within: 30) {
                    let pod = try await cluster.coterie(["--json", "get", "pod", "stay"])
                    if pod.code == 4 { return true }
                    let phase = try pod.json()["status"]?["phase"]?.stringValue
                    let count = ProcessTable.processes(exactly: "sleep 4323").count
                    return phase == "Running" ? count == 1 : phase == "Failed" && count == 0
                }
            }
        }

        @Test func terminatedAgentStopsItsPodsWithinTheirGrace() async throws {
            try await withCluster(1) { cluster in
                let manifest = try cluster.file(
                    "stay.yaml",
                    """
                    apiVersion: v1
                    kind: Pod
                    metadata: {name: stay}
                    spec:
                      terminationGracePeriodSeconds: 2
                      containers: [{name: app, image: localhost/host, command: [sleep, "4324"]}]
                    """)
                try await cluster.ok(["apply", "-f", manifest])
                try await cluster.untilPod("stay", ["Running"])
                #expect(try await cluster.terminate(cluster.nodes[0]) == .exited(0))
                #expect(ProcessTable.processes(exactly: "sleep 4324").isEmpty)
            }
        }

        @Test func podThatTheKernelCanNotHoldIsRefusedUnlessAsked() async throws {
            try await withBench { bench in
                let manifest = try bench.file(
                    "image.yaml",
                    """
                    apiVersion: v1
                    kind: Pod
                    metadata: {name: image}
                    spec:
                      restartPolicy: Never
                      containers: [{name: app, image: not/here, command: ["true"]}]
                    """)
                let outcome = try await bench.run(["run", "--pod", manifest], within: 30)
                #expect(outcome.code == 125 && outcome.stderr.contains("not/here"), "\(outcome)")
            }
        }

        @Test func podRunsWithoutAClusterAndItsCodeIsTheAnswer() async throws {
            try await withBench { bench in
                let manifest = try bench.file(
                    "alone.yaml",
                    """
                    apiVersion: v1
                    kind: Pod
                    metadata: {name: alone}
                    spec:
                      restartPolicy: Never
                      containers:
                        - {name: app, image: localhost/host, command: [/bin/sh, -c, "echo to the terminal; echo to the log >&2; exit 7"]}
                    """)
                let outcome = try await bench.run(["run", "--pod", manifest], within: 30)
                #expect(outcome.code == 7 && outcome.stdout.contains("to the terminal"), "\(outcome)")
                let open = try await bench.run(["run", "--pod", manifest, "--sandbox", "none"], within: 30)
                #expect(open.code == 7 && open.stdout.contains("to the terminal"), "\(open)")
            }
        }
    }
}
