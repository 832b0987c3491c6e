// Scheduling's commands, answers and snapshot as bytes.
import Model
import Wire

extension PodOwner {
    func encode(into writer: inout ByteWriter) {
        switch self {
        case .gather(let id):
            writer.u8(1)
            writer.string(id)
        case .pattern(let kind, let name):
            writer.u8(2)
            writer.string(kind)
            writer.string(name)
        }
    }

    init(decoding reader: inout ByteReader) throws(WireError) {
        let at = reader.position
        switch try reader.u8() {
        case 1: self = .gather(try reader.string(max: Limits.nameBytes))
        case 2:
            self = .pattern(
                kind: try reader.string(max: Limits.nameBytes), name: try reader.string(max: Limits.nameBytes))
        default: throw .invalid(at: at, what: "owner")
        }
    }
}

extension GatherSeed {
    public func encode(into writer: inout ByteWriter) {
        writer.string(id)
        writer.string(client)
        writer.string(leaf)
        writer.optionalString(merge)
        writer.string(sharder)
        writer.natural(parallel)
        writer.f64(minSuccess)
        writer.stringMap(options)
    }

    public init(decoding reader: inout ByteReader) throws(WireError) {
        let limit = SchedulingLimits.gatherTextBytes
        self.init(
            id: try reader.string(max: Limits.nameBytes), client: try reader.string(max: limit),
            leaf: try reader.string(max: limit),
            merge: try reader.optionalString(max: limit), sharder: try reader.string(max: limit),
            parallel: try reader.natural(max: GatherProgress.shardLimit))
        let at = reader.position
        minSuccess = try reader.f64()
        guard (0...1).contains(minSuccess) else { throw .invalid(at: at, what: "share of success") }
        options = try reader.stringMap(maxCount: SchedulingLimits.gatherOptions, keyBytes: limit, valueBytes: limit)
    }
}

extension PodReport {
    public func encode(into writer: inout ByteWriter) {
        writer.string(name)
        writer.varint(uid)
        writer.varint(generation)
        writer.nodeID(node)
        status.encode(into: &writer)
        writer.bool(gone)
    }

    public init(decoding reader: inout ByteReader) throws(WireError) {
        self.init(
            name: try reader.string(max: Limits.nameBytes), uid: try reader.varint(), generation: try reader.varint(),
            node: try reader.nodeID(), status: try PodStatus(decoding: &reader), gone: try reader.bool())
    }
}

extension PodBinding {
    func encode(into writer: inout ByteWriter) {
        writer.string(name)
        writer.varint(uid)
        writer.nodeID(node)
        writer.varint(generation)
    }

    init(decoding reader: inout ByteReader) throws(WireError) {
        self.init(
            name: try reader.string(max: Limits.nameBytes), uid: try reader.varint(), node: try reader.nodeID(),
            generation: try reader.varint())
    }
}

extension SchedulingCommand {
    public func encode(into writer: inout ByteWriter) {
        switch self {
        case .createPods(let specs, let owner):
            writer.u8(1)
            writer.specs(specs)
            writer.optional(owner) { $1.encode(into: &$0) }
        case .applyPods(let specs, let owner):
            writer.u8(2)
            writer.specs(specs)
            writer.optional(owner) { $1.encode(into: &$0) }
        case .deletePods(let names):
            writer.u8(3)
            writer.strings(names)
        case .deleteOwned(let owner):
            writer.u8(4)
            owner.encode(into: &writer)
        case .bind(let bindings):
            writer.u8(5)
            writer.count(bindings.count)
            for binding in bindings { binding.encode(into: &writer) }
        case .explain(let explanations):
            writer.u8(6)
            writer.count(explanations.count)
            for explanation in explanations {
                writer.string(explanation.name)
                writer.varint(explanation.uid)
                writer.strings(
                    explanation.reasons.prefix(SchedulingLimits.reasons).map {
                        $0.clipped(SchedulingLimits.reasonBytes)
                    })
            }
        case .report(let reports):
            writer.u8(7)
            writer.count(reports.count)
            for report in reports { report.encode(into: &writer) }
        case .nodeGone(let node):
            writer.u8(8)
            writer.nodeID(node)
        case .createGather(let seed, let pods):
            writer.u8(9)
            seed.encode(into: &writer)
            writer.specs(pods)
        case .updateGather(let id, let progress):
            writer.u8(10)
            writer.string(id)
            progress.encode(into: &writer)
        case .finishGather(let id, let state, let progress):
            writer.u8(11)
            writer.string(id)
            writer.string(state.rawValue)
            progress.encode(into: &writer)
        case .cancelGather(let id):
            writer.u8(12)
            writer.string(id)
        case .forgetGather(let id):
            writer.u8(13)
            writer.string(id)
        case .cordon(let node, let isCordoned):
            writer.u8(14)
            writer.nodeID(node)
            writer.bool(isCordoned)
        case .drain(let node):
            writer.u8(15)
            writer.nodeID(node)
        case .retire(let node, let forget):
            writer.u8(16)
            writer.nodeID(node)
            writer.bool(forget)
        }
    }

