# cython: language_level=3
"""Keys that a fold has met, as hashes of 128 bits, in parts that grow each by itself.

Strategy: a key's text becomes its SipHash-2-4 under a secret of the fold. Its top bits name a part.
In a part, a hash's home grows with the hash, and hashes that share a home follow in order. So a part
is a sorted list with gaps: a search ends at the first larger hash, and a part that grows is copied
from one end to the other. It grows by a quarter: 20 to 25 bytes a key, and never twice the whole.

Where counts are kept (`is_counting`), each hash has a number beside it, 8 bytes more.

Invariant: no hash stands before its home, and none behind a gap that follows its home.

Format: Aumasson and Bernstein, "SipHash: a fast short-input PRF", with the 128-bit output of its
authors' reference code.
"""

from libc.stdint cimport uint8_t, uint64_t

from engine.lines.text cimport Room

cdef enum:
    PARTS = 256
    PART_SHIFT = 56

cdef struct Secret:
    uint64_t[2] words

cdef struct Key:
    # Both are zero for none.
    uint64_t high
    uint64_t low

cdef struct Part:
    Key* keys
    uint64_t* counts
    size_t capacity    # homes
    size_t room        # cells; the last one is always a gap
    size_t count

cdef struct KeyTable:
    Part[PARTS] parts
    bint is_counting
    size_t size        # bytes of all parts
    size_t count
    Room scratch

cdef enum:
    KEY_KNOWN = 0
    KEY_NEW = 1
    KEY_NO_MEMORY = -1

cdef Key hash_key(const Secret* secret, const uint8_t* p, size_t size) noexcept nogil
cdef int add_key(KeyTable* table, Key key) noexcept nogil
cdef bint take_key(KeyTable* table, Key key) noexcept nogil
cdef void drop_parts(KeyTable* table, int first, int last) noexcept nogil
cdef void free_keys(KeyTable* table) noexcept


cdef inline int part_of(Key key) noexcept nogil:
    return <int>(key.high >> PART_SHIFT)


cdef inline bint is_same(Key a, Key b) noexcept nogil:
    return a.high == b.high and a.low == b.low


cdef extern from *:
    """
    #include <stdint.h>
    #include <stddef.h>

    /* Where in `capacity` homes a hash belongs whose top 8 bits name its part. */
    static inline size_t tr_home(uint64_t high, size_t capacity) {
        return (size_t)(((unsigned __int128)(high << 8) * capacity) >> 64);
    }
    static inline void tr_expect(const void *at) {
    #if defined(__GNUC__)
        __builtin_prefetch(at, 1);
    #endif
    }
    """
    size_t tr_home(uint64_t high, size_t capacity) noexcept nogil
    void tr_expect(const void* at) noexcept nogil


cdef inline void expect_key(const KeyTable* table, Key key) noexcept nogil:
    # It is wanted soon: its way from far memory may begin.
    cdef const Part* part = &table.parts[part_of(key)]
    if part.keys != NULL:
        tr_expect(&part.keys[tr_home(key.high, part.capacity)])
