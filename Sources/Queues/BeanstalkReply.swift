// What a node answers on the queue port, as beanstalkd 1.12 prints it.
import Model
import Wire

enum BeanstalkReply {
    static func line(_ text: String) -> [UInt8] {
        var out = Array(text.utf8)
        out.append(13)
        out.append(10)
        return out
    }

    /// `RESERVED` or `FOUND`, with a job's body.
    static func job(_ word: String, id: UInt64, body: [UInt8]) -> [UInt8] {
        var out: [UInt8] = []
        out.reserveCapacity(body.count + 48)
        out.append(contentsOf: "\(word) \(id) \(body.count)\r\n".utf8)
        out.append(contentsOf: body)
        out.append(13)
        out.append(10)
        return out
    }

    /// `OK`, with a document as YAML. The line break at the document's end counts, that after it does not.
    static func document(_ document: JSONValue) -> [UInt8] {
        let text = yaml(document)
        return Array("OK \(text.utf8.count)\r\n\(text)\r\n".utf8)
    }

    /// A flat object, or an array, of scalars.
    static func yaml(_ document: JSONValue) -> String {
        var text = "---\n"
        switch document {
        case .object(let members): for member in members { text += "\(member.key): \(scalar(member))\n" }
        case .array(let items): for item in items { text += "- \(item.stringValue ?? item.text())\n" }
        case .null, .bool, .int, .double, .string: text += "\(document.text())\n"
        }
        return text
    }

    private static func scalar(_ member: JSONValue.Member) -> String {
        switch member.value {
        case .string(let text): member.key == "version" ? "\"\(text)\"" : text
        case .double(let value): seconds(value)
        case .null, .bool, .int, .array, .object: member.value.text()
        }
    }

    /// With six decimals, as beanstalkd prints processor time.
    private static func seconds(_ value: Double) -> String {
        guard value.isFinite, value >= 0, value < 1e12 else { return "0.000000" }
        let microseconds = UInt64((value * 1e6).rounded())
        let fraction = String(microseconds % 1_000_000)
        return "\(microseconds / 1_000_000)." + String(repeating: "0", count: 6 - fraction.count) + fraction
    }
}
