// A manifest file to the objects it holds. Syntax, fields and references are all checked before anything is returned, and
// every error is reported, not only the first.
import Model

/// One object of a manifest file.
public enum ManifestObject: Hashable, Sendable {
    case pod(PodSpec)
    /// Already resolved into the pods of its file; kept for display.
    case configMap(name: String, data: [String: [UInt8]])
    case secret(name: String, data: [String: [UInt8]])
    case deployment(DeploymentSpec)
    case job(JobSpec)
    case leaderElection(LeaderElectionSpec)
    case workQueue(WorkQueueSpec)
    case scatterGather(ScatterGatherSpec)

    public var kind: String {
        switch self {
        case .pod: "Pod"
        case .configMap: "ConfigMap"
        case .secret: "Secret"
        case .deployment: "Deployment"
        case .job: "Job"
        case .leaderElection: "LeaderElection"
        case .workQueue: "WorkQueue"
        case .scatterGather: "ScatterGather"
        }
    }

    public var name: String {
        switch self {
        case .pod(let spec): spec.name
        case .configMap(let name, _), .secret(let name, _): name
        case .deployment(let spec): spec.name
        case .job(let spec): spec.name
        case .leaderElection(let spec): spec.name
        case .workQueue(let spec): spec.name
        case .scatterGather(let spec): spec.name
        }
    }
}

public struct ManifestParser {
    /// The objects of `text`, in the order of the file; at least one. `file` is what messages call it. Refuses the file as a
    /// whole, with all errors, if anything in it is wrong, unknown or unsupported.
    public static func parse(file: String, text: [UInt8]) throws(ManifestFailure) -> [ManifestObject] {
        let diagnostics = Diagnostics(file: file)
        var parser = ManifestParser(diagnostics)
        let documents = YAMLReader.documents(text, diagnostics)
        if documents.isEmpty, diagnostics.errors.isEmpty {
            diagnostics.report(Place(line: 1, column: 1), "", "the file holds no objects")
        }
        let checked = documents.compactMap { parser.check($0) }
        for document in checked { parser.readConfig(document) }
        var objects: [ManifestObject] = []
        for document in checked {
            guard let object = parser.object(document) else { continue }
            parser.checkUnique(object, document.cursor)
            objects.append(object)
        }
        try diagnostics.finish()
        return objects
    }

    private struct Document {
        let kind: String
        let cursor: Cursor
    }

    private let diagnostics: Diagnostics
    private var configs = ConfigObjects()
    /// Kind and name of each object so far, and names of pods that they become, with lines.
    private var objectLines: [String: Int] = [:]
    private var podOwners: [String: String] = [:]

    private init(_ diagnostics: Diagnostics) { self.diagnostics = diagnostics }

    /// Checks a document against the schema of its kind. Nil if it has none.
    private func check(_ node: YAMLNode) -> Document? {
        let cursor = Cursor(node: node, path: "")
        guard case .mapping = node.content else {
            diagnostics.report(node.place, "", "expected an object with apiVersion and kind, found \(node.summary)")
            return nil
        }
        guard let kindField = cursor["kind"] else {
            diagnostics.report(node.place, "kind", "required field is missing")
            return nil
        }
        guard let kind = kindField.string else {
            diagnostics.report(kindField.place, "kind", "expected a string, found \(kindField.node.summary)")
            return nil
        }
        guard let schema = PatternSchema.kinds.first(where: { $0.name == kind }) else {
            if kind == "Service" {
                diagnostics.report(
                    kindField.place, "kind", "kind Service is not supported yet", hint: "ambassadors find pods by name")
            } else if PatternSchema.foreignKinds.contains(kind) {
                diagnostics.report(kindField.place, "kind", "\(kind) is a Kubernetes kind that Coterie does not have")
            } else {
                let names = PatternSchema.kinds.map(\.name)
                let hint = Suggestion.hint(for: kind, among: names) ?? "one of " + names.joined(separator: ", ")
                diagnostics.report(kindField.place, "kind", "unknown kind \"\(Scalar.excerpt(kind))\"", hint: hint)
            }
            return nil
        }
        SchemaCheck(diagnostics: diagnostics).check(node, .object(schema), path: "")
        return Document(kind: kind, cursor: cursor)
    }

