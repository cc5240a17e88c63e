"""`tailrace views`: SQL over the objects, for engines that read the bucket by themselves."""

import asyncio
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Final, Literal

from cyclopts import Parameter

from engine.cli.options import ConfigFile, same_file
from engine.cli.output import complain, say_as_is, tell, tell_next
from engine.cli.startup import lean_imports
from engine.config import DestinationConfiguration, default_log, load_destination
from engine.model.plural import counted
from engine.model.request import RequestRefused
from engine.model.schema import TableName

if TYPE_CHECKING:
    from engine.reader.views.ddl import Printed
    from engine.reader.views.engines import EngineName

EXIT_USAGE = 2

WHERE: Final[Mapping["EngineName", str]] = {
    "duckdb": "DuckDB",
    "athena": "Athena",
    "snowflake": "a worksheet of Snowflake",
    "databricks": "Databricks' SQL editor",
    "spark": "spark-sql",
}
"""Where the statements are run."""

EngineOption = Annotated[
    Literal["duckdb", "athena", "snowflake", "databricks", "spark"],
    Parameter(help="The engine that is to read the bucket."),
]

Tables = Annotated[
    str,
    Parameter(
        name="TABLE",
        help="schema.table, quoted as in SQL. The schema may be left out where one table alone has "
        "that name. Without any: all tables.",
    ),
]


def views(engine: EngineOption, /, *tables: Tables, config: ConfigFile = None) -> int:
    """Print SQL that makes a view of each table as it is now, over the objects in the bucket.

    Needs only [destination] of the configuration, and the right to list and read. Columns and types
    are those that the journal knows, never inferred. Nothing is changed, and no credentials are
    printed. What a view cannot give is said in a comment above it.
    """
    destination = load_destination(config, os.environ)
    try:
        printed = asyncio.run(_printed(engine, tables, destination))
    except RequestRefused as refusal:
        complain(str(refusal), f"`tailrace status{same_file(config)}` lists the tables")
        return EXIT_USAGE
    say_as_is(printed.text.rstrip("\n"))
    if printed.doubtful_count:
        count = counted(printed.doubtful_count, "table")
        tell(
            f"warning: {count} may not be shown right, or not at all: look for "
            '"MAY BE WRONG" and "no view" in the comments'
        )
    tell_next(f"run it in {WHERE[engine]}: its first comment says what it needs")
    return 0


async def _printed(
    engine: "EngineName", tables: tuple[str, ...], destination: DestinationConfiguration
) -> "Printed":
    with lean_imports():
        from engine import app  # noqa: PLC0415 - a wrong configuration is told before
        from engine.operate import logs  # noqa: PLC0415 - likewise
    from engine.journal.requests import known_tables  # noqa: PLC0415 - likewise
    from engine.reader.asking import tables_meant  # noqa: PLC0415 - likewise
    from engine.reader.elsewhere import newest_elsewhere  # noqa: PLC0415 - likewise
    from engine.reader.journal import JournalView  # noqa: PLC0415 - likewise
    from engine.reader.views.ddl import ddl_text  # noqa: PLC0415 - likewise
    from engine.reader.views.place import Place  # noqa: PLC0415 - likewise

    logs.configure(default_log())
    async with app.open_bucket(destination) as store:
        view = JournalView(store, destination.prefix)
        await view.load()
        state = view.state
        assert state.source is not None
        known = [TableName.parse(name) for name in known_tables(state)]
        wanted = [TableName.parse(name) for name in tables_meant(tables, state)] or known
        place = Place(
            destination.bucket,
            destination.prefix,
            state.source.database,
            state.configurations[state.epoch].layout,
        )
        elsewhere = await newest_elsewhere(
            store, place.prefix, place.database, place.layout, wanted
        )
    return ddl_text(engine, state, place, wanted, known, elsewhere=elsewhere)
