"""The interfaces: what the protocol asks of a source, of a bucket and of a clock.

Journal, recovery and publisher know only these. In production a database and S3 stand behind them.
In the protocol's tests it is a simulated world.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from engine.model.batch import Intake
from engine.model.history import Landmark
from engine.model.log_point import LogPoint
from engine.model.position import LogPosition
from engine.model.record import RecordConfiguration
from engine.model.schema import Decide, TableName
from engine.model.staging import Completion, StagedPart
from engine.model.trial import Judgement

Clock = Callable[[], int]
"""The wall clock: Unix microseconds, UTC. Intervals use the event loop's own time."""


class SourceIdentity(msgspec.Struct, frozen=True):
    """Whose changes these are.

    `facts` tell one source from another, each by the source's own name for it. `lease` names what
    the reader holds. A journal belongs to one type, database, lease and set of facts. `branch` is
    the branch of the source's history that the server is on now. It is another one after a failover
    that may have lost something. `through` is what the log is read through. `generation` begins the
    log's positions; it grows only where the log stops being continuous.
    """

    type: str
    database: str
    lease: str
    facts: dict[str, str]
    branch: str
    through: str
    generation: int = 1

    @property
    def whose(self) -> dict[str, str]:
        """What may never differ between a journal and its source, each under its name."""
        return {"type": self.type, "database": self.database, "lease": self.lease, **self.facts}


@dataclass(frozen=True, slots=True)
class Standing:
    """How the source stands, read while this stream holds its lease.

    `confirmed` is what the source believes to be acknowledged, `end` how far its log is written.
    `gauges` are measures of its own, by the names that it declares; infinite: there is no limit.
    """

    confirmed: LogPoint
    end: LogPoint
    gauges: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SourceMeasures:
    """How a source measures its log: the unit of `distance`, and its own gauges.

    A unit is a plural that may end a metric's name (`bytes`, `transactions`). Each gauge has its
    metric's name, without `tailrace_`, and its help. `retained` names the gauge of how much log the
    source retains for us, `left` the one of how much may be written before it drops some of that;
    empty where it has no such gauge.
    """

    lag_unit: str = "bytes"
    gauges: Mapping[str, str] = field(default_factory=dict)
    retained: str = ""
    left: str = ""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why changes of a table do not arrive, and the statement that mends it."""

    text: str
    hint: str


@dataclass(frozen=True, slots=True)
class TableLook:
    """What decides which changes of one captured table arrive, as the source has it now.

    `identity` stays while the table is the same one, also under another name.

    `keeps` says for each aspect (a stable word in kebab case) what of it arrives. An aspect that is
    absent arrives whole. Where no change arrives at all, the aspect `NOT_PUBLISHED` is there, with
    nothing kept. Aspects that are the same up to a colon are the same reason of a gap. `reasons`
    explains what is not kept.

    `marks` change whenever somebody touched what they stand for. A mark's aspect is what comes
    before its colon. A mark in `fresh` may appear without a loss, because what it stands for has
    been whole since it exists. `PUBLISHED_LATE` is in `fresh` where the table itself is new. Marks
    of the aspect `REWRITTEN` also change with a truncation that the stream shows. Those of the
    aspect `PARTITIONS` have, behind the colon, the identity of one of the table's partitions.

    `is_as_made`: the table surely never had another name. `arrives`: changes arrive, and under the
    table's own name, so that a snapshot belongs beside them. `refused` says why the source refuses
    changes that somebody wants to make in the table, because they would have to arrive here.
    Nothing is lost by that.

    `shape` is how the table stores its rows (see `table_shape`), empty where that is not known.
    """

    identity: str
    keeps: Mapping[str, tuple[str, ...]]
    marks: Mapping[str, str]
    fresh: frozenset[str]
    reasons: Mapping[str, Reason]
    is_as_made: bool = True
    arrives: bool = True
    refused: Reason | None = None
    shape: str = ""


NOT_PUBLISHED = "not-published"
PUBLISHED_LATE = "published-late"
REWRITTEN = "partition-rewritten"
PARTITIONS = "partitions"


@dataclass(frozen=True, slots=True)
class Look:
    """What the source publishes, looked up once.

    The look shows everything that committed before `since` (None: that is not known), and nothing
    that commits at `until` or after it. Whoever has read the log up to `at` has read everything
    that the look shows. `marks` are those that all tables share. `texts` says, for each aspect of a
    mark, what it means that it was touched. `others` are the identities of tables whose names are
    not captured. `parts` are those of tables that are looked at only as parts of others. `pieces`
    are the names of some of these, and whether their changes arrive under that name.
    """

    since: LogPosition | None
    at: LogPosition
    until: LogPosition
    marks: Mapping[str, str]
    tables: Mapping[TableName, TableLook]
    texts: Mapping[str, str]
    others: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()
    pieces: Mapping[TableName, bool] = field(default_factory=dict)


NO_MEASURES = SourceMeasures()
"""The measures of a source that has no gauges of its own and counts its log in bytes."""


class Publishing(Protocol):
    """What a source does so that changes of tables arrive that appeared later.

    It never makes the application's own statements fail, and nobody waits behind it for long.
    """

    async def refused(self, tables: Sequence[TableName]) -> Mapping[TableName, Reason]:
        """Those of `tables` that it may not let arrive, why, and what mends it.

        Raises SourceError. Cancellation changes nothing.
        """
        ...

    async def publish(self, tables: Sequence[TableName]) -> Mapping[TableName, Reason]:
        """Let changes of `tables` arrive from now on. Returns those of which they do not, and why.

        What it could not do now may be asked of it again. Raises SourceError. After a cancellation
        some may arrive and others not.
        """
        ...


class ChangeStream(Protocol):
    """One connection that holds the source's lease: nobody else reads it meanwhile."""

    async def receive(self) -> Intake:
        """The next drain of the socket; waits for one. May be empty but for a boundary.

        Raises SourceUnavailable when the connection is lost: what was read and not yet returned
        is forgotten and will be sent again. Cancellation loses nothing: the next call goes on.
        """
        ...

    async def standing(self) -> Standing:
        """How the source stands now. Cancellation leaves nothing behind.

        Raises PositionLost where it no longer knows us, SourceUnavailable.
        """
        ...

    async def look(self) -> Look | None:
        """What is published now of the tables that the stream's configuration captures.

        None where the source has nothing that somebody could change behind the stream. Waits for
        nobody's lock. Raises SourceUnavailable. Cancellation leaves nothing behind.
        """
        ...

    def acknowledge(self, point: LogPoint) -> None:
        """From now on the source is told, again and again, that it may forget what is before it.

        Before the first call it is told nothing at all. Never waits.
        """
        ...

    def ask_keepalive(self) -> None:
        """Ask the server for its position now (it answers with a keepalive). Never waits."""
        ...


