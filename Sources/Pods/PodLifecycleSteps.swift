// The transitions of ``PodLifecycle``: what an event changes in one container, and `advance`, which moves the pod on as far
// as it goes and may be called at any time.
import Model

extension PodLifecycle {
    static let terminate: Int32 = 15
    static let kill: Int32 = 9
    /// What sidecars get to end when the main containers used the whole grace period up (KEP-753 gives two seconds).
    static let sidecarGrace = TimeSpan.seconds(2)

    /// How long a sidecar is left alone after its start when the main containers ended at once.
    static let settleTime = TimeSpan.seconds(1)

    /// From when a sidecar may be asked to end.
    func settled(_ i: Int) -> MonotonicTime { containers[i].startedAt + Self.settleTime }

    // MARK: - One container

    mutating func start(_ i: Int, _ actions: inout [Action]) {
        containers[i].runs += 1
        containers[i].state = .starting
        containers[i].hasStarted = false
        containers[i].isTerminating = false
        containers[i].isKilled = false
        containers[i].killAt = nil
        actions.append(.start(container: i, run: containers[i].runs))
    }

    mutating func started(_ i: Int, _ now: MonotonicTime) {
        containers[i].state = .running
        containers[i].startedAt = now
        guard containers[i].role != .initializer else { return }
        if let probe = containers[i].spec.startupProbe {
            var schedule = ProbeSchedule(probe)
            schedule.begin(startedAt: now, now: now)
            containers[i].startup = schedule
        } else {
            hasStarted(i, now)
        }
    }

    private mutating func hasStarted(_ i: Int, _ now: MonotonicTime) {
        containers[i].hasStarted = true
        containers[i].startup = nil
        containers[i].isReady = containers[i].spec.readinessProbe == nil
        for (kind, probe) in [
            (ProbeKind.liveness, containers[i].spec.livenessProbe), (.readiness, containers[i].spec.readinessProbe),
        ] {
            guard let probe else { continue }
            var schedule = ProbeSchedule(probe)
            schedule.begin(startedAt: containers[i].startedAt, now: now)
            if kind == .liveness { containers[i].liveness = schedule } else { containers[i].readiness = schedule }
        }
    }

    mutating func exited(_ i: Int, _ code: Int32, _ reason: String, _ now: MonotonicTime, _ actions: inout [Action]) {
        let ran = containers[i].state == .running ? now - containers[i].startedAt : .zero
        containers[i].lastExit = (code, reason)
        containers[i].hasStarted = false
        containers[i].isReady = false
        containers[i].startup = nil
        containers[i].liveness = nil
        containers[i].readiness = nil
        containers[i].killAt = nil
        containers[i].state = .ended
        if ran >= backoff.resetAfter { containers[i].quickFailures = 0 }

        let role = containers[i].role
        if case .stopping(let stopping) = stage {
            if role == .sidecar, !stopping.sidecars, now < stopping.deadline { restart(i, now) }
            return
        }
        switch role {
        case .sidecar:
            restart(i, now)
        case .initializer:
            if code == 0 { return }
            if spec.restartPolicy != .never { return restart(i, now) }
            let text = message.isEmpty ? "init container \(containers[i].spec.name) exited with \(code)" : message
            stop(.failed(reason: "InitContainerFailed", message: text), spec.terminationGracePeriod, now, &actions)
        case .main:
            switch spec.restartPolicy {
            case .always: restart(i, now)
            case .onFailure: if code != 0 { restart(i, now) }
            case .never: break
            }
        }
    }

    private mutating func restart(_ i: Int, _ now: MonotonicTime) {
        containers[i].state = .backoff(until: now + backoff.delay(afterQuickFailures: containers[i].quickFailures))
        containers[i].quickFailures += 1
    }

    mutating func probed(
        _ i: Int, _ kind: ProbeKind, _ success: Bool, _ text: String, _ now: MonotonicTime, _ actions: inout [Action]
    ) {
        let verdict: ProbeSchedule.Verdict?
        switch kind {
        case .startup: verdict = containers[i].startup?.answer(success, now: now)
        case .liveness: verdict = containers[i].liveness?.answer(success, now: now)
        case .readiness: verdict = containers[i].readiness?.answer(success, now: now)
        }
        guard let verdict, verdict != .undecided, !containers[i].isTerminating else { return }
        switch (kind, verdict) {
        case (.startup, .success): hasStarted(i, now)
        case (.readiness, _): containers[i].isReady = verdict == .success
        case (.startup, _), (.liveness, .failure):
            message =
                "container \(containers[i].spec.name): \(kind.rawValue) probe failed"
                + (text.isEmpty ? "" : ": \(text)")
            terminate(i, killAt: now + spec.terminationGracePeriod, &actions)
        case (.liveness, _): break
        }
    }

    private mutating func terminate(_ i: Int, killAt: MonotonicTime?, _ actions: inout [Action]) {
        if let killAt { containers[i].killAt = killAt }
        guard containers[i].hasProcess, !containers[i].isTerminating else { return }
        containers[i].isTerminating = true
        containers[i].isReady = false
        actions.append(.signal(container: i, run: containers[i].runs, signal: Self.terminate))
    }

    private mutating func kill(_ i: Int, _ actions: inout [Action]) {
        guard containers[i].hasProcess, !containers[i].isKilled else { return }
        containers[i].isKilled = true
        containers[i].isTerminating = true
        containers[i].isReady = false
        containers[i].killAt = nil
        actions.append(.signal(container: i, run: containers[i].runs, signal: Self.kill))
    }

