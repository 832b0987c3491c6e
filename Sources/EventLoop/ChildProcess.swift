import CPlatform
import CUV
import Glibc
import Model

/// A child process, its pipes, and its end. Uses a pidfd rather than SIGCHLD: no other child of the process is touched.
public final class ChildProcess: LoopHandleOwner {
    public enum Stream: Sendable {
        /// `/dev/null`.
        case null
        /// Shared with this process.
        case inherit
        /// A pipe to us.
        case pipe
        /// This descriptor; it stays the caller's to close.
        case descriptor(Int32)
    }

    public enum ExitStatus: Hashable, Sendable, CustomStringConvertible {
        case exited(Int32)
        case signaled(Int32)

        /// As a shell says it: 128 + signal.
        public var shellCode: Int32 {
            switch self {
            case .exited(let code): code
            case .signaled(let signal): 128 + signal
            }
        }

        public var description: String {
            switch self {
            case .exited(let code): "exit code \(code)"
            case .signaled(let signal): "signal \(signal)"
            }
        }
    }

    public struct Options: Sendable {
        /// Looked up in PATH if it has no slash.
        public var program: String
        /// Without the program's own name.
        public var arguments: [String]
        /// `NAME=value`; nil is this process's own.
        public var environment: [String]?
        public var directory: String?
        public var input: Stream = .null
        public var output: Stream = .inherit
        public var error: Stream = .inherit
        /// Become descriptors 3, 4, …; they stay the caller's to close. The child gets no others.
        public var extraDescriptors: [Int32] = []
        public var newProcessGroup = false
        public var newSession = false
        /// Sent to the child when the thread that starts it (the loop's) ends, at the latest with this process; 0 for none.
        public var parentDeathSignal: Int32 = 0
        /// With either, all supplementary groups are given up.
        public var user: UInt32?
        public var group: UInt32?

        public init(program: String, arguments: [String] = [], environment: [String]? = nil, directory: String? = nil) {
            self.program = program
            self.arguments = arguments
            self.environment = environment
            self.directory = directory
        }
    }

    public let pid: Int32
    private let isGroupLeader: Bool
    private let box: HandleBox<uv_poll_t, ChildProcess>
    private let pidfd: Int32
    private var onExit: ((ExitStatus) -> Void)?
    public private(set) var hasEnded = false
    /// Our ends of the pipes asked for; not reading yet.
    public private(set) var input: ByteStream?
    public private(set) var output: ByteStream?
    public private(set) var error: ByteStream?

    /// Starts the program, or throws the error of whatever step failed in the child (`ENOENT` without such a program, `EACCES`,
    /// …). `onExit` is called once, on the loop, never from within this call; the pipes may still hold output then. The caller
    /// closes the pipes, or reads and shuts them down to their ends.
    public init(loop: EventLoop, options: Options, onExit: @escaping (ExitStatus) -> Void) throws(UVError) {
        self.onExit = onExit
        isGroupLeader = options.newProcessGroup || options.newSession
        var theirs: [Int32] = []
        var ours: [ByteStream?] = []
        var toClose: [Int32] = []
        do throws(UVError) {
            for (number, stream) in [options.input, options.output, options.error].enumerated() {
                var our: ByteStream?
                switch stream {
                case .null: theirs.append(-1)
                case .inherit: theirs.append(Int32(number))
                case .descriptor(let descriptor): theirs.append(descriptor)
                case .pipe:
                    var pair: [Int32] = [-1, -1]
                    guard coterie_pipe(&pair) == 0 else { throw UVError(errno: errno) }
                    let their = pair[number == 0 ? 0 : 1]
                    theirs.append(their)
                    toClose.append(their)
                    our = try ByteStream.adopt(loop: loop, descriptor: pair[number == 0 ? 1 : 0])
                }
                ours.append(our)
            }
            theirs.append(contentsOf: options.extraDescriptors)
            let started = ChildProcess.spawn(options, theirs)
            guard started > 0 else { throw UVError(code: started) }
            pid = started
            let pidfd = coterie_pidfd(started)
            do throws(UVError) {
                guard pidfd >= 0 else { throw UVError(code: pidfd) }
                box = try HandleBox(loop) { uv_poll_init($0, $1, pidfd) }
            } catch {
                if pidfd >= 0 { Glibc.close(pidfd) }
                Glibc.kill(started, SIGKILL)
                var status: Int32 = 0
                while waitpid(started, &status, 0) < 0 && errno == EINTR {}
                throw error
            }
            self.pidfd = pidfd
        } catch {
            for descriptor in toClose { Glibc.close(descriptor) }
            for stream in ours { stream?.close() }
            throw error
        }
        for descriptor in toClose { Glibc.close(descriptor) }
        input = ours[0]
        output = ours[1]
        error = ours[2]
        box.attach(self)
        uv_poll_start(box.raw, Int32(UV_READABLE.rawValue)) { handle, _, _ in
            HandleBox<uv_poll_t, ChildProcess>.owner(handle)?.reap()
        }
    }

