"""One reading of one table, from the question to the lines.

Strategy: the journal is loaded, what it says of the table is taken as of the place up to which is
read, and the objects are found and proved. Then everything that would make the answer wrong is
known, before a single line is handed over. Changes are read in the order of positions, the current
state against it.

Invariant: what is read sorts before one place of the log, which is durable. So all tables that are
read up to the same place are one consistent cut.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from msgspec.structs import replace

from engine.journal.entry import JournalState
from engine.journal.reading import JournalReader
from engine.model.errors import ReadRefused
from engine.model.interfaces import ObjectStore
from engine.model.layout import ObjectPlace
from engine.model.position import LOG_BEGIN, NOWHERE, LogPosition, Position
from engine.model.request import RequestRefused
from engine.model.schema import TableVersion, version_at
from engine.reader.asking import tables_meant
from engine.reader.journal import JournalView
from engine.reader.patience import answered
from engine.reader.table.bodies import Bodies
from engine.reader.table.cursor import (
    Cursor,
    decode_cursor,
    encode_cursor,
    require_own,
    source_digest,
)
from engine.reader.table.doubts import Doubt, doubts_of_changes, doubts_of_rows
from engine.reader.table.folder import TableFolder
from engine.reader.table.folding import Folding
from engine.reader.table.known import Known
from engine.reader.table.lines import between, last_of
from engine.reader.table.links import Chain, Link, chain
from engine.reader.table.past import Until, known_until
from engine.reader.table.projection import unrecorded
from engine.reader.table.snapshot import Pieces, pieces_of
from engine.reader.table.steps import LAST, Step, steps, truncated

_HOUR_FORMAT = "%Y-%m-%dT%H"
# An object is filed under the hour of its first commit. One that reaches over a snapshot's point
# began earlier; where this is not enough, the whole folder is listed.
_MARGIN = timedelta(hours=24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of one table.

    `table` is its name, `since` a cursor's text. `is_current`: its rows, not its changes.
    `allows_gaps`: what is missing is told, and no reason to refuse.
    """

    table: str
    is_current: bool = False
    since: str = ""
    until: Until = field(default_factory=Until)
    allows_gaps: bool = False


@dataclass(frozen=True, slots=True)
class Lines:
    """Some lines of one version: records, or rows of the current state.

    They may not be used once the next ones were asked for. With `cursor` a reading goes on behind
    them; it is empty where these lines are not the last ones of their object, and for rows.
    """

    lines: memoryview
    version: int
    cursor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """An answer that is about to be read, once. `cursor` is the one behind all of it.

    `steps` are in the order of positions. `doubts` are what somebody allows. `is_divided`: see
    `Folding`.
    """

    known: Known
    steps: tuple[Step, ...]
    doubts: tuple[Doubt, ...]
    is_current: bool
    cursor: str
    begin: Cursor
    bodies: Bodies
    is_divided: bool = False

    @property
    def newest(self) -> TableVersion | None:
        """The version whose columns the current rows have; None where no row was ever seen."""
        return newest_of(self.known, self.steps)

    @asynccontextmanager
    async def lines(self) -> AsyncIterator[AsyncGenerator[Lines, None]]:
        """The lines: records object by object, or rows in no order with the newest's columns.

        The iterator raises ReadRefused and DestinationUnavailable. Leaving the block, also by
        cancellation, leaves nothing behind.
        """
        try:
            async with asyncio.TaskGroup() as group:
                some = self._rows(group) if self.is_current else self._changes(group)
                async with aclosing(some) as lines:
                    yield lines
        except BaseExceptionGroup as errors:
            # No task of ours raises: it is the block's own error.
            raise errors.exceptions[0] from errors.exceptions[0].__cause__

    async def _changes(self, group: asyncio.TaskGroup) -> AsyncGenerator[Lines, None]:
        cursor = self.begin
        last_of_snapshot = max((n for n, s in enumerate(self.steps) if s.attempt), default=-1)
        number = -1
        async with aclosing(self.bodies.of(self.steps, group)) as bodies:
            async for body in bodies:
                number += 1
                step = body.step
                lines = between(body.lines, step.low, step.high)
                is_all_given = number == last_of_snapshot
                cursor = _behind(cursor, step, lines, is_all_given=is_all_given)
                if lines:
                    is_last = number == len(self.steps) - 1
                    text = self.cursor if is_last else encode_cursor(cursor)
                    yield Lines(lines, step.version, text)

    async def _rows(self, group: asyncio.TaskGroup) -> AsyncGenerator[Lines, None]:
        newest = self.newest
        if newest is None:
            return
        versions = in_order(self.steps, newest, self.known.versions)
        folding = Folding(newest, versions, is_divided=self.is_divided)
        while (fold := folding.next_pass()) is not None:
            async with aclosing(self.bodies.of(reversed(self.steps), group)) as bodies:
                async for body in bodies:
                    step = body.step
                    lines = between(body.lines, step.low, step.high)
                    taken = folding.taken(fold, lines, step)
                    while (rows := await asyncio.to_thread(next, taken, None)) is not None:
                        yield Lines(memoryview(rows), newest.number)
                    if fold.is_over:
                        break
            folding.finish(fold)


