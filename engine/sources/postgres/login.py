"""How a session logs in: what was given, and what is read at each connect.

Strategy: dsn and password come from the configuration, a file, or where AWS keeps them; a token
takes a password's place. What may change is read when a connection is opened and never kept, so a
rotated secret counts from the next connection on, without a restart. Whatever connects for one
engine shares one login. So the first connection of a snapshot knows that the secret was right
before, as the stream does.

Invariant: only the place of what was read is told. No message made here holds a part of a secret.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from psycopg.conninfo import make_conninfo

from engine.config import PostgresConfiguration, Secret
from engine.config.secret_reference import ReadSecret, SecretFailed, SecretReference
from engine.model.errors import (
    ConfigurationError,
    SourceError,
    SourceFailed,
    SourceRefused,
    SourceUnavailable,
)
from engine.sources.postgres.dsn import Dsn, library_defaults, parsed, place_of

MakeToken = Callable[[str, int, str], Awaitable[str]]
"""A password for host, port and user that AWS's credentials sign. Raises SecretFailed."""

_Read = Callable[[], Awaitable[str]]

_UNREADABLE: Final = "unreadable secret"

_TRIED_AGAIN: Final = "it was right before, so it is read again"

_TLS_MODES: Final = frozenset({"require", "verify-ca", "verify-full"})


def dsn_of(
    configuration: PostgresConfiguration,
    *,
    read_secret: ReadSecret,
    make_token: MakeToken,
    has_worked: bool = False,
) -> Dsn:
    """The dsn where the configuration has all of it; else what reads it at each connect.

    `has_worked`: another process has read it here, and the server took it.
    """
    own = configuration
    if own.iam_auth:
        return _Login(own, read_secret, _Token(make_token).of, has_worked=has_worked)
    if own.password is not None:
        read = _reader("password", own.password, own.password_file, read_secret)
        return _Login(own, read_secret, _Password(read).of, has_worked=has_worked)
    if own.dsn_file is None and isinstance(own.dsn, Secret):
        return own.dsn.reveal()
    return _Login(own, read_secret, None, has_worked=has_worked)


def described(configuration: PostgresConfiguration) -> str:
    """Where the dsn leads, in words, as far as can be said without asking anybody.

    Raises ConfigurationError for one that cannot be right.
    """
    own = configuration
    if isinstance(own.dsn, SecretReference):
        return f"is kept in {own.dsn}"
    given = parsed(own.dsn.reveal())
    if own.iam_auth:
        _token_place(given)
    elif own.password is not None:
        _refuse_second_password(given)
    kept = f", password kept in {own.password}" if isinstance(own.password, SecretReference) else ""
    return f"leads to {place_of(own.dsn.reveal())}{kept}"


def host_and_user(dsn: str) -> tuple[str, str]:
    """What a dsn itself says of both; empty where it says nothing. Raises ConfigurationError."""
    given = parsed(dsn)
    return given.get("host", ""), given.get("user", "")


_Added = Callable[[dict[str, str]], Awaitable[str]]
"""The password for a dsn that libpq has read."""


class _Login:
    """Implements `engine.sources.postgres.dsn.ReadDsn`."""

    def __init__(
        self,
        own: PostgresConfiguration,
        read_secret: ReadSecret,
        password: _Added | None,
        *,
        has_worked: bool,
    ) -> None:
        self._read = _reader("dsn", own.dsn, own.dsn_file, read_secret)
        self._password = password
        self.known = own.dsn.reveal() if isinstance(own.dsn, Secret) else None
        self._was_read = has_worked
        self.worked = {False, True} if has_worked else set[bool]()
        self.is_rotated = (
            own.iam_auth
            or bool(own.dsn_file or own.password_file)
            or any(isinstance(each, SecretReference) for each in (own.dsn, own.password))
        )

    async def read(self) -> str:
        """See ReadDsn. What was right once may be right again: from then on a failure may pass."""
        try:
            text = await self._whole()
        except (SourceRefused, ConfigurationError) as error:
            if not self.is_rotated:
                raise
            if not self._was_read:
                # Who keeps it has to mend it. A start ends by this, and no running engine.
                raise SourceRefused(str(error), hint=error.hint) from error
            hint = f"{error.hint.rstrip('.')}; {_TRIED_AGAIN}" if error.hint else _TRIED_AGAIN
            raise SourceFailed(str(error), code=_UNREADABLE, hint=hint) from error
        self._was_read = True
        return text

    async def _whole(self) -> str:
        dsn = await self._read()
        given = parsed(dsn)
        self.known = dsn
        if self._password is None:
            return dsn
        return make_conninfo(dsn, password=await self._password(given))


class _Password:
    """A password of its own."""

    def __init__(self, read: _Read) -> None:
        self._read = read

    async def of(self, given: dict[str, str]) -> str:
        _refuse_second_password(given)
        return await self._read()


class _Token:
    """A token in place of a password: it is made for one host, one port and one role."""

    def __init__(self, make: MakeToken) -> None:
        self._make = make

    async def of(self, given: dict[str, str]) -> str:
        host, port, user = _token_place(given)
        try:
            return await self._make(host, port, user)
        except SecretFailed as failed:
            raise _translated("iam_auth", failed) from failed


def _refuse_second_password(given: dict[str, str]) -> None:
    if "password" in given:
        raise ConfigurationError(
            "source.dsn holds a password, and source.password gives another",
            hint="take the password out of the dsn, or drop source.password and its file",
        )


def _token_place(given: dict[str, str]) -> tuple[str, int, str]:
    """Host, port and user that a token is made for. Raises ConfigurationError where none can be."""
    if "password" in given:
        raise ConfigurationError(
            "source.iam_auth is set, and source.dsn holds a password",
            hint="take the password out of the dsn: a token takes its place",
        )
    parameters = library_defaults() | given
    host, port = parameters.get("host", ""), parameters.get("port") or "5432"
    if not host or host.startswith(("/", "@")) or "," in host or "," in port:
        raise ConfigurationError(
            "source.iam_auth needs one host in source.dsn, because a token is made for one",
            hint="give the instance's or the cluster's own endpoint, as RDS shows it",
        )
    mode = parameters.get("sslmode", "")
    if mode not in _TLS_MODES:
        raise ConfigurationError(
            f"source.iam_auth needs TLS, and source.dsn has sslmode={mode}",
            hint="write sslmode=verify-full and sslrootcert=… (RDS's certificate bundle) into the"
            " dsn, or sslmode=require",
        )
    return host, int(port), parameters.get("user", "")


def _reader(
    name: str, given: Secret | SecretReference, file: Path | None, read_secret: ReadSecret
) -> _Read:
    """What reads the value of `source.name` as it is now."""

    async def read() -> str:
        if isinstance(given, SecretReference):
            try:
                return await read_secret(given)
            except SecretFailed as failed:
                raise _translated(name, failed) from failed
        return given.reveal() if file is None else _file_text(name, file)

    return read


def _file_text(name: str, file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceUnavailable(
            f"source.{name}_file {file} cannot be read: {type(error).__name__}",
            hint="it is tried again; see who may read the file, and what rotates it",
        ) from None
    if not text:
        raise SourceUnavailable(
            f"source.{name}_file {file} is empty",
            hint="it is tried again; see what rotates the file",
        )
    return text


def _translated(name: str, failed: SecretFailed) -> SourceError:
    kind = SourceUnavailable if failed.is_passing else SourceRefused
    return kind(f"source.{name}: {failed.text}", hint=failed.hint)
