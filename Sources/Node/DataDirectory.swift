// The node's directory: locked while a process uses it, with the identity and the start counter that must never go back.
import CPlatform
import Glibc
import Model
import Security
import Transport
import Wire

/// A locked data directory. The lock is advisory (`flock`), held as long as this value's descriptor is open, and gone with
/// the process however it ends.
public final class DataDirectory {
    public let path: String
    /// 128 bits made at first start.
    public let id: NodeID
    /// How often a process has started here: 1 at first start. It is synced before it is used, so that no two runs share one.
    public let startCounter: UInt64
    /// True when this run made the identity.
    public let isNew: Bool
    private let lock: Int32

    public var journalPath: String { path + "/journal" }
    public var snapshotsPath: String { path + "/snapshots" }
    public var podsPath: String { path + "/pods" }
    public var keyPath: String { path + "/keys/cluster.key" }
    public var hasKey: Bool { access(keyPath, F_OK) == 0 }
    public var socketPath: String { path + "/agent.sock" }
    public var imagesPath: String { path + "/images" }

    /// Makes the directory if there is none, locks it and counts this start.
    public init(path: String) throws(CoterieError) {
        self.path = path
        try makeDirectory(path, mode: 0o700)
        try DataDirectory.checkOwner(path)
        let lockPath = path + "/lock"
        let descriptor = open(lockPath, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw CoterieError(.failed, "cannot open \(lockPath): \(errnoText())") }
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
            let bytes: [UInt8] = (try? readFile(lockPath, limit: 64)) ?? []
            let holder = String(decoding: bytes, as: UTF8.self)
            close(descriptor)
            throw CoterieError(
                .failed, "the data directory \(path) is in use by process \(holder.isEmpty ? "?" : holder)",
                hint: "stop that agent, or choose another --data")
        }
        lock = descriptor
        ftruncate(descriptor, 0)
        let pid = Array("\(getpid())".utf8)
        _ = pid.withUnsafeBytes { pwrite(descriptor, $0.baseAddress, $0.count, 0) }

        for directory in ["journal", "pods", "keys", "images"] {
            try makeDirectory(path + "/" + directory, mode: 0o700)
        }

        // The pods' files must be reachable by the pods' own uids; the directory above stays closed by its mode, and pods get
        // their parts by bind mounts.
        let identityPath = path + "/identity"
        var counter: UInt64 = 0
        if access(identityPath, F_OK) == 0 {
            let bytes = try readFile(identityPath, limit: 4_096)
            guard let (id, starts) = DataDirectory.decodeIdentity(bytes) else {
                throw CoterieError(
                    .failed, "\(identityPath) is damaged",
                    hint: "move the data directory away: the node then joins as a new one")
            }
            self.id = id
            counter = starts
            isNew = false
        } else {
            var system = SystemRandomNumberGenerator()
            id = NodeID(using: &system)
            isNew = true
        }
        counter += 1
        startCounter = counter
        try writeFileDurably(identityPath, DataDirectory.encodeIdentity(id, counter), mode: 0o600)
    }

    deinit { close(lock) }

    /// Whoever can rename what is in the directory could put a key of his own into it.
    private static func checkOwner(_ path: String) throws(CoterieError) {
        var info = stat()
        guard stat(path, &info) == 0 else { throw CoterieError(.failed, "cannot look at \(path): \(errnoText())") }
        guard info.st_uid == geteuid() || info.st_uid == 0 || geteuid() == 0 else {
            throw CoterieError(
                .notAllowed, "the data directory \(path) belongs to another user", hint: "choose another --data")
        }
        guard info.st_mode & 0o022 == 0 || info.st_mode & S_ISVTX != 0 else {
            throw CoterieError(
                .notAllowed, "others can write to the data directory \(path)", hint: "chmod go-w \(path)")
        }
    }

    /// magic "CTID", version 1, id, starts, CRC32C of all before it.
    static func encodeIdentity(_ id: NodeID, _ starts: UInt64) -> [UInt8] {
        var writer = ByteWriter(capacity: 33)
        writer.raw("CTID".utf8)
        writer.u8(1)
        writer.nodeID(id)
        writer.u64(starts)
        writer.u32(CRC32C.checksum(writer.bytes))
        return writer.bytes
    }

    static func decodeIdentity(_ bytes: [UInt8]) -> (NodeID, UInt64)? {
        guard bytes.count == 33,
            CRC32C.checksum(bytes[..<29]) == UInt32(bytes[29]) | UInt32(bytes[30]) << 8 | UInt32(bytes[31]) << 16
                | UInt32(bytes[32]) << 24
        else { return nil }
        var reader = ByteReader(bytes)
        guard (try? reader.raw(4)).map({ Array($0) }) == Array("CTID".utf8), (try? reader.u8()) == 1,
            let id = try? reader.nodeID(), let starts = try? reader.u64()
        else { return nil }
        return (id, starts)
    }

    // MARK: - Key

    /// The cluster's key: kept in the data directory. `importing` names a file that is taken in at first start; a different
    /// key on a later start is an error, not a silent change. `mayCreate` lets a first node make one.
    public func clusterKey(importing file: String?, mayCreate: Bool) throws(CoterieError) -> ClusterKey {
        let kept: ClusterKey? = access(keyPath, F_OK) == 0 ? try KeyFile.read(keyPath) : nil
        if let file {
            let given = try KeyFile.read(file)
            if let kept {
                guard kept.bytes == given.bytes else {
                    throw CoterieError(
                        .notAllowed, "the key in \(file) is not the one in \(keyPath)",
                        hint: "drop --key, or give the node a new data directory")
                }
                return kept
            }
            try KeyFile.write(given, to: keyPath)
            return given
        }
        if let kept { return kept }
        guard mayCreate else {
            throw CoterieError(
                .notAllowed, "a joining node needs the cluster's key and \(keyPath) does not exist",
                hint: "copy keys/cluster.key from a member and pass it with --key FILE")
        }
        let made: ClusterKey
        do { made = try ClusterKey.random() } catch { throw CoterieError(.failed, "cannot make a key: \(error)") }
        try KeyFile.write(made, to: keyPath)
        return made
    }
}
