// Pod specification and status as bytes: in the replicated log, in snapshots, and between nodes. Each whole value starts with
// its format's version; lists are bounded before memory is taken.
//
//   PodSpec    version u8 = 1 | name | labels | annotations | initContainers | containers | volumes | restartPolicy u8 |
//              grace i64 ns | hostNetwork u8 | hostname? | nodeName? | nodeSelector | activeDeadline? i64 ns
//   PodStatus  version u8 = 1 | phase u8 | reason | message | sandbox | containers
import Model

/// What one specification may hold.
public enum PodLimits {
    public static let version: UInt8 = 1
    public static let containers = 64
    public static let volumes = 64
    public static let labels = 256
    public static let environment = 1_024
    public static let arguments = 1_024
    /// Longest argument, value or path, in bytes.
    public static let textBytes = 128 << 10
    public static let files = 1_024
    /// Largest specification as bytes, files included.
    public static let specBytes = 1 << 20
}

extension PodSpec {
    public var encoded: [UInt8] {
        var writer = ByteWriter(capacity: 512)
        encode(into: &writer)
        return writer.bytes
    }

    public func encode(into writer: inout ByteWriter) {
        writer.u8(PodLimits.version)
        writer.string(name)
        writer.stringMap(labels)
        writer.stringMap(annotations)
        for list in [initContainers, containers] {
            writer.count(list.count)
            for container in list { container.encode(into: &writer) }
        }
        writer.count(volumes.count)
        for volume in volumes { volume.encode(into: &writer) }
        writer.u8(restartPolicy.code)
        writer.timeSpan(terminationGracePeriod)
        writer.bool(hostNetwork)
        writer.optionalString(hostname)
        writer.optionalString(nodeName)
        writer.stringMap(nodeSelector)
        writer.optional(activeDeadline) { $0.timeSpan($1) }
    }

    public init(decoding reader: inout ByteReader) throws(WireError) {
        let start = reader.position
        guard try reader.u8() == PodLimits.version else {
            throw .invalid(at: start, what: "version of a pod specification")
        }
        self.init(name: try reader.string(max: Limits.nameBytes), containers: [])
        labels = try reader.podMap()
        annotations = try reader.podMap()
        for _ in 0..<(try reader.count(max: PodLimits.containers, itemBytes: 14)) {
            initContainers.append(try ContainerSpec(decoding: &reader))
        }
        for _ in 0..<(try reader.count(max: PodLimits.containers, itemBytes: 14)) {
            containers.append(try ContainerSpec(decoding: &reader))
        }
        for _ in 0..<(try reader.count(max: PodLimits.volumes, itemBytes: 2)) {
            volumes.append(try Volume(decoding: &reader))
        }
        let at = reader.position
        guard let policy = RestartPolicy(code: try reader.u8()) else { throw .invalid(at: at, what: "restart policy") }
        restartPolicy = policy
        terminationGracePeriod = try reader.timeSpan()
        hostNetwork = try reader.bool()
        hostname = try reader.optionalString(max: Limits.nameBytes)
        nodeName = try reader.optionalString(max: Limits.nameBytes)
        nodeSelector = try reader.podMap()
        activeDeadline = try reader.optional { (r: inout ByteReader) throws(WireError) in try r.timeSpan() }
        let length = reader.position - start
        guard length <= PodLimits.specBytes else {
            throw .tooLong(at: start, length: length, limit: PodLimits.specBytes)
        }
    }
}

extension PodStatus {
    public func encode(into writer: inout ByteWriter) {
        writer.u8(PodLimits.version)
        writer.u8(phase.code)
        writer.text(reason, max: 1_024)
        writer.text(message, max: 16 << 10)
        writer.string(sandbox)
        writer.count(containers.count)
        for container in containers { container.encode(into: &writer) }
    }

    public init(decoding reader: inout ByteReader) throws(WireError) {
        let start = reader.position
        guard try reader.u8() == PodLimits.version else { throw .invalid(at: start, what: "version of a pod status") }
        let at = reader.position
        guard let phase = Phase(code: try reader.u8()) else { throw .invalid(at: at, what: "pod phase") }
        self.init(phase: phase)
        reason = try reader.string(max: 1_024)
        message = try reader.string(max: 16 << 10)
        sandbox = try reader.string(max: 64)
        for _ in 0..<(try reader.count(max: 2 * PodLimits.containers, itemBytes: 5)) {
            containers.append(try ContainerStatus(decoding: &reader))
        }
    }
}

