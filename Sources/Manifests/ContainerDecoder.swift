// The tree of a container to ``ContainerSpec``: environment, resources, probes.
import Model

struct ContainerDecoder {
    let diagnostics: Diagnostics
    let configs: ConfigObjects
    let namedPorts: [String: UInt16]

    /// The image whose containers must say what to run: it is the host, and has no program of its own.
    static let hostImage = "localhost/host"
    /// Most variables that one container takes from `envFrom`.
    static let variableLimit = 1_000

    func container(_ cursor: Cursor, isInit: Bool) -> ContainerSpec {
        var container = ContainerSpec(name: cursor["name"]?.string ?? "", image: cursor["image"]?.string ?? "")
        container.command = cursor["command"]?.strings ?? []
        container.arguments = cursor["args"]?.strings ?? []
        if let image = cursor["image"], container.image.contains(where: { $0.isWhitespace }) {
            diagnostics.report(image.place, image.path, "an image's name may not hold white space")
        }
        if container.image == ContainerDecoder.hostImage, cursor["command"] == nil {
            diagnostics.report(
                cursor.place, FieldPath.append(cursor.path, "command"),
                "required with the image localhost/host, which has no program of its own")
        }
        if let command = cursor["command"], case .sequence(let items) = command.node.content,
            container.command.first?.isEmpty ?? items.isEmpty
        {
            diagnostics.report(command.place, command.path, "the command is empty")
        }
        if let directory = cursor["workingDir"] { PathCheck.absolute(directory, diagnostics) }
        container.workingDirectory = cursor["workingDir"]?.string
        container.environment = environment(cursor)
        container.mounts = (cursor["volumeMounts"]?.items ?? []).map { mount in
            VolumeMount(
                name: mount["name"]?.string ?? "", mountPath: mount["mountPath"]?.string ?? "",
                readOnly: mount["readOnly"]?.boolean ?? false, subPath: mount["subPath"]?.string)
        }
        container.ports = (cursor["ports"]?.items ?? []).map { port in
            ContainerPort(name: port["name"]?.string, port: UInt16(exactly: port["containerPort"]?.integer ?? 0) ?? 0)
        }
        container.resources = resources(cursor["resources"])
        container.restartAlways = isInit && cursor["restartPolicy"]?.string == "Always"
        container.startupProbe = probe(cursor["startupProbe"], single: true)
        container.livenessProbe = probe(cursor["livenessProbe"], single: true)
        container.readinessProbe = probe(cursor["readinessProbe"], single: false)
        if isInit, !container.restartAlways {
            for name in ["startupProbe", "livenessProbe", "readinessProbe"] {
                guard let probe = cursor[name] else { continue }
                diagnostics.report(
                    probe.place, probe.path, "an init container that runs once has no probes",
                    hint: "restartPolicy: Always makes it a sidecar")
            }
        }
        return container
    }

    // MARK: - Environment

    private func environment(_ cursor: Cursor) -> [EnvironmentVariable] {
        var own: [EnvironmentVariable] = []
        var lines: [String: Int] = [:]
        for item in cursor["env"]?.items ?? [] {
            guard let nameCursor = item["name"], let name = nameCursor.string else { continue }
            if let line = lines[name] {
                diagnostics.report(
                    nameCursor.place, nameCursor.path, "the variable \(name) is set twice (first in line \(line))")
                continue
            }
            lines[name] = nameCursor.place.line
            if item["value"] != nil, let from = item["valueFrom"] {
                diagnostics.report(from.place, from.path, "value and valueFrom exclude each other")
            }
            if let from = item["valueFrom"] {
                if let value = valueFrom(from) { own.append(EnvironmentVariable(name: name, value: value)) }
            } else {
                own.append(EnvironmentVariable(name: name, value: .literal(item["value"]?.string ?? "")))
            }
        }
        return imported(cursor, except: lines) + own
    }

