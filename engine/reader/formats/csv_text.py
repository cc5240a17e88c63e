"""CSV: RFC 4180 with a header, UTF-8, values as they were recorded. Pure.

Null is nothing between two commas, and an empty text is `""`: most readers tell the two apart.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from engine.reader.formats.records import Taken, Values
from engine.reader.formats.values import text_of

CHANGE_FIELDS: Final = ("_op", "_position", "_version", "_source_ts_ms", "_unchanged", "_before")
"""What a change has before its columns; `_before` is a JSON object."""

_NULL: Final = b"null"
_QUOTED: Final = frozenset(',"\r\n')


def header(columns: Sequence[str], *, is_changes: bool) -> str:
    """The first line."""
    return _line((*CHANGE_FIELDS, *columns) if is_changes else columns)


def row_lines(rows: Iterable[Values], columns: Sequence[str]) -> Iterator[str]:
    """A line for each row of the current state."""
    for row in rows:
        yield _line(_texts(row, columns, ()))


def change_lines(changes: Iterable[Taken], columns: Sequence[str]) -> Iterator[str]:
    """A line for each change. A deleted row has no values; its old ones are in `_before`."""
    for change in changes:
        before = None
        if change.before is not None:
            before = msgspec.json.encode(change.before).decode()
        unchanged = msgspec.json.encode(change.unchanged).decode() if change.unchanged else None
        fields = (
            change.op,
            change.position,
            str(change.version),
            str(change.time_ms),
            unchanged,
            before,
        )
        yield _line((*fields, *_texts(change.after or {}, columns, change.json_null)))


def _texts(row: Values, columns: Sequence[str], json_null: Sequence[str]) -> Iterator[str | None]:
    for name in columns:
        raw = row.get(name)
        value = bytes(raw) if raw is not None else _NULL
        yield text_of(value) if value != _NULL or name in json_null else None


def _line(fields: Iterable[str | None]) -> str:
    return ",".join(map(_field, fields)) + "\r\n"


def _field(text: str | None) -> str:
    if text is None:
        return ""
    if not text or not _QUOTED.isdisjoint(text):
        return '"' + text.replace('"', '""') + '"'
    return text
