// Errors of this module, and the way from OpenSSL's error queue to text. The queue belongs to the thread, so it is emptied
// before each call whose failure is to be explained and again when one has failed: nothing stale is ever reported.
import COpenSSL

/// Why bytes from outside were refused, or why OpenSSL failed.
public enum SecurityError: Error, Hashable, Sendable, CustomStringConvertible {
    /// A cluster key has 32 bytes.
    case keyLength(Int)
    /// OpenSSL could not do what it always can: out of memory, or a provider without the algorithm.
    case library(String)
    /// The peer showed that it has another key, or said that ours is not its own. The session is over.
    case wrongKey
    /// The handshake failed for another reason: not TLS, another version, no pre-shared key. The session is over.
    case handshake(String)
    /// A record was forged, damaged or out of order. The session is over.
    case record(String)
    /// Plain text was given before the handshake was complete, or after ``TLSSession/shutdown()``. Nothing has changed.
    case notWritable
    /// Too short, too long, or of an unknown version. Nothing has changed.
    case malformedDatagram
    /// The tag does not fit: another key, or a changed byte. Nothing has changed.
    case forgedDatagram
    /// Seen before, or too old to tell. Nothing has changed.
    case replayedDatagram
    /// The sender has started again since this was sealed. Nothing has changed.
    case staleSender
    /// More plain text than a datagram can hold, a start counter over 32 bits, or no counter left.
    case limit(String)

    public var description: String {
        switch self {
        case .keyLength(let count): "a cluster key has \(ClusterKey.byteCount) bytes, not \(count)"
        case .library(let text): "OpenSSL: \(text)"
        case .wrongKey: "the two sides have different cluster keys"
        case .handshake(let text): "no handshake: \(text)"
        case .record(let text): "bad record: \(text)"
        case .notWritable: "the session can not be written to"
        case .malformedDatagram: "not a sealed datagram"
        case .forgedDatagram: "the datagram was sealed with another key or changed on its way"
        case .replayedDatagram: "the datagram was seen before or is too old"
        case .staleSender: "the datagram is from before its sender's last start"
        case .limit(let text): text
        }
    }
}

/// OpenSSL's error queue of this thread, emptied: the reason code of its first entry, and all reasons as one line.
func drainErrors() -> (reason: Int32, text: String) {
    var first: Int32 = 0
    var texts: [String] = []
    while true {
        let code = ERR_get_error()
        guard code != 0 else { break }
        if first == 0 { first = ERR_GET_REASON(code) }
        let text = ERR_reason_error_string(code).map { String(cString: $0) } ?? "error \(code)"
        // The queue holds 16 entries at most.
        if !texts.contains(text) { texts.append(text) }
    }
    return (first, texts.isEmpty ? "no reason given" : texts.joined(separator: ", "))
}

func libraryError() -> SecurityError { .library(drainErrors().text) }
