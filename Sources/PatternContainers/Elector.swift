// The elector: a campaign at the cluster, and the endpoint at which the app asks how it stands.
import EventLoop
import Model

/// The elector whole: the campaign and what the app asks it.
public final class Elector {
    private let campaign: ElectionCampaign
    private let endpoint: ElectorEndpoint

    public init(
        loop: EventLoop, options: ElectorOptions, service: any LeaseService, identity: ContainerIdentity = .current,
        report: @escaping Report = reportToStandardError
    ) {
        var system = SystemRandomNumberGenerator()
        campaign = ElectionCampaign(
            loop: loop, service: service, name: options.election, identity: identity, ttl: options.ttl,
            seed: system.next(), report: report)
        endpoint = ElectorEndpoint(loop: loop, options: options, source: campaign, report: report)
    }

    public func start() throws(CoterieError) {
        try endpoint.start()
        campaign.start()
    }

    /// Nil before ``start()``.
    public var localAddress: SocketAddress? { endpoint.localAddress }

    /// Gives the lease up, if it is held, and closes the endpoint.
    public func stop(_ done: @escaping () -> Void) {
        campaign.stop { [self] in
            endpoint.stop()
            done()
        }
    }
}
