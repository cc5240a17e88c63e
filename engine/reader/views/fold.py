"""The current state of a table, as one SELECT over its records.

Strategy: a record is taken from two sides. The new side is the row that it writes. The old side is
the row that it removes: a delete's, and that of an update which changes the key. So every side has
one key, and the newest side of a key says whether the row is there. A `t` record ends everything
before it, so only what follows the newest one counts.

A column that an update left out has the value of the newest side of its key that holds it. Every
value is therefore kept as a text with a sign before it: no text at all is a value that is missing,
an empty one is null. A side that begins a row (an insert, a row of a snapshot, a key that a row
got) must not be given values from before it: those are another row's. What is missing then is null
in the view, and the row names the column.

Where whole rows are what tells rows apart, rows are counted: a side adds one or takes one away.
Only the row that a record writes says whether its null is JSON's. So both nulls are one there, or
the side that takes a row away would not find it.

Invariant: the text depends on its arguments alone.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from engine.reader.views.column import ViewColumn
from engine.reader.views.dialect import Dialect
from engine.reader.views.names import distinct, free
from engine.reader.views.shape import TableShape

POSITION: Final = "_position"
NOT_GIVEN: Final = "_not_given"

_BOTH_SIDES: Final = "CROSS JOIN (SELECT 0 AS side UNION ALL SELECT 1 AS side) AS both_sides"


_TOLD: Final = """
    SELECT *, op = 'u' AND has_before AND ({moved}) AS is_moved
    FROM sides
"""
_EVENTS: Final = """    FROM told
    WHERE (side = 0 AND op <> 'd') OR (side = 1 AND (op = 'd' OR is_moved))
),"""
_OF_FLOOR: Final = """
    SELECT * FROM {changes}
    WHERE op <> 't' AND position >= {floor}
"""
# Of an update that has no `before`, the row is as it was: all of it is its key.
_SIDES_OF_ROWS: Final = f"""    FROM counted {_BOTH_SIDES}
    WHERE CASE op WHEN 'u' THEN before IS NOT NULL WHEN 'd' THEN side = 1 ELSE side = 0 END
),"""
_ROWS: Final = """
    SELECT {names}, CAST(SUM(step) AS BIGINT) AS copies
    FROM sides
    GROUP BY {names}
    HAVING SUM(step) > 0
"""


def columns_shown(shape: TableShape, dialect: Dialect) -> tuple[str, ...]:
    """The view's name of each column, in order."""
    names = [column.name for column in shape.columns]
    if dialect.is_case_kept:
        return tuple(names)
    return tuple(distinct(names, allowed=dialect.allowed).values())


def state_select(shape: TableShape, dialect: Dialect, changes: str) -> str:
    """The SELECT of the rows that the table has now; `changes` is the relation of its records.

    That has the columns op, position, before, after, unchanged and json_null, of counted records
    only.
    """
    if shape.key:
        return _by_key(shape, dialect, changes)
    return _by_row(shape, dialect, changes)


def _by_key(shape: TableShape, dialect: Dialect, changes: str) -> str:
    keys, rest = _key_columns(shape), _other_columns(shape)
    carried = [at for at, column in rest if column.is_carried]
    folded = [
        *(f"key_{at}" for at, _ in keys),
        "MAX(position) AS position",
        "MAX_BY(is_gone, position) AS is_gone",
        "MAX(CASE WHEN is_begin THEN position END) AS begun",
        *(_newest(at, column) for at, column in rest),
        *(f"MAX(CASE WHEN holds_{at} THEN position END) AS held_{at}" for at in carried),
    ]
    texts = [
        "position",
        *(f"key_{at}" for at, _ in keys),
        *(_text(at, column) for at, column in rest),
        *(
            f"COALESCE(held_{at} IS NULL OR held_{at} < begun, FALSE) AS lacks_{at}"
            for at in carried
        ),
    ]
    return "\n".join(
        (
            f"WITH counted AS ({_counted(shape, dialect, changes)}),",
            *_events(shape, dialect, "counted"),
            _part("folded", folded)
            + f"    FROM events\n    GROUP BY {', '.join(f'key_{at}' for at, _ in keys)}\n),",
            _part("texts", texts) + "    FROM folded\n    WHERE NOT is_gone\n)",
            _shown_select(shape, dialect),
        )
    )


