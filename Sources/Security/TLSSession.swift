// One TLS connection without I/O, over memory BIOs: `feed` what came, `step`, send what `pump` returns. The driver owns the
// socket, its time-outs and its memory; this owns the keys.
import COpenSSL

/// A session of one connection. Confined to the thread that uses it.
///
///     handshaking ──▶ open ──▶ (peer said all) ──▶ …
///          └─────────────┴──▶ failed: every later step throws the same error
public final class TLSSession {
    public enum Role: Sendable {
        case client, server
    }

    /// Bytes that a peer may send before it has shown that it has the key. A handshake needs less than 1 KiB.
    static let handshakeBytes = 16_384
    /// Records under one key, after which a new one is made. RFC 8446, 5.5 allows AES-GCM 2^24.5 full records.
    static let recordsPerKey = 1 << 23

    private let ssl: OpaquePointer
    private let input: OpaquePointer
    private var output: OpaquePointer
    private let role: Role
    /// Keeps the context, which OpenSSL's call-backs reach without a reference of their own.
    private let context: TLSContext
    private var fed = 0
    private var records = 0
    private let recordsPerKey: Int
    private var failure: SecurityError?
    private var saidAll = false

    /// The handshake is complete: both sides have the key.
    public private(set) var isEstablished = false
    /// The peer has said in an authentic way that it will send nothing more. We may go on writing.
    public private(set) var isClosed = false

    public convenience init(role: Role, key: ClusterKey) throws(SecurityError) {
        try self.init(role: role, key: key, recordsPerKey: TLSSession.recordsPerKey)
    }

    init(role: Role, key: ClusterKey, recordsPerKey: Int) throws(SecurityError) {
        ERR_clear_error()
        guard let ssl = SSL_new(key.context.pointer) else { throw libraryError() }
        guard let input = BIO_new(BIO_s_mem()), let output = BIO_new(BIO_s_mem()) else {
            let error = libraryError()
            SSL_free(ssl)
            throw error
        }
        // From here on the BIOs belong to `ssl`.
        SSL_set_bio(ssl, input, output)
        switch role {
        case .client:
            SSL_set_connect_state(ssl)
            // A server that knows the key proves it by the PSK. One that offers a certificate instead is an impostor: there is
            // no authority that would vouch for it, so verification refuses it.
            SSL_set_verify(ssl, SSL_VERIFY_PEER, nil)
        case .server: SSL_set_accept_state(ssl)
        }
        self.ssl = ssl
        self.input = input
        self.output = output
        self.role = role
        self.recordsPerKey = recordsPerKey
        context = key.context
    }

    deinit { SSL_free(ssl) }

    /// Takes in cipher text, any number of bytes of it. The caller bounds what it feeds between two steps.
    public func feed(_ bytes: UnsafeRawBufferPointer) {
        guard failure == nil, !bytes.isEmpty else { return }
        if !isEstablished { fed += bytes.count }
        var rest = bytes
        while !rest.isEmpty {
            let n = BIO_write(input, rest.baseAddress, Int32(clamping: rest.count))
            guard n > 0 else {
                failure = libraryError()
                return
            }
            rest = UnsafeRawBufferPointer(rebasing: rest.dropFirst(Int(n)))
        }
    }

    /// Goes on as far as the fed bytes allow and returns the plain text in them. A client's first step begins the handshake.
    public func step() throws(SecurityError) -> [UInt8] {
        if let failure { throw failure }
        ERR_clear_error()
        if !isEstablished {
            try shakeHands()
            guard isEstablished else { return [] }
        }
        guard !isClosed, hasMore else { return [] }
        var result: Int32 = 1
        // Nearly always enough: plain text is shorter than its cipher text. But part of a record may lie inside OpenSSL, so
        // that what is in the BIO tells no bound.
        var plain = [UInt8](unsafeUninitializedCapacity: max(BIO_ctrl_pending(input), 1_024)) { buffer, count in
            while count < buffer.count, hasMore {
                var n = 0
                result = SSL_read_ex(ssl, buffer.baseAddress.map { $0 + count }, buffer.count - count, &n)
                guard result == 1 else { return }
                count += n
            }
        }
        if result == 1, hasMore {
            withUnsafeTemporaryAllocation(byteCount: 16_384, alignment: 16) { buffer in
                while hasMore {
                    var n = 0
                    result = SSL_read_ex(ssl, buffer.baseAddress, buffer.count, &n)
                    guard result == 1 else { return }
                    plain.append(contentsOf: UnsafeRawBufferPointer(rebasing: buffer[..<n]))
                }
            }
        }
        if result != 1 { try classify(result) }
        return plain
    }

