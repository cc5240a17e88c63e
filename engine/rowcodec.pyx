# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The native row codec: one pgoutput row message or COPY row in, one NDJSON line out.

Strategy: `bind` renders once everything that a relation's lines have alike (names, brackets, key),
`begin` everything that a transaction's lines have alike; `encode` then walks the frame once and
copies those pieces and the escaped values into the relation's buffer. Before a row is written the
buffer gets room for the worst case that the frame's length allows, so nothing inside checks for
room. A row becomes part of the buffer only when its last byte is written: an error leaves what was.

Reading never trusts a length: every step compares with the frame's end. Reads of 8 and 16 bytes at a
time stay inside the frame too; writes of 8 and 16 bytes may pass the end of a value, never the room.

Invariant: a buffer holds whole lines of valid JSON in valid UTF-8. Numbers, booleans, timestamps,
bytea, json and arrays are therefore checked against their grammar before they go out unquoted or
rewritten; a value that fails is a DecodeError that names the column, never its content.

Formats: PostgreSQL manual, "Logical Replication Message Formats", "Streaming Replication Protocol",
"COPY, Text Format", "Array Input and Output Syntax"; RFC 8259 for the lines.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_CheckExact,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX
    # Cython's own declarations count references; these objects are grown and shrunk in place.
    PyObject* new_bytes "PyBytes_FromStringAndSize"(const char*, Py_ssize_t) except NULL
    int resize_bytes "_PyBytes_Resize"(PyObject**, Py_ssize_t) except -1
    uint8_t* bytes_start "(uint8_t *)PyBytes_AS_STRING"(PyObject*) noexcept
    void release "Py_DECREF"(PyObject*) noexcept

import json as json_text

from engine.envelope import FLAT_FIELDS
from engine.errors import DecodeError, UnrepresentableRow

CODEC_VERSION = 1

KIND_TEXT = 0
KIND_BOOLEAN = 1
KIND_INTEGER = 2
KIND_FLOAT = 3
KIND_NUMERIC = 4
KIND_TIMESTAMP = 5
KIND_TIMESTAMPTZ = 6
KIND_DATE = 7
KIND_TIME = 8
KIND_TIMETZ = 9
KIND_INTERVAL = 10
KIND_BYTEA = 11
KIND_JSON = 12
KIND_MONEY = 13
KIND_ARRAY = 64

# pg_type.dat of PostgreSQL 18: the OIDs of built-in types never change. (type, array of it)
cdef dict _SCALARS = {
    KIND_BOOLEAN: ((16, 1000),),
    KIND_INTEGER: ((20, 1016), (21, 1005), (23, 1007), (26, 1028)),
    KIND_FLOAT: ((700, 1021), (701, 1022)),
    KIND_NUMERIC: ((1700, 1231),),
    KIND_TIMESTAMP: ((1114, 1115),),
    KIND_TIMESTAMPTZ: ((1184, 1185),),
    KIND_DATE: ((1082, 1182),),
    KIND_TIME: ((1083, 1183),),
    KIND_TIMETZ: ((1266, 1270),),
    KIND_INTERVAL: ((1186, 1187),),
    KIND_BYTEA: ((17, 1001),),
    KIND_JSON: ((114, 199), (3802, 3807)),
    KIND_MONEY: ((790, 791),),
}

# Arrays whose elements are text here. Not box[] (1020): its delimiter is `;`.
cdef tuple _TEXT_ARRAYS = (
    143, 210, 270, 271, 272, 273, 629, 651, 719, 775, 1002, 1003, 1006, 1008, 1009, 1010, 1011,
    1012, 1013, 1014, 1015, 1017, 1018, 1019, 1027, 1034, 1040, 1041, 1263, 1561, 1563, 2201,
    2207, 2208, 2209, 2210, 2211, 2949, 2951, 3221, 3643, 3644, 3645, 3735, 3770, 3905, 3907,
    3909, 3911, 3913, 3927, 4073, 4090, 4097, 4192, 5039, 6150, 6151, 6152, 6153, 6155, 6157,
)


def _kinds():
    kinds = dict.fromkeys(_TEXT_ARRAYS, KIND_ARRAY | KIND_TEXT)
    for kind, pairs in _SCALARS.items():
        for scalar, array in pairs:
            kinds[scalar] = kind
            kinds[array] = KIND_ARRAY | kind
    return kinds


cdef dict _KINDS = _kinds()


def builtin_kind(type_oid):
    """The kind of a built-in type or of an array of one; KIND_TEXT for every other OID."""
    return _KINDS.get(type_oid, KIND_TEXT)


# How a value is written: a kind with the modes applied.
cdef enum:
    WRITE_TEXT = 0
    WRITE_BOOLEAN = 1
    WRITE_INTEGER = 2
    WRITE_NUMBER = 3
    WRITE_TIMESTAMP = 4
    WRITE_TIMESTAMPTZ = 5
    WRITE_BYTEA = 6
    WRITE_JSON = 7

# Which columns of a tuple are written.
cdef enum:
    TUPLE_SKIP = 0
    TUPLE_IDENTITY = 1
    TUPLE_OLD = 2
    TUPLE_NEW = 3

cdef enum:
    ENVELOPE_STANDARD = 0
    ENVELOPE_DEBEZIUM = 1
    ENVELOPE_FLAT = 2

cdef enum:
    OP_CREATE = 0
    OP_UPDATE = 1
    OP_DELETE = 2
    OP_READ = 3
    OP_TRUNCATE = 4
    OP_COUNT = 5

cdef enum:
    FAULT_NONE = 0
    FAULT_FRAME
    FAULT_TYPE
    FAULT_TRANSACTION
    FAULT_SHORT
    FAULT_TRAILING
    FAULT_COLUMNS
    FAULT_TUPLE
    FAULT_POSITIONS
    FAULT_ORDER
    FAULT_SIZE
    FAULT_TAG
    FAULT_BINARY
    FAULT_UTF8
    FAULT_BOOLEAN
    FAULT_INTEGER
    FAULT_NUMBER
    FAULT_TIMESTAMP
    FAULT_BYTEA
    FAULT_JSON
    FAULT_ARRAY
    FAULT_COPY
    FAULT_MEMORY

# Those from FAULT_TAG on concern one column.
cdef dict _FAULTS = {
    FAULT_FRAME: "not an XLogData message with a pgoutput row in it",
    FAULT_TYPE: "not an Insert, Update or Delete message",
    FAULT_TRANSACTION: "a change outside a transaction",
    FAULT_SHORT: "the message ends inside a tuple",
    FAULT_TRAILING: "bytes after the end of the message",
    FAULT_COLUMNS: "the tuple has another number of columns than the relation",
    FAULT_TUPLE: "an unknown or missing kind of tuple",
    FAULT_POSITIONS: "more than 2**24 changes share a position",
    FAULT_ORDER: "a change_lsn before that of an earlier change of the transaction",
    FAULT_SIZE: "the row is larger than source.max_row_bytes",
    FAULT_TAG: "an unknown kind of column value",
    FAULT_BINARY: "a value in binary format, which was not asked for",
    FAULT_UTF8: "not valid UTF-8",
    FAULT_BOOLEAN: "not a boolean",
    FAULT_INTEGER: "not an integer",
    FAULT_NUMBER: "not a number",
    FAULT_TIMESTAMP: "not a timestamp as DateStyle ISO and TimeZone UTC print it",
    FAULT_BYTEA: "not bytea as bytea_output hex prints it",
    FAULT_JSON: "not JSON",
    FAULT_ARRAY: "not an array as PostgreSQL prints it",
    FAULT_COPY: "not a row of COPY's text format",
    FAULT_MEMORY: "out of memory",
}

# What one row can have and the next one not. Others come from a setting or a broken protocol, and
# would leave out all rows.
cdef frozenset _OF_THE_ROW = frozenset((FAULT_SIZE, FAULT_UTF8, FAULT_JSON, FAULT_ARRAY))

cdef dict _HINTS = {
    FAULT_SIZE: "raise source.max_row_bytes, where the engine has three times that in memory",
    FAULT_UTF8: (
        "the database's encoding is probably SQL_ASCII, which checks nothing: repair the row, "
        "or exclude the column"
    ),
    FAULT_TIMESTAMP: "the session's DateStyle or TimeZone was overridden on the server",
    FAULT_BYTEA: "the session's bytea_output was overridden on the server",
}

# Frames up to this size get room for six times their length unseen; in longer ones the bytes that
# grow are counted first (0.3 ns a byte at -O3), so that a huge row asks for little more than it needs.
cdef size_t COUNTED_FROM = 4096

# Room past the end of a row: fixed pieces not counted in `Binding.fixed_max`, and the 16 bytes that
# the last wide store may write too many.
cdef size_t SLACK = 1024

# A buffer up to this size is kept for reuse when its lines are taken, at most SPARE_MAX of them for
# all relations together: 4 MiB, however many tables there are. Batches are taken at about 64 KiB.
cdef size_t SPARE_SIZE_MAX = 131072

# Lines of so many bytes, or a frame of so many, are not copied but handed on.
cdef size_t LARGE_MIN = 1024 * 1024

cdef enum:
    SPARE_MAX = 32
    BUSY_SIZE = 16384      # with so many lines at a time a relation writes into its own buffer
    KEY_VALUE_MAX = 256    # bytes of a key's value in an error: enough to find the row
    ARRAY_DEPTH_MAX = 6
    BUFFER_MIN = 4096
    COUNTER_MAX = 0xFFFFFF

cdef int64_t DAY_US = 86400000000
# From 0000-03-01, where the count of civil days begins, to 1970-01-01.
cdef int64_t DAYS_BEFORE_UNIX = 719468
cdef int64_t DAYS_OF_ERA = 146097      # 400 years

