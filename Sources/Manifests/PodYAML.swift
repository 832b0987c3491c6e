// ``PodSpec`` as YAML: what `coterie expand` prints. It reads back to the same ``PodSpec``; fields that have their default are
// left out. Files of a pod become a ConfigMap POD.VOLUME in front of it.
import Model

public enum PodYAML {
    /// One document a pod, and one for each volume of files.
    public static func text(_ pods: [PodSpec]) -> String {
        var writer = YAMLWriter()
        for pod in pods {
            for volume in pod.volumes {
                if case .files(let files) = volume.source { configMap(pod, volume.name, files, &writer) }
            }
            self.pod(pod, &writer)
        }
        return writer.text
    }

    private static func configName(_ pod: PodSpec, _ volume: String) -> String { pod.name + "." + volume }

    /// Keys of a ConfigMap can not hold every path; those that can not stand for themselves are numbered.
    private static func keys(_ files: [String: [UInt8]]) -> [(key: String, path: String)] {
        let paths = files.keys.sorted()
        if paths.allSatisfy({ Identifier.configKey.complaint($0) == nil }) { return paths.map { ($0, $0) } }
        return paths.enumerated().map { ("file-\($0.offset)", $0.element) }
    }

    private static func configMap(
        _ pod: PodSpec, _ volume: String, _ files: [String: [UInt8]], _ writer: inout YAMLWriter
    ) {
        writer.document()
        writer.field("apiVersion", "v1")
        writer.field("kind", "ConfigMap")
        writer.nested("metadata") { $0.field("name", configName(pod, volume)) }
        var texts: [(String, String)] = []
        var binaries: [(String, String)] = []
        for (key, path) in keys(files) {
            let bytes = files[path] ?? []
            if !bytes.contains(0), let text = String(validating: bytes, as: UTF8.self) {
                texts.append((key, text))
            } else {
                binaries.append((key, Base64.encode(bytes)))
            }
        }
        for (field, entries) in [("data", texts), ("binaryData", binaries)] where !entries.isEmpty {
            writer.nested(field) { writer in
                for (key, value) in entries { writer.field(key, value) }
            }
        }
    }

    private static func pod(_ pod: PodSpec, _ writer: inout YAMLWriter) {
        writer.document()
        writer.field("apiVersion", "v1")
        writer.field("kind", "Pod")
        writer.nested("metadata") { writer in
            writer.field("name", pod.name)
            writer.map("labels", pod.labels)
            writer.map("annotations", pod.annotations)
        }
        writer.nested("spec") { writer in
            if pod.restartPolicy != .always { writer.field("restartPolicy", pod.restartPolicy.rawValue) }
            if pod.terminationGracePeriod != .seconds(30) {
                writer.seconds("terminationGracePeriodSeconds", pod.terminationGracePeriod)
            }
            if let deadline = pod.activeDeadline { writer.seconds("activeDeadlineSeconds", deadline) }
            if pod.hostNetwork { writer.raw("hostNetwork", "true") }
            if let hostname = pod.hostname { writer.field("hostname", hostname) }
            if let nodeName = pod.nodeName { writer.field("nodeName", nodeName) }
            writer.map("nodeSelector", pod.nodeSelector)
            writer.list("initContainers", pod.initContainers) { container($0, &$1) }
            writer.list("containers", pod.containers) { container($0, &$1) }
            writer.list("volumes", pod.volumes) { volume, writer in
                writer.field("name", volume.name)
                self.volume(pod, volume, &writer)
            }
        }
    }

    private static func volume(_ pod: PodSpec, _ volume: Volume, _ writer: inout YAMLWriter) {
        switch volume.source {
        case .emptyDir(let inMemory, let sizeLimit):
            guard inMemory || sizeLimit != nil else { return writer.raw("emptyDir", "{}") }
            writer.nested("emptyDir") { writer in
                if inMemory { writer.field("medium", "Memory") }
                if let sizeLimit { writer.raw("sizeLimit", String(sizeLimit)) }
            }
        case .hostPath(let path, let type):
            writer.nested("hostPath") { writer in
                writer.field("path", path)
                if let type { writer.field("type", type) }
            }
        case .files(let files):
            writer.nested("configMap") { writer in
                writer.field("name", configName(pod, volume.name))
                let keys = keys(files)
                if keys.contains(where: { $0.key != $0.path }) {
                    writer.list("items", keys) { item, writer in
                        writer.field("key", item.key)
                        writer.field("path", item.path)
                    }
                }
            }
        }
    }

    private static func container(_ container: ContainerSpec, _ writer: inout YAMLWriter) {
        writer.field("name", container.name)
        writer.field("image", container.image)
        if container.restartAlways { writer.field("restartPolicy", "Always") }
        writer.strings("command", container.command)
        writer.strings("args", container.arguments)
        if let directory = container.workingDirectory { writer.field("workingDir", directory) }
        writer.list("env", container.environment) { variable, writer in
            writer.field("name", variable.name)
            switch variable.value {
            case .literal(let text): writer.field("value", text)
            case .field(let path):
                writer.nested("valueFrom") { $0.nested("fieldRef") { $0.field("fieldPath", path) } }
            }
        }
        writer.list("volumeMounts", container.mounts) { mount, writer in
            writer.field("name", mount.name)
            writer.field("mountPath", mount.mountPath)
            if mount.readOnly { writer.raw("readOnly", "true") }
            if let subPath = mount.subPath { writer.field("subPath", subPath) }
        }
        writer.list("ports", container.ports) { port, writer in
            writer.raw("containerPort", String(port.port))
            if let name = port.name { writer.field("name", name) }
        }
        if container.resources != Resources() {
            writer.nested("resources") { writer in
                writer.nested("limits") { writer in
                    if let memory = container.resources.memoryBytes { writer.raw("memory", String(memory)) }
                    if let cpu = container.resources.cpuMilli { writer.field("cpu", "\(cpu)m") }
                }
            }
        }
        for (name, probe) in [
            ("startupProbe", container.startupProbe), ("livenessProbe", container.livenessProbe),
            ("readinessProbe", container.readinessProbe),
        ] {
            if let probe { writer.nested(name) { self.probe(probe, &$0) } }
        }
    }

    private static func probe(_ probe: Probe, _ writer: inout YAMLWriter) {
        switch probe.action {
        case .exec(let command): writer.nested("exec") { $0.strings("command", command) }
        case .tcp(let port): writer.nested("tcpSocket") { $0.raw("port", String(port)) }
        case .http(let path, let port):
            writer.nested("httpGet") { writer in
                writer.field("path", path)
                writer.raw("port", String(port))
            }
        }
        if probe.initialDelay != .zero { writer.seconds("initialDelaySeconds", probe.initialDelay) }
        if probe.period != .seconds(10) { writer.seconds("periodSeconds", probe.period) }
        if probe.timeout != .seconds(1) { writer.seconds("timeoutSeconds", probe.timeout) }
        if probe.successThreshold != 1 { writer.raw("successThreshold", String(probe.successThreshold)) }
        if probe.failureThreshold != 3 { writer.raw("failureThreshold", String(probe.failureThreshold)) }
    }
}
