# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""One line of the writer, taken apart. See line.pxd."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t
from libc.string cimport memcmp, memcpy

from engine.lines.text cimport (
    is_digit,
    make_room,
    skip_digits,
    skip_number,
    tr_first,
    tr_load8,
    tr_special,
)
from engine.lines.writer cimport OP_CREATE, OP_DELETE, OP_READ, OP_TRUNCATE, OP_UPDATE

from engine.model import position as positions

# Generation, order, change, count, and the dots between.
if 4 + sum(positions.PART_DIGITS) + 3 != POSITION_SIZE:
    raise ImportError("engine.reader.fold.line was compiled for other positions: make setup")

cdef int64_t VERSION_MAX = 1000000000000

# ------------------------------------------------------------------------------- values

cdef inline bint starts(const uint8_t* p, const uint8_t* end, const char* text, size_t size) noexcept nogil:
    return <size_t>(end - p) >= size and memcmp(p, text, size) == 0


cdef inline const uint8_t* skip_string(const uint8_t* p, const uint8_t* end) noexcept nogil:
    # From the opening quote to behind the closing one, or NULL.
    cdef uint64_t mark
    p += 1
    while True:
        if end - p >= 8:
            mark = tr_special(tr_load8(p))
            if mark == 0:
                p += 8
                continue
            p += tr_first(mark)
        elif p >= end:
            return NULL
        if p[0] == c'"':
            return p + 1
        if p[0] == c'\\':
            if end - p < 2:
                return NULL
            p += 2
        elif p[0] < 0x20:
            return NULL
        else:
            p += 1


cdef const uint8_t* skip_nested(const uint8_t* p, const uint8_t* end) noexcept nogil:
    # An object or an array; which bracket closes which is not looked at.
    cdef size_t depth = 0
    while p < end:
        if p[0] == c'"':
            p = skip_string(p, end)
            if p == NULL:
                return NULL
            continue
        if p[0] == c'{' or p[0] == c'[':
            depth += 1
        elif p[0] == c'}' or p[0] == c']':
            depth -= 1
            if depth == 0:
                return p + 1
        p += 1
    return NULL


cdef inline const uint8_t* skip_scalar(const uint8_t* p, const uint8_t* end) noexcept nogil:
    if p >= end:
        return NULL
    if p[0] == c'"':
        return skip_string(p, end)
    if p[0] == c'n':
        return p + 4 if starts(p, end, b"null", 4) else NULL
    if p[0] == c't':
        return p + 4 if starts(p, end, b"true", 4) else NULL
    if p[0] == c'f':
        return p + 5 if starts(p, end, b"false", 5) else NULL
    return skip_number(p, end)


cdef const uint8_t* skip_value(const uint8_t* p, const uint8_t* end) noexcept nogil:
    if p < end and (p[0] == c'{' or p[0] == c'['):
        return skip_nested(p, end)
    return skip_scalar(p, end)


cdef inline const uint8_t* skip_integer(const uint8_t* p, const uint8_t* end) noexcept nogil:
    if p < end and p[0] == c'-':
        p += 1
    if p >= end or not is_digit(p[0]):
        return NULL
    return skip_digits(p, end)

# ---------------------------------------------------------------------------- positions

cdef inline bint is_hex_upper(uint8_t c) noexcept nogil:
    return is_digit(c) or <uint8_t>(c - c'A') <= 5


cdef bint is_position(const uint8_t* position, int begin) noexcept nogil:
    # Whether the text from `begin` on is a position's.
    cdef int i
    for i in range(begin, POSITION_SIZE):
        if i == 4 or i == 21 or i == 38:
            if position[i] != c'.':
                return False
        elif i < 4:
            if not is_digit(position[i]):
                return False
        elif not is_hex_upper(position[i]):
            return False
    return True


cdef int compare_positions(
    const uint8_t* position, const uint8_t* other, int* first_difference
) noexcept nogil:
    # As memcmp; where they differ first, too.
    cdef int i = 0
    while i < POSITION_SIZE and position[i] == other[i]:
        if i + 8 <= POSITION_SIZE and tr_load8(position + i) == tr_load8(other + i):
            i += 8
        else:
            i += 1
    first_difference[0] = i
    if i == POSITION_SIZE:
        return 0
    return 1 if position[i] > other[i] else -1

