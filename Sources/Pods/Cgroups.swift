// Limits on pods by control groups: version 1, where each controller has a hierarchy of its own, and version 2. All of a node's
// pods lie in one group below the agent's own, `coterie-HASH/KEY/c-CONTAINER`; memory and CPU are limited for a container,
// processes for a pod.
import Glibc
import Model

/// What this machine gives, found once.
struct Cgroups {
    enum Controller: String, CaseIterable { case memory, cpu, pids }

    struct Place: Hashable {
        /// The group of all pods of this node.
        var directory: String
        var isVersion2: Bool
    }

    private(set) var places: [Controller: Place] = [:]
    /// Why a controller is not there.
    private(set) var reasons: [Controller: String] = [:]

    /// Makes the node's group in each hierarchy. `name` is one component.
    init(name: String) {
        let mounts = Cgroups.mounts()
        let own = Cgroups.ownGroups()
        var version2: Place?
        for controller in Controller.allCases {
            if let mount = mounts.first(where: { !$0.isVersion2 && $0.options.contains { $0 == controller.rawValue } })
            {
                let base = Cgroups.directory(mount, own[controller.rawValue] ?? "/")
                let place = Place(directory: base + "/" + name, isVersion2: false)
                if let reason = Cgroups.tryOut(place, controller) {
                    reasons[controller] = reason
                } else {
                    places[controller] = place
                }
            } else if let mount = mounts.first(where: { $0.isVersion2 }),
                (textFile(mount.point + "/cgroup.controllers") ?? "").split(whereSeparator: { $0 == " " || $0 == "\n" })
                    .contains(where: { $0 == controller.rawValue })
            {
                if version2 == nil {
                    version2 = Place(directory: Cgroups.directory(mount, own[""] ?? "/") + "/" + name, isVersion2: true)
                }
                guard let place = version2 else { continue }
                let base = String(place.directory.dropLast(name.utf8.count + 1))
                if let reason = Cgroups.delegate(base, controller) ?? Cgroups.tryOut(place, controller) {
                    reasons[controller] = reason
                } else {
                    places[controller] = place
                }
            } else {
                reasons[controller] = "the kernel offers no \(controller.rawValue) cgroup here"
            }
        }
    }

    /// One pod's group, `processLimit` set where that can be.
    func makePod(_ key: String, processLimit: Int) throws(CoterieError) -> PodCgroup {
        var group = PodCgroup(directories: [:])
        for controller in Controller.allCases {
            guard let place = places[controller] else { continue }
            let directory = place.directory + "/" + key
            // The node's own group may have been given back since.
            if access(place.directory, F_OK) != 0 { _ = Cgroups.tryOut(place, controller) }
            group.directories[controller] = Place(directory: directory, isVersion2: place.isVersion2)
            guard mkdir(directory, 0o755) == 0 || errno == EEXIST else {
                let reason = errnoText()
                _ = group.remove()
                throw CoterieError(.failed, "cannot make the cgroup \(directory): \(reason)")
            }
            if place.isVersion2 { _ = writeControl(directory + "/cgroup.subtree_control", "+" + controller.rawValue) }
            if controller == .pids, let reason = writeControl(directory + "/pids.max", "\(processLimit)") {
                _ = group.remove()
                throw CoterieError(.failed, "cannot limit processes: \(reason)")
            }
        }
        return group
    }

    /// Kills and removes what an earlier run left. True if nothing is left.
    @discardableResult
    func cleanUp() -> Bool {
        var clean = true
        for controller in Controller.allCases {
            guard let place = places[controller] else { continue }
            for key in Cgroups.subdirectories(place.directory) {
                let pod = place.directory + "/" + key
                for container in Cgroups.subdirectories(pod) {
                    Cgroups.killAll(pod + "/" + container)
                    if rmdir(pod + "/" + container) != 0 { clean = false }
                }
                Cgroups.killAll(pod)
                if rmdir(pod) != 0 { clean = false }
            }
        }
        return clean
    }

    /// Gives the node's own groups back; those that still hold a pod stay.
    func removeAll() { for place in Set(places.values) { rmdir(place.directory) } }

    static func subdirectories(_ path: String) -> [String] {
        entries(of: path).filter {
            var info = stat()
            return lstat(path + "/" + $0, &info) == 0 && info.st_mode & S_IFMT == S_IFDIR
        }
    }

    private static func killAll(_ group: String) {
        for word in (textFile(group + "/cgroup.procs") ?? "").split(separator: "\n") {
            if let pid = pid_t(word), pid > 1, pid != getpid() { kill(pid, SIGKILL) }
        }
    }

    private static func tryOut(_ place: Place, _ controller: Controller) -> String? {
        guard mkdir(place.directory, 0o755) == 0 || errno == EEXIST else {
            return "cannot make the cgroup \(place.directory): \(errnoText())"
        }
        if place.isVersion2,
            let reason = writeControl(place.directory + "/cgroup.subtree_control", "+" + controller.rawValue)
        {
            return reason
        }
        return nil
    }

    /// Version 2: a group that passes a controller on may hold no processes itself (but for the root), so the agent moves into
    /// a leaf of its own.
    private static func delegate(_ base: String, _ controller: Controller) -> String? {
        let file = base + "/cgroup.subtree_control"
        guard let first = writeControl(file, "+" + controller.rawValue) else { return nil }
        let leaf = base + "/agent"
        guard mkdir(leaf, 0o755) == 0 || errno == EEXIST else { return first }
        if let reason = writeControl(leaf + "/cgroup.procs", "\(getpid())") { return reason }
        return writeControl(file, "+" + controller.rawValue)
    }