cdef const uint8_t* HEX_DIGITS = b"0123456789ABCDEF"
cdef const uint8_t* HEX_LOWER = b"0123456789abcdef"
cdef const uint8_t* BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
cdef const uint8_t* OP_LETTERS = b"cudrt"

# The value of a hexadecimal digit, 255 for every other byte.
cdef uint8_t[256] HEX_VALUES
# The letter after the backslash in JSON's short escapes, 0 where there is none.
cdef uint8_t[32] SHORT_ESCAPES


cdef void _fill_tables() noexcept:
    cdef int i
    for i in range(256):
        HEX_VALUES[i] = 255
    for i in range(10):
        HEX_VALUES[c'0' + i] = i
    for i in range(6):
        HEX_VALUES[c'a' + i] = 10 + i
        HEX_VALUES[c'A' + i] = 10 + i
    for i in range(32):
        SHORT_ESCAPES[i] = 0
    SHORT_ESCAPES[8] = c'b'
    SHORT_ESCAPES[9] = c't'
    SHORT_ESCAPES[10] = c'n'
    SHORT_ESCAPES[12] = c'f'
    SHORT_ESCAPES[13] = c'r'


_fill_tables()

# --------------------------------------------------------------------------------- writing

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


cdef uint8_t* put_decimal(uint8_t* out, uint64_t value) noexcept nogil:
    cdef uint8_t[24] digits
    cdef int at = 24
    while True:
        at -= 1
        digits[at] = <uint8_t>(c'0' + value % 10)
        value = value / 10
        if value == 0:
            break
    return put_bytes(out, &digits[at], 24 - at)


cdef uint8_t* put_signed(uint8_t* out, int64_t value) noexcept nogil:
    if value < 0:
        out[0] = c'-'
        return put_decimal(out + 1, <uint64_t>0 - <uint64_t>value)
    return put_decimal(out, <uint64_t>value)


cdef uint8_t* put_padded(uint8_t* out, uint64_t value, int width) noexcept nogil:
    cdef int at = width
    while at > 0:
        at -= 1
        out[at] = <uint8_t>(c'0' + value % 10)
        value = value / 10
    return out + width


cdef inline uint8_t* put_hex_padded(uint8_t* out, uint64_t value, int width) noexcept nogil:
    cdef int at = width
    while at > 0:
        at -= 1
        out[at] = HEX_DIGITS[value & 15]
        value >>= 4
    return out + width


cdef inline uint8_t* put_hex(uint8_t* out, uint32_t value) noexcept nogil:
    cdef int width = 1
    while width < 8 and value >> (4 * width):
        width += 1
    return put_hex_padded(out, value, width)


cdef inline uint8_t* put_lsn(uint8_t* out, uint64_t lsn) noexcept nogil:
    out = put_hex(out, <uint32_t>(lsn >> 32))
    out[0] = c'/'
    return put_hex(out + 1, <uint32_t>lsn)


cdef int64_t floored(int64_t value, int64_t divisor) noexcept nogil:
    # C divides towards zero.
    cdef int64_t quotient = value / divisor
    return quotient - 1 if value % divisor < 0 else quotient


cdef uint8_t* put_iso_time(uint8_t* out, int64_t time_us) noexcept nogil:
    # Days to a civil date: Howard Hinnant's `civil_from_days`. A replication origin may set any
    # time: years before the first are written as PostgreSQL does, with BC.
    cdef int64_t unix_day = floored(time_us, DAY_US)
    # As unsigned: the first day of 64 bits begins before the first microsecond of them.
    cdef uint64_t rest = <uint64_t>time_us - <uint64_t>unix_day * <uint64_t>DAY_US
    cdef int64_t days = unix_day + DAYS_BEFORE_UNIX
    cdef int64_t era = floored(days, DAYS_OF_ERA)
    cdef uint64_t of_era = <uint64_t>(days - era * DAYS_OF_ERA)
    cdef uint64_t year_of_era = (
        of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365
    cdef uint64_t of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100)
    cdef uint64_t month = (5 * of_year + 2) / 153
    cdef int64_t year = <int64_t>year_of_era + era * 400
    cdef uint64_t day_of_month = of_year - (153 * month + 2) / 5 + 1
    if month < 10:
        month += 3
    else:
        month -= 9
        year += 1
    cdef uint64_t shown = <uint64_t>(year if year > 0 else 1 - year)
    out = put_padded(out, shown, 4) if shown < 10000 else put_decimal(out, shown)
    out[0] = c'-'
    out = put_padded(out + 1, month, 2)
    out[0] = c'-'
    out = put_padded(out + 1, day_of_month, 2)
    out[0] = c'T'
    out = put_padded(out + 1, rest / 3600000000ULL, 2)
    out[0] = c':'
    out = put_padded(out + 1, rest / 60000000 % 60, 2)
    out[0] = c':'
    out = put_padded(out + 1, rest / 1000000 % 60, 2)
    out[0] = c'.'
    out = put_padded(out + 1, rest % 1000000, 6)
    out[0] = c'Z'
    return put_bytes(out + 1, b" BC", 3) if year <= 0 else out + 1


cdef bint is_utf8(const uint8_t* p, const uint8_t* end) noexcept nogil:
    # RFC 3629: shortest forms only, no surrogates, nothing above U+10FFFF.
    cdef uint8_t c, low, high
    cdef int more
    while p < end:
        c = p[0]
        if c < 0x80:
            if end - p >= 8 and not tr_load8(p) & TR_HIGHS:
                p += 8
            else:
                p += 1
            continue
        low = 0x80
        high = 0xBF
        if 0xC2 <= c <= 0xDF:
            more = 1
        elif 0xE0 <= c <= 0xEF:
            more = 2
            if c == 0xE0:
                low = 0xA0
            elif c == 0xED:
                high = 0x9F
        elif 0xF0 <= c <= 0xF4:
            more = 3
            if c == 0xF0:
                low = 0x90
            elif c == 0xF4:
                high = 0x8F
        else:
            return False
        if end - p <= more or p[1] < low or p[1] > high:
            return False
        if more > 1 and p[2] & 0xC0 != 0x80:
            return False
        if more > 2 and p[3] & 0xC0 != 0x80:
            return False
        p += 1 + more
    return True


cdef inline uint8_t* put_escape(uint8_t* out, uint8_t c) noexcept nogil:
    out[0] = c'\\'
    if c >= 0x20:
        out[1] = c
        return out + 2
    if SHORT_ESCAPES[c]:
        out[1] = SHORT_ESCAPES[c]
        return out + 2
    memcpy(out + 1, b"u00", 3)
    out[4] = HEX_LOWER[c >> 4]
    out[5] = HEX_LOWER[c & 15]
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


cdef const uint8_t* skip_number(const uint8_t* p, const uint8_t* end) noexcept nogil:
    p = skip_integer(p, end)
    if p == NULL:
        return NULL
    if p < end and p[0] == c'.':
        p += 1
        if p >= end or not is_digit(p[0]):
            return NULL
        p = skip_digits(p, end)
    if p < end and (p[0] == c'e' or p[0] == c'E'):
        p += 1
        if p < end and (p[0] == c'+' or p[0] == c'-'):
            p += 1
        if p >= end or not is_digit(p[0]):
            return NULL
        p = skip_digits(p, end)
    return p


cdef inline uint8_t* put_integer(
    uint8_t* out, const uint8_t* p, size_t size, const uint8_t* limit, Work* work
) noexcept nogil:
    if skip_integer(p, p + size) != p + size:
        work.fault = FAULT_INTEGER
        return NULL
    return put_short(out, p, size, limit)


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


cdef inline uint8_t* put_boolean(
    uint8_t* out, const uint8_t* p, size_t size, Work* work
) noexcept nogil:
    if size == 1 and p[0] == c't':
        memcpy(out, b"true", 4)
        return out + 4
    if size == 1 and p[0] == c'f':
        memcpy(out, b"false", 5)
        return out + 5
    work.fault = FAULT_BOOLEAN
    return NULL


cdef inline bint is_pair(const uint8_t* p) noexcept nogil:
    return is_digit(p[0]) and is_digit(p[1])


cdef uint8_t* put_timestamp(
    uint8_t* out, const uint8_t* p, size_t size, const uint8_t* limit, bint has_zone, Work* work
) noexcept nogil:
    # `2026-11-22 09:51:54.056779+00 BC`: fraction and BC are optional, years have 4 digits or more,
    # the zone is always UTC's. BC keeps PostgreSQL's form but for the T.
    cdef const uint8_t* end = p + size
    cdef const uint8_t* date = skip_digits(p, end)
    cdef const uint8_t* at
    cdef const uint8_t* zone
    if date - p < 4 or end - date < 15:
        if (size == 8 and memcmp(p, b"infinity", 8) == 0) or (
            size == 9 and memcmp(p, b"-infinity", 9) == 0
        ):
            return put_text(out, p, size, limit, work)
        work.fault = FAULT_TIMESTAMP
        return NULL
    if not (
        date[0] == c'-' and is_pair(date + 1) and date[3] == c'-' and is_pair(date + 4)
        and date[6] == c' ' and is_pair(date + 7) and date[9] == c':' and is_pair(date + 10)
        and date[12] == c':' and is_pair(date + 13)
    ):
        work.fault = FAULT_TIMESTAMP
        return NULL
    at = date + 15
    if at < end and at[0] == c'.':
        zone = skip_digits(at + 1, end)
        if zone - at < 2 or zone - at > 7:
            work.fault = FAULT_TIMESTAMP
            return NULL
        at = zone
    zone = at
    if has_zone:
        if end - at < 3 or memcmp(at, b"+00", 3) != 0:
            work.fault = FAULT_TIMESTAMP
            return NULL
        at += 3
    out[0] = c'"'
    if at == end:
        memmove(out + 1, p, zone - p)
        out[1 + (date - p) + 6] = c'T'
        out += 1 + (zone - p)
        if has_zone:
            out[0] = c'Z'
            out += 1
    elif end - at == 3 and memcmp(at, b" BC", 3) == 0:
        memmove(out + 1, p, size)
        out[1 + (date - p) + 6] = c'T'
        out += 1 + size
    else:
        work.fault = FAULT_TIMESTAMP
        return NULL
    out[0] = c'"'
    return out + 1


