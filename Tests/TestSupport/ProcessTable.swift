// What `/proc` tells about processes that are not our children: descendants of the programs under test.
import Foundation
import Glibc

public enum ProcessTable {
    /// Processes whose command line or environment contains the text; kernel threads and zombies contain nothing.
    public static func processes(naming text: String) -> [Int32] {
        let needle = Data(text.utf8)
        return pids().filter { pid in
            for file in ["cmdline", "environ"] {
                if let data = contents("/proc/\(pid)/\(file)"), data.range(of: needle) != nil { return true }
            }
            return false
        }
    }

    /// Processes whose command line, words joined by spaces, contains the text.
    public static func processes(running text: String) -> [Int32] { pids().filter { commandLine($0).contains(text) } }

    /// Processes whose whole command line, words joined by spaces, is the text.
    public static func processes(exactly text: String) -> [Int32] { pids().filter { commandLine($0) == text } }

    private static func commandLine(_ pid: Int32) -> String {
        guard let data = contents("/proc/\(pid)/cmdline") else { return "" }
        return data.split(separator: 0).map { String(decoding: $0, as: UTF8.self) }.joined(separator: " ")
    }

    /// Removes mounts that killed processes left below a directory.
    static func unmount(below directory: String) {
        guard let data = contents("/proc/self/mounts") else { return }
        let points = String(decoding: data, as: UTF8.self).split(separator: "\n").compactMap { line -> String? in
            let words = line.split(separator: " ")
            return words.count > 1 && words[1].hasPrefix(directory + "/") ? String(words[1]) : nil
        }
        for point in points.reversed() { umount2(point, Int32(MNT_DETACH)) }
    }

    private static func pids() -> [Int32] {
        ((try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []).compactMap { Int32($0) }
    }

    /// Files of `/proc` have no size, so they are read to their end.
    private static func contents(_ path: String) -> Data? {
        guard let handle = FileHandle(forReadingAtPath: path) else { return nil }
        defer { try? handle.close() }
        return try? handle.readToEnd()
    }
}
