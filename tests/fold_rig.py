"""A table and its records for tests of the fold: written by the engine's own writer of lines.

Strategy: `Table` is the truth. Each of its methods is a change as PostgreSQL makes it, and the
frame in which pgoutput tells of it; the compiled reader makes the line. So what the lines say of
old keys, left out columns and positions is the engine's own, and what the fold gives is compared
with the table. `folded_plainly` is the fold as one would write it first, in a page.
"""

import json
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.model.position import LogPosition, log_position, snapshot_range
from engine.model.record import Envelope
from engine.reader.fold.fold import Fold, Pass
from engine.reader.fold.shape import JSON_NULL, Shape
from engine.sources.postgres.types import KIND_INTEGER, KIND_JSON, KIND_TEXT
from row_codec import RowCodec

NUMBER = 7
TABLE = "public.orders"

Row = dict[str, str | None]
"""A row as PostgreSQL prints it."""


class Body(NamedTuple):
    """An object's lines and version. `first` and `last` are its positions."""

    lines: bytes
    version: int
    first: str
    last: str


def columns_of(*names: str) -> tuple[tuple[str, int], ...]:
    """Columns with kinds: `id…` are integers, `doc…` JSON, all others text."""
    return tuple(
        (name, KIND_INTEGER if name[:2] == "id" else KIND_JSON if name[:3] == "doc" else KIND_TEXT)
        for name in names
    )


def shape(
    *names: str,
    key: Sequence[str],
    version: int = 1,
    envelope: Envelope = "standard",
    identity: str = "1",
    is_whole_row: bool = False,
    fills: Mapping[str, str | None] | None = None,
) -> Shape:
    """A shape whose columns' forms are their kinds; columns of one name are the same.

    Of those that are in `fills`, rows from before have this JSON; of others, null.
    """
    return Shape(
        table=TABLE,
        version=version,
        identity=identity,
        envelope=envelope,
        columns=names,
        forms=tuple(str(kind) for _, kind in columns_of(*names)),
        lineages=tuple(zlib.crc32(name.encode()) for name in names),
        fills=tuple((fills or {}).get(name, JSON_NULL) for name in names),
        hidden=frozenset(),
        key=tuple(key),
        is_whole_row=is_whole_row,
    )


def value_of(name: str, text: str | None) -> Any:
    """A column's value, as JSON."""
    if text is None:
        return None
    kind = columns_of(name)[0][1]
    return text if kind == KIND_TEXT else json.loads(text)


@dataclass(slots=True)
class Table:
    """A table, and the lines of its changes. `shape` is its newest version's."""

    shape: Shape
    is_full: bool = False
    generation: int = 1
    rows: list[Row] = field(default_factory=list)
    bodies: list[Body] = field(default_factory=list)
    order: int = 0x1000
    _lsn: int = 0x1000
    _codec: RowCodec = field(init=False)

    def __post_init__(self) -> None:
        self._codec = RowCodec(self.generation)
        self._bind()

    @property
    def has_key(self) -> bool:
        return not self.shape.is_whole_row

    # ---------------------------------------------------------------------- versions

    def become(self, shape: Shape) -> None:
        """Have another shape from here on. Rows are as they were."""
        self.cut()
        self.shape = shape
        self._bind()

    def _bind(self) -> None:
        self._codec.bind(
            NUMBER,
            database='sh"op',
            schema="public",
            table='{"op":"orders',
            version=self.shape.version,
            columns=[
                (name, kind, self.is_full or name in self.shape.key, True)
                for name, kind in columns_of(*self.shape.columns)
            ],
            key=self.shape.key,
            envelope=self.shape.envelope,
            numeric="string",
            json="embed",
        )

    # ----------------------------------------------------------------------- changes

    def begin(self) -> None:
        """Start a transaction."""
        self.order += 0x100
        self._lsn = self.order
        self._codec.begin(self.order, 1_000_000, 7)

    def insert(self, row: Row) -> None:
        self.rows.append(row)
        self._add(b"I", b"N" + self._tuple(row))

    def update(self, place: int, changed: Row, *, unchanged: Iterable[str] = ()) -> None:
        """`unchanged` are columns that are not sent: they may not be in `changed`."""
        old = self.rows[place]
        new = {name: changed.get(name, old.get(name)) for name in self.shape.columns}
        self.rows[place] = new
        left_out = frozenset(unchanged)
        assert not left_out & changed.keys()
        key = self.shape.key
        # A key that is stored out of line is sent, though it did not change.
        is_shown = any(old.get(name) != new[name] or name in left_out for name in key)
        before = b""
        if self.is_full:
            before = b"O" + self._tuple(old)
        elif is_shown:
            before = b"K" + self._tuple({name: old.get(name) for name in key})
        self._add(b"U", before + b"N" + self._tuple(new, left_out))

    def delete(self, place: int) -> None:
        old = self.rows.pop(place)
        if self.is_full:
            self._add(b"D", b"O" + self._tuple(old))
        else:
            self._add(b"D", b"K" + self._tuple({name: old.get(name) for name in self.shape.key}))

    def truncate(self) -> None:
        self.rows.clear()
        self._lsn += 0x10
        self._codec.truncate(NUMBER, self._lsn)

    def _tuple(self, row: Row, unchanged: frozenset[str] = frozenset()) -> bytes:
        parts = [struct.pack(">H", len(self.shape.columns))]
        for name in self.shape.columns:
            text = row.get(name)
            if name in unchanged:
                parts.append(b"u")
            elif text is None:
                parts.append(b"n")
            else:
                parts.append(struct.pack(">cI", b"t", len(text.encode())) + text.encode())
        return b"".join(parts)

    def _add(self, kind: bytes, content: bytes) -> None:
        self._lsn += 0x10
        frame = b"w" + struct.pack(">QQq", self._lsn, self._lsn, 0)
        assert self._codec.encode(frame + kind + struct.pack(">I", NUMBER) + content) > 0

    # ----------------------------------------------------------------------- objects

    def cut(self) -> None:
        """End an object here."""
        taken = self._codec.take(NUMBER)
        if taken is not None:
            self.bodies.append(
                Body(taken.lines, self.shape.version, taken.first_position, taken.last_position)
            )

    def snapshot(self, attempt: int = 1) -> tuple[LogPosition, list[Body]]:
        """Read all rows as of now: the place, and the objects, beginning with a truncate record."""
        self.begin()
        point = log_position(self.generation, self.order)
        codec = RowCodec(self.generation)
        self._codec, stream = codec, self._codec
        self._bind()
        codec.copy_rows.begin(self.order - 1, 1_000_000)
        codec.copy_rows.truncate(NUMBER, snapshot_range(attempt, 0), 0)
        found = [self._taken(codec)]
        for number, rows in enumerate((self.rows[::2], self.rows[1::2]), 1):
            for place, row in enumerate(rows):
                line = "\t".join(_copy_text(row.get(name)) for name in self.shape.columns) + "\n"
                codec.encode_copy(NUMBER, line.encode(), snapshot_range(attempt, number), place)
            if rows:
                found.append(self._taken(codec))
        self._codec = stream
        # Rows have the newest version's columns as they are read.
        self.rows = [{name: row.get(name) for name in self.shape.columns} for row in self.rows]
        return point, found

    def _taken(self, codec: RowCodec) -> Body:
        taken = codec.take(NUMBER)
        assert taken is not None
        return Body(taken.lines, self.shape.version, taken.first_position, taken.last_position)


