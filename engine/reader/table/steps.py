"""Which rows are read, object by object, in the order of positions. Pure.

Strategy: rows of a snapshot stand behind every change of the commits that it sees, and before all
others. So an object of the stream that reaches over a snapshot's point is read in two steps, with
bounds, and the snapshot's rows are between them.

Invariant: the steps' rows are in order, and no row is in two steps. Who goes through them backwards
meets every row before those that are older.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from engine.model.position import NOWHERE, Position
from engine.reader.table.links import Link
from engine.reader.table.snapshot import Pieces, Segment

LAST = "~"
"""Sorts behind every position."""


@dataclass(frozen=True, slots=True)
class Step:
    """Rows of one object: those at `low` or behind it, and before `high`.

    `rows`, `raw_bytes` and `raw_crc32` are those of the whole object; `last` is empty, and those
    are 0 or empty too, where nobody knows them any more. `attempt` is 0 for the stream.
    `previous` and `hour` are those of an object of the stream, which may have a truncate record.
    """

    key: str
    size_bytes: int
    version: int
    first: Position
    last: Position
    rows: int
    raw_bytes: int
    raw_crc32: str
    low: str = ""
    high: str = LAST
    attempt: int = 0
    previous: Position = NOWHERE
    hour: str = ""
    has_truncate: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether every row of the object is meant."""
        return not self.low and self.high == LAST


def steps(
    links: Sequence[Link], pieces: Pieces | None, *, low: str, high: str, given: Position | str = ""
) -> Iterator[Step]:
    """The rows of the stream at `low` or behind it and before `high`, and those of a snapshot.

    Of the snapshot, those up to `given` are left out.
    """
    segments = pieces.segments if pieces is not None else ()
    attempt = pieces.attempt if pieces is not None else 0
    begin = low
    for segment in segments:
        end = min(max(segment.point, begin), high)
        yield from _of_stream(links, begin, end)
        yield from _of_snapshot(segment, attempt, given)
        begin = end
    yield from _of_stream(links, begin, high)


def _of_stream(links: Iterable[Link], low: str, high: str) -> Iterator[Step]:
    for link in links:
        if link.rows and low < high and link.first < high and link.last >= low:
            yield Step(
                key=link.key,
                size_bytes=link.size_bytes,
                version=link.version,
                first=link.first,
                last=link.last,
                rows=link.rows,
                raw_bytes=link.raw_bytes,
                raw_crc32=link.raw_crc32,
                low=low if low > link.first else "",
                high=high if high <= link.last else LAST,
                previous=link.previous,
                hour=link.hour,
                has_truncate=link.has_truncate,
            )


def _of_snapshot(segment: Segment, attempt: int, given: str) -> Iterator[Step]:
    for piece in segment.pieces:
        if (piece.last or piece.first) > given:
            yield Step(
                key=piece.key,
                size_bytes=piece.size_bytes,
                version=segment.version,
                first=piece.first,
                last=piece.last,
                rows=piece.rows,
                raw_bytes=piece.raw_bytes,
                raw_crc32=piece.raw_crc32,
                attempt=attempt,
            )


def truncated(found: Sequence[Step]) -> int:
    """The number of the newest step that surely has a truncate record of the stream; else -1.

    What is older than that record is without effect, whatever it is.
    """
    return next(
        (n for n in range(len(found) - 1, -1, -1) if found[n].has_truncate and found[n].is_whole),
        -1,
    )
