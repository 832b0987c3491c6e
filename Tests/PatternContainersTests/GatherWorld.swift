// A cluster in one process for scatter-gather: services by name over socket pairs, one job's record, containers that can die.
import EventLoop
import Glibc
import Model
import ScatterGather
import Scheduling
import Testing
import Wire

@testable import PatternContainers

/// One end of a socket pair as a stream of the cluster.
final class PairStream: GatherStream {
    private let stream: ByteStream
    private var isOver = false
    var onDrain: (() -> Void)?

    init(_ stream: ByteStream) {
        self.stream = stream
        stream.onDrain = { [weak self] in self?.onDrain?() }
    }

    var isCongested: Bool { stream.isCongested }
    func write(_ bytes: [UInt8]) { stream.write(bytes) }
    func pauseReading() { stream.pauseReading() }
    func resumeReading() { stream.resumeReading() }

    func start(
        onBytes: @escaping (ArraySlice<UInt8>) -> Void, onEnd: @escaping () -> Void,
        onClose: @escaping (CoterieError?) -> Void
    ) {
        stream.onBytes = { onBytes(Array($0)[...]) }
        stream.onEnd = onEnd
        stream.onClose = { error in onClose(error.map { CoterieError(.unavailable, "\($0)") }) }
        stream.resumeReading()
    }

    func close() { stream.close() }
}

final class GatherCluster {
    let loop: EventLoop
    /// By `POD/SERVICE`.
    fileprivate var listeners: [String: (any GatherStream) -> Void] = [:]
    var state = GatherState.running
    var progress = GatherProgress()
    var created: [PodSpec] = []
    var updates = 0
    var finishes = 0
    var exists = true
    /// Every connection, so that one can be cut.
    private var pairs: [(service: String, ByteStream, ByteStream)] = []

    init(_ loop: EventLoop) { self.loop = loop }

    func transport(pod: String? = nil) -> any GatherTransport { Transport(self, pod: pod) }

    fileprivate func connect(_ service: String) -> (any GatherStream)? {
        guard let listener = listeners[service] else { return nil }
        var descriptors: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0, &descriptors) == 0,
            let near = try? ByteStream.adopt(loop: loop, descriptor: descriptors[0]),
            let far = try? ByteStream.adopt(loop: loop, descriptor: descriptors[1])
        else { return nil }
        pairs.append((service, near, far))
        listener(PairStream(far))
        return PairStream(near)
    }

    /// Cuts all connections to a service, as a broken network does.
    func cut(_ service: String) {
        for pair in pairs where pair.service == service {
            pair.1.shutdown()
            pair.2.shutdown()
        }
        pairs.removeAll { $0.service == service }
    }

    private final class Transport: GatherTransport {
        private unowned let cluster: GatherCluster
        private let pod: String?
        private var mine: [String] = []

        init(_ cluster: GatherCluster, pod: String?) {
            self.cluster = cluster
            self.pod = pod
        }

        private func soon(_ body: @escaping () -> Void) { cluster.loop.beforeWaiting(body) }

        func dial(
            _ service: String, timeout: TimeSpan, then: @escaping (Result<any GatherStream, CoterieError>) -> Void
        ) {
            soon { [self] in
                if let stream = cluster.connect(service) {
                    then(.success(stream))
                } else {
                    then(.failure(CoterieError(.deadline, "nobody listens at \(service)")))
                }
            }
        }

        func listen(
            _ service: String, onConnection: @escaping (any GatherStream) -> Void,
            then: @escaping (CoterieError?) -> Void
        ) {
            guard let pod else { return soon { then(CoterieError(.notAllowed, "only a pod can listen")) } }
            cluster.listeners["\(pod)/\(service)"] = onConnection
            mine.append("\(pod)/\(service)")
            soon { then(nil) }
        }

        func command(_ command: SchedulingCommand, then: @escaping (Result<SchedulingResult, CoterieError>) -> Void) {
            let cluster = self.cluster
            switch command {
            case .createGather(_, let pods): cluster.created = pods
            case .updateGather(_, let progress):
                cluster.updates += 1
                if !cluster.state.isTerminal { cluster.progress = progress }
            case .finishGather(_, let state, let progress):
                cluster.finishes += 1
                if !cluster.state.isTerminal { (cluster.state, cluster.progress) = (state, progress) }
            case .cancelGather:
                cluster.state = .cancelled
                cluster.progress.cancelRest()
            default: Issue.record("\(command)")
            }
            soon { then(.success(.done)) }
        }

        func gather(_ id: String, then: @escaping (Result<JSONValue, CoterieError>) -> Void) {
            let cluster = self.cluster
            soon {
                then(
                    cluster.exists
                        ? .success(cluster.progress.document(id: id, state: cluster.state))
                        : .failure(CoterieError(.notFound, "there is no gather \(id)")))
            }
        }

        func close() { for name in mine { cluster.listeners[name] = nil } }
    }
}

