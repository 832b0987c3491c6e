// `coterie elect` and `coterie election …`: a command that runs only while a lease is held, and a look at who holds which.
import ArgumentParser
import Client
import EventLoop
import Leases
import Model
import NodeCore
import PatternContainers
import Wire

struct ElectCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "elect", abstract: "Run a command only while this process holds an election.",
        usage: "coterie elect NAME [--ttl D] [--grace D] -- COMMAND…",
        discussion: """
            The command finds its fencing token in COTERIE_FENCING_TOKEN. Its whole process tree is stopped before the lease can pass on. \
            One word is a line for /bin/sh -c. Exits with the command's code; 125 for Coterie's own failures.

            coterie elect billing --ttl 10s -- ./bill --token-from-env
            """)
    @Argument(parsing: .captureForPassthrough, help: "NAME [--ttl D] [--grace D] -- COMMAND…") var words: [String] = []

    func run() throws {
        try helpIfAsked(words, for: ElectCommand.self)
        let options = try ElectedCommandOptions(arguments: words)
        try SuppliedRun.run(ownFailure: true) { client, loop in
            try await client.checkReachable()
            let engine = ElectedCommand(loop: loop, options: options, service: ClusterServices(client))
            return SuppliedRun(engine)
        }
    }
}

struct ElectionGroup: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "election", abstract: "Look at elections.",
        discussion: "coterie election list\ncoterie election observe billing --json",
        subcommands: [ElectionShow.self, ElectionObserve.self, ElectionResign.self, ElectionList.self])
}

private func electionText(_ election: JSONValue) -> String {
    guard let holder = election["holder"], !holder.isNull else {
        return "\(election.cell("name"))  nobody holds it; last token \(election.cell("token"))\n"
    }
    let who = holder["name"]?.stringValue ?? holder["pod"]?.stringValue ?? holder.cell("id")
    let left = TimeSpan.milliseconds(election.int("expiresInMilliseconds"))
    return
        "\(election.cell("name"))  \(who)  node \(holder.cell("node"))  token \(election.cell("token"))  for \(left) more\n"
}

struct ElectionShow: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "show", abstract: "Show who holds an election.", discussion: "coterie election show billing")
    @Argument(help: "The election.") var name: String

    func run() throws {
        let name = name
        try Invocation.withClient { client in
            Invocation.show(try await client.query("elections/" + percentEncoded(name)), human: electionText)
        }
    }
}

struct ElectionObserve: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "observe", abstract: "Show each change of an election, until Ctrl-C.",
        discussion: "coterie election observe billing --json")
    @Argument(help: "The election.") var name: String

    func run() throws {
        let name = name
        try Invocation.withClientAndLoop { client, loop in
            let last = LastSeen()
            while true {
                do {
                    return try await client.watch("elections/" + percentEncoded(name)) { item in
                        // Renewals change the time left only.
                        let key = [item["holder"] ?? .null, item["token"] ?? .null]
                        guard key != last.key else { return }
                        last.key = key
                        Invocation.showItem(item, human: electionText)
                    }
                } catch let error as CoterieError where error.code == .unavailable {
                    await loop.sleep(.milliseconds(200))
                }
            }
        }
    }

    private final class LastSeen { var key: [JSONValue] = [] }
}

struct ElectionResign: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "resign", abstract: "Take an election from its holder.",
        discussion:
            "The holder notices when it next renews, within a third of its time to live.\n\ncoterie election resign billing"
    )
    @Argument(help: "The election.") var name: String

    func run() throws {
        let name = name
        try Invocation.withClient { client in
            let election = try await client.query("elections/" + percentEncoded(name))
            guard let holder = election["holder"], !holder.isNull else {
                throw CoterieError(.notFound, "nobody holds the election \(name)")
            }
            let command = LeaseCommand.release(
                key: LeaseMachine.electionPrefix + name, token: UInt64(clamping: election.int("token")))
            guard case .lease(let result) = try await client.command(.lease(command)) else {
                throw CoterieError(.failed, "an answer of the wrong kind")
            }
            switch result {
            case .released, .lost: break
            case .refused(let code, let message): throw CoterieError(code, message)
            case .granted, .held, .renewed, .valid: throw CoterieError(.failed, "an answer of the wrong kind")
            }
            Invocation.show(["name": .string(name), "resigned": true]) { _ in "\(name) is free\n" }
        }
    }
}

struct ElectionList: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "list", abstract: "List all elections.", discussion: "coterie election list --json")

    func run() throws {
        try Invocation.withClient { client in
            Invocation.show(try await client.query("elections")) { document in
                var table = Table("NAME", "HOLDER", "NODE", "TOKEN", "TTL")
                for election in document.list("elections") {
                    let holder = election["holder"] ?? .null
                    table.add(
                        election.cell("name"), holder.isNull ? "-" : holder["name"]?.stringValue ?? holder.cell("id"),
                        holder.cell("node"),
                        election.cell("token"), TimeSpan.milliseconds(election.int("ttlMilliseconds")).description)
                }
                return table.text()
            }
        }
    }
}
