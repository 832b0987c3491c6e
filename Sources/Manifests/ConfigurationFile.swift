// The configuration of `agent` and `up`: flat YAML with the same keys as the flags. The caller says which keys there are; an
// unknown one is an error with its place, never ignored.
import Model

/// What kind of value a key takes.
public enum ValueKind: Hashable, Sendable {
    /// Any scalar, as it is written: `off`, `127.0.0.1:7630`.
    case string
    case integer
    case boolean
    /// `250ms`, `3s`.
    case duration
    /// `64KiB`, more than none.
    case size
    /// One of these words.
    case choice([String])
    /// A flag that can be repeated: a scalar, a list of scalars, or a mapping for `K=V`.
    case strings

    var label: String {
        switch self {
        case .string: "a text"
        case .integer: "an integer"
        case .boolean: "true or false"
        case .duration: "a duration like 250ms or 3s"
        case .size: "a size like 64KiB"
        case .choice(let words): "one of " + words.joined(separator: ", ")
        case .strings: "a text, a list of texts, or a mapping"
        }
    }
}

public enum ConfigValue: Hashable, Sendable {
    /// Of ``ValueKind/string`` and ``ValueKind/choice(_:)``.
    case string(String)
    case integer(Int64)
    case boolean(Bool)
    case duration(TimeSpan)
    case size(UInt64)
    case strings([String])
}

public enum ConfigurationFile {
    /// The values of `text`; keys are as the flags, without `--`. An empty file has none.
    public static func parse(file: String, text: [UInt8], known: [String: ValueKind]) throws(ManifestFailure)
        -> [String: ConfigValue]
    {
        let diagnostics = Diagnostics(file: file)
        let documents = YAMLReader.documents(text, diagnostics)
        if let second = documents.dropFirst().first {
            diagnostics.report(second.place, "", "a configuration is one document, not several")
        }
        var values: [String: ConfigValue] = [:]
        if let document = documents.first {
            if case .mapping(let entries) = document.content {
                for entry in entries {
                    guard let kind = known[entry.key] else {
                        let flag = entry.key.hasPrefix("--") ? String(entry.key.dropFirst(2)) : entry.key
                        let hint = Suggestion.hint(for: flag, among: known.keys.sorted())
                        diagnostics.report(entry.place, FieldPath.append("", entry.key), "unknown key", hint: hint)
                        continue
                    }
                    values[entry.key] = value(entry, kind, diagnostics)
                }
            } else {
                diagnostics.report(document.place, "", "expected lines of KEY: VALUE, found \(document.summary)")
            }
        }
        try diagnostics.finish()
        return values
    }

    private static func value(_ entry: YAMLNode.Entry, _ kind: ValueKind, _ diagnostics: Diagnostics) -> ConfigValue? {
        let path = FieldPath.append("", entry.key)
        func wrong(_ node: YAMLNode, _ path: String) -> ConfigValue? {
            if case .scalar(let scalar) = node.content, scalar.meaning == .null {
                diagnostics.report(node.place, path, "has no value", hint: "\(kind.label) is expected")
            } else {
                diagnostics.report(node.place, path, "expected \(kind.label), found \(node.summary)")
            }
            return nil
        }
        /// A text that a flag could have.
        func word(_ node: YAMLNode, _ path: String) -> String? {
            guard case .scalar(let scalar) = node.content, scalar.meaning != .null, !scalar.text.utf8.contains(0) else {
                _ = wrong(node, path)
                return nil
            }
            return scalar.text
        }
        let node = entry.value
        switch kind {
        case .strings:
            switch node.content {
            case .scalar: return word(node, path).map { .strings([$0]) }
            case .sequence(let items):
                return .strings(items.enumerated().compactMap { word($0.element, "\(path)[\($0.offset)]") })
            case .mapping(let entries):
                return .strings(
                    entries.compactMap { pair in
                        word(pair.value, FieldPath.append(path, pair.key)).map { pair.key + "=" + $0 }
                    })
            }
        case .string: return word(node, path).map { .string($0) }
        case .choice(let words):
            guard let text = word(node, path) else { return nil }
            guard words.contains(text) else {
                let hint = Suggestion.hint(for: text, among: words)
                diagnostics.report(
                    node.place, path, "expected \(kind.label), found \"\(Scalar.excerpt(text))\"", hint: hint)
                return nil
            }
            return .string(text)
        case .integer, .boolean, .duration, .size:
            guard case .scalar(let scalar) = node.content else { return wrong(node, path) }
            switch (kind, scalar.meaning) {
            case (.integer, .integer(let value)): return .integer(value)
            case (.boolean, .boolean(let value)): return .boolean(value)
            case (.duration, _): return ScalarValue.duration(scalar).map { .duration($0) } ?? wrong(node, path)
            case (.size, _): return ScalarValue.size(scalar).map { .size($0) } ?? wrong(node, path)
            default: return wrong(node, path)
            }
        }
    }
}
