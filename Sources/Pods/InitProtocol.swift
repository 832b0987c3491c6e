// What agent and `coterie-init` say to each other (Sources/coterie-init/init.h holds the other side):
//     u32 length of what follows | u8 kind | u8 number of descriptors that came with it | body
// with little-endian integers; a text is u32 length and bytes, a list is u32 count and items.
import Model
import Wire

/// A pod's sandbox, before any container.
struct SandboxSetup: Hashable {
    struct Listener: Hashable {
        var container: String
        var port: UInt16
    }

    struct MemoryVolume: Hashable {
        var path: String
        /// Zero is no limit but the host's memory.
        var bytes: UInt64
    }

    var hostNetwork: Bool
    /// Never 0. `hostSideUser` is for containers that run on the host's side of the network.
    var user: UInt32
    var group: UInt32
    var hostSideUser: UInt32
    var hostname: String
    var directory: String
    /// The program to bind at `/run/coterie/bin/coterie`; empty for none.
    var supplied: String
    var listeners: [Listener]
    var masks: [String]
    var memoryVolumes: [MemoryVolume]
}

/// One mount of a container.
struct SandboxMount: Hashable {
    static let readOnly: UInt8 = 1
    /// A volume of the pod's own: directories may be made in it.
    static let mayCreate: UInt8 = 2
    /// Left out where the image has no such path.
    static let optional: UInt8 = 4

    /// An existing path on the host without symbolic links.
    var source: String
    var subPath = ""
    var target: String
    var flags: UInt8
}

/// One run of a container.
struct ContainerStart: Hashable {
    var run: UInt32
    var hostSide: Bool
    var name: String
    /// The image's root on the host; empty for the host's own.
    var image: String
    /// The container's directory on the host.
    var directory: String
    var workingDirectory: String
    var arguments: [String]
    var environment: [String]
    /// Files to write "0" to.
    var cgroups: [String]
    var outOfMemoryScore: Int32
    var mounts: [SandboxMount]
}

/// A command in a running container.
struct CommandStart: Hashable {
    var run: UInt32
    var target: UInt32
    var hasInput: Bool
    var workingDirectory: String
    var arguments: [String]
    var environment: [String]
    var cgroups: [String]
    var outOfMemoryScore: Int32
}

/// A connection to a port on the pod's localhost, with an HTTP request if there is a path.
struct ProbeStart: Hashable {
    var run: UInt32
    var hostSide: Bool
    var port: UInt16
    var timeoutMilliseconds: UInt32
    var path: String?
}

enum InitCommand: Hashable {
    /// Longest message that `coterie-init` takes.
    static let limit = 1 << 20

    case setUp(SandboxSetup)
    case start(ContainerStart)
    case command(CommandStart)
    case probe(ProbeStart)
    case signal(run: UInt32, number: Int32)
    /// The pod ends by itself at this moment since boot; nil takes that back.
    case lease(until: MonotonicTime?)
    case shutDown

    private var kind: UInt8 {
        switch self {
        case .setUp: 1
        case .start: 2
        case .command: 3
        case .probe: 4
        case .signal: 5
        case .lease: 6
        case .shutDown: 7
        }
    }

    /// The whole message, its length included; the caller checks ``limit``.
    func encoded(descriptors: Int) -> [UInt8] {
        var w = ByteWriter(capacity: 512)
        w.u32(0)
        w.u8(kind)
        w.u8(UInt8(descriptors))
        switch self {
        case .setUp(let setup):
            w.bool(setup.hostNetwork)
            w.u32(setup.user)
            w.u32(setup.group)
            w.u32(setup.hostSideUser)
            w.text(setup.hostname)
            w.text(setup.directory)
            w.text(setup.supplied)
            w.u32(UInt32(setup.listeners.count))
            for listener in setup.listeners {
                w.text(listener.container)
                w.u32(UInt32(listener.port))
            }
            w.texts(setup.masks)
            w.u32(UInt32(setup.memoryVolumes.count))
            for volume in setup.memoryVolumes {
                w.text(volume.path)
                w.u64(volume.bytes)
            }
        case .start(let start):
            w.u32(start.run)
            w.bool(start.hostSide)
            w.text(start.name)
            w.text(start.image)
            w.text(start.directory)
            w.text(start.workingDirectory)
            w.texts(start.arguments)
            w.texts(start.environment)
            w.texts(start.cgroups)
            w.u32(UInt32(bitPattern: start.outOfMemoryScore))
            w.u32(UInt32(start.mounts.count))
            for mount in start.mounts {
                w.text(mount.source)
                w.text(mount.subPath)
                w.text(mount.target)
                w.u8(mount.flags)
            }
        case .command(let command):
            w.u32(command.run)
            w.u32(command.target)
            w.bool(command.hasInput)
            w.text(command.workingDirectory)
            w.texts(command.arguments)
            w.texts(command.environment)
            w.texts(command.cgroups)
            w.u32(UInt32(bitPattern: command.outOfMemoryScore))
        case .probe(let probe):
            w.u32(probe.run)
            w.bool(probe.hostSide)
            w.bool(probe.path != nil)
            w.u32(UInt32(probe.port))
            w.u32(probe.timeoutMilliseconds)
            w.text(probe.path ?? "")
        case .signal(let run, let number):
            w.u32(run)
            w.u32(UInt32(bitPattern: number))
        case .lease(let until): w.u64(until?.nanoseconds ?? 0)
        case .shutDown: break
        }
        w.patch(u32: UInt32(w.count - 4), at: 0)
        return w.bytes
    }
}

/// What `coterie-init` tells.
enum InitReport: Hashable {
    case ready
    case failed(String)
    case started(run: UInt32, pid: UInt32)
    case error(run: UInt32, String)
    case exited(run: UInt32, code: Int32)
}

/// Cuts reports out of the bytes of the control socket.
struct InitReportDecoder {
    static let limit = 1 << 16
    private var buffer: [UInt8] = []
    private var start = 0

    mutating func feed(_ bytes: some Collection<UInt8>) {
        if start > 0 {
            buffer.removeFirst(start)
            start = 0
        }
        buffer.append(contentsOf: bytes)
    }

    /// Nil until more bytes come.
    mutating func next() throws(WireError) -> InitReport? {
        var reader = ByteReader(buffer[start...])
        guard reader.remaining >= 4 else { return nil }
        let length = Int(try reader.u32())
        guard length >= 6, length <= InitReportDecoder.limit else {
            throw .tooLong(at: 0, length: length, limit: InitReportDecoder.limit)
        }
        guard reader.remaining >= length else { return nil }
        var body = ByteReader(try reader.raw(length))
        start += 4 + length
        let kind = try body.u8()
        _ = try body.u8()
        let run = try body.u32()
        let report: InitReport
        switch kind {
        case 64: report = .ready
        case 65: report = .failed(try body.text())
        case 66: report = .started(run: run, pid: try body.u32())
        case 67: report = .error(run: run, try body.text())
        case 68: report = .exited(run: run, code: Int32(bitPattern: try body.u32()))
        default: throw .invalid(at: 4, what: "kind of report")
        }
        try body.finish()
        return report
    }
}

extension ByteWriter {
    fileprivate mutating func text(_ value: String) {
        u32(UInt32(value.utf8.count))
        raw(value.utf8)
    }

    fileprivate mutating func texts(_ values: [String]) {
        u32(UInt32(values.count))
        for value in values { text(value) }
    }
}

extension ByteReader {
    /// Texts of errors hold paths, which need not be UTF-8.
    fileprivate mutating func text() throws(WireError) -> String {
        String(decoding: try raw(Int(try u32())), as: UTF8.self)
    }
}
