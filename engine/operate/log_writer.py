"""Log lines on their way to stderr. The event loop does not wait for whoever reads them.

Strategy: a thread of its own writes. Between it and everybody who logs is a queue of limited size.
When the queue is full, new lines are dropped and counted, and the next line that is written says
how many. At its end the process waits a moment for the queue.

Invariant: whoever logs never waits. A pipe that nobody reads costs log lines, not the stream.
"""

import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

SIZE_MAX: Final = 1024 * 1024
"""Characters that may wait: some five thousand lines."""

FLUSH_SECONDS: Final = 1.0


def write_whole(descriptor: int, text: str) -> None:
    """Write to the descriptor itself. While nobody reads, a stream's lock would stay held.

    Raises OSError.
    """
    left = text.encode(errors="backslashreplace")
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            # Whoever shares the descriptor may have made it non-blocking.
            select.select([], [descriptor], [])


class LogWriter:
    """Stands where a stream is expected. `describe` makes the line that tells of dropped lines.

    It need not be closed: the thread ends with the process.
    """

    def __init__(
        self, descriptor: int, describe: Callable[[int], str], *, size_max: int = SIZE_MAX
    ) -> None:
        self._descriptor = descriptor
        self._describe = describe
        self._size_max = size_max
        self._waiting: deque[str] = deque()
        self._size = 0
        self._dropped = 0
        self._is_writing = False
        self._changed = threading.Condition()
        self.dropped_total = 0
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def write(self, text: str) -> int:
        """Take `text`, or drop and count it. Never waits for the stream."""
        with self._changed:
            if self._size + len(text) > self._size_max:
                self._dropped += 1
                self.dropped_total += 1
            else:
                self._waiting.append(text)
                self._size += len(text)
                self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Nothing: a handler calls this after every line."""

    def drain(self, seconds: float = FLUSH_SECONDS) -> None:
        """Wait until everything was written, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._is_writing), seconds)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                lines = list(self._waiting)
                self._waiting.clear()
                self._size = 0
                if self._dropped:
                    lines.append(self._describe(self._dropped))
                    self._dropped = 0
                self._is_writing = True
            # If the stream is gone, so are the lines: nobody is left to be told.
            with contextlib.suppress(OSError):
                write_whole(self._descriptor, "".join(lines))
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
