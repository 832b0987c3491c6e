// The way of a client's request to a node and back: one connection at a time, another node after a break or a silence, the
// same session and sequence however often a command is sent.
import Model
import NodeCore
import Wire

extension World {
    // MARK: - Asking

    func ask(
        _ client: SimulatedClient, _ command: StateCommand, wait: TimeSpan? = nil, lane: Int? = nil,
        then: @escaping (Ending) throws -> Void
    ) {
        if client.role == .porter { return askLocal(client, command, wait: wait, then: then) }
        let place: (lane: Int, sequence: UInt64)
        if let lane {
            place = (lane, client.lanes[lane].next)
            client.lanes[lane].next += 1
            client.lanes[lane].outstanding.insert(place.sequence)
        } else {
            place = client.openLane(waits: wait != nil)
        }
        let until = wait.map { now + $0 }
        begin(client, .command(command, lane: place.lane, sequence: place.sequence), waitUntil: until, then)
    }

    func query(_ client: SimulatedClient, _ path: String, then: @escaping (Ending) throws -> Void) {
        begin(client, .query(path), waitUntil: nil, then)
    }

    private func begin(
        _ client: SimulatedClient, _ kind: Operation.Kind, waitUntil: MonotonicTime?,
        _ then: @escaping (Ending) throws -> Void
    ) {
        let patience = random(3_000_000..<6_000_000)
        let operation = Operation(
            number: nextOperation, kind: kind, askedAt: now, waitUntil: waitUntil,
            deadline: (waitUntil ?? now) + patience,
            seenIndex: oracle.committedIndex, then: then)
        nextOperation += 1
        switch kind {
        case .command(let command, _, _): operation.recorded = record(client, command)
        case .query(let path): operation.recorded = record(client, query: path)
        }
        client.operations[operation.number] = operation
        client.active += 1
        send(operation, of: client)
    }

    private func clientLatency() -> TimeSpan { random(40..<400) }

    func send(_ operation: Operation, of client: SimulatedClient) {
        guard let connection = client.connection else { return search(client) }
        let channel = client.nextChannel
        client.nextChannel += 1
        operation.channel = channel
        operation.sentAt = now
        operation.unresolvedSends += 1
        let request = client.request(operation, now: now)
        if case .command = operation.kind, !isPeaceful, chance(settings.strays) { stray(request, of: client) }
        guard clientReaches(client.index, connection.host) else { return }
        schedule(after: clientLatency(), .request(connection: connection.id, channel: channel, request))
    }

    /// A copy of a command on a connection that its client has given up: it comes late, at any node, and nobody hears the answer.
    private func stray(_ request: ClientRequest, of client: SimulatedClient) {
        let host = Int(generator.next() % UInt64(hosts.count))
        guard hosts[host].isUp else { return }
        let id = nextConnection
        nextConnection += 1
        connections[id] = (client.index, host, hosts[host].life)
        let delay = random(100..<1_400_000)
        schedule(after: delay, .request(connection: id, channel: 1, request))
        schedule(after: delay + .milliseconds(400), .connectionClosed(connection: id))
    }

    private func search(_ client: SimulatedClient) {
        guard client.connection == nil, !client.isSearching else { return }
        client.isSearching = true
        let host = Int(client.generator.next() % UInt64(hosts.count))
        schedule(after: clientLatency(), .connected(client: client.index, host: host, attempt: 0))
    }

    func connected(_ index: Int, _ host: Int, attempt: Int) {
        let client = clients[index]
        client.isSearching = false
        guard client.connection == nil, !client.operations.isEmpty else { return }
        guard clientReaches(index, host), hosts[host].isUp, hosts[host].pausedUntil <= now else {
            client.isSearching = true
            let next = Int(client.generator.next() % UInt64(hosts.count))
            schedule(after: client.random(5_000..<100_000), .connected(client: index, host: next, attempt: attempt + 1))
            return
        }
        let id = nextConnection
        nextConnection += 1
        client.connection = SimulatedClient.Connection(id: id, host: host, life: hosts[host].life)
        connections[id] = (index, host, hosts[host].life)
        for number in client.operations.keys.sorted() {
            if let operation = client.operations[number], operation.channel == nil { send(operation, of: client) }
        }
    }