    public init(decoding reader: inout ByteReader) throws(WireError) {
        let at = reader.position
        let batch = SchedulingLimits.batch
        switch try reader.u8() {
        case 1: self = .createPods(try reader.specs(), owner: try reader.owner())
        case 2: self = .applyPods(try reader.specs(), owner: try reader.owner())
        case 3: self = .deletePods(try reader.strings(maxCount: batch, bytes: Limits.nameBytes))
        case 4: self = .deleteOwned(try PodOwner(decoding: &reader))
        case 5:
            var bindings: [PodBinding] = []
            for _ in 0..<(try reader.count(max: batch, itemBytes: 19)) {
                bindings.append(try PodBinding(decoding: &reader))
            }
            self = .bind(bindings)
        case 6:
            var explanations: [PodExplanation] = []
            for _ in 0..<(try reader.count(max: batch, itemBytes: 3)) {
                explanations.append(
                    PodExplanation(
                        name: try reader.string(max: Limits.nameBytes), uid: try reader.varint(),
                        reasons: try reader.reasons()))
            }
            self = .explain(explanations)
        case 7:
            var reports: [PodReport] = []
            for _ in 0..<(try reader.count(max: batch, itemBytes: 26)) {
                reports.append(try PodReport(decoding: &reader))
            }
            self = .report(reports)
        case 8: self = .nodeGone(try reader.nodeID())
        case 9: self = .createGather(try GatherSeed(decoding: &reader), pods: try reader.specs())
        case 10:
            self = .updateGather(
                id: try reader.string(max: Limits.nameBytes), progress: try GatherProgress(decoding: &reader))
        case 11:
            self = .finishGather(
                id: try reader.string(max: Limits.nameBytes), state: try reader.named("gather state"),
                progress: try GatherProgress(decoding: &reader))
        case 12: self = .cancelGather(id: try reader.string(max: Limits.nameBytes))
        case 13: self = .forgetGather(id: try reader.string(max: Limits.nameBytes))
        case 14: self = .cordon(try reader.nodeID(), try reader.bool())
        case 15: self = .drain(try reader.nodeID())
        case 16: self = .retire(try reader.nodeID(), forget: try reader.bool())
        default: throw .invalid(at: at, what: "scheduling command")
        }
    }
}

extension SchedulingResult {
    public func encode(into writer: inout ByteWriter) {
        switch self {
        case .created(let uids):
            writer.u8(1)
            writer.count(uids.count)
            for uid in uids { writer.varint(uid) }
        case .unchanged: writer.u8(2)
        case .done: writer.u8(3)
        case .notFound(let what):
            writer.u8(4)
            writer.string(what)
        case .refused(let code, let message, let hint):
            writer.u8(5)
            writer.errorCode(code)
            writer.string(message)
            writer.optionalString(hint)
        }
    }

    public init(decoding reader: inout ByteReader) throws(WireError) {
        let at = reader.position
        switch try reader.u8() {
        case 1:
            var uids: [UInt64] = []
            for _ in 0..<(try reader.count(max: SchedulingLimits.batch)) { uids.append(try reader.varint()) }
            self = .created(uids)
        case 2: self = .unchanged
        case 3: self = .done
        case 4: self = .notFound(try reader.string(max: 4_096))
        case 5:
            self = .refused(
                try reader.errorCode(), try reader.string(max: 65_536), hint: try reader.optionalString(max: 65_536))
        default: throw .invalid(at: at, what: "scheduling result")
        }
    }
}

extension ByteWriter {
    fileprivate mutating func specs(_ specs: [PodSpec]) {
        count(specs.count)
        for spec in specs { spec.encode(into: &self) }
    }
}

extension ByteReader {
    fileprivate mutating func specs() throws(WireError) -> [PodSpec] {
        var specs: [PodSpec] = []
        for _ in 0..<(try count(max: SchedulingLimits.batch, itemBytes: 20)) {
            specs.append(try PodSpec(decoding: &self))
        }
        return specs
    }

    fileprivate mutating func owner() throws(WireError) -> PodOwner? {
        try optional { (r: inout ByteReader) throws(WireError) in try PodOwner(decoding: &r) }
    }