    /// Variables of `envFrom`, by name within each source; a later source wins, as in Kubernetes.
    private func imported(_ cursor: Cursor, except own: [String: Int]) -> [EnvironmentVariable] {
        var values: [String: String] = [:]
        for source in cursor["envFrom"]?.items ?? [] {
            let references = [
                ("configMapRef", "ConfigMap", configs.configMaps), ("secretRef", "Secret", configs.secrets),
            ]
            let given = references.filter { source[$0.0] != nil }
            guard given.count == 1, let (field, kind, objects) = given.first, let reference = source[field] else {
                diagnostics.report(source.place, source.path, "exactly one of configMapRef and secretRef is needed")
                continue
            }
            guard let nameCursor = reference["name"], let name = nameCursor.string else { continue }
            guard let data = objects[name] else {
                if reference["optional"]?.boolean != true {
                    diagnostics.reportMissing(nameCursor, kind, name, among: objects)
                }
                continue
            }
            guard values.count + data.count <= ContainerDecoder.variableLimit else {
                diagnostics.report(source.place, source.path, "more than \(ContainerDecoder.variableLimit) variables")
                break
            }
            for key in data.keys.sorted() {
                let variable = (source["prefix"]?.string ?? "") + key
                if let complaint = Identifier.environment.complaint(variable) {
                    diagnostics.report(
                        nameCursor.place, nameCursor.path,
                        "the key \(key) of \(kind) \(name) makes no variable: \(variable)", hint: complaint)
                } else if let text = text(data[key], nameCursor, kind, name, key) {
                    values[variable] = text
                }
            }
        }
        return values.keys.sorted().filter { own[$0] == nil }.map {
            EnvironmentVariable(name: $0, value: .literal(values[$0] ?? ""))
        }
    }

    private func valueFrom(_ cursor: Cursor) -> EnvironmentVariable.Source? {
        let sources = ["fieldRef", "configMapKeyRef", "secretKeyRef"].filter { cursor[$0] != nil }
        if sources.count != 1, !cursor.entries.contains(where: { PodSchema.valueFrom.foreign.contains($0.key) }) {
            diagnostics.report(
                cursor.place, cursor.path, "exactly one of fieldRef, configMapKeyRef and secretKeyRef is needed")
        }
        if let reference = cursor["fieldRef"] {
            guard let pathCursor = reference["fieldPath"], let path = pathCursor.string else { return nil }
            let known = ["metadata.name", "metadata.namespace", "spec.nodeName", "status.podIP", "status.hostIP"]
            let keyed = ["metadata.labels['", "metadata.annotations['"].contains {
                path.hasPrefix($0) && path.hasSuffix("']") && path.count > $0.count + 2
            }
            if !known.contains(path), !keyed {
                let foreign = [
                    "metadata.uid", "spec.serviceAccountName", "status.hostIPs", "status.podIPs", "metadata.labels",
                    "metadata.annotations",
                ]
                let message =
                    foreign.contains(path) ? "a Kubernetes field path that Coterie does not have" : "unknown field path"
                diagnostics.report(
                    pathCursor.place, pathCursor.path, "\(message): \(Scalar.excerpt(path))",
                    hint: Suggestion.hint(for: path, among: known)
                        ?? "one of \(known.joined(separator: ", ")), metadata.labels['KEY']")
            }
            return .field(path)
        }
        for (field, kind, objects) in [
            ("configMapKeyRef", "ConfigMap", configs.configMaps), ("secretKeyRef", "Secret", configs.secrets),
        ] {
            guard let reference = cursor[field] else { continue }
            guard let nameCursor = reference["name"], let name = nameCursor.string, let keyCursor = reference["key"],
                let key = keyCursor.string
            else { return nil }
            let optional = reference["optional"]?.boolean == true
            guard let data = objects[name] else {
                if !optional { diagnostics.reportMissing(nameCursor, kind, name, among: objects) }
                return nil
            }
            guard data[key] != nil else {
                if !optional {
                    diagnostics.report(
                        keyCursor.place, keyCursor.path, "\(kind) \(name) has no key \(key)",
                        hint: Suggestion.hint(for: key, among: data.keys.sorted()))
                }
                return nil
            }
            return text(data[key], keyCursor, kind, name, key).map { .literal($0) }
        }
        return nil
    }

