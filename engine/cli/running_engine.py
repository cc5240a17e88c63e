"""The engine that runs on this machine, asked at its own port: what no journal says.

Strategy: a journal says which snapshots are under way, and not how far they are. The engine says
so at `/status`. Where it runs elsewhere, or has no port, nobody answers, and that is no error.

Invariant: an answer counts only when it comes from the writer that the journal names.
"""

import http.client
from typing import Final

import msgspec

from engine.config import HttpConfiguration
from engine.operate.status import Status

_ANSWER_SECONDS: Final = 1.0
_ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024

_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound here


def ask_engine(port: HttpConfiguration, writer_id: str) -> Status | None:
    """What the engine that listens there says of itself; None where it is not that writer.

    The token is sent where there is one. Waits for a second at most for each answer of the network.
    """
    listen = port.listen
    if listen is None or not listen.port:
        return None
    host = _EVERYWHERE.get(listen.host, listen.host)
    headers = {"Authorization": f"Bearer {port.token.reveal()}"} if port.token is not None else {}
    connection = http.client.HTTPConnection(host, listen.port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", "/status", headers=headers)
        content = connection.getresponse().read(_ANSWER_BYTES_MAX)
        status = msgspec.json.decode(content, type=Status)
    except (OSError, http.client.HTTPException, msgspec.DecodeError):
        return None
    finally:
        connection.close()
    return status if status.writer_id == writer_id else None
