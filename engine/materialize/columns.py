"""Which columns a table of changes has: those of the batches, and those that it had before.

Strategy: one schema is made of what the table has and what is read now. Columns are only added, at
the end, and hold nulls where a record has none. A column whose type is another one now is refused
by name: rows that were written would change their meaning.

Types are compared in one form, because each format tells its own back a little differently
(`large_string`, names of list elements, `+00:00`). This module is pure.
"""

from collections.abc import Iterable
from typing import Any, Final

import pyarrow as pa

from engine.materialize.lake_table import MaterializeRefused

# Any, here and below: pyarrow has no types of its own.
_UTC: Final = "UTC"
_SAME: Final[dict[Any, Any]] = {
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
}


def plain(type_: Any, *, has_time: bool = True) -> Any:
    """The type in the one form in which types are compared and written.

    Times of day become text where the format has none. All instants have microseconds.
    """
    if pa.types.is_struct(type_):
        return pa.struct([_field(one, has_time=has_time) for one in type_])
    if _is_list(type_):
        return pa.list_(plain(type_.value_type, has_time=has_time))
    return _leaf(type_, has_time=has_time)


def _leaf(type_: Any, *, has_time: bool) -> Any:
    if pa.types.is_timestamp(type_):
        return pa.timestamp("us", tz=_UTC if type_.tz else None)
    if pa.types.is_time(type_):
        return pa.time64("us") if has_time else pa.string()
    return _SAME.get(type_, type_)


def _is_list(type_: Any) -> bool:
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_))


def _field(field: Any, *, has_time: bool) -> Any:
    return pa.field(field.name, plain(field.type, has_time=has_time), nullable=field.nullable)


def plain_schema(schema: Any, *, has_time: bool = True) -> Any:
    """All fields in that form, and nothing else that a schema may carry."""
    return pa.schema([_field(one, has_time=has_time) for one in schema])


def merged(held: Any, read: Any, *, may_widen: bool = False) -> Any:
    """The columns that the table has, then those that it lacks. Both are plain.

    `may_widen`: a decimal may get more digits before its point. Raises MaterializeRefused.
    """
    return pa.schema(_merged(held, read, "", may_widen=may_widen))


def _merged(held: Iterable[Any], read: Iterable[Any], path: str, *, may_widen: bool) -> list[Any]:
    now = {field.name: field for field in read}
    fields = []
    for field in held:
        other = now.pop(field.name, None)
        type_ = field.type
        if other is not None:
            type_ = _type(field.type, other.type, path + field.name, may_widen=may_widen)
        fields.append(pa.field(field.name, type_, nullable=field.nullable))
    # Rows that are there have nothing in a column that is new.
    return fields + [pa.field(field.name, field.type) for field in now.values()]


def _type(held: Any, read: Any, path: str, *, may_widen: bool) -> Any:
    if pa.types.is_struct(held) and pa.types.is_struct(read):
        return pa.struct(_merged(held, read, f"{path}.", may_widen=may_widen))
    if held == read:
        return held
    if pa.types.is_decimal(held) and pa.types.is_decimal(read) and held.scale == read.scale:
        if held.precision >= read.precision:
            return held
        if may_widen:
            return read
    raise MaterializeRefused(
        "type-changed",
        f"column {path!r} is {held} in the table, and {read} in what is read now",
        hint="Materialize to a new path: the old one stays as it is. A column that is to stay text"
        " whatever becomes of it can be named with --text.",
    )


def fitted(batch: Any, schema: Any) -> Any:
    """The batch with the columns of `schema`, as one plain table."""
    arrays = [_fitted(_column(batch, field), field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _column(batch: Any, field: Any) -> Any:
    if field.name in batch.schema.names:
        return batch.column(field.name)
    return pa.nulls(batch.num_rows, field.type)


def _fitted(array: Any, type_: Any) -> Any:
    if array.type == type_:
        return array
    if pa.types.is_struct(type_):
        # `field`, unlike `flatten`, leaves the parent's nulls out: the mask below has them.
        children = [
            _fitted(array.field(one.name), one.type)
            if array.type.get_field_index(one.name) >= 0
            else pa.nulls(len(array), one.type)
            for one in type_
        ]
        return pa.StructArray.from_arrays(children, fields=list(type_), mask=array.is_null())
    return array.cast(type_)
