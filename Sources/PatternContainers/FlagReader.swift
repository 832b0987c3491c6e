// The flags of a container entry point: `--flag VALUE` or `--flag=VALUE`, a command after `--`. What is not understood is an
// error that says what would be.
import Model

struct FlagReader {
    private let verb: String
    /// Flags with their values, in order; a flag without a value has nil.
    private var flags: [(name: String, value: String?)] = []
    private var operands: [String] = []
    /// All after `--`.
    private(set) var command: [String] = []
    /// Flags that were asked for, for the error that names them.
    private var known: [String] = []

    /// Flags that take no value must be named, since whether a word is a value or an operand depends on it.
    init(_ verb: String, _ arguments: [String], switches: Set<String> = []) throws(CoterieError) {
        self.verb = verb
        var i = 0
        while i < arguments.count {
            let word = arguments[i]
            i += 1
            if word == "--" {
                command = Array(arguments[i...])
                break
            }
            guard word.hasPrefix("-"), word != "-" else {
                operands.append(word)
                continue
            }
            if let equals = word.firstIndex(of: "=") {
                flags.append((String(word[..<equals]), String(word[word.index(after: equals)...])))
            } else if switches.contains(word) {
                flags.append((word, nil))
            } else {
                guard i < arguments.count, arguments[i] != "--" else {
                    throw CoterieError(.badInput, "\(verb): \(word) needs a value")
                }
                flags.append((word, arguments[i]))
                i += 1
            }
        }
    }

    /// All values of a flag that may be repeated.
    mutating func values(_ name: String) -> [String] {
        known.append(name)
        let found = flags.filter { $0.name == name }.map { $0.value ?? "" }
        flags.removeAll { $0.name == name }
        return found
    }

    mutating func value(_ name: String) throws(CoterieError) -> String? {
        let found = values(name)
        guard found.count <= 1 else { throw CoterieError(.badInput, "\(verb): \(name) is given twice") }
        return found.first
    }

    mutating func isSet(_ name: String) throws(CoterieError) -> Bool {
        known.append(name)
        guard let flag = flags.first(where: { $0.name == name }) else { return false }
        guard flag.value == nil else { throw CoterieError(.badInput, "\(verb): \(name) takes no value") }
        flags.removeAll { $0.name == name }
        return true
    }

    mutating func duration(_ name: String) throws(CoterieError) -> TimeSpan? {
        guard let text = try value(name) else { return nil }
        guard let span = TimeSpan(text: text) else {
            throw CoterieError(
                .badInput, "\(verb): \(name) \(text): not a duration", hint: "250ms, 3s or 5m, for example")
        }
        return span
    }

    mutating func size(_ name: String) throws(CoterieError) -> UInt64? {
        guard let text = try value(name) else { return nil }
        guard let size = ByteSize.parse(text) else {
            throw CoterieError(.badInput, "\(verb): \(name) \(text): not a size", hint: "64KiB or 1MiB, for example")
        }
        return size
    }

    mutating func number(_ name: String, in range: ClosedRange<Int>) throws(CoterieError) -> Int? {
        guard let text = try value(name) else { return nil }
        guard let number = Int(text), range.contains(number) else {
            throw CoterieError(
                .badInput, "\(verb): \(name) \(text): not a number from \(range.lowerBound) to \(range.upperBound)")
        }
        return number
    }

    mutating func address(_ name: String) throws(CoterieError) -> SocketAddress? {
        guard let text = try value(name) else { return nil }
        guard let address = SocketAddress(text: text) else {
            throw CoterieError(.badInput, "\(verb): \(name) \(text): not an address", hint: "ADDRESS:PORT is expected")
        }
        return address
    }

    mutating func endpoints(_ name: String) throws(CoterieError) -> [Endpoint] {
        var found: [Endpoint] = []
        for text in values(name) {
            guard let endpoint = Endpoint(text: text) else {
                throw CoterieError(.badInput, "\(verb): \(name) \(text): not an address", hint: "HOST:PORT is expected")
            }
            found.append(endpoint)
        }
        return found
    }

    /// Words that are no flags.
    mutating func takeOperands() -> [String] {
        defer { operands = [] }
        return operands
    }

    /// Nothing may be left over. `takesCommand` allows words after `--`.
    func finish(takesCommand: Bool = true) throws(CoterieError) {
        if let flag = flags.first {
            throw CoterieError(
                .badInput, "\(verb): unknown option \(flag.name)", hint: "it takes \(known.joined(separator: " "))")
        }
        if let word = operands.first { throw CoterieError(.badInput, "\(verb): unexpected \(word)") }
        if !takesCommand && !command.isEmpty {
            throw CoterieError(.badInput, "\(verb): it runs no command; nothing may follow --")
        }
    }
}
