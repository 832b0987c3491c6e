// From a specification to what exactly will run here: users, mounts, environments, listeners. Everything that makes a pod
// impossible on this node is found here, before anything is made.
import Glibc
import Model

/// Why a pod can not run on this node: one CamelCase word and a sentence.
struct PodRefusal: Error, Hashable {
    var reason: String
    var message: String

    init(_ reason: String, _ message: String) {
        self.reason = reason
        self.message = message
    }
}

/// How `coterie-init` is started.
enum InitMode: String, Hashable, Sendable {
    case namespaces
    case userNamespaces = "user-namespaces"
    case none
}

/// Everything decided about a pod, nothing done yet.
struct PodPlan {
    struct Container {
        var spec: ContainerSpec
        /// The image's root on the host; empty for the host's own.
        var image: String
        /// Runs on the host's side of the network, with its listeners on the pod's localhost.
        var hostSide: Bool
        var listeners: [UInt16]
        var arguments: [String]
        var environment: [String]
        var workingDirectory: String
        var mounts: [SandboxMount]
        /// On the host.
        var directory: String
    }

    /// A volume that is a directory of the pod's own.
    enum OwnVolume {
        case directory(path: String, sizeLimit: UInt64?)
        case memory(path: String, bytes: UInt64)
        case files(path: String, [(name: String, bytes: [UInt8])])
    }

    var key: String
    var spec: PodSpec
    var mode: InitMode
    /// The pod's directory, which no other user can reach, and the part of it that the containers see at `/run/coterie`.
    var directory: String
    var runDirectory: String
    var user: UInt32
    var group: UInt32
    var hostSideUser: UInt32
    /// Nil where files must stay the agent's own, which is no root.
    var owner: (user: UInt32, group: UInt32)?
    var hostname: String
    var containers: [Container]
    var volumes: [OwnVolume]
    var masks: [String]

    /// `supplied` is the program to bind at `/run/coterie/bin/coterie`.
    func setup(supplied: String?) -> SandboxSetup {
        SandboxSetup(
            hostNetwork: spec.hostNetwork, user: user, group: group, hostSideUser: hostSideUser, hostname: hostname,
            directory: directory, supplied: supplied ?? "",
            listeners: containers.flatMap { c in
                c.listeners.map { SandboxSetup.Listener(container: c.spec.name, port: $0) }
            },
            masks: masks,
            memoryVolumes: volumes.compactMap {
                guard case .memory(let path, let bytes) = $0 else { return nil }
                return SandboxSetup.MemoryVolume(path: path, bytes: bytes)
            })
    }

    /// emptyDir volumes on disk whose size must be watched.
    var limitedDirectories: [(path: String, limit: UInt64)] {
        volumes.compactMap {
            guard case .directory(let path, let limit?) = $0 else { return nil }
            return (path, limit)
        }
    }
}

/// Makes plans; holds what is the same for all pods of the node.
struct PodPlanner {
    /// Where containers find the node's part of their pod.
    static let inside = "/run/coterie"
    static let searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    /// Mount points that are the runtime's own.
    static let reserved = ["/proc", "/sys", "/dev", "/run/coterie"]

    var options: PodRuntimeOptions
    var mode: InitMode
    var cgroups: Cgroups?
    /// Masked paths without links.
    var masks: [String]

