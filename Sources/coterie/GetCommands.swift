// `get` and `describe`: what the cluster knows of pods, of what is composed of them, and of its nodes.
import ArgumentParser
import Client
import EventLoop
import Model
import Wire

struct GetCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "get", abstract: "List objects, or show one.",
        discussion: """
            Kinds: pods, deployments, jobs, leaderelections, workqueues, scattergathers, gathers, nodes.

            coterie get pods
            coterie get pod shop -o yaml
            coterie get pods --watch
            """)
    @Argument(help: "The kind.") var kind: String
    @Argument(help: "One object's name.") var name: String?
    @Option(name: [.short, .customLong("output")], help: "wide, yaml or json.") var output: String?
    @Flag(name: [.short, .long], help: "Go on with each change, until Ctrl-C.") var watch = false

    func run() throws {
        let form = try OutputForm.parse(output)
        let kind = try KindName.parse(kind, among: ["Pod", "Gather", "Node"] + KindName.patterns)
        let (name, watch) = (name, watch)
        try Invocation.withClientAndLoop { client, loop in
            let path =
                switch kind {
                case "Gather", "ScatterGather": "gathers" + (name.map { "/" + percentEncoded($0) } ?? "")
                case "Node": "members"
                case "Pod": "pods" + (name.map { "/" + percentEncoded($0) } ?? "")
                default: "pods"
                }
            func pick(_ document: JSONValue) throws(CoterieError) -> JSONValue {
                switch kind {
                case "Pod", "Gather", "ScatterGather": return document
                case "Node":
                    guard let name else { return document }
                    guard
                        let member = document.list("members").first(where: {
                            $0["name"]?.stringValue == name || $0["id"]?.stringValue == name
                        })
                    else { throw CoterieError(.notFound, "there is no node \(name)") }
                    return member
                default:
                    let pods = document.list("items").filter { pod in
                        PodRow(document: pod).owner.map { $0.kind == kind && (name == nil || $0.name == name) } ?? false
                    }
                    if let name, pods.isEmpty {
                        throw CoterieError(.notFound, "there is no \(kind.lowercased()) \(name)")
                    }
                    return ["apiVersion": "v1", "kind": "PodList", "items": .array(pods)]
                }
            }
            guard watch else { return form.show(try pick(try await client.query(path)), kind: kind) }
            // Anything that is wrong with the question is said at once.
            _ = try pick(try await client.query(path))
            var last = JSONValue.null
            while true {
                do {
                    try await client.watch(path) { document in
                        guard let document = try? pick(document), document != last else { return }
                        let earlier = last
                        last = document
                        form.showChange(document, earlier: earlier, kind: kind)
                    }
                    return
                } catch let error as CoterieError where error.code == .unavailable {
                    await loop.sleep(.milliseconds(200))
                }
            }
        }
    }
}

enum OutputForm: Sendable {
    case table, wide, yaml, json

    static func parse(_ text: String?) throws(CoterieError) -> OutputForm {
        switch text {
        case nil: return Invocation.options.json ? .json : .table
        case "wide": return .wide
        case "yaml": return .yaml
        case "json": return .json
        default: throw CoterieError(.badInput, "-o \(text ?? ""): unknown form", hint: "wide, yaml or json")
        }
    }

    func show(_ document: JSONValue, kind: String) {
        switch self {
        case .json: Invocation.print(document)
        case .yaml: writeOut(yamlText(document))
        case .table, .wide: writeOut(text(document, kind))
        }
    }

    /// Of a list only the rows that are new or different.
    func showChange(_ document: JSONValue, earlier: JSONValue, kind: String) {
        switch self {
        case .json: writeOut(document.text() + "\n")
        case .yaml: writeOut("---\n" + yamlText(document))
        case .table, .wide:
            let known = Set(text(earlier, kind).split(separator: "\n"))
            for line in text(document, kind).split(separator: "\n") where !known.contains(line) {
                writeOut(line + "\n")
            }
        }
    }