    /// A call that would find nothing costs as much as one that does.
    private var hasMore: Bool { BIO_ctrl_pending(input) > 0 || SSL_has_pending(ssl) == 1 }

    private func shakeHands() throws(SecurityError) {
        let result = SSL_do_handshake(ssl)
        if result == 1 {
            guard SSL_session_reused(ssl) == 1 else {
                throw fail(.handshake("the peer did not use the pre-shared key"))
            }
            isEstablished = true
            return
        }
        try classify(result)
        guard fed <= TLSSession.handshakeBytes else {
            throw fail(.handshake("more than \(TLSSession.handshakeBytes) bytes before it was complete"))
        }
    }

    /// After a call that did not succeed: nothing to worry about, the peer's orderly end, or the end of the session.
    private func classify(_ result: Int32) throws(SecurityError) {
        switch SSL_get_error(ssl, result) {
        case SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE: return
        case SSL_ERROR_ZERO_RETURN:
            guard isEstablished else { throw fail(.handshake("the peer closed the connection")) }
            isClosed = true
        default:
            let (reason, text) = drainErrors()
            if isEstablished { throw fail(.record(text)) }
            switch (role, reason) {
            // Our server found the client's binder to be made with another key, and says so by this alert.
            case (.server, SSL_R_BINDER_DOES_NOT_VERIFY), (.client, SSL_R_SSLV3_ALERT_ILLEGAL_PARAMETER):
                throw fail(.wrongKey)
            default: throw fail(.handshake(text))
            }
        }
    }

    private func fail(_ error: SecurityError) -> SecurityError {
        failure = error
        return error
    }

    /// The cipher text to send now. Also after an error, when it may be an alert that tells the peer why.
    public func pump() -> [UInt8] {
        let waiting = BIO_ctrl_pending(output)
        guard waiting > 0 else { return [] }
        let bytes = [UInt8](unsafeUninitializedCapacity: waiting) { buffer, count in
            let n = BIO_read(output, buffer.baseAddress, Int32(clamping: waiting))
            count = max(0, Int(n))
        }
        // A memory BIO never shrinks: after a large message it is replaced, so that idle connections stay small.
        if waiting > 512 << 10, bytes.count == waiting, let fresh = BIO_new(BIO_s_mem()) {
            SSL_set0_wbio(ssl, fresh)
            output = fresh
        }
        return bytes
    }

    /// Encrypts; what results waits for ``pump()``.
    public func write(_ plain: [UInt8]) throws(SecurityError) {
        if let failure { throw failure }
        guard isEstablished, !saidAll else { throw .notWritable }
        guard !plain.isEmpty else { return }
        ERR_clear_error()
        records += (plain.count + 16_383) / 16_384
        if records > recordsPerKey {
            records = 0
            guard SSL_key_update(ssl, SSL_KEY_UPDATE_NOT_REQUESTED) == 1 else { throw fail(libraryError()) }
        }
        var written = 0
        guard SSL_write_ex(ssl, plain, plain.count, &written) == 1, written == plain.count else {
            throw fail(libraryError())
        }
    }

    /// Says that we will write nothing more (`close_notify`); reading goes on.
    public func shutdown() {
        guard isEstablished, !saidAll, failure == nil else { return }
        saidAll = true
        ERR_clear_error()
        _ = SSL_shutdown(ssl)
        ERR_clear_error()
    }
}