    /// `number` tells the pod's users apart from those of the node's other pods.
    func plan(_ spec: PodSpec, key: String, number: Int, directory: String, runDirectory: String) throws(PodRefusal)
        -> PodPlan
    {
        try checkNames(spec)
        try checkLimits(spec)
        let listeners = try hostSide(spec)
        let isRoot = geteuid() == 0
        let user: UInt32
        let hostSideUser: UInt32
        if isRoot {
            guard number * 2 + 1 < options.users.count else {
                throw PodRefusal("OutOfUsers", "no user is left for another pod")
            }
            user = options.users.lowerBound + UInt32(number) * 2
            hostSideUser = user + 1
        } else {
            user = geteuid()
            hostSideUser = user
        }
        let group = isRoot ? user : getegid()
        let hostname = spec.hostname ?? String(spec.name.prefix(63))
        var plan = PodPlan(
            key: key, spec: spec, mode: mode, directory: directory, runDirectory: runDirectory, user: user,
            group: group,
            hostSideUser: hostSideUser, owner: isRoot ? (user, group) : nil, hostname: hostname, containers: [],
            volumes: [], masks: masks)
        var sources: [String: (source: String, flags: UInt8)] = [:]
        for volume in spec.volumes { sources[volume.name] = try source(of: volume, &plan) }
        for container in spec.initContainers + spec.containers {
            plan.containers.append(try self.container(container, plan, listeners[container.name], sources))
        }
        return plan
    }

    // MARK: - Checks

    private func checkNames(_ spec: PodSpec) throws(PodRefusal) {
        var seen = Set<String>()
        for container in spec.initContainers + spec.containers {
            guard isPlainFileName(container.name) else {
                throw PodRefusal("InvalidName", "\(container.name) can not be a container's name")
            }
            guard seen.insert(container.name).inserted else {
                throw PodRefusal("InvalidName", "two containers are named \(container.name)")
            }
        }
        guard !spec.containers.isEmpty else { throw PodRefusal("InvalidPod", "the pod has no container") }
        guard seen.count <= 64 else { throw PodRefusal("InvalidPod", "the pod has more than 64 containers") }
        seen = []
        for volume in spec.volumes {
            guard isPlainFileName(volume.name) else {
                throw PodRefusal("InvalidName", "\(volume.name) can not be a volume's name")
            }
            guard seen.insert(volume.name).inserted else {
                throw PodRefusal("InvalidName", "two volumes are named \(volume.name)")
            }
        }
        guard isPlainFileName(spec.hostname ?? spec.name) else {
            throw PodRefusal("InvalidName", "\(spec.hostname ?? spec.name) can not be a host name")
        }
    }

    private func checkLimits(_ spec: PodSpec) throws(PodRefusal) {
        guard !options.allowUnenforced else { return }
        for container in spec.initContainers + spec.containers {
            var needed: [Cgroups.Controller] = []
            if container.resources.memoryBytes != nil { needed.append(.memory) }
            if container.resources.cpuMilli != nil { needed.append(.cpu) }
            for controller in needed where cgroups?.places[controller] == nil {
                let why = cgroups?.reasons[controller] ?? "the agent does not run as root"
                throw PodRefusal(
                    "LimitNotEnforceable",
                    "the \(controller.rawValue) limit of container \(container.name) can not be enforced here: "
                        + "\(why) (run the agent as root, or allow unenforced limits)"
                )
            }
        }
    }

    /// The annotation's containers with their ports. A name without a port asks for the host's side of the network alone.
    private func hostSide(_ spec: PodSpec) throws(PodRefusal) -> [String: [UInt16]] {
        guard let text = spec.annotations[PodSpec.listenAnnotation] else { return [:] }
        var result: [String: [UInt16]] = [:]
        var ports = Set<UInt16>()
        let names = Set((spec.initContainers + spec.containers).map(\.name))
        for entry in text.split(separator: ",") {
            let parts = entry.filter { $0 != " " }.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
                .map(String.init)
            guard let name = parts.first, names.contains(name) else {
                throw PodRefusal(
                    "InvalidAnnotation", "\(PodSpec.listenAnnotation): there is no container \(parts.first ?? "")")
            }
            result[name, default: []] += []
            guard parts.count == 2 else { continue }
            guard let port = UInt16(parts[1]), port > 0 else {
                throw PodRefusal("InvalidAnnotation", "\(PodSpec.listenAnnotation): \(parts[1]) is not a port")
            }
            guard ports.insert(port).inserted else {
                throw PodRefusal("InvalidAnnotation", "\(PodSpec.listenAnnotation): port \(port) is given twice")
            }
            result[name, default: []].append(port)
        }
        guard ports.count <= 16 else {
            throw PodRefusal("InvalidAnnotation", "\(PodSpec.listenAnnotation): more than 16 ports")
        }
        return result
    }

