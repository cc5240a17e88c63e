# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The hot loop of a stream: frames from libpq into the tuple reader, without a Python object a frame.

Strategy: `read` asks for a frame. It gives a row to the tuple reader, notes a Begin, a Commit or a
keepalive, and asks for the next frame. Everything else stops it, with the reason and what the caller
needs to know: a Relation, a table's buffer that is full, a row of an unbound relation, the end of an
hour of commit time. The caller does its part in Python and calls again. That is one frame in hundreds.

libpq is the one that psycopg is linked with. It is called by the address of its `PQgetCopyData`, so
TLS, notices and errors stay where they are. Measured on a million rows of 12 columns: the engine took
1.96 CPU-seconds, and 2.52 with the loop in Python. (Batches and the start became cheaper in between.)

Invariant: a frame is handled wholly, or handed out; `drained_bytes` counts both.

Formats: PostgreSQL manual, "Streaming Replication Protocol" and "Logical Replication Message
Formats", for proto_version 1.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AsString
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t

from engine.sources.postgres.tuples cimport TupleReader
from engine.sources.postgres.values cimport tr_be32, tr_be64

from engine.model.errors import DecodeError

EMPTY = 0
END = 1
FAILED = 2
BUDGET = 3
FULL = 4
UNBOUND = 5
HOUR = 6
CONTROL = 7

cdef enum:
    HEADER_SIZE = 25       # `w`, data start, WAL end, send time
    BEGIN_SIZE = 46        # header, `B`, commit_lsn, time, xid
    COMMIT_SIZE = 51       # header, `C`, flags, commit_lsn, end_lsn, time
    KEEPALIVE_SIZE = 18    # `k`, WAL end, time, whether a reply is wanted
    MESSAGE_SIZE_MAX = 131072  # of a logical message that is handed out; the rest is cut off

# PostgreSQL's clock starts in 2000.
cdef int64_t EPOCH_US = 946684800000000
cdef int64_t TIME_MAX = 9223372036854775807

ctypedef int (*GetCopyData)(void* connection, char** buffer, int is_async) noexcept
ctypedef void (*FreeMemory)(void* buffer) noexcept


cdef class Frames:
    """Where frames come from. `next` gives a frame's size, or 0, -1, -2 as PQgetCopyData does.

    Frames that are `consumable` may be written to, and their memory be given back page by page.
    """

    cdef Py_ssize_t next(self, const uint8_t** frame) except -3:
        # The frame stays where it is until the next call of either.
        raise NotImplementedError

    cdef void let_go(self) noexcept:
        # The frame is handled: its memory is wanted for something else.
        pass


@cython.final
cdef class LibpqFrames(Frames):
    """What libpq holds of a COPY. See frames.pyi."""

    cdef void* connection
    cdef GetCopyData get_copy_data
    cdef FreeMemory free_memory
    cdef char* held

    def __init__(self, uintptr_t connection, uintptr_t get_copy_data, uintptr_t free_memory):
        self.connection = <void*>connection
        self.get_copy_data = <GetCopyData>get_copy_data
        self.free_memory = <FreeMemory>free_memory
        self.is_consumable = True

    def __dealloc__(self):
        self.let_go()

    cdef void let_go(self) noexcept:
        if self.held != NULL:
            self.free_memory(self.held)
            self.held = NULL

    cdef Py_ssize_t next(self, const uint8_t** frame) except -3:
        self.let_go()
        cdef int size = self.get_copy_data(self.connection, &self.held, 1)
        frame[0] = <const uint8_t*>self.held
        return size


@cython.final
cdef class ListedFrames(Frames):
    """Frames out of memory: what a captured stream is played back from."""

    cdef list frames
    cdef object held
    cdef bint is_ended

    def __init__(self, frames, *, is_ended=False, is_consumable=False):
        self.frames = list(frames)[::-1]
        self.is_ended = is_ended
        self.is_consumable = is_consumable

    cdef Py_ssize_t next(self, const uint8_t** frame) except -3:
        if not self.frames:
            return -1 if self.is_ended else 0
        self.held = self.frames.pop()
        if self.is_consumable:
            self.held = bytearray(self.held)
            frame[0] = <const uint8_t*>PyByteArray_AsString(self.held)
        else:
            frame[0] = <const uint8_t*>PyBytes_AsString(self.held)
        return len(self.held)


