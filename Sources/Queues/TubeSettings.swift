// What can be set for a tube, beyond beanstalkd: limits, attempts, backoff, the window of dedupe keys.
import Model
import Wire

/// Settings of one tube. Texts are checked when they are set, so that apply never meets a bad one.
public struct TubeSettings: Sendable, Hashable {
    /// `max-attempts`: a job that was reserved so often is buried where it would become ready again (its lease ended, it was released,
    /// or its holder is gone). 0: no limit.
    public var maxAttempts: UInt32 = 0
    /// `max-jobs`: most jobs in the tube. 0: no limit.
    public var maxJobs: UInt64 = 0
    /// `max-bytes`: most bytes of bodies in the tube. 0: no limit.
    public var maxBytes: UInt64 = 0
    /// `job-size`: largest body.
    public var jobSize: UInt64 = UInt64(Limits.jobBytes)
    /// `backoff`: a job whose lease ended, or that was released without a delay, waits this long, doubled for every further failure, at
    /// most an hour. 0: none.
    public var backoffMilliseconds: UInt64 = 0
    /// `dedupe-window`: how long after the put of a job its key is remembered, even if the job is gone. 0: while the job exists.
    public var dedupeMilliseconds: UInt64 = 0

    public static let names = ["max-attempts", "max-jobs", "max-bytes", "job-size", "backoff", "dedupe-window"]
    static let longestBackoff: UInt64 = 3_600_000

    public init() {}

    public var isDefault: Bool { self == TubeSettings() }

    /// Sets one; an empty text restores the default. Throws what is wrong, and then nothing has changed.
    mutating func set(_ name: String, to text: String) throws(CoterieError) {
        let defaults = TubeSettings()
        switch name {
        case "max-attempts":
            maxAttempts = UInt32(
                try TubeSettings.number(name, text, most: UInt64(UInt32.max)) ?? UInt64(defaults.maxAttempts))
        case "max-jobs": maxJobs = try TubeSettings.number(name, text, most: UInt64(UInt32.max)) ?? defaults.maxJobs
        case "max-bytes": maxBytes = try TubeSettings.size(name, text, most: 1 << 53) ?? defaults.maxBytes
        case "job-size":
            jobSize = try TubeSettings.size(name, text, most: UInt64(QueueLimits.bodyBytes)) ?? defaults.jobSize
        case "backoff":
            backoffMilliseconds =
                try TubeSettings.duration(name, text, most: TubeSettings.longestBackoff) ?? defaults.backoffMilliseconds
        case "dedupe-window":
            dedupeMilliseconds =
                try TubeSettings.duration(name, text, most: 30 * 86_400_000) ?? defaults.dedupeMilliseconds
        default:
            throw CoterieError(
                .badInput, "a tube has no setting \(name)", hint: "one of \(TubeSettings.names.joined(separator: ", "))"
            )
        }
    }

    /// Time to wait before attempt number `failures` + 1.
    func backoff(failures: UInt64) -> UInt64 {
        guard backoffMilliseconds > 0, failures > 0 else { return 0 }
        let doublings = min(failures - 1, 22)
        return min(backoffMilliseconds << doublings, TubeSettings.longestBackoff)
    }

    private static func checked(_ name: String, _ value: UInt64?, most: UInt64, what: String) throws(CoterieError)
        -> UInt64
    {
        guard let value else { throw CoterieError(.badInput, "\(name) must be \(what)") }
        guard value <= most else { throw CoterieError(.tooLarge, "\(name) must be at most \(most)") }
        return value
    }

    private static func number(_ name: String, _ text: String, most: UInt64) throws(CoterieError) -> UInt64? {
        if text.isEmpty { return nil }
        return try checked(name, UInt64(text), most: most, what: "a whole number")
    }

    private static func size(_ name: String, _ text: String, most: UInt64) throws(CoterieError) -> UInt64? {
        if text.isEmpty { return nil }
        return try checked(name, ByteSize.parse(text), most: most, what: "a size such as 64KiB")
    }

    private static func duration(_ name: String, _ text: String, most: UInt64) throws(CoterieError) -> UInt64? {
        if text.isEmpty { return nil }
        return try checked(
            name, TimeSpan(text: text).map { UInt64(clamping: $0.milliseconds) }, most: most,
            what: "a duration such as 30s")
    }

    func encode(into writer: inout ByteWriter) {
        for value in [UInt64(maxAttempts), maxJobs, maxBytes, jobSize, backoffMilliseconds, dedupeMilliseconds] {
            writer.varint(value)
        }
    }

    init(decoding reader: inout ByteReader) throws(WireError) {
        maxAttempts = try reader.count32()
        maxJobs = try reader.varint()
        maxBytes = try reader.varint()
        jobSize = try reader.varint()
        backoffMilliseconds = try reader.varint()
        dedupeMilliseconds = try reader.varint()
        guard jobSize <= UInt64(QueueLimits.bodyBytes), backoffMilliseconds <= TubeSettings.longestBackoff,
            dedupeMilliseconds <= QueueLimits.milliseconds
        else { throw .invalid(at: reader.position, what: "tube settings") }
    }

    /// As `queue set` writes them.
    public var document: JSONValue {
        [
            "max-attempts": JSONValue(maxAttempts), "max-jobs": JSONValue(maxJobs), "max-bytes": JSONValue(maxBytes),
            "job-size": JSONValue(jobSize), "backoffMilliseconds": JSONValue(backoffMilliseconds),
            "dedupeWindowMilliseconds": JSONValue(dedupeMilliseconds),
        ]
    }
}
