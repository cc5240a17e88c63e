"""What a peer is: a command that reads a slot from its start to a given end, and then ends.

Invariant: a peer that did not read everything fails. It exits with 0 only after it has read all
changes up to `Task.end_lsn`; everything else is a failed run, never a quick one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SLOW_ROW_US: Final = 8.0


@dataclass(frozen=True, slots=True)
class Task:
    """One run's work. A new slot and a new, empty folder each time."""

    dsn: str
    """libpq's words, without a password: that is in the environment, as PGPASSWORD."""
    slot: str
    """A logical slot of the peer's plugin that begins before the backlog; nobody else reads it."""
    publication: str
    end_lsn: str
    """Where the backlog ends: nothing that was committed before lies behind it."""
    row_count: int
    """Changes up to there. A peer that cannot see the LSN counts to this."""
    folder: Path
    programs: Path
    """The folder of PostgreSQL's programs, of the server's version where that is ours."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another reader. Its process is measured alone: a wrapper has to `exec` what it wraps."""

    name: str
    """In results, options and names of slots: lower-case letters, digits, `-` and `_`."""
    title: str
    text: str
    """What it does with a row, so that nobody takes the ratio for more than it is."""
    row_us: float
    """About how long a row of scenario `drain` takes it: for the estimate, and `is_slow`."""
    start_seconds: float
    """About how long it starts, for the estimate only."""
    absence: Callable[[], str]
    """Why it cannot run on this machine, and what to do about it; empty where it can."""
    version: Callable[[], str]
    """Its release, for the result. Asked only where it can run; empty where the server's is meant.
    """
    command: Callable[[Task], tuple[str, ...]]
    tells_phases: bool = False
    """Whether its output says when it began to stream and when it had everything, in the lines of
    the engine's log. Its start-up is then left out where the engine's is.
    """
    plugin: str = "pgoutput"
    """The output plugin of its slot: a copy of a slot may have another one than the original."""

    @property
    def is_slow(self) -> bool:
        """Whether it is not what the server can deliver but what a reader makes of it.

        It reads from the newest server only, and is not warmed up.
        """
        return self.row_us >= _SLOW_ROW_US
