// N members on virtual time and a virtual network: every run is a function of its seed.
import Model

@testable import Membership

struct GossipWorld {
    enum Condition: Hashable { case absent, running, killed, hostDown, frozen, ended }

    struct Node {
        var core: Membership
        var condition = Condition.absent
        var id: NodeID
        var address: SocketAddress
        var starts: UInt64 = 0
        var armed = MonotonicTime.distantFuture
        var buffered: [Happening] = []
        var group = 0
        var events: [(time: MonotonicTime, event: MemberEvent)] = []
        var sentDatagrams = 0
        var sentBytes = 0
        var pushPulls = 0
    }

    enum Happening {
        case datagram([UInt8], from: SocketAddress)
        case pushPull([UInt8], from: NodeID)
        case refused(SocketAddress)
        case timer
    }

    private struct Entry {
        var time: MonotonicTime
        var serial: UInt64
        var node: Int
        var what: Happening
        func precedes(_ other: Entry) -> Bool { (time, serial) < (other.time, other.serial) }
    }

    var options: MembershipOptions
    var now = MonotonicTime.zero
    var nodes: [Node] = []
    /// Probability that a datagram is lost.
    var loss: Double
    /// FNV-1a over all that happened: equal runs have equal traces.
    var trace: UInt64 = 0xCBF2_9CE4_8422_2325
    var largestDatagram = 0
    private var heap: [Entry] = []
    private var serial: UInt64 = 0
    private var generator: SeededGenerator

    init(_ count: Int, seed: UInt64, loss: Double = 0, options: MembershipOptions = .init()) {
        self.options = options
        self.loss = loss
        generator = SeededGenerator(seed: seed)
        for index in 0..<count {
            let id = NodeID(using: &generator)
            let address = SocketAddress(host: .v4(0x0A00_0001 + UInt32(index)), port: 7630)
            let core = Membership(
                options: options, id: id, name: "n\(index)", address: address, cluster: "test", incarnation: 0,
                generator: generator.fork(), now: now)
            nodes.append(Node(core: core, id: id, address: address))
        }
    }

    // MARK: Acts

    /// Starts or restarts a node with its own id and the next start counter.
    mutating func start(_ index: Int, seeds: [Int]) {
        nodes[index].starts += 1
        nodes[index].events = []
        nodes[index].core = Membership(
            options: options, id: nodes[index].id, name: "n\(index)", address: nodes[index].address, cluster: "test",
            incarnation: nodes[index].starts << 20, generator: generator.fork(), now: now)
        nodes[index].condition = .running
        nodes[index].armed = .distantFuture
        feed(index, .join(seeds.map { nodes[$0].address }))
    }

    mutating func startAll(seeds: [Int] = [0]) { for index in nodes.indices { start(index, seeds: seeds) } }

    /// The process ends; its host says so to whoever sends there.
    mutating func kill(_ index: Int) { nodes[index].condition = .killed }
    mutating func powerOff(_ index: Int) { nodes[index].condition = .hostDown }
    mutating func freeze(_ index: Int) { nodes[index].condition = .frozen }

    mutating func thaw(_ index: Int) {
        nodes[index].condition = .running
        let waiting = nodes[index].buffered
        nodes[index].buffered = []
        nodes[index].armed = .distantFuture
        for what in waiting { happen(index, what) }
        feed(index, .timer)
    }

    mutating func leave(_ index: Int) { feed(index, .leave) }
    mutating func tell(_ index: Int, _ input: Membership.Input) { feed(index, input) }

    mutating func partition(_ side: Set<Int>) {
        for index in nodes.indices { nodes[index].group = side.contains(index) ? 1 : 0 }
    }
    mutating func heal() { partition([]) }

    mutating func run(for span: TimeSpan) {
        let end = now + span
        while let first = heap.first, first.time <= end {
            let entry = pop()
            now = entry.time
            if case .timer = entry.what {
                guard nodes[entry.node].armed == entry.time else { continue }
                nodes[entry.node].armed = .distantFuture
            }
            happen(entry.node, entry.what)
        }
        now = end
    }

    /// Runs until the condition holds, looking every 50 ms; the time it took, or nil after `limit`.
    mutating func run(upTo limit: TimeSpan, until condition: (GossipWorld) -> Bool) -> TimeSpan? {
        let start = now
        while now - start < limit {
            if condition(self) { return now - start }
            run(for: .milliseconds(50))
        }
        return condition(self) ? limit : nil
    }

    // MARK: Views

    var running: [Int] { nodes.indices.filter { nodes[$0].condition == .running } }

    /// Every running node holds exactly the running ones present, none of them suspect, with equal incarnations, and
    /// the digests say so.
    var agrees: Bool {
        let expected = running.map { nodes[$0].core.local }.sorted { $0.id < $1.id }
        for index in running {
            guard nodes[index].core.digest == nodes[running[0]].core.digest else { return false }
            let view = nodes[index].core.members.filter { $0.state.isPresent }
            guard view.count == expected.count else { return false }
            for (seen, own) in zip(view, expected)
            where seen.id != own.id || seen.incarnation != own.incarnation || seen.state != .alive { return false }
        }
        return true
    }

