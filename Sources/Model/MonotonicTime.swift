/// Time that only moves forward: nanoseconds since an origin that the driver chooses (boot, for a node; zero, for a
/// simulated world). Cores never read a clock; every input carries one of these as `now`.
public struct MonotonicTime: Comparable, Hashable, Sendable, CustomStringConvertible {
    public var nanoseconds: UInt64

    public init(nanoseconds: UInt64) { self.nanoseconds = nanoseconds }

    public static let zero = MonotonicTime(nanoseconds: 0)
    /// A moment that never comes: the deadline of what has none.
    public static let distantFuture = MonotonicTime(nanoseconds: .max)

    public static func < (a: Self, b: Self) -> Bool { a.nanoseconds < b.nanoseconds }

    /// Saturates at both ends, so that a hostile or far deadline can not trap.
    public static func + (a: Self, b: TimeSpan) -> Self {
        if b.nanoseconds >= 0 {
            let (sum, overflow) = a.nanoseconds.addingReportingOverflow(UInt64(b.nanoseconds))
            return overflow ? .distantFuture : Self(nanoseconds: sum)
        }
        let magnitude = b.nanoseconds.magnitude
        return Self(nanoseconds: a.nanoseconds > magnitude ? a.nanoseconds - magnitude : 0)
    }

    public static func - (a: Self, b: TimeSpan) -> Self {
        // The most negative span has no opposite; the most positive one is a nanosecond off.
        a + TimeSpan(nanoseconds: b.nanoseconds == .min ? .max : -b.nanoseconds)
    }

    /// Signed distance, saturating at ±292 years.
    public static func - (a: Self, b: Self) -> TimeSpan {
        if a.nanoseconds >= b.nanoseconds {
            return TimeSpan(nanoseconds: Int64(clamping: a.nanoseconds - b.nanoseconds))
        }
        return TimeSpan(nanoseconds: -Int64(clamping: b.nanoseconds - a.nanoseconds))
    }

    public var description: String { "\(Double(nanoseconds / 1000) / 1_000_000)s" }
}

/// A length of time in nanoseconds, signed. (`Swift.Duration` is 128 bits wide and slower on hot paths.)
public struct TimeSpan: Comparable, Hashable, Sendable, CustomStringConvertible {
    public var nanoseconds: Int64

    public init(nanoseconds: Int64) { self.nanoseconds = nanoseconds }

    public static let zero = TimeSpan(nanoseconds: 0)
    public static func microseconds(_ n: Int64) -> Self { Self(nanoseconds: saturating(n, 1_000)) }
    public static func milliseconds(_ n: Int64) -> Self { Self(nanoseconds: saturating(n, 1_000_000)) }
    public static func seconds(_ n: Int64) -> Self { Self(nanoseconds: saturating(n, 1_000_000_000)) }

    public var milliseconds: Int64 { nanoseconds / 1_000_000 }
    public var seconds: Double { Double(nanoseconds) / 1e9 }

    public static func < (a: Self, b: Self) -> Bool { a.nanoseconds < b.nanoseconds }
    public static func + (a: Self, b: Self) -> Self {
        let (sum, overflow) = a.nanoseconds.addingReportingOverflow(b.nanoseconds)
        return Self(nanoseconds: overflow ? (a.nanoseconds < 0 ? .min : .max) : sum)
    }
    public static func - (a: Self, b: Self) -> Self {
        let (sum, overflow) = a.nanoseconds.subtractingReportingOverflow(b.nanoseconds)
        return Self(nanoseconds: overflow ? (a.nanoseconds < 0 ? .min : .max) : sum)
    }
    public static func * (a: Self, b: Int) -> Self { Self(nanoseconds: saturating(a.nanoseconds, Int64(b))) }
    public static func / (a: Self, b: Int) -> Self { Self(nanoseconds: a.nanoseconds / Int64(b)) }

    /// `250ms`, `3s`, `5m`: the shortest exact form that ``init(text:)`` reads back.
    public var description: String {
        let units: [(Int64, String)] = [
            (3_600_000_000_000, "h"), (60_000_000_000, "m"), (1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us"),
        ]
        for (size, name) in units where nanoseconds != 0 && nanoseconds % size == 0 {
            return "\(nanoseconds / size)\(name)"
        }
        return "\(nanoseconds)ns"
    }

    /// Reads `250ms`, `3s`, `1.5s`, `5m`, `2h`, `1d`; `0` needs no unit. Nil for anything else, for negatives and for more than
    /// 100 years.
    public init?(text: some StringProtocol) {
        if text == "0" {
            self = .zero
            return
        }
        let digits = text.prefix { $0.isASCII && ($0.isNumber || $0 == ".") }
        let sizes: [String: Double] = [
            "ns": 1, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9, "m": 60e9, "h": 3_600e9, "d": 86_400e9,
        ]
        guard let number = Double(String(digits)), let size = sizes[String(text.dropFirst(digits.count))] else {
            return nil
        }
        let value = number * size
        guard value >= 0, value <= 100 * 365 * 86_400e9 else { return nil }
        self.init(nanoseconds: Int64(value.rounded()))
    }
}

private func saturating(_ a: Int64, _ b: Int64) -> Int64 {
    let (product, overflow) = a.multipliedReportingOverflow(by: b)
    return overflow ? ((a < 0) == (b < 0) ? .max : .min) : product
}
