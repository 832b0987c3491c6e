// Bytes to ``YAMLNode`` trees, over libyaml's events (the C library inside Yams; Yams' own composer recurses without a bound,
// knows no limit on aliases and stops at the first duplicate key). Everything hostile is bounded here: bytes, depth, nodes,
// and what aliases expand to ("billion laughs").
import CYaml
import Model

struct YAMLReader {
    /// Deepest nesting; the deepest field of any kind lies at about 12.
    static let depth = 50
    /// Most values in one file, each alias counted as all it stands for.
    static let nodes = 100_000
    static let aliases = 1_000
    /// Most items of one list: what is looked up in lists stays cheap.
    static let items = 2_000

    private let parser: UnsafeMutablePointer<yaml_parser_t>
    private let diagnostics: Diagnostics
    private var anchors: [String: YAMLNode] = [:]
    private var nodeCount = 0
    private var aliasCount = 0

    /// Thrown after the reason was reported.
    private struct Stop: Error {}

    /// The documents of a file; empty documents are left out. Reports what is wrong, and then returns what was whole before.
    static func documents(_ text: [UInt8], _ diagnostics: Diagnostics) -> [YAMLNode] {
        guard text.count <= Limits.manifestBytes else {
            diagnostics.report(
                Place(line: 1, column: 1), "",
                "the file has \(text.count) bytes, more than the limit of \(Limits.manifestBytes)")
            return []
        }
        if let (offset, message) = unreadable(text) {
            diagnostics.report(place(of: offset, in: text), "", message)
            return []
        }
        let bom: [UInt8] = [0xEF, 0xBB, 0xBF]
        let bytes = text.starts(with: bom) ? text[3...] : text[...]
        return bytes.withUnsafeBufferPointer { buffer in
            let parser = UnsafeMutablePointer<yaml_parser_t>.allocate(capacity: 1)
            parser.initialize(to: yaml_parser_t())
            defer { parser.deallocate() }
            guard yaml_parser_initialize(parser) == 1 else {
                diagnostics.report(Place(line: 1, column: 1), "", "out of memory")
                return []
            }
            defer { yaml_parser_delete(parser) }
            yaml_parser_set_encoding(parser, YAML_UTF8_ENCODING)
            yaml_parser_set_input_string(parser, buffer.baseAddress, buffer.count)
            var reader = YAMLReader(parser: parser, diagnostics: diagnostics)
            return reader.all()
        }
    }

    private init(parser: UnsafeMutablePointer<yaml_parser_t>, diagnostics: Diagnostics) {
        self.parser = parser
        self.diagnostics = diagnostics
    }

    // MARK: - Events

    private enum Event {
        case streamStart, streamEnd, documentStart, documentEnd
        case alias(String)
        case scalar(Scalar, anchor: String?)
        case sequenceStart(anchor: String?), sequenceEnd
        case mappingStart(anchor: String?), mappingEnd
        case none
    }

