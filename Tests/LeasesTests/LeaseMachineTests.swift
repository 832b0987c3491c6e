import Model
import Testing
import Wire

@testable import Leases

@Suite struct LeaseMachineTests {
    private let key = "election/boss"

    private func acquire(_ holder: String, ttl: UInt64 = 2_000) -> LeaseCommand {
        .acquire(key: key, holder: holder, info: ["pod": "pod-" + holder, "node": "n1"], ttlMilliseconds: ttl)
    }

    @Test func theFirstGetsALeaseWhoseTokenIsItsIndexAndOthersSeeWhoHasIt() {
        var machine = LeaseMachine()
        #expect(machine.apply(acquire("a"), index: 7, now: 1_000) == .granted(token: 7, expiresInMilliseconds: 2_000))
        let held = machine.apply(acquire("b"), index: 8, now: 1_500)
        let view = LeaseView(
            key: key, holder: LeaseHolder(id: "a", info: ["pod": "pod-a", "node": "n1"]), token: 7,
            ttlMilliseconds: 2_000,
            expiresInMilliseconds: 1_500)
        #expect(held == .held(view))
        #expect(machine.lease(key, now: 1_500) == view)
    }

    @Test func theHolderWhoAcquiresAgainKeepsItsTokenAndGetsMoreTime() {
        var machine = LeaseMachine()
        _ = machine.apply(acquire("a"), index: 1, now: 0)
        #expect(machine.apply(acquire("a"), index: 2, now: 1_000) == .granted(token: 1, expiresInMilliseconds: 2_000))
        #expect(machine.nextDeadline == 3_000)
    }

