# cython: language_level=3
"""A value's keyed hash: HMAC-SHA-256 of its bytes, in hexadecimal, as a JSON string.

Strategy: a key is one block of each of HMAC's two messages, and it stands first in both. So its two
states are computed once (`take_key`), and a value of up to 55 bytes costs two blocks. What works
through the blocks is C, in hashing.pyx.

Invariant: the same key and the same bytes give the same text, on any machine.

Format: FIPS 180-4 (SHA-256), RFC 2104 (HMAC).
"""

from libc.stdint cimport uint8_t, uint32_t

cdef struct HashKey:
    # Both states behind the key's block.
    uint32_t[8] inner
    uint32_t[8] outer

cdef enum:
    HASH_SIZE = 66     # 64 digits, in quotes

cdef void take_key(HashKey* key, const uint8_t* secret, size_t size) noexcept nogil
cdef uint8_t* put_hash(
    uint8_t* out, const uint8_t* p, size_t size, const HashKey* key
) noexcept nogil
cdef str hash_text(const uint8_t* p, size_t size, const HashKey* key)
