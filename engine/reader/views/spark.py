"""Spark: a table over the objects' folder, and views of it. Databricks shares what it says.

Strategy: `before` and `after` are maps from a column's name to its text. So names that differ in
case are two, and a column that a record leaves out is told from one that is null.
"""

from typing import Final

from engine.reader.views.column import ViewColumn
from engine.reader.views.dialect import (
    Dialect,
    Typed,
    Types,
    escaped_literal,
    numeric_size,
    quoted_back,
)
from engine.reader.views.flat import FlatForm, flat_records
from engine.reader.views.fold import state_select
from engine.reader.views.names import Names
from engine.reader.views.objects import FIELDS
from engine.reader.views.place import Place
from engine.reader.views.records import counted_condition
from engine.reader.views.shape import TableShape

ABOUT: Final = (
    "For Spark 3.4 and later. REFRESH TABLE of an _objects table finds the objects that came.",
    "Arrays and JSON are texts. A JSON string that is all of a JSON column has no quotes here.",
    "Numbers with a point, where records have them as numbers, are read as doubles.",
    "A cut that is the same in all tables: take the comment away in every _changes view, with",
    "the position {position}.",
)
_DIGITS_MAX: Final = 38
_TYPES: Final = Types({"smallint": "SMALLINT", "integer": "INT"}, "FLOAT", "UNBASE64")
_MAY_NOT_FIT: Final = {"timestamp": "TIMESTAMP_NTZ", "timestamptz": "TIMESTAMP"}


def _typed(text: str, column: ViewColumn) -> Typed:
    return _TYPES.typed(text, column) or _typed_or_null(text, column)


def _typed_or_null(text: str, column: ViewColumn) -> Typed:
    size = numeric_size(column, _DIGITS_MAX)
    if size is not None:
        return Typed(f"TRY_CAST({text} AS DECIMAL({size[0]}, {size[1]}))", may_not_fit=True)
    kind = _MAY_NOT_FIT.get(column.kind, "")
    return Typed(f"TRY_CAST({text} AS {kind})", may_not_fit=True) if kind else Typed(text)


DIALECT: Final = Dialect(
    name="spark",
    identifier=quoted_back,
    literal=escaped_literal,
    text=lambda source, name, _: f"{source}[{escaped_literal(name)}]",
    has=lambda names, name: f"ARRAY_CONTAINS({names}, {name})",
    typed=_typed,
    joined=lambda texts: f"CONCAT_WS(', ', {', '.join(texts)})",
    repeated=lambda count: f"LATERAL VIEW EXPLODE(SEQUENCE(1, {count})) copy AS number",
)


_FLAT: Final = FlatForm(
    row="members",
    text=lambda name: f"members[{escaped_literal(name)}]",
    texts=lambda name: f"FROM_JSON(members[{escaped_literal(name)}], 'ARRAY<STRING>')",
    time=lambda text: f"UNIX_MILLIS(TRY_CAST({text} AS TIMESTAMP)) AS committed_ms",
)


def source_format(shape: TableShape) -> str:
    """What Spark reads objects as: a flat record as a line, for its columns are of no schema."""
    return "text" if shape.envelope == "flat" else "json"


def record_columns(shape: TableShape) -> str:
    """The columns of a record, as a schema of Spark says them."""
    if shape.envelope == "flat":
        return "value STRING"
    fields = FIELDS[shape.envelope]
    inside = "op: STRING, " if fields.is_op_inside else ""
    outside = "" if fields.is_op_inside else "op STRING, "
    return (
        "before MAP<STRING, STRING>, after MAP<STRING, STRING>, "
        f"{outside}{fields.holder} STRUCT<{inside}position: STRING, {fields.time}: BIGINT, "
        "unchanged: ARRAY<STRING>, json_null: ARRAY<STRING>>"
    )


def changes_select(shape: TableShape, dialect: Dialect, objects: str) -> str:
    """The SELECT of the records that count, of a relation that has them as they are."""
    if shape.envelope == "flat":
        lines = f"""(
        SELECT FROM_JSON(value, 'MAP<STRING, STRING>', MAP('mode', 'FAILFAST')) AS members
        FROM {objects}
    ) AS lines"""
        return f"""SELECT *
FROM (
    {flat_records(shape, _FLAT, lines)}
) AS records
WHERE {counted_condition(shape, dialect, "op", "position")}
    -- AND position < 'a position: the same cut in all tables'"""
    fields = FIELDS[shape.envelope]
    position = f"{fields.holder}.position"
    return f"""SELECT {fields.op} AS op, {position} AS position,
    {fields.holder}.{fields.time} AS committed_ms, before, after,
    {fields.holder}.unchanged AS unchanged, {fields.holder}.json_null AS json_null
FROM {objects}
WHERE {counted_condition(shape, dialect, fields.op, position)}
    -- AND {position} < 'a position: the same cut in all tables'"""


def statements(shape: TableShape, place: Place, names: Names) -> tuple[str, ...]:
    """A table over the objects, its records that count, and the table as it is now."""
    # What Hadoop reads S3 by.
    folder = place.folder(shape.table).replace("s3://", "s3a://", 1)
    objects, changes = names.part("objects"), names.part("changes")
    mode = "" if shape.envelope == "flat" else ",\n    mode 'FAILFAST'"
    table = f"""CREATE TABLE IF NOT EXISTS {objects} (
    {record_columns(shape)}
)
USING {source_format(shape)} OPTIONS (
    path {escaped_literal(folder)},
    pathGlobFilter '*.ndjson.*',
    recursiveFileLookup 'true'{mode}
)"""
    counted = changes_select(shape, DIALECT, objects)
    return (
        table,
        f"CREATE OR REPLACE VIEW {changes} AS\n{counted}",
        f"CREATE OR REPLACE VIEW {names.state} AS\n{state_select(shape, DIALECT, changes)}",
    )