def events_select(shape: TableShape, dialect: Dialect, changes: str) -> str:
    """The SELECT of what happens to each key, for an engine that folds by itself.

    `op` is d where the row goes, t where all rows go, else u. A value has a sign before it, is
    empty for null, and null where the record does not hold it: then the row keeps what it has.
    """
    rest = _other_columns(shape)
    keys = key_names(shape)
    values = [
        f"CASE WHEN holds_{at} THEN value_{at} END AS value_{at}"
        if column.is_carried
        else f"CASE WHEN NOT is_gone THEN value_{at} END AS value_{at}"
        for at, column in rest
    ]
    nothing = [f"CAST(NULL AS STRING) AS {name}" for name in keys]
    nothing += [f"CAST(NULL AS STRING) AS value_{at}" for at, _ in rest]
    floor = dialect.literal(shape.floor)
    return "\n".join(
        (
            f"WITH counted AS ({_OF_FLOOR.format(changes=changes, floor=floor)}),",
            *_events(shape, dialect, "counted"),
            "happened AS (",
            _select(["CASE WHEN is_gone THEN 'd' ELSE 'u' END AS op", "position", *keys, *values]),
            "FROM events",
            "UNION ALL",
            # The one that begins the snapshot has nothing before it here.
            _select(["op", "position", *nothing]),
            f"FROM {changes}\nWHERE op = 't' AND position > {floor}\n)",
            "SELECT * FROM happened",
        )
    )


def folded_select(shape: TableShape, dialect: Dialect, folded: str) -> str:
    """The SELECT of the rows that the table has now, of what an engine made of the events."""
    rest = _other_columns(shape)
    texts = [
        "position",
        *(f"key_{at}" for at, _ in _key_columns(shape)),
        *(
            f"CASE WHEN value_{at} <> '' THEN SUBSTR(value_{at}, 2) END AS text_{at}"
            for at, _ in rest
        ),
        *(f"value_{at} IS NULL AS lacks_{at}" for at, column in rest if column.is_carried),
    ]
    return "\n".join(
        (
            "WITH " + _part("texts", texts) + f"    FROM {folded}\n)",
            _shown_select(shape, dialect),
        )
    )


def key_names(shape: TableShape) -> list[str]:
    """What the columns of the key are called among events."""
    return [f"key_{at}" for at, _ in _key_columns(shape)]


def _key_columns(shape: TableShape) -> list[tuple[int, ViewColumn]]:
    """The key's columns in its order, each with its number among all."""
    by_name = {column.name: (at, column) for at, column in enumerate(shape.columns, 1)}
    return [by_name[name] for name in shape.key]


def _other_columns(shape: TableShape) -> list[tuple[int, ViewColumn]]:
    numbered = enumerate(shape.columns, 1)
    return [(at, column) for at, column in numbered if column.name not in shape.key]


def _events(shape: TableShape, dialect: Dialect, counted: str) -> Iterator[str]:
    """The parts that make events of records: one for each side."""
    keys, rest = _key_columns(shape), _other_columns(shape)
    carried = [(at, column) for at, column in rest if column.is_carried]
    moved = " OR ".join(f"old_{at} IS DISTINCT FROM new_{at}" for at, _ in keys)
    sides = [
        "op",
        "position",
        "side",
        "before IS NOT NULL AS has_before",
        *(f"{_text_in('before', column, dialect)} AS old_{at}" for at, column in keys),
        *(f"{_new_text(column, dialect)} AS new_{at}" for at, column in keys),
        *(f"{_kept(_new_value(column, dialect))} AS value_{at}" for at, column in rest),
        *(f"{_holds(column, dialect)} AS holds_{at}" for at, column in carried),
    ]
    events = [
        *(f"CASE WHEN side = 1 THEN old_{at} ELSE new_{at} END AS key_{at}" for at, _ in keys),
        "position",
        "side = 1 AS is_gone",
        "side = 1 OR op <> 'u' OR is_moved AS is_begin",
        *(f"value_{at}" for at, _ in rest),
        *(f"side = 0 AND holds_{at} AS holds_{at}" for at, _ in carried),
    ]
    yield _part("sides", sides) + f"    FROM {counted} {_BOTH_SIDES}\n),"
    yield f"told AS ({_TOLD.format(moved=moved)}),"
    yield _part("events", events) + _EVENTS


