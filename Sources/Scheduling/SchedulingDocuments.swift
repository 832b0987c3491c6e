// Pods in Kubernetes' own shape, gathers in that of the public contract: what `get`, `describe` and `gather` print.
import Model
import Wire

extension SchedulingMachine {
    /// Where a node is, for documents.
    public typealias NodeNames = (NodeID) -> (name: String, hostIP: String)?

    /// `{"apiVersion":"v1","kind":"Pod","metadata":…,"spec":…,"status":…}`.
    public func podDocument(_ record: PodRecord, node: NodeNames) -> JSONValue {
        var metadata: [JSONValue.Member] = [
            .init("name", .string(record.name)), .init("uid", .string(String(record.uid))),
            .init("labels", textMap(record.spec.labels)), .init("annotations", textMap(record.spec.annotations)),
            .init("generation", JSONValue(record.generation)),
        ]
        if let owner = record.owner {
            let (kind, name) =
                switch owner {
                case .gather(let id): ("Gather", id)
                case .pattern(let kind, let name): (kind, name)
                }
            metadata.append(.init("ownerReferences", [["kind": .string(kind), "name": .string(name)]]))
        }
        if record.deleting { metadata.append(.init("deletionRequested", true)) }
        let place = record.node.flatMap(node)
        return [
            "apiVersion": "v1", "kind": "Pod", "metadata": .object(metadata),
            "spec": SchedulingMachine.specDocument(record.spec, nodeName: place?.name ?? record.spec.nodeName),
            "status": SchedulingMachine.statusDocument(record, place: place),
        ]
    }

    /// `{"apiVersion":"v1","kind":"PodList","items":[…]}`.
    public func podListDocument(node: NodeNames) -> JSONValue {
        [
            "apiVersion": "v1", "kind": "PodList",
            "items": .array(pods.map { podDocument($0, node: node) }),
        ]
    }

    /// The contract's document, with the job's description beside it.
    public func gatherDocument(_ record: GatherRecord) -> JSONValue {
        guard case .object(var members) = record.progress.document(id: record.id, state: record.state) else {
            return .null
        }
        members += [
            .init("client", .string(record.seed.client)), .init("leaf", .string(record.seed.leaf)),
            .init("merge", JSONValue(record.seed.merge)), .init("sharder", .string(record.seed.sharder)),
            .init("parallel", JSONValue(record.seed.parallel)), .init("minSuccess", .double(record.seed.minSuccess)),
            .init("options", textMap(record.seed.options)), .init("pods", .array(record.pods.map { .string($0) })),
        ]
        return .object(members)
    }

    /// `{"gathers":[…]}`, oldest first.
    public var gatherListDocument: JSONValue { ["gathers": .array(gathers.map(gatherDocument))] }

    // MARK: - Specification

    /// A specification as Kubernetes would print it. Contents of files are left out: they may be secrets.
    public static func specDocument(_ spec: PodSpec, nodeName: String?) -> JSONValue {
        var members: [JSONValue.Member] = []
        if let nodeName { members.append(.init("nodeName", .string(nodeName))) }
        if !spec.nodeSelector.isEmpty { members.append(.init("nodeSelector", textMap(spec.nodeSelector))) }
        members += [
            .init("restartPolicy", .string(spec.restartPolicy.rawValue)),
            .init("terminationGracePeriodSeconds", seconds(spec.terminationGracePeriod)),
        ]
        if let deadline = spec.activeDeadline { members.append(.init("activeDeadlineSeconds", seconds(deadline))) }
        if spec.hostNetwork { members.append(.init("hostNetwork", true)) }
        if let hostname = spec.hostname { members.append(.init("hostname", .string(hostname))) }
        if !spec.initContainers.isEmpty {
            members.append(.init("initContainers", .array(spec.initContainers.map(containerDocument))))
        }
        members.append(.init("containers", .array(spec.containers.map(containerDocument))))
        if !spec.volumes.isEmpty { members.append(.init("volumes", .array(spec.volumes.map(volumeDocument)))) }
        return .object(members)
    }

