# cython: language_level=3
"""`TupleReader` as the loop of frames sees it. Contract: tuples.pyi."""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint64_t

from engine.lines.writer cimport Column, LineWriter, Table
from engine.sources.postgres.fields cimport Fields


@cython.final
cdef class TupleReader:
    cdef readonly LineWriter lines
    cdef Fields fields             # of the transaction
    cdef readonly dict moved

    cdef void begin_at(self, uint64_t commit_lsn, int64_t commit_time_us, uint64_t xid) noexcept
    cdef Py_ssize_t encode_bytes(self, const uint8_t* data, size_t size, bint is_consumable) except -2
    cdef str shown(self, const Column* column, const uint8_t* p, size_t size)
    cdef str key_text(self, const Table* table, const uint8_t* data, size_t size)
