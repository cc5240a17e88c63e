# cython: language_level=3
"""`LineWriter` as C sees it, for a source's own reader of rows. Contract: writer.pyi.

A reader writes one line so:

1. `find` gives the table, `next_place` the change's place.
2. `room_for` says where the line begins, with room for the worst case of its values.
3. `open_before`, `open_after` and `close_object` write what stands around the values; each value
   stands behind its column's `prefix`. In a flat line the members stand alone: `has_objects`.
4. `open_tail` writes the envelope up to where the source's own members belong; the source writes
   those, at most FIELDS_SIZE_MAX bytes, each with a comma before it, none in a flat line.
5. `close_line` writes the rest and counts the line.

Whoever gives up in between leaves everything as it was.
"""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from engine.lines.text cimport Piece, Room, Work, put_bytes

cdef enum:
    ENVELOPE_STANDARD = 0
    ENVELOPE_DEBEZIUM = 1
    ENVELOPE_FLAT = 2

cpdef enum:
    OP_CREATE = 0
    OP_UPDATE = 1
    OP_DELETE = 2
    OP_READ = 3
    OP_TRUNCATE = 4
    OP_COUNT = 5

# How `write` takes a value; a source's own reader has forms of its own.
cpdef enum:
    VALUE_TEXT = 0
    VALUE_BOOLEAN = 1
    VALUE_NUMBER = 2
    VALUE_BYTES = 3
    VALUE_JSON = 4
    # Any value, of whatever form: a reader of a source's own writes it so too.
    VALUE_HASH = 128

cdef enum:
    FIELDS_SIZE_MAX = 256
    COUNT_MAX = 0xFFFFFF

cdef struct Column:
    Piece prefix       # `,"name":`
    uint8_t form       # what the column's reader makes of a value
    bint is_key
    bint is_included

cdef struct Binding:
    uint8_t* memory    # holds all pieces
    Column* columns
    uint16_t* unchanged
    uint16_t* json_null
    int column_count
    int included_count
    int unchanged_count
    int json_null_count
    int envelope
    uint8_t forms      # all columns' forms, or-ed
    size_t fixed_max
    size_t fetched_columns  # bytes of `columns` and `memory` that a row is sure to need
    size_t fetched_memory
    Piece[5] heads     # what follows the row itself, by op; see the `put_..._tail` functions
    Piece middle
    Piece end
    Piece unchanged_name    # `,"unchanged":`
    Piece json_null_name

cdef struct Place:
    # A position, but for its generation.
    uint64_t order
    uint64_t change
    uint64_t count     # of the table's changes before it that share `change`

cdef struct Table:
    uint32_t number
    Binding* binding
    uint8_t* buffer
    PyObject* held     # the bytes object that `buffer` is inside of; NULL where it is plain memory
    size_t size
    size_t capacity
    int64_t row_count
    int64_t[5] operations
    Place first
    Place last
    int64_t first_time_us
    int64_t last_time_us
    bint is_listed
    bint is_busy       # many lines were taken from it the last time
    # The changes counted at `counted_change` in the transaction with this serial number.
    uint64_t counted_serial
    uint64_t counted_change
    uint64_t counted

cdef struct Transaction:
    uint64_t serial    # 0: none yet
    uint64_t order
    int64_t time_us
    int64_t hour_began_us
    bint is_snapshot
    size_t time_ms_size
    size_t position_size
    size_t iso_size    # 0: not rendered yet
    size_t time_us_size
    # Padded, so that they can be copied 16 bytes at a time.
    uint8_t[32] time_ms
    uint8_t[48] position   # generation and order, with both dots
    uint8_t[64] iso
    uint8_t[32] time_us_text


@cython.final
cdef class Lines:
    cdef readonly bytes lines
    cdef readonly int64_t row_count
    cdef readonly str first_position
    cdef readonly str last_position
    cdef readonly int64_t first_commit_us
    cdef readonly int64_t last_commit_us
    cdef readonly tuple operations


