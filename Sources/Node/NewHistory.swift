// Begins a new history of a cluster in a data directory: one voter, a state, an empty log behind it. What was there is set
// aside, not removed. A crash at any moment leaves the old data, the new data, or something that says of itself that it has to
// be finished:
//
//     1. `refounding/` gets a journal and a snapshot of the new history, and its lineage; all synced
//     2. `refounding/ready`: from here on the new history holds
//     3. `journal`, `snapshots` ──▶ `*.before-EPOCH`; `refounding/*` ──▶ their places; `promise` goes; `refounding/` goes
//
// An agent does not start between 2 and the end of 3.
import Consensus
import Glibc
import Journal
import Model
import NodeCore
import Transport

public enum NewHistory {
    private static func staging(_ directory: String) -> String { directory + "/refounding" }
    private static func ready(_ directory: String) -> String { staging(directory) + "/ready" }
    private static let parts = ["journal", "snapshots"]

    public static func isUnfinished(in directory: String) -> Bool { access(ready(directory), F_OK) == 0 }

    /// True for a directory with files in it.
    public static func holdsFiles(_ path: String) -> Bool {
        guard let names = try? PosixDisk(path: path, create: false).list() else { return false }
        return !names.isEmpty
    }

    public static func refuseUnfinished(in directory: String) throws(CoterieError) {
        guard isUnfinished(in: directory) else { return }
        throw CoterieError(
            .failed, "a recovery of \(directory) was cut short",
            hint: "finish it with: coterie recover --force-new-cluster --data \(directory)")
    }

    /// What the directory shall hold.
    public struct Contents: Sendable {
        /// The name's hash, which all files of a node carry.
        public var cluster: UInt64
        public var lineage: Lineage
        /// Of the snapshot with which it begins.
        public var position: LogPosition
        /// ``SavedState/beginning(at:)``.
        public var state: [UInt8]

        public init(cluster: UInt64, lineage: Lineage, position: LogPosition, state: [UInt8]) {
            self.cluster = cluster
            self.lineage = lineage
            self.position = position
            self.state = state
        }
    }

    /// Replaces journal and snapshots. Returns what was set aside. The directory is locked by the caller.
    public static func begin(_ contents: Contents, in directory: DataDirectory) throws(CoterieError) -> [String] {
        try prepare(contents, in: directory)
        return try finish(in: directory)
    }

    /// The first two steps.
    static func prepare(_ contents: Contents, in directory: DataDirectory) throws(CoterieError) {
        let staging = staging(directory.path)
        do {
            try removeStaging(directory.path)
            try makeDirectory(staging, mode: 0o700)
            let configuration = RaftConfiguration(voters: [directory.id])
            let metadata = SnapshotMetadata(
                index: contents.position.index, term: contents.position.term, configuration: configuration)
            let snapshots = SnapshotStore(
                disk: try PosixDisk(path: staging + "/snapshots", create: true), cluster: contents.cluster)
            var writer = try snapshots.begin(metadata)
            try writer.append(contents.state)
            _ = try writer.finish()

            let identity = JournalIdentity(cluster: contents.cluster, node: directory.id)
            var journal = try Journal.open(
                disk: try PosixDisk(path: staging + "/journal", create: true),
                options: JournalOptions(identity: identity)
            ).journal
            defer { journal.close() }
            let hardState = HardState(term: contents.position.term, vote: nil, commit: contents.position.index)
            try journal.write([PersistRequest(ticket: 1, hardState: hardState, reset: contents.position)])
            try writeFileDurably(staging + "/lineage", LineageFile.encode(contents.lineage), mode: 0o600)
            // The directories of the parts themselves.
            try PosixDisk(path: staging, create: false).syncDirectory()
            try PosixDisk(path: directory.path, create: false).syncDirectory()
            try writeFileDurably(ready(directory.path), [], mode: 0o600)
        } catch let error as CoterieError {
            throw error
        } catch {
            throw CoterieError(.failed, "cannot write the new history into \(directory.path): \(error)")
        }
    }

    /// The third step, which may be repeated.
    public static func finish(in directory: DataDirectory) throws(CoterieError) -> [String] {
        let (root, staging) = (directory.path, staging(directory.path))
        let lineage = try readFile(staging + "/lineage", limit: 4_096)
        guard let epoch = LineageFile.decode(lineage)?.epoch else {
            throw CoterieError(.failed, "\(staging)/lineage is damaged", hint: "remove \(staging) and begin again")
        }
        var setAside: [String] = []
        for part in parts {
            let (new, place, aside) = (staging + "/" + part, root + "/" + part, root + "/" + part + ".before-\(epoch)")
            if access(new, F_OK) == 0 {
                if holdsFiles(place), access(aside, F_OK) != 0 { try move(place, to: aside) }
                // An empty directory in its place is replaced.
                try move(new, to: place)
            }
            if access(aside, F_OK) == 0 { setAside.append(aside) }
        }
        try writeFileDurably(LineageFile.path(in: root), lineage, mode: 0o600)
        try writeFileDurably(root + "/journal-made", [], mode: 0o600)
        try removeFileDurably(root + "/promise")
        try removeFileDurably(ready(root))
        try removeStaging(root)
        return setAside
    }

    private static func move(_ old: String, to new: String) throws(CoterieError) {
        guard rename(old, new) == 0 else {
            throw CoterieError(.failed, "cannot rename \(old) to \(new): \(errnoText())")
        }
    }

    /// What an attempt left that did not come to its second step.
    private static func removeStaging(_ directory: String) throws(CoterieError) {
        let staging = staging(directory)
        for part in parts {
            guard let names = try? PosixDisk(path: staging + "/" + part, create: false).list() else { continue }
            for name in names { unlink(staging + "/" + part + "/" + name) }
            rmdir(staging + "/" + part)
        }
        unlink(staging + "/lineage")
        unlink(staging + "/lineage.new")
        unlink(staging + "/ready.new")
        guard rmdir(staging) == 0 || errno == ENOENT else {
            throw CoterieError(.failed, "cannot remove \(staging): \(errnoText())")
        }
    }
}
