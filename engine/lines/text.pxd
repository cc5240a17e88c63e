# cython: language_level=3
"""How values are written as JSON: words on bytes, escapes, numbers, the grammar of JSON itself.

Strategy: a reader calls these for each value, so what is short is inline here, in the reader's own
code. What works through a whole value (`put_json`, `is_utf8`) is compiled once, in text.pyx.

Nobody asks for room: see `LineWriter.room_for`. A read of 8 or 16 bytes stays before `limit`; a
write of 8 or 16 may pass the end of the value, never the room. NULL is the answer where the value
is not what it should be; `work.fault` then says what is wrong.

Invariant: what is written is valid JSON in valid UTF-8, or NULL is the answer.

Format: RFC 8259 (JSON), RFC 3629 (UTF-8), RFC 4648 (base64).
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from engine.lines.hashing cimport HashKey

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    /* Eight bytes as a number whose lowest byte is the first one, on any machine. */
    static inline uint64_t tr_load8(const uint8_t *p) {
        uint64_t w;
        memcpy(&w, p, 8);
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        w = __builtin_bswap64(w);
    #endif
        return w;
    }
    static inline void tr_store8(uint8_t *p, uint64_t w) {
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        w = __builtin_bswap64(w);
    #endif
        memcpy(p, &w, 8);
    }
    static inline void tr_copy16(uint8_t *to, const uint8_t *from) { memcpy(to, from, 16); }
    #define TR_ONES 0x0101010101010101ULL
    #define TR_HIGHS 0x8080808080808080ULL
    /* Marks (0x80) the first byte that a JSON string cannot hold as it is: below 0x20, quote,
       backslash. Bytes above the first mark may be marked falsely (borrows); the first is right. */
    static inline uint64_t tr_special(uint64_t w) {
        uint64_t quote = w ^ (TR_ONES * '"');
        uint64_t slash = w ^ (TR_ONES * '\\\\');
        return (((w - TR_ONES * 0x20) & ~w) | ((quote - TR_ONES) & ~quote)
                | ((slash - TR_ONES) & ~slash)) & TR_HIGHS;
    }
    static inline int tr_first(uint64_t mark) { return __builtin_ctzll(mark) >> 3; }

    #define TR_TABLE static const uint8_t __attribute__((unused))
    TR_TABLE TR_HEX_UPPER[] = "0123456789ABCDEF";
    TR_TABLE TR_HEX_LOWER[] = "0123456789abcdef";
    TR_TABLE TR_BASE64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    /* The letter after the backslash in JSON's short escapes, 0 where there is none. */
    TR_TABLE TR_SHORT_ESCAPES[32] = {
        [8] = 'b', [9] = 't', [10] = 'n', [12] = 'f', [13] = 'r',
    };
    """
    uint64_t tr_load8(const uint8_t *) noexcept nogil
    void tr_store8(uint8_t *, uint64_t) noexcept nogil
    void tr_copy16(uint8_t *, const uint8_t *) noexcept nogil
    uint64_t tr_special(uint64_t) noexcept nogil
    int tr_first(uint64_t) noexcept nogil
    const uint64_t TR_ONES
    const uint64_t TR_HIGHS
    const uint8_t* TR_HEX_UPPER
    const uint8_t* TR_HEX_LOWER
    const uint8_t* TR_BASE64
    const uint8_t* TR_SHORT_ESCAPES

# What may be wrong with a row. A source's own faults begin at FAULT_OF_SOURCE.
cdef enum:
    FAULT_NONE = 0
    FAULT_TRANSACTION
    FAULT_POSITIONS
    FAULT_ORDER
    FAULT_SIZE
    FAULT_VALUES
    FAULT_UTF8
    FAULT_BOOLEAN
    FAULT_INTEGER
    FAULT_NUMBER
    FAULT_JSON
    FAULT_MEMORY
    FAULT_OF_SOURCE = 32

cdef struct Piece:
    # A rendered run of bytes, padded so that it can be copied 16 bytes at a time.
    uint8_t* start
    size_t size

cdef struct Room:
    uint8_t* start
    size_t capacity

cdef struct Work:
    # What a row needs besides its output: memory, and where it went wrong.
    Room stack         # one byte for each level of JSON nesting
    Room line          # one line of a table that has few
    Room unescaped     # for the source's reader: a value, and a part of one, as they are meant
    Room unescaped_part
    HashKey hash_key   # of the values that are written as hashes
    bint is_json_null  # the value was JSON's null
    int fault
    int column         # its index, -1 where the fault is none of a column's

cdef bint make_room(Room* room, size_t size) noexcept nogil
cdef bint is_utf8(const uint8_t* p, const uint8_t* end) noexcept nogil
cdef const uint8_t* skip_number(const uint8_t* p, const uint8_t* end) noexcept nogil
cdef uint8_t* put_decimal(uint8_t* out, uint64_t value) noexcept nogil
cdef uint8_t* put_signed(uint8_t* out, int64_t value) noexcept nogil
cdef uint8_t* put_base64(uint8_t* out, const uint8_t* p, size_t size) noexcept nogil
cdef uint8_t* put_json(
    uint8_t* out, const uint8_t* p, size_t size, const uint8_t* limit, Work* work
) noexcept nogil
cdef uint8_t* put_iso_time(uint8_t* out, int64_t time_us) noexcept nogil
cdef int64_t floored(int64_t value, int64_t divisor) noexcept nogil


