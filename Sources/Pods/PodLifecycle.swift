// The life of a pod as a pure state machine: events and `now` in, actions out. It follows the Kubernetes documentation of the
// pod lifecycle, KEP-753 (native sidecars: started in order, the next one waits until the one before has started, ended last
// and in reverse order) and KEP-4438 (a sidecar that dies while the main containers end is started again).
//
//   waiting ─begin─▶ initializing ─all init done─▶ running ─main containers done─▶ stopping ─all gone─▶ ended
//      │                  │                          │                               ▲
//      └─refused─▶ ended  └──── stop, deadline, an init container that failed for good ┘
//
// and of each container
//
//   idle ─▶ starting ─▶ running ─exit─▶ ended
//              ▲            └─────▶ backoff ─┐
//              └─────────────────────────────┘
import Model

/// Decides; ``PodRuntime`` carries out. Containers are numbered: init containers first, then the others, as in the
/// specification.
public struct PodLifecycle: Sendable {
    public enum Event: Hashable, Sendable {
        /// The sandbox exists.
        case begin
        /// It can not: the pod has failed.
        case refused(reason: String, message: String)
        /// It is gone although nobody asked for that.
        case sandboxLost(message: String)
        /// The container's program runs.
        case started(Int, run: Int)
        /// It could not be run.
        case startFailed(Int, run: Int, message: String)
        /// Its main process ended and all its output was taken; `reason` if more is known than the code.
        case exited(Int, run: Int, code: Int32, reason: String?)
        case probed(Int, run: Int, kind: ProbeKind, success: Bool, message: String)
        /// End the pod; nil is the specification's grace period.
        case stop(grace: TimeSpan?)
        /// End the pod as failed, at once stopped as by `stop`.
        case evict(reason: String, message: String)
        /// ``nextDeadline`` has come.
        case tick
    }

    public enum Action: Hashable, Sendable {
        /// `run` counts the starts of a container from 1 and names this one in later events.
        case start(container: Int, run: Int)
        case signal(container: Int, run: Int, signal: Int32)
        case probe(container: Int, run: Int, kind: ProbeKind, Probe)
        /// All is over: give the sandbox up. Always the last action.
        case tearDown
    }

    enum Role: Hashable, Sendable { case initializer, sidecar, main }

    enum ContainerState: Hashable, Sendable {
        case idle
        case starting
        case running
        case backoff(until: MonotonicTime)
        case ended
    }

    struct Container: Sendable {
        let spec: ContainerSpec
        let role: Role
        var state = ContainerState.idle
        var runs = 0
        var startedAt = MonotonicTime.zero
        /// Ends that came soon after their starts, in a row: the exponent of the back-off.
        var quickFailures = 0
        var lastExit: (code: Int32, reason: String)?
        /// The startup probe passed, or there is none and the program runs.
        var hasStarted = false
        var isReady = false
        /// SIGTERM was sent to this run.
        var isTerminating = false
        /// SIGKILL is due then.
        var killAt: MonotonicTime?
        var isKilled = false
        var startup: ProbeSchedule?
        var liveness: ProbeSchedule?
        var readiness: ProbeSchedule?

        var hasProcess: Bool { state == .starting || state == .running }
    }

    enum Cause: Hashable, Sendable {
        case completed
        case asked
        case failed(reason: String, message: String)
    }

    struct Stopping: Sendable {
        let cause: Cause
        var deadline: MonotonicTime
        var grace: TimeSpan
        var sidecars = false
    }

    enum Stage: Sendable {
        case waiting
        case initializing(next: Int)
        case running
        case stopping(Stopping)
        case ended
    }

    let spec: PodSpec
    let backoff: RestartBackoff
    var containers: [Container]
    var stage = Stage.waiting
    var activeUntil = MonotonicTime.distantFuture
    var phase = PodStatus.Phase.pending
    var reason = ""
    var message = ""

    public init(spec: PodSpec, backoff: RestartBackoff) {
        self.spec = spec
        self.backoff = backoff
        containers = spec.initContainers.map { Container(spec: $0, role: $0.restartAlways ? .sidecar : .initializer) }
        containers += spec.containers.map { Container(spec: $0, role: .main) }
    }

