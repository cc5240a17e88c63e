# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The line writer: one change's values in, one NDJSON line out, behind its table's other lines.

Strategy: `bind` renders once everything that a table's lines have alike (names, brackets, key),
`begin` everything that a transaction's lines have alike. A line is those pieces and the values,
which a source's reader writes in between (writer.pxd), or `write` out of Python's objects. Before a
row is written the buffer gets room for the worst case, so nothing inside checks for room. A row
becomes part of the buffer only when its last byte is written: an error leaves what was.

Invariant: a buffer holds whole lines of valid JSON in valid UTF-8. Numbers, booleans and JSON are
therefore checked against their grammar before they go out unquoted; a value that fails is an error
that names the column, never its content. Nothing here knows where rows come from: what only one
kind of source has to say, it writes itself.
"""

cimport cython
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_CheckExact,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memmove

from engine.lines.hashing cimport HASH_SIZE, hash_text, put_hash, take_key
from engine.lines.text cimport (
    FAULT_BOOLEAN,
    FAULT_INTEGER,
    FAULT_JSON,
    FAULT_MEMORY,
    FAULT_NONE,
    FAULT_NUMBER,
    FAULT_ORDER,
    FAULT_POSITIONS,
    FAULT_SIZE,
    FAULT_TRANSACTION,
    FAULT_UTF8,
    FAULT_VALUES,
    Piece,
    Room,
    Work,
    floored,
    make_room,
    put_base64,
    put_boolean,
    put_bytes,
    put_hex_padded,
    put_iso_time,
    put_json,
    put_null,
    put_piece,
    put_short,
    put_signed,
    put_text,
    skip_number,
    tr_copy16,
)

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX
    # Cython's own declarations count references; these objects are grown and shrunk in place.
    PyObject* new_bytes "PyBytes_FromStringAndSize"(const char*, Py_ssize_t) except NULL
    int resize_bytes "_PyBytes_Resize"(PyObject**, Py_ssize_t) except -1
    uint8_t* bytes_start "(uint8_t *)PyBytes_AS_STRING"(PyObject*) noexcept
    Py_ssize_t bytes_size "PyBytes_GET_SIZE"(PyObject*) noexcept
    bint is_bytes "PyBytes_CheckExact"(PyObject*) noexcept
    PyObject* item_of "PyTuple_GET_ITEM"(PyObject*, Py_ssize_t) noexcept
    void release "Py_DECREF"(PyObject*) noexcept

cdef extern from *:
    """
    #include <stdint.h>
    #include <sys/mman.h>

    #define TR_PAGE 4096
    /* The whole pages in these bytes, which nobody reads any more, may be taken by the system.
       Where its pages are larger it refuses: then they are kept until they are freed. */
    static inline void tr_give_back(const uint8_t *start, size_t size) {
        uintptr_t from = ((uintptr_t)start + TR_PAGE - 1) & ~(uintptr_t)(TR_PAGE - 1);
        uintptr_t to = ((uintptr_t)start + size) & ~(uintptr_t)(TR_PAGE - 1);
        if (from < to) (void)madvise((void *)from, to - from, MADV_DONTNEED);
    }
    #define TR_CACHE_LINE 64
    /* These bytes are wanted soon: their way from far memory may begin. They need not be ours. */
    static inline void tr_fetch(const void *start, size_t size) {
    #if defined(__GNUC__)
        for (const char *at = start; at < (const char *)start + size; at += TR_CACHE_LINE)
            __builtin_prefetch(at, 1);
    #endif
    }
    """
    void tr_fetch(const void *, size_t) noexcept nogil
    void tr_give_back(const uint8_t *, size_t) noexcept nogil

import json as json_text

from engine.model import position as positions
from engine.model.record import FLAT_FIELDS
from engine.model.errors import DecodeError, UnrepresentableRow

CODEC_VERSION = 1

# Of a position's parts in hexadecimal. The compiler wants to know them.
cdef enum:
    ORDER_DIGITS = 16
    CHANGE_DIGITS = 16
    COUNT_DIGITS = 6

if positions.PART_DIGITS != (ORDER_DIGITS, CHANGE_DIGITS, COUNT_DIGITS):
    raise ImportError("engine.lines.writer was compiled for other positions: make setup")

cdef dict _FAULTS = {
    FAULT_TRANSACTION: "a change outside a transaction",
    FAULT_POSITIONS: "more than 2**24 changes share a position",
    FAULT_ORDER: "a change before an earlier change of its transaction",
    FAULT_SIZE: "the row is larger than source.max_row_bytes",
    FAULT_VALUES: "another number of values than the table has columns, or no bytes",
    FAULT_UTF8: "not valid UTF-8",
    FAULT_BOOLEAN: "not a boolean",
    FAULT_INTEGER: "not an integer",
    FAULT_NUMBER: "not a number",
    FAULT_JSON: "not JSON",
}

# What one row can have and the next one not. Others come from a setting or a broken protocol, and
# would leave out all rows.
cdef frozenset _OF_A_ROW = frozenset((FAULT_SIZE, FAULT_UTF8, FAULT_JSON))

cdef dict _HINTS = {
    FAULT_SIZE: "raise source.max_row_bytes, where the engine has three times that in memory",
}

# Room past the end of a row: fixed pieces not counted in `Binding.fixed_max`, the source's own
# members, and the 16 bytes that the last wide store may write too many.
cdef size_t SLACK = 1024

# A buffer up to this size is kept for reuse when its lines are taken, at most SPARE_MAX of them for
# all tables together: 4 MiB, however many tables there are. Batches are taken at about 64 KiB.
cdef size_t SPARE_SIZE_MAX = 131072

# Lines of so many bytes, or a row of so many, are not copied but handed on.
cdef size_t LARGE_MIN = 1024 * 1024

cdef enum:
    SPARE_MAX = 32
    BUSY_SIZE = 16384      # with so many lines at a time a table writes into its own buffer
    KEY_VALUE_MAX = 256    # bytes of a key's value in an error: enough to find the row
    BUFFER_MIN = 4096
    FETCHED_SIZE = 1024

cdef int64_t HOUR_US = 3600000000

cdef const uint8_t* OP_LETTERS = b"cudrt"

# -------------------------------------------------------------------------------- envelopes

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
    tr_copy16(out, transaction.position)
    tr_copy16(out + 16, transaction.position + 16)
    out = put_hex_padded(out + transaction.position_size, place.change, CHANGE_DIGITS)
    out[0] = c'.'
    return put_hex_padded(out + 1, place.count, COUNT_DIGITS)


cdef inline uint8_t* put_time_ms(uint8_t* out, const Transaction* transaction) noexcept nogil:
    tr_copy16(out, transaction.time_ms)
    tr_copy16(out + 16, transaction.time_ms + 16)
    return out + transaction.time_ms_size


cdef uint8_t* open_standard_tail(
    uint8_t* out, const Binding* binding, const Transaction* transaction, const Place* place, int op
) noexcept nogil:
    out = put_piece(out, &binding.heads[op])    # ,"metadata":{ … "version":1,"source_ts_ms":
    out = put_time_ms(out, transaction)
    out = put_position(put_bytes(out, b',"position":"', 13), transaction, place)
    out[0] = c'"'
    return out + 1


cdef uint8_t* open_debezium_tail(
    uint8_t* out, const Binding* binding, const Transaction* transaction, int op
) noexcept nogil:
    # The fields that Debezium documents, as far as the log tells them: its `ts_ms` outside `source`
    # is when the connector handled the event, which would make a line depend on the clock, so it
    # repeats the commit's time.
    out = put_piece(out, &binding.middle)       # ,"source":{"connector":"…","name":"…","ts_ms":
    out = put_time_ms(out, transaction)
    out = put_bytes(out, b',"ts_us":', 9)
    out = put_bytes(out, transaction.time_us_text, transaction.time_us_size)
    out = put_bytes(out, b',"ts_ns":', 9)
    out = put_bytes(out, transaction.time_us_text, transaction.time_us_size)
    if transaction.time_us:
        out = put_bytes(out, b"000", 3)
    # ,"snapshot":"false","db":"…", … ,"table":"…"
    return put_piece(out, &binding.heads[<int>OP_READ if transaction.is_snapshot else op])


cdef uint8_t* close_debezium_tail(
    uint8_t* out, const Binding* binding, const Transaction* transaction, const Place* place, int op
) noexcept nogil:
    out = put_position(put_bytes(out, b',"position":"', 13), transaction, place)
    out[0] = c'"'
    out = put_lists(out + 1, binding)
    out = put_bytes(out, b'},"op":"', 8)
    out[0] = OP_LETTERS[op]
    out = put_time_ms(put_bytes(out + 1, b'","ts_ms":', 10), transaction)
    return put_bytes(out, b',"transaction":null}\n', 21)


cdef uint8_t* open_flat_tail(
    uint8_t* out, const Binding* binding, const Transaction* transaction, const Place* place, int op
) noexcept nogil:
    out = put_piece(out, &binding.heads[op])    # ,"_op":"c","_position":"
    out = put_position(out, transaction, place)
    out = put_piece(out, &binding.middle)       # ","_commit_ts":"
    out = put_bytes(out, transaction.iso, transaction.iso_size)
    return put_piece(out, &binding.end)         # ","_version":1


# ----------------------------------------------------------------------------------- values

cdef inline uint8_t* put_value(
    uint8_t* out, const uint8_t* p, size_t size, int form, Work* work
) noexcept nogil:
    cdef const uint8_t* end = p + size
    if form == VALUE_TEXT:
        return put_text(out, p, size, end, work)
    elif form == VALUE_NUMBER:
        if skip_number(p, end) == end:
            return put_short(out, p, size, end)
        work.fault = FAULT_NUMBER
    elif form == VALUE_BOOLEAN:
        if size == 4 and memcmp(p, b"true", 4) == 0:
            return put_boolean(out, True)
        if size == 5 and memcmp(p, b"false", 5) == 0:
            return put_boolean(out, False)
        work.fault = FAULT_BOOLEAN
    elif form == VALUE_JSON:
        return put_json(out, p, size, end, work)
    elif form == VALUE_BYTES:
        return put_base64(out, p, size)
    else:
        return put_hash(out, p, size, &work.hash_key)
    return NULL


cdef size_t size_of(tuple values) noexcept:
    # A byte of text becomes at most 6 (`\\u0001`), one of base64 less than 2.
    cdef size_t size = 0
    if values is not None:
        for value in values:
            if value is not None and PyBytes_CheckExact(value):
                size += PyBytes_GET_SIZE(value)
    return 6 * size

# ------------------------------------------------------------------------------- the classes

cdef class Lines:
    """What `LineWriter.take` hands over: whole lines of one table, in commit order."""


cdef bytes _quoted(text):
    return json_text.dumps(text, ensure_ascii=False).encode()


cdef str _shortened(bytes value):
    # A value of a key; what is no UTF-8 in it shows as `\\xff`.
    shown = value[:KEY_VALUE_MAX].decode("utf-8", "backslashreplace")
    return shown + ("…" if len(value) > KEY_VALUE_MAX else "")


cdef tuple _ENVELOPES = ("standard", "debezium", "flat")


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
    cdef Piece* to
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
            to = &binding.columns[i].prefix
        elif i < count + OP_COUNT:
            to = &binding.heads[i - count]
        elif i == count + OP_COUNT:
            to = &binding.middle
        elif i == count + OP_COUNT + 1:
            to = &binding.end
        elif i == count + OP_COUNT + 2:
            to = &binding.unchanged_name
        else:
            to = &binding.json_null_name
        to.start = at
        to.size = len(piece)
        memcpy(at, PyBytes_AS_STRING(piece), to.size)
        at += to.size + 16
    binding.column_count = count
    binding.envelope = envelope
    binding.fetched_columns = min(count * sizeof(Column), <size_t>FETCHED_SIZE)
    binding.fetched_memory = min(needed, <size_t>FETCHED_SIZE)
    # Each name at most in before, after, unchanged and json_null, each value at most null or false
    # or in quotes where the frame has a byte; every other piece once.
    binding.fixed_max = 4 * needed + 24 * count + SLACK
    return binding


cdef class LineWriter:
    """Encodes the rows of one stream. See writer.pyi for the contract."""

    def __cinit__(
        self,
        int generation,
        *,
        str connector,
        row_bytes_max=1 << 30,
        rows_max=1 << 62,
        bytes hash_key=b"",
    ):
        start = positions.generation_prefix(generation).encode()
        self.generation_size = len(start)
        memcpy(self.transaction.position, <uint8_t*>PyBytes_AS_STRING(start), self.generation_size)
        self.connector = connector
        self.row_bytes_max = row_bytes_max
        self.rows_max = rows_max
        self.has_hash_key = bool(hash_key)
        take_key(&self.work.hash_key, hash_key, len(hash_key))
        self.fields = b""
        self.names = {}
        self.faults = _FAULTS
        self.hints = _HINTS
        self.faults_of_a_row = _OF_A_ROW
        self.bucket_count = 64
        self.tables = <Table**>calloc(self.bucket_count, sizeof(Table*))
        if self.tables == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef size_t i
        if self.tables != NULL:
            for i in range(self.bucket_count):
                if self.tables[i] != NULL:
                    free_binding(self.tables[i].binding)
                    if self.tables[i].held != NULL:
                        release(self.tables[i].held)
                    else:
                        free(self.tables[i].buffer)
                    free(self.tables[i])
            free(self.tables)
        free(self.written)
        for i in range(<size_t>self.spare_count):
            free(self.spare[i].start)
        free(self.work.unescaped.start)
        free(self.work.unescaped_part.start)
        free(self.work.stack.start)
        free(self.work.line.start)

    @property
    def buffered(self):
        """Bytes of lines not yet taken, over all tables."""
        return self.buffered_size

    # ----------------------------------------------------------------------------- tables

    cdef inline size_t bucket_of(self, uint32_t number) noexcept:
        # Fibonacci hashing; a source's numbers are often consecutive.
        cdef size_t bucket = (number * 0x9E3779B97F4A7C15ULL >> 20) & (self.bucket_count - 1)
        while self.tables[bucket] != NULL and self.tables[bucket].number != number:
            bucket = (bucket + 1) & (self.bucket_count - 1)
        return bucket

    cdef Table* find_slowly(self, uint32_t number) noexcept:
        # Of hundreds of tables none is in the processor's cache when its turn comes. What a row needs
        # of one is asked for at once here, not piece by piece as the row is written.
        cdef Table* table = self.tables[self.bucket_of(number)]
        if table != NULL:
            self.recent = table
            tr_fetch(table.buffer + table.size, FETCHED_SIZE)
            if table.binding != NULL:
                tr_fetch(table.binding.columns, table.binding.fetched_columns)
                tr_fetch(table.binding.memory, table.binding.fetched_memory)
        return table

    cdef int grow_buckets(self) except -1:
        cdef Table** earlier = self.tables
        cdef size_t earlier_count = self.bucket_count
        cdef Table** grown = <Table**>calloc(2 * earlier_count, sizeof(Table*))
        cdef size_t i
        if grown == NULL:
            raise MemoryError
        self.tables = grown
        self.bucket_count = 2 * earlier_count
        for i in range(earlier_count):
            if earlier[i] != NULL:
                grown[self.bucket_of(earlier[i].number)] = earlier[i]
        free(earlier)
        return 0

    cdef Table* add(self, uint32_t number) except NULL:
        cdef Table* table
        if 2 * (self.table_count + 1) > self.bucket_count:
            self.grow_buckets()
        table = <Table*>calloc(1, sizeof(Table))
        if table == NULL:
            raise MemoryError
        table.number = number
        self.tables[self.bucket_of(number)] = table
        self.table_count += 1
        return table

    def bind(
        self,
        uint32_t number,
        *,
        str database,
        str schema,
        str table,
        version,
        columns,
        key,
        str envelope,
        str flat_prefix="_",
    ):
        """Say what the table's rows hold; replaces an earlier binding."""
        cdef Table* bound = find(self, number)
        cdef Binding* binding
        cdef int i = 0
        if bound != NULL and bound.size:
            raise ValueError(f"{schema}.{table} has lines that were not taken")
        if envelope not in _ENVELOPES:
            raise ValueError(f"unknown envelope {envelope!r}")
        columns = tuple(columns)
        reserved = [flat_prefix + name for name in FLAT_FIELDS] if envelope == "flat" else ()
        if len(columns) > 0xFFFF:
            raise ValueError(f"{len(columns)} columns")
        for name, form, _, is_included in columns:
            if not 0 <= form <= 0xFF:
                raise ValueError(f"unknown form {form} of column {name!r}")
            if form == VALUE_HASH and not self.has_hash_key:
                raise ValueError(f"no key for the hash of column {name!r} of {schema}.{table}")
            if is_included and name in reserved:
                raise ValueError(
                    f"column {name!r} of {schema}.{table} has a name of the flat envelope itself"
                )
        prefixes = [b"," + _quoted(name) + b":" for name, _, _, _ in columns]
        names = (self.connector, database, schema, table)
        pieces = _render(envelope, names, key, version, flat_prefix)
        binding = make_binding(prefixes, pieces, _ENVELOPES.index(envelope))
        for name, form, is_key, is_included in columns:
            binding.columns[i].form = form
            binding.columns[i].is_key = bool(is_key)
            binding.columns[i].is_included = bool(is_included)
            binding.included_count += bool(is_included)
            binding.forms |= binding.columns[i].form
            if form == VALUE_HASH:
                # In before and after, however short the value is.
                binding.fixed_max += 2 * HASH_SIZE
            i += 1
        if bound == NULL:
            try:
                bound = self.add(number)
            except MemoryError:
                free_binding(binding)
                raise
        free_binding(bound.binding)
        bound.binding = binding
        # Nobody may see what is left out, in a key neither.
        shown = {column[0] for column in columns if column[3]}
        self.names[number] = (
            f"{schema}.{table}",
            tuple(column[0] for column in columns),
            frozenset(key) & shown,
        )

    def unbind(self, uint32_t number):
        """Forget the binding. Lines not taken can still be taken; the position counter is kept."""
        cdef Table* table = find(self, number)
        if table != NULL:
            free_binding(table.binding)
            table.binding = NULL
            self.names.pop(number, None)

    # ----------------------------------------------------------------------- transactions

    def begin(
        self, uint64_t order, int64_t commit_time_us, *, bint is_snapshot=False, bytes fields=b""
    ):
        """Start a transaction: what follows is all of its changes, from the first one."""
        if len(fields) > FIELDS_SIZE_MAX:
            raise ValueError(f"{len(fields)} bytes of a source's own fields")
        self.begin_at(order, commit_time_us, is_snapshot)
        self.fields = fields

    def holds_another_hour(self, int64_t commit_time_us):
        """Whether lines of another hour than this have to be taken before a transaction of it."""
        return bool(self.holds_another_hour_than(commit_time_us))

    cdef bint holds_another_hour_than(self, int64_t time_us) noexcept:
        # All lines are of the newest transaction's hour.
        cdef uint64_t since = <uint64_t>time_us - <uint64_t>self.transaction.hour_began_us
        return self.buffered_size != 0 and since >= <uint64_t>HOUR_US

    cdef void begin_at(self, uint64_t order, int64_t time_us, bint is_snapshot) noexcept:
        cdef Transaction* to = &self.transaction
        cdef int64_t time_ms = floored(time_us, 1000)
        cdef uint8_t* out
        to.serial += 1
        to.order = order
        to.time_us = time_us
        to.is_snapshot = is_snapshot
        if <uint64_t>time_us - <uint64_t>to.hour_began_us >= <uint64_t>HOUR_US:
            to.hour_began_us = <int64_t>(
                <uint64_t>floored(time_us, HOUR_US) * <uint64_t>HOUR_US)
        to.iso_size = 0
        to.time_us_size = 0
        to.time_ms_size = put_signed(to.time_ms, time_ms) - to.time_ms
        # What the generation gives was written when the writer was made.
        out = put_hex_padded(to.position + self.generation_size, order, ORDER_DIGITS)
        out[0] = c'.'
        to.position_size = out + 1 - to.position

    cdef inline void complete(self, int envelope) noexcept:
        # What only some envelopes want of the transaction.
        cdef Transaction* to = &self.transaction
        if envelope == ENVELOPE_FLAT and to.iso_size == 0:
            to.iso_size = put_iso_time(to.iso, to.time_us) - to.iso
        elif envelope == ENVELOPE_DEBEZIUM and to.time_us_size == 0:
            to.time_us_size = put_signed(to.time_us_text, to.time_us) - to.time_us_text

    cdef inline uint64_t count_at(self, const Table* table, uint64_t change) noexcept:
        if table == NULL:
            return 0
        if table.counted_serial == self.transaction.serial and table.counted_change == change:
            return table.counted
        return 0

    cdef int next_place(self, const Table* table, uint64_t change, Place* place) except -2:
        # A transaction comes in the order of its changes. Were that untrue once, positions would
        # repeat or not sort: better to stop.
        cdef int fault = FAULT_NONE
        place.order = self.transaction.order
        place.change = change
        place.count = self.count_at(table, change)
        if self.transaction.serial == 0:
            fault = FAULT_TRANSACTION
        elif place.count > COUNT_MAX:
            fault = FAULT_POSITIONS
        elif table.counted_serial == self.transaction.serial and change < table.counted_change:
            fault = FAULT_ORDER
        if fault != FAULT_NONE:
            self.work.column = -1
            self.work.fault = fault
            self.refuse(<Table*>table, change, "")
        return 0

    # -------------------------------------------------------------------------------- rows

    cdef int name_faults(self, dict faults, dict hints, frozenset of_a_row) except -1:
        # A source's own, and what it has to say about ours.
        self.faults = self.faults | faults
        self.hints = self.hints | hints
        self.faults_of_a_row = self.faults_of_a_row | of_a_row
        return 0

    cdef Py_ssize_t refuse(self, Table* table, uint64_t change, str key) except -2:
        # Raises what `work` says. `key` is the row's, as JSON.
        cdef int fault = self.work.fault
        if fault == FAULT_MEMORY:
            raise MemoryError
        reason, hint = self.faults[fault], self.hints.get(fault, "")
        if table == NULL or table.binding == NULL:
            raise DecodeError(reason, hint=hint)
        if table.held != NULL:
            # A row that failed must not keep its room.
            self.resize(table, table.size)
        name, columns, _ = self.names[table.number]
        column = f"column {columns[self.work.column]!r}: " if self.work.column >= 0 else ""
        if fault not in self.faults_of_a_row:
            raise DecodeError(f"{name}, {column}{reason}" if column else f"{name}: {reason}", hint=hint)
        raise UnrepresentableRow(
            f"{name}, {column}{reason}",
            reason=column + reason,
            key=key,
            table_number=table.number,
            change=change,
            hint=hint,
        )

    cdef int grow(self, Table* table, size_t capacity) except -1:
        # Plain memory up to a size, from there on inside the object that the lines are handed over in:
        # a row of hundreds of megabytes is not copied once more. Memory that nobody writes to is not
        # there yet, and what is too much of it goes back when the object is shrunk.
        cdef uint8_t* grown
        cdef PyObject* held
        if table.held != NULL:
            return self.resize(table, capacity)
        if capacity >= LARGE_MIN:
            held = new_bytes(NULL, capacity)
            grown = bytes_start(held)
            memcpy(grown, table.buffer, table.size)
            free(table.buffer)
            table.held = held
        else:
            grown = <uint8_t*>realloc(table.buffer, capacity)
            if grown == NULL:
                raise MemoryError
        table.buffer = grown
        table.capacity = capacity
        return 0

    cdef int resize(self, Table* table, size_t capacity) except -1:
        # Of an object. Where there is no memory, the object is gone, and its lines with it: then the
        # process has to end.
        table.buffer = NULL
        table.capacity = 0
        resize_bytes(&table.held, capacity)
        table.buffer = bytes_start(table.held)
        table.capacity = capacity
        return 0

    cdef const uint8_t* moved_behind(self, Table* table, const uint8_t* start, size_t size) noexcept:
        # Moves a large row as the source gave it to the end of the room that its line has, where the
        # line overwrites it as it is read: both together take the memory of one. The room is enough
        # for the worst case, and what was read so far becomes at most its share of that; so writing
        # stays behind reading by the room for what else is to come, at least SLACK. The row's pages
        # go as they are copied, but for its head.
        cdef uint8_t* to = table.buffer + table.capacity - size
        cdef size_t done = 0
        cdef size_t step
        while done < size:
            step = min(size - done, LARGE_MIN)
            memcpy(to + done, start + done, step)
            if done:
                tr_give_back(start + done, step)
            done += step
        return to

    cdef int reserve(self, Table* table, size_t needed) except -2:
        if table.buffer == NULL and self.spare_count:
            self.spare_count -= 1
            table.buffer = self.spare[self.spare_count].start
            table.capacity = self.spare[self.spare_count].capacity
        if table.capacity - table.size < needed:
            self.grow(
                table, max(table.size + needed, 2 * table.capacity, <size_t>BUFFER_MIN))
        if not table.is_listed:
            self.enlist(table)
        return 0

    cdef uint8_t* room_for(self, Table* table, size_t values_max) except NULL:
        # Where a line may be written whose values take `values_max` bytes at most, with what stands
        # around them: behind the table's lines, or, for one with few lines, where all of those write
        # theirs, to be copied from there. Else each of thousands of quiet tables would hold the room
        # for a worst case, six times its line, in cold memory.
        # One with lines is listed. One without may have a buffer all the same: a row that failed left
        # it.
        cdef size_t needed = values_max + table.binding.fixed_max
        if table.size and table.capacity - table.size >= needed:
            return table.buffer + table.size
        if table.is_busy or table.size >= BUSY_SIZE or needed >= LARGE_MIN:
            self.reserve(table, needed)
            return table.buffer + table.size
        if not make_room(&self.work.line, needed):
            raise MemoryError
        return self.work.line.start

    cdef uint8_t* append(self, Table* table, const uint8_t* line, size_t size) except NULL:
        # Copies a whole line behind the table's lines; the answer is where it ends.
        if table.capacity - table.size < size:
            self.grow(table, max(table.size + size, 2 * table.capacity))
        if not table.is_listed:
            self.enlist(table)
        memcpy(table.buffer + table.size, line, size)
        return table.buffer + table.size + size

    cdef int enlist(self, Table* table) except -1:
        # One that was taken may be in the list still, and may then have lines again.
        cdef size_t capacity
        cdef Table** grown
        if self.written_count == self.written_capacity:
            capacity = max(2 * self.written_capacity, <size_t>64)
            grown = <Table**>realloc(self.written, capacity * sizeof(Table*))
            if grown == NULL:
                raise MemoryError
            self.written = grown
            self.written_capacity = capacity
        self.written[self.written_count] = table
        self.written_count += 1
        table.is_listed = True
        return 0

    cdef inline void count(self, Table* table, const Place* place) noexcept:
        table.counted_serial = self.transaction.serial
        table.counted_change = place.change
        table.counted = place.count + 1

    cdef uint8_t* open_tail(
        self, uint8_t* out, const Binding* binding, const Place* place, int op
    ) noexcept:
        if binding.envelope == ENVELOPE_STANDARD:
            return open_standard_tail(out, binding, &self.transaction, place, op)
        self.complete(binding.envelope)
        if binding.envelope == ENVELOPE_DEBEZIUM:
            return open_debezium_tail(out, binding, &self.transaction, op)
        return open_flat_tail(out, binding, &self.transaction, place, op)

    cdef Py_ssize_t close_line(
        self, Table* table, uint8_t* first, uint8_t* out, const Place* place, int op, bint is_counted
    ) except -2:
        # The answer is how many bytes of lines the table has now: more than any size where it has as
        # many lines as it may have. `first` is what `room_for` gave.
        cdef Binding* binding = table.binding
        cdef size_t size
        if binding.envelope == ENVELOPE_DEBEZIUM:
            out = close_debezium_tail(out, binding, &self.transaction, place, op)
        else:
            if binding.unchanged_count or binding.json_null_count:
                out = put_lists(out, binding)
            memcpy(out, b"}}\n", 3)
            if binding.envelope == ENVELOPE_STANDARD:
                out += 3
            else:
                out[1] = c'\n'
                out += 2
        first[0] = c'{'
        if first == self.work.line.start:
            out = self.append(table, first, out - first)
        size = out - table.buffer
        if table.row_count == 0:
            table.first = place[0]
            table.first_time_us = self.transaction.time_us
        table.last = place[0]
        table.last_time_us = self.transaction.time_us
        table.row_count += 1
        table.operations[op] += 1
        self.buffered_size += size - table.size
        table.size = size
        if is_counted:
            self.count(table, place)
        if table.row_count >= self.rows_max:
            return PY_SSIZE_T_MAX
        return size

    cdef uint8_t* put_members(self, uint8_t* out, Binding* binding, tuple values) except? NULL:
        # NULL without an exception: see `work`.
        cdef Column* column
        cdef PyObject* value
        cdef int i
        if len(values) != binding.column_count:
            self.work.fault = FAULT_VALUES
            return NULL
        for i in range(binding.column_count):
            column = &binding.columns[i]
            if not column.is_included:
                continue
            value = item_of(<PyObject*>values, i)
            out = put_piece(out, &column.prefix)
            if value == <PyObject*>None:
                out = put_null(out)
                continue
            self.work.column = i
            if not is_bytes(value):
                self.work.fault = FAULT_VALUES
                return NULL
            out = put_value(out, bytes_start(value), bytes_size(value), column.form, &self.work)
            if out == NULL:
                return NULL
            note_json_null(binding, &self.work, i)
        self.work.column = -1
        return out

    cdef uint8_t* put_object(self, uint8_t* out, Binding* binding, tuple values) except? NULL:
        cdef uint8_t* first = out
        if values is None:
            return put_null(out)
        binding.json_null_count = 0
        out = self.put_members(out, binding, values)
        return close_object(first, out) if out != NULL else NULL

    cdef uint8_t* put_row(
        self, uint8_t* out, Binding* binding, tuple before, tuple after
    ) except? NULL:
        start_row(binding, &self.work)
        if not has_objects(binding):
            shown = after if after is not None else before
            return self.put_members(out, binding, shown) if shown is not None else out
        out = self.put_object(open_before(out), binding, before)
        if out == NULL:
            return NULL
        return self.put_object(open_after(out), binding, after)

    def write(self, uint32_t number, uint64_t change, int op, tuple before, tuple after):
        """Add a line of values."""
        cdef Table* table = find(self, number)
        cdef Place place
        cdef uint8_t* first
        cdef uint8_t* out
        if not 0 <= op < OP_COUNT:
            raise ValueError(f"unknown operation {op}")
        if table == NULL or table.binding == NULL:
            return -1
        self.next_place(table, change, &place)
        first = self.room_for(table, size_of(before) + size_of(after))
        out = self.put_row(first, table.binding, before, after)
        if out != NULL and <size_t>(out - first) > self.row_bytes_max:
            self.work.fault = FAULT_SIZE
            out = NULL
        if out == NULL:
            return self.refuse(table, change, self.key_text(table, before if after is None else after))
        out = self.open_tail(out, table.binding, &place, op)
        if has_objects(table.binding):
            out = put_bytes(out, <uint8_t*>PyBytes_AS_STRING(self.fields), len(self.fields))
        return self.close_line(table, first, out, &place, op, True)

    cdef str key_text(self, const Table* table, tuple values):
        _, columns, wanted = self.names[table.number]
        found = {}
        for i, (name, value) in enumerate(zip(columns, values)):
            if name in wanted and (value is None or type(value) is bytes):
                found[name] = None if value is None else self.shown(&table.binding.columns[i], value)
        return json_text.dumps(found, ensure_ascii=False) if found else ""

    cdef str shown(self, const Column* column, bytes value):
        # A key's value in an error.
        if column.form == VALUE_HASH:
            return hash_text(value, len(value), &self.work.hash_key)
        return _shortened(value)

    def skip(self, uint32_t number, uint64_t change):
        """Count a change that is not wanted, without a line; the table need not be bound."""
        cdef Table* table = find(self, number)
        cdef Place place
        if table == NULL:
            table = self.add(number)
        self.next_place(table, change, &place)
        self.count(table, &place)

    # ------------------------------------------------------------------------------ taking

    cdef str position_text(self, const Place* place):
        cdef uint8_t[64] text
        cdef uint8_t* out
        memcpy(text, self.transaction.position, self.generation_size)
        out = put_hex_padded(text + self.generation_size, place.order, ORDER_DIGITS)
        out[0] = c'.'
        out = put_hex_padded(out + 1, place.change, CHANGE_DIGITS)
        out[0] = c'.'
        out = put_hex_padded(out + 1, place.count, COUNT_DIGITS)
        return PyUnicode_DecodeASCII(<const char*>text, out - text, NULL)

    def next_position(self, uint32_t number, uint64_t change):
        """The position of the next change at `change` in this transaction; changes nothing."""
        cdef Place place
        place.order = self.transaction.order
        place.change = change
        place.count = self.count_at(find(self, number), change)
        return self.position_text(&place)

    cdef void trim(self, Room* room) noexcept:
        if room.capacity > SPARE_SIZE_MAX:
            free(room.start)
            room.start = NULL
            room.capacity = 0

    cdef void recycle(self, Table* table) noexcept:
        if table.held != NULL:
            # It was handed over.
            table.held = NULL
        elif (
            table.is_busy and table.capacity <= SPARE_SIZE_MAX
            and self.spare_count < SPARE_MAX
        ):
            self.spare[self.spare_count].start = table.buffer
            self.spare[self.spare_count].capacity = table.capacity
            self.spare_count += 1
        else:
            free(table.buffer)
        table.buffer = NULL
        table.capacity = 0
        self.trim(&self.work.unescaped)
        self.trim(&self.work.unescaped_part)
        self.trim(&self.work.stack)
        self.trim(&self.work.line)

    def take(self, uint32_t number):
        """Hand over what is buffered for the table and forget it; None where nothing is."""
        cdef Table* table = find(self, number)
        if table == NULL or table.size == 0:
            return None
        return self.lines_of(table)

    def take_all(self):
        """Hand over everything that is buffered, as (table id, rows)."""
        return self.take_some(self.written_count)

    def take_some(self, size_t table_count):
        """Hand over what is buffered for so many tables at most, as (table id, rows)."""
        cdef list taken = []
        cdef Table* table
        cdef size_t looked_count = 0
        while looked_count < self.written_count and <size_t>len(taken) < table_count:
            table = self.written[looked_count]
            looked_count += 1
            if table.size:
                taken.append((table.number, self.lines_of(table)))
            table.is_listed = False
        self.written_count -= looked_count
        memmove(self.written, self.written + looked_count, self.written_count * sizeof(Table*))
        return taken

    cdef Lines lines_of(self, Table* table):
        cdef Lines rows = Lines.__new__(Lines)
        cdef int i
        if table.held == NULL:
            rows.lines = PyBytes_FromStringAndSize(<char*>table.buffer, table.size)
        else:
            self.resize(table, table.size)
            rows.lines = <bytes>table.held
            release(table.held)
        rows.row_count = table.row_count
        rows.first_position = self.position_text(&table.first)
        rows.last_position = self.position_text(&table.last)
        rows.first_commit_us = table.first_time_us
        rows.last_commit_us = table.last_time_us
        rows.operations = (
            table.operations[0], table.operations[1], table.operations[2],
            table.operations[3], table.operations[4],
        )
        self.buffered_size -= table.size
        table.is_busy = table.size >= BUSY_SIZE
        table.size = 0
        table.row_count = 0
        for i in range(OP_COUNT):
            table.operations[i] = 0
        self.recycle(table)
        return rows


cdef list _render(envelope, names, key, version, flat_prefix):
    # The heads of the five ops, the middle, the end, the lists' names: see the `open_..._tail`
    # functions.
    letters = "cudrt"
    version = b"%d" % version
    connector, database, schema, table = (_quoted(name) for name in names)
    if envelope == "standard":
        of_key = b",".join(_quoted(name) for name in key)
        rest = b'"connector":%b,"db":%b,"schema":%b,"table":%b,"key":[%b],"version":%b' % (
            connector, database, schema, table, of_key, version)
        heads = [
            b',"metadata":{"op":"%b",%b,"source_ts_ms":' % (letter.encode(), rest)
            for letter in letters
        ]
        return heads + [b"", b"", b',"unchanged":', b',"json_null":']
    if envelope == "debezium":
        middle = b',"source":{"connector":%b,"name":%b,"ts_ms":' % (connector, database)
        rest = b'"db":%b,"schema":%b,"table":%b' % (database, schema, table)
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
