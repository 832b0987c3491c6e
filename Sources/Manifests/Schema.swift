// What a manifest may hold, as tables: one table checks files (``SchemaCheck``) and explains fields (``Explain``), so that the
// two cannot differ.
import Model

/// An object: its fields, and the fields that Kubernetes has in this place and Coterie does not.
struct Schema: Sendable {
    let name: String
    let text: String
    let fields: [Field]
    let foreign: [String]

    init(_ name: String, _ text: String, _ fields: [Field], foreign: [String] = []) {
        self.name = name
        self.text = text
        self.fields = fields
        self.foreign = foreign
    }

    func field(_ name: String) -> Field? { fields.first { $0.name == name } }
}

struct Field: Sendable {
    let name: String
    let kind: FieldKind
    let required: Bool
    let text: String

    init(_ name: String, _ kind: FieldKind, required: Bool = false, _ text: String) {
        self.name = name
        self.kind = kind
        self.required = required
        self.text = text
    }
}

indirect enum FieldKind: Sendable {
    case string
    case identifier(Identifier)
    /// One of these; others that Kubernetes knows are refused as such.
    case choice([String], foreign: [String] = [])
    case integer(ClosedRange<Int64>)
    case fraction(ClosedRange<Double>)
    case boolean
    /// `250ms`, `3s`, `5m`.
    case duration(ClosedRange<TimeSpan>)
    /// Bytes: `64Mi`, `1GiB`, or a number; more than none.
    case size
    /// Cores: `500m`, `0.5`, `2`; at least `1m`.
    case cpu
    /// A number from 1 to 65535 or a port's name.
    case port
    /// `auto`, `off` or a duration.
    case hedge
    case object(Schema)
    case list(FieldKind, nonEmpty: Bool = false)
    /// String keys to values of one kind.
    case map(FieldKind, keys: Identifier? = nil)

    /// For ``Explain``.
    var label: String {
        switch self {
        case .string: "string"
        case .identifier(let identifier): identifier.label
        case .choice(let values, _): values.joined(separator: "|")
        case .integer(let range):
            range.upperBound == .max
                ? "integer ≥ \(range.lowerBound)" : "integer \(range.lowerBound)…\(range.upperBound)"
        case .fraction(let range): "number \(range.lowerBound)…\(range.upperBound)"
        case .boolean: "boolean"
        case .duration: "duration"
        case .size: "size"
        case .cpu: "cores"
        case .port: "port number or name"
        case .hedge: "auto|off|duration"
        case .object(let schema): schema.name
        case .list(let kind, _): "list of " + kind.label
        case .map(let kind, _): "map of " + kind.label
        }
    }

    /// The object below, through lists.
    var schema: Schema? {
        switch self {
        case .object(let schema): schema
        case .list(let kind, _): kind.schema
        case .map(let kind, _): kind.schema
        case .string, .identifier, .choice, .integer, .fraction, .boolean, .duration, .size, .cpu, .port, .hedge: nil
        }
    }
}

/// Kinds of names.
enum Identifier: Sendable {
    /// Objects: lower-case letters, digits, `-` and `.`.
    case objectName
    /// Containers, volumes, hosts: at most 63 bytes, no dots.
    case label
    case portName
    case environment
    case environmentPrefix
    case tube
    case election
    case configKey
    /// `app` or `example.com/app`.
    case labelKey
    case labelValue
    /// Any text that is not empty and no longer than a name.
    case free

    var label: String {
        switch self {
        case .objectName, .label, .portName, .election, .free: "name"
        case .environment, .environmentPrefix: "variable name"
        case .tube: "tube name"
        case .configKey: "key"
        case .labelKey: "label key"
        case .labelValue: "label value"
        }
    }

    /// Nil if `text` is one, else what one looks like.
    func complaint(_ text: String) -> String? {
        let bytes = Array(text.utf8)
        func all(_ allowed: (UInt8) -> Bool) -> Bool { bytes.allSatisfy(allowed) }
        func lower(_ byte: UInt8) -> Bool { byte >= 97 && byte <= 122 }
        func digit(_ byte: UInt8) -> Bool { byte >= 48 && byte <= 57 }
        func letter(_ byte: UInt8) -> Bool { lower(byte | 32) }
        func word(_ byte: UInt8) -> Bool { letter(byte) || digit(byte) }
        func ends(_ allowed: (UInt8) -> Bool) -> Bool {
            bytes.first.map(allowed) == true && bytes.last.map(allowed) == true
        }
        func among(_ byte: UInt8, _ characters: String) -> Bool { characters.utf8.contains(byte) }

        switch self {
        case .objectName, .election:
            let ok =
                ends { lower($0) || digit($0) } && all { lower($0) || digit($0) || among($0, "-.") }
                && !text.contains("..")
            return ok && bytes.count <= Limits.nameBytes
                ? nil
                : "lower-case letters, digits, '-' and '.', at most \(Limits.nameBytes), a letter or digit at both ends"
        case .label:
            let ok = ends { lower($0) || digit($0) } && all { lower($0) || digit($0) || $0 == 45 }
            return ok && bytes.count <= 63
                ? nil : "lower-case letters, digits and '-', at most 63, a letter or digit at both ends"
        case .portName:
            let ok =
                ends { lower($0) || digit($0) } && all { lower($0) || digit($0) || $0 == 45 }
                && bytes.contains(where: lower)
            return ok && bytes.count <= 15 ? nil : "lower-case letters, digits and '-', at most 15, at least one letter"
        case .environment, .environmentPrefix:
            let ok = all { word($0) || among($0, "_-.") } && bytes.first.map { !digit($0) } == true
            return ok && bytes.count <= 253 ? nil : "letters, digits, '_', '-' and '.', not a digit first"
        case .tube:
            let ok = all { word($0) || among($0, "-+/;.$_()") } && bytes.first.map { $0 != 45 } == true
            return ok && bytes.count <= Limits.nameBytes
                ? nil : "letters, digits and -+/;.$_(), at most \(Limits.nameBytes), not '-' first"
        case .configKey:
            let ok = !bytes.isEmpty && all { word($0) || among($0, "-._") } && text != "." && !text.hasPrefix("..")
            return ok && bytes.count <= 253 ? nil : "letters, digits, '-', '_' and '.', at most 253"
        case .labelKey:
            let parts = text.split(separator: "/", omittingEmptySubsequences: false).map(String.init)
            let prefixOK = parts.count == 1 || (parts.count == 2 && Identifier.objectName.complaint(parts[0]) == nil)
            let name = parts.last ?? ""
            return prefixOK && !name.isEmpty && Identifier.labelValue.complaint(name) == nil
                ? nil : "[domain/]name with letters, digits, '-', '_' and '.' in the name, at most 63"
        case .labelValue:
            let ok = bytes.isEmpty || (ends(word) && all { word($0) || among($0, "-_.") })
            return ok && bytes.count <= 63
                ? nil : "letters, digits, '-', '_' and '.', at most 63, a letter or digit at both ends"
        case .free:
            return !bytes.isEmpty && bytes.count <= Limits.nameBytes ? nil : "from 1 to \(Limits.nameBytes) bytes"
        }
    }
}
