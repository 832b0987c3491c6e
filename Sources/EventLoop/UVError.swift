// libuv's error codes as a value.
import CUV

/// A failed libuv or system call. `code` is libuv's (a negated errno).
public struct UVError: Error, Hashable, Sendable, CustomStringConvertible {
    public var code: Int32

    public init(code: Int32) { self.code = code }

    /// From the present `errno`.
    public init(errno: Int32) { code = -errno }

    /// `ECONNREFUSED`, `EADDRINUSE`, …
    public var name: String {
        var buffer = [CChar](repeating: 0, count: 64)
        return buffer.withUnsafeMutableBufferPointer { String(cString: uv_err_name_r(code, $0.baseAddress, $0.count)) }
    }

    public var description: String {
        var buffer = [CChar](repeating: 0, count: 128)
        return buffer.withUnsafeMutableBufferPointer { String(cString: uv_strerror_r(code, $0.baseAddress, $0.count)) }
    }

    public static let timedOut = UVError(code: UV_ETIMEDOUT.rawValue)
    public static let canceled = UVError(code: UV_ECANCELED.rawValue)
    public static let invalid = UVError(code: UV_EINVAL.rawValue)

    /// Throws unless `status` is at least zero.
    @discardableResult
    static func check(_ status: Int32) throws(UVError) -> Int32 {
        guard status >= 0 else { throw UVError(code: status) }
        return status
    }
}
