// Random histories: the machine against the naive queue, snapshots in the middle of them, and bytes that nobody wrote.
import Model
import Testing
import Wire

@testable import Queues

/// Random commands over few tubes, keys and holders, so that they meet.
struct CommandSource {
    var generator: SeededGenerator
    var leases: [(id: UInt64, lease: UInt64)] = []

    mutating func number(_ bound: UInt64) -> UInt64 { UInt64.random(in: 0..<bound, using: &generator) }
    mutating func tube() -> String { ["a", "b", "c"][Int(number(3))] }

    mutating func next(lastID: UInt64) -> QueueCommand {
        let id = number(10) == 0 ? number(lastID + 3) : (lastID > 30 ? lastID - number(30) : number(lastID + 1))
        let token =
            number(8) == 0 || leases.isEmpty
            ? (id: id, lease: number(1 << 20)) : leases[Int(number(UInt64(leases.count)))]
        switch number(24) {
        case 0...6:
            return .put(
                (0...number(3)).map { _ in
                    NewJob(
                        tube: tube(), priority: UInt32(number(4) * 500),
                        delayMilliseconds: number(3) == 0 ? number(400) : 0,
                        ttrMilliseconds: number(500),
                        body: Array(repeating: UInt8(number(256)), count: Int(number(20))),
                        key: number(3) == 0 ? "key-\(number(6))" : nil)
                })
        case 7...10:
            return .reserve(tubes: (0...number(2)).map { _ in tube() }, holder: number(4), count: Int(number(4)))
        case 11: return .reserveJob(id: id, holder: number(4))
        case 12...13: return .delete(id: token.id, lease: token.lease)
        case 14: return .delete(id: id, lease: nil)
        case 15:
            return .release(
                id: token.id, lease: token.lease, priority: UInt32(number(3)),
                delayMilliseconds: number(2) == 0 ? 0 : number(300))
        case 16: return .bury(id: token.id, lease: token.lease, priority: UInt32(number(2_000)))
        case 17: return .touch(id: token.id, lease: token.lease)
        case 18: return .kick(tube: tube(), count: Int(number(4)))
        case 19: return .kickJob(id: id)
        case 20: return .pause(tube: tube(), milliseconds: number(3) * 200, create: number(2) == 0)
        case 21: return number(4) == 0 ? .purge(tube: tube()) : .releaseHolder(number(4))
        case 22:
            let setting = [
                ["max-attempts": "\(number(5))"], ["max-jobs": "\(number(2) * 20)"],
                ["max-bytes": "\(number(2) * 200)"],
                ["backoff": "\(number(3) * 50)ms"], ["dedupe-window": "\(number(3) * 300)ms"],
            ]
            return .setTube(name: tube(), settings: setting[Int(number(5))])
        default: return .reserve(tubes: ["a", "b", "c"], holder: number(4), count: 1)
        }
    }

    mutating func learn(_ result: QueueResult) {
        if case .reserved(let jobs) = result { leases += jobs.map { ($0.id, $0.lease) } }
        if leases.count > 20 { leases.removeFirst(leases.count - 20) }
    }
}

private func encoded(_ machine: QueueMachine) -> [UInt8] {
    var writer = ByteWriter()
    machine.encode(into: &writer)
    return writer.bytes
}

private func decoded(_ bytes: [UInt8]) throws -> QueueMachine {
    var reader = ByteReader(bytes)
    let machine = try QueueMachine(decoding: &reader)
    try reader.finish()
    return machine
}

