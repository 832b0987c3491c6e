// coterie-console: the cluster over HTTP, read-only. A process of its own, started and watched by `coterie agent --http`, so
// that no HTTP is parsed where consensus runs; all it knows it asks the agent as any client does.
import Glibc
import Hummingbird
import Model

signal(SIGPIPE, SIG_IGN)

func fail(_ message: String, code: Int32) -> Never {
    let line = Array("coterie-console: \(message)\n".utf8)
    _ = line.withUnsafeBytes { write(2, $0.baseAddress, $0.count) }
    exit(code)
}

let options: ConsoleOptions
do { options = try ConsoleOptions(arguments: Array(CommandLine.arguments.dropFirst())) } catch {
    fail("\(error)", code: 2)
}
if options.wantsHelp {
    print(ConsoleOptions.usage)
    exit(0)
}
let bridge: ClusterBridge
do { bridge = try ClusterBridge(options) } catch { fail("\(error)", code: 1) }

let application = Application(
    router: ConsoleRoutes(bridge: bridge, listen: options.listen).router,
    configuration: .init(
        address: .hostname(options.listen.hostText, port: Int(options.listen.port)), serverName: "coterie-console"))
do {
    try await application.runService()
} catch {
    fail("cannot serve \(options.listen): \(error)", code: 1)
}