cdef uint8_t* put_bytea(uint8_t* out, const uint8_t* p, size_t size, Work* work) noexcept nogil:
    cdef const uint8_t* end = p + size
    cdef uint32_t bad = 0
    cdef uint32_t a, b, c, d, e, f, three
    work.fault = FAULT_BYTEA
    if size < 2 or size & 1 or p[0] != c'\\' or p[1] != c'x':
        return NULL
    p += 2
    out[0] = c'"'
    out += 1
    while end - p >= 6:
        a = HEX_VALUES[p[0]]
        b = HEX_VALUES[p[1]]
        c = HEX_VALUES[p[2]]
        d = HEX_VALUES[p[3]]
        e = HEX_VALUES[p[4]]
        f = HEX_VALUES[p[5]]
        bad |= a | b | c | d | e | f
        three = (a << 20) | (b << 16) | (c << 12) | (d << 8) | (e << 4) | f
        out[0] = BASE64[(three >> 18) & 63]
        out[1] = BASE64[(three >> 12) & 63]
        out[2] = BASE64[(three >> 6) & 63]
        out[3] = BASE64[three & 63]
        out += 4
        p += 6
    if end - p >= 2:
        a = HEX_VALUES[p[0]]
        b = HEX_VALUES[p[1]]
        bad |= a | b
        three = (a << 20) | (b << 16)
        if end - p == 4:
            c = HEX_VALUES[p[2]]
            d = HEX_VALUES[p[3]]
            bad |= c | d
            three |= (c << 12) | (d << 8)
        out[0] = BASE64[(three >> 18) & 63]
        out[1] = BASE64[(three >> 12) & 63]
        out[2] = c'=' if end - p == 2 else BASE64[(three >> 6) & 63]
        out[3] = c'='
        out += 4
    if bad > 15:
        return NULL
    work.fault = FAULT_NONE
    out[0] = c'"'
    return out + 1


cdef bint make_room(Room* room, size_t size) noexcept nogil:
    cdef uint8_t* grown
    cdef size_t capacity
    if room.start != NULL and room.capacity >= size:
        return True
    capacity = max(size, 2 * room.capacity, <size_t>256)
    grown = <uint8_t*>realloc(room.start, capacity)
    if grown == NULL:
        return False
    room.start = grown
    room.capacity = capacity
    return True


cdef inline const uint8_t* skip_space(const uint8_t* p, const uint8_t* end) noexcept nogil:
    while p < end and (p[0] == c' ' or p[0] == c'\n' or p[0] == c'\r' or p[0] == c'\t'):
        p += 1
    return p


cdef const uint8_t* skip_json_escape(const uint8_t* p, const uint8_t* end) noexcept nogil:
    # `p` is behind the backslash. NULL where the escape is not one of RFC 8259.
    if p >= end:
        return NULL
    if p[0] == c'u':
        if (
            end - p < 5 or HEX_VALUES[p[1]] > 15 or HEX_VALUES[p[2]] > 15
            or HEX_VALUES[p[3]] > 15 or HEX_VALUES[p[4]] > 15
        ):
            return NULL
        return p + 5
    if (
        p[0] == c'"' or p[0] == c'\\' or p[0] == c'/' or p[0] == c'b' or p[0] == c'f'
        or p[0] == c'n' or p[0] == c'r' or p[0] == c't'
    ):
        return p + 1
    return NULL


cdef inline const uint8_t* skip_json_string(
    const uint8_t* p, const uint8_t* end, uint64_t* seen
) noexcept nogil:
    # `p` is at the opening quote; the answer is behind the closing one, or NULL.
    cdef uint64_t word, mark
    if p >= end or p[0] != c'"':
        return NULL
    p += 1
    while p < end:
        if end - p >= 8:
            word = tr_load8(p)
            seen[0] |= word
            mark = tr_special(word)
            if mark == 0:
                p += 8
                continue
            p += tr_first(mark)
        seen[0] |= p[0]
        if p[0] == c'"':
            return p + 1
        if p[0] == c'\\':
            p = skip_json_escape(p + 1, end)
            if p == NULL:
                return NULL
        elif p[0] < 0x20:
            return NULL
        else:
            p += 1
    return NULL


cdef inline const uint8_t* skip_json_scalar(
    const uint8_t* p, const uint8_t* end, uint64_t* seen
) noexcept nogil:
    if p[0] == c'"':
        return skip_json_string(p, end, seen)
    if p[0] == c't':
        return p + 4 if end - p >= 4 and memcmp(p, b"true", 4) == 0 else NULL
    if p[0] == c'f':
        return p + 5 if end - p >= 5 and memcmp(p, b"false", 5) == 0 else NULL
    if p[0] == c'n':
        return p + 4 if end - p >= 4 and memcmp(p, b"null", 4) == 0 else NULL
    return skip_number(p, end)


cdef inline uint8_t* put_run(
    uint8_t* out, const uint8_t* p, const uint8_t* after, const uint8_t* limit
) noexcept nogil:
    return put_short(out, p, after - p, limit)


cdef uint8_t* put_json(
    uint8_t* out, const uint8_t* p, size_t size, const uint8_t* limit, Work* work
) noexcept nogil:
    # Copies the text without its insignificant whitespace, checking RFC 8259's grammar on the way:
    # the text goes out unquoted, so a flaw in it would break the line.
    cdef const uint8_t* end = p + size
    cdef const uint8_t* after
    cdef uint8_t* first = out
    cdef uint64_t seen = 0
    cdef size_t depth = 0
    cdef bint wants_key
    work.fault = FAULT_JSON
    while True:
        # At a value.
        p = skip_space(p, end)
        if p >= end:
            return NULL
        wants_key = False
        if p[0] == c'{' or p[0] == c'[':
            if depth >= work.stack.capacity and not make_room(&work.stack, depth + 1):
                work.fault = FAULT_MEMORY
                return NULL
            work.stack.start[depth] = p[0] + 2      # the closing bracket, in ASCII
            depth += 1
            out[0] = p[0]
            out += 1
            wants_key = p[0] == c'{'
            p = skip_space(p + 1, end)
            if p >= end:
                return NULL
            if p[0] != work.stack.start[depth - 1]:
                if not wants_key:
                    continue
            else:
                wants_key = False
        else:
            after = skip_json_scalar(p, end, &seen)
            if after == NULL:
                return NULL
            out = put_run(out, p, after, limit)
            p = after
        # Behind a value, or before the first key of an object.
        while not wants_key:
            p = skip_space(p, end)
            if depth == 0:
                if p != end:
                    return NULL
                if seen & TR_HIGHS and not is_utf8(first, out):
                    work.fault = FAULT_UTF8
                    return NULL
                work.is_json_null = out - first == 4 and first[0] == c'n'
                work.fault = FAULT_NONE
                return out
            if p >= end:
                return NULL
            out[0] = p[0]
            out += 1
            if p[0] == c',':
                p = skip_space(p + 1, end)
                wants_key = work.stack.start[depth - 1] == c'}'
                break
            if p[0] != work.stack.start[depth - 1]:
                return NULL
            depth -= 1
            p += 1
        if wants_key:
            after = skip_json_string(p, end, &seen)
            if after == NULL:
                return NULL
            out = put_run(out, p, after, limit)
            p = skip_space(after, end)
            if p >= end or p[0] != c':':
                return NULL
            out[0] = c':'
            out += 1
            p += 1


cdef inline uint8_t* put_scalar(
    uint8_t* out, const uint8_t* p, size_t size, const uint8_t* limit, int writer, Work* work
) noexcept nogil:
    if writer == WRITE_TEXT:
        return put_text(out, p, size, limit, work)
    elif writer == WRITE_INTEGER:
        return put_integer(out, p, size, limit, work)
    elif writer == WRITE_TIMESTAMPTZ:
        return put_timestamp(out, p, size, limit, True, work)
    elif writer == WRITE_BOOLEAN:
        return put_boolean(out, p, size, work)
    elif writer == WRITE_NUMBER:
        return put_number(out, p, size, limit, work)
    elif writer == WRITE_JSON:
        return put_json(out, p, size, limit, work)
    elif writer == WRITE_TIMESTAMP:
        return put_timestamp(out, p, size, limit, False, work)
    else:
        return put_bytea(out, p, size, work)


cdef uint8_t* put_quoted_element(
    uint8_t* out, Cursor* cursor, const uint8_t* limit, int writer, Work* work
) noexcept nogil:
    # The cursor is at the opening quote; afterwards behind the closing one.
    cdef const uint8_t* start = cursor.at + 1
    cdef const uint8_t* p = start
    cdef uint8_t* plain
    while p < cursor.end and p[0] != c'"' and p[0] != c'\\':
        p += 1
    if p < cursor.end and p[0] == c'"':
        cursor.at = p + 1
        return put_scalar(out, start, p - start, limit, writer, work)
    if not make_room(&work.element, cursor.end - start):
        work.fault = FAULT_MEMORY
        return NULL
    memcpy(work.element.start, start, p - start)
    plain = work.element.start + (p - start)
    while p < cursor.end and p[0] != c'"':
        if p[0] == c'\\':
            p += 1
            if p >= cursor.end:
                break
        plain[0] = p[0]
        plain += 1
        p += 1
    if p >= cursor.end:
        work.fault = FAULT_ARRAY
        return NULL
    cursor.at = p + 1
    return put_scalar(
        out, work.element.start, plain - work.element.start,
        work.element.start + work.element.capacity, writer, work,
    )


