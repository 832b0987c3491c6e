// `coterie scatter`: the shorthand of a ScatterGather manifest, with its input from here and its result to here.
import ArgumentParser
import Client
import EventLoop
import Glibc
import Manifests
import Model
import NodeCore
import PatternContainers
import ScatterGather
import Transport
import Wire

struct ScatterCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "scatter",
        abstract: "Cut input into shards, run a command on each across the cluster, merge the results.",
        discussion: """
            Exactly one sharder: --lines, --shards, --bytes, --index or --args. Leaf and merge are lines for /bin/sh -c: a shard on \
            standard input, its result on standard output. A leaf's exit code 0 is done, 75 is tried again elsewhere, 64-74, 76-78, 126 \
            and 127 are final. Results come in shard order, or through --merge. Progress goes to stderr on a terminal.

            coterie scatter --leaf 'wc -l' --merge 'paste -sd+ | bc' --shards 12 --input big.log
            seq 100 | coterie scatter --leaf './step "$1"' --args --file step
            coterie scatter --leaf 'echo $COTERIE_SHARD' --index 4 --summary summary.json
            """)
    @Option(help: "The command for one shard.") var leaf: String
    @Option(help: "The command for all results.") var merge: String?
    @Flag(help: "The merge also finds the results as files in $COTERIE_RESULTS.") var mergeFiles = false
    @Option(help: "At most so many lines a shard.") var lines: Int?
    @Option(help: "So many near-equal shards.") var shards: Int?
    @Option(help: "At most so many bytes a shard; lines stay whole.") var bytes: String?
    @Option(help: "So many shards without input.") var index: Int?
    @Flag(help: "Each input line is one shard's argument.") var args = false
    @Option(help: "The input; - is standard input (default).") var input: String?
    @Option(help: "A file for the leaves' working directory; may be repeated.") var file: [String] = []
    @Option(help: "What the pods see as their root file system.") var image: String = "localhost/host"
    @Option(help: "Leaf pods.") var parallel: Int = ScatterGatherSpec.defaultParallel
    @Option(help: "Longest time of one attempt.", transform: parsePositiveDuration) var shardTimeout: TimeSpan?
    @Option(help: "Longest time of the whole; the result is partial then.", transform: parsePositiveDuration)
    var deadline: TimeSpan?
    @Option(help: "Attempts after the first.") var retries: Int = ScatterGatherSpec.defaultRetries
    @Option(help: "When a slow shard is started a second time: auto, off or a duration.") var hedge: String = "auto"
    @Option(help: "The share of shards that must succeed, 0 to 1.") var minSuccess: Double = 1
    @Flag(help: "Results as they come.") var unordered = false
    @Option(help: "KEY=VALUE of the nodes that may run leaves; may be repeated.") var on: [String] = []
    @Flag(help: "One long-lived leaf process for many shards.") var streamLeaf = false
    @Flag(help: "Return when the input is taken; prints the job's id.") var detach = false
    @Option(help: "Write the job's figures there, as JSON.") var summary: String?
    @Flag(help: "Exit with the leaf's code if it fails for good.") var propagate = false

    func run() throws {
        let id = ScatterCommand.newID()
        let spec = try self.spec(id: id)
        var options = GatherClientOptions(id: id)
        let (root, leaves) = Expansion.gather(spec, id: id)
        options.creation = GatherClientOptions.Creation(seed: GatherSeeds.seed(of: spec, id: id), pods: [root] + leaves)
        if case .index = spec.sharder {
            if input != nil { throw CoterieError(.badInput, "scatter: --index takes no input") }
        } else if let input, input != "-" {
            guard access(input, R_OK) == 0 else {
                throw CoterieError(errno == ENOENT ? .notFound : .failed, "cannot read \(input): \(errnoMessage())")
            }
            options.input = .path(input)
        } else {
            options.input = .descriptor(0)
        }
        options.files = file
        options.unordered = unordered
        options.detach = detach
        options.propagate = propagate
        try GatherRun.run(options, summary: summary)
        if detach { Invocation.show(["id": .string(id)]) { _ in id + "\n" } }
    }

    static func newID() -> String { String(hexadecimal(.random(in: 0 ... .max)).prefix(10)) }

    private func spec(id: String) throws -> ScatterGatherSpec {
        func wrong(_ what: String, hint: String? = nil) -> CoterieError {
            CoterieError(.badInput, "scatter: \(what)", hint: hint)
        }
        var sharders: [ScatterGatherSpec.Sharder] = []
        func count(_ value: Int?, _ flag: String, most: Int) throws(CoterieError) -> Int? {
            guard let value else { return nil }
            guard (1...most).contains(value) else { throw wrong("\(flag) \(value): from 1 to \(most)") }
            return value
        }
        if let lines = try count(lines, "--lines", most: .max) { sharders.append(.lines(lines)) }
        if let shards = try count(shards, "--shards", most: ScatterGatherSpec.shardLimit) {
            sharders.append(.shards(shards))
        }
        if let bytes {
            guard let size = ByteSize.parse(bytes), size > 0 else {
                throw wrong("--bytes \(bytes): not a size such as 64KiB or 1MiB")
            }
            sharders.append(.bytes(size))
        }
        if let index = try count(index, "--index", most: ScatterGatherSpec.shardLimit) {
            sharders.append(.index(index))
        }
        if args { sharders.append(.arguments) }
        guard sharders.count == 1, let sharder = sharders.first else {
            throw wrong(
                sharders.isEmpty ? "a sharder is needed" : "only one sharder may be given",
                hint: "--lines, --shards, --bytes, --index or --args")
        }
        guard let hedge = ScatterGatherSpec.Hedge(text: hedge) else {
            throw wrong("--hedge \(hedge): auto, off or a duration")
        }
        guard minSuccess >= 0, minSuccess <= 1 else { throw wrong("--min-success \(minSuccess): a share from 0 to 1") }
        guard (0...ScatterGatherSpec.retryLimit).contains(retries) else {
            throw wrong("--retries \(retries): from 0 to \(ScatterGatherSpec.retryLimit)")
        }
        guard (1...ScatterGatherSpec.parallelLimit).contains(parallel) else {
            throw wrong("--parallel \(parallel): from 1 to \(ScatterGatherSpec.parallelLimit)")
        }
        if unordered && merge != nil { throw wrong("--unordered does not go with --merge") }
        if mergeFiles && merge == nil { throw wrong("--merge-files needs --merge") }
        if streamLeaf { throw wrong("--stream-leaf is not built yet", hint: "leave it out") }
        for (flag, text) in [("--leaf", leaf), ("--merge", merge ?? "true")] where text.isEmpty || text.utf8.contains(0)
        {
            throw wrong("\(flag): a command is needed")
        }
        for path in file where access(path, R_OK) != 0 {
            throw wrong("cannot read the file \(path): \(errnoMessage())")
        }
        return ScatterGatherSpec(
            name: id, leaf: leaf, merge: merge, mergeFiles: mergeFiles, sharder: sharder, parallel: parallel,
            shardTimeout: shardTimeout,
            deadline: deadline, retries: retries, hedge: hedge, minSuccess: minSuccess, unordered: unordered,
            streamLeaf: streamLeaf,
            image: image, nodeSelector: try parsePairs(on, for: "--on"))
    }
}

