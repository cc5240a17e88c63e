"""Snowflake: a stage, a table of loaded records, a pipe that fills it, a view, and a MERGE.

Strategy: records are loaded as they are, in any order. The view orders them by their positions, so
an object that comes late changes nothing but what it says. The MERGE brings a table to what the
view shows, whatever the order was in which files came.
"""

from typing import Final

from engine.reader.views.column import ViewColumn
from engine.reader.views.dialect import (
    Dialect,
    Typed,
    escaped_literal,
    numeric_size,
    quoted_double,
)
from engine.reader.views.flat import FlatForm, flat_records
from engine.reader.views.fold import NOT_GIVEN, POSITION, columns_shown, state_select
from engine.reader.views.names import Names, free
from engine.reader.views.objects import FIELDS
from engine.reader.views.place import Place
from engine.reader.views.records import counted_condition
from engine.reader.views.shape import TableShape

ABOUT: Final = (
    "Make a storage integration first, and put its name where TAILRACE stands.",
    "COPY INTO loads what is there. The pipe loads what comes, once the bucket's events reach its",
    "queue (SHOW PIPES names it). Records may be loaded in any order, and more than once.",
    "The last two statements of a table with a key bring a table beside the view up to it: run",
    "them as a task, MERGE first.",
    "A cut that is the same in all tables: take the comment away in every _changes view, with",
    "the position {position}.",
)
_DIGITS_MAX: Final = 38
_MAY_NOT_FIT: Final = {
    "timestamp": "TIMESTAMP_NTZ",
    "timestamptz": "TIMESTAMP_TZ",
    "time": "TIME",
    "date": "DATE",
}


def _text(source: str, name: str, column: ViewColumn) -> str:
    value = f"{source}[{escaped_literal(name)}]"
    return f"NULLIF(TO_JSON({value}), 'null')" if column.is_structured else f"{value}::VARCHAR"


def _typed(text: str, column: ViewColumn) -> Typed:
    match "text" if column.is_hashed else column.kind:
        case "boolean":
            return Typed(f"CAST({text} AS BOOLEAN)")
        case "integer":
            return Typed(f"CAST({text} AS NUMBER(19, 0))")
        case "float":
            return Typed(f"CAST(REPLACE({text}, 'Infinity', 'inf') AS FLOAT)")
        case "bytea":
            return Typed(f"TO_BINARY({text}, 'BASE64')")
        case _ if column.is_structured:
            return Typed(f"PARSE_JSON({text})")
        case _:
            return _typed_or_null(text, column)


def _typed_or_null(text: str, column: ViewColumn) -> Typed:
    size = numeric_size(column, _DIGITS_MAX)
    if size is not None:
        # A number has at most 37 digits behind the point.
        if size[1] > _DIGITS_MAX - 1:
            return Typed(text)
        return Typed(f"TRY_CAST({text} AS NUMBER({size[0]}, {size[1]}))", may_not_fit=True)
    kind = _MAY_NOT_FIT.get(column.kind, "")
    if not kind:
        return Typed(text)
    sure = f"CASE WHEN {text} NOT LIKE '% BC' THEN {text} END"
    return Typed(f"TRY_CAST({sure} AS {kind})", may_not_fit=True)


DIALECT: Final = Dialect(
    name="snowflake",
    identifier=quoted_double,
    literal=escaped_literal,
    text=_text,
    has=lambda names, name: f"ARRAY_CONTAINS({name}::VARIANT, {names})",
    typed=_typed,
    joined=lambda texts: f"ARRAY_TO_STRING(ARRAY_CONSTRUCT_COMPACT({', '.join(texts)}), ', ')",
    repeated=lambda count: f", LATERAL FLATTEN(INPUT => ARRAY_GENERATE_RANGE(0, {count})) AS copy",
    is_case_kept=True,
)


_FLAT: Final = FlatForm(
    row="record",
    text=lambda name: f"record[{escaped_literal(name)}]::VARCHAR",
    texts=lambda name: f"record[{escaped_literal(name)}]::ARRAY",
    # All commit times are UTC's.
    time=lambda text: (
        f"DATE_PART(EPOCH_MILLISECOND, TRY_CAST(RTRIM({text}, 'Z') AS TIMESTAMP_NTZ)) "
        "AS committed_ms"
    ),
)


