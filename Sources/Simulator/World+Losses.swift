// Voters that die for good, one after another: the cluster has to replace them by itself, and may never have fewer voters than
// it was founded with.
import Model
import NodeCore

extension World {
    /// A while after the beginning, when the cluster has formed.
    func planLosses() {
        guard settings.losses > 0 else { return }
        schedule(after: .milliseconds(1_500) + random(0..<1_500_000), .later { [weak self] in try self?.watchLosses() })
    }

    private func watchLosses() throws {
        for host in hosts where !host.isLost {
            guard let raft = host.core?.raft, raft.isReady else { continue }
            let configuration = raft.configuration
            guard configuration.voters.count >= settings.expect else {
                throw Violation("\(configuration.voters.count) voters are left of \(settings.expect) founders")
            }
            let gone = hosts.filter { $0.isLost && configuration.isVoter($0.id) }
            // The next one dies only when those that died before have been replaced, and all that shall vote do.
            if gone.count < settings.lossesTogether, !configuration.isJoint, figures.losses < settings.losses,
                configuration.voters.count == (present.count + gone.count >= 5 ? 5 : 3)
            {
                let voters = hosts.indices.filter {
                    !hosts[$0].isLost && configuration.voters.contains(hosts[$0].id)
                }
                lose(voters[Int(generator.next() % UInt64(voters.count))])
                break
            }
        }
        schedule(after: .milliseconds(100), .later { [weak self] in try self?.watchLosses() })
    }

    private func lose(_ i: Int) {
        note(30, UInt64(i), text: "lost \(i)")
        figures.losses += 1
        crash(i, powered: chance(0.5))
        hosts[i].isLost = true
    }

    /// Those that have not died for good.
    var present: [SimulatedHost] { hosts.filter { !$0.isLost } }
}
