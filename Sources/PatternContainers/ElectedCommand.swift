// `coterie elect NAME -- COMMAND`: the command runs only while the lease is held. Its whole process tree is dead before the
// lease can pass on:
//
//     request sent ──────────── 3/4 ttl ──── 7/8 ttl ──────── ttl
//                              SIGTERM       SIGKILL           the cluster may grant it to another
//
// Should this process itself be killed, a guard (a shell that reads from a pipe) kills the tree at once; should it be frozen,
// the guard does so at 7/8.
import EventLoop
import Glibc
import Model

public struct ElectedCommandOptions: Sendable {
    public var election: String
    public var ttl: TimeSpan = .seconds(10)
    /// One word is a line for `/bin/sh -c`.
    public var command: [String]
    public var identity: ContainerIdentity = .current
    /// How long the command may take to end after SIGTERM when this process is to stop; the lease is held meanwhile.
    public var grace: TimeSpan = .seconds(10)

    public init(election: String, command: [String]) {
        self.election = election
        self.command = command
    }

    /// `NAME [--ttl D] [--grace D] -- COMMAND…`.
    public init(arguments: [String]) throws(CoterieError) {
        var flags = try FlagReader("elect", arguments)
        let ttl = try flags.duration("--ttl") ?? .seconds(10)
        let grace = try flags.duration("--grace") ?? .seconds(10)
        let words = flags.takeOperands()
        try flags.finish()
        guard words.count == 1 else {
            throw CoterieError(
                .badInput, "elect: one election's NAME is needed", hint: "coterie elect NAME [--ttl D] -- COMMAND…")
        }
        guard !flags.command.isEmpty else {
            throw CoterieError(
                .badInput, "elect: a command is needed after --", hint: "coterie elect NAME [--ttl D] -- COMMAND…")
        }
        try checkElection(words[0], ttl: ttl)
        self.init(election: words[0], command: flags.command)
        self.ttl = ttl
        self.grace = grace
    }
}

/// Names and times that the cluster would refuse later.
func checkElection(_ name: String, ttl: TimeSpan) throws(CoterieError) {
    guard !name.isEmpty, name.utf8.count <= Limits.nameBytes, name.utf8.allSatisfy({ $0 > 32 && $0 != 127 }) else {
        throw CoterieError(.badInput, "an election's name has 1 to \(Limits.nameBytes) bytes without spaces")
    }
    guard ttl >= .milliseconds(500), ttl <= .seconds(3_600) else {
        throw CoterieError(.badInput, "--ttl \(ttl): out of range", hint: "500ms to 1h")
    }
}

public final class ElectedCommand: SuppliedContainer {
    private let loop: EventLoop
    private let options: ElectedCommandOptions
    private let campaign: ElectionCampaign
    private let report: Report
    private var child: ChildCommand?
    private var tree: ProcessTree?
    private var watchman: ChildCommand?
    private var generator: SeededGenerator
    private let warning: LoopTimer
    private let graceTimer: LoopTimer
    /// The term of the present run is over or about to be: that it ends is our doing, and its exit code not ours.
    private var isTaken = false
    private var stopping: (() -> Void)?
    private var isStopping = false

    public var onExit: ((Int32) -> Void)?
    /// The token under which the command runs now.
    public private(set) var token: UInt64?

    public init(
        loop: EventLoop, options: ElectedCommandOptions, service: any LeaseService,
        report: @escaping Report = reportToStandardError
    ) {
        self.loop = loop
        self.options = options
        self.report = report
        var system = SystemRandomNumberGenerator()
        generator = SeededGenerator(seed: system.next())
        campaign = ElectionCampaign(
            loop: loop, service: service, name: options.election, identity: options.identity, ttl: options.ttl,
            seed: system.next(),
            report: report)
        warning = LoopTimer(loop: loop)
        graceTimer = LoopTimer(loop: loop)
    }

    /// The processes of the present run; for tests and documents.
    public var processID: Int32? { child?.processID }

    public func start() throws(CoterieError) {
        campaign.onChange = { [weak self] in self?.changed() }
        campaign.onTermOver = { [weak self] in self?.termOver() }
        campaign.start()
    }

