// What a node sees of its cluster: status, members, leader, round trips, versions.
import ArgumentParser
import Client
import EventLoop
import Glibc
import Model
import NodeCore
import Wire

struct StatusCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "status", abstract: "Show how the cluster is, as one node sees it.",
        discussion: "coterie status\ncoterie status --json --address unix:/var/lib/coterie/agent.sock")

    func run() throws {
        try Invocation.withClient { client in
            Invocation.show(try await client.query("status"), human: StatusCommand.text)
        }
    }

    static func text(_ status: JSONValue) -> String {
        let cluster = status["cluster"] ?? .null
        let node = status["node"] ?? .null
        var table = Table("cluster", "\(cluster.cell("name"))")
        table.add("node", "\(node.cell("name"))  \(node.cell("address"))  \(node.cell("role"))")
        if let leader = status["leader"], !leader.isNull {
            table.add("leader", "\(leader.cell("name"))  \(leader.cell("address"))  term \(status.cell("term"))")
        } else {
            table.add("leader", Invocation.colored("none", .red))
        }
        table.add("log", "applied \(status.cell("appliedIndex")) of \(status.cell("commitIndex"))")
        table.add("voters", status.cell("voters"))
        let learners = status.list("learners")
        if !learners.isEmpty { table.add("learners", status.cell("learners")) }
        func counts(_ key: String) -> String {
            (status[key]?.objectValue ?? []).map { "\($0.value.intValue ?? 0) \($0.key)" }.joined(separator: "  ")
        }
        table.add("members", counts("members"))
        table.add("queues", counts("queues"))
        table.add("pods", counts("pods"))
        table.add("version", status.cell("version"))
        return table.text()
    }
}

struct MembersCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "members", abstract: "List the members that gossip knows.",
        discussion: "coterie members\ncoterie members --json")

    func run() throws {
        try Invocation.withClient { client in
            Invocation.show(try await client.query("members"), human: MembersCommand.text)
        }
    }

    static func text(_ document: JSONValue) -> String {
        var table = Table("NAME", "STATE", "ROLE", "ADDRESS", "RTT", "TAGS", "ID")
        for member in document.list("members") {
            let rtt = member["rttMilliseconds"]?.doubleValue.map { "\($0)ms" } ?? "-"
            let tags = member["tags"]?.objectValue?.isEmpty ?? true ? "-" : member.cell("tags")
            table.add(
                member.cell("name"), member.cell("state"), member.cell("role"), member.cell("address"), rtt, tags,
                String(member.cell("id").prefix(12)))
        }
        return table.text()
    }
}

struct LeaderCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "leader", abstract: "Show the leader; exit 3 if there is none.",
        discussion: "coterie leader --json")

    func run() throws {
        try Invocation.withClient { client in
            let leader = try await client.query("leader")
            guard !leader.isNull else {
                throw CoterieError(.noLeader, "the cluster has no leader", hint: "see: coterie members")
            }
            Invocation.show(leader) { "\($0.cell("name"))  \($0.cell("address"))  term \($0.cell("term"))\n" }
        }
    }
}

struct RttCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "rtt", abstract: "Show the round trip between two nodes.", discussion: "coterie rtt node0 node1")

    @Argument(help: "A node's name or id.") var a: String
    @Argument(help: "Another's.") var b: String

    func run() throws {
        let (a, b) = (a, b)
        try Invocation.withClientAndLoop { client, loop in
            let path = "rtt/\(percentEncoded(a))/\(percentEncoded(b))"
            let answer: JSONValue
            do { answer = try await client.query(path) } catch let error as CoterieError where error.code == .badInput {
                // A node knows its own round trips only: one of the two is asked.
                answer = try await RttCommand.ask(a, client, loop, path)
            }
            Invocation.show(answer) {
                "\($0.cell("a")) - \($0.cell("b"))  \($0["rttMilliseconds"]?.doubleValue.map { "\($0)ms" } ?? "not measured yet")\n"
            }
        }
    }

    private static func ask(_ name: String, _ client: ClusterClient, _ loop: EventLoop, _ path: String) async throws
        -> JSONValue
    {
        let members = try await client.query("members")
        let member = members.list("members").first { $0["name"]?.stringValue == name || $0["id"]?.stringValue == name }
        // A neighbour of `up` is reached by its socket; others need the key.
        var endpoints = Invocation.endpoints().addresses.filter {
            if case .unix(let path) = $0.host { path.contains("/\(name)/") } else { false }
        }
        if let address = member?["address"]?.stringValue.flatMap({ SocketAddress(text: $0) }),
            Invocation.options.keyFile != nil
        {
            endpoints.append(address)
        }
        guard !endpoints.isEmpty else {
            throw CoterieError(
                .badInput, "only \(name) knows its round trips", hint: "ask it: --address its own address, and --key")
        }
        let other = ClusterClient(
            loop: loop, endpoints: endpoints, key: try Invocation.clientKey(), origin: name,
            timeout: Invocation.options.timeout)
        defer { other.close() }
        return try await other.query(path)
    }
}

