// `coterie logs`: the logs of a pod's containers, from whichever node runs it.
import ArgumentParser
import Client
import EventLoop
import Model
import Wire

struct LogsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "logs", abstract: "Show a pod's logs.",
        discussion: "coterie logs shop\ncoterie logs shop -c app -f --tail 20\ncoterie logs shop --all --since 5m")
    @Argument(help: "The pod.") var pod: String
    @Option(name: [.short, .long], help: "One container; needed if the pod has several.") var container: String?
    @Flag(name: [.short, .long], help: "Go on with new lines.") var follow = false
    @Option(help: "Only the last so many lines.") var tail: Int?
    @Option(help: "Only lines that are no older.", transform: parseDuration) var since: TimeSpan?
    @Flag(help: "Of the run before the present one.") var previous = false
    @Flag(help: "All containers, each line with its container's name.") var all = false

    func run() throws {
        if let tail, tail < 0 { throw CoterieError(.badInput, "--tail \(tail): it can not be negative") }
        if all && container != nil { throw CoterieError(.badInput, "logs: either --container or --all") }
        var parameters: [String] = []
        if follow { parameters.append("follow=1") }
        if let tail { parameters.append("tail=\(tail)") }
        if let since { parameters.append("since=\(wallClockText(ago: since))") }
        if previous { parameters.append("previous=1") }
        let (pod, container, all, shared) = (pod, container, all, parameters)
        try Invocation.withClient { client in
            let path = "logs/" + percentEncoded(pod)
            guard all else {
                let words = shared + (container.map { ["container=\($0)"] } ?? [])
                let line = LinePrinter(prefix: nil)
                return try await client.watch(path + query(words)) { line.show($0) }
            }
            let spec = try await client.query("pods/" + percentEncoded(pod))["spec"] ?? .null
            let names = (spec.list("initContainers") + spec.list("containers")).map { $0.string("name") }
            try await watchAll(
                client, names.map { (path + query(shared + ["container=\($0)"]), LinePrinter(prefix: $0)) })
        }
    }
}

private func query(_ words: [String]) -> String { words.isEmpty ? "" : "?" + words.joined(separator: "&") }

/// Watches several at once, until all have ended. A container that has no log is no failure while another has one.
func watchAll(_ client: ClusterClient, _ watches: [(path: String, printer: LinePrinter)]) async throws {
    var errors: [CoterieError] = []
    var open = watches.count
    if open == 0 { return }
    await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
        for watch in watches {
            _ = client.startWatch(
                watch.path, onItem: { watch.printer.show($0) },
                onEnd: { error in
                    if let error { errors.append(error) }
                    open -= 1
                    if open == 0 { continuation.resume() }
                })
        }
    }
    if errors.count == watches.count, let first = errors.first { throw first }
}

/// Prints lines of one container; parts of a long line are joined again.
final class LinePrinter {
    private let prefix: String?
    private var isOpen = false

    init(prefix: String?) { self.prefix = prefix }

    func show(_ item: JSONValue) {
        guard !Invocation.options.json else {
            guard let prefix, case .object(let members) = item else { return writeOut(item.text() + "\n") }
            return writeOut(JSONValue.object([.init("container", .string(prefix))] + members).text() + "\n")
        }
        show(text: Array(item.string("text").utf8), isPartial: item["partial"] == .bool(true), to: 1)
    }

    func show(text: [UInt8], isPartial: Bool, to descriptor: Int32) {
        var out: [UInt8] = []
        if !isOpen, let prefix { out += Array("[\(prefix)] ".utf8) }
        out += text
        if !isPartial { out.append(10) }
        isOpen = isPartial
        if descriptor == 2 { writeErrorBytes(out) } else { writeOut(out) }
    }
}
