// `coterie queue put`: one job of the whole input, or one of each line. Lines are streamed in batches, one command each, so that
// any amount of input takes bounded memory and each batch costs one commit.
import ArgumentParser
import Client
import EventLoop
import Glibc
import Model
import Queues
import Wire

struct QueuePut: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "put", abstract: "Put the input as one job, or each of its lines; prints the ids.",
        discussion: """
            With --lines the input is put as it is read; at the first error it ends and says what was put.

            echo 'resize 17.jpg' | coterie queue put images
            coterie queue put images --lines jobs.txt
            coterie queue put mail --priority 10 --delay 5m --ttr 2m --key order-17 message.txt
            """)

    @Argument(help: "The tube.") var tube: String
    @Argument(help: "The input; - is standard input.") var file: String = "-"
    @Option(help: "Smaller is sooner; below 1024 is urgent.") var priority: UInt32 = 1_024
    @Option(help: "How long until it is ready.", transform: parseDuration) var delay: TimeSpan = .zero
    @Option(help: "Time to run: how long a reservation lasts.", transform: parsePositiveDuration) var ttr: TimeSpan =
        .seconds(60)
    @Option(help: "While a job with this key exists in the tube, it is not put again.") var key: String?
    @Flag(help: "Each line is a job.") var lines = false

    func run() throws {
        try checkTube(tube)
        if lines && key != nil { throw CoterieError(.badInput, "--key names one job: it does not go with --lines") }
        if let key, key.isEmpty || key.utf8.count > Limits.nameBytes {
            throw CoterieError(.badInput, "--key: 1 to \(Limits.nameBytes) bytes are needed")
        }
        let template = NewJob(
            tube: tube, priority: priority, delayMilliseconds: try milliseconds(delay, "--delay"),
            ttrMilliseconds: try milliseconds(ttr, "--ttr"), body: [], key: key)
        let input = try InputFile(file)
        let byLine = lines
        try Invocation.withClientAndLoop { client, loop in
            let printer = IDPrinter()
            do {
                if byLine {
                    try await putLines(input, template, client, loop, printer)
                } else {
                    var job = template
                    job.body = try await input.readAll(loop, limit: QueueLimits.bodyBytes)[...]
                    printer.show(try await put([job], client))
                }
                printer.finish(nil)
            } catch let error as CoterieError {
                guard byLine else { throw error }
                throw printer.failed(error)
            }
        }
    }
}

/// Puts a batch; the ids in its order.
private func put(_ jobs: [NewJob], _ client: ClusterClient) async throws(CoterieError) -> [UInt64] {
    guard case .inserted(let inserted) = try await askQueue(.put(jobs), client) else {
        throw CoterieError(.failed, "an answer of the wrong kind")
    }
    return inserted.map(\.id)
}

private func putLines(
    _ input: InputFile, _ template: NewJob, _ client: ClusterClient, _ loop: EventLoop, _ printer: IDPrinter
)
    async throws
{
    // A batch is what one read brought, so that lines of a slow producer do not wait for others.
    let most = 4_096
    var partial: [UInt8] = []
    var batch: [NewJob] = []
    func send() async throws {
        guard !batch.isEmpty else { return }
        printer.show(try await put(batch, client))
        batch = []
    }
    func add(_ line: some Sequence<UInt8>) {
        var job = template
        job.body = (partial + line)[...]
        partial = []
        batch.append(job)
    }
    while true {
        let chunk = try await input.read(loop, limit: 128 << 10)
        if chunk.isEmpty { break }
        var start = 0
        while let end = chunk[start...].firstIndex(of: 10) {
            add(chunk[start..<end])
            start = end + 1
            if batch.count >= most { try await send() }
        }
        guard partial.count + chunk.count - start <= QueueLimits.bodyBytes else {
            try await send()
            throw CoterieError(.tooLarge, "line \(printer.count + 1) is longer than \(QueueLimits.bodyBytes) bytes")
        }
        partial += chunk[start...]
        try await send()
    }
    if !partial.isEmpty { add([]) }
    try await send()
}

/// Prints ids as they come: a line each, or with `--json` one document that grows.
private final class IDPrinter {
    private(set) var count = 0
    private var first: UInt64?
    private var last: UInt64?
    private var hasBegun = false

    func show(_ ids: [UInt64]) {
        guard !ids.isEmpty else { return }
        first = first ?? ids.first
        last = ids.last
        if Invocation.options.json {
            begin()
            writeOut((count > 0 ? "," : "") + ids.map(String.init).joined(separator: ","))
        } else {
            writeOut(ids.map { "\($0)\n" }.joined())
        }
        count += ids.count
    }

    private func begin() {
        if !hasBegun { writeOut(#"{"ids":["#) }
        hasBegun = true
    }

    /// Closes the document, with the error in it if there is one.
    func finish(_ error: CoterieError?) {
        guard Invocation.options.json, error == nil || hasBegun else { return }
        begin()
        let tail = error.map { "," + JSONValue.string("error").text() + ":" + Invocation.document(of: $0).text() } ?? ""
        writeOut("]" + tail + "}\n")
    }

    /// What is to be said after `error`; the document is closed.
    func failed(_ error: CoterieError) -> any Error {
        var error = error
        if let first, let last {
            error.message +=
                "; before that \(count) job\(count == 1 ? " was" : "s were") put: \(first)"
                + (count > 1 ? " to \(last)" : "")
        } else {
            error.message += "; nothing was put before"
        }
        guard Invocation.options.json, hasBegun else { return error }
        finish(error)
        writeError("coterie: \(error)")
        return Invocation.Exit(code: error.exitCode.rawValue)
    }
}
