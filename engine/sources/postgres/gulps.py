"""A socket of frames, read in gulps: to its end, and then left alone for a pause.

Strategy: the walsender calls `send()` once for each message. A reader that wakes up for each of
them slows both sides (measured: 180 against 285 thousand rows a second). So on TCP the socket is
left alone for a pause after it was read to its end: `Pacing`. On a UNIX socket a pause only costs.
The caller waits for the socket and decides what becomes of the frames. The stream gives them to its
assembler, and the load tests' yardstick throws them away (0090).
"""

import asyncio
import os
import socket
from typing import Final, Protocol

import psycopg
from psycopg.pq.abc import PGconn

from engine.sources.postgres.assembler import Drained
from engine.sources.postgres.frames import Frames
from engine.sources.postgres.libpq import frames_of

DRAIN_BYTES_MAX: Final = 512 * 1024
"""Frames handled in one turn of the loop: 2 to 4 ms at 280 bytes a frame."""

_READ_SHORT_BYTES: Final = 4 * 1024
"""libpq asks the socket for 8 KiB and more at once; when less came, the socket is empty."""


class FrameTaker(Protocol):
    """Whoever the frames are for."""

    @property
    def drained_bytes(self) -> int:
        """Bytes of the frames that the last `drain` took."""
        ...

    def drain(self, frames: Frames, budget_bytes: int) -> Drained:
        """Take frames until none is left, or `budget_bytes` were taken, or something stops it."""
        ...


class Pacing:
    """How long the socket is left alone after it was read to its end. Times are the loop's.

    The pause starts at `SECONDS_MIN` after a quiet spell, so that an isolated transaction is
    complete soon. While there is something to read after every pause it doubles, up to
    `SECONDS_MAX`, unless a pause gathers so much that the socket might be full before its end.
    A lone commit is read 0.2 ms after it, 2 ms at the worst (measured, median and 95 %). Longer
    pauses are worth it: against readings of 64 KiB each, pauses of 10 ms save a fifth of the
    reader's and a quarter of the walsender's CPU (measured).
    """

    SECONDS_MIN: Final = 0.001
    SECONDS_MAX: Final = 0.010

    def __init__(self, *, is_used: bool) -> None:
        self._is_used = is_used
        self._seconds = self.SECONDS_MIN
        self._resume_at = 0.0
        self._gulp_bytes = 0

    def seconds_left(self, now: float) -> float:
        """How long to go on leaving the socket alone; 0 or less: read."""
        return self._resume_at - now

    def drained(self, drained_bytes: int) -> None:
        """So much was read since the last pause, and perhaps more is to come."""
        self._gulp_bytes += drained_bytes

    def ended(self, now: float, room_bytes: int) -> None:
        """The socket was read to its end; `room_bytes` is its receive buffer, the kernel says."""
        if not self._is_used:
            return
        if now - self._resume_at > self.SECONDS_MAX:
            self._seconds = self.SECONDS_MIN
        elif self._gulp_bytes > room_bytes // 4:
            # The kernel counts its overhead too: a window is about half of the room.
            self._seconds = max(self._seconds / 2, self.SECONDS_MIN)
        elif self._gulp_bytes < room_bytes // 8:
            self._seconds = min(2 * self._seconds, self.SECONDS_MAX)
        self._gulp_bytes = 0
        self._resume_at = now + self._seconds


class Gulps:
    """The frames of one connection that is in COPY BOTH. It must outlive them."""

    def __init__(self, pgconn: PGconn) -> None:
        self._pgconn = pgconn
        self._frames = frames_of(pgconn)
        self._fd = pgconn.socket
        self._loop = asyncio.get_running_loop()
        self._pacing = Pacing(is_used=not _is_unix(self._fd))
        # With TLS, bytes can wait inside libpq while the socket is quiet. A TLS record of 16 KiB is
        # passed on in pieces of at least 8 KiB. So the end is reached when three readings in a row
        # gave no frame.
        self._empty_reads_max = 3 if pgconn.ssl_in_use else 1

    async def pause(self) -> None:
        """Leave the socket alone for as long as is worth it. Cancellation changes nothing."""
        seconds = self._pacing.seconds_left(self._loop.time())
        if seconds > 0:
            await asyncio.sleep(seconds)

    def drain(self, taker: FrameTaker) -> Drained:
        """Read until nothing is left, or the budget of one turn is used, or `taker` stops.

        After EMPTY the socket is to be left alone: `pause`. Raises psycopg's errors, and the
        taker's.
        """
        drained = self._drain(taker)
        if drained is Drained.EMPTY:
            self._pacing.ended(self._loop.time(), _receive_room(self._fd))
        return drained

    def _drain(self, taker: FrameTaker) -> Drained:
        budget = DRAIN_BYTES_MAX
        empty_reads = 0
        while True:
            self._pgconn.consume_input()
            drained = taker.drain(self._frames, budget)
            if drained is Drained.FAILED:
                raise psycopg.OperationalError(self._pgconn.get_error_message())
            self._pacing.drained(taker.drained_bytes)
            if drained is not Drained.EMPTY:
                return drained
            budget -= taker.drained_bytes
            if budget <= 0:
                return Drained.BUDGET
            if taker.drained_bytes >= _READ_SHORT_BYTES:
                empty_reads = 0
                continue
            empty_reads += 1
            if empty_reads >= self._empty_reads_max:
                return Drained.EMPTY


def _receive_room(fd: int) -> int:
    with socket.socket(fileno=os.dup(fd)) as duplicate:
        return duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


def _is_unix(fd: int) -> bool:
    with socket.socket(fileno=os.dup(fd)) as duplicate:
        return duplicate.family == socket.AF_UNIX
