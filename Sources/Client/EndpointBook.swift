// Where a client may find its cluster, and what it says when it does not.
import Model

/// The addresses of a client, shared by all that connects on its behalf. The one that worked last is tried first.
final class EndpointBook {
    /// Members' addresses learned from the cluster, beside those given.
    static let learnedLimit = 64

    private(set) var endpoints: [SocketAddress]
    private let given: Int
    /// Where the addresses come from, in words for people.
    let origin: String
    private(set) var preferred = 0
    /// Some node has answered at some time: a cluster that is gone now may come back.
    private(set) var hasAnswered = false

    init(_ endpoints: [SocketAddress], origin: String) {
        self.endpoints = endpoints
        given = endpoints.count
        self.origin = origin
    }

    /// All, beginning with the preferred one.
    var inOrder: [SocketAddress] { Array(endpoints[preferred...] + endpoints[..<preferred]) }

    func worked(_ address: SocketAddress) {
        hasAnswered = true
        if let index = endpoints.firstIndex(of: address) { preferred = index }
    }

    /// The one that worked does no longer, or has no leader: the next time another one comes first.
    func avoid(_ address: SocketAddress) {
        guard let index = endpoints.firstIndex(of: address), index == preferred else { return }
        preferred = (index + 1) % endpoints.count
    }

    /// Members of the cluster, so that it is found again when the nodes given are gone.
    func learn(_ addresses: [SocketAddress]) {
        let current = endpoints.indices.contains(preferred) ? endpoints[preferred] : nil
        var known = Array(endpoints[..<given])
        for address in addresses where !known.contains(address) && known.count < given + EndpointBook.learnedLimit {
            known.append(address)
        }
        if let current, !known.contains(current) { known.append(current) }
        endpoints = known
        preferred = current.flatMap { known.firstIndex(of: $0) } ?? 0
    }

    func noCluster(_ failures: [(address: SocketAddress, error: CoterieError)]) -> CoterieError {
        guard !endpoints.isEmpty else {
            return CoterieError(.noCluster, "there is no address to ask", hint: "start one with: coterie up")
        }
        let tried =
            failures.isEmpty ? endpoints.map { "\($0)" } : failures.map { "\($0.address) (\($0.error.message))" }
        return CoterieError(
            .noCluster, "no cluster answers at \(tried.joined(separator: ", ")); the address comes from \(origin)",
            hint: "start one with: coterie up")
    }

    static func missingKey(_ address: SocketAddress) -> CoterieError {
        CoterieError(
            .notAllowed, "\(address) is reached with the cluster's key only, and none is given",
            hint: "pass --key FILE or COTERIE_KEY_FILE")
    }
}
