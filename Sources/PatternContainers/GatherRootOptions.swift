// The flags of `coterie root` and `coterie leaf`, as `expand` prints them.
import Glibc
import Model
import ScatterGather

public struct GatherRootOptions: Sendable {
    public var gather: String
    /// `/bin/sh -c` text; nil concatenates.
    public var merge: String?
    public var mergeFiles = false
    public var sharder: ScatterGatherSpec.Sharder
    public var parallel = ScatterGatherSpec.defaultParallel
    public var plan = GatherOptions()
    public var unordered = false
    /// A file in the pod that holds the input.
    public var input: String?
    /// A client feeds the job and takes the result: the job waits for it, and does not go on without it.
    public var attached = false
    public var scratch = environmentValue("TMPDIR") ?? "/tmp"
    public var node = environmentValue("COTERIE_NODE") ?? ""

    // Not in the contract.

    /// Input of shards that are not done; more is not read while there are shards to give.
    public var inputLimit: UInt64 = 64 << 20
    /// Results in memory; more goes to disk.
    public var resultMemory = 32 << 20
    /// Result that the client has not taken; more shards wait.
    public var backlogLimit: UInt64 = 256 << 20
    /// How long a job goes on without its client.
    public var clientPatience = TimeSpan.seconds(60)
    /// How long a result waits for somebody who fetches it.
    public var retention = TimeSpan.seconds(600)
    /// A leaf that says nothing for so long is lost.
    public var leafSilence = TimeSpan.seconds(6)

    public init(gather: String, sharder: ScatterGatherSpec.Sharder) {
        self.gather = gather
        self.sharder = sharder
    }

    public init(arguments: [String]) throws(CoterieError) {
        var flags = try FlagReader(
            "root", arguments, switches: ["--args", "--merge-files", "--unordered", "--attached"])
        let gather = try flags.value("--gather")
        _ = try flags.value("--leaf")
        let merge = try flags.value("--merge")
        let mergeFiles = try flags.isSet("--merge-files")
        var sharders: [ScatterGatherSpec.Sharder] = []
        let limit = ScatterGatherSpec.shardLimit
        if let count = try flags.number("--lines", in: 1...Int.max) { sharders.append(.lines(count)) }
        if let count = try flags.number("--shards", in: 1...limit) { sharders.append(.shards(count)) }
        if let count = try flags.size("--bytes") { sharders.append(.bytes(count)) }
        if let count = try flags.number("--index", in: 1...limit) { sharders.append(.index(count)) }
        if try flags.isSet("--args") { sharders.append(.arguments) }
        guard let gather else { throw CoterieError(.badInput, "root: --gather ID is needed") }
        guard sharders.count == 1 else {
            throw CoterieError(
                .badInput, "root: exactly one sharder is needed", hint: "--lines, --shards, --bytes, --index or --args")
        }
        self.init(gather: gather, sharder: sharders[0])
        self.merge = merge
        self.mergeFiles = mergeFiles
        if let count = try flags.number("--parallel", in: 1...ScatterGatherSpec.parallelLimit) { parallel = count }
        plan.shardTimeout = try flags.duration("--shard-timeout")
        plan.deadline = try flags.duration("--deadline")
        if let count = try flags.number("--retries", in: 0...ScatterGatherSpec.retryLimit) { plan.retries = count }
        if let text = try flags.value("--hedge") {
            guard let hedge = ScatterGatherSpec.Hedge(text: text) else {
                throw CoterieError(.badInput, "root: --hedge \(text)", hint: "auto, off or a duration")
            }
            plan.hedge = hedge
        }
        if let text = try flags.value("--min-success") {
            guard let share = Double(text), (0...1).contains(share) else {
                throw CoterieError(.badInput, "root: --min-success \(text)", hint: "a share from 0 to 1")
            }
            plan.minSuccess = share
        }
        unordered = try flags.isSet("--unordered")
        input = try flags.value("--input")
        attached = try flags.isSet("--attached")
        try flags.finish(takesCommand: false)
        if unordered && merge != nil { throw CoterieError(.badInput, "root: --unordered does not go with --merge") }
        if mergeFiles && merge == nil { throw CoterieError(.badInput, "root: --merge-files needs --merge") }
    }
}

public struct GatherLeafOptions: Sendable {
    public var gather: String
    /// Name of the root's pod.
    public var root: String
    /// `/bin/sh -c` text.
    public var leaf: String
    /// Shards are `$1`, not stdin.
    public var arguments = false
    public var shardTimeout: TimeSpan?
    /// A directory whose files are put into every working directory.
    public var files: String?
    public var scratch = environmentValue("TMPDIR") ?? "/tmp"
    public var name = ContainerIdentity.current.name
    public var node = environmentValue("COTERIE_NODE") ?? ""
    /// Between TERM and KILL of what is over its time.
    public var grace = TimeSpan.seconds(2)
    /// A root that says nothing for so long is dialled anew.
    public var rootSilence = TimeSpan.seconds(10)

    public init(gather: String, root: String, leaf: String) {
        self.gather = gather
        self.root = root
        self.leaf = leaf
    }

    public init(arguments words: [String]) throws(CoterieError) {
        var flags = try FlagReader("leaf", words, switches: ["--args", "--stream-leaf"])
        let gather = try flags.value("--gather")
        let root = try flags.value("--root")
        let leaf = try flags.value("--leaf")
        let arguments = try flags.isSet("--args")
        let timeout = try flags.duration("--shard-timeout")
        let streams = try flags.isSet("--stream-leaf")
        let files = try flags.value("--files")
        try flags.finish(takesCommand: false)
        guard let gather, let root, let leaf else {
            throw CoterieError(.badInput, "leaf: --gather, --root and --leaf are needed")
        }
        if streams {
            throw CoterieError(.badInput, "leaf: --stream-leaf is not offered by this version", hint: "leave it out")
        }
        self.init(gather: gather, root: root, leaf: leaf)
        self.arguments = arguments
        shardTimeout = timeout
        self.files = files
    }
}

/// `PATH`, `HOME`, `LANG` and what the contract adds (DESIGN 3.1); nothing else of our own environment.
func gatherEnvironment(home: String, _ added: [String: String]) -> [String] {
    var variables = [
        "PATH": environmentValue("PATH") ?? "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": home,
        "LANG": environmentValue("LANG") ?? "C.UTF-8",
    ]
    variables.merge(added) { $1 }
    return variables.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" }
}

/// Whether a shipped file's path stays below the working directory.
func isShippable(_ path: String) -> Bool {
    guard !path.isEmpty, path.utf8.count <= GatherLimits.pathBytes, !path.utf8.contains(0) else { return false }
    return path.split(separator: "/", omittingEmptySubsequences: false).allSatisfy {
        !$0.isEmpty && $0 != "." && $0 != ".."
    }
}
