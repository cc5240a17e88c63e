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
from engine.config.secret_reference import Login, SecretReference, referable
from engine.config.values import Unfit

if TYPE_CHECKING:
    from engine.config.parsed import Parsed

_LIBPQ_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGSERVICE")


class PostgresConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """How PostgreSQL is reached, and what its log is read through.

    `dsn` is a libpq string or URI, or where AWS keeps it; empty: libpq's own environment (PGHOST,
    …) says it all. `password` is what the dsn lacks, or None. `dsn_file` and `password_file` are
    the files that they were read from, if they were: each is read again at each connect.
    `iam_auth`: each connection has a token for its password.
    """

    dsn: Secret | SecretReference
    dsn_file: Path | None
    password: Secret | SecretReference | None
    password_file: Path | None
    iam_auth: bool
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
    referable(values.text(_check_dsn)),
    "How to connect: a libpq string or URI, or where AWS keeps it (secretsmanager:NAME#KEY, "
    "ssm:NAME). Never shown. Without dsn and dsn_file, libpq's own environment (PGHOST, PGSERVICE, "
    "…) has to say it.",
)

_PASSWORD: Final = Key(
    "source",
    "password",
    referable(values.text(check_not_empty)),
    "The password, for a dsn without one, or where AWS keeps it (secretsmanager:NAME#KEY, "
    "ssm:NAME), such as the secret that RDS manages. Never shown.",
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
    _PASSWORD,
    Key(
        "source",
        "password_file",
        values.text(check_not_empty),
        "A file that holds the password, such as a mounted secret; relative to this file's folder.",
        is_shown=True,
    ),
    Key(
        "source",
        "iam_auth",
        values.boolean(),
        "Whether to log in by IAM (RDS and Aurora): each connection has a token that AWS's "
        "credentials sign, in place of a password. The dsn has to ask for TLS (sslmode=require or "
        "stricter).",
        default=False,
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


LOGIN_KEYS: Final[tuple[Key, ...]] = tuple(
    key for key in KEYS if key.name in {"dsn", "password", "iam_auth"}
)
"""Those that say what a login takes from AWS. Files beside them hold no reference."""


def login(parsed: "Parsed") -> Login:
    """What a login takes from AWS, where anything of `LOGIN_KEYS` is missing or wrong too."""
    values = {key.name: parsed.values.get((key.section, key.name)) for key in LOGIN_KEYS}
    dsn, password = values["dsn"], values["password"]
    kept = tuple(value for value in (dsn, password) if isinstance(value, SecretReference))
    plain = Secret(dsn) if isinstance(dsn, str) else None
    return Login(kept, plain, has_token=values["iam_auth"] is True)


def settle(parsed: "Parsed") -> None:
    """Find dsn and password, which may stand in files; complain of what is missing or too much."""
    if not settle_secret(parsed, _DSN):
        _complain_of_missing(parsed)
    has_password = settle_secret(parsed, _PASSWORD)
    if has_password and parsed.values.get(("source", "iam_auth")):
        parsed.complain(
            "source",
            "iam_auth",
            "is set beside a password",
            "keep one of them: a token takes its place",
        )


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
    dsn, password = parsed.value("source", "dsn"), parsed.value("source", "password")
    return PostgresConfiguration(
        dsn=_kept(dsn or ""),
        dsn_file=parsed.value("source", "dsn_file"),
        password=None if password is None else _kept(password),
        password_file=parsed.value("source", "password_file"),
        iam_auth=parsed.value("source", "iam_auth"),
        slot=parsed.value("source", "slot"),
        publication=parsed.value("source", "publication"),
    )


def _kept(value: str | SecretReference) -> Secret | SecretReference:
    return value if isinstance(value, SecretReference) else Secret(value)
