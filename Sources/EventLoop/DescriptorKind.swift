// What a descriptor that somebody hands us is. libuv believes what it is told, and ends the process if it can not wait for it.
import CUV
import Glibc

enum DescriptorKind {
    case tcp
    case unix
    /// A FIFO, one end of a pipe, or a terminal.
    case pipe(reads: Bool, writes: Bool)

    /// Throws `EINVAL` for what is no stream: files, `/dev/null`, datagram sockets.
    init(of descriptor: Int32) throws(UVError) {
        var facts = stat()
        guard fstat(descriptor, &facts) == 0 else { throw UVError(errno: errno) }
        switch facts.st_mode & S_IFMT {
        case S_IFSOCK:
            guard DescriptorKind.option(SO_TYPE, of: descriptor) == Int32(SOCK_STREAM.rawValue) else { throw .invalid }
            switch DescriptorKind.option(SO_DOMAIN, of: descriptor) {
            case AF_INET, AF_INET6: self = .tcp
            case AF_UNIX: self = .unix
            default: throw .invalid
            }
        case S_IFIFO: self = DescriptorKind.pipe(descriptor)
        case S_IFCHR where isatty(descriptor) == 1: self = DescriptorKind.pipe(descriptor)
        default: throw .invalid
        }
    }

    private static func option(_ name: Int32, of descriptor: Int32) -> Int32? {
        var value: Int32 = 0
        var size = socklen_t(MemoryLayout<Int32>.size)
        return getsockopt(descriptor, SOL_SOCKET, name, &value, &size) == 0 ? value : nil
    }

    private static func pipe(_ descriptor: Int32) -> DescriptorKind {
        let mode = fcntl(descriptor, F_GETFL) & O_ACCMODE
        return .pipe(reads: mode != O_WRONLY, writes: mode != O_RDONLY)
    }
}

/// libuv cuts a longer path off and goes to another place.
func checkSocketPath(_ path: String) throws(UVError) {
    guard !path.isEmpty, !path.utf8.contains(0) else { throw .invalid }
    guard path.utf8.count < 108 else { throw UVError(errno: ENAMETOOLONG) }
}
