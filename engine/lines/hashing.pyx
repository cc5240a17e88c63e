# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""SHA-256 and HMAC over it. See hashing.pxd."""

from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    static const uint32_t TR_SHA_START[8] = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    };
    static const uint32_t TR_SHA_ROUNDS[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    };
    static inline uint32_t tr_rotated(uint32_t x, int by) { return x >> by | x << (32 - by); }

    /* FIPS 180-4, 6.2.2: these blocks of 64 bytes go into the state. */
    static void tr_sha_blocks(uint32_t *state, const uint8_t *p, size_t count) {
        uint32_t w[64];
        for (; count > 0; count--, p += 64) {
            uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
            uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
            for (int i = 0; i < 16; i++)
                w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16
                       | (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
            for (int i = 16; i < 64; i++) {
                uint32_t x = w[i - 15], y = w[i - 2];
                w[i] = w[i - 16] + w[i - 7] + (tr_rotated(x, 7) ^ tr_rotated(x, 18) ^ x >> 3)
                       + (tr_rotated(y, 17) ^ tr_rotated(y, 19) ^ y >> 10);
            }
            for (int i = 0; i < 64; i++) {
                uint32_t one = h + (tr_rotated(e, 6) ^ tr_rotated(e, 11) ^ tr_rotated(e, 25))
                               + ((e & f) ^ (~e & g)) + TR_SHA_ROUNDS[i] + w[i];
                uint32_t two = (tr_rotated(a, 2) ^ tr_rotated(a, 13) ^ tr_rotated(a, 22))
                               + ((a & b) ^ (a & c) ^ (b & c));
                h = g; g = f; f = e; e = d + one; d = c; c = b; b = a; a = one + two;
            }
            state[0] += a; state[1] += b; state[2] += c; state[3] += d;
            state[4] += e; state[5] += f; state[6] += g; state[7] += h;
        }
    }
    """
    const uint32_t* TR_SHA_START
    void tr_sha_blocks(uint32_t *, const uint8_t *, size_t) noexcept nogil

cdef enum:
    BLOCK_SIZE = 64
    DIGEST_SIZE = 32
    LENGTH_SIZE = 8

cdef const uint8_t* DIGITS = b"0123456789abcdef"


cdef void finish(
    uint32_t* state, const uint8_t* p, size_t size, uint64_t size_before, uint8_t* digest
) noexcept nogil:
    # FIPS 180-4, 5.1.1: a bit, zeros, the length in bits. Whole blocks were `size_before` bytes.
    cdef uint8_t[2 * BLOCK_SIZE] tail
    cdef size_t whole = size // BLOCK_SIZE
    cdef size_t rest = size % BLOCK_SIZE
    cdef size_t end = BLOCK_SIZE if rest < BLOCK_SIZE - LENGTH_SIZE else 2 * BLOCK_SIZE
    cdef uint64_t bits = 8 * (size_before + size)
    cdef int i
    tr_sha_blocks(state, p, whole)
    memset(tail, 0, end)
    memcpy(tail, p + whole * BLOCK_SIZE, rest)
    tail[rest] = 0x80
    for i in range(LENGTH_SIZE):
        tail[end - 1 - i] = <uint8_t>(bits >> (8 * i))
    tr_sha_blocks(state, tail, end // BLOCK_SIZE)
    for i in range(DIGEST_SIZE):
        digest[i] = <uint8_t>(state[i // 4] >> (24 - 8 * (i % 4)))


cdef void begin_with(uint32_t* state, const uint8_t* secret, uint8_t pad) noexcept nogil:
    cdef uint8_t[BLOCK_SIZE] block
    cdef int i
    for i in range(BLOCK_SIZE):
        block[i] = secret[i] ^ pad
    memcpy(state, TR_SHA_START, DIGEST_SIZE)
    tr_sha_blocks(state, block, 1)


cdef void take_key(HashKey* key, const uint8_t* secret, size_t size) noexcept nogil:
    # A secret that is longer than a block is hashed first.
    cdef uint8_t[BLOCK_SIZE] block
    cdef uint32_t[8] state
    memset(block, 0, BLOCK_SIZE)
    if size > BLOCK_SIZE:
        memcpy(state, TR_SHA_START, DIGEST_SIZE)
        finish(state, secret, size, 0, block)
    else:
        memcpy(block, secret, size)
    begin_with(key.inner, block, 0x36)
    begin_with(key.outer, block, 0x5C)


cdef uint8_t* put_hash(
    uint8_t* out, const uint8_t* p, size_t size, const HashKey* key
) noexcept nogil:
    # HASH_SIZE bytes. The value is read before the first of them is written: see `moved_behind`.
    cdef uint32_t[8] state
    cdef uint8_t[DIGEST_SIZE] digest
    cdef int i
    memcpy(state, key.inner, DIGEST_SIZE)
    finish(state, p, size, BLOCK_SIZE, digest)
    memcpy(state, key.outer, DIGEST_SIZE)
    finish(state, digest, DIGEST_SIZE, BLOCK_SIZE, digest)
    out[0] = c'"'
    for i in range(DIGEST_SIZE):
        out[1 + 2 * i] = DIGITS[digest[i] >> 4]
        out[2 + 2 * i] = DIGITS[digest[i] & 15]
    out[HASH_SIZE - 1] = c'"'
    return out + HASH_SIZE


cdef str hash_text(const uint8_t* p, size_t size, const HashKey* key):
    # Without quotes.
    cdef uint8_t[HASH_SIZE] text
    put_hash(text, p, size, key)
    return PyUnicode_DecodeASCII(<const char*>text + 1, HASH_SIZE - 2, NULL)


def hash_of(bytes secret, bytes value):
    """The hash of a value. See hashing.pyi."""
    cdef HashKey key
    take_key(&key, secret, len(secret))
    return hash_text(value, len(value), &key)
