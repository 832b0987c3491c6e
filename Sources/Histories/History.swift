// What clients did and saw, in the words of the models: recorded while they run, checked at the end, written to files.

/// What a client asked for.
public enum HistoryCall: Hashable, Sendable {
    case register(key: String, RegisterModel.Input)
    case text(key: String, TextModel.Input)
    case lease(key: String, LeaseModel.Input)
    case jobs(JobCall)

    /// A job goes by a number that its producer chose and put into its body, unique in the whole history, because a producer
    /// that got no answer does not know the job's id.
    public enum JobCall: Hashable, Sendable {
        case put([Put])
        case reserve(tubes: [String], count: Int)
        case delete(job: UInt64, lease: UInt64)
        case release(job: UInt64, lease: UInt64, delayMilliseconds: UInt64)
        case touch(job: UInt64, lease: UInt64)
        case look(job: UInt64)
    }

    public struct Put: Hashable, Sendable {
        public var job: UInt64
        public var delayMilliseconds: UInt64
        public var ttrMilliseconds: UInt64
        public init(job: UInt64, delayMilliseconds: UInt64, ttrMilliseconds: UInt64) {
            self.job = job
            self.delayMilliseconds = delayMilliseconds
            self.ttrMilliseconds = ttrMilliseconds
        }
    }
}

/// What a client was told.
public enum HistoryAnswer: Hashable, Sendable {
    case register(RegisterModel.Output)
    case text(TextModel.Output)
    case lease(LeaseModel.Output)
    case jobs(JobAnswer)

    public enum JobAnswer: Hashable, Sendable {
        /// The ids, in the order of the put.
        case inserted([UInt64])
        case reserved([Reservation])
        case plain(JobModel.Output)
    }

    public struct Reservation: Hashable, Sendable {
        public var job: UInt64
        public var id: UInt64
        public var lease: UInt64
        public init(job: UInt64, id: UInt64, lease: UInt64) {
            self.job = job
            self.id = id
            self.lease = lease
        }
    }
}

/// One operation of one client, from its asking to its end. However often the client library sent it, it is one.
public struct HistoryOperation: Hashable, Sendable {
    public enum End: Hashable, Sendable {
        case answered(HistoryAnswer, at: Int64)
        /// Certainly not carried out: it was never sent, or refused before anything was done.
        case refused(at: Int64)
        /// Nobody knows whether it was or will be carried out. `at`: when the client gave up.
        case unknown(at: Int64?)
    }

    public var client: Int
    public var call: HistoryCall
    /// Nanoseconds; see ``History/isTimed``.
    public var invoked: Int64
    public var end: End

    public init(client: Int, call: HistoryCall, invoked: Int64, end: End) {
        self.client = client
        self.call = call
        self.invoked = invoked
        self.end = end
    }
}

/// Operations in the order in which they were asked.
public struct History: Hashable, Sendable {
    public var operations: [HistoryOperation] = []
    /// True if times are nanoseconds of one clock, so that leases and times to run can be checked; false if they only tell
    /// the order.
    public var isTimed = true
    /// A reservation may end before its time to run is over: see docs/simulation.md, Histories.
    public var mayGiveJobsBack = false
    /// By how many nanoseconds leases and times to run may end early: rounding to milliseconds, and clocks that differ.
    public var slack: Int64 = 2_000_000

    public init() {}
}

/// Collects a history while it happens. A value for one thread; take several and ``merged(with:)`` them if clients have threads
/// of their own and one monotonic clock.
public struct HistoryRecorder: Sendable {
    public private(set) var history = History()

    public init() {}

    /// A client asks. The number that is returned names the operation until its end.
    public mutating func invoke(client: Int, _ call: HistoryCall, at time: Int64) -> Int {
        history.operations.append(
            HistoryOperation(client: client, call: call, invoked: time, end: .unknown(at: nil)))
        return history.operations.count - 1
    }

    public mutating func answer(_ operation: Int, _ answer: HistoryAnswer, at time: Int64) {
        history.operations[operation].end = .answered(answer, at: time)
    }

    /// Only if it is certain that nothing was or will be done.
    public mutating func refuse(_ operation: Int, at time: Int64) {
        history.operations[operation].end = .refused(at: time)
    }

    /// The client gives up, or does not understand the answer. An operation that never ends counts as unknown too. So does an
    /// acquire that waited and got "held" at the end of its wait: that answer is not the command's last word, for a copy that is
    /// late on its way may still be carried out, and it is not a linearizable read either.
    public mutating func giveUp(_ operation: Int, at time: Int64) {
        history.operations[operation].end = .unknown(at: time)
    }
}

extension History {
    /// Both histories, of clients with one clock.
    public func merged(with other: History) -> History {
        var result = self
        result.operations += other.operations
        result.isTimed = isTimed && other.isTimed
        result.operations.sort { ($0.invoked, $0.client) < ($1.invoked, $1.client) }
        return result
    }
}