def changes_select(shape: TableShape, loaded: str) -> str:
    """The SELECT of the records that count, of the table that they are loaded into.

    A file that was loaded twice counts once.
    """
    once = "QUALIFY ROW_NUMBER() OVER (PARTITION BY position ORDER BY position) = 1"
    if shape.envelope == "flat":
        return f"""SELECT *
FROM (
    {flat_records(shape, _FLAT, loaded)}
) AS records
WHERE {counted_condition(shape, DIALECT, "op", "position")}
    -- AND position < 'a position: the same cut in all tables'
{once}"""
    fields = FIELDS[shape.envelope]
    op = f"record:{fields.op.replace('.', ':', 1)}::VARCHAR"
    position = f"record:{fields.holder}:position::VARCHAR"
    return f"""SELECT {op} AS op, {position} AS position,
    record:{fields.holder}:{fields.time}::NUMBER AS committed_ms,
    STRIP_NULL_VALUE(record:before) AS before, STRIP_NULL_VALUE(record:after) AS after,
    record:{fields.holder}:unchanged::ARRAY AS unchanged,
    record:{fields.holder}:json_null::ARRAY AS json_null
FROM {loaded}
WHERE {counted_condition(shape, DIALECT, op, position)}
    -- AND {position} < 'a position: the same cut in all tables'
{once}"""


def _load(stage: str, loaded: str) -> str:
    return f"""COPY INTO {loaded} (record, file)
FROM (SELECT $1, METADATA$FILENAME FROM @{stage})
PATTERN = '.*[.]ndjson[.](gz|zst)'
FILE_FORMAT = (TYPE = JSON COMPRESSION = AUTO)"""


def statements(shape: TableShape, place: Place, names: Names) -> tuple[str, ...]:
    """What loads the records, the table as it is now, and what keeps a table like it."""
    stage, loaded, changes = names.part("stage"), names.part("records"), names.part("changes")
    url = escaped_literal(place.folder(shape.table))
    load = _load(stage, loaded)
    pipe = f"CREATE PIPE IF NOT EXISTS {names.part('pipe')} AUTO_INGEST = TRUE AS\n{load}"
    return (
        f"CREATE STAGE IF NOT EXISTS {stage}\nURL = {url}\nSTORAGE_INTEGRATION = TAILRACE",
        f"CREATE TABLE IF NOT EXISTS {loaded} (record VARIANT, file VARCHAR)",
        load,
        pipe,
        f"CREATE OR REPLACE VIEW {changes} AS\n{changes_select(shape, loaded)}",
        f"CREATE OR REPLACE VIEW {names.state} AS\n{state_select(shape, DIALECT, changes)}",
        *(_merge(shape, names) if shape.key else ()),
    )


def _compared(value: str, *, is_structured: bool) -> str:
    return f"TO_JSON({value})" if is_structured else value


def _merge(shape: TableShape, names: Names) -> tuple[str, ...]:
    """A table that is brought to what the view shows, whenever the last two are run."""
    shown = columns_shown(shape, DIALECT)
    columns = [quoted_double(name) for name in shown]
    position = quoted_double(free(POSITION, shown))
    every = [*columns, position, quoted_double(free(NOT_GIVEN, shown))]
    key = [quoted_double(name) for name in shape.key]
    same = " AND ".join(f"kept.{name} = seen.{name}" for name in key)
    kept = names.part("table")
    changed = ",\n    ".join(f"{name} = seen.{name}" for name in every if name not in key)
    # A record that comes late may change a value, and not the position of the newest record.
    structured = {quoted_double(column.name) for column in shape.columns if column.is_structured}
    differs = "\n    OR ".join(
        f"{_compared(f'seen.{name}', is_structured=name in structured)} IS DISTINCT FROM "
        f"{_compared(f'kept.{name}', is_structured=name in structured)}"
        for name in every
        if name not in key
    )
    merge = f"""MERGE INTO {kept} AS kept USING {names.state} AS seen
ON {same}
WHEN MATCHED AND (
    {differs}
) THEN UPDATE SET
    {changed}
WHEN NOT MATCHED THEN INSERT ({", ".join(every)})
VALUES ({", ".join(f"seen.{name}" for name in every)})"""
    gone = f"""DELETE FROM {kept} AS kept
WHERE NOT EXISTS (
    SELECT 1 FROM {names.state} AS seen WHERE {same}
)"""
    return (f"CREATE TABLE IF NOT EXISTS {kept} AS\nSELECT * FROM {names.state}", merge, gone)
