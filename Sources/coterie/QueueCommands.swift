// `coterie queue …`: a job's whole life from the command line. A reservation is named by its lease token; no connection stays
// open for it.
import ArgumentParser
import Client
import Model
import NodeCore
import Queues
import Wire

struct QueueGroup: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "queue", abstract: "Durable job queues.",
        discussion: """
            echo 'hello' | coterie queue put greetings
            coterie queue reserve greetings --json
            coterie queue delete 1 --lease 1
            """,
        subcommands: [
            QueuePut.self, QueueReserve.self, QueueDelete.self, QueueRelease.self, QueueBury.self, QueueTouch.self,
            QueueKick.self,
            QueuePeek.self, QueuePause.self, QueuePurge.self, QueueStats.self, QueueList.self, QueueSet.self,
            QueueImport.self,
        ])
}

/// One command to the queues; a refusal is thrown.
func askQueue(_ command: QueueCommand, wait: TimeSpan? = nil, _ client: ClusterClient) async throws(CoterieError)
    -> QueueResult
{
    guard case .queue(let result) = try await client.command(.queue(command), wait: wait) else {
        throw CoterieError(.failed, "an answer of the wrong kind")
    }
    if case .refused(let code, let message) = result { throw CoterieError(code, message) }
    return result
}

func checkTube(_ name: String) throws(CoterieError) {
    guard QueueLimits.isValidTube(name) else {
        throw CoterieError(
            .badInput, "\(name) is no tube's name",
            hint: "1 to 200 of A-Z a-z 0-9 - + / ; . $ _ ( ), not beginning with -")
    }
}

func milliseconds(_ span: TimeSpan, _ flag: String) throws(CoterieError) -> UInt64 {
    let value = UInt64(clamping: span.milliseconds)
    guard value <= QueueLimits.milliseconds else {
        throw CoterieError(.badInput, "\(flag) \(span) is too long", hint: "at most 2^32 - 1 seconds")
    }
    return value
}

/// What a command about one job did, or why it could not.
private func finish(_ result: QueueResult, id: UInt64, done: String) throws(CoterieError) {
    switch result {
    case .done: Invocation.show(["id": JSONValue(id), "state": .string(done)]) { _ in "\(done) \(id)\n" }
    case .buried:
        Invocation.show(["id": JSONValue(id), "state": "buried"]) { _ in
            "buried \(id): it was tried as often as its tube allows\n"
        }
    case .notFound:
        throw CoterieError(.notFound, "job \(id) does not exist, or is in no state in which this can be done")
    case .leaseExpired:
        throw CoterieError(
            .conflict, "job \(id) is not reserved under this lease",
            hint: "the lease has ended, or the token is that of another reservation")
    case .inserted, .reserved, .kicked, .purged, .refused: throw CoterieError(.failed, "an answer of the wrong kind")
    }
}

struct QueueReserve: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "reserve", abstract: "Take the next job of one or more tubes.",
        discussion: """
            The job stays reserved for its time to run; delete, release, bury or touch it with its lease token. Without --wait a tube \
            without ready jobs ends it at once with exit code 4; with --wait, exit code 6 when the time has passed.

            coterie queue reserve jobs --wait 10s --json
            """)
    @Argument(help: "Tubes; the most urgent job of all of them is taken.") var tubes: [String]
    @Option(help: "How long to wait for a job.", transform: parseDuration) var wait: TimeSpan?

    func run() throws {
        for tube in tubes { try checkTube(tube) }
        let (tubes, wait) = (tubes, wait)
        try Invocation.withClient { client in
            guard
                case .reserved(let jobs) = try await askQueue(
                    .reserve(tubes: tubes, holder: 0, count: 1), wait: wait, client)
            else {
                throw CoterieError(.failed, "an answer of the wrong kind")
            }
            guard let job = jobs.first else {
                let what = "no job is ready in \(tubes.joined(separator: ", "))"
                if let wait { throw CoterieError(.deadline, "\(what) after \(wait)") }
                throw CoterieError(.notFound, what, hint: "wait for one with --wait 10s")
            }
            var document: [JSONValue.Member] = [
                .init("id", JSONValue(job.id)), .init("tube", .string(job.tube)), .init("lease", JSONValue(job.lease)),
            ]
            document.append(bodyMember(job.body))
            document += [
                .init("reserves", JSONValue(job.reserves)), .init("priority", JSONValue(job.priority)),
                .init("ttrMilliseconds", JSONValue(job.ttrMilliseconds)),
            ]
            guard !Invocation.options.json else { return Invocation.print(.object(document)) }
            writeError(
                "job \(job.id) of \(job.tube), lease \(job.lease), for \(TimeSpan.milliseconds(Int64(clamping: job.ttrMilliseconds)))"
            )
            writeOut(job.body)
            if isTerminal(1) && job.body.last != 10 { writeOut("\n") }
        }
    }
}

