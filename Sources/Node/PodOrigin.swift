// Pods of an agent that is not root run under the agent's own uid: file modes and the uid of a socket's peer do not tell them
// from their user. So what holds keys is kept out of their sight, and `agent.sock` asks for their user namespace.
import EventLoop
import Glibc
import Model

enum PodOrigin {
    /// What no pod of this node may see: its data, that of other nodes beside it, and the file that its key came from. A
    /// directory that `up` made (`cluster.json`) is hidden as a whole, for its other nodes may start later.
    static func secrets(_ options: AgentOptions, _ directory: String) -> [String] {
        var paths = [directory]
        if let file = options.keyFile { paths.append(file) }
        guard
            let own = realpath(directory, nil).map({ pointer in
                defer { free(pointer) }
                return String(cString: pointer)
            }), let slash = own.lastIndex(of: "/"), slash != own.startIndex
        else { return paths }
        let parent = String(own[..<slash])
        if access(parent + "/cluster.json", F_OK) == 0 && access(parent + "/cluster.key", F_OK) == 0 {
            return paths + [parent]
        }
        guard let entries = opendir(parent) else { return paths }
        defer { closedir(entries) }
        // Bounded: the data directory may lie among anything.
        for _ in 0..<4_096 {
            guard let entry = readdir(entries) else { break }
            let name = withUnsafeBytes(of: &entry.pointee.d_name) {
                String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            let path = parent + "/" + name
            if name != ".", name != "..", path != own, access(path + "/keys/cluster.key", F_OK) == 0 {
                paths.append(path)
            }
        }
        return paths
    }

    /// Whether the process at the other end of a Unix socket is, or may be, in a pod. Only of use where the uid does not tell:
    /// for root it does.
    static func isPod(_ stream: ByteStream) -> Bool {
        guard geteuid() != 0, let own = namespace(of: "self") else { return false }
        // pid, uid and gid of whoever connected.
        var credentials: (Int32, UInt32, UInt32) = (0, 0, 0)
        var size = socklen_t(MemoryLayout.size(ofValue: credentials))
        guard let descriptor = stream.descriptor,
            getsockopt(descriptor, SOL_SOCKET, SO_PEERCRED, &credentials, &size) == 0
        else {
            return true
        }
        // A process of an outer name space has no number here; those of pods have.
        guard credentials.0 != 0 else { return false }
        // One that has gone, or does not show itself, may have been in a pod and have left the socket to another.
        return namespace(of: "\(credentials.0)") != own
    }

    private static func namespace(of process: String) -> String? {
        var buffer = [CChar](repeating: 0, count: 64)
        let count = readlink("/proc/\(process)/ns/user", &buffer, buffer.count)
        return count > 0 ? String(decoding: buffer[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self) : nil
    }
}
