import Model
import Scheduling
import Testing
import Wire

/// Random commands, among them stale, bad and repeated ones, against what must always hold.
@Suite struct SchedulingSimulationTests {
    typealias Fixture = SchedulingFixture

    @Test(arguments: [1, 2, 3, 4, 5] as [UInt64])
    func randomHistoriesKeepTheInvariants(seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        var world = Fixture()
        var twin = SchedulingMachine()
        var uids: [String: UInt64] = [:]
        var usedUIDs: Set<UInt64> = []
        var generations: [UInt64: UInt64] = [:]
        var changedSince: [String: PodRecord] = [:]
        func pick(_ n: Int) -> Int { Int.random(in: 0..<n, using: &generator) }

        for step in 0..<3_000 {
            world.now += UInt64(pick(50))
            let name = "p\(pick(12))"
            let id = "g\(pick(4))"
            let node = Fixture.node(UInt64(pick(4) + 1))
            let pod = world.pod(name)
            let uid = generator.chance(0.9) ? pod?.uid ?? 1 : UInt64(pick(3_000))
            let generation = generator.chance(0.9) ? pod?.generation ?? 1 : UInt64(pick(4))
            let command: SchedulingCommand
            switch pick(14) {
            case 0, 1:
                let owner: PodOwner? = [nil, .gather(id), .pattern(kind: "WorkQueue", name: "q")][pick(3)]
                let specs = (0...pick(3)).map { _ in
                    Fixture.spec("p\(pick(12))", policy: RestartPolicy.allCases[pick(3)])
                }
                command = generator.chance(0.5) ? .createPods(specs, owner: owner) : .applyPods(specs, owner: owner)
            case 2: command = .deletePods([name])
            case 3, 4, 5: command = .bind([PodBinding(name: name, uid: uid, node: node, generation: generation)])
            case 6, 7, 8:
                let status = PodStatus(phase: PodStatus.Phase.allCases[pick(4)])
                let reporter = generator.chance(0.8) ? pod?.node ?? node : node
                command = .report([
                    PodReport(
                        name: name, uid: uid, generation: generation, node: reporter, status: status,
                        gone: generator.chance(0.4))
                ])
            case 9: command = generator.chance(0.5) ? .nodeGone(node) : .drain(node)
            case 10: command = .cordon(node, generator.chance(0.3))
            case 11: command = .createGather(GatherSeed(id: id), pods: [Fixture.spec("\(id)-root", policy: .never)])
            case 12:
                let progress = GatherProgress(total: 3, successful: pick(3), pending: pick(3))
                command =
                    generator.chance(0.5)
                    ? .updateGather(id: id, progress: progress)
                    : .finishGather(id: id, state: GatherState.allCases[pick(5)], progress: progress)
            default: command = generator.chance(0.5) ? .cancelGather(id: id) : .forgetGather(id: id)
            }
            let before = Dictionary(uniqueKeysWithValues: world.machine.pods.map { ($0.name, $0) })
            let bytesBefore = Fixture.encoded(world.machine)
            let result = world.apply(command)

            // The same commands give the same state, read from their bytes too.
            var writer = ByteWriter()
            command.encode(into: &writer)
            var reader = ByteReader(writer.bytes)
            let copy = try SchedulingCommand(decoding: &reader)
            #expect(copy == command)
            #expect(twin.apply(copy, index: world.index, now: world.now) == result)

            // What is refused changes nothing.
            if result.error != nil || result == .unchanged { #expect(Fixture.encoded(world.machine) == bytesBefore) }

            let pods = world.machine.pods
            let after = Dictionary(uniqueKeysWithValues: pods.map { ($0.name, $0) })
            for pod in pods {
                if uids[pod.name] != pod.uid { #expect(usedUIDs.insert(pod.uid).inserted, "a uid is used once") }
                uids[pod.name] = pod.uid
                #expect(pod.generation >= generations[pod.uid] ?? 0, "generations never go back")
                generations[pod.uid] = pod.generation
                // A pod changes its node only through being without one, with a new generation.
                if let old = before[pod.name], old.uid == pod.uid {
                    if let was = old.node, pod.node != was {
                        #expect(
                            pod.node == nil && pod.generation > old.generation,
                            "taken from its node under a new generation")
                    }
                    if old.status.phase.isTerminal {
                        #expect(pod.status.phase == old.status.phase, "an end is the end")
                    }
                }
                if pod.deleting || pod.moving { #expect(pod.node != nil) }
            }
            // The index by node is the records, seen from the other side.
            let nodes = Set(pods.compactMap(\.node)).union((1...4).map { Fixture.node($0) })
            for node in nodes { #expect(world.machine.pods(on: node) == pods.filter { $0.node == node }) }
            // No record goes without a delete, the end of its gather, or the word of its node.
            for (name, old) in before where after[name] == nil {
                switch command {
                case .deletePods(let names): #expect(names.contains(name) && old.node == nil)
                case .report(let reports): #expect(old.deleting && reports.contains { $0.name == name && $0.gone })
                case .nodeGone(let node): #expect(old.deleting && old.node == node)
                case .finishGather(let id, _, _), .cancelGather(let id), .forgetGather(let id):
                    #expect(old.owner == .gather(id) && old.node == nil)
                default: Issue.record("pod \(name) went with \(command)")
                }
            }
            for gather in world.machine.gathers {
                #expect(gather.progress.isConsistent)
                #expect(gather.state.isTerminal == (gather.endedMilliseconds != nil))
            }
            // All that changed is told.
            if step % 10 == 9 {
                let told = world.machine.takeChanged()
                let names = Set(after.keys).union(changedSince.keys)
                for name in names where after[name] != changedSince[name] { #expect(told.contains(name)) }
                changedSince = after
            }
            if step % 300 == 299 { world.machine = try roundTrip(world.machine) }
        }
        #expect(Fixture.encoded(twin) == Fixture.encoded(world.machine))
    }

    private func roundTrip(_ machine: SchedulingMachine) throws -> SchedulingMachine {
        let bytes = Fixture.encoded(machine)
        var reader = ByteReader(bytes)
        let copy = try SchedulingMachine(decoding: &reader)
        try reader.finish()
        #expect(Fixture.encoded(copy) == bytes)
        return copy
    }

    @Test func resultsReadBack() throws {
        for result in [
            SchedulingResult.created([1, 2, .max]), .unchanged, .done, .notFound("pod x"),
            .refused(.conflict, "m", hint: "h"),
            .refused(.busy, "m", hint: nil),
        ] {
            var writer = ByteWriter()
            result.encode(into: &writer)
            var reader = ByteReader(writer.bytes)
            #expect(try SchedulingResult(decoding: &reader) == result)
            #expect(reader.isAtEnd)
        }
    }

    @Test func damagedBytesAreRefusedOrReadAsSomethingUsable() {
        var generator = SeededGenerator(seed: 77)
        var world = Fixture()
        world.create("a")
        world.bind("a", to: 1)
        world.report("a", .running)
        let gather = SchedulingCommand.createGather(
            GatherSeed(id: "g", merge: "cat", options: ["a": "b"]), pods: [Fixture.spec("g-root")])
        world.apply(gather)
        world.apply(.cordon(Fixture.node(3), true))
        world.apply(.explain([PodExplanation(name: "g-root", uid: 5, reasons: ["r"])]))
        func bytes(_ command: SchedulingCommand) -> [UInt8] {
            var writer = ByteWriter()
            command.encode(into: &writer)
            return writer.bytes
        }
        let report = PodReport(name: "a", uid: 1, generation: 1, node: Fixture.node(1), status: PodStatus(), gone: true)
        let commands: [SchedulingCommand] = [
            gather, .createPods([Fixture.spec("b")], owner: .pattern(kind: "K", name: "n")), .report([report, report]),
            .bind([PodBinding(name: "a", uid: 1, node: Fixture.node(1), generation: 1)]), .deletePods(["a"]),
            .deleteOwned(.gather("g")),
            .finishGather(id: "g", state: .failed, progress: GatherProgress(total: 1, failed: 1)),
            .drain(Fixture.node(1)),
            .explain([PodExplanation(name: "a", uid: 1, reasons: ["x"])]),
        ]
        let snapshot = Fixture.encoded(world.machine)
        var refused = 0
        for round in 0..<20_000 {
            var data = round % 2 == 0 ? snapshot : bytes(commands[round / 2 % commands.count])
            for _ in 0..<Int.random(in: 1...3, using: &generator) {
                data[Int.random(in: 0..<data.count, using: &generator)] = UInt8(truncatingIfNeeded: generator.next())
            }
            if generator.chance(0.2) { data.removeLast(Int.random(in: 0..<data.count, using: &generator)) }
            var reader = ByteReader(data)
            if round % 2 == 0 {
                guard var odd = try? SchedulingMachine(decoding: &reader) else {
                    refused += 1
                    continue
                }
                for command in commands { _ = odd.apply(command, index: 1_000, now: 5) }
                _ = odd.podListDocument { _ in nil }
            } else if let command = try? SchedulingCommand(decoding: &reader) {
                var machine = world.machine
                _ = machine.apply(command, index: 1_000, now: 5)
            } else {
                refused += 1
            }
        }
        #expect(refused > 5_000)
    }
}
