"""A table's folder: the objects of its stream that lie there, each with what it says of itself.

Strategy: keys sort by version, hour and position, as the stream's objects do. So whoever knows
where to begin lists from there. A layout may have been changed: both are looked at. Then each
object is asked for its metadata, many at a time.

Invariant: `at_once` requests at most are under way. Whatever somebody else put there is left out.
"""

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from functools import partial

from engine.journal.reading import READS_AT_ONCE, Answered, JournalReader, read_in_order
from engine.model.errors import ObjectArchived
from engine.model.interfaces import ObjectHead, ObjectStore
from engine.model.layout import ObjectPlace, TableLayout, object_place
from engine.model.position import attempt_of
from engine.model.record import Layout
from engine.model.schema import TableName
from engine.reader.table.kept import Kept
from engine.reader.table.links import Link, link_of

STYLES: tuple[Layout, ...] = ("hive", "plain")
# Versions have at least four digits. From five on, names do not sort as numbers do.
_VERSIONS_SORTED = 10_000


@dataclass(frozen=True, slots=True)
class Found:
    """An object in the folder, by what a listing says of it."""

    key: str
    place: ObjectPlace
    size_bytes: int


class TableFolder:
    """Where one table's objects lie. `kept` has bodies that came with what objects say."""

    def __init__(
        self,
        store: ObjectStore,
        reader: JournalReader,
        answered: Answered,
        *,
        prefix: str,
        database: str,
        table: TableName,
    ) -> None:
        self._store = store
        self._reader = reader
        self._answered = answered
        self._table = table
        self.kept = Kept()
        self._layouts = [TableLayout(prefix, database, style) for style in STYLES]

    async def found(self, begin: ObjectPlace | None) -> list[Found]:
        """The objects from `begin` on (None: all of them), in the order of positions.

        Cancellation changes nothing.
        """
        found = []
        for layout in self._layouts:
            folder = layout.table_folder(self._table)
            async for listed in self._reader.listed(folder, self._after(layout, begin)):
                place = object_place(folder, listed.key)
                if place is not None and (begin is None or place >= begin):
                    found.append(Found(listed.key, place, listed.size))
        return sorted(found, key=lambda one: (one.place.first, one.key))

    def _after(self, layout: TableLayout, begin: ObjectPlace | None) -> str:
        if begin is None or begin.version >= _VERSIONS_SORTED:
            return ""
        return layout.hour_folder(self._table, begin.version, begin.hour) + begin.first

    async def links(
        self,
        begin: ObjectPlace | None,
        *,
        known: Collection[str] = (),
        before: str = "~",
        low: str = "",
    ) -> list[Link]:
        """The objects of streams from `begin` on, but for those whose keys are `known`.

        The first of them that does not sort before `before` is the last one. Those from `low` on
        are wanted: small ones are `kept`. Cancellation keeps some.
        """
        links: list[Link] = []

        async def wanted() -> AsyncIterator[Found]:
            for one in await self.found(begin):
                if one.key not in known:
                    yield one

        async def take(one: Found, head: ObjectHead | None) -> bool:
            link = link_of(one.key, one.place, head) if head is not None else None
            if link is not None:
                links.append(link)
            return link is None or link.first < before

        async def look(one: Found) -> ObjectHead | None:
            return await self._look(one, is_wanted=low <= one.place.first < before)

        await read_in_order(wanted(), look, take, READS_AT_ONCE)
        return links

    async def _look(self, one: Found, *, is_wanted: bool) -> ObjectHead | None:
        if not is_wanted or not self.kept.has_room(one.size_bytes):
            return await self._head(one)
        try:
            found = await self._answered(partial(self._store.whole, one.key))
        except ObjectArchived:
            # Whether it is needed is not known yet.
            return await self._head(one)
        if found is not None and found.last is not None:
            self.kept.keep(one.key, found.last)
        return found

    async def _head(self, one: Found) -> ObjectHead | None:
        return await self._answered(partial(self._store.head, one.key))

    async def staged(self, attempt: int) -> list[tuple[Found, ObjectHead]]:
        """The objects of an attempt to take the table's snapshot, in the order of positions.

        For where no entry of the journal names them any more. Cancellation changes nothing.
        """
        objects: list[tuple[Found, ObjectHead]] = []

        async def wanted() -> AsyncIterator[Found]:
            for one in await self.found(None):
                if attempt_of(one.place.first) == attempt:
                    yield one

        async def take(one: Found, head: ObjectHead | None) -> bool:
            if head is not None and head.metadata.get("attempt") == str(attempt):
                objects.append((one, head))
            return True

        await read_in_order(wanted(), self._head, take, READS_AT_ONCE)
        return objects
