"""DuckDB: views that read the objects by their names, through httpfs."""

from typing import Final

from engine.reader.views.column import ViewColumn
from engine.reader.views.dialect import (
    Dialect,
    Typed,
    numeric_size,
    quoted_double,
    standard_literal,
)
from engine.reader.views.flat import FlatForm, flat_records
from engine.reader.views.fold import state_select
from engine.reader.views.names import Names
from engine.reader.views.place import Place
from engine.reader.views.records import counted_condition
from engine.reader.views.shape import TableShape

UNTIL: Final = "tailrace_until"
ABOUT: Final = (
    "DuckDB reads s3:// by its extension httpfs. Its extension aws finds credentials:",
    "CREATE SECRET (TYPE s3, PROVIDER credential_chain)",
    "A cut that is the same in all tables, as of what was durable when this was printed:",
    f"SET VARIABLE {UNTIL} = '{{position}}'; RESET VARIABLE {UNTIL} ends it",
    "DuckDB reads JSON's numbers as doubles: beyond 15 digits, numbers in JSON columns are",
    'rounded, and so are numeric columns under numeric = "number".',
    "A record of more than 16 MiB needs maximum_object_size in READ_JSON.",
)
_DIGITS_MAX: Final = 38
_INTEGERS: Final = {"smallint": "SMALLINT", "integer": "INTEGER"}
_KINDS: Final = {
    "boolean": "BOOLEAN",
    "timestamp": "TIMESTAMP",
    "timestamptz": "TIMESTAMPTZ",
    "time": "TIME",
    "timetz": "TIMETZ",
    "json": "JSON",
}
_ELEMENTS: Final = {"boolean": "BOOLEAN", "integer": "BIGINT", "float": "DOUBLE", "json": "JSON"}

_OBJECT: Final = "MAP(VARCHAR, JSON)"
_RECORD: Final = {
    "standard": (
        f"before: '{_OBJECT}', after: '{_OBJECT}', metadata: 'STRUCT(op VARCHAR, "
        '"position" VARCHAR, source_ts_ms BIGINT, unchanged VARCHAR[], json_null VARCHAR[])\''
    ),
    "debezium": (
        f"before: '{_OBJECT}', after: '{_OBJECT}', op: 'VARCHAR', source: 'STRUCT("
        '"position" VARCHAR, ts_ms BIGINT, unchanged VARCHAR[], json_null VARCHAR[])\''
    ),
}
_MEMBERS: Final = {
    "standard": ("metadata.op", "metadata.position", "metadata.source_ts_ms", "metadata"),
    "debezium": ("op", "source.position", "source.ts_ms", "source"),
}


def _text(source: str, name: str, column: ViewColumn) -> str:
    value = f"{source}[{standard_literal(name)}]"
    return f"CAST({value} AS VARCHAR)" if column.is_structured else f"({value} ->> '$')"


def _typed(text: str, column: ViewColumn) -> Typed:
    if column.is_hashed:
        return Typed(text)
    element = column.kind.removesuffix("[]")
    if element != column.kind:
        return Typed(_array(f"CAST({text} AS JSON)", element), may_not_fit=True)
    match column.kind:
        case "bytea":
            return Typed(f"FROM_BASE64({text})")
        case "integer":
            return Typed(f"CAST({text} AS {_INTEGERS.get(column.type, 'BIGINT')})")
        case "float":
            return Typed(f"CAST({text} AS {'FLOAT' if column.type == 'real' else 'DOUBLE'})")
        case _:
            return _typed_or_null(text, column)


def _array(array: str, element: str) -> str:
    """A list, where the value is an array of one dimension, from 1 on."""
    kind = _ELEMENTS.get(element, "VARCHAR")
    fits = f"JSON_TYPE({array}) = 'ARRAY'"
    if element != "json":
        # A cast that may fail makes nulls of the inner arrays.
        fits += f" AND NOT LIST_CONTAINS(JSON_TYPE({array}, '$[*]'), 'ARRAY')"
    return f"CASE WHEN {fits} THEN CAST({array} AS {kind}[]) END"


def _typed_or_null(text: str, column: ViewColumn) -> Typed:
    """Of types with values that the engine's own type does not hold."""
    size = numeric_size(column, _DIGITS_MAX)
    if size is not None:
        return Typed(f"TRY_CAST({text} AS DECIMAL({size[0]}, {size[1]}))", may_not_fit=True)
    if column.kind == "date":
        # Without the brackets DuckDB ignores what follows the day.
        return Typed(f"TRY_CAST(REPLACE({text}, ' BC', ' (BC)') AS DATE)", may_not_fit=True)
    kind = _KINDS.get(column.kind, "")
    # Years before Christ, and beyond what the type reaches.
    return Typed(f"TRY_CAST({text} AS {kind})", may_not_fit=True) if kind else Typed(text)


DIALECT: Final = Dialect(
    name="duckdb",
    identifier=quoted_double,
    literal=standard_literal,
    text=_text,
    has=lambda names, name: f"LIST_CONTAINS({names}, {name})",
    typed=_typed,
    joined=lambda texts: f"CONCAT_WS(', ', {', '.join(texts)})",
    repeated=lambda count: f"CROSS JOIN UNNEST(GENERATE_SERIES(1, {count})) AS copy(number)",
)


def changes_select(shape: TableShape, place: Place) -> str:
    """The SELECT of all records that count, up to the position that a variable may hold."""
    # In a prefix, an asterisk is a character as any other.
    names = place.folder(shape.table).replace("*", "[*]") + "**/*.ndjson.*"
    if shape.envelope == "flat":
        source = flat_records(shape, _FLAT, _lines(names))
    else:
        op, position, time, lists = _MEMBERS[shape.envelope]
        source = f"""SELECT {op} AS op, {position} AS position,
        EPOCH_MS({time}) AS committed_at, before, after,
        {lists}.unchanged AS unchanged, {lists}.json_null AS json_null
    FROM READ_JSON({standard_literal(names)}, format = 'newline_delimited',
        hive_partitioning = false, columns = {{{_RECORD[shape.envelope]}}})"""
    return f"""SELECT *
FROM (
    {source}
) AS records
WHERE {counted_condition(shape, DIALECT, "op", "position")}
    AND (GETVARIABLE('{UNTIL}') IS NULL OR position < CAST(GETVARIABLE('{UNTIL}') AS VARCHAR))"""


_FLAT: Final = FlatForm(
    row="members",
    text=lambda name: f"(members[{standard_literal(name)}] ->> '$')",
    texts=lambda name: f"CAST(members[{standard_literal(name)}] AS VARCHAR[])",
    time=lambda text: f"TRY_CAST({text} AS TIMESTAMPTZ) AS committed_at",
)


def _lines(names: str) -> str:
    return f"""(
        SELECT CAST(json AS {_OBJECT}) AS members
        FROM READ_NDJSON_OBJECTS({standard_literal(names)}, hive_partitioning = false)
    ) AS lines"""


def statements(shape: TableShape, place: Place, names: Names) -> tuple[str, ...]:
    """A view of the records that count, and one of the table as it is now."""
    changes = names.part("changes")
    return (
        f"CREATE OR REPLACE VIEW {changes} AS\n{changes_select(shape, place)}",
        f"CREATE OR REPLACE VIEW {names.state} AS\n{state_select(shape, DIALECT, changes)}",
    )