    private func next() throws(Stop) -> (Event, Place) {
        var event = yaml_event_t()
        guard yaml_parser_parse(parser, &event) == 1 else {
            let problem = parser.pointee.problem.map { String(cString: $0) } ?? "not readable"
            let mark = parser.pointee.problem_mark
            let place = Place(line: Int(mark.line) + 1, column: Int(mark.column) + 1)
            // libyaml reads ahead through flow collections, and has a bound of its own.
            if problem.hasPrefix("Maximum nesting") {
                throw refuse(place, "nested deeper than \(YAMLReader.depth) levels")
            }
            var message = problem
            if let context = parser.pointee.context.map({ String(cString: $0) }) { message += " " + context }
            diagnostics.report(place, "", "YAML syntax: " + message, hint: hint(problem))
            throw Stop()
        }
        defer { yaml_event_delete(&event) }
        let place = Place(line: Int(event.start_mark.line) + 1, column: Int(event.start_mark.column) + 1)
        switch event.type {
        case YAML_STREAM_START_EVENT: return (.streamStart, place)
        case YAML_STREAM_END_EVENT: return (.streamEnd, place)
        case YAML_DOCUMENT_START_EVENT: return (.documentStart, place)
        case YAML_DOCUMENT_END_EVENT: return (.documentEnd, place)
        case YAML_ALIAS_EVENT: return (.alias(text(event.data.alias.anchor) ?? ""), place)
        case YAML_SCALAR_EVENT:
            let scalar = event.data.scalar
            let value = String(decoding: UnsafeBufferPointer(start: scalar.value, count: scalar.length), as: UTF8.self)
            var plain = scalar.style == YAML_PLAIN_SCALAR_STYLE
            if let tag = text(scalar.tag) {
                guard ["str", "int", "float", "bool", "null"].contains(where: { tag == "tag:yaml.org,2002:" + $0 })
                else {
                    throw refuse(place, "the tag \(Scalar.excerpt(tag)) is not supported")
                }
                plain = tag != "tag:yaml.org,2002:str"
            }
            return (.scalar(Scalar(text: value, plain: plain), anchor: text(scalar.anchor)), place)
        case YAML_SEQUENCE_START_EVENT:
            let start = event.data.sequence_start
            try checkTag(text(start.tag), "seq", place)
            return (.sequenceStart(anchor: text(start.anchor)), place)
        case YAML_SEQUENCE_END_EVENT: return (.sequenceEnd, place)
        case YAML_MAPPING_START_EVENT:
            let start = event.data.mapping_start
            try checkTag(text(start.tag), "map", place)
            return (.mappingStart(anchor: text(start.anchor)), place)
        case YAML_MAPPING_END_EVENT: return (.mappingEnd, place)
        default: return (.none, place)
        }
    }

    private func text(_ pointer: UnsafeMutablePointer<yaml_char_t>?) -> String? {
        pointer.map { String(cString: $0) }
    }

    private func checkTag(_ tag: String?, _ allowed: String, _ place: Place) throws(Stop) {
        guard let tag, tag != "tag:yaml.org,2002:" + allowed, tag != "!" else { return }
        throw refuse(place, "the tag \(Scalar.excerpt(tag)) is not supported")
    }

    private func refuse(_ place: Place, _ message: String, path: String = "", hint: String? = nil) -> Stop {
        diagnostics.report(place, path, message, hint: hint)
        return Stop()
    }

    private func hint(_ problem: String) -> String? {
        if problem.contains("cannot start any token") {
            return "indent with spaces, not tabs; quote a value that begins with a sign"
        }
        if problem.contains("mapping values are not allowed") {
            return "is a line indented too far, or a value with \": \" not quoted?"
        }
        if problem.contains("did not find expected key") || problem.contains("expected '-'") {
            return "do the lines of this block begin in the same column?"
        }
        return nil
    }

    // MARK: - Trees

    private mutating func all() -> [YAMLNode] {
        var documents: [YAMLNode] = []
        do {
            while true {
                let (event, _) = try next()
                switch event {
                case .streamEnd, .none: return documents
                case .documentStart:
                    anchors = [:]
                    let (first, place) = try next()
                    let node = try self.node(first, place, path: "", depth: 0)
                    if case .scalar(let scalar) = node.content, scalar.meaning == .null { continue }
                    documents.append(node)
                case .streamStart, .documentEnd, .alias, .scalar, .sequenceStart, .sequenceEnd, .mappingStart,
                    .mappingEnd:
                    continue
                }
            }
        } catch {
            return documents
        }
    }

    private mutating func node(_ event: Event, _ place: Place, path: String, depth: Int) throws(Stop) -> YAMLNode {
        guard depth <= YAMLReader.depth else {
            throw refuse(place, "nested deeper than \(YAMLReader.depth) levels")
        }
        nodeCount += 1
        let anchorName: String?
        var node = YAMLNode(place: place, content: .sequence([]), size: 1)
        switch event {
        case .alias(let name):
            aliasCount += 1
            guard let target = anchors[name] else {
                throw refuse(place, "the alias *\(name) stands for no anchor before it")
            }
            nodeCount += target.size
            guard aliasCount <= YAMLReader.aliases else {
                throw refuse(place, "more than \(YAMLReader.aliases) aliases")
            }
            try checkCount(place)
            return target
        case .scalar(let scalar, let anchor):
            node.content = .scalar(scalar)
            anchorName = anchor
        case .sequenceStart(let anchor):
            anchorName = anchor
            var items: [YAMLNode] = []
            while true {
                let (event, place) = try next()
                if case .sequenceEnd = event { break }
                guard items.count < YAMLReader.items else {
                    throw refuse(place, "more than \(YAMLReader.items) items in one list", path: path)
                }
                let item = try self.node(event, place, path: "\(path)[\(items.count)]", depth: depth + 1)
                node.size += item.size
                items.append(item)
            }
            node.content = .sequence(items)
        case .mappingStart(let anchor):
            anchorName = anchor
            node.content = .mapping(try entries(&node.size, path: path, depth: depth))
        case .streamStart, .streamEnd, .documentStart, .documentEnd, .sequenceEnd, .mappingEnd, .none:
            throw refuse(place, "YAML syntax: a value was expected")
        }
        try checkCount(place)
        if let anchorName { anchors[anchorName] = node }
        return node
    }

