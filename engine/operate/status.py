"""What the engine says about itself now: the answer of `/status`, and what readiness follows from.

Invariant: a `Status` is a frozen copy; reading it needs no lock and disturbs nothing. It carries
no row values and no secrets, so it may be shown to whoever can reach the port.
"""

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from engine.operate.alarms import Alarm

Phase = Literal[
    "starting",
    "standby",
    "opening",
    "redo",
    "snapshot",
    "streaming",
    "paused",
    "reconnecting",
    "failing",
    "draining",
    "stopped",
]
"""What the engine is doing.

starting: it looks at source and bucket. standby: another engine reads the source; it follows the
journal. opening: the lease is held, the journal is being opened. redo: planned objects of a
predecessor are made again. snapshot: the stream waits for the initial snapshot. streaming: changes
flow. paused: the stream is read no further until somebody resumes it. reconnecting: the connection
was lost, nothing is forgotten. failing: the source gives the same error at the same position again
and again; it is asked at growing pauses. draining: asked to stop, publishing what is held. stopped:
nothing more will happen.
"""

Health = Literal["good", "wait", "bad"]
"""good: ready, and no alarm stands. bad: stopped, or an alarm stands. wait: everything else."""

READY_PHASES: frozenset[Phase] = frozenset({"standby", "snapshot", "streaming"})
"""A standby counts as ready, because a rolling deploy waits for the new engine before it stops the
old one."""


class SnapshotStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far one table's snapshot has come. Its rows are being read now.

    `rows` and `bytes` are what the source has sent, and the estimates what it is thought to have;
    bytes are the source's own. `seconds` is the time so far, `rows_per_second` the rate since then,
    `seconds_left` a guess of the rest (None: not enough is known). A range is what one worker reads
    at a time.
    """

    table: str
    rows: int
    rows_estimate: int
    bytes: int
    bytes_estimate: int
    ranges_done: int
    ranges: int
    seconds: float
    rows_per_second: float | None
    seconds_left: float | None


class SnapshotsStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The tables that are being read now: the largest first, and all of them in one, if any.

    In `in_all` the name of the table is empty.
    """

    tables: tuple[SnapshotStatus, ...] = ()
    in_all: SnapshotStatus | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of one engine.

    Times are Unix microseconds (UTC), 0 or None where there is none yet. `lag` is how much log was
    read and is not durable, in `lag_unit`. `durable_position` compares with records' positions;
    `durable_resume` and `read_resume` say in the source's own words up to where its log is durable,
    and up to where it was read. `waits_for` says in words what the stream waits for before it
    begins, or why it is paused, empty where it does neither. `tables_paused` are passed over.
    `snapshots` are those that are being read now, the largest first, and `snapshots_in_all` is
    their sum (None: nothing is read). `snapshots_unfinished` counts the tables whose earlier rows
    are not all in the bucket, and `snapshots_finished` those that have a snapshot. `alarms` lists
    the oldest of the conditions that an operator has to mend,
    `alarms_total` counts all of them.
    """

    phase: Phase
    since_us: int
    release: str = ""
    writer_id: str = ""
    epoch: int = 0
    seq: int = 0
    source: str = ""
    lease: str = ""
    destination: str = ""
    durable_position: str = ""
    durable_resume: str = ""
    durable_commit_us: int = 0
    lag_seconds: float | None = None
    read_resume: str = ""
    lag: int | None = None
    lag_unit: str = ""
    memory_used_bytes: int = 0
    memory_limit_bytes: int = 0
    tables: int = 0
    rows_total: int = 0
    objects_total: int = 0
    bytes_total: int = 0
    publishes_in_flight: int = 0
    backpressure: bool = False
    waits_for: str = ""
    tables_paused: tuple[str, ...] = ()
    snapshots: tuple[SnapshotStatus, ...] = ()
    snapshots_in_all: SnapshotStatus | None = None
    snapshots_unfinished: int = 0
    snapshots_finished: int = 0
    last_error: str = ""
    last_error_hint: str = ""
    alarms: tuple[Alarm, ...] = ()
    alarms_total: int = 0

    @property
    def is_ready(self) -> bool:
        """Whether `/readyz` answers 200."""
        return self.phase in READY_PHASES

    @property
    def health(self) -> Health:
        """How the page colours the phase."""
        if self.phase == "stopped" or self.alarms_total:
            return "bad"
        return "good" if self.is_ready else "wait"


BAR_CHARACTERS: Final = 20


def progress_bar(done: int, of: int) -> str:
    """`done` of `of` as a bar of text and in percent, like `████░░░░░░░░░░░░░░░░ 20%`."""
    share = min(1.0, done / of) if of else 0.0
    full = round(BAR_CHARACTERS * share)
    return "█" * full + "░" * (BAR_CHARACTERS - full) + f" {share:.0%}"


StatusProvider = Callable[[], Status]
"""Gives the status of now; cheap enough for every request."""
