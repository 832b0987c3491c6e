// Closed by default: other users of the machine, clients without the key and plain bytes get nowhere.
import Foundation
import TestSupport
import Testing
import Wire

extension Integration {
    @Suite struct Security {
        @Test(.enabled(if: Programs.isRoot, "another user's processes need root"))
        func anotherUserReachesNothing() async throws {
            try await withCluster(1) { cluster in
                // The test's own directory is opened up, so that it is the node's modes that hold.
                chmod(cluster.directory, 0o755)
                let node = cluster.nodes[0]
                let nobody: Int64 = 65_534
                #expect(try FileManager.default.attributesOfItem(atPath: node.data)[.posixPermissions] as? Int == 0o700)
                #expect(
                    try FileManager.default.attributesOfItem(atPath: node.data + "/agent.sock")[.posixPermissions]
                        as? Int == 0o600)
                #expect(
                    try FileManager.default.attributesOfItem(atPath: node.data + "/keys")[.posixPermissions] as? Int
                        == 0o700)
                #expect(
                    try FileManager.default.attributesOfItem(atPath: node.data + "/keys/cluster.key")[.posixPermissions]
                        as? Int == 0o600)
                for file in [node.data + "/keys/cluster.key", cluster.keyFile, node.data + "/identity"] {
                    let read = try await cluster.run(program: "/bin/cat", [file], user: nobody)
                    #expect(read.code != 0 && read.stdout.isEmpty, "\(read)")
                }
                let list = try await cluster.run(program: "/bin/ls", [node.data], user: nobody)
                #expect(list.code != 0 && list.stdout.isEmpty, "\(list)")
                // Even with every mode opened, the socket asks the kernel who is at the other end.
                for path in [node.data, node.data + "/agent.sock"] { chmod(path, 0o777) }
                let python = try #require(Programs.python())
                let script = try cluster.file(
                    "knock.py",
                    """
                    import socket, sys
                    s = socket.socket(socket.AF_UNIX); s.settimeout(5)
                    try:
                        s.connect(sys.argv[1]); s.sendall(b"\\0" * 64); print("answer:", s.recv(100))
                    except OSError as e: print("refused:", e)
                    """)
                chmod(script, 0o644)
                // As root it is answered or closed, but connects; the other user gets no byte.
                let other = try await cluster.run(
                    program: python.hasPrefix("/root") ? "/usr/bin/python3" : python,
                    [script, node.data + "/agent.sock"], user: nobody)
                #expect(other.stdout.contains("refused") || other.stdout.contains("answer: b''"), "\(other)")
                #expect(try await cluster.status(node)["leader"]?.isNull == false)
            }
        }

        @Test(
            .enabled(if: Programs.isRoot, "another user's processes need root"),
            arguments: [("owner", false), ("any", true)])
        func anotherUserGetsNothingFromTheQueuePortUnlessAllMayUseIt(users: String, served: Bool) async throws {
            try await withCluster(1, extra: ["--queue-users", users]) { cluster in
                chmod(cluster.directory, 0o755)
                let script = try cluster.file(
                    "put.py",
                    """
                    import socket, sys
                    s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5)
                    try:
                        s.sendall(b"put 0 0 60 1\\r\\nx\\r\\n"); print("answer:", s.recv(100))
                    except OSError as e: print("refused:", e)
                    """)
                chmod(script, 0o644)
                let port = "\(cluster.nodes[0].queuePort)"
                let own = try await cluster.run(program: "/usr/bin/python3", [script, port])
                #expect(own.stdout.contains("INSERTED 1"), "\(own)")
                let other = try await cluster.run(program: "/usr/bin/python3", [script, port], user: 65_534)
                #expect(other.stdout.contains("INSERTED 2") == served, "\(other)")
                #expect(served || other.stdout.contains("refused") || other.stdout.contains("answer: b''"), "\(other)")
                let tubes = try await cluster.json(["queue", "list"])["tubes"]?.arrayValue
                let ready = tubes?.first { $0["name"] == "default" }?["ready"]?.intValue
                #expect(ready == (served ? 2 : 1))
            }
        }

        @Test func clientWithoutTheKeyIsRefusedInOneLine() async throws {
            try await withCluster(1) { cluster in
                let address = cluster.nodes[0].address
                for extra in [[], ["--key", cluster.directory + "/wrong.key"]] {
                    if !extra.isEmpty { try await cluster.ok(["keygen", cluster.directory + "/wrong.key"]) }
                    let refused = try await cluster.run(
                        ["queue", "put", "t", "--address", address, "--timeout", "5s"], input: "x")
                    #expect(refused.code == 5 && refused.errorLines.count == 1 && refused.stdout.isEmpty, "\(refused)")
                    let status = try await cluster.run(["status", "--address", address, "--timeout", "5s"] + extra)
                    #expect(status.code == 5 && status.errorLines.count == 1 && status.stdout.isEmpty, "\(status)")
                }
                let welcome = try await cluster.run([
                    "--json", "status", "--address", address, "--key", cluster.keyFile,
                ])
                #expect(welcome.code == 0, "\(welcome)")
                #expect(
                    try await cluster.json(["queue", "list"])["tubes"]?.arrayValue?.contains { $0["name"] == "t" }
                        == false)
            }
        }

        @Test func keyThatOthersCanReadIsNotUsed() async throws {
            try await withCluster(1) { cluster in
                let open = cluster.directory + "/open.key"
                try await cluster.ok(["keygen", open])
                chmod(open, 0o644)
                let refused = try await cluster.run(["status", "--address", cluster.nodes[0].address, "--key", open])
                #expect(refused.code == 5 && refused.errorLines.count == 1, "\(refused)")
            }
        }

        @Test func garbageOnThePortsChangesNothing() async throws {
            try await withCluster(3) { cluster in
                let before = try await cluster.status(cluster.nodes[0])
                var state: UInt64 = 99
                func garbage(_ count: Int) -> [UInt8] {
                    (0..<count).map { _ in
                        state = state &* 6_364_136_223_846_793_005 &+ 1
                        return UInt8(truncatingIfNeeded: state >> 40)
                    }
                }
                for node in cluster.nodes {
                    for size in [0, 1, 11, 12, 27, 28, 29, 100, 1_399, 1_400, 1_401, 9_000] {
                        sendDatagram(garbage(size), to: node.port)
                    }
                    for first in [
                        Array("GET / HTTP/1.1\r\nHost: x\r\n\r\n".utf8), garbage(4_000),
                        [0x16, 3, 1, 0xff, 0xff] + garbage(70_000), [],
                    ] {
                        let connection = try RawConnection(port: node.port, readLimit: 1)
                        connection.send(first)
                        let answer = connection.receive()
                        #expect(!answer.contains("coterie") && answer.utf8.count < 1_000)
                    }
                }
                // A connection that says nothing holds nobody up.
                let silent = try cluster.nodes.map { try RawConnection(port: $0.port) }
                try await cluster.ok(["queue", "put", "t"], input: "x")
                #expect(silent.count == 3)
                let after = try await cluster.status(cluster.nodes[0])
                #expect(after["term"] == before["term"] && after["leader"] == before["leader"])
                #expect(after["members"]?["alive"] == 3)
                #expect(cluster.nodes.allSatisfy { $0.process.isRunning })
            }
        }

        @Test func addressOfTheNetworkNeedsAKey() async throws {
            try await withBench { bench in
                for bind in ["0.0.0.0:0", "[::]:0"] {
                    let agent = try await bench.run(
                        [
                            "agent", "--name", "x", "--data", bench.directory + "/x", "--bind", bind, "--http", "off",
                            "--queue", "off",
                        ], within: 20)
                    #expect(agent.code == 5 && agent.errorLines.count == 1 && agent.stdout.isEmpty, "\(agent)")
                    #expect(agent.stderr.contains("keygen"), "the remedy is not told: \(agent)")
                }
            }
        }

        @Test func joiningNodeWithoutAKeyIsToldTheRemedy() async throws {
            try await withCluster(1) { cluster in
                let agent = try await cluster.run(
                    [
                        "agent", "--name", "x", "--data", cluster.directory + "/x", "--bind", "127.0.0.1:0", "--http",
                        "off", "--queue", "off", "--join",
                        cluster.nodes[0].address,
                    ], within: 20)
                #expect(
                    [2, 5].contains(agent.code) && agent.errorLines.count == 1 && agent.stderr.contains("--key"),
                    "\(agent)")
            }
        }
    }
}
