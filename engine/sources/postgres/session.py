"""Sessions with a PostgreSQL server: how they are opened, and how its errors become ours.

Strategy: the dsn goes to libpq as it is (TLS, authentication, several hosts). What we add goes
through connection parameters, so that the settings that shape values are in force before the first
byte. psycopg's own connect keeps the loop free, name resolution included. Every psycopg error
passes `translated`.

Invariant: no message made here holds a password, and none holds the DETAIL of a server's error,
which may carry row values.
"""

import asyncio
import contextlib
import os
import re
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final, LiteralString, Protocol, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from engine.model.errors import (
    SourceError,
    SourceFailed,
    SourceRefused,
    SourceUnavailable,
)
from engine.sources.postgres.dsn import Dsn, parsed, place_of, text_of
from engine.sources.postgres.settings import PINNED_SETTINGS, later_statement, options_of
from engine.sources.postgres.sqlstates import Meaning, ends_connection, judged

APPLICATION_NAME: Final = "tailrace (not a standby)"
"""Our name where dsn, service and environment give none: one that no synchronous_standby_names
lists, since the server would have commits wait for us."""

_HIJACKING_ENVIRONMENT: Final = ("PGTZ", "PGDATESTYLE", "PGGEQO")
"""libpq sends these as settings of their own, which the server takes after, and so over, `options`.
"""

# Defaults where the dsn says nothing: a host that is gone is noticed in 25 s instead of two hours.
_DEFAULTS: Final[Mapping[str, str]] = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    # What was sent and is not acknowledged keeps keepalives from being sent. In milliseconds.
    "tcp_user_timeout": "25000",
}

WAL_SENDERS_HINT: Final = (
    "end replication connections that nobody needs (pg_stat_replication lists them), or"
    " ALTER SYSTEM SET max_wal_senders = … and restart the server"
)

CONNECTIONS_HINT: Final = (
    "end connections that nobody needs (pg_stat_activity lists them), or ALTER SYSTEM SET"
    " max_connections = … and restart the server"
)

_NO_ROOM: Final = "53300"
"""too_many_connections."""

POOLER_HINT: Final = (
    "a pooler such as pgbouncer stands in the way, and cannot pass replication on: give the"
    " server's own host and port in source.dsn"
)

_IAM_HINT: Final = (
    "an IAM login needs GRANT rds_iam TO this role, rds-db:connect in the policy of the task's role"
    " and rds.iam_auth_for_replication = 1 in the parameter group"
)

_REPLICATION_HINT: Final = (
    "ALTER ROLE {role} REPLICATION; on RDS and Aurora GRANT rds_replication TO {role}"
)

# In hints, {role} and {database} are those of the connection that was refused, as SQL takes them.
# libpq gives no SQLSTATE for a failed connect, only the server's text; where the server speaks
# another language, the failure counts as unavailable and is retried.
_REFUSALS: Final = (
    ("password authentication failed", "check user and password in source.dsn"),
    (
        # What RDS says of a token: "PAM authentication failed for user …".
        "PAM authentication failed",
        _IAM_HINT,
    ),
    ("authentication failed", "check user and authentication in source.dsn"),
    ("no password supplied", "give a password in source.dsn, or a passfile"),
    ("no pg_hba.conf entry", "allow this host in the server's pg_hba.conf"),
    ("pg_hba.conf rejects", "allow this host in the server's pg_hba.conf"),
    ("does not exist", "check dbname and user in source.dsn"),
    ("is not permitted to log in", "ALTER ROLE {role} LOGIN"),
    ("permission denied for database", "GRANT CONNECT ON DATABASE {database} TO {role}"),
    ("must be superuser or replication role", _REPLICATION_HINT),
    ("permission denied to start WAL sender", _REPLICATION_HINT),
    ("unsupported startup parameter", POOLER_HINT),
    ("certificate", "check sslmode and sslrootcert in source.dsn"),
    ("server does not support SSL", "check sslmode in source.dsn"),
)

# A password that is rotated is another one for a moment than the one that is kept.
_LOGIN_REFUSALS: Final = frozenset(
    {
        "password authentication failed",
        "PAM authentication failed",
        "authentication failed",
        "no password supplied",
    }
)

_READ_ANEW: Final = "the secret is read anew at each attempt"

REFUSED: Final = "connection refused"
"""The code of a refusal that may pass: the next dsn that is read may be another one."""

_WORKED_BEFORE: Final = "one that was read before worked, so it is read anew at each attempt"

