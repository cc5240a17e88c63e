# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The native reader of COPY's rows: one row of a snapshot in, one line out.

Strategy: as of tuples.pyx. A field is used where it stands; one with an escape in it is unescaped
into memory first. `CopyRange` takes frames from libpq as the stream's loop does (frames.pyx): no
Python object a row.

Format: PostgreSQL manual, "COPY", "Text Format".
"""

import json as json_text
import re

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from engine.lines.text cimport (
    FAULT_MEMORY,
    FAULT_POSITIONS,
    FAULT_SIZE,
    FAULT_TRANSACTION,
    Work,
    make_room,
    put_null,
    put_piece,
    tr_first,
    tr_load8,
)
from engine.lines.writer cimport (
    COUNT_MAX,
    OP_READ,
    OP_TRUNCATE,
    VALUE_HASH,
    Binding,
    Column,
    LineWriter,
    Place,
    Table,
    close_object,
    find,
    has_objects,
    note_json_null,
    open_after,
    open_before,
    start_row,
)
from engine.sources.postgres.fields cimport Fields, begin_fields, put_fields
from engine.sources.postgres.frames cimport (
    STOP_BUDGET,
    STOP_EMPTY,
    STOP_END,
    STOP_FAILED,
    STOP_FULL,
    Frames,
)
from engine.sources.postgres.values cimport (
    FAULT_COLUMNS,
    FAULT_COPY,
    FORM_ARRAY,
    Cursor,
    name_faults_in,
    put_value,
    worst_case,
)

cdef enum:
    KEY_SHOWN_MAX = 4096

# COPY TO writes no other escapes than these.
_ESCAPES = {
    b"b": b"\b", b"t": b"\t", b"n": b"\n", b"v": b"\v", b"f": b"\f", b"r": b"\r", b"\\": b"\\"}


cdef bytes unescaped(bytes value):
    # Of a value that a message shows.
    return re.sub(rb"\\(.)", lambda match: _ESCAPES.get(match[1], match[0]), value, flags=re.DOTALL)


cdef extern from *:
    """
    #include <stdint.h>

    #define TR_COPY_ONES 0x0101010101010101ULL
    /* Marks the first byte that ends a field of COPY's text format or begins an escape in it. */
    static inline uint64_t tr_copy_special(uint64_t w) {
        uint64_t tab = w ^ (TR_COPY_ONES * '\\t');
        uint64_t line = w ^ (TR_COPY_ONES * '\\n');
        uint64_t slash = w ^ (TR_COPY_ONES * '\\\\');
        return (((tab - TR_COPY_ONES) & ~tab) | ((line - TR_COPY_ONES) & ~line)
                | ((slash - TR_COPY_ONES) & ~slash)) & 0x8080808080808080ULL;
    }
    """
    uint64_t tr_copy_special(uint64_t) noexcept nogil

# A frame of so many bytes is overwritten by its own line while it is read, if its owner allows that.
cdef size_t LARGE_MIN = 1024 * 1024

cdef enum:
    # `\v` is two bytes in COPY and six in JSON.
    MARK_GROWTH = 4


cdef const uint8_t* unescape_copy(
    const uint8_t* p, const uint8_t* end, size_t* size, Work* work
) noexcept nogil:
    # `p` is at the start of a field that holds a backslash; the answer is at the tab or newline that
    # ends it. COPY TO writes no other escapes than these.
    cdef uint8_t* out
    cdef uint8_t c
    if not make_room(&work.unescaped, end - p):
        work.fault = FAULT_MEMORY
        return NULL
    out = work.unescaped.start
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
    size[0] = out - work.unescaped.start
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
        return put_value(out, start, after - start, cursor.end, column.form, work)
    if after == start and cursor.end - start >= 3 and start[1] == c'N':
        cursor.at = start + 2
        return put_null(out)
    after = unescape_copy(start, cursor.end, &size, work)
    if after == NULL:
        return NULL
    cursor.at = after
    return put_value(
        out, work.unescaped.start, size, work.unescaped.start + work.unescaped.capacity, column.form, work)


cdef uint8_t* put_copy_members(
    uint8_t* out, Cursor* cursor, Binding* binding, Work* work
) noexcept nogil:
    cdef int i
    cdef int left = binding.included_count
    for i in range(binding.column_count):
        if not binding.columns[i].is_included:
            continue
        left -= 1
        work.column = i
        out = put_copy_field(out, cursor, binding, i, work)
        if out == NULL:
            return NULL
        note_json_null(binding, work, i)
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


cdef uint8_t* put_row(uint8_t* out, Cursor* cursor, Binding* binding, Work* work) noexcept nogil:
    # Everything of the line up to the tail.
    cdef uint8_t* first
    start_row(binding, work)
    if not has_objects(binding):
        return put_copy_members(out, cursor, binding, work)
    first = open_after(put_null(open_before(out)))
    out = put_copy_members(first, cursor, binding, work)
    return close_object(first, out) if out != NULL else NULL


@cython.final
cdef class CopyReader:
    """Reads the rows of snapshots. See copy_rows.pyi for the contract."""

    cdef LineWriter lines
    cdef Fields fields

    def __cinit__(self, LineWriter lines):
        self.lines = lines
        name_faults_in(lines)

    def begin(self, uint64_t lsn, int64_t time_us):
        """Start the rows of one snapshot."""
        self.lines.begin_at(lsn, time_us, True)
        begin_fields(&self.fields, lsn, 0)

    cdef Py_ssize_t encode_bytes(
        self,
        uint32_t relation_id,
        const uint8_t* data,
        size_t size,
        const Place* place,
        bint is_consumable,
    ) except -2:
        # Of a frame that is large and `is_consumable` nothing is left afterwards.
        cdef LineWriter lines = self.lines
        cdef Table* table = find(lines, relation_id)
        cdef Cursor cursor
        cdef uint8_t* first
        cdef uint8_t* out
        cdef str key = None
        if table == NULL or table.binding == NULL:
            return -1
        if size > lines.row_bytes_max:
            lines.work.fault = FAULT_SIZE
            return lines.refuse(table, place.change, self.key_text(table, data, size))
        first = lines.room_for(table, worst_case(data, size, table.binding, MARK_GROWTH))
        if size >= LARGE_MIN and is_consumable and not table.binding.forms & FORM_ARRAY:
            # An array may be read twice.
            key = self.key_text(table, data, size)
            data = lines.moved_behind(table, data, size)
        cursor.at = data
        cursor.end = data + size
        out = put_row(first, &cursor, table.binding, &lines.work)
        if out != NULL and <size_t>(out - first) > lines.row_bytes_max:
            lines.work.fault = FAULT_SIZE
            out = NULL
        if out == NULL:
            if key is None:
                key = self.key_text(table, data, size)
            return lines.refuse(table, place.change, key)
        out = lines.open_tail(out, table.binding, place, OP_READ)
        out = put_fields(out, table.binding, &self.fields, place.change)
        return lines.close_line(table, first, out, place, OP_READ, False)

    cdef str key_text(self, const Table* table, const uint8_t* data, size_t size):
        # The key of a row that may be broken anywhere: what is found of it, as JSON.
        cdef const uint8_t* end = data + size
        cdef const uint8_t* start
        cdef Column* column
        cdef int i
        _, columns, wanted = self.lines.names[table.number]
        found = {}
        for i in range(table.binding.column_count):
            column = &table.binding.columns[i]
            if not column.is_included:
                continue
            start = data
            while data < end and data[0] != c'\t' and data[0] != c'\n':
                data += 1
            if columns[i] in wanted:
                shown = data - start if column.form == VALUE_HASH else min(data - start, KEY_SHOWN_MAX)
                value = PyBytes_FromStringAndSize(<const char*>start, shown)
                found[columns[i]] = (
                    None if value == b"\\N" else self.lines.shown(column, unescaped(value)))
            data += 1
        return json_text.dumps(found, ensure_ascii=False) if found else ""

    def truncate(self, uint32_t relation_id, uint64_t range_number, uint64_t row_number):
        """Add a line with op `t`."""
        cdef LineWriter lines = self.lines
        cdef Table* table = find(lines, relation_id)
        cdef Place place
        cdef uint8_t* first
        cdef uint8_t* out
        if table == NULL or table.binding == NULL:
            return -1
        self.require_place(range_number, row_number)
        place.order = lines.transaction.order
        place.change = range_number
        place.count = row_number
        first = lines.room_for(table, 0)
        start_row(table.binding, &lines.work)
        out = first
        if has_objects(table.binding):
            out = put_null(open_after(put_null(open_before(out))))
        out = lines.open_tail(out, table.binding, &place, OP_TRUNCATE)
        out = put_fields(out, table.binding, &self.fields, range_number)
        return lines.close_line(table, first, out, &place, OP_TRUNCATE, False)

    cdef int require_place(self, uint64_t range_number, uint64_t row_number) except -1:
        cdef LineWriter lines = self.lines
        lines.work.column = -1
        if lines.transaction.serial == 0 or row_number > COUNT_MAX:
            lines.work.fault = FAULT_POSITIONS if lines.transaction.serial else FAULT_TRANSACTION
            lines.refuse(NULL, range_number, "")
        return 0

    def encode(self, uint32_t relation_id, row, uint64_t range_number, uint64_t row_number):
        """Add the line (op `r`) of one row of `COPY ... TO STDOUT` in text format."""
        cdef LineWriter lines = self.lines
        cdef Py_buffer view
        cdef Place place
        place.order = lines.transaction.order
        place.change = range_number
        place.count = row_number
        self.require_place(range_number, row_number)
        PyObject_GetBuffer(row, &view, PyBUF_SIMPLE)
        try:
            return self.encode_bytes(
                relation_id, <const uint8_t*>view.buf, view.len, &place, False)
        finally:
            PyBuffer_Release(&view)


@cython.final
cdef class CopyRange:
    """One range's place in the frames of a COPY. See copy_rows.pyi for the contract."""

    cdef CopyReader rows
    cdef uint32_t relation_id
    cdef uint64_t range_number
    cdef Py_ssize_t size_max
    cdef readonly uint64_t row_number
    cdef readonly Py_ssize_t drained_bytes

    def __init__(
        self,
        CopyReader rows,
        uint32_t relation_id,
        uint64_t range_number,
        uint64_t row_number,
        Py_ssize_t size_max,
    ):
        self.rows = rows
        self.relation_id = relation_id
        self.range_number = range_number
        self.row_number = row_number
        self.size_max = size_max

    def pass_over(self):
        """The row that could not be written is left out. It counts all the same."""
        self.row_number += 1

    def read(self, Frames frames, Py_ssize_t budget_bytes):
        """Handle frames until something stops it: EMPTY, END, FAILED, BUDGET or FULL."""
        cdef const uint8_t* frame = NULL
        cdef CopyReader rows = self.rows
        cdef Py_ssize_t size, buffered
        cdef Place place
        place.order = rows.lines.transaction.order
        place.change = self.range_number
        self.drained_bytes = 0
        while self.drained_bytes < budget_bytes:
            size = frames.next(&frame)
            if size <= 0:
                return STOP_EMPTY if size == 0 else STOP_END if size == -1 else STOP_FAILED
            self.drained_bytes += size
            rows.require_place(self.range_number, self.row_number)
            place.count = self.row_number
            buffered = rows.encode_bytes(
                self.relation_id, frame, size, &place, frames.is_consumable)
            if buffered < 0:
                raise ValueError(f"rows of {self.relation_id}, which is not bound")
            self.row_number += 1
            if buffered > self.size_max:
                # A row may have hundreds of megabytes: it is let go as soon as it can be.
                frames.let_go()
                return STOP_FULL
        return STOP_BUDGET
