# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The values that are worked through as a whole: JSON, UTF-8, base64, times. See text.pxd."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memcmp, memcpy

cdef int64_t DAY_US = 86400000000
# From 0000-03-01, where the count of civil days begins, to 1970-01-01.
cdef int64_t DAYS_BEFORE_UNIX = 719468
cdef int64_t DAYS_OF_ERA = 146097      # 400 years


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


cdef int64_t floored(int64_t value, int64_t divisor) noexcept nogil:
    # C divides towards zero.
    cdef int64_t quotient = value / divisor
    return quotient - 1 if value % divisor < 0 else quotient


cdef uint8_t* put_iso_time(uint8_t* out, int64_t time_us) noexcept nogil:
    # Days to a civil date: Howard Hinnant's `civil_from_days`. A replication origin may set any
    # time: years before the first are written with BC.
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


cdef inline bint is_hex(uint8_t c) noexcept nogil:
    return is_digit(c) or <uint8_t>((c | 32) - c'a') <= 5


cdef const uint8_t* skip_json_escape(const uint8_t* p, const uint8_t* end) noexcept nogil:
    # `p` is behind the backslash. NULL where the escape is not one of RFC 8259.
    if p >= end:
        return NULL
    if p[0] == c'u':
        if (
            end - p < 5 or not is_hex(p[1]) or not is_hex(p[2])
            or not is_hex(p[3]) or not is_hex(p[4])
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


cdef uint8_t* put_base64(uint8_t* out, const uint8_t* p, size_t size) noexcept nogil:
    # In quotes.
    cdef const uint8_t* end = p + size
    cdef uint32_t three
    out[0] = c'"'
    out += 1
    while end - p >= 3:
        three = (<uint32_t>p[0] << 16) | (<uint32_t>p[1] << 8) | p[2]
        out[0] = TR_BASE64[three >> 18]
        out[1] = TR_BASE64[(three >> 12) & 63]
        out[2] = TR_BASE64[(three >> 6) & 63]
        out[3] = TR_BASE64[three & 63]
        out += 4
        p += 3
    if p < end:
        three = <uint32_t>p[0] << 16
        if end - p == 2:
            three |= <uint32_t>p[1] << 8
        out[0] = TR_BASE64[three >> 18]
        out[1] = TR_BASE64[(three >> 12) & 63]
        out[2] = c'=' if end - p == 1 else TR_BASE64[(three >> 6) & 63]
        out[3] = c'='
        out += 4
    out[0] = c'"'
    return out + 1
