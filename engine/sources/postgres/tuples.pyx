# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The native reader of pgoutput's rows: one Insert, Update or Delete in, one line out.

Strategy: a frame is walked once. The line writer gives room for the longest line that a frame of this
length can have. Its pieces and the frame's values are written into that room, one behind the other.

Reading never trusts a length: every step compares with the frame's end. Reads of 8 and 16 bytes at a
time stay inside the frame too.

Formats: PostgreSQL manual, "Logical Replication Message Formats", "Streaming Replication Protocol".
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_CheckExact,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from engine.lines.hashing cimport hash_text
from engine.lines.text cimport FAULT_SIZE, Work, put_null, put_piece
from engine.lines.writer cimport (
    OP_CREATE,
    OP_DELETE,
    OP_TRUNCATE,
    OP_UPDATE,
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
    note_unchanged,
    open_after,
    open_before,
    start_row,
)
from engine.sources.postgres.fields cimport begin_fields, put_fields
from engine.sources.postgres.values cimport (
    FAULT_BINARY,
    FAULT_COLUMNS,
    FAULT_FRAME,
    FAULT_SHORT,
    FAULT_TAG,
    FAULT_TRAILING,
    FAULT_TUPLE,
    FAULT_TYPE,
    FAULT_UNSENT,
    FORM_ARRAY,
    Cursor,
    name_faults_in,
    put_value,
    tr_be32,
    tr_be64,
    worst_case,
)

import json as json_text

# Which columns of a tuple are written.
cdef enum:
    TUPLE_SKIP = 0
    TUPLE_IDENTITY = 1
    TUPLE_OLD = 2
    TUPLE_NEW = 3

# A frame of so many bytes is overwritten by its own line while it is read, if its owner allows that.
cdef size_t LARGE_MIN = 1024 * 1024

cdef enum:
    KEY_VALUE_MAX = 256    # bytes of a key's value in an error: enough to find the row


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
        wanted = part >= TUPLE_OLD or (part == TUPLE_IDENTITY and column.is_key)
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
                out = put_value(out, p, size, end, column.form, work)
                if out == NULL:
                    return NULL
                note_json_null(binding, work, i)
            p += size
        elif tag == c'n':
            if wanted:
                out = put_null(put_piece(out, &column.prefix))
            p += 1
        elif tag == c'u':
            if wanted and part == TUPLE_NEW:
                note_unchanged(binding, i)
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
    return close_object(first, out) if out != NULL else NULL


cdef inline uint8_t* put_old(
    uint8_t* out, Cursor* cursor, Binding* binding, uint8_t letter, Work* work
) noexcept nogil:
    return put_object(
        out, cursor, binding, TUPLE_IDENTITY if letter == c'K' else TUPLE_OLD, work)


cdef uint8_t* put_row(
    uint8_t* out, Cursor* cursor, uint8_t message, Binding* binding, Work* work
) noexcept nogil:
    # Everything of the line up to the tail. The cursor is behind the relation's id.
    cdef bint is_flat = not has_objects(binding)
    cdef uint8_t letter
    start_row(binding, work)
    if cursor.at >= cursor.end:
        work.fault = FAULT_SHORT
        return NULL
    letter = cursor.at[0]
    cursor.at += 1
    if not is_flat:
        out = open_before(out)
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
        out = open_after(out)
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


cdef const uint8_t* _field(const uint8_t* p, const uint8_t* end, size_t* size) noexcept nogil:
    # The end of the field at `p`, of a tuple that may be broken; NULL where it is. `size` counts its
    # tag as well.
    if end - p < 1 or (p[0] == c't' and end - p < 5):
        return NULL
    size[0] = 1
    if p[0] == c't':
        size[0] = <size_t>5 + tr_be32(p + 1)
        if size[0] > <size_t>(end - p):
            return NULL
    return p + size[0]


cdef bint has_other_key(const uint8_t* data, size_t size, const Binding* binding) noexcept nogil:
    # Whether an update's old tuple, which is there, has another key than the new one. A key's column
    # that is too large for the row may be left out of the new tuple: it is as it was. What is broken
    # has another key: its row is refused anyway.
    cdef const uint8_t* end = data + size
    cdef const uint8_t* old = data + 33
    cdef const uint8_t* new = old
    cdef size_t old_size, new_size
    cdef int i
    for i in range(binding.column_count):
        new = _field(new, end, &new_size)
        if new == NULL:
            return True
    new += 3
    for i in range(binding.column_count):
        if _field(old, end, &old_size) == NULL or _field(new, end, &new_size) == NULL:
            return True
        if binding.columns[i].is_key and new[0] != c'u':
            if old_size != new_size or memcmp(old, new, old_size):
                return True
        old += old_size
        new += new_size
    return False


cdef str _shortened(const uint8_t* p, size_t size):
    # A value of a key; what is no UTF-8 in it shows as `\\xff`.
    text = PyBytes_FromStringAndSize(<const char*>p, min(size, <size_t>KEY_VALUE_MAX))
    return text.decode("utf-8", "backslashreplace") + ("…" if size > KEY_VALUE_MAX else "")


