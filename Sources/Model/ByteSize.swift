/// Sizes as people write them: `64KiB`, `1MiB`, `2GiB`, `512B`, `100` (bytes), and the decimal `kB MB GB`; Kubernetes'
/// `64Mi` and `1Gi` are read too.
public enum ByteSize {
    /// Nil if the text is not a size, or is over 2^53 bytes.
    public static func parse(_ text: some StringProtocol) -> UInt64? {
        let digits = text.prefix { $0.isASCII && ($0.isNumber || $0 == ".") }
        let factors: [String: Double] = [
            "": 1, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "k": 1e3, "M": 1e6, "G": 1e9,
            "KiB": 1024, "MiB": 1_048_576, "GiB": 1_073_741_824, "TiB": 1_099_511_627_776,
            "Ki": 1024, "Mi": 1_048_576, "Gi": 1_073_741_824, "Ti": 1_099_511_627_776,
        ]
        guard let number = Double(String(digits)), let factor = factors[String(text.dropFirst(digits.count))] else {
            return nil
        }
        let value = number * factor
        guard value >= 0, value <= 9_007_199_254_740_992, value == value.rounded(.down) else { return nil }
        return UInt64(value)
    }
}
