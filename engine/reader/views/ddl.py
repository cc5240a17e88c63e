"""All statements for one engine: a text that it runs as it is.

Strategy: what holds for all tables is said once, at the top; what holds for one stands above its
statements. A table of which no view can be made is named with the reason.

Invariant: whatever comes from outside stands in a quoted name, in a literal, or, made printable, in
a comment of one line. Nothing of the configuration is printed but the bucket's name and the prefix.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from engine.journal.entry import JournalState, time_shown
from engine.model.position import NOWHERE, Position
from engine.model.printable import printable
from engine.model.schema import TableName
from engine.reader.views.dialect import Dialect
from engine.reader.views.engines import CREATE_SCHEMA, ENGINES, Engine, EngineName
from engine.reader.views.fold import NOT_GIVEN, POSITION
from engine.reader.views.names import Names, distinct
from engine.reader.views.place import Place
from engine.reader.views.shape import NoShape, TableShape, shape_of

_ABOUT: Final = (
    "Print this again after a new version of a table's schema (a column that came, went, or has",
    "another type), and after a snapshot became visible (a resync): its rows count from then on.",
    f"The table's own columns come first. {POSITION} is the position of the row's newest record.",
    f"{NOT_GIVEN} names columns that are null here because the view cannot give their value: the",
    "records that count do not hold it, or the type here does not.",
    "Rows at or after the durable position may be there of one table and not yet of another.",
)


@dataclass(frozen=True, slots=True)
class Printed:
    """The text, and how many of its tables are in doubt, or have no view."""

    text: str
    doubtful_count: int


def ddl_text(
    engine_name: EngineName,
    state: JournalState,
    place: Place,
    wanted: Iterable[TableName],
    known: Iterable[TableName],
    *,
    elsewhere: Mapping[TableName, Position] = MappingProxyType({}),
) -> Printed:
    """The statements for the `wanted` tables, of all that the journal knows.

    `elsewhere` is where the newest object of a table begins that another layout has put elsewhere.
    """
    engine = ENGINES[engine_name]
    names = _named(sorted(known), engine.dialect)
    quoted = engine.dialect.identifier
    shapes = [shape_of(state, table, elsewhere.get(table, NOWHERE)) for table in sorted(wanted)]
    schemas = dict.fromkeys(
        quoted(names[shape.table].schema) for shape in shapes if isinstance(shape, TableShape)
    )
    blocks = ["\n".join(_comment(_top(engine_name, engine, state, place)))]
    blocks += [f"{CREATE_SCHEMA.format(name=schema)};" for schema in schemas]
    for shape in shapes:
        blocks.append("\n".join(_comment(_above(shape))))
        if isinstance(shape, TableShape):
            statements = engine.statements(shape, place, names[shape.table])
            blocks += [f"{text};" for text in statements]
    doubtful = sum(isinstance(shape, NoShape) or bool(shape.doubts) for shape in shapes)
    return Printed("\n\n".join(blocks) + "\n", doubtful)


def _named(tables: list[TableName], dialect: Dialect) -> Mapping[TableName, Names]:
    """Every known table's names: the same whichever tables were asked for."""

    def told_apart(names: list[str]) -> dict[str, str]:
        if dialect.is_case_kept:
            return {name: name for name in names}
        return distinct(names, allowed=dialect.allowed)

    schemas = told_apart(list(dict.fromkeys(table.schema for table in tables)))
    found: dict[TableName, Names] = {}
    for schema, shown in schemas.items():
        own = told_apart([table.table for table in tables if table.schema == schema])
        taken = frozenset(own.values())
        for name, given in own.items():
            found[TableName(schema, name)] = Names(dialect.identifier, shown, given, taken)
    return found


def _comment(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield f"-- {printable(line)}".rstrip()


def _top(name: EngineName, engine: Engine, state: JournalState, place: Place) -> Iterator[str]:
    durable = state.durable
    position = durable.position if durable is not None else ""
    yield f"tailrace views {name}: bucket {place.bucket}, prefix {place.prefix}"
    yield f"As of journal entry {state.seq}. Everything before position {position} is durable"
    if durable is not None:
        yield f"(its last commit was at {time_shown(durable.commit_time)})."
    yield ""
    yield from _ABOUT
    yield ""
    for line in engine.about:
        yield line.format(position=position)


def _above(shape: TableShape | NoShape) -> Iterator[str]:
    if isinstance(shape, NoShape):
        yield f"{shape.table}: no view, for {shape.reason}."
        return
    key = f"key {', '.join(shape.key)}" if shape.key else "no key: whole rows are counted"
    rows = f"rows of snapshot attempt {shape.attempt} and" if shape.attempt else "no snapshot,"
    yield f"{shape.table}: version {shape.version}, {key}, {rows} the changes since."
    for doubt in shape.doubts:
        yield f"MAY BE WRONG: {doubt}."
    for limit in shape.limits:
        yield f"Note: {limit}."
