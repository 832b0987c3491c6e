// What clients of a cluster saw, and the judge of it. The record is the clients' own: nothing in it comes from a node's log or
// disk. The rules follow from what is promised (docs/LIMITS.md), so a history that breaks one is not linearizable, or lost or
// doubled something. Times are nanoseconds of the monotonic clock of the test's process.
import Foundation

/// One question of one client, from the moment it was asked to its answer.
public struct FleetOperation: Sendable {
    public enum Kind: Hashable, Sendable {
        /// A job whose body nobody else puts.
        case put(body: String)
        /// How many jobs were ever put into the tube.
        case total
        /// One job by its id.
        case look(id: UInt64)
        /// The one lease that all contend for, and its end. A holder is unique to one client.
        case acquire(holder: String)
        case release(token: UInt64)
    }

    public enum Answer: Hashable, Sendable {
        case inserted(UInt64)
        case total(Int)
        case job(body: String)
        case noJob
        case granted(token: UInt64)
        /// By somebody else.
        case held(token: UInt64, holder: String)
        case released
        case notHeld(newest: UInt64)
        /// Nothing was done, and nothing will be.
        case refused(String)
        /// It may have been done, now or later.
        case unknown(String)
    }

    public var client: Int
    public var kind: Kind
    public var begun: UInt64
    public var ended: UInt64
    public var answer: Answer

    public init(client: Int, kind: Kind, begun: UInt64, ended: UInt64, answer: Answer) {
        self.client = client
        self.kind = kind
        self.begun = begun
        self.ended = ended
        self.answer = answer
    }
}

/// A job as it was found at the end.
public struct FoundJob: Hashable, Sendable {
    public var id: UInt64
    public var body: String

    public init(id: UInt64, body: String) {
        self.id = id
        self.body = body
    }
}

public struct FleetRecord: Sendable {
    public var operations: [FleetOperation]

    public init(_ operations: [FleetOperation]) { self.operations = operations }

    /// Puts that were acknowledged: id, body and times.
    private struct Put {
        var id: UInt64
        var body: String
        var begun: UInt64
        /// `UInt64.max` if nobody was told.
        var ended: UInt64
    }

    public var acknowledged: Int {
        operations.count { if case .inserted = $0.answer { true } else { false } }
    }
    public var unknown: Int { operations.count { if case .unknown = $0.answer { true } else { false } } }
    public var refused: Int { operations.count { if case .refused = $0.answer { true } else { false } } }
    public var grants: Int { operations.count { if case .granted = $0.answer { true } else { false } } }
    public var reads: Int {
        operations.count {
            switch $0.answer {
            case .total, .job: true
            default: false
            }
        }
    }

    public var summary: String {
        "\(acknowledged) puts acknowledged, \(reads) reads, \(grants) grants, \(refused) refused, \(unknown) unknown"
    }

    /// The longest time between two acknowledged puts, in seconds: how long nothing could be written.
    public var longestGap: Double {
        let ends = operations.compactMap { operation -> UInt64? in
            if case .inserted = operation.answer { operation.ended } else { nil }
        }.sorted()
        return Double(zip(ends, ends.dropFirst()).map { $1 - $0 }.max() ?? 0) / 1e9
    }

    /// What is wrong with the record, given all jobs of the tube at the end; empty if nothing is.
    public func violations(found: [FoundJob]) -> [String] {
        var wrong: [String] = []
        let puts = checkJobs(found, &wrong)
        checkOrder(puts, &wrong)
        checkReads(puts, &wrong)
        checkLeases(&wrong)
        return wrong
    }

    /// Every acknowledged job is there once, under its id and with its body; one of unknown outcome at most once; a refused one,
    /// or one that nobody put, never. Returns the puts that took place.
    private func checkJobs(_ found: [FoundJob], _ wrong: inout [String]) -> [Put] {
        var places: [String: [UInt64]] = [:]
        for job in found { places[job.body, default: []].append(job.id) }
        for (id, same) in Dictionary(grouping: found, by: \.id) where same.count > 1 {
            wrong.append("job \(id) was found \(same.count) times")
        }
        var puts: [Put] = []
        for operation in operations {
            guard case .put(let body) = operation.kind else { continue }
            let there = places.removeValue(forKey: body) ?? []
            if there.count > 1 { wrong.append("\(body) was put \(there.count) times: jobs \(there)") }
            switch operation.answer {
            case .inserted(let id):
                if there.isEmpty {
                    wrong.append("acknowledged job \(id) (\(body)) is lost")
                } else if !there.contains(id) {
                    wrong.append("acknowledged job \(id) (\(body)) is job \(there)")
                }
                puts.append(Put(id: id, body: body, begun: operation.begun, ended: operation.ended))
            case .unknown:
                if let id = there.first {
                    puts.append(Put(id: id, body: body, begun: operation.begun, ended: .max))
                }
            case .refused(let why):
                if !there.isEmpty { wrong.append("\(body) was refused (\(why)), and is there as job \(there)") }
            default: wrong.append("a put was answered with \(operation.answer)")
            }
        }
        for (body, there) in places { wrong.append("nobody put \(body), found as job \(there)") }
        return puts
    }