@cython.final
cdef class TupleReader:
    """Reads the rows of one stream. See tuples.pyi for the contract."""

    def __cinit__(self, LineWriter lines):
        self.lines = lines
        self.moved = {}
        name_faults_in(lines)

    def begin(self, uint64_t commit_lsn, int64_t commit_time_us, uint64_t xid):
        """Start a transaction."""
        self.begin_at(commit_lsn, commit_time_us, xid)

    cdef void begin_at(self, uint64_t commit_lsn, int64_t commit_time_us, uint64_t xid) noexcept:
        self.lines.begin_at(commit_lsn, commit_time_us, xid == 0)
        begin_fields(&self.fields, commit_lsn, xid)

    cdef Py_ssize_t encode_bytes(
        self, const uint8_t* data, size_t size, bint is_consumable
    ) except -2:
        # Of a frame that is large and `is_consumable` only the head is left afterwards.
        cdef LineWriter lines = self.lines
        cdef Table* table
        cdef Binding* binding
        cdef Cursor cursor
        cdef Place place
        cdef uint8_t message
        cdef uint8_t* out
        cdef uint8_t* first
        cdef const uint8_t* frame = data
        cdef str key = None
        cdef int op
        cdef bint is_read_away = False
        cdef bint is_moved = False
        lines.work.column = -1
        if size < 30 or data[0] != c'w':
            lines.work.fault = FAULT_FRAME
            return lines.refuse(NULL, 0, "")
        message = data[25]
        if message == c'I':
            op = OP_CREATE
        elif message == c'U':
            op = OP_UPDATE
        elif message == c'D':
            op = OP_DELETE
        else:
            lines.work.fault = FAULT_TYPE
            return lines.refuse(NULL, 0, "")
        table = find(lines, tr_be32(data + 26))
        if table == NULL or table.binding == NULL:
            return -1
        binding = table.binding
        lines.next_place(table, tr_be64(data + 1), &place)
        if size > lines.row_bytes_max:
            lines.work.fault = FAULT_SIZE
            return lines.refuse(table, place.change, self.key_text(table, data, size))
        first = lines.room_for(table, worst_case(data, size, binding, 1))
        if size >= LARGE_MIN and is_consumable and not binding.forms & FORM_ARRAY:
            # An array may be read twice.
            key = self.key_text(table, data, size)
            is_read_away = True
            if op == OP_UPDATE and data[30] != c'N':
                is_moved = has_other_key(data, size, binding)
            data = lines.moved_behind(table, data, size)
        cursor.at = data + 30
        cursor.end = data + size
        out = put_row(first, &cursor, message, binding, &lines.work)
        if out != NULL and <size_t>(out - first) > lines.row_bytes_max:
            lines.work.fault = FAULT_SIZE
            lines.work.column = -1
            out = NULL
        if out != NULL and op == OP_CREATE and binding.unchanged_count:
            # PostgreSQL makes an insert of an update whose old row the row filter left out.
            lines.work.fault = FAULT_UNSENT
            lines.work.column = binding.unchanged[0]
            out = NULL
        if out == NULL:
            if key is None:
                key = self.key_text(table, frame, size)
            return lines.refuse(table, place.change, key)
        if binding.unchanged_count and op == OP_UPDATE and frame[30] != c'N':
            # Both tuples are right: otherwise there would be no line.
            if is_moved if is_read_away else has_other_key(frame, size, binding):
                self.moved[table.number] = place.order
        out = lines.open_tail(out, binding, &place, op)
        out = put_fields(out, binding, &self.fields, place.change)
        return lines.close_line(table, first, out, &place, op, True)

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

    def truncate(self, uint32_t relation_id, uint64_t change_lsn):
        """Add a line with op `t`."""
        cdef LineWriter lines = self.lines
        cdef Table* table = find(lines, relation_id)
        cdef Place place
        cdef uint8_t* first
        cdef uint8_t* out
        if table == NULL or table.binding == NULL:
            return -1
        lines.next_place(table, change_lsn, &place)
        first = lines.room_for(table, 0)
        start_row(table.binding, &lines.work)
        out = first
        if has_objects(table.binding):
            out = put_null(open_after(put_null(open_before(out))))
        out = lines.open_tail(out, table.binding, &place, OP_TRUNCATE)
        out = put_fields(out, table.binding, &self.fields, change_lsn)
        return lines.close_line(table, first, out, &place, OP_TRUNCATE, True)

    cdef str shown(self, const Column* column, const uint8_t* p, size_t size):
        if column.form == VALUE_HASH:
            return hash_text(p, size, &self.lines.work.hash_key)
        return _shortened(p, size)

    cdef str key_text(self, const Table* table, const uint8_t* data, size_t size):
        # The key of a row in a frame that may be broken anywhere: what is found of it, as JSON. An
        # update's is the new one.
        cdef const uint8_t* p = data + 30
        cdef const uint8_t* end = data + size
        cdef uint32_t length
        cdef int i
        cdef int tuples = 2 if data[25] == c'U' and end > p and p[0] != c'N' else 1
        _, columns, wanted = self.lines.names[table.number]
        found = {}
        while tuples:
            tuples -= 1
            p += 3
            for i in range(table.binding.column_count):
                if end - p < 1 or (p[0] == c't' and end - p < 5):
                    break
                length = 0
                if p[0] == c't':
                    length = tr_be32(p + 1)
                    p += 5
                    if length > <size_t>(end - p):
                        break
                    if columns[i] in wanted:
                        found[columns[i]] = self.shown(&table.binding.columns[i], p, length)
                else:
                    if p[0] == c'n' and columns[i] in wanted:
                        found[columns[i]] = None
                    p += 1
                p += length
        return json_text.dumps(found, ensure_ascii=False) if found else ""
