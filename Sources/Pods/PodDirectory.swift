// A pod's directory on the host:
//
//   KEY/stage           where process 1 mounts its own tmpfs
//   KEY/etc             hosts, hostname
//   KEY/volumes/NAME    emptyDir, files of ConfigMaps and Secrets
//   KEY/containers/NAME/tmp
//   KEY/run             what the containers see at /run/coterie: bin/coterie, logs/, pod.sock
//
// Only the agent's user reaches it; containers get their parts by mounts. Plain processes (no mounts) must reach `run` by its
// path, so their `run` may lie elsewhere and holds `containers` too.
import Glibc
import Model

enum PodDirectory {
    /// Makes everything that a plan names. On failure the caller removes what there is.
    static func make(_ plan: PodPlan, supplied: String?) throws(CoterieError) {
        let directory = plan.directory
        let isPlain = plan.mode == .none
        let user = plan.owner?.user
        let group = plan.owner?.group
        try makeDirectory(directory, mode: isPlain ? 0o711 : 0o700)
        for name in ["stage", "etc", "volumes", "containers"] { try makeDirectory("\(directory)/\(name)", mode: 0o755) }
        let run = plan.runDirectory
        if !isBelow(run, directory) {
            try makeDirectory(String(run[..<(run.lastIndex(of: "/") ?? run.startIndex)]), mode: 0o711)
        }
        try makeDirectory(run, mode: 0o755)
        try makeDirectory(run + "/logs", mode: 0o750, group: group)
        try makeDirectory(run + "/bin", mode: 0o755)
        if let supplied {
            if isPlain {
                guard symlink(supplied, run + "/bin/coterie") == 0 else {
                    throw CoterieError(.failed, "cannot link \(supplied): \(errnoText())")
                }
            } else {
                // A place for process 1 to bind the program to.
                try makeFile(run + "/bin/coterie", [], mode: 0o755)
            }
        }
        let hosts = "127.0.0.1 localhost \(plan.hostname)\n::1 localhost ip6-localhost ip6-loopback\n"
        try makeFile(directory + "/etc/hosts", hosts.utf8, mode: 0o644)
        try makeFile(directory + "/etc/hostname", (plan.hostname + "\n").utf8, mode: 0o644)
        if isPlain { try makeDirectory(run + "/containers", mode: 0o755) }
        for container in plan.containers {
            try makeDirectory(container.directory, mode: 0o755)
            try makeDirectory(
                container.directory + "/tmp", mode: 0o700,
                user: user.map { container.hostSide ? plan.hostSideUser : $0 }, group: group)
        }
        for volume in plan.volumes {
            switch volume {
            case .directory(let path, _): try makeDirectory(path, mode: 0o2777, user: user, group: group)
            case .memory(let path, _): try makeDirectory(path, mode: 0o755)
            case .files(let path, let files):
                try makeDirectory(path, mode: 0o750, group: group)
                for (name, bytes) in files {
                    var parent = path
                    for part in name.split(separator: "/").dropLast() {
                        parent += "/" + part
                        if access(parent, F_OK) != 0 { try makeDirectory(parent, mode: 0o750, group: group) }
                    }
                    try makeFile(path + "/" + name, bytes, mode: 0o440, group: group)
                }
            }
        }
    }

    /// Removes all but the logs. Blocking.
    static func removeAllButLogs(_ directory: String, _ run: String) {
        removeTree(run, keep: ["logs"])
        if isBelow(run, directory) { removeTree(directory, keep: ["run"]) } else { removeTree(directory) }
    }

    /// Blocking.
    static func remove(_ directory: String, _ run: String) {
        removeTree(directory)
        if !isBelow(run, directory) { removeTree(String(run[..<(run.lastIndex(of: "/") ?? run.startIndex)])) }
    }

    /// Whether another user of this host could walk to the path.
    static func isReachableByAll(_ path: String) -> Bool {
        var path = path
        while true {
            var info = stat()
            guard stat(path, &info) == 0, info.st_mode & 0o001 != 0 else { return false }
            guard let slash = path.lastIndex(of: "/"), slash != path.startIndex else { return true }
            path = String(path[..<slash])
        }
    }
}
