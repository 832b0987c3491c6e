// The life of a pod on virtual time: what is started, signalled and probed when, and what is reported.
import Model
import Testing

@testable import Pods

/// A pod whose containers do what the test says.
private struct World {
    var lifecycle: PodLifecycle
    var now = MonotonicTime.zero
    var log: [String] = []
    var ended = false

    init(_ spec: PodSpec, backoff: RestartBackoff = RestartBackoff()) {
        lifecycle = PodLifecycle(spec: spec, backoff: backoff)
    }

    mutating func send(_ event: PodLifecycle.Event) {
        for action in lifecycle.handle(event, now: now) {
            switch action {
            case .start(let i, let run): log.append("start \(lifecycle.name(of: i)) \(run)")
            case .signal(let i, _, let number): log.append("signal \(lifecycle.name(of: i)) \(number)")
            case .probe(let i, _, let kind, _): log.append("probe \(lifecycle.name(of: i)) \(kind.rawValue)")
            case .tearDown:
                log.append("tear down")
                ended = true
            }
        }
    }

    /// Moves to the next deadline; returns how long that was, nil if there is none.
    @discardableResult
    mutating func tick() -> TimeSpan? {
        guard let next = lifecycle.nextDeadline else { return nil }
        let wait = next - now
        now = max(now, next)
        send(.tick)
        return wait
    }

    mutating func take() -> [String] {
        defer { log = [] }
        return log
    }

    func state(_ name: String) -> ContainerStatus? { lifecycle.status.containers.first { $0.name == name } }
}

private func container(
    _ name: String, startup: Probe? = nil, liveness: Probe? = nil, readiness: Probe? = nil, sidecar: Bool = false
) -> ContainerSpec {
    ContainerSpec(
        name: name, image: ImageName.host, command: ["x"], restartAlways: sidecar, startupProbe: startup,
        livenessProbe: liveness,
        readinessProbe: readiness)
}

@Suite struct PodLifecycleTests {
    @Test func initContainersRunOneAfterAnotherBeforeTheOthers() {
        var world = World(
            PodSpec(
                name: "p", initContainers: [container("one"), container("two")],
                containers: [container("a"), container("b")], restartPolicy: .never))
        world.send(.begin)
        #expect(world.take() == ["start one 1"])
        world.send(.started(0, run: 1))
        world.send(.exited(0, run: 1, code: 0, reason: nil))
        #expect(world.take() == ["start two 1"])
        #expect(world.lifecycle.status.phase == .pending)
        world.send(.started(1, run: 1))
        world.send(.exited(1, run: 1, code: 0, reason: nil))
        #expect(world.take() == ["start a 1", "start b 1"])
        world.send(.started(2, run: 1))
        #expect(world.lifecycle.status.phase == .running)
        world.send(.started(3, run: 1))
        world.send(.exited(2, run: 1, code: 0, reason: nil))
        world.send(.exited(3, run: 1, code: 0, reason: nil))
        #expect(world.take() == ["tear down"])
        #expect(world.lifecycle.status.phase == .succeeded)
    }

    @Test func anInitContainerThatFailsForGoodFailsThePod() {
        var world = World(
            PodSpec(name: "p", initContainers: [container("one")], containers: [container("a")], restartPolicy: .never))
        world.send(.begin)
        world.send(.started(0, run: 1))
        world.send(.exited(0, run: 1, code: 3, reason: nil))
        #expect(world.take() == ["start one 1", "tear down"])
        #expect(world.lifecycle.status.phase == .failed)
        #expect(world.lifecycle.status.reason == "InitContainerFailed")
        #expect(world.state("a")?.state == .waiting(reason: "NotStarted"))
    }

