// What `coterie sidecar logs` can be told.
import Model

/// Where log records go.
public struct LogTarget: Hashable, Sendable, CustomStringConvertible {
    public enum Kind: Hashable, Sendable {
        /// RFC 5424 messages, octet-counted (RFC 6587).
        case syslog
        /// JSON lines.
        case lines
        /// JSON lines in POST requests to this path.
        case http(path: String)
    }

    public var kind: Kind
    public var endpoint: Endpoint

    public init(kind: Kind, endpoint: Endpoint) {
        self.kind = kind
        self.endpoint = endpoint
    }

    /// `syslog+tcp://H:P`, `tcp://H:P` or `http://H:P/PATH` (port 80 and `/` if left out).
    public init(text: String) throws(CoterieError) {
        let forms = "syslog+tcp://HOST:PORT, tcp://HOST:PORT or http://HOST:PORT/PATH"
        func endpoint(_ text: some StringProtocol) throws(CoterieError) -> Endpoint {
            guard let endpoint = Endpoint(text: text) else {
                throw CoterieError(.badInput, "--to \(text): not a HOST:PORT", hint: "use \(forms)")
            }
            return endpoint
        }
        if text.hasPrefix("syslog+tcp://") {
            self.init(kind: .syslog, endpoint: try endpoint(text.dropFirst(13)))
        } else if text.hasPrefix("tcp://") {
            self.init(kind: .lines, endpoint: try endpoint(text.dropFirst(6)))
        } else if text.hasPrefix("http://") {
            let rest = text.dropFirst(7)
            let slash = rest.firstIndex(of: "/") ?? rest.endIndex
            let authority = rest[..<slash]
            let path = slash == rest.endIndex ? "/" : String(rest[slash...])
            guard path.utf8.allSatisfy({ $0 > 32 && $0 < 127 }), path.utf8.count <= 2_048 else {
                throw CoterieError(.badInput, "--to \(text): the path must be printable ASCII without spaces")
            }
            let hasPort = authority.last != "]" && authority.contains(":")
            self.init(kind: .http(path: path), endpoint: try endpoint(hasPort ? String(authority) : "\(authority):80"))
        } else if text.hasPrefix("coterie:") {
            throw CoterieError(.badInput, "--to \(text): the cluster keeps no logs yet", hint: "use \(forms)")
        } else if text.hasPrefix("https://") {
            throw CoterieError(.badInput, "--to \(text): https is not supported yet", hint: "use \(forms)")
        } else {
            throw CoterieError(.badInput, "--to \(text): unknown kind of target", hint: "use \(forms)")
        }
    }

    public var description: String {
        switch kind {
        case .syslog: "syslog+tcp://\(endpoint)"
        case .lines: "tcp://\(endpoint)"
        case .http(let path): "http://\(endpoint)\(path)"
        }
    }
}

public struct LogSidecarOptions: Sendable {
    /// Holds `CONTAINER.log` files in the CRI text format: `$COTERIE_LOGS`.
    public var logsDirectory: String
    /// The sidecar's own container, whose log it must not send: `$COTERIE_CONTAINER`.
    public var ownContainer: String?
    /// Written into every record: `$COTERIE_POD`, else `$HOSTNAME`.
    public var pod: String
    /// `--container`: only these; empty means all but the own one.
    public var containers: [String] = []
    /// `--file`: globs of plain text files.
    public var files: [String] = []
    /// `--to`: at least one, at most eight.
    public var targets: [LogTarget]
    /// `--spool`: the directory for checkpoints; nil keeps them in memory, so that a restart sends everything again.
    public var spool: String?
    /// `--spool-limit`: bytes of rotated, not yet sent files that are held for a target that is down; the oldest are given up
    /// beyond that.
    public var spoolLimit: UInt64 = 256 << 20
    /// How long ``LogSidecar/stop(then:)`` may take to send what is left.
    public var grace: TimeSpan = .seconds(5)

    /// Directories and names from the environment.
    public init(targets: [LogTarget]) {
        self.targets = targets
        logsDirectory = environmentValue("COTERIE_LOGS") ?? "/run/coterie/logs"
        ownContainer = environmentValue("COTERIE_CONTAINER")
        pod = environmentValue("COTERIE_POD") ?? environmentValue("HOSTNAME") ?? "-"
    }
}
