"""Segments: the part of a large table that one snapshot reads, cut into ranges by its key.

Strategy: a sample of the table's blocks, read under the snapshot, gives keys of rows that are
spread over the whole table. The sample's rows are numbered in the order of the key, so rows before
a place can be estimated, and places can be chosen so that about as many rows are between them. The
whole table is neither read nor sorted for it. The rest of a table is told by the place where it
begins, and by the key that the place belongs to.

An estimate may be wrong. A range that turns out to have too many rows is refused by whoever reads
it. So a table that is held again from the same place is cut more finely: see `Finer`.

Invariant: the ranges of a segment cover it wholly and do not overlap, whatever the sample was.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import msgspec
from psycopg import sql

from engine.model.schema import TableName
from engine.sources.postgres.held_session import HeldSession, relation_text
from engine.sources.postgres.table_keys import TableKey, Values

SEGMENT_BYTES: Final = 64 * 1024 * 1024 * 1024
"""What a segment has of a table, with its large values, where nobody says otherwise."""

SEGMENTS_MAX: Final = 1000
"""Segments of one table. They are larger where it has more."""

_ROWS_WANTED: Final = 2**22
"""Rows of a range, as estimated: a quarter of what it may have."""

_RANGES_MAX: Final = 2**16

_FINER_MAX: Final = 2**6
"""How often a table is cut more finely than the estimate says, and so often twice as finely."""

_SAMPLED_PAGES_A_RANGE: Final = 30
_SAMPLED_PAGES_MIN: Final = 1000
_SAMPLED_PAGES_MAX: Final = 30_000
"""Pages that are read at random: a disk of 5,000 reads a second takes six seconds for these."""


# Names and constants that are put in are quoted: see `TableKey`.
_COUNTED: Final = sql.SQL(
    "SELECT pg_catalog.count(*), pg_catalog.count(*) FILTER (WHERE {is_rest}) FROM {sample}"
)

_PLACES: Final = sql.SQL(
    """
SELECT {texts}
FROM (SELECT {order}, pg_catalog.row_number() OVER (ORDER BY {order}) FROM {sample} WHERE {is_rest})
     AS numbered({names}, number)
WHERE number OPERATOR(pg_catalog.=) ANY(ARRAY[{numbers}]::pg_catalog.int8[])
ORDER BY number
"""
)


class Rest(msgspec.Struct, frozen=True):
    """The rows of a table from a place on. It is stated in the journal as text."""

    key: TableKey
    begin: Values

    @property
    def text(self) -> str:
        """As the journal has it."""
        return msgspec.json.encode(self).decode()


def rest_of(text: str, key: TableKey | None) -> Rest | None:
    """The rest in this text; None where it is not one of a table with this key."""
    try:
        rest = msgspec.json.decode(text, type=Rest)
    except msgspec.DecodeError:
        return None
    fits = rest.key == key and len(rest.begin) == len(rest.key.columns)
    return rest if fits else None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a segment should be like: so many bytes, in ranges of so many."""

    segment_bytes: int
    range_bytes: int
    finer: int = 1


@dataclass(frozen=True, slots=True)
class Sampled:
    """Rows of a sample of a table: of all of it, and of the rest that is still to be read.

    `share` is the sample's share of the table's pages, `table_bytes` the size of the whole table.
    """

    share: float
    row_count: int
    rest_count: int
    table_bytes: int

    @property
    def rest_bytes(self) -> float:
        """The size of the rest, as estimated."""
        return self.table_bytes * self.rest_count / self.row_count if self.row_count else 0.0


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a rest is cut, by the numbers of the sample's rows in it, counted from 0.

    A range begins at each of `begins`, beside the one at the segment's beginning. The segment ends
    before row `end`; None: it has all of the rest. The estimates are of the segment.
    """

    begins: tuple[int, ...]
    end: int | None
    rows_estimate: int
    bytes_estimate: int


def cut(sampled: Sampled, wanted: Wanted) -> Cut:
    """Cut a rest into a segment and what is left, and the segment into ranges."""
    segment_bytes = max(wanted.segment_bytes, sampled.table_bytes // SEGMENTS_MAX)
    # All segments that are left are about as large: the last one is no crumb.
    segment_count = max(1, -int(-sampled.rest_bytes // segment_bytes))
    row_count = -(-sampled.rest_count // segment_count)
    is_last = row_count == sampled.rest_count
    portion = row_count / sampled.rest_count if sampled.rest_count else 0.0
    bytes_estimate = round(sampled.rest_bytes * portion)
    rows_estimate = round(row_count / sampled.share)
    by_size = -(-bytes_estimate // wanted.range_bytes)
    by_rows = -(-rows_estimate // _ROWS_WANTED)
    range_count = max(1, by_size, by_rows) * wanted.finer
    range_count = max(1, min(range_count, row_count, _RANGES_MAX))
    begins = tuple(row_count * number // range_count for number in range(1, range_count))
    return Cut(begins, None if is_last else row_count, rows_estimate, bytes_estimate)


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a table: an SQL condition for each of its ranges, and what is left behind it."""

    conditions: tuple[str, ...]
    rest: Rest | None
    rows_estimate: int
    bytes_estimate: int