    @Test func restartsBackOffDoublesAndIsForgottenAfterALongRun() {
        var world = World(PodSpec(name: "p", containers: [container("a")]))
        world.send(.begin)
        var waits: [TimeSpan] = []
        for run in 1...8 {
            world.send(.started(0, run: run))
            world.send(.exited(0, run: run, code: 1, reason: nil))
            if case .backoff = world.lifecycle.containers[0].state {
                waits.append(world.tick() ?? .zero)
            } else {
                waits.append(.zero)
            }
        }
        #expect(waits.map(\.seconds) == [0, 10, 20, 40, 80, 160, 300, 300])
        #expect(world.state("a")?.restartCount == 8)
        world.send(.started(0, run: 9))
        world.now = world.now + .seconds(600)
        world.send(.exited(0, run: 9, code: 1, reason: nil))
        #expect(world.state("a")?.state == .waiting(reason: "ContainerCreating"), "started again at once")
    }

    @Test func onFailureRestartsOnlyAfterFailure() {
        var world = World(PodSpec(name: "p", containers: [container("a")], restartPolicy: .onFailure))
        world.send(.begin)
        world.send(.started(0, run: 1))
        world.send(.exited(0, run: 1, code: 1, reason: nil))
        world.send(.started(0, run: 2))
        world.send(.exited(0, run: 2, code: 0, reason: nil))
        #expect(world.take() == ["start a 1", "start a 2", "tear down"])
        #expect(world.lifecycle.status.phase == .succeeded)
    }

    @Test func theNextContainerWaitsForASidecarsStartupProbe() {
        let probe = Probe(action: .exec(["x"]), period: .seconds(1))
        var world = World(
            PodSpec(
                name: "p", initContainers: [container("side", startup: probe, sidecar: true)],
                containers: [container("a")]))
        world.send(.begin)
        world.send(.started(0, run: 1))
        #expect(world.take() == ["start side 1", "probe side startup"])
        world.send(.probed(0, run: 1, kind: .startup, success: false, message: "no"))
        #expect(world.take() == [])
        #expect(world.tick() == .seconds(1))
        #expect(world.take() == ["probe side startup"])
        world.send(.probed(0, run: 1, kind: .startup, success: true, message: ""))
        #expect(world.take() == ["start a 1"])
    }

    @Test func sidecarsEndAfterTheMainContainersInReverseOrder() {
        var world = World(
            PodSpec(
                name: "p", initContainers: [container("s1", sidecar: true), container("s2", sidecar: true)],
                containers: [container("a")],
                restartPolicy: .never))
        world.send(.begin)
        world.send(.started(0, run: 1))
        world.send(.started(1, run: 1))
        world.send(.started(2, run: 1))
        _ = world.take()
        world.send(.exited(2, run: 1, code: 0, reason: nil))
        #expect(world.take() == [], "sidecars that were just started may not have their handlers yet")
        #expect(world.tick() == .seconds(1))
        #expect(world.take() == ["signal s2 15"])
        world.send(.exited(1, run: 1, code: 143, reason: nil))
        #expect(world.take() == ["signal s1 15"])
        world.send(.exited(0, run: 1, code: 143, reason: nil))
        #expect(world.take() == ["tear down"])
        #expect(world.lifecycle.status.phase == .succeeded, "a sidecar's code does not count")
    }

    @Test func aSidecarThatDiesWhileTheMainContainersEndIsStartedAgain() {
        var world = World(
            PodSpec(name: "p", initContainers: [container("s", sidecar: true)], containers: [container("a")]))
        world.send(.begin)
        world.send(.started(0, run: 1))
        world.send(.started(1, run: 1))
        world.send(.stop(grace: nil))
        #expect(world.take() == ["start s 1", "start a 1", "signal a 15"])
        world.send(.exited(0, run: 1, code: 1, reason: nil))
        #expect(world.take() == ["start s 2"])
    }

    @Test func theGracePeriodEndsInSIGKILLAndCanOnlyBeShortened() {
        var world = World(PodSpec(name: "p", containers: [container("a")], terminationGracePeriod: .seconds(30)))
        world.send(.begin)
        world.send(.started(0, run: 1))
        world.send(.stop(grace: nil))
        world.send(.stop(grace: .seconds(60)))
        world.send(.stop(grace: .seconds(5)))
        #expect(world.take() == ["start a 1", "signal a 15"])
        #expect(world.tick() == .seconds(5))
        #expect(world.take() == ["signal a 9"])
        world.send(.exited(0, run: 1, code: 137, reason: nil))
        #expect(world.take() == ["tear down"])
        #expect(world.lifecycle.status.reason == "Stopped")
    }