cdef inline bint is_null_word(const uint8_t* p, size_t size) noexcept nogil:
    # array_in takes any case of NULL; array_out quotes text that reads so.
    return (
        size == 4 and p[0] | 32 == c'n' and p[1] | 32 == c'u'
        and p[2] | 32 == c'l' and p[3] | 32 == c'l'
    )


cdef uint8_t* put_element(
    uint8_t* out, Cursor* cursor, const uint8_t* limit, int writer, Work* work
) noexcept nogil:
    cdef const uint8_t* start = cursor.at
    cdef const uint8_t* p = start
    if p < cursor.end and p[0] == c'"':
        return put_quoted_element(out, cursor, limit, writer, work)
    while p < cursor.end and p[0] != c',' and p[0] != c'}':
        if p[0] == c'{' or p[0] == c'"' or p[0] == c'\\':
            work.fault = FAULT_ARRAY
            return NULL
        p += 1
    if p == start or p == cursor.end:
        work.fault = FAULT_ARRAY
        return NULL
    cursor.at = p
    if is_null_word(start, p - start):
        return put_null(out)
    return put_scalar(out, start, p - start, limit, writer, work)


cdef uint8_t* put_array(
    uint8_t* out, const uint8_t* p, size_t size, const uint8_t* limit, int writer, Work* work
) noexcept nogil:
    cdef Cursor cursor
    cdef uint8_t* first = out
    cdef int depth = 0
    cdef bint has_json_null = False
    if size > 0 and p[0] == c'[':
        # `[0:1]={1,2}`: lower bounds other than 1 have no place in a JSON array.
        return put_text(out, p, size, limit, work)
    cursor.at = p
    cursor.end = p + size
    if size == 0 or p[0] != c'{':
        work.fault = FAULT_ARRAY
        return NULL
    while True:
        if cursor.at < cursor.end and cursor.at[0] == c'{':
            if depth == ARRAY_DEPTH_MAX:
                work.fault = FAULT_ARRAY
                return NULL
            depth += 1
            out[0] = c'['
            out += 1
            cursor.at += 1
            if not (cursor.at < cursor.end and cursor.at[0] == c'}'):
                continue
        else:
            work.is_json_null = False
            out = put_element(out, &cursor, limit, writer, work)
            if out == NULL:
                return NULL
            has_json_null |= work.is_json_null
        while True:
            if cursor.at >= cursor.end:
                work.fault = FAULT_ARRAY
                return NULL
            if cursor.at[0] == c',':
                out[0] = c','
                out += 1
                cursor.at += 1
                break
            if cursor.at[0] != c'}':
                work.fault = FAULT_ARRAY
                return NULL
            out[0] = c']'
            out += 1
            cursor.at += 1
            depth -= 1
            if depth == 0:
                if cursor.at != cursor.end:
                    work.fault = FAULT_ARRAY
                    return NULL
                work.is_json_null = False
                if has_json_null:
                    # JSON's null and SQL's would look alike in it: the whole as a string.
                    return put_text(first, p, size, limit, work)
                return out


cdef inline uint8_t* put_value(
    uint8_t* out, const uint8_t* p, size_t size, const uint8_t* limit, const Column* column,
    Work* work,
) noexcept nogil:
    if column.is_array:
        return put_array(out, p, size, limit, column.writer, work)
    return put_scalar(out, p, size, limit, column.writer, work)


cdef uint8_t* put_tuple(
    uint8_t* out, Cursor* cursor, Binding* binding, int part, Work* work
) noexcept nogil:
    # Every member begins with a comma; the caller turns the first into the opening brace.
    cdef const uint8_t* p = cursor.at
    cdef const uint8_t* end = cursor.end
    cdef Column* column
    cdef uint8_t tag
    cdef uint32_t size
    cdef int i
    cdef bint wanted
    work.column = -1
    binding.json_null_count = 0
    if end - p < 2:
        work.fault = FAULT_SHORT
        return NULL
    if (p[0] << 8 | p[1]) != binding.column_count:
        work.fault = FAULT_COLUMNS
        return NULL
    p += 2
    for i in range(binding.column_count):
        column = &binding.columns[i]
        work.column = i
        if p >= end:
            work.fault = FAULT_SHORT
            return NULL
        tag = p[0]
        wanted = part >= TUPLE_OLD or (part == TUPLE_IDENTITY and column.is_identity)
        wanted = wanted and column.is_included
        if tag == c't':
            if end - p < 5:
                work.fault = FAULT_SHORT
                return NULL
            size = tr_be32(p + 1)
            p += 5
            if size > <size_t>(end - p):
                work.fault = FAULT_SHORT
                return NULL
            if wanted:
                out = put_piece(out, &column.prefix)
                out = put_value(out, p, size, end, column, work)
                if out == NULL:
                    return NULL
                if work.is_json_null:
                    work.is_json_null = False
                    binding.json_null[binding.json_null_count] = i
                    binding.json_null_count += 1
            p += size
        elif tag == c'n':
            if wanted:
                out = put_null(put_piece(out, &column.prefix))
            p += 1
        elif tag == c'u':
            if wanted and part == TUPLE_NEW:
                binding.unchanged[binding.unchanged_count] = i
                binding.unchanged_count += 1
            p += 1
        else:
            work.fault = FAULT_BINARY if tag == c'b' else FAULT_TAG
            return NULL
    cursor.at = p
    return out


cdef uint8_t* put_object(
    uint8_t* out, Cursor* cursor, Binding* binding, int part, Work* work
) noexcept nogil:
    cdef uint8_t* first = out
    out = put_tuple(out, cursor, binding, part, work)
    if out == NULL:
        return NULL
    if out == first:
        out += 1
    first[0] = c'{'
    out[0] = c'}'
    return out + 1


cdef uint8_t* put_names(
    uint8_t* out, const Binding* binding, const uint16_t* indexes, int count
) noexcept nogil:
    # `["a","b"]`
    cdef const Piece* prefix
    cdef int i
    for i in range(count):
        prefix = &binding.columns[indexes[i]].prefix
        out[0] = c'[' if i == 0 else c','
        out = put_bytes(out + 1, prefix.start + 1, prefix.size - 2)
    out[0] = c']'
    return out + 1


cdef uint8_t* put_lists(uint8_t* out, const Binding* binding) noexcept nogil:
    if binding.unchanged_count:
        out = put_piece(out, &binding.unchanged_name)
        out = put_names(out, binding, binding.unchanged, binding.unchanged_count)
    if binding.json_null_count:
        out = put_piece(out, &binding.json_null_name)
        out = put_names(out, binding, binding.json_null, binding.json_null_count)
    return out


cdef inline uint8_t* put_position(
    uint8_t* out, const Transaction* transaction, const Place* place
) noexcept nogil:
    out = put_bytes(out, transaction.position, transaction.position_size)
    out = put_hex_padded(out, place.change_lsn, 16)
    out[0] = c'.'
    return put_hex_padded(out + 1, place.n, 6)


cdef inline uint64_t lsn_of(const Transaction* transaction, const Place* place) noexcept nogil:
    # A snapshot's rows have no record in the WAL.
    return place.change_lsn if transaction.xid else transaction.commit_lsn


cdef uint8_t* put_tail_standard(
    uint8_t* out, const Binding* binding, const Transaction* transaction, const Place* place, int op
) noexcept nogil:
    out = put_piece(out, &binding.heads[op])    # ,"metadata":{ … "version":1,"source_ts_ms":
    out = put_bytes(out, transaction.time_ms, transaction.time_ms_size)
    out = put_bytes(out, b',"position":"', 13)
    out = put_position(out, transaction, place)
    out = put_bytes(out, b'","lsn":"', 9)
    out = put_lsn(out, lsn_of(transaction, place))
    out = put_bytes(out, b'","commit_lsn":"', 16)
    out = put_bytes(out, transaction.commit, transaction.commit_size)
    out = put_bytes(out, b'","xid":', 8)
    out = put_bytes(out, transaction.xid_text, transaction.xid_size)
    if binding.unchanged_count or binding.json_null_count:
        out = put_lists(out, binding)
    memcpy(out, b"}}\n", 3)
    return out + 3


cdef uint8_t* put_tail_debezium(
    uint8_t* out, const Binding* binding, const Transaction* transaction, const Place* place, int op
) noexcept nogil:
    # The fields that Debezium's PostgreSQL connector documents, as far as the WAL tells them: its
    # `ts_ms` outside `source` is when the connector handled the event, which would make a line depend
    # on the clock, so it repeats the commit's time.
    out = put_piece(out, &binding.middle)       # ,"source":{"connector":"postgresql","name":"…","ts_ms":
    out = put_bytes(out, transaction.time_ms, transaction.time_ms_size)
    out = put_bytes(out, b',"ts_us":', 9)
    out = put_bytes(out, transaction.time_us_text, transaction.time_us_size)
    out = put_bytes(out, b',"ts_ns":', 9)
    out = put_bytes(out, transaction.time_us_text, transaction.time_us_size)
    if transaction.time_us:
        out = put_bytes(out, b"000", 3)
    # ,"snapshot":"false","db":"…", … ,"txId":
    out = put_piece(out, &binding.heads[op if transaction.xid else <int>OP_READ])
    out = put_bytes(out, transaction.xid_text, transaction.xid_size)
    out = put_bytes(out, b',"lsn":', 7)
    out = put_decimal(out, lsn_of(transaction, place))
    out = put_bytes(out, b',"xmin":null,"position":"', 25)
    out = put_position(out, transaction, place)
    out[0] = c'"'
    out = put_lists(out + 1, binding)
    out = put_bytes(out, b'},"op":"', 8)
    out[0] = OP_LETTERS[op]
    out = put_bytes(out + 1, b'","ts_ms":', 10)
    out = put_bytes(out, transaction.time_ms, transaction.time_ms_size)
    return put_bytes(out, b',"transaction":null}\n', 21)


