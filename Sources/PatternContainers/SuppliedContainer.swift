// What every container that Coterie supplies is to the command line: made, started, stopped.
import Model

/// One running container. Confined to its loop.
public protocol SuppliedContainer: AnyObject {
    /// After an error nothing runs.
    func start() throws(CoterieError)
    /// Ends in an orderly way, within the container's own grace period; called again, it ends at once where that makes a
    /// difference.
    func stop(_ done: @escaping () -> Void)
    /// Called once when it has ended, of itself or by ``stop(_:)`` (then before `done`), with the exit code for the process.
    var onExit: ((Int32) -> Void)? { get set }
}