    /// The client gives its connection up, or finds it gone.
    private func drop(_ client: SimulatedClient) {
        guard let connection = client.connection else { return }
        client.connection = nil
        schedule(after: clientLatency(), .connectionClosed(connection: connection.id))
        for number in client.operations.keys.sorted() { client.operations[number]?.channel = nil }
        if !client.operations.isEmpty { search(client) }
    }

    func connectionBroken(_ id: UInt64) {
        guard let open = connections[id] else { return }
        let client = clients[open.client]
        if client.connection?.id == id { drop(client) }
    }

    // MARK: - Answers

    /// A node answers: the moment at which what it says must hold.
    func respond(_ id: RequestID, _ response: ClientResponse, from host: Int) throws {
        guard let open = connections[id.connection], open.host == host, open.life == hosts[host].life else { return }
        let client = clients[open.client]
        if client.connection?.id == id.connection,
            let operation = client.operations.values.first(where: { $0.channel == id.channel })
        {
            try oracle.check(response, to: operation, of: client, by: hosts[host], in: self)
        }
        guard clientReaches(open.client, host) else { return }
        schedule(after: clientLatency(), .response(connection: id.connection, channel: id.channel, response))
    }

    func answered(_ connection: UInt64, _ channel: UInt32, _ response: ClientResponse) throws {
        guard let open = connections[connection] else { return }
        let client = clients[open.client]
        guard client.connection?.id == connection, clientReaches(open.client, open.host),
            let operation = client.operations.values.first(where: { $0.channel == channel })
        else { return }
        note(
            14, operation.number, text: "answer \(open.client) \(operation.number) \(World.checksum(response.encoded))")
        switch response {
        case .success(let bytes):
            switch operation.kind {
            case .query:
                guard let document = try? JSONValue(parsing: bytes) else { throw Violation("a document is not JSON") }
                figures.reads += 1
                try end(operation, of: client, .document(document))
            case .command:
                var reader = ByteReader(bytes)
                let result = try StateResult(decoding: &reader)
                if case .stale = result {
                    throw Violation("operation \(operation.number) is outstanding and was answered as stale")
                }
                figures.answers += 1
                try end(operation, of: client, .result(result))
            }
        case .failure(let error):
            let isCommand = if case .command = operation.kind { true } else { false }
            let mayRetry: Bool =
                switch error.code {
                case .noLeader: true
                case .unavailable, .outcomeUnknown: isCommand
                default: false
                }
            guard mayRetry else { return try end(operation, of: client, .refused(error)) }
            if error.code == .noLeader { operation.unresolvedSends -= 1 }
            operation.channel = nil
            // Another node may see a leader.
            if hosts.count > 1, client.generator.chance(0.5) { drop(client) }
            schedule(after: client.random(30_000..<200_000), .resend(client: client.index, number: operation.number))
        }
    }

    private func end(_ operation: Operation, of client: SimulatedClient, _ ending: Ending) throws {
        client.close(operation)
        client.active -= 1
        recordEnd(operation.recorded, ending, waited: operation.waitUntil != nil)
        if case .unknown(true) = ending { figures.unknownOutcomes += 1 }
        try operation.then(ending)
    }

    // MARK: - Time

    func clientClock(_ client: SimulatedClient) throws {
        if !client.isDone { schedule(after: .milliseconds(100), .clientClock(client.index)) }
        for number in client.operations.keys.sorted() {
            guard let operation = client.operations[number], operation.deadline <= now else { continue }
            if let channel = operation.channel, let connection = client.connection,
                clientReaches(client.index, connection.host)
            {
                schedule(after: clientLatency(), .cancel(connection: connection.id, channel: channel))
            }
            note(15, number, text: "client \(client.index) gives \(number) up")
            try end(operation, of: client, .unknown(wasSent: operation.unresolvedSends > 0))
        }
        let limit = now - SimulatedClient.silenceLimit
        if client.connection != nil,
            client.operations.values.contains(where: {
                $0.channel != nil && max($0.sentAt, $0.waitUntil ?? .zero) < limit
            })
        {
            drop(client)
        }
    }
}
