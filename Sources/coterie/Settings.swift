// Flags, environment and file put together, in this order of precedence: flag, `COTERIE_*`, file, default (DESIGN 3.6).
import Glibc
import Manifests
import Model
import Transport

struct Settings {
    private let file: [String: ConfigValue]
    private let path: String?

    /// Reads the configuration file, if one is named by the flag or by `COTERIE_CONFIG`.
    init(config: String?, known: [String: ValueKind]) throws {
        path = config ?? environment("COTERIE_CONFIG")
        guard let path else {
            file = [:]
            return
        }
        file = try ConfigurationFile.parse(file: path, text: try readFile(path, limit: 1 << 20), known: known)
    }

    /// What the value is and where it comes from, for messages.
    func text(_ key: String, flag: String?, variable: String?) -> (value: String, origin: String)? {
        if let flag { return (flag, "--\(key)") }
        if let variable, let value = environment(variable) { return (value, variable) }
        guard let value = file[key] else { return nil }
        let origin = "\(path ?? ""): \(key)"
        switch value {
        case .string(let text): return (text, origin)
        case .integer(let number): return (String(number), origin)
        case .boolean(let truth): return (String(truth), origin)
        case .duration(let span): return (span.description, origin)
        case .size(let size): return (String(size), origin)
        case .strings(let list): return (list.joined(separator: ","), origin)
        }
    }

    /// A flag that can be repeated; the variable holds its values separated by commas.
    func texts(_ key: String, flags: [String], variable: String?) -> (values: [String], origin: String) {
        if !flags.isEmpty { return (flags, "--\(key)") }
        if let variable, let value = environment(variable) {
            return (value.split(separator: ",").map(String.init), variable)
        }
        guard case .strings(let list)? = file[key] else { return ([], "--\(key)") }
        return (list, "\(path ?? ""): \(key)")
    }

    func number(_ key: String, flag: Int?, variable: String?) throws(CoterieError) -> Int? {
        guard let (text, origin) = text(key, flag: flag.map(String.init), variable: variable) else { return nil }
        guard let number = Int(text) else { throw CoterieError(.badInput, "\(origin): \(text) is not a number") }
        return number
    }

    func address(_ key: String, flag: String?, variable: String?) throws(CoterieError) -> SocketAddress? {
        guard let (text, origin) = text(key, flag: flag, variable: variable) else { return nil }
        return try resolveAddress(text, for: origin)
    }
}
