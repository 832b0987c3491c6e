// CRC32C (Castagnoli, reflected, RFC 3720 appendix B.4): hardware SSE4.2 where the processor has it, else slice-by-8.
#ifndef COTERIE_CRC32C_H
#define COTERIE_CRC32C_H
#include <stddef.h>
#include <stdint.h>

/// Continues a CRC32C. `crc` is the value of the bytes so far (0 for none), the result that of all bytes.
uint32_t coterie_crc32c(uint32_t crc, const void *_Nullable bytes, size_t count);

#endif