def _copy_text(text: str | None) -> str:
    if text is None:
        return "\\N"
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


# -------------------------------------------------------------------------------- folding


class Taken(NamedTuple):
    """A body as it is given to the fold."""

    body: Body
    low: str = ""
    high: str = ""


def newest_first(
    bodies: Sequence[Body], snapshots: Iterable[tuple[LogPosition, Sequence[Body]]] = ()
) -> list[Taken]:
    """The stream's objects and those of snapshots in the order in which the fold wants them."""
    order: list[Taken] = []
    high = ""
    for point, objects in sorted(snapshots, reverse=True):
        order += _between(bodies, point, high)
        order += [Taken(body) for body in reversed(objects)]
        high = min(body.first for body in objects)
    return order + _between(bodies, "", high)


def _between(bodies: Sequence[Body], low: str, high: str) -> list[Taken]:
    return [
        Taken(body, low, high)
        for body in reversed(bodies)
        if body.last >= low and (not high or body.first < high)
    ]


def folded(
    order: Sequence[Taken], shapes: Sequence[Shape], *, memory_max: int = 1 << 40
) -> list[tuple[int, bytes]]:
    """All rows that the fold gives, in all its passes: their versions and texts."""
    newest = max(shapes, key=lambda shape: shape.version)
    known = {shape.version: shape for shape in shapes}
    found: list[tuple[int, bytes]] = []
    passes: list[Pass | None] = [None]
    while passes:
        fold = Fold(newest, memory_max=memory_max, part=passes.pop())
        for body, low, high in order:
            for rows in fold.take(body.lines, known[body.version], low=low, high=high):
                lines = rows.lines.splitlines()
                assert len(lines) == rows.row_count
                found += [(rows.version, line) for line in lines]
            if fold.is_over:
                break
        passes += fold.finish()
    return found


def as_values(rows: Iterable[Row], names: Sequence[str]) -> Counter[str]:
    """Rows as texts of JSON, columns that one lacks as null."""
    return Counter(json.dumps([value_of(name, row.get(name)) for name in names]) for row in rows)


def as_read(lines: Iterable[bytes], names: Sequence[str]) -> Counter[str]:
    """Lines of the fold, as `as_values` has rows."""
    return Counter(json.dumps([row.get(name) for name in names]) for row in map(json.loads, lines))


# ------------------------------------------------------------------------ the plain fold


def records(bodies: Iterable[Body]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Position, op and record of every line."""
    for body in bodies:
        for line in body.lines.splitlines():
            record = json.loads(line)
            source = record.get("metadata") or record["source"]
            op = source.get("op") or record["op"]
            record["unchanged"] = source.get("unchanged", ())
            yield source["position"], op, record


def folded_plainly(bodies: Iterable[Body], key: Sequence[str]) -> list[dict[str, Any]]:
    """Sort the records by position and apply them one by one. Raises KeyError where they lack."""
    rows: dict[str, dict[str, Any]] = {}
    for _, op, record in sorted(records(bodies), key=lambda record: record[0]):
        before, after = record["before"], record["after"]
        if op == "t":
            rows.clear()
            continue
        known = {**(before or {}), **(after or {})}
        old = rows.pop(_key(before, key), None) if before is not None else None
        if after is None:
            continue
        if old is None:
            old = rows.get(_key(known, key), {})
        filled = {**old, **(before or {})}
        rows[_key(known, key)] = {**after, **{name: filled[name] for name in record["unchanged"]}}
    return list(rows.values())


def _key(row: dict[str, Any], key: Sequence[str]) -> str:
    return json.dumps([row[name] for name in key])
