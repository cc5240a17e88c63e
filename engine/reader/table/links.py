"""The objects of a table's stream, and the chain that proves them. Pure.

Strategy: each object of a stream says in its metadata where it begins and ends, and where the
object before it ended. So the objects are found by going back from the position where the stream
ends, as the journal says. What lies in the folder and is not on that way is not read: the journal
names it elsewhere, or does not name it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from engine.model.interfaces import ObjectHead
from engine.model.layout import ObjectPlace
from engine.model.position import NOWHERE, Position, require_position


@dataclass(frozen=True, slots=True)
class Link:
    """One object of a stream, as it describes itself. `rows` is 0 where it is void."""

    key: str
    size_bytes: int
    version: int
    hour: str
    first: Position
    last: Position
    previous: Position
    rows: int
    has_truncate: bool
    raw_bytes: int
    raw_crc32: str


def link_of(key: str, place: ObjectPlace, head: ObjectHead) -> Link | None:
    """What the object says of itself; None where it is none of a stream.

    A snapshot's objects lie in the same folder, and are no part of the chain.
    """
    said = head.metadata
    try:
        for name in ("first-position", "last-position"):
            require_position(said[name])
        link = Link(
            key=key,
            size_bytes=head.size,
            version=int(said["version"]),
            hour=place.hour,
            first=Position(said["first-position"]),
            last=Position(said["last-position"]),
            previous=Position(said.get("previous-position", NOWHERE)),
            rows=int(said["rows"]),
            has_truncate="t=" in said.get("ops", ""),
            raw_bytes=int(said["raw-bytes"]),
            raw_crc32=said.get("raw-crc32", ""),
        )
    except (KeyError, ValueError):
        return None
    is_here = (link.version, link.first) == (place.version, place.first)
    return link if is_here and link.previous < link.first <= link.last else None


@dataclass(frozen=True, slots=True)
class Chain:
    """Objects that follow each other, the oldest first, and where they end.

    `missing` is where an object should end that is not there; empty where none is missing.
    """

    links: tuple[Link, ...]
    missing: Position = NOWHERE

    @property
    def begin(self) -> Position:
        """Where the object before the first one ended."""
        return self.links[0].previous if self.links else self.missing


def chain(links: Iterable[Link], end: Position, floor: str) -> Chain:
    """The objects from the one that ends at `end` back to `floor`.

    `floor` is a position, or the beginning of some: what ends before it, or at it, is not needed.
    """
    by_end = {link.last: link for link in links}
    found: list[Link] = []
    needed = end
    while needed > floor:
        link = by_end.get(needed)
        if link is None:
            return Chain(tuple(reversed(found)), needed)
        found.append(link)
        needed = link.previous
    return Chain(tuple(reversed(found)))
