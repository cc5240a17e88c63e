"""pyarrow's record batches of records and rows, with a schema that the table's versions give.

Strategy: a kind has one type of Arrow, whatever the values are. Lines are taken apart one by one,
and each column is made of its values at once. That is right for every kind of value, and takes
16 us for a row of 12 columns. So rows go through pyarrow's own reader of JSON first, with the same
explicit types, which takes a tenth of that. It refuses whatever it does not read as we do, such as
an infinite time. Then, and for kinds that it does not know, it is done value by value.

Import it late: pyarrow is an extra (`tailrace[read]`).
"""

import base64
import binascii
from collections.abc import Iterable, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.json

from engine.reader.formats.columns import ColumnKind
from engine.reader.formats.records import Taken, Values, row
from engine.reader.formats.values import Convert, converter, text_of

_NULL: Final = b"null"

_CHANGE_FIELDS: Final = (
    pa.field("op", pa.string(), nullable=False),
    pa.field("position", pa.string(), nullable=False),
    pa.field("version", pa.int32(), nullable=False),
    pa.field("source_ts", pa.timestamp("ms", tz="UTC"), nullable=False),
    pa.field("unchanged", pa.list_(pa.string())),
    pa.field("json_null", pa.list_(pa.string())),
)

_TYPES: Final[dict[str, Any]] = {
    "boolean": pa.bool_(),
    "integer": pa.int64(),
    "float": pa.float64(),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", tz="UTC"),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "bytea": pa.binary(),
}
"""Any: pyarrow has no types of its own. Kinds that are not listed are strings."""

# What a converter gives as a number before it is a time.
_STORED: Final[dict[str, Any]] = {
    "timestamp": pa.int64(),
    "timestamptz": pa.int64(),
    "date": pa.int32(),
    "time": pa.int64(),
}


_AS_TEXT: Final = frozenset(("date", "bytea"))
"""Kinds that pyarrow's reader takes as text, and that are converted at once behind it."""

_BY_VALUE: Final = frozenset(("json", "time"))
"""Kinds that it does not take: nested values stay text here, and it has no cast to times."""

_REFUSALS_MAX: Final = 3
"""So often it is tried in vain before it is left alone: the next values may be like these."""


def arrow_type(column: ColumnKind) -> Any:
    """The type of Arrow that a column has."""
    if column.kind.endswith("[]"):
        element = ColumnKind(column.name, column.kind.removesuffix("[]"), column.digits)
        return pa.list_(arrow_type(element))
    if column.kind == "numeric" and column.digits is not None:
        return pa.decimal128(*column.digits)
    return _TYPES.get(column.kind, pa.string())


class Batches:
    """Makes batches of one answer's lines, all of `schema`."""

    def __init__(self, columns: Sequence[ColumnKind], *, is_changes: bool) -> None:
        self._columns = tuple(columns)
        self._converters: dict[str, Convert] = {
            column.name: converter(column) for column in columns
        }
        fields = [pa.field(column.name, arrow_type(column)) for column in columns]
        self._row = pa.struct(fields)
        self._is_changes = is_changes
        self._quick = [column for column in columns if _is_quick(column)]
        self._slow = [column for column in columns if not _is_quick(column)]
        self._refusals = 0
        self.schema: Any = pa.schema(fields)
        if is_changes:
            images = [pa.field("before", self._row), pa.field("after", self._row)]
            self.schema = pa.schema([*_CHANGE_FIELDS, *images])

    def of_row_lines(self, lines: bytes) -> Any:
        """A batch of rows of the current state, from their lines."""
        if self._refusals < _REFUSALS_MAX and self._quick:
            try:
                return self._quickly(lines)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, binascii.Error):
                self._refusals += 1
        return self.of_rows(map(row, lines.splitlines()))

    def _quickly(self, lines: bytes) -> Any:
        carried = pa.schema([pa.field(c.name, _carrier(c)) for c in self._quick])
        table = pyarrow.json.read_json(
            pa.BufferReader(lines),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=max(len(lines), 1)),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=carried, unexpected_field_behavior="ignore"
            ),
        )
        found = {
            column.name: _converted(table.column(column.name).combine_chunks(), column)
            for column in self._quick
        }
        if self._slow:
            rows = [*map(row, lines.splitlines())]
            found |= {column.name: self._array(column, rows, ()) for column in self._slow}
        return pa.record_batch([found[c.name] for c in self._columns], schema=self.schema)

    def of_rows(self, rows: Iterable[Values]) -> Any:
        """A batch of rows of the current state."""
        found = list(rows)
        arrays = [self._array(column, found, ()) for column in self._columns]
        if not arrays:
            return pa.RecordBatch.from_struct_array(pa.array([{}] * len(found), self._row))
        return pa.record_batch(arrays, schema=self.schema)

    def of_changes(self, changes: Iterable[Taken]) -> Any:
        """A batch of changes."""
        found = list(changes)
        nulls = [set(change.json_null) for change in found]
        arrays = [
            pa.array([change.op for change in found], pa.string()),
            pa.array([change.position for change in found], pa.string()),
            pa.array([change.version for change in found], pa.int32()),
            pa.array([change.time_ms for change in found], pa.int64()).cast(
                pa.timestamp("ms", tz="UTC")
            ),
            pa.array([list(change.unchanged) for change in found], pa.list_(pa.string())),
            pa.array([list(change.json_null) for change in found], pa.list_(pa.string())),
            self._images([change.before for change in found], ()),
            self._images([change.after for change in found], nulls),
        ]
        return pa.record_batch(arrays, schema=self.schema)

    def _images(self, images: Sequence[Values | None], nulls: Sequence[set[str]]) -> Any:
        rows = [image if image is not None else {} for image in images]
        mask = pa.array([image is None for image in images], pa.bool_())
        arrays = [self._array(column, rows, nulls) for column in self._columns]
        return pa.StructArray.from_arrays(arrays, fields=list(self._row), mask=mask)

    def _array(self, column: ColumnKind, rows: Sequence[Values], nulls: Sequence[set[str]]) -> Any:
        convert, name = self._converters[column.name], column.name
        values: list[object] = []
        for number, values_of_row in enumerate(rows):
            raw = values_of_row.get(name)
            value = bytes(raw) if raw is not None else _NULL
            if value != _NULL:
                values.append(convert(value))
            else:
                # JSON's null is a value; only text can hold it.
                values.append(text_of(value) if nulls and name in nulls[number] else None)
        return _made(values, arrow_type(column), column.kind)


def _is_quick(column: ColumnKind) -> bool:
    return column.kind not in _BY_VALUE and not column.kind.endswith("[]")


def _carrier(column: ColumnKind) -> Any:
    """The type in which pyarrow's reader takes the column."""
    return pa.string() if column.kind in _AS_TEXT else arrow_type(column)


def _converted(array: Any, column: ColumnKind) -> Any:
    if column.kind == "bytea":
        values = (
            None if text is None else base64.b64decode(text, validate=True)
            for text in array.to_pylist()
        )
        return pa.array(values, pa.binary())
    if column.kind == "numeric":
        # The reader itself takes more digits than the type has.
        array.validate(full=True)
    return array.cast(pa.date32()) if column.kind == "date" else array


def _made(values: list[object], type_: Any, kind: str) -> Any:
    element = kind.removesuffix("[]")
    stored = _STORED.get(element)
    if stored is None:
        return pa.array(values, type_)
    return pa.array(values, pa.list_(stored) if kind != element else stored).cast(type_)
