// Raw streams between named services: a pod listens under its own name, others dial `POD/SERVICE` through any node. The
// broker of the node where the pod runs joins the two; that of another node dials on. Bytes only pass through here.
import EventLoop
import Model
import NodeCore
import Scheduling
import Security
import Transport
import Wire

final class StreamBroker {
    enum Location: Hashable { case here, node(SocketAddress) }

    static let dialLimit = 4_096
    /// Connections that one pod may be waiting for.
    static let podDialLimit = 256
    /// Services of one pod.
    static let podListenerLimit = 64
    private static let retryInterval = TimeSpan.milliseconds(100)

    private let loop: EventLoop
    private let key: ClusterKey
    private let id: NodeID

    /// Where a pod runs; nil if nowhere.
    var locate: ((String) -> Location?)?
    var ownerOf: ((String) -> PodOwner?)?
    /// A connection of the queue protocol, from a pod or a client.
    var onQueueStream: ((SecureStream, [UInt8]) -> Void)?

    /// By `POD/SERVICE`.
    private var listeners: [String: FrameLink] = [:]
    private var dials: [UInt64: Dial] = [:]
    private var offers: [UInt64: UInt64] = [:]
    private var next: UInt64 = 1

    private final class Dial {
        let link: FrameLink
        let service: String
        let deadline: MonotonicTime
        let timer: LoopTimer
        let authority: Authority
        /// Another node sent it here: it is not sent on, or two that disagree about the pod would send it in a circle.
        let isSentOn: Bool
        /// The connection to another node, while it is made.
        var onward: FrameLink?
        var token: UInt64?

        init(
            link: FrameLink, service: String, deadline: MonotonicTime, timer: LoopTimer, authority: Authority,
            isSentOn: Bool
        ) {
            self.authority = authority
            self.isSentOn = isSentOn
            self.link = link
            self.service = service
            self.deadline = deadline
            self.timer = timer
        }
    }

    init(loop: EventLoop, key: ClusterKey, self id: NodeID) {
        self.loop = loop
        self.key = key
        self.id = id
    }

    func handle(_ link: FrameLink, _ kind: FrameKind, _ frame: Frame, _ authority: Authority) {
        var reader = ByteReader(frame.payload)
        do throws(WireError) {
            switch kind {
            case .dial:
                let service = try reader.string(max: 2 * Limits.nameBytes + 1)
                let timeout = TimeSpan(nanoseconds: try reader.i64())
                // Nodes add this; nodes of before did not.
                let isSentOn = reader.isAtEnd ? false : try reader.bool()
                dial(link, service, timeout: timeout, authority, isSentOn: isSentOn)
            case .listen: listen(link, try reader.string(max: Limits.nameBytes), authority)
            case .accept: accept(link, token: try reader.u64(), authority)
            default: link.close()
            }
        } catch {
            refuse(link, CoterieError(.badInput, "malformed \(kind): \(error)"))
        }
    }

    private func refuse(_ link: FrameLink, _ error: CoterieError) {
        link.send(kind: FrameKind.refused.rawValue, payload: error.encoded)
        link.close()
    }

    // MARK: - Listening

    private func listen(_ link: FrameLink, _ service: String, _ authority: Authority) {
        guard case .pod(let pod) = authority else {
            return refuse(link, CoterieError(.notAllowed, "only a pod can listen, under its own name"))
        }
        let name = pod + "/" + service
        guard
            listeners[name] != nil
                || listeners.keys.count(where: { $0.hasPrefix(pod + "/") }) < StreamBroker.podListenerLimit
        else {
            return refuse(link, CoterieError(.busy, "a pod has at most \(StreamBroker.podListenerLimit) services"))
        }
        // A restarted container takes over from its predecessor.
        listeners.removeValue(forKey: name)?.close()
        listeners[name] = link
        link.onFrame = { [weak link] _ in link?.close() }
        link.onClose = { [weak self, weak link] _ in
            if let self, let link, self.listeners[name] === link { self.listeners[name] = nil }
        }
        link.send(kind: FrameKind.connected.rawValue)
        for (number, dial) in dials.sorted(by: { $0.key < $1.key }) where dial.service == name && dial.token == nil {
            advance(number)
        }
    }

    private func accept(_ link: FrameLink, token: UInt64, _ authority: Authority) {
        // Tokens are easy to guess: only the pod that was dialled may take the connection.
        guard let number = offers[token], let dial = dials[number],
            authority == .pod(String(dial.service.prefix { $0 != "/" }))
        else {
            return refuse(link, CoterieError(.notFound, "whoever dialled is gone"))
        }
        offers[token] = nil
        dials[number] = nil
        dial.timer.close()
        link.send(kind: FrameKind.connected.rawValue)
        dial.link.send(kind: FrameKind.connected.rawValue)
        join(dial.link, link)
    }

    private func join(_ a: FrameLink, _ b: FrameLink) {
        let (first, pendingA) = a.becomeRaw()
        let (second, pendingB) = b.becomeRaw()
        _ = Relay(first, pendingA: pendingA, second, pendingB: pendingB)
    }

    // MARK: - Dialling