    @Test func aFailedLivenessProbeEndsTheContainerAndItStartsAgain() {
        let probe = Probe(action: .tcp(port: 1), initialDelay: .seconds(5), period: .seconds(2), failureThreshold: 2)
        var world = World(
            PodSpec(name: "p", containers: [container("a", liveness: probe)], terminationGracePeriod: .seconds(7)))
        world.send(.begin)
        world.send(.started(0, run: 1))
        #expect(world.tick() == .seconds(5))
        world.send(.probed(0, run: 1, kind: .liveness, success: false, message: "refused"))
        #expect(world.tick() == .seconds(2))
        world.send(.probed(0, run: 1, kind: .liveness, success: false, message: "refused"))
        #expect(world.take() == ["start a 1", "probe a liveness", "probe a liveness", "signal a 15"])
        #expect(world.lifecycle.status.message == "container a: liveness probe failed: refused")
        #expect(world.tick() == .seconds(7))
        #expect(world.take() == ["signal a 9"])
        world.send(.exited(0, run: 1, code: 137, reason: nil))
        #expect(world.take() == ["start a 2"])
    }

    @Test func readinessFollowsItsProbeAndAnAnswerOfAnOldRunIsIgnored() {
        let probe = Probe(action: .exec(["x"]), period: .seconds(1), successThreshold: 2, failureThreshold: 1)
        var world = World(PodSpec(name: "p", containers: [container("a", readiness: probe)]))
        world.send(.begin)
        world.send(.started(0, run: 1))
        #expect(world.state("a")?.ready == false)
        world.send(.probed(0, run: 1, kind: .readiness, success: true, message: ""))
        #expect(world.state("a")?.ready == false)
        world.tick()
        world.send(.probed(0, run: 1, kind: .readiness, success: true, message: ""))
        #expect(world.state("a")?.ready == true)
        world.tick()
        world.send(.probed(0, run: 1, kind: .readiness, success: false, message: ""))
        #expect(world.state("a")?.ready == false)
        world.send(.exited(0, run: 1, code: 1, reason: nil))
        world.send(.started(0, run: 2))
        world.send(.probed(0, run: 1, kind: .readiness, success: true, message: ""))
        world.send(.probed(0, run: 1, kind: .readiness, success: true, message: ""))
        #expect(world.state("a")?.ready == false)
    }

    @Test func theActiveDeadlineFailsThePod() {
        var world = World(PodSpec(name: "p", containers: [container("a")], activeDeadline: .seconds(60)))
        world.send(.begin)
        world.send(.started(0, run: 1))
        #expect(world.tick() == .seconds(60))
        #expect(world.take() == ["start a 1", "signal a 15"])
        world.send(.exited(0, run: 1, code: 0, reason: nil))
        #expect(world.lifecycle.status.phase == .failed)
        #expect(world.lifecycle.status.reason == "DeadlineExceeded")
    }

    @Test func aLostSandboxFailsThePodUnlessItWasEnding() {
        var world = World(PodSpec(name: "p", containers: [container("a")]))
        world.send(.begin)
        world.send(.started(0, run: 1))
        world.send(.sandboxLost(message: "gone"))
        #expect(world.take() == ["start a 1", "tear down"])
        #expect(world.lifecycle.status.reason == "SandboxLost")
        #expect(world.lifecycle.nextDeadline == nil)
        world.send(.stop(grace: nil))
        #expect(world.take() == [])
    }

    @Test func aRefusedPodFailsWithTheReason() {
        var world = World(PodSpec(name: "p", containers: [container("a")]))
        world.send(.refused(reason: "OutOfPods", message: "full"))
        #expect(world.take() == ["tear down"])
        #expect(world.lifecycle.status.phase == .failed)
        #expect(world.lifecycle.status.message == "full")
    }
}