    private static func containerDocument(_ container: ContainerSpec) -> JSONValue {
        var members: [JSONValue.Member] = [
            .init("name", .string(container.name)), .init("image", .string(container.image)),
        ]
        func add(_ key: String, _ list: [JSONValue]) { if !list.isEmpty { members.append(.init(key, .array(list))) } }
        add("command", container.command.map { .string($0) })
        add("args", container.arguments.map { .string($0) })
        if let directory = container.workingDirectory { members.append(.init("workingDir", .string(directory))) }
        add(
            "ports",
            container.ports.map { port in
                let number = JSONValue.Member("containerPort", JSONValue(port.port))
                return .object((port.name.map { [JSONValue.Member("name", .string($0))] } ?? []) + [number])
            })
        add(
            "env",
            container.environment.map { variable in
                switch variable.value {
                case .literal(let text): ["name": .string(variable.name), "value": .string(text)]
                case .field(let path):
                    ["name": .string(variable.name), "valueFrom": ["fieldRef": ["fieldPath": .string(path)]]]
                }
            })
        var limits: [JSONValue.Member] = []
        if let cpu = container.resources.cpuMilli { limits.append(.init("cpu", .string("\(cpu)m"))) }
        if let memory = container.resources.memoryBytes { limits.append(.init("memory", .string(String(memory)))) }
        if !limits.isEmpty { members.append(.init("resources", ["limits": .object(limits)])) }
        add(
            "volumeMounts",
            container.mounts.map { mount in
                var fields: [JSONValue.Member] = [
                    .init("name", .string(mount.name)), .init("mountPath", .string(mount.mountPath)),
                ]
                if mount.readOnly { fields.append(.init("readOnly", true)) }
                if let path = mount.subPath { fields.append(.init("subPath", .string(path))) }
                return .object(fields)
            })
        if container.restartAlways { members.append(.init("restartPolicy", "Always")) }
        for (key, probe) in [
            ("startupProbe", container.startupProbe), ("livenessProbe", container.livenessProbe),
            ("readinessProbe", container.readinessProbe),
        ] {
            if let probe { members.append(.init(key, probeDocument(probe))) }
        }
        return .object(members)
    }

    private static func probeDocument(_ probe: Probe) -> JSONValue {
        let action: JSONValue.Member =
            switch probe.action {
            case .exec(let command): .init("exec", ["command": .array(command.map { .string($0) })])
            case .tcp(let port): .init("tcpSocket", ["port": JSONValue(port)])
            case .http(let path, let port): .init("httpGet", ["path": .string(path), "port": JSONValue(port)])
            }
        return .object([
            action, .init("initialDelaySeconds", seconds(probe.initialDelay)),
            .init("periodSeconds", seconds(probe.period)),
            .init("timeoutSeconds", seconds(probe.timeout)),
            .init("successThreshold", JSONValue(probe.successThreshold)),
            .init("failureThreshold", JSONValue(probe.failureThreshold)),
        ])
    }

    private static func volumeDocument(_ volume: Volume) -> JSONValue {
        let source: JSONValue.Member
        switch volume.source {
        case .emptyDir(let inMemory, let sizeLimit):
            var fields: [JSONValue.Member] = []
            if inMemory { fields.append(.init("medium", "Memory")) }
            if let sizeLimit { fields.append(.init("sizeLimit", .string(String(sizeLimit)))) }
            source = .init("emptyDir", .object(fields))
        case .hostPath(let path, let type):
            let kind = type.map { [JSONValue.Member("type", .string($0))] } ?? []
            source = .init("hostPath", .object([.init("path", .string(path))] + kind))
        case .files(let files):
            source = .init(
                "configMap", ["items": .array(files.keys.sorted().map { ["key": .string($0), "path": .string($0)] })])
        }
        return .object([.init("name", .string(volume.name)), source])
    }

    /// Whole where it is whole.
    private static func seconds(_ span: TimeSpan) -> JSONValue {
        span.nanoseconds % 1_000_000_000 == 0 ? .int(span.nanoseconds / 1_000_000_000) : .double(span.seconds)
    }

