"""What rows got that were there when a column was added with a constant default.

PostgreSQL writes nothing into those rows. It keeps the value once, beside the column
(`pg_attribute.attmissingval`), until something rewrites the table. The stream never shows it.

Strategy: the value's text goes through the reader and the writer of a row with this one column. So
it looks exactly as it does in a record.
"""

import re
from typing import Final

import msgspec

from engine.lines.writer import LineWriter
from engine.model.errors import DecodeError, UnrepresentableRow
from engine.model.record import RecordConfiguration
from engine.sources.postgres.copy_rows import CopyReader
from engine.sources.postgres.types import form_of, kind_number

FILL_LENGTH_MAX: Final = 1_000
"""Characters of a value that is told: every version of the table repeats it."""

_NUMBER: Final = 1
_ROW_BYTES_MAX: Final = 64 * 1024
_COLUMN: Final = "value"
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_COPY_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


class _After(msgspec.Struct):
    value: msgspec.Raw


class _Line(msgspec.Struct):
    after: _After


def fill_of(missing: str, kind: str, configuration: RecordConfiguration) -> str:
    """The JSON of a value, empty where a record cannot hold it.

    `missing` is the text of `attmissingval`: an array with the one value. `kind` is its type's.
    """
    lines = LineWriter(1, connector="postgresql", row_bytes_max=_ROW_BYTES_MAX)
    form = form_of(kind_number(kind), configuration.numeric, configuration.json)
    lines.bind(
        _NUMBER,
        database="",
        schema="",
        table="",
        version=1,
        columns=[(_COLUMN, form, False, True)],
        key=(),
        envelope="standard",
    )
    rows = CopyReader(lines)
    rows.begin(1, 0)
    row = _element(missing).translate(_COPY_ESCAPES) + "\n"
    try:
        rows.encode(_NUMBER, row.encode(), 1, 0)
    except (UnrepresentableRow, DecodeError):
        return ""
    taken = lines.take(_NUMBER)
    assert taken is not None, "a row was written"
    return bytes(msgspec.json.decode(taken.lines, type=_Line).after.value).decode()


def _element(array: str) -> str:
    """The text of the only element of an array, which has it as `array_out` writes it."""
    inner = array[1:-1]
    if inner.startswith('"'):
        return _ESCAPED.sub(r"\1", inner[1:-1])
    return inner
