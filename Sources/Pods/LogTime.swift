// The time in front of each log line: RFC 3339 in UTC with nine digits of fraction. Of one width, so that texts compare as
// the times do.

public enum LogTime {
    /// Nanoseconds since 1970 as `2026-01-02T03:04:05.000000006Z`.
    public static func text(nanoseconds: UInt64) -> String {
        let seconds = nanoseconds / 1_000_000_000
        let date = civil(days: Int(seconds / 86_400))
        let second = Int(seconds % 86_400)
        return "\(padded(date.year, 4))-\(padded(date.month, 2))-\(padded(date.day, 2))T\(padded(second / 3_600, 2)):"
            + "\(padded(second / 60 % 60, 2)):\(padded(second % 60, 2)).\(padded(Int(nanoseconds % 1_000_000_000), 9))Z"
    }

    /// Reads what ``text(nanoseconds:)`` writes; nil for anything else.
    public static func nanoseconds(_ text: some StringProtocol) -> UInt64? {
        let bytes = Array(text.utf8)
        guard bytes.count == 30 else { return nil }
        func number(_ range: Range<Int>) -> Int? {
            var value = 0
            for byte in bytes[range] {
                guard byte >= 48, byte <= 57 else { return nil }
                value = value * 10 + Int(byte - 48)
            }
            return value
        }
        guard let year = number(0..<4), let month = number(5..<7), let day = number(8..<10), let hour = number(11..<13),
            let minute = number(14..<16), let second = number(17..<19), let fraction = number(20..<29), year >= 1970,
            (1...12).contains(month), (1...31).contains(day), hour < 24, minute < 60, second < 60
        else { return nil }
        let value =
            UInt64(days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second) * 1_000_000_000
            + UInt64(fraction)
        return self.text(nanoseconds: value) == text ? value : nil
    }

    private static func padded(_ value: Int, _ width: Int) -> String {
        let text = String(value)
        return String(repeating: "0", count: max(0, width - text.utf8.count)) + text
    }

    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms": years begin in March, eras are 400 years.
    private static func civil(days: Int) -> (year: Int, month: Int, day: Int) {
        let z = days + 719_468
        let era = z / 146_097
        let dayOfEra = z % 146_097
        let yearOfEra = (dayOfEra - dayOfEra / 1_460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
        let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let shifted = (5 * dayOfYear + 2) / 153
        let month = shifted < 10 ? shifted + 3 : shifted - 9
        return (yearOfEra + era * 400 + (month <= 2 ? 1 : 0), month, dayOfYear - (153 * shifted + 2) / 5 + 1)
    }

    private static func days(_ year: Int, _ month: Int, _ day: Int) -> Int {
        let y = month <= 2 ? year - 1 : year
        let yearOfEra = y % 400
        let dayOfYear = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1
        return y / 400 * 146_097 + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear - 719_468
    }
}
