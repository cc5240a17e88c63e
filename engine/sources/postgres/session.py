"""Sessions with a PostgreSQL server: how they are opened, and how its errors become ours.

Strategy: the dsn goes to libpq as it is (TLS, authentication, several hosts); what we add goes
through connection parameters, so that the settings that shape values are in force before the first
byte. psycopg's own connect keeps the loop free (name resolution included). Every psycopg error
passes `translated`.

Invariant: no message made here holds a password, and none the DETAIL of a server's error: that may
carry row values.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, LiteralString, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from engine.errors import (
    ConfigurationError,
    PositionLost,
    SourceError,
    SourceRefused,
    SourceUnavailable,
)

SHAPING_SETTINGS: Final[tuple[tuple[str, str], ...]] = (
    ("DateStyle", "ISO"),
    ("IntervalStyle", "iso_8601"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "3"),
    ("lc_monetary", "C"),
)
"""Session settings that shape values as text. They belong to the record configuration."""

# Defaults where the dsn says nothing: a host that is gone is noticed in 25 s instead of two hours.
_DEFAULTS: Final[Mapping[str, str]] = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
}

_START_UP: Final = frozenset({"57P01", "57P02", "57P03", "57P05", "53300", "25P03"})
"""Server starting, stopping, full, or ending idle sessions: it may work later."""

# libpq gives no SQLSTATE for a failed connect, only the server's text; where the server speaks
# another language, the failure counts as unavailable and is retried.
_REFUSALS: Final = (
    ("password authentication failed", "check user and password in source.dsn"),
    ("authentication failed", "check user and authentication in source.dsn"),
    ("no password supplied", "give a password in source.dsn, or a passfile"),
    ("no pg_hba.conf entry", "allow this host in the server's pg_hba.conf"),
    ("pg_hba.conf rejects", "allow this host in the server's pg_hba.conf"),
    ("does not exist", "check dbname and user in source.dsn"),
    ("is not permitted to log in", "ALTER ROLE … LOGIN"),
    ("permission denied for database", "GRANT CONNECT ON DATABASE … TO …"),
    ("must be superuser or replication role", "ALTER ROLE … REPLICATION"),
    ("permission denied to start WAL sender", "ALTER ROLE … REPLICATION"),
    ("certificate", "check sslmode and sslrootcert in source.dsn"),
    ("server does not support SSL", "check sslmode in source.dsn"),
)

Query = LiteralString | sql.SQL | sql.Composed

Row = tuple[Any, ...]
"""What a query gives. Any: the query's text alone knows the columns' types."""

Connection = psycopg.AsyncConnection[Row]


async def connect(
    dsn: str,
    *,
    replication: bool,
    settings: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Connection:
    """A session with the shaping settings and `settings`; `replication` for a walsender's.

    Raises ConfigurationError for a dsn that is none, SourceRefused or SourceUnavailable.
    Cancellation leaves no connection behind.
    """
    parameters = _parameters(dsn)
    options = {**dict(SHAPING_SETTINGS), "statement_timeout": "0", **(settings or {})}
    if replication:
        parameters["replication"] = "database"
    flags = [parameters.get("options", "")]
    flags += [f"-c {name}={_escaped(value)}" for name, value in options.items()]
    parameters |= {
        "options": " ".join(flags).strip(),
        "client_encoding": "UTF8",
        "application_name": "tailrace",
    }
    try:
        conninfo = make_conninfo(**{**parameters, **(overrides or {})})
        return await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
    except psycopg.Error as error:
        raise connect_failure(error) from error


def _escaped(value: str) -> str:
    # The server splits the options at spaces that no backslash precedes.
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


def beside(connection: Connection) -> dict[str, str]:
    """Connection parameters that lead to the very server of `connection`."""
    server = connection.pgconn
    found = {"host": server.host, "hostaddr": server.hostaddr, "port": server.port}
    return {name: value.decode() for name, value in found.items() if value}


def database_of(dsn: str) -> str:
    """The database's name as the dsn gives it; empty where libpq's defaults decide."""
    return _parameters(dsn).get("dbname", "")


def _parameters(dsn: str) -> dict[str, str]:
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.Error:
        # libpq's own text quotes the dsn, password included.
        raise ConfigurationError(
            "source.dsn is neither a libpq connection string nor a URI",
            hint="write it as postgresql://user@host:5432/database",
        ) from None
    return {**_DEFAULTS, **{name: str(value) for name, value in given.items() if value is not None}}


def connect_failure(error: psycopg.Error) -> SourceError:
    """What a failed connect means to the operator."""
    text = " ".join(str(error).split())
    for sign, hint in _REFUSALS:
        # A missing UNIX socket "does not exist" either, but there nobody answered.
        if sign in text and "FATAL" in text:
            return SourceRefused(f"PostgreSQL refused the connection: {text}", hint=hint)
    if "certificate" in text or "does not support SSL" in text:
        return SourceRefused(
            f"no TLS connection to PostgreSQL: {text}",
            hint="check sslmode and sslrootcert in source.dsn",
        )
    return SourceUnavailable(
        f"no connection to PostgreSQL: {text}", hint="check that the server runs and can be reached"
    )


def translated(error: psycopg.Error, doing: str) -> SourceError:
    """The error of our tree for what a server answered, or failed to answer, while `doing`."""
    state = error.sqlstate or ""
    text = primary_message(error)
    if not state or state.startswith("08") or state in _START_UP:
        return SourceUnavailable(
            f"lost PostgreSQL while {doing}: {text}", hint="it is tried again; see the server's log"
        )
    if state == "42501":
        return SourceRefused(
            f"PostgreSQL denies {doing}: {text}", hint="grant the right that the message names"
        )
    if state == "58P01":
        return PositionLost(
            f"PostgreSQL no longer has the log needed for {doing}: {text}",
            hint="changes are lost; raise max_slot_wal_keep_size, start anew under another prefix",
        )
    return SourceRefused(f"PostgreSQL refused {doing}: {text} (SQLSTATE {state})")


def quoted(name: str) -> str:
    """An identifier as SQL takes it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def primary_message(error: psycopg.Error) -> str:
    """The server's message without DETAIL and CONTEXT, which may quote values."""
    return error.diag.message_primary or " ".join(str(error).split())


class Session:
    """A plain session for questions beside the stream; opened when needed, again when lost."""

    def __init__(self, dsn: str, **overrides: str) -> None:
        self._dsn = dsn
        self._overrides = overrides
        self._connection: Connection | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def is_open(self) -> bool:
        """Whether it was open when last used."""
        return self._connection is not None

    async def close(self) -> None:
        """Close; the next question would open it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def rows(self, query: Query, *arguments: object, doing: str) -> list[Row]:
        """The rows of one query, asked again once where the session was lost meanwhile.

        Raises SourceError. Cancellation cancels the query and keeps the session.
        """
        is_fresh = self._connection is None
        try:
            return await self._rows(query, arguments, doing)
        except SourceUnavailable:
            await self.close()
            if is_fresh:
                raise
        return await self._rows(query, arguments, doing)

    async def _rows(self, query: Query, arguments: tuple[object, ...], doing: str) -> list[Row]:
        async with self._opening:
            if self._connection is None:
                self._connection = await connect(
                    self._dsn, replication=False, overrides=self._overrides
                )
            connection = self._connection
        try:
            cursor = await connection.execute(query, arguments or None)
            return await cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise translated(error, doing) from error