    // MARK: - The pod

    /// Begins to stop, or shortens the time that is left; the first cause stays.
    mutating func stop(_ cause: Cause, _ grace: TimeSpan, _ now: MonotonicTime, _ actions: inout [Action]) {
        switch stage {
        case .ended: return
        case .stopping(var stopping):
            stopping.deadline = min(stopping.deadline, now + grace)
            stopping.grace = min(stopping.grace, grace)
            stage = .stopping(stopping)
        case .waiting, .initializing, .running:
            stage = .stopping(Stopping(cause: cause, deadline: now + grace, grace: grace))
            for i in containers.indices where containers[i].role != .sidecar {
                if containers[i].hasProcess {
                    terminate(i, killAt: nil, &actions)
                } else {
                    containers[i].state = .ended
                }
            }
        }
    }

    mutating func advance(_ now: MonotonicTime, _ actions: inout [Action]) {
        switch stage {
        case .initializing, .running:
            if now >= activeUntil {
                stop(
                    .failed(
                        reason: "DeadlineExceeded", message: "the pod ran longer than activeDeadlineSeconds allows"),
                    spec.terminationGracePeriod, now, &actions)
            }
        case .waiting, .stopping, .ended: break
        }
        for i in containers.indices { advance(container: i, now, &actions) }
        advanceInit(&actions)
        if case .running = stage, containers.allSatisfy({ $0.role != .main || $0.state == .ended }) {
            stop(.completed, spec.terminationGracePeriod, now, &actions)
        }
        advanceStopping(now, &actions)
        updatePhase()
    }

    private mutating func advance(container i: Int, _ now: MonotonicTime, _ actions: inout [Action]) {
        if case .backoff(let until) = containers[i].state, until <= now { start(i, &actions) }
        if let at = containers[i].killAt, at <= now { kill(i, &actions) }
        guard containers[i].state == .running, !containers[i].isTerminating else { return }
        let run = containers[i].runs
        if let probe = containers[i].startup?.probe, containers[i].startup?.take(now: now) == true {
            actions.append(.probe(container: i, run: run, kind: .startup, probe))
        }
        if let probe = containers[i].liveness?.probe, containers[i].liveness?.take(now: now) == true {
            actions.append(.probe(container: i, run: run, kind: .liveness, probe))
        }
        if let probe = containers[i].readiness?.probe, containers[i].readiness?.take(now: now) == true {
            actions.append(.probe(container: i, run: run, kind: .readiness, probe))
        }
    }

    private mutating func advanceInit(_ actions: inout [Action]) {
        guard case .initializing(var next) = stage else { return }
        while containers.indices.contains(next), containers[next].role != .main {
            if containers[next].state == .idle { start(next, &actions) }
            let done: Bool
            switch containers[next].role {
            case .sidecar: done = containers[next].hasStarted
            case .initializer: done = containers[next].state == .ended && containers[next].lastExit?.code == 0
            case .main: done = true
            }
            guard done else {
                stage = .initializing(next: next)
                return
            }
            next += 1
        }
        stage = .running
        for i in containers.indices where containers[i].role == .main { start(i, &actions) }
    }

    private mutating func advanceStopping(_ now: MonotonicTime, _ actions: inout [Action]) {
        guard case .stopping(var stopping) = stage else { return }
        if !stopping.sidecars {
            if now >= stopping.deadline {
                for i in containers.indices where containers[i].role != .sidecar { kill(i, &actions) }
            }
            guard containers.allSatisfy({ $0.role == .sidecar || $0.state == .ended }) else { return }
            stopping.sidecars = true
            stopping.deadline = max(stopping.deadline, now + min(stopping.grace, Self.sidecarGrace))
            stage = .stopping(stopping)
        }
        for i in containers.indices.reversed() where containers[i].role == .sidecar && containers[i].state != .ended {
            guard containers[i].hasProcess else {
                containers[i].state = .ended
                continue
            }
            if now >= stopping.deadline {
                kill(i, &actions)
            } else {
                // A program that was just started may not have its SIGTERM handler yet, and would lose what the main
                // containers said last: it is left a moment to come up.
                if case .completed = stopping.cause, now < settled(i) { return }
                terminate(i, killAt: nil, &actions)
                return
            }
        }
        if containers.allSatisfy({ $0.state == .ended }) { finish(stopping.cause, &actions) }
    }

    mutating func finish(_ cause: Cause, _ actions: inout [Action]) {
        let succeeded = containers.allSatisfy { $0.role != .main || $0.lastExit?.code == 0 }
        switch cause {
        case .completed: finish(succeeded ? .succeeded : .failed, succeeded ? "" : "ContainerFailed", message, &actions)
        case .asked: finish(succeeded ? .succeeded : .failed, succeeded ? "" : "Stopped", message, &actions)
        case .failed(let reason, let message): finish(.failed, reason, message, &actions)
        }
    }

    mutating func finish(_ phase: PodStatus.Phase, _ reason: String, _ message: String, _ actions: inout [Action]) {
        stage = .ended
        self.phase = phase
        self.reason = reason
        self.message = message
        for i in containers.indices { containers[i].state = .ended }
        actions.append(.tearDown)
    }

    private mutating func updatePhase() {
        switch stage {
        case .waiting, .initializing: phase = .pending
        case .running: if containers.contains(where: { $0.role == .main && $0.state == .running }) { phase = .running }
        case .stopping, .ended: break
        }
    }
}