cdef uint8_t* put_tail_flat(
    uint8_t* out, const Binding* binding, const Transaction* transaction, const Place* place, int op
) noexcept nogil:
    out = put_piece(out, &binding.heads[op])    # ,"_op":"c","_position":"
    out = put_position(out, transaction, place)
    out = put_piece(out, &binding.middle)       # ","_commit_ts":"
    out = put_bytes(out, transaction.iso, transaction.iso_size)
    out = put_piece(out, &binding.end)          # ","_version":1
    out = put_lists(out, binding)
    memcpy(out, b"}\n", 2)
    return out + 2


cdef inline uint8_t* put_tail(
    uint8_t* out, const Binding* binding, const Transaction* transaction, const Place* place, int op
) noexcept nogil:
    if binding.envelope == ENVELOPE_STANDARD:
        return put_tail_standard(out, binding, transaction, place, op)
    elif binding.envelope == ENVELOPE_DEBEZIUM:
        return put_tail_debezium(out, binding, transaction, place, op)
    else:
        return put_tail_flat(out, binding, transaction, place, op)

# ------------------------------------------------------------------------------------- rows

cdef inline uint8_t* put_old(
    uint8_t* out, Cursor* cursor, Binding* binding, uint8_t letter, Work* work
) noexcept nogil:
    return put_object(
        out, cursor, binding, TUPLE_IDENTITY if letter == c'K' else TUPLE_OLD, work)


cdef uint8_t* put_row(
    uint8_t* out, Cursor* cursor, uint8_t message, Binding* binding, Work* work
) noexcept nogil:
    # Everything of the line up to the tail. The cursor is behind the relation's id.
    cdef bint is_flat = binding.envelope == ENVELOPE_FLAT
    cdef uint8_t* first = out
    cdef uint8_t letter
    binding.unchanged_count = 0
    binding.json_null_count = 0
    work.is_json_null = False
    work.column = -1
    if cursor.at >= cursor.end:
        work.fault = FAULT_SHORT
        return NULL
    letter = cursor.at[0]
    cursor.at += 1
    if not is_flat:
        out = put_bytes(out, b'{"before":', 10)
    if letter == c'K' or letter == c'O':
        if message == c'I':
            work.fault = FAULT_TUPLE
            return NULL
        if is_flat:
            out = put_tuple(
                out, cursor, binding,
                TUPLE_SKIP if message == c'U'
                else TUPLE_IDENTITY if letter == c'K' else TUPLE_OLD,
                work,
            )
        else:
            out = put_old(out, cursor, binding, letter, work)
        if out == NULL:
            return NULL
        if message == c'U':
            work.column = -1
            if cursor.at >= cursor.end:
                work.fault = FAULT_SHORT
                return NULL
            letter = cursor.at[0]
            cursor.at += 1
    elif not is_flat:
        out = put_null(out)
    if not is_flat:
        out = put_bytes(out, b',"after":', 9)
    if message == c'D':
        if letter != c'K' and letter != c'O':
            work.fault = FAULT_TUPLE
            return NULL
        if not is_flat:
            out = put_null(out)
    else:
        if letter != c'N':
            work.fault = FAULT_TUPLE
            return NULL
        if is_flat:
            out = put_tuple(out, cursor, binding, TUPLE_NEW, work)
        else:
            out = put_object(out, cursor, binding, TUPLE_NEW, work)
        if out == NULL:
            return NULL
    if cursor.at != cursor.end:
        work.column = -1
        work.fault = FAULT_TRAILING
        return NULL
    return out


cdef const uint8_t* unescape_copy(
    const uint8_t* p, const uint8_t* end, size_t* size, Work* work
) noexcept nogil:
    # `p` is at the start of a field that holds a backslash; the answer is at the tab or newline that
    # ends it. COPY TO writes no other escapes than these.
    cdef uint8_t* out
    cdef uint8_t c
    if not make_room(&work.field, end - p):
        work.fault = FAULT_MEMORY
        return NULL
    out = work.field.start
    while p < end and p[0] != c'\t' and p[0] != c'\n':
        c = p[0]
        p += 1
        if c == c'\\':
            if p >= end:
                break
            c = p[0]
            p += 1
            if c == c'b':
                c = 8
            elif c == c't':
                c = 9
            elif c == c'n':
                c = 10
            elif c == c'v':
                c = 11
            elif c == c'f':
                c = 12
            elif c == c'r':
                c = 13
            elif c != c'\\':
                work.fault = FAULT_COPY
                return NULL
        out[0] = c
        out += 1
    size[0] = out - work.field.start
    return p


cdef inline const uint8_t* find_copy_special(
    const uint8_t* p, const uint8_t* end
) noexcept nogil:
    cdef uint64_t mark
    while end - p >= 8:
        mark = tr_copy_special(tr_load8(p))
        if mark:
            return p + tr_first(mark)
        p += 8
    while p < end and p[0] != c'\t' and p[0] != c'\n' and p[0] != c'\\':
        p += 1
    return p


cdef uint8_t* put_copy_field(
    uint8_t* out, Cursor* cursor, Binding* binding, int index, Work* work
) noexcept nogil:
    # Afterwards the cursor is at the tab or newline that ends the field.
    cdef const uint8_t* start = cursor.at
    cdef const uint8_t* after = find_copy_special(start, cursor.end)
    cdef Column* column = &binding.columns[index]
    cdef size_t size
    out = put_piece(out, &column.prefix)
    if after >= cursor.end:
        work.fault = FAULT_COPY
        return NULL
    if after[0] != c'\\':
        cursor.at = after
        return put_value(out, start, after - start, cursor.end, column, work)
    if after == start and cursor.end - start >= 3 and start[1] == c'N':
        cursor.at = start + 2
        return put_null(out)
    after = unescape_copy(start, cursor.end, &size, work)
    if after == NULL:
        return NULL
    cursor.at = after
    return put_value(
        out, work.field.start, size, work.field.start + work.field.capacity, column, work)


cdef uint8_t* put_copy_members(
    uint8_t* out, Cursor* cursor, Binding* binding, Work* work
) noexcept nogil:
    cdef int i
    cdef int left = binding.included_count
    binding.unchanged_count = 0
    binding.json_null_count = 0
    work.is_json_null = False
    for i in range(binding.column_count):
        if not binding.columns[i].is_included:
            continue
        left -= 1
        work.column = i
        out = put_copy_field(out, cursor, binding, i, work)
        if out == NULL:
            return NULL
        if work.is_json_null:
            work.is_json_null = False
            binding.json_null[binding.json_null_count] = i
            binding.json_null_count += 1
        if cursor.at >= cursor.end or cursor.at[0] != (c'\t' if left else c'\n'):
            work.column = -1
            work.fault = FAULT_COLUMNS
            return NULL
        if left:
            cursor.at += 1
    work.column = -1
    if cursor.end - cursor.at != 1 or cursor.at[0] != c'\n':
        work.fault = FAULT_COPY
        return NULL
    return out


cdef size_t worst_case(const uint8_t* p, size_t size, const Binding* binding) noexcept nogil:
    # A byte of text becomes at most 6 (`\u0001`). An element of an array gets at most four bytes more
    # (`f` becomes `false`, others quotes), and ends with a comma or a brace.
    cdef size_t i
    cdef size_t controls = 0
    cdef size_t marks = 0
    cdef size_t ends = 0
    if size <= COUNTED_FROM:
        return 6 * size
    for i in range(size):
        controls += p[i] < 0x20
        marks += (p[i] == c'"') | (p[i] == c'\\')
    if binding.has_arrays:
        for i in range(size):
            ends += (p[i] == c',') | (p[i] == c'}')
        return size + 5 * controls + 4 * ends + marks
    return size + 5 * controls + marks

# ------------------------------------------------------------------------------- the classes

cdef class Rows:
    """What `RowCodec.take` hands over: whole lines of one relation, in commit order."""


cdef str _shortened(const uint8_t* p, size_t size):
    # A value of a key; what is no UTF-8 in it shows as `\\xff`.
    text = PyBytes_FromStringAndSize(<const char*>p, min(size, <size_t>KEY_VALUE_MAX))
    return text.decode("utf-8", "backslashreplace") + ("…" if size > KEY_VALUE_MAX else "")


cdef bytes _quoted(text):
    return json_text.dumps(text, ensure_ascii=False).encode()


cdef int _writer(int kind, str numeric, str json) except -1:
    kind &= ~KIND_ARRAY
    if kind == KIND_BOOLEAN:
        return WRITE_BOOLEAN
    if kind == KIND_INTEGER:
        return WRITE_INTEGER
    if kind == KIND_FLOAT or (kind == KIND_NUMERIC and numeric == "number"):
        return WRITE_NUMBER
    if kind == KIND_TIMESTAMP:
        return WRITE_TIMESTAMP
    if kind == KIND_TIMESTAMPTZ:
        return WRITE_TIMESTAMPTZ
    if kind == KIND_BYTEA:
        return WRITE_BYTEA
    if kind == KIND_JSON and json == "embed":
        return WRITE_JSON
    return WRITE_TEXT


cdef tuple _ENVELOPES = ("standard", "debezium", "flat")
cdef frozenset _KNOWN_KINDS = frozenset(range(14)) | frozenset(range(64, 78))


