// The objects of other checkers' test data: a register with compare-and-set (Jepsen's etcd test), and texts that grow (MIT
// 6.824's key-value store). Each key is an object of its own.

/// A register that holds a number or nothing.
public struct RegisterModel: SequentialModel {
    public enum Input: Hashable, Sendable {
        case read
        case write(Int64)
        case compareAndSet(from: Int64, to: Int64)
    }

    public enum Output: Hashable, Sendable {
        case value(Int64?)
        /// A write or a compare-and-set that took place.
        case done
        /// A compare-and-set that found something else.
        case mismatch
    }

    public init() {}
    public var initial: Int64? { nil }

    public func step(_ state: Int64?, _ operation: TimedOperation<Input, Output>) -> Int64?? {
        switch (operation.input, operation.output) {
        case (.read, nil): .some(state)
        case (.read, .value(let seen)?): seen == state ? .some(state) : nil
        case (.write(let value), nil), (.write(let value), .done?): .some(value)
        case (.compareAndSet(let from, let to), nil), (.compareAndSet(let from, let to), .done?):
            state == from ? .some(to) : nil
        case (.compareAndSet(let from, _), .mismatch?): state == from ? nil : .some(state)
        default: nil
        }
    }
}

/// A text, empty at first.
public struct TextModel: SequentialModel {
    public enum Input: Hashable, Sendable {
        case get
        case put(String)
        case append(String)
    }

    public enum Output: Hashable, Sendable {
        case text(String)
        case done
    }

    public init() {}
    public var initial: String { "" }

    public func step(_ state: String, _ operation: TimedOperation<Input, Output>) -> String? {
        switch (operation.input, operation.output) {
        case (.get, nil): state
        case (.get, .text(let seen)?): seen == state ? state : nil
        case (.put(let text), nil), (.put(let text), .done?): text
        case (.append(let text), nil), (.append(let text), .done?): state + text
        default: nil
        }
    }
}
