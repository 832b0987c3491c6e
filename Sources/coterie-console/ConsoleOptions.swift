import Model

/// What the console is told.
struct ConsoleOptions: Sendable {
    var listen = SocketAddress.loopback(port: 7631)
    var addresses: [SocketAddress] = []
    var keyFile: String?
    var wantsHelp = false

    static let usage = """
        USAGE: coterie-console [--listen 127.0.0.1:7631] --address unix:PATH|HOST:PORT[,…] [--key FILE]

        Serves the state of a cluster over HTTP, read-only, on a loopback address. An agent starts it by itself:
        coterie agent --http 127.0.0.1:7631
        """

    init(arguments: [String]) throws(CoterieError) {
        var rest = arguments[...]
        func value(_ flag: String) throws(CoterieError) -> String {
            guard let value = rest.popFirst() else { throw CoterieError(.badInput, "\(flag) needs a value") }
            return value
        }
        while let flag = rest.popFirst() {
            switch flag {
            case "--listen":
                let text = try value(flag)
                guard let address = SocketAddress(text: text) else {
                    throw CoterieError(.badInput, "--listen \(text) is not an address", hint: "use HOST:PORT")
                }
                listen = address
            case "--address":
                for part in try value(flag).split(separator: ",") {
                    guard let address = SocketAddress(text: part) else {
                        throw CoterieError(
                            .badInput, "--address \(part) is not an address", hint: "use HOST:PORT or unix:PATH")
                    }
                    addresses.append(address)
                }
            case "--key": keyFile = try value(flag)
            case "-h", "--help": wantsHelp = true
            default: throw CoterieError(.badInput, "unknown option \(flag)", hint: "see coterie-console --help")
            }
        }
        if wantsHelp { return }
        guard !addresses.isEmpty else {
            throw CoterieError(.badInput, "--address is missing", hint: "see coterie-console --help")
        }
        // Whoever can read the page can read every job: until there are certificates and roles, only this machine.
        guard listen.isLoopback else {
            throw CoterieError(
                .notAllowed, "\(listen) is not a loopback address", hint: "listen on 127.0.0.1 and use a tunnel")
        }
    }
}