struct VersionCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "version", abstract: "Show the version of this program.", discussion: "coterie version --json")

    func run() throws {
        let document: JSONValue = [
            "version": .string(programVersion), "commit": .null,
            "protocol": ["min": JSONValue(Hello.minimumProtocol), "max": JSONValue(Hello.maximumProtocol)],
        ]
        Invocation.show(document) { _ in "coterie \(programVersion)\n" }
    }
}

struct TopCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "top", abstract: "Watch members, queues and pods.",
        discussion: "On a terminal it is drawn again every second, until Ctrl-C; else it is printed once.")

    func run() throws {
        try Invocation.withClientAndLoop { client, loop in
            while true {
                let status = try await client.query("status")
                let members = try await client.query("members")
                let queues = try await client.query("queues")
                if Invocation.options.json {
                    Invocation.showItem(
                        ["status": status, "members": members["members"] ?? .null, "tubes": queues["tubes"] ?? .null],
                        human: { _ in "" })
                } else {
                    if isTerminal(1) { writeOut("\u{1B}[H\u{1B}[2J") }
                    writeOut(
                        StatusCommand.text(status) + "\n" + MembersCommand.text(members) + "\n" + QueueList.text(queues)
                    )
                }
                if !isTerminal(1) { return }
                await loop.sleep(.seconds(1))
            }
        }
    }
}

struct EventsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "events", abstract: "Show what happened, as one node saw it.",
        discussion: "coterie events\ncoterie events --follow --json\ncoterie events --after 120")

    @Flag(name: [.short, .long], help: "Go on with what happens next, until Ctrl-C.") var follow = false
    @Option(help: "Only events with a larger index.") var after: UInt64 = 0

    func run() throws {
        let (follow, start) = (follow, after)
        try Invocation.withClientAndLoop { client, loop in
            let place = Place(index: start)
            while true {
                do {
                    try await client.watch("events?after=\(place.index)&follow=\(follow ? 1 : 0)") { item in
                        place.note(item)
                        Invocation.showItem(item, human: EventsCommand.text)
                    }
                    return
                } catch let error as CoterieError where follow && error.code == .unavailable {
                    // The client follows the cluster. Indexes belong to the node that numbered them: another's count anew.
                    let status = try await client.query("status")
                    if status["node"]?["name"]?.stringValue != place.node {
                        writeError(
                            "coterie: \(place.node ?? "the node") is gone; these are the events of \(status["node"]?.string("name") ?? "")"
                        )
                        place.index = 0
                    }
                    await loop.sleep(.milliseconds(100))
                }
            }
        }
    }

    /// Where a reader of events is.
    private final class Place {
        var index: UInt64
        var node: String?
        init(index: UInt64) { self.index = index }

        func note(_ item: JSONValue) {
            node = item["node"]?.stringValue
            index = UInt64(clamping: item.int("index"))
        }
    }

    static func text(_ item: JSONValue) -> String {
        let subject = item["subject"]?.objectValue ?? []
        let words = subject.map { "\($0.key)=\($0.value.stringValue ?? $0.value.text())" }.joined(separator: " ")
        return "\(item.cell("time"))  \(item.cell("node"))  \(item.cell("kind"))  \(words)\n"
    }
}
