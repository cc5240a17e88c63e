"""The seams: what the protocol asks of a source, of a bucket and of a clock.

The journal, recovery and publisher know only these; PostgreSQL and S3 stand behind them in
production, a simulated world in the protocol's tests.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import msgspec

from engine.batch import Intake
from engine.envelope import RecordConfiguration
from engine.history import Landmark
from engine.position import NO_LSN, Lsn
from engine.schema import Decide, TableName

Clock = Callable[[], int]
"""The wall clock: Unix microseconds, UTC. Intervals use the event loop's own time."""


class SourceIdentity(msgspec.Struct, frozen=True):
    """Whose changes these are. `generation` grows only where LSNs stop being continuous."""

    type: str
    system_identifier: str
    timeline: int
    database: str
    slot: str
    publication: str
    generation: int = 1


@dataclass(frozen=True, slots=True)
class SlotState:
    """The slot as the server holds it, read while this stream holds the slot.

    `confirmed_lsn` is what the server believes to be acknowledged; `flush_lsn` how far its log is
    written. `restart_lsn` is the oldest log it keeps; `safe_bytes` how much more may be written
    before the server drops the slot (None: no limit is set).
    """

    confirmed_lsn: Lsn
    flush_lsn: Lsn
    restart_lsn: Lsn = NO_LSN
    safe_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Reason:
    """Why changes of a table do not arrive, and the statement that mends it."""

    text: str
    hint: str


@dataclass(frozen=True, slots=True)
class TableLook:
    """What decides which changes of one captured table arrive, as the source has it now.

    `identity` stays while the table is the same one, also under another name. `keeps` says for each
    aspect (a stable word in kebab case) what of it arrives; an aspect that is absent arrives whole.
    Its aspect `NOT_PUBLISHED` is there, with nothing kept, where no change arrives at all.
    `marks` change whenever somebody touched what they stand for; the aspect is what comes before a
    colon. A mark in `fresh` may appear without a loss: what it stands for is whole since it exists.
    `PUBLISHED_LATE` is in `fresh` where the table itself is. Marks of the aspect `REWRITTEN` change
    also with a truncation that the stream shows. `reasons` explains what is not kept.
    `is_as_made`: it surely never had another name.
    """

    identity: str
    keeps: Mapping[str, tuple[str, ...]]
    marks: Mapping[str, str]
    fresh: frozenset[str]
    reasons: Mapping[str, Reason]
    is_as_made: bool = True


NOT_PUBLISHED = "not-published"
PUBLISHED_LATE = "published-late"
REWRITTEN = "partition-rewritten"


@dataclass(frozen=True, slots=True)
class Look:
    """What the source publishes, looked up once.

    The look shows everything that committed before `since` (None: that is not known), and nothing
    that commits at `until` or after it. Whoever has read the log up to `at` has read everything
    that the look shows. `marks` are those that all tables share. `texts` says, for each aspect of a
    mark, what it means that it was touched. `others` are the identities of tables whose names are
    not captured.
    """

    since: Lsn | None
    at: Lsn
    until: Lsn
    marks: Mapping[str, str]
    tables: Mapping[TableName, TableLook]
    texts: Mapping[str, str]
    others: frozenset[str] = frozenset()


class ChangeStream(Protocol):
    """One connection that holds the slot."""

    async def receive(self) -> Intake:
        """The next drain of the socket; waits for one. May be empty but for a boundary.

        Raises SourceUnavailable when the connection is lost: what was read and not yet returned
        is forgotten and will be sent again. Cancellation loses nothing: the next call goes on.
        """
        ...

    async def slot_state(self) -> SlotState:
        """The slot, read now by another session, while this one holds it.

        Raises PositionLost where there is none, SourceUnavailable.
        """
        ...

    async def look(self) -> Look | None:
        """What is published now of the tables that the stream's configuration captures.

        None where the source has nothing that somebody could change behind the stream. Waits for
        nobody's lock. Raises SourceUnavailable.
        """
        ...

    def acknowledge(self, lsn: Lsn) -> None:
        """From now on status updates say, and repeat, that what is before `lsn` may be forgotten.

        Before the first call no status update is sent at all. Never waits.
        """
        ...

    def ask_keepalive(self) -> None:
        """Ask the server for its position now (it answers with a keepalive). Never waits."""
        ...