@cython.final
cdef class FrameReader:
    """One stream's place in the frames. See frames.pyi."""

    cdef TupleReader tuples
    cdef Py_ssize_t size_max
    cdef bytes begin_kept           # a Begin that waits until the earlier hour's rows are taken
    cdef Frames waiting_in          # who holds the row that waits; None where none does
    cdef const uint8_t* waiting
    cdef Py_ssize_t waiting_size
    cdef uint64_t open_commit_lsn   # of the transaction that has begun and not ended, else 0
    cdef bint has_boundary
    cdef uint64_t boundary_lsn
    cdef int64_t boundary_us
    cdef bint is_keepalive
    cdef readonly uint64_t received_lsn
    cdef readonly Py_ssize_t drained_bytes
    cdef readonly uint32_t relation_id
    cdef readonly uint64_t change_lsn
    cdef readonly bytes frame
    cdef public bint is_reply_wanted
    cdef public object judge        # of the log's history, until it is done
    cdef public bint are_bare_hidden
    cdef bint is_bare               # whether the open transaction showed nothing but messages so far
    cdef bint is_row_noted          # whether the next row is looked at: by `note_row`
    cdef uint32_t described         # the relation that came last, where no row came since, else 0
    cdef uint32_t described_before  # the one that came right before it, or 0
    cdef list leaves                # a leaf, its root, where the first row that shows it commits
    cdef int64_t open_commit_us
    cdef uint64_t done_lsn          # the newest transaction that ended: where it commits, and when
    cdef int64_t done_us

    def __init__(self, TupleReader tuples, Py_ssize_t size_max):
        self.tuples = tuples
        self.size_max = size_max
        self.leaves = []

    @property
    def open_commit(self):
        """Where the transaction commits that has begun and not ended; 0: there is none."""
        return self.open_commit_lsn

    @property
    def boundary(self):
        """The newest boundary that was read and not taken: (lsn, time, is_keepalive), or None."""
        if not self.has_boundary:
            return None
        return self.boundary_lsn, self.boundary_us, bool(self.is_keepalive)

    @property
    def landmark(self):
        """The newest transaction that ended: (where it commits, time), or None."""
        return (self.done_lsn, self.done_us) if self.done_lsn else None

    def forget_boundary(self):
        """It was handed over."""
        self.has_boundary = False

    def take_leaves(self):
        """The leaves that were shown since the last call: (leaf, root, where a row commits)."""
        leaves, self.leaves = self.leaves, []
        return leaves

    def pass_over(self):
        """The row that waits is not wanted."""
        self.waiting_in = None

    def read(self, Frames frames, Py_ssize_t budget_bytes):
        """Handle frames until something stops it: one of the reasons above."""
        cdef const uint8_t* frame = NULL
        cdef bint is_consumable = frames.is_consumable
        cdef bytes kept = self.begin_kept
        cdef Py_ssize_t size, buffered
        cdef uint8_t message
        self.drained_bytes = 0
        if kept is not None:
            self.begin_kept = None
            if not self.begin(<const uint8_t*>PyBytes_AsString(kept)):
                return STOP_HOUR
        if self.waiting_in is not None:
            frame = self.waiting
            size = self.waiting_size
            self.waiting_in = None
            buffered = self.tuples.encode_bytes(frame, size, is_consumable)
            if not 0 <= buffered <= self.size_max:
                return self.stopped_at(frames, frame, size, buffered)
        while self.drained_bytes < budget_bytes:
            size = frames.next(&frame)
            if size <= 0:
                return STOP_EMPTY if size == 0 else STOP_END if size == -1 else STOP_FAILED
            self.drained_bytes += size
            if size <= HEADER_SIZE:
                if size != KEEPALIVE_SIZE or frame[0] != c'k':
                    return self.handed_out(frame, size, STOP_CONTROL)
                self.keepalive(frame)
                continue
            message = frame[HEADER_SIZE]
            if message == c'I' or message == c'U' or message == c'D':
                if self.is_row_noted:
                    self.note_row(frame, size)
                buffered = self.tuples.encode_bytes(frame, size, is_consumable)
                if 0 <= buffered <= self.size_max:
                    continue
                return self.stopped_at(frames, frame, size, buffered)
            elif message == c'B' and size == BEGIN_SIZE and frame[0] == c'w':
                if not self.begin(frame):
                    return STOP_HOUR
            elif message == c'C' and size == COMMIT_SIZE and frame[0] == c'w' and frame[26] == 0:
                self.commit(frame)
            elif message == c'M':
                # Anybody may have written it, of any size: no more is copied than somebody reads.
                return self.handed_out(frame, min(size, MESSAGE_SIZE_MAX), STOP_CONTROL)
            else:
                if message == c'R' and size >= 30:
                    self.describe(tr_be32(frame + 26))
                elif message == c'T':
                    self.truncate()
                return self.handed_out(frame, size, STOP_CONTROL)
        return STOP_BUDGET

    cdef void describe(self, uint32_t relation_id) noexcept:
        self.described_before = self.described
        self.described = relation_id
        self.is_row_noted = True

    cdef int truncate(self) except -1:
        # The relations that came before it are its own.
        self.described = self.described_before = 0
        if self.is_bare:
            self.is_filled()
        return 0

    cdef int note_row(self, const uint8_t* frame, Py_ssize_t size) except -1:
        # A partition's relation comes right before the first row for which it is sent. Where rows
        # come under the root, the root's relation comes in front of it, and the row is the root's.
        cdef uint32_t relation_id
        self.is_row_noted = False
        if self.is_bare:
            self.is_filled()
        if self.described_before != 0 and size >= 30:
            relation_id = tr_be32(frame + 26)
            if relation_id == self.described_before and relation_id != self.described:
                self.leaves.append((self.described, relation_id, self.open_commit_lsn))
        self.described = self.described_before = 0
        return 0

    cdef int is_filled(self) except -1:
        # The transaction is one that a stream without messages shows too.
        self.is_bare = False
        if self.judge is not None:
            self.judge.began(self.open_commit_lsn, self.open_commit_us)
            self.dismiss()
        return 0

    cdef int handed_out(self, const uint8_t* frame, Py_ssize_t size, int reason) except -1:
        self.frame = PyBytes_FromStringAndSize(<const char*>frame, size)
        return reason

    cdef int stopped_at(
        self, Frames frames, const uint8_t* frame, Py_ssize_t size, Py_ssize_t buffered
    ) except -1:
        # A row may have hundreds of megabytes. It is not copied, and it is let go as soon as it can be.
        self.relation_id = tr_be32(frame + 26)
        if buffered >= 0:
            frames.let_go()
            return STOP_FULL
        self.change_lsn = tr_be64(frame + 1)
        self.waiting_in = frames
        self.waiting = frame
        self.waiting_size = size
        return STOP_UNBOUND

    cdef bint begin(self, const uint8_t* frame) except -1:
        # False: rows of another hour have to be taken before. The frame is kept meanwhile.
        cdef uint64_t commit_lsn = tr_be64(frame + 26)
        cdef int64_t commit_us = time_of(frame + 34)
        if self.tuples.lines.holds_another_hour_than(commit_us):
            self.begin_kept = PyBytes_FromStringAndSize(<const char*>frame, BEGIN_SIZE)
            return False
        self.is_bare = self.are_bare_hidden
        self.is_row_noted = self.is_bare
        self.described = self.described_before = 0
        self.open_commit_us = commit_us
        if self.judge is not None and not self.is_bare:
            self.judge.began(commit_lsn, commit_us)
            self.dismiss()
        self.tuples.begin_at(commit_lsn, commit_us, tr_be32(frame + 42))
        self.open_commit_lsn = commit_lsn
        return True

    cdef int commit(self, const uint8_t* frame) except -1:
        cdef int64_t commit_us = time_of(frame + 43)
        if not self.is_bare:
            self.done_lsn = tr_be64(frame + 27)
            self.done_us = commit_us
        self.is_bare = False
        self.open_commit_lsn = 0
        return self.reach(tr_be64(frame + 35), commit_us, False)

    cdef int keepalive(self, const uint8_t* frame) except -1:
        cdef uint64_t end_lsn = tr_be64(frame + 1)
        if frame[17]:
            self.is_reply_wanted = True
        # A keepalive says what was sent, and never passes a commit that is still to come. Should one
        # do so in the middle of a transaction, the boundary is that transaction's end.
        if not 0 < self.open_commit_lsn < end_lsn:
            self.reach(end_lsn, time_of(frame + 9), True)
        return 0

    cdef int dismiss(self) except -1:
        if self.judge.is_done:
            self.judge = None
        return 0

    cdef int reach(self, uint64_t lsn, int64_t time_us, bint is_keepalive) except -1:
        if self.judge is not None:
            self.judge.reached(lsn)
            self.dismiss()
        if lsn > self.received_lsn or (lsn == self.received_lsn and not self.has_boundary):
            self.received_lsn = lsn
            self.has_boundary = True
            self.boundary_lsn = lsn
            self.boundary_us = time_us
            self.is_keepalive = is_keepalive
        return 0


