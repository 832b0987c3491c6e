// `coterie beanstalkd`: one self-contained node with beanstalkd's command line.
import ArgumentParser
import Model
import Node

struct BeanstalkdCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "beanstalkd",
        abstract: "One self-contained node that speaks beanstalkd's protocol, with its command line.",
        discussion: """
            -l and -p as beanstalkd has them, -b DIR keeps the jobs. Without -b they go with the process. -f, -F and -n are accepted: \
            jobs are always on disk before they are acknowledged.

            coterie beanstalkd -l 127.0.0.1 -p 11300 -b /var/lib/beanstalkd
            """)
    @Option(name: .customShort("l"), help: "The address to listen on.") var listen: String = "127.0.0.1"
    @Option(name: .customShort("p"), help: "The port.") var port: UInt16 = 11_300
    @Option(name: .customShort("b"), help: "The directory that keeps the jobs.") var directory: String?
    @Option(name: .customShort("f"), help: "Accepted, without effect.") var syncMilliseconds: Int?
    @Flag(name: .customShort("F"), help: "Accepted, without effect.") var neverSync = false
    @Flag(name: .customShort("n"), help: "Accepted, without effect.") var noCompaction = false
    @Flag(name: .customShort("V"), help: "Log more; may be repeated.") var verbose: Int

    func run() throws {
        let data = try directory.map(absolutePath) ?? makeTemporaryDirectory()
        defer { if directory == nil { removeDirectoryTree(data) } }
        let text =
            listen.hasPrefix("unix:")
            ? listen : listen.contains(":") && !listen.hasPrefix("[") ? "[\(listen)]:\(port)" : "\(listen):\(port)"
        var options = AgentOptions(name: hostName(), bind: .loopback(port: 0), dataDirectory: data, programs: .found)
        options.version = programVersion
        options.queue = .at(try resolveAddress(text, for: "-l"))
        // As beanstalkd: whoever can connect.
        options.queueUsers = .any
        options.logLevel = verbose > 0 ? "debug" : "warning"
        raiseDescriptorLimit()
        try AgentRun.run(options)
    }
}