cdef inline uint8_t* put_bytes(uint8_t* out, const uint8_t* start, size_t size) noexcept nogil:
    memcpy(out, start, size)
    return out + size


cdef inline uint8_t* put_piece(uint8_t* out, const Piece* piece) noexcept nogil:
    cdef size_t done = 16
    tr_copy16(out, piece.start)
    while done < piece.size:
        tr_copy16(out + done, piece.start + done)
        done += 16
    return out + piece.size


cdef inline uint8_t* put_null(uint8_t* out) noexcept nogil:
    memcpy(out, b"null", 4)
    return out + 4


cdef inline uint8_t* put_boolean(uint8_t* out, bint value) noexcept nogil:
    if value:
        memcpy(out, b"true", 4)
        return out + 4
    memcpy(out, b"false", 5)
    return out + 5


cdef inline uint8_t* put_hex_padded(uint8_t* out, uint64_t value, int width) noexcept nogil:
    cdef int at = width
    while at > 0:
        at -= 1
        out[at] = TR_HEX_UPPER[value & 15]
        value >>= 4
    return out + width


cdef inline uint8_t* put_escape(uint8_t* out, uint8_t c) noexcept nogil:
    out[0] = c'\\'
    if c >= 0x20:
        out[1] = c
        return out + 2
    if TR_SHORT_ESCAPES[c]:
        out[1] = TR_SHORT_ESCAPES[c]
        return out + 2
    memcpy(out + 1, b"u00", 3)
    out[4] = TR_HEX_LOWER[c >> 4]
    out[5] = TR_HEX_LOWER[c & 15]
    return out + 6


cdef inline uint8_t* put_text(
    uint8_t* out, const uint8_t* p, size_t size, const uint8_t* limit, Work* work
) noexcept nogil:
    # Bytes up to `limit` may be read, those after `size` are not looked at. What was read may be gone
    # in the end (see `moved_behind`), so UTF-8 is checked in what was written: escapes are ASCII for
    # ASCII, which neither mends nor breaks it.
    cdef uint8_t* start = out + 1
    cdef const uint8_t* end = p + size
    cdef uint64_t word, mark, mask
    cdef uint64_t seen = 0
    cdef int first
    out[0] = c'"'
    out += 1
    while end - p >= 8:
        word = tr_load8(p)
        tr_store8(out, word)
        seen |= word
        mark = tr_special(word)
        if mark == 0:
            p += 8
            out += 8
            continue
        first = tr_first(mark)
        out = put_escape(out + first, p[first])
        p += first + 1
    while p < end and limit - p >= 8:
        # The tail, with spaces for what follows it.
        mask = (<uint64_t>1 << (8 * <uint64_t>(end - p))) - 1
        word = (tr_load8(p) & mask) | (0x2020202020202020ULL & ~mask)
        tr_store8(out, word)
        seen |= word
        mark = tr_special(word)
        if mark == 0:
            out += end - p
            p = end
            break
        first = tr_first(mark)
        out = put_escape(out + first, p[first])
        p += first + 1
    while p < end:
        seen |= p[0]
        if p[0] < 0x20 or p[0] == c'"' or p[0] == c'\\':
            out = put_escape(out, p[0])
        else:
            out[0] = p[0]
            out += 1
        p += 1
    if seen & TR_HIGHS and not is_utf8(start, out):
        work.fault = FAULT_UTF8
        return NULL
    out[0] = c'"'
    return out + 1


cdef inline bint is_digit(uint8_t c) noexcept nogil:
    return <uint8_t>(c - c'0') <= 9


cdef inline uint8_t* put_short(
    uint8_t* out, const uint8_t* p, size_t size, const uint8_t* limit
) noexcept nogil:
    if size <= 16 and limit - p >= 16:
        tr_copy16(out, p)
    else:
        # A long run may reach over to where it is read: see `moved_behind`.
        memmove(out, p, size)
    return out + size


cdef inline const uint8_t* skip_digits(const uint8_t* p, const uint8_t* end) noexcept nogil:
    while p < end and is_digit(p[0]):
        p += 1
    return p


cdef inline const uint8_t* skip_integer(const uint8_t* p, const uint8_t* end) noexcept nogil:
    # RFC 8259: no leading zeros, no plus sign. NULL where there is no integer.
    if p < end and p[0] == c'-':
        p += 1
    if p >= end or not is_digit(p[0]):
        return NULL
    if p[0] == c'0':
        return p + 1
    return skip_digits(p + 1, end)


cdef inline uint8_t* put_integer(
    uint8_t* out, const uint8_t* p, size_t size, const uint8_t* limit, Work* work
) noexcept nogil:
    if skip_integer(p, p + size) != p + size:
        work.fault = FAULT_INTEGER
        return NULL
    return put_short(out, p, size, limit)


cdef inline const uint8_t* skip_space(const uint8_t* p, const uint8_t* end) noexcept nogil:
    while p < end and (p[0] == c' ' or p[0] == c'\n' or p[0] == c'\r' or p[0] == c'\t'):
        p += 1
    return p
