// How long a TCP connection may be silent before its peer's host is believed to be gone.
import EventLoop
import Glibc
import Model

extension ByteStream {
    /// Breaks the stream when the peer's host has not acknowledged for `limit` what was sent to it, also if the peer does not read.
    public func limitSilence(_ limit: TimeSpan) {
        set(Int32(IPPROTO_TCP), TCP_USER_TIMEOUT, Int32(clamping: limit.milliseconds))
    }

    /// Asks the peer's host from time to time whether it is still there, and breaks the stream after about a minute without
    /// an answer: one that only receives would never find out.
    public func probeSilence() {
        set(SOL_SOCKET, SO_KEEPALIVE, 1)
        set(Int32(IPPROTO_TCP), TCP_KEEPIDLE, 30)
        set(Int32(IPPROTO_TCP), TCP_KEEPINTVL, 10)
        set(Int32(IPPROTO_TCP), TCP_KEEPCNT, 3)
    }

    private func set(_ level: Int32, _ option: Int32, _ value: Int32) {
        guard let descriptor else { return }
        var value = value
        // On other sockets than TCP there is nothing to set.
        _ = setsockopt(descriptor, level, option, &value, socklen_t(MemoryLayout<Int32>.size))
    }
}
