# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The values that take more than a few words: timestamps, bytea, arrays. See values.pxd."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memmove

from engine.lines.text cimport (
    FAULT_MEMORY,
    FAULT_NONE,
    FAULT_UTF8,
    TR_BASE64,
    Work,
    is_digit,
    make_room,
    put_null,
    put_text,
    skip_digits,
)
from engine.lines.writer cimport Binding, LineWriter

cdef enum:
    ARRAY_DEPTH_MAX = 6

# Rows up to this size simply get room for six times their length. In longer ones the bytes that will
# grow are counted first (0.3 ns a byte at -O3), so that a huge row gets little more than it needs.
cdef size_t COUNTED_FROM = 4096

cdef dict _FAULTS = {
    FAULT_FRAME: "not an XLogData message with a pgoutput row in it",
    FAULT_TYPE: "not an Insert, Update or Delete message",
    FAULT_SHORT: "the message ends inside a tuple",
    FAULT_TRAILING: "bytes after the end of the message",
    FAULT_COLUMNS: "the tuple has another number of columns than the relation",
    FAULT_TUPLE: "an unknown or missing kind of tuple",
    FAULT_TAG: "an unknown kind of column value",
    FAULT_BINARY: "a value in binary format, which was not asked for",
    FAULT_TIMESTAMP: "not a timestamp as DateStyle ISO and TimeZone UTC print it",
    FAULT_BYTEA: "not bytea as bytea_output hex prints it",
    FAULT_ARRAY: "not an array as PostgreSQL prints it",
    FAULT_COPY: "not a row of COPY's text format",
    FAULT_UNSENT: "the row came into the publication's row filter by an UPDATE that left this large"
    " value as it was, and PostgreSQL does not send it",
}

cdef dict _HINTS = {
    FAULT_UTF8: (
        "the database's encoding is probably SQL_ASCII, which checks nothing: repair the row, "
        "or exclude the column"
    ),
    FAULT_TIMESTAMP: "the session's DateStyle or TimeZone was overridden on the server",
    FAULT_BYTEA: "the session's bytea_output was overridden on the server",
    FAULT_UNSENT: "ALTER TABLE … REPLICA IDENTITY FULL has PostgreSQL send it from then on",
}

cdef frozenset _OF_A_ROW = frozenset((FAULT_ARRAY, FAULT_UNSENT))

# The value of a hexadecimal digit, 255 for every other byte.
cdef uint8_t[256] HEX_VALUES


cdef void _fill_table() noexcept:
    cdef int i
    for i in range(256):
        HEX_VALUES[i] = 255
    for i in range(10):
        HEX_VALUES[c'0' + i] = i
    for i in range(6):
        HEX_VALUES[c'a' + i] = 10 + i
        HEX_VALUES[c'A' + i] = 10 + i


_fill_table()


cdef int name_faults_in(LineWriter lines) except -1:
    return lines.name_faults(_FAULTS, _HINTS, _OF_A_ROW)


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
        out[0] = TR_BASE64[(three >> 18) & 63]
        out[1] = TR_BASE64[(three >> 12) & 63]
        out[2] = TR_BASE64[(three >> 6) & 63]
        out[3] = TR_BASE64[three & 63]
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
        out[0] = TR_BASE64[(three >> 18) & 63]
        out[1] = TR_BASE64[(three >> 12) & 63]
        out[2] = c'=' if end - p == 2 else TR_BASE64[(three >> 6) & 63]
        out[3] = c'='
        out += 4
    if bad > 15:
        return NULL
    work.fault = FAULT_NONE
    out[0] = c'"'
    return out + 1


cdef uint8_t* put_quoted_element(
    uint8_t* out, Cursor* cursor, const uint8_t* limit, int form, Work* work
) noexcept nogil:
    # The cursor is at the opening quote; afterwards behind the closing one.
    cdef const uint8_t* start = cursor.at + 1
    cdef const uint8_t* p = start
    cdef uint8_t* plain
    while p < cursor.end and p[0] != c'"' and p[0] != c'\\':
        p += 1
    if p < cursor.end and p[0] == c'"':
        cursor.at = p + 1
        return put_scalar(out, start, p - start, limit, form, work)
    if not make_room(&work.unescaped_part, cursor.end - start):
        work.fault = FAULT_MEMORY
        return NULL
    memcpy(work.unescaped_part.start, start, p - start)
    plain = work.unescaped_part.start + (p - start)
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
        out, work.unescaped_part.start, plain - work.unescaped_part.start,
        work.unescaped_part.start + work.unescaped_part.capacity, form, work,
    )


cdef inline bint is_null_word(const uint8_t* p, size_t size) noexcept nogil:
    # array_in takes any case of NULL; array_out quotes text that reads so.
    return (
        size == 4 and p[0] | 32 == c'n' and p[1] | 32 == c'u'
        and p[2] | 32 == c'l' and p[3] | 32 == c'l'
    )


cdef uint8_t* put_element(
    uint8_t* out, Cursor* cursor, const uint8_t* limit, int form, Work* work
) noexcept nogil:
    cdef const uint8_t* start = cursor.at
    cdef const uint8_t* p = start
    if p < cursor.end and p[0] == c'"':
        return put_quoted_element(out, cursor, limit, form, work)
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
    return put_scalar(out, start, p - start, limit, form, work)


cdef uint8_t* put_array(
    uint8_t* out, const uint8_t* p, size_t size, const uint8_t* limit, int form, Work* work
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
            out = put_element(out, &cursor, limit, form, work)
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


cdef size_t worst_case(
    const uint8_t* p, size_t size, const Binding* binding, int mark_growth
) noexcept nogil:
    # A byte of text becomes at most 6 bytes (`\u0001`), a quote or a backslash grows by `mark_growth`
    # bytes. An element of an array grows by at most four bytes (`f` becomes `false`, others get
    # quotes), and ends with a comma or a brace.
    cdef size_t i
    cdef size_t controls = 0
    cdef size_t marks = 0
    cdef size_t ends = 0
    if size <= COUNTED_FROM:
        return 6 * size
    for i in range(size):
        controls += p[i] < 0x20
        marks += (p[i] == c'"') | (p[i] == c'\\')
    if binding.forms & FORM_ARRAY:
        for i in range(size):
            ends += (p[i] == c',') | (p[i] == c'}')
        return size + 5 * controls + 4 * ends + mark_growth * marks
    return size + 5 * controls + mark_growth * marks