extension ContainerStatus {
    public func encode(into writer: inout ByteWriter) {
        writer.string(name)
        switch state {
        case .waiting(let reason):
            writer.u8(0)
            writer.text(reason, max: 1_024)
        case .running: writer.u8(1)
        case .terminated(let exitCode, let reason):
            writer.u8(2)
            writer.u32(UInt32(bitPattern: exitCode))
            writer.text(reason, max: 1_024)
        }
        writer.bool(ready)
        writer.natural(restartCount)
        writer.bool(isInit)
    }

    public init(decoding reader: inout ByteReader) throws(WireError) {
        let name = try reader.string(max: Limits.nameBytes)
        let at = reader.position
        let state: State
        switch try reader.u8() {
        case 0: state = .waiting(reason: try reader.string(max: 1_024))
        case 1: state = .running
        case 2:
            state = .terminated(exitCode: Int32(bitPattern: try reader.u32()), reason: try reader.string(max: 1_024))
        default: throw .invalid(at: at, what: "container state")
        }
        self.init(
            name: name, state: state, ready: try reader.bool(), restartCount: try reader.natural(max: Int(Int32.max)),
            isInit: try reader.bool())
    }
}

// MARK: - Parts of a specification

extension ContainerSpec {
    func encode(into writer: inout ByteWriter) {
        writer.string(name)
        writer.string(image)
        writer.strings(command)
        writer.strings(arguments)
        writer.optionalString(workingDirectory)
        writer.count(environment.count)
        for variable in environment {
            writer.string(variable.name)
            switch variable.value {
            case .literal(let text):
                writer.u8(0)
                writer.string(text)
            case .field(let path):
                writer.u8(1)
                writer.string(path)
            }
        }
        writer.count(mounts.count)
        for mount in mounts {
            writer.string(mount.name)
            writer.string(mount.mountPath)
            writer.bool(mount.readOnly)
            writer.optionalString(mount.subPath)
        }
        writer.count(ports.count)
        for port in ports {
            writer.optionalString(port.name)
            writer.u16(port.port)
        }
        writer.optional(resources.memoryBytes) { $0.varint($1) }
        writer.optional(resources.cpuMilli) { $0.varint($1) }
        writer.bool(restartAlways)
        for probe in [startupProbe, livenessProbe, readinessProbe] { writer.optional(probe) { $1.encode(into: &$0) } }
    }

    init(decoding reader: inout ByteReader) throws(WireError) {
        self.init(name: try reader.string(max: Limits.nameBytes), image: try reader.string(max: 4_096))
        command = try reader.strings(maxCount: PodLimits.arguments, bytes: PodLimits.textBytes)
        arguments = try reader.strings(maxCount: PodLimits.arguments, bytes: PodLimits.textBytes)
        workingDirectory = try reader.optionalString(max: 4_096)
        for _ in 0..<(try reader.count(max: PodLimits.environment, itemBytes: 3)) {
            let name = try reader.string(max: 4_096)
            let at = reader.position
            let value: EnvironmentVariable.Source
            switch try reader.u8() {
            case 0: value = .literal(try reader.string(max: PodLimits.textBytes))
            case 1: value = .field(try reader.string(max: 4_096))
            default: throw .invalid(at: at, what: "source of an environment variable")
            }
            environment.append(EnvironmentVariable(name: name, value: value))
        }
        for _ in 0..<(try reader.count(max: 4 * PodLimits.volumes, itemBytes: 4)) {
            mounts.append(
                VolumeMount(
                    name: try reader.string(max: Limits.nameBytes), mountPath: try reader.string(max: 4_096),
                    readOnly: try reader.bool(), subPath: try reader.optionalString(max: 4_096)))
        }
        for _ in 0..<(try reader.count(max: PodLimits.containers, itemBytes: 3)) {
            ports.append(ContainerPort(name: try reader.optionalString(max: Limits.nameBytes), port: try reader.u16()))
        }
        resources.memoryBytes = try reader.optional { (r: inout ByteReader) throws(WireError) in try r.varint() }
        resources.cpuMilli = try reader.optional { (r: inout ByteReader) throws(WireError) in try r.varint() }
        restartAlways = try reader.bool()
        startupProbe = try reader.optional { (r: inout ByteReader) throws(WireError) in try Probe(decoding: &r) }
        livenessProbe = try reader.optional { (r: inout ByteReader) throws(WireError) in try Probe(decoding: &r) }
        readinessProbe = try reader.optional { (r: inout ByteReader) throws(WireError) in try Probe(decoding: &r) }
    }
}

