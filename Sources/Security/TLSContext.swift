// What all TLS sessions with one key share: OpenSSL's SSL_CTX, made once. TLS 1.3 only, and in it one suite, one group and
// one pre-shared key (RFC 8446, 2.2) with Diffie-Hellman, so that what was recorded stays secret when the key leaks later.
// No certificates, tickets, resumption, early data, compression or renegotiation.
import COpenSSL

/// Never changed after `init`, when OpenSSL allows it to be used by any thread.
final class TLSContext: @unchecked Sendable {
    /// Names the key to the peer. It tells nothing about it: that two sides have different keys shows when the binder fails.
    static let identity = Array("coterie-v1".utf8)

    let pointer: OpaquePointer
    private let psk: [UInt8]
    /// A copy of ``identity`` whose address OpenSSL may keep for as long as a handshake lasts.
    private let identityBytes: UnsafeMutablePointer<UInt8>

    // Options are function-like macros in OpenSSL's header, which Swift can not import.
    private static let noTicket: UInt64 = 1 << 14
    private static let noCompression: UInt64 = 1 << 17
    private static let middleboxCompatibility: UInt64 = 1 << 20
    private static let noRenegotiation: UInt64 = 1 << 30

    init(psk: [UInt8]) throws(SecurityError) {
        ERR_clear_error()
        guard let context = SSL_CTX_new(TLS_method()) else { throw libraryError() }
        // The default suites begin with one whose hash is SHA-384, which an external PSK of SHA-256 can not serve: the suite
        // must be pinned on both sides, or the handshake fails.
        guard SSL_CTX_ctrl(context, SSL_CTRL_SET_MIN_PROTO_VERSION, Int(TLS1_3_VERSION), nil) == 1,
            SSL_CTX_ctrl(context, SSL_CTRL_SET_MAX_PROTO_VERSION, Int(TLS1_3_VERSION), nil) == 1,
            SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") == 1,
            setGroup(context, NID_X25519),
            SSL_CTX_set_num_tickets(context, 0) == 1
        else {
            let error = libraryError()
            SSL_CTX_free(context)
            throw error
        }
        _ = SSL_CTX_set_options(context, TLSContext.noTicket | TLSContext.noCompression | TLSContext.noRenegotiation)
        _ = SSL_CTX_clear_options(context, TLSContext.middleboxCompatibility)
        _ = SSL_CTX_ctrl(context, SSL_CTRL_SET_SESS_CACHE_MODE, Int(SSL_SESS_CACHE_OFF), nil)
        // An idle connection gives its record buffers back: thousands may wait.
        _ = SSL_CTX_ctrl(context, SSL_CTRL_MODE, Int(SSL_MODE_RELEASE_BUFFERS), nil)
        pointer = context
        self.psk = psk
        identityBytes = .allocate(capacity: TLSContext.identity.count)
        identityBytes.initialize(from: TLSContext.identity, count: TLSContext.identity.count)
        // A session keeps its context's owner alive, so the reference is good in every call-back.
        SSL_CTX_set_ex_data(context, 0, Unmanaged.passUnretained(self).toOpaque())

        SSL_CTX_set_psk_use_session_callback(context) { ssl, _, id, idLength, session in
            guard let ssl, let context = TLSContext.of(ssl), let made = context.makeSession(for: ssl) else { return 0 }
            id?.pointee = UnsafePointer(context.identityBytes)
            idLength?.pointee = TLSContext.identity.count
            session?.pointee = made
            return 1
        }
        SSL_CTX_set_psk_find_session_callback(context) { ssl, id, idLength, session in
            session?.pointee = nil
            guard let ssl, let id, let context = TLSContext.of(ssl) else { return 0 }
            // An unknown identity is no error: the handshake then fails because there is no certificate either.
            guard UnsafeBufferPointer(start: id, count: idLength).elementsEqual(TLSContext.identity) else { return 1 }
            guard let made = context.makeSession(for: ssl) else { return 0 }
            session?.pointee = made
            return 1
        }
    }

    deinit {
        SSL_CTX_free(pointer)
        identityBytes.deallocate()
    }

    private static func of(_ ssl: OpaquePointer) -> TLSContext? {
        guard let context = SSL_get_SSL_CTX(ssl), let data = SSL_CTX_get_ex_data(context, 0) else { return nil }
        return Unmanaged<TLSContext>.fromOpaque(data).takeUnretainedValue()
    }

    /// The key in the form that OpenSSL takes, made anew for each handshake: a client's session object is written to in it.
    private func makeSession(for ssl: OpaquePointer) -> OpaquePointer? {
        guard let session = SSL_SESSION_new() else { return nil }
        guard let cipher = SSL_CIPHER_find(ssl, [0x13, 0x01]),
            SSL_SESSION_set1_master_key(session, psk, psk.count) == 1,
            SSL_SESSION_set_cipher(session, cipher) == 1,
            SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION) == 1
        else {
            SSL_SESSION_free(session)
            return nil
        }
        return session
    }
}

/// `SSL_CTX_set1_groups` is a macro in OpenSSL's header.
private func setGroup(_ context: OpaquePointer, _ group: Int32) -> Bool {
    var group = group
    return SSL_CTX_ctrl(context, SSL_CTRL_SET_GROUPS, 1, &group) == 1
}