    @Test func aShorterTimeToLiveDoesNotBringTheEndNearer() {
        var machine = LeaseMachine()
        _ = machine.apply(acquire("a", ttl: 10_000), index: 1, now: 0)
        #expect(
            machine.apply(acquire("a", ttl: 100), index: 2, now: 10) == .granted(token: 1, expiresInMilliseconds: 9_990)
        )
        #expect(machine.nextDeadline == 10_000)
    }

    @Test func renewingPutsTheEndOffAndAForeignTokenCanNot() {
        var machine = LeaseMachine()
        _ = machine.apply(acquire("a"), index: 1, now: 0)
        #expect(
            machine.apply(.renew(key: key, token: 1), index: 2, now: 1_900) == .renewed(expiresInMilliseconds: 2_000))
        #expect(machine.nextDeadline == 3_900)
        #expect(machine.apply(.renew(key: key, token: 9), index: 3, now: 1_900) == .lost(newest: 1))
        #expect(machine.apply(.renew(key: "other", token: 9), index: 4, now: 1_900) == .lost(newest: 0))
    }

    @Test func aLeaseEndsExactlyWhenItsTimeIsOver() {
        var machine = LeaseMachine()
        _ = machine.apply(acquire("a"), index: 1, now: 0)
        #expect(machine.apply(.check(key: key, token: 1), index: 2, now: 1_999) == .valid(expiresInMilliseconds: 1))
        #expect(machine.apply(.check(key: key, token: 1), index: 3, now: 2_000) == .lost(newest: 1))
        #expect(machine.apply(.renew(key: key, token: 1), index: 4, now: 2_000) == .lost(newest: 1))
        #expect(machine.takeFreed() == [key])
        #expect(machine.takeFreed() == [])
        #expect(machine.nextDeadline == nil)
    }

    @Test func theSuccessorsTokenIsLargerAndTheOldOneIsLost() {
        var machine = LeaseMachine()
        _ = machine.apply(acquire("a"), index: 1, now: 0)
        #expect(machine.apply(.release(key: key, token: 1), index: 2, now: 5) == .released)
        #expect(machine.apply(.release(key: key, token: 1), index: 3, now: 5) == .lost(newest: 1))
        #expect(machine.apply(acquire("b"), index: 4, now: 6) == .granted(token: 4, expiresInMilliseconds: 2_000))
        #expect(machine.apply(.check(key: key, token: 1), index: 5, now: 6) == .lost(newest: 4))
        #expect(machine.apply(.release(key: key, token: 1), index: 6, now: 6) == .lost(newest: 4))
    }

    @Test func grantsOfOneLogEntryHaveDifferentTokens() {
        var machine = LeaseMachine()
        var tokens: [UInt64] = []
        for name in ["x", "y", "z"] {
            let result = machine.apply(
                .acquire(key: name, holder: "h", info: [:], ttlMilliseconds: 500), index: 10, now: 0)
            if case .granted(let token, _) = result { tokens.append(token) }
        }
        #expect(tokens == [10, 11, 12])
        #expect(
            machine.apply(.acquire(key: "w", holder: "h", info: [:], ttlMilliseconds: 500), index: 11, now: 0)
                == .granted(token: 13, expiresInMilliseconds: 500))
    }

    @Test(arguments: [
        LeaseCommand.acquire(key: "", holder: "h", info: [:], ttlMilliseconds: 500),
        .acquire(key: String(repeating: "k", count: 513), holder: "h", info: [:], ttlMilliseconds: 500),
        .acquire(key: "k", holder: "", info: [:], ttlMilliseconds: 500),
        .acquire(key: "k", holder: "h", info: [:], ttlMilliseconds: 99),
        .acquire(key: "k", holder: "h", info: [:], ttlMilliseconds: 3_600_001),
        .acquire(key: "k", holder: "h", info: ["a": String(repeating: "v", count: 1_025)], ttlMilliseconds: 500),
    ])
    func badInputIsAnAnswerAndChangesNothing(_ command: LeaseCommand) {
        var machine = LeaseMachine()
        guard case .refused(.badInput, _) = machine.apply(command, index: 1, now: 0) else {
            Issue.record("it was accepted")
            return
        }
        #expect(machine.keys(prefix: "") == [])
    }

    @Test func aFullTableForgetsFreeKeysFirstAndRefusesWhenAllAreHeld() {
        var machine = LeaseMachine()
        func fill(_ name: String, _ index: UInt64) -> LeaseResult {
            machine.apply(.acquire(key: name, holder: "h", info: [:], ttlMilliseconds: 3_600_000), index: index, now: 0)
        }
        for i in 0..<LeaseLimits.keys { _ = fill("k\(i)", UInt64(i + 1)) }
        let next = UInt64(LeaseLimits.keys + 1)
        guard case .refused(.busy, _) = fill("one more", next) else {
            Issue.record("there is room for more than the limit")
            return
        }
        #expect(machine.apply(.release(key: "k5", token: 6), index: next + 1, now: 0) == .released)
        #expect(fill("one more", next + 2) == .granted(token: next + 2, expiresInMilliseconds: 3_600_000))
        #expect(machine.lease("k5", now: 0) == nil)
        #expect(fill("k5", next + 3) != .granted(token: next + 3, expiresInMilliseconds: 3_600_000))
    }

    @Test func theDocumentIsThatOfTheContractAndKeepsTheLastToken() {
        var machine = LeaseMachine()
        let empty = #"{"name":"boss","holder":null,"token":0,"ttlMilliseconds":0,"expiresInMilliseconds":0}"#
        #expect(machine.document(key, now: 0).text() == empty)
        _ = machine.apply(
            .acquire(key: key, holder: "a", info: ["node": "n1", "name": "x"], ttlMilliseconds: 2_000), index: 3, now: 0
        )
        let held =
            #"{"name":"boss","holder":{"id":"a","pod":null,"node":"n1","name":"x"},"token":3,"ttlMilliseconds":2000,"#
        #expect(machine.document(key, now: 500).text() == held + #""expiresInMilliseconds":1500}"#)
        machine.expire(now: 2_000)
        let ended = #"{"name":"boss","holder":null,"token":3,"ttlMilliseconds":2000,"expiresInMilliseconds":0}"#
        #expect(machine.document(key, now: 2_000).text() == ended)
        #expect(machine.listDocument(now: 2_000).text() == #"{"elections":["# + ended + "]}")
    }

    /// The machine against a model that is too simple to be wrong: a list of grants, searched from the end.
    @Test(arguments: [1, 2, 3, 4] as [UInt64])
    func randomHistoriesKeepTheRules(seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        var machine = LeaseMachine()
        struct Held { var holder: String, token: UInt64, deadline: UInt64 }
        var model: [String: Held] = [:]
        var now: UInt64 = 0
        var newest: UInt64 = 0
        for index in UInt64(1)...4_000 {
            now += UInt64.random(in: 0...60, using: &generator)
            model = model.filter { $0.value.deadline > now }
            let key = "k\(Int.random(in: 0..<6, using: &generator))"
            let holder = "h\(Int.random(in: 0..<4, using: &generator))"
            let token = generator.chance(0.7) ? model[key]?.token ?? 0 : UInt64.random(in: 0...index, using: &generator)
            let current = model[key]
            switch Int.random(in: 0..<4, using: &generator) {
            case 0:
                let ttl = UInt64.random(in: 100...900, using: &generator)
                let result = machine.apply(
                    .acquire(key: key, holder: holder, info: [:], ttlMilliseconds: ttl), index: index, now: now)
                if let current, current.holder != holder {
                    guard case .held(let view) = result else {
                        Issue.record("\(result) although \(current.holder) holds it")
                        return
                    }
                    #expect(view.token == current.token && view.expiresInMilliseconds == current.deadline - now)
                } else if let current {
                    model[key]?.deadline = max(current.deadline, now + ttl)
                    let left = max(current.deadline, now + ttl) - now
                    #expect(result == .granted(token: current.token, expiresInMilliseconds: left))
                } else {
                    #expect(result == .granted(token: index, expiresInMilliseconds: ttl))
                    #expect(index > newest, "tokens rise")
                    newest = index
                    model[key] = Held(holder: holder, token: index, deadline: now + ttl)
                }
            case 1:
                let result = machine.apply(.renew(key: key, token: token), index: index, now: now)
                if let current, current.token == token {
                    guard case .renewed(let left) = result else {
                        Issue.record("\(result) for the holder's own token")
                        return
                    }
                    #expect(now + left >= current.deadline)
                    model[key]?.deadline = now + left
                } else if case .lost = result {
                } else {
                    Issue.record("\(result) for a token that is not held")
                }
            case 2:
                let result = machine.apply(.release(key: key, token: token), index: index, now: now)
                #expect((result == .released) == (current != nil && current?.token == token))
                if result == .released { model[key] = nil }
            default:
                let result = machine.apply(.check(key: key, token: token), index: index, now: now)
                if let current, current.token == token {
                    #expect(result == .valid(expiresInMilliseconds: current.deadline - now))
                } else if case .lost = result {
                } else {
                    Issue.record("\(result) for a token that is not held")
                }
            }
            #expect(machine.nextDeadline == model.values.map(\.deadline).min())
            for (name, held) in model { #expect(machine.lease(name, now: now)?.holder?.id == held.holder) }
            #expect(machine.heldCount == model.count)
            if index % 500 == 0 { machine = try roundTrip(machine) }
        }
    }

    private func roundTrip(_ machine: LeaseMachine) throws -> LeaseMachine {
        var writer = ByteWriter()
        machine.encode(into: &writer)
        var reader = ByteReader(writer.bytes)
        let copy = try LeaseMachine(decoding: &reader)
        try reader.finish()
        var again = ByteWriter()
        copy.encode(into: &again)
        #expect(again.bytes == writer.bytes)
        return copy
    }
}

