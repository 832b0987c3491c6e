/// The process exit codes of the public contract (DESIGN 3.1).
public enum ExitCode: Int32, Sendable {
    case done = 0
    case failed = 1
    case badInput = 2
    case noCluster = 3
    case notFound = 4
    case notAllowed = 5
    /// The deadline passed, or the outcome is unknown; the message says which.
    case deadline = 6
    case partial = 7
    /// Coterie's own failure in commands that otherwise exit with the child's code.
    case ownFailure = 125
    case interrupted = 130
}

/// What went wrong, in one line: `coterie: what failed: why (what to do)`. The same value crosses the wire from a node to
/// its client, and decides the exit code.
public struct CoterieError: Error, Hashable, Sendable, CustomStringConvertible {
    public enum Code: String, Sendable, CaseIterable {
        case failed, badInput, noCluster, noLeader, notFound, notAllowed, deadline, outcomeUnknown, partial, conflict
        case tooLarge, busy, unavailable, interrupted
    }

    public var code: Code
    /// What failed and why, without the `coterie:` prefix and without a full stop.
    public var message: String
    /// What to do about it.
    public var hint: String?

    public init(_ code: Code, _ message: String, hint: String? = nil) {
        self.code = code
        self.message = message
        self.hint = hint
    }

    public var exitCode: ExitCode {
        switch code {
        case .failed, .conflict, .busy, .unavailable: .failed
        case .badInput, .tooLarge: .badInput
        case .noCluster, .noLeader: .noCluster
        case .notFound: .notFound
        case .notAllowed: .notAllowed
        case .deadline, .outcomeUnknown: .deadline
        case .partial: .partial
        case .interrupted: .interrupted
        }
    }

    public var description: String { hint.map { "\(message) (\($0))" } ?? message }
}
