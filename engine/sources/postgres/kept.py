"""A connection that is kept for whoever needs one next.

Strategy: whoever has done with a connection leaves it here, and takes it again for the next task.
Between two tasks of a worker no event loop runs, so a thread ends what nobody took for a while.

Invariant: a connection that is here is nobody else's.
"""

import threading

from engine.sources.postgres.session import Connection


class KeptConnection:
    """At most one connection, for `seconds`; with 0 none is kept."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._kept: Connection | None = None
        self._timer: threading.Timer | None = None

    def take(self) -> Connection | None:
        """The connection that was left, if any. Its server may have ended it meanwhile."""
        with self._lock:
            kept, self._kept = self._kept, None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return kept

    def leave(self, connection: Connection) -> bool:
        """Keep a connection on which nothing is under way. False: it is not kept."""
        if not self._seconds:
            return False
        timer = threading.Timer(self._seconds, self._end, (connection,))
        # A process does not wait for it when it ends.
        timer.daemon = True
        with self._lock:
            if self._kept is not None:
                return False
            self._kept, self._timer = connection, timer
        timer.start()
        return True

    def _end(self, connection: Connection) -> None:
        with self._lock:
            if self._kept is not connection:
                return
            self._kept = self._timer = None
        connection.pgconn.finish()
