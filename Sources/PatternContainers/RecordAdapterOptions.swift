// What `coterie adapter` can be told.
import Model

/// How the bytes of an input file make records.
public enum RecordSource: Hashable, Sendable {
    /// One JSON object a line.
    case json
    /// RFC 4180 with a header line.
    case csv
    /// `key=value key="a value"` a line.
    case logfmt
    /// A line is a record with the one field `message`.
    case lines
    /// A record begins at each line that the regular expression matches (Swift's `Regex` syntax); field `message`.
    case multiline(pattern: String)

    /// `json`, `csv`, `logfmt`, `lines` or `multiline:REGEX`; the expression is checked.
    public init(text: String) throws(CoterieError) {
        switch text {
        case "json": self = .json
        case "csv": self = .csv
        case "logfmt": self = .logfmt
        case "lines": self = .lines
        default:
            guard text.hasPrefix("multiline:") else {
                throw CoterieError(
                    .badInput, "--from \(text): unknown format", hint: "json, csv, logfmt, lines or multiline:REGEX")
            }
            let pattern = String(text.dropFirst(10))
            do {
                _ = try Regex(pattern)
            } catch {
                throw CoterieError(.badInput, "--from multiline: not a regular expression: \(pattern): \(error)")
            }
            self = .multiline(pattern: pattern)
        }
    }
}

/// How records are written.
public enum RecordForm: Hashable, Sendable {
    case json
    /// With a header line; its columns are the fields of the first record.
    case csv
    case logfmt
    /// The text exposition format: numbers are gauges, texts are labels, the last value of each series stands.
    case prometheus
    /// Text with `{field}`, `{}` for the whole record, `{{`, `}}`, `\n` and `\t`; a line a record.
    case template(RecordTemplate)

    /// `json`, `csv`, `logfmt`, `prometheus` or `template:TEXT`.
    public init(text: String) throws(CoterieError) {
        switch text {
        case "json": self = .json
        case "csv": self = .csv
        case "logfmt": self = .logfmt
        case "prometheus": self = .prometheus
        default:
            guard text.hasPrefix("template:") else {
                throw CoterieError(
                    .badInput, "--to \(text): unknown format", hint: "json, csv, logfmt, prometheus or template:TEXT")
            }
            self = .template(try RecordTemplate(text: String(text.dropFirst(9))))
        }
    }
}

public struct RecordAdapterOptions: Sendable {
    public enum Work: Hashable, Sendable {
        /// `--from` and `--to`.
        case records(from: RecordSource, to: RecordForm)
        /// `--filter`: one line in, one line out, through one long-lived `/bin/sh -c` command; an empty line drops the record.
        case filter(command: String)
        /// `--convert`: a `/bin/sh -c` command for each whole file, stdin to stdout.
        case convert(command: String)
    }

    /// Globs of input files.
    public var watch: [String]
    /// Outputs are named as their inputs, in this directory.
    public var out: String
    public var work: Work
    /// How long a file must not have changed to count as whole for `--convert`, and a last multi-line record as complete.
    public var settle: TimeSpan = .seconds(1)
    /// Longest record in bytes; a longer one is a bad record.
    public var recordLimit = 1 << 20

    public init(watch: [String], out: String, work: Work) {
        self.watch = watch
        self.out = out
        self.work = work
    }

    /// From the flags of the command line.
    public static func parse(
        watch: [String], out: String?, from: String?, to: String?, filter: String?, convert: String?
    ) throws(CoterieError) -> RecordAdapterOptions {
        guard !watch.isEmpty else { throw CoterieError(.badInput, "--watch GLOB is needed") }
        guard let out, !out.isEmpty else { throw CoterieError(.badInput, "--out DIR is needed") }
        guard watch.count <= 64 else { throw CoterieError(.badInput, "at most 64 --watch can be given") }
        let formats = from != nil || to != nil
        guard (formats ? 1 : 0) + (filter != nil ? 1 : 0) + (convert != nil ? 1 : 0) == 1 else {
            throw CoterieError(.badInput, "exactly one of --from with --to, --filter and --convert is needed")
        }
        if let filter { return RecordAdapterOptions(watch: watch, out: out, work: .filter(command: filter)) }
        if let convert { return RecordAdapterOptions(watch: watch, out: out, work: .convert(command: convert)) }
        guard let from, let to else { throw CoterieError(.badInput, "--from and --to belong together") }
        return RecordAdapterOptions(
            watch: watch, out: out, work: .records(from: try RecordSource(text: from), to: try RecordForm(text: to)))
    }
}