extension Probe {
    func encode(into writer: inout ByteWriter) {
        switch action {
        case .exec(let command):
            writer.u8(0)
            writer.strings(command)
        case .tcp(let port):
            writer.u8(1)
            writer.u16(port)
        case .http(let path, let port):
            writer.u8(2)
            writer.string(path)
            writer.u16(port)
        }
        for span in [initialDelay, period, timeout] { writer.timeSpan(span) }
        writer.natural(successThreshold)
        writer.natural(failureThreshold)
    }

    init(decoding reader: inout ByteReader) throws(WireError) {
        let at = reader.position
        let action: Action
        switch try reader.u8() {
        case 0: action = .exec(try reader.strings(maxCount: PodLimits.arguments, bytes: PodLimits.textBytes))
        case 1: action = .tcp(port: try reader.u16())
        case 2: action = .http(path: try reader.string(max: 4_096), port: try reader.u16())
        default: throw .invalid(at: at, what: "probe")
        }
        self.init(
            action: action, initialDelay: try reader.timeSpan(), period: try reader.timeSpan(),
            timeout: try reader.timeSpan(),
            successThreshold: try reader.natural(max: 1_000_000), failureThreshold: try reader.natural(max: 1_000_000))
    }
}

extension Volume {
    func encode(into writer: inout ByteWriter) {
        writer.string(name)
        switch source {
        case .emptyDir(let inMemory, let sizeLimit):
            writer.u8(0)
            writer.bool(inMemory)
            writer.optional(sizeLimit) { $0.varint($1) }
        case .hostPath(let path, let type):
            writer.u8(1)
            writer.string(path)
            writer.optionalString(type)
        case .files(let files):
            writer.u8(2)
            writer.count(files.count)
            for (path, content) in files.sorted(by: { $0.key < $1.key }) {
                writer.string(path)
                writer.slice(content)
            }
        }
    }

    init(decoding reader: inout ByteReader) throws(WireError) {
        let name = try reader.string(max: Limits.nameBytes)
        let at = reader.position
        switch try reader.u8() {
        case 0:
            let inMemory = try reader.bool()
            let limit = try reader.optional { (r: inout ByteReader) throws(WireError) in try r.varint() }
            self.init(name: name, source: .emptyDir(inMemory: inMemory, sizeLimit: limit))
        case 1:
            self.init(
                name: name, source: .hostPath(try reader.string(max: 4_096), type: try reader.optionalString(max: 64)))
        case 2:
            var files: [String: [UInt8]] = [:]
            var last: String?
            for _ in 0..<(try reader.count(max: PodLimits.files, itemBytes: 2)) {
                let at = reader.position
                let path = try reader.string(max: 4_096)
                if let last, last >= path { throw .invalid(at: at, what: "order of files") }
                files[path] = try reader.array(max: PodLimits.specBytes)
                last = path
            }
            self.init(name: name, source: .files(files))
        default: throw .invalid(at: at, what: "volume")
        }
    }
}

extension ByteReader {
    fileprivate mutating func podMap() throws(WireError) -> [String: String] {
        try stringMap(maxCount: PodLimits.labels, keyBytes: 1_024, valueBytes: PodLimits.textBytes)
    }
}

extension RestartPolicy {
    fileprivate var code: UInt8 {
        switch self {
        case .always: 0
        case .onFailure: 1
        case .never: 2
        }
    }

    fileprivate init?(code: UInt8) {
        guard let found = Self.allCases.first(where: { $0.code == code }) else { return nil }
        self = found
    }
}

extension PodStatus.Phase {
    fileprivate var code: UInt8 {
        switch self {
        case .pending: 0
        case .running: 1
        case .succeeded: 2
        case .failed: 3
        }
    }

    fileprivate init?(code: UInt8) {
        guard let found = Self.allCases.first(where: { $0.code == code }) else { return nil }
        self = found
    }
}