    private mutating func readConfig(_ document: Document) {
        guard let name = document.cursor["metadata"]?["name"]?.string else { return }
        if document.kind == "ConfigMap" { configs.configMaps[name] = ConfigObjects.data(document.cursor, diagnostics) }
        if document.kind == "Secret" { configs.secrets[name] = ConfigObjects.data(document.cursor, diagnostics) }
    }

    private func object(_ document: Document) -> ManifestObject? {
        let pods = PodDecoder(diagnostics: diagnostics, configs: configs)
        let patterns = PatternDecoder(diagnostics: diagnostics, pods: pods)
        let cursor = document.cursor
        let name = cursor["metadata"]?["name"]?.string ?? ""
        switch document.kind {
        case "Pod": return .pod(pods.pod(cursor["metadata"], cursor["spec"], name: name))
        case "ConfigMap": return .configMap(name: name, data: configs.configMaps[name] ?? [:])
        case "Secret": return .secret(name: name, data: configs.secrets[name] ?? [:])
        case "Deployment": return .deployment(patterns.deployment(cursor, name))
        case "Job": return .job(patterns.job(cursor, name))
        case "LeaderElection": return .leaderElection(patterns.leaderElection(cursor, name))
        case "WorkQueue": return .workQueue(patterns.workQueue(cursor, name))
        case "ScatterGather": return patterns.scatterGather(cursor, name).map { .scatterGather($0) }
        default: return nil
        }
    }

    private mutating func checkUnique(_ object: ManifestObject, _ cursor: Cursor) {
        guard let place = cursor["metadata"]?["name"]?.place, !object.name.isEmpty else { return }
        let title = object.kind + " " + object.name
        if let line = objectLines[title] {
            diagnostics.report(place, "metadata.name", "\(title) exists already in this file, in line \(line)")
            return
        }
        objectLines[title] = place.line
        for pod in Expansion.unchecked(object) {
            if pod.spec.name.utf8.count > Limits.nameBytes {
                diagnostics.report(
                    place, "metadata.name",
                    "too long: the pod \(pod.spec.name) would have more than \(Limits.nameBytes) bytes")
                return
            }
            if let owner = podOwners[pod.spec.name] {
                diagnostics.report(
                    place, "metadata.name", "\(title) would make the pod \(pod.spec.name), which \(owner) makes too")
                return
            }
            podOwners[pod.spec.name] = title
            guard podOwners.count <= Expansion.fileLimit else {
                diagnostics.report(place, "", "the file makes more than \(Expansion.fileLimit) pods")
                return
            }
        }
    }
}

/// The ConfigMaps and Secrets of one file, by name.
struct ConfigObjects {
    /// The most that one of them, or all that a pod takes from them, may hold; Kubernetes' limit too.
    static let limit = 1 << 20

    var configMaps: [String: [String: [UInt8]]] = [:]
    var secrets: [String: [String: [UInt8]]] = [:]

    static func data(_ cursor: Cursor, _ diagnostics: Diagnostics) -> [String: [UInt8]] {
        var data: [String: [UInt8]] = [:]
        let secret = cursor["kind"]?.string == "Secret"
        for (field, encoded) in [("data", secret), ("binaryData", true), ("stringData", false)] {
            for (key, place, value) in cursor[field]?.entries ?? [] {
                guard let text = value.string else { continue }
                guard data[key] == nil else {
                    diagnostics.report(place, value.path, "the key exists in another field of this object too")
                    continue
                }
                if encoded {
                    guard let bytes = Base64.decode(text.utf8.filter { $0 != 10 && $0 != 32 && $0 != 13 }) else {
                        diagnostics.report(
                            value.place, value.path, "not base64",
                            hint: secret ? "put plain text into stringData" : "put plain text into data")
                        continue
                    }
                    data[key] = bytes
                } else {
                    data[key] = Array(text.utf8)
                }
            }
        }
        let total = data.values.reduce(0) { $0 + $1.count }
        if total > limit {
            diagnostics.report(cursor.place, "", "the object holds \(total) bytes, more than the limit of \(limit)")
        }
        return data
    }
}
