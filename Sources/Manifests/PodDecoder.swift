// The tree of a pod to ``PodSpec``, with the checks that no table can hold: references, clashes, what belongs together.
// References to ConfigMaps and Secrets are resolved here, so that a ``PodSpec`` is whole by itself.
import Model

struct PodDecoder {
    let diagnostics: Diagnostics
    let configs: ConfigObjects

    /// Most listeners of one pod.
    static let listenerLimit = 16

    func pod(_ metadata: Cursor?, _ spec: Cursor?, name: String) -> PodSpec {
        let namedPorts = PodDecoder.namedPorts(spec)
        let containers = ContainerDecoder(diagnostics: diagnostics, configs: configs, namedPorts: namedPorts)
        var pod = PodSpec(name: name, containers: [])
        pod.labels = metadata?["labels"]?.map ?? [:]
        pod.annotations = metadata?["annotations"]?.map ?? [:]
        guard let spec else { return pod }
        pod.volumes = (spec["volumes"]?.items ?? []).map { volume($0) }
        pod.initContainers = (spec["initContainers"]?.items ?? []).map { containers.container($0, isInit: true) }
        pod.containers = (spec["containers"]?.items ?? []).map { containers.container($0, isInit: false) }
        pod.restartPolicy = spec["restartPolicy"]?.string.flatMap(RestartPolicy.init) ?? .always
        pod.terminationGracePeriod = spec["terminationGracePeriodSeconds"]?.seconds ?? .seconds(30)
        pod.activeDeadline = spec["activeDeadlineSeconds"]?.seconds
        pod.hostNetwork = spec["hostNetwork"]?.boolean ?? false
        pod.hostname = spec["hostname"]?.string
        pod.nodeName = spec["nodeName"]?.string
        pod.nodeSelector = spec["nodeSelector"]?.map ?? [:]
        checkNames(spec)
        checkMounts(spec)
        checkAnnotations(metadata, spec)
        let size = PodDecoder.size(pod)
        if size > ConfigObjects.limit {
            diagnostics.report(
                spec.place, spec.path,
                "the pod holds \(size) bytes with its files, more than the limit of \(ConfigObjects.limit)")
        }
        return pod
    }

    /// Bytes of all texts and files, roughly what it takes in the replicated log; or some number beyond the limit.
    static func size(_ pod: PodSpec) -> Int {
        var size = 0
        for (key, value) in Array(pod.labels) + Array(pod.annotations) + Array(pod.nodeSelector) {
            size += key.utf8.count + value.utf8.count
        }
        for volume in pod.volumes where size <= ConfigObjects.limit {
            if case .files(let files) = volume.source {
                size += files.reduce(0) { $0 + $1.key.utf8.count + $1.value.count }
            }
        }
        for container in pod.initContainers + pod.containers {
            size += (container.command + container.arguments).reduce(0) { $0 + $1.utf8.count + 1 }
            for variable in container.environment {
                switch variable.value {
                case .literal(let text), .field(let text): size += variable.name.utf8.count + text.utf8.count
                }
            }
        }
        return size
    }

    private static func containerItems(_ spec: Cursor) -> [Cursor] {
        (spec["initContainers"]?.items ?? []) + (spec["containers"]?.items ?? [])
    }

    private static func namedPorts(_ spec: Cursor?) -> [String: UInt16] {
        var ports: [String: UInt16] = [:]
        for container in spec.map(containerItems) ?? [] {
            for port in container["ports"]?.items ?? [] {
                if let name = port["name"]?.string, let number = port["containerPort"]?.integer {
                    ports[name] = UInt16(exactly: number)
                }
            }
        }
        return ports
    }

    // MARK: - Names

    private func checkNames(_ spec: Cursor) {
        var containers: [String: Int] = [:]
        var ports: [String: Int] = [:]
        func unique(_ cursor: Cursor?, _ seen: inout [String: Int], _ what: String) {
            guard let cursor, let name = cursor.string else { return }
            if let line = seen[name] {
                diagnostics.report(
                    cursor.place, cursor.path, "the pod already has a \(what) named \(name), in line \(line)")
            } else {
                seen[name] = cursor.place.line
            }
        }
        for container in PodDecoder.containerItems(spec) {
            unique(container["name"], &containers, "container")
            for port in container["ports"]?.items ?? [] { unique(port["name"], &ports, "port") }
        }
        var volumes: [String: Int] = [:]
        for volume in spec["volumes"]?.items ?? [] { unique(volume["name"], &volumes, "volume") }
    }

