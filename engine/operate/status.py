"""What the engine says about itself now: the answer of `/status`, and what readiness follows from.

Strategy: `/status` is this module's `Status` as JSON, field by field, with `ready`, `health` and
`health_reason` in front. docs/operations.md describes the fields for those who read the JSON.
Whatever may be long is bounded: the oldest alarms, the newest events, the busiest tables, an hour
of samples. A number says how many there are in all.

Invariant: a `Status` is a frozen copy; reading it needs no lock and disturbs nothing. It carries
no row values and no secrets, so it may be shown to whoever can reach the port.
"""

from collections.abc import Callable, Mapping
from typing import Final, Literal

import msgspec

from engine.model.plural import counted
from engine.operate.alarms import Alarm
from engine.operate.bucket_watch import BucketStatus
from engine.operate.events import Event
from engine.operate.history import History
from engine.operate.retention import Retention

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
"""good: ready, no alarm stands, and the bucket answers. bad: stopped, an alarm stands, or the
bucket has been stalled for `STALLED_BAD_SECONDS`. wait: everything else. `health_reason` says
why."""

STALLED_BAD_SECONDS: Final = 60.0

TABLES_SHOWN_MAX: Final = 100
"""Tables that `/status` lists; `tables_total` counts all of them."""

PHASE_REASONS: Final[Mapping[Phase, str]] = {
    "starting": "the engine is starting",
    "opening": "the journal is being opened",
    "redo": "objects that the last writer planned are made again first",
    "paused": "the stream is paused until somebody resumes it",
    "reconnecting": "the connection to the source was lost",
    "failing": "the source gives the same error at the same position again and again",
    "draining": "the engine is stopping",
    "stopped": "the engine has stopped",
}
"""Why an engine in that phase is not ready."""

READY_PHASES: frozenset[Phase] = frozenset({"standby", "snapshot", "streaming"})
"""A standby counts as ready, because a rolling deploy waits for the new engine before it stops the
old one."""


_NOT_WHOLE: Final = 0.99


class SnapshotStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far one table's snapshot has come. Its rows are being read now.

    `rows` and `bytes` are what the source has sent, and the estimates what it is thought to have
    (0: nobody knows);
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

    @property
    def share(self) -> float:
        """How far it is, from 0 to 1: whole when its last range is, whatever was estimated."""
        if self.ranges_done >= self.ranges:
            return 1.0
        if not self.rows_estimate:
            return self.ranges_done / self.ranges
        return min(self.rows / self.rows_estimate, _NOT_WHOLE)


class SnapshotsStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The tables that are being read now: the largest first, and all of them in one, if any.

    In `in_all` the name of the table is empty.
    """

    tables: tuple[SnapshotStatus, ...] = ()
    in_all: SnapshotStatus | None = None


class TableStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One captured table, since the process began.

    `version` is the newest that the journal knows, 0 before the first. `queue_bytes` are held in
    memory: what waits, and the open chunk. `rows_per_second` is that of the last ten seconds.
    `last_object` is the key of the newest object that became visible, at `last_object_us` (Unix
    microseconds). `snapshot` is how far the table's newest snapshot is, a word as `tailrace status`
    has it; `snapshot_progress` is there while its rows are being read.
    """

    table: str
    version: int = 0
    rows_total: int = 0
    rows_per_second: float = 0.0
    queue_bytes: int = 0
    objects_total: int = 0
    last_object: str = ""
    last_object_us: int = 0
    is_paused: bool = False
    snapshot: str = "none"
    snapshot_progress: SnapshotStatus | None = None


class FoundTables(msgspec.Struct, frozen=True, kw_only=True):
    """The tables of a search: how many there are in all, and the first of them by name."""

    total: int
    tables: tuple[TableStatus, ...]


