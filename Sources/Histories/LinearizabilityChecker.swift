// Decides whether a concurrent history could have happened one operation at a time: Wing and Gong, "Testing and verifying
// concurrent objects" (1993), depth first over the operations that may come next, with Lowe's memo of what was already tried,
// "Testing for linearizability" (2017). Histories of several objects are split before (Horn and Kroening, "Faster
// linearizability checking via P-compositionality", 2015): see ``History/check(budget:)``.

/// What an object does when it is used by one at a time.
public protocol SequentialModel: Sendable {
    associatedtype State: Hashable & Sendable
    associatedtype Input: Hashable & Sendable
    associatedtype Output: Hashable & Sendable

    var initial: State { get }
    /// The state after `operation`; nil if the object can not give this output in this state. An operation without output has
    /// an unknown outcome: then the state after it was carried out. (That it was not carried out need not be said: the checker
    /// may leave it out.)
    func step(_ state: State, _ operation: TimedOperation<Input, Output>) -> State?
}

/// One operation on one object. Times are nanoseconds of any one clock; only their order counts, and differences where a model
/// says so.
public struct TimedOperation<Input: Hashable & Sendable, Output: Hashable & Sendable>: Hashable, Sendable {
    public var input: Input
    /// Nil: the outcome is unknown. It may be carried out at any time after `invoked`, or never.
    public var output: Output?
    public var invoked: Int64
    /// `Int64.max` without output.
    public var completed: Int64

    public init(_ input: Input, _ output: Output?, invoked: Int64, completed: Int64 = .max) {
        self.input = input
        self.output = output
        self.invoked = invoked
        self.completed = output == nil ? .max : completed
    }
}

public enum Linearizability: Hashable, Sendable {
    case linearizable
    /// No order explains all outputs. `prefix`: the longest order that was found, as positions in the input; `stuck`: an
    /// operation that no order could place after it.
    case violated(prefix: [Int], stuck: Int)
    /// Given up after as many steps as the budget allowed.
    case undecided

    /// `budget`: calls of the model's step. Memory is bounded by it: one remembered state each.
    public static func check<Model: SequentialModel>(
        _ model: Model, _ operations: [TimedOperation<Model.Input, Model.Output>], budget: Int = 2_000_000
    ) -> Linearizability {
        var search = Search(model, operations, budget: budget)
        return search.run()
    }
}

/// Calls and returns in the order of time, as a list from which an operation is lifted while it is part of the order tried.
private struct Search<Model: SequentialModel> {
    private struct Tried: Hashable {
        var placed: [UInt64]
        var state: Model.State
    }

    private struct Place {
        var operation: Int
        var state: Model.State
    }

    private let model: Model
    private let operations: [TimedOperation<Model.Input, Model.Output>]
    private var budget: Int
    /// Entry 0 is the head; then calls and returns. What is not linked is lifted.
    private var next: [Int]
    private var previous: [Int]
    /// Of each entry: the operation, and whether this is its return.
    private var operation: [Int]
    private var isReturn: [Bool]
    private var callEntry: [Int]
    private var returnEntry: [Int]
    /// Operations with an output that are not placed yet.
    private var owed: Int

    init(_ model: Model, _ operations: [TimedOperation<Model.Input, Model.Output>], budget: Int) {
        self.model = model
        self.operations = operations
        self.budget = budget
        var events: [(time: Int64, isReturn: Bool, operation: Int)] = []
        events.reserveCapacity(2 * operations.count)
        for (i, operation) in operations.enumerated() {
            events.append((operation.invoked, false, i))
            if operation.output != nil { events.append((operation.completed, true, i)) }
        }
        // At one moment calls come first: what touches may overlap.
        events.sort { ($0.time, $0.isReturn ? 1 : 0, $0.operation) < ($1.time, $1.isReturn ? 1 : 0, $1.operation) }
        operation = [-1] + events.map(\.operation)
        isReturn = [false] + events.map(\.isReturn)
        next = Array(1...events.count + 1)
        previous = Array(-1..<events.count)
        callEntry = Array(repeating: 0, count: operations.count)
        returnEntry = Array(repeating: 0, count: operations.count)
        for (i, event) in events.enumerated() {
            if event.isReturn { returnEntry[event.operation] = i + 1 } else { callEntry[event.operation] = i + 1 }
        }
        owed = operations.count { $0.output != nil }
    }

    private mutating func unlink(_ entry: Int) {
        next[previous[entry]] = next[entry]
        if next[entry] < previous.count { previous[next[entry]] = previous[entry] }
    }

    private mutating func relink(_ entry: Int) {
        next[previous[entry]] = entry
        if next[entry] < previous.count { previous[next[entry]] = entry }
    }

    private mutating func lift(_ i: Int) {
        unlink(callEntry[i])
        guard operations[i].output != nil else { return }
        unlink(returnEntry[i])
        owed -= 1
    }

    private mutating func putBack(_ i: Int) {
        if operations[i].output != nil {
            relink(returnEntry[i])
            owed += 1
        }
        relink(callEntry[i])
    }

    mutating func run() -> Linearizability {
        let end = next.count
        var state = model.initial
        var placed = [UInt64](repeating: 0, count: (operations.count + 63) / 64)
        var tried: Set<Tried> = []
        var path: [Place] = []
        var longest: [Int] = []
        var stuck = 0
        var entry = next[0]
        while owed > 0 {
            if entry < end, !isReturn[entry] {
                let i = operation[entry]
                budget -= 1
                guard budget >= 0 else { return .undecided }
                // What is unknown and changes nothing explains nothing: it is left out.
                if let after = model.step(state, operations[i]), operations[i].output != nil || after != state {
                    placed[i / 64] |= 1 << (i % 64)
                    if tried.insert(Tried(placed: placed, state: after)).inserted {
                        path.append(Place(operation: i, state: state))
                        state = after
                        lift(i)
                        entry = next[0]
                        continue
                    }
                    placed[i / 64] &= ~(1 << (i % 64))
                }
                entry = next[entry]
                continue
            }
            // This operation has returned before any of those that are left was called.
            if path.count >= longest.count, entry < end {
                longest = path.map(\.operation)
                stuck = operation[entry]
            }
            guard let last = path.popLast() else { return .violated(prefix: longest, stuck: stuck) }
            state = last.state
            placed[last.operation / 64] &= ~(1 << (last.operation % 64))
            putBack(last.operation)
            entry = next[callEntry[last.operation]]
        }
        return .linearizable
    }
}
