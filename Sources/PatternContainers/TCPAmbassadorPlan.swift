// The two ways of `coterie ambassador tcp`.
import Model

/// What `coterie ambassador tcp` can be told: where the service is, or its name in the cluster.
public enum TCPAmbassadorPlan: Sendable {
    case direct(TCPAmbassadorOptions)
    case service(ServiceAmbassadorOptions)

    /// `--listen H:P (--to H:P… | --service NAME) [--connect-timeout D] [--retries N]`.
    public init(arguments: [String]) throws(CoterieError) {
        var flags = try FlagReader("ambassador tcp", arguments)
        let listen = try flags.address("--listen")
        let to = try flags.endpoints("--to")
        let service = try flags.value("--service")
        let timeout = try flags.duration("--connect-timeout")
        let retries = try flags.number("--retries", in: 0...1_000)
        try flags.finish(takesCommand: false)
        guard let listen else { throw CoterieError(.badInput, "ambassador tcp: --listen ADDRESS:PORT is needed") }
        guard to.isEmpty != (service == nil) else {
            throw CoterieError(.badInput, "ambassador tcp: either --to HOST:PORT or --service NAME is needed")
        }
        if let timeout, timeout <= .zero {
            throw CoterieError(.badInput, "ambassador tcp: --connect-timeout must be longer than 0")
        }
        if let service {
            var options = ServiceAmbassadorOptions(listen: listen, service: service)
            if let retries { options.retries = retries }
            self = .service(options)
        } else {
            var options = TCPAmbassadorOptions(listen: listen, to: to)
            if let timeout { options.connectTimeout = timeout }
            if let retries { options.retries = retries }
            self = .direct(options)
        }
    }
}
