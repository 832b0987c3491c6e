// After the loss of a majority of the voters: one surviving node's data become a new cluster.
import ArgumentParser
import Consensus
import Glibc
import Journal
import Model
import Node
import NodeCore
import Transport
import Wire

struct RecoverCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "recover", abstract: "Make a new cluster of one surviving node's data.",
        discussion: """
            For the case that a majority of the voters is lost for good. Offline: the agent must not run. The node becomes the only \
            voter of a new cluster with everything that its log holds; what only the lost nodes had is gone. Nodes of the old cluster \
            are refused from then on, and stop when they hear of the new one: give them empty data directories, and they join as new \
            ones. Choose the survivor with the highest last index (coterie journal verify). All leases are free, and fencing tokens go \
            on above any that the old cluster can have given. The old journal is kept beside the new one.

            coterie recover --force-new-cluster --data /var/lib/coterie
            """)
    @Flag(help: "Give up what only the lost nodes knew.") var forceNewCluster = false
    @Option(help: "The node's data directory.") var data: String?
    @Option(help: "The cluster's name; only needed if the journal does not tell it.") var cluster: String?

    func run() throws {
        guard forceNewCluster else {
            throw CoterieError(
                .badInput, "recover gives up what only the lost nodes knew, and needs --force-new-cluster",
                hint: "if a majority of the voters can come back, start them instead")
        }
        let path = data ?? DefaultPaths.dataDirectory
        guard NewHistory.holdsFiles(path + "/journal") || NewHistory.isUnfinished(in: path) else {
            throw CoterieError(
                .notFound, "there is no journal in \(path)", hint: "name the data directory with --data")
        }
        let directory = try DataDirectory(path: path)
        if NewHistory.isUnfinished(in: path) {
            let setAside = try NewHistory.finish(in: directory)
            let finished: JSONValue = [
                "finished": true, "data": .string(absolutePath(path)), "setAside": .array(setAside.map { .string($0) }),
            ]
            return Invocation.show(finished) { _ in
                "finished what was begun earlier\n" + setAside.map { "what was there before: \($0)\n" }.joined()
            }
        }
        let found = try Survivor(directory, cluster: cluster)
        var system = SystemRandomNumberGenerator()
        guard let lineage = (try LineageFile.read(path) ?? .original).successor(using: &system) else {
            throw CoterieError(.failed, "this cluster was recovered too often")
        }
        let index = found.last.index + SavedState.indexGap
        guard index < SavedState.maximumIndex else { throw CoterieError(.failed, "the index \(index) is too high") }
        // A term that this node has not voted in.
        let position = LogPosition(index: index, term: max(found.hardState.term, found.last.term) + 1)
        let contents = NewHistory.Contents(
            cluster: found.cluster, lineage: lineage, position: position, state: found.image.beginning(at: index))
        let setAside = try NewHistory.begin(contents, in: directory)
        let summary = found.image.summary
        let document: JSONValue = [
            "recovered": true, "data": .string(absolutePath(path)), "node": .string(directory.id.description),
            "lineage": .string(hexadecimal(lineage.rawValue)), "epoch": JSONValue(lineage.epoch),
            "lastIndex": JSONValue(found.last.index), "lastTerm": JSONValue(found.last.term),
            "knownCommitted": JSONValue(found.hardState.commit), "index": JSONValue(index),
            "damage": .array(found.damage.map { .string($0) }), "contents": SnapshotInspect.contents(summary),
            "setAside": .array(setAside.map { .string($0) }),
        ]
        Invocation.show(document) { _ in RecoverCommand.text(found, lineage, path, setAside) }
    }

    private static func text(_ found: Survivor, _ lineage: Lineage, _ path: String, _ setAside: [String]) -> String {
        let (summary, last, known) = (found.image.summary, found.last, found.hardState.commit)
        var text = "kept everything through entry \(last.index) of term \(last.term): \(summary.jobs) jobs in "
        text += "\(summary.tubes) tubes, \(summary.pods) pods, \(summary.sessions) sessions; all leases are free\n"
        if known < last.index {
            let which = known + 1 == last.index ? "entry" : "entries \(known + 1) to"
            text += "\(which) \(last.index) may never have been acknowledged, and is kept all the same\n"
        }
        for damage in found.damage { text += "lost by damage: \(damage)\n" }
        text += "lost: whatever the other nodes had acknowledged without this one, after entry \(last.index)\n"
        text +=
            "this node is the only voter of a new cluster, epoch \(lineage.epoch); the old nodes are refused and need "
        text += "empty data directories\n"
        for place in setAside { text += "what was there before: \(place)\n" }
        return text + "start it with: coterie agent --data \(path)\n"
    }
}

/// What one node's disk still tells, damaged or not.
private struct Survivor {
    var cluster: UInt64
    var image: SavedState
    var last: LogPosition
    var hardState: HardState
    /// In words.
    var damage: [String] = []

    init(_ directory: DataDirectory, cluster name: String?) throws {
        let disk = try PosixDisk(path: directory.journalPath, create: false)
        let named = name.map { JournalIdentity(cluster: stableHash($0), node: directory.id) }
        guard let identity = try named ?? Journal.identity(disk: disk) else {
            throw CoterieError(
                .failed, "the journal in \(directory.path) does not tell to which cluster it belongs",
                hint: "name it with --cluster")
        }
        cluster = identity.cluster
        let store = SnapshotStore(
            disk: try PosixDisk(path: directory.snapshotsPath, create: true), cluster: identity.cluster)
        let (newest, damaged) = try store.newest()
        damage = damaged.map { "snapshot \($0) does not check out and is not used" }
        let recovered: RecoveredJournal
        do throws(JournalError) {
            recovered = try Journal.read(
                disk: disk, identity: JournalIdentity(cluster: identity.cluster, node: directory.id),
                snapshot: newest?.metadata ?? .none)
        } catch {
            throw CoterieError(.failed, "the journal in \(directory.path) can not be read: \(error)")
        }
        if case .damaged(let places) = recovered.outcome { damage += places.map(\.description) }
        var image = SavedState()
        if let newest {
            var bytes: [UInt8] = []
            guard try store.readData(newest, { bytes += $0 }) else {
                throw CoterieError(.failed, "the snapshot \(newest.name) changed while it was read")
            }
            image = try SavedState(decoding: bytes)
        }
        let log = recovered.log
        for entry in log.entries where entry.index > log.snapshot.index { image.apply(entry) }
        guard log.last.index > 0 else {
            throw CoterieError(
                .notFound, "the log in \(directory.path) holds nothing: this node had not joined yet",
                hint: "choose another survivor")
        }
        self.image = image
        last = log.last
        hardState = log.hardState
    }
}
