import Histories
import Testing

private typealias Register = TimedOperation<RegisterModel.Input, RegisterModel.Output>

@Suite struct CheckerTests {
    private func check(_ operations: [Register]) -> Bool {
        Linearizability.check(RegisterModel(), operations) == .linearizable
    }

    @Test func aReadMaySeeAWriteThatIsUnderWay() {
        #expect(
            check([
                Register(.write(100), .done, invoked: 0, completed: 100),
                Register(.read, .value(100), invoked: 25, completed: 75),
                Register(.read, .value(nil), invoked: 30, completed: 60),
            ]))
    }

    @Test func aReadMayNotSeeWhatAnEarlierReadSawReplaced() {
        let result = Linearizability.check(
            RegisterModel(),
            [
                Register(.write(200), .done, invoked: 0, completed: 100),
                Register(.read, .value(200), invoked: 10, completed: 30),
                Register(.read, .value(nil), invoked: 40, completed: 90),
            ])
        #expect(result == .violated(prefix: [0, 1], stuck: 2))
    }

    @Test func whatTouchesInTimeMayOverlap() {
        #expect(
            check([
                Register(.write(1), .done, invoked: 0, completed: 10),
                Register(.read, .value(nil), invoked: 10, completed: 20),
            ]))
        #expect(
            !check([
                Register(.write(1), .done, invoked: 0, completed: 10),
                Register(.read, .value(nil), invoked: 11, completed: 20),
            ]))
    }

    @Test func anUnknownOutcomeMayHappenAtAnyLaterTimeOrNever() {
        let write = Register(.write(1), nil, invoked: 10)
        #expect(check([write]))
        #expect(check([write, Register(.read, .value(nil), invoked: 500, completed: 600)]))
        #expect(
            check([
                write, Register(.read, .value(nil), invoked: 500, completed: 600),
                Register(.read, .value(1), invoked: 700, completed: 800),
            ]))
        // Once, and not before it was asked for.
        #expect(!check([write, Register(.read, .value(1), invoked: 1, completed: 9)]))
        #expect(
            !check([
                write, Register(.read, .value(1), invoked: 20, completed: 30),
                Register(.write(2), .done, invoked: 40, completed: 50),
                Register(.read, .value(1), invoked: 60, completed: 70),
            ]))
    }

    @Test func aSearchThatIsTooLongIsGivenUp() {
        var operations = (0..<40).map { Register(.write(Int64($0)), .done, invoked: 0, completed: 1_000) }
        operations.append(Register(.read, .value(77), invoked: 0, completed: 1_000))
        #expect(Linearizability.check(RegisterModel(), operations, budget: 5_000) == .undecided)
    }

    /// Against all permutations: small histories with much overlap, some made by really running a register, some altered.
    @Test(arguments: 0..<4)
    func itAgreesWithTryingEveryOrder(block: UInt64) {
        var counts = [0, 0]
        for seed in block * 1_000..<(block + 1) * 1_000 {
            var random = Dice(state: seed &* 0x9E37_79B9_7F4A_7C15 | 1)
            let operations = CheckerTests.someHistory(&random)
            let expected = CheckerTests.bruteForce(operations)
            #expect(check(operations) == expected, "seed \(seed): \(operations)")
            counts[expected ? 1 : 0] += 1
        }
        #expect(counts[0] > 100 && counts[1] > 100, "\(counts)")
    }

    private struct Dice {
        var state: UInt64
        mutating func roll(_ n: UInt64) -> UInt64 {
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
            return (state >> 11) % n
        }
    }

    private static func someHistory(_ random: inout Dice) -> [Register] {
        let count = 2 + random.roll(5)
        var result: [Register] = []
        var value: Int64?
        // Points in time at which the operations really happen, with an interval around each.
        for i in 0..<count {
            let point = Int64(i) * 10 + 100
            let begin = point - Int64(random.roll(30))
            let end = point + Int64(random.roll(30))
            var input: RegisterModel.Input
            var output: RegisterModel.Output?
            let number = Int64(random.roll(3))
            switch random.roll(3) {
            case 0: (input, output) = (.read, .value(random.roll(5) == 0 ? number : value))
            case 1:
                (input, output) = (.write(number), .done)
                value = number
            default:
                let to = Int64(random.roll(3))
                input = .compareAndSet(from: number, to: to)
                output = value == number ? .done : .mismatch
                if value == number { value = to }
                if random.roll(8) == 0 { output = output == .done ? .mismatch : .done }
            }
            if random.roll(6) == 0 { output = nil }
            result.append(Register(input, output, invoked: begin, completed: end))
        }
        return result
    }

    private static func bruteForce(_ operations: [Register]) -> Bool {
        let model = RegisterModel()
        func place(_ left: [Register], _ state: Int64?) -> Bool {
            guard left.contains(where: { $0.output != nil }) else { return true }
            for (i, operation) in left.enumerated() {
                let isFirst = left.allSatisfy { $0.completed >= operation.invoked }
                guard isFirst, let after = model.step(state, operation) else { continue }
                var rest = left
                rest.remove(at: i)
                if place(rest, after) { return true }
            }
            return false
        }
        return place(operations, model.initial)
    }
}
