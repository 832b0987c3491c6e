import Model
import Scheduling
import Wire

/// A machine with a log index that counts by itself, and short names for what tests do all the time.
struct SchedulingFixture {
    var machine = SchedulingMachine()
    var index: UInt64 = 0
    var now: UInt64 = 0

    @discardableResult mutating func apply(_ command: SchedulingCommand) -> SchedulingResult {
        index += 1
        return machine.apply(command, index: index, now: now)
    }

    static func spec(_ name: String, policy: RestartPolicy = .always, image: String = "localhost/host") -> PodSpec {
        PodSpec(name: name, containers: [ContainerSpec(name: "main", image: image)], restartPolicy: policy)
    }

    static func node(_ n: UInt64) -> NodeID { NodeID(high: n, low: n) }

    @discardableResult mutating func create(_ name: String, owner: PodOwner? = nil, policy: RestartPolicy = .always)
        -> SchedulingResult
    {
        apply(.createPods([Self.spec(name, policy: policy)], owner: owner))
    }

    mutating func bind(_ name: String, to node: UInt64) {
        guard let pod = machine.pod(named: name) else { return }
        apply(.bind([PodBinding(name: name, uid: pod.uid, node: Self.node(node), generation: pod.generation)]))
    }

    /// As the node to which it is bound now.
    mutating func report(_ name: String, _ phase: PodStatus.Phase, gone: Bool = false) {
        guard let pod = machine.pod(named: name), let node = pod.node else { return }
        let status = PodStatus(phase: phase)
        apply(
            .report([
                PodReport(name: name, uid: pod.uid, generation: pod.generation, node: node, status: status, gone: gone)
            ]))
    }

    func pod(_ name: String) -> PodRecord? { machine.pod(named: name) }

    static func encoded(_ machine: SchedulingMachine) -> [UInt8] {
        var writer = ByteWriter()
        machine.encode(into: &writer)
        return writer.bytes
    }
}
