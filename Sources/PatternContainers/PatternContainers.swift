// The containers that Coterie supplies, by the names of the command line: each is made from its words, started, and stopped.
import Client
import EventLoop
import Model

public enum PatternContainers {
    /// What ``make(name:arguments:loop:report:client:)`` knows.
    public static let names = [
        "sidecar logs", "ambassador redis", "ambassador tcp", "ambassador queue", "adapter", "elector", "worker",
        "work", "elect",
    ]

    /// The name that the words of a command line begin with, and the words after it.
    public static func split(_ words: [String]) -> (name: String, arguments: [String])? {
        for name in names {
            let parts = name.split(separator: " ").map(String.init)
            if words.starts(with: parts) { return (name, Array(words.dropFirst(parts.count))) }
        }
        return nil
    }

    /// Makes a container; nothing happens before it is started.
    /// - Parameters:
    ///   - client: called at most once, by those containers that need a cluster, after their words were found good; the
    ///     client is the container's from then on, and closed with it.
    public static func make(
        name: String, arguments: [String], loop: EventLoop, report: @escaping Report = reportToStandardError,
        client: () throws -> ClusterClient
    ) throws(CoterieError) -> any SuppliedContainer {
        func access() throws(CoterieError) -> ClusterAccess {
            do {
                return ClusterAccess(try client())
            } catch let error as CoterieError {
                throw error
            } catch {
                throw CoterieError(.failed, "no client of the cluster: \(error)")
            }
        }
        func service(_ options: ServiceAmbassadorOptions) throws(CoterieError) -> any SuppliedContainer {
            let access = try access()
            let ambassador = ServiceAmbassador(loop: loop, options: options, dialer: access, report: report)
            return HostedContainer(start: { () throws(CoterieError) in try ambassador.start() }) { done in
                ambassador.stop()
                access.close()
                done()
            }
        }
        switch name {
        case "sidecar logs":
            let sidecar = LogSidecar(loop: loop, options: try LogSidecarOptions(arguments: arguments), report: report)
            return HostedContainer(start: { () throws(CoterieError) in try sidecar.start() }) { sidecar.stop(then: $0) }
        case "ambassador redis":
            let ambassador = RedisAmbassador(
                loop: loop, options: try RedisAmbassadorOptions(arguments: arguments), report: report)
            return HostedContainer(start: { () throws(CoterieError) in try ambassador.start() }) { done in
                ambassador.stop()
                done()
            }
        case "ambassador tcp":
            switch try TCPAmbassadorPlan(arguments: arguments) {
            case .direct(let options):
                let ambassador = TCPAmbassador(loop: loop, options: options, report: report)
                return HostedContainer(start: { () throws(CoterieError) in try ambassador.start() }) { done in
                    ambassador.stop()
                    done()
                }
            case .service(let options): return try service(options)
            }
        case "ambassador queue": return try service(ServiceAmbassadorOptions(queueArguments: arguments))
        case "adapter":
            let adapter = RecordAdapter(
                loop: loop, options: try RecordAdapterOptions(arguments: arguments), report: report)
            return HostedContainer(start: { () throws(CoterieError) in try adapter.start() }) { adapter.stop(then: $0) }
        case "elector":
            let options = try ElectorOptions(arguments: arguments)
            let access = try access()
            let elector = Elector(loop: loop, options: options, service: access, report: report)
            return HostedContainer(start: { () throws(CoterieError) in try elector.start() }) { done in
                elector.stop {
                    access.close()
                    done()
                }
            }
        case "worker", "work":
            let options = try WorkerOptions(arguments: arguments, verb: name, tubeIsOperand: name == "work")
            return ClusterContainer(try access()) { Worker(loop: loop, options: options, service: $0, report: report) }
        case "elect":
            let options = try ElectedCommandOptions(arguments: arguments)
            return ClusterContainer(try access()) {
                ElectedCommand(loop: loop, options: options, service: $0, report: report)
            }
        default:
            throw CoterieError(
                .badInput, "there is no container \(name)", hint: "one of: \(names.joined(separator: ", "))")
        }
    }
}

/// Gives a part its life as a container.
private final class HostedContainer: SuppliedContainer {
    private let begin: () throws(CoterieError) -> Void
    private let end: (@escaping () -> Void) -> Void
    private var isStopping = false
    private var hasEnded = false
    private var waiting: [() -> Void] = []
    var onExit: ((Int32) -> Void)?

    init(start: @escaping () throws(CoterieError) -> Void, stop: @escaping (@escaping () -> Void) -> Void) {
        begin = start
        end = stop
    }

    func start() throws(CoterieError) { try begin() }

    func stop(_ done: @escaping () -> Void) {
        if hasEnded { return done() }
        waiting.append(done)
        guard !isStopping else { return }
        isStopping = true
        end { [self] in
            hasEnded = true
            onExit?(0)
            onExit = nil
            let waiting = self.waiting
            self.waiting = []
            for each in waiting { each() }
        }
    }
}

/// A container with a connection to the cluster, which is closed after it has ended.
private final class ClusterContainer<Body: SuppliedContainer>: SuppliedContainer {
    private let access: ClusterAccess
    private let body: Body
    var onExit: ((Int32) -> Void)?

    init(_ access: ClusterAccess, make: (ClusterAccess) -> Body) {
        self.access = access
        body = make(access)
        body.onExit = { [weak self] code in
            guard let self else { return }
            access.close()
            onExit?(code)
            onExit = nil
        }
    }

    func start() throws(CoterieError) { try body.start() }
    func stop(_ done: @escaping () -> Void) { body.stop(done) }
}
