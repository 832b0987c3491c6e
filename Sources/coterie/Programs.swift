// The programs beside this one: a node starts `coterie-console` and `coterie-init`, `up` starts `coterie` itself.
import Glibc
import Model
import Node

extension AgentOptions.Programs {
    /// In the directory of the running program, else in PATH. One that is nowhere is named by where it should be, so that
    /// whoever needs it says so.
    static var found: AgentOptions.Programs {
        let own = ownProgram
        return AgentOptions.Programs(
            coterie: own, console: beside(own, "coterie-console"), initProcess: beside(own, "coterie-init"))
    }

    static var ownProgram: String {
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX) + 1)
        let n = readlink("/proc/self/exe", &buffer, Int(PATH_MAX))
        guard n > 0 else { return CommandLine.arguments.first ?? "coterie" }
        return String(decoding: buffer[..<n].map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    private static func beside(_ own: String, _ name: String) -> String {
        let directory = own.lastIndex(of: "/").map { String(own[..<$0]) } ?? "."
        let expected = directory + "/" + name
        if access(expected, X_OK) == 0 { return expected }
        for part in (environment("PATH") ?? "").split(separator: ":") {
            let candidate = part + "/" + name
            if access(candidate, X_OK) == 0 { return candidate }
        }
        return expected
    }
}

/// The version of this program.
let programVersion = "0.1.0"