cdef void free_binding(Binding* binding) noexcept:
    if binding != NULL:
        free(binding.memory)
        free(binding.columns)
        free(binding.unchanged)
        free(binding.json_null)
        free(binding)


cdef Binding* make_binding(list prefixes, list pieces, int envelope) except NULL:
    # `pieces` are the heads of the five ops, the middle, the end, and the names of the two lists.
    cdef Binding* binding = <Binding*>calloc(1, sizeof(Binding))
    cdef Py_ssize_t count = len(prefixes)
    cdef Py_ssize_t i
    cdef size_t needed = 16
    cdef uint8_t* at
    cdef bytes piece
    cdef Piece* slot
    if binding == NULL:
        raise MemoryError
    for piece in prefixes + pieces:
        needed += len(piece) + 16
    binding.memory = <uint8_t*>calloc(needed, 1)
    binding.columns = <Column*>calloc(count + 1, sizeof(Column))
    binding.unchanged = <uint16_t*>calloc(count + 1, sizeof(uint16_t))
    binding.json_null = <uint16_t*>calloc(count + 1, sizeof(uint16_t))
    if (
        binding.memory == NULL or binding.columns == NULL
        or binding.unchanged == NULL or binding.json_null == NULL
    ):
        free_binding(binding)
        raise MemoryError
    at = binding.memory
    for i, piece in enumerate(prefixes + pieces):
        if i < count:
            slot = &binding.columns[i].prefix
        elif i < count + OP_COUNT:
            slot = &binding.heads[i - count]
        elif i == count + OP_COUNT:
            slot = &binding.middle
        elif i == count + OP_COUNT + 1:
            slot = &binding.end
        elif i == count + OP_COUNT + 2:
            slot = &binding.unchanged_name
        else:
            slot = &binding.json_null_name
        slot.start = at
        slot.size = len(piece)
        memcpy(at, PyBytes_AS_STRING(piece), slot.size)
        at += slot.size + 16
    binding.column_count = count
    binding.envelope = envelope
    # Each name at most in before, after, unchanged and json_null, each value at most null or false
    # or in quotes where the frame has a byte; every other piece once.
    binding.fixed_max = 4 * needed + 24 * count + SLACK
    return binding


