import CPlatform

/// CRC32C (Castagnoli), in hardware where there is one. Chain calls by passing the previous value.
public enum CRC32C {
    public static func checksum(_ bytes: some Sequence<UInt8>, continuing crc: UInt32 = 0) -> UInt32 {
        bytes.withContiguousStorageIfAvailable { coterie_crc32c(crc, $0.baseAddress, $0.count) }
            ?? Array(bytes).withUnsafeBytes { coterie_crc32c(crc, $0.baseAddress, $0.count) }
    }

    public static func checksum(_ bytes: UnsafeRawBufferPointer, continuing crc: UInt32 = 0) -> UInt32 {
        coterie_crc32c(crc, bytes.baseAddress, bytes.count)
    }
}
