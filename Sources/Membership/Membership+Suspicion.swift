// From doubt to death. Silence makes a member suspect for a time that shrinks with each further accuser (Lifeguard); proof
// that its process is gone (refused datagrams, a refused stream, another process at its address) is checked twice within
// `evidenceDelay` and then suffices without the wait: a frozen or cut-off member never refuses, so it keeps its full time.
import Model

/// A member's time as a suspect.
struct Suspicion: Hashable, Sendable {
    var start: MonotonicTime
    var deadline: MonotonicTime
    /// Distinct, in the order in which they came; the first is not a confirmation.
    var accusers: [UInt64]
    var floor: TimeSpan
    var ceiling: TimeSpan
    /// How many confirmations shrink the time to the floor; 0 starts there.
    var needed: Int

    /// The suspect has been asked once more, shortly before the verdict.
    var askedAgain = false
    /// How long before the deadline that is.
    var warning: TimeSpan

    var nextAction: MonotonicTime { askedAgain ? deadline : deadline - warning }

    /// Lifeguard: max(floor, ceiling − (ceiling − floor)·ln(c+1)/ln(k+1)), the logarithms as thousandths.
    mutating func updateDeadline() {
        let shares: [[Int]] = [[1000], [0, 1000], [0, 631, 1000], [0, 500, 792, 1000]]
        let row = shares[min(max(0, needed), 3)]
        let share = row[min(accusers.count - 1, row.count - 1)]
        let range = max(0, ceiling.nanoseconds - floor.nanoseconds)
        deadline = start + TimeSpan(nanoseconds: ceiling.nanoseconds - range / 1000 * Int64(share))
        if share == 1000 { deadline = start + floor }
    }

    mutating func shift(by lag: TimeSpan) {
        start = start + lag
        deadline = deadline + lag
    }
}

/// What speaks for the end of a member's process.
struct Proof: Hashable, Sendable {
    /// Refusals that this node saw itself; the first, and one per check.
    var refusals: Int
    /// Others that were refused too.
    var reporters: [UInt64] = []
    var checksDone = 0
    var nextCheck: MonotonicTime
    var deadline: MonotonicTime
    /// A refusal counts once per check, however many datagrams were refused at that moment.
    var awaitsRefusal = false

    var nextAction: MonotonicTime { min(nextCheck, deadline) }
    /// Twice seen by this node, or by three.
    var suffices: Bool { refusals >= 2 || refusals + reporters.count >= 3 }

    mutating func shift(by lag: TimeSpan) {
        if nextCheck != .distantFuture { nextCheck = nextCheck + lag }
        deadline = deadline + lag
    }
}

extension Membership {
    /// Keeps the list of those with timers true.
    mutating func watch(_ short: UInt64) {
        let isWatched = peer(short).map { $0.suspicion != nil || $0.proof != nil } ?? false
        var low = 0
        var high = watched.count
        while low < high {
            let middle = (low + high) / 2
            if watched[middle] < short { low = middle + 1 } else { high = middle }
        }
        let present = low < watched.count && watched[low] == short
        if isWatched && !present { watched.insert(short, at: low) }
        if !isWatched && present { watched.remove(at: low) }
    }

    /// `accuser` got no answer. The first accusation makes a member suspect, each further one by somebody else shortens it.
    mutating func suspect(_ short: UInt64, accuser: UInt64, evidence: Evidence, now: MonotonicTime) {
        guard let index = index(of: short), peers[index].member.state.isPresent else { return }
        let incarnation = peers[index].member.incarnation
        let record = Record.suspect(subject: short, incarnation: incarnation, accuser: accuser, evidence: evidence)
        if var suspicion = peers[index].suspicion {
            guard !suspicion.accusers.contains(accuser), suspicion.accusers.count <= suspicion.needed else { return }
            suspicion.accusers.append(accuser)
            suspicion.updateDeadline()
            peers[index].suspicion = suspicion
            broadcast(record, now: now)
            return
        }
        // Nobody but the two: nobody could confirm. An unwell node gives others more time, whatever they seem to do.
        let needed = max(0, min(options.suspicionConfirmations, presentCount - 2))
        let floor = min(options.suspicionFloor * healthMultiplier, options.suspicionCeiling)
        var suspicion = Suspicion(
            start: now, deadline: now, accusers: [accuser], floor: floor, ceiling: options.suspicionCeiling,
            needed: needed,
            warning: min(options.probeTimeout, floor / 2))
        suspicion.updateDeadline()
        var member = peers[index].member
        member.state = .suspect
        let proof = peers[index].proof
        replace(index, with: member, now: now)
        peers[index].suspicion = suspicion
        peers[index].proof = proof
        watch(short)
        emit(.suspect, member)
        broadcast(record, now: now)
    }