cdef class RowCodec:
    """Encodes the rows of one stream. See rowcodec.pyi for the contract."""

    def __cinit__(self, generation, row_bytes_max=1 << 30, rows_max=1 << 62):
        self.row_bytes_max = row_bytes_max
        self.rows_max = rows_max
        if not 0 <= generation <= 9999:
            raise ValueError(f"generation {generation} is not between 0 and 9999")
        self.generation = generation
        self.names = {}
        self.slot_count = 64
        self.relations = <Relation**>calloc(self.slot_count, sizeof(Relation*))
        if self.relations == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef size_t i
        if self.relations != NULL:
            for i in range(self.slot_count):
                if self.relations[i] != NULL:
                    free_binding(self.relations[i].binding)
                    if self.relations[i].held != NULL:
                        release(self.relations[i].held)
                    else:
                        free(self.relations[i].buffer)
                    free(self.relations[i])
            free(self.relations)
        free(self.written)
        for i in range(<size_t>self.spare_count):
            free(self.spare[i].start)
        free(self.work.field.start)
        free(self.work.element.start)
        free(self.work.stack.start)
        free(self.work.line.start)

    @property
    def buffered(self):
        """Bytes of lines not yet taken, over all relations."""
        return self.buffered_size

    # -------------------------------------------------------------------------- relations

    cdef inline size_t slot_of(self, uint32_t relation_id) noexcept:
        # Fibonacci hashing; OIDs of one database are often consecutive.
        cdef size_t slot = (relation_id * 0x9E3779B97F4A7C15ULL >> 20) & (self.slot_count - 1)
        while self.relations[slot] != NULL and self.relations[slot].id != relation_id:
            slot = (slot + 1) & (self.slot_count - 1)
        return slot

    cdef inline Relation* find(self, uint32_t relation_id) noexcept:
        cdef Relation* relation = self.recent
        if relation != NULL and relation.id == relation_id:
            return relation
        relation = self.relations[self.slot_of(relation_id)]
        if relation != NULL:
            self.recent = relation
        return relation

    cdef int grow_slots(self) except -1:
        cdef Relation** earlier = self.relations
        cdef size_t earlier_count = self.slot_count
        cdef Relation** grown = <Relation**>calloc(2 * earlier_count, sizeof(Relation*))
        cdef size_t i
        if grown == NULL:
            raise MemoryError
        self.relations = grown
        self.slot_count = 2 * earlier_count
        for i in range(earlier_count):
            if earlier[i] != NULL:
                grown[self.slot_of(earlier[i].id)] = earlier[i]
        free(earlier)
        return 0

    cdef Relation* add(self, uint32_t relation_id) except NULL:
        cdef Relation* relation
        if 2 * (self.relation_count + 1) > self.slot_count:
            self.grow_slots()
        relation = <Relation*>calloc(1, sizeof(Relation))
        if relation == NULL:
            raise MemoryError
        relation.id = relation_id
        self.relations[self.slot_of(relation_id)] = relation
        self.relation_count += 1
        return relation

    def bind(
        self,
        uint32_t relation_id,
        *,
        str database,
        str schema,
        str table,
        version,
        columns,
        key,
        str envelope,
        str numeric,
        str json,
        str flat_prefix="_",
    ):
        """Say what the relation's tuples hold; replaces an earlier binding."""
        cdef Relation* relation = self.find(relation_id)
        cdef Binding* binding
        cdef int i = 0
        if relation != NULL and relation.size:
            raise ValueError(f"{schema}.{table} has lines that were not taken")
        if envelope not in _ENVELOPES:
            raise ValueError(f"unknown envelope {envelope!r}")
        if numeric not in ("string", "number"):
            raise ValueError(f"unknown numeric mode {numeric!r}")
        if json not in ("embed", "string"):
            raise ValueError(f"unknown json mode {json!r}")
        columns = tuple(columns)
        reserved = [flat_prefix + name for name in FLAT_FIELDS] if envelope == "flat" else ()
        if len(columns) > 0xFFFF:
            raise ValueError(f"{len(columns)} columns")
        for name, kind, _, is_included in columns:
            if kind not in _KNOWN_KINDS:
                raise ValueError(f"unknown kind {kind} of column {name!r}")
            if is_included and name in reserved:
                raise ValueError(
                    f"column {name!r} of {schema}.{table} has a name of the flat envelope itself"
                )
        prefixes = [b"," + _quoted(name) + b":" for name, _, _, _ in columns]
        pieces = _render(envelope, database, schema, table, key, version, flat_prefix)
        binding = make_binding(prefixes, pieces, _ENVELOPES.index(envelope))
        for name, kind, is_identity, is_included in columns:
            binding.columns[i].writer = _writer(kind, numeric, json)
            binding.columns[i].is_array = kind & KIND_ARRAY != 0
            binding.columns[i].is_identity = bool(is_identity)
            binding.columns[i].is_included = bool(is_included)
            binding.included_count += bool(is_included)
            binding.has_arrays |= binding.columns[i].is_array
            i += 1
        if relation == NULL:
            try:
                relation = self.add(relation_id)
            except MemoryError:
                free_binding(binding)
                raise
        free_binding(relation.binding)
        relation.binding = binding
        # Nobody may see what is left out, in a key neither.
        shown = {column[0] for column in columns if column[3]}
        self.names[relation_id] = (
            f"{schema}.{table}",
            tuple(column[0] for column in columns),
            frozenset(key) & shown,
        )

    def unbind(self, uint32_t relation_id):
        """Forget the binding. Lines not taken can still be taken; the position counter is kept."""
        cdef Relation* relation = self.find(relation_id)
        if relation != NULL:
            free_binding(relation.binding)
            relation.binding = NULL
            self.names.pop(relation_id, None)

    # ----------------------------------------------------------------------- transactions

    def begin(self, uint64_t commit_lsn, int64_t commit_time_us, uint64_t xid):
        """Start a transaction: what follows is all of its changes, from the first one."""
        self.begin_at(commit_lsn, commit_time_us, xid)

    cdef void begin_at(self, uint64_t commit_lsn, int64_t commit_time_us, uint64_t xid) noexcept:
        cdef Transaction* to = &self.transaction
        cdef int64_t time_ms = floored(commit_time_us, 1000)
        cdef uint8_t* out
        to.serial += 1
        to.commit_lsn = commit_lsn
        to.time_us = commit_time_us
        to.xid = xid
        to.iso_size = 0
        to.time_us_size = 0
        to.time_ms_size = put_signed(to.time_ms, time_ms) - to.time_ms
        out = put_padded(to.position, self.generation, 4)
        out[0] = c'.'
        out = put_hex_padded(out + 1, commit_lsn, 16)
        out[0] = c'.'
        to.position_size = out + 1 - to.position
        to.commit_size = put_lsn(to.commit, commit_lsn) - to.commit
        if xid:
            to.xid_size = put_decimal(to.xid_text, xid) - to.xid_text
        else:
            to.xid_size = put_null(to.xid_text) - to.xid_text

    cdef inline void complete(self, int envelope) noexcept:
        # What only some envelopes want of the transaction.
        cdef Transaction* to = &self.transaction
        if envelope == ENVELOPE_FLAT and to.iso_size == 0:
            to.iso_size = put_iso_time(to.iso, to.time_us) - to.iso
        elif envelope == ENVELOPE_DEBEZIUM and to.time_us_size == 0:
            to.time_us_size = put_signed(to.time_us_text, to.time_us) - to.time_us_text

    cdef inline uint64_t count_at(self, const Relation* relation, uint64_t change_lsn) noexcept:
        if relation == NULL:
            return 0
        if relation.counter_serial == self.transaction.serial and relation.counter_lsn == change_lsn:
            return relation.counter
        return 0

    cdef inline int place_next(
        self, const Relation* relation, uint64_t change_lsn, Place* place
    ) except -2:
        # A transaction comes in the order of its records (ReorderBuffer asserts it). Were that
        # untrue once, positions would repeat or not sort: better to stop.
        cdef int fault = FAULT_NONE
        place.commit_lsn = self.transaction.commit_lsn
        place.change_lsn = change_lsn
        place.n = self.count_at(relation, change_lsn)
        if self.transaction.serial == 0:
            fault = FAULT_TRANSACTION
        elif place.n > COUNTER_MAX:
            fault = FAULT_POSITIONS
        elif relation.counter_serial == self.transaction.serial and change_lsn < relation.counter_lsn:
            fault = FAULT_ORDER
        if fault != FAULT_NONE:
            self.work.column = -1
            self.work.fault = fault
            return self.fail(relation)
        return 0

    # -------------------------------------------------------------------------------- rows

    cdef int fail(self, const Relation* relation) except -2:
        cdef int fault = self.work.fault
        if fault == FAULT_MEMORY:
            raise MemoryError
        where = ""
        if relation != NULL and relation.binding != NULL:
            table, columns, _ = self.names[relation.id]
            where = f"{table}: "
            if self.work.column >= 0:
                where = f"{table}, column {columns[self.work.column]!r}: "
        raise DecodeError(where + _FAULTS[fault], hint=_HINTS.get(fault, ""))

    cdef int grow(self, Relation* relation, size_t capacity) except -1:
        # Plain memory up to a size, from there on inside the object that the lines are handed over in:
        # a row of hundreds of megabytes is not copied once more. Memory that nobody writes to is not
        # there yet, and what is too much of it goes back when the object is shrunk.
        cdef uint8_t* grown
        cdef PyObject* held
        if relation.held != NULL:
            return self.resize(relation, capacity)
        if capacity >= LARGE_MIN:
            held = new_bytes(NULL, capacity)
            grown = bytes_start(held)
            memcpy(grown, relation.buffer, relation.size)
            free(relation.buffer)
            relation.held = held
        else:
            grown = <uint8_t*>realloc(relation.buffer, capacity)
            if grown == NULL:
                raise MemoryError
        relation.buffer = grown
        relation.capacity = capacity
        return 0

    cdef int resize(self, Relation* relation, size_t capacity) except -1:
        # Of an object. Where there is no memory, the object is gone, and its lines with it: then the
        # process has to end.
        relation.buffer = NULL
        relation.capacity = 0
        resize_bytes(&relation.held, capacity)
        relation.buffer = bytes_start(relation.held)
        relation.capacity = capacity
        return 0

    cdef const uint8_t* moved_behind(
        self, Relation* relation, const uint8_t* data, size_t size
    ) noexcept:
        # Moves a large frame to the end of the room that its line has, where the line overwrites it as
        # it is read: frame and line together take the memory of one. The room is enough for the worst
        # case, and what was read of the frame so far becomes at most its share of that; so writing
        # stays behind reading by the room for what else is to come, at least SLACK. The frame's pages
        # go as they are copied, but for its head.
        cdef uint8_t* to = relation.buffer + relation.capacity - size
        cdef size_t done = 0
        cdef size_t step
        while done < size:
            step = min(size - done, LARGE_MIN)
            memcpy(to + done, data + done, step)
            if done:
                tr_give_back(data + done, step)
            done += step
        return to

    cdef int fail_row(self, const Relation* relation, uint64_t change_lsn, str key) except -2:
        cdef int fault = self.work.fault
        if fault not in _OF_THE_ROW:
            return self.fail(relation)
        table, columns, _ = self.names[relation.id]
        reason = _FAULTS[fault]
        if self.work.column >= 0:
            reason = f"column {columns[self.work.column]!r}: {reason}"
        raise UnrepresentableRow(
            f"{table}, {reason}",
            reason=reason,
            key=key,
            relation_id=relation.id,
            change_lsn=change_lsn,
            hint=_HINTS.get(fault, ""),
        )

    cdef str key_text(self, const Relation* relation, const uint8_t* data, size_t size):
        # The key of a row in a frame that may be broken anywhere: what is found of it, as JSON. An
        # update's is the new one.
        cdef const uint8_t* p = data + 30
        cdef const uint8_t* end = data + size
        cdef uint32_t length
        cdef int i
        cdef int tuples = 2 if data[25] == c'U' and end > p and p[0] != c'N' else 1
        _, columns, wanted = self.names[relation.id]
        found = {}
        while tuples:
            tuples -= 1
            p += 3
            for i in range(relation.binding.column_count):
                if end - p < 1 or (p[0] == c't' and end - p < 5):
                    break
                length = 0
                if p[0] == c't':
                    length = tr_be32(p + 1)
                    p += 5
                    if length > <size_t>(end - p):
                        break
                    if columns[i] in wanted:
                        found[columns[i]] = _shortened(p, length)
                else:
                    if p[0] == c'n' and columns[i] in wanted:
                        found[columns[i]] = None
                    p += 1
                p += length
        return json_text.dumps(found, ensure_ascii=False) if found else ""

    cdef int reserve(self, Relation* relation, size_t needed) except -2:
        if relation.buffer == NULL and self.spare_count:
            self.spare_count -= 1
            relation.buffer = self.spare[self.spare_count].start
            relation.capacity = self.spare[self.spare_count].capacity
        if relation.capacity - relation.size < needed:
            self.grow(
                relation, max(relation.size + needed, 2 * relation.capacity, <size_t>BUFFER_MIN))
        if not relation.is_listed:
            self.enlist(relation)
        return 0

    cdef uint8_t* room_for(self, Relation* relation, size_t needed) except NULL:
        # Where a line of at most `needed` bytes may be written: behind the relation's lines, or,
        # for one with few lines, where all of those write theirs, to be copied from there. Else
        # each of thousands of quiet tables would hold the room for a worst case, six times its line,
        # in cold memory.
        # One with lines is listed. One without may have a buffer all the same: a row that failed left
        # it.
        if relation.size and relation.capacity - relation.size >= needed:
            return relation.buffer + relation.size
        if relation.is_busy or relation.size >= BUSY_SIZE or needed >= LARGE_MIN:
            self.reserve(relation, needed)
            return relation.buffer + relation.size
        if not make_room(&self.work.line, needed):
            raise MemoryError
        return self.work.line.start

    cdef uint8_t* append(self, Relation* relation, const uint8_t* line, size_t size) except NULL:
        # Copies a whole line behind the relation's lines; the answer is where it ends.
        if relation.capacity - relation.size < size:
            self.grow(relation, max(relation.size + size, 2 * relation.capacity))
        if not relation.is_listed:
            self.enlist(relation)
        memcpy(relation.buffer + relation.size, line, size)
        return relation.buffer + relation.size + size

    cdef int enlist(self, Relation* relation) except -1:
        # One that was taken may be in the list still, and may then have lines again.
        cdef size_t capacity
        cdef Relation** grown
        if self.written_count == self.written_capacity:
            capacity = max(2 * self.written_capacity, <size_t>64)
            grown = <Relation**>realloc(self.written, capacity * sizeof(Relation*))
            if grown == NULL:
                raise MemoryError
            self.written = grown
            self.written_capacity = capacity
        self.written[self.written_count] = relation
        self.written_count += 1
        relation.is_listed = True
        return 0

    cdef inline void count(self, Relation* relation, const Place* place) noexcept:
        relation.counter_serial = self.transaction.serial
        relation.counter_lsn = place.change_lsn
        relation.counter = place.n + 1

    cdef inline Py_ssize_t keep(
        self, Relation* relation, uint8_t* out, const Place* place, int op, bint is_counted
    ) noexcept:
        cdef size_t size = out - relation.buffer
        if relation.row_count == 0:
            relation.first = place[0]
            relation.first_time_us = self.transaction.time_us
        relation.last = place[0]
        relation.last_time_us = self.transaction.time_us
        relation.row_count += 1
        relation.operations[op] += 1
        self.buffered_size += size - relation.size
        relation.size = size
        if is_counted:
            self.count(relation, place)
        if relation.row_count >= self.rows_max:
            return PY_SSIZE_T_MAX
        return size

    cdef Py_ssize_t encode_bytes(
        self, const uint8_t* data, size_t size, bint is_consumable
    ) except -2:
        # Of a frame that is large and `is_consumable` only the head is left afterwards.
        cdef Relation* relation = NULL
        cdef Binding* binding
        cdef Cursor cursor
        cdef Place place
        cdef uint8_t message
        cdef uint8_t* out
        cdef uint8_t* first
        cdef const uint8_t* frame = data
        cdef str key = None
        cdef int op
        self.work.column = -1
        if size < 30 or data[0] != c'w':
            self.work.fault = FAULT_FRAME
            return self.fail(relation)
        message = data[25]
        if message == c'I':
            op = OP_CREATE
        elif message == c'U':
            op = OP_UPDATE
        elif message == c'D':
            op = OP_DELETE
        else:
            self.work.fault = FAULT_TYPE
            return self.fail(relation)
        relation = self.find(tr_be32(data + 26))
        if relation == NULL or relation.binding == NULL:
            return -1
        binding = relation.binding
        self.place_next(relation, tr_be64(data + 1), &place)
        if size > self.row_bytes_max:
            self.work.fault = FAULT_SIZE
            self.work.column = -1
            return self.fail_row(relation, place.change_lsn, self.key_text(relation, data, size))
        first = self.room_for(relation, worst_case(data, size, binding) + binding.fixed_max)
        if binding.envelope != ENVELOPE_STANDARD:
            self.complete(binding.envelope)
        if size >= LARGE_MIN and is_consumable and not binding.has_arrays:
            # An array may be read twice.
            key = self.key_text(relation, data, size)
            data = self.moved_behind(relation, data, size)
        cursor.at = data + 30
        cursor.end = data + size
        out = put_row(first, &cursor, message, binding, &self.work)
        if out != NULL and <size_t>(out - first) > self.row_bytes_max:
            self.work.fault = FAULT_SIZE
            self.work.column = -1
            out = NULL
        if out == NULL:
            if relation.held != NULL:
                # A row that failed must not keep its room.
                self.resize(relation, relation.size)
            if key is None:
                key = self.key_text(relation, frame, size)
            return self.fail_row(relation, place.change_lsn, key)
        out = put_tail(out, binding, &self.transaction, &place, op)
        first[0] = c'{'
        if first == self.work.line.start:
            out = self.append(relation, first, out - first)
        return self.keep(relation, out, &place, op, True)

    @cython.always_allow_keywords(False)
    def encode(self, frame):
        """Add the line of an Insert, Update or Delete."""
        cdef Py_buffer view
        if PyBytes_CheckExact(frame):
            return self.encode_bytes(
                <const uint8_t*>PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame), False)
        PyObject_GetBuffer(frame, &view, PyBUF_SIMPLE)
        try:
            return self.encode_bytes(<const uint8_t*>view.buf, view.len, False)
        finally:
            PyBuffer_Release(&view)

    cdef Py_ssize_t encode_copy_bytes(
        self, uint32_t relation_id, const uint8_t* data, size_t size, const Place* place
    ) except -2:
        cdef Relation* relation = self.find(relation_id)
        cdef Binding* binding
        cdef Cursor cursor
        cdef uint8_t* out
        cdef uint8_t* first
        cdef uint8_t* row
        cdef bint is_flat
        if relation == NULL or relation.binding == NULL:
            return -1
        binding = relation.binding
        is_flat = binding.envelope == ENVELOPE_FLAT
        self.reserve(relation, worst_case(data, size, binding) + binding.fixed_max)
        self.complete(binding.envelope)
        first = relation.buffer + relation.size
        row = first if is_flat else put_bytes(first, b'{"before":null,"after":', 23)
        cursor.at = data
        cursor.end = data + size
        out = put_copy_members(row, &cursor, binding, &self.work)
        if out == NULL:
            return self.fail(relation)
        if not is_flat:
            if out == row:
                out += 1
            row[0] = c'{'
            out[0] = c'}'
            out += 1
        out = put_tail(out, binding, &self.transaction, place, OP_READ)
        first[0] = c'{'
        return self.keep(relation, out, place, OP_READ, False)

    def encode_copy(self, uint32_t relation_id, row, uint64_t range_number, uint64_t row_number):
        """Add the line (op `r`) of one row of `COPY ... TO STDOUT` in text format."""
        cdef Py_buffer view
        cdef Place place
        place.commit_lsn = self.transaction.commit_lsn
        place.change_lsn = range_number
        place.n = row_number
        self.work.column = -1
        if self.transaction.serial == 0 or row_number > COUNTER_MAX:
            self.work.fault = FAULT_POSITIONS if self.transaction.serial else FAULT_TRANSACTION
            self.fail(NULL)
        PyObject_GetBuffer(row, &view, PyBUF_SIMPLE)
        try:
            return self.encode_copy_bytes(
                relation_id, <const uint8_t*>view.buf, view.len, &place)
        finally:
            PyBuffer_Release(&view)

    def truncate(self, uint32_t relation_id, uint64_t change_lsn):
        """Add a line with op `t`."""
        cdef Relation* relation = self.find(relation_id)
        cdef Place place
        cdef uint8_t* out
        cdef uint8_t* first
        if relation == NULL or relation.binding == NULL:
            return -1
        self.place_next(relation, change_lsn, &place)
        self.reserve(relation, relation.binding.fixed_max)
        self.complete(relation.binding.envelope)
        relation.binding.unchanged_count = 0
        relation.binding.json_null_count = 0
        first = relation.buffer + relation.size
        out = first
        if relation.binding.envelope != ENVELOPE_FLAT:
            out = put_bytes(out, b'{"before":null,"after":null', 27)
        out = put_tail(out, relation.binding, &self.transaction, &place, OP_TRUNCATE)
        first[0] = c'{'
        return self.keep(relation, out, &place, OP_TRUNCATE, True)

    def skip(self, uint32_t relation_id, uint64_t change_lsn):
        """Count a change that is not wanted, without a line; the relation need not be bound."""
        cdef Relation* relation = self.find(relation_id)
        cdef Place place
        if relation == NULL:
            relation = self.add(relation_id)
        self.place_next(relation, change_lsn, &place)
        self.count(relation, &place)

    # ------------------------------------------------------------------------------ taking

    cdef str position_text(self, const Place* place):
        cdef uint8_t[64] text
        cdef uint8_t* out = put_padded(text, self.generation, 4)
        out[0] = c'.'
        out = put_hex_padded(out + 1, place.commit_lsn, 16)
        out[0] = c'.'
        out = put_hex_padded(out + 1, place.change_lsn, 16)
        out[0] = c'.'
        out = put_hex_padded(out + 1, place.n, 6)
        return PyUnicode_DecodeASCII(<const char*>text, out - text, NULL)

    def next_position(self, uint32_t relation_id, uint64_t change_lsn):
        """The position of the next change at `change_lsn` in this transaction; changes nothing."""
        cdef Place place
        place.commit_lsn = self.transaction.commit_lsn
        place.change_lsn = change_lsn
        place.n = self.count_at(self.find(relation_id), change_lsn)
        return self.position_text(&place)

    cdef void trim(self, Room* room) noexcept:
        if room.capacity > SPARE_SIZE_MAX:
            free(room.start)
            room.start = NULL
            room.capacity = 0

    cdef void recycle(self, Relation* relation) noexcept:
        if relation.held != NULL:
            # It was handed over.
            relation.held = NULL
        elif (
            relation.is_busy and relation.capacity <= SPARE_SIZE_MAX
            and self.spare_count < SPARE_MAX
        ):
            self.spare[self.spare_count].start = relation.buffer
            self.spare[self.spare_count].capacity = relation.capacity
            self.spare_count += 1
        else:
            free(relation.buffer)
        relation.buffer = NULL
        relation.capacity = 0
        self.trim(&self.work.field)
        self.trim(&self.work.element)
        self.trim(&self.work.stack)
        self.trim(&self.work.line)

    def take(self, uint32_t relation_id):
        """Hand over what is buffered for the relation and forget it; None where nothing is."""
        cdef Relation* relation = self.find(relation_id)
        if relation == NULL or relation.size == 0:
            return None
        return self.rows_of(relation)

    def take_all(self):
        """Hand over everything that is buffered, as (relation id, rows)."""
        cdef list taken = []
        cdef Relation* relation
        cdef size_t i
        for i in range(self.written_count):
            relation = self.written[i]
            if relation.size:
                taken.append((relation.id, self.rows_of(relation)))
            relation.is_listed = False
        self.written_count = 0
        return taken

    cdef Rows rows_of(self, Relation* relation):
        cdef Rows rows = Rows.__new__(Rows)
        cdef int i
        if relation.held == NULL:
            rows.lines = PyBytes_FromStringAndSize(<char*>relation.buffer, relation.size)
        else:
            self.resize(relation, relation.size)
            rows.lines = <bytes>relation.held
            release(relation.held)
        rows.row_count = relation.row_count
        rows.first_position = self.position_text(&relation.first)
        rows.last_position = self.position_text(&relation.last)
        rows.first_commit_us = relation.first_time_us
        rows.last_commit_us = relation.last_time_us
        rows.operations = (
            relation.operations[0], relation.operations[1], relation.operations[2],
            relation.operations[3], relation.operations[4],
        )
        self.buffered_size -= relation.size
        relation.is_busy = relation.size >= BUSY_SIZE
        relation.size = 0
        relation.row_count = 0
        for i in range(OP_COUNT):
            relation.operations[i] = 0
        self.recycle(relation)
        return rows