@Suite struct QueueRandomTests {
    @Test(arguments: 0..<40) func `random histories have the naive queue's answers, across snapshots`(seed: UInt64)
        throws
    {
        var source = CommandSource(generator: SeededGenerator(seed: seed))
        var machine = QueueMachine()
        var naive = NaiveQueue()
        var now: UInt64 = 1_000
        for index in UInt64(1)...400 {
            now += source.number(4) == 0 ? source.number(200) : source.number(10)
            let command = source.next(lastID: machine.nextID - 1)
            let wasReady = ["a", "b", "c"].filter { machine.hasReady([$0]) }
            _ = machine.takeReadied()
            // As out of a log entry, or made here.
            var result: QueueResult
            if source.number(3) > 0 {
                var writer = ByteWriter()
                writer.raw(repeatElement(0, count: Int(source.number(200))))
                let start = writer.count
                command.encode(into: &writer)
                let payload = writer.bytes
                var reader = ByteReader(payload)
                _ = try reader.raw(start)
                result = machine.apply(try QueueCommand(decoding: &reader), index: index, now: now, payload: payload)
            } else {
                result = machine.apply(command, index: index, now: now)
            }
            let readied = machine.takeReadied()
            source.learn(result)
            if case .refused = result { result = .refused(.failed, "") }
            let expected = naive.apply(command, index: index, now: now)
            try #require(result == expected, "seed \(seed), entry \(index): \(command)")
            try #require(machine.nextDeadline == naive.nextDeadline, "seed \(seed), entry \(index): \(command)")
            for tube in ["a", "b", "c"] {
                let isReady = machine.hasReady([tube])
                if isReady, !wasReady.contains(tube) { #expect(readied.contains(tube), "seed \(seed), entry \(index)") }
                if readied.contains(tube) { #expect(isReady) }
            }
            if index % 20 == 0 {
                try compare(machine, naive, seed: seed, index: index)
                let bytes = encoded(machine)
                machine = try decoded(bytes)
                try #require(encoded(machine) == bytes, "seed \(seed), entry \(index)")
                try compare(machine, naive, seed: seed, index: index)
            }
        }
    }

    private func compare(_ machine: QueueMachine, _ naive: NaiveQueue, seed: UInt64, index: UInt64) throws {
        for job in naive.jobs {
            let view = try #require(machine.job(job.id))
            let isTimed = job.state == .reserved || job.state == .delayed
            let expected = JobView(
                id: job.id, tube: job.new.tube, state: job.state, priority: job.new.priority,
                ageMilliseconds: naive.now - job.created,
                delayMilliseconds: job.delay, ttrMilliseconds: job.new.ttrMilliseconds,
                leftMilliseconds: isTimed ? job.deadline - naive.now : 0, reserves: job.reserves,
                timeouts: job.timeouts,
                releases: job.releases, buries: job.buries, kicks: job.kicks, holder: job.holder, key: job.new.key,
                body: Array(job.new.body))
            try #require(view == expected, "seed \(seed), entry \(index)")
        }
        let totals = machine.totals
        #expect(totals.ready + totals.reserved + totals.delayed + totals.buried == UInt64(naive.jobs.count))
        #expect(totals.urgent == UInt64(naive.jobs.filter { $0.state == .ready && $0.new.priority < 1_024 }.count))
        for tube in ["a", "b", "c"] {
            for state in [JobView.State.ready, .delayed, .buried] {
                #expect(
                    machine.peek(tube: tube, state: state)?.id == naive.first(tube, state)?.id,
                    "seed \(seed), entry \(index)")
            }
            guard let stats = machine.statsDocument(tube: tube) else { continue }
            #expect(stats["total-jobs"]?.intValue == Int64(naive.tubes[tube]?.total ?? 0))
            #expect(stats["cmd-delete"]?.intValue == Int64(naive.tubes[tube]?.deletes ?? 0))
            for (key, state) in [
                ("ready", JobView.State.ready), ("reserved", .reserved), ("delayed", .delayed), ("buried", .buried),
            ] {
                let count = naive.jobs.filter { $0.new.tube == tube && $0.state == state }.count
                #expect(stats["current-jobs-\(key)"]?.intValue == Int64(count))
            }
        }
    }

    @Test(arguments: 0..<10) func `commands and results are read back as they were written`(seed: UInt64) throws {
        var source = CommandSource(generator: SeededGenerator(seed: seed))
        var machine = QueueMachine()
        for index in UInt64(1)...200 {
            let command = source.next(lastID: machine.nextID - 1)
            var writer = ByteWriter()
            command.encode(into: &writer)
            var reader = ByteReader(writer.bytes)
            #expect(try QueueCommand(decoding: &reader) == command)
            try reader.finish()
            let result = machine.apply(command, index: index, now: index * 20)
            source.learn(result)
            writer = ByteWriter()
            result.encode(into: &writer)
            reader = ByteReader(writer.bytes)
            #expect(try QueueResult(decoding: &reader) == result)
            try reader.finish()
        }
    }

    @Test(arguments: 0..<8) func `damaged bytes are refused or make a machine that works`(seed: UInt64) throws {
        var source = CommandSource(generator: SeededGenerator(seed: seed))
        var machine = QueueMachine()
        for index in UInt64(1)...60 {
            source.learn(machine.apply(source.next(lastID: machine.nextID - 1), index: index, now: index * 20))
        }
        let snapshot = encoded(machine)
        var refused = 0
        for _ in 0..<400 {
            var bytes = snapshot
            for _ in 0...source.number(2) {
                let at = Int(source.number(UInt64(bytes.count)))
                switch source.number(3) {
                case 0: bytes[at] = UInt8(source.number(256))
                case 1: bytes[at] ^= 1 << UInt8(source.number(8))
                default: bytes.removeSubrange(at..<min(at + Int(source.number(4)), bytes.count))
                }
            }
            guard var damaged = try? decoded(bytes) else {
                refused += 1
                continue
            }
            for index in UInt64(100)..<130 {
                source.learn(damaged.apply(source.next(lastID: damaged.nextID - 1), index: index, now: index * 20))
            }
            damaged.expire(now: .max)
            let again = encoded(damaged)
            #expect(encoded(try decoded(again)) == again)
        }
        #expect(refused > 50)
        for length in stride(from: 0, to: snapshot.count, by: 7) {
            #expect((try? decoded(Array(snapshot[..<length]))) == nil)
        }
    }

    @Test func `random bytes are no command and do not crash`() {
        var generator = SeededGenerator(seed: 99)
        for _ in 0..<5_000 {
            var bytes = (0..<Int.random(in: 0..<60, using: &generator)).map { _ in
                UInt8.random(in: 0...255, using: &generator)
            }
            if !bytes.isEmpty { bytes[0] = UInt8.random(in: 0...14, using: &generator) }
            var reader = ByteReader(bytes)
            if let command = try? QueueCommand(decoding: &reader) {
                var machine = QueueMachine()
                _ = machine.apply(command, index: .max, now: .max)
                _ = machine.apply(command, index: 0, now: 0)
            }
            reader = ByteReader(bytes)
            _ = try? QueueResult(decoding: &reader)
        }
    }
}
