// How jobs enter and leave their states, what time ends, and which tubes exist.
import Model

extension QueueMachine {
    enum Held {
        case slot(JobStore.Slot)
        case failure(QueueResult)
    }

    func reserved(_ id: UInt64, under lease: UInt64) -> Held {
        guard let slot = store.slot(of: id) else { return .failure(.notFound) }
        guard leases[slot]?.token == lease else { return .failure(.leaseExpired) }
        return .slot(slot)
    }

    // MARK: Leaving and entering states

    /// Takes a job out of the structures of its state; its next state must be entered, or the job removed.
    mutating func leave(_ slot: JobStore.Slot) {
        let tube = Int(store[slot].tube)
        switch store[slot].state {
        case .ready:
            tubeTable[tube]?.ready.remove(slot, in: &store)
            totals.ready -= 1
            if store[slot].priority < Tube.urgentBelow {
                tubeTable[tube]?.urgent -= 1
                totals.urgent -= 1
            }
        case .delayed:
            tubeTable[tube]?.delayed.remove(slot, in: &store)
            timers.remove(slot, in: &store)
            totals.delayed -= 1
        case .buried:
            tubeTable[tube]?.buried.remove(slot, in: &store)
            totals.buried -= 1
        case .reserved:
            timers.remove(slot, in: &store)
            tubeTable[tube]?.reserved -= 1
            totals.reserved -= 1
            if let lease = leases.removeValue(forKey: slot), lease.holder != 0 {
                holders[lease.holder]?.remove(store[slot].id)
                if holders[lease.holder]?.isEmpty == true { holders[lease.holder] = nil }
            }
        }
    }

    mutating func enterReady(_ slot: JobStore.Slot) {
        let tube = Int(store[slot].tube)
        store[slot].state = .ready
        store[slot].deadline = 0
        tubeTable[tube]?.ready.insert(slot, in: &store)
        totals.ready += 1
        if store[slot].priority < Tube.urgentBelow {
            tubeTable[tube]?.urgent += 1
            totals.urgent += 1
        }
        noteReadied(tube)
    }

    mutating func enterDelayed(_ slot: JobStore.Slot, for delay: UInt64) {
        store[slot].state = .delayed
        store[slot].deadline = logTime + delay
        tubeTable[Int(store[slot].tube)]?.delayed.insert(slot, in: &store)
        timers.insert(slot, in: &store)
        totals.delayed += 1
    }

    mutating func enterBuried(_ slot: JobStore.Slot) {
        burialNumber += 1
        store[slot].state = .buried
        store[slot].deadline = burialNumber
        store[slot].buries &+= 1
        tubeTable[Int(store[slot].tube)]?.buried.insert(slot, in: &store)
        totals.buried += 1
    }

    mutating func enterReserved(_ slot: JobStore.Slot, holder: UInt64, token: UInt64) -> ReservedJob {
        let tube = Int(store[slot].tube)
        store[slot].state = .reserved
        store[slot].deadline = logTime + store[slot].ttr
        store[slot].reserves &+= 1
        timers.insert(slot, in: &store)
        tubeTable[tube]?.reserved += 1
        totals.reserved += 1
        leases[slot] = Lease(token: token, holder: holder)
        if holder != 0 { holders[holder, default: []].insert(store[slot].id) }
        let job = store[slot]
        return ReservedJob(
            id: job.id, tube: tubeTable[tube]?.name ?? "", priority: job.priority, ttrMilliseconds: job.ttr,
            lease: token,
            reserves: job.reserves, timeouts: job.timeouts, releases: job.releases, buries: job.buries,
            kicks: job.kicks, body: Array(store.body(of: slot)))
    }

    /// A job whose reservation ended without a decision on it becomes ready, or waits, or is buried if it had all its attempts.
    /// Answers false if it was buried.
    mutating func giveBack(_ slot: JobStore.Slot, delay: UInt64, isFailure: Bool) -> Bool {
        let settings = tubeTable[Int(store[slot].tube)]?.settings ?? TubeSettings()
        if settings.maxAttempts > 0, store[slot].reserves >= settings.maxAttempts {
            enterBuried(slot)
            return false
        }
        let failures = UInt64(store[slot].timeouts) + UInt64(store[slot].releases)
        let wait = delay > 0 ? delay : (isFailure ? settings.backoff(failures: failures) : 0)
        if wait > 0 { enterDelayed(slot, for: wait) } else { enterReady(slot) }
        return true
    }

    /// Deletes a job; its key stays taken to the end of the tube's window. The tube may be unused afterwards.
    mutating func remove(_ slot: JobStore.Slot) {
        leave(slot)
        let tube = Int(store[slot].tube)
        let (id, created) = (store[slot].id, store[slot].created)
        tubeTable[tube]?.bytes -= UInt64(store[slot].body.count)
        if store[slot].hasKey, let key = keyOfJob.removeValue(forKey: slot) {
            let until = created + (tubeTable[tube]?.settings.dedupeMilliseconds ?? 0)
            if until > logTime {
                tubeTable[tube]?.keys[key] = Tube.TakenKey(id: id, until: until)
                windows.insert(WindowEnd(until: until, id: id, tube: tube, key: key))
            } else {
                tubeTable[tube]?.keys[key] = nil
            }
        }
        store.remove(slot)
    }

    // MARK: Time

