// The console: a process of its own that the agent starts and keeps running, so that no HTTP is parsed where consensus runs.
import EventLoop
import Model
import NodeCore

final class ConsoleProcess {
    private let loop: EventLoop
    private let program: String
    private let listen: SocketAddress
    private let socket: String
    private var child: ChildProcess?
    private let restartTimer: LoopTimer
    private var backoff = TimeSpan.milliseconds(500)
    private var startedAt = MonotonicTime.zero
    private var stopping = false

    var onLog: ((LogLevel, String) -> Void)?

    init(loop: EventLoop, program: String, listen: SocketAddress, socket: String) {
        self.loop = loop
        self.program = program
        self.listen = listen
        self.socket = socket
        restartTimer = LoopTimer(loop: loop)
    }

    func start() {
        guard !stopping else { return }
        startedAt = loop.now
        do {
            var options = ChildProcess.Options(
                program: program, arguments: ["--listen", listen.description, "--address", "unix:" + socket])
            // It ends with us, however we end.
            options.parentDeathSignal = 15
            child = try ChildProcess(loop: loop, options: options) { [weak self] status in self?.ended(status) }
        } catch {
            onLog?(.error, "the console \(program) can not be started: \(error)")
            scheduleRestart()
        }
    }

    private func ended(_ status: ChildProcess.ExitStatus) {
        child = nil
        guard !stopping else { return }
        onLog?(.warning, "the console ended (\(status)); it is started again")
        if loop.now - startedAt > .seconds(30) { backoff = .milliseconds(500) }
        scheduleRestart()
    }

    private func scheduleRestart() {
        restartTimer.start(after: backoff) { [weak self] in self?.start() }
        backoff = min(backoff * 2, .seconds(30))
    }

    func stop() {
        stopping = true
        restartTimer.close()
        child?.kill(signal: 15)
    }
}
