// A command that a container runs: in a session and process group of its own, with additions to our environment, and as few
// words as the uses here need.
import EventLoop
import Glibc
import Model

final class ChildCommand {
    private var child: ChildProcess?
    private var onExit: ((Int32) -> Void)?
    let processID: Int32

    /// - Parameters:
    ///   - environment: added to our own.
    ///   - without: names left out of our own.
    ///   - onExit: the exit code as a shell says it (128 + signal); called once, on the loop, never from within this call.
    init(
        loop: EventLoop, words: [String], environment: [String: String] = [:], without: Set<String> = [],
        directory: String? = nil,
        input: ChildProcess.Stream = .null, output: ChildProcess.Stream = .inherit, diesWithParent: Bool = true,
        onExit: @escaping (Int32) -> Void
    ) throws(CoterieError) {
        guard let program = words.first else { throw CoterieError(.badInput, "a command is needed") }
        var options = ChildProcess.Options(program: program, arguments: Array(words.dropFirst()))
        var variables = ChildProcess.currentEnvironment.filter { entry in
            let name = String(entry.prefix { $0 != "=" })
            return environment[name] == nil && !without.contains(name)
        }
        for (name, value) in environment.sorted(by: { $0.key < $1.key }) { variables.append("\(name)=\(value)") }
        options.environment = variables
        options.directory = directory
        options.input = input
        options.output = output
        options.newSession = true
        options.parentDeathSignal = diesWithParent ? SIGKILL : 0
        self.onExit = onExit
        var report: ((ChildProcess.ExitStatus) -> Void)?
        do throws(UVError) {
            let child = try ChildProcess(loop: loop, options: options) { report?($0) }
            self.child = child
            processID = child.pid
        } catch {
            throw CoterieError(.failed, "cannot run \(program): \(error)")
        }
        report = { [self] status in
            let then = self.onExit
            self.onExit = nil
            then?(status.shellCode)
        }
        // A pipe that breaks is told by the command's end.
        self.input?.onClose = { _ in }
    }

    var input: ByteStream? { child?.input }
    var output: ByteStream? { child?.output }

    /// To the whole group.
    func signal(_ signal: Int32) { child?.kill(signal: signal, group: true) }

    /// Kills what is left of the group, also just after its leader has ended.
    func kill() { child?.killGroup(SIGKILL) }

    /// No call-back any more; the pipes are closed.
    func forget() {
        onExit = nil
        child?.input?.close()
        child?.output?.close()
    }
}
