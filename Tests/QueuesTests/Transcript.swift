// Conversations of testdata/queues: what several connections send and what each is answered. The same conversation is held with our
// sessions, in virtual time, and with the real beanstalkd.
import Foundation
import Testing

struct Transcript: Sendable, CustomStringConvertible {
    enum Step: Sendable {
        case send(String, [UInt8])
        case endSending(String)
        case expect(String, String)
        case expectNothing(String)
        case expectClosed(String)
        case wait(seconds: Double)
    }

    let description: String
    /// With the number of the line.
    private(set) var steps: [(line: Int, step: Step)] = []

    init(named name: String) throws {
        description = name
        let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent()
        let text = try String(contentsOf: root.appending(path: "testdata/queues/\(name).txt"), encoding: .utf8)
        for (index, line) in text.split(separator: "\n", omittingEmptySubsequences: false).enumerated() {
            if line.isEmpty || line.hasPrefix("#") { continue }
            if line.hasPrefix("+") {
                let seconds = try #require(Double(line.dropFirst().dropLast().drop { $0 == " " }))
                steps.append((index + 1, .wait(seconds: seconds)))
                continue
            }
            let who = String(line.prefix(1))
            let rest = Transcript.unescaped(line.dropFirst(3))
            let step: Step =
                switch line.dropFirst().first {
                case ">": .send(who, rest + [13, 10])
                case "~": .send(who, rest)
                case "<": .expect(who, Transcript.comparable(rest + [13, 10]))
                case ".": .expectNothing(who)
                case "|": .endSending(who)
                case "!": .expectClosed(who)
                default: throw Malformed(line: index + 1)
                }
            steps.append((index + 1, step))
        }
    }

    struct Malformed: Error { var line: Int }

    private static func unescaped(_ text: Substring) -> [UInt8] {
        var out: [UInt8] = []
        var rest = text
        while let character = rest.popFirst() {
            guard character == "\\" else {
                out.append(contentsOf: character.utf8)
                continue
            }
            switch rest.popFirst() {
            case "r": out.append(13)
            case "n": out.append(10)
            case "x":
                out.append(UInt8(rest.prefix(2), radix: 16) ?? 0)
                rest = rest.dropFirst(2)
            default: out.append(UInt8(ascii: "\\"))
            }
        }
        return out
    }

    /// A reply without what depends on the moment: ages, times left, and the length of a document that has them.
    static func comparable(_ reply: [UInt8]) -> String {
        var lines = String(decoding: reply, as: UTF8.self).components(separatedBy: "\n")
        var isVolatile = false
        for (index, line) in lines.enumerated() {
            for key in ["age", "time-left", "pause-time-left"] where line.hasPrefix("\(key): ") {
                lines[index] = "\(key): _"
                isVolatile = true
            }
        }
        if isVolatile, lines[0].hasPrefix("OK ") { lines[0] = "OK _\r" }
        return lines.joined(separator: "\n")
    }

    /// Takes the first whole reply off the bytes of a connection.
    static func takeReply(_ bytes: inout [UInt8]) -> [UInt8]? {
        guard
            let end = zip(bytes.indices, bytes.indices.dropFirst()).first(where: { bytes[$0] == 13 && bytes[$1] == 10 }
            )?.0
        else {
            return nil
        }
        let words = String(decoding: bytes[..<end], as: UTF8.self).split(separator: " ")
        var length = end + 2
        if let word = words.first, ["OK", "RESERVED", "FOUND"].contains(word),
            let count = words.last.flatMap({ Int($0) })
        {
            length += count + 2
        }
        guard bytes.count >= length else { return nil }
        defer { bytes.removeFirst(length) }
        return Array(bytes[..<length])
    }
}