    /// A put that began after another had ended has the larger id: ids are given in the log's order.
    private func checkOrder(_ puts: [Put], _ wrong: inout [String]) {
        let byEnd = puts.sorted { $0.ended < $1.ended }
        var next = 0
        var largest: Put?
        for put in puts.sorted(by: { $0.begun < $1.begun }) {
            while next < byEnd.count, byEnd[next].ended < put.begun {
                if byEnd[next].id > largest?.id ?? 0 { largest = byEnd[next] }
                next += 1
            }
            if let largest, largest.id >= put.id {
                wrong.append("job \(put.id) (\(put.body)) was put after job \(largest.id) was acknowledged")
            }
        }
    }

    /// Reads see all that was acknowledged before they began, and nothing that had not begun when they ended; and they do not
    /// go back.
    private func checkReads(_ puts: [Put], _ wrong: inout [String]) {
        let ends = puts.map(\.ended).sorted()
        let begins = puts.map(\.begun).sorted()
        let known = Dictionary(puts.map { ($0.id, $0) }, uniquingKeysWith: { first, _ in first })
        var totals: [(begun: UInt64, ended: UInt64, total: Int)] = []
        for operation in operations {
            switch (operation.kind, operation.answer) {
            case (.total, .total(let total)):
                let least = count(ends, below: operation.begun)
                let most = count(begins, below: operation.ended)
                if total < least {
                    wrong.append("client \(operation.client) read \(total) jobs when \(least) were acknowledged")
                }
                if total > most {
                    wrong.append("client \(operation.client) read \(total) jobs when \(most) had been asked for")
                }
                totals.append((operation.begun, operation.ended, total))
            case (.look(let id), .job(let body)):
                if let put = known[id] {
                    if put.body != body { wrong.append("job \(id) read as \(body), put as \(put.body)") }
                } else {
                    wrong.append("job \(id) was read as \(body), and is not there at the end")
                }
            case (.look(let id), .noJob):
                if let put = known[id], put.ended < operation.begun {
                    wrong.append("client \(operation.client) did not find job \(id), which was acknowledged")
                }
            case (.total, .unknown), (.total, .refused), (.look, .unknown), (.look, .refused): break
            case (.total, _), (.look, _): wrong.append("a read was answered with \(operation.answer)")
            default: break
            }
        }
        let byEnd = totals.sorted { $0.ended < $1.ended }
        var next = 0
        var largest = 0
        for read in totals.sorted(by: { $0.begun < $1.begun }) {
            while next < byEnd.count, byEnd[next].ended < read.begun {
                largest = max(largest, byEnd[next].total)
                next += 1
            }
            if read.total < largest { wrong.append("\(read.total) jobs were read after \(largest) had been read") }
        }
    }

    private func count(_ sorted: [UInt64], below limit: UInt64) -> Int {
        var (low, high) = (0, sorted.count)
        while low < high {
            let middle = (low + high) / 2
            if sorted[middle] < limit { low = middle + 1 } else { high = middle }
        }
        return low
    }

    /// One grant of the lease, renewals included.
    private struct Hold {
        var client: Int
        var token: UInt64
        var begun: UInt64
        var granted: UInt64
        /// When its end was asked for; `UInt64.max`: never.
        var until: UInt64
    }

    /// Nobody gets the lease while another holds it for certain, and later tokens are larger. Leases outlive the test: they do
    /// not end by themselves.
    private func checkLeases(_ wrong: inout [String]) {
        struct Key: Hashable {
            var client: Int
            var token: UInt64
        }
        var holds: [Hold] = []
        var known: [Key: Int] = [:]
        for operation in operations.sorted(by: { $0.begun < $1.begun }) {
            switch (operation.kind, operation.answer) {
            case (.acquire, .granted(let token)):
                let key = Key(client: operation.client, token: token)
                if let own = known[key] {
                    // A renewal of what it held already.
                    holds[own].until = .max
                } else {
                    known[key] = holds.count
                    holds.append(
                        Hold(
                            client: operation.client, token: token, begun: operation.begun, granted: operation.ended,
                            until: .max))
                }
            case (.release(let token), let answer):
                guard let own = known[Key(client: operation.client, token: token)] else { continue }
                // Not to hold any more what nobody else could take: a lie.
                if case .notHeld = answer {
                    wrong.append("client \(operation.client) lost the lease of token \(token)")
                }
                holds[own].until = operation.begun
            default: break
            }
        }
        for (token, same) in Dictionary(grouping: holds, by: \.token) where same.count > 1 {
            wrong.append("token \(token) was given twice: to clients \(same.map(\.client))")
        }
        let byGrant = holds.sorted { $0.granted < $1.granted }
        var next = 0
        var newest: Hold?
        var longest: Hold?
        for hold in holds.sorted(by: { $0.begun < $1.begun }) {
            // Those that were granted before this one was asked for.
            while next < byGrant.count, byGrant[next].granted < hold.begun {
                if byGrant[next].token >= newest?.token ?? 0 { newest = byGrant[next] }
                if byGrant[next].until >= longest?.until ?? 0 { longest = byGrant[next] }
                next += 1
            }
            if let newest, newest.token > hold.token {
                wrong.append("token \(hold.token) was given after token \(newest.token)")
            }
            if let longest, hold.granted < longest.until {
                wrong.append("token \(hold.token) was given while \(longest.token) was held")
            }
        }
    }
}