def _shown_select(shape: TableShape, dialect: Dialect) -> str:
    """The columns under their types, of the part `texts`."""
    keys = {column.name for _, column in _key_columns(shape)}
    numbered = list(enumerate(shape.columns, 1))
    shown = [
        (column, f"key_{at}" if column.name in keys else f"text_{at}") for at, column in numbered
    ]
    lacking = {
        column.name: f"lacks_{at}" for at, column in _other_columns(shape) if column.is_carried
    }
    lines = [*_typed(shown, shape, dialect), *_extras(shown, lacking, shape, dialect)]
    return f"{_select(lines)}\nFROM texts"


def _by_row(shape: TableShape, dialect: Dialect, changes: str) -> str:
    columns = list(enumerate(shape.columns, 1))
    values = [
        f"CASE WHEN side = 1 THEN {_removed_value(column, dialect)} "
        f"ELSE {_added_value(column, dialect)} END AS text_{at}"
        for at, column in columns
    ]
    names = ", ".join(f"text_{at}" for at, _ in columns)
    shown = [(column, f"text_{at}") for at, column in columns]
    return "\n".join(
        (
            f"WITH counted AS ({_counted(shape, dialect, changes)}),",
            _part("sides", ["CASE WHEN side = 1 THEN -1 ELSE 1 END AS step", *values])
            + _SIDES_OF_ROWS,
            f"texts AS ({_ROWS.format(names=names)})",
            _select([*_typed(shown, shape, dialect), *_extras(shown, {}, shape, dialect)[1:]]),
            f"FROM texts {dialect.repeated('copies')}",
        )
    )


def _counted(shape: TableShape, dialect: Dialect, changes: str) -> str:
    return f"""
    SELECT op, position, before, after, unchanged, json_null
    FROM {changes}
    WHERE op <> 't'
        AND position >= {dialect.literal(shape.floor)}
        AND position > (SELECT COALESCE(MAX(position), '') FROM {changes} WHERE op = 't')
"""


def _part(name: str, lines: Iterable[str]) -> str:
    return f"{name} AS (\n    SELECT\n        " + ",\n        ".join(lines) + "\n"


def _select(lines: Iterable[str]) -> str:
    return "SELECT\n    " + ",\n    ".join(lines)


def _by_name(column: ViewColumn, dialect: Dialect, made: Callable[[str], str]) -> str:
    """What is made of the column's name, by the name that a record has it under."""
    if not column.former:
        return made(column.name)
    names = (column.name, *(name for _, name in column.former))
    cases = " ".join(
        f"WHEN position >= {dialect.literal(since)} THEN {made(name)}"
        for (since, _), name in zip(column.former, names, strict=False)
    )
    return f"CASE {cases} ELSE {made(names[-1])} END"


def _text_in(source: str, column: ViewColumn, dialect: Dialect) -> str:
    return _by_name(column, dialect, lambda name: dialect.text(source, name, column))


def _is_in(names: str, column: ViewColumn, dialect: Dialect) -> str:
    def made(name: str) -> str:
        return f"COALESCE({dialect.has(names, dialect.literal(name))}, FALSE)"

    return _by_name(column, dialect, made)


