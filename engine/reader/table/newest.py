"""A table's newest changes, and then each one as it becomes durable.

Strategy: whoever wants the last ten changes of a table of a year does not list the year. The
journal knows the hour of the table's newest object. The folder is listed from that hour on, and its
newest objects are asked how many rows they have, until these are enough. Only where they are not,
the whole folder is listed. From there on it is a reading from a cursor, as any other, with its
proofs. Later the journal alone is looked at, until it says that the table has more.

Invariant: a snapshot's rows that were visible at the beginning are no changes, and are left out.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from engine.journal.reading import JournalReader
from engine.model.errors import ReadRefused
from engine.model.interfaces import ObjectStore
from engine.model.layout import ObjectPlace
from engine.model.position import NOWHERE, LogPosition, Position
from engine.model.request import RequestRefused
from engine.model.schema import TableName, version_at
from engine.reader.asking import tables_meant
from engine.reader.journal import JournalView
from engine.reader.patience import answered
from engine.reader.table.cursor import Cursor, encode_cursor, source_digest
from engine.reader.table.folder import Found, TableFolder
from engine.reader.table.known import stream_end
from engine.reader.table.links import Link, link_of
from engine.reader.table.reading import Question, Reading, reading_of
from engine.reader.table.steps import LAST

_ASKED_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Change:
    """One record's line, without its end, and the version that it has."""

    line: bytes
    version: int


class Tail:
    """One table, followed. `reading` is the newest one, which knows the columns."""

    def __init__(self, store: ObjectStore, view: JournalView, word: str) -> None:
        """`view` is loaded. Raises ReadRefused where the journal knows no such table."""
        self._store = store
        self._view = view
        try:
            [self.table] = tables_meant([word], view.state)
        except RequestRefused as error:
            raise ReadRefused(
                "table-unknown", str(error), hint="`tailrace status` lists the tables."
            ) from error
        self.cursor = ""
        self.reading: Reading | None = None
        self._through = LogPosition("")
        self._attempt = 0

    async def newest(self, count: int) -> list[Change]:
        """The newest durable changes, `count` at most, the oldest of them first.

        Raises DestinationError and ReadRefused. Cancellation changes nothing.
        """
        self.cursor = encode_cursor(await self._begin(count))
        return [*deque(await self._read(), maxlen=count)]

    async def more(self) -> list[Change]:
        """What has become durable since, in order; mostly nothing.

        Raises DestinationError and ReadRefused. Cancellation leaves it as before.
        """
        await self._view.follow()
        state = self._view.state
        frontier = state.frontiers.get(self.table)
        is_ahead = frontier is not None and frontier.last >= self._through
        snapshot = state.visible_snapshot(self.table)
        is_new = snapshot is not None and snapshot.snapshot.attempt > self._attempt
        if state.durable_position <= self._through or not (is_ahead or is_new):
            return []
        return await self._read()

    async def _read(self) -> list[Change]:
        # A gap is told, and no reason to end: whoever follows wants what comes.
        question = Question(table=self.table, since=self.cursor, allows_gaps=True)
        reading = await reading_of(self._store, self._view, question)
        found: list[Change] = []
        async with reading.lines() as answer:
            async for some in answer:
                lines = bytes(some.lines).splitlines()
                found += [Change(line, some.version) for line in lines]
        self.reading, self.cursor = reading, reading.cursor
        self._through = reading.known.until
        snapshot = self._view.state.visible_snapshot(self.table)
        self._attempt = max(self._attempt, snapshot.snapshot.attempt if snapshot else 0)
        return found

    async def _begin(self, count: int) -> Cursor:
        """A cursor before the newest rows: before so many, or a few more."""
        state = self._view.state
        assert state.source is not None
        stated = state.visible_snapshot(self.table)
        own = Cursor(
            table=self.table,
            prefix=self._view.prefix,
            source=source_digest(state.source),
            attempt=stated.snapshot.attempt if stated is not None else 0,
            given=Position(LAST) if stated is not None else NOWHERE,
        )
        link = await self._oldest(count)
        if link is None:
            return own
        return Cursor(
            table=own.table,
            prefix=own.prefix,
            source=own.source,
            attempt=own.attempt,
            given=own.given,
            through=link.first,
            anchor=link.previous,
            version=link.version,
            hour=link.hour,
            first=link.first,
        )

    async def _oldest(self, count: int) -> Link | None:
        """The object in which the last `count` rows begin; None where there is none."""
        state = self._view.state
        assert state.source is not None
        folder = TableFolder(
            self._store,
            JournalReader(self._store, self._view.prefix, answered),
            answered,
            prefix=self._view.prefix,
            database=state.source.database,
            table=TableName.parse(self.table),
        )
        link, rows = await self._walked(folder, self._newest_hour(), count)
        if rows < count:
            link, _ = await self._walked(folder, None, count)
        return link

    def _newest_hour(self) -> ObjectPlace | None:
        state = self._view.state
        frontier = state.frontiers.get(self.table)
        version = version_at(state.versions.get(self.table, ()), stream_end(self.table, state))
        if frontier is None or version is None:
            return None
        return ObjectPlace(version.number, frontier.hour, NOWHERE)

    async def _walked(
        self, folder: TableFolder, begin: ObjectPlace | None, count: int
    ) -> tuple[Link | None, int]:
        """Back from the newest object that holds something durable, until its rows are enough."""
        durable = self._view.state.durable_position
        places = [one for one in await folder.found(begin) if one.place.first < durable]
        places.reverse()
        oldest, rows = None, 0
        for start in range(0, len(places), _ASKED_AT_ONCE):
            # Objects of snapshots lie between them, and only their metadata says so.
            for link in await self._links(places[start : start + _ASKED_AT_ONCE]):
                oldest = link
                # Of the newest one a part may not be durable: it does not count.
                rows += link.rows if link.last < durable else 0
                if rows >= count:
                    return oldest, rows
        return oldest, rows

    async def _links(self, places: Sequence[Found]) -> list[Link]:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._link(one)) for one in places]
        return [link for task in asked if (link := task.result()) is not None]

    async def _link(self, one: Found) -> Link | None:
        head = await answered(partial(self._store.head, one.key))
        return link_of(one.key, one.place, head) if head is not None else None
