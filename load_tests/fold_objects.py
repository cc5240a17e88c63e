"""A table's objects for scenario `fold`, made by the engine's own line writer and compressor.

Strategy: keys are drawn at random. The first change of a key inserts its row, one in twenty deletes
it, all others update it. The other columns come out of a pool of rows, which costs little and is
large enough that the compressor sees no row again. Objects are cut as the engine cuts them.
"""

import random
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from isal import isal_zlib

from engine.lines.writer import (
    OP_CREATE,
    OP_DELETE,
    OP_UPDATE,
    VALUE_BOOLEAN,
    VALUE_JSON,
    VALUE_NUMBER,
    VALUE_TEXT,
    LineWriter,
)
from engine.model.record import Envelope
from engine.reader.fold.shape import JSON_NULL, Shape

COLUMNS: Final = (
    ("id", VALUE_NUMBER),
    ("quantity", VALUE_NUMBER),
    ("name", VALUE_TEXT),
    ("amount", VALUE_TEXT),
    ("changed_at", VALUE_TEXT),
    ("is_paid", VALUE_BOOLEAN),
    ("ratio", VALUE_NUMBER),
    ("reference", VALUE_TEXT),
    ("attributes", VALUE_JSON),
    ("due", VALUE_TEXT),
    ("status", VALUE_TEXT),
    ("grade", VALUE_NUMBER),
)
OBJECT_BYTES_MAX: Final = 16 * 1024 * 1024

_POOL: Final = 20_000
_BATCH_BYTES: Final = 256 * 1024
_ROWS_A_TRANSACTION: Final = 100
_FIRST_US: Final = 1_767_225_600_000_000
_ABSENT, _PRESENT = 0, 1


@dataclass(frozen=True, slots=True)
class Made:
    """What was made: how many rows the table has after all changes, and how large the lines are."""

    row_count: int
    raw_bytes: int
    compressed_bytes: int
    object_count: int


def shape(envelope: Envelope = "standard") -> Shape:
    """The table's only version."""
    names = tuple(name for name, _ in COLUMNS)
    return Shape(
        table="public.changes",
        version=1,
        identity="1",
        envelope=envelope,
        columns=names,
        lineages=tuple(range(len(names))),
        forms=names,
        fills=(JSON_NULL,) * len(names),
        hidden=frozenset(),
        key=("id",),
        is_whole_row=False,
    )


def object_files(folder: Path) -> list[Path]:
    """The objects in the order in which they became visible."""
    return sorted(folder.glob("*.ndjson.gz"))


def make_objects(folder: Path, change_count: int, key_count: int) -> Made:
    """Write the objects of so many changes over so many keys into a folder."""
    making = _Making(folder, key_count)
    for first in range(0, change_count, _ROWS_A_TRANSACTION):
        making.transact(min(_ROWS_A_TRANSACTION, change_count - first))
    making.end_object()
    return making.made


class _Making:
    def __init__(self, folder: Path, key_count: int) -> None:
        self._folder = folder
        self._random = random.Random(1)
        self._key_count = key_count
        self._state = array("b", bytes(key_count))
        self._pool = tuple(_values(self._random, number) for number in range(_POOL))
        self._lines = LineWriter(1, connector="postgresql")
        self._lines.bind(
            1,
            database="shop",
            schema="public",
            table="changes",
            version=1,
            columns=[(name, form, name == "id", True) for name, form in COLUMNS],
            key=["id"],
            envelope="standard",
        )
        self._change = 0
        self._parts: list[bytes] = []
        self._size = 0
        self._stream = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 31)
        self._raw_bytes = 0
        self._compressed_bytes = 0
        self._object_count = 0

    @property
    def made(self) -> Made:
        return Made(sum(self._state), self._raw_bytes, self._compressed_bytes, self._object_count)

    def transact(self, count: int) -> None:
        order = 0x1000000 + 256 * self._change
        fields = b',"lsn":"0/%X","commit_lsn":"0/%X","xid":%d' % (order, order, order // 512)
        self._lines.begin(order, _FIRST_US + self._change * 10, fields=fields)
        for _ in range(count):
            self._write()
        if self._lines.buffered > _BATCH_BYTES:
            self._compress()

    def _write(self) -> None:
        key, place = self._random.randrange(self._key_count), self._change % _POOL
        self._change += 1
        text = b"%d" % (1_000_000 + key)
        row = (text, *self._pool[place])
        write = self._lines.write
        if self._state[key] == _ABSENT:
            self._state[key] = _PRESENT
            write(1, self._change, OP_CREATE, None, row)
        elif self._change % 20 == 0:
            self._state[key] = _ABSENT
            write(1, self._change, OP_DELETE, (text, *_NO_VALUES), None)
        else:
            write(1, self._change, OP_UPDATE, None, row)

    def _compress(self) -> None:
        taken = self._lines.take(1)
        if taken is None:
            return
        self._raw_bytes += len(taken.lines)
        # As the engine's chunks do: each piece begins anew.
        piece = self._stream.compress(taken.lines) + self._stream.flush(isal_zlib.Z_FULL_FLUSH)
        self._parts.append(piece)
        self._size += len(piece)
        if self._size >= OBJECT_BYTES_MAX:
            self.end_object()

    def end_object(self) -> None:
        self._compress_rest()
        if not self._parts:
            return
        self._parts.append(self._stream.flush())
        body = b"".join(self._parts)
        (self._folder / f"{self._object_count:06d}.ndjson.gz").write_bytes(body)
        self._object_count += 1
        self._compressed_bytes += len(body)
        self._parts, self._size = [], 0
        self._stream = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 31)

    def _compress_rest(self) -> None:
        taken = self._lines.take(1)
        if taken is not None:
            self._raw_bytes += len(taken.lines)
            self._parts.append(self._stream.compress(taken.lines))


_NO_VALUES: Final = (None,) * (len(COLUMNS) - 1)


def _values(source: random.Random, number: int) -> tuple[bytes, ...]:
    reference = f"{source.getrandbits(128):032x}"
    values = (
        f"{source.randrange(1000)}",
        f"customer name {source.randrange(1_000_000)}",
        f"{source.randrange(100_000) / 100:.2f}",
        f"2026-01-01T09:51:54.{source.randrange(1_000_000):06d}Z",
        "true" if number % 2 else "false",
        f"{source.randrange(1_000_000) * 1.5}",
        "-".join(
            (reference[:8], reference[8:12], reference[12:16], reference[16:20], reference[20:])
        ),
        f'{{"k":{source.randrange(1_000_000)},"v":"a few words that are the same"}}',
        "2026-01-01",
        f"status {source.randrange(10)}",
        f"{source.randrange(100)}",
    )
    return tuple(value.encode() for value in values)