    /// Suspicions that have run out, and proofs that are due for a check or a verdict.
    mutating func runWatched(now: MonotonicTime) {
        for short in watched {
            guard let index = index(of: short) else { continue }
            if var proof = peers[index].proof, proof.nextAction <= now {
                if proof.deadline <= now {
                    peers[index].proof = nil
                    watch(short)
                    if proof.suffices {
                        declareDead(short, evidence: .refused, now: now)
                        continue
                    }
                } else {
                    proof.checksDone += 1
                    proof.nextCheck = proof.checksDone < 2 ? now + options.evidenceDelay / 3 : .distantFuture
                    proof.awaitsRefusal = true
                    peers[index].proof = proof
                    check(peers[index], askOthers: proof.checksDone == 1, now: now)
                }
            }
            guard let suspicion = peers[index].suspicion, suspicion.nextAction <= now else { continue }
            if suspicion.deadline <= now {
                declareDead(short, evidence: .silence, now: now)
            } else {
                // Its refutation may have been told as often as it is told and missed this node: the ping carries the
                // accusation, which it answers.
                peers[index].suspicion?.askedAgain = true
                ping(short, at: peers[index].member.address, purpose: .check, timeout: options.probeInterval, now: now)
            }
        }
    }

    mutating func declareDead(_ short: UInt64, evidence: Evidence, now: MonotonicTime) {
        guard let member = peer(short)?.member, member.state.isPresent else { return }
        applyDead(
            short, incarnation: member.incarnation, accuser: me.id.short, evidence: evidence, from: me.id.short,
            at: me.address, now: now)
    }

    // MARK: Evidence

    /// This node saw `weight` refusals at once: a refused datagram is one, a broken and refused stream two.
    mutating func refusedByTarget(_ short: UInt64, weight: Int, now: MonotonicTime) {
        guard isActive, let index = index(of: short), peers[index].member.state.isPresent else { return }
        if var proof = peers[index].proof {
            guard proof.awaitsRefusal || weight > 1 || proof.refusals == 0 else { return }
            proof.awaitsRefusal = false
            proof.refusals += weight
            peers[index].proof = proof
            return
        }
        startProof(index, refusals: weight, reporter: nil, now: now)
    }

    private mutating func startProof(_ index: Int, refusals: Int, reporter: UInt64?, now: MonotonicTime) {
        peers[index].proof = Proof(
            refusals: refusals, reporters: reporter.map { [$0] } ?? [], nextCheck: now + options.evidenceDelay / 4,
            deadline: now + options.evidenceDelay)
        watch(peers[index].short)
    }

    mutating func processDied(_ short: UInt64, now: MonotonicTime) { refusedByTarget(short, weight: 2, now: now) }

    /// A member answered, to this node or to another: its process lives.
    mutating func clearProof(_ short: UInt64) {
        guard let index = index(of: short), peers[index].proof != nil else { return }
        peers[index].proof = nil
        watch(short)
    }

    mutating func addressRefused(_ address: SocketAddress, now: MonotonicTime) {
        // Whoever asked for a ping there is told; that this node saw it for another is no evidence of its own.
        var relayed = false
        var rest: [Outstanding] = []
        for item in outstanding {
            if case .relay(let requester, let requesterAddress, let theirs, _) = item.purpose, item.address == address {
                send(.refusal(sequence: theirs, target: item.target), to: requester, at: requesterAddress)
                relayed = true
            } else {
                rest.append(item)
            }
        }
        outstanding = rest
        if relayed { return }
        let found = peers.filter { $0.member.address == address && $0.member.state.isPresent }.map(\.short)
        for short in found { refusedByTarget(short, weight: 1, now: now) }
    }

    mutating func refusalReported(_ sequence: UInt64, target: UInt64, by reporter: UInt64, now: MonotonicTime) {
        guard isActive, let position = outstanding.firstIndex(where: { $0.sequence == sequence }),
            outstanding[position].target == target, outstanding[position].asked.contains(reporter),
            let index = index(of: target), peers[index].member.state.isPresent
        else { return }
        if !outstanding[position].nacks.contains(reporter) { outstanding[position].nacks.append(reporter) }
        if peers[index].proof == nil {
            startProof(index, refusals: 0, reporter: reporter, now: now)
        } else if peers[index].proof?.reporters.contains(reporter) == false {
            peers[index].proof?.reporters.append(reporter)
        }
    }

    /// Another process lives at the address at which `asked` was pinged: `asked` does not.
    mutating func otherProcessAnswered(_ sequence: UInt64, asked: UInt64, now: MonotonicTime) {
        guard let position = outstanding.firstIndex(where: { $0.sequence == sequence }),
            outstanding[position].target == asked
        else {
            return
        }
        let item = outstanding[position]
        if case .relay(let requester, let requesterAddress, let theirs, _) = item.purpose {
            outstanding.remove(at: position)
            send(.refusal(sequence: theirs, target: asked), to: requester, at: requesterAddress)
            return
        }
        if case .retryDead = item.purpose {
            outstanding.remove(at: position)
            return
        }
        // A member that has moved is not gone: only its present address counts.
        guard peer(asked)?.member.address == item.address else { return }
        refusedByTarget(asked, weight: 1, now: now)
    }
}
