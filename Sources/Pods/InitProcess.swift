// One pod's `coterie-init` as a process: the socket to it on its descriptor 3, and its end. When this object's side of the
// socket is closed, by whatever end of the agent, everything in the pod is killed.
import CPlatform
import EventLoop
import Glibc
import Model
import Wire

/// Confined to the loop.
final class InitProcess {
    private let loop: EventLoop
    private let socket: DescriptorSocket
    /// The same socket once more: what the init said last can be read even after writing to it has failed.
    private var leftover: Int32
    private var child: ChildProcess?
    private var decoder = InitReportDecoder()
    private var end: String?
    private var isSocketOpen = true
    private let timer: LoopTimer

    var onReport: ((InitReport) -> Void)?
    /// The process is gone, and with it everything in the pod; all its reports came before. How it ended.
    var onEnd: ((String) -> Void)?

    init(loop: EventLoop, path: String, mode: InitMode) throws(CoterieError) {
        self.loop = loop
        timer = LoopTimer(loop: loop)
        var pair: [Int32] = [-1, -1]
        guard coterie_socket_pair(&pair) >= 0 else {
            throw CoterieError(.failed, "cannot make a socket: \(errnoText())")
        }
        defer { Glibc.close(pair[1]) }
        leftover = fcntl(pair[0], F_DUPFD_CLOEXEC, 3)
        do throws(UVError) {
            socket = try DescriptorSocket(loop: loop, adopting: pair[0])
        } catch {
            if leftover >= 0 { Glibc.close(leftover) }
            throw CoterieError(.failed, "cannot watch a socket: \(error)")
        }
        var options = ChildProcess.Options(program: path, arguments: [mode.rawValue], environment: [], directory: "/")
        options.output = .null
        options.error = .null
        options.extraDescriptors = [pair[1]]
        // What a terminal sends to the agent's group is the agent's to deal with.
        options.newSession = true
        do throws(UVError) {
            child = try ChildProcess(loop: loop, options: options) { [weak self] in self?.exited("\($0)") }
        } catch {
            socket.close()
            if leftover >= 0 { Glibc.close(leftover) }
            throw CoterieError(.failed, "cannot start \(path): \(error)")
        }
        socket.onMessage = { [weak self] bytes, descriptors in
            // It sends none.
            for descriptor in descriptors { Glibc.close(descriptor) }
            self?.received(bytes)
        }
        socket.onClose = { [weak self] _ in self?.socketClosed() }
    }

    deinit { if leftover >= 0 { Glibc.close(leftover) } }

    /// Takes the descriptors: they are closed here.
    func send(_ bytes: [UInt8], _ descriptors: [Int32]) {
        socket.send(bytes, descriptors: descriptors)
        for descriptor in descriptors { Glibc.close(descriptor) }
    }

    func kill() { child?.kill(signal: SIGKILL) }

    private func received(_ bytes: [UInt8]) {
        decoder.feed(bytes)
        do throws(WireError) {
            while let report = try decoder.next() { onReport?(report) }
        } catch {
            // Not a program of ours.
            kill()
        }
    }

    private func socketClosed() {
        guard isSocketOpen else { return }
        isSocketOpen = false
        if leftover >= 0 {
            var buffer = [UInt8](repeating: 0, count: 65_536)
            while true {
                let n = recv(leftover, &buffer, buffer.count, Int32(MSG_DONTWAIT))
                guard n > 0 else { break }
                received(Array(buffer[..<n]))
            }
            Glibc.close(leftover)
            leftover = -1
        }
        if end == nil {
            // Its end follows at once, unless it hangs.
            timer.start(after: .seconds(5)) { [weak self] in self?.kill() }
        }
        finish()
    }

    private func exited(_ how: String) {
        end = how
        child = nil
        guard isSocketOpen else { return finish() }
        // The kernel closed the other end before: what is left to read is there already.
        timer.start(after: .seconds(1)) { [weak self] in
            guard let self, self.isSocketOpen else { return }
            self.socket.close()
            self.socketClosed()
        }
    }

    private func finish() {
        guard let end, !isSocketOpen, let report = onEnd else { return }
        timer.close()
        onReport = nil
        onEnd = nil
        report("ended with \(end)")
    }
}