    // MARK: - Volumes

    private func source(of volume: Volume, _ plan: inout PodPlan) throws(PodRefusal) -> (source: String, flags: UInt8) {
        guard mode != .none else {
            throw PodRefusal(
                "VolumesNotSupported", "volume \(volume.name): plain processes (--sandbox none) have no mounts")
        }
        let own = "\(plan.directory)/volumes/\(volume.name)"
        switch volume.source {
        case .emptyDir(let inMemory, let sizeLimit):
            plan.volumes.append(
                inMemory ? .memory(path: own, bytes: sizeLimit ?? 0) : .directory(path: own, sizeLimit: sizeLimit))
            return (own, SandboxMount.mayCreate)
        case .files(let files):
            var list: [(name: String, bytes: [UInt8])] = []
            for (name, bytes) in files.sorted(by: { $0.key < $1.key }) {
                let parts = name.split(separator: "/", omittingEmptySubsequences: false)
                guard !parts.contains(where: { $0.isEmpty || $0 == "." || $0 == ".." }), name.utf8.count < 1_024,
                    !name.utf8.contains(0)
                else {
                    throw PodRefusal("InvalidVolume", "volume \(volume.name): \(name) is not a relative path")
                }
                list.append((name, bytes))
            }
            plan.volumes.append(.files(path: own, list))
            return (own, SandboxMount.readOnly)
        case .hostPath(let path, let type): return (try hostPath(path, type ?? "", volume.name), 0)
        }
    }