/// A client's part of one job: it feeds it, shows its progress, and ends with its code.
enum GatherRun {
    static func run(_ options: GatherClientOptions, summary: String?) throws {
        try Invocation.withClientAndLoop { client, loop in
            // No cluster is said before any input is read.
            _ = try await client.query("version")
            let run = GatherClientRun(loop: loop, options: options, client: client)
            let progress = ProgressLine()
            run.onProgress = { progress.show($0) }
            var watchers: [SignalWatcher] = []
            for number in [SIGINT, SIGTERM] {
                watchers.append(try SignalWatcher(loop: loop, signal: number) { run.cancel() })
            }
            defer { for watcher in watchers { watcher.close() } }
            try run.start()
            var code: Int32 = 0
            var document = JSONValue.null
            await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
                run.onFinished = { result, counts, state in
                    code = result
                    document = counts.document(id: options.id, state: state)
                    continuation.resume()
                }
            }
            progress.clear()
            if let summary { try writeFileDurably(summary, Array((document.text() + "\n").utf8), mode: 0o644) }
            if code != 0 { throw Invocation.Exit(code: code) }
        }
    }
}

/// One line on stderr that is drawn again and again, on a terminal only.
private final class ProgressLine {
    private let isShown = isTerminal(2)
    private var hasDrawn = false

    func show(_ progress: GatherProgress) {
        guard isShown else { return }
        let share = progress.total > 0 ? progress.successful * 100 / progress.total : 0
        var text = "\(share)%  \(progress.successful) of \(progress.total) shards, \(progress.running) running"
        if progress.failed + progress.timedOut > 0 { text += ", \(progress.failed + progress.timedOut) failed" }
        if progress.retried > 0 { text += ", \(progress.retried) retried" }
        writeErrorBytes(Array("\r\u{1B}[K\(text)".utf8))
        hasDrawn = true
    }

    func clear() { if hasDrawn { writeErrorBytes(Array("\r\u{1B}[K".utf8)) } }
}

struct RootCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "root", abstract: "The root container of a ScatterGather, as expand prints it.",
        usage: "coterie root --gather ID --leaf CMD (--lines N|--shards N|--bytes N|--index N|--args) [options]",
        discussion: "coterie expand -f cluster-configs/scatter-gather.yaml")
    @Argument(parsing: .captureForPassthrough, help: "As expand prints them.") var words: [String] = []

    func run() throws {
        try helpIfAsked(words, for: RootCommand.self)
        let options = try GatherRootOptions(arguments: words)
        try SuppliedRun.run { client, loop in
            SuppliedRun(GatherRoot(loop: loop, options: options, transport: ClusterGatherTransport(client: client)))
        }
    }
}

struct LeafCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "leaf", abstract: "The leaf container of a ScatterGather, as expand prints it.",
        usage: "coterie leaf --gather ID --root POD --leaf CMD [--args] [--shard-timeout D] [--files DIR]",
        discussion: "coterie expand -f cluster-configs/scatter-gather.yaml")
    @Argument(parsing: .captureForPassthrough, help: "As expand prints them.") var words: [String] = []

    func run() throws {
        try helpIfAsked(words, for: LeafCommand.self)
        let options = try GatherLeafOptions(arguments: words)
        try SuppliedRun.run { client, loop in
            SuppliedRun(GatherLeaf(loop: loop, options: options, transport: ClusterGatherTransport(client: client)))
        }
    }
}
