import ArgumentParser
import Glibc
import Manifests
import Model

// One line on stderr for every failure, and the exit codes of the public contract.
signal(SIGPIPE, SIG_IGN)
signal(SIGINT) { _ in _exit(130) }
let arguments = Array(CommandLine.arguments.dropFirst())
var words: [String] = []
do {
    words = try Invocation.begin(arguments)
    try CommandNames.check(words)
    var command = try Coterie.parseAsRoot(words)
    try command.run()
} catch let error as CoterieError {
    Invocation.fail(error)
} catch let failure as ManifestFailure {
    Invocation.fail(failure)
} catch let end as Invocation.Exit {
    exit(end.code)
} catch {
    if Coterie.exitCode(for: error) == .success {
        print(Coterie.fullMessage(for: error))
        exit(0)
    }
    Invocation.fail(Invocation.usageError(Coterie.message(for: error), words: words))
}
exit(0)
