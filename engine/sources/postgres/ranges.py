"""Ranges: the leaves of a table cut into intervals of pages, each row in exactly one.

Strategy: a leaf's rows lie in pages, and `ctid` says where a row lies. An interval of whole pages
is read by itself (a TID range scan, since PostgreSQL 14). A page has room for a known number of
rows at most, so the pages bound the rows. Everything that a snapshot sees lies in the pages that
were there once the table was locked, so the last interval has no end.

A range of a segment of a large table is told by a condition of its key instead: see `segments`.

Invariant: the ranges of a table cover it wholly and do not overlap.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from engine.model.errors import DecodeError
from engine.sources.postgres.held_session import HeldSession, relation_text
from engine.sources.postgres.images import Image, Relation
from engine.sources.postgres.session import quoted

RANGE_BYTES: Final = 256 * 1024 * 1024
"""What a range has of a leaf's pages, where nobody says otherwise."""

_ROWS_MAX: Final = 2**24 - 2

# A page's header has 24 bytes; a row has a header of 24 and a pointer of 4 at least
# (MaxHeapTuplesPerPage).
_PAGE_HEADER: Final = 24
_ROW_MIN: Final = 28

# The size of the TOAST table is an old estimate: asking for it would open that table.
_SIZES: Final = """
SELECT c.oid::pg_catalog.int8, pg_catalog.pg_relation_size(c.oid, 'main')::pg_catalog.int8,
       c.reltuples::pg_catalog.float8, c.relpages::pg_catalog.int8,
       coalesce(t.relpages, 0)::pg_catalog.int8,
       pg_catalog.current_setting('block_size')::pg_catalog.int8
FROM pg_catalog.pg_class c
LEFT JOIN pg_catalog.pg_class t ON t.oid OPERATOR(pg_catalog.=) c.reltoastrelid
WHERE c.oid OPERATOR(pg_catalog.=) ANY(%s::pg_catalog.oid[])
"""


class OwnRange(msgspec.Struct, frozen=True, omit_defaults=True):
    """One range in PostgreSQL's words: what a worker reads, and what has to be so before it does.

    `snapshots` are names of the same snapshot. `oid` and `file` are the leaf's; the root of a table
    without a partition stands for a leaf, and has no file. Pages are from
    `first_page` on and before `end_page`; None: from the first, to the last. `row_filter` is an SQL
    condition of the leaf's columns, None where all rows are published. `key_condition` is one of
    the columns of the table's key; None: the range is not told by the key.
    """

    snapshots: tuple[str, ...]
    schema: str
    name: str
    oid: int
    file: int | None
    first_page: int | None = None
    end_page: int | None = None
    row_filter: str | None = None
    key_condition: str | None = None

    def copy_statement(self, columns: Iterable[str]) -> str:
        """The COPY that sends these columns of the range's rows."""
        wanted = ", ".join(quoted(column) for column in columns)
        conditions = []
        if self.first_page is not None:
            conditions.append(f"ctid OPERATOR(pg_catalog.>=) {_tid(self.first_page)}")
        if self.end_page is not None:
            conditions.append(f"ctid OPERATOR(pg_catalog.<) {_tid(self.end_page)}")
        if self.key_condition:
            conditions.append(self.key_condition)
        if self.row_filter is not None:
            conditions.append(f"({self.row_filter})")
        query = ["SELECT", wanted, "FROM ONLY", relation_text(self.schema, self.name)]
        if conditions:
            query += ["WHERE", " AND ".join(conditions)]
        return f"COPY ({' '.join(query)}) TO STDOUT"


def _tid(page: int) -> str:
    return f"'({page},0)'::pg_catalog.tid"


def decode_own(content: bytes) -> OwnRange:
    """The range in these bytes. Raises DecodeError where they are none."""
    try:
        return msgspec.msgpack.decode(content, type=OwnRange)
    except msgspec.DecodeError as error:
        raise DecodeError(f"the task's range is not PostgreSQL's: {error}") from error


@dataclass(frozen=True, slots=True)
class LeafSize:
    """How large a leaf is. Rows and TOAST pages are estimates, the pages are not."""

    pages: int
    rows_estimate: int
    toast_pages_estimate: int
    page_bytes: int

    @property
    def size_bytes(self) -> int:
        """Of the rows with their large values, as estimated."""
        return (self.pages + self.toast_pages_estimate) * self.page_bytes


async def leaf_sizes(session: HeldSession, images: Iterable[Image]) -> dict[int, LeafSize]:
    """The sizes of all leaves, by OID, whose locks `session` holds.

    Raises SourceError. Cancellation leaves the session to be closed.
    """
    oids = [leaf.oid for image in images for leaf in image.leaves]
    found = await session.rows(_SIZES, oids, doing="reading the tables' sizes")
    return {
        oid: _leaf_size(size, rows, pages, toast, page_bytes)
        for oid, size, rows, pages, toast, page_bytes in found
    }


def _leaf_size(size: int, rows: float, known_pages: int, toast: int, page_bytes: int) -> LeafSize:
    pages = -(-size // page_bytes)
    # Where nothing is known of the rows, `reltuples` is -1.
    estimate = round(rows * pages / known_pages) if rows > 0 and known_pages > 0 else 0
    return LeafSize(pages, estimate, toast, page_bytes)


def intervals(size: LeafSize, range_pages: int) -> Iterator[tuple[int | None, int | None]]:
    """First page and the page behind the last one, of each range of a leaf; None: no bound.

    At most `range_pages` each, and fewer where so many could hold 2**24 rows.
    """
    rows_a_page = (size.page_bytes - _PAGE_HEADER) // _ROW_MIN
    step = max(1, min(range_pages, _ROWS_MAX // rows_a_page))
    starts: list[int | None] = [None, *range(step, size.pages, step)]
    return zip(starts, [*starts[1:], None], strict=True)


def ranges_of(
    image: Image,
    sizes: dict[int, LeafSize],
    snapshots: Sequence[str],
    row_filter: str | None,
    range_pages: int | None,
) -> tuple[bytes, ...]:
    """The ranges of a table, leaf by leaf.

    `range_pages` None: as many pages as are 256 MiB.
    """
    found: list[OwnRange] = []
    for leaf in image.leaves:
        size = sizes[leaf.oid]
        pages = range_pages or RANGE_BYTES // size.page_bytes
        for first, end in intervals(size, pages):
            found.append(_own(leaf, snapshots, row_filter, first, end))
    # A root that has no partition yet has no row: one empty range.
    found = found or [_own(image.relations[0], snapshots, row_filter)]
    return tuple(msgspec.msgpack.encode(own) for own in found)


def key_ranges(
    leaf: Relation, snapshots: Sequence[str], row_filter: str | None, conditions: Iterable[str]
) -> tuple[bytes, ...]:
    """The ranges of one leaf that are told by conditions of its key."""
    names, file = tuple(snapshots), leaf.seen_file
    return tuple(
        msgspec.msgpack.encode(
            OwnRange(
                names,
                leaf.schema,
                leaf.name,
                leaf.oid,
                file,
                row_filter=row_filter,
                key_condition=condition,
            )
        )
        for condition in conditions
    )


def _own(
    leaf: Relation,
    snapshots: Sequence[str],
    row_filter: str | None,
    first: int | None = None,
    end: int | None = None,
) -> OwnRange:
    names, file = tuple(snapshots), leaf.seen_file
    return OwnRange(names, leaf.schema, leaf.name, leaf.oid, file, first, end, row_filter)
