// The root's side of its leaves: one connection each, files once, then a shard at a time, as fast as the leaf takes them.
import EventLoop
import Model
import ScatterGather

/// A file for the leaves' working directories.
final class GatherShippedFile {
    let path: String
    let executable: Bool
    let content: SpoolFile

    init(path: String, executable: Bool, scratch: String) throws(CoterieError) {
        self.path = path
        self.executable = executable
        content = try SpoolFile(in: scratch)
    }
}

extension GatherRoot {
    func leafConnected(_ stream: any GatherStream) {
        let id = LeafID(nextLeaf)
        nextLeaf += 1
        let link = GatherLeafLink(self, id, stream)
        leaves[id] = link
        if phase != .running { link.stop() }
    }

    func leafLost(_ id: LeafID) {
        leaves[id] = nil
        machine.lost(id, now: loop.now)
        carryOut()
    }

    /// All files are here: leaves that are waiting for them get them.
    func filesArrived() {
        filesComplete = true
        for (_, leaf) in leaves.sorted(by: { $0.key < $1.key }) { leaf.sendFiles() }
    }

    func leafOutput(_ attempt: AttemptID, _ bytes: [UInt8]) {
        // Nothing is known of an attempt that was cancelled meanwhile.
        guard let buffer = buffers[attempt] else { return }
        do throws(CoterieError) {
            try buffer.append(bytes)
        } catch {
            fail(error.message)
        }
    }

    func leafEnded(_ attempt: AttemptID, _ outcome: AttemptOutcome) {
        machine.ended(attempt, outcome, bytes: buffers[attempt]?.count ?? 0, now: loop.now)
        carryOut()
    }

    func leafAsks(_ id: LeafID, node: String) {
        machine.ask(id, node: node, now: loop.now)
        carryOut()
    }
}

final class GatherLeafLink {
    /// What is to be sent, front first.
    private enum Item {
        case file(Int, offset: UInt64)
        case filesEnd
        case shard(ShardOrder, ShardRange, offset: UInt64)
    }

    private unowned let root: GatherRoot
    private let id: LeafID
    private var channel: GatherChannel?
    private var items: [Item] = []
    private var node = ""
    private var saidHello = false
    private var sentFiles = false
    private var isStopped = false

    init(_ root: GatherRoot, _ id: LeafID, _ stream: any GatherStream) {
        self.root = root
        self.id = id
        let channel = GatherChannel(
            stream, loop: root.loop, onMessage: { [weak self] message in self?.received(message) },
            onClosed: { [weak self] _ in self?.lost() })
        channel.onDrain = { [weak self] in self?.pump() }
        self.channel = channel
    }

    private func received(_ message: GatherMessage) {
        switch message {
        case .leafHello(let name, let node):
            saidHello = true
            // Of one machine, if it has no name: then leaves are told apart by pod.
            self.node = node.isEmpty ? name : node
            channel?.send(.leafWelcome(job: root.options.gather))
            if isStopped { channel?.send(.stop) } else if root.filesComplete { sendFiles() }
        case .ask: if !isStopped { root.leafAsks(id, node: node) }
        case .output(let attempt, let bytes): root.leafOutput(attempt, bytes)
        case .ended(let attempt, let outcome): root.leafEnded(attempt, outcome)
        case .alive: break
        case .clientHello, .file, .filesEnd, .input, .inputEnd, .consumed, .done, .clientWelcome, .inputTaken, .result,
            .resultEnd,
            .progress, .final, .leafWelcome, .shard, .shardInput, .shardInputEnd, .cancel, .stop:
            channel?.fail("it said what only others say")
        }
    }

    private func lost() {
        channel = nil
        root.leafLost(id)
    }

    func sendFiles() {
        guard saidHello, !sentFiles, !isStopped else { return }
        sentFiles = true
        items += root.files.indices.map { .file($0, offset: 0) } + [.filesEnd]
        pump()
    }

    func give(_ grant: ShardGrant, range: ShardRange, total: Int?) {
        let order = ShardOrder(
            attempt: grant.attempt, shard: grant.shard, total: total, number: grant.number,
            time: grant.deadline.map { max($0 - root.loop.now, .milliseconds(1)) }, inputBytes: range.count)
        items.append(.shard(order, range, offset: range.start))
        pump()
    }

    func cancel(_ attempt: AttemptID, grace: TimeSpan) {
        let at = items.firstIndex { if case .shard(let order, _, _) = $0 { order.attempt == attempt } else { false } }
        var started = true
        if let at, case .shard(_, let range, let offset) = items[at] {
            started = offset > range.start
            items.remove(at: at)
        }
        guard started || at == nil else {
            // The leaf never heard of it, and its ask was spent on it.
            if !isStopped { root.leafAsks(id, node: node) }
            return
        }
        channel?.send(.cancel(attempt, grace: grace))
    }

    private func pump() {
        while let channel, !channel.isCongested, let first = items.first {
            do throws(CoterieError) {
                switch first {
                case .filesEnd:
                    channel.send(.filesEnd)
                    items.removeFirst()
                case .file(let index, let offset):
                    let file = root.files[index]
                    let bytes = try file.content.read(at: offset, limit: GatherLimits.chunkBytes)
                    let end = offset + UInt64(bytes.count)
                    let isLast = end >= file.content.count
                    channel.send(.file(path: file.path, executable: file.executable, bytes: bytes, isLast: isLast))
                    if isLast { items.removeFirst() } else { items[0] = .file(index, offset: end) }
                case .shard(let order, let range, let offset):
                    if offset == range.start { channel.send(.shard(order)) }
                    let limit = Int(min(UInt64(GatherLimits.chunkBytes), range.end - offset))
                    let bytes = try root.spool?.read(at: offset, limit: limit) ?? []
                    if !bytes.isEmpty { channel.send(.shardInput(order.attempt, bytes)) }
                    let end = offset + UInt64(bytes.count)
                    if end >= range.end {
                        channel.send(.shardInputEnd(order.attempt))
                        items.removeFirst()
                    } else {
                        items[0] = .shard(order, range, offset: end)
                    }
                }
            } catch {
                return root.fail(error.message)
            }
        }
    }

    func beat(silence: TimeSpan) {
        guard let channel else { return }
        if channel.silence > silence { return channel.fail("it has said nothing for \(silence)") }
        channel.send(.alive)
    }

    /// Its work is over.
    func stop() {
        guard !isStopped else { return }
        isStopped = true
        items = []
        if saidHello { channel?.send(.stop) }
    }

    func close() {
        channel?.close()
        channel = nil
    }
}
