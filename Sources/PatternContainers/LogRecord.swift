// One log record and its forms on the wire: a JSON line, or a syslog message (RFC 5424) with its octet count (RFC 6587).
import Glibc
import Model

struct LogRecord: Equatable {
    /// RFC 3339.
    var time: String
    var container: String
    /// `stdout`, `stderr`, or `file`.
    var stream: String
    /// Without the line's end.
    var message: [UInt8]

    /// Appends `{"time","pod","container","stream","message"}` and a line feed. Bytes that are not UTF-8 are replaced, for
    /// JSON can not carry them.
    func appendJSON(pod: String, to out: inout [UInt8]) {
        func field(_ head: StaticString, _ value: some Collection<UInt8>) {
            head.withUTF8Buffer { out.append(contentsOf: $0) }
            appendJSONString(value, to: &out)
        }
        field("{\"time\":\"", time.utf8)
        field("\",\"pod\":\"", pod.utf8)
        field("\",\"container\":\"", container.utf8)
        field("\",\"stream\":\"", stream.utf8)
        if isASCII(message) {
            field("\",\"message\":\"", message)
        } else {
            field("\",\"message\":\"", String(decoding: message, as: UTF8.self).utf8)
        }
        out.append(contentsOf: "\"}\n".utf8)
    }

    /// Appends `LENGTH <PRI>1 TIME POD CONTAINER - STREAM - MESSAGE`: facility user, severity informational, or error for
    /// stderr.
    func appendSyslog(pod: String, to out: inout [UInt8]) {
        var line: [UInt8] = []
        line.reserveCapacity(message.count + 128)
        line.append(contentsOf: (stream == "stderr" ? "<11>1 " : "<14>1 ").utf8)
        line.append(contentsOf: LogRecord.syslogTime(time).utf8)
        line.append(32)
        line.append(contentsOf: LogRecord.syslogName(pod, limit: 255))
        line.append(32)
        line.append(contentsOf: LogRecord.syslogName(container, limit: 48))
        line.append(contentsOf: " - ".utf8)
        line.append(contentsOf: LogRecord.syslogName(stream, limit: 32))
        line.append(contentsOf: " - ".utf8)
        line.append(contentsOf: message)
        out.append(contentsOf: String(line.count).utf8)
        out.append(32)
        out.append(contentsOf: line)
    }

    /// RFC 5424 allows six digits of a second; the logs have nine.
    static func syslogTime(_ time: String) -> String {
        guard let point = time.utf8.firstIndex(of: 46) else { return time }
        let fraction = time[time.index(after: point)...].prefix { $0.isASCII && $0.isNumber }
        return fraction.count <= 6 ? time : String(time[...point] + fraction.prefix(6) + time[fraction.endIndex...])
    }

    private static func syslogName(_ name: String, limit: Int) -> [UInt8] {
        let printable = name.utf8.prefix(limit).map { $0 > 32 && $0 < 127 ? $0 : 95 }
        return printable.isEmpty ? [45] : printable
    }

    /// The wall clock as the node writes it into logs, in UTC.
    static func now() -> String {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        var parts = tm()
        gmtime_r(&time.tv_sec, &parts)
        func digits(_ value: Int, _ width: Int) -> String {
            let text = String(value)
            return String(repeating: "0", count: max(0, width - text.count)) + text
        }
        let date =
            "\(digits(Int(parts.tm_year) + 1900, 4))-\(digits(Int(parts.tm_mon) + 1, 2))-\(digits(Int(parts.tm_mday), 2))"
        let clock = "\(digits(Int(parts.tm_hour), 2)):\(digits(Int(parts.tm_min), 2)):\(digits(Int(parts.tm_sec), 2))"
        return "\(date)T\(clock).\(digits(time.tv_nsec, 9))Z"
    }
}

func isASCII(_ bytes: [UInt8]) -> Bool {
    var all: UInt8 = 0
    for byte in bytes { all |= byte }
    return all < 0x80
}

/// The inside of a JSON string. Bytes from 0x80 on pass as they are, so the input must be UTF-8.
func appendJSONString(_ bytes: some Collection<UInt8>, to out: inout [UInt8]) {
    let done: Void? = bytes.withContiguousStorageIfAvailable { buffer in
        var plain = 0
        for (i, byte) in buffer.enumerated() where byte < 32 || byte == 0x22 || byte == 0x5C || byte == 127 {
            out.append(contentsOf: buffer[plain..<i])
            appendJSONEscape(byte, to: &out)
            plain = i + 1
        }
        out.append(contentsOf: buffer[plain...])
    }
    if done == nil { appendJSONString(Array(bytes), to: &out) }
}

private func appendJSONEscape(_ byte: UInt8, to out: inout [UInt8]) {
    switch byte {
    case 0x22: out.append(contentsOf: "\\\"".utf8)
    case 0x5C: out.append(contentsOf: "\\\\".utf8)
    case 10: out.append(contentsOf: "\\n".utf8)
    case 13: out.append(contentsOf: "\\r".utf8)
    case 9: out.append(contentsOf: "\\t".utf8)
    default:
        let hex = Array("0123456789abcdef".utf8)
        out.append(contentsOf: "\\u00".utf8)
        out.append(hex[Int(byte >> 4)])
        out.append(hex[Int(byte & 15)])
    }
}
