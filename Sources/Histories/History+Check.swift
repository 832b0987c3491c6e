// A history falls into objects that have nothing to do with each other (registers, leases, jobs), and each is checked alone:
// P-compositionality (Horn and Kroening 2015). Operations on several objects, a put of a batch and a reserve that gets several
// jobs, take part in each; that they are atomic over all of them is not looked at.

public struct HistoryVerdict: Hashable, Sendable, CustomStringConvertible {
    /// What was wrong, a text of several lines for each object.
    public var violations: [String] = []
    /// Objects whose check was given up.
    public var undecided: [String] = []
    public var objects = 0
    public var operations = 0

    public var isLinearizable: Bool { violations.isEmpty && undecided.isEmpty }

    public var description: String {
        var text = "\(operations) operations on \(objects) objects: "
        text += isLinearizable ? "linearizable" : violations.isEmpty ? "undecided" : "NOT linearizable"
        for object in undecided { text += "\n\(object): given up, too many orders are possible" }
        for violation in violations { text += "\n\(violation)" }
        return text
    }
}

extension History {
    /// `budget`: steps for each object.
    public func check(budget: Int = 2_000_000) -> HistoryVerdict {
        var verdict = HistoryVerdict()
        verdict.operations = operations.count
        var objects = Objects()
        for operation in operations { objects.add(operation) }
        verdict.violations += objects.contradictions
        for (key, calls) in objects.registers.inOrder {
            verdict.take("register \(key)", RegisterModel(), calls, budget)
        }
        for (key, calls) in objects.texts.inOrder { verdict.take("text \(key)", TextModel(), calls, budget) }
        for (key, calls) in objects.leases.inOrder {
            verdict.take("lease \(key)", LeaseModel(isTimed: isTimed, slack: slack), calls, budget)
        }
        for (job, calls) in objects.jobs.inOrder {
            verdict.take("job \(job)", JobModel(isTimed: isTimed && !mayGiveJobsBack, slack: slack), calls, budget)
        }
        return verdict
    }
}

extension HistoryVerdict {
    fileprivate mutating func take<Model: SequentialModel>(
        _ object: String, _ model: Model, _ calls: [TimedOperation<Model.Input, Model.Output>], _ budget: Int
    ) {
        objects += 1
        switch Linearizability.check(model, calls, budget: budget) {
        case .linearizable: break
        case .undecided: undecided.append(object)
        case .violated(let prefix, let stuck):
            func line(_ i: Int) -> String {
                let end = calls[i].output.map { "\($0), \(calls[i].completed)" } ?? "unknown"
                return "\(calls[i].invoked): \(calls[i].input) -> \(end)"
            }
            var text = "\(object): no order explains\n    \(line(stuck))"
            let shown = prefix.suffix(12)
            text += "\n  after \(prefix.count) operations\(shown.count < prefix.count ? ", the last" : "")"
            for i in shown { text += "\n    \(line(i))" }
            let open = calls.indices.filter { !prefix.contains($0) && $0 != stuck }
            if !open.isEmpty { text += "\n  and beside" }
            for i in open.prefix(12) { text += "\n    \(line(i))" }
            violations.append(text)
        }
    }
}

/// Lists by key, in the order in which the keys first came.
private struct Groups<Key: Hashable, Value> {
    private var place: [Key: Int] = [:]
    private(set) var inOrder: [(Key, [Value])] = []

    mutating func add(_ value: Value, to key: Key) {
        if let i = place[key] {
            inOrder[i].1.append(value)
        } else {
            place[key] = inOrder.count
            inOrder.append((key, [value]))
        }
    }
}

private struct Objects {
    var registers = Groups<String, TimedOperation<RegisterModel.Input, RegisterModel.Output>>()
    var texts = Groups<String, TimedOperation<TextModel.Input, TextModel.Output>>()
    var leases = Groups<String, TimedOperation<LeaseModel.Input, LeaseModel.Output>>()
    var jobs = Groups<UInt64, TimedOperation<JobModel.Input, JobModel.Output>>()
    /// Ids and numbers that do not belong together, answers that do not fit the question.
    var contradictions: [String] = []
    private var idOfJob: [UInt64: UInt64] = [:]
    private var jobOfID: [UInt64: UInt64] = [:]

