"""The publisher: makes planned objects visible, each exactly once.

Strategy: objects go through their table's lane, one after the other. Every put is create-only and
repeated with the same bytes until it is answered. A key that is taken is success only if the object
there equals a statement of its plan.

Invariant: nothing is put before its plan is in the journal and its version's schema.json exists.
Nothing is deleted.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from engine.journal.entry import Planned, Statement
from engine.journal.journal import Journal
from engine.journal.lanes import Lanes
from engine.journal.retry import Patience
from engine.journal.schema_files import SchemaFiles
from engine.model.errors import JournalError, Superseded
from engine.model.interfaces import Clock, ObjectStore
from engine.model.lane import Lane
from engine.model.layout import TableLayout

_RECORDS = "application/x-ndjson"


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


class Publisher:
    """Puts objects, each in its lane."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        journal: Journal,
        clock: Clock,
        observer: PublisherObserver,
        lanes: Lanes,
        schema_files: SchemaFiles,
        patience: Patience,
    ) -> None:
        self.in_flight = 0
        self._store = store
        self._journal = journal
        self._clock = clock
        self._observer = observer
        self._lanes = lanes
        self._schema_files = schema_files
        self._patience = patience

    def publish(self, put: PlannedPut, on_visible: OnVisible = _nobody) -> None:
        """Make an object visible whose plan is in the journal. Never waits.

        `on_visible` is called, in each table's order, when the object is there.
        """
        self._lanes.submit(
            Lane(put.planned.table_name), put.seq, lambda: self._put(put), lambda: on_visible(put)
        )

    async def _put(self, put: PlannedPut) -> None:
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
        await self._schema_files.ensure(planned.table_name, planned.version, put.layout)
        metadata = object_metadata(planned, self._journal.writer.id, len(put.body))

        async def attempt() -> bool:
            # Whoever slept over it must not put what was put, loaded and expired meanwhile.
            await self._journal.refuse_unseen()
            return await self._store.create(
                planned.key, put.body, content_type=_RECORDS, metadata=metadata
            )

        is_created = await self._patience.answered(attempt)
        if not is_created and not await self.is_there(planned.key):
            raise JournalError(f"{planned.key} is taken and cannot be looked up")

    async def is_there(self, key: str) -> bool:
        """Whether the planned object `key` is visible, as one of its plan's statements says.

        Raises Superseded when a successor may have restated it, JournalError when a stranger wrote
        it. Cancellation changes nothing.
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
