// Manifest files as commands take them, and kinds as people write them.
import Glibc
import Manifests
import Model
import Transport
import Wire

enum ManifestFiles {
    /// The objects of all files, each read whole; `-` is standard input. Errors of all files are reported together.
    static func parse(_ paths: [String]) throws -> [ManifestObject] {
        var objects: [ManifestObject] = []
        var errors: [ManifestError] = []
        for path in paths {
            let text = try readFile(path == "-" ? "/dev/stdin" : path, limit: Limits.manifestBytes)
            do throws(ManifestFailure) {
                objects += try ManifestParser.parse(file: path == "-" ? "stdin" : path, text: text)
            } catch { errors += error.errors }
        }
        if !errors.isEmpty { throw ManifestFailure(errors: errors) }
        return objects
    }
}

/// A kind as it is named on the command line.
enum KindName {
    /// Kinds whose objects are nothing but the pods that they become.
    static let patterns = ["Deployment", "Job", "LeaderElection", "WorkQueue", "ScatterGather"]
    private static let short = ["po": "Pod", "deploy": "Deployment", "no": "Node", "member": "Node", "members": "Node"]

    static func parse(_ text: String, among kinds: [String]) throws(CoterieError) -> String {
        let lowered = text.lowercased()
        if let kind = short[lowered], kinds.contains(kind) { return kind }
        if let kind = kinds.first(where: { [$0.lowercased(), $0.lowercased() + "s"].contains(lowered) }) {
            return kind
        }
        let near = CommandNames.nearest(to: lowered, among: kinds.map { $0.lowercased() })
        throw CoterieError(
            .badInput, "unknown kind \(text)",
            hint: near.map { "did you mean \($0)?" }
                ?? "one of \(kinds.map { $0.lowercased() }.joined(separator: ", "))")
    }
}

struct PodRow {
    let document: JSONValue
    var name: String { document["metadata"]?.string("name") ?? "" }
    var status: JSONValue { document["status"] ?? .null }
    var node: String { document["spec"]?["nodeName"]?.stringValue ?? "-" }
    var owner: (kind: String, name: String)? {
        guard let owner = document["metadata"]?.list("ownerReferences").first else { return nil }
        return (owner.string("kind"), owner.string("name"))
    }

    var containers: [JSONValue] { status.list("containerStatuses") }
    var ready: String {
        let all = document["spec"]?.list("containers").count ?? 0
        return "\(containers.count { $0["ready"] == .bool(true) })/\(all)"
    }
    var restarts: Int64 {
        (containers + status.list("initContainerStatuses")).reduce(0) { $0 + $1.int("restartCount") }
    }
    /// As `kubectl` says it: why it does not run, else its phase.
    var state: String {
        if document["metadata"]?["deletionRequested"] == .bool(true) { return "Terminating" }
        if let reason = status["reason"]?.stringValue { return reason }
        for container in containers {
            if let reason = container["state"]?["waiting"]?["reason"]?.stringValue, !reason.isEmpty,
                reason != "ContainerCreating"
            {
                return reason
            }
        }
        return status.cell("phase")
    }

    static func table(_ pods: [JSONValue], wide: Bool) -> String {
        var table = Table("NAME", "READY", "STATUS", "RESTARTS", "NODE")
        if wide { table = Table("NAME", "READY", "STATUS", "RESTARTS", "NODE", "IP", "SANDBOX", "OWNER") }
        for row in pods.map(PodRow.init(document:)) {
            var cells = [row.name, row.ready, row.state, "\(row.restarts)", row.node]
            if wide {
                cells += [
                    row.status.cell("podIP"), row.status.cell("sandbox"),
                    row.owner.map { "\($0.kind)/\($0.name)" } ?? "-",
                ]
            }
            table.add(cells)
        }
        return table.text()
    }
}
