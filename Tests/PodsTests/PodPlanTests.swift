// What a planner makes of a specification, without running anything.
import EventLoop
import Model
import Testing

@testable import Pods

@Suite struct PodPlanTests {
    private func planner(_ change: (inout PodRuntimeOptions) -> Void = { _ in }) -> PodPlanner {
        var options = PodRuntimeOptions(
            podsDirectory: "/pods", imageDirectory: "/images", initPath: "/bin/true", nodeName: "n",
            nodeAddress: "10.0.0.1",
            users: 200_000...200_003)
        change(&options)
        return PodPlanner(options: options, mode: .namespaces, cgroups: nil, masks: ["/secret"])
    }

    private func plan(_ spec: PodSpec, number: Int = 0, _ planner: PodPlanner) throws(PodRefusal) -> PodPlan {
        try planner.plan(spec, key: "k", number: number, directory: "/pods/k", runDirectory: "/pods/k/run")
    }

    private func refusal(_ spec: PodSpec, _ planner: PodPlanner) -> PodRefusal? {
        do throws(PodRefusal) {
            _ = try plan(spec, planner)
            return nil
        } catch {
            return error
        }
    }

    @Test func aLimitThatCanNotBeEnforcedIsRefusedUnlessThatIsAllowed() {
        let spec = pod("p", [shell("a", "true") { $0.resources.memoryBytes = 1 << 20 }])
        #expect(refusal(spec, planner())?.reason == "LimitNotEnforceable")
        #expect(refusal(spec, planner { $0.allowUnenforced = true }) == nil)
    }

    @Test func theListenAnnotationMakesAContainerHostSideWithItsListeners() throws {
        let spec = pod("p", [shell("amb", "x"), shell("app", "x"), shell("side", "x")]) {
            $0.annotations[PodSpec.listenAnnotation] = "amb=6379, amb=80,side"
        }
        let plan = try plan(spec, planner())
        #expect(plan.containers.map(\.hostSide) == [true, false, true])
        #expect(plan.containers.map(\.listeners) == [[6_379, 80], [], []])
        #expect(plan.containers[0].environment.suffix(2) == ["LISTEN_FDS=2", "LISTEN_FDNAMES=6379:80"])
        #expect(!plan.containers[1].environment.contains { $0.hasPrefix("LISTEN") })
        #expect(plan.setup(supplied: nil).listeners.map(\.port) == [6_379, 80])
    }

    @Test(arguments: ["x=1", "amb=0", "amb=70000", "amb=80,app=80"])
    func aBadListenAnnotationIsRefused(text: String) {
        let spec = pod("p", [shell("amb", "x"), shell("app", "x")]) { $0.annotations[PodSpec.listenAnnotation] = text }
        #expect(refusal(spec, planner())?.reason == "InvalidAnnotation")
    }

    @Test func namesThatCouldLeaveTheirDirectoryAreRefused() {
        for name in ["..", "a/b", "", ".x"] {
            #expect(refusal(pod("p", [shell(name, "x")]), planner())?.reason == "InvalidName")
            let spec = pod("p", [shell("a", "x")]) { $0.volumes = [Volume(name: name, source: .files([:]))] }
            #expect(refusal(spec, planner())?.reason == "InvalidName")
        }
        #expect(refusal(pod("p", [shell("a", "x"), shell("a", "y")]), planner())?.reason == "InvalidName")
    }

    @Test(.enabled(if: Machine.hasUsers, "not root")) func usersRunOut() throws {
        let spec = pod("p", [shell("a", "x")])
        let second = try plan(spec, number: 1, planner())
        #expect(second.user == 200_002)
        #expect(second.hostSideUser == 200_003)
        #expect(throws: PodRefusal.self) { try plan(spec, number: 2, planner()) }
    }

    @Test func aSandboxThatIsNotBuiltAndAMissingInitAreErrors() throws {
        let loop = try EventLoop()
        defer { loop.close() }
        var options = PodRuntimeOptions(
            podsDirectory: "/nowhere/pods", imageDirectory: "/images", initPath: "/no/such/init", sandbox: .oci,
            nodeName: "n")
        #expect(throws: CoterieError(.badInput, "the sandbox oci is not built yet", hint: "use --sandbox namespaces")) {
            _ = try PodRuntime(loop: loop, options: options)
        }
        options.sandbox = .auto
        #expect(throws: CoterieError.self) { _ = try PodRuntime(loop: loop, options: options) }
    }
}