    /// Events about a run that is over, and all events after the end, change nothing.
    public mutating func handle(_ event: Event, now: MonotonicTime) -> [Action] {
        if case .ended = stage { return [] }
        var actions: [Action] = []
        switch event {
        case .begin:
            guard case .waiting = stage else { break }
            stage = .initializing(next: 0)
            if let limit = spec.activeDeadline { activeUntil = now + limit }
        case .refused(let reason, let message):
            finish(.failed, reason, message, &actions)
        case .sandboxLost(let message):
            for i in containers.indices {
                if containers[i].hasProcess { containers[i].lastExit = (137, "SandboxLost") }
                containers[i].state = .ended
                containers[i].isReady = false
            }
            if case .stopping(let stopping) = stage {
                finish(stopping.cause, &actions)
            } else {
                finish(.failed, "SandboxLost", message, &actions)
            }
        case .started(let i, let run):
            guard let i = current(i, run), containers[i].state == .starting else { break }
            started(i, now)
        case .startFailed(let i, let run, let text):
            guard let i = current(i, run) else { break }
            message = "container \(containers[i].spec.name): \(text)"
            exited(i, 127, "StartError", now, &actions)
        case .exited(let i, let run, let code, let reason):
            guard let i = current(i, run) else { break }
            exited(i, code, reason ?? (code == 0 ? "Completed" : "Error"), now, &actions)
        case .probed(let i, let run, let kind, let success, let text):
            guard let i = current(i, run) else { break }
            probed(i, kind, success, text, now, &actions)
        case .stop(let grace):
            stop(.asked, grace ?? spec.terminationGracePeriod, now, &actions)
        case .evict(let reason, let message):
            stop(.failed(reason: reason, message: message), spec.terminationGracePeriod, now, &actions)
        case .tick:
            break
        }
        advance(now, &actions)
        return actions
    }

    /// When to call with `tick`; nil if only an event can change anything.
    public var nextDeadline: MonotonicTime? {
        if case .ended = stage { return nil }
        var next = MonotonicTime.distantFuture
        switch stage {
        case .initializing, .running: next = activeUntil
        case .stopping(let stopping) where containers.contains { $0.hasProcess && !$0.isKilled }:
            next = stopping.deadline
            if stopping.sidecars, case .completed = stopping.cause {
                // The one whose turn it is: the last that is left.
                if let i = containers.indices.last(where: {
                    containers[$0].role == .sidecar && containers[$0].hasProcess
                }),
                    !containers[i].isTerminating
                {
                    next = min(next, settled(i))
                }
            }
        case .stopping, .waiting, .ended: break
        }
        for container in containers {
            switch container.state {
            case .backoff(let until): next = min(next, until)
            case .running:
                for schedule in [container.startup, container.liveness, container.readiness] {
                    if let due = schedule?.due, !container.isTerminating { next = min(next, due) }
                }
            case .idle, .starting, .ended: break
            }
            if let at = container.killAt, container.hasProcess { next = min(next, at) }
        }
        return next == .distantFuture ? nil : next
    }

    public var isEnded: Bool {
        if case .ended = stage { return true }
        return false
    }

    public var containerCount: Int { containers.count }

    /// A container's name by its number.
    public func name(of container: Int) -> String { containers[container].spec.name }

    public var status: PodStatus {
        PodStatus(phase: phase, reason: reason, message: message, containers: containers.map(Self.status))
    }

    private static func status(_ container: Container) -> ContainerStatus {
        let state: ContainerStatus.State
        switch container.state {
        case .idle: state = .waiting(reason: "PodInitializing")
        case .starting: state = .waiting(reason: "ContainerCreating")
        case .running: state = .running
        case .backoff: state = .waiting(reason: "CrashLoopBackOff")
        case .ended:
            if let exit = container.lastExit {
                state = .terminated(exitCode: exit.code, reason: exit.reason)
            } else {
                state = .waiting(reason: "NotStarted")
            }
        }
        return ContainerStatus(
            name: container.spec.name, state: state, ready: container.isReady, restartCount: max(0, container.runs - 1),
            isInit: container.role != .main)
    }

    private func current(_ index: Int, _ run: Int) -> Int? {
        guard containers.indices.contains(index), containers[index].runs == run, containers[index].hasProcess else {
            return nil
        }
        return index
    }
}
