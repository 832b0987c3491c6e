// Where jobs and their bodies lie in memory, and that they lie there no longer than they have to.
import Model
import Testing
import Wire

@testable import Queues

@Suite struct JobStoreTests {
    /// A put as a log entry has it: among other bytes.
    private func entry(_ bodies: [[UInt8]], others: Int = 3) throws -> (command: QueueCommand, payload: [UInt8]) {
        var writer = ByteWriter()
        writer.raw(repeatElement(0, count: others))
        QueueCommand.put(bodies.map { NewJob(tube: "a", body: $0) }).encode(into: &writer)
        let payload = writer.bytes
        var reader = ByteReader(payload)
        _ = try reader.raw(others)
        return (try QueueCommand(decoding: &reader), payload)
    }

    private func put(_ bodies: [[UInt8]], into machine: inout QueueMachine, others: Int = 3) throws -> (
        ids: [UInt64], payload: [UInt8]
    ) {
        let (command, payload) = try entry(bodies, others: others)
        guard case .inserted(let jobs) = machine.apply(command, index: 1, now: 1, payload: payload) else {
            Issue.record("a put is taken")
            return ([], payload)
        }
        return (jobs.map(\.id), payload)
    }

    private func body(_ number: Int, _ count: Int) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: number &* 31 &+ $0) }
    }

    @Test func `bodies are parts of the payload that brought them, not copies`() throws {
        var machine = QueueMachine()
        let bodies = (0..<10).map { body($0, 200) }
        let (ids, payload) = try put(bodies, into: &machine)
        #expect(machine.store.bodies.blockCount == 1)
        #expect(machine.store.bodies.heldBytes == payload.count)
        #expect(ids.map { machine.job($0)?.body } == bodies)
    }

    @Test func `commands of one entry share its payload`() throws {
        var machine = QueueMachine()
        var writer = ByteWriter()
        for i in 0..<5 { QueueCommand.put([NewJob(tube: "a", body: body(i, 50))]).encode(into: &writer) }
        let payload = writer.bytes
        var reader = ByteReader(payload)
        for _ in 0..<5 {
            _ = machine.apply(try QueueCommand(decoding: &reader), index: 1, now: 1, payload: payload)
        }
        #expect(machine.store.bodies.heldBytes == payload.count)
        #expect((1...5).map { machine.job($0)?.body } == (0..<5).map { body($0, 50) })
    }

    @Test func `bytes that a body is no part of are not kept for it`() throws {
        var machine = QueueMachine()
        let (command, payload) = try entry([body(1, 100)])
        let copy = payload.map { $0 }
        _ = machine.apply(command, index: 1, now: 1, payload: copy)
        #expect(machine.job(1)?.body == body(1, 100))
        #expect(machine.store.bodies.heldBytes == 100)
    }

    @Test func `one small job does not keep a large payload`() throws {
        var machine = QueueMachine()
        let (ids, _) = try put((0..<100).map { body($0, 1_000) }, into: &machine)
        // The payload that bodies are being taken from stays until the next one.
        _ = try put([body(0, 10)], into: &machine)
        for id in ids where id != 51 { _ = machine.apply(.delete(id: id, lease: nil), index: 2, now: 1) }
        #expect(machine.job(51)?.body == body(50, 1_000))
        #expect(machine.store.bodies.heldBytes < 3_000)
    }

    @Test func `a small job among much else does not keep the entry`() throws {
        var machine = QueueMachine()
        let (small, _) = try put([body(7, 20)], into: &machine, others: 100_000)
        _ = try put([body(0, 10)], into: &machine)
        #expect(machine.job(small[0])?.body == body(7, 20))
        #expect(machine.store.bodies.heldBytes < 1_000)
    }

    @Test func `empty bodies take nothing`() throws {
        var machine = QueueMachine()
        let (ids, _) = try put([[], []], into: &machine)
        #expect(ids.map { machine.job($0)?.body } == [[], []])
        #expect(machine.store.bodies.blockCount == 0)
    }

    @Test(arguments: 0..<20) func `whatever comes and goes, no more than twice the bodies is kept`(seed: UInt64) throws
    {
        var generator = SeededGenerator(seed: seed)
        func number(_ bound: Int) -> Int { Int.random(in: 0..<bound, using: &generator) }
        var machine = QueueMachine()
        var expected: [UInt64: [UInt8]] = [:]
        var largest = 0
        for round in 0..<300 {
            let large = number(10) == 0 ? 20_000 : 300
            let bodies = (0...number(20)).map { body(round &* 100 &+ $0, number(large)) }
            if number(4) == 0 {
                // From elsewhere, as out of a snapshot.
                let command = QueueCommand.put(bodies.map { NewJob(tube: "b", body: $0) })
                guard case .inserted(let jobs) = machine.apply(command, index: 1, now: 1) else { continue }
                for (job, body) in zip(jobs, bodies) { expected[job.id] = body }
            } else {
                let (ids, payload) = try put(bodies, into: &machine, others: number(2_000))
                largest = max(largest, payload.count)
                for (id, body) in zip(ids, bodies) { expected[id] = body }
            }
            for id in expected.keys.sorted() where number(12) == 0 {
                _ = machine.apply(.delete(id: id, lease: nil), index: 1, now: 1)
                expected[id] = nil
            }
            let used = expected.values.reduce(0) { $0 + $1.count + 32 }
            try #require(
                machine.store.bodies.heldBytes <= 2 * used + largest + (64 << 10), "seed \(seed), round \(round)")
            if round % 20 == 0 {
                for (id, body) in expected { try #require(machine.job(id)?.body == body, "seed \(seed), job \(id)") }
            }
        }
        for id in expected.keys.sorted() { _ = machine.apply(.delete(id: id, lease: nil), index: 1, now: 1) }
        #expect(machine.store.bodies.blockCount == 0)
    }

    @Test(arguments: 0..<10) func `the index of jobs finds what a dictionary finds, in order`(seed: UInt64) {
        var generator = SeededGenerator(seed: seed)
        var index = JobIndex()
        var expected: [UInt64: JobStore.Slot] = [:]
        var next: UInt64 = 1
        for _ in 0..<4_000 {
            if Int.random(in: 0..<5, using: &generator) < 3 {
                next += UInt64.random(in: 1...3, using: &generator)
                let slot = JobStore.Slot.random(in: 0..<1_000, using: &generator)
                index.insert(slot, for: next)
                expected[next] = slot
            } else {
                let id = UInt64.random(in: 0...next + 2, using: &generator)
                index.remove(id)
                expected[id] = nil
            }
        }
        #expect(index.count == expected.count)
        for id in 0...next + 2 { #expect(index[id] == expected[id]) }
        var slots: [JobStore.Slot] = []
        index.forEach { slots.append($0) }
        #expect(slots == expected.keys.sorted().map { expected[$0] })
        for id in expected.keys { index.remove(id) }
        #expect(index.count == 0)
        index.forEach { _ in Issue.record("nothing is left") }
    }
}
