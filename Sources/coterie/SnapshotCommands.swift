// The whole state of a cluster in a file: taken from a running cluster, looked at, and put into an empty data directory.
import ArgumentParser
import Client
import Consensus
import EventLoop
import Glibc
import Journal
import Model
import Node
import NodeCore
import Queues
import Transport
import Wire

struct SnapshotGroup: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "snapshot", abstract: "Save the cluster's state to a file, look at one, found a cluster from one.",
        subcommands: [SnapshotSave.self, SnapshotInspect.self, SnapshotRestore.self])
}

/// A path as a directory and a name in it, for ``PosixDisk``.
private func place(_ path: String) throws(CoterieError) -> (disk: PosixDisk, name: String) {
    let absolute = absolutePath(path)
    let slash = absolute.lastIndex(of: "/") ?? absolute.startIndex
    let name = String(absolute[absolute.index(after: slash)...])
    let directory = slash == absolute.startIndex ? "/" : String(absolute[..<slash])
    guard !name.isEmpty, name != ".", name != ".." else {
        throw CoterieError(.badInput, "\(path) is not the name of a file")
    }
    do { return (try PosixDisk(path: directory, create: false), name) } catch {
        throw CoterieError(.badInput, "cannot open the directory of \(path): \(error)")
    }
}

/// Reads and checks a saved file. What is wrong with it is bad input: exit code 2.
private func readStateFile(_ path: String) throws(CoterieError) -> (
    header: StateFileHeader, image: SavedState, bytes: Int
) {
    let (disk, name) = try place(path)
    let whole: (header: StateFileHeader, state: [UInt8])
    do throws(StateFileError) { whole = try StateFile.read(name, on: disk) } catch {
        if case .disk(let cause) = error, cause.kind == .notFound {
            throw CoterieError(.notFound, "there is no file \(path)")
        }
        throw CoterieError(.badInput, "\(path): \(error)", hint: "use another snapshot")
    }
    let image: SavedState
    do throws(WireError) { image = try SavedState(decoding: whole.state) } catch {
        throw CoterieError(
            .badInput, "\(path): its state can not be read: \(error)", hint: "was it saved by a newer version?")
    }
    return (whole.header, image, whole.state.count)
}

/// Header and counts, for `save`, `inspect` and `restore`.
private func document(
    _ path: String, _ header: StateFileHeader, _ summary: SavedState.Summary, bytes: Int
) -> JSONValue {
    let lineage = Lineage(rawValue: header.lineage)
    func list(_ ids: [NodeID]) -> JSONValue { .array(ids.map { .string($0.description) }) }
    return [
        "file": .string(absolutePath(path)),
        "cluster": [
            "name": .string(header.cluster), "lineage": .string(hexadecimal(header.lineage)),
            "epoch": JSONValue(lineage.epoch),
        ],
        "index": JSONValue(header.metadata.index), "term": JSONValue(header.metadata.term),
        "voters": list(header.metadata.configuration.voters), "learners": list(header.metadata.configuration.learners),
        "savedAtMilliseconds": JSONValue(header.savedAt), "node": .string(header.node),
        "version": .string(header.version), "stateBytes": JSONValue(bytes),
        "contents": SnapshotInspect.contents(summary),
    ]
}

