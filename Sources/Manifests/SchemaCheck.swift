// Holds a tree against a ``Schema`` and reports everything that does not fit: unknown, foreign and missing fields, wrong types,
// values out of range. What it lets pass, ``Cursor`` reads.
import Model

struct SchemaCheck {
    let diagnostics: Diagnostics

    /// Checks `node`; `around` are the schemas that enclose it, outermost first.
    func check(_ node: YAMLNode, _ kind: FieldKind, path: String, around: [(Schema, String)] = []) {
        if diagnostics.isFull { return }
        switch kind {
        case .object(let schema): object(node, schema, path, around)
        case .list(let item, let nonEmpty):
            guard case .sequence(let items) = node.content else { return mismatch(node, "a list", path) }
            if nonEmpty, items.isEmpty { diagnostics.report(node.place, path, "the list is empty") }
            for (i, child) in items.enumerated() { check(child, item, path: "\(path)[\(i)]", around: around) }
        case .map(let value, let keys):
            guard case .mapping(let entries) = node.content else { return mismatch(node, "a mapping", path) }
            for entry in entries {
                let path = FieldPath.append(path, entry.key)
                if let complaint = keys?.complaint(entry.key) {
                    diagnostics.report(entry.place, path, "not a valid \(keys?.label ?? "key")", hint: complaint)
                }
                check(entry.value, value, path: path, around: around)
            }
        case .string, .identifier, .choice, .integer, .fraction, .boolean, .duration, .size, .cpu, .port, .hedge:
            guard case .scalar(let scalar) = node.content else {
                return mismatch(node, SchemaCheck.expectation(kind), path)
            }
            self.scalar(scalar, kind, node.place, path)
        }
    }

    // MARK: - Objects

    private func object(_ node: YAMLNode, _ schema: Schema, _ path: String, _ around: [(Schema, String)]) {
        guard case .mapping(let entries) = node.content else {
            return mismatch(node, "a mapping (\(schema.name))", path)
        }
        let enclosing = around + [(schema, path)]
        for entry in entries {
            let fieldPath = FieldPath.append(path, entry.key)
            guard let field = schema.field(entry.key) else {
                unknown(entry, schema, fieldPath, around)
                continue
            }
            check(entry.value, field.kind, path: fieldPath, around: enclosing)
        }
        for field in schema.fields where field.required && !entries.contains(where: { $0.key == field.name }) {
            diagnostics.report(node.place, FieldPath.append(path, field.name), "required field is missing")
        }
    }

    private func unknown(_ entry: YAMLNode.Entry, _ schema: Schema, _ path: String, _ around: [(Schema, String)]) {
        let place = elsewhere(entry.key, schema, around)
        if schema.foreign.contains(entry.key) {
            return diagnostics.report(entry.place, path, "a Kubernetes field that Coterie does not have", hint: place)
        }
        diagnostics.report(
            entry.place, path, "unknown field",
            hint: place ?? Suggestion.hint(for: entry.key, among: schema.fields.map(\.name) + schema.foreign))
    }

    /// Where a field of this name would be right: one level or more up, or one level down.
    private func elsewhere(_ name: String, _ schema: Schema, _ around: [(Schema, String)]) -> String? {
        for (outer, path) in around.reversed() where outer.field(name) != nil {
            return "\(name) belongs in \(path.isEmpty ? "the document itself" : path)"
        }
        for field in schema.fields {
            if case .object(let inner) = field.kind, inner.field(name) != nil, name != "name" {
                return "\(name) belongs in \(field.name)"
            }
        }
        return nil
    }

    // MARK: - Scalars

    private func mismatch(_ node: YAMLNode, _ expected: String, _ path: String) {
        if case .scalar(let scalar) = node.content, scalar.meaning == .null {
            return diagnostics.report(
                node.place, path, "has no value", hint: "give it one or leave the field out; \(expected) is expected")
        }
        diagnostics.report(node.place, path, "expected \(expected), found \(node.summary)")
    }

    private static func expectation(_ kind: FieldKind) -> String {
        switch kind {
        case .string, .identifier: "a string"
        case .choice(let values, _): values.count == 1 ? values[0] : "one of " + values.joined(separator: ", ")
        case .integer(let range):
            range.upperBound == .max
                ? "an integer of at least \(range.lowerBound)"
                : "an integer from \(range.lowerBound) to \(range.upperBound)"
        case .fraction(let range): "a number from \(range.lowerBound) to \(range.upperBound)"
        case .boolean: "true or false"
        case .duration(let range): "a duration from \(range.lowerBound) to \(range.upperBound)"
        case .size: "a size"
        case .cpu: "a number of cores"
        case .port: "a port number or name"
        case .hedge: "auto, off or a duration"
        case .object(let schema): "a mapping (\(schema.name))"
        case .list: "a list"
        case .map: "a mapping"
        }
    }