# -------------------------------------------------------------------------------- tails

cdef const uint8_t* skip_text_member(
    const uint8_t* p, const uint8_t* end, const char* name, size_t size
) noexcept nogil:
    # `,"name":` and a string.
    if p == NULL or not starts(p, end, name, size):
        return NULL
    p += size
    if p >= end or p[0] != c'"':
        return NULL
    return skip_string(p, end)


cdef const uint8_t* read_standard_head(
    const uint8_t* p, const uint8_t* end, Shaped* shaped, int* fault
) noexcept nogil:
    # From behind the op's letter to the commit's time.
    cdef int64_t version = 0
    if p >= end or p[0] != c'"':
        return NULL
    p = skip_text_member(p + 1, end, b',"connector":', 13)
    p = skip_text_member(p, end, b',"db":', 6)
    p = skip_text_member(p, end, b',"schema":', 10)
    p = skip_text_member(p, end, b',"table":', 9)
    if p == NULL or not starts(p, end, b',"key":[', 8):
        return NULL
    p = skip_nested(p + 7, end)
    if p == NULL or not starts(p, end, b',"version":', 11):
        return NULL
    p += 11
    while p < end and is_digit(p[0]) and version < VERSION_MAX:
        version = 10 * version + (p[0] - c'0')
        p += 1
    if version != shaped.version:
        fault[0] = LINE_VERSION
        return NULL
    return p + 16 if starts(p, end, b',"source_ts_ms":', 16) else NULL


cdef bint keep_head(Shaped* shaped, const uint8_t* start, size_t size) noexcept nogil:
    if not make_room(&shaped.head, size):
        return False
    memcpy(shaped.head.start, start, size)
    shaped.head_size = size
    return True


cdef const uint8_t* read_position(Line* line, const uint8_t* p, const uint8_t* end) noexcept nogil:
    # From `,"position":"` to behind its closing quote.
    if not starts(p, end, b',"position":"', 13) or end - p < 13 + POSITION_SIZE + 1:
        return NULL
    line.position = p + 13
    if line.position[POSITION_SIZE] != c'"':
        return NULL
    return line.position + POSITION_SIZE + 1


cdef const uint8_t* read_fields(
    const uint8_t* p, const uint8_t* end, bint is_before_position
) noexcept nogil:
    # The source's own members, scalars all: up to the lists, to the position, or to the end.
    while p < end and p[0] == c',':
        if is_before_position and starts(p, end, b',"position":"', 13):
            return p
        if starts(p, end, b',"unchanged":[', 14) or starts(p, end, b',"json_null":[', 14):
            return p
        if end - p < 2 or p[1] != c'"':
            return NULL
        p = skip_string(p + 1, end)
        if p == NULL or p >= end or p[0] != c':':
            return NULL
        p = skip_scalar(p + 1, end)
        if p == NULL:
            return NULL
    return p


cdef const uint8_t* read_names(
    const uint8_t* p, const uint8_t* end, const Shaped* shaped, uint16_t* columns, int* count
) noexcept nogil:
    # From the opening bracket: names of columns in their order.
    cdef int column = 0
    cdef const Piece* name
    count[0] = 0
    while True:
        p += 1
        while True:
            if column == shaped.column_count:
                return NULL
            name = &shaped.names[column]
            if starts(p, end, <const char*>name.start, name.size - 1):
                break
            column += 1
        if columns != NULL:
            columns[count[0]] = column
        count[0] += 1
        column += 1
        p += name.size - 1
        if p >= end:
            return NULL
        if p[0] == c']':
            return p + 1
        if p[0] != c',':
            return NULL


cdef const uint8_t* read_lists(
    Line* line, const uint8_t* p, const uint8_t* end, const Shaped* shaped
) noexcept nogil:
    cdef int count
    line.left_out_count = 0
    if line.op == OP_UPDATE and starts(p, end, b',"unchanged":[', 14):
        p = read_names(p + 13, end, shaped, line.left_out, &line.left_out_count)
        if p == NULL:
            return NULL
    if starts(p, end, b',"json_null":[', 14):
        p = read_names(p + 13, end, shaped, NULL, &count)
    return p