class Source(Protocol):
    """A database whose log can be read from a position again and again."""

    async def identify(self) -> SourceIdentity:
        """Who answers at the other end. Raises SourceUnavailable or SourceRefused.

        Cancellation leaves nothing behind.
        """
        ...

    async def prepare(self, *, is_first: bool) -> None:
        """Make sure that what streaming needs is there.

        What keeps the log for us is made only when `is_first`: no journal knows it yet. If it is
        missing otherwise, PositionLost is raised. Cancellation may leave some of it made; the next
        call makes the rest.
        """
        ...

    def adopt(self, generation: int) -> None:
        """The journal is in this generation: positions that are made from now on begin with it.

        A source whose own log says its generation ignores it. Never waits.
        """
        ...

    async def renew(self) -> None:
        """Let go of what keeps the log for us, where it is there, and keep the log from now on.

        What was not read is lost. Makes also what else streaming needs. Raises LeaseHeld where
        somebody reads, SourceRefused, SourceUnavailable. Cancellation may leave nothing that keeps
        the log; the next call makes it.
        """
        ...

    def trials(self, *, is_first: bool) -> AsyncIterator[Judgement]:
        """What `prepare` would refuse or warn of, one thing after another. Makes nothing.

        It raises nothing: an error that `prepare` would end with is a judgement. Cancellation
        changes nothing.
        """
        ...

    async def seen(self) -> Standing | None:
        """How it stands, as anybody may see it without the lease.

        None where nothing keeps the log for us, or somebody reads it at this moment. Raises
        SourceError. Cancellation leaves nothing behind.
        """
        ...

    async def look(self) -> Look | None:
        """What is published now of the tables that its configuration captures, without a stream.

        See `ChangeStream.look`. Raises SourceError. Cancellation leaves nothing behind.
        """
        ...

    def describe(self, identity: SourceIdentity) -> str:
        """Whose changes these are, in the source's own words for a message."""
        ...

    @property
    def keeper(self) -> str:
        """What keeps its log for us, in words for a message."""
        ...

    @property
    def measures(self) -> SourceMeasures:
        """How it measures its log."""
        ...

    def distance(self, begin: LogPoint, end: LogPoint) -> int:
        """How much log lies from `begin` to `end`, in its unit; 0 where `end` is not behind it."""
        ...

    async def end(self) -> LogPoint:
        """A place behind everything that is committed now. Cancellation leaves nothing behind."""
        ...

    async def fork(self, branch: str) -> LogPosition:
        """Where the server's history left `branch`, which is not the one that it is on.

        Raises PositionLost where its history does not know that branch. Cancellation leaves
        nothing behind.
        """
        ...

    def stream(
        self,
        start: LogPoint | None,
        configuration: RecordConfiguration,
        decide: Decide,
        *,
        landmark: Landmark | None = None,
        single_rows: bool = False,
    ) -> AbstractAsyncContextManager[ChangeStream]:
        """Take the lease and read from `start` (None: from what was confirmed last).

        With a `landmark` the log is compared with what the journal knows of it, see `history`.
        Where they differ, `receive` raises PositionLost. Until they agree, it gives no boundary and
        nothing is acknowledged. The stream may begin before `start` for that.

        `decide` is asked at the first row after the start, after a relation changed, and again for
        every row for which it answered None. Rows that it does not want are skipped. With
        `single_rows` each row is a batch of its own, and `decide` is asked for each.

        Entering raises LeaseHeld, PositionLost, SourceRefused or SourceUnavailable. Leaving sends
        the last acknowledgement, closes the connection and frees the lease.
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
    """One line of a listing. `made_us`: when it was made (Unix microseconds), by the store's clock.

    A store may say only the second.
    """

    key: str
    size: int
    made_us: int


@dataclass(frozen=True, slots=True)
class ListedUpload:
    """An upload that is neither completed nor aborted. `begun_us`: Unix microseconds, the store's.

    A store may say only the second in which it began.
    """

    key: str
    upload_id: str
    begun_us: int


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
        it: some stores let two completions win. `in_one_request` forbids parts. Cancellation leaves
        the request in doubt: the object may be there.
        """
        ...

    async def get(self, key: str) -> bytes | None:
        """The body, or None where there is no such object. Cancellation changes nothing."""
        ...

    async def head(self, key: str) -> ObjectHead | None:
        """Size and metadata, or None where there is no such object.

        Cancellation changes nothing.
        """
        ...

    async def whole(self, key: str) -> ObjectTail | None:
        """What `get` and `head` tell, in one request. Cancellation changes nothing."""
        ...

    async def tail(self, key: str, size_bytes: int) -> ObjectTail | None:
        """What `head` tells and the last bytes, so many at most. None: no such object.

        Cancellation changes nothing.
        """
        ...

    def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ListedObject]:
        """The objects whose keys begin with `prefix` and sort after `after`, in key order."""
        ...

    async def folders(self, prefix: str) -> tuple[str, ...]:
        """What the keys that begin with `prefix` have up to the next slash: the first of them.

        Cancellation changes nothing.
        """
        ...

    async def begin_upload(
        self, key: str, *, content_type: str, metadata: Mapping[str, str]
    ) -> str:
        """Begin to stage an object in parts, and name the upload.

        The object's metadata are these; nothing changes them later. Nothing is visible under the
        key before the upload is completed, and any number of uploads may be begun for one key.
        After a lost answer or a cancellation an upload may be there that nobody knows: a listing
        finds it.
        """
        ...

    async def put_part(
        self, key: str, upload_id: str, number: int, body: bytes | memoryview
    ) -> StagedPart:
        """Store one part, from 1 to 10,000; all but the last have at least 5 MiB.

        Parts may come in any order. A number that is put again replaces the part. Raises UploadGone
        where the upload was completed or aborted. Cancellation leaves the request in doubt: the
        part may be stored.
        """
        ...

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[StagedPart], *, crc32: str
    ) -> Completion:
        """Make the object of these parts, in the order of their numbers, if the key is free.

        `crc32` is that of the whole body. It is compared where the store can, and stored.

        A repeated completion whose first attempt was applied may be answered in any way: CREATED,
        TAKEN or GONE, by the store and by how long ago it was. So TAKEN and GONE do not say whose
        object is there, and GONE not whether there is one: look. After TAKEN the upload may still
        be there: abort it. Two completions of two uploads of one key that meet may both be told
        that they created it, as with `create`.

        A refusal for now is DestinationUnavailable like every doubt. These codes may stay however
        often the completion is repeated, and ask for a new upload: ConditionalRequestConflict (S3
        wants the parts again), InvalidPart and BadDigest (the store has other parts than these).
        Cancellation leaves the request in doubt: look, as after GONE.
        """
        ...

    async def abort_upload(self, key: str, upload_id: str) -> bool:
        """Throw the upload and its parts away. The key's object, if there is one, stays.

        False: there was no such upload, or the store does not let us; the right is optional. True
        does not prove that there was one: a store may say it to an upload that is gone.
        Cancellation leaves the request in doubt: the upload may be gone.
        """
        ...

    def list_uploads(self, prefix: str) -> AsyncIterator[ListedUpload]:
        """The uploads whose keys begin with `prefix`.

        Nothing is listed where we may not, or where the store cannot list uploads; a store that
        lists only the first page is asked no further. What is aborted meanwhile may be listed.
        """
        ...
