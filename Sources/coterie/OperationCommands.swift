// Commands for those who run nodes: journals, images, a check of the machine; and those that are not built yet, which say so.
import ArgumentParser
import Client
import EventLoop
import Glibc
import Journal
import Model
import Node
import NodeCore
import Pods
import Transport
import Wire

struct JournalGroup: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "journal", abstract: "Check and read a node's log, offline.",
        subcommands: [JournalVerify.self, JournalDump.self])
}

/// The journal's directory; refused while a node uses it.
private func offlineJournal(_ data: String?) throws -> PosixDisk {
    let directory = data ?? DefaultPaths.dataDirectory
    let path = directory + "/journal"
    guard access(path, F_OK) == 0 else {
        throw CoterieError(
            .notFound, "there is no journal in \(directory)", hint: "name the data directory with --data")
    }
    if let pid = NodeProcess.running(in: directory) {
        throw CoterieError(
            .conflict, "the data directory \(directory) is in use by process \(pid)", hint: "stop that node first")
    }
    do { return try PosixDisk(path: path, create: false) } catch {
        throw CoterieError(.failed, "cannot open \(path): \(error)")
    }
}

struct JournalVerify: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "verify", abstract: "Check every byte of a journal.",
        discussion: "coterie journal verify --data /var/lib/coterie")
    @Option(help: "The node's data directory.") var data: String?

    func run() throws {
        let disk = try offlineJournal(data)
        let report: JournalReport
        do throws(JournalError) { report = try Journal.verify(disk: disk) } catch {
            throw CoterieError(.failed, "the journal can not be read: \(error)")
        }
        var outcome = ""
        var isDamaged = false
        switch report.outcome {
        case .fresh: outcome = "fresh"
        case .clean: outcome = "clean"
        case .tornTail(let tail):
            outcome = "torn tail in \(tail.segment) at byte \(tail.offset): never acknowledged, harmless"
        case .damaged(let damages):
            isDamaged = true
            outcome = "damaged: " + damages.map { "\($0)" }.joined(separator: "; ")
        }
        let entries = report.segments.reduce(0) { $0 + $1.entries }
        let document: JSONValue = [
            "outcome": .string(outcome), "damaged": .bool(isDamaged), "segments": JSONValue(report.segments.count),
            "entries": JSONValue(entries), "lastIndex": JSONValue(report.last.index),
            "lastTerm": JSONValue(report.last.term),
        ]
        Invocation.show(document) { _ in
            "\(outcome): \(report.segments.count) segments, \(entries) entries, "
                + "last index \(report.last.index) of term \(report.last.term)\n"
        }
        if isDamaged { throw Invocation.Exit(code: Model.ExitCode.failed.rawValue) }
    }
}

struct JournalDump: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "dump", abstract: "Print every record of a journal, a line each.",
        discussion: "coterie journal dump --data ./node0 --json")
    @Option(help: "The node's data directory.") var data: String?

    func run() throws {
        let disk = try offlineJournal(data)
        do throws(JournalError) {
            try Journal.dump(disk: disk) { segment, offset, item in
                Invocation.showItem(JournalDump.document(segment, offset, item)) { document in
                    (document.objectValue ?? []).map { "\($0.key)=\($0.value.stringValue ?? $0.value.text())" }.joined(
                        separator: " ") + "\n"
                }
            }
        } catch { throw CoterieError(.failed, "the journal can not be read: \(error)") }
    }

    private static func document(_ segment: String, _ offset: Int, _ item: JournalItem) -> JSONValue {
        let place: [JSONValue.Member] = [.init("segment", .string(segment)), .init("offset", JSONValue(offset))]
        let rest: [JSONValue.Member] =
            switch item {
            case .entry(let index, let term, let kind, let payload):
                [
                    .init("record", "entry"), .init("index", JSONValue(index)), .init("term", JSONValue(term)),
                    .init("kind", .string("\(kind)")), .init("bytes", JSONValue(payload.count)),
                ]
            case .truncate(let from): [.init("record", "truncate"), .init("from", JSONValue(from))]
            case .reset(let position):
                [
                    .init("record", "reset"), .init("index", JSONValue(position.index)),
                    .init("term", JSONValue(position.term)),
                ]
            case .mark(let batch, let last):
                [.init("record", "mark"), .init("batch", JSONValue(batch)), .init("last", JSONValue(last.index))]
            case .damaged(let reason, let lost):
                [
                    .init("record", "damaged"), .init("reason", .string(reason)),
                    .init("lost", lost.map { JSONValue($0) } ?? .null),
                ]
            }
        return .object(place + rest)
    }
}

struct ImageGroup: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "image", abstract: "Root file systems known to a node.",
        subcommands: [ImageList.self, ImageImport.self, ImageRemove.self])
}

struct ImageList: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "list", abstract: "List the images of a node.",
        discussion: "coterie image list --data /var/lib/coterie")
    @Option(help: "The node's data directory.") var data: String?

    func run() throws {
        let path = (data ?? DefaultPaths.dataDirectory) + "/images"
        var names = ["localhost/host"]
        if let stream = opendir(path) {
            defer { closedir(stream) }
            while let entry = readdir(stream) {
                let name = entryName(entry)
                if !name.hasPrefix(".") { names.append(name) }
            }
        }
        names.sort()
        Invocation.show(["images": .array(names.map { .string($0) })]) { _ in names.map { $0 + "\n" }.joined() }
    }
}