func bodyMember(_ body: [UInt8]) -> JSONValue.Member {
    if let text = String(validating: body, as: UTF8.self) { return .init("body", .string(text)) }
    return .init("bodyBase64", .string(Base64.encode(body)))
}

struct QueueDelete: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "delete", abstract: "Delete a job: it is done.",
        discussion: "A job that is not reserved needs no lease.\n\ncoterie queue delete 12 --lease 34")
    @Argument(help: "The job's id.") var id: UInt64
    @Option(help: "The token of its reservation.") var lease: UInt64?

    func run() throws {
        let (id, lease) = (id, lease)
        try Invocation.withClient { client in
            try finish(try await askQueue(.delete(id: id, lease: lease), client), id: id, done: "deleted")
        }
    }
}

struct QueueRelease: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "release", abstract: "Give a reserved job back.",
        discussion: "coterie queue release 12 --lease 34 --delay 10s")
    @Argument(help: "The job's id.") var id: UInt64
    @Option(help: "The token of its reservation.") var lease: UInt64
    @Option(help: "Smaller is sooner (default: as it was).") var priority: UInt32?
    @Option(help: "How long it stays away.", transform: parseDuration) var delay: TimeSpan = .zero

    func run() throws {
        let (id, lease, priority) = (id, lease, priority)
        let delay = try milliseconds(delay, "--delay")
        try Invocation.withClient { client in
            let kept = try await currentPriority(id, priority, client)
            let command = QueueCommand.release(id: id, lease: lease, priority: kept, delayMilliseconds: delay)
            try finish(try await askQueue(command, client), id: id, done: delay > 0 ? "delayed" : "released")
        }
    }
}

/// The priority given, else the one that the job has.
private func currentPriority(_ id: UInt64, _ given: UInt32?, _ client: ClusterClient) async throws(CoterieError)
    -> UInt32
{
    if let given { return given }
    return UInt32(clamping: try await client.query("jobs/\(id)").int("priority"))
}

struct QueueBury: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bury", abstract: "Put a reserved job aside until it is kicked.",
        discussion: "coterie queue bury 12 --lease 34")
    @Argument(help: "The job's id.") var id: UInt64
    @Option(help: "The token of its reservation.") var lease: UInt64
    @Option(help: "Smaller is sooner (default: as it was).") var priority: UInt32?

    func run() throws {
        let (id, lease, priority) = (id, lease, priority)
        try Invocation.withClient { client in
            let kept = try await currentPriority(id, priority, client)
            try finish(try await askQueue(.bury(id: id, lease: lease, priority: kept), client), id: id, done: "buried")
        }
    }
}

struct QueueTouch: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "touch", abstract: "Let a job's time to run begin again.",
        discussion: "coterie queue touch 12 --lease 34")
    @Argument(help: "The job's id.") var id: UInt64
    @Option(help: "The token of its reservation.") var lease: UInt64

    func run() throws {
        let (id, lease) = (id, lease)
        try Invocation.withClient { client in
            try finish(try await askQueue(.touch(id: id, lease: lease), client), id: id, done: "touched")
        }
    }
}

struct QueueKick: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "kick", abstract: "Make buried jobs ready again; if there are none, delayed ones.",
        discussion: "coterie queue kick jobs 10")
    @Argument(help: "The tube.") var tube: String
    @Argument(help: "At most so many.") var count: Int = 1

    func run() throws {
        try checkTube(tube)
        guard count > 0, count <= Int(UInt32.max) else {
            throw CoterieError(.badInput, "kick \(count): a positive number is needed")
        }
        let (tube, count) = (tube, count)
        try Invocation.withClient { client in
            switch try await askQueue(.kick(tube: tube, count: count), client) {
            case .kicked(let number): Invocation.show(["kicked": JSONValue(number)]) { _ in "kicked \(number)\n" }
            case .notFound: throw CoterieError(.notFound, "there is no tube \(tube)")
            default: throw CoterieError(.failed, "an answer of the wrong kind")
            }
        }
    }
}

struct QueuePeek: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "peek", abstract: "Look at a job without taking it.",
        discussion:
            "A number is a job's id; anything else a tube, whose next job is shown.\n\n"
            + "coterie queue peek 12\ncoterie queue peek jobs --state buried"
    )
    @Argument(help: "A job's id or a tube.") var target: String = "default"
    @Option(help: "Of a tube: ready, delayed or buried (default: the first of these that has one).") var state: String?

    func run() throws {
        let target = target
        if let state, !["ready", "delayed", "buried", "reserved"].contains(state) {
            throw CoterieError(.badInput, "--state \(state): unknown state", hint: "ready, delayed or buried")
        }
        let state = state
        try Invocation.withClient { client in
            let path =
                if state == nil, UInt64(target) != nil { "jobs/\(target)" } else {
                    "queues/\(percentEncoded(target))/peek" + (state.map { "/\($0)" } ?? "")
                }
            let job = try await client.query(path)
            guard !Invocation.options.json else { return Invocation.print(job) }
            writeError(
                "job \(job.cell("id")) of \(job.cell("tube")), \(job.cell("state")), priority \(job.cell("priority"))")
            if let text = job["body"]?.stringValue {
                writeOut(text + (isTerminal(1) && !text.hasSuffix("\n") ? "\n" : ""))
            } else if let body = job["bodyBase64"]?.stringValue.flatMap({ Base64.decode($0) }) {
                writeOut(body)
            }
        }
    }
}

