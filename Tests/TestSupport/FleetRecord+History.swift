// The clients' record in the words of the linearizability checker, which asks more of it than the rules of FleetRecord do:
// whether one order explains every answer about a job, and every answer about the lease.
import Histories

extension FleetRecord {
    /// Times to live and to run of a fleet, in milliseconds: longer than any test.
    public static let lifetime: UInt64 = 3_600_000

    /// Reads of totals are left out: the checker knows no counters.
    public var history: History {
        var result = History()
        // A job goes by a number of its producer's own.
        var numbers: [String: UInt64] = [:]
        var ids: [UInt64: UInt64] = [:]
        for operation in operations {
            guard case .put(let body) = operation.kind else { continue }
            let number = UInt64(numbers.count + 1)
            numbers[body] = number
            if case .inserted(let id) = operation.answer { ids[id] = number }
        }
        for operation in operations.sorted(by: { ($0.begun, $0.client) < ($1.begun, $1.client) }) {
            guard let call = call(of: operation, numbers, ids) else { continue }
            let end = Int64(clamping: operation.ended)
            result.operations.append(
                HistoryOperation(
                    client: operation.client, call: call, invoked: Int64(clamping: operation.begun),
                    end: ending(of: operation, at: end, numbers)))
        }
        return result
    }

    private func call(of operation: FleetOperation, _ numbers: [String: UInt64], _ ids: [UInt64: UInt64])
        -> HistoryCall?
    {
        switch operation.kind {
        case .put(let body):
            guard let job = numbers[body] else { return nil }
            let put = HistoryCall.Put(job: job, delayMilliseconds: 0, ttrMilliseconds: FleetRecord.lifetime)
            return .jobs(.put([put]))
        case .look(let id): return ids[id].map { .jobs(.look(job: $0)) }
        case .total: return nil
        case .acquire(let holder):
            let input = LeaseModel.Input.acquire(holder: holder, ttlMilliseconds: FleetRecord.lifetime)
            return .lease(key: "fleet", input)
        case .release(let token): return .lease(key: "fleet", .release(token: token))
        }
    }

    private func ending(of operation: FleetOperation, at time: Int64, _ numbers: [String: UInt64])
        -> HistoryOperation.End
    {
        switch operation.answer {
        case .inserted(let id): .answered(.jobs(.inserted([id])), at: time)
        case .job: .answered(.jobs(.plain(.done)), at: time)
        case .noJob: .answered(.jobs(.plain(.notFound)), at: time)
        case .granted(let token): .answered(.lease(.granted(token: token)), at: time)
        case .held(let token, let holder): .answered(.lease(.held(token: token, holder: holder)), at: time)
        case .released: .answered(.lease(.released), at: time)
        case .notHeld(let newest): .answered(.lease(.lost(newest: newest)), at: time)
        case .refused: .refused(at: time)
        case .unknown, .total: .unknown(at: time)
        }
    }
}