    fileprivate mutating func reasons() throws(WireError) -> [String] {
        try strings(maxCount: SchedulingLimits.reasons, bytes: SchedulingLimits.reasonBytes)
    }
}

// MARK: - Snapshot

extension PodRecord {
    func encode(into writer: inout ByteWriter) {
        spec.encode(into: &writer)
        writer.varint(uid)
        writer.varint(generation)
        writer.optional(node) { $0.nodeID($1) }
        status.encode(into: &writer)
        writer.optional(statusNode) { $0.nodeID($1) }
        writer.optional(owner) { $1.encode(into: &$0) }
        writer.bool(deleting)
        writer.bool(moving)
        writer.varint(createdMilliseconds)
        writer.strings(pendingReasons)
    }

    init(decoding reader: inout ByteReader) throws(WireError) {
        self.init(spec: try PodSpec(decoding: &reader), uid: try reader.varint(), generation: try reader.varint())
        node = try reader.optional { (r: inout ByteReader) throws(WireError) in try r.nodeID() }
        status = try PodStatus(decoding: &reader)
        statusNode = try reader.optional { (r: inout ByteReader) throws(WireError) in try r.nodeID() }
        owner = try reader.owner()
        deleting = try reader.bool()
        moving = try reader.bool()
        createdMilliseconds = try reader.varint()
        pendingReasons = try reader.reasons()
    }
}

extension GatherRecord {
    func encode(into writer: inout ByteWriter) {
        seed.encode(into: &writer)
        writer.string(state.rawValue)
        progress.encode(into: &writer)
        writer.strings(pods)
        writer.varint(uid)
        writer.varint(createdMilliseconds)
        writer.optional(endedMilliseconds) { $0.varint($1) }
    }

    init(decoding reader: inout ByteReader) throws(WireError) {
        self.init(
            seed: try GatherSeed(decoding: &reader), state: try reader.named("gather state"),
            progress: try GatherProgress(decoding: &reader),
            pods: try reader.strings(maxCount: SchedulingLimits.batch, bytes: Limits.nameBytes),
            uid: try reader.varint(),
            createdMilliseconds: try reader.varint(),
            endedMilliseconds: try reader.optional { (r: inout ByteReader) throws(WireError) in try r.varint() })
    }
}

extension SchedulingMachine {
    /// 2 since removed nodes are remembered; 1 is read as well.
    public static let version: UInt8 = 2

    public func encode(into writer: inout ByteWriter) {
        writer.u8(SchedulingMachine.version)
        writer.varint(lastUID)
        let pods = pods
        writer.count(pods.count)
        for pod in pods { pod.encode(into: &writer) }
        let gathers = gathers
        writer.count(gathers.count)
        for gather in gathers { gather.encode(into: &writer) }
        writer.count(cordoned.count)
        for node in cordoned.sorted() { writer.nodeID(node) }
        writer.count(retired.count)
        for node in retired { writer.nodeID(node) }
    }

    public init(decoding reader: inout ByteReader) throws(WireError) {
        self.init()
        let start = reader.position
        let version = try reader.u8()
        guard (1...SchedulingMachine.version).contains(version) else {
            throw .invalid(at: start, what: "version of scheduling")
        }
        lastUID = try reader.varint()
        var uids: Set<UInt64> = []
        for _ in 0..<(try reader.count(max: SchedulingLimits.pods, itemBytes: 34)) {
            let at = reader.position
            let record = try PodRecord(decoding: &reader)
            guard podTable[record.name] == nil, record.uid <= lastUID, uids.insert(record.uid).inserted else {
                throw .invalid(at: at, what: "pod: its name or uid is there twice")
            }
            let bytes = record.spec.encoded.count
            specBytes += bytes
            podTable[record.name] = Stored(record: record, bytes: bytes)
            if let node = record.node { byNode[node, default: []].insert(record.name) }
        }
        let gatherLimit = SchedulingLimits.runningGathers + SchedulingLimits.endedGathers
        for _ in 0..<(try reader.count(max: gatherLimit, itemBytes: 40)) {
            let at = reader.position
            let record = try GatherRecord(decoding: &reader)
            guard gatherTable[record.id] == nil, record.uid <= lastUID, uids.insert(record.uid).inserted else {
                throw .invalid(at: at, what: "gather: its id is there twice")
            }
            gatherTable[record.id] = record
        }
        for _ in 0..<(try reader.count(max: SchedulingLimits.cordons, itemBytes: 16)) {
            cordoned.insert(try reader.nodeID())
        }
        guard version >= 2 else { return }
        for _ in 0..<(try reader.count(max: SchedulingLimits.retired, itemBytes: 16)) {
            retired.append(try reader.nodeID())
        }
    }
}
