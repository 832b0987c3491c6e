// Orders to the cluster's membership: who votes, who leads, who gets pods; and the key.
import ArgumentParser
import Client
import EventLoop
import Glibc
import Model
import NodeCore
import Scheduling
import Security
import Transport
import Wire

struct LeaveCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "leave", abstract: "Take a node out of the cluster for good and stop it.",
        discussion:
            "The node that is asked is the one that leaves: name it. It can only come back as a new node, with an empty data directory.\n\ncoterie leave --address unix:/var/lib/coterie/agent.sock"
    )

    func run() throws {
        let addresses = Invocation.endpoints().addresses
        guard addresses.count == 1 else {
            throw CoterieError(
                .badInput, "leave: which node? there are \(addresses.count) addresses",
                hint: "name the one that leaves with --address")
        }
        try Invocation.withClient { client in
            let name = try await client.query("status")["node"]?.string("name") ?? ""
            _ = try await client.admin(["verb": "leave"])
            _ = try await client.admin(["verb": "stop"])
            Invocation.show(["left": .string(name)]) { _ in "\(name) has left\n" }
        }
    }
}

struct RemoveCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "remove", abstract: "Take a node out of the voters and learners.",
        discussion: """
            For a node that will not come back: it is never taken in again under its id, whoever leads. If it still runs, its agent \
            ends. A learner that has kept up takes a voter's place in the same step. Refused where the voters that would be left \
            could decide nothing. Answered when it is done.

            coterie remove node3
            """)

    @Argument(help: "The node's name or id.") var node: String
    @Flag(help: "Also forget it as a member; only if it does not run.") var prune = false

    func run() throws {
        let (node, prune) = (node, prune)
        try Invocation.withClient { client in
            var order: [JSONValue.Member] = [.init("verb", "remove"), .init("node", .string(node))]
            if prune { order.append(.init("prune", true)) }
            _ = try await client.admin(.object(order))
            Invocation.show(["removed": .string(node)]) { _ in "\(node) is removed\n" }
        }
    }
}

struct TransferCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "transfer", abstract: "Hand leadership to another node.",
        discussion: "coterie transfer\ncoterie transfer node2")

    @Argument(help: "The voter that shall lead (default: the one that is furthest).") var node: String?

    func run() throws {
        let node = node
        try Invocation.withClientAndLoop { client, loop in
            let before = try await client.query("leader")
            var order: [JSONValue.Member] = [.init("verb", "transfer")]
            if let node { order.append(.init("node", .string(node))) }
            _ = try await client.admin(.object(order))
            let deadline = loop.now + Invocation.options.timeout
            while loop.now < deadline {
                let leader = try await client.query("leader")
                let isThere =
                    if let node { leader.string("name") == node || leader.string("id") == node } else {
                        !leader.isNull && leader["id"] != before["id"]
                    }
                if isThere {
                    Invocation.show(leader) { "\($0.cell("name")) leads now, in term \($0.cell("term"))\n" }
                    return
                }
                await loop.sleep(.milliseconds(20))
            }
            throw CoterieError(.deadline, "leadership has not moved in time", hint: "see: coterie leader")
        }
    }
}

/// Finds a member by its name or id.
private func memberID(_ name: String, _ client: ClusterClient) async throws(CoterieError) -> NodeID {
    let members = try await client.query("members")
    let member = members.list("members").first { $0["name"]?.stringValue == name || $0["id"]?.stringValue == name }
    guard let id = member?["id"]?.stringValue.flatMap({ NodeID(text: $0) }) else {
        throw CoterieError(.notFound, "there is no member \(name)", hint: "see: coterie members")
    }
    return id
}

/// One command to the scheduler; a refusal is thrown.
func schedule(_ command: SchedulingCommand, _ client: ClusterClient) async throws(CoterieError) -> SchedulingResult {
    guard case .scheduling(let result) = try await client.command(.scheduling(command)) else {
        throw CoterieError(.failed, "an answer of the wrong kind")
    }
    if let error = result.error { throw error }
    return result
}

struct CordonCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "cordon", abstract: "Place no new pods on a node.", discussion: "coterie cordon node1")
    @Argument(help: "The node's name or id.") var node: String

    func run() throws {
        let node = node
        try Invocation.withClient { client in
            _ = try await schedule(.cordon(try await memberID(node, client), true), client)
            Invocation.show(["cordoned": .string(node)]) { _ in "\(node) is cordoned\n" }
        }
    }
}

struct UncordonCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "uncordon", abstract: "Place pods on a node again.", discussion: "coterie uncordon node1")
    @Argument(help: "The node's name or id.") var node: String

    func run() throws {
        let node = node
        try Invocation.withClient { client in
            _ = try await schedule(.cordon(try await memberID(node, client), false), client)
            Invocation.show(["uncordoned": .string(node)]) { _ in "\(node) takes pods again\n" }
        }
    }
}

struct DrainCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "drain", abstract: "Cordon a node and move its pods elsewhere.", discussion: "coterie drain node1")
    @Argument(help: "The node's name or id.") var node: String

    func run() throws {
        let node = node
        try Invocation.withClient { client in
            _ = try await schedule(.drain(try await memberID(node, client)), client)
            Invocation.show(["draining": .string(node)]) { _ in "\(node) is cordoned and its pods move\n" }
        }
    }
}

struct KeygenCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "keygen", abstract: "Make a cluster key.",
        discussion:
            "32 random bytes in a file that only its owner can read. An existing file is never replaced.\n\ncoterie keygen cluster.key"
    )
    @Argument(help: "The file to make.") var file: String

    func run() throws {
        guard access(file, F_OK) != 0 else {
            throw CoterieError(
                .conflict, "\(file) exists", hint: "a key that is replaced locks its cluster out; remove it yourself")
        }
        let key: ClusterKey
        do { key = try ClusterKey.random() } catch { throw CoterieError(.failed, "cannot make a key: \(error)") }
        try KeyFile.write(key, to: file)
        Invocation.show(["file": .string(absolutePath(file))]) { _ in "wrote \(file)\n" }
    }
}