async def segment_of(
    session: HeldSession,
    table: TableName,
    key: TableKey,
    begin: Values | None,
    *,
    pages: int,
    table_bytes: int,
    wanted: Wanted,
) -> Segment:
    """The segment of a table that begins there; None: at its beginning.

    `session` sees the table by its snapshot and holds its lock. Raises SourceError. Cancellation as
    `HeldSession.rows` says.
    """
    wanted_pages = _SAMPLED_PAGES_A_RANGE * table_bytes // wanted.range_bytes * wanted.finer
    wanted_pages = min(max(wanted_pages, _SAMPLED_PAGES_MIN), _SAMPLED_PAGES_MAX)
    share = min(1.0, wanted_pages / max(1, pages))
    sample = _sample(table, share, wanted.finer)
    is_rest = key.condition(begin, None) or "true"
    counted = _COUNTED.format(is_rest=sql.SQL(is_rest), sample=sql.SQL(sample))
    [[row_count, rest_count]] = await session.rows(counted, doing="counting a sample of a table")
    found = cut(Sampled(share, row_count, rest_count, table_bytes), wanted)
    numbers = [*found.begins, *([] if found.end is None else [found.end])]
    places = await _places(session, key, sample, is_rest, numbers)
    bounds = [begin, *places, *([None] if found.end is None else [])]
    conditions = tuple(key.condition(low, high) for low, high in pairwise(bounds))
    rest = None if found.end is None else Rest(key, places[-1])
    return Segment(conditions, rest, found.rows_estimate, found.bytes_estimate)


async def _places(
    session: HeldSession, key: TableKey, sample: str, is_rest: str, numbers: Sequence[int]
) -> list[Values]:
    """The keys of the sample's rows that have these numbers, in the rest and in its order."""
    if not numbers:
        return []
    names = [f"c{place}" for place in range(len(key.columns))]
    query = _PLACES.format(
        texts=sql.SQL(", ".join(f"{name}::pg_catalog.text" for name in names)),
        order=sql.SQL(key.order),
        sample=sql.SQL(sample),
        is_rest=sql.SQL(is_rest),
        names=sql.SQL(", ".join(names)),
        numbers=sql.SQL(", ".join(str(number + 1) for number in numbers)),
    )
    rows = await session.rows(query, doing="choosing places in a table")
    return [tuple(row) for row in rows]


def _sample(table: TableName, share: float, seed: int) -> str:
    # The same blocks each time that one session asks: the seed stands for them.
    return (
        f"ONLY {relation_text(table.schema, table.table)}"
        f' TABLESAMPLE pg_catalog."system" ({100 * share:.6f}) REPEATABLE ({seed})'
    )


@dataclass(slots=True)
class Finer:
    """How finely tables are cut that are held again and again from the same place."""

    _known: dict[TableName, tuple[str, int]] = field(default_factory=dict)

    def held(self, table: TableName, begin: str) -> int:
        """By how much more finely it is cut this time than its size asks for."""
        before, finer = self._known.get(table, ("", 0))
        finer = min(2 * finer, _FINER_MAX) if before == begin and finer else 1
        self._known[table] = (begin, finer)
        return finer

    def forget(self, table: TableName) -> None:
        """The table is held whole."""
        self._known.pop(table, None)