cdef inline int op_of(uint8_t letter) noexcept nogil:
    if letter == c'u':
        return OP_UPDATE
    if letter == c'c':
        return OP_CREATE
    if letter == c'd':
        return OP_DELETE
    if letter == c'r':
        return OP_READ
    return OP_TRUNCATE if letter == c't' else -1


cdef const uint8_t* find_object(
    const Line* line, const uint8_t* end, const char* name, size_t size, const char* begin,
    size_t begin_size
) noexcept nogil:
    # The last object of this name that begins so: its opening brace, or NULL.
    cdef const uint8_t* brace = end
    while True:
        brace = tr_last(line.start, c'{', brace - line.start)
        if brace == NULL or <size_t>(brace - line.start) < size:
            return NULL
        if starts(brace, end, begin, begin_size) and memcmp(brace - size, name, size) == 0:
            return brace


cdef int read_standard_tail(Line* line, Shaped* shaped) noexcept nogil:
    cdef const uint8_t* end = line.end - 2
    cdef const uint8_t* p
    cdef const uint8_t* start
    cdef int fault = LINE_METADATA
    if line.end - line.start < 2 or memcmp(end, b"}}", 2):
        return LINE_END
    p = find_object(line, end, b',"metadata":', 12, b'{"op":"', 7)
    if p == NULL:
        return LINE_METADATA
    line.after.start = NULL
    line.after.size = p - 12 - line.start      # until the row is read: where it ends
    if end - p < 8:
        return LINE_OPERATION
    line.op = op_of(p[7])
    if line.op < 0:
        return LINE_OPERATION
    start = p + 8
    if shaped.head_size and starts(
        start, end, <const char*>shaped.head.start, shaped.head_size
    ):
        p = start + shaped.head_size
    else:
        p = read_standard_head(start, end, shaped, &fault)
        if p == NULL:
            return fault
        if not keep_head(shaped, start, p - start):
            return LINE_MEMORY
    p = skip_integer(p, end)
    if p == NULL:
        return LINE_METADATA
    p = read_position(line, p, end)
    if p == NULL:
        return LINE_POSITION
    p = read_fields(p, end, False)
    if p == NULL:
        return LINE_METADATA
    p = read_lists(line, p, end, shaped)
    return LINE_RIGHT if p == end else LINE_LISTS


cdef int read_debezium_tail(Line* line, Shaped* shaped) noexcept nogil:
    cdef const uint8_t* end = line.end - 20
    cdef const uint8_t* p
    if line.end - line.start < 20 or memcmp(end, b',"transaction":null}', 20):
        return LINE_END
    while end > line.start and is_digit((end - 1)[0]):
        end -= 1
    if end > line.start and (end - 1)[0] == c'-':
        end -= 1
    # `},"op":"c","ts_ms":`
    if end - line.start < 19 or memcmp(end - 10, b'","ts_ms":', 10) or memcmp(end - 19, b'},"op":"', 8):
        return LINE_OPERATION
    line.op = op_of((end - 11)[0])
    if line.op < 0:
        return LINE_OPERATION
    end -= 19
    p = find_object(line, end, b',"source":', 10, b'{"connector":"', 14)
    if p == NULL:
        return LINE_METADATA
    line.after.start = NULL
    line.after.size = p - 10 - line.start
    p = skip_string(p + 13, end)
    if p == NULL:
        return LINE_METADATA
    p = read_fields(p, end, True)
    if p == NULL:
        return LINE_METADATA
    p = read_position(line, p, end)
    if p == NULL:
        return LINE_POSITION
    p = read_lists(line, p, end, shaped)
    return LINE_RIGHT if p == end else LINE_LISTS


cdef int read_tail(Line* line, Shaped* shaped) noexcept nogil:
    # Everything but the row: op, position, and what was left out. `after` ends where the row does.
    if shaped.is_debezium:
        return read_debezium_tail(line, shaped)
    return read_standard_tail(line, shaped)

# --------------------------------------------------------------------------------- rows

cdef inline int read_new(Line* line, const uint8_t* p, const uint8_t* end) noexcept nogil:
    if end - p < 2 or p[0] != c'{' or (end - 1)[0] != c'}':
        return LINE_AFTER
    line.after.start = p
    line.after.size = end - p
    return LINE_RIGHT


