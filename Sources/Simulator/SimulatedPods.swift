// The pods of one simulated node: what `Node/PodAgent` and the runtime do, without containers. A pod runs for a while, ends or
// goes on, and dies with its node.
import Model
import NodeCore
import Scheduling

final class SimulatedPods {
    struct Key: Hashable {
        var uid: UInt64
        var generation: UInt64
    }

    private struct Run {
        var name: String
        var status = PodStatus()
        var isGone = false
        var wasAskedToStop = false
    }

    /// What will happen to a run.
    enum Step { case starts, ends, gone }

    private let id: NodeID
    private var runs: [Key: Run] = [:]
    /// Asks the world to call ``take(_:_:)`` after a while.
    var onStep: ((Key, Step) -> Void)?
    var onReports: (([PodReport]) -> Void)?

    init(id: NodeID) { self.id = id }

    /// Runs with processes, for the check that one generation runs on one node.
    var live: [Key] {
        runs.filter { !$0.value.isGone }.keys.sorted { ($0.uid, $0.generation) < ($1.uid, $1.generation) }
    }

    func assigned(_ records: [PodRecord]) {
        var wanted: Set<Key> = []
        for record in records {
            let key = Key(uid: record.uid, generation: record.generation)
            wanted.insert(key)
            if record.shouldStop {
                stop(key, record)
            } else if runs[key] == nil, !record.status.phase.isTerminal || record.statusNode != id {
                start(key, record)
            }
        }
        for key in runs.keys.sorted(by: { ($0.uid, $0.generation) < ($1.uid, $1.generation) })
        where !wanted.contains(key) {
            guard let run = runs[key] else { continue }
            if run.isGone {
                runs[key] = nil
            } else if !run.wasAskedToStop {
                runs[key]?.wasAskedToStop = true
                onStep?(key, .gone)
            }
        }
    }

    private func start(_ key: Key, _ record: PodRecord) {
        var run = Run(name: record.name)
        if record.statusNode == id, record.status.phase == .running, record.owner == nil,
            record.spec.restartPolicy == .never
        {
            run.status = PodStatus(phase: .failed, reason: "NodeRestarted")
            run.isGone = true
            runs[key] = run
            return report(key)
        }
        runs[key] = run
        onStep?(key, .starts)
        if record.spec.restartPolicy == .never { onStep?(key, .ends) }
    }

    private func stop(_ key: Key, _ record: PodRecord) {
        guard let run = runs[key] else {
            runs[key] = Run(name: record.name, status: record.status, isGone: true, wasAskedToStop: true)
            return report(key)
        }
        if run.isGone {
            runs[key]?.wasAskedToStop = true
            return report(key)
        }
        guard !run.wasAskedToStop else { return }
        runs[key]?.wasAskedToStop = true
        onStep?(key, .gone)
    }

    func take(_ key: Key, _ step: Step) {
        guard let run = runs[key], !run.isGone else { return }
        switch step {
        case .starts:
            guard run.status.phase == .pending, !run.wasAskedToStop else { return }
            runs[key]?.status = PodStatus(phase: .running)
        case .ends:
            guard !run.wasAskedToStop else { return }
            runs[key]?.status = PodStatus(phase: .succeeded)
            runs[key]?.isGone = true
        case .gone:
            if !run.status.phase.isTerminal { runs[key]?.status = PodStatus(phase: .failed, reason: "Stopped") }
            runs[key]?.isGone = true
        }
        report(key)
    }

    private func report(_ key: Key) {
        guard let run = runs[key] else { return }
        onReports?([
            PodReport(
                name: run.name, uid: key.uid, generation: key.generation, node: id, status: run.status,
                gone: run.isGone && run.wasAskedToStop)
        ])
    }
}
