// The cluster side of an election: stands for one name until it is stopped. Whatever it says of itself rests on when its
// request was *sent* (``ElectionView/deadline``), so that a slow answer or a stopped process shortens its term, never the
// other way round.
//
//      ┌────────── lost, term over ◀─────────┐
//      ▼                                     │
//   standing ──granted──▶ leading ──renew every ttl/3──┘
//      ▲  │ held: told who leads, stand again          │
//      │  └── waits at the cluster up to ttl/3         │
//      └────── after a pause ◀── resigned ◀────────────┘
import EventLoop
import Leases
import Model

public final class ElectionCampaign: ElectionSource {
    private enum State {
        case idle
        case standing
        case leading(token: UInt64)
        /// Has given the lease up, and lets others go first until then.
        case resting
        case stopped
    }

    private let loop: EventLoop
    private let service: any LeaseService
    private let key: String
    private let identity: ContainerIdentity
    private let ttl: TimeSpan
    private let report: Report
    private let timer: LoopTimer
    private let expiry: LoopTimer
    private var generator: SeededGenerator
    private var state = State.idle
    /// Grows with each change of state: answers to older questions are dropped.
    private var era: UInt64 = 0
    /// Unique to this campaign: an acquire sent again by it is no second one.
    private var holder = ""
    /// Renewals that were not answered, and when the first of them was sent.
    private var outstanding = 0
    private var outstandingSince = MonotonicTime.zero
    private var backOff: BackOff
    private var saidUnreachable = false

    public private(set) var current: ElectionView?
    public var onChange: (() -> Void)?
    /// The own term is over without having been given up: the lease may pass on from a little later than now.
    public var onTermOver: (() -> Void)?

    /// `name` is the election's; `ttl` from 100 ms to an hour.
    public init(
        loop: EventLoop, service: any LeaseService, name: String, identity: ContainerIdentity, ttl: TimeSpan,
        seed: UInt64,
        report: @escaping Report = reportToStandardError
    ) {
        self.loop = loop
        self.service = service
        key = LeaseMachine.electionPrefix + name
        self.identity = identity
        self.ttl = ttl
        self.report = report
        timer = LoopTimer(loop: loop)
        expiry = LoopTimer(loop: loop)
        generator = SeededGenerator(seed: seed)
        backOff = BackOff(first: .milliseconds(50), longest: min(ttl / 3, .seconds(2)))
    }

    /// True while this process may say that it leads.
    public var leads: Bool { current.map { $0.isSelf && loop.now < $0.deadline } ?? false }

    public func start() {
        guard case .idle = state else { return }
        newCampaign()
    }

    /// Gives up what is held; `done` is called when the cluster knows, or after two seconds.
    public func stop(_ done: @escaping () -> Void) {
        if case .leading(let token) = state {
            enter(.stopped)
            show(nil)
            let patience = LoopTimer(loop: loop)
            var once: (() -> Void)? = done
            func end() {
                patience.close()
                let done = once
                once = nil
                done?()
            }
            patience.start(after: .seconds(2)) { end() }
            service.lease(.release(key: key, token: token), wait: nil) { _ in end() }
        } else {
            enter(.stopped)
            show(nil)
            done()
        }
        timer.close()
        expiry.close()
    }

    public func resign(_ done: @escaping (CoterieError?) -> Void) {
        guard case .leading(let token) = state else { return done(CoterieError(.conflict, "this pod does not lead")) }
        enter(.resting)
        show(nil)
        service.lease(.release(key: key, token: token), wait: nil) { [weak self] result in
            switch result {
            case .success(.released), .success(.lost): done(nil)
            case .success(let other): done(CoterieError(.failed, "unexpected answer to a release: \(other)"))
            case .failure(let error): done(error)
            }
            guard let self, case .resting = state else { return }
            timer.start(after: ttl / 2) { [weak self] in self?.newCampaign() }
        }
        // If the answer never comes the lease ends by itself.
        timer.start(after: ttl + ttl / 2) { [weak self] in self?.newCampaign() }
    }

    public func check(token: UInt64, _ done: @escaping (Result<Bool, CoterieError>) -> Void) {
        service.lease(.check(key: key, token: token), wait: nil) { result in
            switch result {
            case .success(.valid): done(.success(true))
            case .success(.lost): done(.success(false))
            case .success(.refused(let code, let message)): done(.failure(CoterieError(code, message)))
            case .success(let other): done(.failure(CoterieError(.failed, "unexpected answer to a check: \(other)")))
            case .failure(let error): done(.failure(error))
            }
        }
    }

    // MARK: - Standing

    private func enter(_ next: State) {
        state = next
        era += 1
        outstanding = 0
        timer.stop()
    }

    private func newCampaign() {
        if case .stopped = state { return }
        holder = "\(identity.name)/" + String(generator.next(), radix: 16)
        enter(.standing)
        stand()
    }