struct DoctorCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor", abstract: "Check whether this machine can run a node and pods.",
        discussion: "coterie doctor\ncoterie doctor --json")

    func run() throws {
        let findings = Findings()
        let programs = AgentOptions.Programs.found
        for (name, path) in [("coterie-init", programs.initProcess), ("coterie-console", programs.console)] {
            let isThere = access(path, X_OK) == 0
            findings.add(name, isThere, isThere ? path : "not found beside \(programs.coterie) nor in PATH")
        }
        let data = DefaultPaths.dataDirectory
        let parent =
            access(data, F_OK) == 0 ? data : String(data.prefix(upTo: data.lastIndex(of: "/") ?? data.startIndex))
        findings.add(
            "data directory", access(parent, W_OK) == 0,
            access(parent, W_OK) == 0 ? data : "\(parent) can not be written")
        let running = NodeProcess.running(in: data)
        for (what, port, type) in [
            ("port 7630/udp", UInt16(7_630), PortProbe.datagram), ("port 7630/tcp", 7_630, PortProbe.stream),
            ("port 11300/tcp", 11_300, PortProbe.stream),
        ] {
            let isFree = PortProbe.isFree(port, type: type)
            // No fault of the machine: other ports can be named.
            let text = isFree ? "free" : running.map { "in use; the agent of \(data) runs as \($0)" } ?? "in use"
            findings.add(what, isFree, text, isNeeded: false)
        }
        var limit = rlimit()
        _ = getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        findings.add("open files", limit.rlim_max >= 4_096, "up to \(limit.rlim_max)")
        if access(programs.initProcess, X_OK) == 0 {
            let directory = try makeTemporaryDirectory()
            defer { removeDirectoryTree(directory) }
            try Invocation.runLoop { loop in
                let options = PodRuntimeOptions(
                    podsDirectory: directory + "/pods", imageDirectory: directory + "/images",
                    initPath: programs.initProcess,
                    supplied: programs.coterie, nodeName: hostName())
                _ = mkdir(directory + "/pods", 0o700)
                let report = await withCheckedContinuation {
                    (continuation: CheckedContinuation<SandboxReport, Never>) in
                    PodRuntime.probeSandbox(loop: loop, options: options) { continuation.resume(returning: $0) }
                }
                let text =
                    report.sandbox.map { "\($0.rawValue), trial pod in \(report.trial.milliseconds) ms" } ?? report
                    .refusal?.description ?? ""
                findings.add("pods", report.sandbox != nil, text)
                findings.add(
                    "limits of pods", report.notEnforced.isEmpty,
                    (report.enforced + report.notEnforced).joined(separator: "; "), isNeeded: false)
            }
        }
        let failed = findings.items.contains { $0["ok"] == .bool(false) && $0["needed"] == .bool(true) }
        Invocation.show(["ok": .bool(!failed), "checks": .array(findings.items)]) { document in
            var table = Table("CHECK", "", "")
            for item in document.list("checks") {
                let mark = item["ok"] == .bool(true) ? "ok" : item["needed"] == .bool(true) ? "FAILED" : "note"
                table.add(item.cell("check"), mark, item.cell("detail"))
            }
            return table.text(headers: false)
        }
        if failed { throw Invocation.Exit(code: Model.ExitCode.failed.rawValue) }
    }

    /// Filled on the one thread that runs the command and its loop.
    private final class Findings: @unchecked Sendable {
        var items: [JSONValue] = []

        func add(_ check: String, _ ok: Bool, _ detail: String, isNeeded: Bool = true) {
            items.append([
                "check": .string(check), "ok": .bool(ok), "needed": .bool(isNeeded), "detail": .string(detail),
            ])
        }
    }
}

// MARK: - Not built yet

/// What the contract names and this version does not have: said in one line, with exit code 1 or 125.
private func notBuilt(_ what: String, hint: String? = nil) -> CoterieError {
    CoterieError(.failed, "\(what) is not built yet", hint: hint)
}

struct ImageImport: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "import", abstract: "Not built yet.")
    @Argument(help: "The name and a directory or archive.") var words: [String] = []
    func run() throws { throw notBuilt("image import", hint: "unpack a root file system into DATA/images/NAME") }
}

struct ImageRemove: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "remove", abstract: "Not built yet.")
    @Argument(help: "The name.") var name: String
    func run() throws { throw notBuilt("image remove", hint: "remove DATA/images/NAME") }
}

struct ExecCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "exec", abstract: "Run a command in a container of a pod (not built yet).",
        usage: "coterie exec POD [-c C] -- CMD…")
    @Argument(parsing: .captureForPassthrough, help: "POD [-c C] -- CMD…") var words: [String] = []
    func run() throws {
        try helpIfAsked(words, for: ExecCommand.self)
        Invocation.fail(notBuilt("exec"), code: Model.ExitCode.ownFailure.rawValue)
    }
}

struct ScaleCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "scale", abstract: "Change the number of pods (not built yet).")
    @Argument(help: "The kind.") var kind: String
    @Argument(help: "The name.") var name: String
    @Argument(help: "How many.") var count: Int
    func run() throws { throw notBuilt("scale", hint: "delete the object and apply it with another number") }
}

struct RolloutGroup: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "rollout", abstract: "Changes of what runs (not built yet).",
        subcommands: [RolloutStatus.self, RolloutUndo.self, RolloutRestart.self])
}

struct RolloutStatus: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "status", abstract: "Not built yet.")
    @Argument(help: "KIND and NAME.") var target: [String] = []
    func run() throws { throw notBuilt("rollout status") }
}

struct RolloutUndo: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "undo", abstract: "Not built yet.")
    @Argument(help: "KIND and NAME.") var target: [String] = []
    func run() throws { throw notBuilt("rollout undo") }
}

struct RolloutRestart: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "restart", abstract: "Not built yet.")
    @Argument(help: "KIND and NAME.") var target: [String] = []
    func run() throws { throw notBuilt("rollout restart") }
}