class NotCaptured(msgspec.Struct, frozen=True):
    """A table that the configuration names and of which not all arrives: why, and what mends it."""

    table: str
    text: str
    hint: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of one engine.

    Times are Unix microseconds (UTC), 0 or None where there is none yet.

    There are two lags, both 0 where nothing waits, and None where nobody knows. `lag_seconds` and
    `lag` are what the source has written and this engine has not read. `durable_lag_seconds` and
    `durable_lag` are what it has read and the journal does not call durable. `lag` and
    `durable_lag` are amounts of the source's log, in `lag_unit`.

    `destination` is the bucket and the prefix in full, and `bucket` says how the bucket answers.
    `durable_position` compares with records' positions; `durable_resume` and `read_resume` say in
    the source's own words up to where its log is durable, and up to where it was read. `retention`
    is how much of its log the source retains for us. `memory_used_bytes` are rows and bodies in the
    buffer, up to `memory_limit_bytes`; `process_memory_bytes` is all of the process in RAM.

    `waits_for` says in words what the stream waits for before it begins, or why it is paused, empty
    where it does neither. `tables_paused` are passed over.

    `tables` counts the tables of which rows came, and `tables_total` those that are captured.
    `busiest` lists up to `TABLES_SHOWN_MAX` of those: the paused ones, then the busiest, then the
    others by name. `not_captured` lists the first tables of which not all arrives, and
    `not_captured_total` counts all of them.

    `snapshots` are those that are being read now, the largest first, and `snapshots_in_all` is
    their sum (None: nothing is read). `snapshots_unfinished` counts the tables whose earlier rows
    are not all in the bucket, and `snapshots_finished` those that have a snapshot. `alarms` lists
    the oldest of the conditions that an operator has to mend, `alarms_total` counts all of them.
    `events` are the newest, the oldest of them first. `history` has the last hour.
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
    bucket: BucketStatus = BucketStatus()
    durable_position: str = ""
    durable_resume: str = ""
    durable_commit_us: int = 0
    read_resume: str = ""
    lag_seconds: float | None = None
    lag: int | None = None
    durable_lag_seconds: float | None = None
    durable_lag: int | None = None
    lag_unit: str = ""
    retention: Retention | None = None
    memory_used_bytes: int = 0
    memory_limit_bytes: int = 0
    process_memory_bytes: int = 0
    tables: int = 0
    rows_total: int = 0
    objects_total: int = 0
    bytes_total: int = 0
    publishes_in_flight: int = 0
    backpressure: bool = False
    waits_for: str = ""
    tables_paused: tuple[str, ...] = ()
    busiest: tuple[TableStatus, ...] = ()
    tables_total: int = 0
    not_captured: tuple[NotCaptured, ...] = ()
    not_captured_total: int = 0
    snapshots: tuple[SnapshotStatus, ...] = ()
    snapshots_in_all: SnapshotStatus | None = None
    snapshots_unfinished: int = 0
    snapshots_finished: int = 0
    last_error: str = ""
    last_error_hint: str = ""
    alarms: tuple[Alarm, ...] = ()
    alarms_total: int = 0
    events: tuple[Event, ...] = ()
    history: History = History()

    @property
    def is_ready(self) -> bool:
        """Whether `/readyz` answers 200."""
        return self.phase in READY_PHASES

    @property
    def health(self) -> Health:
        """How the page colours the phase."""
        stalled = self.bucket.is_stalled
        is_stalled_long = stalled and self.bucket.waiting_seconds >= STALLED_BAD_SECONDS
        if self.phase == "stopped" or self.alarms_total or is_stalled_long:
            return "bad"
        return "good" if self.is_ready and not stalled else "wait"

    @property
    def health_reason(self) -> str:
        """Why the health is not good, in words; empty where it is."""
        if self.bucket.is_stalled:
            return self.bucket.text
        if self.alarms:
            more = f"; {counted(self.alarms_total - 1, 'more alarm')}"
            first = self.alarms[0]
            subject = f"{first.subject}: " if first.subject else ""
            return f"{subject}{first.text}{more if self.alarms_total > 1 else ''}"
        return "" if self.is_ready else PHASE_REASONS.get(self.phase, self.phase)


BAR_CHARACTERS: Final = 20


def progress_bar(share: float) -> str:
    """A share from 0 to 1 as a bar of text and in percent, like `████░░░░░░░░░░░░░░░░ 20%`."""
    full = round(BAR_CHARACTERS * share)
    return "█" * full + "░" * (BAR_CHARACTERS - full) + f" {share:.0%}"


StatusProvider = Callable[[], Status]
"""Gives the status of now; cheap enough for every request."""


TableFinder = Callable[[str], FoundTables]
"""Finds the captured tables whose name contains a text, in any case."""
