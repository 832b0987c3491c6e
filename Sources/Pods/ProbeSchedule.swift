// When a container's probes are due and what their answers add up to (Kubernetes' meaning of the thresholds: that many in a
// row). One probe of a kind is under way at a time.
import Model

/// Kubernetes' three: has it started, does it live, may it get work.
public enum ProbeKind: String, Hashable, Sendable, CaseIterable {
    case startup, liveness, readiness
}

struct ProbeSchedule: Hashable, Sendable {
    enum Verdict: Hashable, Sendable { case undecided, success, failure }

    let probe: Probe
    /// When it is due next; nil while it is under way, and before its turn.
    private(set) var due: MonotonicTime?
    private var lastDue = MonotonicTime.zero
    private var successes = 0
    private var failures = 0

    init(_ probe: Probe) { self.probe = probe }

    /// From when the container ran; the first one is never in the past.
    mutating func begin(startedAt: MonotonicTime, now: MonotonicTime) { due = max(now, startedAt + probe.initialDelay) }

    /// True if it shall be sent now.
    mutating func take(now: MonotonicTime) -> Bool {
        guard let at = due, at <= now else { return false }
        lastDue = at
        due = nil
        return true
    }

    mutating func answer(_ success: Bool, now: MonotonicTime) -> Verdict {
        due = max(now, lastDue + max(probe.period, .milliseconds(10)))
        if success {
            failures = 0
            successes = min(successes + 1, probe.successThreshold)
            return successes >= probe.successThreshold ? .success : .undecided
        }
        successes = 0
        failures = min(failures + 1, probe.failureThreshold)
        return failures >= probe.failureThreshold ? .failure : .undecided
    }
}