@Suite struct LeaseCodecTests {
    private let commands: [LeaseCommand] = [
        .acquire(key: "election/x", holder: "h", info: ["node": "n", "pod": "p"], ttlMilliseconds: 2_000),
        .renew(key: "k", token: 300), .release(key: "k", token: .max), .check(key: "ключ", token: 0),
    ]
    private let results: [LeaseResult] = [
        .granted(token: 5, expiresInMilliseconds: 6),
        .held(
            LeaseView(key: "k", holder: LeaseHolder(id: "h"), token: 1, ttlMilliseconds: 2, expiresInMilliseconds: 3)),
        .renewed(expiresInMilliseconds: 9), .released, .valid(expiresInMilliseconds: 1), .lost(newest: 4),
        .refused(.badInput, "why"),
    ]

    private func bytes(_ write: (inout ByteWriter) -> Void) -> [UInt8] {
        var writer = ByteWriter()
        write(&writer)
        return writer.bytes
    }

    @Test func commandsAndResultsReadBack() throws {
        for command in commands {
            var reader = ByteReader(bytes(command.encode))
            #expect(try LeaseCommand(decoding: &reader) == command)
            #expect(reader.isAtEnd)
        }
        for result in results {
            var reader = ByteReader(bytes(result.encode))
            #expect(try LeaseResult(decoding: &reader) == result)
            #expect(reader.isAtEnd)
        }
    }

    @Test func theBytesOfACommandStayWhatTheyAre() {
        #expect(
            bytes(commands[0].encode)
                == [1, 10] + Array("election/x".utf8) + [1] + Array("h".utf8) + [2, 4] + Array("node".utf8) + [1]
                + Array("n".utf8)
                + [3] + Array("pod".utf8) + [1] + Array("p".utf8) + [0xD0, 0x0F])
        #expect(bytes(commands[1].encode) == [2, 1, 107, 0xAC, 2])
    }

    @Test func damagedBytesAreRefusedOrReadAsSomethingWhole() {
        var generator = SeededGenerator(seed: 11)
        var machine = LeaseMachine()
        for i in 0..<20 {
            _ = machine.apply(
                .acquire(key: "k\(i)", holder: "h", info: ["a": "b"], ttlMilliseconds: 1_000), index: UInt64(i + 1),
                now: 0)
        }
        let seeds = commands.map { bytes($0.encode) } + results.map { bytes($0.encode) } + [bytes(machine.encode)]
        var refused = 0
        for _ in 0..<20_000 {
            var data = seeds[Int.random(in: 0..<seeds.count, using: &generator)]
            for _ in 0..<Int.random(in: 1...4, using: &generator) {
                data[Int.random(in: 0..<data.count, using: &generator)] = UInt8(truncatingIfNeeded: generator.next())
            }
            if generator.chance(0.3) { data.removeLast(Int.random(in: 0..<data.count, using: &generator)) }
            var readers = (ByteReader(data), ByteReader(data), ByteReader(data))
            if (try? LeaseCommand(decoding: &readers.0)) == nil { refused += 1 }
            if (try? LeaseResult(decoding: &readers.1)) == nil { refused += 1 }
            // What could be read must be usable.
            if var odd = try? LeaseMachine(decoding: &readers.2) {
                odd.expire(now: 5_000)
                _ = odd.apply(.acquire(key: "n", holder: "h", info: [:], ttlMilliseconds: 100), index: 99, now: 5_000)
                _ = odd.listDocument(now: .max)
            } else {
                refused += 1
            }
        }
        #expect(refused > 20_000)
    }
}
