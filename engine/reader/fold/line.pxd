# cython: language_level=3
"""One line of the writer, taken apart as little as can be.

Strategy: a line's end says the most, and is read first. Strings are escaped, so a quote behind a
comma opens a name; `"metadata"` (or `"source"`) there, with an object that begins as the writer's,
is a member of that name. A row may hold one as well, in a column of JSON. But nothing behind the
record's own holds any: it is the last one of the line. Its text before the commit time is the same in
all lines of an object, so it is read once and then compared.

Of the row, columns are walked in the order of the version, until the last one was passed that is
wanted. What is not walked is not looked at: an object's checksum was compared before.

Invariant: no read is before the line's start or behind its end.

Format: see `engine/lines/writer.pyx`.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t

from engine.lines.text cimport Piece, Room

cdef enum:
    POSITION_SIZE = 45

# What may be wrong with a line.
cdef enum:
    LINE_RIGHT = 0
    LINE_END
    LINE_METADATA
    LINE_OPERATION
    LINE_VERSION
    LINE_POSITION
    LINE_ORDER
    LINE_LISTS
    LINE_BEFORE
    LINE_AFTER
    LINE_KEY
    LINE_MEMORY
    LINE_TOO_LARGE
    LINE_OTHER_VALUES

cdef struct Span:
    const uint8_t* start
    size_t size

cdef struct Shaped:
    # A version, as its lines are read.
    int64_t version
    bint is_debezium
    int column_count
    Piece* names       # `"name":`
    int* cells         # by column: which part of what tells rows apart it is, -1 for none
    int cell_count
    int last_cellted   # the last column that is one
    Span* fills        # by part, where this version has no such column: what its rows have in it
    int* numbers       # by column: its number
    uint8_t* memory
    Room head          # of its lines, as the last one had it: from `"connector"` to the commit time
    size_t head_size
    # For the fold.
    int number
    int other_count
    int** columns_of   # by another version and its column: the same column here; else a MISSES_
    Room out
    size_t out_size
    int64_t row_count

cdef struct Missing:
    # A column that a row lacks.
    int column
    Span value                 # NULL until it is found
    bint is_owned              # the value is a copy

cdef struct Line:
    const uint8_t* start
    const uint8_t* end         # its newline
    const uint8_t* position
    Span before                # NULL where it is null
    Span after
    int op
    int left_out_count         # columns that are `unchanged`, in order
    uint16_t* left_out
    int fault

cdef int read_tail(Line* line, Shaped* shaped) noexcept nogil
cdef int read_rows(Line* line, const Shaped* shaped) noexcept nogil
cdef const uint8_t* walk(
    const uint8_t* p, const uint8_t* end, const Shaped* shaped, const Line* line, bint is_after,
    const int* cells, int last_cellted, Span* found
) noexcept nogil
cdef uint8_t* put_merged(
    uint8_t* out, const Shaped* shaped, const Span* text, const Missing* missing, int missing_count
) noexcept nogil
cdef const uint8_t* skip_value(const uint8_t* p, const uint8_t* end) noexcept nogil
cdef int compare_positions(
    const uint8_t* position, const uint8_t* other, int* first_difference
) noexcept nogil
cdef bint is_position(const uint8_t* position, int begin) noexcept nogil


cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>

    /* The last such byte, or NULL. */
    static inline const uint8_t *tr_last(const uint8_t *start, uint8_t byte, size_t size) {
    #if defined(__linux__)
        return (const uint8_t *)memrchr(start, byte, size);
    #else
        while (size > 0)
            if (start[--size] == byte) return start + size;
        return NULL;
    #endif
    }
    """
    const uint8_t* tr_last(const uint8_t* start, uint8_t byte, size_t size) noexcept nogil