@cython.final
cdef class FrameCounter:
    """Frames that are counted and thrown away. See frames.pyi."""

    cdef readonly Py_ssize_t drained_bytes
    cdef readonly uint64_t received_lsn
    cdef readonly uint64_t row_count
    cdef public bint is_reply_wanted

    def read(self, Frames frames, Py_ssize_t budget_bytes):
        """Count frames until something stops it: EMPTY, END, FAILED or BUDGET."""
        cdef const uint8_t* frame = NULL
        cdef Py_ssize_t size
        cdef uint8_t message
        self.drained_bytes = 0
        while self.drained_bytes < budget_bytes:
            size = frames.next(&frame)
            if size <= 0:
                return STOP_EMPTY if size == 0 else STOP_END if size == -1 else STOP_FAILED
            self.drained_bytes += size
            if size == KEEPALIVE_SIZE and frame[0] == c'k':
                self.received_lsn = max(self.received_lsn, tr_be64(frame + 1))
                if frame[17]:
                    self.is_reply_wanted = True
            elif size <= HEADER_SIZE or frame[0] != c'w':
                raise DecodeError(f"a frame of {size} bytes is neither a message nor a keepalive")
            else:
                message = frame[HEADER_SIZE]
                if message == c'I' or message == c'U' or message == c'D':
                    self.row_count += 1
                elif message == c'C' and size == COMMIT_SIZE:
                    self.received_lsn = max(self.received_lsn, tr_be64(frame + 35))
        return STOP_BUDGET


cdef int64_t time_of(const uint8_t* at) noexcept:
    # Unix microseconds. A replication origin may set any time, infinity too: it is passed on as it
    # is, as near as 64 bits of Unix microseconds come to it.
    cdef int64_t time_us = <int64_t>tr_be64(at)
    return time_us + EPOCH_US if time_us <= TIME_MAX - EPOCH_US else TIME_MAX
