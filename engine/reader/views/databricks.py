"""Databricks: views by `READ_FILES`, and a flow of AUTO CDC for those who want a table.

Strategy: SQL is Spark's. AUTO CDC gets what happens to each key, one event a side of a record. An
event's values have a sign before them, so a null says that the record does not hold the column:
that is what IGNORE NULL UPDATES keeps the former value for. A view takes the signs off.
"""

import re
from dataclasses import replace
from typing import Final

from engine.reader.views.dialect import escaped_literal
from engine.reader.views.fold import events_select, folded_select, key_names, state_select
from engine.reader.views.names import Names
from engine.reader.views.place import Place
from engine.reader.views.shape import TableShape
from engine.reader.views.spark import DIALECT as SPARK
from engine.reader.views.spark import changes_select, record_columns, source_format

_NOT_ALLOWED: Final = re.compile(r"[\x00-\x20./,;{}()=\x7f]")
"""What neither Unity Catalog's names nor columns of Delta tables may have."""

DIALECT: Final = replace(SPARK, name="databricks", allowed=lambda name: _NOT_ALLOWED.sub("_", name))
ABOUT: Final = (
    "In names, characters that Unity Catalog or Delta do not take are underscores.",
    "The first two statements of a table are views for a warehouse. The others are a pipeline's:",
    "Auto Loader reads the objects, AUTO CDC keeps a table, and a view shows it. Start it when no",
    "table says that its snapshot is not finished, and with a full refresh after a resync.",
    "Arrays and JSON are texts. A JSON string that is all of a JSON column has no quotes here.",
    "Numbers with a point, where records have them as numbers, are read as doubles.",
    "A cut that is the same in all tables: take the comment away in every _changes view, with",
    "the position {position}.",
)
_DEPTH: Final = 5
"""Folders between a table's and its objects: the version's, and those of the hour."""


def _objects(shape: TableShape, place: Place) -> str:
    folder = place.folder(shape.table).replace("*", "[*]")
    names = escaped_literal(folder + "*/" * _DEPTH + "*.ndjson.*")
    mode = "" if shape.envelope == "flat" else ", mode => 'FAILFAST'"
    return (
        f"READ_FILES({names}, format => '{source_format(shape)}', schema => "
        f"{escaped_literal(record_columns(shape))}{mode})"
    )


def statements(shape: TableShape, place: Place, names: Names) -> tuple[str, ...]:
    """The records that count, the table as it is now, and a pipeline that keeps a table."""
    objects, changes = _objects(shape, place), names.part("changes")
    counted = changes_select(shape, DIALECT, objects)
    return (
        f"CREATE OR REPLACE VIEW {changes} AS\n{counted}",
        f"CREATE OR REPLACE VIEW {names.state} AS\n{state_select(shape, DIALECT, changes)}",
        *(_flow(shape, objects, names) if shape.key else ()),
    )


def _flow(shape: TableShape, objects: str, names: Names) -> tuple[str, ...]:
    """The statements of a pipeline: its source by Auto Loader, its table, and a view of that."""
    records, events, folded = names.alone("records"), names.alone("events"), names.part("folded")
    counted = changes_select(shape, DIALECT, f"STREAM {objects}")
    happened = events_select(shape, DIALECT, f"STREAM({records})")
    flow = f"""CREATE FLOW {names.alone("flow")} AS AUTO CDC INTO {folded}
FROM STREAM({events})
KEYS ({", ".join(key_names(shape))})
IGNORE NULL UPDATES
APPLY AS DELETE WHEN op = 'd'
APPLY AS TRUNCATE WHEN op = 't'
SEQUENCE BY position
COLUMNS * EXCEPT (op)
STORED AS SCD TYPE 1"""
    shown = folded_select(shape, DIALECT, folded)
    return (
        f"CREATE TEMPORARY VIEW {records} AS\n{counted}",
        f"CREATE TEMPORARY VIEW {events} AS\n{happened}",
        f"CREATE OR REFRESH STREAMING TABLE {folded}",
        flow,
        f"CREATE OR REFRESH MATERIALIZED VIEW {names.part('table')} AS\n{shown}",
    )
