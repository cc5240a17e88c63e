"""The publisher: makes planned objects visible, each exactly once.

Strategy: a table's objects are put one after the other, tables concurrently, at most
`concurrency` at a time; every put is create-only and repeated with the same bytes until it is
answered. A key that is taken is success only if the object there equals a statement of its plan.

Invariant: nothing is put before its plan is in the journal and its version's schema.json exists.
Nothing is deleted.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from engine.journal.entry import Planned, Statement
from engine.journal.journal import Journal
from engine.journal.retry import Failure, Patience
from engine.model.errors import JournalError, Superseded
from engine.model.interfaces import Clock, ObjectStore
from engine.model.layout import TableLayout
from engine.model.schema import TableName
from engine.model.schema_document import schema_document

SCHEMAS_KNOWN_MAX = 16_384
"""So many versions are known to have their schema.json; then it is asked for each anew."""

_RECORDS = "application/x-ndjson"
_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class PlannedPut:
    """An object to publish: its plan, the entry that first stated it, and its bytes."""

    planned: Planned
    seq: int
    body: bytes
    newest_commit_us: int
    layout: TableLayout


class PublisherObserver(Protocol):
    """Who is told what happens to objects (the metrics)."""

    def publishes_in_flight(self, n: int) -> None:
        """Objects being put now."""
        ...

    def published(
        self, table: str, seconds: float, size_bytes: int, newest_commit_us: int, now_us: int
    ) -> None:
        """An object became visible."""
        ...

    def publish_error(self, code: str, *, retryable: bool) -> None:
        """A request failed."""
        ...


OnVisible = Callable[[PlannedPut], None]
"""Who is told that an object is there."""


def _nobody(_: PlannedPut) -> None:
    pass


@dataclass(frozen=True, slots=True)
class _Waiting:
    put: PlannedPut
    on_visible: OnVisible


class Publisher:
    """Puts objects. Its tasks live in the TaskGroup that is given to it."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        journal: Journal,
        clock: Clock,
        concurrency: int,
        observer: PublisherObserver,
        group: asyncio.TaskGroup,
    ) -> None:
        self.in_flight = 0
        self._store = store
        self._journal = journal
        self._clock = clock
        self._observer = observer
        self._group = group
        self._places = asyncio.Semaphore(concurrency)
        self._queues: dict[str, deque[_Waiting]] = {}
        self._schemas: set[tuple[str, int, str]] = set()
        self._progress = asyncio.Event()
        self._patience = Patience(self._failed)

    @property
    def oldest_pending_seq(self) -> int | None:
        """The oldest entry of which a planned object is not known to be visible."""
        return min((queue[0].put.seq for queue in self._queues.values()), default=None)

    @property
    def pending_count(self) -> int:
        """Objects that are not known to be visible."""
        return sum(map(len, self._queues.values()))

    @property
    def failure(self) -> Failure | None:
        """Why an object's request has no answer yet; None where none is being repeated."""
        return self._patience.failure

    @property
    def is_idle(self) -> bool:
        """Whether every object that was given is visible."""
        return not self._queues

    def publish(self, put: PlannedPut, on_visible: OnVisible = _nobody) -> None:
        """Queue an object whose plan is in the journal. Never waits.

        `on_visible` is called, in each table's order, when the object is there.
        """
        table, waiting = put.planned.table, _Waiting(put, on_visible)
        queue = self._queues.get(table)
        if queue is None:
            self._queues[table] = deque([waiting])
            self._group.create_task(self._publish_table(table))
        else:
            queue.append(waiting)

    async def idle(self) -> None:
        """Wait until every object that was given is visible."""
        while not self.is_idle:
            self._progress.clear()
            await self._progress.wait()

    async def _publish_table(self, table: str) -> None:
        queue = self._queues[table]
        while queue:
            async with self._places:
                await self._publish_first(queue[0].put)
            visible = queue.popleft()
            if not queue:
                del self._queues[table]
            visible.on_visible(visible.put)
            self._progress.set()

    async def _publish_first(self, put: PlannedPut) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._count_in_flight(1)
        try:
            await self._make_visible(put)
        finally:
            self._count_in_flight(-1)
        now_us = self._clock()
        self._observer.published(
            put.planned.table,
            loop.time() - began,
            len(put.body),
            self._journal.state.within_reason(put.newest_commit_us, now_us),
            now_us,
        )

    def _count_in_flight(self, change: int) -> None:
        self.in_flight += change
        self._observer.publishes_in_flight(self.in_flight)

    async def _make_visible(self, put: PlannedPut) -> None:
        planned = put.planned
        await self._ensure_schema(planned, put.layout)
        metadata = object_metadata(planned, self._journal.writer.id, len(put.body))
        is_created = await self._patience.answered(
            lambda: self._store.create(
                planned.key, put.body, content_type=_RECORDS, metadata=metadata
            )
        )
        if not is_created and not await self.is_there(planned.key):
            raise JournalError(f"{planned.key} is taken and cannot be looked up")

    async def is_there(self, key: str) -> bool:
        """Whether the planned object `key` is visible, as one of its plan's statements says.

        Raises Superseded when a successor may have restated it, JournalError when a stranger
        wrote it.
        """
        head = await self._patience.answered(lambda: self._store.head(key))
        if head is None:
            return False
        statements = self._journal.state.plans.get(key, ())
        if any(is_stated(head.metadata, statement) for statement in statements):
            return True
        if await self._journal.tail_moved():
            raise Superseded(
                f"{key} was restated by another writer",
            )
        raise JournalError(
            f"{key} holds another object than the journal plans",
            hint="Something else writes under this prefix: give it a prefix of its own.",
        )

    async def _ensure_schema(self, planned: Planned, layout: TableLayout) -> None:
        known = (planned.table, planned.version, layout.style)
        if known in self._schemas:
            return
        table = TableName.parse(planned.table)
        versions = {v.number: v for v in self._journal.state.versions_of(table)}
        version = versions[planned.version]
        content = schema_document(version, versions.get(version.number - 1), layout.database)
        key = layout.schema_key(table, version.number)
        # Taken is fine: it follows from the journal alone, whoever wrote it.
        await self._patience.answered(
            lambda: self._store.create(
                key, content, content_type=_JSON, metadata={}, in_one_request=True
            )
        )
        if len(self._schemas) >= SCHEMAS_KNOWN_MAX:
            # Tables come and go. Whoever is still there pays one request, and nothing changes.
            self._schemas.clear()
        self._schemas.add(known)

    def _failed(self, error: Failure) -> None:
        self._observer.publish_error(error.code, retryable=error.retryable)