    private struct Mount {
        var root: String
        var point: String
        var isVersion2: Bool
        var options: [Substring]
    }

    /// Lines of /proc/self/mountinfo: `36 35 98:0 ROOT POINT OPTIONS … - TYPE SOURCE SUPEROPTIONS`.
    private static func mounts() -> [Mount] {
        var mounts: [Mount] = []
        for line in (textFile("/proc/self/mountinfo") ?? "").split(separator: "\n") {
            let words = line.split(separator: " ")
            guard words.count > 6, let dash = words.firstIndex(of: "-"), words.count > dash + 3 else { continue }
            guard words[dash + 1] == "cgroup" || words[dash + 1] == "cgroup2" else { continue }
            mounts.append(
                Mount(
                    root: String(words[3]), point: String(words[4]), isVersion2: words[dash + 1] == "cgroup2",
                    options: words[dash + 3].split(separator: ",")))
        }
        return mounts
    }

    /// This process's groups by controller; "" is version 2's.
    private static func ownGroups() -> [String: String] {
        var groups: [String: String] = [:]
        for line in (textFile("/proc/self/cgroup") ?? "").split(separator: "\n") {
            let parts = line.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false)
            guard parts.count == 3 else { continue }
            for controller in parts[1].split(separator: ",", omittingEmptySubsequences: false) {
                groups[String(controller)] = String(parts[2])
            }
        }
        return groups
    }

    /// Where our own group is below a mount, which in a container may show only a part of the hierarchy.
    private static func directory(_ mount: Mount, _ group: String) -> String {
        var group = group
        if mount.root != "/" {
            guard isBelow(group, mount.root) else { return mount.point }
            group = String(group.dropFirst(mount.root.utf8.count))
        }
        let path = group == "/" || group.isEmpty ? mount.point : mount.point + group
        return access(path, F_OK) == 0 ? path : mount.point
    }
}

/// One pod's groups.
struct PodCgroup {
    var directories: [Cgroups.Controller: Cgroups.Place]

    /// A container's groups with its limits; those that there is no controller for are skipped, the caller has judged that.
    func makeContainer(_ name: String, _ resources: Resources) throws(CoterieError) -> ContainerCgroup {
        var group = ContainerCgroup()
        for controller in Cgroups.Controller.allCases {
            guard let place = directories[controller] else { continue }
            let directory = place.directory + "/c-" + name
            guard mkdir(directory, 0o755) == 0 || errno == EEXIST else {
                throw CoterieError(.failed, "cannot make the cgroup \(directory): \(errnoText())")
            }
            let file = directory + "/cgroup.procs"
            if !group.processFiles.contains(file) { group.processFiles.append(file) }
            for (name, value, isNeeded) in PodCgroup.settings(controller, resources, isVersion2: place.isVersion2) {
                if let reason = writeControl(directory + "/" + name, value), isNeeded {
                    throw CoterieError(.failed, "cannot set a limit: \(reason)")
                }
            }
            if controller == .memory {
                group.memory = Cgroups.Place(directory: directory, isVersion2: place.isVersion2)
            }
        }
        return group
    }

    private static func settings(
        _ controller: Cgroups.Controller, _ resources: Resources, isVersion2: Bool
    ) -> [(name: String, value: String, isNeeded: Bool)] {
        switch controller {
        case .memory:
            guard let bytes = resources.memoryBytes else { return [] }
            // Without swap limits the kernel has no memsw file.
            return isVersion2
                ? [("memory.max", "\(bytes)", true), ("memory.swap.max", "0", false)]
                : [("memory.limit_in_bytes", "\(bytes)", true), ("memory.memsw.limit_in_bytes", "\(bytes)", false)]
        case .cpu:
            guard let milli = resources.cpuMilli else { return [] }
            // The kernel's least quota is one millisecond in a period.
            let quota = max(1_000, milli * 100)
            return isVersion2
                ? [("cpu.max", "\(quota) 100000", true)]
                : [("cpu.cfs_period_us", "100000", true), ("cpu.cfs_quota_us", "\(quota)", true)]
        case .pids: return []
        }
    }

    /// False while a process that was killed is not gone yet; to be tried again.
    func remove() -> Bool {
        var clean = true
        for place in directories.values {
            for container in Cgroups.subdirectories(place.directory) { rmdir(place.directory + "/" + container) }
            if rmdir(place.directory) != 0 && errno != ENOENT { clean = false }
        }
        return clean
    }
}

/// One container's groups.
struct ContainerCgroup: Hashable {
    /// Where a process enters by writing "0".
    var processFiles: [String] = []
    var memory: Cgroups.Place?

    /// How often the kernel killed in this group for want of memory.
    var outOfMemoryKills: Int {
        guard let memory else { return 0 }
        let text = textFile(memory.directory + (memory.isVersion2 ? "/memory.events" : "/memory.oom_control")) ?? ""
        for line in text.split(separator: "\n") {
            let words = line.split(separator: " ")
            if words.count == 2, words[0] == "oom_kill" { return Int(words[1]) ?? 0 }
        }
        return 0
    }
}
