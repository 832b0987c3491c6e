// Tries the addresses of a client, round after round, until a node has welcomed it.
import EventLoop
import Model
import Security

/// One search. Calls back once, never after ``cancel()``.
final class ConnectionFinder {
    /// How long a search goes on when nobody answers.
    enum Patience {
        /// Until the moment given; a client that has never found its cluster gives up as soon as nobody listens anywhere.
        case until(MonotonicTime)
        /// As long as the owner likes; nothing is final.
        case forever
    }

    private let loop: EventLoop
    private let book: EndpointBook
    private let key: ClusterKey?
    private let patience: Patience
    private let givesUpOnNobody: Bool
    private var backOff: BackOff
    private var rest: [SocketAddress] = []
    private var current: OpeningConnection?
    private let timer: LoopTimer
    private var done: ((Result<OpenConnection, CoterieError>) -> Void)?
    /// Why the addresses of the last whole round did not work.
    private(set) var failures: [(address: SocketAddress, error: CoterieError)] = []
    private var round: [(address: SocketAddress, failure: OpenFailure)] = []

    init(
        loop: EventLoop, book: EndpointBook, key: ClusterKey?, patience: Patience, givesUpOnNobody: Bool,
        backOff: BackOff,
        done: @escaping (Result<OpenConnection, CoterieError>) -> Void
    ) {
        self.loop = loop
        self.book = book
        self.key = key
        self.patience = patience
        self.givesUpOnNobody = givesUpOnNobody
        self.backOff = backOff
        self.done = done
        timer = LoopTimer(loop: loop)
    }

    /// Begins after `delay`.
    func start(after delay: TimeSpan = .zero) {
        // Also without a delay through the timer: call-backs never come from within the caller's call.
        timer.start(after: delay) { [weak self] in self?.beginRound() }
    }

    func cancel() {
        done = nil
        timer.close()
        current?.cancel()
        current = nil
    }

    private func beginRound() {
        rest = book.inOrder.reversed()
        round = []
        next()
    }

    private func next() {
        guard done != nil else { return }
        guard let address = rest.popLast() else { return endRound() }
        let opening = OpeningConnection(loop: loop, address: address, key: key) { [weak self] result in
            guard let self else { return }
            current = nil
            switch result {
            case .success(let connection):
                book.worked(address)
                finish(.success(connection))
            case .failure(let failure):
                round.append((address, failure))
                next()
            }
        }
        current = opening
        opening.start()
    }

    private func endRound() {
        failures = round.map { ($0.address, $0.failure.error) }
        var delay = backOff.next()
        if case .until(let deadline) = patience {
            // A node that will not have us is a better answer than others that are not there.
            if let final = round.first(where: { $0.failure.isFinal }),
                round.allSatisfy({ $0.failure.isFinal || $0.failure.isNobody })
            {
                return finish(.failure(final.failure.error))
            }
            if round.isEmpty || (givesUpOnNobody && !book.hasAnswered && round.allSatisfy({ $0.failure.isNobody }))
                || loop.now >= deadline
            {
                return finish(.failure(book.noCluster(failures)))
            }
            delay = min(delay, max(.milliseconds(1), deadline - loop.now))
        }
        timer.start(after: delay) { [weak self] in self?.beginRound() }
    }

    private func finish(_ result: Result<OpenConnection, CoterieError>) {
        guard let done else { return }
        cancel()
        done(result)
    }
}

/// Waits that double from 50 ms to one second, each drawn between half and the whole of it, so that clients that lost the
/// same node do not come back at the same moment.
struct BackOff {
    static let first = TimeSpan.milliseconds(50)
    static let longest = TimeSpan.seconds(1)
    private var failures: UInt32 = 0
    private var generator: SeededGenerator

    init(generator: SeededGenerator) { self.generator = generator }

    mutating func reset() { failures = 0 }

    mutating func next() -> TimeSpan {
        let whole = min(BackOff.longest.nanoseconds, BackOff.first.nanoseconds << Int64(min(failures, 10)))
        failures += 1
        return TimeSpan(nanoseconds: whole / 2 + Int64(generator.next() % UInt64(whole / 2)))
    }
}