SIZE = "size-bytes"
"""The compressed body's length. No plan states it: who redoes an object feeds other pieces."""


def object_metadata(planned: Planned, writer_id: str, size_bytes: int) -> dict[str, str]:
    """What an object says of itself, as `x-amz-meta-` headers.

    Nothing is said by leaving the name out: an empty header does not survive every server.
    """
    stated = {**stated_metadata(planned), "writer": writer_id, SIZE: str(size_bytes)}
    return {name: value for name, value in stated.items() if value}


def is_stated(metadata: object, statement: Statement) -> bool:
    """Whether an object's metadata is what the statement says."""
    stated = stated_metadata(statement.planned)
    return isinstance(metadata, dict) and all(
        metadata.get(name, "") == value for name, value in stated.items()
    )


def stated_metadata(planned: Planned) -> dict[str, str]:
    """What a plan says of its object, by metadata name; empty where it says nothing."""
    return {
        "first-position": planned.first,
        "last-position": planned.last,
        "previous-position": planned.previous,
        "rows": str(planned.rows),
        "ops": ",".join(f"{op}={count}" for op, count in sorted(planned.ops.items())),
        "version": str(planned.version),
        "codec": str(planned.codec),
        "raw-bytes": str(planned.raw_bytes),
        "raw-crc32": planned.raw_crc32,
    }