    func everyone(sees index: Int, as state: MemberState) -> Bool {
        running.allSatisfy { $0 == index || nodes[$0].core.member(nodes[index].id)?.state == state }
    }

    /// Every observer's events of every member follow the state machine, from unknown to reaped.
    var eventOrderIsLegal: Bool {
        for node in nodes {
            var states: [NodeID: MemberState] = [:]
            for (_, event) in node.events where event.member.id != node.id {
                let old = states[event.member.id]
                let legal =
                    switch event.kind {
                    case .join: old == nil || old == .dead || old == .left
                    case .suspect: old == .alive
                    case .alive: old == .suspect
                    case .dead: old == .alive || old == .suspect
                    case .leave: old != nil && old != .left
                    case .update: old == .alive
                    case .reaped: old == .dead || old == .left
                    }
                guard legal else { return false }
                states[event.member.id] = event.kind == .reaped ? nil : event.member.state
            }
        }
        return true
    }

    func count(_ kind: MemberEvent.Kind, about index: Int? = nil) -> Int {
        nodes.reduce(0) { sum, node in
            sum
                + node.events.count {
                    $0.event.kind == kind && (index == nil || $0.event.member.id == nodes[index ?? 0].id)
                }
        }
    }

    // MARK: Machinery

    private mutating func happen(_ index: Int, _ what: Happening) {
        switch nodes[index].condition {
        case .running: break
        case .frozen:
            if nodes[index].buffered.count < 500, case .timer = what {} else { nodes[index].buffered.append(what) }
            return
        case .absent, .killed, .hostDown, .ended: return
        }
        switch what {
        case .datagram(let bytes, let source): feed(index, .datagram(bytes[...], from: source))
        case .pushPull(let bytes, let from): feed(index, .pushPull(bytes, from: from))
        case .refused(let address): feed(index, .refused(address))
        case .timer: feed(index, .timer)
        }
    }

    private mutating func feed(_ index: Int, _ input: Membership.Input) {
        nodes[index].core.handle(input, now: now)
        for effect in nodes[index].core.takeEffects() { carryOut(index, effect) }
        let next = max(now, nodes[index].core.nextDeadline)
        // An earlier timer that is no longer needed fires in vain; the next is armed then.
        if next < nodes[index].armed && next != .distantFuture {
            nodes[index].armed = next
            push(next, index, .timer)
        }
    }

    private mutating func carryOut(_ index: Int, _ effect: Membership.Effect) {
        note(UInt64(index))
        note(now.nanoseconds)
        switch effect {
        case .datagram(let bytes, let address):
            for byte in bytes { note(UInt64(byte)) }
            nodes[index].sentDatagrams += 1
            nodes[index].sentBytes += bytes.count
            largestDatagram = max(largestDatagram, bytes.count)
            guard let target = nodes.firstIndex(where: { $0.address == address }) else { return }
            let delay = TimeSpan.microseconds(Int64.random(in: 100...1_000, using: &generator))
            let lost = generator.chance(loss)
            guard nodes[target].group == nodes[index].group, !lost else { return }
            switch nodes[target].condition {
            case .killed, .ended, .absent: push(now + delay, index, .refused(address))
            case .running, .frozen: push(now + delay, target, .datagram(bytes, from: nodes[index].address))
            case .hostDown: break
            }
        case .pushPull(let bytes, let id, _):
            nodes[index].pushPulls += 1
            guard let target = nodes.firstIndex(where: { $0.id == id }), nodes[target].group == nodes[index].group
            else { return }
            push(now + .milliseconds(2), target, .pushPull(bytes, from: nodes[index].id))
        case .event(let event):
            note(event.member.id.high)
            note(UInt64(event.kind.rawValue.utf8.count))
            nodes[index].events.append((now, event))
        case .left: nodes[index].condition = .ended
        }
    }

    private mutating func note(_ value: UInt64) { trace = (trace ^ value) &* 0x100_0000_01B3 }

    private mutating func push(_ time: MonotonicTime, _ node: Int, _ what: Happening) {
        serial += 1
        heap.append(Entry(time: time, serial: serial, node: node, what: what))
        var child = heap.count - 1
        while child > 0, heap[child].precedes(heap[(child - 1) / 2]) {
            heap.swapAt(child, (child - 1) / 2)
            child = (child - 1) / 2
        }
    }

    private mutating func pop() -> Entry {
        let top = heap[0]
        let last = heap.removeLast()
        guard !heap.isEmpty else { return top }
        heap[0] = last
        var parent = 0
        while true {
            var least = parent
            for child in [2 * parent + 1, 2 * parent + 2] where child < heap.count && heap[child].precedes(heap[least])
            {
                least = child
            }
            if least == parent { return top }
            heap.swapAt(parent, least)
            parent = least
        }
    }
}
