"""The libpq that psycopg is linked with, for compiled code.

psycopg makes a tuple, a memoryview and a buffer object of every frame of a COPY. The compiled frame
reader calls `PQgetCopyData` itself instead, by its address. The address has to be that of the very
library that made the connection. A wheel of psycopg carries its own libpq, and other modules of the
process may have loaded another one. A look-up of a name in a module that is linked against a
library finds it there (dlsym(3): the search goes through the dependencies).
"""

import ctypes
import functools
import sys

from psycopg import pq
from psycopg.pq.abc import PGconn

from engine.sources.postgres.frames import LibpqFrames


def frames_of(pgconn: PGconn) -> LibpqFrames:
    """The frames of a connection that is in COPY BOTH. It must outlive them."""
    # All implementations have this attribute, but psycopg's protocol class leaves it out.
    pointer: int | None = pgconn.pgconn_ptr  # type: ignore[attr-defined]
    assert pointer is not None, "an open connection"
    library = _library()
    return LibpqFrames(pointer, _address(library.PQgetCopyData), _address(library.PQfreemem))


@functools.cache
def _library() -> ctypes.CDLL:
    # psycopg has three implementations. The one in plain Python has loaded the library itself, and
    # the same search in the process finds it.
    module = sys.modules[pq.PGconn.__module__]
    path = module.__file__
    if path is None or path.endswith(".py"):
        found = vars(sys.modules["psycopg.pq._pq_ctypes"])["pq"]
        assert isinstance(found, ctypes.CDLL)
        return found
    return ctypes.CDLL(path)


def _address(function: object) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
    assert address is not None, "a function has an address"
    return address
