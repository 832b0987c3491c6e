// The options that every command understands, accepted anywhere before `--` (DESIGN 3.1). They are taken out of the
// arguments before the command itself is parsed, so that their place does not matter.
import Glibc
import Model
import Transport

/// Global options, from flags and environment.
struct GlobalOptions: Sendable {
    var addresses: [SocketAddress] = []
    /// Where the addresses come from, for error messages.
    var addressOrigin = ""
    var keyFile: String?
    var timeout: TimeSpan = .seconds(30)
    var timeoutGiven = false
    var json = false
    var noColor = false

    /// The arguments without the global options.
    var rest: [String] = []

    /// Flags that take a value and mean something else in one command: `queue put --key K` names a dedupe key.
    private static func isOwnFlag(_ flag: String, words: [String]) -> Bool {
        flag == "--key" && words.starts(with: ["queue", "put"])
    }

    init(arguments: [String]) throws(CoterieError) {
        var words: [String] = []
        var addressText = environment("COTERIE_ADDRESS")
        addressOrigin = addressText == nil ? "" : "COTERIE_ADDRESS"
        keyFile = environment("COTERIE_KEY_FILE")
        noColor = environment("NO_COLOR") != nil
        var i = 0
        while i < arguments.count {
            let argument = arguments[i]
            if argument == "--" {
                rest.append(contentsOf: arguments[i...])
                break
            }
            let (flag, inline) = GlobalOptions.split(argument)
            func value() throws(CoterieError) -> String {
                if let inline { return inline }
                i += 1
                guard i < arguments.count, arguments[i] != "--" else {
                    throw CoterieError(.badInput, "\(flag) needs a value", hint: "see coterie --help")
                }
                return arguments[i]
            }
            switch flag {
            case "--json": json = true
            case "--no-color": noColor = true
            case "--address":
                addressText = try value()
                addressOrigin = "--address"
            case "--key" where !GlobalOptions.isOwnFlag(flag, words: words): keyFile = try value()
            case "--timeout":
                let text = try value()
                guard let span = TimeSpan(text: text), span > .zero else {
                    throw CoterieError(.badInput, "--timeout \(text) is not a duration", hint: "use 250ms, 3s or 5m")
                }
                timeout = span
                timeoutGiven = true
            default:
                rest.append(argument)
                if !argument.hasPrefix("-") { words.append(argument) }
            }
            i += 1
        }
        if let addressText {
            for part in addressText.split(separator: ",") {
                addresses.append(try resolveAddress(String(part), for: addressOrigin))
            }
            guard !addresses.isEmpty else {
                throw CoterieError(.badInput, "\(addressOrigin) is empty", hint: "use HOST:PORT or unix:PATH")
            }
        }
    }

    private static func split(_ argument: String) -> (String, String?) {
        guard argument.hasPrefix("--"), let equals = argument.firstIndex(of: "=") else { return (argument, nil) }
        return (String(argument[..<equals]), String(argument[argument.index(after: equals)...]))
    }
}

func environment(_ name: String) -> String? {
    guard let value = getenv(name) else { return nil }
    let text = String(cString: value)
    return text.isEmpty ? nil : text
}

/// Where this user's clusters and nodes keep their files.
enum DefaultPaths {
    /// The data directory of an agent without `--data`.
    static var dataDirectory: String {
        if geteuid() == 0 { return "/var/lib/coterie" }
        return (environment("XDG_DATA_HOME") ?? home + "/.local/share") + "/coterie"
    }

    static var home: String { environment("HOME") ?? "/tmp" }

    /// Names the cluster that `coterie up` started last for this user.
    static var lastCluster: String {
        (environment("XDG_STATE_HOME") ?? home + "/.local/state") + "/coterie/last-cluster"
    }
}