# What libpq says of a keyword's value, before it connects.
_UNFIT: Final = re.compile(
    r"invalid (?:\w+ value|port number)|(?:could not|cannot) match|bad value for"
)

# These pass when somebody closes a connection. The server still runs and can be reached.
_PASSING: Final = (
    ("max_wal_senders", WAL_SENDERS_HINT),
    ("too many clients", CONNECTIONS_HINT),
    ("too many connections for role", "ALTER ROLE {role} CONNECTION LIMIT …, or -1 for none"),
    (
        "too many connections for database",
        "ALTER DATABASE {database} CONNECTION LIMIT …, or -1 for none",
    ),
    ("too many connections", CONNECTIONS_HINT),
    ("connection slots are reserved", CONNECTIONS_HINT),
)

_SPEAKING_CLASSES: Final = frozenset({"0A", "25", "28", "3D", "42", "53", "55", "57", "58"})
"""Classes of SQLSTATE whose messages name objects, settings and files. In others, such as 22 and
23, or what a function raises (P0), the primary message may quote a row's value."""

Query = LiteralString | sql.SQL | sql.Composed

Row = tuple[Any, ...]
"""What a query gives. Any: the query's text alone knows the columns' types."""

Connection = psycopg.AsyncConnection[Row]


class Questions(Protocol):
    """Where questions are asked: a session of its own, or one that sees a snapshot."""

    async def rows(self, query: Query, *arguments: object, doing: str) -> list[Row]:
        """The rows of one query. Raises SourceError. Cancellation cancels the query."""
        ...


