"""What a database holds that could be captured, for whoever has no configuration yet.

Strategy: a few questions to the catalog, and nothing is changed. Why a table cannot be captured
is what `judges` would refuse or leave out, so the reasons here agree with a start's.
"""

from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import pq

from engine.model.errors import ConfigurationError, SourceError
from engine.model.schema import TableName
from engine.sources.postgres.dsn import Dsn, parsed
from engine.sources.postgres.judges import server_fault
from engine.sources.postgres.row_filters import sql_name
from engine.sources.postgres.session import Session
from engine.sources.postgres.situation import read_server, read_tables
from engine.sources.postgres.statements import identity_statement

# Relations that hold rows and have no changes in the server's log.
_OTHERS: Final = """
SELECT n.nspname, c.relname, c.relkind OPERATOR(pg_catalog.=) 'f'
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE NOT c.relispartition AND (c.relkind OPERATOR(pg_catalog.=) 'f'
  OR (c.relkind OPERATOR(pg_catalog.=) 'r' AND c.relpersistence OPERATOR(pg_catalog.=) 'u'))
ORDER BY 1, 2
"""

_SECRET: Final = b"*"
"""How libpq marks options that nobody may see."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A table; where it cannot be captured, `reason` says why and `remedy` how it could be."""

    name: TableName
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Inventory:
    """A database's tables. `fault` is what a start would be refused for, whatever the tables."""

    place: str
    version: int
    role: str
    tables: tuple[Listed, ...]
    fault: SourceError | None


def holds_secret(dsn: str) -> bool:
    """Whether a password stands in it. Raises ConfigurationError where libpq cannot read it."""
    parsed(dsn)
    try:
        options = pq.Conninfo.parse(dsn.encode())
    except psycopg.Error:
        raise ConfigurationError("the connection string cannot be read") from None
    return any(option.dispchar == _SECRET and option.val for option in options)


def database_of(dsn: str) -> str:
    """The database's name, empty where the string has none. Raises ConfigurationError."""
    return parsed(dsn).get("dbname", "")


async def take_inventory(dsn: Dsn) -> Inventory:
    """Look at the database. Raises ConfigurationError and SourceError.

    Cancellation changes nothing.
    """
    async with Session(dsn) as session:
        server = await read_server(session)
        tables = [
            Listed(table.name)
            if table.is_keyed
            else Listed(
                table.name,
                "no primary key that is sent" if table.is_fixed else "no primary key",
                identity_statement(table.name, is_fixed=table.is_fixed),
            )
            for table in await read_tables(session)
        ]
        for schema, name, is_foreign in await session.rows(_OTHERS, doing="listing the tables"):
            table = TableName(schema, name)
            if is_foreign:
                tables.append(Listed(table, "a foreign table: its changes are elsewhere"))
            else:
                statement = f"ALTER TABLE {sql_name(table)} SET LOGGED"
                tables.append(Listed(table, "unlogged: its changes are in no log", statement))
        tables.sort(key=lambda each: each.name)
        return Inventory(
            session.place, server.version, server.role, tuple(tables), server_fault(server)
        )
