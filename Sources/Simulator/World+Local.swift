// Clients that speak to a node from inside it, as connections of the queue protocol do: they live and die with the process, can
// end a wait early, take a command back, and read after asking for a point in the log.
import Model
import NodeCore
import Wire

/// A command or read that came through the node's own door.
struct LocalCall {
    var client: Int
    var host: Int
    var life: Int
    /// Nil for a read.
    var command: (session: SessionID, sequence: UInt64, waits: Bool)?
    var seenIndex: UInt64
    /// Its place in the history.
    var recorded: Int?
    var then: (Ending) throws -> Void
}

extension World {
    private func isConnected(_ client: SimulatedClient) -> Bool {
        guard let connection = client.connection else { return false }
        return hosts[connection.host].isUp && hosts[connection.host].life == connection.life
    }

    /// True if the client has a node to speak to; each connection has a session of its own.
    private func connect(_ client: SimulatedClient) -> Bool {
        if isConnected(client) { return true }
        let host = Int(client.generator.next() % UInt64(hosts.count))
        guard hosts[host].isUp, hosts[host].pausedUntil <= now else { return false }
        client.connection = SimulatedClient.Connection(id: 0, host: host, life: hosts[host].life)
        client.lanes.append(SimulatedClient.Lane(id: SessionID(using: &client.generator), waits: false))
        return true
    }

    func askLocal(
        _ client: SimulatedClient, _ command: StateCommand, wait: TimeSpan?, then: @escaping (Ending) throws -> Void
    ) {
        guard let connection = client.connection, isConnected(client) else {
            return schedule(after: .microseconds(1), .later { try then(.unknown(wasSent: false)) })
        }
        let lane = client.lanes.count - 1
        let sequence = client.lanes[lane].next
        client.lanes[lane].next += 1
        client.lanes[lane].outstanding.insert(sequence)
        let id = nextOperation
        nextOperation += 1
        client.active += 1
        let session = client.lanes[lane].id
        localCalls[id] = LocalCall(
            client: client.index, host: connection.host, life: connection.life,
            command: (session, sequence, wait != nil),
            seenIndex: oracle.committedIndex, recorded: record(client, command)
        ) { ending in
            client.lanes[lane].outstanding.remove(sequence)
            try then(ending)
        }
        let full = ClientCommand(
            session: session, sequence: sequence, firstOutstanding: client.lanes[lane].firstOutstanding, wait: wait,
            command: command)
        feed(connection.host, .local(id, full))
        guard wait != nil else { return }
        // Some workers do not wait to the end: one asks for what there is, another hangs up.
        switch client.generator.next() % 6 {
        case 0: schedule(after: client.random(1_000..<300_000), .endWait(id))
        case 1: schedule(after: client.random(1_000..<300_000), .cancelLocal(id))
        default: break
        }
    }

    func takeLocalTurn(_ client: SimulatedClient) {
        guard connect(client), let connection = client.connection, client.active < 4 else { return }
        switch client.generator.next() % 8 {
        case 0, 1: put(client, count: 1) { _ in }
        case 2:
            let id = nextOperation
            nextOperation += 1
            client.active += 1
            localCalls[id] = LocalCall(
                client: client.index, host: connection.host, life: connection.life, seenIndex: oracle.committedIndex
            ) { _ in }
            feed(connection.host, .localRead(id))
        default: reserveOnce(client, isDraining: false) { _ in }
        }
    }

    func endLocal(_ id: UInt64, _ ending: Ending) throws {
        guard let call = localCalls.removeValue(forKey: id) else { return }
        note(17, id, text: "local \(call.client) \(id) ends")
        clients[call.client].active -= 1
        recordEnd(call.recorded, ending, waited: call.command?.waits ?? false)
        if case .unknown = ending { figures.unknownOutcomes += 1 } else { figures.localAnswers += 1 }
        try call.then(ending)
    }

    func endWaitEarly(_ id: UInt64) {
        guard let call = localCalls[id], hosts[call.host].life == call.life else { return }
        feed(call.host, .endWait(id))
    }

    func cancelLocal(_ id: UInt64) throws {
        guard let call = localCalls[id], hosts[call.host].life == call.life else { return }
        feed(call.host, .cancelLocal(id))
        try endLocal(id, .unknown(wasSent: true))
    }

    /// The connections to a process end with it.
    func localCallsGone(with host: Int) {
        for id in localCalls.keys.sorted() where localCalls[id]?.host == host {
            schedule(after: .microseconds(1), .later { [weak self] in try self?.endLocal(id, .unknown(wasSent: true)) })
        }
    }

    func localResult(_ id: UInt64, _ result: Result<StateResult, CoterieError>, from host: Int) throws {
        guard let call = localCalls[id] else { return }
        guard call.host == host, let command = call.command else {
            throw Violation("node \(host) answers a local command of another")
        }
        switch result {
        case .success(let value):
            try oracle.check(
                value, session: command.session, sequence: command.sequence, waits: command.waits,
                seenIndex: call.seenIndex,
                by: hosts[host])
            try endLocal(id, .result(value))
        case .failure(let error): try endLocal(id, .refused(error))
        }
    }

    func localReadReady(_ id: UInt64, _ error: CoterieError?, from host: Int) throws {
        guard let call = localCalls[id] else { return }
        if error == nil, (hosts[host].core?.appliedIndex ?? 0) < call.seenIndex {
            throw Violation(
                "node \(host) lets a local read see \(hosts[host].core?.appliedIndex ?? 0) after \(call.seenIndex) was committed"
            )
        }
        try endLocal(id, .refused(error ?? CoterieError(.failed, "read")))
    }
}