    // MARK: - Volumes

    private func volume(_ cursor: Cursor) -> Volume {
        let name = cursor["name"]?.string ?? ""
        let sources = ["emptyDir", "hostPath", "configMap", "secret"].filter { cursor[$0] != nil }
        if sources.count != 1 {
            let message =
                sources.isEmpty
                ? "the volume has no source" : "the volume has more than one source: " + sources.joined(separator: ", ")
            // A foreign source has been reported already.
            let foreign = cursor.entries.contains { PodSchema.volume.foreign.contains($0.key) }
            if !foreign {
                diagnostics.report(
                    cursor.place, cursor.path, message, hint: "exactly one of emptyDir, hostPath, configMap, secret")
            }
        }
        if let empty = cursor["emptyDir"] {
            return Volume(
                name: name,
                source: .emptyDir(inMemory: empty["medium"]?.string == "Memory", sizeLimit: empty["sizeLimit"]?.size))
        }
        if let host = cursor["hostPath"] {
            checkAbsolute(host["path"])
            return Volume(name: name, source: .hostPath(host["path"]?.string ?? "", type: host["type"]?.string))
        }
        if let map = cursor["configMap"] {
            return Volume(name: name, source: .files(files(map, "name", "ConfigMap", configs.configMaps)))
        }
        if let secret = cursor["secret"] {
            return Volume(name: name, source: .files(files(secret, "secretName", "Secret", configs.secrets)))
        }
        return Volume(name: name, source: .emptyDir(inMemory: false, sizeLimit: nil))
    }

    private func files(_ cursor: Cursor, _ nameField: String, _ kind: String, _ objects: [String: [String: [UInt8]]])
        -> [String: [UInt8]]
    {
        guard let nameCursor = cursor[nameField], let name = nameCursor.string else { return [:] }
        let optional = cursor["optional"]?.boolean ?? false
        guard let data = objects[name] else {
            if !optional { diagnostics.reportMissing(nameCursor, kind, name, among: objects) }
            return [:]
        }
        guard let items = cursor["items"]?.items else { return data }
        var files: [String: [UInt8]] = [:]
        for item in items {
            guard let key = item["key"]?.string, let pathCursor = item["path"], let path = pathCursor.string else {
                continue
            }
            PathCheck.relative(pathCursor, diagnostics)
            guard let bytes = data[key] else {
                if !optional {
                    diagnostics.report(
                        item["key"]?.place ?? item.place, FieldPath.append(item.path, "key"),
                        "\(kind) \(name) has no key \(key)",
                        hint: Suggestion.hint(for: key, among: data.keys.sorted()))
                }
                continue
            }
            // `a` and `a/b` can not both be files.
            if files.keys.contains(where: { $0 == path || $0.hasPrefix(path + "/") || path.hasPrefix($0 + "/") }) {
                diagnostics.report(pathCursor.place, pathCursor.path, "clashes with another item's path")
            }
            files[path] = bytes
        }
        return files
    }

    private func checkAbsolute(_ cursor: Cursor?) {
        if let cursor { PathCheck.absolute(cursor, diagnostics) }
    }

    private func checkMounts(_ spec: Cursor) {
        let volumes = (spec["volumes"]?.items ?? []).compactMap { $0["name"]?.string }
        for container in PodDecoder.containerItems(spec) {
            var paths: [String: Int] = [:]
            for mount in container["volumeMounts"]?.items ?? [] {
                if let cursor = mount["name"], let name = cursor.string, !volumes.contains(name) {
                    diagnostics.report(
                        cursor.place, cursor.path, "the pod has no volume named \(name)",
                        hint: Suggestion.hint(for: name, among: volumes))
                }
                if let cursor = mount["mountPath"], let path = cursor.string {
                    PathCheck.absolute(cursor, diagnostics)
                    if path == "/" {
                        diagnostics.report(cursor.place, cursor.path, "a volume can not be mounted over the root")
                    }
                    if let line = paths[path] {
                        diagnostics.report(
                            cursor.place, cursor.path, "the container already mounts a volume there, in line \(line)")
                    }
                    paths[path] = cursor.place.line
                }
                if let cursor = mount["subPath"] { PathCheck.relative(cursor, diagnostics) }
            }
        }
    }

