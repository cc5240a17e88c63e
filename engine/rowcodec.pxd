# cython: language_level=3
"""What the row codec shares with the modules that are compiled against it: words on bytes, and
`RowCodec` as C sees it. Strategy, contracts and invariants: rowcodec.pyx and rowcodec.pyi.
"""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #include <sys/mman.h>

    #define TR_PAGE 4096
    /* The whole pages in these bytes, which nobody reads any more, may be taken by the system.
       Where its pages are larger it refuses: then they are kept until they are freed. */
    static inline void tr_give_back(const uint8_t *start, size_t size) {
        uintptr_t from = ((uintptr_t)start + TR_PAGE - 1) & ~(uintptr_t)(TR_PAGE - 1);
        uintptr_t to = ((uintptr_t)start + size) & ~(uintptr_t)(TR_PAGE - 1);
        if (from < to) (void)madvise((void *)from, to - from, MADV_DONTNEED);
    }

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
    static inline uint32_t tr_be32(const uint8_t *p) {
        return ((uint32_t)p[0] << 24) | ((uint32_t)p[1] << 16) | ((uint32_t)p[2] << 8) | p[3];
    }
    static inline uint64_t tr_be64(const uint8_t *p) {
        return ((uint64_t)tr_be32(p) << 32) | tr_be32(p + 4);
    }
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
    /* Marks the first byte that ends a field of COPY's text format or begins an escape in it. */
    static inline uint64_t tr_copy_special(uint64_t w) {
        uint64_t tab = w ^ (TR_ONES * '\\t');
        uint64_t line = w ^ (TR_ONES * '\\n');
        uint64_t slash = w ^ (TR_ONES * '\\\\');
        return (((tab - TR_ONES) & ~tab) | ((line - TR_ONES) & ~line)
                | ((slash - TR_ONES) & ~slash)) & TR_HIGHS;
    }
    static inline int tr_first(uint64_t mark) { return __builtin_ctzll(mark) >> 3; }
    """
    void tr_give_back(const uint8_t *, size_t) noexcept nogil
    uint64_t tr_load8(const uint8_t *) noexcept nogil
    void tr_store8(uint8_t *, uint64_t) noexcept nogil
    void tr_copy16(uint8_t *, const uint8_t *) noexcept nogil
    uint32_t tr_be32(const uint8_t *) noexcept nogil
    uint64_t tr_be64(const uint8_t *) noexcept nogil
    uint64_t tr_special(uint64_t) noexcept nogil
    uint64_t tr_copy_special(uint64_t) noexcept nogil
    int tr_first(uint64_t) noexcept nogil
    const uint64_t TR_HIGHS

# ------------------------------------------------------------------------------- structures

cdef struct Piece:
    # A rendered run of bytes, padded so that it can be copied 16 bytes at a time.
    uint8_t* start
    size_t size

cdef struct Column:
    Piece prefix       # `,"name":`
    uint8_t writer
    bint is_array
    bint is_identity
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
    bint has_arrays
    size_t fixed_max
    Piece[5] heads     # what follows the row itself, by op; see the `_put_tail_...` functions
    Piece middle
    Piece end
    Piece unchanged_name    # `,"unchanged":`
    Piece json_null_name

cdef struct Place:
    uint64_t commit_lsn
    uint64_t change_lsn
    uint64_t n

cdef struct Relation:
    uint32_t id
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
    # The changes counted at `counter_lsn` in the transaction with this serial number.
    uint64_t counter_serial
    uint64_t counter_lsn
    uint64_t counter

cdef struct Transaction:
    uint64_t serial    # 0: none yet
    uint64_t commit_lsn
    int64_t time_us
    uint64_t xid
    size_t time_ms_size
    size_t position_size
    size_t commit_size
    size_t xid_size
    size_t iso_size    # 0: not rendered yet
    size_t time_us_size
    uint8_t[32] time_ms
    uint8_t[32] position   # generation and commit_lsn, with both dots
    uint8_t[32] commit
    uint8_t[32] xid_text
    uint8_t[48] iso
    uint8_t[32] time_us_text

cdef struct Room:
    uint8_t* start
    size_t capacity

cdef struct Work:
    # What a row needs besides its output: memory to unescape in, and where it went wrong.
    Room field         # one COPY field without its escapes
    Room element       # one array element without its escapes
    Room stack         # one byte for each level of JSON nesting
    Room line          # one line of a relation that has few
    bint is_json_null
    int fault
    int column

cdef struct Cursor:
    const uint8_t* at
    const uint8_t* end


@cython.final
cdef class Rows:
    cdef readonly bytes lines
    cdef readonly int64_t row_count
    cdef readonly str first_position
    cdef readonly str last_position
    cdef readonly int64_t first_commit_us
    cdef readonly int64_t last_commit_us
    cdef readonly tuple operations


@cython.final
cdef class RowCodec:
    cdef Relation** relations      # open addressing, a power of two of slots
    cdef size_t slot_count
    cdef size_t relation_count
    cdef Relation* recent
    cdef Transaction transaction
    cdef Work work
    cdef Room[32] spare
    cdef int spare_count
    cdef int64_t buffered_size
    # Those with lines are among these; so may be some that were taken since.
    cdef Relation** written
    cdef size_t written_count
    cdef size_t written_capacity
    cdef int generation
    cdef size_t row_bytes_max
    cdef int64_t rows_max
    cdef dict names                # relation id -> (table, column names, key's columns), for errors

    cdef size_t slot_of(self, uint32_t relation_id) noexcept
    cdef Relation* find(self, uint32_t relation_id) noexcept
    cdef int grow_slots(self) except -1
    cdef Relation* add(self, uint32_t relation_id) except NULL
    cdef void complete(self, int envelope) noexcept
    cdef uint64_t count_at(self, const Relation* relation, uint64_t change_lsn) noexcept
    cdef int place_next(self, const Relation* relation, uint64_t change_lsn, Place* place) except -2
    cdef int fail(self, const Relation* relation) except -2
    cdef int fail_row(self, const Relation* relation, uint64_t change_lsn, str key) except -2
    cdef str key_text(self, const Relation* relation, const uint8_t* data, size_t size)
    cdef int reserve(self, Relation* relation, size_t needed) except -2
    cdef int grow(self, Relation* relation, size_t capacity) except -1
    cdef int resize(self, Relation* relation, size_t capacity) except -1
    cdef const uint8_t* moved_behind(self, Relation* relation, const uint8_t* data, size_t size) noexcept
    cdef uint8_t* room_for(self, Relation* relation, size_t needed) except NULL
    cdef uint8_t* append(self, Relation* relation, const uint8_t* line, size_t size) except NULL
    cdef int enlist(self, Relation* relation) except -1
    cdef void begin_at(self, uint64_t commit_lsn, int64_t commit_time_us, uint64_t xid) noexcept
    cdef Rows rows_of(self, Relation* relation)
    cdef void count(self, Relation* relation, const Place* place) noexcept
    cdef Py_ssize_t keep(self, Relation* relation, uint8_t* out, const Place* place, int op, bint is_counted) noexcept
    cdef Py_ssize_t encode_bytes(self, const uint8_t* data, size_t size, bint is_consumable) except -2
    cdef Py_ssize_t encode_copy_bytes(self, uint32_t relation_id, const uint8_t* data, size_t size, const Place* place) except -2
    cdef str position_text(self, const Place* place)
    cdef void trim(self, Room* room) noexcept
    cdef void recycle(self, Relation* relation) noexcept