struct QueuePause: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "pause", abstract: "Let nothing be reserved from a tube for a while; 0 ends a pause.",
        discussion: "coterie queue pause jobs 5m")
    @Argument(help: "The tube.") var tube: String
    @Argument(help: "How long.", transform: parseDuration) var span: TimeSpan

    func run() throws {
        try checkTube(tube)
        let pause = try milliseconds(span, "pause")
        let (tube, span) = (tube, span)
        try Invocation.withClient { client in
            guard case .done = try await askQueue(.pause(tube: tube, milliseconds: pause), client) else {
                throw CoterieError(.notFound, "there is no tube \(tube)")
            }
            Invocation.show(["tube": .string(tube), "pausedMilliseconds": JSONValue(pause)]) { _ in
                pause == 0 ? "\(tube) goes on\n" : "\(tube) is paused for \(span)\n"
            }
        }
    }
}

struct QueuePurge: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "purge", abstract: "Delete every job of a tube that is not reserved.",
        discussion: "coterie queue purge jobs")
    @Argument(help: "The tube.") var tube: String

    func run() throws {
        try checkTube(tube)
        let tube = tube
        try Invocation.withClient { client in
            switch try await askQueue(.purge(tube: tube), client) {
            case .purged(let count): Invocation.show(["purged": JSONValue(count)]) { _ in "purged \(count)\n" }
            case .notFound: throw CoterieError(.notFound, "there is no tube \(tube)")
            default: throw CoterieError(.failed, "an answer of the wrong kind")
            }
        }
    }
}

struct QueueStats: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "stats", abstract: "Show beanstalkd's figures, of all queues, a tube or a job.",
        discussion: "coterie queue stats\ncoterie queue stats jobs\ncoterie queue stats --job 12")
    @Argument(help: "The tube.") var tube: String?
    @Option(help: "A job's id.") var job: UInt64?

    func run() throws {
        let path = job.map { "jobs/\($0)/stats" } ?? tube.map { "queues/\(percentEncoded($0))" } ?? "queue-stats"
        try Invocation.withClient { client in
            Invocation.show(try await client.query(path)) { document in
                var table = Table("", "")
                for member in document.objectValue ?? [] { table.add(member.key, document.cell(member.key)) }
                return table.text(headers: false)
            }
        }
    }
}

struct QueueList: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "list", abstract: "List the tubes.", discussion: "coterie queue list --json")

    func run() throws {
        try Invocation.withClient { client in Invocation.show(try await client.query("queues"), human: QueueList.text) }
    }

    static func text(_ document: JSONValue) -> String {
        var table = Table("TUBE", "READY", "RESERVED", "DELAYED", "BURIED", "WAITING")
        for tube in document.list("tubes") {
            table.add(["name", "ready", "reserved", "delayed", "buried", "waiting"].map { tube.cell($0) })
        }
        return table.text()
    }
}

struct QueueSet: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "set", abstract: "Change settings of a tube; an empty value restores the default.",
        discussion:
            "Settings: \(TubeSettings.names.joined(separator: ", ")).\n\n"
            + "coterie queue set jobs max-attempts=5 backoff=2s\ncoterie queue set jobs max-attempts="
    )
    @Argument(help: "The tube.") var tube: String
    @Argument(help: "NAME=VALUE, one or more.") var settings: [String]

    func run() throws {
        try checkTube(tube)
        let pairs = try parsePairs(settings, for: "set")
        for name in pairs.keys.sorted() where !TubeSettings.names.contains(name) {
            let near = CommandNames.nearest(to: name, among: TubeSettings.names)
            throw CoterieError(
                .badInput, "a tube has no setting \(name)",
                hint: near.map { "did you mean \($0)?" } ?? "one of \(TubeSettings.names.joined(separator: ", "))")
        }
        let tube = tube
        try Invocation.withClient { client in
            guard case .done = try await askQueue(.setTube(name: tube, settings: pairs), client) else {
                throw CoterieError(.failed, "an answer of the wrong kind")
            }
            let members = pairs.sorted { $0.key < $1.key }.map { JSONValue.Member($0.key, .string($0.value)) }
            Invocation.show(["tube": .string(tube), "settings": .object(members)]) { _ in "\(tube) is set\n" }
        }
    }
}