    private func scalar(_ scalar: Scalar, _ kind: FieldKind, _ place: Place, _ path: String) {
        let expected = SchemaCheck.expectation(kind)
        func wrong(_ hint: String? = nil) {
            if scalar.meaning == .null {
                diagnostics.report(
                    place, path, "has no value", hint: "give it one or leave the field out; \(expected) is expected")
            } else {
                diagnostics.report(place, path, "expected \(expected), found \(scalar.summary)", hint: hint)
            }
        }
        func text() -> String? {
            guard scalar.meaning == .string else {
                wrong("quote it: \"\(Scalar.excerpt(scalar.text))\"")
                return nil
            }
            guard !scalar.text.utf8.contains(0) else {
                diagnostics.report(place, path, "a string may not hold a NUL")
                return nil
            }
            return scalar.text
        }
        switch kind {
        case .string: _ = text()
        case .identifier(let identifier):
            guard let text = text(), let complaint = identifier.complaint(text) else { return }
            diagnostics.report(
                place, path, "\"\(Scalar.excerpt(text))\" is not a valid \(identifier.label)", hint: complaint)
        case .choice(let values, let foreign):
            guard let text = text(), !values.contains(text) else { return }
            if foreign.contains(text) {
                diagnostics.report(
                    place, path, "\(text) is known to Kubernetes, but Coterie does not have it",
                    hint: "expected \(expected)")
            } else {
                wrong(Suggestion.hint(for: text, among: values))
            }
        case .integer(let range):
            guard case .integer(let value) = scalar.meaning, range.contains(value) else {
                if scalar.meaning == .string, case .integer = Scalar.resolve(scalar.text) {
                    return wrong("remove the quotes")
                }
                return wrong(scalar.meaning == .ambiguousNumber ? "write it in decimal" : nil)
            }
        case .fraction(let range):
            guard let value = ScalarValue.double(scalar), range.contains(value) else { return wrong() }
        case .boolean:
            guard case .boolean = scalar.meaning else {
                return wrong(scalar.meaning == .ambiguousBoolean ? "write true or false" : nil)
            }
        case .duration(let range):
            guard let value = ScalarValue.duration(scalar), range.contains(value) else {
                return wrong("like 250ms, 3s or 5m")
            }
        case .size:
            guard ScalarValue.size(scalar) != nil else { return wrong("like 64Mi or 1Gi") }
        case .cpu:
            guard ScalarValue.cpuMilli(scalar) != nil else { return wrong("like 500m, 0.5 or 2") }
        case .port:
            if case .integer(let value) = scalar.meaning, (1...65_535).contains(value) { return }
            guard scalar.meaning == .string, Identifier.portName.complaint(scalar.text) == nil else { return wrong() }
        case .hedge:
            guard ScatterGatherSpec.Hedge(text: scalar.text) != nil else { return wrong("like auto, off or 2s") }
        case .object, .list, .map: break
        }
    }
}

/// What a scalar says to a field of a certain kind; nil when it does not fit.
enum ScalarValue {
    static func double(_ scalar: Scalar) -> Double? {
        switch scalar.meaning {
        case .integer(let value): Double(value)
        case .float(let value): value
        case .null, .boolean, .ambiguousBoolean, .ambiguousNumber, .string: nil
        }
    }

    static func duration(_ scalar: Scalar) -> TimeSpan? {
        switch scalar.meaning {
        case .string: TimeSpan(text: scalar.text)
        case .integer(0): .zero
        case .integer, .float, .null, .boolean, .ambiguousBoolean, .ambiguousNumber: nil
        }
    }

    static func size(_ scalar: Scalar) -> UInt64? {
        switch scalar.meaning {
        case .string, .integer: ByteSize.parse(scalar.text).flatMap { $0 > 0 ? $0 : nil }
        case .float, .null, .boolean, .ambiguousBoolean, .ambiguousNumber: nil
        }
    }

    /// Thousandths of a core, at most a million cores; a finer part is refused, not rounded.
    static func cpuMilli(_ scalar: Scalar) -> UInt64? {
        switch scalar.meaning {
        case .string, .integer, .float: break
        case .null, .boolean, .ambiguousBoolean, .ambiguousNumber: return nil
        }
        let text = scalar.text
        let milli: Double
        if text.hasSuffix("m") {
            guard let value = UInt64(text.dropLast()), text.first != "+" else { return nil }
            milli = Double(value)
        } else {
            guard text.utf8.allSatisfy({ ($0 >= 48 && $0 <= 57) || $0 == 46 }), let value = Double(text) else {
                return nil
            }
            milli = (value * 1_000_000).rounded() / 1_000
        }
        guard milli >= 1, milli <= 1e9, milli == milli.rounded() else { return nil }
        return UInt64(milli)
    }
}

/// A value in the tree with its path. Reads are lenient: what ``SchemaCheck`` has already reported reads as nil.
struct Cursor {
    let node: YAMLNode
    let path: String

    var place: Place { node.place }

    subscript(key: String) -> Cursor? {
        guard case .mapping(let entries) = node.content, let entry = entries.first(where: { $0.key == key }) else {
            return nil
        }
        return Cursor(node: entry.value, path: FieldPath.append(path, key))
    }

    var items: [Cursor] {
        guard case .sequence(let items) = node.content else { return [] }
        return items.enumerated().map { Cursor(node: $0.element, path: "\(path)[\($0.offset)]") }
    }

    var entries: [(key: String, place: Place, value: Cursor)] {
        guard case .mapping(let entries) = node.content else { return [] }
        return entries.map { ($0.key, $0.place, Cursor(node: $0.value, path: FieldPath.append(path, $0.key))) }
    }

    var scalar: Scalar? { if case .scalar(let scalar) = node.content { scalar } else { nil } }
    var string: String? { scalar.flatMap { $0.meaning == .string && !$0.text.utf8.contains(0) ? $0.text : nil } }
    var integer: Int64? { if case .integer(let value)? = scalar?.meaning { value } else { nil } }
    var boolean: Bool? { if case .boolean(let value)? = scalar?.meaning { value } else { nil } }
    var duration: TimeSpan? { scalar.flatMap(ScalarValue.duration) }
    var size: UInt64? { scalar.flatMap(ScalarValue.size) }
    var strings: [String] { items.compactMap(\.string) }
    /// String keys to string values.
    var map: [String: String] {
        var map: [String: String] = [:]
        for (key, _, value) in entries { if let text = value.string { map[key] = text } }
        return map
    }
    /// Whole seconds.
    var seconds: TimeSpan? { integer.map { .seconds($0) } }
}