    private mutating func entries(_ size: inout Int, path: String, depth: Int) throws(Stop) -> [YAMLNode.Entry] {
        var entries: [YAMLNode.Entry] = []
        var lines: [String: Int] = [:]
        while true {
            let (event, place) = try next()
            if case .mappingEnd = event { return entries }
            let key = try node(event, place, path: path, depth: depth + 1)
            let (valueEvent, valuePlace) = try next()
            guard case .scalar(let scalar) = key.content else {
                diagnostics.report(place, path, "a key must be a text, not \(key.summary)")
                _ = try node(valueEvent, valuePlace, path: path, depth: depth + 1)
                continue
            }
            let keyPath = FieldPath.append(path, scalar.text)
            let value = try node(valueEvent, valuePlace, path: keyPath, depth: depth + 1)
            size += 1 + value.size
            if scalar.plain, scalar.text == "<<" {
                diagnostics.report(place, path, "merge keys (<<) are not supported", hint: "repeat the fields")
            } else if let line = lines[scalar.text] {
                diagnostics.report(place, keyPath, "duplicate key (first given in line \(line))")
            } else {
                lines[scalar.text] = place.line
                entries.append(YAMLNode.Entry(key: scalar.text, place: place, value: value))
            }
        }
    }

    private func checkCount(_ place: Place) throws(Stop) {
        guard nodeCount <= YAMLReader.nodes else {
            throw refuse(
                place, "more than \(YAMLReader.nodes) values in one file\(aliasCount > 0 ? ", aliases expanded" : "")")
        }
    }

    // MARK: - Bytes

    /// The first byte that no text may hold, and why.
    private static func unreadable(_ text: [UInt8]) -> (offset: Int, message: String)? {
        var i = 0
        while i < text.count {
            let byte = text[i]
            if byte < 0x80 {
                if byte < 0x20, byte != 9, byte != 10, byte != 13 {
                    return (
                        i,
                        byte == 0
                            ? "a NUL byte: this is not a text file"
                            : "the control character \(byte) is not allowed in YAML"
                    )
                }
                i += 1
                continue
            }
            let length = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : 2
            let end = min(i + length, text.count)
            guard byte >= 0xC2, byte <= 0xF4,
                String(validating: text[i..<end], as: UTF8.self)?.unicodeScalars.count == 1
            else {
                return (i, "byte 0x\(String(byte, radix: 16)) is not UTF-8")
            }
            i += length
        }
        return nil
    }

    private static func place(of offset: Int, in text: [UInt8]) -> Place {
        var line = 1
        var column = 1
        for byte in text[..<offset] {
            if byte == 10 {
                line += 1
                column = 1
            } else if byte & 0xC0 != 0x80 {
                column += 1
            }
        }
        return Place(line: line, column: column)
    }
}

/// Paths as messages show them: `spec.containers[0].image`, `metadata.labels['app.kubernetes.io/name']`.
enum FieldPath {
    static func append(_ path: String, _ key: String) -> String {
        let simple =
            !key.isEmpty && key.utf8.count <= 64
            && key.utf8.allSatisfy { byte in
                (byte | 32 >= 97 && byte | 32 <= 122) || (byte >= 48 && byte <= 57) || byte == UInt8(ascii: "-")
                    || byte == UInt8(ascii: "_")
            }
        if simple { return path.isEmpty ? key : path + "." + key }
        return path + "['\(Scalar.excerpt(key))']"
    }
}