    private func stand() {
        guard case .standing = state else { return }
        let era = era
        let sent = loop.now
        service.lease(
            .acquire(key: key, holder: holder, info: identity.info, ttlMilliseconds: UInt64(max(ttl.milliseconds, 0))),
            wait: ttl / 3
        ) { [weak self] result in
            guard let self, era == self.era else { return }
            stood(result, sent: sent)
        }
    }

    private func stood(_ result: Result<LeaseResult, CoterieError>, sent: MonotonicTime) {
        switch result {
        case .success(.granted(let token, _)):
            reached()
            enter(.leading(token: token))
            show(
                ElectionView(
                    holder: identity.name, isSelf: true, token: token,
                    deadline: ElectionView.deadline(sent: sent, ttl: ttl)))
            // It may have waited: the term is lengthened at once then.
            if loop.now - sent > ttl / 8 { renew() } else { renewLater(ttl / 3) }
        case .success(.held(let view)):
            reached()
            let answered = loop.now
            if let holder = view.holder, view.expiresInMilliseconds > 0 {
                let deadline = min(
                    answered + .milliseconds(Int64(clamping: view.expiresInMilliseconds)),
                    answered + TimeSpan(nanoseconds: ttl.nanoseconds / 8 * 7))
                show(
                    ElectionView(
                        holder: holder.info["name"] ?? holder.id, isSelf: false, token: view.token, deadline: deadline))
            } else {
                show(nil)
            }
            // A cluster that does not wait is not asked without pause.
            let asked = answered - sent
            if asked < ttl / 6 {
                timer.start(after: min(ttl / 6, .seconds(1))) { [weak self] in self?.stand() }
            } else {
                stand()
            }
        case .success(.refused(let code, let message)): unreachable(CoterieError(code, message))
        case .success(let other): unreachable(CoterieError(.failed, "unexpected answer to an acquire: \(other)"))
        case .failure(let error): unreachable(error)
        }
    }

    private func reached() {
        if saidUnreachable { report("elector: the cluster answers again") }
        saidUnreachable = false
        backOff.reset()
    }

    private func unreachable(_ error: CoterieError) {
        if !saidUnreachable { report("elector: \(error); tried again") }
        saidUnreachable = true
        timer.start(after: backOff.next(using: &generator)) { [weak self] in self?.stand() }
    }

    // MARK: - Leading

    private func renewLater(_ delay: TimeSpan) { timer.start(after: delay) { [weak self] in self?.renew() } }

    /// Sends a renewal, whether the one before was answered or not: one that hangs must not cost the term.
    private func renew() {
        guard case .leading(let token) = state else { return }
        renewLater(outstanding > 0 ? ttl / 6 : ttl / 3)
        let sent = loop.now
        // What was not answered for so long is of no use any more.
        if outstanding > 0 && sent - outstandingSince > ttl * 2 { outstanding = 0 }
        guard outstanding < 4 else { return }
        if outstanding == 0 { outstandingSince = sent }
        outstanding += 1
        let era = era
        service.lease(.renew(key: key, token: token), wait: nil) { [weak self] result in
            guard let self, era == self.era else { return }
            outstanding = max(outstanding - 1, 0)
            renewed(result, sent: sent, token: token)
        }
    }

    private func renewed(_ result: Result<LeaseResult, CoterieError>, sent: MonotonicTime, token: UInt64) {
        switch result {
        case .success(.renewed), .success(.granted):
            reached()
            let deadline = ElectionView.deadline(sent: sent, ttl: ttl)
            // Answers may overtake each other.
            guard deadline > current?.deadline ?? .zero else { return }
            show(ElectionView(holder: identity.name, isSelf: true, token: token, deadline: deadline))
        case .success(.lost):
            report("elector: the lease with token \(token) is lost")
            let wasLeading = current?.isSelf ?? false
            enter(.standing)
            show(nil)
            if wasLeading { onTermOver?() }
            newCampaign()
        case .success(.refused(let code, let message)): failed(CoterieError(code, message))
        case .success(let other): failed(CoterieError(.failed, "unexpected answer to a renewal: \(other)"))
        case .failure(let error): failed(error)
        }
    }

    private func failed(_ error: CoterieError) {
        if !saidUnreachable { report("elector: cannot renew: \(error); tried again") }
        saidUnreachable = true
        renewLater(backOff.next(using: &generator))
    }

    private func show(_ view: ElectionView?) {
        current = view
        if let view, view.isSelf {
            expiry.start(after: max(view.deadline - loop.now, .zero)) { [weak self] in self?.expired() }
        } else {
            expiry.stop()
        }
        onChange?()
    }

    /// No renewal has come through in time. The lease may still be ours: renewing goes on, and brings the same token back.
    private func expired() {
        guard let view = current, view.isSelf, loop.now >= view.deadline else { return }
        report("elector: leadership is in doubt: no renewal was answered in time")
        current = nil
        onChange?()
        onTermOver?()
    }
}