    mutating func add(_ operation: HistoryOperation) {
        let answer: HistoryAnswer?
        let completed: Int64
        switch operation.end {
        case .refused: return
        case .unknown: (answer, completed) = (nil, .max)
        case .answered(let given, let time): (answer, completed) = (given, time)
        }
        func timed<Input, Output>(_ input: Input, _ output: Output?) -> TimedOperation<Input, Output> {
            TimedOperation(input, output, invoked: operation.invoked, completed: completed)
        }
        switch (operation.call, answer) {
        case (.register(let key, let input), nil): registers.add(timed(input, nil), to: key)
        case (.register(let key, let input), .register(let output)?): registers.add(timed(input, output), to: key)
        case (.text(let key, let input), nil): texts.add(timed(input, nil), to: key)
        case (.text(let key, let input), .text(let output)?): texts.add(timed(input, output), to: key)
        case (.lease(let key, let input), nil): leases.add(timed(input, nil), to: key)
        case (.lease(let key, let input), .lease(let output)?): leases.add(timed(input, output), to: key)
        case (.jobs(let call), nil): addJobs(call, nil, timed)
        case (.jobs(let call), .jobs(let output)?): addJobs(call, output, timed)
        default: contradictions.append("\(operation.call) was answered with \(operation.end)")
        }
    }

    private mutating func addJobs(
        _ call: HistoryCall.JobCall, _ answer: HistoryAnswer.JobAnswer?,
        _ timed: (JobModel.Input, JobModel.Output?) -> TimedOperation<JobModel.Input, JobModel.Output>
    ) {
        var plain: JobModel.Output?
        if case .plain(let output)? = answer { plain = output }
        switch (call, answer) {
        case (.put(let puts), nil), (.put(let puts), .inserted?):
            for (i, put) in puts.enumerated() {
                if case .inserted(let ids)? = answer {
                    guard ids.count == puts.count else {
                        return contradictions.append("a put of \(puts.count) jobs made \(ids.count)")
                    }
                    pair(put.job, id: ids[i])
                }
                let input = JobModel.Input.put(
                    delayMilliseconds: put.delayMilliseconds, ttrMilliseconds: put.ttrMilliseconds)
                jobs.add(timed(input, answer == nil ? nil : .done), to: put.job)
            }
        // Whom it took is not known; and a job that is taken and not used is one that waits.
        case (.reserve, nil): break
        case (.reserve(_, let count), .reserved(let taken)?):
            if taken.count > count { contradictions.append("a reserve of \(count) got \(taken.count) jobs") }
            for reservation in taken {
                pair(reservation.job, id: reservation.id)
                jobs.add(timed(.take(lease: reservation.lease), .done), to: reservation.job)
            }
        case (.delete(let job, let lease), _) where answer == nil || plain != nil:
            jobs.add(timed(.delete(lease: lease), plain), to: job)
        case (.release(let job, let lease, let delay), _) where answer == nil || plain != nil:
            jobs.add(timed(.release(lease: lease, delayMilliseconds: delay), plain), to: job)
        case (.touch(let job, let lease), _) where answer == nil || plain != nil:
            jobs.add(timed(.touch(lease: lease), plain), to: job)
        case (.look(let job), _) where answer == nil || plain != nil: jobs.add(timed(.look, plain), to: job)
        default: contradictions.append("\(call) was answered with \(answer.map { "\($0)" } ?? "nothing")")
        }
    }

    private mutating func pair(_ job: UInt64, id: UInt64) {
        let known = idOfJob.updateValue(id, forKey: job) ?? id
        let other = jobOfID.updateValue(job, forKey: id) ?? job
        if known != id { contradictions.append("job \(job) has the ids \(known) and \(id)") }
        if other != job { contradictions.append("the id \(id) is that of the jobs \(other) and \(job)") }
    }
}
