// What `up` and `down` know of a cluster on this machine: its directory, the record of the cluster started last, and whether a
// node's directory is in use.
import CPlatform
import Glibc
import Model
import Transport
import Wire

/// One node of a local cluster: where it keeps its files and which ports it takes.
struct LocalNode: Sendable {
    var name: String
    var directory: String
    var streams: UInt16
    var http: UInt16
    var queue: UInt16

    var address: String { "127.0.0.1:\(streams)" }
    var socket: String { directory + "/agent.sock" }
    var log: String { directory + "/agent.log" }

    /// The first sets of ports that are free: 7630+10·k, 7631+10·k and 11300+k.
    static func plan(_ count: Int, in directory: String) throws(CoterieError) -> [LocalNode] {
        var nodes: [LocalNode] = []
        var set = 0
        while nodes.count < count {
            guard set < 1_000 else { throw CoterieError(.failed, "there are no free ports for \(count) nodes") }
            let streams = UInt16(7_630 + 10 * set)
            let queue = UInt16(11_300 + set)
            set += 1
            guard PortProbe.isFree(streams, type: PortProbe.stream),
                PortProbe.isFree(streams, type: PortProbe.datagram),
                PortProbe.isFree(streams + 1, type: PortProbe.stream), PortProbe.isFree(queue, type: PortProbe.stream)
            else { continue }
            let name = "node\(nodes.count)"
            nodes.append(
                LocalNode(
                    name: name, directory: directory + "/" + name, streams: streams, http: streams + 1, queue: queue))
        }
        return nodes
    }
}

/// What a directory of `up` remembers of its cluster, in `DIR/cluster.json`.
struct LocalCluster {
    var cluster: String
    var nodes: Int
    /// How many nodes the first start had: its founders come from these.
    var founders: Int

    static func read(_ directory: String) -> LocalCluster? {
        guard let text = try? readFile(directory + "/cluster.json", limit: 65_536),
            let document = try? JSONValue(parsing: text),
            let cluster = document["cluster"]?.stringValue,
            let nodes = document["nodes"]?.intValue.flatMap({ Int(exactly: $0) }),
            let founders = document["founders"]?.intValue.flatMap({ Int(exactly: $0) }), nodes > 0, founders > 0
        else { return nil }
        return LocalCluster(cluster: cluster, nodes: nodes, founders: founders)
    }

    func write(_ directory: String) throws(CoterieError) {
        let document: JSONValue = [
            "cluster": .string(cluster), "nodes": JSONValue(nodes), "founders": JSONValue(founders),
        ]
        try writeFileDurably(directory + "/cluster.json", Array((document.text() + "\n").utf8), mode: 0o600)
    }
}

/// The record of the cluster that this user started last: clients without an address find it there.
struct ClusterRecord {
    var addresses: [String]
    var data: String
    var pids: [Int32]
    /// The data directory was made for this cluster and goes with it.
    var isTemporary: Bool

    static func read() -> ClusterRecord? {
        guard let text = try? readFile(DefaultPaths.lastCluster, limit: 65_536),
            let document = try? JSONValue(parsing: text),
            let data = document["data"]?.stringValue
        else { return nil }
        return ClusterRecord(
            addresses: document.list("addresses").compactMap(\.stringValue), data: data,
            pids: document.list("pids").compactMap { $0.intValue.flatMap { Int32(exactly: $0) } },
            isTemporary: document["temporary"] == .bool(true))
    }

    func write() throws(CoterieError) {
        let path = DefaultPaths.lastCluster
        if let slash = path.lastIndex(of: "/") { try makeDirectory(String(path[..<slash]), mode: 0o700) }
        let document: JSONValue = [
            "addresses": .array(addresses.map { .string($0) }), "data": .string(data),
            "pids": .array(pids.map { JSONValue($0) }),
            "temporary": .bool(isTemporary),
        ]
        try writeFileDurably(path, Array((document.text() + "\n").utf8), mode: 0o600)
    }

    /// Removes the record if it is that of the cluster in `data`.
    static func remove(data: String) {
        if read()?.data == data { unlink(DefaultPaths.lastCluster) }
    }
}

/// The process that uses a node's data directory, by the lock on it and the name of its program.
enum NodeProcess {
    /// Nil if the directory is not in use.
    static func running(in directory: String) -> Int32? {
        let descriptor = open(directory + "/lock", O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        if flock(descriptor, LOCK_SH | LOCK_NB) == 0 { return nil }
        guard let text = try? readFile(directory + "/lock", limit: 64),
            let pid = Int32(String(decoding: text, as: UTF8.self).trimmingSpaces), pid > 1
        else { return nil }
        guard let command = try? readFile("/proc/\(pid)/cmdline", limit: 1 << 20) else { return nil }
        let words = command.split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
        return words.dropFirst().contains("agent") ? pid : nil
    }

    /// The `node*` directories of a local cluster, in order.
    static func directories(of data: String) -> [String] {
        guard let stream = opendir(data) else { return [] }
        defer { closedir(stream) }
        var names: [String] = []
        while let entry = readdir(stream) {
            let name = entryName(entry)
            if name.hasPrefix("node"), let number = Int(name.dropFirst(4)), number >= 0 { names.append(name) }
        }
        return names.sorted { ($0.count, $0) < ($1.count, $1) }.map { data + "/" + $0 }
    }
}

/// Removes a directory with all below it, without following links. What can not be removed stays.
func removeDirectoryTree(_ path: String) {
    if let stream = opendir(path) {
        var entries: [(name: String, isDirectory: Bool)] = []
        while let entry = readdir(stream) {
            let name = entryName(entry)
            if name == "." || name == ".." { continue }
            var info = stat()
            let isDirectory = lstat(path + "/" + name, &info) == 0 && info.st_mode & S_IFMT == S_IFDIR
            entries.append((name, isDirectory))
        }
        closedir(stream)
        for entry in entries {
            if entry.isDirectory {
                removeDirectoryTree(path + "/" + entry.name)
            } else {
                unlink(path + "/" + entry.name)
            }
        }
    }
    rmdir(path)
}

func entryName(_ entry: UnsafeMutablePointer<dirent>) -> String {
    withUnsafePointer(to: &entry.pointee.d_name) { pointer in
        pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
    }
}

/// A new directory of this user alone: `/tmp/coterie-UID-XXXXXX`.
func makeTemporaryDirectory() throws(CoterieError) -> String {
    var template = Array("/tmp/coterie-\(geteuid())-XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else {
        throw CoterieError(.failed, "cannot make a directory in /tmp: \(errnoMessage())")
    }
    return String(decoding: template.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
}

/// The path from the root, so that it means the same to other processes.
func absolutePath(_ path: String) -> String {
    if path.hasPrefix("/") { return path }
    guard let here = getcwd(nil, 0) else { return path }
    defer { free(here) }
    return String(cString: here) + "/" + path
}

extension String {
    var trimmingSpaces: String {
        var text = Substring(self)
        while let first = text.first, first.isWhitespace { text.removeFirst() }
        while let last = text.last, last.isWhitespace { text.removeLast() }
        return String(text)
    }
}
