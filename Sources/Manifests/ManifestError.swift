// What is wrong with a file that a person wrote, where, and what to do: one line each, all at once. The rule that nothing is
// ever ignored comes from containers/podman#25081 (a restartPolicy one level too high, silently dropped: an endless restart).

/// `FILE:LINE:COL: path.to.field: message (hint)`.
public struct ManifestError: Error, Hashable, Sendable, CustomStringConvertible {
    public var file: String
    /// From 1; 0 where an error belongs to no place in the file.
    public var line: Int
    /// From 1, in Unicode scalars.
    public var column: Int
    /// `spec.containers[0].image`; empty for errors of the syntax and of whole documents.
    public var path: String
    public var message: String
    public var hint: String?

    public init(file: String, line: Int, column: Int, path: String = "", message: String, hint: String? = nil) {
        self.file = file
        self.line = line
        self.column = column
        self.path = path
        self.message = message
        self.hint = hint
    }

    public var description: String {
        var text = file
        if line > 0 { text += ":\(line):\(column)" }
        if !text.isEmpty { text += ": " }
        if !path.isEmpty { text += path + ": " }
        text += message
        if let hint { text += " (\(hint))" }
        return text
    }
}

/// Everything that is wrong with a file, in the order of the file. Never empty.
public struct ManifestFailure: Error, Hashable, Sendable, CustomStringConvertible {
    public var errors: [ManifestError]

    public init(errors: [ManifestError]) { self.errors = errors }

    public var description: String { errors.map(\.description).joined(separator: "\n") }
}

/// Collects errors while a file is read, at most ``limit``.
final class Diagnostics {
    /// A hostile file could otherwise earn an error for every few of its bytes.
    static let limit = 100

    let file: String
    private(set) var errors: [ManifestError] = []
    private var dropped = 0

    init(file: String) { self.file = file }

    var isFull: Bool { errors.count >= Diagnostics.limit }

    /// The hint is made only for an error that is kept: suggestions take time.
    func report(_ place: Place, _ path: String, _ message: String, hint: @autoclosure () -> String? = nil) {
        guard !isFull else {
            dropped += 1
            return
        }
        let message = Scalar.excerpt(message, limit: 500)
        // A node that several aliases name is wrong once.
        let isKnown = errors.contains {
            ($0.line, $0.column, $0.path, $0.message) == (place.line, place.column, path, message)
        }
        if isKnown { return }
        errors.append(
            ManifestError(
                file: file, line: place.line, column: place.column, path: path, message: message, hint: hint()))
    }

    /// Throws if anything was reported.
    func finish() throws(ManifestFailure) {
        if errors.isEmpty { return }
        var sorted = errors.enumerated().sorted {
            ($0.element.line, $0.element.column, $0.offset) < ($1.element.line, $1.element.column, $1.offset)
        }.map(\.element)
        if dropped > 0 {
            sorted.append(
                ManifestError(file: file, line: 0, column: 0, message: "at least \(dropped) more errors are not shown"))
        }
        throw ManifestFailure(errors: sorted)
    }
}

/// A place in a file, from 1.
struct Place: Hashable, Sendable {
    var line: Int
    var column: Int
}

/// Finds what someone may have meant.
enum Suggestion {
    /// `did you mean X?`, or nil when no candidate is near. The first of equally near candidates wins.
    static func hint(for word: String, among candidates: [String]) -> String? {
        nearest(to: word, among: candidates).map { "did you mean \($0)?" }
    }

    static func nearest(to word: String, among candidates: [String]) -> String? {
        guard word.utf8.count <= 64 else { return nil }
        let lowered = Array(word.lowercased().unicodeScalars)
        var best: (distance: Int, candidate: String)?
        for candidate in candidates.prefix(1_000) {
            let distance = distance(lowered, Array(candidate.lowercased().unicodeScalars))
            guard distance <= max(1, min(lowered.count, candidate.unicodeScalars.count) / 3) else { continue }
            if distance < best?.distance ?? .max { best = (distance, candidate) }
        }
        return best?.candidate
    }

    /// Optimal string alignment: insertions, deletions, substitutions and swaps of neighbours cost one each.
    static func distance(_ a: [Unicode.Scalar], _ b: [Unicode.Scalar]) -> Int {
        if a.isEmpty || b.isEmpty { return max(a.count, b.count) }
        var beforeLast: [Int] = []
        var last = Array(0...b.count)
        for i in 1...a.count {
            var row = [i]
            for j in 1...b.count {
                var cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1))
                if i > 1, j > 1, a[i - 1] == b[j - 2], a[i - 2] == b[j - 1] { cost = min(cost, beforeLast[j - 2] + 1) }
                row.append(cost)
            }
            beforeLast = last
            last = row
        }
        return last[b.count]
    }
}