    private func text(_ document: JSONValue, _ kind: String) -> String {
        if document.isNull { return "" }
        switch kind {
        case "Node": return MembersCommand.text(document["members"] == nil ? ["members": .array([document])] : document)
        case "Gather", "ScatterGather":
            return GatherText.table(document["gathers"]?.arrayValue ?? [document])
        default:
            let isWide = if case .wide = self { true } else { false }
            return PodRow.table(document["items"]?.arrayValue ?? [document], wide: isWide)
        }
    }
}

private func writeOut(_ text: Substring) { writeOut(String(text)) }

struct DescribeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "describe", abstract: "Show all about one object, with every reason why it waits.",
        discussion: "coterie describe pod shop")
    @Argument(help: "The kind.") var kind: String
    @Argument(help: "The name.") var name: String

    func run() throws {
        let kind = try KindName.parse(kind, among: ["Pod", "Gather", "Node"] + KindName.patterns)
        let name = name
        try Invocation.withClient { client in
            switch kind {
            case "Pod":
                Invocation.show(try await client.query("pods/" + percentEncoded(name)), human: DescribeCommand.text)
            case "Gather", "ScatterGather":
                Invocation.show(try await client.query("gathers/" + percentEncoded(name)), human: yamlText)
            case "Node":
                let members = try await client.query("members").list("members")
                guard
                    let member = members.first(where: {
                        $0["name"]?.stringValue == name || $0["id"]?.stringValue == name
                    })
                else {
                    throw CoterieError(.notFound, "there is no node \(name)")
                }
                Invocation.show(member, human: yamlText)
            default:
                let pods = try await client.query("pods").list("items").filter { pod in
                    PodRow(document: pod).owner.map { $0.kind == kind && $0.name == name } ?? false
                }
                guard !pods.isEmpty else { throw CoterieError(.notFound, "there is no \(kind.lowercased()) \(name)") }
                Invocation.show(["kind": .string(kind), "name": .string(name), "pods": .array(pods)]) { _ in
                    "\(kind) \(name)\n\n" + pods.map(DescribeCommand.text).joined(separator: "\n")
                }
            }
        }
    }

    static func text(_ pod: JSONValue) -> String {
        let row = PodRow(document: pod)
        let metadata = pod["metadata"] ?? .null
        var table = Table("name", row.name)
        table.add("status", row.state)
        table.add("phase", row.status.cell("phase"))
        if let message = row.status["message"]?.stringValue, !message.isEmpty {
            for (number, reason) in message.split(separator: ";").enumerated() {
                table.add(number == 0 ? "why" : "", String(reason).trimmingSpaces)
            }
        }
        table.add("node", row.node)
        table.add("address", row.status.cell("podIP"))
        table.add("sandbox", row.status.cell("sandbox"))
        if let owner = row.owner { table.add("owner", "\(owner.kind)/\(owner.name)") }
        for (key, label) in [("labels", "labels"), ("annotations", "annotations")] {
            if let map = metadata[key]?.objectValue, !map.isEmpty { table.add(label, metadata.cell(key)) }
        }
        var out = table.text() + "\n"
        var conditions = Table("CONDITION", "STATUS", "REASON")
        for condition in row.status.list("conditions") {
            conditions.add(condition.cell("type"), condition.cell("status"), condition.cell("reason"))
        }
        if !conditions.isEmpty { out += conditions.text() + "\n" }
        var containers = Table("CONTAINER", "STATE", "READY", "RESTARTS", "IMAGE", "COMMAND")
        let spec = pod["spec"] ?? .null
        let statuses = row.status.list("initContainerStatuses") + row.containers
        for container in spec.list("initContainers") + spec.list("containers") {
            let status = statuses.first { $0.string("name") == container.string("name") } ?? .null
            let command = (container.list("command") + container.list("args")).compactMap(\.stringValue).joined(
                separator: " ")
            containers.add(
                container.cell("name"), stateText(status["state"] ?? .null), status.cell("ready"),
                "\(status.int("restartCount"))",
                container.cell("image"), command.isEmpty ? "-" : String(command.prefix(60)))
        }
        return out + containers.text()
    }

    private static func stateText(_ state: JSONValue) -> String {
        if let waiting = state["waiting"] { return "Waiting " + waiting.string("reason") }
        if state["running"] != nil { return "Running" }
        if let ended = state["terminated"] { return "Terminated \(ended.int("exitCode")) \(ended.string("reason"))" }
        return "-"
    }
}
