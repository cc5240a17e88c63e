"""An engine that runs, asked at its own port: what no journal says.

Strategy: a journal says which snapshots are under way, and not how far they are, nor how fast rows
go by. The engine says so at `/status`. `tailrace status` asks it beside the journal: where it runs
elsewhere, or has no port, nobody answers, and that is no error. `tailrace top` has nothing else.

Invariant: a token goes only to the place that was named together with it.
"""

import http.client
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import msgspec

from engine.config import HttpConfiguration
from engine.model.errors import ConfigurationError, TailraceError
from engine.operate.status import Status

_ANSWER_SECONDS: Final = 1.0
_ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024

_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound here


class EngineUnreachable(TailraceError):
    """Nobody answers at an engine's port, or somebody else does."""

    exit_code = 69


@dataclass(frozen=True, slots=True)
class Port:
    """Where an engine is asked. `token` is empty where it wants none."""

    host: str
    number: int
    token: str = ""
    path: str = ""
    is_tls: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_tls else 'http'}://{host}:{self.number}{self.path}/status"


def port_of(configuration: HttpConfiguration) -> Port | None:
    """The port of an engine with this configuration on this machine; None where it has none."""
    listen = configuration.listen
    if listen is None or not listen.port:
        return None
    token = configuration.token.reveal() if configuration.token is not None else ""
    return Port(_EVERYWHERE.get(listen.host, listen.host), listen.port, token)


def port_at(url: str, token: str = "") -> Port:
    """The port that a URL names. Raises ValueError where it names none."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise ValueError(url)
    is_tls = parts.scheme == "https"
    path = parts.path.rstrip("/").removesuffix("/status")
    return Port(parts.hostname, parts.port or (443 if is_tls else 80), token, path, is_tls)


def read_status(port: Port, seconds: float = _ANSWER_SECONDS) -> Status:
    """What the engine there says of itself. Waits `seconds` for each answer of the network.

    Raises EngineUnreachable, and ConfigurationError where the token is the wrong one.
    """
    kind = http.client.HTTPSConnection if port.is_tls else http.client.HTTPConnection
    connection = kind(port.host, port.number, timeout=seconds)
    headers = {"Authorization": f"Bearer {port.token}"} if port.token else {}
    try:
        connection.request("GET", f"{port.path}/status", headers=headers)
        answer = connection.getresponse()
        content = answer.read(_ANSWER_BYTES_MAX)
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        # The last one: a host's name that no resolver takes.
        raise EngineUnreachable(
            f"no engine answers at {port}: {_reason(error)}",
            hint="see whether it runs; `--url` names an engine on another machine",
        ) from error
    finally:
        connection.close()
    if answer.status == http.client.UNAUTHORIZED:
        text = "does not take this token" if port.token else "wants a token"
        hint = "name the file that holds it with --token-file; it is the engine's http.token"
        raise ConfigurationError(f"the engine at {port} {text}", hint=hint)
    try:
        return msgspec.json.decode(content, type=Status)
    except msgspec.DecodeError as error:
        raise EngineUnreachable(
            f"what answers at {port} is no engine of this release (HTTP {answer.status})",
            hint="see what listens there, and which release the engine has",
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it took too long"
    return (error.strerror if isinstance(error, OSError) else "") or type(error).__name__


def ask_engine(configuration: HttpConfiguration, writer_id: str) -> Status | None:
    """What the engine on this machine says of itself; None where it is not that writer."""
    port = port_of(configuration)
    if port is None:
        return None
    try:
        status = read_status(port)
    except TailraceError:
        return None
    return status if status.writer_id == writer_id else None
