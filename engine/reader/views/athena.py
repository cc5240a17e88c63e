"""Athena: an external table over the objects, and views of it.

Strategy: `before` and `after` are columns of text, so the names of a table's columns never meet
Hive's, which ignore case. Only folders of hours are read, by partition projection: the folder of a
version also has its schema.json, which is no record.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from engine.reader.views.column import ViewColumn
from engine.reader.views.dialect import (
    Dialect,
    Typed,
    Types,
    numeric_size,
    quoted_back,
    quoted_double,
    standard_literal,
)
from engine.reader.views.flat import FlatForm, flat_records
from engine.reader.views.fold import state_select
from engine.reader.views.names import Names
from engine.reader.views.objects import FIELDS
from engine.reader.views.place import Place
from engine.reader.views.records import counted_condition
from engine.reader.views.shape import TableShape

ABOUT: Final = (
    "Names have other characters than a to z, 0 to 9 and _ replaced: Athena takes no others.",
    "For Athena's engine 3. Run the statements one by one: the editor takes one at a time.",
    "A table that is there already stays as it was. Where a version came, DROP TABLE it first;",
    "its objects stay. Dates with a time, times, arrays and JSON are texts as records have them.",
    "A cut that is the same in all tables: take the comment away in every _changes view, with",
    "the position {position}.",
)
_DIGITS_MAX: Final = 38
_TYPES: Final = Types({"smallint": "SMALLINT", "integer": "INTEGER"}, "REAL", "FROM_BASE64")
_NOT_ALLOWED: Final = re.compile(r"[^a-z0-9_]")
"""Glue and Athena take letters, digits and underscores, in names of tables and columns alike."""
_SERDE: Final = "org.apache.hive.hcatalog.data.JsonSerDe"
_FIRST_HOUR: Final = "2026-11-01T00"
"""No object is older: there was no release before."""
_HOUR_FORMAT: Final = "%Y-%m-%dT%H"


def _path(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return standard_literal(f'$["{escaped}"]')


def _text(source: str, name: str, column: ViewColumn) -> str:
    if column.is_structured:
        return f"NULLIF(JSON_FORMAT(JSON_EXTRACT({source}, {_path(name)})), 'null')"
    return f"JSON_EXTRACT_SCALAR({source}, {_path(name)})"


def _typed(text: str, column: ViewColumn) -> Typed:
    return _TYPES.typed(text, column) or _decimal_or_text(text, column)


def _decimal_or_text(text: str, column: ViewColumn) -> Typed:
    size = numeric_size(column, _DIGITS_MAX)
    if size is None:
        # A view cannot have times with microseconds or with a zone: text keeps them.
        return Typed(text)
    return Typed(f"TRY_CAST({text} AS DECIMAL({size[0]}, {size[1]}))", may_not_fit=True)


DIALECT: Final = Dialect(
    name="athena",
    identifier=quoted_double,
    literal=standard_literal,
    text=_text,
    has=lambda names, name: f"CONTAINS({names}, {name})",
    typed=_typed,
    joined=lambda texts: f"CONCAT_WS(', ', {', '.join(texts)})",
    repeated=lambda count: f"CROSS JOIN UNNEST(SEQUENCE(1, {count})) AS copy (number)",
    allowed=lambda name: _NOT_ALLOWED.sub("_", name.lower()),
)


def _begin(shape: TableShape) -> str:
    """The first hour that a record which counts may lie under, as the projection has it.

    A day before the snapshot's own, for the clocks of the source and of the engine may differ.
    """
    hour = _FIRST_HOUR
    if shape.hour:
        moment = datetime.strptime(shape.hour, _HOUR_FORMAT).replace(tzinfo=UTC)
        hour = max(hour, (moment - timedelta(days=1)).strftime(_HOUR_FORMAT))
    return hour


def _table(shape: TableShape, place: Place, names: Names) -> str:
    folder = place.folder(shape.table)
    is_hive = place.layout == "hive"
    hour_format = "'year='yyyy'/month='MM'/day='dd'/hour='HH" if is_hive else "yyyy/MM/dd/HH"
    begin = datetime.strptime(_begin(shape), _HOUR_FORMAT).replace(tzinfo=UTC)
    first = begin.strftime("year=%Y/month=%m/day=%d/hour=%H" if is_hive else "%Y/%m/%d/%H")
    version = "version=${version}" if is_hive else "${version}"
    numbers = ",".join(f"{number:04d}" for number in shape.versions)
    properties = {
        "projection.enabled": "true",
        "projection.version.type": "enum",
        "projection.version.values": numbers,
        "projection.hour.type": "date",
        "projection.hour.format": hour_format,
        "projection.hour.range": f"{first},NOW",
        "projection.hour.interval": "1",
        "projection.hour.interval.unit": "HOURS",
        "storage.location.template": f"{folder}{version}/${{hour}}/",
    }
    listed = ",\n  ".join(
        f"{standard_literal(name)} = {standard_literal(value)}"
        for name, value in properties.items()
    )
    columns, row_format = _LINES if shape.envelope == "flat" else _records(shape)
    return f"""CREATE EXTERNAL TABLE IF NOT EXISTS {names.part("objects", quoted_back)} (
{columns}
)
PARTITIONED BY (`version` string, `hour` string)
ROW FORMAT {row_format}
LOCATION {standard_literal(folder)}
TBLPROPERTIES (
  {listed}
)"""


# JSON has no such character as it is: so the only column is the whole line.
_LINES: Final = ("  `value` string", r"DELIMITED FIELDS TERMINATED BY '\001'")


def _records(shape: TableShape) -> tuple[str, str]:
    """The columns of a record, and how they are read."""
    fields = FIELDS[shape.envelope]
    inside = "op:string," if fields.is_op_inside else ""
    outside = "" if fields.is_op_inside else "  `op` string,\n"
    columns = f"""  `before` string,
  `after` string,
{outside}  `{fields.holder}` struct<{inside}position:string,{fields.time}:bigint,\
unchanged:array<string>,json_null:array<string>>"""
    return columns, f"SERDE '{_SERDE}'"


_FLAT: Final = FlatForm(
    row="value",
    text=lambda name: f"JSON_EXTRACT_SCALAR(value, {_path(name)})",
    texts=lambda name: f"CAST(JSON_EXTRACT(value, {_path(name)}) AS ARRAY(VARCHAR))",
    time=lambda text: (
        f"CAST(TO_UNIXTIME(TRY(FROM_ISO8601_TIMESTAMP({text}))) * 1000 AS BIGINT) AS committed_ms"
    ),
)


def changes_select(shape: TableShape, objects: str) -> str:
    """The SELECT of the records that count, of a relation that has them as they are."""
    if shape.envelope == "flat":
        return f"""SELECT *
FROM (
    {flat_records(shape, _FLAT, objects)}
) AS records
WHERE {counted_condition(shape, DIALECT, "op", "position")}
    -- AND position < 'a position: the same cut in all tables'"""
    fields = FIELDS[shape.envelope]
    position = f"{fields.holder}.position"
    return f"""SELECT {fields.op} AS op, {position} AS position,
    {fields.holder}.{fields.time} AS committed_ms, before, after,
    {fields.holder}.unchanged AS unchanged, {fields.holder}.json_null AS json_null
FROM {objects}
WHERE {counted_condition(shape, DIALECT, fields.op, position)}
    -- AND {position} < 'a position: the same cut in all tables'"""


def statements(shape: TableShape, place: Place, names: Names) -> tuple[str, ...]:
    """A table over the objects, its records that count, and the table as it is now."""
    changes = names.part("changes")
    return (
        _table(shape, place, names),
        f"CREATE OR REPLACE VIEW {changes} AS\n{changes_select(shape, names.part('objects'))}",
        f"CREATE OR REPLACE VIEW {names.state} AS\n{state_select(shape, DIALECT, changes)}",
    )
