// Names of images, and where a node keeps the root file system of each.
import Model

/// `image:` of a container. A name without a tag means `:latest`, as everywhere.
public enum ImageName {
    /// The host's own file system, read-only.
    public static let host = "localhost/host"

    public static func isHost(_ name: String) -> Bool { name == host || name == host + ":latest" }

    /// Nil for what is no image name: empty, over 255 bytes, or with characters other than letters, digits and `._-/:@`.
    public static func normalized(_ name: String) -> String? {
        guard !name.isEmpty, name.utf8.count <= 255, !name.hasPrefix("/"), !name.hasSuffix("/"),
            name.utf8.allSatisfy({
                isPlainNameByte($0) || $0 == UInt8(ascii: "/") || $0 == UInt8(ascii: ":") || $0 == UInt8(ascii: "@")
            })
        else { return nil }
        let last = name.split(separator: "/").last ?? ""
        return last.contains(":") || last.contains("@") ? name : name + ":latest"
    }

    /// The directory's name below ``PodRuntimeOptions/imageDirectory``: `/`, `:` and `@` become `%2F`, `%3A` and `%40`, so that
    /// no two images share one. Nil for what is no image name.
    public static func directoryName(for name: String) -> String? {
        guard let name = normalized(name) else { return nil }
        var text = ""
        for byte in name.utf8 {
            switch byte {
            case UInt8(ascii: "/"): text += "%2F"
            case UInt8(ascii: ":"): text += "%3A"
            case UInt8(ascii: "@"): text += "%40"
            default: text.unicodeScalars.append(Unicode.Scalar(byte))
            }
        }
        return text.hasPrefix(".") ? nil : text
    }
}

/// A letter, digit, dot, underscore or hyphen.
func isPlainNameByte(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
        UInt8(ascii: "0")...UInt8(ascii: "9"),
        UInt8(ascii: "."), UInt8(ascii: "_"), UInt8(ascii: "-"):
        true
    default: false
    }
}

/// Whether a name may become that of a file: plain characters, at most 200 bytes, not hidden.
func isPlainFileName(_ name: String) -> Bool {
    !name.isEmpty && name.utf8.count <= Limits.nameBytes && !name.hasPrefix(".")
        && name.utf8.allSatisfy(isPlainNameByte)
}