    // MARK: - Annotations

    private func checkAnnotations(_ metadata: Cursor?, _ spec: Cursor) {
        for (key, place, value) in metadata?["annotations"]?.entries ?? [] where key.hasPrefix("coterie.internal/") {
            guard key == PodSpec.listenAnnotation else {
                let hint = Suggestion.hint(for: key, among: [PodSpec.listenAnnotation])
                diagnostics.report(place, value.path, "unknown annotation of Coterie's own", hint: hint)
                continue
            }
            guard let text = value.string else { continue }
            let names = PodDecoder.containerItems(spec).compactMap { $0["name"]?.string }
            var ports: [UInt16: String] = [:]
            let parts = text.split(separator: ",", omittingEmptySubsequences: false)
            if parts.count > PodDecoder.listenerLimit {
                diagnostics.report(value.place, value.path, "more than \(PodDecoder.listenerLimit) listeners")
                continue
            }
            for part in parts {
                let trimmed = String(part.drop { $0 == " " })
                func checkName(_ name: String) {
                    guard !names.contains(name) else { return }
                    diagnostics.report(
                        value.place, value.path, "the pod has no container named \(Scalar.excerpt(name))",
                        hint: Suggestion.hint(for: name, among: names))
                }
                // Without a port: a container that only dials out from the host's side, like a log sidecar.
                if !trimmed.isEmpty, !trimmed.contains("=") {
                    checkName(trimmed)
                    continue
                }
                guard let equals = trimmed.firstIndex(of: "="),
                    trimmed[trimmed.index(after: equals)...].utf8.allSatisfy({ $0 >= 48 && $0 <= 57 }),
                    let port = UInt16(trimmed[trimmed.index(after: equals)...]), port > 0
                else {
                    diagnostics.report(
                        value.place, value.path, "\"\(Scalar.excerpt(trimmed))\" is not CONTAINER=PORT or CONTAINER",
                        hint: "like proxy=6379")
                    continue
                }
                let name = String(trimmed[..<equals])
                checkName(name)
                if ports[port] != nil { diagnostics.report(value.place, value.path, "port \(port) is asked for twice") }
                ports[port] = name
            }
        }
    }
}

extension Diagnostics {
    func reportMissing(_ cursor: Cursor, _ kind: String, _ name: String, among objects: [String: [String: [UInt8]]]) {
        report(
            cursor.place, cursor.path, "there is no \(kind) named \(name) in this file",
            hint: Suggestion.hint(for: name, among: objects.keys.sorted()) ?? "it must be a document of the same file")
    }
}

/// Paths that must stay where they point.
enum PathCheck {
    static func absolute(_ cursor: Cursor, _ diagnostics: Diagnostics) {
        guard let path = cursor.string else { return }
        if !path.hasPrefix("/") {
            diagnostics.report(cursor.place, cursor.path, "\"\(Scalar.excerpt(path))\" is not an absolute path")
        } else {
            parts(path, cursor, diagnostics)
        }
    }

    static func relative(_ cursor: Cursor, _ diagnostics: Diagnostics) {
        guard let path = cursor.string else { return }
        if path.isEmpty || path.hasPrefix("/") || path.hasSuffix("/") || path.contains("//")
            || path.split(separator: "/").contains(".")
        {
            diagnostics.report(cursor.place, cursor.path, "\"\(Scalar.excerpt(path))\" is not a plain relative path")
        } else {
            parts(path, cursor, diagnostics)
        }
    }

    private static func parts(_ path: String, _ cursor: Cursor, _ diagnostics: Diagnostics) {
        if path.split(separator: "/").contains("..") {
            diagnostics.report(cursor.place, cursor.path, "the path may not hold \"..\"")
        }
        if path.utf8.count > 4_095 {
            diagnostics.report(cursor.place, cursor.path, "the path is longer than 4095 bytes")
        }
    }
}
