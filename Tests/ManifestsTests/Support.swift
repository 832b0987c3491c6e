import Model
import Testing

@testable import Manifests

/// The error lines of a text that must be refused; `f` is its file name.
func errors(_ text: String) -> [String] { errors(Array(text.utf8)) }

func errors(_ bytes: [UInt8]) -> [String] {
    do {
        _ = try ManifestParser.parse(file: "f", text: bytes)
        return []
    } catch {
        return error.errors.map(\.description)
    }
}

/// The only pod of a text that must be good.
func pod(_ text: String) throws -> PodSpec {
    let objects = try ManifestParser.parse(file: "f", text: Array(text.utf8))
    let pods = objects.compactMap { if case .pod(let spec) = $0 { spec } else { nil } }
    return try #require(pods.count == 1 ? pods.first : nil)
}

/// A pod whose container ends with `lines`, indented to be its fields; the first of them is in line 9.
func container(_ lines: String) -> String {
    """
    apiVersion: v1
    kind: Pod
    metadata:
      name: p
    spec:
      containers:
        - name: c
          image: box
    \(indented(lines, 6))
    """
}

/// A pod whose spec begins with `lines`; the first of them is in line 6.
func spec(_ lines: String) -> String {
    """
    apiVersion: v1
    kind: Pod
    metadata:
      name: p
    spec:
    \(indented(lines, 2))
      containers:
        - {name: c, image: box}
    """
}

func indented(_ lines: String, _ count: Int) -> String {
    lines.split(separator: "\n", omittingEmptySubsequences: false)
        .map { String(repeating: " ", count: count) + $0 }.joined(separator: "\n")
}
