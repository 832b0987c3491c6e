// The queue's part of a snapshot of the replicated state.
//
//   version u8 · log time · next id · burial number · vanish number · totals
//   tubes, by name: name · settings · pause · counters · vanish number · keys whose job is gone
//   jobs, by id: fields · [key] · [lease] · body
//
// Equal states have equal bytes, whatever history led to them: slots, heaps and hash tables are built anew from this.
import Model
import Wire

extension QueueMachine {
    private static let version: UInt8 = 1

    public func encode(into writer: inout ByteWriter) { encode(into: &writer) { _ in } }

    /// `afterEach` is called with the writer behind each job: it may take out what was written.
    public func encode<E>(into writer: inout ByteWriter, afterEach: (inout ByteWriter) throws(E) -> Void) throws(E) {
        writer.u8(QueueMachine.version)
        for value in [logTime, nextID, burialNumber, vanishNumber] { writer.varint(value) }
        for value in totals.cumulative { writer.varint(value) }
        let tubes = tubeIndex.sorted { $0.key < $1.key }
        var number = [UInt32](repeating: 0, count: tubeTable.count)
        writer.count(tubes.count)
        for (position, (name, index)) in tubes.enumerated() {
            number[index] = UInt32(position)
            writer.string(name)
            guard let tube = tubeTable[index] else { continue }
            tube.settings.encode(into: &writer)
            for value in [
                tube.pausedUntil, tube.pauseMilliseconds, tube.totalJobs, tube.deletes, tube.pauses, tube.vanished,
            ] {
                writer.varint(value)
            }
            let keys = tube.keys.filter { $0.value.until != nil }.sorted { $0.key < $1.key }
            writer.count(keys.count)
            for (key, taken) in keys {
                writer.string(key)
                writer.varint(taken.id)
                writer.varint(taken.until ?? 0)
            }
        }
        writer.count(store.count)
        try store.forEach { (slot: JobStore.Slot) throws(E) in
            let job = store[slot]
            writer.varint(job.id)
            writer.varint(UInt64(number[Int(job.tube)]))
            writer.u8(job.state.rawValue)
            writer.u32(job.priority)
            for value in [job.created, job.deadline, job.delay, job.ttr] { writer.varint(value) }
            for value in [job.reserves, job.timeouts, job.releases, job.buries, job.kicks] {
                writer.varint(UInt64(value))
            }
            writer.optional(keyOfJob[slot]) { $0.string($1) }
            if let lease = leases[slot] {
                writer.varint(lease.token)
                writer.varint(lease.holder)
            }
            writer.slice(store.body(of: slot))
            try afterEach(&writer)
        }
    }

    /// Reads what ``encode(into:)`` wrote, and refuses what no machine can have written.
    public init(decoding reader: inout ByteReader) throws(WireError) {
        self.init()
        let at = reader.position
        guard try reader.u8() == QueueMachine.version else { throw .invalid(at: at, what: "version of the queues") }
        logTime = try reader.counter()
        nextID = try reader.counter()
        burialNumber = try reader.counter()
        vanishNumber = try reader.counter()
        var cumulative: [UInt64] = []
        for _ in totals.cumulative { cumulative.append(try reader.counter()) }
        totals.cumulative = cumulative
        for _ in 0..<(try reader.count(max: QueueLimits.tubes, itemBytes: 14)) { try decodeTube(&reader) }
        var lastID: UInt64 = 0
        for _ in 0..<(try reader.count(max: Int(UInt32.max) - 1, itemBytes: 19)) {
            lastID = try decodeJob(&reader, after: lastID)
        }
        let gone = tubeTable.indices.filter { (tubeTable[$0]?.vanished ?? 0) != 0 }
        for tube in gone {
            guard let value = tubeTable[tube], !value.isInUse, value.vanished <= vanishNumber else {
                throw .invalid(at: reader.position, what: "vanished tube")
            }
            vanishedTubes.append((value.vanished, tube))
        }
        vanishedTubes.sort { $0.number < $1.number }
        vanishedCount = gone.count
    }