def newest_of(known: Known, found: Sequence[Step]) -> TableVersion | None:
    """The version of the newest of these rows; of a table without any, what the journal says.

    A row may take an older version again behind a snapshot (`newest_version`), where no version
    begins. Only the row's object says that there is one.
    """
    if found and not found[-1].attempt:
        return known.newest_behind(found[-1].last)
    return known.newest


def in_order(
    steps: Iterable[Step], newest: TableVersion, versions: Iterable[TableVersion]
) -> tuple[TableVersion, ...]:
    """The versions of these steps' rows in the order in which they hold, `newest` behind them.

    Their numbers do not say that. The first rows of a snapshot's version may be older than those of
    a lower number, and newer than those of a higher one: a replay of the stream gives numbers to
    what was before the snapshot's point, too.
    """
    known = {version.number: version for version in versions}
    numbers = dict.fromkeys(step.version for step in steps)
    return (*(known[number] for number in numbers if number != newest.number), newest)


def _behind(cursor: Cursor, step: Step, lines: memoryview, *, is_all_given: bool) -> Cursor:
    """The cursor behind a step, whose `lines` were read."""
    if step.attempt:
        given = Position(LAST) if is_all_given else step.last or last_of(lines)
        return replace(cursor, attempt=step.attempt, given=given)
    is_to_end = step.high == LAST
    return replace(
        cursor,
        through=step.last + LAST if is_to_end else step.high,
        anchor=step.last if is_to_end else step.previous,
        version=step.version,
        hour=step.hour,
        first=step.first,
    )


async def open_reading(store: ObjectStore, prefix: str, question: Question) -> Reading:
    """Find everything that the answer is made of, and whether it can be given.

    Raises ReadRefused where it would be wrong or incomplete, JournalError, DestinationError.
    Cancellation changes nothing.
    """
    view = JournalView(store, prefix)
    await view.load()
    return await reading_of(store, view, question)


async def reading_of(store: ObjectStore, view: JournalView, question: Question) -> Reading:
    """As `open_reading`, for a journal that somebody has read already, and as far as it was read.

    Cancellation changes nothing.
    """
    prefix, state = view.prefix, view.state
    assert state.source is not None
    table = _meant(question.table, state)
    reader = JournalReader(store, prefix, answered)
    known = await known_until(table, state, question.until, prefix, reader)
    folder = TableFolder(
        store,
        reader,
        answered,
        prefix=prefix,
        database=state.source.database,
        table=known.table,
    )
    finding = _Finding(known, prefix, reader, folder, Bodies(store, answered, folder.kept))
    own = Cursor(table=table, prefix=prefix, source=source_digest(state.source))
    if question.is_current:
        return await finding.rows(own, allows_gaps=question.allows_gaps)
    cursor = own
    if question.since:
        cursor = decode_cursor(question.since)
        require_own(cursor, table=table, prefix=prefix, source=own.source)
        _require_reached(cursor, state.durable_position)
    return await finding.changes(cursor, allows_gaps=question.allows_gaps)


def _meant(word: str, state: JournalState) -> str:
    try:
        [table] = tables_meant([word], state)
    except RequestRefused as error:
        raise ReadRefused(
            "table-unknown", str(error), hint="`tailrace status` lists the tables."
        ) from error
    return table


def _require_reached(cursor: Cursor, durable: LogPosition) -> None:
    if cursor.through > durable:
        raise ReadRefused(
            "cursor-ahead",
            f"the cursor is at {cursor.through}, and the journal says that everything is there up"
            f" to {durable}",
            hint="The prefix may have been emptied and begun anew: begin without --since.",
        )