/// A whole job: a root, leaves, a client whose output is kept.
final class GatherJob {
    let test: TestLoop
    let cluster: GatherCluster
    let directory = TestDirectory()
    var root: GatherRoot?
    var leaves: [GatherLeaf] = []
    var client: GatherClientRun?
    private(set) var code: Int32?
    private(set) var state: GatherState?
    private(set) var progress = GatherProgress()
    private(set) var leafExits: [Int32] = []
    private(set) var rootExit: Int32?
    private var output: Int32 = -1
    private var rootArguments: [String] = []
    var changeRoot: (inout GatherRootOptions) -> Void = { _ in }

    init() throws {
        test = try TestLoop()
        cluster = GatherCluster(test.loop)
    }

    deinit { if output >= 0 { close(output) } }

    func startRoot(_ arguments: [String]) throws {
        rootArguments = arguments
        var options = try GatherRootOptions(arguments: ["--gather", "g", "--leaf", "x"] + arguments)
        options.scratch = directory.path
        options.node = "root-node"
        changeRoot(&options)
        let root = GatherRoot(
            loop: test.loop, options: options, transport: cluster.transport(pod: "gather-g-root"), report: test.report)
        root.onExit = { [weak self] code in self?.rootExit = code }
        try root.start()
        self.root = root
    }

    /// As after the death of its node: nothing is said any more, another one takes over.
    func replaceRoot() throws {
        root?.onExit = nil
        root?.stop {}
        try startRoot(rootArguments)
    }

    func startLeaves(_ count: Int, _ command: String, arguments: [String] = []) throws {
        for _ in 0..<count {
            var options = try GatherLeafOptions(
                arguments: ["--gather", "g", "--root", "gather-g-root", "--leaf", command] + arguments)
            options.scratch = directory.path
            options.name = "leaf-\(leaves.count)"
            options.node = "node-\(leaves.count)"
            options.grace = .milliseconds(200)
            let leaf = GatherLeaf(
                loop: test.loop, options: options, transport: cluster.transport(), report: test.report)
            leaf.onExit = { [weak self] code in self?.leafExits.append(code) }
            try leaf.start()
            leaves.append(leaf)
        }
    }

    func startClient(input: String? = nil, _ change: (inout GatherClientOptions) -> Void = { _ in }) throws {
        var options = GatherClientOptions(id: "g")
        options.scratch = directory.path
        if let input {
            directory.append("input", input)
            options.input = .path(directory.path + "/input")
        }
        let name = "output-\(directory.names().count)"
        output = open("\(directory.path)/\(name)", O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        options.output = output
        change(&options)
        let client = GatherClientRun(
            loop: test.loop, options: options, transport: cluster.transport(), report: test.report)
        client.onFinished = { [weak self] code, progress, state in
            self?.code = code
            self?.progress = progress
            self?.state = state
        }
        (code, state) = (nil, nil)
        try client.start()
        self.client = client
    }

    /// Until the client has ended.
    func finish(within limit: TimeSpan = .seconds(20)) {
        let ended = test.run(within: limit) { [self] in code != nil }
        #expect(ended, "the client did not end: \(test.said.joined(separator: " | "))")
    }

    func tearDown() {
        client?.cancel()
        root?.stop {}
        for leaf in leaves { leaf.stop {} }
        test.run(for: .milliseconds(20))
    }

    var result: String {
        var info = stat()
        fstat(output, &info)
        var bytes = [UInt8](repeating: 0, count: Int(info.st_size))
        let count = bytes.withUnsafeMutableBytes { pread(output, $0.baseAddress, $0.count, 0) }
        return String(decoding: bytes.prefix(max(count, 0)), as: UTF8.self)
    }
}
