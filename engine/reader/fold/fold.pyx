# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The fold of a table's records to its current state.

Strategy: objects come newest first, and an object's lines are walked from the last to the first. So
the first record of a key is its newest: its row goes out at once, and all that stays is the key's
hash. A delete, and the old key of an update that changed it, only leave the key. A truncate record
ends the walk: everything older is without effect.

A row that lacks columns (`unchanged`) waits for older records of its key, or of the key that it had
before, where a record changed that: these are the states before it, one after the other. It goes
out once all its columns are found.

Rows of a table without a key are counted by their whole text: each old row (`before`) is written off
against the next older new row of the same text. A new row that nothing is written off against is
of the state. Columns that the newest version does not have do not count, and a column that an older
version lacks counts as null: what is left of a row, or added to it, is so for all rows.

What a few lines ahead will ask for is fetched from far memory before their turn.

A state that is larger than its memory is folded in passes: where the memory is full, the fold drops
the upper half of its parts of hashes, and a later pass over the same objects takes those.

Invariant: a row goes out in one pass, once: in the first one that held its key when the record was
met that made it complete.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy

from engine.lines.text cimport Piece, Room, make_room, tr_load8
from engine.lines.writer cimport OP_CREATE, OP_DELETE, OP_READ, OP_TRUNCATE, OP_UPDATE
from engine.reader.fold.keys cimport (
    KEY_NEW,
    KEY_NO_MEMORY,
    PARTS,
    Key,
    KeyTable,
    Secret,
    add_key,
    drop_parts,
    expect_key,
    free_keys,
    hash_key,
    is_same,
    part_of,
    take_key,
)
from engine.reader.fold.line cimport (
    LINE_AFTER,
    LINE_BEFORE,
    LINE_END,
    LINE_KEY,
    LINE_LISTS,
    LINE_MEMORY,
    LINE_METADATA,
    LINE_OPERATION,
    LINE_ORDER,
    LINE_OTHER_VALUES,
    LINE_POSITION,
    LINE_RIGHT,
    LINE_TOO_LARGE,
    LINE_VERSION,
    POSITION_SIZE,
    Line,
    Missing,
    Shaped,
    Span,
    compare_positions,
    is_position,
    put_merged,
    read_rows,
    read_tail,
    tr_last,
    walk,
)

import json as json_text
import os
from typing import NamedTuple

from engine.model.errors import DecodeError, FoldTooLarge, StateUnknown
from engine.reader.fold.shape import JSON_NULL, require_alike, require_foldable

PART_COUNT = PARTS

# Of hash and gaps: between 20 and 25 bytes.
cdef enum:
    KEY_SIZE = 24
    AHEAD = 16             # lines that are taken apart before their turn
    ROWS_SIZE = 262144    # of rows that are handed over at a time

# In `Shaped.columns_of`.
cdef enum:
    MISSES_COLUMN = -1
    MISSES_FORM = -2       # a column of that name, with other values

cdef dict _FAULTS = {
    LINE_END: "it does not end as one",
    LINE_METADATA: "its metadata is not the writer's",
    LINE_OPERATION: "it has no known op",
    LINE_VERSION: "it is of another version than its object",
    LINE_POSITION: "it has no position",
    LINE_ORDER: "it is not before the records that came later in the table's order",
    LINE_LISTS: "what it says of its columns is not the writer's",
    LINE_BEFORE: "its `before` is not what its op and its version have",
    LINE_AFTER: "its `after` is not what its op and its version have",
    LINE_KEY: "it does not show the row's key",
}


class Pass(NamedTuple):
    """What one reading of a table's objects gives. See fold.pyi."""

    first_part: int
    last_part: int
    secret: bytes
    above: str