    private func mayDial(_ pod: String, _ authority: Authority) -> Bool {
        guard case .pod(let from) = authority else { return true }
        // Pods of one gather or pattern may talk to each other.
        guard let owner = ownerOf?(from) else { return false }
        return ownerOf?(pod) == owner
    }

    private func dial(_ link: FrameLink, _ service: String, timeout: TimeSpan, _ authority: Authority, isSentOn: Bool) {
        if service == "queue" {
            link.send(kind: FrameKind.connected.rawValue)
            let (stream, pending) = link.becomeRaw()
            onQueueStream?(stream, pending)
            return
        }
        let parts = service.split(separator: "/", omittingEmptySubsequences: false)
        guard parts.count == 2, !parts[0].isEmpty, !parts[1].isEmpty else {
            return refuse(link, CoterieError(.badInput, "a service is called POD/SERVICE, not \(service)"))
        }
        guard mayDial(String(parts[0]), authority) else {
            return refuse(link, CoterieError(.notAllowed, "this pod may not dial \(service)"))
        }
        var isOver = dials.count >= StreamBroker.dialLimit
        if case .pod = authority {
            isOver = isOver || dials.values.count { $0.authority == authority } >= StreamBroker.podDialLimit
        }
        guard !isOver else { return refuse(link, CoterieError(.busy, "too many connections are being made")) }
        let number = next
        next += 1
        let deadline = loop.now + max(.zero, min(timeout, .seconds(600)))
        let dial = Dial(
            link: link, service: service, deadline: deadline, timer: LoopTimer(loop: loop), authority: authority,
            isSentOn: isSentOn)
        dials[number] = dial
        link.onFrame = nil
        link.onClose = { [weak self] _ in self?.forget(number) }
        advance(number)
    }

    private func forget(_ number: UInt64) {
        guard let dial = dials.removeValue(forKey: number) else { return }
        dial.timer.close()
        dial.onward?.close()
        if let token = dial.token { offers[token] = nil }
    }

    /// Takes the next step of a dial: offer it to the listener here, go on to the node where the pod is, or wait a little.
    private func advance(_ number: UInt64) {
        guard let dial = dials[number], dial.token == nil, dial.onward == nil else { return }
        let pod = String(dial.service.prefix { $0 != "/" })
        if let listener = listeners[dial.service] {
            let token = next
            next += 1
            dial.token = token
            offers[token] = number
            var writer = ByteWriter()
            writer.u64(token)
            listener.send(kind: FrameKind.incoming.rawValue, payload: writer.bytes)
            dial.timer.start(at: dial.deadline) { [weak self] in self?.giveUp(number) }
            return
        }
        guard loop.now < dial.deadline else { return giveUp(number) }
        if !dial.isSentOn, case .node(let address) = locate?(pod) { return goOn(number, dial, to: address) }
        waitALittle(number, dial)
    }

    private func waitALittle(_ number: UInt64, _ dial: Dial) {
        let next = min(loop.now + StreamBroker.retryInterval, dial.deadline)
        dial.timer.start(at: next) { [weak self] in self?.advance(number) }
    }

    private func giveUp(_ number: UInt64) {
        guard let dial = dials[number] else { return }
        forget(number)
        refuse(dial.link, CoterieError(.deadline, "nobody listens at \(dial.service)"))
    }

    private func goOn(_ number: UInt64, _ dial: Dial, to address: SocketAddress) {
        dial.timer.start(at: dial.deadline) { [weak self] in self?.giveUp(number) }
        ByteStream.connect(loop: loop, to: address, timeout: .seconds(2)) { [weak self] result in
            guard let self, let dial = self.dials[number] else {
                if case .success(let stream) = result { stream.close() }
                return
            }
            guard case .success(let stream) = result, let tls = try? TLSSession(role: .client, key: self.key) else {
                return self.waitALittle(number, dial)
            }
            let onward = FrameLink(SecureStream(loop: self.loop, stream: stream, tls: tls))
            dial.onward = onward
            onward.onEstablished = { [weak onward] in
                onward?.send(kind: FrameKind.hello.rawValue, payload: Hello(role: .client).encoded)
            }
            onward.onFrame = { [weak self, weak onward] frame in
                guard let self, let onward, let dial = self.dials[number] else { return }
                switch FrameKind(rawValue: frame.kind) {
                case .welcome:
                    // The other side waits on our behalf, but not so long that a pod that moved is not followed.
                    var writer = ByteWriter()
                    writer.string(dial.service)
                    writer.i64(min(dial.deadline - self.loop.now, .seconds(1)).nanoseconds)
                    writer.bool(true)
                    onward.send(kind: FrameKind.dial.rawValue, payload: writer.bytes)
                case .connected:
                    self.dials[number] = nil
                    dial.timer.close()
                    dial.link.send(kind: FrameKind.connected.rawValue)
                    self.join(dial.link, onward)
                default:
                    onward.close()
                    dial.onward = nil
                    self.waitALittle(number, dial)
                }
            }
            onward.onClose = { [weak self] _ in
                guard let self, let dial = self.dials[number] else { return }
                dial.onward = nil
                self.waitALittle(number, dial)
            }
            onward.start()
        }
    }

    func stop() {
        for number in dials.keys.sorted() { forget(number) }
        for listener in listeners.values { listener.close() }
        listeners = [:]
    }
}
