// `coterie explain KIND[.path]`: the fields of a kind, out of the same tables that check files.
import Model

public enum Explain {
    /// A field, or a kind with the table of its fields. `pod.spec.containers.ports`; kinds in any case and also in the plural.
    /// Throws `notFound` with a suggestion for what does not exist.
    public static func text(_ path: String) throws(CoterieError) -> String {
        var parts = path.split(separator: ".", omittingEmptySubsequences: false).map { String($0.prefix { $0 != "[" }) }
        let kind = parts.removeFirst()
        guard var schema = self.kind(kind) else {
            let names = PatternSchema.kinds.map(\.name)
            throw CoterieError(
                .notFound, "explain: there is no kind \"\(Scalar.excerpt(kind))\"",
                hint: Suggestion.hint(for: kind, among: names) ?? "one of " + names.joined(separator: ", "))
        }
        let version = schema.field("apiVersion")?.kind.label ?? ""
        var title = schema.name
        var heading = "KIND:    \(schema.name)\nVERSION: \(version)\n"
        var text = schema.text
        for (i, part) in parts.enumerated() {
            guard let field = schema.field(part) else {
                if schema.foreign.contains(part) {
                    throw CoterieError(
                        .notFound, "explain: \(title).\(part) is a Kubernetes field that Coterie does not have")
                }
                let names = schema.fields.map(\.name)
                throw CoterieError(
                    .notFound, "explain: \(title) has no field \"\(Scalar.excerpt(part))\"",
                    hint: Suggestion.hint(for: part, among: names) ?? "its fields: " + names.joined(separator: ", "))
            }
            title += "." + part
            text = field.text
            if i == parts.count - 1 {
                heading += "FIELD:   \(title) <\(field.kind.label)>\(field.required ? " required" : "")\n"
            }
            guard let inner = field.kind.schema else {
                guard i == parts.count - 1 else {
                    throw CoterieError(.notFound, "explain: \(title) is a \(field.kind.label) and has no fields")
                }
                return heading + "\n" + wrapped(field.text, indent: "")
            }
            schema = inner
        }
        var out = heading + "\n" + wrapped(text, indent: "")
        if !parts.isEmpty, schema.text != text { out += wrapped(schema.text, indent: "") }
        out += "\nFIELDS\n" + table(schema)
        if !schema.foreign.isEmpty {
            out +=
                "\nKubernetes fields that are refused\n"
                + wrapped(schema.foreign.sorted().joined(separator: ", "), indent: "  ")
        }
        return out
    }

    private static func kind(_ name: String) -> Schema? {
        let lowered = name.lowercased()
        return PatternSchema.kinds.first { schema in
            let own = schema.name.lowercased()
            return own == lowered || own + "s" == lowered
        }
    }

    private static func table(_ schema: Schema) -> String {
        let names = schema.fields.map { "\($0.name) <\($0.kind.label)>\($0.required ? " required" : "")" }
        var out = ""
        for (name, field) in zip(names, schema.fields) { out += "  \(name)\n" + wrapped(field.text, indent: "      ") }
        return out
    }

    /// Lines of at most 100 characters.
    private static func wrapped(_ text: String, indent: String) -> String {
        var out = ""
        var line = indent
        for word in text.split(separator: " ") {
            if line.count > indent.count, line.count + 1 + word.count > 100 {
                out += line + "\n"
                line = indent
            }
            line += (line.count > indent.count ? " " : "") + word
        }
        return out + line + "\n"
    }
}
