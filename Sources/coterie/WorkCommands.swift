// `coterie work`, and the worker container that WorkQueue makes of it.
import ArgumentParser
import Model
import PatternContainers

struct WorkCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "work", abstract: "Run a command for each job of a tube, on this machine.",
        usage: "coterie work TUBE [--concurrency N] [--backoff D] [--grace D] -- COMMAND…",
        discussion: """
            The job is the command's standard input and the file $WORK_ITEM_FILE. Exit 0 deletes it; 64-74, 76-78, 126 and 127 bury it; \
            anything else gives it back, later and later. The reservation is kept alive while the command runs. One word is a line for \
            /bin/sh -c. Ctrl-C lets running commands finish.

            coterie work images --concurrency 4 -- 'convert - small.png'
            """)
    @Argument(parsing: .captureForPassthrough, help: "TUBE [--concurrency N] [--backoff D] [--grace D] -- COMMAND…")
    var words: [String] = []

    func run() throws {
        try helpIfAsked(words, for: WorkCommand.self)
        let options = try WorkerOptions(arguments: words, verb: "work", tubeIsOperand: true)
        try SuppliedRun.run(givesUpOnNobody: true) { client, loop in
            try await client.checkReachable()
            return SuppliedRun(Worker(loop: loop, options: options, service: ClusterServices(client)))
        }
    }
}

struct WorkerCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "worker", abstract: "The worker container of a WorkQueue.",
        usage: "coterie worker --tube TUBE [--concurrency N] [--backoff D] [--grace D] -- COMMAND…",
        discussion: "coterie worker --tube images --concurrency 2 -- /app/resize")
    @Argument(parsing: .captureForPassthrough, help: "--tube TUBE [--concurrency N] -- COMMAND…") var words: [String] =
        []

    func run() throws {
        try helpIfAsked(words, for: WorkerCommand.self)
        let options = try WorkerOptions(arguments: words)
        try SuppliedRun.run { client, loop in
            SuppliedRun(Worker(loop: loop, options: options, service: ClusterServices(client)))
        }
    }
}