@dataclass(frozen=True, slots=True)
class _Finding:
    """How the objects of one answer are found."""

    known: Known
    prefix: str
    reader: JournalReader
    folder: TableFolder
    bodies: Bodies

    # --- the current state

    async def rows(self, own: Cursor, *, allows_gaps: bool) -> Reading:
        known = self.known
        pieces = await self._pieces()
        floor = pieces.begin if pieces is not None else LOG_BEGIN
        links = await self._links(self._begin(pieces), pieces, floor)
        found = chain(links, known.end, floor)
        if found.missing and pieces is not None:
            links = await self._links(None, pieces, floor)
            found = chain(links, known.end, floor)
        chosen = tuple(steps(found.links, pieces, low=floor, high=known.until))
        newest = truncated(chosen)
        is_truncated = newest >= 0
        chosen = chosen[max(newest, 0) :]
        begin = chosen[0].first if is_truncated else floor
        attempt = next((step.attempt for step in chosen if step.attempt), 0)
        is_whole = is_truncated or pieces is not None
        doubts = [*doubts_of_rows(known, begin, attempt, is_whole=is_whole)]
        if not is_truncated:
            doubts += _of_chain(found, links)
        version = newest_of(known, chosen)
        if version is not None:
            numbers = [step.version for step in chosen]
            ordered = in_order(chosen, version, known.versions)
            doubts += unrecorded(numbers, version, ordered)
        return Reading(
            known=known,
            steps=chosen,
            doubts=_allowed(doubts, is_allowed=allows_gaps),
            is_current=True,
            cursor="",
            begin=own,
            bodies=self.bodies,
            is_divided=pieces is not None and pieces.end > begin,
        )

    async def _pieces(self) -> Pieces | None:
        """The objects of the newest snapshot that is complete."""
        stated = self.known.snapshot
        if stated is None:
            return None
        return await pieces_of(stated, self.prefix, self.reader, self.folder)

    def _begin(self, pieces: Pieces | None) -> ObjectPlace | None:
        """Where to begin to list, so that mostly nothing is left out that is needed."""
        if pieces is None or not pieces.segments[0].hour:
            return None
        version = version_at(self.known.versions, Position(pieces.begin))
        hour = datetime.strptime(f"{pieces.segments[0].hour}+0000", f"{_HOUR_FORMAT}%z") - _MARGIN
        number = version.number if version is not None else 0
        return ObjectPlace(number, hour.strftime(_HOUR_FORMAT), NOWHERE)

    async def _links(
        self, begin: ObjectPlace | None, pieces: Pieces | None, low: str
    ) -> list[Link]:
        if not self.known.end:
            return []
        keys = pieces.keys if pieces is not None else frozenset[str]()
        # One more object shows that nothing is missing before it.
        end = self.known.end + LAST
        return await self.folder.links(begin, known=keys, before=end, low=low)

    # --- changes

    async def changes(self, cursor: Cursor, *, allows_gaps: bool) -> Reading:
        known = self.known
        pieces = await self._pieces_since(cursor)
        begin = ObjectPlace(cursor.version, cursor.hour, cursor.first) if cursor.first else None
        links = await self._links(begin, pieces, cursor.through)
        found = chain(links, known.end, cursor.anchor)
        given = cursor.given if pieces is not None and pieces.attempt == cursor.attempt else ""
        attempt = pieces.attempt if pieces is not None else 0
        doubts = [*doubts_of_changes(known, cursor.through, attempt)]
        # A snapshot supersedes what came before its point, so nobody needs what is gone of that.
        is_based = pieces is not None and found.missing < pieces.begin
        if found.missing and not is_based:
            doubts += _of_chain(found, links)
        elif self._is_astray(cursor, found):
            raise ReadRefused(
                "cursor-foreign",
                f"the cursor ends at {cursor.anchor}, where no object of {known.table} ends",
                hint="The prefix may have been emptied and begun anew: begin without --since.",
            )
        end = replace(
            cursor,
            through=max(cursor.through, known.until),
            attempt=attempt or cursor.attempt,
            given=Position(LAST) if pieces is not None else cursor.given,
        )
        chosen = tuple(
            steps(found.links, pieces, low=cursor.through, high=known.until, given=given)
        )
        return Reading(
            known=known,
            steps=chosen,
            doubts=_allowed(doubts, is_allowed=allows_gaps),
            is_current=False,
            cursor=encode_cursor(_at_end(end, found.links, known.until)),
            begin=cursor,
            bodies=self.bodies,
        )

    def _is_astray(self, cursor: Cursor, found: Chain) -> bool:
        """Whether the cursor's last object is none of this stream."""
        if found.links:
            return not found.missing and found.begin != cursor.anchor
        return self.known.end < cursor.anchor and self.known.until > cursor.through

    async def _pieces_since(self, cursor: Cursor) -> Pieces | None:
        """The newest complete snapshot, unless all of it was given."""
        stated = self.known.snapshot
        if stated is None or stated.snapshot.attempt < cursor.attempt:
            return None
        is_given = stated.snapshot.attempt == cursor.attempt and cursor.given == LAST
        return None if is_given else await self._pieces()


def _at_end(cursor: Cursor, links: Sequence[Link], until: str) -> Cursor:
    """The cursor behind everything before `until`."""
    read = [link for link in links if link.first < until]
    if not read:
        return cursor
    newest = read[-1]
    return replace(
        cursor,
        anchor=newest.last if newest.last < until else newest.previous,
        version=newest.version,
        hour=newest.hour,
        first=newest.first,
    )


def _of_chain(found: Chain, links: Sequence[Link]) -> list[Doubt]:
    """That objects are missing, as far as they are needed."""
    if not found.missing:
        return []
    if any(link.last < found.missing for link in links):
        text = f"an object that ends at {found.missing} is missing, and older ones are there"
        return [Doubt("object-missing", text, "Restore it from the bucket's versions.")]
    text = f"objects up to {found.missing} are gone, and they are needed: they may have expired"
    return [Doubt("expired", text, "A resync makes older objects superfluous.")]


def _allowed(doubts: Sequence[Doubt], *, is_allowed: bool) -> tuple[Doubt, ...]:
    """The doubts, where they are allowed. Raises ReadRefused where there are some otherwise."""
    if doubts and not is_allowed:
        first = doubts[0]
        more = f" (and {len(doubts) - 1} more)" if len(doubts) > 1 else ""
        allow = "With --allow-gaps it is read all the same."
        raise ReadRefused(first.code, f"{first.text}{more}", hint=f"{first.hint} {allow}".strip())
    return tuple(doubts)