struct SnapshotSave: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "save", abstract: "Save the state of a running cluster to a file.",
        discussion: """
            The node that is asked gives the state as it has applied it, after it has made sure with the leader that this includes \
            everything that was acknowledged before the command began. The file gets its name only when it is whole and synced; an \
            existing one is replaced.

            coterie snapshot save cluster.snap
            """)
    @Argument(help: "The file to write.") var file: String

    func run() throws {
        let file = file
        let (disk, name) = try place(file)
        let target = UnsafeTransfer((disk, name))
        try Invocation.withClient { client in
            let (header, state) = try await SnapshotSave.fetch(client)
            let image = try SavedState(decoding: state)
            do throws(DiskError) {
                try StateFile.write(header, state: state, to: target.value.1, on: target.value.0)
            } catch {
                throw CoterieError(.failed, "cannot write \(file): \(error)")
            }
            let saved = document(file, header, image.summary, bytes: state.count)
            Invocation.show(saved) { _ in
                "saved \(image.summary.jobs) jobs in \(image.summary.tubes) tubes, as of entry \(header.metadata.index), "
                    + "to \(file)\n"
            }
        }
    }

    /// Begins again when the node that held the state has gone.
    private static func fetch(_ client: ClusterClient) async throws -> (StateFileHeader, [UInt8]) {
        var attempts = 0
        while true {
            attempts += 1
            do { return try await fetchOnce(client) } catch let error as CoterieError
                where error.code == .notFound && attempts < 5
            { continue }
        }
    }

    private static func fetchOnce(_ client: ClusterClient) async throws -> (StateFileHeader, [UInt8]) {
        let start = try await client.query("snapshot")
        func number(_ key: String) -> UInt64 { start[key]?.intValue.map { UInt64(clamping: $0) } ?? 0 }
        func ids(_ key: String) -> [NodeID] {
            start.list(key).compactMap { $0.stringValue.flatMap { NodeID(text: $0) } }
        }
        guard let lineage = UInt64(start.string("lineage"), radix: 16), number("id") > 0 else {
            throw CoterieError(
                .failed, "the node does not know how to give its state", hint: "is it of an older version?")
        }
        let bytes = Int(clamping: number("bytes"))
        var state: [UInt8] = []
        while state.count < bytes {
            let piece = try await client.query("snapshot/\(number("id"))/\(state.count)")
            guard let data = Base64.decode(piece.string("data")), !data.isEmpty else {
                throw CoterieError(.failed, "the node gave an unreadable piece of its state")
            }
            state += data
        }
        guard state.count == bytes, UInt64(CRC32C.checksum(state)) == number("checksum") else {
            throw CoterieError(
                .failed, "what the node gave is not what it has: its checksum differs", hint: "try again")
        }
        var clock = timespec()
        clock_gettime(CLOCK_REALTIME, &clock)
        let configuration = RaftConfiguration(
            voters: ids("voters"), outgoing: ids("outgoing"), learners: ids("learners"))
        let header = StateFileHeader(
            cluster: start.string("cluster"), lineage: lineage,
            metadata: SnapshotMetadata(index: number("index"), term: number("term"), configuration: configuration),
            savedAt: UInt64(clamping: clock.tv_sec) * 1_000 + UInt64(clamping: clock.tv_nsec / 1_000_000),
            node: start.string("node"), version: start.string("version"))
        return (header, state)
    }
}

struct SnapshotInspect: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "inspect", abstract: "Check a saved file, and show what is in it.",
        discussion:
            "Offline. Every byte is checked; a damaged file is an error, with exit code 2.\n\ncoterie snapshot inspect cluster.snap"
    )
    @Argument(help: "The file.") var file: String

    func run() throws {
        let (header, image, bytes) = try readStateFile(file)
        Invocation.show(document(file, header, image.summary, bytes: bytes), human: SnapshotInspect.text)
    }

    static func contents(_ summary: SavedState.Summary) -> JSONValue {
        [
            "tubes": JSONValue(summary.tubes),
            "jobs": [
                "ready": JSONValue(summary.ready), "reserved": JSONValue(summary.reserved),
                "delayed": JSONValue(summary.delayed), "buried": JSONValue(summary.buried),
            ],
            "leases": JSONValue(summary.leases), "pods": JSONValue(summary.pods), "gathers": JSONValue(summary.gathers),
            "sessions": JSONValue(summary.sessions), "logMilliseconds": JSONValue(summary.milliseconds),
        ]
    }

    static func text(_ document: JSONValue) -> String {
        let cluster = document["cluster"] ?? .null
        let contents = document["contents"] ?? .null
        let jobs = contents["jobs"] ?? .null
        let seconds = document.int("savedAtMilliseconds") / 1_000
        var table = Table("file", document.cell("file"))
        table.add(
            "cluster", "\(cluster.cell("name"))  lineage \(cluster.cell("lineage"))  epoch \(cluster.cell("epoch"))")
        table.add("as of", "entry \(document.cell("index")) of term \(document.cell("term"))")
        table.add(
            "saved", "\(utcText(seconds: seconds)) through \(document.cell("node")) (\(document.cell("version")))")
        table.add("voters", document.cell("voters"))
        if !document.list("learners").isEmpty { table.add("learners", document.cell("learners")) }
        table.add("state", "\(document.cell("stateBytes")) bytes")
        table.add("tubes", contents.cell("tubes"))
        table.add(
            "jobs", ["ready", "reserved", "delayed", "buried"].map { "\(jobs.int($0)) \($0)" }.joined(separator: "  "))
        for key in ["leases", "pods", "gathers", "sessions"] { table.add(key, contents.cell(key)) }
        return table.text()
    }

    private static func utcText(seconds: Int64) -> String {
        var time = time_t(seconds)
        var parts = tm()
        gmtime_r(&time, &parts)
        func two(_ value: Int32) -> String { value < 10 ? "0\(value)" : "\(value)" }
        return "\(1900 + parts.tm_year)-\(two(parts.tm_mon + 1))-\(two(parts.tm_mday))T\(two(parts.tm_hour)):"
            + "\(two(parts.tm_min)):\(two(parts.tm_sec))Z"
    }
}

