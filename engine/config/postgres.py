"""PostgreSQL's section: the keys that only it has, their rules, and what they become.

Strategy: see `engine.config.sources`. libpq itself decides whether a connection string is right;
what is refused here is what libpq would not even try.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from engine.config import values
from engine.config.key import Key, check_not_empty
from engine.config.scalars import Secret
from engine.config.secret_file import settle_secret
from engine.config.values import Unfit

if TYPE_CHECKING:
    from engine.config.parsed import Parsed

_LIBPQ_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGSERVICE")


class PostgresConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """How PostgreSQL is reached, and what its log is read through.

    `dsn` is a libpq string or URI, whatever it was read from; empty: libpq's own environment
    (PGHOST, …) says it all. `dsn_file` is the file that it was read from, if it was one: it is read
    again at each connect.
    """

    dsn: Secret
    dsn_file: Path | None
    slot: str
    publication: str


def _check_dsn(value: str) -> None:
    check_not_empty(value)
    if value.startswith("jdbc:"):
        raise Unfit("is a JDBC URL", 'libpq\'s form is "postgresql://user@host:5432/database"')
    if not value.startswith(("postgresql://", "postgres://")) and "=" not in value:
        raise Unfit(
            "is not a libpq connection string",
            'write it as "postgresql://user@host:5432/database" or "host=… dbname=… user=…"',
        )


def _check_slot(value: str) -> None:
    if not re.fullmatch(r"[a-z0-9_]{1,63}", value):
        raise Unfit(
            "is not a slot name", "PostgreSQL takes lower-case letters, digits and _, 63 at most"
        )


def _check_publication(value: str) -> None:
    if not 1 <= len(value.encode()) <= 63:
        raise Unfit("is not a publication name", "PostgreSQL takes 1 to 63 bytes")


_DSN: Final = Key(
    "source",
    "dsn",
    values.text(_check_dsn),
    "How to connect: a libpq string or URI. Never shown. Without dsn and dsn_file, libpq's own "
    "environment (PGHOST, PGSERVICE, …) has to say it.",
)

KEYS: Final[tuple[Key, ...]] = (
    _DSN,
    Key(
        "source",
        "dsn_file",
        values.text(check_not_empty),
        "A file that holds the dsn, such as a mounted secret; relative to this file's folder.",
        is_shown=True,
    ),
    Key(
        "source",
        "slot",
        values.text(_check_slot, pattern="^[a-z0-9_]{1,63}$"),
        "The replication slot, one a pipeline; made at the first start where it is missing.",
        default="tailrace",
        is_shown=True,
    ),
    Key(
        "source",
        "publication",
        values.text(_check_publication),
        "The publication; it is made from `tables` when it is missing.",
        default="tailrace",
        is_shown=True,
    ),
)


def settle(parsed: "Parsed") -> None:
    """Find the dsn, which may stand in a file; complain where it is missing or given twice."""
    if not settle_secret(parsed, _DSN):
        _complain_of_missing(parsed)


def _complain_of_missing(parsed: "Parsed") -> None:
    is_known = any(problem.key.startswith("source.dsn") for problem in parsed.problems)
    if not is_known and not any(parsed.environment.get(name) for name in _LIBPQ_VARIABLES):
        parsed.complain(
            "source",
            "dsn",
            "is missing",
            f"set it, dsn_file, {_DSN.variable}, or libpq's own PGHOST",
        )


def make(parsed: "Parsed") -> PostgresConfiguration:
    """The section as a type, where nothing is wrong with it."""
    return PostgresConfiguration(
        dsn=Secret(parsed.value("source", "dsn") or ""),
        dsn_file=parsed.value("source", "dsn_file"),
        slot=parsed.value("source", "slot"),
        publication=parsed.value("source", "publication"),
    )