cdef list _render(envelope, database, schema, table, key, version, flat_prefix):
    # The heads of the five ops, the middle, the end, the lists' names: see the `put_tail_...`
    # functions.
    letters = "cudrt"
    version = b"%d" % version
    if envelope == "standard":
        names = b",".join(_quoted(name) for name in key)
        rest = b'"connector":"postgresql","db":%b,"schema":%b,"table":%b,"key":[%b],"version":%b' % (
            _quoted(database), _quoted(schema), _quoted(table), names, version)
        heads = [
            b',"metadata":{"op":"%b",%b,"source_ts_ms":' % (letter.encode(), rest)
            for letter in letters
        ]
        return heads + [b"", b"", b',"unchanged":', b',"json_null":']
    if envelope == "debezium":
        middle = b',"source":{"connector":"postgresql","name":%b,"ts_ms":' % _quoted(database)
        rest = b'"db":%b,"schema":%b,"table":%b,"txId":' % (
            _quoted(database), _quoted(schema), _quoted(table))
        heads = [
            b',"snapshot":"%b",%b' % (b"true" if letter == "r" else b"false", rest)
            for letter in letters
        ]
        return heads + [middle, b"", b',"unchanged":', b',"json_null":']
    op, position, commit_ts, of_version, unchanged, json_null = (
        _quoted(flat_prefix + name) for name in FLAT_FIELDS)
    heads = [b',%b:"%b",%b:"' % (op, letter.encode(), position) for letter in letters]
    return heads + [
        b'",%b:"' % commit_ts, b'",%b:%b' % (of_version, version), b",%b:" % unchanged,
        b",%b:" % json_null,
    ]