    private func text(_ bytes: [UInt8]?, _ cursor: Cursor, _ kind: String, _ name: String, _ key: String) -> String? {
        guard let bytes, !bytes.contains(0), let text = String(validating: bytes, as: UTF8.self) else {
            diagnostics.report(
                cursor.place, cursor.path, "the key \(key) of \(kind) \(name) is not text, and can not be a variable")
            return nil
        }
        return text
    }

    // MARK: - Resources

    // Written with small steps: Swift 6.3.1's optimizer fails on the same as one function with a nested one.
    private func resources(_ cursor: Cursor?) -> Resources {
        guard let cursor else { return Resources() }
        let limits: Cursor? = cursor["limits"]
        let requests: Cursor? = cursor["requests"]
        let result = Resources(memoryBytes: memory(limits), cpuMilli: cpu(limits))
        if let request = memory(requests) { compare("memory", requests, request, result.memoryBytes) }
        if let request = cpu(requests) { compare("cpu", requests, request, result.cpuMilli) }
        return result
    }

    private func memory(_ cursor: Cursor?) -> UInt64? {
        guard let cursor, let value = cursor["memory"] else { return nil }
        return value.size
    }

    private func cpu(_ cursor: Cursor?) -> UInt64? {
        guard let cursor, let value = cursor["cpu"], let scalar = value.scalar else { return nil }
        return ScalarValue.cpuMilli(scalar)
    }

    private func compare(_ field: String, _ requests: Cursor?, _ request: UInt64, _ limit: UInt64?) {
        guard let requests, let cursor = requests[field] else { return }
        guard let limit else {
            diagnostics.report(
                cursor.place, cursor.path, "a request without a limit would have no effect",
                hint: "Coterie has limits only; give limits.\(field)")
            return
        }
        if request > limit { diagnostics.report(cursor.place, cursor.path, "more than the limit") }
    }

    // MARK: - Probes

    private func probe(_ cursor: Cursor?, single: Bool) -> Probe? {
        guard let cursor else { return nil }
        let actions = ["exec", "tcpSocket", "httpGet"].filter { cursor[$0] != nil }
        if actions.count != 1, cursor["grpc"] == nil {
            diagnostics.report(cursor.place, cursor.path, "exactly one of exec, tcpSocket and httpGet is needed")
        }
        let action: Probe.Action
        if let tcp = cursor["tcpSocket"] {
            action = .tcp(port: port(tcp["port"]))
        } else if let http = cursor["httpGet"] {
            let path = http["path"]?.string ?? "/"
            if !path.hasPrefix("/") || path.utf8.contains(where: { $0 <= 32 || $0 >= 127 }) {
                let place = http["path"]?.place ?? http.place
                diagnostics.report(
                    place, FieldPath.append(http.path, "path"),
                    "must begin with / and be printable ASCII without spaces")
            }
            action = .http(path: path, port: port(http["port"]))
        } else {
            action = .exec(cursor["exec"]?["command"]?.strings ?? [])
        }
        if single, let threshold = cursor["successThreshold"], let value = threshold.integer, value != 1 {
            diagnostics.report(threshold.place, threshold.path, "must be 1 for startup and liveness")
        }
        return Probe(
            action: action, initialDelay: cursor["initialDelaySeconds"]?.seconds ?? .zero,
            period: cursor["periodSeconds"]?.seconds ?? .seconds(10),
            timeout: cursor["timeoutSeconds"]?.seconds ?? .seconds(1),
            successThreshold: Int(cursor["successThreshold"]?.integer ?? 1),
            failureThreshold: Int(cursor["failureThreshold"]?.integer ?? 3))
    }

    private func port(_ cursor: Cursor?) -> UInt16 {
        guard let cursor else { return 0 }
        if let number = cursor.integer { return UInt16(exactly: number) ?? 0 }
        guard let name = cursor.string else { return 0 }
        if let port = namedPorts[name] { return port }
        diagnostics.report(
            cursor.place, cursor.path, "the pod has no port named \(Scalar.excerpt(name))",
            hint: Suggestion.hint(for: name, among: namedPorts.keys.sorted()))
        return 0
    }
}
