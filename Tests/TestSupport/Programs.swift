// Where the programs under test are, and what else the machine offers: found once, so that a test that can not run here says
// why instead of failing.
import Foundation
import Glibc

/// The built programs and the machine's own.
public enum Programs {
    /// The directory of `coterie`, `coterie-init` and `coterie-console`: `COTERIE_BINARIES`, else the directory of the running
    /// test bundle, in which SwiftPM puts every product of the package.
    public static let directory: String = {
        if let given = ProcessInfo.processInfo.environment["COTERIE_BINARIES"], !given.isEmpty { return given }
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX) + 1)
        let n = readlink("/proc/self/exe", &buffer, Int(PATH_MAX))
        let own =
            n > 0
            ? String(decoding: buffer[..<n].map { UInt8(bitPattern: $0) }, as: UTF8.self) : CommandLine.arguments[0]
        return (own as NSString).deletingLastPathComponent
    }()

    public static let coterie = directory + "/coterie"

    /// True if the console was built too: a package of some targets only may lack it.
    public static let hasConsole = access(directory + "/coterie-console", X_OK) == 0

    public static let isRoot = geteuid() == 0

    /// True if the kernel gives this user the name spaces that pods need: tried with the system's own `unshare`.
    public static let canRunPods: Bool = {
        guard access(directory + "/coterie-init", X_OK) == 0, isRoot, let unshare = find("unshare") else {
            return false
        }
        let trial = Process()
        trial.executableURL = URL(fileURLWithPath: unshare)
        trial.arguments = ["--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "true"]
        trial.standardError = FileHandle.nullDevice
        guard (try? trial.run()) != nil else { return false }
        trial.waitUntilExit()
        return trial.terminationStatus == 0
    }()

    /// A Python that knows the module, else nil. The system's own comes first: pods can read that one.
    public static func python(with module: String? = nil) -> String? {
        let candidates = (access("/usr/bin/python3", X_OK) == 0 ? ["/usr/bin/python3"] : []) + findAll("python3")
        return candidates.first { path in
            guard let module else { return true }
            let trial = Process()
            trial.executableURL = URL(fileURLWithPath: path)
            trial.arguments = ["-c", "import " + module]
            trial.standardError = FileHandle.nullDevice
            guard (try? trial.run()) != nil else { return false }
            trial.waitUntilExit()
            return trial.terminationStatus == 0
        }
    }

    /// A Python that speaks the queue protocol.
    public static let greenstalk = python(with: "greenstalk")

    /// A program of the machine by name, else nil.
    public static func find(_ name: String) -> String? { findAll(name).first }

    private static func findAll(_ name: String) -> [String] {
        let path = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        return path.split(separator: ":").map { $0 + "/" + name }.filter { access($0, X_OK) == 0 }
    }
}