struct SnapshotRestore: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "restore", abstract: "Make the first node of a new cluster from a saved file.",
        discussion: """
            Offline. The data directory must be empty, or --force sets what it holds aside. The node that is started on it is the \
            only voter of a new cluster with the state of the file; further nodes join it with empty data directories. Nodes of the \
            old cluster with the same name and key are refused, and stop when they hear of the new one. All leases are free, and \
            fencing tokens go on above any that the old cluster can have given.

            coterie snapshot restore cluster.snap --data /var/lib/coterie
            coterie agent --data /var/lib/coterie --key cluster.key
            """)
    @Argument(help: "The file.") var file: String
    @Option(help: "The new node's data directory.") var data: String?
    @Option(help: "The new cluster's name (default: as saved).") var cluster: String?
    @Flag(help: "Set aside what the data directory holds.") var force = false

    func run() throws {
        let (header, image, bytes) = try readStateFile(file)
        let path = data ?? DefaultPaths.dataDirectory
        let name = cluster ?? header.cluster
        try AgentCommand.checkName(name, what: "--cluster")
        var system = SystemRandomNumberGenerator()
        guard let lineage = Lineage(rawValue: header.lineage).successor(using: &system) else {
            throw CoterieError(.failed, "this cluster was recovered too often")
        }
        let index = header.metadata.index + SavedState.indexGap
        guard index < SavedState.maximumIndex else { throw CoterieError(.failed, "the index \(index) is too high") }
        let held = ["journal", "snapshots"].filter { NewHistory.holdsFiles(path + "/" + $0) }
        guard held.isEmpty || force else {
            throw CoterieError(
                .conflict, "\(path) holds a node's data already",
                hint: "choose an empty directory, or set it aside with --force")
        }
        let directory = try DataDirectory(path: path)
        let contents = NewHistory.Contents(
            cluster: stableHash(name), lineage: lineage,
            position: LogPosition(index: index, term: max(1, header.metadata.term)),
            state: image.beginning(at: index))
        let setAside = try NewHistory.begin(contents, in: directory)
        let restored: JSONValue = [
            "restored": .string(absolutePath(file)), "data": .string(absolutePath(path)),
            "node": .string(directory.id.description),
            "cluster": [
                "name": .string(name), "lineage": .string(hexadecimal(lineage.rawValue)),
                "epoch": JSONValue(lineage.epoch),
            ],
            "savedIndex": JSONValue(header.metadata.index), "index": JSONValue(index), "stateBytes": JSONValue(bytes),
            "contents": SnapshotInspect.contents(image.summary),
            "setAside": .array(setAside.map { .string($0) }),
        ]
        Invocation.show(restored) { _ in
            "restored \(image.summary.jobs) jobs in \(image.summary.tubes) tubes, as of entry \(header.metadata.index), to "
                + "\(path); epoch \(lineage.epoch) of \(name)\n"
                + setAside.map { "what was there before: \($0)\n" }.joined()
                + "start it with: coterie agent --data \(path) --cluster \(name)\n"
        }
    }
}
