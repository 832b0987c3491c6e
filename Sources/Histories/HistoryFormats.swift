// Histories as text, one event a line in the order of time.
//
// Jepsen: maps with `:index`, `:type`, `:process`, `:f`, `:value` and `:time` in nanoseconds; the value is `[key value]`, as
// jepsen.independent makes it. Porcupine: the lines of its test data, `{:process 0, :type :invoke, :f :get, :key "0", :value
// nil}`, without times. Both know `:ok`, `:fail` (certainly not done) and `:info` (nobody knows), and one operation at a time for
// each process: a process whose operation ends in `:info` is never heard of again, so processes are numbered anew on writing.
// Read are both, and also the log lines of Jepsen's etcd test ("INFO  jepsen.util - 3<tab>:invoke<tab>:cas<tab>[1 2]").

public enum HistoryFormat: String, CaseIterable, Sendable {
    case jepsen, porcupine
}

extension History {
    private enum Kind: String { case invoke, ok, fail, info }

    /// One line for each event. `write` gets a line with its line feed.
    public func write(_ format: HistoryFormat, _ write: (String) -> Void) {
        var events: [(time: Int64, kind: Kind, operation: Int)] = []
        for (i, operation) in operations.enumerated() {
            events.append((operation.invoked, .invoke, i))
            switch operation.end {
            case .answered(.register(.mismatch), let time), .refused(let time): events.append((time, .fail, i))
            case .answered(_, let time): events.append((time, .ok, i))
            case .unknown(let time?): events.append((time, .info, i))
            case .unknown(nil): break
            }
        }
        // At one moment what begins comes before what ends, as in the checker; an operation's end never before its beginning.
        events.sort {
            ($0.time, $0.kind == .invoke ? 0 : 1, $0.operation) < ($1.time, $1.kind == .invoke ? 0 : 1, $1.operation)
        }
        var processOf = [Int](repeating: 0, count: operations.count)
        var free: [Int] = []
        var processes = 0
        for (index, event) in events.enumerated() {
            let operation = operations[event.operation]
            if event.kind == .invoke {
                if let process = free.popLast() {
                    processOf[event.operation] = process
                } else {
                    processOf[event.operation] = processes
                    processes += 1
                }
            } else if event.kind != .info {
                free.append(processOf[event.operation])
            }
            write(line(format, index, event.kind, processOf[event.operation], operation, event.time))
        }
    }

    public func text(_ format: HistoryFormat) -> String {
        var text = ""
        write(format) { text += $0 }
        return text
    }

    private func line(
        _ format: HistoryFormat, _ index: Int, _ kind: Kind, _ process: Int, _ operation: HistoryOperation,
        _ time: Int64
    ) -> String {
        let (name, asked) = operation.call.words
        var value = asked
        if case .answered(let answer, _) = operation.end, kind == .ok { value = answer.value(of: operation.call) }
        switch format {
        case .jepsen:
            let pair = EDNValue.vector([.string(operation.call.key), value])
            let event = EDNValue.fields([
                "index": .int(Int64(index)), "type": .keyword(kind.rawValue), "process": .int(Int64(process)),
                "f": .keyword(name), "value": pair, "time": .int(time), "client": .int(Int64(operation.client)),
            ])
            return "\(event)\n"
        case .porcupine:
            let event = EDNValue.fields([
                "process": .int(Int64(process)), "type": .keyword(kind.rawValue), "f": .keyword(name),
                "key": .string(operation.call.key), "value": value,
            ])
            return "\(event)\n"
        }
    }

    /// Reads any of the three formats. Lines of logs that are no events are passed over.
    public init(parsing text: [UInt8]) throws(HistoryFormatError) {
        var reader = EventReader()
        var number = 0
        for line in text.split(separator: 10, omittingEmptySubsequences: false) {
            number += 1
            try reader.take(Array(line), number)
        }
        self.init()
        isTimed = reader.isTimed && !reader.operations.isEmpty
        operations = isTimed ? reader.operations : reader.ordered
    }
}

