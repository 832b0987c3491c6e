// AES-128 in Galois/counter mode for single messages, over one OpenSSL context that is used again and again.
import COpenSSL

/// Confined to its owner. Keys are set for each message: with AES instructions that costs less than a context for each key.
final class AESGCM {
    static let keyBytes = 16
    static let nonceBytes = 12
    static let tagBytes = 16

    private let context: OpaquePointer
    /// Fetched once: a look-up for each message would cost more than the message.
    private let cipher: OpaquePointer

    init() throws(SecurityError) {
        ERR_clear_error()
        guard let cipher = EVP_CIPHER_fetch(nil, "AES-128-GCM", nil) else { throw libraryError() }
        guard let context = EVP_CIPHER_CTX_new() else {
            EVP_CIPHER_free(cipher)
            throw libraryError()
        }
        self.cipher = cipher
        self.context = context
    }

    deinit {
        EVP_CIPHER_CTX_free(context)
        EVP_CIPHER_free(cipher)
    }

    /// Appends cipher text and tag to `message`, whose bytes so far are authenticated with it.
    func seal(_ plain: ArraySlice<UInt8>, onto message: inout [UInt8], key: [UInt8], nonce: [UInt8])
        throws(SecurityError)
    {
        precondition(key.count == AESGCM.keyBytes && nonce.count == AESGCM.nonceBytes, "sizes of key and nonce")
        ERR_clear_error()
        let header = message.count
        message.append(contentsOf: repeatElement(0, count: plain.count + AESGCM.tagBytes))
        var n: Int32 = 0
        let done = message.withUnsafeMutableBytes { all in
            plain.withUnsafeBytes { plain in
                let base = all.assumingMemoryBound(to: UInt8.self).baseAddress
                guard let base,
                    EVP_EncryptInit_ex(context, cipher, nil, key, nonce) == 1,
                    EVP_EncryptUpdate(context, nil, &n, base, Int32(header)) == 1,
                    plain.isEmpty
                        || EVP_EncryptUpdate(
                            context, base + header, &n, plain.assumingMemoryBound(to: UInt8.self).baseAddress,
                            Int32(plain.count)) == 1,
                    EVP_EncryptFinal_ex(context, base + header + plain.count, &n) == 1
                else { return false }
                return EVP_CIPHER_CTX_ctrl(
                    context, EVP_CTRL_AEAD_GET_TAG, Int32(AESGCM.tagBytes), base + header + plain.count) == 1
            }
        }
        guard done else { throw libraryError() }
    }

    /// The plain text of `message`, whose first `header` bytes are authenticated but not encrypted; nil if the tag does not fit.
    func open(_ message: ArraySlice<UInt8>, header: Int, key: [UInt8], nonce: [UInt8]) -> [UInt8]? {
        precondition(key.count == AESGCM.keyBytes && nonce.count == AESGCM.nonceBytes, "sizes of key and nonce")
        let length = message.count - header - AESGCM.tagBytes
        guard length >= 0 else { return nil }
        var tag = Array(message.suffix(AESGCM.tagBytes))
        var n: Int32 = 0
        var authentic = false
        let plain = message.withUnsafeBytes { all in
            let base = all.assumingMemoryBound(to: UInt8.self).baseAddress
            return [UInt8](unsafeUninitializedCapacity: max(length, 1)) { buffer, count in
                guard let base, let out = buffer.baseAddress,
                    EVP_DecryptInit_ex(context, cipher, nil, key, nonce) == 1,
                    EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, Int32(AESGCM.tagBytes), &tag) == 1,
                    EVP_DecryptUpdate(context, nil, &n, base, Int32(header)) == 1,
                    length == 0 || EVP_DecryptUpdate(context, out, &n, base + header, Int32(length)) == 1
                else { return }
                // OpenSSL compares the tag in constant time.
                authentic = EVP_DecryptFinal_ex(context, nil, &n) == 1
                if authentic { count = length }
            }
        }
        if !authentic { ERR_clear_error() }
        return authentic ? plain : nil
    }
}
