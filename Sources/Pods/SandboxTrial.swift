// Finds out what the sandbox can do here by running a pod with one `true` in it.
import EventLoop
import Glibc
import Model

extension PodRuntime {
    /// Calls once, within about ten seconds. What it makes lies in a directory of its own among the pods'.
    public static func probeSandbox(
        loop: EventLoop, options: PodRuntimeOptions, then: @escaping (SandboxReport) -> Void
    ) {
        var trial = options
        trial.podsDirectory = options.podsDirectory + "/" + trialName
        let directory = trial.podsDirectory
        if mkdir(options.podsDirectory, 0o700) != 0 && errno != EEXIST {
            let why = CoterieError(.failed, "cannot make the directory \(options.podsDirectory): \(errnoText())")
            return loop.beforeWaiting {
                then(
                    SandboxReport(
                        sandbox: nil, refusal: why, ownUsers: false, enforced: [], notEnforced: [], trial: .zero))
            }
        }
        let (enforced, not) = limits(trial)
        func report(_ sandbox: SandboxMode?, _ refusal: CoterieError?, _ time: TimeSpan) -> SandboxReport {
            SandboxReport(
                sandbox: sandbox, refusal: refusal, ownUsers: geteuid() == 0, enforced: enforced, notEnforced: not,
                trial: time)
        }
        let runtime: PodRuntime
        do {
            runtime = try PodRuntime(loop: loop, options: trial)
        } catch {
            return loop.beforeWaiting { then(report(nil, error, .zero)) }
        }
        let key = "trial"
        let began = loop.now
        let guardTimer = LoopTimer(loop: loop)
        var status = PodStatus()
        var isOver = false
        func finish(_ refusal: CoterieError?) {
            guard !isOver else { return }
            isOver = true
            guardTimer.close()
            let time = loop.now - began
            runtime.onGone = nil
            runtime.onStatus = nil
            runtime.shutdown {
                loop.blocking {
                    removeTree(directory)
                } then: { _ in
                    then(report(refusal == nil ? runtime.sandbox : nil, refusal, time))
                }
            }
        }
        runtime.onStatus = { status = $1 }
        runtime.onGone = { _ in
            guard status.phase != .succeeded else { return finish(nil) }
            finish(
                CoterieError(
                    .unavailable,
                    "pods cannot be isolated here: \(status.message.isEmpty ? status.reason : status.message)",
                    hint: "run the agent as root, or accept plain processes with --sandbox none"))
        }
        guardTimer.start(after: .seconds(10)) {
            finish(CoterieError(.deadline, "a trial pod did not end within ten seconds"))
            runtime.stop(key: key, grace: .zero)
        }
        let spec = PodSpec(
            name: key, containers: [ContainerSpec(name: key, image: ImageName.host, command: ["true"])],
            restartPolicy: .never,
            terminationGracePeriod: .zero)
        do { try runtime.start(spec, key: key) } catch { finish(error) }
    }

    private static func limits(_ options: PodRuntimeOptions) -> (enforced: [String], not: [String]) {
        let all = Cgroups.Controller.allCases
        guard geteuid() == 0 else { return ([], all.map { "\($0.rawValue): the agent does not run as root" }) }
        let name = "coterie-" + hexadecimal(stableHash(options.podsDirectory + "-limits"))
        let cgroups = Cgroups(name: name)
        defer { cgroups.removeAll() }
        return (
            all.filter { cgroups.places[$0] != nil }.map(\.rawValue),
            all.compactMap { controller in cgroups.reasons[controller].map { "\(controller.rawValue): \($0)" } }
        )
    }
}
