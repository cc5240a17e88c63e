# cython: language_level=3
"""PostgreSQL's values as text: how each type prints, and what becomes of it in JSON.

Strategy: `put_value` is inline in the loops of both readers, of tuples (tuples.pyx) and of COPY's
rows (copy_rows.pyx). What a column's values are is its form: one of FORM_*, and FORM_ARRAY for an
array of such. `form_of` in types.py says which. A column that is written as a hash has VALUE_HASH
instead: the hash of a value is that of its text, whatever its type.

Invariant: as of engine/lines/text.pxd. A value whose text is not what our session's settings print
is a fault, never a guess.

Format: PostgreSQL manual, "Data Types", "Array Input and Output Syntax".
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from engine.lines.hashing cimport put_hash
from engine.lines.text cimport (
    FAULT_BOOLEAN,
    FAULT_NUMBER,
    FAULT_OF_SOURCE,
    Work,
    put_boolean,
    put_integer,
    put_json,
    put_short,
    put_text,
    skip_number,
)
from engine.lines.writer cimport Binding, LineWriter

cdef extern from *:
    """
    #include <stdint.h>

    /* Numbers in the order of the network. */
    static inline uint32_t tr_be32(const uint8_t *p) {
        return ((uint32_t)p[0] << 24) | ((uint32_t)p[1] << 16) | ((uint32_t)p[2] << 8) | p[3];
    }
    static inline uint64_t tr_be64(const uint8_t *p) {
        return ((uint64_t)tr_be32(p) << 32) | tr_be32(p + 4);
    }
    """
    uint32_t tr_be32(const uint8_t *) noexcept nogil
    uint64_t tr_be64(const uint8_t *) noexcept nogil

cpdef enum:
    FORM_TEXT = 0
    FORM_BOOLEAN = 1
    FORM_INTEGER = 2
    FORM_NUMBER = 3
    FORM_TIMESTAMP = 4
    FORM_TIMESTAMPTZ = 5
    FORM_BYTEA = 6
    FORM_JSON = 7
    FORM_ARRAY = 64

cdef enum:
    FAULT_FRAME = FAULT_OF_SOURCE
    FAULT_TYPE
    FAULT_SHORT
    FAULT_TRAILING
    FAULT_COLUMNS
    FAULT_TUPLE
    FAULT_TAG
    FAULT_BINARY
    FAULT_TIMESTAMP
    FAULT_BYTEA
    FAULT_ARRAY
    FAULT_COPY
    FAULT_UNSENT

cdef struct Cursor:
    const uint8_t* at
    const uint8_t* end

cdef int name_faults_in(LineWriter lines) except -1
cdef size_t worst_case(
    const uint8_t* p, size_t size, const Binding* binding, int mark_growth
) noexcept nogil
cdef uint8_t* put_timestamp(
    uint8_t* out, const uint8_t* p, size_t size, const uint8_t* limit, bint has_zone, Work* work
) noexcept nogil
cdef uint8_t* put_bytea(uint8_t* out, const uint8_t* p, size_t size, Work* work) noexcept nogil
cdef uint8_t* put_array(
    uint8_t* out, const uint8_t* p, size_t size, const uint8_t* limit, int form, Work* work
) noexcept nogil


cdef inline uint8_t* put_number(
    uint8_t* out, const uint8_t* p, size_t size, const uint8_t* limit, Work* work
) noexcept nogil:
    if skip_number(p, p + size) == p + size:
        return put_short(out, p, size, limit)
    if (
        (size == 3 and memcmp(p, b"NaN", 3) == 0)
        or (size == 8 and memcmp(p, b"Infinity", 8) == 0)
        or (size == 9 and memcmp(p, b"-Infinity", 9) == 0)
    ):
        return put_text(out, p, size, limit, work)
    work.fault = FAULT_NUMBER
    return NULL


cdef inline uint8_t* put_letter(
    uint8_t* out, const uint8_t* p, size_t size, Work* work
) noexcept nogil:
    # A boolean.
    if size == 1 and (p[0] == c't' or p[0] == c'f'):
        return put_boolean(out, p[0] == c't')
    work.fault = FAULT_BOOLEAN
    return NULL


cdef inline uint8_t* put_scalar(
    uint8_t* out, const uint8_t* p, size_t size, const uint8_t* limit, int form, Work* work
) noexcept nogil:
    if form == FORM_TEXT:
        return put_text(out, p, size, limit, work)
    elif form == FORM_INTEGER:
        return put_integer(out, p, size, limit, work)
    elif form == FORM_TIMESTAMPTZ:
        return put_timestamp(out, p, size, limit, True, work)
    elif form == FORM_BOOLEAN:
        return put_letter(out, p, size, work)
    elif form == FORM_NUMBER:
        return put_number(out, p, size, limit, work)
    elif form == FORM_JSON:
        return put_json(out, p, size, limit, work)
    elif form == FORM_TIMESTAMP:
        return put_timestamp(out, p, size, limit, False, work)
    elif form == FORM_BYTEA:
        return put_bytea(out, p, size, work)
    else:
        return put_hash(out, p, size, &work.hash_key)


cdef inline uint8_t* put_value(
    uint8_t* out, const uint8_t* p, size_t size, const uint8_t* limit, int form, Work* work
) noexcept nogil:
    if form & FORM_ARRAY:
        return put_array(out, p, size, limit, form & ~FORM_ARRAY, work)
    return put_scalar(out, p, size, limit, form, work)
