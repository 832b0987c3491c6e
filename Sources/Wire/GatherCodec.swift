// Counts of a scatter-gather job as bytes (root pod to cluster) and as the JSON document of the public contract.
import Model

extension GatherProgress {
    static let version: UInt8 = 1

    public func encode(into writer: inout ByteWriter) {
        writer.u8(GatherProgress.version)
        for value in [total, successful, failed, timedOut, cancelled, running, pending, retried, hedged] {
            writer.natural(value)
        }
        for value in [milliseconds, bytesIn, bytesOut] { writer.varint(value) }
        writer.count(min(failures.count, GatherProgress.failureLimit))
        for failure in failures.prefix(GatherProgress.failureLimit) {
            writer.natural(failure.shard)
            writer.text(failure.node, max: Limits.nameBytes)
            writer.natural(failure.attempts)
            writer.text(failure.error, max: 4_096)
        }
    }

    public init(decoding reader: inout ByteReader) throws(WireError) {
        let at = reader.position
        guard try reader.u8() == GatherProgress.version else {
            throw .invalid(at: at, what: "version of gather progress")
        }
        self.init()
        for field in [
            \Self.total, \.successful, \.failed, \.timedOut, \.cancelled, \.running, \.pending, \.retried, \.hedged,
        ] { self[keyPath: field] = try reader.natural(max: GatherProgress.shardLimit) }
        for field in [\Self.milliseconds, \.bytesIn, \.bytesOut] { self[keyPath: field] = try reader.varint() }
        for _ in 0..<(try reader.count(max: GatherProgress.failureLimit, itemBytes: 4)) {
            failures.append(
                GatherFailure(
                    shard: try reader.natural(max: GatherProgress.shardLimit),
                    node: try reader.string(max: Limits.nameBytes),
                    attempts: try reader.natural(max: GatherProgress.shardLimit), error: try reader.string(max: 4_096)))
        }
    }

    /// `scatter --summary` and `gather show`: `{"id","state","shards":{…},"retried",…,"failures":[…]}`.
    public func document(id: String, state: GatherState) -> JSONValue {
        [
            "id": .string(id),
            "state": .string(state.rawValue),
            "shards": [
                "total": JSONValue(total), "successful": JSONValue(successful), "failed": JSONValue(failed),
                "timedOut": JSONValue(timedOut), "cancelled": JSONValue(cancelled), "running": JSONValue(running),
                "pending": JSONValue(pending),
            ],
            "retried": JSONValue(retried),
            "hedged": JSONValue(hedged),
            "milliseconds": JSONValue(milliseconds),
            "bytesIn": JSONValue(bytesIn),
            "bytesOut": JSONValue(bytesOut),
            "failures": .array(
                failures.map { failure in
                    [
                        "shard": JSONValue(failure.shard), "node": .string(failure.node),
                        "attempts": JSONValue(failure.attempts),
                        "error": .string(failure.error),
                    ]
                }),
        ]
    }
}
