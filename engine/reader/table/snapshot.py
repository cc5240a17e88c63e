"""The objects of a table's newest complete snapshot, segment by segment, as the journal names them.

Strategy: the state has the numbers of the entries that named them. Where such an entry is gone, as
a lifecycle rule leaves it, the objects are found by their attempt's number. Every object of it that
is visible was named: parts of uploads become visible only after the entry that names them, and an
attempt whose objects are not all there has no end.

Invariant: attempts that are void, given up or cancelled are never looked for.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from engine.journal.entry import StatedSnapshot, decode_entry
from engine.journal.object_lists import listed_objects
from engine.journal.reading import JournalReader
from engine.model.errors import JournalError, ObjectArchived, ReadRefused
from engine.model.interfaces import ObjectHead
from engine.model.layout import journal_key
from engine.model.position import LogPosition, Position, behind, commit_of
from engine.reader.table.folder import Found, TableFolder


@dataclass(frozen=True, slots=True)
class Piece:
    """One object of a snapshot. What nobody knows any more is empty, or 0."""

    key: str
    size_bytes: int
    first: Position
    last: Position
    rows: int
    raw_bytes: int
    raw_crc32: str


@dataclass(frozen=True, slots=True)
class Segment:
    """What was read as it was before `point`, in the order of positions. `hour`: where it lies."""

    point: LogPosition
    version: int
    hour: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Pieces:
    """All segments of an attempt. `is_named`: entries of the journal name each object."""

    attempt: int
    segments: tuple[Segment, ...]
    is_named: bool

    @property
    def begin(self) -> LogPosition:
        """What commits before this is in its rows."""
        return self.segments[0].point

    @property
    def end(self) -> LogPosition:
        """The last segment's point: from there on, what commits is in none of its rows."""
        return self.segments[-1].point

    @property
    def keys(self) -> frozenset[str]:
        """The keys of all objects."""
        return frozenset(piece.key for segment in self.segments for piece in segment.pieces)


async def pieces_of(
    stated: StatedSnapshot, prefix: str, reader: JournalReader, folder: TableFolder
) -> Pieces:
    """The objects of a complete snapshot. Raises ReadRefused where some are surely not there.

    Cancellation changes nothing.
    """
    table, attempt = stated.snapshot.table, stated.snapshot.attempt
    segments = [
        await _named(table, attempt, seq, prefix, reader) for seq in (*stated.earlier, stated.seq)
    ]
    named = [segment for segment in segments if segment is not None]
    if len(named) == len(segments):
        return Pieces(attempt, tuple(named), is_named=True)
    found = _found(stated, await folder.staged(attempt))
    return Pieces(attempt, found, is_named=False)


async def _named(
    table: str, attempt: int, seq: int, prefix: str, reader: JournalReader
) -> Segment | None:
    """The segment that entry `seq` names; None where the entry or its list is gone."""
    key = journal_key(prefix, seq)
    content = await _content(reader, key)
    if content is None:
        return None
    stated = next(
        (
            snapshot
            for snapshot in decode_entry(content, key).snapshots
            if (snapshot.table, snapshot.attempt, snapshot.state) == (table, attempt, "whole")
        ),
        None,
    )
    if stated is None:
        raise JournalError(f"{key} does not name attempt {attempt} of {table}")
    objects = stated.objects
    if stated.listed is not None:
        content = await _content(reader, stated.listed.key)
        if content is None:
            return None
        objects = await asyncio.to_thread(listed_objects, stated, content)
    pieces = (
        Piece(
            key=staged.key,
            size_bytes=staged.size_bytes,
            first=staged.first,
            last=staged.last,
            rows=staged.rows,
            raw_bytes=staged.raw_bytes,
            raw_crc32=staged.raw_crc32,
        )
        for staged in objects
    )
    ordered = tuple(sorted(pieces, key=lambda piece: piece.first))
    return Segment(stated.point, stated.version, stated.hour, ordered)


async def _content(reader: JournalReader, key: str) -> bytes | None:
    try:
        return await reader.get(key)
    except ObjectArchived:
        return None


def _found(
    stated: StatedSnapshot, objects: Sequence[tuple[Found, ObjectHead]]
) -> tuple[Segment, ...]:
    """The segments that these objects are of. All rows of a segment have one commit's place."""
    snapshot = stated.snapshot
    places: dict[LogPosition, list[Piece]] = {}
    versions: Counter[tuple[LogPosition, int]] = Counter()
    for found, head in objects:
        at = commit_of(found.place.first)
        piece = Piece(found.key, head.size, found.place.first, Position(""), 0, 0, "")
        places.setdefault(at, []).append(piece)
        versions[at, found.place.version] += 1
    segments = [
        Segment(behind(at), version, "", tuple(places[at])) for at, version in sorted(versions)
    ]
    points = {segment.point for segment in segments}
    # Ranges are uploaded side by side: no order of theirs says which objects there were.
    is_short = len(objects) < stated.object_count
    is_known = {snapshot.sees, snapshot.point} <= points and len(points) == len(segments)
    if is_short or not is_known:
        raise ReadRefused(
            "snapshot-expired",
            f"objects of attempt {snapshot.attempt} of {snapshot.table}'s snapshot are gone",
            hint="A resync of the table makes new ones: tailrace resync.",
        )
    return tuple(segments)
