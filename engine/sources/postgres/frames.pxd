# cython: language_level=3
"""Where frames come from, for the native loops that read them. Contract: frames.pyi."""

from libc.stdint cimport uint8_t

cdef enum:
    STOP_EMPTY = 0
    STOP_END = 1
    STOP_FAILED = 2
    STOP_BUDGET = 3
    STOP_FULL = 4
    STOP_UNBOUND = 5
    STOP_HOUR = 6
    STOP_CONTROL = 7


cdef class Frames:
    cdef bint is_consumable

    cdef Py_ssize_t next(self, const uint8_t** frame) except -3
    cdef void let_go(self) noexcept