    private func hostPath(_ path: String, _ type: String, _ volume: String) throws(PodRefusal) -> String {
        func refuse(_ why: String) -> PodRefusal {
            PodRefusal("InvalidVolume", "volume \(volume): hostPath \(path): \(why)")
        }
        guard path.hasPrefix("/"), !path.utf8.contains(0) else { throw refuse("not an absolute path") }
        if access(path, F_OK) != 0 && errno == ENOENT {
            // What would lie in a masked directory must not even be made.
            let parent = String(path[..<(path.lastIndex(of: "/") ?? path.startIndex)])
            if let real = realPath(parent.isEmpty ? "/" : parent), masks.contains(where: { isBelow(real, $0) }) {
                throw refuse("no pod may see this directory")
            }
            if type == "DirectoryOrCreate" { mkdir(path, 0o755) }
            if type == "FileOrCreate" {
                let descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o644)
                if descriptor >= 0 { close(descriptor) }
            }
        }
        var info = stat()
        guard stat(path, &info) == 0, let real = realPath(path) else { throw refuse(errnoText()) }
        if masks.contains(where: { isBelow(real, $0) }) { throw refuse("no pod may see this directory") }
        let kind = info.st_mode & S_IFMT
        if kind == S_IFCHR || kind == S_IFBLK { throw refuse("devices are not given to pods") }
        switch type {
        case "": break
        case "Directory", "DirectoryOrCreate": if kind != S_IFDIR { throw refuse("not a directory") }
        case "File", "FileOrCreate": if kind != S_IFREG { throw refuse("not a file") }
        case "Socket": if kind != S_IFSOCK { throw refuse("not a socket") }
        default: throw refuse("type \(type) is not known here")
        }
        return real
    }

    // MARK: - Containers

    private func container(
        _ spec: ContainerSpec, _ plan: PodPlan, _ ports: [UInt16]?, _ sources: [String: (source: String, flags: UInt8)]
    ) throws(PodRefusal) -> PodPlan.Container {
        let directory = "\(plan.mode == .none ? plan.runDirectory : plan.directory)/containers/\(spec.name)"
        let image = try self.image(spec)
        let environment = try self.environment(spec, plan, ports ?? [], directory)
        let values = Dictionary(environment, uniquingKeysWith: { $1 })
        let arguments = (spec.command + spec.arguments).map { expandReferences($0, values) }
        guard !spec.command.isEmpty, let program = arguments.first, !program.isEmpty else {
            throw PodRefusal("InvalidContainer", "container \(spec.name): a command is needed, images carry none here")
        }
        let texts = environment.map { "\($0.0)=\($0.1)" }
        guard !(arguments + texts + [spec.workingDirectory ?? ""]).contains(where: { $0.utf8.contains(0) }) else {
            throw PodRefusal("InvalidContainer", "container \(spec.name): a text holds a NUL")
        }
        var mounts = mode == .none ? [] : identityMounts(plan, isHostSide: ports != nil, isHostImage: image.isEmpty)
        for mount in spec.mounts { mounts.append(try self.mount(mount, spec.name, sources)) }
        return PodPlan.Container(
            spec: spec, image: image, hostSide: ports != nil, listeners: ports ?? [], arguments: arguments,
            environment: texts, workingDirectory: spec.workingDirectory ?? (mode == .none ? directory + "/tmp" : ""),
            mounts: mounts,
            directory: directory)
    }

    private func image(_ spec: ContainerSpec) throws(PodRefusal) -> String {
        if ImageName.isHost(spec.image) { return "" }
        guard mode != .none else {
            throw PodRefusal(
                "ImageNotAvailable",
                "container \(spec.name): plain processes (--sandbox none) run only the image \(ImageName.host)")
        }
        guard let name = ImageName.directoryName(for: spec.image) else {
            throw PodRefusal("InvalidImageName", "container \(spec.name): \(spec.image) is no name of an image")
        }
        let path = options.imageDirectory + "/" + name
        var info = stat()
        guard stat(path, &info) == 0, info.st_mode & S_IFMT == S_IFDIR, let real = realPath(path) else {
            throw PodRefusal(
                "ImageNotAvailable",
                "container \(spec.name): the image \(spec.image) is not on this node (coterie image import, or use \(ImageName.host))"
            )
        }
        return real
    }

    /// The pod's own /etc/hosts and /etc/hostname; on the host's side of the network its resolver, which the image lacks.
    private func identityMounts(_ plan: PodPlan, isHostSide: Bool, isHostImage: Bool) -> [SandboxMount] {
        let flags = SandboxMount.readOnly | SandboxMount.optional
        var mounts: [SandboxMount] = []
        if !plan.spec.hostNetwork {
            mounts.append(SandboxMount(source: plan.directory + "/etc/hostname", target: "/etc/hostname", flags: flags))
            if !isHostSide {
                mounts.append(SandboxMount(source: plan.directory + "/etc/hosts", target: "/etc/hosts", flags: flags))
            }
        }
        if (isHostSide || plan.spec.hostNetwork) && !isHostImage {
            for file in ["/etc/hosts", "/etc/resolv.conf"] {
                if let real = realPath(file) { mounts.append(SandboxMount(source: real, target: file, flags: flags)) }
            }
        }
        return mounts
    }

    private func mount(
        _ mount: VolumeMount, _ container: String, _ sources: [String: (source: String, flags: UInt8)]
    ) throws(PodRefusal) -> SandboxMount {
        func refuse(_ why: String) -> PodRefusal {
            PodRefusal("InvalidMount", "container \(container): mount \(mount.mountPath): \(why)")
        }
        guard let (source, flags) = sources[mount.name] else { throw refuse("there is no volume \(mount.name)") }
        let parts = mount.mountPath.split(separator: "/")
        guard mount.mountPath.hasPrefix("/"), !parts.isEmpty, !parts.contains(".."), !parts.contains("."),
            !mount.mountPath.utf8.contains(0)
        else { throw refuse("not an absolute path below /") }
        let target = "/" + parts.joined(separator: "/")
        guard !PodPlanner.reserved.contains(where: { isBelow(target, $0) || isBelow($0, target) }) else {
            throw refuse("this place is the runtime's own")
        }
        let subPath = mount.subPath ?? ""
        let below = subPath.split(separator: "/", omittingEmptySubsequences: false)
        guard subPath.isEmpty || !below.contains(where: { $0.isEmpty || $0 == "." || $0 == ".." }),
            !subPath.utf8.contains(0)
        else {
            throw refuse("subPath \(subPath) is not a relative path")
        }
        return SandboxMount(
            source: source, subPath: subPath, target: target,
            flags: flags | (mount.readOnly ? SandboxMount.readOnly : 0))
    }

    // MARK: - Environment

    /// Ours first, then the specification's, whose values may refer to all before (`$(NAME)`); the listeners' last.
    private func environment(
        _ spec: ContainerSpec, _ plan: PodPlan, _ ports: [UInt16], _ directory: String
    ) throws(PodRefusal) -> [(String, String)] {
        let run = mode == .none ? plan.runDirectory : PodPlanner.inside
        let home = mode == .none ? directory + "/tmp" : "/tmp"
        var list: [(String, String)] = [
            ("PATH", "\(run)/bin:\(PodPlanner.searchPath)"), ("HOME", home), ("TMPDIR", home), ("LANG", "C.UTF-8"),
            ("HOSTNAME", plan.hostname), ("COTERIE_POD", plan.spec.name), ("COTERIE_NODE", options.nodeName),
            ("COTERIE_CONTAINER", spec.name), ("COTERIE_LOGS", run + "/logs"),
            ("COTERIE_ADDRESS", "unix:\(run)/pod.sock"),
        ]
        func set(_ name: String, _ value: String) {
            if let i = list.firstIndex(where: { $0.0 == name }) {
                list[i].1 = value
            } else {
                list.append((name, value))
            }
        }
        for variable in spec.environment {
            guard !variable.name.isEmpty, !variable.name.utf8.contains(UInt8(ascii: "=")) else {
                throw PodRefusal(
                    "InvalidContainer", "container \(spec.name): \(variable.name) is no name of a variable")
            }
            switch variable.value {
            case .literal(let text):
                set(variable.name, expandReferences(text, Dictionary(list, uniquingKeysWith: { $1 })))
            case .field(let path): set(variable.name, try field(path, plan, spec.name))
            }
        }
        if !ports.isEmpty {
            set("LISTEN_FDS", "\(ports.count)")
            set("LISTEN_FDNAMES", ports.map { "\($0)" }.joined(separator: ":"))
        }
        return list
    }

    private func field(_ path: String, _ plan: PodPlan, _ container: String) throws(PodRefusal) -> String {
        let ownNetwork = !plan.spec.hostNetwork && mode != .none
        switch path {
        case "metadata.name": return plan.spec.name
        case "metadata.namespace": return "default"
        case "spec.nodeName": return options.nodeName
        case "status.hostIP": return options.nodeAddress
        // A pod's own network has nothing but its loopback.
        case "status.podIP": return ownNetwork ? "127.0.0.1" : options.nodeAddress
        default: break
        }
        for (prefix, values) in [
            ("metadata.labels['", plan.spec.labels), ("metadata.annotations['", plan.spec.annotations),
        ]
        where path.hasPrefix(prefix) && path.hasSuffix("']") {
            return values[String(path.dropFirst(prefix.count).dropLast(2))] ?? ""
        }
        throw PodRefusal("InvalidContainer", "container \(container): fieldRef \(path) is not known here")
    }
}

/// Kubernetes' references: `$(NAME)` becomes the variable's value if there is one, `$$` becomes `$`, all else stays.
func expandReferences(_ text: String, _ values: [String: String]) -> String {
    guard text.utf8.contains(UInt8(ascii: "$")) else { return text }
    var result = ""
    var rest = text[...]
    while let dollar = rest.firstIndex(of: "$") {
        result += rest[..<dollar]
        rest = rest[rest.index(after: dollar)...]
        if rest.first == "$" {
            result += "$"
            rest = rest.dropFirst()
        } else if rest.first == "(", let end = rest.firstIndex(of: ")"),
            let value = values[String(rest[..<end].dropFirst())]
        {
            result += value
            rest = rest[rest.index(after: end)...]
        } else {
            result += "$"
        }
    }
    return result + rest
}