@cython.final
cdef class LineWriter:
    cdef Table** tables            # open addressing, a power of two of buckets
    cdef size_t bucket_count
    cdef size_t table_count
    cdef Table* recent
    cdef Transaction transaction
    cdef Work work
    cdef Room[32] spare
    cdef int spare_count
    cdef int64_t buffered_size
    # Those with lines are among these; so may be some that were taken since.
    cdef Table** written
    cdef size_t written_count
    cdef size_t written_capacity
    cdef size_t generation_size    # of what every position begins with
    cdef size_t row_bytes_max
    cdef bint has_hash_key
    cdef int64_t rows_max
    cdef str connector
    cdef bytes fields              # the transaction's, for `write`
    cdef dict names                # table number -> (table, column names, key's columns), for errors
    cdef dict faults               # what is wrong, in words
    cdef dict hints
    cdef frozenset faults_of_a_row # what one row can have and the next one not

    # For a source's reader.
    cdef int name_faults(self, dict faults, dict hints, frozenset of_a_row) except -1
    cdef bint holds_another_hour_than(self, int64_t time_us) noexcept
    cdef void begin_at(self, uint64_t order, int64_t time_us, bint is_snapshot) noexcept
    cdef Table* find_slowly(self, uint32_t number) noexcept
    cdef int next_place(self, const Table* table, uint64_t change, Place* place) except -2
    cdef uint8_t* room_for(self, Table* table, size_t values_max) except NULL
    cdef const uint8_t* moved_behind(self, Table* table, const uint8_t* start, size_t size) noexcept
    cdef uint8_t* open_tail(self, uint8_t* out, const Binding* binding, const Place* place, int op) noexcept
    cdef Py_ssize_t close_line(self, Table* table, uint8_t* first, uint8_t* out, const Place* place, int op, bint is_counted) except -2
    cdef Py_ssize_t refuse(self, Table* table, uint64_t change, str key) except -2

    cdef size_t bucket_of(self, uint32_t number) noexcept
    cdef int grow_buckets(self) except -1
    cdef Table* add(self, uint32_t number) except NULL
    cdef uint64_t count_at(self, const Table* table, uint64_t change) noexcept
    cdef int reserve(self, Table* table, size_t needed) except -2
    cdef int grow(self, Table* table, size_t capacity) except -1
    cdef int resize(self, Table* table, size_t capacity) except -1
    cdef uint8_t* append(self, Table* table, const uint8_t* line, size_t size) except NULL
    cdef int enlist(self, Table* table) except -1
    cdef void count(self, Table* table, const Place* place) noexcept
    cdef Lines lines_of(self, Table* table)
    cdef void complete(self, int envelope) noexcept
    cdef uint8_t* put_members(self, uint8_t* out, Binding* binding, tuple values) except? NULL
    cdef uint8_t* put_object(self, uint8_t* out, Binding* binding, tuple values) except? NULL
    cdef uint8_t* put_row(self, uint8_t* out, Binding* binding, tuple before, tuple after) except? NULL
    cdef str key_text(self, const Table* table, tuple values)
    cdef str shown(self, const Column* column, bytes value)
    cdef str position_text(self, const Place* place)
    cdef void trim(self, Room* room) noexcept
    cdef void recycle(self, Table* table) noexcept


cdef inline Table* find(LineWriter writer, uint32_t number) noexcept:
    # NULL where the table was never bound nor counted.
    cdef Table* table = writer.recent
    if table != NULL and table.number == number:
        return table
    return writer.find_slowly(number)


cdef inline bint has_objects(const Binding* binding) noexcept nogil:
    return binding.envelope != ENVELOPE_FLAT


cdef inline void start_row(Binding* binding, Work* work) noexcept nogil:
    binding.unchanged_count = 0
    binding.json_null_count = 0
    work.is_json_null = False
    work.column = -1


cdef inline void note_unchanged(Binding* binding, int index) noexcept nogil:
    binding.unchanged[binding.unchanged_count] = index
    binding.unchanged_count += 1


cdef inline void note_json_null(Binding* binding, Work* work, int index) noexcept nogil:
    # Behind a value that may have been JSON's null.
    if work.is_json_null:
        work.is_json_null = False
        binding.json_null[binding.json_null_count] = index
        binding.json_null_count += 1


cdef inline uint8_t* open_before(uint8_t* out) noexcept nogil:
    return put_bytes(out, b'{"before":', 10)


cdef inline uint8_t* open_after(uint8_t* out) noexcept nogil:
    return put_bytes(out, b',"after":', 9)


cdef inline uint8_t* close_object(uint8_t* first, uint8_t* out) noexcept nogil:
    # Every member begins with a comma; that of the first becomes the opening brace.
    if out == first:
        out += 1
    first[0] = c'{'
    out[0] = c'}'
    return out + 1