    private static func spawn(_ options: Options, _ descriptors: [Int32]) -> Int32 {
        func withStrings<T>(_ strings: [String], _ body: (UnsafePointer<UnsafeMutablePointer<CChar>?>) -> T) -> T {
            var pointers: [UnsafeMutablePointer<CChar>?] = strings.map { strdup($0) }
            pointers.append(nil)
            defer { for pointer in pointers { free(pointer) } }
            return pointers.withUnsafeBufferPointer { buffer in
                guard let base = buffer.baseAddress else { preconditionFailure("a list has its end") }
                return body(base)
            }
        }
        return withStrings([options.program] + options.arguments) { arguments in
            withStrings(options.environment ?? ChildProcess.currentEnvironment) { environment in
                options.program.withCString { program in
                    descriptors.withUnsafeBufferPointer { buffer in
                        guard let base = buffer.baseAddress else { return -EINVAL }
                        func start(_ directory: UnsafePointer<CChar>?) -> Int32 {
                            var request = coterie_spawn(
                                path: program, arguments: arguments, environment: environment, directory: directory,
                                descriptors: base, descriptor_count: Int32(buffer.count),
                                new_session: options.newSession ? 1 : 0,
                                new_group: options.newProcessGroup ? 1 : 0, death_signal: options.parentDeathSignal,
                                uid: options.user.map { Int64($0) } ?? -1, gid: options.group.map { Int64($0) } ?? -1)
                            return coterie_start_process(&request)
                        }
                        guard let directory = options.directory else { return start(nil) }
                        return directory.withCString { start($0) }
                    }
                }
            }
        }
    }

    /// This process's environment as `NAME=value`.
    public static var currentEnvironment: [String] {
        var result: [String] = []
        var entry: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?> = environ
        while let text = entry.pointee {
            result.append(String(cString: text))
            entry += 1
        }
        return result
    }

    private func reap() {
        var status: Int32 = 0
        let got = waitpid(pid, &status, WNOHANG)
        if got == 0 || (got < 0 && errno == EINTR) { return }
        // Somebody else took it (ECHILD): how it ended is not known, which must not look like success.
        if got < 0 { status = SIGKILL }
        hasEnded = true
        let report = onExit
        close()
        let low = status & 0x7F
        report?(low == 0 ? .exited((status >> 8) & 0xFF) : .signaled(low))
    }

    /// The loop is closed: nobody is told, and nobody collects the child.
    func close() {
        guard !box.isClosed else { return }
        onExit = nil
        box.close()
        Glibc.close(pidfd)
    }

    /// Sends a signal to the process, or to the whole group that it leads. Nothing happens once it has ended; a group may
    /// outlive its leader: use ``killGroup(_:)`` for what is left.
    public func kill(signal: Int32, group: Bool = false) {
        // Not collected yet, so that the number is still its own.
        guard !hasEnded else { return }
        _ = Glibc.kill(group && isGroupLeader ? -pid : pid, signal)
    }

    /// Sends a signal to what is left of the group, also after the leader has ended. Only soon after: numbers are used again.
    public func killGroup(_ signal: Int32) {
        guard isGroupLeader else { return }
        _ = Glibc.kill(-pid, signal)
    }
}