    private mutating func decodeTube(_ reader: inout ByteReader) throws(WireError) {
        let at = reader.position
        let name = try reader.string(max: Limits.nameBytes)
        guard QueueLimits.isValidTube(name) else { throw .invalid(at: at, what: "tube name") }
        if case .some(let last) = tubeTable.last, let last, last.name >= name {
            throw .invalid(at: at, what: "order of tubes")
        }
        var tube = Tube(name: name)
        tube.settings = try TubeSettings(decoding: &reader)
        let index = tubeTable.count
        let until = try reader.counter()
        let pause = try reader.counter()
        tube.totalJobs = try reader.counter()
        tube.deletes = try reader.counter()
        tube.pauses = try reader.counter()
        tube.vanished = try reader.counter()
        for _ in 0..<(try reader.count(max: Int(UInt32.max) - 1, itemBytes: 3)) {
            let key = try reader.string(max: Limits.nameBytes)
            let taken = Tube.TakenKey(id: try reader.varint(), until: try reader.counter())
            guard tube.keys[key] == nil else { throw .invalid(at: at, what: "dedupe key") }
            tube.keys[key] = taken
            windows.insert(WindowEnd(until: taken.until ?? 0, id: taken.id, tube: index, key: key))
        }
        tubeTable.append(tube)
        tubeIndex[name] = index
        setPause(of: index, name: name, until: until, milliseconds: pause)
    }

    private mutating func decodeJob(_ reader: inout ByteReader, after lastID: UInt64) throws(WireError) -> UInt64 {
        let at = reader.position
        var job = Job()
        job.id = try reader.varint()
        guard job.id > lastID, job.id < nextID else { throw .invalid(at: at, what: "job id") }
        let tube = try reader.varint()
        guard tube < UInt64(tubeTable.count) else { throw .invalid(at: at, what: "tube of a job") }
        job.tube = UInt32(tube)
        guard let state = JobState(rawValue: try reader.u8()) else { throw .invalid(at: at, what: "state of a job") }
        job.state = state
        job.priority = try reader.u32()
        job.created = try reader.counter()
        job.deadline = try reader.counter()
        job.delay = try reader.counter()
        job.ttr = try reader.counter()
        job.reserves = try reader.count32()
        job.timeouts = try reader.count32()
        job.releases = try reader.count32()
        job.buries = try reader.count32()
        job.kicks = try reader.count32()
        let key = try reader.optional { (r: inout ByteReader) throws(WireError) in try r.string(max: Limits.nameBytes) }
        job.hasKey = key != nil
        let lease = state == .reserved ? Lease(token: try reader.varint(), holder: try reader.varint()) : nil
        let body = try reader.slice(max: QueueLimits.bodyBytes)
        let slot = store.insert(job, body: body)
        if let key {
            guard tubeTable[Int(tube)]?.keys[key] == nil else { throw .invalid(at: at, what: "dedupe key") }
            keyOfJob[slot] = key
            tubeTable[Int(tube)]?.keys[key] = Tube.TakenKey(id: job.id, until: nil)
        }
        tubeTable[Int(tube)]?.bytes += UInt64(body.count)
        place(slot, lease: lease)
        return job.id
    }

    /// Puts a decoded job into the structures of its state, without the effects of entering it.
    private mutating func place(_ slot: JobStore.Slot, lease: Lease?) {
        let tube = Int(store[slot].tube)
        switch store[slot].state {
        case .ready: enterReady(slot)
        case .delayed:
            tubeTable[tube]?.delayed.insert(slot, in: &store)
            timers.insert(slot, in: &store)
            totals.delayed += 1
        case .buried:
            tubeTable[tube]?.buried.insert(slot, in: &store)
            totals.buried += 1
        case .reserved:
            timers.insert(slot, in: &store)
            tubeTable[tube]?.reserved += 1
            totals.reserved += 1
            leases[slot] = lease
            if let lease, lease.holder != 0 { holders[lease.holder, default: []].insert(store[slot].id) }
        }
    }
}

extension QueueMachine.Totals {
    /// What a snapshot must carry; the gauges follow from the jobs.
    var cumulative: [UInt64] {
        get { [jobs, timeouts, puts, deletes, releases, buries, kicks, touches, pauses] }
        set {
            guard newValue.count == 9 else { return }
            (jobs, timeouts, puts) = (newValue[0], newValue[1], newValue[2])
            (deletes, releases, buries) = (newValue[3], newValue[4], newValue[5])
            (kicks, touches, pauses) = (newValue[6], newValue[7], newValue[8])
        }
    }
}

extension ByteReader {
    /// A varint so small that counting on from it can not overflow.
    mutating func counter() throws(WireError) -> UInt64 {
        let at = position
        let value = try varint()
        guard value <= 2 * QueueMachine.latestTime else { throw .invalid(at: at, what: "counter") }
        return value
    }
}
