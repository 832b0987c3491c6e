// The seams of the supplied containers over the client library.
import Client
import Leases
import Model
import NodeCore
import Queues
import Transport

/// A cluster through one ``Client/ClusterClient``, which it closes in the end.
public final class ClusterAccess: LeaseService, QueueService, ServiceDialer {
    private let client: ClusterClient
    private let dialTimeout: TimeSpan

    public init(_ client: ClusterClient, dialTimeout: TimeSpan = .seconds(10)) {
        self.client = client
        self.dialTimeout = dialTimeout
    }

    public func close() { client.close() }

    public func lease(
        _ command: LeaseCommand, wait: TimeSpan?, done: @escaping (Result<LeaseResult, CoterieError>) -> Void
    ) {
        client.command(.lease(command), wait: wait) { result in
            switch result {
            case .success(.lease(let answer)): done(.success(answer))
            case .success(let other): done(.failure(ClusterAccess.unexpected(other)))
            case .failure(let error): done(.failure(error))
            }
        }
    }

    public func queue(
        _ command: QueueCommand, wait: TimeSpan?, done: @escaping (Result<QueueResult, CoterieError>) -> Void
    ) {
        client.command(.queue(command), wait: wait) { result in
            switch result {
            case .success(.queue(let answer)): done(.success(answer))
            case .success(let other): done(.failure(ClusterAccess.unexpected(other)))
            case .failure(let error): done(.failure(error))
            }
        }
    }

    public func dial(
        service: String, done: @escaping (Result<(stream: SecureStream, pending: [UInt8]), CoterieError>) -> Void
    ) {
        client.dial(service, timeout: dialTimeout) { result in
            switch result {
            case .success(let raw): done(.success(raw.release()))
            case .failure(let error): done(.failure(error))
            }
        }
    }

    private static func unexpected(_ result: StateResult) -> CoterieError {
        CoterieError(.failed, "an answer of the wrong kind: \(result)")
    }
}
