// One process of a test: its output in files, so that nobody must read along and descendants that keep a descriptor hold
// nothing up. A thread of its own starts and awaits it: the kernel ties "die with the parent" (PR_SET_PDEATHSIG) to the thread
// that started a process, and this one lives exactly as long as the process.
import CPlatform
import Foundation
import Glibc

public enum ExitStatus: Hashable, Sendable, CustomStringConvertible {
    case exited(Int32)
    case signalled(Int32)

    public var description: String {
        switch self {
        case .exited(let code): "exit code \(code)"
        case .signalled(let number): "signal \(number)"
        }
    }
}

public struct TestFailure: Error, CustomStringConvertible {
    public var description: String
    public init(_ description: String) { self.description = description }
}

public final class ChildProgram: @unchecked Sendable {
    public let pid: Int32
    public let arguments: [String]
    public let outputPath: String
    public let errorPath: String
    private let lock = NSLock()
    private var status: ExitStatus?

    /// Starts the program as the leader of a new session, so that it can be stopped with all it started.
    ///
    /// - Parameters:
    ///   - input: The file that is its standard input; nil for `/dev/null`.
    ///   - output: Path prefix of the files `.out` and `.err` with its output; they are appended to.
    ///   - user: The uid and gid it runs under; nil for the test's own.
    public init(
        _ program: String, _ arguments: [String], environment: [String: String], directory: String = "/",
        input: String? = nil,
        output: String, user: Int64? = nil
    ) throws {
        self.arguments = [program] + arguments
        outputPath = output + ".out"
        errorPath = output + ".err"
        let descriptors = [
            open(input ?? "/dev/null", O_RDONLY | O_CLOEXEC),
            open(outputPath, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o600),
            open(errorPath, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o600),
        ]
        defer { for descriptor in descriptors where descriptor >= 0 { close(descriptor) } }
        guard descriptors.allSatisfy({ $0 >= 0 }) else {
            throw TestFailure("cannot open the files of \(program): errno \(errno)")
        }
        let starter = Starter(
            words: self.arguments, environment: environment.map { "\($0.key)=\($0.value)" }, directory: directory,
            descriptors: descriptors, user: user)
        let thread = Thread { starter.run() }
        thread.stackSize = 256 << 10
        thread.start()
        pid = starter.waitForStart()
        guard pid > 0 else { throw TestFailure("cannot start \(program): errno \(-pid)") }
        Cleanup.shared.add(pid: pid)
        starter.onEnd { [self] end in
            lock.withLock { status = end }
            Cleanup.shared.remove(pid: pid)
        }
    }

    /// Nil while it runs.
    public var exitStatus: ExitStatus? { lock.withLock { status } }
    public var isRunning: Bool { exitStatus == nil }
    public var output: String { read(outputPath) }
    public var errors: String { read(errorPath) }

    /// To the process alone.
    public func signal(_ number: Int32) { if isRunning { kill(pid, number) } }

    /// To the process and all of its group.
    public func signalGroup(_ number: Int32) { if isRunning { kill(-pid, number) } }

    /// Waits for its end; kills its group and throws when it does not come in time.
    @discardableResult
    public func ended(within seconds: Double = 30) async throws -> ExitStatus {
        let deadline = ContinuousClock.now + .seconds(seconds * patience)
        while true {
            if let exitStatus { return exitStatus }
            guard ContinuousClock.now < deadline else {
                signalGroup(SIGKILL)
                let said = "stdout: \(output.suffix(2_000))\nstderr: \(errors.suffix(2_000))"
                throw TestFailure("\(arguments.joined(separator: " ")) did not end within \(seconds) s\n\(said)")
            }
            try await Task.sleep(for: .milliseconds(5))
        }
    }

    private func read(_ path: String) -> String {
        String(decoding: FileManager.default.contents(atPath: path) ?? Data(), as: UTF8.self)
    }
}

/// The thread's work: start, tell the pid, await the end.
private final class Starter: @unchecked Sendable {
    private let words: [String]
    private let environment: [String]
    private let directory: String
    private let descriptors: [Int32]
    private let user: Int64?
    private let started = DispatchSemaphore(value: 0)
    private let listening = DispatchSemaphore(value: 0)
    private var pid: Int32 = 0
    private var handler: (ExitStatus) -> Void = { _ in }

    init(words: [String], environment: [String], directory: String, descriptors: [Int32], user: Int64?) {
        self.words = words
        self.environment = environment
        self.directory = directory
        self.descriptors = descriptors
        self.user = user
    }

    func waitForStart() -> Int32 {
        started.wait()
        return pid
    }

    func onEnd(_ handler: @escaping (ExitStatus) -> Void) {
        self.handler = handler
        listening.signal()
    }

    func run() {
        pid = start()
        started.signal()
        guard pid > 0 else { return }
        listening.wait()
        var raw: Int32 = 0
        while waitpid(pid, &raw, 0) < 0 && errno == EINTR {}
        handler(raw & 0x7f == 0 ? .exited((raw >> 8) & 0xff) : .signalled(raw & 0x7f))
    }

    private func start() -> Int32 {
        withCStrings(words) { arguments in
            withCStrings(environment) { environment in
                directory.withCString { directory in
                    words[0].withCString { path in
                        descriptors.withUnsafeBufferPointer { descriptors -> Int32 in
                            guard let base = descriptors.baseAddress else { return -EINVAL }
                            var options = coterie_spawn(
                                path: path, arguments: arguments, environment: environment, directory: directory,
                                descriptors: base,
                                descriptor_count: Int32(descriptors.count), new_session: 1, new_group: 0,
                                death_signal: SIGKILL,
                                uid: user ?? -1, gid: user ?? -1)
                            return coterie_start_process(&options)
                        }
                    }
                }
            }
        }
    }

    private func withCStrings<Result>(
        _ strings: [String], _ body: (UnsafePointer<UnsafeMutablePointer<CChar>?>) -> Result
    ) -> Result {
        var pointers: [UnsafeMutablePointer<CChar>?] = strings.map { strdup($0) }
        pointers.append(nil)
        defer { for pointer in pointers { free(pointer) } }
        return pointers.withUnsafeBufferPointer { buffer in
            guard let base = buffer.baseAddress else {
                preconditionFailure("an array of at least one element has an address")
            }
            return body(base)
        }
    }
}

/// What must be gone when the test process ends, however that happens: processes die with it (PR_SET_PDEATHSIG), and on an
/// orderly end their groups are killed and the directories removed.
public final class Cleanup: @unchecked Sendable {
    public static let shared = Cleanup()
    private let lock = NSLock()
    private var pids: Set<Int32> = []
    private var directories: Set<String> = []

    private init() { atexit { Cleanup.shared.all() } }

    func add(pid: Int32) { _ = lock.withLock { pids.insert(pid) } }
    func remove(pid: Int32) { _ = lock.withLock { pids.remove(pid) } }
    func add(directory: String) { _ = lock.withLock { directories.insert(directory) } }

    /// Kills what still names the directory in its command line or environment, and removes it.
    func remove(directory: String) {
        for pid in ProcessTable.processes(naming: directory) where pid != getpid() { kill(pid, SIGKILL) }
        ProcessTable.unmount(below: directory)
        try? FileManager.default.removeItem(atPath: directory)
        _ = lock.withLock { directories.remove(directory) }
    }

    private func all() {
        let (left, paths) = lock.withLock { (pids, directories) }
        for pid in left { kill(-pid, SIGKILL) }
        for path in paths { remove(directory: path) }
    }
}
