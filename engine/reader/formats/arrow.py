"""pyarrow's record batches of records and rows, with a schema that the table's versions give.

Strategy: lines are taken apart one by one, and each column is made of its values at once. That is
right for every kind of value. A kind has one type of Arrow, whatever the values are.

This is the only module that knows pyarrow. Import it late: it is an extra (`tailrace[read]`).
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import pyarrow as pa

from engine.reader.formats.columns import ColumnKind
from engine.reader.formats.records import Taken, Values
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
        self.schema: Any = pa.schema(fields)
        if is_changes:
            images = [pa.field("before", self._row), pa.field("after", self._row)]
            self.schema = pa.schema([*_CHANGE_FIELDS, *images])

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
        for number, row in enumerate(rows):
            raw = row.get(name)
            value = bytes(raw) if raw is not None else _NULL
            if value != _NULL:
                values.append(convert(value))
            else:
                # JSON's null is a value; only text can hold it.
                values.append(text_of(value) if nulls and name in nulls[number] else None)
        return _made(values, arrow_type(column), column.kind)


def _made(values: list[object], type_: Any, kind: str) -> Any:
    element = kind.removesuffix("[]")
    stored = _STORED.get(element)
    if stored is None:
        return pa.array(values, type_)
    return pa.array(values, pa.list_(stored) if kind != element else stored).cast(type_)