def passes_for(key_count, memory_max):
    """About how many passes a state of so many keys takes. See fold.pyi."""
    shares = max(1, -(-key_count * KEY_SIZE // memory_max))
    # Parts are halved until they fit.
    return 1 << (shares - 1).bit_length()


cdef struct Waiting:
    # A row that is not complete.
    Key own
    Key awaited        # of this key's next older record something is missing
    int shape
    Span text          # the row without what is missing
    int missing_count
    Missing* missing   # in the columns' order
    size_t size        # bytes of all of it
    uint8_t[POSITION_SIZE] position

cdef struct Ahead:
    # A line before its turn.
    Line line
    Key key            # the row's
    Key old            # the row's before; the same where there is none
    bint has_old

cdef struct Rest:
    int first_part
    int last_part
    uint8_t[POSITION_SIZE] above


cdef void free_waiting(Waiting* row) noexcept nogil:
    cdef int i
    for i in range(row.missing_count):
        if row.missing[i].is_owned:
            free(<void*>row.missing[i].value.start)
    free(row.missing)
    free(<void*>row.text.start)
    free(row)


cdef const uint8_t* copied(const uint8_t* start, size_t size) noexcept nogil:
    cdef uint8_t* copy = <uint8_t*>malloc(size + 1)
    if copy != NULL:
        memcpy(copy, start, size)
    return copy


cdef int _copy_position(uint8_t* to, str position) except -1:
    encoded = position.encode()
    if len(encoded) != POSITION_SIZE:
        raise ValueError(f"not a position: {position!r}")
    memcpy(to, PyBytes_AS_STRING(encoded), POSITION_SIZE)
    return 0


cdef str _position_text(const uint8_t* position):
    return PyBytes_FromStringAndSize(<const char*>position, POSITION_SIZE).decode("ascii", "replace")


cdef int* columns_in(object older, object newer) except NULL:
    # By column of `newer`: the same one of `older`.
    cdef int* found = <int*>calloc(len(newer.columns) + 1, sizeof(int))
    cdef int i
    if found == NULL:
        raise MemoryError
    places = older.places
    for i, lineage in enumerate(newer.lineages):
        place = places.get(lineage)
        if place is None:
            found[i] = MISSES_COLUMN
        elif older.forms[place] != newer.forms[i]:
            found[i] = MISSES_FORM
        else:
            found[i] = place
    return found


cdef int add_columns(Shaped* shaped, object older, object newer) except -1:
    # Says which columns of this version are which of one more.
    cdef int** grown = <int**>realloc(shaped.columns_of, (shaped.other_count + 1) * sizeof(int*))
    if grown == NULL:
        raise MemoryError
    shaped.columns_of = grown
    grown[shaped.other_count] = columns_in(older, newer)
    shaped.other_count += 1
    return 0


cdef void free_shaped(Shaped* shaped) noexcept:
    cdef int i
    for i in range(shaped.other_count):
        free(shaped.columns_of[i])
    free(shaped.columns_of)
    free(shaped.memory)
    free(shaped.names)
    free(shaped.cells)
    free(shaped.fills)
    free(shaped.numbers)
    free(shaped.head.start)
    free(shaped.out.start)
    free(shaped)


cdef Shaped* make_shaped(object shape, object newest, int number) except NULL:
    cdef Shaped* shaped = <Shaped*>calloc(1, sizeof(Shaped))
    cdef list names = [
        json_text.dumps(column, ensure_ascii=False).encode() + b":" for column in shape.columns
    ]
    cdef tuple parts = newest.parts
    cdef list fills = []
    cdef dict places = shape.places
    cdef size_t size = 1
    cdef bytes name
    cdef int i
    cdef uint8_t* at
    if shaped == NULL:
        raise MemoryError
    for i, lineage in enumerate(parts):
        fills.append(b"" if lineage in places else (newest.fills[i] or JSON_NULL).encode())
    for name in names + fills:
        size += len(name)
    shaped.number = number
    shaped.version = shape.version
    shaped.is_debezium = shape.envelope == "debezium"
    shaped.column_count = len(names)
    shaped.cell_count = len(parts)
    shaped.last_cellted = -1
    shaped.memory = <uint8_t*>malloc(size)
    shaped.names = <Piece*>calloc(len(names) + 1, sizeof(Piece))
    shaped.cells = <int*>calloc(len(names) + 1, sizeof(int))
    shaped.fills = <Span*>calloc(len(parts) + 1, sizeof(Span))
    shaped.numbers = <int*>calloc(len(names) + 1, sizeof(int))
    if (
        shaped.memory == NULL or shaped.names == NULL or shaped.cells == NULL
        or shaped.fills == NULL or shaped.numbers == NULL
    ):
        free_shaped(shaped)
        raise MemoryError
    at = shaped.memory
    for i, name in enumerate(names):
        shaped.names[i].start = at
        shaped.names[i].size = len(name)
        memcpy(at, PyBytes_AS_STRING(name), len(name))
        at += len(name)
        shaped.numbers[i] = i
        lineage = shape.lineages[i]
        shaped.cells[i] = parts.index(lineage) if lineage in parts else -1
        if shaped.cells[i] >= 0:
            shaped.last_cellted = i
    for i, name in enumerate(fills):
        if name:
            shaped.fills[i].start = at
            shaped.fills[i].size = len(name)
            memcpy(at, PyBytes_AS_STRING(name), len(name))
            at += len(name)
    return shaped


@cython.final
cdef class Rows:
    """Some rows of one version. See fold.pyi."""

    cdef readonly int64_t version
    cdef readonly bytes lines
    cdef readonly int64_t row_count


@cython.final
cdef class Fold:
    """One pass. See fold.pyi."""

    cdef KeyTable keys
    cdef Secret secret
    cdef bytes secret_text
    cdef object newest
    cdef list known                # the shapes, by number
    cdef dict numbers              # version -> its shape's number
    cdef Shaped** shapes
    cdef int shape_count
    cdef bint is_whole_row
    cdef int first_part
    cdef int last_part
    cdef size_t memory_max
    # Rows are not given above.
    cdef bint has_above
    cdef uint8_t[POSITION_SIZE] above
    # The last record that was taken.
    cdef bint has_last
    cdef uint8_t[POSITION_SIZE] last
    cdef bint is_finished_walk     # a truncate record was met, or another table
    cdef object taking             # the body that is walked
    # Unfinished rows: open addressing by the key that they wait for, a power of two.
    cdef Waiting** waiting
    cdef size_t waiting_room
    cdef size_t waiting_count
    cdef size_t waiting_size
    # Those that nothing older completes.
    cdef int64_t broken_count
    cdef int broken_shape
    cdef int broken_column
    cdef uint8_t[POSITION_SIZE] broken_position
    # A column whose value is of another form where it was found.
    cdef int other_shape
    cdef int other_column
    cdef int other_older
    cdef Rest[16] rests
    cdef int rest_count
    # For one line at a time.
    cdef Span* cells
    cdef Span* old_cells
    cdef Missing* missing
    cdef Span* values
    cdef int column_max
    cdef Room text
    cdef size_t out_size

    def __cinit__(self, newest, *, memory_max=1 << 62, part=None):
        require_foldable(newest)
        if memory_max <= 0:
            raise ValueError(f"a memory of {memory_max} bytes")
        first, last, secret, above = part or Pass(0, PARTS, os.urandom(16), "")
        if not 0 <= first < last <= PARTS or len(secret) != 16:
            raise ValueError(f"no pass: {part}")
        if above:
            self.has_above = True
            _copy_position(self.above, above)
        self.newest = newest
        self.known = []
        self.numbers = {}
        self.is_whole_row = newest.is_whole_row
        self.keys.is_counting = self.is_whole_row
        self.first_part = first
        self.last_part = last
        self.memory_max = min(memory_max, 1 << 62)
        self.secret_text = secret
        self.secret.words[0] = tr_load8(<const uint8_t*>PyBytes_AS_STRING(self.secret_text))
        self.secret.words[1] = tr_load8(<const uint8_t*>PyBytes_AS_STRING(self.secret_text) + 8)
        cell_count = len(newest.parts)
        self.cells = <Span*>calloc(cell_count + 1, sizeof(Span))
        self.old_cells = <Span*>calloc(cell_count + 1, sizeof(Span))
        if self.cells == NULL or self.old_cells == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef size_t i
        cdef int j
        for i in range(self.waiting_room):
            if self.waiting[i] != NULL:
                free_waiting(self.waiting[i])
        free(self.waiting)
        for j in range(self.shape_count):
            free_shaped(self.shapes[j])
        free(self.shapes)
        free_keys(&self.keys)
        free(self.cells)
        free(self.old_cells)
        free(self.missing)
        free(self.values)
        free(self.text.start)

    @property
    def is_over(self):
        """Whether everything older is without effect."""
        return bool(self.is_finished_walk)

    @property
    def memory(self):
        """Bytes that keys and unfinished rows take now."""
        return self.held()

    @property
    def key_count(self):
        """How many keys are remembered, or texts of rows."""
        return self.keys.count

    cdef inline size_t held(self) noexcept nogil:
        return self.keys.size + self.waiting_size + self.waiting_room * sizeof(Waiting*)

    # ------------------------------------------------------------------------- versions

    cdef int number_of(self, object shape) except -1:
        # The shape's number; a new one is compared with the newest version.
        cdef object number = self.numbers.get(shape.version)
        cdef Shaped* shaped
        cdef Shaped** shapes
        if number is not None:
            if self.known[number] != shape:
                raise ValueError(f"{shape.table}: another shape of version {shape.version}")
            return number
        require_foldable(shape)
        require_alike(self.newest, shape)
        shapes = <Shaped**>realloc(self.shapes, (self.shape_count + 1) * sizeof(Shaped*))
        if shapes == NULL:
            raise MemoryError
        self.shapes = shapes
        self.make_room_for(len(shape.columns))
        shaped = make_shaped(shape, self.newest, self.shape_count)
        self.shapes[self.shape_count] = shaped
        # From here on `__dealloc__` frees it.
        self.shape_count += 1
        self.known.append(shape)
        self.link(shaped)
        self.numbers[shape.version] = shaped.number
        return shaped.number

    cdef int make_room_for(self, int column_count) except -1:
        cdef Missing* missing
        cdef Span* values
        if column_count > self.column_max or self.missing == NULL:
            missing = <Missing*>realloc(self.missing, (column_count + 1) * sizeof(Missing))
            if missing == NULL:
                raise MemoryError
            self.missing = missing
            values = <Span*>realloc(self.values, (column_count + 1) * sizeof(Span))
            if values == NULL:
                raise MemoryError
            self.values = values
            self.column_max = column_count
        return 0

    cdef int link(self, Shaped* shaped) except -1:
        # Says which columns of this version are which of every other one, both ways.
        cdef int i
        for i in range(self.shape_count - 1):
            add_columns(self.shapes[i], self.known[i], self.known[shaped.number])
        for i in range(self.shape_count):
            add_columns(shaped, self.known[shaped.number], self.known[i])
        return 0

    # --------------------------------------------------------------------------- lines

    cdef inline bint is_ours(self, Key key) noexcept nogil:
        return self.first_part <= part_of(key) < self.last_part

    cdef int hash_cells(self, const Shaped* shaped, const Span* cells, Key* key) noexcept nogil:
        # Values are whole, so a comma between them tells where one ends.
        cdef size_t size = 1
        cdef int i
        cdef uint8_t* out
        if shaped.cell_count == 1:
            if cells[0].start == NULL:
                return LINE_KEY
            key[0] = hash_key(&self.secret, cells[0].start, cells[0].size)
            return LINE_RIGHT
        for i in range(shaped.cell_count):
            if cells[i].start == NULL:
                return LINE_KEY
            size += cells[i].size + 1
        if not make_room(&self.text, size):
            return LINE_MEMORY
        out = self.text.start
        for i in range(shaped.cell_count):
            memcpy(out, cells[i].start, cells[i].size)
            out += cells[i].size
            out[0] = c','
            out += 1
        key[0] = hash_key(&self.secret, self.text.start, out - self.text.start)
        return LINE_RIGHT

    cdef inline void clear(self, const Shaped* shaped, Span* cells) noexcept nogil:
        cdef int i
        for i in range(shaped.cell_count):
            cells[i] = shaped.fills[i]

    cdef int read_keys(self, Ahead* ahead, const Shaped* shaped) noexcept nogil:
        cdef Line* line = &ahead.line
        cdef int fault, i
        ahead.has_old = line.before.start != NULL
        if ahead.has_old:
            self.clear(shaped, self.old_cells)
            if walk(
                line.before.start, line.before.start + line.before.size, shaped, line, False,
                shaped.cells, shaped.last_cellted, self.old_cells
            ) == NULL:
                return LINE_BEFORE
            fault = self.hash_cells(shaped, self.old_cells, &ahead.old)
            if fault:
                return fault
        if line.after.start != NULL:
            self.clear(shaped, self.cells)
            if walk(
                line.after.start, line.after.start + line.after.size, shaped, line, True,
                shaped.cells, shaped.last_cellted, self.cells
            ) == NULL:
                return LINE_AFTER
            if line.left_out_count and ahead.has_old:
                for i in range(shaped.cell_count):
                    if self.cells[i].start == NULL:
                        self.cells[i] = self.old_cells[i]
            elif line.left_out_count and self.is_whole_row:
                # An update that shows no old row: see `take_counted`.
                ahead.key.high = ahead.key.low = 0
                return LINE_RIGHT
            return self.hash_cells(shaped, self.cells, &ahead.key)
        return LINE_RIGHT

    cdef int take_line(self, Ahead* ahead, Shaped* shaped) noexcept nogil:
        cdef Line* line = &ahead.line
        cdef int fault
        cdef int difference
        if line.fault:
            return line.fault
        if self.has_above and compare_positions(line.position, self.above, &difference) < 0:
            self.has_above = False
        if line.op == OP_TRUNCATE:
            self.is_finished_walk = True
            fault = LINE_RIGHT
        elif self.is_whole_row:
            fault = self.take_counted(ahead, shaped)
        else:
            fault = self.take_keyed(ahead, shaped)
        if fault == LINE_RIGHT and self.held() > self.memory_max:
            fault = self.narrow(line.position)
        return fault

    cdef int take_counted(self, Ahead* ahead, Shaped* shaped) noexcept nogil:
        cdef Line* line = &ahead.line
        cdef int fault
        # An update that shows no old row changed nothing of it: all its columns are the key.
        if line.op == OP_UPDATE and not ahead.has_old:
            return LINE_RIGHT
        if line.after.start != NULL and self.is_ours(ahead.key):
            if not take_key(&self.keys, ahead.key):
                fault = self.give_row(ahead, shaped)
                if fault:
                    return fault
        if ahead.has_old and self.is_ours(ahead.old):
            if add_key(&self.keys, ahead.old) == KEY_NO_MEMORY:
                return LINE_MEMORY
        return LINE_RIGHT

    cdef int take_keyed(self, Ahead* ahead, Shaped* shaped) noexcept nogil:
        cdef bint is_moved = ahead.has_old
        cdef int found
        cdef int fault
        if ahead.line.after.start == NULL:
            if self.waiting_count:
                self.give_up(self.take_waiting(ahead.old))
            return self.remember(ahead.old)
        if is_moved and is_same(ahead.old, ahead.key):
            is_moved = False
        if self.waiting_count:
            fault = self.complete(ahead, shaped, is_moved)
            if fault:
                return fault
        if self.is_ours(ahead.key):
            found = add_key(&self.keys, ahead.key)
            if found == KEY_NO_MEMORY:
                return LINE_MEMORY
            if found == KEY_NEW:
                fault = self.give_row(ahead, shaped)
                if fault:
                    return fault
        return self.remember(ahead.old) if is_moved else LINE_RIGHT

    cdef inline int remember(self, Key key) noexcept nogil:
        if self.is_ours(key) and add_key(&self.keys, key) == KEY_NO_MEMORY:
            return LINE_MEMORY
        return LINE_RIGHT

    # ---------------------------------------------------------------------------- rows

    cdef uint8_t* room_for(self, Shaped* shaped, size_t size) noexcept nogil:
        # Where a row of so many bytes may be written; NULL: there is no memory.
        if not make_room(&shaped.out, shaped.out_size + size + 1):
            return NULL
        return shaped.out.start + shaped.out_size

    cdef inline void count_row(self, Shaped* shaped, uint8_t* end) noexcept nogil:
        cdef size_t size
        end[0] = c'\n'
        size = end + 1 - shaped.out.start
        self.out_size += size - shaped.out_size
        shaped.out_size = size
        shaped.row_count += 1

    cdef int give_row(self, Ahead* ahead, Shaped* shaped) noexcept nogil:
        # The row of this line is of the state: it goes out, or waits until it is complete.
        cdef Line* line = &ahead.line
        cdef uint8_t* out
        cdef int i, left, fault
        if line.left_out_count == 0:
            if self.has_above:
                return LINE_RIGHT
            out = self.room_for(shaped, line.after.size)
            if out == NULL:
                return LINE_MEMORY
            memcpy(out, line.after.start, line.after.size)
            self.count_row(shaped, out + line.after.size)
            return LINE_RIGHT
        for i in range(line.left_out_count):
            self.missing[i].column = line.left_out[i]
            self.missing[i].value.start = NULL
            self.missing[i].is_owned = False
        left = line.left_out_count
        if ahead.has_old:
            fault = self.fill(
                &line.before, line, shaped, False, shaped, self.missing, line.left_out_count, &left)
            if fault:
                return fault
        if left == 0:
            return self.give_merged(shaped, &line.after, self.missing, line.left_out_count)
        if self.is_whole_row:
            return LINE_BEFORE
        return self.wait(ahead, shaped)

    cdef int give_merged(
        self, Shaped* shaped, const Span* text, const Missing* missing, int missing_count
    ) noexcept nogil:
        cdef size_t size = text.size
        cdef uint8_t* out
        cdef int i
        if self.has_above:
            return LINE_RIGHT
        for i in range(missing_count):
            size += shaped.names[missing[i].column].size + missing[i].value.size + 1
        out = self.room_for(shaped, size)
        if out == NULL:
            return LINE_MEMORY
        out = put_merged(out, shaped, text, missing, missing_count)
        if out == NULL:
            return LINE_AFTER
        self.count_row(shaped, out)
        return LINE_RIGHT

    # ------------------------------------------------------------------ unfinished rows

    cdef int fill(
        self, const Span* row, const Line* line, const Shaped* shaped, bint is_after,
        const Shaped* of, Missing* missing, int missing_count, int* left
    ) noexcept nogil:
        # Finds in a row of version `shaped` what one of version `of` lacks; `left` is what still is.
        cdef const int* columns = shaped.columns_of[of.number]
        cdef int i, column
        left[0] = 0
        for i in range(shaped.column_count):
            self.values[i].start = NULL
        if walk(
            row.start, row.start + row.size, shaped, line, is_after, shaped.numbers,
            shaped.column_count, self.values
        ) == NULL:
            return LINE_AFTER if is_after else LINE_BEFORE
        for i in range(missing_count):
            if missing[i].value.start != NULL:
                continue
            column = columns[missing[i].column]
            if column == MISSES_FORM:
                self.other_shape = of.number
                self.other_column = missing[i].column
                self.other_older = shaped.number
                return LINE_OTHER_VALUES
            if column >= 0 and self.values[column].start != NULL:
                missing[i].value = self.values[column]
                missing[i].is_owned = False
            else:
                left[0] += 1
        return LINE_RIGHT

    cdef bint own(self, Waiting* row) noexcept nogil:
        # Copies what was found for the row in a body that will be gone.
        cdef int i
        cdef Missing* missing
        for i in range(row.missing_count):
            missing = &row.missing[i]
            if missing.value.start != NULL and not missing.is_owned:
                missing.value.start = copied(missing.value.start, missing.value.size)
                if missing.value.start == NULL:
                    return False
                missing.is_owned = True
                row.size += missing.value.size
        return True

    cdef int wait(self, Ahead* ahead, Shaped* shaped) noexcept nogil:
        # The row of this line waits, with what `self.missing` has.
        cdef Line* line = &ahead.line
        cdef Waiting* row = <Waiting*>calloc(1, sizeof(Waiting))
        if row == NULL:
            return LINE_MEMORY
        row.own = ahead.key
        row.awaited = ahead.old if ahead.has_old else ahead.key
        row.shape = shaped.number
        memcpy(row.position, line.position, POSITION_SIZE)
        row.missing = <Missing*>calloc(line.left_out_count, sizeof(Missing))
        row.text.start = copied(line.after.start, line.after.size)
        row.text.size = line.after.size
        row.size = sizeof(Waiting) + line.after.size + line.left_out_count * sizeof(Missing)
        if row.missing != NULL:
            row.missing_count = line.left_out_count
            memcpy(row.missing, self.missing, row.missing_count * sizeof(Missing))
        if row.missing == NULL or row.text.start == NULL or not self.own(row):
            free_waiting(row)
            return LINE_MEMORY
        return self.put_waiting(row)

    cdef int complete(self, Ahead* ahead, Shaped* shaped, bint is_moved) noexcept nogil:
        # This line is what a row that waits was before, if one waits for its key.
        cdef Line* line = &ahead.line
        cdef Waiting* row
        cdef Shaped* of
        cdef int left, fault, i
        if is_moved:
            # From here on back, this key has the row of this line: what waits for it has none.
            self.give_up(self.take_waiting(ahead.old))
        row = self.take_waiting(ahead.key)
        if row == NULL:
            return LINE_RIGHT
        of = self.shapes[row.shape]
        fault = self.fill(
            &line.after, line, shaped, True, of, row.missing, row.missing_count, &left)
        if fault == LINE_RIGHT and left and ahead.has_old:
            fault = self.fill(
                &line.before, line, shaped, False, of, row.missing, row.missing_count, &left)
        if fault == LINE_RIGHT and left == 0:
            fault = self.give_merged(of, &row.text, row.missing, row.missing_count)
        if fault or left == 0:
            free_waiting(row)
            return fault
        for i in range(row.missing_count):
            if (
                row.missing[i].value.start == NULL
                and shaped.columns_of[of.number][row.missing[i].column] == MISSES_COLUMN
            ):
                # What it had then nobody recorded, whatever older records have.
                self.give_up(row)
                return LINE_RIGHT
        if not self.own(row):
            free_waiting(row)
            return LINE_MEMORY
        row.awaited = ahead.old if is_moved else ahead.key
        return self.put_waiting(row)

    cdef size_t waiting_place(self, Key key) noexcept nogil:
        cdef size_t at = key.low & (self.waiting_room - 1)
        while self.waiting[at] != NULL and not is_same(self.waiting[at].awaited, key):
            at = (at + 1) & (self.waiting_room - 1)
        return at

    cdef int resize_waiting(self, size_t room) noexcept nogil:
        cdef Waiting** earlier = self.waiting
        cdef size_t earlier_room = self.waiting_room
        cdef Waiting** resized = <Waiting**>calloc(room, sizeof(Waiting*))
        cdef size_t i
        if resized == NULL:
            return LINE_MEMORY
        self.waiting = resized
        self.waiting_room = room
        for i in range(earlier_room):
            if earlier[i] != NULL:
                resized[self.waiting_place(earlier[i].awaited)] = earlier[i]
        free(earlier)
        return LINE_RIGHT

    cdef int put_waiting(self, Waiting* row) noexcept nogil:
        cdef size_t at
        if 4 * (self.waiting_count + 1) > 3 * self.waiting_room and self.resize_waiting(
            max(2 * self.waiting_room, <size_t>64)
        ):
            free_waiting(row)
            return LINE_MEMORY
        at = self.waiting_place(row.awaited)
        # Each key has one row at a time, and what waited for it was given up.
        if self.waiting[at] != NULL:
            self.give_up(self.take_waiting(row.awaited))
            at = self.waiting_place(row.awaited)
        self.waiting[at] = row
        self.waiting_count += 1
        self.waiting_size += row.size
        return LINE_RIGHT

    cdef Waiting* take_waiting(self, Key key) noexcept nogil:
        cdef size_t mask = self.waiting_room - 1
        cdef size_t at, next
        cdef Waiting* row
        if self.waiting_count == 0:
            return NULL
        at = self.waiting_place(key)
        row = self.waiting[at]
        if row == NULL:
            return NULL
        self.waiting_count -= 1
        self.waiting_size -= row.size
        next = (at + 1) & mask
        while self.waiting[next] != NULL:
            # One whose home is not behind the gap may stand in it.
            if ((next - self.waiting[next].awaited.low) & mask) >= ((next - at) & mask):
                self.waiting[at] = self.waiting[next]
                at = next
            next = (next + 1) & mask
        self.waiting[at] = NULL
        return row

    cdef void give_up(self, Waiting* row) noexcept nogil:
        # Nothing older completes it.
        cdef int i
        if row == NULL:
            return
        if self.broken_count == 0:
            self.broken_shape = row.shape
            memcpy(self.broken_position, row.position, POSITION_SIZE)
            for i in range(row.missing_count):
                if row.missing[i].value.start == NULL:
                    self.broken_column = row.missing[i].column
                    break
        self.broken_count += 1
        free_waiting(row)

    cdef int narrow(self, const uint8_t* position) noexcept nogil:
        # Leaves parts to a later pass until the others fit. Up to this position, all were served.
        cdef Rest* rest
        cdef int middle
        while self.held() > self.memory_max:
            if self.last_part - self.first_part == 1:
                return LINE_TOO_LARGE
            middle = (self.first_part + self.last_part) // 2
            rest = &self.rests[self.rest_count]
            rest.first_part = middle
            rest.last_part = self.last_part
            if self.has_above:
                position = self.above
            memcpy(rest.above, position, POSITION_SIZE)
            self.rest_count += 1
            self.last_part = middle
            drop_parts(&self.keys, middle, rest.last_part)
            if self.waiting_count and self.drop_waiting():
                return LINE_MEMORY
        return LINE_RIGHT

    cdef int drop_waiting(self) noexcept nogil:
        # Forgets rows whose keys are left to a later pass.
        cdef Waiting* row
        cdef size_t room = 64
        cdef size_t i
        for i in range(self.waiting_room):
            row = self.waiting[i]
            if row != NULL and not self.is_ours(row.own):
                self.waiting[i] = NULL
                self.waiting_count -= 1
                self.waiting_size -= row.size
                free_waiting(row)
        while 4 * (self.waiting_count + 1) > 3 * room:
            room *= 2
        # There are gaps where none may be: all are put anew.
        return self.resize_waiting(room)

    # ------------------------------------------------------------------------- the caller

    def take(self, body, shape, *, str low="", str high=""):
        """Fold an object's lines. See fold.pyi."""
        return Taking(self, body, shape, low.encode(), high.encode())

    cdef list handed_over(self):
        # What was given since the last time, by version.
        cdef list found = []
        cdef Shaped* shaped
        cdef Rows rows
        cdef int i
        for i in range(self.shape_count):
            shaped = self.shapes[i]
            if shaped.out_size:
                rows = Rows.__new__(Rows)
                rows.version = shaped.version
                rows.lines = PyBytes_FromStringAndSize(
                    <const char*>shaped.out.start, shaped.out_size)
                rows.row_count = shaped.row_count
                found.append(rows)
                shaped.out_size = 0
                shaped.row_count = 0
        self.out_size = 0
        return found

    cdef int refuse(self, Shaped* shaped, int fault, size_t offset) except -1:
        cdef str table = self.newest.table
        if fault == LINE_MEMORY:
            raise MemoryError
        if fault == LINE_TOO_LARGE:
            raise FoldTooLarge(
                f"{table}: a {PARTS}th of its current state is larger than {self.memory_max} bytes",
                hint="Give it more memory.",
            )
        if fault == LINE_OTHER_VALUES:
            of = self.known[self.other_shape]
            older = self.known[self.other_older]
            raise StateUnknown(
                f"{table}: a row of version {of.version} left out the column "
                f"{of.columns[self.other_column]!r}, which has other values in version "
                f"{older.version}",
                hint="A resync of the table makes the older rows superfluous.",
            )
        raise DecodeError(
            f"{table}, version {shaped.version}: the line at byte {offset} of its object is no "
            f"record: {_FAULTS[fault]}"
        )

    def finish(self):
        """Say that there is nothing older. See fold.pyi."""
        cdef size_t i
        cdef int j
        if self.taking is not None:
            raise ValueError("a body was not taken to its end")
        for i in range(self.waiting_room):
            if self.waiting[i] != NULL:
                row = self.waiting[i]
                self.waiting[i] = NULL
                self.waiting_count -= 1
                self.waiting_size -= row.size
                self.give_up(row)
        table = self.newest.table
        if self.broken_count:
            shape = self.known[self.broken_shape]
            raise StateUnknown(
                f"{table}: no record has the value of the column "
                f"{shape.columns[self.broken_column]!r} that the one at "
                f"{_position_text(self.broken_position)} left out; of {self.broken_count} rows in "
                "all a column is not known",
                hint="A resync of the table gives its rows whole.",
            )
        if self.is_whole_row and self.keys.count:
            raise StateUnknown(
                f"{table}: rows were changed or deleted that no record has: {self.keys.count} "
                "different ones",
                hint="A resync of the table gives its rows whole.",
            )
        return tuple(
            Pass(
                self.rests[j].first_part,
                self.rests[j].last_part,
                self.secret_text,
                _position_text(self.rests[j].above),
            )
            for j in range(self.rest_count)
        )


@cython.final
cdef class Taking:
    """One body on its way through a fold: an iterator over rows."""

    cdef Fold fold
    cdef object body
    cdef object shape
    cdef bytes low
    cdef bytes high
    cdef const uint8_t* low_text
    cdef const uint8_t* high_text
    cdef size_t low_size
    cdef size_t high_size
    cdef list ready
    cdef bint is_begun
    cdef bint is_ended
    cdef bint has_view
    cdef Py_buffer view
    cdef Shaped* shaped
    cdef const uint8_t* start
    cdef const uint8_t* cursor     # what is behind was taken apart
    cdef const uint8_t* previous   # position of the line behind
    cdef bint is_read              # nothing more is to be taken apart
    cdef bint has_taken
    cdef Ahead[AHEAD] ahead        # a ring
    cdef int first
    cdef int count

    def __cinit__(self, Fold fold, body, shape, bytes low, bytes high):
        self.fold = fold
        self.body = body
        self.shape = shape
        self.low = low
        self.high = high
        self.low_text = <const uint8_t*>PyBytes_AS_STRING(low)
        self.high_text = <const uint8_t*>PyBytes_AS_STRING(high)
        self.low_size = len(low)
        self.high_size = len(high)
        self.ready = []

    def __dealloc__(self):
        cdef int i
        for i in range(AHEAD):
            free(self.ahead[i].line.left_out)
        if self.has_view:
            PyBuffer_Release(&self.view)

    def __iter__(self):
        return self

    def __next__(self):
        cdef int fault
        if not self.is_begun:
            self.begin()
        while not self.ready:
            if self.is_ended:
                raise StopIteration
            with nogil:
                fault = self.run()
            if fault:
                self.fold.refuse(
                    self.shaped, fault, self.ahead[self.first].line.start - self.start)
            self.ready = self.fold.handed_over()
            if self.is_ended:
                self.end()
        return self.ready.pop(0)

    cdef int begin(self) except -1:
        cdef int i
        cdef Fold fold = self.fold
        self.is_begun = True
        if fold.taking is not None:
            raise ValueError("another body was not taken to its end")
        if fold.is_finished_walk:
            self.is_ended = True
            return 0
        if self.shape.identity != fold.newest.identity:
            # The rows of another table of this name went with it.
            fold.is_finished_walk = True
            self.is_ended = True
            return 0
        fold.taking = self.body
        self.shaped = fold.shapes[fold.number_of(self.shape)]
        for i in range(AHEAD):
            self.ahead[i].line.left_out = <uint16_t*>calloc(
                self.shaped.column_count + 1, sizeof(uint16_t))
            if self.ahead[i].line.left_out == NULL:
                raise MemoryError
        PyObject_GetBuffer(self.body, &self.view, PyBUF_SIMPLE)
        self.has_view = True
        self.start = <const uint8_t*>self.view.buf
        self.cursor = self.start + self.view.len
        return 0

    cdef int end(self) except -1:
        PyBuffer_Release(&self.view)
        self.has_view = False
        self.body = None
        self.fold.taking = None
        return 0

    cdef int run(self) noexcept nogil:
        # Takes lines until enough rows were given, or the last one.
        cdef Ahead* ahead
        cdef int fault
        while self.fold.out_size < ROWS_SIZE:
            while self.count < AHEAD and not self.is_read:
                self.read_ahead()
            if self.count == 0:
                self.is_ended = True
                return LINE_RIGHT
            ahead = &self.ahead[self.first]
            fault = self.fold.take_line(ahead, self.shaped)
            if fault:
                return fault
            memcpy(self.fold.last, ahead.line.position, POSITION_SIZE)
            self.fold.has_last = True
            if self.fold.is_finished_walk:
                self.is_ended = True
                return LINE_RIGHT
            self.first = (self.first + 1) % AHEAD
            self.count -= 1
        return LINE_RIGHT

    cdef void read_ahead(self) noexcept nogil:
        # One line more, taken apart: none where it is out of bounds. A fault waits for its turn:
        # what is behind a truncate record does not matter.
        cdef Ahead* ahead = &self.ahead[(self.first + self.count) % AHEAD]
        cdef Line* line = &ahead.line
        if self.cursor == self.start:
            self.is_read = True
            return
        line.end = self.cursor - 1
        line.start = tr_last(self.start, c'\n', line.end - self.start)
        line.start = self.start if line.start == NULL else line.start + 1
        self.cursor = line.start
        line.fault = LINE_END
        if line.end[0] == c'\n':
            line.fault = read_tail(line, self.shaped)
        if line.fault == LINE_RIGHT:
            line.fault = self.judge_position(line.position)
        if line.fault == LINE_RIGHT:
            if self.high_size and not is_below(line.position, self.high_text, self.high_size):
                return
            if is_below(line.position, self.low_text, self.low_size):
                self.is_read = True
                return
            line.fault = self.judge_order(line.position)
        if line.fault == LINE_RIGHT:
            line.fault = read_rows(line, self.shaped)
        if line.fault == LINE_RIGHT:
            line.fault = self.fold.read_keys(ahead, self.shaped)
        self.count += 1
        if line.fault:
            self.is_read = True
            return
        if line.after.start != NULL:
            expect_key(&self.fold.keys, ahead.key)
        if ahead.has_old:
            expect_key(&self.fold.keys, ahead.old)

    cdef inline int judge_position(self, const uint8_t* position) noexcept nogil:
        # An object's lines have rising positions, which only differ towards their ends mostly.
        cdef int begin = 0
        if self.previous != NULL and compare_positions(position, self.previous, &begin) >= 0:
            return LINE_ORDER
        self.previous = position
        return LINE_RIGHT if is_position(position, begin) else LINE_POSITION

    cdef inline int judge_order(self, const uint8_t* position) noexcept nogil:
        # Whatever is taken lies before all that was taken of other objects.
        cdef int difference
        if not self.has_taken and self.fold.has_last:
            if compare_positions(position, self.fold.last, &difference) >= 0:
                return LINE_ORDER
        self.has_taken = True
        return LINE_RIGHT


cdef bint is_below(const uint8_t* position, const uint8_t* bound, size_t size) noexcept nogil:
    # As texts, of which one may be the beginning of the other.
    cdef int found = memcmp(position, bound, min(size, <size_t>POSITION_SIZE))
    return found < 0 or (found == 0 and size > POSITION_SIZE)