def _new_text(column: ViewColumn, dialect: Dialect) -> str:
    """A value of the row that a record writes, where `before` has what it left out."""
    after = _text_in("after", column, dialect)
    if not column.is_long or not column.is_in_before:
        return after
    before = _text_in("before", column, dialect)
    return f"CASE WHEN {_is_in('unchanged', column, dialect)} THEN {before} ELSE {after} END"


def _removed_value(column: ViewColumn, dialect: Dialect) -> str:
    """A value of the row that a record takes away, where rows are counted."""
    return _filled(_text_in("before", column, dialect), column, dialect)


def _added_value(column: ViewColumn, dialect: Dialect) -> str:
    """A value of the row that a record adds, where rows are counted."""
    return _filled(_new_text(column, dialect), column, dialect)


def _new_value(column: ViewColumn, dialect: Dialect) -> str:
    value = _new_text(column, dialect)
    if column.kind == "json" and column.is_structured:
        is_null = _is_in("json_null", column, dialect)
        value = f"CASE WHEN {is_null} THEN 'null' ELSE {value} END"
    return _filled(value, column, dialect)


def _filled(value: str, column: ViewColumn, dialect: Dialect) -> str:
    """A record's value, or what rows have in the column that were there before it."""
    if not column.born:
        return value
    fill = f" ELSE {dialect.literal(column.fill)}" if column.fill is not None else ""
    return f"CASE WHEN position >= {dialect.literal(column.born)} THEN {value}{fill} END"


def _kept(value: str) -> str:
    """A value with a sign before it; empty for null."""
    return f"COALESCE('=' || {value}, '')"


def _holds(column: ViewColumn, dialect: Dialect) -> str:
    """Whether a record says the column's value."""
    given = f"NOT {_is_in('unchanged', column, dialect)}"
    if not column.is_long or column.is_in_before:
        given = "TRUE"
    if not column.born:
        return given
    born = dialect.literal(column.born)
    if column.is_fill_known:
        return f"(position < {born} OR {given})"
    return f"(position >= {born} AND {given})"


def _newest(at: int, column: ViewColumn) -> str:
    if not column.is_carried:
        return f"MAX_BY(value_{at}, position) AS value_{at}"
    return f"MAX_BY(value_{at}, CASE WHEN holds_{at} THEN position END) AS value_{at}"


def _text(at: int, column: ViewColumn) -> str:
    condition = f"value_{at} <> ''"
    if column.is_carried:
        condition += f" AND (begun IS NULL OR held_{at} >= begun)"
    return f"CASE WHEN {condition} THEN SUBSTR(value_{at}, 2) END AS text_{at}"


def _typed(
    shown: list[tuple[ViewColumn, str]], shape: TableShape, dialect: Dialect
) -> Iterator[str]:
    names = columns_shown(shape, dialect)
    for (column, text), name in zip(shown, names, strict=True):
        yield f"{dialect.typed(text, column).sql} AS {dialect.identifier(name)}"


def _extras(
    shown: list[tuple[ViewColumn, str]],
    lacking: dict[str, str],
    shape: TableShape,
    dialect: Dialect,
) -> list[str]:
    """The newest record's position, and the names of columns whose values the view cannot give."""
    names = columns_shown(shape, dialect)
    reasons: list[str] = []
    for column, text in shown:
        conditions = [lacking[column.name]] if column.name in lacking else []
        typed = dialect.typed(text, column)
        if typed.may_not_fit:
            conditions.append(f"({text} IS NOT NULL AND {typed.sql} IS NULL)")
        if conditions:
            name = dialect.literal(column.name)
            reasons.append(f"CASE WHEN {' OR '.join(conditions)} THEN {name} END")
    missing = (
        f"NULLIF({dialect.joined(tuple(reasons))}, '')" if reasons else "CAST(NULL AS VARCHAR)"
    )
    return [
        f"position AS {dialect.identifier(free(POSITION, names))}",
        f"{missing} AS {dialect.identifier(free(NOT_GIVEN, names))}",
    ]