    private func changed() {
        guard campaign.leads, let view = campaign.current else { return warning.stop() }
        // Nothing is started in the last eighth: a renewal must come first.
        if child == nil && !isStopping && view.deadline - options.ttl / 8 > loop.now { run(view.token) }
        tellGuard(view.deadline)
        // Deadline is 7/8 of the TTL after sending; the command gets the eighth before it to end by itself.
        warning.start(after: max(view.deadline - options.ttl / 8 - loop.now, .zero)) { [weak self] in
            guard let self, let child else { return }
            isTaken = true
            report("elect: the lease could not be renewed; the command is asked to end")
            child.signal(SIGTERM)
        }
    }

    private func run(_ token: UInt64) {
        isTaken = false
        self.token = token
        let mark = String(generator.next(), radix: 16) + String(generator.next(), radix: 16)
        do throws(CoterieError) {
            // The guard first: there must be no moment without one.
            let watchman = try ChildCommand(
                loop: loop, words: ["/bin/sh", "-c", ProcessTree.guardScript, "coterie-guard", mark], input: .pipe,
                output: .null,
                diesWithParent: false
            ) { _ in }
            self.watchman = watchman
            let child = try ChildCommand(
                loop: loop, words: commandWords(options.command),
                environment: ["COTERIE_FENCING_TOKEN": "\(token)", ProcessTree.variable: mark], input: .inherit,
                output: .inherit
            ) { [weak self] code in self?.ended(code) }
            self.child = child
            tree = ProcessTree(leader: child.processID, mark: mark)
            watchman.input?.write(Array("\(child.processID)\n".utf8))
            report("elect: leads \(options.election) with token \(token)")
        } catch {
            dismissGuard()
            self.token = nil
            report("elect: \(error.message)")
            isStopping = true
            campaign.stop { [self] in onExit?(ExitCode.ownFailure.rawValue) }
        }
    }

    /// How long the tree may live without a further word of ours.
    private func tellGuard(_ deadline: MonotonicTime) {
        let left = max((deadline - loop.now).milliseconds, 0)
        let fraction = String(left % 1_000 + 1_000).dropFirst()
        watchman?.input?.write(Array("\(left / 1_000).\(fraction)\n".utf8))
    }

    private func dismissGuard() {
        watchman?.input?.write(Array("over\n".utf8))
        watchman?.input?.shutdown()
        watchman = nil
    }

    private func termOver() {
        warning.stop()
        guard child != nil else { return }
        isTaken = true
        report("elect: leadership of \(options.election) is over; the command is killed")
        killTree()
    }

    private func killTree() {
        guard let tree else { return }
        if !tree.kill() { report("elect: some processes of the command could not be killed yet") }
    }

    private func ended(_ code: Int32) {
        warning.stop()
        child = nil
        token = nil
        // What the command left running must not outlive it.
        killTree()
        tree = nil
        dismissGuard()
        // The guard may have ended it while we were frozen: then the term is over, and nobody has told us yet.
        if (isTaken || !campaign.leads) && !isStopping {
            isTaken = false
            changed()
            return
        }
        isStopping = true
        graceTimer.close()
        campaign.stop { [self] in
            onExit?(code)
            let stopping = self.stopping
            self.stopping = nil
            stopping?()
        }
    }

    /// Asks the command to end, and gives the lease up when it has. Called again: kills it.
    public func stop(_ done: @escaping () -> Void) {
        let earlier = stopping
        stopping = {
            earlier?()
            done()
        }
        guard let child else {
            isStopping = true
            campaign.stop { [self] in
                let stopping = self.stopping
                self.stopping = nil
                onExit?(0)
                stopping?()
            }
            return
        }
        if isStopping { return killTree() }
        isStopping = true
        child.signal(SIGTERM)
        graceTimer.start(after: options.grace) { [weak self] in self?.killTree() }
    }
}

/// One word is a line for the shell, several are a program and its arguments.
func commandWords(_ command: [String]) -> [String] { command.count == 1 ? ["/bin/sh", "-c", command[0]] : command }
