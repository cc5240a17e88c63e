"""The dsn: parsed by libpq alone, shown as host, port and database.

Strategy: libpq parses the dsn. So what it connects with and what is shown are the same. libpq takes
some dsns that nobody can have meant: in a URI whose password holds an unescaped `@` or `/`, the
rest of the password stands where host, port or database belong. Those are refused before they are
used.

Invariant: no message made here repeats any part of a dsn but a host, a port and a database that
passed these checks. A refused dsn is not repeated at all. libpq's own complaints quote values, so
they are never passed on.
"""

import re
from collections.abc import Mapping
from typing import Final, Protocol, TypeAlias

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from engine.model.errors import ConfigurationError, TailraceError


class ReadDsn(Protocol):
    """A dsn that is read at each connect, for credentials that are rotated.

    `known` is what was read last, for its place alone; None: nothing was. `is_rotated`: what is
    read may be another one at the next connect. `worked` are the kinds of sessions (a walsender's:
    True) that the server gave before for one that was read; whoever connects says so.
    """

    is_rotated: bool
    worked: set[bool]

    @property
    def known(self) -> str | None: ...

    async def read(self) -> str:
        """The dsn as it is now. Raises SourceError or ConfigurationError.

        Cancellation changes nothing.
        """
        ...


Dsn: TypeAlias = str | ReadDsn
"""A libpq string or URI, or what reads one."""

_FORM_HINT: Final = "write it as postgresql://user@host:5432/database"
_ESCAPE_HINT: Final = (
    "in a URI write %40 for @, %3A for :, %2F for /, %3F for ?, %23 for # and %25 for %"
    " inside user, password and database; or use the form host=… user=… password='…'"
)

# libpq cuts a URI in this way: what comes before the first @ is user and password, if no / comes
# before it.
_URI: Final = re.compile(
    r"postgres(?:ql)?://(?:[^@/]*@)?(?P<places>[^/?@]*)(?:/(?P<database>[^/?@]*))?(?:\?.*)?",
    re.DOTALL,
)
_URI_SIGNS: Final = ("postgresql://", "postgres://")

_NUMBER: Final = re.compile(r"\s*-?[0-9]+\s*")
_LISTS: Final = frozenset({"host", "hostaddr", "port"})
_ALLOWED: Final[Mapping[str, re.Pattern[str]]] = {
    # A name, an address (IPv6 may have a zone), a folder, or Linux's abstract socket.
    "host": re.compile(r"[\w.:%-]+|/[^@\x00-\x1f]*|@[\w./-]+"),
    "hostaddr": re.compile(r"[0-9A-Fa-f.:]+(?:%[\w.-]+)?"),
    "port": re.compile(r"\s*[0-9]{1,5}\s*"),
    # Otherwise a whole dsn could be sent to the server as a name, and come back in its error.
    "dbname": re.compile(r"(?!.*://)[^=\x00-\x1f]*"),
    "service": re.compile(r"[\w.-]+"),
    "connect_timeout": _NUMBER,
    "keepalives": _NUMBER,
    "keepalives_idle": _NUMBER,
    "keepalives_interval": _NUMBER,
    "keepalives_count": _NUMBER,
    "tcp_user_timeout": _NUMBER,
}
"""What is shown, or quoted by errors of libpq and psycopg, has to look like a host, a port or a
database."""


async def text_of(dsn: Dsn) -> str:
    """The dsn as it is at this moment. Raises what `ReadDsn.read` does.

    Cancellation changes nothing.
    """
    return dsn if isinstance(dsn, str) else await dsn.read()


def parsed(dsn: str) -> dict[str, str]:
    """What libpq reads from a dsn. Raises ConfigurationError for what cannot be meant."""
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.Error:
        # libpq's own text quotes the dsn, password included.
        raise _unfit("is neither a libpq connection string nor a URI", _FORM_HINT) from None
    parameters = {name: str(value) for name, value in given.items() if value is not None}
    if dsn.startswith(_URI_SIGNS) and _URI.fullmatch(dsn) is None:
        raise _unfit("is a URI with an @ or a / where none belongs", _ESCAPE_HINT)
    _refuse_unfit(parameters)
    return parameters


def place_of(dsn: Dsn, overrides: Mapping[str, str] | None = None) -> str:
    """Where a dsn leads, as host:port/database: what libpq read from it, never the dsn."""
    known = dsn if isinstance(dsn, str) else dsn.known
    try:
        given = None if known is None else parsed(known)
    except TailraceError:
        given = None
    if given is None:
        return "the place that source.dsn names"
    parameters = {**library_defaults(), **given, **(overrides or {})}
    if "service" in given and "host" not in given and not overrides:
        return f"service {given['service']}"
    hosts = (parameters.get("host") or parameters.get("hostaddr") or "localhost").split(",")
    ports = (parameters.get("port") or "5432").split(",")
    places = [f"{host}:{ports[i % len(ports)]}" for i, host in enumerate(hosts)]
    return f"{','.join(places)}/{parameters.get('dbname') or parameters.get('user') or ''}"


def _refuse_unfit(parameters: Mapping[str, str]) -> None:
    for name, allowed in _ALLOWED.items():
        values = parameters.get(name, "")
        for value in values.split(",") if name in _LISTS else [values]:
            if value and not allowed.fullmatch(value):
                raise _unfit(f"has a {name} that cannot be one", _ESCAPE_HINT)


def _unfit(text: str, hint: str) -> ConfigurationError:
    return ConfigurationError(f"source.dsn {text}", hint=hint)


def library_defaults() -> dict[str, str]:
    """What libpq takes from the environment where the dsn is silent."""
    return {
        option.keyword.decode(): option.val.decode()
        for option in pq.Conninfo.get_defaults()
        if option.val is not None
    }