cdef int read_rows(Line* line, const Shaped* shaped) noexcept nogil:
    # Finds `before` and `after`; of an update that has both, `before` is skipped value by value.
    cdef const uint8_t* p = line.start
    cdef const uint8_t* end = line.start + line.after.size
    line.before.start = NULL
    line.after.size = 0
    if not starts(p, end, b'{"before":', 10):
        return LINE_BEFORE
    p += 10
    if starts(p, end, b'null,"after":', 13):
        p += 13
        if line.op == OP_TRUNCATE:
            return LINE_RIGHT if end - p == 4 and memcmp(p, b"null", 4) == 0 else LINE_AFTER
        if line.op == OP_DELETE:
            return LINE_BEFORE
        return read_new(line, p, end)
    if p >= end or p[0] != c'{' or (line.op != OP_UPDATE and line.op != OP_DELETE):
        return LINE_BEFORE
    line.before.start = p
    if line.op == OP_DELETE:
        end -= 13
        if end - p < 2 or memcmp(end, b',"after":null', 13):
            return LINE_AFTER
        if (end - 1)[0] != c'}':
            return LINE_BEFORE
        line.before.size = end - p
        return LINE_RIGHT
    p = skip_nested(p, end)
    if p == NULL:
        return LINE_BEFORE
    line.before.size = p - line.before.start
    if not starts(p, end, b',"after":', 9):
        return LINE_AFTER
    return read_new(line, p + 9, end)


cdef const uint8_t* walk(
    const uint8_t* p, const uint8_t* end, const Shaped* shaped, const Line* line, bint is_after,
    const int* cells, int last_cellted, Span* found
) noexcept nogil:
    # Walks a row's members, to behind `last_cellted`, and notes where the values are that have a
    # cell. NULL where they are not the version's columns in order. `after` lacks those alone that
    # were left out.
    cdef const Piece* name
    cdef const uint8_t* value
    cdef int column = 0
    cdef int out = 0
    if end - p < 2 or p[0] != c'{':
        return NULL
    p += 1
    if p[0] == c'}' and p + 1 == end:
        return end if not is_after or line.left_out_count == shaped.column_count else NULL
    while True:
        while True:
            if column == shaped.column_count:
                return NULL
            name = &shaped.names[column]
            if starts(p, end, <const char*>name.start, name.size):
                break
            if is_after:
                if out == line.left_out_count or line.left_out[out] != column:
                    return NULL
                out += 1
            column += 1
        value = p + name.size
        p = skip_value(value, end)
        if p == NULL or p >= end:
            return NULL
        if cells[column] >= 0:
            found[cells[column]].start = value
            found[cells[column]].size = p - value
        column += 1
        if column > last_cellted:
            return p if p[0] == c',' or p[0] == c'}' else NULL
        if p[0] == c',':
            p += 1
            continue
        if p[0] != c'}' or p + 1 != end:
            return NULL
        break
    if is_after and line.left_out_count - out != shaped.column_count - column:
        return NULL
    return end


cdef uint8_t* put_merged(
    uint8_t* out, const Shaped* shaped, const Span* text, const Missing* missing, int missing_count
) noexcept nogil:
    # The row with what was missing, in the columns' order. NULL where the text is no such row.
    cdef uint8_t* first = out
    cdef const uint8_t* p = text.start + 1
    cdef const uint8_t* end = text.start + text.size
    cdef const uint8_t* after
    cdef const Piece* name
    cdef int column
    cdef int filled = 0
    for column in range(shaped.column_count):
        name = &shaped.names[column]
        out[0] = c','
        if filled < missing_count and missing[filled].column == column:
            memcpy(out + 1, name.start, name.size)
            memcpy(out + 1 + name.size, missing[filled].value.start, missing[filled].value.size)
            out += 1 + name.size + missing[filled].value.size
            filled += 1
            continue
        if not starts(p, end, <const char*>name.start, name.size):
            return NULL
        after = skip_value(p + name.size, end)
        if after == NULL or after >= end:
            return NULL
        memcpy(out + 1, p, after - p)
        out += 1 + (after - p)
        p = after + 1 if after[0] == c',' else after
    if p + 1 != end or p[0] != c'}':
        return NULL
    if out == first:
        out += 1
    first[0] = c'{'
    out[0] = c'}'
    return out + 1