class Source(Protocol):
    """A database whose log can be read from a position again and again."""

    async def identify(self) -> SourceIdentity:
        """Who answers at the other end. Raises SourceUnavailable or SourceRefused."""
        ...

    async def prepare(self, *, is_first: bool) -> None:
        """Make sure that what streaming needs is there: publication, and the slot.

        A missing slot is made only when `is_first` (no journal knows it yet); else PositionLost
        is raised.
        """
        ...

    async def flush_lsn(self) -> Lsn:
        """How far the server's log is written now."""
        ...

    async def fork_lsn(self, timeline: int) -> Lsn:
        """Where the server's history left `timeline`, which is not its newest."""
        ...

    def stream(
        self,
        start: Lsn,
        configuration: RecordConfiguration,
        decide: Decide,
        *,
        landmark: Landmark | None = None,
        single_rows: bool = False,
    ) -> AbstractAsyncContextManager[ChangeStream]:
        """Hold the slot and read from `start` (0: where the slot stands).

        With a `landmark` the log is compared with what the journal knows of it, see `history`:
        `receive` raises PositionLost where they differ, and until they agree it gives no boundary
        and nothing is acknowledged. The stream may begin before `start` for that.

        `decide` is asked at the first row after the start, after a relation changed, and again
        for every row for which it answered None; rows that it does not want are skipped. Leaving
        sends the last acknowledgement. With `single_rows` each row is a batch of its own and
        `decide` is asked for each. Entering raises SlotBusy, PositionLost, SourceRefused or
        SourceUnavailable. Leaving closes the connection and frees the slot.
        """
        ...


@dataclass(frozen=True, slots=True)
class ObjectHead:
    """What a look-up without the body tells.

    Metadata names are lower case, without `x-amz-meta-`.
    """

    size: int
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ObjectTail(ObjectHead):
    """The same, and the object's last bytes; None where they cannot be read: it is archived."""

    last: bytes | None


@dataclass(frozen=True, slots=True)
class ListedObject:
    """One line of a listing."""

    key: str
    size: int


class ObjectStore(Protocol):
    """One bucket. Keys are whole keys. Nothing is ever overwritten or deleted through it.

    Every method makes one attempt and raises DestinationUnavailable when there was no usable
    answer: the request may have been applied or not. DestinationRefused: 403, missing bucket and
    the like. Cancellation leaves the request in the same doubt.
    """

    async def create(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        in_one_request: bool = False,
    ) -> bool:
        """Create the object if the key is free: True, or False where the key was taken (412).

        A large body may travel in parts, and two engines may then both be told that they created
        it: some stores let two completions win. `in_one_request` forbids parts.
        """
        ...

    async def get(self, key: str) -> bytes | None:
        """The body, or None where there is no such object."""
        ...

    async def head(self, key: str) -> ObjectHead | None:
        """Size and metadata, or None where there is no such object."""
        ...

    async def tail(self, key: str, size_bytes: int) -> ObjectTail | None:
        """What `head` tells and the last bytes, so many at most. None: no such object."""
        ...

    def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ListedObject]:
        """The objects whose keys begin with `prefix` and sort after `after`, in key order."""
        ...

    async def folders(self, prefix: str) -> tuple[str, ...]:
        """What the keys that begin with `prefix` have up to the next slash: the first of them."""
        ...

    async def abort_uploads(
        self, prefix: str, *, is_ours: Callable[[str], bool], before_us: int
    ) -> int:
        """Abort multipart uploads begun before that time, and say how many.

        Those whose keys begin with `prefix` and for which `is_ours` holds: prefixes of others may
        begin alike. A missing right is no error.
        """
        ...
