// What a node's system calls say about the order of disk and network: `strace` writes it down, this reads it. A line of its
// output with -f -ttt -T is "PID SECONDS name(arguments) = result <duration>", or two lines, "<unfinished ...>" and
// "<... name resumed>", when another thread's call came between.
import Foundation

/// One finished system call.
public struct TracedCall: Sendable, Equatable {
    public var thread: Int
    public var name: String
    /// As strace prints them.
    public var arguments: String
    public var result: Int?
    /// Seconds since 1970: the tracer saw the call begin, and end. The traced thread waits at both, so that what it does
    /// afterwards is later.
    public var begun: Double
    public var ended: Double

    /// It returns when its bytes are on the disk.
    public var isDurableWrite: Bool { name == "pwritev2" && arguments.contains("RWF_DSYNC") }

    /// The first argument.
    public var descriptor: Int? { Int(arguments.prefix { $0.isNumber }) }
}

public struct SyncTrace: Sendable {
    public var calls: [TracedCall]

    public init(calls: [TracedCall]) { self.calls = calls }

    /// The system calls that an analysis needs.
    public static let options = [
        "-f", "-ttt", "-T", "-s", "1024", "-e",
        "trace=fdatasync,fsync,pwrite64,pwritev,pwritev2,write,writev,sendmsg,sendto",
    ]

    public init(parsing text: String) {
        calls = []
        var open: [Int: TracedCall] = [:]
        for line in text.split(separator: "\n") {
            let words = line.split(separator: " ", maxSplits: 2, omittingEmptySubsequences: true)
            guard words.count == 3, let thread = Int(words[0]), let time = Double(words[1]) else { continue }
            let rest = words[2]
            if rest.hasPrefix("<... ") {
                guard var call = open.removeValue(forKey: thread) else { continue }
                call.result = SyncTrace.result(rest)
                call.ended = time
                calls.append(call)
                continue
            }
            guard let brace = rest.firstIndex(of: "(") else { continue }
            var call = TracedCall(
                thread: thread, name: String(rest[..<brace]), arguments: String(rest[rest.index(after: brace)...]),
                result: nil, begun: time, ended: time)
            if rest.hasSuffix("<unfinished ...>") {
                open[thread] = call
                continue
            }
            call.result = SyncTrace.result(rest)
            call.ended = time + SyncTrace.duration(rest)
            calls.append(call)
        }
    }

    /// The number behind the last " = ".
    private static func result(_ line: Substring) -> Int? {
        guard let range = line.range(of: " = ", options: .backwards) else { return nil }
        return Int(line[range.upperBound...].prefix { $0 == "-" || $0.isNumber })
    }

    private static func duration(_ line: Substring) -> Double {
        guard line.hasSuffix(">"), let start = line.lastIndex(of: "<") else { return 0 }
        return Double(line[line.index(after: start)...].dropLast()) ?? 0
    }

    /// When bytes that contain the text were on the disk: the end of the write, if that was one with RWF_DSYNC; else of the first
    /// successful sync, begun after they were written to a file, of that file. Nil if there was none.
    public func synced(_ text: String) -> Double? {
        calls.lazy.filter { ["pwrite64", "pwritev", "pwritev2"].contains($0.name) && $0.arguments.contains(text) }
            .compactMap { write -> Double? in
                guard let descriptor = write.descriptor, (write.result ?? -1) > 0 else { return nil }
                if write.isDurableWrite { return write.ended }
                return calls.filter { sync in
                    ["fdatasync", "fsync"].contains(sync.name) && sync.result == 0 && sync.descriptor == descriptor
                        && sync.begun >= write.ended
                }.map(\.ended).min()
            }.min()
    }

    /// When the text began to leave the process through a stream or socket.
    public func sent(_ text: String) -> Double? {
        calls.first { call in
            ["write", "writev", "sendmsg", "sendto"].contains(call.name) && call.arguments.contains(text)
        }?.begun
    }
}

/// An answer to a client and the entry that it promises.
public struct PromisedWrite: Sendable {
    /// In the bytes of the entry, on no other's.
    public var marker: String
    /// In the answer, in no other's.
    public var answer: String

    public init(marker: String, answer: String) {
        self.marker = marker
        self.answer = answer
    }
}

/// Which answers left the node that gave them before a majority of the nodes had synced the entry; empty if none.
public func unsyncedPromises(_ writes: [PromisedWrite], answeredBy: SyncTrace, nodes: [SyncTrace]) -> [String] {
    var wrong: [String] = []
    for write in writes {
        guard let sent = answeredBy.sent(write.answer) else {
            wrong.append("\(write.marker): no answer in the trace")
            continue
        }
        let times = nodes.compactMap { $0.synced(write.marker) }
        let before = times.count { $0 <= sent }
        if before * 2 <= nodes.count {
            let told = times.sorted().map { String(format: "%+.6f", $0 - sent) }.joined(separator: ", ")
            wrong.append("\(write.marker): answered with \(before) of \(nodes.count) synced (seconds after: \(told))")
        }
    }
    return wrong
}