    /// Lets log time pass: leases, delays, pauses and dedupe windows that end by `now` have their effect, in the order of their ends.
    public mutating func expire(now: UInt64) {
        logTime = max(logTime, min(now, QueueMachine.latestTime))
        while let slot = timers.first, store[slot].deadline <= logTime {
            let isTimeout = store[slot].state == .reserved
            leave(slot)
            if isTimeout {
                store[slot].timeouts &+= 1
                totals.timeouts += 1
                _ = giveBack(slot, delay: 0, isFailure: true)
            } else {
                enterReady(slot)
            }
        }
        while let end = pauses.first, end.until <= logTime {
            guard let tube = tubeIndex[end.name] else { break }
            setPause(of: tube, name: end.name, until: 0, milliseconds: 0)
            noteReadied(tube)
            vanishIfUnused(tube)
        }
        while let end = windows.first, end.until <= logTime {
            _ = windows.removeFirst()
            tubeTable[end.tube]?.keys[end.key] = nil
            vanishIfUnused(end.tube)
        }
    }

    /// The earliest log time at which ``expire(now:)`` would change something.
    public var nextDeadline: UInt64? {
        [timers.first.map { store[$0].deadline }, pauses.first?.until, windows.first?.until].compactMap { $0 }.min()
    }

    /// Gives every reservation so much more time. A new leader proposes it in effect with its first entry, so that time without a
    /// leader, in which no worker could touch, delete or release, does not end leases.
    public mutating func postponeReservations(milliseconds: UInt64) {
        for slot in leases.keys.sorted() {
            store[slot].deadline = min(
                store[slot].deadline + min(milliseconds, QueueLimits.milliseconds), 2 * QueueMachine.latestTime)
            timers.update(slot, in: &store)
        }
    }

    mutating func setPause(of tube: Int, name: String, until: UInt64, milliseconds: UInt64) {
        if let old = tubeTable[tube]?.pausedUntil, old != 0 {
            let position = pausePosition(PauseEnd(until: old, name: name))
            if position < pauses.count { pauses.remove(at: position) }
        }
        tubeTable[tube]?.pausedUntil = until
        tubeTable[tube]?.pauseMilliseconds = milliseconds
        if until != 0 {
            let end = PauseEnd(until: until, name: name)
            pauses.insert(end, at: pausePosition(end))
        }
    }

    private func pausePosition(_ end: PauseEnd) -> Int {
        var (low, high) = (0, pauses.count)
        while low < high {
            let middle = (low + high) / 2
            if pauses[middle] < end { low = middle + 1 } else { high = middle }
        }
        return low
    }

    // MARK: Tubes

    func isReservable(_ tube: Int) -> Bool {
        guard let tube = tubeTable[tube] else { return false }
        return tube.pausedUntil == 0 && !tube.ready.isEmpty
    }

    mutating func noteReadied(_ tube: Int) {
        // The tube that it was noted of last is the usual one.
        guard readied.last != tube, tubeTable[tube]?.isReadied == false else { return }
        tubeTable[tube]?.isReadied = true
        readied.append(tube)
    }

    /// The tubes, sorted, in which a job became reservable since the last call, and still is.
    public mutating func takeReadied() -> [String] {
        var names: [String] = []
        for tube in readied where tubeTable[tube]?.isReadied == true {
            tubeTable[tube]?.isReadied = false
            if isReservable(tube), let name = tubeTable[tube]?.name { names.append(name) }
        }
        readied.removeAll(keepingCapacity: readied.count < 1_024)
        return names.sorted()
    }

    /// How many jobs of the tube could be reserved now; 0 for a paused tube.
    public func readyCount(_ name: String) -> Int {
        guard let tube = tubeIndex[name], isReservable(tube) else { return 0 }
        return tubeTable[tube]?.ready.count ?? 0
    }

    /// Whether a reserve from these tubes would find a job.
    public func hasReady(_ tubes: [String]) -> Bool {
        tubes.contains { name in tubeIndex[name].map(isReservable) ?? false }
    }

    /// The tube of this name, made or woken if it is not there.
    mutating func makeTube(_ name: String) -> Int {
        if let tube = tubeIndex[name] {
            if tubeTable[tube]?.vanished != 0 {
                tubeTable[tube]?.vanished = 0
                vanishedCount -= 1
            }
            return tube
        }
        let tube: Int
        if let free = freeTubes.popLast() {
            tube = free
            tubeTable[tube] = Tube(name: name)
        } else {
            tube = tubeTable.count
            tubeTable.append(Tube(name: name))
        }
        tubeIndex[name] = tube
        return tube
    }

    /// A tube without jobs, keys, pause and settings is gone; its counters are remembered until ``rememberedTubes`` others went after it.
    mutating func vanishIfUnused(_ tube: Int) {
        guard tubeTable[tube]?.jobs == 0, let value = tubeTable[tube], value.vanished == 0, !value.isInUse else {
            return
        }
        vanishNumber += 1
        if recentTube?.index == tube { recentTube = nil }
        tubeTable[tube]?.vanished = vanishNumber
        vanishedTubes.append((vanishNumber, tube))
        vanishedCount += 1
        var gone = 0
        while vanishedCount > QueueMachine.rememberedTubes, gone < vanishedTubes.count {
            let entry = vanishedTubes[gone]
            gone += 1
            guard let old = tubeTable[entry.tube], old.vanished == entry.number else { continue }
            tubeIndex[old.name] = nil
            tubeTable[entry.tube] = nil
            readied.removeAll { $0 == entry.tube }
            freeTubes.append(entry.tube)
            vanishedCount -= 1
        }
        if gone > 0 { vanishedTubes.removeFirst(gone) }
        if vanishedTubes.count > 2 * vanishedCount + 64 {
            vanishedTubes.removeAll { tubeTable[$0.tube]?.vanished != $0.number }
        }
    }
}
