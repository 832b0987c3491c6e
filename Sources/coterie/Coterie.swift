// The root of the command line: every command, and what is said about one that does not exist.
import ArgumentParser
import Model

struct Coterie: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "coterie",
        abstract: "Identical nodes that gossip, agree, share work and run pods.",
        discussion: """
            Start a cluster on this machine with `coterie up`, look at it with `coterie status`, stop it with Ctrl-C or `coterie down`.

            Options of every command, accepted anywhere before `--`:
              --address HOST:PORT|unix:PATH[,…]  the nodes to ask (COTERIE_ADDRESS)
              --key FILE                         the cluster's key, for addresses that are no Unix socket (COTERIE_KEY_FILE)
              --timeout D                        how long to try (default 30s)
              --json                             one JSON document on stdout; streams: one a line
              --no-color                         no colour (NO_COLOR)

            Exit codes: 0 done, 1 failed, 2 bad usage or input, 3 no cluster or no leader, 4 not found, 5 not allowed,
            6 deadline passed or outcome unknown, 7 partial result, 130 interrupted.
            """,
        groupedSubcommands: [
            CommandGroup(name: "Nodes:", subcommands: [AgentCommand.self, UpCommand.self, DownCommand.self]),
            CommandGroup(
                name: "Cluster:",
                subcommands: [
                    StatusCommand.self, MembersCommand.self, LeaderCommand.self, EventsCommand.self, RttCommand.self,
                    TopCommand.self,
                    LeaveCommand.self, RemoveCommand.self, TransferCommand.self, CordonCommand.self,
                    UncordonCommand.self,
                    DrainCommand.self,
                ]),
            CommandGroup(name: "Work:", subcommands: [QueueGroup.self, WorkCommand.self, BeanstalkdCommand.self]),
            CommandGroup(name: "Scatter and gather:", subcommands: [ScatterCommand.self, GatherGroup.self]),
            CommandGroup(
                name: "Pods:",
                subcommands: [
                    ApplyCommand.self, DeleteCommand.self, GetCommand.self, DescribeCommand.self, LogsCommand.self,
                    ExecCommand.self,
                    ScaleCommand.self, RolloutGroup.self, RunCommand.self, ValidateCommand.self, ExpandCommand.self,
                    ExplainCommand.self,
                ]),
            CommandGroup(name: "Elections:", subcommands: [ElectCommand.self, ElectionGroup.self]),
            CommandGroup(
                name: "Containers that Coterie supplies to pods:",
                subcommands: [
                    SidecarGroup.self, AmbassadorGroup.self, AdapterCommand.self, ElectorCommand.self,
                    WorkerCommand.self,
                    RootCommand.self, LeafCommand.self,
                ]),
            CommandGroup(
                name: "Operations:",
                subcommands: [
                    KeygenCommand.self, JournalGroup.self, SnapshotGroup.self, RecoverCommand.self, ImageGroup.self,
                    DoctorCommand.self,
                    VersionCommand.self,
                ]),
        ])
}

/// Commands by name, for the message about one that is unknown.
enum CommandNames {
    /// Throws if the first words name no command, with the one that was probably meant.
    static func check(_ words: [String]) throws(CoterieError) {
        var parent: any ParsableCommand.Type = Coterie.self
        var path = "coterie"
        for word in words {
            // Options of groups there are none, so that a dash ends the names.
            if word.hasPrefix("-") || word == "help" { return }
            let children = children(of: parent)
            if children.isEmpty { return }
            if let next = children.first(where: { name(of: $0) == word }) {
                parent = next
                path += " " + word
                continue
            }
            let names = children.map { name(of: $0) }
            let near = nearest(to: word, among: names)
            throw CoterieError(
                .badInput, "\(path) has no command \(word)",
                hint: near.map { "did you mean \(path) \($0)?" } ?? "see \(path) --help")
        }
    }

    /// The command that the first words name: `coterie queue put`.
    static func path(_ words: [String]) -> String {
        var parent: any ParsableCommand.Type = Coterie.self
        var path = "coterie"
        for word in words {
            guard let next = children(of: parent).first(where: { name(of: $0) == word }) else { break }
            parent = next
            path += " " + word
        }
        return path
    }

    private static func children(of command: any ParsableCommand.Type) -> [any ParsableCommand.Type] {
        command.configuration.subcommands + command.configuration.groupedSubcommands.flatMap(\.subcommands)
    }

    private static func name(of command: any ParsableCommand.Type) -> String { command.configuration.commandName ?? "" }

    /// The candidate at the smallest edit distance (insertions, deletions, substitutions), if that is near.
    static func nearest(to word: String, among candidates: [String]) -> String? {
        guard word.utf8.count <= 64 else { return nil }
        let letters = Array(word.lowercased())
        var best: (distance: Int, name: String)?
        for candidate in candidates {
            let other = Array(candidate)
            let distance = distance(letters, other)
            guard distance <= max(1, min(letters.count, other.count) / 3 + 1) else { continue }
            if distance < best?.distance ?? .max { best = (distance, candidate) }
        }
        return best?.name
    }

    static func distance(_ a: [Character], _ b: [Character]) -> Int {
        var row = Array(0...b.count)
        for i in 0..<a.count {
            var diagonal = row[0]
            row[0] = i + 1
            for j in 0..<b.count {
                let above = row[j + 1]
                row[j + 1] = min(above + 1, row[j] + 1, diagonal + (a[i] == b[j] ? 0 : 1))
                diagonal = above
            }
        }
        return row[b.count]
    }
}