/// Puts invocations and their ends together.
private struct EventReader {
    private(set) var operations: [HistoryOperation] = []
    /// The same, with numbers of lines for times.
    private(set) var ordered: [HistoryOperation] = []
    /// False as soon as an event comes without time.
    var isTimed = true
    private var running: [Int64: Int] = [:]

    mutating func take(_ line: [UInt8], _ number: Int) throws(HistoryFormatError) {
        var start = 0
        while start < line.count, line[start] == 32 || line[start] == 9 { start += 1 }
        guard start < line.count else { return }
        if line[start] == UInt8(ascii: "{") {
            var parser = EDNParser(Array(line[start...]), line: number)
            let event = try parser.next()
            guard let process = event["process"]?.int else {
                // The doings of Jepsen's nemesis.
                if event["process"]?.keyword != nil { return }
                throw HistoryFormatError(line: number, what: "an event without process")
            }
            guard let kind = event["type"]?.keyword, let name = event["f"]?.keyword else {
                throw HistoryFormatError(line: number, what: "an event without type or f")
            }
            var key = event["key"]?.string ?? ""
            var value = event["value"] ?? .null
            if event["key"] == nil, let pair = value.vector, pair.count == 2, let first = pair[0].string {
                key = first
                value = pair[1]
            }
            return try take(
                kind, name, key, value, process, event["client"]?.int ?? process, event["time"]?.int, number)
        }
        let prefix = Array("jepsen.util - ".utf8)
        guard let at = line.firstIndex(of: UInt8(ascii: "j")), line[at...].starts(with: prefix) else { return }
        var parser = EDNParser(Array(line[(at + prefix.count)...]), line: number)
        guard let process = try parser.next().int, let kind = try parser.next().keyword,
            let name = try parser.next().keyword
        else { return }
        try take(kind, name, "", try parser.next(), process, process, nil, number)
    }

    private mutating func take(
        _ kind: String, _ name: String, _ key: String, _ value: EDNValue, _ process: Int64, _ client: Int64,
        _ told: Int64?, _ number: Int
    ) throws(HistoryFormatError) {
        if told == nil { isTimed = false }
        let time = told ?? 0
        let order = Int64(number)
        if kind == "invoke" {
            guard running[process] == nil else {
                throw HistoryFormatError(line: number, what: "process \(process) has an operation under way")
            }
            guard let call = HistoryCall(name: name, key: key, value: value) else {
                throw HistoryFormatError(line: number, what: "the call :\(name) \(value) is not understood")
            }
            running[process] = operations.count
            operations.append(
                HistoryOperation(client: Int(client), call: call, invoked: time, end: .unknown(at: nil)))
            ordered.append(
                HistoryOperation(client: Int(client), call: call, invoked: order, end: .unknown(at: nil)))
            return
        }
        guard let i = running.removeValue(forKey: process) else {
            throw HistoryFormatError(line: number, what: "process \(process) has no operation under way")
        }
        let call = operations[i].call
        func end(_ i: Int, _ make: (Int64) -> HistoryOperation.End) {
            operations[i].end = make(time)
            ordered[i].end = make(order)
        }
        switch kind {
        case "ok":
            guard let answer = HistoryAnswer(to: call, value: value) else {
                throw HistoryFormatError(line: number, what: "the answer \(value) to :\(name) is not understood")
            }
            end(i) { .answered(answer, at: $0) }
        case "fail":
            // A compare-and-set that timed out says so; one that fails otherwise has looked.
            if case .register(_, .compareAndSet) = call, value.keyword == nil {
                end(i) { .answered(.register(.mismatch), at: $0) }
            } else {
                end(i) { .refused(at: $0) }
            }
        case "info": end(i) { .unknown(at: $0) }
        default: throw HistoryFormatError(line: number, what: "the type :\(kind) is not understood")
        }
    }
}