    // MARK: - Status

    private static func statusDocument(_ record: PodRecord, place: (name: String, hostIP: String)?) -> JSONValue {
        let status = record.status
        var members: [JSONValue.Member] = [.init("phase", .string(status.phase.rawValue))]
        if let place {
            members.append(.init("hostIP", .string(place.hostIP)))
            // Alone in its network a pod has its loopback only; services of the cluster reach it through its node.
            let isAlone = !record.spec.hostNetwork && status.sandbox != "none"
            if status.phase == .running {
                members.append(.init("podIP", .string(isAlone ? "127.0.0.1" : place.hostIP)))
            }
        }
        if !status.reason.isEmpty { members.append(.init("reason", .string(status.reason))) }
        let message =
            status.message.isEmpty && record.node == nil
            ? record.pendingReasons.joined(separator: "; ") : status.message
        if !message.isEmpty { members.append(.init("message", .string(message))) }
        if !status.sandbox.isEmpty { members.append(.init("sandbox", .string(status.sandbox))) }
        members.append(.init("conditions", .array(conditions(record))))
        let images = Dictionary(
            (record.spec.initContainers + record.spec.containers).map { ($0.name, $0.image) },
            uniquingKeysWith: { first, _ in first })
        for (key, isInit) in [("initContainerStatuses", true), ("containerStatuses", false)] {
            let list = status.containers.filter { $0.isInit == isInit }
            if isInit && list.isEmpty { continue }
            members.append(.init(key, .array(list.map { containerStatusDocument($0, image: images[$0.name] ?? "") })))
        }
        return .object(members)
    }

    private static func conditions(_ record: PodRecord) -> [JSONValue] {
        func condition(_ type: String, _ holds: Bool, _ reason: String, _ message: String = "") -> JSONValue {
            var members: [JSONValue.Member] = [.init("type", .string(type)), .init("status", holds ? "True" : "False")]
            if !holds && !reason.isEmpty { members.append(.init("reason", .string(reason))) }
            if !holds && !message.isEmpty { members.append(.init("message", .string(message))) }
            return .object(members)
        }
        let status = record.status
        let isScheduled = record.node != nil || record.statusNode != nil
        let main = status.containers.filter { !$0.isInit }
        let areReady =
            status.phase == .running && !main.isEmpty && status.containers.allSatisfy { $0.ready || $0.isDoneInit }
        let reason = status.phase == .succeeded ? "PodCompleted" : "ContainersNotReady"
        let isInitialized =
            status.phase == .running || status.phase == .succeeded
            || (isScheduled && !status.containers.isEmpty
                && status.containers.allSatisfy { !$0.isInit || $0.ready || $0.isDoneInit })
        return [
            condition("PodScheduled", isScheduled, "Unschedulable", record.pendingReasons.joined(separator: "; ")),
            condition("Initialized", isInitialized, "ContainersNotInitialized"),
            condition("ContainersReady", areReady, reason), condition("Ready", areReady, reason),
        ]
    }

    private static func containerStatusDocument(_ status: ContainerStatus, image: String) -> JSONValue {
        let state: JSONValue =
            switch status.state {
            case .waiting(let reason): ["waiting": ["reason": .string(reason)]]
            case .running: ["running": [:]]
            case .terminated(let code, let reason):
                ["terminated": ["exitCode": JSONValue(code), "reason": .string(reason)]]
            }
        return [
            "name": .string(status.name), "image": .string(image), "state": state, "ready": .bool(status.ready),
            "restartCount": JSONValue(status.restartCount),
        ]
    }
}

extension ContainerStatus {
    /// An init container that has done its work.
    fileprivate var isDoneInit: Bool {
        if case .terminated(0, _) = state { isInit } else { false }
    }
}

private func textMap(_ map: [String: String]) -> JSONValue {
    .object(map.sorted { $0.key < $1.key }.map { .init($0.key, .string($0.value)) })
}