async def connect(
    dsn: Dsn,
    *,
    replication: bool,
    settings: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Connection:
    """A session with our settings and `settings` over them; `replication` for a walsender's.

    Raises ConfigurationError for a dsn that is none, SourceRefused or SourceUnavailable. What is
    refused may pass where the dsn is read anew and such a session was had before: SourceFailed.
    Cancellation leaves no connection behind.
    """
    if isinstance(dsn, str):
        return await _connected(dsn, dsn, settings, overrides, replication=replication)
    text = await text_of(dsn)
    try:
        connection = await _connected(dsn, text, settings, overrides, replication=replication)
    except SourceRefused as error:
        if not dsn.is_rotated or replication not in dsn.worked:
            raise
        hint = f"{error.hint.rstrip('.')}; {_WORKED_BEFORE}" if error.hint else _WORKED_BEFORE
        raise SourceFailed(str(error), code=REFUSED, hint=hint) from error
    dsn.worked.add(replication)
    return connection


async def _connected(
    dsn: Dsn,
    text: str,
    settings: Mapping[str, str] | None,
    overrides: Mapping[str, str] | None,
    *,
    replication: bool,
) -> Connection:
    """A session by `text`, which is what `dsn` is at this moment."""
    given = parsed(text)
    parameters = {"fallback_application_name": APPLICATION_NAME, **_DEFAULTS, **given}
    pinned = {**PINNED_SETTINGS, **(settings or {})}
    options = parameters.get("options") or os.environ.get("PGOPTIONS", "")
    parameters |= {
        "replication": "database" if replication else "",
        "options": options_of(options, pinned),
        "client_encoding": "UTF8",
    }
    for name in _HIJACKING_ENVIRONMENT:
        os.environ.pop(name, None)
    place = place_of(text, overrides)
    try:
        conninfo = make_conninfo(**{**parameters, **(overrides or {})})
        connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
    except psycopg.Error as error:
        is_rotated = not isinstance(dsn, str) and dsn.is_rotated
        raise connect_failure(error, place, is_rotated=is_rotated) from error
    try:
        _refuse_other_settings(connection, pinned, place)
        await _pin_later(connection, place)
    except BaseException:
        await connection.close()
        raise
    return connection


def _refuse_other_settings(connection: Connection, pinned: Mapping[str, str], place: str) -> None:
    """Raise SourceRefused where the server says that a setting of ours is not in force."""
    for name, value in pinned.items():
        reported = connection.pgconn.parameter_status(name.encode())
        if reported is not None and reported.decode(errors="replace") != value:
            raise SourceRefused(
                f"PostgreSQL at {place} does not take our settings: {name} is not {value!r}",
                hint=POOLER_HINT,
            )


async def _pin_later(connection: Connection, place: str) -> None:
    if statement := later_statement(connection.info.server_version):
        try:
            await connection.execute(statement.encode())
        except psycopg.Error as error:
            raise translated(error, "setting up the session", place) from error


async def take_bytes_as_they_are(connection: Connection, *, in_transaction: bool = False) -> None:
    """Let a server that knows no encoding send what it has; or `in_transaction`, until its end.

    Otherwise it would check every value for UTF-8, and end the answer at the first that is none,
    without naming table or row. The compiled readers check as well, and name them. Cancellation
    leaves the connection with one encoding or the other.
    """
    if connection.pgconn.parameter_status(b"server_encoding") == b"SQL_ASCII":
        try:
            await connection.execute(
                "SET LOCAL client_encoding = 'SQL_ASCII'"
                if in_transaction
                else "SET client_encoding = 'SQL_ASCII'"
            )
        except psycopg.Error as error:
            raise translated(error, "setting the session's encoding") from error


def beside(connection: Connection) -> dict[str, str]:
    """Connection parameters that lead to the very server of `connection`."""
    server = connection.pgconn
    found = {"host": server.host, "hostaddr": server.hostaddr, "port": server.port}
    return {name: value.decode() for name, value in found.items() if value}


def cut_off(descriptor: int) -> None:
    """Shut this socket of libpq's. Both sides hear that it ended; it stays open."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)


def _cut_off(connection: Connection) -> None:
    if not connection.closed:
        cut_off(connection.pgconn.socket)


def connect_failure(error: psycopg.Error, place: str, *, is_rotated: bool = False) -> SourceError:
    """What a failed connect to `place` means to the operator.

    `is_rotated`: the dsn or its password is read anew at the next one.
    """
    text = _connect_text(error)
    if _UNFIT.search(text) and "FATAL" not in text:
        # libpq quotes the value, which may be a part of a password.
        return SourceRefused(
            f"libpq does not take a value in source.dsn, for PostgreSQL at {place}",
            hint="check the dsn's keywords, each against libpq's list of what they may be",
        )
    for sign, hint in _hints(_REFUSALS, error):
        # A missing UNIX socket "does not exist" either, but there nobody answered.
        if sign in text and "FATAL" in text:
            refused = f"PostgreSQL at {place} refused the connection: {text}"
            if is_rotated and sign in _LOGIN_REFUSALS:
                return SourceFailed(refused, code="28P01", hint=f"{hint}; {_READ_ANEW}")
            return SourceRefused(refused, hint=hint)
    if "certificate" in text or "does not support SSL" in text:
        return SourceRefused(
            f"no TLS connection to PostgreSQL at {place}: {text}",
            hint="check sslmode and sslrootcert in source.dsn",
        )
    for sign, hint in _hints(_PASSING, error):
        if sign in text and "FATAL" in text:
            return SourceFailed(
                f"PostgreSQL at {place} has no room for the connection: {text}",
                code=_NO_ROOM,
                hint=hint,
            )
    return SourceUnavailable(
        f"no connection to PostgreSQL at {place}: {text}",
        hint="check that the server runs and can be reached",
    )


def _hints(signs: tuple[tuple[str, str], ...], error: psycopg.Error) -> Iterator[tuple[str, str]]:
    """The signs with what to do, for the role and the database of the failed connection."""
    tried = error.pgconn
    names = {"{role}": tried.user if tried else b"", "{database}": tried.db if tried else b""}
    for sign, hint in signs:
        told = hint
        for mark, name in names.items():
            told = told.replace(mark, quoted(name.decode(errors="replace")) if name else "…")
        yield sign, told


def is_without_room(error: Exception) -> bool:
    """Whether a limit of the server, the role or the database let no session in."""
    return isinstance(error, SourceFailed) and error.code == _NO_ROOM


def _connect_text(error: psycopg.Error) -> str:
    # DETAIL, HINT and CONTEXT have lines of their own, after a word in the server's language and
    # two spaces.
    lines = [line for line in str(error).splitlines() if not re.match(r"\s*\S+:  ", line)]
    return " ".join(" ".join(lines).split())


def translated(error: psycopg.Error, doing: str, place: str = "") -> SourceError:
    """The error of our tree for what a server answered, or failed to answer, while `doing`.

    `place` says where, as `place_of` does. Never PositionLost: no SQLSTATE alone says that.
    """
    state = error.sqlstate or ""
    server = f"PostgreSQL at {place}" if place else "PostgreSQL"
    judgement = judged(state)
    text = primary_message(error)
    if ends_connection(state):
        return SourceUnavailable(
            f"lost {server} while {doing}: {text}", hint="it is tried again; see the server's log"
        )
    if state[:2] not in _SPEAKING_CLASSES:
        text = ""
    if judgement.meaning is Meaning.REFUSE:
        return SourceRefused(
            f"{server} refused {doing}: {text or judgement.text} (SQLSTATE {state})",
            hint=judgement.hint,
        )
    return SourceFailed(
        f"{server} failed at {doing}: {': '.join(filter(None, (judgement.text, text)))}"
        f" (SQLSTATE {state})",
        code=state,
        hint=judgement.hint,
    )


def quoted(name: str) -> str:
    """An identifier as SQL takes it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def primary_message(error: psycopg.Error) -> str:
    """The server's message without DETAIL and CONTEXT, which may quote values.

    Where only libpq speaks, of a connection that ended, it may repeat the server's whole message
    behind its severity: that is left out.
    """
    if error.diag.message_primary:
        return error.diag.message_primary
    own = re.split(r"\S+:  ", str(error), maxsplit=1)[0]
    return " ".join(own.split()) or "the server ended the connection"


class Session:
    """A plain session for questions beside the stream.

    It is opened when it is needed, and again when it was lost. After its block, a question that is
    still being asked ends with SourceUnavailable.
    """

    def __init__(self, dsn: Dsn, **overrides: str) -> None:
        self._dsn = dsn
        self._overrides = overrides
        self._connection: Connection | None = None
        # How many questions are under way, by the connection that they are asked over.
        self._asked: Counter[Connection] = Counter()
        self._opening = asyncio.Lock()
        self._over = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        # Who asks at this moment, in another task, would take it for a lost one and open another.
        self._over.set()
        await self.close()

    def another(self) -> "Session":
        """One more session to the same place, not open yet."""
        return Session(self._dsn, **self._overrides)

    async def connected(self) -> Connection:
        """A connection to the same place, for whoever asked.

        Raises as `connect` does. Cancellation leaves no connection behind.
        """
        return await connect(self._dsn, replication=False, overrides=self._overrides)

    @property
    def place(self) -> str:
        """Where it leads, as `place_of` says it."""
        return place_of(self._dsn, self._overrides)

    @property
    def is_certificate_verified(self) -> bool:
        """Whether libpq compared the server's certificate with an authority's, where it had one."""
        if self._connection is None:
            return False
        options = {option.keyword: option.val or b"" for option in self._connection.pgconn.info}
        mode = options.get(b"sslmode")
        # With an authority's file `require` verifies as `verify-ca` does: "SSL Support" in libpq's
        # manual.
        has_authority = bool(options.get(b"sslrootcert"))
        return mode in {b"verify-ca", b"verify-full"} or (mode == b"require" and has_authority)

    @property
    def is_open(self) -> bool:
        """Whether it was open when last used."""
        return self._connection is not None

    async def close(self) -> None:
        """Close; the next question would open it again.

        It never waits, so nothing can cancel it. A question that is being asked ends with an error.
        """
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if connection in self._asked:
            # libpq's connection would be freed under who still reads from it: they close it.
            _cut_off(connection)
        else:
            await connection.close()

    def cut_off(self) -> None:
        """End the question that is being asked, whether or not the server answers. Never waits.

        The session asks nothing any more.
        """
        self._over.set()
        if self._connection is not None:
            _cut_off(self._connection)

    async def rows(self, query: Query, *arguments: object, doing: str) -> list[Row]:
        """The rows of one query, asked again once where the session was lost meanwhile.

        Raises SourceError. Cancellation cancels the query and keeps the session.
        """
        is_fresh = self._connection is None
        try:
            return await self._rows(query, arguments, doing)
        except SourceFailed:
            raise
        except SourceUnavailable:
            if is_fresh:
                raise
        return await self._rows(query, arguments, doing)

    async def _rows(self, query: Query, arguments: tuple[object, ...], doing: str) -> list[Row]:
        connection = await self._opened(doing)
        self._asked[connection] += 1
        try:
            cursor = await connection.execute(query, arguments or None)
            return await cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            found = translated(error, doing, self.place)
            is_lost = isinstance(found, SourceUnavailable) and not isinstance(found, SourceFailed)
            if is_lost and self._connection is connection:
                self._connection = None
            raise found from error
        finally:
            self._asked[connection] -= 1
            if not self._asked[connection]:
                del self._asked[connection]
                if connection is not self._connection:
                    await connection.close()

    async def _opened(self, doing: str) -> Connection:
        async with self._opening:
            if self._connection is None and not self._over.is_set():
                connection = await self.connected()
                if self._over.is_set():
                    await connection.close()
                else:
                    self._connection = connection
            if self._connection is None:
                raise SourceUnavailable(f"the session was closed while {doing}")
            return self._connection
