"""A plain stand-in until the compiled fold is there: right for keyed tables, one pass, slow."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import orjson

from engine.model.errors import DecodeError, StateUnknown
from engine.reader.fold.shape import Shape, require_alike, require_foldable

PART_COUNT: Final = 256


class Pass(NamedTuple):
    first_part: int
    last_part: int
    secret: bytes
    above: str


class Rows(NamedTuple):
    version: int
    lines: bytes
    row_count: int


class _Pending(NamedTuple):
    shape: Shape
    after: dict[str, Any]
    unchanged: set[str]


class Fold:
    def __init__(
        self, newest: Shape, *, memory_max: int = 1 << 62, part: Pass | None = None
    ) -> None:
        require_foldable(newest)
        del memory_max, part
        self._newest = newest
        self._seen: set[bytes] = set()
        self._pending: dict[bytes, _Pending] = {}
        self._minus: dict[bytes, int] = {}
        self.is_over = False

    @property
    def memory(self) -> int:
        return 0

    @property
    def key_count(self) -> int:
        return len(self._seen) + len(self._minus)

    def finish(self) -> tuple[Pass, ...]:
        if self._pending or self._minus:
            raise StateUnknown(f"{self._newest.table}: rows stayed unfinished")
        return ()

    def take(
        self, body: bytes | bytearray | memoryview, shape: Shape, *, low: str = "", high: str = ""
    ) -> Iterator[Rows]:
        if self.is_over:
            return
        require_foldable(shape)
        if shape.identity != self._newest.identity:
            self.is_over = True
            return
        require_alike(self._newest, shape)
        for line in reversed(bytes(body).splitlines()):
            record = orjson.loads(line)
            try:
                metadata = record.get("metadata") or {**record["source"], "op": record["op"]}
                position = metadata["position"]
            except KeyError as error:
                raise DecodeError("not a record") from error
            if position < low or (high and position >= high):
                continue
            for row in self._taken(record, metadata, shape):
                yield Rows(row.shape.version, orjson.dumps(row.after) + b"\n", 1)
            if self.is_over:
                return

    def _taken(
        self, record: dict[str, Any], metadata: dict[str, Any], shape: Shape
    ) -> Iterator[_Pending]:
        op, before, after = metadata["op"], record["before"], record["after"]
        self.is_over = op == "t"
        known = {**(before or {}), **(after or {})}
        if self._newest.is_whole_row:
            if op != "u" or before is not None:
                yield from self._counted(before, known if after is not None else None, shape)
            return
        old = self._key(before) if before is not None else None
        new = self._key(known) if after is not None else None
        if new is not None:
            row = _Pending(shape, dict(after), set(metadata.get("unchanged", ())))
            _fill(row, before or {})
            waiting = self._pending.pop(new, None)
            if waiting is not None:
                _fill(waiting, known)
            if new not in self._seen:
                self._seen.add(new)
                waiting = row
            if waiting is not None and not waiting.unchanged:
                yield waiting
            elif waiting is not None:
                self._pending[old or new] = waiting
        if old is not None:
            self._seen.add(old)

    def _counted(
        self, before: dict[str, Any] | None, after: dict[str, Any] | None, shape: Shape
    ) -> Iterator[_Pending]:
        if after is not None:
            text = self._text(after)
            if self._minus.get(text):
                self._minus[text] -= 1
                if not self._minus[text]:
                    del self._minus[text]
            else:
                yield _Pending(shape, after, set())
        if before is not None:
            text = self._text(before)
            self._minus[text] = self._minus.get(text, 0) + 1

    def _key(self, row: dict[str, Any]) -> bytes:
        return orjson.dumps([row[name] for name in self._newest.key])

    def _text(self, row: dict[str, Any]) -> bytes:
        return orjson.dumps([row.get(name) for name in self._newest.columns])


def _fill(row: _Pending, older: dict[str, Any]) -> None:
    for name in sorted(row.unchanged & older.keys()):
        row.after[name] = older[name]
        row.unchanged.discard(name)


def passes_for(key_count: int, memory_max: int) -> int:
    return max(1, -(-key_count * 24 // memory_max))
