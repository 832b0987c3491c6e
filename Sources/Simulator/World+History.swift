// What the clients of a world did and saw, as a history that the linearizability checker judges at the end: from the answers
// alone, without the log, and with the same code that judges real processes.
import Histories
import Leases
import Model
import NodeCore
import Queues
import Wire

extension World {
    /// All that clients asked for which has a model: jobs and elections.
    public var history: History { recorder.history }

    private var recordTime: Int64 { Int64(clamping: now.nanoseconds) }

    func record(_ client: SimulatedClient, _ command: StateCommand) -> Int? {
        call(command).map { recorder.invoke(client: client.index, $0, at: recordTime) }
    }

    func record(_ client: SimulatedClient, query path: String) -> Int? {
        let parts = path.split(separator: "/")
        guard parts.count == 2 else { return nil }
        switch parts[0] {
        case "jobs":
            guard let job = UInt64(parts[1]).flatMap({ numberOfID[$0] }) else { return nil }
            return recorder.invoke(client: client.index, .jobs(.look(job: job)), at: recordTime)
        case "elections":
            return recorder.invoke(client: client.index, .lease(key: "election/\(parts[1])", .inspect), at: recordTime)
        default: return nil
        }
    }

    private func call(_ command: StateCommand) -> HistoryCall? {
        switch command {
        case .lease(.acquire(let key, let holder, _, let ttl)):
            return .lease(key: key, .acquire(holder: holder, ttlMilliseconds: ttl))
        case .lease(.renew(let key, let token)): return .lease(key: key, .renew(token: token, ttlMilliseconds: 0))
        case .lease(.release(let key, let token)): return .lease(key: key, .release(token: token))
        case .queue(.put(let jobs)):
            return .jobs(
                .put(
                    jobs.map {
                        HistoryCall.Put(
                            job: JobLedger.number(of: $0.body), delayMilliseconds: $0.delayMilliseconds,
                            ttrMilliseconds: $0.ttrMilliseconds)
                    }))
        case .queue(.reserve(let tubes, _, let count)): return .jobs(.reserve(tubes: tubes, count: count))
        case .queue(.delete(let id, let lease?)):
            return numberOfID[id].map { .jobs(.delete(job: $0, lease: lease)) }
        case .queue(.release(let id, let lease, _, let delay)):
            return numberOfID[id].map { .jobs(.release(job: $0, lease: lease, delayMilliseconds: delay)) }
        case .queue(.touch(let id, let lease)): return numberOfID[id].map { .jobs(.touch(job: $0, lease: lease)) }
        default: return nil
        }
    }

    func recordEnd(_ id: Int?, _ ending: Ending, waited: Bool) {
        guard let id else { return }
        let call = recorder.history.operations[id].call
        switch ending {
        case .unknown(wasSent: false): recorder.refuse(id, at: recordTime)
        case .unknown: recorder.giveUp(id, at: recordTime)
        case .result(.queue(.refused)), .result(.lease(.refused)): recorder.refuse(id, at: recordTime)
        case .result(.lease(.held)) where waited: recorder.giveUp(id, at: recordTime)
        case .result(let result):
            if let answer = answer(result, to: call) {
                recorder.answer(id, answer, at: recordTime)
            } else {
                recorder.giveUp(id, at: recordTime)
            }
        case .document(let document):
            switch call {
            case .lease:
                let token = document["token"]?.intValue.map { UInt64(clamping: $0) } ?? 0
                let holder = document["holder"]?["id"]?.stringValue
                recorder.answer(id, .lease(.state(token: token, holder: holder)), at: recordTime)
            default: recorder.answer(id, .jobs(.plain(.done)), at: recordTime)
            }
        case .refused(let error):
            if case .jobs(.look) = call, error.code == .notFound {
                recorder.answer(id, .jobs(.plain(.notFound)), at: recordTime)
            } else {
                recorder.giveUp(id, at: recordTime)
            }
        }
    }

    private func answer(_ result: StateResult, to call: HistoryCall) -> HistoryAnswer? {
        switch (call, result) {
        case (.lease, .lease(let lease)):
            switch lease {
            case .granted(let token, _): return .lease(.granted(token: token))
            case .held(let view):
                return view.holder.map { .lease(.held(token: view.token, holder: $0.id)) }
            case .renewed: return .lease(.renewed)
            case .released: return .lease(.released)
            case .lost(let newest): return .lease(.lost(newest: newest))
            case .valid, .refused: return nil
            }
        case (.jobs(.put(let puts)), .queue(.inserted(let jobs))):
            for (put, job) in zip(puts, jobs) { numberOfID[job.id] = put.job }
            return .jobs(.inserted(jobs.map(\.id)))
        case (.jobs(.reserve), .queue(.reserved(let jobs))):
            return .jobs(
                .reserved(
                    jobs.map {
                        let number = JobLedger.number(of: $0.body)
                        numberOfID[$0.id] = number
                        return HistoryAnswer.Reservation(job: number, id: $0.id, lease: $0.lease)
                    }))
        case (.jobs, .queue(.done)): return .jobs(.plain(.done))
        case (.jobs, .queue(.buried)): return .jobs(.plain(.buried))
        case (.jobs, .queue(.notFound)): return .jobs(.plain(.notFound))
        case (.jobs, .queue(.leaseExpired)): return .jobs(.plain(.leaseExpired))
        default: return nil
        }
    }

    func checkHistory() throws {
        var history = recorder.history
        // Known: what a node gave back for a client that had gone is told again to the same client when it asks again elsewhere.
        history.mayGiveJobsBack = settings.strays > 0
        // No lease and no time to run of these worlds is longer than 2 s; a jump brings an end nearer by as much.
        history.slack += 2_000 * settings.clockDrift + jumped(since: .zero).nanoseconds
        let verdict = history.check()
        figures.historyOperations = verdict.operations
        figures.historyObjects = verdict.objects
        figures.undecidedObjects = verdict.undecided.count
        guard verdict.violations.isEmpty else { throw Violation("the history is not linearizable: \(verdict)") }
    }
}
