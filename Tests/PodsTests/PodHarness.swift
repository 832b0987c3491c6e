// A runtime in a directory of its own, and waiting for what it does.
import EventLoop
import Glibc
import Model
import Testing

@testable import Pods

/// What this machine lets the tests do, found by one trial pod.
enum Machine {
    /// `coterie-init`, built beside the tests.
    static let initPath: String = {
        var buffer = [CChar](repeating: 0, count: 4_096)
        let n = readlink("/proc/self/exe", &buffer, buffer.count - 1)
        let own = n > 0 ? String(decoding: buffer[..<n].map { UInt8(bitPattern: $0) }, as: UTF8.self) : ""
        let besides = [own, CommandLine.arguments.first ?? ""].compactMap { path in
            path.lastIndex(of: "/").map { String(path[..<$0]) + "/coterie-init" }
        }
        return besides.first { access($0, X_OK) == 0 } ?? "coterie-init-not-found"
    }()

    static let report: SandboxReport? = {
        guard let directory = makeTemporaryDirectory(), let loop = try? EventLoop() else { return nil }
        defer { removeTree(directory) }
        let options = PodRuntimeOptions(
            podsDirectory: directory + "/pods", imageDirectory: directory, initPath: initPath, nodeName: "n")
        var result: SandboxReport?
        PodRuntime.probeSandbox(loop: loop, options: options) {
            result = $0
            loop.stop()
        }
        loop.run()
        loop.close()
        return result
    }()

    static let whyNot: String = report.map { $0.refusal?.description ?? "no namespaces" } ?? "no trial was possible"
    static var hasNamespaces: Bool { report?.sandbox == .namespaces }
    static var hasUsers: Bool { hasNamespaces && report?.ownUsers == true }
    static var limitsMemory: Bool { hasNamespaces && report?.enforced.contains("memory") == true }
    static var hasPerl: Bool { hasNamespaces && access("/usr/bin/perl", X_OK) == 0 }
}

func makeTemporaryDirectory() -> String? {
    let base = getenv("COTERIE_TEST_HOST_DIRECTORY").map { String(cString: $0) } ?? "/tmp"
    var template = Array("\(base)/coterie-pods-test-XXXXXX".utf8CString)
    return mkdtemp(&template).map { String(cString: $0) }
}

/// Everything of one test. Used on one thread.
final class PodHarness {
    let loop: EventLoop
    let directory: String
    /// A directory that pods may see and write to.
    let shared: String
    let runtime: PodRuntime
    private(set) var statuses: [String: [PodStatus]] = [:]
    private(set) var gone: Set<String> = []

    init(sandbox: SandboxMode = .auto, _ change: (inout PodRuntimeOptions) -> Void = { _ in }) throws {
        loop = try EventLoop()
        directory = try #require(makeTemporaryDirectory())
        shared = try #require(makeTemporaryDirectory())
        chmod(shared, 0o777)
        var options = PodRuntimeOptions(
            podsDirectory: directory + "/pods", imageDirectory: directory + "/images", initPath: Machine.initPath,
            sandbox: sandbox,
            nodeName: "node-1", backoff: RestartBackoff(minimum: .milliseconds(20), maximum: .milliseconds(50)),
            maskedPaths: [directory])
        change(&options)
        runtime = try PodRuntime(loop: loop, options: options)
        runtime.onStatus = { [weak self] in self?.statuses[$0, default: []].append($1) }
        runtime.onGone = { [weak self] in self?.gone.insert($0) }
    }

    /// Runs the loop until the condition holds; false after the time.
    @discardableResult
    func wait(_ limit: TimeSpan = .seconds(15), until condition: @escaping () -> Bool) -> Bool {
        var held = false
        let end = loop.now + limit
        let timer = LoopTimer(loop: loop)
        timer.start(every: .milliseconds(2)) { [loop] in
            held = condition()
            if held || loop.now >= end { loop.stop() }
        }
        loop.run()
        timer.close()
        return held
    }

    func status(_ key: String) -> PodStatus { runtime.status(key: key) ?? PodStatus() }

    func container(_ key: String, _ name: String) -> ContainerStatus? {
        status(key).containers.first { $0.name == name }
    }

    /// Starts a pod and waits until it is gone.
    @discardableResult
    func runToEnd(_ spec: PodSpec) throws -> PodStatus {
        try runtime.start(spec, key: spec.name)
        #expect(wait { self.gone.contains(spec.name) }, "the pod \(spec.name) did not end: \(status(spec.name))")
        return status(spec.name)
    }

    /// All lines of a container as text, parts joined.
    func log(_ key: String, _ container: String? = nil, _ options: LogOptions = LogOptions()) throws -> [String] {
        var lines: [String] = []
        var open: [LogStream: [UInt8]] = [:]
        var isOver = false
        try runtime.logs(key: key, container: container, options: options) { line in
            open[line.stream, default: []] += line.text
            if !line.isPartial {
                lines.append(String(decoding: open.removeValue(forKey: line.stream) ?? [], as: UTF8.self))
            }
        } onEnd: { _ in
            isOver = true
        }
        #expect(wait { isOver })
        return lines
    }

    /// Waits until a container has written this line.
    @discardableResult
    func waitForLine(_ key: String, _ container: String, _ line: String) throws -> Bool {
        var isThere = false
        let reader = try runtime.logs(key: key, container: container, options: LogOptions(follow: true)) {
            if $0.text == Array(line.utf8) { isThere = true }
        } onEnd: { _ in
        }
        defer { reader.cancel() }
        return wait { isThere }
    }

    /// Runs a command in a container: its code and output.
    func exec(_ key: String, _ container: String, _ command: [String], input: String? = nil) throws -> (
        code: Int32, text: String
    ) {
        let session = try runtime.exec(key: key, container: container, command: command, hasInput: input != nil)
        var text: [UInt8] = []
        var code: Int32?
        session.onOutput = { text += Array($1) }
        session.onExit = {
            switch $0 {
            case .success(let value): code = value
            case .failure(let error):
                text = Array(error.message.utf8)
                code = -1
            }
        }
        if let input {
            session.write(Array(input.utf8))
            session.closeInput()
        }
        #expect(wait { code != nil })
        return (code ?? -2, String(decoding: text, as: UTF8.self))
    }

    func close() {
        var isDone = false
        for key in runtime.keys { runtime.stop(key: key, grace: .zero) }
        runtime.shutdown { isDone = true }
        #expect(wait { isDone }, "the runtime did not shut down")
        // What is still being removed in the background.
        let idle = { [directory] in entries(of: directory + "/pods").allSatisfy { !$0.hasPrefix(".gone") } }
        wait(.seconds(5), until: idle)
        loop.close()
        removeTree(directory)
        removeTree(shared)
    }
}

/// A container of the host's image that runs a line of shell.
func shell(_ name: String, _ script: String, _ change: (inout ContainerSpec) -> Void = { _ in }) -> ContainerSpec {
    var spec = ContainerSpec(name: name, image: ImageName.host, command: ["/bin/sh", "-c", script])
    change(&spec)
    return spec
}

func pod(_ name: String, _ containers: [ContainerSpec], _ change: (inout PodSpec) -> Void = { _ in }) -> PodSpec {
    var spec = PodSpec(name: name, containers: containers, restartPolicy: .never, terminationGracePeriod: .seconds(5))
    change(&spec)
    return spec
}
