// A fleet of recording clients beside a test, and the verdict over what they saw.
import Foundation
import Histories
import TestSupport
import Testing

/// Runs the body beside a fleet and returns the fleet's record. When the body throws, the fleet ends too.
func withFleet(
    _ addresses: [String], plan: FleetPlan = FleetPlan(), _ body: (ClientFleet) async throws -> Void
) async throws -> FleetRecord {
    let fleet = try ClientFleet(addresses, plan: plan)
    do {
        try await body(fleet)
    } catch {
        let record = fleet.record
        _ = try? await fleet.stop()
        throw TestFailure("\(error)\nthe clients had: \(record.summary)\(record.troubles)")
    }
    return try await fleet.stop()
}

/// Holds the record against what is in the cluster: every node must answer with the same number of jobs from its own state, and
/// the jobs must be those that the clients put. Then the linearizability checker looks at the whole history.
func judge(
    _ record: FleetRecord, _ addresses: [String], tube: String = "fleet", location: SourceLocation = #_sourceLocation
)
    async throws
{
    var totals: [Int] = []
    for address in addresses { totals.append(try await FleetEnd.total(address, tube: tube)) }
    let found = try await FleetEnd.drain(try #require(addresses.first), tube: tube)
    #expect(totals.allSatisfy { $0 == found.count }, "\(totals) jobs, \(found.count) found", sourceLocation: location)
    let wrong = record.violations(found: found)
    #expect(wrong.isEmpty, "\(wrong.prefix(10).joined(separator: "\n"))", sourceLocation: location)
    let verdict = record.history.check()
    #expect(verdict.isLinearizable, "\(verdict)", sourceLocation: location)
    print("\(record.summary); \(found.count) jobs found, longest gap \(String(format: "%.3f", record.longestGap)) s")
}

extension FleetRecord {
    /// The refusals and unknown outcomes, for a message.
    var troubles: String {
        var lines: [String] = []
        for operation in operations {
            switch operation.answer {
            case .refused(let why): lines.append("client \(operation.client) \(operation.kind) refused: \(why)")
            case .unknown(let why): lines.append("client \(operation.client) \(operation.kind) unknown: \(why)")
            default: continue
            }
        }
        return lines.prefix(10).map { "\n" + $0.prefix(400) }.joined()
    }

    /// Both fleets worked on one tube.
    static func + (a: FleetRecord, b: FleetRecord) -> FleetRecord { FleetRecord(a.operations + b.operations) }
}
